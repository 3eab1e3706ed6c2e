//! The line of new commands in front of the gates of their slots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use steadfast_core::slot::Slot;
use tokio::sync::Notify;

use super::room::{CallRoom, Room};
use super::stripe::{Locks, Waiter, locked};
use super::{Entry, InOrder, Slots};

/// The place of a new command among those that wait for the gates of its slots, until it is
/// dropped.
#[derive(Debug)]
pub(in crate::client::cluster) struct InLine<'a> {
    pub(super) order: &'a InOrder,
    pub(super) slots: Slots,
    pub(super) number: u64,
    pub(super) wake: Arc<Notify>,
    pub(super) room: Room<'a>,
}

impl InLine<'_> {
    /// Takes its places in the lines of these slots out: from now on each is apart from the others.
    /// `None` if as many wait as may.
    pub(in crate::client::cluster) fn divide(
        &mut self,
        slots: &[Slot],
    ) -> Option<BTreeMap<Slot, Self>> {
        let rooms = slots.iter().map(|_| self.order.room(self.room.of));
        let rooms: Option<Vec<_>> = rooms.collect();
        let apart = slots.iter().copied().zip(rooms?);
        let apart = apart.map(|(slot, room)| {
            let wake = Arc::new(Notify::new());
            let mut stripe = self.order.stripe(slot).lock();
            let is_it = |one: &&mut Waiter| one.number == self.number && one.slot == slot;
            if let Some(one) = stripe.line.iter_mut().find(is_it) {
                one.wake = Arc::clone(&wake);
            }
            let alone = Self {
                order: self.order,
                slots: Slots::from_buf([slot]),
                number: self.number,
                wake,
                room,
            };
            (slot, alone)
        });
        let apart: BTreeMap<_, _> = apart.collect();
        self.slots.retain(|slot| !apart.contains_key(slot));
        Some(apart)
    }

    /// Returns whether it waits for none.
    pub(in crate::client::cluster) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        for slot in &self.slots {
            let mut stripe = self.order.stripe(*slot).lock();
            let line = &mut stripe.line;
            let is_it = |one: &Waiter| one.number == self.number && one.slot == *slot;
            let left = line.iter().position(is_it).and_then(|at| line.remove(at));
            if let Some(left) = left {
                stripe.wake(*slot, &left.keys);
            }
        }
    }
}

impl InOrder {
    /// Gives a new command its place behind all that wait; `None` if as many wait as may.
    pub(super) fn line_up<'a, 'e>(
        &'a self,
        entries: impl Iterator<Item = &'e Entry>,
        of: Option<&'a CallRoom>,
        locks: &mut Locks<'_>,
    ) -> Option<InLine<'a>> {
        let room = self.room(of)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let wake = Arc::new(Notify::new());
        let mut slots = Slots::new();
        for entry in entries {
            slots.push(entry.slot);
            locked(locks, entry.slot).line.push_back(Waiter {
                slot: entry.slot,
                keys: entry.keys.clone(),
                number,
                until: entry.until,
                wake: Arc::clone(&wake),
            });
        }
        Some(InLine {
            order: self,
            slots,
            number,
            wake,
            room,
        })
    }
}
