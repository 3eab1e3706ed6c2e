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

use std::pin::Pin;
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

const STRIPES: usize = 256;

/// The commands under way, by slot.
#[derive(Debug)]
pub(super) struct InOrder {
    next: AtomicU64,
    stripes: Box<[Mutex<Stripe>]>,
    /// Told whenever those who wait for their turn may have it.
    changed: Notify,
    /// The number of calls that wait for their slot, and the number that may.
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
    under_way: Vec<UnderWayIn>,
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
    /// A slot of it changes hands, until then at most.
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
            under_way: Vec::new(),
        };
        Self {
            next: AtomicU64::new(0),
            stripes: (0..STRIPES).map(|_| Mutex::new(stripe())).collect(),
            changed: Notify::new(),
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

    /// Locks what has to do with these slots, always in the same order.
    fn lock<'a>(&'a self, slots: impl Iterator<Item = Slot>) -> Locks<'a> {
        let mut stripes: SmallVec<[usize; 1]> = slots.map(stripe_of).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let locks = stripes.into_iter();
        locks.map(|at| (at, self.stripes[at].lock())).collect()
    }

    /// Polls `attempt` for the first time, by which it is submitted, and gives it places; unless a
    /// slot changes hands: then it waits a while. Or its nodes are not those any more that its
    /// slots belong to, as `stands` says while nobody can change that.
    pub(super) async fn enter<F: Future>(
        &self,
        entries: Entries,
        (now, deadline): (Instant, Instant),
        stands: impl Fn() -> bool,
        mut attempt: Pin<&mut F>,
    ) -> Entered<'_, F::Output> {
        let mut entries = Some(entries);
        let mut changed = std::pin::pin!(self.changed.notified());
        let tried = std::future::poll_fn(|cx| {
            let entries = entries.take().unwrap_or_default();
            let tried = self.try_enter(entries, now, &stands, cx, attempt.as_mut());
            if tried.is_err() {
                changed.as_mut().enable();
            }
            Poll::Ready(tried)
        });
        match tried.await {
            Ok((places, polled)) => Entered::Sent(places, polled),
            Err(Halted::Elsewhere) => Entered::Waited,
            Err(Halted::Until(until)) => {
                let Some(_room) = self.room() else {
                    return Entered::NoRoom;
                };
                let _ = clock::timeout_at(until.min(deadline), changed).await;
                Entered::Waited
            }
        }
    }

    fn try_enter<F: Future>(
        &self,
        entries: Entries,
        now: Instant,
        stands: &impl Fn() -> bool,
        cx: &mut Context<'_>,
        attempt: Pin<&mut F>,
    ) -> Result<(Places<'_>, Poll<F::Output>), Halted> {
        let mut locks = self.lock(entries.iter().map(|entry| entry.slot));
        if !stands() {
            return Err(Halted::Elsewhere);
        }
        for entry in &entries {
            let stripe = locked(&mut locks, entry.slot);
            if !stripe.gate.is_calm()
                && let Passage::Until(until) = stripe.gate.pass(entry.slot, now)
            {
                return Err(Halted::Until(until));
            }
        }
        let command = self.next.fetch_add(1, Ordering::Relaxed);
        for entry in &entries {
            let entry = *entry;
            let under_way = &mut locked(&mut locks, entry.slot).under_way;
            under_way.push(UnderWayIn { command, entry });
        }
        let polled = attempt.poll(cx);
        drop(locks);
        let places = Places {
            order: self,
            command,
            entries,
            ran: false,
        };
        Ok((places, polled))
    }

    /// The slot changes hands: closes its gate, if commands of it are under way.
    pub(super) fn close(&self, slot: Slot, now: Instant) {
        self.hand_over(slot, now, || {});
    }

    /// Closes the gate of a slot, if commands of it are under way, and gives it another owner before
    /// any other command can enter.
    pub(super) fn hand_over<T>(&self, slot: Slot, now: Instant, change: impl FnOnce() -> T) -> T {
        let mut stripe = self.stripe(slot).lock();
        let Stripe { gate, under_way } = &mut *stripe;
        let of_slot = under_way.iter().filter(|one| one.entry.slot == slot);
        let of_slot = of_slot.map(|one| UnderWay {
            command: one.command,
            connection: one.entry.node.into(),
            key: one.entry.key,
        });
        gate.close(slot, of_slot, now);
        change()
    }

    /// A command has ended, as far as this slot is concerned.
    fn settle(&self, slot: Slot, command: u64, ran: bool) {
        let mut stripe = self.stripe(slot).lock();
        let is_it = |one: &UnderWayIn| one.command == command && one.entry.slot == slot;
        if let Some(at) = stripe.under_way.iter().rposition(is_it) {
            stripe.under_way.swap_remove(at);
        }
        if !stripe.gate.is_calm() {
            stripe.gate.settle(slot, command, ran);
            drop(stripe);
            self.changed.notify_waiters();
        }
    }
}

fn stripe_of(slot: Slot) -> usize {
    usize::from(slot.number()) % STRIPES
}

/// The stripe of a slot, which is locked.
fn locked<'l>(locks: &'l mut Locks<'_>, slot: Slot) -> &'l mut Stripe {
    let at = stripe_of(slot);
    let place = locks.iter().position(|(stripe, _)| *stripe == at);
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
        loop {
            let mut changed = std::pin::pin!(order.changed.notified());
            changed.as_mut().enable();
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
            match tried.await {
                Ok(sent) => {
                    // Whoever is to come behind it on this node may.
                    order.changed.notify_waiters();
                    return sent;
                }
                Err(Resubmission::Overtaken) => return Again::Overtaken,
                Err(_) => {}
            }
            if clock::timeout_at(deadline, changed).await.is_none() {
                return Again::TimedOut;
            }
        }
    }

    /// Locks its slots, if it is its turn in all of them.
    fn try_again(&mut self, goes: &[(Slot, u16)]) -> Result<Locks<'_>, Resubmission> {
        let order = self.order;
        let mut locks = order.lock(goes.iter().map(|(slot, _)| *slot));
        for (slot, node) in goes {
            let gate = &locked(&mut locks, *slot).gate;
            match gate.may_resubmit(*slot, self.command, (*node).into()) {
                Resubmission::Go => {}
                why => return Err(why),
            }
        }
        for (slot, node) in goes {
            let Stripe { gate, under_way } = locked(&mut locks, *slot);
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

    const FAR: Duration = Duration::from_secs(60);

    /// Takes a place for a command on this node, when its slot lets it.
    async fn enter(order: &InOrder, node: u16) -> Places<'_> {
        let entry = Entry {
            slot: slot(),
            key: Some(7),
            node,
        };
        loop {
            let now = clock::now();
            let attempt = pin!(ready(()));
            let entries = Entries::from_slice(&[entry]);
            match order
                .enter(entries, (now, now + FAR), || true, attempt)
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
        let entered = order.enter(entries, times, stands, attempt).await;
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
