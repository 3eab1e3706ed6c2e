//! Whose word counts, of several views and redirects.

use super::*;

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
