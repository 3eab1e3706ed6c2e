//! The names and addresses of nodes, and what is said of their slots.

use std::sync::Arc;

use steadfast_core::node::{AnnouncedHost, Endpoint};
use steadfast_core::redirect::Redirect;
use steadfast_core::report::ClusterReport;
use steadfast_core::slot::Slot;
use steadfast_core::topology::{Member, MemberIndex, Topology};

use crate::client::cluster::node::Farewell;
use crate::client::cluster::whereabouts::MemberFacts;
use crate::client::cluster::{Cluster, Known};
use crate::resolve::is_name;

impl Cluster {
    /// Lets calls find a node, under the name and address that it has now. Another that was at its
    /// place is left.
    pub(super) fn publish_member(&self, known: &mut Known, index: MemberIndex) -> Option<Farewell> {
        let member = known.topology.member(index);
        let facts = self.facts_of(member);
        let old = self.routes.settle(index.number(), facts)?;
        Some(old.retire(false, &self.left_behind))
    }

    pub(super) fn facts_of(&self, member: &Member) -> Option<MemberFacts> {
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
    pub(crate) fn name_in_certificate(
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

    pub(super) fn name_nodes(&self, known: &Known) {
        for node in self.routes.nodes() {
            if let Some((index, _)) = known.topology.nth(node.number) {
                node.name(&ranges(&known.topology, index));
            }
        }
    }

    /// The slots of the node at this place, for people.
    pub(crate) fn slots_of(&self, number: u16) -> String {
        let known = self.known.lock();
        let index = known.topology.nth(number).map(|(index, _)| index);
        index.map_or_else(String::new, |index| ranges(&known.topology, index))
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

    pub(crate) fn translated(&self, redirect: &Redirect) -> Redirect {
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
    pub(crate) fn translate(&self, report: &mut ClusterReport) {
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
