use proptest::prelude::*;

use super::*;

#[expect(clippy::disallowed_methods, reason = "a test's own time")]
fn start() -> Instant {
    Instant::now()
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn at(name: &str) -> Endpoint {
    Endpoint::new(name, 1)
}

/// A trio, as most are.
fn council() -> SentinelCouncil {
    SentinelCouncil::new(["s1", "s2", "s3"].map(at), CouncilConfig::default())
}

fn says(primary: &str, epoch: u64, asked: Instant) -> Testimony {
    Testimony {
        primary: Some(at(primary)),
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
        asked,
    }
}

fn believed(council: &SentinelCouncil) -> Option<&str> {
    council.primacy().map(|primacy| &*primacy.primary.host)
}

#[test]
fn t3_the_highest_epoch_wins_by_one_word_and_against_two() {
    let now = start();
    let mut council = council();
    for sentinel in ["s1", "s2"] {
        council.hear(&at(sentinel), says("old", 4, now), now);
    }
    assert_eq!(believed(&council), Some("old"));
    let heard = council.hear(&at("s3"), says("new", 5, now), now);
    let Heard::Switched { from, to } = heard else {
        panic!("{heard:?}")
    };
    assert_eq!(
        (from, to.primary, to.epoch),
        (Some(at("old")), at("new"), 5)
    );
    assert_eq!(to.term, Term(2));
    // Those that have not heard of it say what they said.
    for sentinel in ["s1", "s2"] {
        let heard = council.hear(&at(sentinel), says("old", 4, now + secs(1)), now + secs(1));
        assert_eq!(heard, Heard::Unchanged);
    }
    assert_eq!(believed(&council), Some("new"));
    let confirmation = council.confirmation(now + secs(1)).expect("there is one");
    assert_eq!((confirmation.votes, confirmation.voters), (1, 3));
    assert_eq!(confirmation.dissenters, [at("s1"), at("s2")]);
    assert_eq!(confirmation.majority_at, None);
}

#[test]
fn t3_a_sentinel_that_was_away_for_years_changes_nothing() {
    let now = start();
    let mut council = council();
    council.hear(&at("s1"), says("new", 9, now), now);
    council.hear(&at("s2"), says("new", 9, now), now);
    council.hear(&at("s3"), says("ancient", 2, now), now);
    assert_eq!(believed(&council), Some("new"));
    // Not even when it alone answers, for as long as one likes: it is no majority.
    let later = now + secs(3_600);
    council.hear(&at("s3"), says("ancient", 2, later), later);
    assert_eq!(believed(&council), Some("new"));
    assert!(council.is_proven(secs(3_600), later));
    assert!(!council.is_proven(secs(3_599), later));
}

#[test]
fn t3_at_the_same_epoch_the_majority_decides_and_without_one_nothing_changes() {
    let now = start();
    let mut council = council();
    council.hear(&at("s1"), says("a", 4, now), now);
    assert_eq!(believed(&council), Some("a"));
    council.hear(&at("s2"), says("b", 4, now), now);
    assert_eq!(believed(&council), Some("a"), "one against one");
    council.hear(&at("s3"), says("b", 4, now), now);
    assert_eq!(believed(&council), Some("b"));
}

#[test]
fn t3_a_failover_that_the_others_undo_is_undone_here_once_nobody_tells_it_any_more() {
    let now = start();
    let mut council = council();
    for sentinel in ["s1", "s2", "s3"] {
        council.hear(&at(sentinel), says("old", 4, now), now);
    }
    council.hear(&at("s1"), says("new", 5, now + secs(1)), now + secs(1));
    assert_eq!(believed(&council), Some("new"));
    for second in 2..30 {
        let then = now + secs(second);
        for sentinel in ["s2", "s3"] {
            council.hear(&at(sentinel), says("old", 4, then), then);
        }
        let expected = if second <= 11 { "new" } else { "old" };
        assert_eq!(believed(&council), Some(expected), "after {second} s");
    }
    assert_eq!(council.primacy().map(|primacy| primacy.term), Some(Term(3)));
}

#[test]
fn t19_a_primary_is_proven_by_a_majority_of_all_sentinels_and_not_of_those_that_answer() {
    let now = start();
    let mut council = council();
    council.hear(&at("s1"), says("a", 4, now), now);
    assert!(!council.is_proven(secs(5), now));
    council.hear(&at("s2"), says("a", 4, now + secs(1)), now + secs(1));
    assert!(council.is_proven(secs(5), now + secs(5)));
    assert!(
        !council.is_proven(secs(5), now + secs(6)),
        "s1 was asked 6 s ago"
    );
    // A sentinel that knows of more makes a majority harder to find.
    let mut many = says("a", 4, now + secs(6));
    many.monitored.other_sentinels = 6;
    council.hear(&at("s1"), many, now + secs(6));
    assert!(!council.is_proven(secs(60), now + secs(6)));
    let confirmation = council.confirmation(now + secs(6)).expect("there is one");
    assert_eq!(confirmation.voters, 7);
    let mut absurd = says("a", 4, now + secs(7));
    absurd.monitored.other_sentinels = usize::MAX;
    council.hear(&at("s1"), absurd, now + secs(7));
    let confirmation = council.confirmation(now + secs(7)).expect("there is one");
    assert_eq!(confirmation.voters, MAX_SENTINELS);
}

#[test]
fn t17_a_sentinel_with_two_names_has_one_vote() {
    let now = start();
    let mut council = council();
    let named = |id: &str| Testimony {
        sentinel: Some(id.into()),
        ..says("a", 4, now)
    };
    council.hear(&at("s1"), named("x"), now);
    council.hear(&at("s2"), named("x"), now);
    let confirmation = council.confirmation(now).expect("there is one");
    assert_eq!((confirmation.votes, confirmation.voters), (1, 3));
    assert!(!council.is_proven(secs(5), now));
    council.hear(&at("s3"), named("y"), now);
    assert!(council.is_proven(secs(5), now));
}

#[test]
fn t31_sentinels_that_are_told_of_take_no_place_of_a_seed_and_are_bounded() {
    let now = start();
    let mut council = council();
    let nameless = |names: std::ops::Range<u32>| -> Vec<PeerSentinel> {
        let peer = |n| PeerSentinel {
            endpoint: at(&format!("p{n}")),
            run_id: None,
        };
        names.map(peer).collect()
    };
    council.learn(&nameless(0..100), now);
    assert_eq!(council.sentinels().count(), MAX_SENTINELS);
    council.hear(&at("p0"), says("a", 1, now), now);
    let later = now + secs(11);
    council.hear(&at("p0"), says("a", 1, later), later);
    council.learn(&nameless(100..200), later);
    assert!(council.sentinels().any(|known| *known == at("p100")));
    assert_eq!(council.sentinels().count(), MAX_SENTINELS);
    for kept in ["s1", "s2", "s3", "p0"] {
        assert!(
            council.sentinels().any(|known| *known == at(kept)),
            "{kept}"
        );
    }
    let heard = council.hear(&at("nobody"), says("b", 9, now), now);
    assert_eq!(heard, Heard::Stranger);
}

#[test]
fn an_answer_that_comes_late_does_not_replace_a_newer_one_and_null_names_nobody() {
    let now = start();
    let mut council = council();
    council.hear(&at("s1"), says("a", 4, now + secs(1)), now + secs(1));
    let late = council.hear(&at("s1"), says("b", 3, now), now + secs(2));
    assert_eq!(late, Heard::Outdated);
    let nobody = Testimony {
        primary: None,
        ..says("", 99, now + secs(2))
    };
    assert_eq!(
        council.hear(&at("s2"), nobody, now + secs(2)),
        Heard::Unchanged
    );
    assert_eq!(believed(&council), Some("a"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Failovers in their order; each sentinel has heard of the first so many. However they are
    /// asked, the highest that any has told within the time that counts is believed, and terms rise
    /// with each switch.
    #[test]
    fn t3_whoever_answers_when_the_newest_primary_is_believed(
        answers in prop::collection::vec((0..5usize, 0..6u64, 0..400u64), 1..40)
    ) {
        let start = start();
        let names = ["s1", "s2", "s3", "s4", "s5"];
        let mut council = SentinelCouncil::new(names.map(at), CouncilConfig::default());
        let mut now = start;
        let mut known = [0u64; 5];
        let (mut newest, mut term) = (None, Term(0));
        for (sentinel, more, pause) in answers {
            now += Duration::from_millis(pause);
            // A sentinel only ever learns.
            known[sentinel] = known[sentinel].max(more);
            let epoch = known[sentinel];
            let testimony = says(&format!("p{epoch}"), epoch, now);
            let heard = council.hear(&at(names[sentinel]), testimony, now);
            newest = newest.max(Some(epoch));
            let primacy = council.primacy().expect("somebody was named");
            // 40 answers of 400 ms are more than what counts for.
            if now - start < secs(10) {
                prop_assert_eq!(Some(primacy.epoch), newest);
            }
            match heard {
                Heard::Switched { .. } => prop_assert_eq!(primacy.term, Term(term.0 + 1)),
                _ => prop_assert_eq!(primacy.term, term),
            }
            term = primacy.term;
        }
    }
}

#[test]
fn t17_a_sentinel_has_one_vote_also_under_an_address_at_which_nobody_answers() {
    let now = start();
    let mut council = council();
    let id = |n: usize| -> Arc<str> { format!("id{n}").into() };
    for (n, seed) in ["s1", "s2", "s3"].into_iter().enumerate() {
        let mut testimony = says("a", 1, now);
        testimony.sentinel = Some(id(n));
        council.hear(&at(seed), testimony, now);
    }
    // They announce themselves with addresses that cannot be reached from here.
    let inner = (0..3).map(|n| PeerSentinel {
        endpoint: at(&format!("inner{n}")),
        run_id: Some(id(n)),
    });
    council.learn(&inner.collect::<Vec<_>>(), now);
    let confirmation = council.confirmation(now).expect("there is one");
    assert_eq!((confirmation.votes, confirmation.voters), (3, 3));
    assert!(council.is_proven(secs(1), now));
}

#[test]
fn t26_whoever_answers_at_the_address_of_another_sentinel_is_not_heard() {
    let now = start();
    let mut council = council();
    council.hear(&at("s1"), says("a", 1, now), now);
    let told = |id: &str| PeerSentinel {
        endpoint: at("inner"),
        run_id: Some(id.into()),
    };
    council.learn(&[told("ours")], now);
    let mut foreign = says("foreign", 9, now);
    foreign.sentinel = Some("theirs".into());
    assert_eq!(
        council.hear(&at("inner"), foreign.clone(), now),
        Heard::Stranger
    );
    assert_eq!(believed(&council), Some("a"));
    // Unless others tell of that one, too.
    council.learn(&[told("theirs")], now);
    let heard = council.hear(&at("inner"), foreign, now);
    assert!(matches!(heard, Heard::Switched { .. }), "{heard:?}");
}

/// Told by their addresses, with ids as all since Redis 6.2 have them.
fn peers(names: &[&str]) -> Vec<PeerSentinel> {
    let peer = |name: &&str| PeerSentinel {
        endpoint: at(name),
        run_id: Some((*name).into()),
    };
    names.iter().map(peer).collect()
}

/// One round of questions: each of these answers under its own id, and tells of the others that it
/// knows.
fn round(council: &mut SentinelCouncil, answer: &[(&str, &str)], tell: &[&str], now: Instant) {
    for (address, id) in answer {
        let others: Vec<&str> = tell.iter().copied().filter(|one| one != id).collect();
        council.learn(&peers(&others), now);
        let mut testimony = says("a", 4, now);
        testimony.monitored.other_sentinels = others.len();
        testimony.sentinel = Some((*id).into());
        council.hear(&at(address), testimony, now);
    }
}

fn votes(council: &SentinelCouncil, now: Instant) -> (usize, usize) {
    let confirmation = council.confirmation(now).expect("there is one");
    (confirmation.votes, confirmation.voters)
}

#[test]
fn t19_sentinels_that_were_replaced_vote_no_longer() {
    let now = start();
    let mut council = SentinelCouncil::new([at("seed")], CouncilConfig::default());
    let generation = |n: usize| ["x", "y", "z"].map(|name| format!("{name}{n}"));
    // Each time all three at once; the seed is a name that leads to one of those that live.
    for n in 0..12 {
        let names = generation(n);
        let [x, y, z] = [&*names[0], &*names[1], &*names[2]];
        let answer = [("seed", x), (x, x), (y, y), (z, z)];
        for second in (0..120).step_by(5) {
            let then = now + secs(n as u64 * 120 + second);
            round(&mut council, &answer, &[x, y, z], then);
            if second > 65 {
                assert_eq!(votes(&council, then), (3, 3), "{n}, {second} s");
                assert!(council.is_proven(secs(60), then), "{n}, {second} s");
            }
        }
    }
    assert_eq!(council.sentinels().count(), 4);
}

#[test]
fn t19_a_sentinel_that_is_cut_off_counts_for_as_long_as_another_tells_of_it() {
    let now = start();
    let mut council = SentinelCouncil::new([at("x")], CouncilConfig::default());
    let all = ["x", "y", "z"];
    round(&mut council, &all.map(|one| (one, one)), &all, now);
    assert!(council.is_proven(secs(60), now));
    for second in (5..600).step_by(5) {
        let then = now + secs(second);
        round(&mut council, &[("x", "x")], &all, then);
        assert_eq!(votes(&council, then).1, 3, "{second} s");
        assert!(second <= 60 || !council.is_proven(secs(60), then));
    }
}

#[test]
fn t19_few_that_have_lost_their_memory_do_not_become_the_majority() {
    let now = start();
    let mut council = SentinelCouncil::new([at("v")], CouncilConfig::default());
    let all = ["v", "w", "x", "y", "z"];
    round(&mut council, &all.map(|one| (one, one)), &all, now);
    // Two of five are cut off with the client, and were reset: they know of nobody else.
    for second in (5..600).step_by(5) {
        let then = now + secs(second);
        round(&mut council, &[("v", "v"), ("w", "w")], &["v", "w"], then);
        let fresh = if second <= 10 { 5 } else { 2 };
        assert_eq!(votes(&council, then), (fresh, 5), "{second} s");
        assert!(second <= 60 || !council.is_proven(secs(60), then));
    }
    // Three of five were a majority before.
    for second in (600..700).step_by(5) {
        let then = now + secs(second);
        let few = ["v", "w", "x"];
        round(&mut council, &few.map(|one| (one, one)), &few, then);
        assert!(council.is_proven(secs(60), then), "{second} s");
    }
}

#[test]
fn t19_a_seed_counts_for_ever_but_not_by_what_it_said_before_it_was_replaced() {
    let now = start();
    let mut council = SentinelCouncil::new(["s1", "s2"].map(at), CouncilConfig::default());
    let before = ["o1", "o2", "o3", "o4", "o5", "o6"];
    round(&mut council, &[("s1", "o1"), ("s2", "o2")], &before, now);
    assert_eq!(votes(&council, now), (2, 6));
    // The other seed leads to a new trio, and the first one to nothing any more.
    let trio = ["n1", "n2", "n3"];
    let answer = [("s2", "n1"), ("n1", "n1"), ("n2", "n2"), ("n3", "n3")];
    for second in (5..120).step_by(5) {
        let then = now + secs(second);
        round(&mut council, &answer, &trio, then);
        if second > 65 {
            assert_eq!(votes(&council, then), (3, 4), "{second} s");
            assert!(council.is_proven(secs(60), then));
            assert_eq!(council.sentinels().count(), 5);
        }
    }
}

#[test]
fn t19_a_seed_that_is_down_and_told_of_by_another_name_has_one_vote_still() {
    let now = start();
    let mut council = council();
    let ids = ["i1", "i2", "i3"];
    let seeds = [("s1", "i1"), ("s2", "i2"), ("s3", "i3")];
    round(&mut council, &seeds, &ids, now);
    for second in (5..300).step_by(5) {
        let then = now + secs(second);
        round(&mut council, &seeds[..2], &ids, then);
        assert!(council.is_proven(secs(60), then), "{second} s");
        assert_eq!(votes(&council, then).1, 3, "{second} s");
    }
}
