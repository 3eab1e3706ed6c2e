//! The order of a key's commands while its slot changes hands.
//!
//! Commands of one key keep their order because they take the same connection. When a slot moves,
//! some of them are under way at the old owner and come back redirected, one after the other, while
//! newer ones would go to the new owner at once. So the commands under way are known by slot, and
//! with the first that is redirected the gate of its slot closes: see
//! [`SlotGate`](steadfast_core::topology::SlotGate), whose rules these are.
//!
//! A command gets its number and is handed to its node under one lock, so that the numbers of a
//! slot's commands tell their true order; and under the same lock its slot gets another owner, so
//! that no command goes where its slot was a moment before. That costs a call two short locks that
//! it shares with one slot in 256.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use steadfast_core::slot::Slot;
use steadfast_core::topology::{Passage, Resubmission, SlotGate, UnderWay};
use tokio::sync::Notify;

use crate::clock;

/// The longest time that new commands of a slot wait for those that are under way as it changes
/// hands. Where all nodes are well that takes a round trip; a busy machine may take longer, and one
/// that is let through before has those fail that it overtakes. Those under way have deadlines, and
/// end with a node that is taken out of service.
const WAIT: Duration = Duration::from_secs(1);

/// Until when those wait at most who have others before them: these tell them before.
const FAR: Duration = Duration::from_secs(60);

const STRIPES: usize = 256;

/// The place of no node.
pub(super) const NOBODY: u16 = u16::MAX;

/// The commands under way, by slot.
#[derive(Debug)]
pub(super) struct InOrder {
    next: AtomicU64,
    stripes: Box<[Mutex<Stripe>]>,
    /// Told whenever those who wait for their turn in a stripe may have it.
    changed: Box<[Notify]>,
    /// How many calls wait for their slot, and how many may.
    waiting: AtomicUsize,
    most: usize,
}

/// The place of a call that waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Room<'a>(&'a AtomicUsize);

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Stripe {
    gate: SlotGate,
    /// In their order: the oldest mostly end first.
    under_way: VecDeque<UnderWayIn>,
    /// New commands that wait for the gate, in their order.
    line: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    slot: Slot,
    number: u64,
    /// Told when it may be its turn.
    wake: Arc<Notify>,
}

/// The place of a new command among those that wait for the gates of its slots, until it is
/// dropped.
#[derive(Debug)]
pub(super) struct InLine<'a> {
    order: &'a InOrder,
    slots: SmallVec<[Slot; 1]>,
    number: u64,
    wake: Arc<Notify>,
    _room: Room<'a>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        for slot in &self.slots {
            let mut stripe = self.order.stripe(*slot).lock();
            let line = &mut stripe.line;
            let is_it = |one: &Waiter| one.number == self.number && one.slot == *slot;
            if let Some(at) = line.iter().position(is_it) {
                line.remove(at);
            }
            stripe.wake_next(*slot);
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct UnderWayIn {
    command: u64,
    entry: Entry,
}

/// A command's part in the order of one slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) slot: Slot,
    /// The hash of its key, if it has one only.
    pub(super) key: Option<u64>,
    /// The node that it is on.
    pub(super) node: u16,
}

type Entries = SmallVec<[Entry; 1]>;
type Locks<'a> = SmallVec<[(usize, MutexGuard<'a, Stripe>); 1]>;

/// A command's places in the order of its slots, until it is dropped.
#[derive(Debug)]
pub(super) struct Places<'a> {
    order: &'a InOrder,
    command: u64,
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
    /// A slot of it changes hands, and as many calls wait for theirs as may.
    NoRoom,
}

/// The reason why a new command cannot be sent yet.
enum Halted {
    /// A slot of it changes hands, until then at most; or others wait for that, who came before.
    Until(Instant),
    /// The nodes are not those any more that the slots belong to.
    Elsewhere,
}

/// The outcome of a command that was to be sent again.
pub(super) enum Again<T> {
    /// The command was sent, and has ended at once, or not.
    Sent(Poll<T>),
    /// Later ones of its key have run.
    Overtaken,
    /// The command's turn did not come in time.
    TimedOut,
}

impl InOrder {
    /// Lets so many calls wait at once.
    pub(super) fn new(most: usize) -> Self {
        let stripe = || Stripe {
            gate: SlotGate::new(WAIT),
            under_way: VecDeque::new(),
            line: VecDeque::new(),
        };
        Self {
            next: AtomicU64::new(0),
            stripes: (0..STRIPES).map(|_| Mutex::new(stripe())).collect(),
            changed: (0..STRIPES).map(|_| Notify::new()).collect(),
            waiting: AtomicUsize::new(0),
            most,
        }
    }

    /// A place for a call that waits until it is known who serves its slot; `None` if as many wait
    /// as may.
    pub(super) fn room(&self) -> Option<Room<'_>> {
        let room = Room(&self.waiting);
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        (before < self.most).then_some(room)
    }

    fn stripe(&self, slot: Slot) -> &Mutex<Stripe> {
        &self.stripes[stripe_of(slot)]
    }

    /// Told whenever those who wait for their turn in this slot may have it.
    fn changed(&self, slot: Slot) -> &Notify {
        &self.changed[stripe_of(slot)]
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
    /// slot changes hands: then it waits a while, and keeps its place in `line`. Or its nodes are
    /// not those any more that its slots belong to, as `stands` says while nobody can change that.
    pub(super) async fn enter<'a, F: Future>(
        &'a self,
        entries: Entries,
        (now, deadline): (Instant, Instant),
        stands: impl Fn() -> bool,
        line: &mut Option<InLine<'a>>,
        mut attempt: Pin<&mut F>,
    ) -> Entered<'a, F::Output> {
        let tried = std::future::poll_fn(|cx| {
            Poll::Ready(self.try_enter(&entries, now, &stands, line, cx, attempt.as_mut()))
        });
        match tried.await {
            Ok((places, polled)) => {
                // Whoever is next may go.
                *line = None;
                Entered::Sent(places, polled)
            }
            Err(Halted::Elsewhere) => Entered::Waited,
            Err(Halted::Until(until)) => {
                let Some(line) = line else {
                    return Entered::NoRoom;
                };
                let until = until.min(deadline);
                let _ = clock::timeout_at(until, line.wake.notified()).await;
                Entered::Waited
            }
        }
    }

    fn try_enter<'a, F: Future>(
        &'a self,
        entries: &Entries,
        now: Instant,
        stands: &impl Fn() -> bool,
        line: &mut Option<InLine<'a>>,
        cx: &mut Context<'_>,
        attempt: Pin<&mut F>,
    ) -> Result<(Places<'a>, Poll<F::Output>), Halted> {
        let mut locks = self.lock(entries.iter().map(|entry| entry.slot));
        if !stands() {
            return Err(Halted::Elsewhere);
        }
        let number = line.as_ref().map_or(u64::MAX, |line| line.number);
        for entry in entries {
            let stripe = locked(&mut locks, entry.slot);
            if let Some(until) = stripe.halts(entry.slot, number, now) {
                if line.is_none() {
                    *line = self.line_up(entries, &mut locks);
                }
                return Err(Halted::Until(until));
            }
        }
        Ok(self.submit(entries.clone(), locks, cx, attempt))
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
            if !stands(entry.slot) || stripe.halts(entry.slot, u64::MAX, now).is_some() {
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
            let entry = *entry;
            let under_way = &mut locked(&mut locks, entry.slot).under_way;
            under_way.push_back(UnderWayIn { command, entry });
        }
        let polled = attempt.poll(cx);
        drop(locks);
        let places = Places {
            order: self,
            command,
            entries,
            ran: false,
        };
        (places, polled)
    }

    /// Gives a new command its place behind all that wait; `None` if as many wait as may.
    fn line_up<'a>(&'a self, entries: &Entries, locks: &mut Locks<'_>) -> Option<InLine<'a>> {
        let room = self.room()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let wake = Arc::new(Notify::new());
        let slots: SmallVec<[Slot; 1]> = entries.iter().map(|entry| entry.slot).collect();
        for slot in &slots {
            locked(locks, *slot).line.push_back(Waiter {
                slot: *slot,
                number,
                wake: Arc::clone(&wake),
            });
        }
        Some(InLine {
            order: self,
            slots,
            number,
            wake,
            _room: room,
        })
    }

    /// Gives places to a command that waits, until then at most, for somebody to serve its slots.
    /// It has not been sent, and goes when it is its turn.
    pub(super) fn stand_in_line(&self, entries: Entries, until: Instant) -> Places<'_> {
        let mut locks = self.lock(entries.iter().map(|entry| entry.slot));
        let command = self.next.fetch_add(1, Ordering::Relaxed);
        for entry in &entries {
            let (entry, stripe) = (*entry, locked(&mut locks, entry.slot));
            stripe.under_way.push_back(UnderWayIn { command, entry });
            stripe.gate.hold(entry.slot, command, entry.key, until);
        }
        drop(locks);
        Places {
            order: self,
            command,
            entries,
            ran: false,
        }
    }

    /// The slot changes hands: closes its gate, if commands of it are under way.
    pub(super) fn close(&self, slot: Slot, now: Instant) {
        self.hand_over(slot, now, || {});
    }

    /// Closes the gate of a slot, if commands of it are under way, and gives it another owner
    /// before any other command can enter.
    pub(super) fn hand_over<T>(&self, slot: Slot, now: Instant, change: impl FnOnce() -> T) -> T {
        let mut stripe = self.stripe(slot).lock();
        stripe.close(slot, now);
        change()
    }

    /// A command has ended, as far as this slot is concerned.
    fn settle(&self, slot: Slot, command: u64, ran: bool) {
        let mut stripe = self.stripe(slot).lock();
        let is_it = |one: &UnderWayIn| one.command == command && one.entry.slot == slot;
        if let Some(at) = stripe.under_way.iter().position(is_it) {
            stripe.under_way.remove(at);
        }
        if !stripe.gate.is_calm() {
            stripe.gate.settle(slot, command, ran);
            stripe.wake_next(slot);
            drop(stripe);
            self.changed(slot).notify_waiters();
        }
    }
}

impl Stripe {
    /// Returns until when at most a new command of this slot has to wait, if it has to: the slot
    /// changes hands, or others wait for that who came before the one of this number.
    fn halts(&mut self, slot: Slot, number: u64, now: Instant) -> Option<Instant> {
        if self.is_behind(slot, number) {
            return Some(now + FAR);
        }
        if self.gate.is_calm() {
            return None;
        }
        match self.gate.pass(slot, now) {
            Passage::Until(until) => Some(until),
            Passage::Open => None,
        }
    }

    /// Whether others wait for this slot who came before the one of this number.
    fn is_behind(&self, slot: Slot, number: u64) -> bool {
        let mut of_slot = self.line.iter().filter(|one| one.slot == slot);
        of_slot.next().is_some_and(|first| first.number < number)
    }

    /// Tells the first that waits for this slot to look again.
    fn wake_next(&self, slot: Slot) {
        if let Some(next) = self.line.iter().find(|one| one.slot == slot) {
            next.wake.notify_one();
        }
    }

    /// Closes the gate of a slot, if commands of it are under way.
    fn close(&mut self, slot: Slot, now: Instant) {
        let of_slot = self.under_way.iter().filter(|one| one.entry.slot == slot);
        let of_slot = of_slot.map(|one| UnderWay {
            command: one.command,
            connection: one.entry.node.into(),
            key: one.entry.key,
        });
        self.gate.close(slot, of_slot, now);
    }
}

/// FNV-1a: which of a slot's keys it is.
pub(super) fn hash_of_key(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
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

impl Places<'_> {
    /// Sends the command again where it goes now, when it is its turn in all of these slots, whose
    /// gates are closed: polls `attempt` for the first time, by which it is submitted, while
    /// nobody else can be.
    pub(super) async fn again<F: Future>(
        &mut self,
        goes: &[(Slot, u16)],
        deadline: Instant,
        mut attempt: Pin<&mut F>,
    ) -> Again<F::Output> {
        let order = self.order;
        self.park(goes);
        let mut halts = goes.first().map(|(slot, _)| *slot);
        loop {
            // Whatever changes from now on in that stripe is heard of.
            let changed = halts.map(|slot| (stripe_of(slot), order.changed(slot).notified()));
            let tried = std::future::poll_fn(|cx| {
                Poll::Ready(match self.try_again(goes) {
                    Ok(locks) => {
                        let polled = attempt.as_mut().poll(cx);
                        drop(locks);
                        Ok(Again::Sent(polled))
                    }
                    Err(why) => Err(why),
                })
            });
            let slot = match tried.await {
                Ok(sent) => {
                    // Whoever is to come behind it on this node may.
                    for (slot, _) in goes {
                        order.changed(*slot).notify_waiters();
                    }
                    return sent;
                }
                Err((_, Resubmission::Overtaken)) => return Again::Overtaken,
                Err((slot, _)) => slot,
            };
            halts = Some(slot);
            if let Some((stripe, changed)) = changed
                && stripe == stripe_of(slot)
                && clock::timeout_at(deadline, changed).await.is_none()
            {
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
            self.order.changed(*slot).notify_waiters();
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

    /// Keeps its place in the order of this slot while it waits, until then at most, for somebody
    /// to serve it: nobody is sent ahead of it.
    pub(super) fn hold(&self, slot: Slot, until: Instant) {
        let Some(entry) = self.entries.iter().find(|entry| entry.slot == slot) else {
            return;
        };
        let mut stripe = self.order.stripe(slot).lock();
        stripe.close(slot, clock::now());
        stripe.gate.hold(slot, self.command, entry.key, until);
    }

    /// Locks its slots, if it is its turn in all of them.
    fn try_again(&mut self, goes: &[(Slot, u16)]) -> Result<Locks<'_>, (Slot, Resubmission)> {
        let order = self.order;
        let mut locks = order.lock(goes.iter().map(|(slot, _)| *slot));
        for (slot, node) in goes {
            let gate = &locked(&mut locks, *slot).gate;
            match gate.may_resubmit(*slot, self.command, (*node).into()) {
                Resubmission::Go => {}
                why => return Err((*slot, why)),
            }
        }
        for (slot, node) in goes {
            let Stripe {
                gate, under_way, ..
            } = locked(&mut locks, *slot);
            gate.resubmit(*slot, self.command, (*node).into());
            let is_it =
                |one: &&mut UnderWayIn| one.command == self.command && one.entry.slot == *slot;
            if let Some(one) = under_way.iter_mut().find(is_it) {
                one.entry.node = *node;
            }
        }
        Ok(locks)
    }

    /// Leaves all slots but these: as far as the others are concerned, the command has run.
    pub(super) fn leave_all_but(&mut self, stays: impl Fn(Slot) -> bool) {
        let (order, command) = (self.order, self.command);
        self.entries.retain(|entry| {
            let stays = stays(entry.slot);
            if !stays {
                order.settle(entry.slot, command, true);
            }
            stays
        });
    }

    /// Takes the place in one slot out: from now on it is apart from the others.
    pub(super) fn split_off(&mut self, slot: Slot) -> Self {
        let is_it = |entry: &Entry| entry.slot == slot;
        let at = self.entries.iter().position(is_it);
        Self {
            order: self.order,
            command: self.command,
            entries: at
                .map(|at| self.entries.swap_remove(at))
                .into_iter()
                .collect(),
            ran: false,
        }
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
mod tests {
    use std::future::ready;
    use std::pin::pin;

    use super::*;

    /// Takes a place for a command on this node, when its slot lets it.
    async fn enter(order: &InOrder, node: u16) -> Places<'_> {
        let entry = Entry {
            slot: slot(),
            key: Some(7),
            node,
        };
        let mut line = None;
        loop {
            let now = clock::now();
            let attempt = pin!(ready(()));
            let entries = Entries::from_slice(&[entry]);
            match order
                .enter(entries, (now, now + FAR), || true, &mut line, attempt)
                .await
            {
                Entered::Sent(places, _) => return places,
                Entered::Waited => {}
                Entered::NoRoom => panic!("there is room"),
            }
        }
    }

    fn slot() -> Slot {
        Slot::of_key(b"k")
    }

    #[tokio::test(start_paused = true)]
    async fn t9_a_new_command_waits_until_those_that_were_redirected_have_run_at_the_new_owner() {
        let order = InOrder::new(2);
        let mut first = enter(&order, 1).await;
        let mut second = enter(&order, 1).await;
        order.close(slot(), clock::now());
        let mut third = pin!(enter(&order, 2));
        assert!(futures_util::poll!(&mut third).is_pending());
        let deadline = clock::now() + FAR;
        let goes = [(slot(), 2)];
        {
            // The second is told of its redirect first.
            let early = pin!(ready(()));
            let mut waits = pin!(second.again(&goes, deadline, early));
            let waiting = futures_util::poll!(&mut waits);
            assert!(waiting.is_pending(), "the first may still run there");
            let attempt = pin!(ready(()));
            let sent = first.again(&goes, deadline, attempt).await;
            assert!(matches!(sent, Again::Sent(Poll::Ready(()))));
            first.ran();
            drop(first);
            assert!(matches!(waits.await, Again::Sent(_)));
            assert!(futures_util::poll!(&mut third).is_pending());
        }
        second.ran();
        drop(second);
        third.await;
    }

    #[tokio::test(start_paused = true)]
    async fn c13_those_that_wait_for_a_gate_pass_it_in_the_order_in_which_they_came() {
        let order = InOrder::new(3);
        let first = enter(&order, 1).await;
        order.close(slot(), clock::now());
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(enter(&order, 2))).collect();
        for waits in &mut waiting {
            assert!(futures_util::poll!(waits).is_pending());
        }
        drop(first);
        let mut newer = pin!(enter(&order, 2));
        for waits in waiting.iter_mut().skip(1) {
            assert!(futures_util::poll!(waits).is_pending());
        }
        for waits in &mut waiting {
            assert!(futures_util::poll!(waits).is_ready());
        }
        assert!(futures_util::poll!(&mut newer).is_ready(), "nobody waits");
    }

    #[tokio::test(start_paused = true)]
    async fn t9_a_command_whose_slot_gets_another_owner_while_it_is_on_its_way_is_not_sent() {
        let order = InOrder::new(2);
        let owner = std::cell::Cell::new(1);
        let found = owner.get();
        // Nothing is under way, so the gate has nobody to wait for.
        order.hand_over(slot(), clock::now(), || owner.set(2));
        let entry = Entry {
            slot: slot(),
            key: Some(7),
            node: found,
        };
        let sent = std::cell::Cell::new(false);
        let attempt = pin!(async { sent.set(true) });
        let times = (clock::now(), clock::now() + FAR);
        let stands = || owner.get() == found;
        let entries = Entries::from_slice(&[entry]);
        let mut line = None;
        let entered = order
            .enter(entries, times, stands, &mut line, attempt)
            .await;
        assert!(matches!(entered, Entered::Waited) && !sent.get());
    }

    #[test]
    fn t31_no_more_calls_wait_for_their_slots_than_may() {
        let order = InOrder::new(2);
        let (first, second) = (order.room(), order.room());
        assert!(first.is_some() && second.is_some() && order.room().is_none());
        drop(first);
        assert!(order.room().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn t9_t32_those_that_wait_to_be_served_keep_their_places_however_long_that_takes() {
        let order = InOrder::new(2);
        let (mut first, mut second) = (enter(&order, 1).await, enter(&order, 1).await);
        let until = clock::now() + FAR / 2;
        second.hold(slot(), until);
        first.hold(slot(), until);
        let mut third = pin!(enter(&order, 1));
        assert!(futures_util::poll!(&mut third).is_pending());
        // A view comes, and after it more time than slots take to change hands.
        order.close(slot(), clock::now());
        clock::sleep(WAIT * 3).await;
        assert!(futures_util::poll!(&mut third).is_pending());
        let deadline = clock::now() + FAR;
        let goes = [(slot(), 1)];
        {
            // At the same node, and yet not ahead of the first.
            let early = pin!(ready(()));
            let mut waits = pin!(second.again(&goes, deadline, early));
            assert!(futures_util::poll!(&mut waits).is_pending());
            let sent = first.again(&goes, deadline, pin!(ready(()))).await;
            assert!(matches!(sent, Again::Sent(_)));
            assert!(matches!(waits.await, Again::Sent(_)));
        }
        for mut place in [first, second] {
            assert!(futures_util::poll!(&mut third).is_pending());
            place.ran();
        }
        third.await;
    }

    #[tokio::test(start_paused = true)]
    async fn c13_those_that_wait_for_a_first_owner_are_sent_in_the_order_in_which_they_came() {
        let order = InOrder::new(2);
        let entry = Entry {
            slot: slot(),
            key: Some(7),
            node: NOBODY,
        };
        let deadline = clock::now() + FAR;
        let mut lined: Vec<_> = (0..3)
            .map(|_| order.stand_in_line(Entries::from_slice(&[entry]), deadline))
            .collect();
        let goes = [(slot(), 1)];
        let mut later = pin!(enter(&order, 1));
        assert!(futures_util::poll!(&mut later).is_pending());
        let sent = std::cell::RefCell::new(Vec::new());
        let sends = lined.iter_mut().enumerate().rev();
        let sends = sends.map(|(number, places)| {
            let (sent, goes) = (&sent, &goes);
            async move {
                let attempt = pin!(async { sent.borrow_mut().push(number) });
                places.again(goes, deadline, attempt).await
            }
        });
        let ended = futures_util::future::join_all(sends).await;
        assert!(ended.iter().all(|again| matches!(again, Again::Sent(_))));
        assert_eq!(*sent.borrow(), [0, 1, 2]);
        assert!(futures_util::poll!(&mut later).is_pending());
        drop(lined);
        later.await;
    }

    #[tokio::test(start_paused = true)]
    async fn t9_one_that_was_let_through_after_the_wait_overtakes_for_good_and_says_so() {
        let order = InOrder::new(2);
        let mut first = enter(&order, 1).await;
        order.close(slot(), clock::now());
        // The wait has an end.
        let _third = enter(&order, 2).await;
        let attempt = pin!(ready(()));
        let deadline = clock::now() + FAR;
        let again = first.again(&[(slot(), 2)], deadline, attempt).await;
        assert!(matches!(again, Again::Overtaken));
    }
}
