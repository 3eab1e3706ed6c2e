//! Who is a member, and where.

use super::*;

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
