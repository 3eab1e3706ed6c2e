//! When a discovery begins.

use super::*;

#[test]
fn t4_ten_thousand_redirects_in_a_second_cost_at_most_ten_discoveries() {
    let now = start();
    let mut gate = DiscoveryGate::new(DiscoveryGateConfig::default(), 7, now);
    let mut discoveries = 0;
    for n in 0..10_000u64 {
        let at = now + Duration::from_micros(100 * n);
        gate.trigger(Trigger::Contradiction, at);
        if gate.poll(at) {
            assert!(!gate.poll(at), "one at a time");
            discoveries += 1;
            gate.finished(Explained::NotYet, at);
        }
    }
    assert!((9..=10).contains(&discoveries), "{discoveries}");
}

#[test]
fn t4_a_trigger_is_followed_ever_less_often_until_a_view_explains_it() {
    let mut now = start();
    let begun = now;
    let mut gate = DiscoveryGate::new(DiscoveryGateConfig::default(), 7, now);
    assert!(gate.poll(now));
    gate.finished(Explained::Yes, now);
    gate.trigger(Trigger::Doubt, now);
    for longest in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
        let at = gate.poll_timeout().expect("it is due some time");
        let shortest = ms(longest).mul_f64(0.75).max(ms(100));
        assert!((shortest..=ms(longest)).contains(&(at - now)), "{longest}");
        now = at;
        assert!(gate.poll(now));
        gate.finished(Explained::NotYet, now);
    }
    // A server says outright that the view is wrong.
    gate.trigger(Trigger::Contradiction, now);
    assert_eq!(gate.poll_timeout(), Some(now + ms(100)));
    assert!(gate.poll(now + ms(100)));
    gate.finished(Explained::Yes, now + ms(110));
    let regular = gate.poll_timeout().expect("there is always a next");
    let wait = regular - (now + ms(110));
    assert!((ms(20_000)..=ms(40_000)).contains(&wait), "{wait:?}");
    assert!(!gate.poll(regular - ms(1)) && gate.poll(regular));
    assert!(begun < now);
}

#[test]
fn t4_slots_that_move_one_by_one_are_asked_after_less_often_and_anything_graver_at_once() {
    let begun = start();
    let mut gate = DiscoveryGate::new(DiscoveryGateConfig::default(), 7, begun);
    assert!(gate.poll(begun));
    gate.finished(Explained::Yes, begun);
    let patched = |gate: &mut DiscoveryGate, now: &mut Instant, lasts: Duration| {
        let (until, mut discoveries) = (*now + lasts, 0);
        while *now < until {
            gate.trigger(Trigger::Patched, *now);
            assert!(gate.is_contradicted());
            if gate.poll(*now) {
                discoveries += 1;
                gate.finished(Explained::Yes, *now + ms(3));
            }
            *now += ms(56);
        }
        discoveries
    };
    let mut now = begun + Duration::from_secs(10);
    assert_eq!(
        patched(&mut gate, &mut now, ms(50)),
        1,
        "the first, at once"
    );
    let discoveries = patched(&mut gate, &mut now, ms(5_600));
    assert!((7..=12).contains(&discoveries), "{discoveries} in 5.6 s");
    // A trigger is followed until it is explained, and never after much longer.
    gate.trigger(Trigger::Patched, now);
    for _ in 0..5 {
        now = gate.poll_timeout().expect("it is due");
        assert!(gate.poll(now));
        gate.finished(Explained::NotYet, now);
        gate.trigger(Trigger::Patched, now);
        assert!(gate.poll_timeout() <= Some(now + ms(800)));
    }
    gate.trigger(Trigger::Contradiction, now);
    assert!(gate.poll_timeout() <= Some(now + ms(100)));
    now += ms(100);
    assert!(gate.poll(now));
    gate.finished(Explained::Yes, now);
    assert!(!gate.is_contradicted());
    gate.trigger(Trigger::Doubt, now);
    assert!(
        gate.poll_timeout() <= Some(now + ms(100)),
        "the short pauses"
    );
}

#[test]
fn t4_doubts_that_never_change_anything_are_followed_less_often_and_a_new_trouble_at_once() {
    let begun = start();
    let mut gate = DiscoveryGate::new(DiscoveryGateConfig::default(), 7, begun);
    let mut now = begun;
    let mut discoveries = 0;
    while now < begun + Duration::from_secs(10) {
        gate.trigger(Trigger::Doubt, now);
        if gate.poll(now) {
            discoveries += 1;
            gate.finished(Explained::AllWell, now);
        }
        now += ms(2);
    }
    assert!((8..=16).contains(&discoveries), "{discoveries} in 10 s");
    // What was found out last was that all is well: a contradiction is followed as ever.
    gate.trigger(Trigger::Contradiction, now);
    assert!(gate.poll_timeout() <= Some(now + ms(100)));
    while !gate.poll(now) {
        now += ms(2);
    }
    gate.finished(Explained::AllWell, now);
    // After a calm the next trouble has the short pauses again.
    now += Duration::from_secs(5);
    gate.trigger(Trigger::Doubt, now);
    assert!(gate.poll(now));
    gate.finished(Explained::NotYet, now);
    assert!(gate.poll_timeout() <= Some(now + ms(200)));
}

#[test]
fn t31_clients_that_lose_a_node_together_do_not_go_on_asking_in_step() {
    let now = start();
    let due: std::collections::BTreeSet<Instant> = (0..100)
        .filter_map(|seed| {
            let mut gate = DiscoveryGate::new(DiscoveryGateConfig::default(), seed, now);
            gate.trigger(Trigger::Doubt, now);
            let mut at = now;
            for _ in 0..6 {
                assert!(gate.poll(at));
                gate.finished(Explained::NotYet, at);
                at = gate.poll_timeout()?;
            }
            Some(at)
        })
        .collect();
    let spread = due
        .last()
        .zip(due.first())
        .map(|(last, first)| *last - *first);
    assert!(spread > Some(ms(300)), "{spread:?}");
}

#[test]
fn t31_clients_that_lose_a_node_together_do_not_ask_all_at_once() {
    let now = start();
    let gate = |seed| {
        let mut gate = DiscoveryGate::new(DiscoveryGateConfig::default(), seed, now);
        assert!(gate.poll(now));
        gate.finished(Explained::Yes, now);
        gate
    };
    let lost = now + ms(5_000);
    let mut due: Vec<Duration> = (0..1_000)
        .filter_map(|seed| {
            let mut gate = gate(seed);
            gate.trigger(Trigger::Loss, lost);
            // What is told again does not put it off again.
            gate.trigger(Trigger::Loss, lost + ms(99));
            Some(gate.poll_timeout()? - lost)
        })
        .collect();
    due.sort();
    assert_eq!(due.len(), 1_000);
    assert!(due.iter().all(|after| *after <= ms(100)), "{due:?}");
    let most = (0..10).map(|tenth| {
        let within = ms(10 * tenth)..ms(10 * (tenth + 1));
        due.iter().filter(|after| within.contains(after)).count()
    });
    assert!(most.max() < Some(200), "{due:?}");
    // Who knows better, or waits for it, does not wait for others.
    for trigger in [Trigger::Contradiction, Trigger::Doubt] {
        let mut gate = gate(7);
        gate.trigger(Trigger::Loss, lost);
        gate.trigger(trigger, lost);
        assert!(gate.poll(lost));
    }
}

#[test]
fn t4_a_reason_that_comes_while_a_discovery_runs_begins_another() {
    let now = start();
    let mut gate = DiscoveryGate::new(DiscoveryGateConfig::default(), 7, now);
    assert!(gate.poll(now));
    assert_eq!(gate.poll_timeout(), None, "one runs");
    gate.trigger(Trigger::Contradiction, now);
    gate.finished(Explained::Yes, now + ms(30));
    assert_eq!(gate.poll_timeout(), Some(now + ms(100)));
}
