//! The owners of slots in a cluster, and whether its nodes agree on them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use steadfast_core::report::{ClusterReport, ReportedRole};
use steadfast_core::slot::{Slot, SlotRange};

use super::{Cluster, ClusterNode, failed};
use crate::process::ProcessError;

/// The roles and slots of all nodes. Where nodes are does not belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// The nodes by their ids.
    pub nodes: BTreeMap<String, LayoutNode>,
}

/// A node's part in a [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LayoutNode {
    /// The id of its primary; of a primary none.
    pub replica_of: Option<String>,
    /// The slots that it owns, as ranges with both ends included, in their order.
    pub slots: Vec<(u16, u16)>,
}

impl Layout {
    /// The id of the node that owns a slot, if one does.
    #[must_use]
    pub fn owner(&self, slot: u16) -> Option<&str> {
        let mut nodes = self.nodes.iter();
        let owner = nodes.find(|(_, node)| {
            let mut ranges = node.slots.iter();
            ranges.any(|(first, last)| (*first..=*last).contains(&slot))
        });
        owner.map(|(id, _)| id.as_str())
    }

    /// The slots of a node, one by one.
    #[must_use]
    pub fn slots_of(&self, id: &str) -> Vec<u16> {
        let ranges = self.nodes.get(id).map(|node| node.slots.as_slice());
        let ranges = ranges.unwrap_or_default().iter();
        ranges.flat_map(|(first, last)| *first..=*last).collect()
    }

    /// Whether a node is a primary, with slots or without.
    #[must_use]
    pub fn is_primary(&self, id: &str) -> bool {
        let node = self.nodes.get(id);
        node.is_some_and(|node| node.replica_of.is_none())
    }

    fn of(report: &ClusterReport) -> Result<Self, ProcessError> {
        if let Some(fault) = &report.faults.first {
            return Err(failed(fault.to_string()));
        }
        let mut layout = Self::default();
        for node in &report.nodes {
            let id = |id: &steadfast_core::node::NodeId| id.as_str().to_owned();
            let slots = node.slots.iter().flat_map(|range| range.slots());
            let mut slots: Vec<Slot> = slots.collect();
            slots.sort_unstable();
            let range = |range: &SlotRange| (range.first().number(), range.last().number());
            let entry = LayoutNode {
                replica_of: match &node.role {
                    ReportedRole::Primary => None,
                    ReportedRole::Replica(of) => of.as_ref().map(id),
                },
                slots: SlotRange::join(slots).iter().map(range).collect(),
            };
            let own = node.id.as_ref().map(id).unwrap_or_default();
            layout.nodes.insert(own, entry);
        }
        Ok(layout)
    }
}

impl Cluster {
    /// Waits until all nodes that are awake agree, with no slot on its way, and tells on what.
    ///
    /// # Errors
    /// [`ProcessError::Silent`] when they do not within a minute.
    pub async fn layout(&self) -> Result<Layout, ProcessError> {
        self.agree().await?;
        let nodes = self.awake();
        let node = nodes.first().ok_or_else(|| failed(NOBODY.into()))?;
        Layout::of(&report(node).await?)
    }

    /// Waits until all nodes that are awake agree on who owns what, with no slot on its way.
    ///
    /// # Errors
    /// [`ProcessError::Silent`] when they do not within a minute.
    pub async fn agree(&self) -> Result<(), ProcessError> {
        self.until("all nodes agree", || self.is_agreed()).await
    }

    /// The position of the node that owns a slot, by the word of all that are awake.
    ///
    /// # Errors
    /// As [`Cluster::layout`]; nobody owns it.
    pub async fn owner(&self, slot: u16) -> Result<usize, ProcessError> {
        let layout = self.layout().await?;
        let owner = layout.owner(slot).and_then(|id| self.position(id));
        owner.ok_or_else(|| failed(format!("no node owns slot {slot}")))
    }

    /// The positions of the replicas of a node.
    ///
    /// # Errors
    /// As [`Cluster::layout`].
    pub async fn replicas_of(&self, at: usize) -> Result<Vec<usize>, ProcessError> {
        let (layout, primary) = (self.layout().await?, self.node(at));
        let nodes = layout.nodes.iter();
        let replicas = nodes.filter(|(_, node)| node.replica_of.as_deref() == Some(primary.id()));
        Ok(replicas.filter_map(|(id, _)| self.position(id)).collect())
    }

    /// The position of the node with an id.
    #[must_use]
    pub fn position(&self, id: &str) -> Option<usize> {
        self.lock().iter().position(|node| node.id() == id)
    }

    pub(super) async fn is_agreed(&self) -> Result<bool, ProcessError> {
        let members = self.nodes().len();
        let mut agreed = None;
        for node in self.awake() {
            let report = report(&node).await?;
            let moving = report.nodes.iter().any(|node| !node.migrations.is_empty());
            let layout = Layout::of(&report)?;
            let differs = agreed.as_ref().is_some_and(|agreed| *agreed != layout);
            if moving || differs || layout.nodes.len() != members {
                return Ok(false);
            }
            agreed = Some(layout);
        }
        Ok(agreed.is_some())
    }
}

/// Asks a node what it says of all.
pub(super) async fn report(node: &ClusterNode) -> Result<ClusterReport, ProcessError> {
    let reply = node.command(&["CLUSTER", "NODES"]).await?;
    ClusterReport::read_nodes(&reply).map_err(|error| failed(error.to_string()))
}

pub(super) const NOBODY: &str = "no node is awake";
