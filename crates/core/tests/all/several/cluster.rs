//! A cluster of Redis 7: two primaries, a replica of the first.

use std::sync::Arc;
use std::time::Instant;

use redis::Value;
use steadfast_core::node::NodeId;
use steadfast_core::redirect::{Redirect, Routing};
use steadfast_core::report::{ClusterInfo, ClusterReport, MigrationKind, ReportedRole, RoleReport};
use steadfast_core::slot::{Slot, SlotRange, common_slot};
use steadfast_core::topology::{Moved, Topology, View};

use super::servers::{HOST, Node, text, until};

pub(super) struct Cluster {
    pub(super) nodes: [Node; 3],
}

/// The slots of the first primary end here.
pub(super) const LAST: u16 = 8_191;

impl Cluster {
    pub(super) fn start() -> Self {
        let nodes = [(); 3].map(|()| Node::cluster_node());
        let told = |node: &Node, words: &str| {
            let answer = node.ask(words);
            assert_eq!(answer, Value::Okay, "{words}");
        };
        told(&nodes[0], "CLUSTER SET-CONFIG-EPOCH 1");
        told(&nodes[1], "CLUSTER SET-CONFIG-EPOCH 2");
        told(&nodes[0], &format!("CLUSTER ADDSLOTSRANGE 0 {LAST}"));
        told(
            &nodes[1],
            &format!("CLUSTER ADDSLOTSRANGE {} 16383", LAST + 1),
        );
        for other in &nodes[1..] {
            let bus = text(&other.ask("CLUSTER NODES"));
            let bus = bus.split(['@', ' ', ',']).nth(2).unwrap().to_owned();
            told(
                &nodes[0],
                &format!("CLUSTER MEET {HOST} {} {bus}", other.port),
            );
        }
        let cluster = Self { nodes };
        until("all nodes know all", || {
            let known = |node: &Node| {
                let report = ClusterReport::read_nodes(&node.ask("CLUSTER NODES")).unwrap();
                report.nodes.len() == 3 && cluster.info(node).is_ok
            };
            cluster.nodes.iter().all(known).then_some(())
        });
        let first = cluster.id(0);
        told(&cluster.nodes[2], &format!("CLUSTER REPLICATE {first}"));
        until("the replica is in step, and all know it", || {
            let follows = |node: &Node| {
                let report = ClusterReport::read_nodes(&node.ask("CLUSTER NODES")).unwrap();
                let role = ReportedRole::Replica(NodeId::new(first.as_str()));
                report.nodes.iter().any(|node| node.role == role)
            };
            let in_step = text(&cluster.nodes[2].ask("INFO replication"));
            (in_step.contains("master_link_status:up") && cluster.nodes.iter().all(follows))
                .then_some(())
        });
        cluster
    }

    pub(super) fn id(&self, at: usize) -> NodeId {
        NodeId::new(&text(&self.nodes[at].ask("CLUSTER MYID"))).unwrap()
    }

    fn info(&self, node: &Node) -> ClusterInfo {
        ClusterInfo::read(&text(&node.ask("CLUSTER INFO"))).unwrap()
    }

    fn view(&self, at: usize) -> View {
        let asked = Instant::now();
        let node = &self.nodes[at];
        let by = self.id(at);
        let report = ClusterReport::read_nodes(&node.ask("CLUSTER NODES")).unwrap();
        let info = self.info(node);
        View {
            by: Some(by),
            host: HOST.into(),
            asked,
            heard: Instant::now(),
            tls: false,
            report,
            info: Some(info),
        }
    }

    fn owner(&self, topology: &Topology, slot: Slot) -> usize {
        let owner = topology.owner(slot).expect("it has an owner");
        let port = topology.member(owner).endpoint.as_ref().unwrap().port;
        self.nodes
            .iter()
            .position(|node| node.port == port)
            .unwrap()
    }
}

/// Keys of one slot, as many as one likes.
pub(super) fn key(tag: &str, n: usize) -> String {
    format!("{{{tag}}}:{n}")
}

/// A tag whose slot lies among those of the first primary.
fn tag_of_first() -> (String, Slot) {
    (0..)
        .map(|n| format!("t{n}"))
        .map(|tag| (tag.clone(), Slot::of_key(tag.as_bytes())))
        .find(|(_, slot)| slot.number() <= LAST)
        .unwrap()
}

fn routing(value: &Value) -> Option<Routing> {
    match value {
        Value::ServerError(error) => Routing::of(error.code(), error.details().unwrap_or_default()),
        _ => None,
    }
}

fn redirect(value: &Value) -> Redirect {
    match routing(value) {
        Some(Routing::Moved(redirect) | Routing::Ask(redirect)) => redirect,
        other => panic!("{other:?} of {value:?}"),
    }
}

#[test]
fn the_slot_of_any_key_is_what_a_server_says() {
    let node = Node::cluster_node();
    let mut connection = node.connect();
    let mut rng = fastrand::Rng::with_seed(7);
    let letters = b"ab{}{}\x00\xff\x80z";
    for _ in 0..2_000 {
        let length = rng.usize(0..12);
        let key: Vec<u8> = (0..length)
            .map(|_| letters[rng.usize(..letters.len())])
            .collect();
        // The connection takes words of text; these bytes are given as they are.
        let said = connection.args(&[b"CLUSTER", b"KEYSLOT", &key]);
        assert_eq!(
            said,
            Value::Int(Slot::of_key(&key).number().into()),
            "{key:?}"
        );
    }
}

#[test]
fn t3_every_node_s_every_report_reads_to_the_same_topology_and_redirects_agree_with_it() {
    let cluster = Cluster::start();
    let mut topology = Topology::new();
    for at in 0..3 {
        let changes = topology.merge(&cluster.view(at));
        assert_eq!(changes.ignored, None);
        assert_eq!(changes.slots.is_empty(), at > 0, "node {at}: {changes:?}");
    }
    assert!(topology.uncovered().is_empty());
    // The other commands, in both protocols, say the same without epochs.
    for node in &cluster.nodes {
        let mut connection = node.connect();
        for protocol in ["2", "3"] {
            connection.words(&format!("HELLO {protocol}"));
            let reports = [
                ClusterReport::read_nodes(&connection.words("CLUSTER NODES")),
                ClusterReport::read_shards(&connection.words("CLUSTER SHARDS")),
                ClusterReport::read_slots(&connection.words("CLUSTER SLOTS")),
            ];
            for report in reports {
                let report = report.expect("it can be read");
                assert!(report.faults.is_empty(), "{:?}", report.faults);
                // Slot maps leave out a replica whose offset has not been heard of yet.
                assert!((2..=3).contains(&report.nodes.len()), "{report:?}");
                let mut view = cluster.view(0);
                view.report = report;
                assert!(topology.merge(&view).is_empty());
            }
        }
    }
    for n in 0..200 {
        let key = format!("k{n}");
        let owner = cluster.owner(&topology, Slot::of_key(key.as_bytes()));
        for at in 0..3 {
            let answer = cluster.nodes[at].ask(&format!("SET {key} v"));
            if at == owner {
                assert_eq!(answer, Value::Okay);
                continue;
            }
            let redirect = redirect(&answer);
            assert_eq!(redirect.port, cluster.nodes[owner].port);
            assert_eq!(redirect.slot, Slot::of_key(key.as_bytes()));
        }
        let other = format!("x{n}");
        let crosses = common_slot([key.as_bytes(), other.as_bytes()]).is_err();
        let said = routing(&cluster.nodes[owner].ask(&format!("MGET {key} {other}")));
        assert_eq!(said == Some(Routing::CrossSlot), crosses, "{key} {other}");
    }
    let RoleReport::Primary { replicas, .. } =
        RoleReport::read(&cluster.nodes[0].ask("ROLE")).unwrap()
    else {
        panic!("it is a primary")
    };
    assert_eq!(replicas[0].endpoint.port, cluster.nodes[2].port);
    let replica = RoleReport::read(&cluster.nodes[2].ask("ROLE")).unwrap();
    assert!(matches!(replica, RoleReport::Replica { .. }));
}

#[test]
fn t6_t10_a_slot_that_moves_asks_tries_again_and_moves_and_nothing_of_what_it_redirects_has_run() {
    let cluster = Cluster::start();
    let (tag, slot) = tag_of_first();
    let [from, to, _] = &cluster.nodes;
    let mut topology = Topology::new();
    topology.merge(&cluster.view(0));
    let before = cluster.view(1);
    let (first, second) = (cluster.id(0), cluster.id(1));
    from.ask(&format!("SET {} v", key(&tag, 0)));
    from.ask(&format!("SET {} v", key(&tag, 1)));
    to.ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {first}"));
    from.ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {second}"));
    let migrations = &cluster.view(0).report;
    let migrations: Vec<_> = migrations
        .nodes
        .iter()
        .flat_map(|node| &node.migrations)
        .collect();
    assert_eq!(migrations.len(), 1);
    assert_eq!(
        (migrations[0].slot, migrations[0].kind),
        (slot, MigrationKind::Migrating)
    );
    from.ask(&format!(
        "MIGRATE {HOST} {} {} 0 5000",
        to.port,
        key(&tag, 0)
    ));
    // The key that has gone, one that has not, and both.
    let incr = format!("INCR {}", key(&tag, 9));
    let asked = from.ask(&incr);
    assert!(
        matches!(routing(&asked), Some(Routing::Ask(_))),
        "{asked:?}"
    );
    assert_eq!(redirect(&asked).port, to.port);
    let script = format!("EVAL return(redis.call('INCR',KEYS[1])) 1 {}", key(&tag, 9));
    let asked = routing(&from.ask(&script)).expect("it is redirected");
    assert!(asked.may_redirect_script(Some(slot)) && asked.follows());
    let both = format!("MGET {} {}", key(&tag, 0), key(&tag, 1));
    assert_eq!(routing(&from.ask(&both)), Some(Routing::TryAgain));
    // A transaction in which one is redirected runs nothing.
    let mut connection = from.connect();
    connection.words("MULTI");
    assert_eq!(
        text(&connection.words(&format!("SET {} w", key(&tag, 1)))),
        "QUEUED"
    );
    assert!(matches!(
        routing(&connection.words(&incr)),
        Some(Routing::Ask(_))
    ));
    assert!(text(&connection.words("EXEC")).starts_with("-EXECABORT"));
    assert_eq!(text(&from.ask(&format!("GET {}", key(&tag, 1)))), "v");
    // ASKING lets the next command in, and only that.
    let mut connection = to.connect();
    connection.words("ASKING");
    assert_eq!(
        connection.words(&incr),
        Value::Int(1),
        "none of the redirected has run"
    );
    assert!(matches!(
        routing(&connection.words(&incr)),
        Some(Routing::Moved(_))
    ));
    // Queued before the slot moves, executed after.
    let mut queued = from.connect();
    queued.words("MULTI");
    queued.words(&format!("SET {} w", key(&tag, 1)));
    from.ask(&format!(
        "MIGRATE {HOST} {} {} 0 5000",
        to.port,
        key(&tag, 1)
    ));
    for node in [to, from] {
        node.ask(&format!("CLUSTER SETSLOT {slot} NODE {second}"));
    }
    let moved = queued.words("EXEC");
    assert!(
        matches!(routing(&moved), Some(Routing::Moved(_))),
        "{moved:?}"
    );
    assert_eq!(text(&to.ask(&format!("GET {}", key(&tag, 1)))), "v");
    // The redirect of the owner patches the slot, and a view of before does not undo it.
    let sent = Instant::now();
    let redirected = redirect(&from.ask(&incr));
    let by = topology.find(&first).unwrap();
    let host: Arc<str> = HOST.into();
    let patched = topology.moved(by, &redirected, &host, sent, Instant::now());
    assert_eq!(patched, Moved::Patched(topology.find(&second).unwrap()));
    assert!(topology.merge(&before).slots.is_empty());
    // Each node comes to say so by itself, and none of their views changes anything on the way.
    for at in 0..3 {
        until("a node has heard of the slot", || {
            let view = cluster.view(at);
            let owns = |node: &&steadfast_core::report::ReportedNode| {
                let mut slots = node.slots.iter().flat_map(|range| range.slots());
                slots.any(|owned| owned == slot)
            };
            let owner = view.report.nodes.iter().find(owns)?.id.clone();
            assert!(topology.merge(&view).slots.is_empty());
            (owner == Some(second.clone())).then_some(())
        });
    }
}

#[test]
fn t3_after_a_failover_the_woken_primary_s_own_view_does_not_win() {
    let cluster = Cluster::start();
    let mut topology = Topology::new();
    topology.merge(&cluster.view(0));
    let old = cluster.view(0);
    cluster.nodes[0].signal("-STOP");
    until("the replica takes over", || {
        cluster.nodes[2].ask("CLUSTER FAILOVER TAKEOVER");
        topology.merge(&cluster.view(1));
        (cluster.owner(&topology, SlotRange::all().first()) == 2).then_some(())
    });
    // What it would say at its waking, whenever that were asked.
    let mut woken = old;
    woken.asked = Instant::now();
    woken.heard = woken.asked;
    assert!(topology.merge(&woken).slots.is_empty());
    cluster.nodes[0].signal("-CONT");
    until("the old primary follows the new one", || {
        let view = cluster.view(0);
        assert!(
            topology.merge(&view).slots.is_empty(),
            "it has nothing to say"
        );
        let report = RoleReport::read(&cluster.nodes[0].ask("ROLE")).unwrap();
        matches!(report, RoleReport::Replica { .. }).then_some(())
    });
    let moved = redirect(&cluster.nodes[0].ask(&format!("GET {}", tag_of_first().0)));
    assert_eq!(moved.port, cluster.nodes[2].port);
}
