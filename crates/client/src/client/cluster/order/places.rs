//! The places of a command in the order of its slots, and its turn when it is sent again.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use steadfast_core::slot::{KeySet, Slot};
use steadfast_core::topology::Resubmission;
use tokio::sync::Notify;

use super::stripe::{Locks, Stripe, UnderWayIn, Waiter, locked};
use super::{Entries, Entry, InOrder, Slots};
use crate::clock;

/// By slot: the keys for which a command has lost its turn.
pub(in crate::client::cluster) type LostKeys = BTreeMap<Slot, KeySet>;

/// A command's places in the order of its slots, until it is dropped.
#[derive(Debug)]
pub(in crate::client::cluster) struct Places<'a> {
    pub(super) order: &'a InOrder,
    pub(super) command: u64,
    /// By slot.
    pub(super) entries: Entries,
    pub(super) ran: bool,
}

/// The outcome of a command that was to be sent again.
pub(in crate::client::cluster) enum Again<T> {
    /// The command was sent, and has ended at once, or not.
    Sent(Poll<T>),
    /// Later ones of these keys have run: what has to do with them is not to be sent again. Nothing
    /// was.
    Overtaken(LostKeys),
    /// It is not its turn yet in these slots, and it is in others: what belongs to those is to be
    /// sent by itself. Nothing was.
    Divided(Slots),
    /// These slots are not on their way any more, as far as is known, to where they were: nothing
    /// was sent.
    Outdated(Slots),
    /// The command's turn did not come in time.
    TimedOut,
}

/// The reason why a command cannot be sent again yet, or not at all.
enum Turned {
    /// It is not its turn in these slots, which are sorted, in one of them until then at most.
    Waits(Slots, Instant),
    /// Later ones of these keys have run.
    Overtaken(LostKeys),
    /// These do not go there any more.
    Outdated(Slots),
}

impl<'a> Places<'a> {
    pub(super) fn new(order: &'a InOrder, command: u64, mut entries: Entries) -> Self {
        entries.sort_by_key(|entry| entry.slot);
        Self {
            order,
            command,
            entries,
            ran: false,
        }
    }

    /// Returns its part in the order of a slot.
    fn entry(&self, slot: Slot) -> Option<&Entry> {
        let at = self.entries.binary_search_by_key(&slot, |entry| entry.slot);
        self.entries.get(at.ok()?)
    }

    /// Sends the command again where it goes now, when it is its turn in all of these slots, whose
    /// gates are closed: polls `attempt` for the first time, by which it is submitted, while
    /// nobody else can be. When its turn comes, each has still to go there, as `stands` says.
    pub(in crate::client::cluster) async fn again<F: Future>(
        &mut self,
        goes: &[(Slot, u16)],
        deadline: Instant,
        stands: impl Fn((Slot, u16)) -> bool,
        mut attempt: Pin<&mut F>,
    ) -> Again<F::Output> {
        let order = self.order;
        self.park(goes);
        let mut turn = InTurn {
            order,
            command: self.command,
            slots: Slots::new(),
            wake: Arc::new(Notify::new()),
        };
        loop {
            let tried = std::future::poll_fn(|cx| {
                Poll::Ready(match self.try_again(goes, &stands, &mut turn) {
                    Ok(locks) => {
                        let polled = attempt.as_mut().poll(cx);
                        drop(locks);
                        Ok(Again::Sent(polled))
                    }
                    Err(why) => Err(why),
                })
            });
            let (waits, until) = match tried.await {
                Ok(sent) => {
                    // Whoever is to come behind it on this node may.
                    drop(turn);
                    goes.iter().for_each(|(slot, _)| self.wake_turns(*slot));
                    return sent;
                }
                Err(Turned::Overtaken(slots)) => return Again::Overtaken(slots),
                Err(Turned::Outdated(slots)) => return Again::Outdated(slots),
                Err(Turned::Waits(slots, until)) => (slots, until),
            };
            if goes
                .iter()
                .any(|(slot, _)| waits.binary_search(slot).is_err())
            {
                return Again::Divided(waits);
            }
            let until = until.min(deadline);
            let waited = clock::timeout_at(until, turn.wake.notified()).await;
            if waited.is_none() && until >= deadline {
                return Again::TimedOut;
            }
        }
    }

    /// Counts it as under way no more: those before it need not wait for what it may do.
    fn park(&self, goes: &[(Slot, u16)]) {
        for (slot, _) in goes {
            let mut stripe = self.order.stripe(*slot).lock();
            stripe.gate.park(*slot, self.command);
            drop(stripe);
            self.wake_turns(*slot);
        }
    }

    /// Tells those that wait for their turn behind it, or before it, to look again.
    fn wake_turns(&self, slot: Slot) {
        if let Some(entry) = self.entry(slot) {
            let stripe = self.order.stripe(slot).lock();
            stripe.wake_turns(slot, &entry.keys);
        }
    }

    /// Leaves the order of these slots, to wait for as long as a migration takes: it keeps nobody
    /// from being sent, neither those before it nor those behind.
    pub(in crate::client::cluster) fn stand_aside(&mut self, leaves: impl Fn(Slot) -> bool) {
        let (order, command) = (self.order, self.command);
        self.entries.retain(|entry| {
            let leaves = leaves(entry.slot);
            if leaves {
                order.settle(entry.slot, command, false);
            }
            !leaves
        });
    }

    /// The command has run in these slots, and has nothing to do with them any more.
    pub(in crate::client::cluster) fn ran_in(&mut self, slots: &BTreeSet<Slot>) {
        let (order, command) = (self.order, self.command);
        self.entries.retain(|entry| {
            let leaves = slots.contains(&entry.slot);
            if leaves {
                order.settle(entry.slot, command, true);
            }
            !leaves
        });
    }

    /// Keeps its place in the order of this slot while it waits for somebody to serve it: nobody of
    /// its keys is sent ahead of it.
    pub(in crate::client::cluster) fn hold(&self, slot: Slot) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        let mut stripe = self.order.stripe(slot).lock();
        stripe.close(slot);
        let keys = entry.keys.clone();
        stripe.gate.hold(slot, self.command, keys, entry.until);
        stripe.wake_turns(slot, &entry.keys);
    }

    /// Locks its slots, if it is its turn in all of them.
    fn try_again(
        &mut self,
        goes: &[(Slot, u16)],
        stands: &impl Fn((Slot, u16)) -> bool,
        turn: &mut InTurn<'_>,
    ) -> Result<Locks<'_>, Turned> {
        let order = self.order;
        let mut locks = order.lock(goes.iter().map(|(slot, _)| *slot));
        let (mut waits, mut overtaken) = (Slots::new(), LostKeys::new());
        let (now, mut first) = (clock::now(), None::<Instant>);
        for (slot, node) in goes {
            let gate = &locked(&mut locks, *slot).gate;
            match gate.may_resubmit(*slot, self.command, (*node).into(), now) {
                Resubmission::Go => {}
                Resubmission::Wait(until) => {
                    waits.push(*slot);
                    first = Some(first.map_or(until, |first| first.min(until)));
                }
                Resubmission::Overtaken => {
                    overtaken.insert(*slot, gate.lost(*slot, self.command));
                }
            }
        }
        if !overtaken.is_empty() {
            return Err(Turned::Overtaken(overtaken));
        }
        if let Some(until) = first {
            waits.sort_unstable();
            waits.dedup();
            for entry in waits.iter().filter_map(|slot| self.entry(*slot)) {
                turn.wait(entry, locked(&mut locks, entry.slot));
            }
            return Err(Turned::Waits(waits, until));
        }
        let outdated = goes.iter().filter(|one| !stands(**one));
        let outdated: Slots = outdated.map(|(slot, _)| *slot).collect();
        if !outdated.is_empty() {
            return Err(Turned::Outdated(outdated));
        }
        for (slot, node) in goes {
            let Stripe {
                gate, under_way, ..
            } = locked(&mut locks, *slot);
            gate.resubmit(*slot, self.command, (*node).into(), now);
            let is_it =
                |one: &&mut UnderWayIn| one.command == self.command && one.entry.slot == *slot;
            if let Some(one) = under_way.iter_mut().find(is_it) {
                one.entry.node = *node;
            }
        }
        Ok(locks)
    }

    /// Leaves all but these keys, by slot. Of those that it leaves, the command has run for the
    /// others given, and for no more: it takes nobody's turn for what it did not do.
    pub(in crate::client::cluster) fn leave_all_but(
        &mut self,
        stays: impl Fn(Slot) -> Option<KeySet>,
        ran: impl Fn(Slot) -> KeySet,
    ) {
        let (order, command) = (self.order, self.command);
        self.entries.retain(|entry| {
            let (slot, stays) = (entry.slot, stays(entry.slot));
            let counts = KeySet::all(stays.iter().chain([&ran(slot)]));
            let counts = match entry.keys {
                KeySet::Unknown => counts,
                _ => entry.keys.without(&entry.keys.without(&counts)),
            };
            if counts != entry.keys {
                order.narrow(slot, command, &counts, false);
                entry.keys = counts;
            }
            match stays {
                Some(keys) if keys == entry.keys => true,
                Some(keys) => {
                    order.narrow(slot, command, &keys, true);
                    entry.keys = keys;
                    true
                }
                None => {
                    order.settle(slot, command, true);
                    false
                }
            }
        });
    }

    /// Takes its places in these slots out: from now on each is apart from the others.
    pub(in crate::client::cluster) fn divide(
        &mut self,
        slots: impl IntoIterator<Item = Slot>,
    ) -> BTreeMap<Slot, Self> {
        let (order, command) = (self.order, self.command);
        let alone = |slot| (slot, Self::new(order, command, Entries::new()));
        let mut apart: BTreeMap<_, _> = slots.into_iter().map(alone).collect();
        for entry in std::mem::take(&mut self.entries) {
            match apart.get_mut(&entry.slot) {
                Some(places) => places.entries.push(entry),
                None => self.entries.push(entry),
            }
        }
        apart
    }

    /// The command has run, or may have.
    pub(in crate::client::cluster) fn ran(&mut self) {
        self.ran = true;
    }
}

impl Drop for Places<'_> {
    fn drop(&mut self) {
        for entry in &self.entries {
            self.order.settle(entry.slot, self.command, self.ran);
        }
    }
}

/// The place of a command among those that wait to be sent again, until it is dropped.
struct InTurn<'a> {
    order: &'a InOrder,
    command: u64,
    slots: Slots,
    wake: Arc<Notify>,
}

impl InTurn<'_> {
    fn wait(&mut self, entry: &Entry, stripe: &mut Stripe) {
        if stripe.turns.contains_key(&(entry.slot, self.command)) {
            return;
        }
        self.slots.push(entry.slot);
        let waiter = Waiter {
            slot: entry.slot,
            keys: entry.keys.clone(),
            number: self.command,
            until: entry.until,
            wake: Arc::clone(&self.wake),
        };
        stripe.turns.insert((entry.slot, self.command), waiter);
    }
}

impl Drop for InTurn<'_> {
    fn drop(&mut self) {
        for slot in &self.slots {
            let mut stripe = self.order.stripe(*slot).lock();
            stripe.turns.remove(&(*slot, self.command));
        }
    }
}
