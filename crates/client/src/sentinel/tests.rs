use steadfast_core::report::MonitoredPrimary;

use super::*;

fn says(primary: &str, epoch: u64, now: Instant) -> Answer {
    Answer {
        testimony: Testimony {
            primary: Some(Endpoint::new(primary, 1)),
            monitored: MonitoredPrimary {
                config_epoch: epoch,
                run_id: None,
                other_sentinels: 2,
                quorum: 2,
                subjectively_down: false,
                objectively_down: false,
                failing_over: false,
            },
            sentinel: None,
            asked: now,
        },
        peers: Vec::new(),
        replicas: None,
    }
}

fn discovery(seeds: &[Endpoint]) -> Discovery {
    let target = SentinelTarget {
        seeds: seeds.to_vec(),
        service: "main".into(),
    };
    Discovery::new(&target, clock::now())
}

fn replica(host: &str, in_sync: bool) -> SentinelReplica {
    SentinelReplica {
        endpoint: Endpoint::new(host, 1),
        run_id: None,
        in_sync,
        offset: 0,
        priority: Some(100),
    }
}

#[test]
fn t20_replicas_are_those_of_the_primary_that_is_believed_and_those_that_are_away() {
    let seeds = [Endpoint::new("s", 1)];
    let discovery = discovery(&seeds);
    let now = clock::now();
    let mut first = says("a", 1, now);
    first.replicas = Some(vec![replica("b", true), replica("c", false)]);
    discovery.hear(&seeds[0], first, now);
    *discovery.replicas.lock() = Some(vec![ReplicaStatus {
        address: "b:1".into(),
        in_sync: true,
        lag_bytes: Some(7),
        priority: None,
    }]);
    let told = discovery.status(now).replicas;
    let facts = |one: &ReplicaStatus| (one.address.clone(), one.in_sync, one.lag_bytes);
    let told: Vec<_> = told.iter().map(facts).collect();
    let want = [
        ("b:1".to_owned(), true, Some(7)),
        ("c:1".to_owned(), false, None),
    ];
    assert_eq!(told, want);
    // The primary tells of them no more: the sentinel's word stands, for a while.
    let is_known = |at| discovery.status(at).replicas_known;
    assert!(is_known(now + REPLICAS_FRESH * 2));
    *discovery.replicas.lock() = None;
    let in_sync = |at| {
        let replicas = discovery.status(at).replicas;
        replicas.iter().map(|one| one.in_sync).collect::<Vec<_>>()
    };
    assert_eq!(in_sync(now), [true, false]);
    assert_eq!(in_sync(now + REPLICAS_FRESH * 2), [false, false]);
    // Nobody has told of them since: that is no word that they are away.
    assert_eq!(
        (is_known(now), is_known(now + REPLICAS_FRESH * 2)),
        (true, false)
    );
    // Another primary: what was said of the old one's replicas is over.
    discovery.hear(&seeds[0], says("b", 2, now), now);
    assert!(discovery.status(now).replicas.is_empty());
}

#[test]
fn t17_the_sentinels_of_the_url_are_known_before_any_of_them_names_a_primary() {
    let seeds: Vec<_> = (1..4).map(|port| Endpoint::new("s", port)).collect();
    let discovery = discovery(&seeds);
    let now = clock::now();
    let known = || {
        let status = discovery.status(now);
        (status.votes, status.voters, status.sentinels.len())
    };
    assert_eq!(known(), (0, 3, 3));
    let mut nothing = says("a", 0, now);
    nothing.testimony.primary = None;
    discovery.hear(&seeds[0], nothing, now);
    assert_eq!(known(), (0, 3, 3));
}

#[test]
fn t17_a_sentinel_that_is_not_heard_says_so_and_each_shows_what_it_names() {
    let seeds = [Endpoint::new("s", 1)];
    let discovery = discovery(&seeds);
    let now = clock::now();
    let peer = Endpoint::new("p", 2);
    let mut answer = says("a", 3, now);
    answer.peers = vec![PeerSentinel {
        endpoint: peer.clone(),
        run_id: Some("its-id".into()),
    }];
    discovery.hear(&seeds[0], answer, now);
    let mut other = says("b", 9, now);
    other.testimony.sentinel = Some("another-id".into());
    discovery.hear(&peer, other, now);
    let status = discovery.status(now);
    assert_eq!(status.primary.as_deref(), Some("a:1"));
    let [stranger, seed] = &status.sentinels[..] else {
        panic!("{status:?}");
    };
    let error = stranger.error.as_deref().unwrap_or_default();
    assert!(error.contains("not heard"), "{stranger:?}");
    assert_eq!((seed.names.as_deref(), seed.epoch), (Some("a:1"), Some(3)));
    assert_eq!((seed.quorum, seed.error.as_deref()), (Some(2), None));
}

#[test]
fn t19_what_was_proven_of_the_old_primary_proves_nothing_of_the_new_one() {
    let seeds: Vec<_> = (1..4).map(|port| Endpoint::new("s", port)).collect();
    let now = clock::now();
    let discovery = discovery(&seeds);
    let says = |primary: &str, epoch| says(primary, epoch, now);
    let within = Duration::from_secs(60);
    assert!(!discovery.is_proven(within, now));
    for seed in &seeds {
        discovery.hear(seed, says("a", 1), now);
    }
    assert!(discovery.is_proven(within, now));
    let switch = discovery.hear(&seeds[0], says("b", 2), now);
    assert!(switch.is_some(), "one word is enough to switch");
    assert!(!discovery.is_proven(within, now), "and not to write");
    discovery.hear(&seeds[1], says("b", 2), now);
    assert!(discovery.is_proven(within, now));
}
