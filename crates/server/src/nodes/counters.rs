//! The counters of each node of a cluster. Their label is an address, and addresses come and go for
//! as long as the service lives; so only the first of them are told apart.

use std::collections::{BTreeMap, BTreeSet};

use metrics::counter;
use parking_lot::Mutex;
use steadfast::{ClusterStatus, NodeStatus};

/// The addresses that are told apart.
const APART: usize = 64;
/// The label of all others.
const OTHER: &str = "other";

/// What was counted of the nodes so far.
#[derive(Default)]
pub(crate) struct NodeCounters(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    labels: BTreeSet<String>,
    /// Replies and reconnects of each node when it was last looked at, by its id: a node counts on
    /// when its address changes. One whose id is not known goes by its address.
    last: BTreeMap<String, (u64, u64)>,
}

/// What a node has counted so far.
struct Seen {
    address: String,
    replies: u64,
    reconnects: u64,
}

impl NodeCounters {
    /// Counts what has come since the last look.
    pub(crate) fn count(&self, cluster: &ClusterStatus) {
        let nodes = cluster.nodes.iter().filter(|node| node.state.is_some());
        let seen = nodes.filter_map(|node: &NodeStatus| {
            let address = node.address.clone()?;
            let id = node.id.clone().unwrap_or_else(|| address.clone());
            let seen = Seen {
                address,
                replies: node.answered,
                reconnects: node.reconnects,
            };
            Some((id, seen))
        });
        for (label, replies, reconnects) in self.0.lock().since_last(seen.collect()) {
            counter!("steadfast_redis_node_replies_total", "server_address" => label.clone())
                .increment(replies);
            counter!("steadfast_redis_node_reconnects_total", "server_address" => label)
                .increment(reconnects);
        }
    }
}

impl Counted {
    /// Returns label, replies and reconnects of each node since the last look.
    fn since_last(&mut self, now: BTreeMap<String, Seen>) -> Vec<(String, u64, u64)> {
        let mut risen = Vec::new();
        for (id, seen) in &now {
            let address = &seen.address;
            let known = self.labels.contains(address);
            if !known && self.labels.len() < APART {
                self.labels.insert(address.clone());
            }
            let label = match self.labels.get(address) {
                Some(label) => label.clone(),
                None => OTHER.to_owned(),
            };
            let (before, reconnects_before) = self.last.get(id).copied().unwrap_or_default();
            // A node that was left and is back begins to count anew.
            let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
            risen.push((
                label,
                since(seen.replies, before),
                since(seen.reconnects, reconnects_before),
            ));
        }
        let counted = |(id, seen): (String, Seen)| (id, (seen.replies, seen.reconnects));
        self.last = now.into_iter().map(counted).collect();
        risen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s4_nodes_that_come_and_go_make_a_bounded_number_of_labels_and_count_on() {
        let mut counted = Counted::default();
        let at = |n: u64| format!("10.0.0.{n:03}:6379");
        let seen = |n: u64, replies, reconnects| Seen {
            address: at(n),
            replies,
            reconnects,
        };
        for n in 0..200 {
            let now = BTreeMap::from([(at(n), seen(n, 5, 0)), (at(n + 1), seen(n + 1, 7, 1))]);
            let risen = counted.since_last(now);
            assert_eq!(risen.len(), 2);
            let own = n < APART as u64;
            assert_eq!(risen[0].0 == at(n), own, "{n}");
        }
        assert_eq!((counted.labels.len(), counted.last.len()), (APART, 2));

        let mut counted = Counted::default();
        let mut look = |address, replies| {
            let now = BTreeMap::from([("id".to_owned(), seen(address, replies, 0))]);
            counted.since_last(now)[0].1
        };
        let looks = [look(1, 5), look(1, 9), look(1, 9), look(1, 2)];
        assert_eq!(looks, [5, 4, 0, 2]);
        assert_eq!(look(2, 3), 1, "its address has changed, and it counts on");
    }
}
