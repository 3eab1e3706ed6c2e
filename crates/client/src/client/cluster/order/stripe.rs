//! What is under way, and who waits, in the slots that share a lock.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::MutexGuard;
use smallvec::SmallVec;
use steadfast_core::slot::{KeySet, Slot};
use steadfast_core::topology::{Passage, SlotGate, UnderWay};
use tokio::sync::Notify;

use super::Entry;

pub(super) const STRIPES: usize = 256;

#[derive(Debug)]
pub(super) struct Stripe {
    pub(super) gate: SlotGate,
    /// In their order: the oldest mostly end first.
    pub(super) under_way: VecDeque<UnderWayIn>,
    /// Those of them that wait to be sent again.
    pub(super) turns: BTreeMap<(Slot, u64), Waiter>,
    /// New commands that wait for the gate, in their order.
    pub(super) line: VecDeque<Waiter>,
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) slot: Slot,
    pub(super) keys: KeySet,
    pub(super) number: u64,
    /// Its deadline: after that it keeps nobody waiting.
    pub(super) until: Instant,
    /// Told when it may be its turn.
    pub(super) wake: Arc<Notify>,
}

#[derive(Clone, Debug)]
pub(super) struct UnderWayIn {
    pub(super) command: u64,
    pub(super) entry: Entry,
}

pub(super) type Locks<'a> = SmallVec<[(usize, MutexGuard<'a, Stripe>); 1]>;

impl Stripe {
    /// Returns until when at most a new command has to wait for its slot, if it has to: that
    /// changes hands, or others of its keys wait for that who came before the one of this number.
    pub(super) fn halts(&mut self, entry: &Entry, number: u64, now: Instant) -> Option<Instant> {
        let of_slot = self.line.iter().filter(|one| one.slot == entry.slot);
        let before = of_slot.take_while(|one| one.number < number);
        let before = before.filter(|one| now < one.until && one.keys.share(&entry.keys));
        if let Some(until) = before.map(|one| one.until).max() {
            return Some(until);
        }
        if self.gate.is_calm() {
            return None;
        }
        match self.gate.pass(entry.slot, &entry.keys, now) {
            Passage::Until(until) => Some(until),
            Passage::Open => None,
        }
    }

    /// Tells new commands of this slot that had to wait for these keys to look again.
    pub(super) fn wake(&self, slot: Slot, keys: &KeySet) {
        wake_first(self.line.iter().filter(|one| one.slot == slot), keys);
    }

    /// Tells the same to those that wait to be sent again.
    pub(super) fn wake_turns(&self, slot: Slot, keys: &KeySet) {
        let turns = self.turns.range((slot, 0)..=(slot, u64::MAX));
        wake_first(turns.map(|(_, one)| one), keys);
    }

    /// Closes the gate of a slot, if commands of it are under way.
    pub(super) fn close(&mut self, slot: Slot) {
        let of_slot = self.under_way.iter().filter(|one| one.entry.slot == slot);
        let of_slot = of_slot.map(|one| UnderWay {
            command: one.command,
            connection: one.entry.node.into(),
            keys: one.entry.keys.clone(),
            until: one.entry.until,
        });
        self.gate.close(slot, of_slot);
    }
}

/// Tells those that had to wait for these keys to look again: of each key the first, whom the
/// others wait for.
fn wake_first<'w>(waiting: impl Iterator<Item = &'w Waiter>, keys: &KeySet) {
    // Whoever has a key that an earlier one waits for waits behind that.
    let (mut ones, mut several) = (HashSet::new(), Vec::<&KeySet>::new());
    for one in waiting.filter(|one| one.keys.share(keys)) {
        let is_behind = several.iter().any(|before| before.share(&one.keys));
        if !is_behind && !matches!(&one.keys, KeySet::One(key) if ones.contains(key)) {
            one.wake.notify_one();
        }
        match &one.keys {
            // Nobody behind it is first.
            KeySet::Unknown => return,
            KeySet::One(_) if one.keys == *keys => return,
            KeySet::One(key) => drop(ones.insert(*key)),
            KeySet::Empty => {}
            KeySet::Several(_) => several.push(&one.keys),
        }
    }
}

pub(super) fn stripe_of(slot: Slot) -> usize {
    usize::from(slot.number()) % STRIPES
}

/// The stripe of a slot, which is locked.
pub(super) fn locked<'l>(locks: &'l mut Locks<'_>, slot: Slot) -> &'l mut Stripe {
    let at = stripe_of(slot);
    // They were sorted to be locked.
    let place = locks.binary_search_by_key(&at, |(stripe, _)| *stripe);
    &mut locks[place.unwrap_or_default()].1
}
