//! A scan of a real cluster, during which a slot moves to a node whose turn is over.

use std::collections::BTreeSet;

use redis::Value;
use steadfast_core::redis_rs::commands;
use steadfast_core::scan::{ClusterScan, ScanPage, ScanQuery, ScanStep};
use steadfast_core::slot::Slot;

use super::cluster::{Cluster, LAST, key};
use super::servers::{HOST, Node, text};

/// The step as a client sends it: a transaction.
fn ask(node: &Node, query: &ScanQuery, cursor: u64) -> ScanPage {
    let mut connection = node.connect();
    assert_eq!(connection.words("MULTI"), Value::Okay);
    for cmd in commands(&query.step(cursor)) {
        let args: Vec<&[u8]> = cmd.arguments().collect();
        connection.args(&args);
    }
    ScanPage::read(connection.words("EXEC")).expect("a page")
}

#[test]
fn t13_a_real_slot_that_moves_behind_the_cursor_is_gone_over_again() {
    let cluster = Cluster::start();
    let owner_of = |slot: Slot| usize::from(slot.number() > LAST);
    let keys: BTreeSet<String> = (0..40)
        .flat_map(|tag| (0..3).map(move |n| key(&format!("t{tag}"), n)))
        .collect();
    for key in &keys {
        let slot = Slot::of_key(key.as_bytes());
        cluster.nodes[owner_of(slot)].ask(&format!("SET {key} v"));
    }
    // All of one slot of the second will go to the first, when that has been swept.
    let tags = (0..40).map(|tag| format!("t{tag}"));
    let mut moves = tags.filter(|tag| owner_of(Slot::of_key(tag.as_bytes())) == 1);
    let tag = moves.next().expect("some belong to the second");
    let moved = Slot::of_key(tag.as_bytes());
    let mut owner_of_moved = 1;
    let query = ScanQuery {
        pattern: Some(b"{t*".to_vec()),
        kind: Some("string".to_owned()),
        count: 10,
    };
    let mut scan = ClusterScan::new(3);
    let (mut yielded, mut asked) = (BTreeSet::new(), Vec::new());
    loop {
        let owner = |slot: Slot| {
            Some(if slot == moved {
                owner_of_moved
            } else {
                owner_of(slot)
            })
        };
        let (node, cursor) = match scan.next_step(owner) {
            ScanStep::Ask { node, cursor } => (node, cursor),
            ScanStep::Wait => continue,
            ScanStep::Finished => break,
            ScanStep::GaveUp(uncovered) => panic!("{uncovered}"),
        };
        let begins_second = node == 1 && !asked.contains(&1);
        asked.push(node);
        if begins_second {
            move_slot(&cluster, moved, &tag);
        }
        let page = ask(&cluster.nodes[node], &query, cursor);
        let info = text(&cluster.nodes[node].ask("INFO server"));
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        for key in scan.answered(run_id.expect("a run id"), page, owner) {
            yielded.insert(String::from_utf8(key).expect("a text"));
        }
        if begins_second {
            owner_of_moved = 0;
        }
    }
    assert_eq!(yielded, keys);
    let again = asked.iter().rposition(|node| *node == 0).expect("asked");
    assert!(
        again > asked.iter().position(|node| *node == 1).expect("asked"),
        "{asked:?}"
    );
}

fn move_slot(cluster: &Cluster, slot: Slot, tag: &str) {
    let (first, second) = (cluster.id(0), cluster.id(1));
    let [to, from, _] = &cluster.nodes;
    let told = |node: &Node, words: String| assert_eq!(node.ask(&words), Value::Okay, "{words}");
    told(to, format!("CLUSTER SETSLOT {slot} IMPORTING {second}"));
    told(from, format!("CLUSTER SETSLOT {slot} MIGRATING {first}"));
    for n in 0..3 {
        told(
            from,
            format!("MIGRATE {HOST} {} {} 0 5000", to.port, key(tag, n)),
        );
    }
    for node in [to, from] {
        told(node, format!("CLUSTER SETSLOT {slot} NODE {first}"));
    }
}
