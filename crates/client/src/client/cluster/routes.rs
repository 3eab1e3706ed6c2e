//! The owner of each slot: looked up by every call, without a lock that others wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use steadfast_core::node::MAX_NODES;
use steadfast_core::slot::{SLOTS, Slot};

use super::node::{MemberFacts, Node};

/// No owner is known.
const NOBODY: u16 = u16::MAX;

/// See the module.
pub(super) struct Routes {
    /// The place of each slot's owner.
    slots: Box<[AtomicU16]>,
    places: Box<[RwLock<Place>]>,
}

/// A node, and what there is of it.
#[derive(Default)]
pub(super) struct Place {
    pub(super) member: Option<MemberFacts>,
    /// `None` before the first call to it.
    pub(super) node: Option<Arc<Node>>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Routes")
    }
}

impl Routes {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| AtomicU16::new(NOBODY)).collect(),
            places: (0..MAX_NODES).map(|_| RwLock::default()).collect(),
        }
    }

    /// Returns the place of the slot's owner.
    #[inline]
    pub(super) fn owner(&self, slot: Slot) -> Option<u16> {
        let owner = self.slots[usize::from(slot.number())].load(Ordering::Relaxed);
        (owner != NOBODY).then_some(owner)
    }

    pub(super) fn set_owner(&self, slot: Slot, owner: u16) {
        self.slots[usize::from(slot.number())].store(owner, Ordering::Relaxed);
    }

    /// Returns the node at this place, if it was started.
    #[inline]
    pub(super) fn node(&self, number: u16) -> Option<Arc<Node>> {
        self.place(number).and_then(|place| place.node.clone())
    }

    pub(super) fn place(&self, number: u16) -> Option<RwLockReadGuard<'_, Place>> {
        let place = self.places.get(usize::from(number))?;
        Some(place.read())
    }

    /// Returns the node at this place, and starts it before if need be.
    pub(super) fn started<E>(
        &self,
        number: u16,
        start: impl FnOnce(MemberFacts) -> Result<Arc<Node>, E>,
    ) -> Result<Option<Arc<Node>>, E> {
        let Some(place) = self.places.get(usize::from(number)) else {
            return Ok(None);
        };
        let mut place = place.write();
        if place.node.is_none()
            && let Some(member) = place.member.clone()
        {
            place.node = Some(start(member)?);
        }
        Ok(place.node.clone())
    }

    /// Says who is at this place from now on. Returns the node that was, if it has to end.
    pub(super) fn settle(&self, number: u16, member: Option<MemberFacts>) -> Option<Arc<Node>> {
        let mut place = self.places.get(usize::from(number))?.write();
        if place.member == member {
            return None;
        }
        place.member = member;
        place.node.take()
    }

    /// Takes the node at this place out of service. It is started anew when it is needed again.
    pub(super) fn retire(&self, number: u16) -> Option<Arc<Node>> {
        self.places.get(usize::from(number))?.write().node.take()
    }

    /// Returns all nodes that were started.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        let nodes = self.places.iter();
        nodes
            .filter_map(|place| place.read().node.clone())
            .collect()
    }

    /// Returns the places of all owners, each once.
    pub(super) fn owners(&self) -> Vec<u16> {
        let mut owns = vec![false; MAX_NODES];
        for slot in &self.slots {
            if let Some(owns) = owns.get_mut(usize::from(slot.load(Ordering::Relaxed))) {
                *owns = true;
            }
        }
        let owners = (0..).zip(&owns).filter(|(_, owns)| **owns);
        owners.map(|(number, _)| number).collect()
    }

    /// Whether every slot has an owner.
    pub(super) fn is_covered(&self) -> bool {
        let unowned = |slot: &AtomicU16| slot.load(Ordering::Relaxed) == NOBODY;
        !self.slots.iter().any(unowned)
    }
}
