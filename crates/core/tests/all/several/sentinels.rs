//! Three sentinels of Redis 7 that watch a primary with a replica.

use std::time::{Duration, Instant};

use redis::Value;
use steadfast_core::node::Endpoint;
use steadfast_core::report::{
    InfoReplication, InfoServer, MonitoredPrimary, PeerSentinel, RoleReport, SentinelReplica,
    ServerMode, primary_address,
};
use steadfast_core::sentinel::{CouncilConfig, Heard, SentinelCouncil, Term, Testimony};
use steadfast_core::succession::{History, Watermark, Watermarks};

use super::servers::{HOST, Node, text, until};

struct Watched {
    data: [Node; 2],
    sentinels: [Node; 3],
}

impl Watched {
    fn start() -> Self {
        let delay = ["--repl-diskless-sync-delay", "0"];
        let primary = Node::start(&delay);
        let of = format!("{HOST} {}", primary.port);
        let replica = Node::start(&[delay[0], delay[1], "--replicaof", &of]);
        // The replica says that its link is up before the primary passes any write on to it.
        until("the primary passes writes on to the replica", || {
            let info = text(&primary.ask("INFO replication"));
            info.contains("state=online").then_some(())
        });
        let sentinels = [(); 3].map(|()| Node::sentinel(primary.port));
        for sentinel in &sentinels {
            let quick =
                "SENTINEL DEBUG ping-period 100 info-period 200 ask-period 100 publish-period 300";
            sentinel.ask(quick);
        }
        let watched = Self {
            data: [primary, replica],
            sentinels,
        };
        until("all sentinels know all, and the replica", || {
            let knows = |sentinel: &Node| {
                let (peers, _) =
                    PeerSentinel::read_all(&sentinel.ask("SENTINEL SENTINELS main")).ok()?;
                let (replicas, faults) =
                    SentinelReplica::read_all(&sentinel.ask("SENTINEL REPLICAS main")).ok()?;
                let in_sync = replicas.iter().any(|replica| replica.in_sync);
                (peers.len() == 2 && faults.is_empty() && in_sync).then_some(())
            };
            watched.sentinels.iter().map(knows).collect::<Option<()>>()
        });
        watched
    }

    fn council(&self) -> SentinelCouncil {
        let seeds = self
            .sentinels
            .iter()
            .map(|node| Endpoint::new(HOST, node.port));
        SentinelCouncil::new(seeds, CouncilConfig::default())
    }

    /// Asks one sentinel as a client would: the epoch first, then the address.
    fn testimony(&self, at: usize, protocol: &str) -> Testimony {
        let asked = Instant::now();
        let mut connection = self.sentinels[at].connect();
        connection.words(&format!("HELLO {protocol}"));
        let monitored = connection.words("SENTINEL MASTER main");
        let address = connection.words("SENTINEL GET-MASTER-ADDR-BY-NAME main");
        let own = text(&connection.words("SENTINEL MYID"));
        Testimony {
            primary: primary_address(&address).expect("it can be read"),
            monitored: MonitoredPrimary::read(&monitored).expect("it can be read"),
            sentinel: Some(own.as_str().into()),
            asked,
        }
    }

    fn hear(&self, council: &mut SentinelCouncil, at: usize, protocol: &str) -> Heard {
        let from = Endpoint::new(HOST, self.sentinels[at].port);
        council.hear(&from, self.testimony(at, protocol), Instant::now())
    }
}

fn replication(node: &Node) -> InfoReplication {
    InfoReplication::read(&text(&node.ask("INFO replication"))).expect("it can be read")
}

#[test]
fn t3_t17_t20_a_failover_is_seen_by_its_epoch_confirmed_by_a_majority_and_says_what_it_cost() {
    let watched = Watched::start();
    let mut council = watched.council();
    for (at, protocol) in [(0, "2"), (1, "3"), (2, "3")] {
        watched.hear(&mut council, at, protocol);
    }
    let known = council.primacy().expect("they name one").clone();
    assert_eq!(known.primary, Endpoint::new(HOST, watched.data[0].port));
    assert!(council.is_proven(Duration::from_secs(10), Instant::now()));
    let confirmation = council.confirmation(Instant::now()).expect("there is one");
    assert_eq!((confirmation.votes, confirmation.voters), (3, 3));

    let sentinel = InfoServer::read(&text(&watched.sentinels[0].ask("INFO server"))).unwrap();
    assert_eq!(sentinel.mode, Some(ServerMode::Sentinel));
    let role = RoleReport::read(&watched.sentinels[0].ask("ROLE")).unwrap();
    assert_eq!(role, RoleReport::Sentinel { primaries: 1 });

    // Ten writes, and how far the history is after them.
    let mut connection = watched.data[0].connect();
    let mut marks = Watermarks::new(replication(&watched.data[0]).history);
    for n in 0..10 {
        connection.words(&format!("SET k{n} v"));
    }
    let at = Instant::now();
    let RoleReport::Primary { offset, .. } = RoleReport::read(&connection.words("ROLE")).unwrap()
    else {
        panic!("it is a primary")
    };
    marks.note(Watermark {
        offset,
        at,
        acknowledged: 10,
    });
    assert_eq!(connection.words("WAIT 1 20000"), Value::Int(1));

    let until_then = watched.sentinels[0].ask("SENTINEL FAILOVER main");
    assert_eq!(text(&until_then), "OK");
    // Each sentinel is asked as often as one likes; there is one switch, and none back.
    let mut switches = 0;
    until("a majority confirms the new primary", || {
        for at in 0..3 {
            if let Heard::Switched { to, .. } = watched.hear(&mut council, at, "3") {
                switches += 1;
                assert_eq!(to.primary, Endpoint::new(HOST, watched.data[1].port));
            }
        }
        let confirmation = council.confirmation(Instant::now())?;
        (switches == 1 && confirmation.votes == 3).then_some(())
    });
    let now = council.primacy().expect("they name one");
    assert!(now.epoch > known.epoch);
    assert_eq!(now.term, Term(known.term.0 + 1));

    let new = replication(&watched.data[1]);
    assert!(new.is_primary);
    let History::Same { certain, at_risk } = marks.judge(Some(&new), 10) else {
        panic!("it shares the history: {new:?}")
    };
    assert_eq!(
        (certain.map(|mark| mark.acknowledged), at_risk),
        (Some(10), 0)
    );
    // Another server altogether.
    let stranger = replication(&Node::start(&["--appendonly", "no"]));
    assert_eq!(marks.judge(Some(&stranger), 10), History::Forked);
}

#[test]
fn a_sentinel_that_watches_no_such_primary_says_so_in_both_protocols() {
    let primary = Node::start(&["--appendonly", "no"]);
    let sentinel = Node::sentinel(primary.port);
    let mut connection = sentinel.connect();
    for protocol in ["2", "3"] {
        connection.words(&format!("HELLO {protocol}"));
        let nobody = connection.words("SENTINEL GET-MASTER-ADDR-BY-NAME other");
        assert_eq!(primary_address(&nobody), Ok(None));
        let error = MonitoredPrimary::read(&connection.words("SENTINEL MASTER other"));
        let said =
            "the reply to SENTINEL MASTER cannot be read: the reply is an error of the server";
        assert_eq!(error.expect_err("there is none").to_string(), said);
    }
}
