//! What a redirect says of the cluster, and where it leads.

use std::time::Instant;

use steadfast_core::node::Endpoint;
use steadfast_core::redirect::{Redirect, Routing};
use steadfast_core::report::{Migration, MigrationKind};
use steadfast_core::topology::{MemberIndex, Moved, Trigger, View};

use crate::client::cluster::node::Node;
use crate::client::cluster::{Aim, Cluster, Known};
use crate::clock;

impl Cluster {
    /// Takes in a MOVED that a node has answered to a command which was `sent` then. Returns where
    /// the command goes on; `None` if nobody knows yet.
    pub(in crate::client::cluster) fn moved(
        &self,
        by: &Node,
        redirect: &Redirect,
        sent: Instant,
    ) -> Option<Aim> {
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
        let left = match moved {
            Moved::Patched(target) => self.publish_member(&mut known, target),
            _ => None,
        };
        let owner = known.topology.owner(redirect.slot);
        let trigger = match moved {
            Moved::Known(_) => None,
            Moved::Patched(target) if known.topology.member(target).id.is_some() => {
                Some(Trigger::Patched)
            }
            _ => Some(Trigger::Contradiction),
        };
        drop(known);
        // Who has told of the new owner before may not have come to hand the slot over yet: a
        // command that went by the routes would go to the old owner again, and use up its redirects
        // there.
        let routed = self.routes.owner(redirect.slot);
        if owner.map(MemberIndex::number) != routed {
            self.hand_over([redirect.slot]);
        }
        if let Some(trigger) = trigger {
            self.trigger(trigger);
        }
        if let Some(left) = left {
            left.tell();
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
    pub(in crate::client::cluster) fn pointed(
        &self,
        by: &Node,
        redirect: &Redirect,
    ) -> Option<Aim> {
        self.trigger(Trigger::Doubt);
        let endpoint = self.translated(redirect).endpoint(&by.endpoint().host)?;
        Some(Aim::At {
            endpoint,
            asking: false,
        })
    }

    /// Whether this is a redirect to the node that was asked.
    pub(in crate::client::cluster) fn leads_to(&self, routing: &Routing, asked: &Node) -> bool {
        let (Routing::Moved(redirect) | Routing::Ask(redirect)) = routing else {
            return false;
        };
        let at = asked.endpoint();
        let named = self.translated(redirect).endpoint(&at.host);
        named.is_some_and(|named| named == at || self.find_at(&named) == Some(asked.number))
    }

    /// Notes that a node has said by an ASK just now where a slot goes.
    pub(in crate::client::cluster) fn note_ask(&self, by: &Node, redirect: &Redirect) {
        let named = self.translated(redirect).endpoint(&by.endpoint().host);
        let endpoint = named.or_else(|| self.importing(by, redirect));
        if let Some(to) = endpoint.and_then(|endpoint| self.find_at(&endpoint)) {
            self.asked.note(redirect.slot, to, clock::now());
        }
    }

    /// Returns where a command goes that was answered ASK.
    pub(in crate::client::cluster) fn asked(&self, by: &Node, redirect: &Redirect) -> Option<Aim> {
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
    pub(super) fn importing(&self, by: &Node, redirect: &Redirect) -> Option<Endpoint> {
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
    pub(crate) fn to_be_asked(&self) -> Vec<Endpoint> {
        let mut known = self.known.lock();
        let ids = std::mem::take(&mut known.to_ask).into_iter();
        let members = ids.filter_map(|id| known.topology.find(&id));
        let endpoint = |at| known.topology.member(at).endpoint.clone();
        members.filter_map(endpoint).collect()
    }

    /// Notes which slots the node that has answered says are on their way.
    pub(super) fn note_migrations(known: &mut Known, view: &View) {
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
    pub(crate) fn find_at(&self, endpoint: &Endpoint) -> Option<u16> {
        let known = self.known.lock();
        known.topology.find_at(endpoint).map(MemberIndex::number)
    }
}
