//! The order of a key's commands while its slot changes hands.
//!
//! Commands of one key keep their order because they take the same connection. When a slot moves,
//! some of them are under way at the old owner and come back redirected, one after the other, while
//! newer ones would go to the new owner at once. So the commands under way are known by slot, with
//! their keys, and with the first that is redirected the gate of its slot closes: see
//! [`SlotGate`](steadfast_core::topology::SlotGate), whose rules these are. Only commands that
//! share a key wait for one another.
//!
//! A command gets its number and is handed to its node under one lock, so that the numbers of a
//! slot's commands tell their true order; and under the same lock its slot gets another owner, so
//! that no command goes where its slot was a moment before. That costs a call two short locks that
//! it shares with one slot in 256.

mod line;
mod places;
mod room;
mod stripe;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use parking_lot::Mutex;
use smallvec::SmallVec;
use steadfast_core::slot::{KeySet, Slot};
use steadfast_core::topology::SlotGate;

pub(super) use self::line::InLine;
pub(super) use self::places::{Again, LostKeys, Places};
pub(super) use self::room::CallRoom;
use self::stripe::{Locks, STRIPES, Stripe, UnderWayIn, locked, stripe_of};
use crate::clock;

/// The place of no node.
pub(super) const NOBODY: u16 = u16::MAX;

/// The commands under way, by slot.
#[derive(Debug)]
pub(super) struct InOrder {
    next: AtomicU64,
    stripes: Box<[Mutex<Stripe>]>,
    /// How many calls wait for their slot, and how many may.
    waiting: AtomicUsize,
    most: usize,
}

/// A command's part in the order of one slot.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) slot: Slot,
    /// Its keys in that slot.
    pub(super) keys: KeySet,
    /// The node that it is on.
    pub(super) node: u16,
    /// Its deadline: after that it keeps nobody waiting.
    pub(super) until: Instant,
}

pub(super) type Slots = SmallVec<[Slot; 1]>;

type Entries = SmallVec<[Entry; 1]>;

/// The outcome of a new command.
pub(super) enum Entered<'a, T> {
    /// The command was sent, and has ended at once, or not.
    Sent(Places<'a>, Poll<T>),
    /// A slot of it changes hands, or has, since it was looked where it goes: it is to be looked
    /// again.
    Waited,
    /// These slots of it change hands, and others do not: what belongs to those is to be sent by
    /// itself. Nothing was.
    Divided(Slots),
    /// A slot of it changes hands, and as many calls wait for theirs as may.
    NoRoom,
}

/// The reason why a new command cannot be sent yet.
enum Halted {
    /// These slots of it change hands, until then at most; or others wait for that, who came
    /// before.
    At(Slots, Instant),
    /// The nodes are not those any more that the slots belong to.
    Elsewhere,
    /// As many calls wait as may.
    NoRoom,
}

impl InOrder {
    /// Lets so many calls wait at once.
    pub(super) fn new(most: usize) -> Self {
        let stripe = || Stripe {
            gate: SlotGate::new(),
            under_way: VecDeque::new(),
            turns: BTreeMap::new(),
            line: VecDeque::new(),
        };
        Self {
            next: AtomicU64::new(0),
            stripes: (0..STRIPES).map(|_| Mutex::new(stripe())).collect(),
            waiting: AtomicUsize::new(0),
            most,
        }
    }

    fn stripe(&self, slot: Slot) -> &Mutex<Stripe> {
        &self.stripes[stripe_of(slot)]
    }

    /// Locks what has to do with these slots, always in the same order.
    fn lock<'a>(&'a self, slots: impl Iterator<Item = Slot>) -> Locks<'a> {
        let mut stripes: SmallVec<[usize; 1]> = slots.map(stripe_of).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let locks = stripes.into_iter();
        locks.map(|at| (at, self.stripes[at].lock())).collect()
    }

    /// Polls `attempt` for the first time, by which it is submitted, and gives it places; unless a
    /// slot changes hands: then it waits for those of its keys, and keeps its place in `line`. Or
    /// its nodes are not those any more that its slots belong to, as `stands` says while nobody can
    /// change that.
    pub(super) async fn enter<'a, F: Future>(
        &'a self,
        entries: Entries,
        now: Instant,
        stands: impl Fn() -> bool,
        (line, of): (&mut Option<InLine<'a>>, Option<&'a CallRoom>),
        mut attempt: Pin<&mut F>,
    ) -> Entered<'a, F::Output> {
        let deadline = entries.iter().map(|entry| entry.until).max();
        let count = entries.len();
        let mut entries = Some(entries);
        let tried = std::future::poll_fn(|cx| {
            let entries = entries.take().unwrap_or_default();
            let line = (&mut *line, of);
            Poll::Ready(self.try_enter(entries, now, &stands, line, cx, attempt.as_mut()))
        });
        match tried.await {
            Ok((places, polled)) => {
                // Whoever is next may go.
                *line = None;
                Entered::Sent(places, polled)
            }
            Err(Halted::Elsewhere) => Entered::Waited,
            Err(Halted::NoRoom) => Entered::NoRoom,
            Err(Halted::At(slots, _)) if slots.len() < count => Entered::Divided(slots),
            Err(Halted::At(_, until)) => {
                if let Some(line) = line {
                    let until = deadline.map_or(until, |deadline| deadline.min(until));
                    let _ = clock::timeout_at(until, line.wake.notified()).await;
                }
                Entered::Waited
            }
        }
    }

    fn try_enter<'a, F: Future>(
        &'a self,
        entries: Entries,
        now: Instant,
        stands: &impl Fn() -> bool,
        (line, of): (&mut Option<InLine<'a>>, Option<&'a CallRoom>),
        cx: &mut Context<'_>,
        attempt: Pin<&mut F>,
    ) -> Result<(Places<'a>, Poll<F::Output>), Halted> {
        let mut locks = self.lock(entries.iter().map(|entry| entry.slot));
        if !stands() {
            return Err(Halted::Elsewhere);
        }
        let number = line.as_ref().map_or(u64::MAX, |line| line.number);
        let mut halted: Option<Instant> = None;
        let mut waiting: SmallVec<[&Entry; 1]> = SmallVec::new();
        for entry in &entries {
            let stripe = locked(&mut locks, entry.slot);
            if let Some(until) = stripe.halts(entry, number, now) {
                halted = Some(halted.map_or(until, |first| first.min(until)));
                waiting.push(entry);
            }
        }
        let at: Slots = waiting.iter().map(|entry| entry.slot).collect();
        let Some(until) = halted else {
            drop(waiting);
            return Ok(self.submit(entries, locks, cx, attempt));
        };
        if line.is_none() {
            *line = self.line_up(waiting.into_iter(), of, &mut locks);
        }
        match line {
            Some(_) => Err(Halted::At(at, until)),
            None => Err(Halted::NoRoom),
        }
    }

    /// The same of the parts of a command that go to one node as one request, which `attempt`
    /// submits; each has a slot of its own. If some may not be sent now, nothing is: returns which,
    /// by their numbers among the entries.
    pub(super) async fn enter_together<F: Future>(
        &self,
        entries: Entries,
        now: Instant,
        stands: impl Fn(Slot) -> bool,
        mut attempt: Pin<&mut F>,
    ) -> Result<(Places<'_>, Poll<F::Output>), Vec<usize>> {
        let mut entries = Some(entries);
        std::future::poll_fn(|cx| {
            let entries = entries.take().unwrap_or_default();
            let entered = self.try_enter_together(entries, now, &stands, cx, attempt.as_mut());
            Poll::Ready(entered)
        })
        .await
    }

    fn try_enter_together<F: Future>(
        &self,
        entries: Entries,
        now: Instant,
        stands: &impl Fn(Slot) -> bool,
        cx: &mut Context<'_>,
        attempt: Pin<&mut F>,
    ) -> Result<(Places<'_>, Poll<F::Output>), Vec<usize>> {
        let mut locks = self.lock(entries.iter().map(|entry| entry.slot));
        let mut halted = Vec::new();
        for (number, entry) in entries.iter().enumerate() {
            let stripe = locked(&mut locks, entry.slot);
            if !stands(entry.slot) || stripe.halts(entry, u64::MAX, now).is_some() {
                halted.push(number);
            }
        }
        if !halted.is_empty() {
            return Err(halted);
        }
        Ok(self.submit(entries, locks, cx, attempt))
    }

    /// Polls `attempt` for the first time and gives it places in slots that are locked.
    fn submit<F: Future>(
        &self,
        entries: Entries,
        mut locks: Locks<'_>,
        cx: &mut Context<'_>,
        attempt: Pin<&mut F>,
    ) -> (Places<'_>, Poll<F::Output>) {
        let command = self.next.fetch_add(1, Ordering::Relaxed);
        for entry in &entries {
            let under_way = &mut locked(&mut locks, entry.slot).under_way;
            let entry = entry.clone();
            under_way.push_back(UnderWayIn { command, entry });
        }
        let polled = attempt.poll(cx);
        drop(locks);
        (Places::new(self, command, entries), polled)
    }

    /// Gives places to a command that waits for somebody to serve its slots. It has not been sent,
    /// and goes when it is its turn.
    pub(super) fn stand_in_line(&self, entries: Entries) -> Places<'_> {
        let mut locks = self.lock(entries.iter().map(|entry| entry.slot));
        let command = self.next.fetch_add(1, Ordering::Relaxed);
        for entry in &entries {
            let (entry, stripe) = (entry.clone(), locked(&mut locks, entry.slot));
            let keys = entry.keys.clone();
            stripe.gate.hold(entry.slot, command, keys, entry.until);
            stripe.under_way.push_back(UnderWayIn { command, entry });
        }
        drop(locks);
        Places::new(self, command, entries)
    }

    /// The slot changes hands: closes its gate, if commands of it are under way.
    pub(super) fn close(&self, slot: Slot) {
        self.hand_over(slot, || {});
    }

    /// Closes the gate of a slot, if commands of it are under way, and gives it another owner
    /// before any other command can enter.
    pub(super) fn hand_over<T>(&self, slot: Slot, change: impl FnOnce() -> T) -> T {
        let mut stripe = self.stripe(slot).lock();
        stripe.close(slot);
        change()
    }

    /// A command has ended, as far as this slot is concerned.
    fn settle(&self, slot: Slot, command: u64, ran: bool) {
        let mut stripe = self.stripe(slot).lock();
        let is_it = |one: &UnderWayIn| one.command == command && one.entry.slot == slot;
        let at = stripe.under_way.iter().position(is_it);
        let ended = at.and_then(|at| stripe.under_way.remove(at));
        if !stripe.gate.is_calm() {
            stripe.gate.settle(slot, command, ran);
            if let Some(ended) = ended {
                stripe.wake_turns(slot, &ended.entry.keys);
                stripe.wake(slot, &ended.entry.keys);
            }
        }
    }

    /// A command has `ran` as far as this slot is concerned, or never will, but for these of its
    /// keys.
    fn narrow(&self, slot: Slot, command: u64, keys: &KeySet, ran: bool) {
        let mut stripe = self.stripe(slot).lock();
        let is_it = |one: &&mut UnderWayIn| one.command == command && one.entry.slot == slot;
        let one = stripe.under_way.iter_mut().find(is_it);
        let before = one.map(|one| std::mem::replace(&mut one.entry.keys, keys.clone()));
        if !stripe.gate.is_calm() {
            match ran {
                true => stripe.gate.narrow(slot, command, keys),
                false => stripe.gate.withdraw(slot, command, keys),
            }
            if let Some(before) = before {
                stripe.wake_turns(slot, &before);
                stripe.wake(slot, &before);
            }
        }
    }
}

#[cfg(test)]
mod tests;
