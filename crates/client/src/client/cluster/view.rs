//! The current view of the cluster, and how answers and redirects change where calls go.
//!
//! The lock of what is known is held by discovery, by redirects and by the start of a node, never
//! by a call whose slot has a node. The lock `taking_in` is held while the slots of a view are
//! handed over, and by a call that finds no owner, so that it sees no half of a view. Whoever takes
//! several takes them in this order: `taking_in`, the stripes of the order, `known`.

mod naming;
mod redirects;

use std::sync::Arc;

use steadfast_core::node::{Endpoint, NodeId};
use steadfast_core::slot::Slot;
use steadfast_core::topology::{Changes, Member, MemberIndex, Topology, View};

use super::node::{Farewell, Node};
use super::{Cluster, Known};
use crate::clock;
use crate::link::ConnectionState;

impl Cluster {
    /// Whether a subscriber is at the wrong node there, at an endpoint of either of these names: by
    /// the newest view it is no member, or the others agree that it is away, and one is not.
    pub(super) fn is_left(&self, at: &Endpoint, or_at: &Endpoint) -> bool {
        let topology = &self.known.lock().topology;
        let found = topology.find_at(at).or_else(|| topology.find_at(or_at));
        let Some(member) = found.map(|index| topology.member(index)) else {
            return false;
        };
        let is_well = |member: &Member| member.is_present && member.is_primary && !member.is_failed;
        let others = || topology.members().any(|(_, member)| is_well(member));
        !member.is_present || member.is_failed && others()
    }

    /// The ids of which the node at an endpoint has one: its own, or where nobody knows who is
    /// there, as at a seed's name, that of any member. Empty while there is no view.
    pub(super) fn ids_at(&self, at: &Endpoint) -> Vec<NodeId> {
        let topology = &self.known.lock().topology;
        let own = topology.find_at(at).map(|index| topology.member(index));
        if let Some(id) = own.and_then(|member| member.id.clone()) {
            return vec![id];
        }
        let members = topology.members().map(|(_, member)| member);
        let present = members.filter(|member| member.is_present);
        present.filter_map(|member| member.id.clone()).collect()
    }

    fn index_of(&self, topology: &Topology, node: &Node) -> Option<MemberIndex> {
        topology.find(&node.id)
    }

    /// Takes in the answer of a node.
    pub(super) fn believe(&self, view: &View) -> Changes {
        let now = clock::now();
        let mut known = self.known.lock();
        let changes = known.topology.merge(view);
        if changes.ignored.is_none() {
            known.first_heard.get_or_insert(now);
            known.heard = Some(now);
            known.error = None;
            Self::note_migrations(&mut known, view);
        }
        let members: Vec<MemberIndex> = known.topology.members().map(|(index, _)| index).collect();
        let mut left = Vec::new();
        for index in members {
            left.extend(self.publish_member(&mut known, index));
        }
        if !changes.is_empty() {
            self.name_nodes(&known);
        }
        drop(known);
        let slots = changes.slots.iter().flat_map(|range| range.slots());
        {
            let _whole = self.taking_in.lock();
            self.hand_over(slots);
        }
        let known = self.known.lock();
        // Also one that a redirect or an earlier view has replaced while it seemed to be well.
        for node in self.routes.nodes() {
            left.extend(self.retire_if_replaced(&known, &node));
        }
        drop(known);
        self.let_replicas_go();
        self.take_its_word(view);
        self.tell_state();
        self.version.send_modify(|version| *version += 1);
        left.into_iter().for_each(Farewell::tell);
        changes
    }

    /// Notes that the node which has answered owns nothing by its own word, if that is so.
    fn take_its_word(&self, view: &View) {
        let nodes = &view.report.nodes;
        let of_itself = |id: &NodeId| nodes.iter().find(|node| node.id.as_ref() == Some(id));
        let own = view.by.as_ref().and_then(of_itself);
        let Some(own) = own.filter(|own| own.slots.is_empty()) else {
            return;
        };
        for node in self.routes.nodes() {
            if Some(&node.id) == own.id.as_ref() {
                node.agrees_to_own_nothing();
            }
        }
    }

    /// The nodes in service that own nothing any more, and may not know it.
    pub(super) fn doubted(&self) -> Vec<Arc<Node>> {
        let now = clock::now();
        let mut nodes = self.routes.nodes();
        nodes.retain(|node| node.is_doubted(now) && !self.routes.owns(node.number));
        nodes
    }

    /// Sends new calls for these slots to their new owners. Their gates close with that, or one of
    /// them could come between those that are under way to the old owner.
    fn hand_over(&self, slots: impl IntoIterator<Item = Slot>) {
        for slot in slots {
            self.order.hand_over(slot, || {
                // Only now, and under the lock: another view may have come between.
                let known = self.known.lock();
                if let Some(owner) = known.topology.owner(slot) {
                    self.routes.set_owner(slot, owner.number());
                }
            });
        }
    }

    /// A node that has lost all its slots and does not answer, is a primary no more or no member:
    /// nothing that waits for it, and nothing that it may still answer, counts.
    fn retire_if_replaced(&self, known: &Known, node: &Arc<Node>) -> Option<Farewell> {
        let (_, member) = known.topology.nth(node.number)?;
        if self.routes.owns(node.number) {
            return None;
        }
        let answers = node.client.state() == ConnectionState::Ready && !member.is_failing;
        // One that has never owned any imports its first, or is about to.
        let is_wanted = answers || !node.has_owned();
        if is_wanted && member.is_primary && member.is_present {
            node.lost_its_slots(clock::now());
            return None;
        }
        let node = self.routes.retire(node.number)?;
        Some(node.retire(!answers, &self.left_behind))
    }

    /// Tells the state of the whole from that of the owners of slots.
    pub(crate) fn tell_state(&self) {
        let owners = self.routes.owners();
        let states: Vec<ConnectionState> = owners
            .iter()
            .filter_map(|owner| self.routes.node(*owner))
            .map(|node| node.client.state())
            .collect();
        let link = &self.shared.links[0];
        let ready = states
            .iter()
            .filter(|state| **state == ConnectionState::Ready);
        let ready = ready.count();
        let unasked = owners.len() - states.len();
        let state = if owners.is_empty() {
            self.state_without_view()
        } else if ready == states.len() && self.routes.is_covered() {
            ConnectionState::Ready
        } else if ready + unasked > 0 {
            ConnectionState::Partial
        } else if states.contains(&ConnectionState::Connecting) {
            ConnectionState::Connecting
        } else {
            ConnectionState::Down
        };
        link.set_state(state, clock::now());
    }

    fn state_without_view(&self) -> ConnectionState {
        let waited = clock::now().saturating_duration_since(self.started);
        match waited < self.settings().reconnect_grace {
            true => ConnectionState::Connecting,
            false => ConnectionState::Down,
        }
    }

    /// The state of the connection to the owner of a slot.
    pub(super) fn state_of(&self, slot: Slot) -> ConnectionState {
        match self.routes.owner(slot) {
            None => self.state_without_view(),
            Some(owner) => match self.routes.node(owner) {
                Some(node) => node.client.state(),
                None => ConnectionState::Connecting,
            },
        }
    }

    /// The same, and begins that connection if there is none yet: who asks whether a node can be
    /// used would else never use it.
    pub(crate) fn wanted_state_of(&self, slot: Slot) -> ConnectionState {
        if let Some(owner) = self.routes.owner(slot)
            && let Err(error) = self.node(owner)
        {
            tracing::debug!(%error, "a node that is wanted cannot be started");
        }
        self.state_of(slot)
    }
}

/// A view by these lines of CLUSTER NODES.
#[cfg(test)]
pub(super) fn view_of(nodes: &str) -> View {
    use steadfast_core::report::ClusterReport;

    let now = clock::now();
    let nodes = redis::Value::BulkString(nodes.into());
    View {
        by: None,
        host: "127.0.0.1".into(),
        asked: now,
        heard: now,
        tls: false,
        report: ClusterReport::read_nodes(&nodes).expect("it can be read"),
        info: None,
    }
}

#[cfg(test)]
mod tests {
    use steadfast_core::redirect::{Redirect, Routing};
    use steadfast_core::topology::{Explained, Moved};

    use super::*;
    use crate::client::cluster::Aim;

    fn redirect(line: &str) -> Redirect {
        match Routing::of("MOVED", line) {
            Some(Routing::Moved(redirect)) => redirect,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn t6_t7_a_redirect_that_others_have_told_of_leads_to_the_new_owner_at_once() {
        let builder = crate::Client::builder("redis-cluster://127.0.0.1:1").expect("a good url");
        let client = builder.build().expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        let text = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-8191\n\
            b 127.0.0.1:2@12 master - 0 0 2 connected 8192-16383\n";
        let (view, now) = (view_of(text), clock::now());
        assert!(cluster.believe(&view).ignored.is_none());
        let slot = Slot::new(7).expect("a slot");
        let of_old = cluster.routes.owner(slot).expect("a");
        let old = cluster.node(of_old).ok().flatten().expect("it is known");
        let to = redirect("7 127.0.0.1:2");
        {
            // Another has just been told, and has come no further.
            let topology = &mut cluster.known.lock().topology;
            let by = topology.find(&old.id).expect("it is known");
            let told = topology.moved(by, &to, &"127.0.0.1".into(), now, now);
            assert!(matches!(told, Moved::Patched(_)));
        }
        let aim = cluster.moved(&old, &to, now);
        assert_eq!(aim, Some(Aim::Owner));
        assert_ne!(cluster.routes.owner(slot), Some(of_old));
    }

    #[tokio::test]
    async fn t18_a_node_that_has_lost_all_its_slots_and_does_not_know_it_is_looked_at_again() {
        let servers = steadfast_drill::process::Cluster::builder().primaries(2);
        let servers = servers.replicas(0).start().await.expect("it starts");
        let builder = crate::Client::builder(&servers.url()).expect("a good url");
        let client = builder.deadline(std::time::Duration::from_secs(20));
        let client = client.connect().await.expect("it serves");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        let owner = cluster.routes.owner(Slot::new(7).expect("a slot"));
        let old = cluster.node(owner.expect("it is known"));
        let old = old.ok().flatten().expect("it is started");
        let (own, other) = (servers.node(0), servers.node(1));
        // As after a takeover of which the old owner has not heard.
        let text = format!(
            "{} {}@1 master - 0 0 1 connected\n{} {}@2 myself,master - 0 0 900 connected 0-16383\n",
            own.id(),
            own.addr(),
            other.id(),
            other.addr()
        );
        let mut view = view_of(&text);
        view.by = NodeId::new(other.id());
        assert!(!cluster.believe(&view).slots.is_empty());
        assert!(!old.is_retired(), "it seems to be well");
        // It claims them still, so that nothing is explained.
        assert_eq!(cluster.discover().await, Explained::NotYet);
        assert!(old.is_doubted(clock::now()));
        view.by = NodeId::new(own.id());
        cluster.believe(&view);
        assert!(!old.is_doubted(clock::now()), "by its own word");
    }
}
