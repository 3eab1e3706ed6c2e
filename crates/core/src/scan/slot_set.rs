//! A set of slots, as large as all of them.

use std::fmt;

use crate::slot::{SLOTS, Slot, SlotRange};

/// Some of the slots.
#[derive(Clone)]
pub(super) struct SlotSet(Vec<u64>);

impl SlotSet {
    pub(super) fn new() -> Self {
        Self(vec![0; usize::from(SLOTS) / 64])
    }

    pub(super) fn full() -> Self {
        Self(vec![u64::MAX; usize::from(SLOTS) / 64])
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.0[slot.index() / 64] & (1 << (slot.index() % 64)) != 0
    }

    pub(super) fn insert(&mut self, slot: Slot) {
        self.0[slot.index() / 64] |= 1 << (slot.index() % 64);
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        self.0[slot.index() / 64] &= !(1 << (slot.index() % 64));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> {
        (0..).zip(&self.0).flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = u16::try_from(left.trailing_zeros()).ok()?;
                // Of no slot any more: the word is empty.
                let slot = Slot::new(64_u16 * at + bit).filter(|_| left != 0)?;
                left &= left - 1;
                Some(slot)
            })
        })
    }

    pub(super) fn retain(&mut self, wanted: impl Fn(Slot) -> bool) {
        let all = self.clone();
        for slot in all.iter().filter(|slot| !wanted(*slot)) {
            self.remove(slot);
        }
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        let words = self.0.iter_mut().zip(&other.0);
        words.for_each(|(all, taken)| *all &= !taken);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = SlotRange::join(self.iter());
        f.debug_list()
            .entries(ranges.iter().map(ToString::to_string))
            .finish()
    }
}
