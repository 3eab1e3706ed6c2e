//! The replicas that something was asked of, each a client of its own as primaries are.
//!
//! They own no slots, so no route leads to them: they are kept apart. What befalls one is no event
//! of the client, as nobody depends on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Cluster;
use super::node::Node;
use crate::client::Client;
use crate::error::Error;

/// See the module.
#[derive(Default)]
pub(super) struct Replicas {
    /// By their places among the nodes.
    nodes: Mutex<BTreeMap<u16, Arc<Node>>>,
}

impl Cluster {
    /// The replica at this place, which is started if need be. `None` while nobody knows who it is.
    pub(super) fn replica(&self, number: u16) -> Result<Option<Arc<Node>>, Error> {
        self.let_replicas_go();
        let member = self.routes.place(number);
        let Some(member) = member.and_then(|place| place.member.clone()) else {
            return Ok(None);
        };
        let mut nodes = self.replicas.nodes.lock();
        if let Some(node) = nodes.get(&number).filter(|node| node.facts() == member) {
            return Ok(Some(Arc::clone(node)));
        }
        let node = self.start(number, member, true)?;
        nodes.insert(number, Arc::clone(&node));
        Ok(Some(node))
    }

    /// Ends those that are no replicas any more, or have another address.
    pub(super) fn let_replicas_go(&self) {
        let started: Vec<u16> = self.replicas.nodes.lock().keys().copied().collect();
        for number in started {
            let facts = {
                let known = self.known.lock();
                let member = known.topology.nth(number).map(|(_, member)| member);
                let serves = member.is_some_and(|member| member.is_present && !member.is_primary);
                let place = self.routes.place(number).filter(|_| serves);
                place.and_then(|place| place.member.clone())
            };
            let mut nodes = self.replicas.nodes.lock();
            let stays = nodes
                .get(&number)
                .is_none_or(|node| Some(node.facts()) == facts);
            let left = if stays { None } else { nodes.remove(&number) };
            let left = left.map(|node| node.retire(false, &self.left_behind));
            drop(nodes);
            if let Some(left) = left {
                left.tell();
            }
        }
    }

    /// The replica at this place, if it was started.
    pub(super) fn started_replica(&self, number: u16) -> Option<Arc<Node>> {
        self.replicas.nodes.lock().get(&number).cloned()
    }

    /// The clients of the replicas that were started.
    pub(super) fn replica_clients(&self) -> Vec<Client> {
        let nodes = self.replicas.nodes.lock();
        nodes.values().map(|node| node.client.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use steadfast_core::node::NodeId;

    use crate::client::cluster::view::view_of;

    #[tokio::test]
    async fn t24_a_replica_that_is_removed_is_left_though_no_replica_is_asked_for_any_more() {
        let builder = crate::Client::builder("redis-cluster://127.0.0.1:9").expect("a good url");
        let client = builder.build().expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        let primary = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-16383\n";
        let replica = "b 127.0.0.1:2@12 slave a 0 0 1 connected\n";
        let with_replica = view_of(&format!("{primary}{replica}"));
        assert!(cluster.believe(&with_replica).ignored.is_none());
        let id = NodeId::new("b").expect("an id");
        let found = cluster.known.lock().topology.find(&id);
        let number = found.expect("it is known").number();
        let node = cluster.replica(number).ok().flatten().expect("it starts");
        cluster.believe(&view_of(&format!("{primary}{replica}")));
        assert!(cluster.started_replica(number).is_some() && !node.is_retired());
        cluster.believe(&view_of(primary));
        assert!(cluster.started_replica(number).is_none() && node.is_retired());
    }
}
