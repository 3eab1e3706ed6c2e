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

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use steadfast_core::slot::{KeySet, Slot};
use steadfast_core::topology::{Passage, Resubmission, SlotGate, UnderWay};
use tokio::sync::Notify;

use crate::clock;

const STRIPES: usize = 256;

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

/// The one place of a call among those that wait, however many of its parts do.
#[derive(Debug, Default)]
pub(super) struct CallRoom {
    parts: AtomicUsize,
}

/// The place of a call that waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Room<'a> {
    waiting: &'a AtomicUsize,
    of: Option<&'a CallRoom>,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let is_last = |call: &CallRoom| call.parts.fetch_sub(1, Ordering::AcqRel) == 1;
        if self.of.is_none_or(is_last) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Stripe {
    gate: SlotGate,
    /// In their order: the oldest mostly end first.
    under_way: VecDeque<UnderWayIn>,
    /// Those of them that wait to be sent again.
    turns: BTreeMap<(Slot, u64), Waiter>,
    /// New commands that wait for the gate, in their order.
    line: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    slot: Slot,
    keys: KeySet,
    number: u64,
    /// Its deadline: after that it keeps nobody waiting.
    until: Instant,
    /// Told when it may be its turn.
    wake: Arc<Notify>,
}

/// The place of a new command among those that wait for the gates of its slots, until it is
/// dropped.
#[derive(Debug)]
pub(super) struct InLine<'a> {
    order: &'a InOrder,
    slots: Slots,
    number: u64,
    wake: Arc<Notify>,
    room: Room<'a>,
}

impl InLine<'_> {
    /// Takes its places in the lines of these slots out: from now on each is apart from the others.
    /// `None` if as many wait as may.
    pub(super) fn divide(&mut self, slots: &[Slot]) -> Option<BTreeMap<Slot, Self>> {
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
    pub(super) fn is_empty(&self) -> bool {
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

#[derive(Clone, Debug)]
struct UnderWayIn {
    command: u64,
    entry: Entry,
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

/// By slot: the keys for which a command has lost its turn.
pub(super) type LostKeys = BTreeMap<Slot, KeySet>;

/// The reason why a command cannot be sent again yet, or not at all.
enum Turned {
    /// It is not its turn in these slots, which are sorted, in one of them until then at most.
    Waits(Slots, Instant),
    /// Later ones of these keys have run.
    Overtaken(LostKeys),
    /// These do not go there any more.
    Outdated(Slots),
}

type Locks<'a> = SmallVec<[(usize, MutexGuard<'a, Stripe>); 1]>;

/// A command's places in the order of its slots, until it is dropped.
#[derive(Debug)]
pub(super) struct Places<'a> {
    order: &'a InOrder,
    command: u64,
    /// By slot.
    entries: Entries,
    ran: bool,
}

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

/// The outcome of a command that was to be sent again.
pub(super) enum Again<T> {
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

    /// A place for a call that waits until it is known who serves its slot, or for a part of this
    /// one; `None` if as many wait as may.
    pub(super) fn room<'a>(&'a self, of: Option<&'a CallRoom>) -> Option<Room<'a>> {
        let waiting = &self.waiting;
        if let Some(call) = of
            && call.parts.fetch_add(1, Ordering::AcqRel) > 0
        {
            return Some(Room { waiting, of });
        }
        let room = Room { waiting, of };
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        (before < self.most).then_some(room)
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

    /// Gives a new command its place behind all that wait; `None` if as many wait as may.
    fn line_up<'a, 'e>(
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

impl Stripe {
    /// Returns until when at most a new command has to wait for its slot, if it has to: that
    /// changes hands, or others of its keys wait for that who came before the one of this number.
    fn halts(&mut self, entry: &Entry, number: u64, now: Instant) -> Option<Instant> {
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
    fn wake(&self, slot: Slot, keys: &KeySet) {
        wake_first(self.line.iter().filter(|one| one.slot == slot), keys);
    }

    /// Tells the same to those that wait to be sent again.
    fn wake_turns(&self, slot: Slot, keys: &KeySet) {
        let turns = self.turns.range((slot, 0)..=(slot, u64::MAX));
        wake_first(turns.map(|(_, one)| one), keys);
    }

    /// Closes the gate of a slot, if commands of it are under way.
    fn close(&mut self, slot: Slot) {
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

fn stripe_of(slot: Slot) -> usize {
    usize::from(slot.number()) % STRIPES
}

/// The stripe of a slot, which is locked.
fn locked<'l>(locks: &'l mut Locks<'_>, slot: Slot) -> &'l mut Stripe {
    let at = stripe_of(slot);
    // They were sorted to be locked.
    let place = locks.binary_search_by_key(&at, |(stripe, _)| *stripe);
    &mut locks[place.unwrap_or_default()].1
}

impl<'a> Places<'a> {
    fn new(order: &'a InOrder, command: u64, mut entries: Entries) -> Self {
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
    pub(super) async fn again<F: Future>(
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
    pub(super) fn stand_aside(&mut self, leaves: impl Fn(Slot) -> bool) {
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
    pub(super) fn ran_in(&mut self, slots: &BTreeSet<Slot>) {
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
    pub(super) fn hold(&self, slot: Slot) {
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
    pub(super) fn leave_all_but(
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
    pub(super) fn divide(&mut self, slots: impl IntoIterator<Item = Slot>) -> BTreeMap<Slot, Self> {
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
    pub(super) fn ran(&mut self) {
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

#[cfg(test)]
mod tests;
