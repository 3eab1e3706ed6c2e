//! The owners of the slots of a cluster, from answers of different nodes and different age.
//!
//! Nodes learn of changes from each other, one after the other; so at any moment some of them are
//! wrong, and one that was cut off may have been wrong for long. A client that believes whoever
//! answers last undoes with an old view what a redirect has just taught it. So answers are not
//! stored but *merged*, slot by slot:
//!
//! - The claim with the higher epoch wins. The epoch of a node rises with each failover and each
//!   slot that it takes over, so the new owner of a slot has a higher one than the old owner had.
//! - At the same epoch the owner's own word decides, or two nodes that say the same.
//! - A redirect of the owner is its own word: it changes the slot at once, and no answer that was
//!   asked for before it counts for that slot.
//! - A slot passes from one primary to another by the word of either. In Redis 7.0 a third node
//!   goes on believing that a slot belongs to a node which gave it away and has since got a higher
//!   epoch for another reason; by the epochs alone that belief would win. So what others say of a
//!   primary is *disputed*: a reason to ask it. A replica that has been promoted is believed at
//!   once, by anybody's word.
//! - A node that does not serve (`cluster_state:fail`) is not believed at all.
//!
//! Time is handed in. An answer may be as old as its question: so it counts as of when it was
//! `asked` against what was heard meanwhile, and what is known counts as of when it was `heard`.

mod gate;
mod merge;
mod order;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

pub use self::gate::{DiscoveryGate, DiscoveryGateConfig, Explained, Trigger};
pub use self::merge::{Changes, Ignored, View};
pub use self::order::{Passage, Resubmission, SlotGate, UnderWay};
use crate::node::{Endpoint, MAX_NODES, NodeId};
use crate::redirect::Redirect;
use crate::slot::{SLOTS, Slot, SlotRange};

/// The nodes of a cluster and the owner of each slot, as far as is known. Takes about 1 MiB.
#[derive(Debug)]
pub struct Topology {
    members: Vec<Member>,
    by_id: HashMap<NodeId, MemberIndex>,
    slots: Vec<SlotState>,
    current_epoch: u64,
}

/// The place of a member in its [`Topology`]. It stays the same for as long as the topology lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberIndex(u16);

impl MemberIndex {
    /// Returns the place as a number below [`MAX_NODES`].
    pub fn number(self) -> u16 {
        self.0
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The identity. `None` of a node of which only a redirect has told: it is not in service until
    /// a view names it.
    pub id: Option<NodeId>,
    /// The endpoint to dial. `None` if nobody knows it.
    pub endpoint: Option<Endpoint>,
    /// The endpoints besides by which redirects may name it: its IP address where a name is
    /// dialled, its host name where an address is.
    pub other_endpoints: Vec<Endpoint>,
    /// The host name that the node announces for the verification of its certificate.
    pub hostname: Option<Arc<str>>,
    /// The primary that this node follows. `None` of a primary, and where it is not told.
    pub follows: Option<NodeId>,
    /// The node owns slots, or may.
    pub is_primary: bool,
    /// Whether another node thinks that this one does not serve.
    pub is_failing: bool,
    /// Whether most primaries agree on that.
    pub is_failed: bool,
    /// The newest view that could tell of this node does.
    pub is_present: bool,
    epoch: Option<u64>,
    /// When the question was sent whose answer told the endpoint.
    located: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct SlotState {
    owner: Option<MemberIndex>,
    /// The epoch of the owner, where it is told.
    epoch: Option<u64>,
    /// The cluster's epoch by the view that told of the owner.
    cluster_epoch: Option<u64>,
    /// The node that gave the slot away by its own word.
    disowned_by: Option<MemberIndex>,
    /// Since when the owner is known.
    since: Option<Instant>,
    /// When a redirect told of the owner.
    redirected: Option<Instant>,
    /// A second owner by one node's word, at the same epoch.
    rival: Option<Rival>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rival {
    owner: MemberIndex,
    by: Option<MemberIndex>,
}

/// The consequence of a MOVED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// The slot has this owner from now on.
    Patched(MemberIndex),
    /// The slot was known to have this owner already.
    Known(MemberIndex),
    /// The redirect is older than what is known, or comes from a node that does not own the slot.
    /// The command may follow it, but the slot stays as it is until a view tells.
    Hint,
    /// The redirect points to the node that sent it: its name leads to another server now, and the
    /// connection is to be replaced.
    ToItself,
    /// The redirect names no host that can be dialled, or one node too many.
    Nowhere,
}

impl Default for Topology {
    fn default() -> Self {
        Self::new()
    }
}

impl Topology {
    /// Returns a topology that knows no node.
    pub fn new() -> Self {
        Self {
            members: Vec::new(),
            by_id: HashMap::new(),
            slots: vec![SlotState::default(); usize::from(SLOTS)],
            current_epoch: 0,
        }
    }

    /// Returns the owner of a slot.
    pub fn owner(&self, slot: Slot) -> Option<MemberIndex> {
        self.slots[slot.index()].owner
    }

    /// Returns a node.
    pub fn member(&self, index: MemberIndex) -> &Member {
        &self.members[index.index()]
    }

    /// Returns the node of this identity.
    pub fn find(&self, id: &NodeId) -> Option<MemberIndex> {
        self.by_id.get(id).copied()
    }

    /// Returns the node at this place, if there is one.
    pub fn nth(&self, number: u16) -> Option<(MemberIndex, &Member)> {
        let member = self.members.get(usize::from(number))?;
        Some((MemberIndex(number), member))
    }

    /// Returns the node at an endpoint, by whichever of its names: one that a view names rather
    /// than one that it does not, the latest told of first.
    pub fn find_at(&self, endpoint: &Endpoint) -> Option<MemberIndex> {
        self.at(endpoint)
    }

    /// Returns all nodes that were ever told of and not forgotten, also those that no view names
    /// any more: they stay candidates for discovery.
    pub fn members(&self) -> impl Iterator<Item = (MemberIndex, &Member)> {
        let index = |at| MemberIndex(u16::try_from(at).unwrap_or(u16::MAX));
        let members = self.members.iter().enumerate();
        members.map(move |(at, member)| (index(at), member))
    }

    /// Returns the slots of a node.
    pub fn slots_of(&self, owner: MemberIndex) -> Vec<SlotRange> {
        self.ranges(|state| state.owner == Some(owner))
    }

    /// Returns all nodes that own slots.
    pub fn owners(&self) -> BTreeSet<MemberIndex> {
        let slots = self.slots.iter();
        slots.filter_map(|state| state.owner).collect()
    }

    /// Returns the slots without an owner: none if the cluster is covered.
    pub fn uncovered(&self) -> Vec<SlotRange> {
        self.ranges(|state| state.owner.is_none())
    }

    /// Returns since when the owner of a slot is known.
    pub fn owned_since(&self, slot: Slot) -> Option<Instant> {
        self.slots[slot.index()].since
    }

    /// Returns the highest epoch that any view has told.
    pub fn current_epoch(&self) -> u64 {
        self.current_epoch
    }

    fn ranges(&self, wanted: impl Fn(&SlotState) -> bool) -> Vec<SlotRange> {
        let slots = SlotRange::all().slots();
        SlotRange::join(slots.filter(|slot| wanted(&self.slots[slot.index()])))
    }

    /// Takes in a MOVED that a node, reached under the host `asked`, has sent in answer to a
    /// command that was `sent` then.
    pub fn moved(
        &mut self,
        by: MemberIndex,
        redirect: &Redirect,
        asked: &Arc<str>,
        sent: Instant,
        now: Instant,
    ) -> Moved {
        let Some(endpoint) = redirect.endpoint(asked) else {
            return Moved::Nowhere;
        };
        let target = self.at(&endpoint);
        if target == Some(by) {
            return Moved::ToItself;
        }
        let state = &self.slots[redirect.slot.index()];
        if target.is_some() && state.owner == target {
            return Moved::Known(target.unwrap_or(by));
        }
        if state.owner != Some(by) || state.since.is_some_and(|since| sent < since) {
            return Moved::Hint;
        }
        let Some(target) = target.or_else(|| self.add(None, endpoint, sent)) else {
            return Moved::Nowhere;
        };
        let epoch = self.members[target.index()].epoch;
        let state = &mut self.slots[redirect.slot.index()];
        *state = SlotState {
            owner: Some(target),
            epoch: state.epoch.max(epoch),
            cluster_epoch: state.cluster_epoch,
            disowned_by: Some(by),
            since: Some(now),
            redirected: Some(now),
            rival: None,
        };
        Moved::Patched(target)
    }

    /// The node at an endpoint: one that a view names rather than one that it does not, one that is
    /// dialled there rather than one that has that name besides, the latest told of first.
    fn at(&self, endpoint: &Endpoint) -> Option<MemberIndex> {
        self.members()
            .filter_map(|(index, member)| {
                let is_dialled = member.endpoint.as_ref() == Some(endpoint);
                let is_there = is_dialled || member.other_endpoints.contains(endpoint);
                is_there.then_some((index, member, is_dialled))
            })
            .max_by_key(|(_, member, is_dialled)| (member.is_present, *is_dialled, member.located))
            .map(|(index, ..)| index)
    }

    /// Adds a node, in the place of one that is gone if there is no other. `None` if all places are
    /// taken.
    fn add(
        &mut self,
        id: Option<NodeId>,
        endpoint: impl Into<Option<Endpoint>>,
        located: Instant,
    ) -> Option<MemberIndex> {
        let member = Member {
            id: id.clone(),
            endpoint: endpoint.into(),
            other_endpoints: Vec::new(),
            hostname: None,
            follows: None,
            is_primary: true,
            is_failing: false,
            is_failed: false,
            is_present: true,
            epoch: None,
            located,
        };
        let index = if self.members.len() < MAX_NODES {
            self.members.push(member);
            MemberIndex(u16::try_from(self.members.len() - 1).ok()?)
        } else {
            let index = self.replaceable()?;
            if let Some(id) = &self.members[index.index()].id {
                self.by_id.remove(id);
            }
            for state in &mut self.slots {
                state.disowned_by.take_if(|node| *node == index);
                state.rival = None;
            }
            self.members[index.index()] = member;
            index
        };
        if let Some(id) = id {
            self.by_id.insert(id, index);
        }
        Some(index)
    }

    /// A node that no view names and that owns nothing.
    fn replaceable(&self) -> Option<MemberIndex> {
        let mut owns = vec![false; self.members.len()];
        for owner in self.slots.iter().filter_map(|state| state.owner) {
            owns[owner.index()] = true;
        }
        self.members()
            .filter(|(index, member)| !member.is_present && !owns[index.index()])
            .min_by_key(|(_, member)| member.located)
            .map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests;
