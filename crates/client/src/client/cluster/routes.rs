//! The owner of each slot: looked up by every call, without a lock that others wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use steadfast_core::node::MAX_NODES;
use steadfast_core::slot::{SLOTS, Slot};

use super::node::Node;
use super::whereabouts::MemberFacts;

/// No owner is known.
const NOBODY: u16 = u16::MAX;

/// See the module.
pub(super) struct Routes {
    /// The place of each slot's owner.
    slots: Box<[AtomicU16]>,
    /// The number of slots that each place owns.
    owned: Box<[AtomicU16]>,
    /// The number of slots that have an owner.
    covered: AtomicU16,
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
            owned: (0..MAX_NODES).map(|_| AtomicU16::new(0)).collect(),
            covered: AtomicU16::new(0),
            places: (0..MAX_NODES).map(|_| RwLock::default()).collect(),
        }
    }

    /// Returns the place of the slot's owner.
    #[inline]
    pub(super) fn owner(&self, slot: Slot) -> Option<u16> {
        let owner = self.slots[usize::from(slot.number())].load(Ordering::Relaxed);
        (owner != NOBODY).then_some(owner)
    }

    /// Gives a slot to the node at this place. Returns the place of the owner that was.
    pub(super) fn set_owner(&self, slot: Slot, owner: u16) -> Option<u16> {
        let slot = &self.slots[usize::from(slot.number())];
        let before = slot.swap(owner, Ordering::Relaxed);
        if let Some(owned) = self.owned.get(usize::from(owner)) {
            owned.fetch_add(1, Ordering::Relaxed);
        }
        match self.owned.get(usize::from(before)) {
            Some(owned) => drop(owned.fetch_sub(1, Ordering::Relaxed)),
            None => drop(self.covered.fetch_add(1, Ordering::Relaxed)),
        }
        (before != NOBODY).then_some(before)
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

    /// Says who is at this place from now on. Returns the node that was, if it has to end: the same
    /// one at another address goes on, with all that waits for it.
    pub(super) fn settle(&self, number: u16, member: Option<MemberFacts>) -> Option<Arc<Node>> {
        let mut place = self.places.get(usize::from(number))?.write();
        if place.member == member {
            return None;
        }
        let same = place.node.as_ref().zip(member.as_ref());
        let stays = same.filter(|(node, member)| node.id == member.id);
        let stays = stays.map(|(node, member)| node.relocate(member.clone()));
        place.member = member;
        match stays {
            Some(()) => None,
            None => place.node.take(),
        }
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
        let owned = (0..).zip(&self.owned);
        let owners = owned.filter(|(_, owned)| owned.load(Ordering::Relaxed) > 0);
        owners.map(|(number, _)| number).collect()
    }

    /// Whether the node at this place owns slots.
    pub(super) fn owns(&self, number: u16) -> bool {
        let owned = self.owned.get(usize::from(number));
        owned.is_some_and(|owned| owned.load(Ordering::Relaxed) > 0)
    }

    /// Whether every slot has an owner.
    pub(super) fn is_covered(&self) -> bool {
        self.covered.load(Ordering::Relaxed) == SLOTS
    }
}
