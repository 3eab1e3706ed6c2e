//! The current view of the cluster, and how answers and redirects change where calls go.
//!
//! The lock is held by discovery, by redirects and by the start of a node, never by a call whose
//! slot has a node.

use std::sync::Arc;
use std::time::Instant;

use steadfast_core::node::{AnnouncedHost, Endpoint, NodeId};
use steadfast_core::redirect::{Redirect, Routing};
use steadfast_core::report::{ClusterReport, Migration, MigrationKind};
use steadfast_core::slot::Slot;
use steadfast_core::topology::{Changes, Member, MemberIndex, Moved, Topology, Trigger, View};

use super::node::Node;
use super::whereabouts::MemberFacts;
use super::{Aim, Cluster, Known};
use crate::clock;
use crate::link::ConnectionState;
use crate::resolve::is_name;

impl Cluster {
    /// Takes in a MOVED that a node has answered to a command which was `sent` then. Returns where
    /// the command goes on; `None` if nobody knows yet.
    pub(super) fn moved(&self, by: &Node, redirect: &Redirect, sent: Instant) -> Option<Aim> {
        let redirect = self.translated(redirect);
        let now = clock::now();
        let asked = &by.endpoint().host;
        let mut known = self.known.lock();
        let Some(index) = self.index_of(&known.topology, by) else {
            drop(known);
            self.trigger(Trigger::Contradiction);
            return Some(Aim::Owner);
        };
        let moved = known.topology.moved(index, &redirect, asked, sent, now);
        if let Moved::Patched(target) = moved {
            self.publish_member(&mut known, target);
        }
        let owner = known.topology.owner(redirect.slot);
        drop(known);
        // Who has told of the new owner before may not have come to hand the slot over yet: a
        // command that went by the routes would go to the old owner again, and use up its redirects
        // there.
        let routed = self.routes.owner(redirect.slot);
        if owner.map(MemberIndex::number) != routed {
            self.hand_over([redirect.slot]);
        }
        if !matches!(moved, Moved::Known(_)) {
            self.trigger(Trigger::Contradiction);
        }
        match moved {
            Moved::Patched(_) | Moved::Known(_) => Some(Aim::Owner),
            // What was known when it was sent is known better now.
            Moved::Hint if owner.is_some_and(|owner| owner != index) => Some(Aim::Owner),
            Moved::Hint => Some(Aim::At {
                endpoint: redirect.endpoint(asked)?,
                asking: false,
            }),
            Moved::ToItself => {
                by.reconnect("its name leads to another node now");
                Some(Aim::Owner)
            }
            Moved::Nowhere => None,
        }
    }

    /// Returns where a script goes on that was answered MOVED. The words may be its own, so nothing
    /// is learnt from them but that it is time to ask.
    pub(super) fn pointed(&self, by: &Node, redirect: &Redirect) -> Option<Aim> {
        self.trigger(Trigger::Doubt);
        let endpoint = self.translated(redirect).endpoint(&by.endpoint().host)?;
        Some(Aim::At {
            endpoint,
            asking: false,
        })
    }

    /// Whether this is a redirect to the node that was asked.
    pub(super) fn leads_to(&self, routing: &Routing, asked: &Node) -> bool {
        let (Routing::Moved(redirect) | Routing::Ask(redirect)) = routing else {
            return false;
        };
        let at = asked.endpoint();
        let named = self.translated(redirect).endpoint(&at.host);
        named.is_some_and(|named| named == at || self.find_at(&named) == Some(asked.number))
    }

    /// Notes that a node has said by an ASK just now where a slot goes.
    pub(super) fn note_ask(&self, by: &Node, redirect: &Redirect) {
        let named = self.translated(redirect).endpoint(&by.endpoint().host);
        let endpoint = named.or_else(|| self.importing(by, redirect));
        if let Some(to) = endpoint.and_then(|endpoint| self.find_at(&endpoint)) {
            self.asked.note(redirect.slot, to, clock::now());
        }
    }

    /// Returns where a command goes that was answered ASK.
    pub(super) fn asked(&self, by: &Node, redirect: &Redirect) -> Option<Aim> {
        let named = self.translated(redirect).endpoint(&by.endpoint().host);
        let endpoint = named.or_else(|| self.importing(by, redirect))?;
        Some(Aim::At {
            endpoint,
            asking: true,
        })
    }

    /// Where the node is that a slot goes to, by the word of the one that it leaves; for a redirect
    /// that names no host. That is so where nodes prefer to be dialled by their names, and one has
    /// none. `None` if the node has to be asked first.
    fn importing(&self, by: &Node, redirect: &Redirect) -> Option<Endpoint> {
        let mut known = self.known.lock();
        let told = known.migrations.get(&by.id).into_iter().flatten();
        let leaves =
            |one: &&Migration| one.slot == redirect.slot && one.kind == MigrationKind::Migrating;
        let to = told.rev().find(leaves);
        let to = to.and_then(|one| known.topology.find(&one.other));
        let endpoint = to.and_then(|to| known.topology.member(to).endpoint.clone());
        if endpoint.is_none() {
            known.to_ask.insert(by.id.clone());
            drop(known);
            self.trigger(Trigger::Contradiction);
        }
        endpoint
    }

    /// The places of the nodes that have to be asked themselves. Each is, once.
    pub(super) fn to_be_asked(&self) -> Vec<Endpoint> {
        let mut known = self.known.lock();
        let ids = std::mem::take(&mut known.to_ask).into_iter();
        let members = ids.filter_map(|id| known.topology.find(&id));
        let endpoint = |at| known.topology.member(at).endpoint.clone();
        members.filter_map(endpoint).collect()
    }

    /// Notes which slots the node that has answered says are on their way.
    fn note_migrations(known: &mut Known, view: &View) {
        let mut nodes = view.report.nodes.iter();
        let Some(own) = nodes.find(|node| node.is_myself) else {
            return;
        };
        let Some(id) = own
            .id
            .as_ref()
            .filter(|id| known.topology.find(id).is_some())
        else {
            return;
        };
        match own.migrations.is_empty() {
            true => drop(known.migrations.remove(id)),
            false => drop(known.migrations.insert(id.clone(), own.migrations.clone())),
        }
    }

    /// The place of the node at an endpoint that a redirect has named.
    pub(super) fn find_at(&self, endpoint: &Endpoint) -> Option<u16> {
        let known = self.known.lock();
        known.topology.find_at(endpoint).map(MemberIndex::number)
    }

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

    pub(super) fn translated(&self, redirect: &Redirect) -> Redirect {
        let AnnouncedHost::Named(host) = &redirect.host else {
            return redirect.clone();
        };
        let announced = Endpoint {
            host: Arc::clone(host),
            port: redirect.port,
        };
        let Endpoint { host, port } = self.settings().translation.of(announced);
        Redirect {
            slot: redirect.slot,
            host: AnnouncedHost::Named(host),
            port,
        }
    }

    /// Translates the addresses that nodes announce.
    pub(super) fn translate(&self, report: &mut ClusterReport) {
        for node in &mut report.nodes {
            let AnnouncedHost::Named(host) = &node.host else {
                continue;
            };
            let port = match (self.speaks_tls(), node.tls_port) {
                (true, Some(port)) => port,
                _ => node.port,
            };
            let translated = |host: &Arc<str>| {
                let host = Arc::clone(host);
                self.settings().translation.of(Endpoint { host, port })
            };
            let Endpoint { host, port: at } = translated(host);
            let others = node.other_hosts.iter().map(translated);
            let others = others.filter(|other| other.port == at);
            node.other_hosts = others.map(|other| other.host).collect();
            node.host = AnnouncedHost::Named(host);
            node.port = at;
            node.tls_port = None;
        }
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
        for index in members {
            self.publish_member(&mut known, index);
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
            self.retire_if_replaced(&known, &node);
        }
        drop(known);
        self.take_its_word(view);
        self.tell_state();
        self.version.send_modify(|version| *version += 1);
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
    fn retire_if_replaced(&self, known: &Known, node: &Arc<Node>) {
        let Some((_, member)) = known.topology.nth(node.number) else {
            return;
        };
        if self.routes.owns(node.number) {
            return;
        }
        let answers = node.client.state() == ConnectionState::Ready && !member.is_failing;
        // One that has never owned any imports its first, or is about to.
        let is_wanted = answers || !node.has_owned();
        if is_wanted && member.is_primary && member.is_present {
            node.lost_its_slots(clock::now());
            return;
        }
        if let Some(node) = self.routes.retire(node.number) {
            node.retire(!answers, &self.left_behind);
        }
    }

    /// Lets calls find a node, under the name and address that it has now.
    fn publish_member(&self, known: &mut Known, index: MemberIndex) {
        let member = known.topology.member(index);
        let facts = self.facts_of(member);
        if let Some(old) = self.routes.settle(index.number(), facts) {
            old.retire(false, &self.left_behind);
        }
    }

    fn facts_of(&self, member: &Member) -> Option<MemberFacts> {
        let endpoint = member.endpoint.clone()?;
        Some(MemberFacts {
            id: member.id.clone()?,
            name_in_certificate: self.name_in_certificate(&endpoint, member.hostname.as_ref()),
            endpoint,
        })
    }

    /// The name that a certificate is expected to carry where the host is a bare IP address: the
    /// announced host name, else the first name among the seeds, by which a person knows the
    /// cluster. `None`: the host itself.
    pub(super) fn name_in_certificate(
        &self,
        endpoint: &Endpoint,
        hostname: Option<&Arc<str>>,
    ) -> Option<Arc<str>> {
        if is_name(&endpoint.host) {
            return None;
        }
        let of_seed = || {
            let seed = self.seeds.iter().find(|seed| is_name(&seed.host));
            seed.map(|seed| Arc::clone(&seed.host))
        };
        hostname
            .filter(|name| is_name(name))
            .cloned()
            .or_else(of_seed)
    }

    fn name_nodes(&self, known: &Known) {
        for node in self.routes.nodes() {
            if let Some((index, _)) = known.topology.nth(node.number) {
                node.name(&ranges(&known.topology, index));
            }
        }
    }

    /// The slots of the node at this place, for people.
    pub(super) fn slots_of(&self, number: u16) -> String {
        let known = self.known.lock();
        let index = known.topology.nth(number).map(|(index, _)| index);
        index.map_or_else(String::new, |index| ranges(&known.topology, index))
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

    /// The place of a slot's owner.
    pub(crate) fn number_of(&self, slot: Slot) -> Option<u16> {
        self.routes.owner(slot)
    }

    /// The address of a slot's owner.
    pub(crate) fn address_of(&self, slot: Slot) -> Option<String> {
        let place = self.routes.place(self.routes.owner(slot)?)?;
        let member = place.member.as_ref()?;
        Some(member.endpoint.to_string())
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

/// The most ranges that are told of one node.
const RANGES: usize = 8;

fn ranges(topology: &Topology, index: MemberIndex) -> String {
    let ranges = topology.slots_of(index);
    let mut told: Vec<String> = ranges
        .iter()
        .take(RANGES)
        .map(ToString::to_string)
        .collect();
    if ranges.len() > RANGES {
        told.push(format!("and {} ranges more", ranges.len() - RANGES));
    }
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use steadfast_core::redirect::Routing;
    use steadfast_core::report::ClusterReport;
    use steadfast_core::topology::Explained;

    use super::*;

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
        let nodes = redis::Value::BulkString(text.into());
        let now = clock::now();
        let view = View {
            by: None,
            host: "127.0.0.1".into(),
            asked: now,
            heard: now,
            tls: false,
            report: ClusterReport::read_nodes(&nodes).expect("it can be read"),
            info: None,
        };
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
        let nodes = redis::Value::BulkString(text.into());
        let now = clock::now();
        let mut view = View {
            by: NodeId::new(other.id()),
            host: "127.0.0.1".into(),
            asked: now,
            heard: now,
            tls: false,
            report: ClusterReport::read_nodes(&nodes).expect("it can be read"),
            info: None,
        };
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
