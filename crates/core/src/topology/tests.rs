use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::node::AnnouncedHost;
use crate::redirect::Routing;
use crate::report::{ClusterInfo, ClusterReport, ReportedNode, ReportedRole};
use crate::slot::KeySet;

const ALL: (u16, u16) = (0, SLOTS - 1);

fn slot(number: u16) -> Slot {
    Slot::new(number).expect("a slot")
}

#[expect(clippy::disallowed_methods, reason = "a test's own time")]
fn start() -> Instant {
    Instant::now()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("an id")
}

/// A primary called like its host, with an epoch and slots.
fn primary(name: &str, epoch: impl Into<Option<u64>>, slots: &[(u16, u16)]) -> ReportedNode {
    ReportedNode {
        id: Some(id(name)),
        host: AnnouncedHost::Named(name.into()),
        hostname: None,
        other_hosts: Vec::new(),
        port: 1,
        tls_port: None,
        role: ReportedRole::Primary,
        epoch: epoch.into(),
        is_myself: false,
        is_failing: false,
        is_failed: false,
        slots: slots
            .iter()
            .filter_map(|&(first, last)| SlotRange::new(slot(first), slot(last)))
            .collect(),
        migrations: Vec::new(),
    }
}

fn view(by: &str, asked: Instant, current_epoch: u64, nodes: Vec<ReportedNode>) -> View {
    View {
        by: NodeId::new(by),
        host: by.into(),
        asked,
        heard: asked,
        tls: false,
        report: ClusterReport {
            nodes,
            is_exhaustive: true,
            ..ClusterReport::default()
        },
        info: Some(ClusterInfo {
            is_ok: true,
            current_epoch,
            my_epoch: 0,
            slots_assigned: SLOTS,
        }),
    }
}

fn owner(topology: &Topology, number: u16) -> Option<&str> {
    let owner = topology.owner(slot(number))?;
    topology.member(owner).id.as_ref().map(NodeId::as_str)
}

fn index(topology: &Topology, name: &str) -> MemberIndex {
    topology.find(&id(name)).expect(name)
}

fn redirect(number: u16, to: &str) -> Redirect {
    match Routing::of("MOVED", &format!("{number} {to}:1")) {
        Some(Routing::Moved(redirect)) => redirect,
        other => panic!("{other:?}"),
    }
}

/// Slots below 100 belong to `a` (epoch 1), the others to `b` (epoch 2), by the word of `c`.
fn two(now: Instant) -> Topology {
    let mut topology = Topology::new();
    let nodes = vec![
        primary("a", 1, &[(0, 99)]),
        primary("b", 2, &[(100, ALL.1)]),
        primary("c", 3, &[]),
    ];
    let changes = topology.merge(&view("c", now, 3, nodes));
    assert_eq!(changes.joined.len(), 3);
    assert_eq!(changes.slots, [SlotRange::all()]);
    topology
}

#[test]
fn t3_the_claim_with_the_higher_epoch_wins_in_whatever_order_views_come() {
    let now = start();
    let mut topology = two(now);
    let newer = vec![primary("a", 1, &[(0, 49)]), primary("b", 4, &[(50, ALL.1)])];
    let changes = topology.merge(&view("b", now + ms(1), 4, newer));
    assert_eq!(changes.slots, SlotRange::join((50..100).map(slot)));
    let older = vec![
        primary("a", 1, &[(0, 99)]),
        primary("b", 2, &[(100, ALL.1)]),
    ];
    // Asked later, of one that has not heard yet.
    let changes = topology.merge(&view("c", now + ms(2), 3, older));
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(owner(&topology, 60), Some("b"));
}

#[test]
fn t3_a_node_that_does_not_serve_and_one_that_knows_no_slots_change_nothing() {
    let now = start();
    let mut topology = two(now);
    let mut cut_off = view("a", now, 9, vec![primary("a", 9, &[ALL])]);
    cut_off.info.as_mut().expect("it is told").is_ok = false;
    assert_eq!(topology.merge(&cut_off).ignored, Some(Ignored::NotServing));
    let fresh = view("d", now, 9, vec![primary("d", 9, &[])]);
    assert_eq!(topology.merge(&fresh).ignored, Some(Ignored::Empty));
    assert_eq!(owner(&topology, 200), Some("b"));
    assert_eq!(topology.find(&id("d")), None);
}

#[test]
fn t3_a_partial_view_of_a_node_that_serves_takes_nothing_away() {
    let now = start();
    let mut topology = two(now);
    let changes = topology.merge(&view("a", now, 3, vec![primary("a", 1, &[(0, 9)])]));
    assert!(changes.slots.is_empty());
    assert_eq!(owner(&topology, 50), Some("a"));
    assert!(topology.uncovered().is_empty(), "all are owned");
    let mut partial = Topology::new();
    partial.merge(&view("a", now, 3, vec![primary("a", 1, &[(0, 9)])]));
    assert_eq!(partial.uncovered(), SlotRange::join((10..SLOTS).map(slot)));
}

#[test]
fn t4_a_redirect_of_the_owner_moves_its_slot_at_once_and_no_view_asked_before_undoes_it() {
    let now = start();
    let mut topology = two(now);
    let (a, b) = (index(&topology, "a"), index(&topology, "b"));
    let asked: Arc<str> = "a".into();
    let moved = topology.moved(a, &redirect(7, "b"), &asked, now + ms(5), now + ms(6));
    assert_eq!(moved, Moved::Patched(b));
    // Asked before the redirect came, answered after, with an epoch as high as one likes.
    let before = vec![
        primary("a", 8, &[(0, 99)]),
        primary("b", 2, &[(100, ALL.1)]),
    ];
    topology.merge(&view("c", now + ms(6), 8, before));
    assert_eq!(owner(&topology, 7), Some("b"));
    assert_eq!(owner(&topology, 8), Some("a"));
}

#[test]
fn t3_a_node_that_gave_a_slot_away_gets_it_back_by_its_own_word_only() {
    let now = start();
    let mut topology = two(now);
    let a = index(&topology, "a");
    topology.moved(a, &redirect(7, "b"), &"a".into(), now, now);
    // Redis 7.0: a has a higher epoch since, and c has not heard of the slot.
    let stale = || {
        vec![
            primary("a", 8, &[(0, 99)]),
            primary("b", 2, &[(100, ALL.1)]),
        ]
    };
    let changes = topology.merge(&view("c", now + ms(9), 8, stale()));
    assert_eq!(changes.disputed, [a], "it is to be asked itself");
    assert_eq!(owner(&topology, 7), Some("b"));
    let changes = topology.merge(&view("a", now + ms(10), 8, stale()));
    assert_eq!(changes.slots, SlotRange::join([slot(7)]));
    assert_eq!(owner(&topology, 7), Some("a"));
}

#[test]
fn t3_a_slot_passes_from_primary_to_primary_by_the_word_of_either_only() {
    let now = start();
    let mut topology = two(now);
    let a = index(&topology, "a");
    // b takes slot 7, and a has heard of it; neither has sent a redirect.
    let moved = |a_epoch| {
        vec![
            primary("a", a_epoch, &[(0, 6), (8, 99)]),
            primary("b", 4, &[(7, 7), (100, ALL.1)]),
        ]
    };
    topology.merge(&view("b", now + ms(1), 4, moved(1)));
    topology.merge(&view("a", now + ms(2), 5, moved(5)));
    // c has heard of a's epoch, but not of the slot.
    let stale = vec![
        primary("a", 5, &[(0, 99)]),
        primary("b", 4, &[(100, ALL.1)]),
    ];
    let changes = topology.merge(&view("c", now + ms(3), 5, stale));
    assert_eq!((changes.disputed, changes.slots), (vec![a], Vec::new()));
    assert_eq!(owner(&topology, 7), Some("b"));
    // Who was no primary before, as a promoted replica, is believed by the word of others.
    let promoted = vec![
        primary("r", 6, &[(0, 6), (8, 99)]),
        primary("b", 4, &[(7, 7), (100, ALL.1)]),
    ];
    topology.merge(&view("c", now + ms(4), 6, promoted));
    assert_eq!(owner(&topology, 8), Some("r"));
}

#[test]
fn t3_a_deposed_primary_does_not_get_its_slots_back_by_its_own_word() {
    let now = start();
    let mut topology = two(now);
    let promoted = vec![
        primary("r", 4, &[(0, 99)]),
        primary("b", 2, &[(100, ALL.1)]),
    ];
    topology.merge(&view("b", now + ms(1), 4, promoted));
    assert_eq!(owner(&topology, 7), Some("r"));
    let woken = vec![
        primary("a", 1, &[(0, 99)]),
        primary("b", 2, &[(100, ALL.1)]),
        primary("r", 0, &[]),
    ];
    topology.merge(&view("a", now + ms(9), 3, woken));
    assert_eq!(owner(&topology, 7), Some("r"));
}

#[test]
fn t3_where_no_node_tells_epochs_two_have_to_say_the_same_or_the_owner_itself() {
    let now = start();
    let mut topology = Topology::new();
    let told = |by: &str, at: u64, below: u16, is_ok: bool| {
        let nodes = vec![
            primary("a", None, &[(0, below - 1)]),
            primary("b", None, &[(below, ALL.1)]),
            primary("c", None, &[]),
        ];
        let mut view = view(by, now + ms(at), 0, nodes);
        view.info = None;
        view.report.is_exhaustive = false;
        for node in &mut view.report.nodes {
            node.is_failing = !is_ok;
        }
        view
    };
    topology.merge(&told("c", 0, 100, true));
    assert_eq!(owner(&topology, 60), Some("a"), "there is nothing else");
    // A deposed primary claims its slots too.
    let changes = topology.merge(&told("b", 1, 50, true));
    assert_eq!(owner(&topology, 60), Some("a"));
    assert_eq!(changes.disputed, [index(&topology, "b")]);
    topology.merge(&told("b", 2, 50, true));
    assert_eq!(owner(&topology, 60), Some("a"), "twice by the same");
    topology.merge(&told("c", 3, 50, true));
    assert_eq!(owner(&topology, 60), Some("b"), "seconded");
    topology.merge(&told("b", 4, 100, true));
    assert_eq!(owner(&topology, 60), Some("a"), "given away by its owner");
    // As one in a minority judges itself.
    let cut_off = topology.merge(&told("a", 5, 50, false));
    assert_eq!(cut_off.ignored, Some(Ignored::NotServing));
}

#[test]
fn t25_a_node_is_known_by_its_address_and_by_its_name() {
    let now = start();
    let mut topology = Topology::new();
    let mut a = primary("a", 1, &[(0, 99)]);
    a.other_hosts = vec!["10.0.0.1".into(), "a".into()];
    let nodes = vec![a, primary("b", 2, &[(100, ALL.1)])];
    topology.merge(&view("b", now, 3, nodes));
    let (a, b) = (index(&topology, "a"), index(&topology, "b"));
    for host in ["a", "10.0.0.1"] {
        assert_eq!(topology.find_at(&Endpoint::new(host, 1)), Some(a), "{host}");
        assert_eq!(topology.find_at(&Endpoint::new(host, 2)), None);
    }
    let by_address = redirect(200, "10.0.0.1");
    let moved = topology.moved(b, &by_address, &"b".into(), now + ms(1), now + ms(2));
    assert_eq!(moved, Moved::Patched(a), "it is no other node");
    // Another node that is dialled there comes before one that has that name besides.
    let nodes = vec![primary("10.0.0.1", 1, &[(0, 0)])];
    topology.merge(&view("b", now + ms(3), 3, nodes));
    let dialled = index(&topology, "10.0.0.1");
    assert_eq!(
        topology.find_at(&Endpoint::new("10.0.0.1", 1)),
        Some(dialled)
    );
}

#[test]
fn t25_a_node_is_dialled_at_its_port_for_tls_by_those_alone_who_speak_it() {
    let now = start();
    for (port, tls_port, tls, dialled) in [
        (1, Some(2), false, Some(1)),
        (1, Some(2), true, Some(2)),
        (1, None, true, Some(1)),
        // A node without a port for plain text.
        (0, Some(2), true, Some(2)),
        (0, Some(2), false, None),
    ] {
        let node = ReportedNode {
            port,
            tls_port,
            ..primary("a", 1, &[ALL])
        };
        let mut topology = Topology::new();
        topology.merge(&View {
            tls,
            ..view("a", now, 1, vec![node])
        });
        let member = topology.member(index(&topology, "a"));
        let at = member.endpoint.as_ref().map(|endpoint| endpoint.port);
        assert_eq!(at, dialled, "{port} {tls_port:?} {tls}");
    }
}

#[test]
fn t15_a_node_that_the_others_have_forgotten_is_no_member_by_its_own_word() {
    let now = start();
    let mut topology = two(now);
    let mut all = vec![
        primary("a", 1, &[(0, 99)]),
        primary("b", 2, &[(100, ALL.1)]),
    ];
    let changes = topology.merge(&view("a", now + ms(1), 3, all.clone()));
    let c = index(&topology, "c");
    assert_eq!(changes.left, [c]);
    all.push(ReportedNode {
        is_myself: true,
        ..primary("c", 3, &[])
    });
    topology.merge(&view("c", now + ms(2), 3, all.clone()));
    assert!(!topology.member(c).is_present, "by its own word only");
    all[2].is_myself = false;
    topology.merge(&view("b", now + ms(3), 3, all));
    assert!(topology.member(c).is_present);
}

#[test]
fn t3_a_tie_is_decided_by_a_second_node_or_by_the_owner_itself() {
    let now = start();
    // Slot maps without epochs of nodes, and the cluster's own stays the same.
    let nodes = |owner: &str| {
        vec![
            primary(owner, None, &[(0, 99)]),
            primary("b", None, &[(100, ALL.1)]),
        ]
    };
    let mut topology = Topology::new();
    topology.merge(&view("x", now, 3, nodes("a")));
    for by in ["x", "x"] {
        let changes = topology.merge(&view(by, now + ms(1), 3, nodes("d")));
        assert!(changes.slots.is_empty(), "one node twice is still one");
    }
    // The two that say so have to be different ones, and known.
    let changes = topology.merge(&view("b", now + ms(2), 3, nodes("d")));
    assert_eq!(changes.slots, SlotRange::join((0..100).map(slot)));
    let changes = topology.merge(&view("a", now + ms(3), 3, nodes("a")));
    assert_eq!(changes.slots.len(), 1, "by its own word");
}

#[test]
fn t3_a_cluster_that_was_made_anew_with_low_epochs_is_believed_by_its_own_word() {
    let now = start();
    let mut topology = two(now);
    let anew = || vec![primary("n", 1, &[ALL])];
    topology.merge(&view("n", now + ms(1), 1, anew()));
    assert_eq!(owner(&topology, 7), Some("n"));
    assert_eq!(owner(&topology, 200), Some("n"));
}

#[test]
fn t26_a_view_of_strangers_is_known_as_one_and_one_that_names_a_member_is_not() {
    let now = start();
    let told = |by: &str, nodes: Vec<ReportedNode>| view(by, now + ms(1), 9, nodes);
    let strangers = told("x", vec![primary("x", 9, &[ALL]), primary("y", 9, &[])]);
    assert!(!Topology::new().is_foreign(&strangers), "nobody is known");
    let mut topology = two(now);
    assert!(topology.is_foreign(&strangers));
    let with = |member: ReportedNode| told("x", vec![primary("x", 9, &[ALL]), member]);
    assert!(!topology.is_foreign(&with(primary("b", 2, &[]))));
    let nameless = ReportedNode {
        id: None,
        ..primary("z", None, &[])
    };
    assert!(!topology.is_foreign(&with(nameless)), "it cannot be told");
    // One that is no member any more bears nobody out, nor does one that has left.
    let left = vec![
        primary("a", 1, &[(0, 99)]),
        primary("b", 2, &[(100, ALL.1)]),
    ];
    topology.merge(&view("a", now + ms(2), 3, left));
    assert!(topology.is_foreign(&with(primary("c", 3, &[]))));
    assert!(!topology.is_kin(&told("a", vec![primary("a", 1, &[])])));
}

#[test]
fn t6_redirects_that_teach_nothing_leave_the_slot_as_it_is() {
    let now = start();
    let mut topology = two(now);
    let (a, b) = (index(&topology, "a"), index(&topology, "b"));
    let mut moved = |by, to: &str, sent| {
        let asked: Arc<str> = "a".into();
        topology.moved(by, &redirect(7, to), &asked, sent, now + ms(9))
    };
    assert_eq!(moved(b, "d", now), Moved::Hint, "b does not own it");
    assert_eq!(moved(b, "a", now), Moved::Known(a));
    assert_eq!(moved(a, "a", now), Moved::ToItself);
    assert_eq!(moved(a, "?", now), Moved::Nowhere);
    // There and back; then an answer from before comes late.
    assert_eq!(moved(a, "b", now), Moved::Patched(b));
    let mut back = |sent, at| topology.moved(b, &redirect(7, "a"), &"b".into(), sent, at);
    assert_eq!(
        back(now + ms(8), now + ms(10)),
        Moved::Hint,
        "sent before it was b's"
    );
    assert_eq!(back(now + ms(10), now + ms(11)), Moved::Patched(a));
    let late = topology.moved(a, &redirect(7, "b"), &"a".into(), now, now + ms(12));
    assert_eq!(late, Moved::Hint);
    assert_eq!(owner(&topology, 7), Some("a"));
}

#[test]
fn t3_a_redirect_that_may_be_older_than_a_view_does_not_undo_it() {
    let now = start();
    let mut topology = two(now);
    // b has it and gives it back; the view of that is asked for before, and heard after, the
    // command is sent.
    let back = vec![
        primary("a", 5, &[(0, 99)]),
        primary("b", 4, &[(100, ALL.1)]),
    ];
    topology.moved(
        index(&topology, "a"),
        &redirect(7, "b"),
        &"a".into(),
        now,
        now,
    );
    let mut slow = view("a", now + ms(10), 5, back);
    slow.heard = now + ms(30);
    topology.merge(&slow);
    assert_eq!(owner(&topology, 7), Some("a"));
    let a = index(&topology, "a");
    let late = topology.moved(
        a,
        &redirect(7, "b"),
        &"a".into(),
        now + ms(20),
        now + ms(40),
    );
    assert_eq!(late, Moved::Hint);
    let moved = topology.moved(
        a,
        &redirect(7, "b"),
        &"a".into(),
        now + ms(30),
        now + ms(41),
    );
    assert_eq!(moved, Moved::Patched(index(&topology, "b")));
}

#[test]
fn t26_a_node_of_a_redirect_has_no_identity_until_a_view_names_it() {
    let now = start();
    let mut topology = two(now);
    let a = index(&topology, "a");
    let Moved::Patched(new) = topology.moved(a, &redirect(7, "n"), &"a".into(), now, now) else {
        panic!("it is patched")
    };
    assert_eq!(topology.member(new).id, None);
    let named = || {
        vec![
            primary("a", 1, &[(0, 6), (8, 99)]),
            primary("n", 5, &[(7, 7)]),
        ]
    };
    let changes = topology.merge(&view("n", now + ms(1), 5, named()));
    assert!(changes.joined.is_empty());
    assert_eq!(topology.find(&id("n")), Some(new));
    // A node that is known at another endpoint: both are one.
    let Moved::Patched(moved) = topology.moved(
        new,
        &redirect(7, "b2"),
        &"n".into(),
        now + ms(2),
        now + ms(2),
    ) else {
        panic!("it is patched")
    };
    let mut b = primary("b", 6, &[(7, 7), (100, ALL.1)]);
    b.host = AnnouncedHost::Named("b2".into());
    let changes = topology.merge(&view("b", now + ms(3), 6, vec![b]));
    let b = index(&topology, "b");
    assert_ne!(b, moved);
    assert_eq!(changes.relocated, [b]);
    assert_eq!(topology.owner(slot(7)), Some(b));
}

#[test]
fn nodes_that_are_gone_stay_candidates_until_their_place_is_needed() {
    let now = start();
    let mut topology = two(now);
    let nodes = || {
        vec![
            primary("a", 1, &[(0, 99)]),
            primary("b", 2, &[(100, ALL.1)]),
        ]
    };
    let changes = topology.merge(&view("a", now + ms(1), 3, nodes()));
    let c = index(&topology, "c");
    assert_eq!(changes.left, [c]);
    assert!(!topology.member(c).is_present);
    assert_eq!(topology.members().count(), 3);
    let changes = topology.merge(&view("c", now + ms(2), 3, {
        let mut nodes = nodes();
        nodes.push(primary("c", 3, &[]));
        nodes
    }));
    assert!(changes.is_empty() && topology.member(c).is_present);
}

#[test]
fn t31_no_more_nodes_are_kept_than_the_bound_and_those_that_own_slots_stay() {
    let now = start();
    let mut topology = two(now);
    for round in 0..5u64 {
        let mut nodes = vec![
            primary("a", 1, &[(0, 99)]),
            primary("b", 2, &[(100, ALL.1)]),
        ];
        let names = (0..1_000).map(|n| primary(&format!("{round}-{n}"), 0, &[]));
        nodes.extend(names);
        let changes = topology.merge(&view("a", now + ms(round), 3, nodes));
        // Those of the round before count as there until a view does not name them.
        let refused = if round % 2 == 1 { 978 } else { 0 };
        assert_eq!(changes.refused, refused, "round {round}");
        assert!(topology.members().count() <= MAX_NODES);
        assert_eq!(
            (owner(&topology, 7), owner(&topology, 200)),
            (Some("a"), Some("b"))
        );
    }
    for (id, index) in &topology.by_id {
        assert_eq!(topology.member(*index).id.as_ref(), Some(id));
    }
}

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

/// Commands of one key, each on a connection.
/// Commands of one key that began then, with the connections that they are on.
fn of(then: Instant, commands: &[(u64, u64)]) -> Vec<UnderWay> {
    let under_way = |&(command, connection): &(u64, u64)| UnderWay {
        command,
        connection,
        keys: KeySet::One(1),
        until: then + ms(20),
    };
    commands.iter().map(under_way).collect()
}

#[test]
fn t9_a_command_waits_for_those_of_its_keys_until_their_deadlines_and_not_for_others() {
    let now = start();
    let mut gate = SlotGate::new();
    let (one, other) = (slot(1), slot(2));
    let key = KeySet::One(1);
    gate.close(one, of(now, &[(7, 100), (8, 100)]));
    assert_eq!(
        gate.pass(one, &key, now + ms(1)),
        Passage::Until(now + ms(20))
    );
    let several = KeySet::hashed(vec![1, 2]);
    let others = KeySet::hashed(vec![2, 3]);
    let none = KeySet::Empty;
    for waits in [&several, &KeySet::Unknown] {
        assert_eq!(gate.pass(one, waits, now), Passage::Until(now + ms(20)));
    }
    for goes in [&others, &KeySet::One(2), &none] {
        assert_eq!(gate.pass(one, goes, now + ms(30)), Passage::Open);
    }
    assert_eq!(gate.pass(other, &key, now), Passage::Open);
    gate.settle(one, 7, true);
    gate.settle(one, 8, true);
    assert!(gate.is_calm());
    assert_eq!(gate.pass(one, &key, now + ms(1)), Passage::Open);
    // What is still under way when its time is over loses its turn to the first of its key that is
    // let through.
    let mut under_way = of(now, &[(10, 100), (11, 100)]);
    under_way[1].keys = KeySet::One(2);
    gate.close(one, under_way);
    assert_eq!(gate.pass(one, &key, now + ms(20)), Passage::Open);
    assert_eq!(gate.resubmit(one, 10, 200, now), Resubmission::Overtaken);
    assert_eq!(gate.resubmit(one, 11, 200, now), Resubmission::Go);
    // And does not get it back when the slot changes hands once more.
    gate.close(one, of(now, &[(10, 100), (12, 200)]));
    assert_eq!(gate.resubmit(one, 10, 200, now), Resubmission::Overtaken);
    assert_eq!(gate.resubmit(one, 12, 200, now), Resubmission::Go);
    (10..=12).for_each(|command| gate.settle(one, command, true));
    gate.close(one, of(now, &[]));
    assert!(gate.is_calm(), "nobody is under way");
}

#[test]
fn t9_what_is_redirected_twice_is_not_overtaken_by_what_is_redirected_once() {
    let (now, mut gate) = (start(), SlotGate::new());
    let one = slot(1);
    gate.close(one, of(now, &[(1, 100), (2, 100), (3, 100)]));
    (1..=3).for_each(|command| gate.park(one, command));
    assert_eq!(gate.resubmit(one, 1, 200, now), Resubmission::Go);
    // The map says by now that the slot is at 300; the first is still at 200.
    assert_eq!(
        gate.resubmit(one, 2, 300, now),
        Resubmission::Wait(now + ms(20))
    );
    assert_eq!(
        gate.resubmit(one, 3, 200, now),
        Resubmission::Wait(now + ms(20)),
        "behind one that waits"
    );
    assert_eq!(gate.resubmit(one, 1, 300, now), Resubmission::Go);
    assert_eq!(
        gate.resubmit(one, 2, 300, now),
        Resubmission::Go,
        "they are on one connection"
    );
    gate.settle(one, 1, true);
    gate.settle(one, 2, true);
    assert_eq!(gate.resubmit(one, 3, 200, now), Resubmission::Go);
    assert_eq!(
        gate.resubmit(one, 4, 200, now),
        Resubmission::Overtaken,
        "it was not under way"
    );
}

#[test]
fn t9_what_a_later_command_of_its_keys_has_overtaken_is_not_sent_again_and_nothing_else_is_lost() {
    let (now, mut gate) = (start(), SlotGate::new());
    let one = slot(1);
    let mut under_way = of(now, &[(1, 100), (2, 100), (3, 100), (4, 100), (5, 100)]);
    under_way[1].keys = KeySet::One(2);
    under_way[2].keys = KeySet::hashed(vec![2, 1]);
    under_way[3].keys = KeySet::hashed(vec![2, 3]);
    gate.close(one, under_way);
    // Redirected; and the last, behind them on the old connection, may find the slot back.
    (1..=4).for_each(|command| gate.park(one, command));
    assert_eq!(
        gate.resubmit(one, 1, 200, now),
        Resubmission::Wait(now + ms(20))
    );
    assert_eq!(
        gate.resubmit(one, 2, 300, now),
        Resubmission::Go,
        "another key"
    );
    assert_eq!(
        gate.resubmit(one, 3, 200, now),
        Resubmission::Wait(now + ms(20))
    );
    gate.settle(one, 5, true);
    assert_eq!(gate.resubmit(one, 1, 100, now), Resubmission::Overtaken);
    assert_eq!(gate.resubmit(one, 3, 100, now), Resubmission::Overtaken);
    assert_eq!(gate.resubmit(one, 2, 100, now), Resubmission::Go);
    assert_eq!(gate.lost(one, 3), KeySet::One(1), "another key");
    gate.settle(one, 3, false);
    assert_eq!(
        gate.resubmit(one, 4, 100, now),
        Resubmission::Go,
        "other keys"
    );
    // One that ended without running has overtaken nobody.
    gate.close(one, of(now, &[(7, 100), (8, 100)]));
    gate.settle(one, 8, false);
    assert_eq!(gate.resubmit(one, 7, 100, now), Resubmission::Go);
}

#[test]
fn t9_one_that_is_forgotten_holds_up_those_to_be_sent_again_until_its_deadline() {
    let (now, mut gate) = (start(), SlotGate::new());
    let one = slot(1);
    let mut under_way = of(now, &[(1, 100), (2, 100)]);
    under_way[1].until += ms(20);
    gate.close(one, under_way);
    (1..=2).for_each(|command| gate.park(one, command));
    let until = now + ms(20);
    assert_eq!(gate.resubmit(one, 2, 200, now), Resubmission::Wait(until));
    assert_eq!(gate.resubmit(one, 2, 200, until), Resubmission::Go);
    assert_eq!(gate.resubmit(one, 1, 200, until), Resubmission::Overtaken);
}

#[test]
fn t8_t9_what_is_left_of_a_pipeline_keeps_its_order_with_its_own_keys_only() {
    let (now, mut gate) = (start(), SlotGate::new());
    let one = slot(1);
    let mut under_way = of(now, &[(1, 100), (2, 100), (3, 100)]);
    under_way[1].keys = KeySet::hashed(vec![1, 2]);
    gate.close(one, under_way);
    gate.park(one, 1);
    // Its first command was answered, its second is to be sent again.
    gate.narrow(one, 2, &KeySet::One(2));
    assert_eq!(gate.resubmit(one, 1, 200, now), Resubmission::Overtaken);
    gate.settle(one, 3, true);
    assert_eq!(gate.pass(one, &KeySet::One(1), now), Passage::Open);
    assert!(matches!(
        gate.pass(one, &KeySet::One(2), now),
        Passage::Until(_)
    ));
    assert_eq!(gate.resubmit(one, 2, 200, now), Resubmission::Go);
    // Of what nobody knows the keys of, all may still be to come.
    gate.narrow(one, 2, &KeySet::Unknown);
    assert!(matches!(
        gate.pass(one, &KeySet::One(1), now),
        Passage::Until(_)
    ));
}

#[test]
fn t8_t9_what_is_left_of_a_pipeline_loses_its_turn_for_those_keys_only_that_others_have_run_for() {
    let (now, mut gate) = (start(), SlotGate::new());
    let (one, all) = (slot(1), KeySet::hashed(vec![1, 2, 3]));
    let mut under_way = of(now, &[(1, 100), (2, 100)]);
    under_way[0].keys = all.clone();
    gate.close(one, under_way.clone());
    gate.park(one, 1);
    gate.settle(one, 2, true);
    let lost = KeySet::One(1);
    let is_lost = |gate: &mut SlotGate| {
        assert_eq!(gate.resubmit(one, 1, 200, now), Resubmission::Overtaken);
        assert_eq!(gate.lost(one, 1), lost);
        assert_eq!(gate.pass(one, &lost, now), Passage::Open);
        for kept in [2, 3].map(KeySet::One) {
            assert!(matches!(gate.pass(one, &kept, now), Passage::Until(_)));
        }
    };
    is_lost(&mut gate);
    // It does not get it back, however often the slot changes hands or it waits for a primary.
    under_way.truncate(1);
    gate.close(one, under_way);
    is_lost(&mut gate);
    gate.hold(one, 1, all.clone(), now + ms(20));
    is_lost(&mut gate);
    gate.withdraw(one, 1, &all);
    is_lost(&mut gate);
    // What had to do with that key has ended.
    let rest = KeySet::hashed(vec![2, 3]);
    gate.withdraw(one, 1, &rest);
    assert_eq!(gate.lost(one, 1), KeySet::Empty);
    assert_eq!(gate.resubmit(one, 1, 200, now), Resubmission::Go);
    gate.settle(one, 1, true);
    assert!(gate.is_calm());
    assert_eq!(gate.lost(one, 1), KeySet::Unknown, "it has no turn");
}

/// The true history of a cluster: at each step a slot is taken over by a node, whose epoch
/// rises above all others. Each node has heard of the first so many steps.
#[derive(Clone, Debug)]
struct Truth {
    /// The new owner at each step.
    owners: Vec<usize>,
    /// The node that answers, and how many steps it has heard of.
    answers: Vec<(usize, usize)>,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn truths() -> impl Strategy<Value = Truth> {
    let owners = prop::collection::vec(0..NAMES.len(), 1..8);
    owners.prop_flat_map(|owners| {
        let steps = owners.len();
        let answers = prop::collection::vec((0..NAMES.len(), 0..=steps), 1..24);
        (Just(owners), answers).prop_map(|(owners, answers)| Truth { owners, answers })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// In any order of answers of different age, what is believed of a slot is the
    /// newest that anybody has told; and it never goes back.
    #[test]
    fn t3_whatever_order_answers_come_in_the_newest_wins(truth in truths()) {
        let now = start();
        let mut topology = Topology::new();
        let mut newest: Option<usize> = None;
        for (at, (by, heard)) in truth.answers.iter().enumerate() {
            // Epochs as of that step: each owner's is that of the last step at which it took the
            // slot.
            let epoch = |node: usize| {
                let steps = truth.owners[..*heard].iter().rposition(|owner| *owner == node);
                steps.map_or(0, |step| step as u64 + 1)
            };
            let owner_then = heard.checked_sub(1).map(|step| truth.owners[step]);
            let nodes = || {
                let primaries = NAMES.iter().enumerate().map(|(node, name)| {
                    let slots: &[(u16, u16)] = if owner_then == Some(node) { &[(7, 7)] } else { &[] };
                    primary(name, epoch(node), slots)
                });
                primaries.collect()
            };
            let (asked, current) = (now + ms(at as u64), *heard as u64);
            let changes = topology.merge(&view(NAMES[*by], asked, current, nodes()));
            // One that gave the slot away is asked itself: it has heard of whatever it has taken
            // over.
            for disputed in changes.disputed {
                let id = topology.member(disputed).id.clone().expect("it has one");
                topology.merge(&view(id.as_str(), asked, current, nodes()));
            }
            if let Some(step) = heard.checked_sub(1) {
                newest = newest.max(Some(step));
            }
            let expected = newest.map(|step| NAMES[truth.owners[step]]);
            prop_assert_eq!(owner(&topology, 7), expected);
        }
    }
}

#[test]
fn t9_what_was_redirected_waits_for_later_ones_that_may_run_where_the_slot_has_come_back() {
    let (now, mut gate) = (start(), SlotGate::new());
    let slot = slot(1);
    gate.close(slot, of(now, &[(7, 100), (8, 100)]));
    gate.park(slot, 7);
    // By way of another node it comes back to the one at which the later is.
    assert_eq!(
        gate.resubmit(slot, 7, 200, now),
        Resubmission::Wait(now + ms(20))
    );
    assert_eq!(
        gate.resubmit(slot, 7, 100, now),
        Resubmission::Wait(now + ms(20))
    );
    let mut ran = SlotGate::new();
    ran.close(slot, of(now, &[(7, 100), (8, 100)]));
    ran.park(slot, 7);
    ran.settle(slot, 8, true);
    assert_eq!(ran.resubmit(slot, 7, 100, now), Resubmission::Overtaken);
    // Or it is redirected too.
    gate.park(slot, 8);
    assert_eq!(
        gate.resubmit(slot, 8, 200, now),
        Resubmission::Wait(now + ms(20))
    );
    assert_eq!(gate.resubmit(slot, 7, 200, now), Resubmission::Go);
    assert_eq!(gate.resubmit(slot, 8, 200, now), Resubmission::Go);
}
