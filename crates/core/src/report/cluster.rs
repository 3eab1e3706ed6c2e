//! The nodes of a cluster and their slots, from any of the three commands that tell them.
//!
//! Only `CLUSTER NODES` tells the epoch of each node, by which two answers can be compared; so it
//! is the one to ask. `CLUSTER SHARDS` and `CLUSTER SLOTS` are read for servers that do not allow
//! it: there the cluster's own epoch, from `CLUSTER INFO`, has to do.

mod nodes;
mod shards;
mod slots;

use std::collections::HashMap;
use std::sync::Arc;

use super::info::need;
use super::reader::{Faults, ReportError, parse};
use crate::node::{AnnouncedHost, MAX_NODES, NodeId};
use crate::slot::{SLOTS, Slot, SlotRange};

/// The nodes that one node of a cluster knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterReport {
    /// The nodes, each once.
    pub nodes: Vec<ReportedNode>,
    /// The entries that could not be read.
    pub faults: Faults,
    /// Every node of the cluster is told, so that one which is not is gone. Slot maps leave out
    /// primaries without slots and replicas that were not heard of.
    pub is_exhaustive: bool,
}

/// A node of a cluster, as one node describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedNode {
    /// The identity. `None` from servers before 4.0, whose slot maps do not tell it.
    pub id: Option<NodeId>,
    /// The host to dial.
    pub host: AnnouncedHost,
    /// The host name that the node announces besides, for the verification of its certificate.
    pub hostname: Option<Arc<str>>,
    /// The hosts besides by which redirects may name the node, on the same port.
    pub other_hosts: Vec<Arc<str>>,
    /// The port to dial.
    pub port: u16,
    /// The port for TLS, where it is told apart.
    pub tls_port: Option<u16>,
    /// Whether the node is a primary.
    pub role: ReportedRole,
    /// The epoch of the node's configuration (of its primary's, for a replica). Only `CLUSTER
    /// NODES` tells it.
    pub epoch: Option<u64>,
    /// The node is the one that was asked.
    pub is_myself: bool,
    /// The node that was asked thinks that this one does not serve.
    pub is_failing: bool,
    /// Most primaries agree on that.
    pub is_failed: bool,
    /// The slots that the node owns.
    pub slots: Vec<SlotRange>,
    /// The slots that are moving from or to this node. Only a node itself tells of its own.
    pub migrations: Vec<Migration>,
}

/// The role of a node in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportedRole {
    /// The node owns slots, or may.
    Primary,
    /// The node follows another, if that one is told.
    Replica(Option<NodeId>),
}

/// A slot on its way between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The slot.
    pub slot: Slot,
    /// The direction, seen from the node that tells.
    pub kind: MigrationKind,
    /// The node at the other end.
    pub other: NodeId,
}

/// The direction of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationKind {
    /// The slot leaves the node.
    Migrating,
    /// The slot comes to the node.
    Importing,
}

const NODES: &str = "CLUSTER NODES";

const SHARDS: &str = "CLUSTER SHARDS";

const SLOT_MAP: &str = "CLUSTER SLOTS";

const INFO: &str = "CLUSTER INFO";

/// The most ranges of one report: each slot by itself.
const MAX_RANGES: usize = SLOTS as usize;

impl ClusterReport {
    /// Takes from another report of the same moment which endpoints nodes want to be dialled at:
    /// `CLUSTER NODES` tells their IP addresses, whatever `cluster-preferred-endpoint-type` says.
    /// The addresses stay known as those that redirects may name.
    pub fn prefer_endpoints_of(&mut self, other: &Self) {
        let others = other.nodes.iter();
        let by_id: HashMap<&NodeId, &ReportedNode> = others
            .filter_map(|node| Some((node.id.as_ref()?, node)))
            .collect();
        for node in &mut self.nodes {
            let preferred = node.id.as_ref().and_then(|id| by_id.get(id));
            let Some(preferred) = preferred.filter(|one| one.host != AnnouncedHost::Unknown) else {
                continue;
            };
            let before = std::mem::replace(&mut node.host, preferred.host.clone());
            if node.host == before {
                continue;
            }
            if let AnnouncedHost::Named(host) = before {
                node.other_hosts.push(host);
            }
            node.hostname = node.hostname.take().or_else(|| preferred.hostname.clone());
        }
    }

    /// Returns the node at this place by its own report, that of a server which was asked there.
    pub fn node_at(&self, host: &Arc<str>, port: u16, tls: bool) -> Option<&ReportedNode> {
        self.nodes.iter().find(|node| {
            let own_port = node.tls_port.filter(|_| tls).unwrap_or(node.port);
            own_port == port && node.host.resolve(host).as_ref() == Some(host)
        })
    }
}

/// Gathers nodes, each of which may be told several times (once for each range, in `CLUSTER
/// SLOTS`).
struct Builder {
    command: &'static str,
    report: ClusterReport,
    known: HashMap<String, usize>,
    ranges: usize,
}

impl Builder {
    fn new(command: &'static str) -> Self {
        Self {
            command,
            report: ClusterReport {
                is_exhaustive: command == NODES,
                ..ClusterReport::default()
            },
            known: HashMap::new(),
            ranges: 0,
        }
    }

    fn add(&mut self, node: Result<ReportedNode, ReportError>) -> Result<(), ReportError> {
        let Some(node) = self.report.faults.sort_out(node) else {
            return Ok(());
        };
        self.ranges += node.slots.len();
        if self.ranges > MAX_RANGES {
            let problem = "are more than there are slots";
            return Err(ReportError::new(self.command, "the ranges", problem));
        }
        let name = match &node.id {
            Some(id) => id.to_string(),
            None => format!("{:?} {}", node.host, node.port),
        };
        let nodes = &mut self.report.nodes;
        match self.known.get(&name) {
            Some(&at) => {
                let known = &mut nodes[at];
                known.slots.extend(node.slots);
                // It owns slots in another entry.
                if node.role == ReportedRole::Primary {
                    known.role = ReportedRole::Primary;
                }
            }
            None if nodes.len() == MAX_NODES => {
                let problem = "are more than 1024";
                return Err(ReportError::new(self.command, "the nodes", problem));
            }
            None => {
                self.known.insert(name, nodes.len());
                nodes.push(node);
            }
        }
        Ok(())
    }

    fn finish(self) -> ClusterReport {
        self.report
    }
}

/// The host name, by which a redirect may name a node where another host is preferred.
fn other_hosts(hostname: Option<&str>) -> Vec<Arc<str>> {
    hostname.into_iter().map(Into::into).collect()
}

/// The part of `CLUSTER INFO` that says whether a node's view can be believed, and how old it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// The node serves (`cluster_state:ok`). One in a minority does not.
    pub is_ok: bool,
    /// The highest epoch that the node knows.
    pub current_epoch: u64,
    /// The epoch of the node's own configuration, or of its primary's.
    pub my_epoch: u64,
    /// The number of slots that have an owner.
    pub slots_assigned: u16,
}

impl ClusterInfo {
    /// Reads the text of `CLUSTER INFO`.
    ///
    /// # Errors
    /// A field is missing or malformed.
    pub fn read(text: &str) -> Result<Self, ReportError> {
        let number = |name| parse(INFO, name, need(INFO, text, name)?);
        Ok(Self {
            is_ok: need(INFO, text, "cluster_state")? == "ok",
            current_epoch: number("cluster_current_epoch")?,
            my_epoch: number("cluster_my_epoch")?,
            slots_assigned: parse(
                INFO,
                "cluster_slots_assigned",
                need(INFO, text, "cluster_slots_assigned")?,
            )?,
        })
    }
}
