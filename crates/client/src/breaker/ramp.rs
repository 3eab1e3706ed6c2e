//! The line of those whom the breaker does not let pass freely.
//!
//! After an outage its ramp gives each call a turn, and the calls wait for theirs by timers, which
//! are of whole milliseconds: two that were made one after the other could change places. So each
//! also waits for those before it, but not for long: one that is not polled when its turn has come
//! (its caller does something else) must not hold up the others.
//!
//! A ramp may be cut short: the breaker opens again, and the turns that it gave mean nothing any
//! more. Then those who wait for them are recalled, to ask the breaker anew. They keep their
//! places, as they have come before whoever comes now.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock;

/// The queue of calls that wait for their turns in a ramp.
#[derive(Debug, Default)]
pub(crate) struct RampQueue {
    state: Mutex<RampState>,
    moved: Notify,
    recalled: Notify,
}

#[derive(Debug, Default)]
struct RampState {
    next: u64,
    /// Turns that the breaker gave in an earlier generation are void.
    valid_from: u64,
    /// Number and turn, in the order of their numbers.
    waiting: VecDeque<(u64, Instant)>,
}

impl RampState {
    fn find(&self, number: u64) -> Option<usize> {
        let by_number = self
            .waiting
            .binary_search_by_key(&number, |(number, _)| *number);
        by_number.ok()
    }
}

/// A place in the queue; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct RampTicket<'a> {
    ramp: &'a RampQueue,
    number: u64,
    /// The breaker's, as it gave the turn.
    generation: u64,
}

/// The time after its turn in which a call must go, or it loses its place.
const FORFEIT_AFTER: Duration = Duration::from_millis(20);

impl RampQueue {
    /// Joins the queue, behind all who have, with a turn that the breaker gave in that generation.
    pub(crate) fn join(&self, turn: Instant, generation: u64) -> RampTicket<'_> {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.push_back((number, turn));
        RampTicket {
            ramp: self,
            number,
            generation,
        }
    }

    /// Voids the turns of earlier generations: a ramp was cut short. A waiter that has not yet been
    /// woken counts as if its turn had arrived.
    pub(crate) fn recall(&self, generation: u64, now: Instant) {
        let mut state = self.state.lock();
        state.valid_from = generation;
        for (_, turn) in &mut state.waiting {
            *turn = now.min(*turn);
        }
        drop(state);
        self.recalled.notify_waiters();
        self.moved.notify_waiters();
    }

    /// Returns whether no later call has to wait for one in the queue.
    pub(crate) fn is_clear(&self, now: Instant) -> bool {
        let state = self.state.lock();
        state
            .waiting
            .iter()
            .all(|(_, turn)| *turn + FORFEIT_AFTER <= now)
    }

    /// Returns until when a call has to wait for one with a lower number.
    fn blocked_until(&self, number: u64, now: Instant) -> Option<Instant> {
        let state = self.state.lock();
        state
            .waiting
            .iter()
            .take_while(|(ahead, _)| *ahead < number)
            .map(|(_, turn)| *turn + FORFEIT_AFTER)
            .find(|until| *until > now)
    }
}

impl RampTicket<'_> {
    /// Waits until the turn is void.
    pub(crate) async fn recalled(&self) {
        loop {
            let recalled = self.ramp.recalled.notified();
            if self.ramp.state.lock().valid_from > self.generation {
                return;
            }
            recalled.await;
        }
    }

    /// Sets another turn, in the same place.
    pub(crate) fn renew(&mut self, turn: Instant, generation: u64) {
        self.generation = generation;
        let mut state = self.ramp.state.lock();
        if let Some(at) = state.find(self.number) {
            state.waiting[at].1 = turn;
        }
        drop(state);
        self.ramp.moved.notify_waiters();
    }

    /// Waits until those before it have gone, or have lost their places: 20 ms after the last turn
    /// among theirs at the latest.
    pub(crate) async fn reached(&self) {
        loop {
            let moved = self.ramp.moved.notified();
            let Some(until) = self.ramp.blocked_until(self.number, clock::now()) else {
                return;
            };
            let _ = clock::timeout_at(until, moved).await;
        }
    }
}

impl Drop for RampTicket<'_> {
    fn drop(&mut self) {
        let mut state = self.ramp.state.lock();
        if let Some(at) = state.find(self.number) {
            state.waiting.remove(at);
        }
        drop(state);
        self.ramp.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn c13_whoever_came_first_goes_first() {
        let ramp = RampQueue::default();
        let now = clock::now();
        let (first, second) = (ramp.join(now, 1), ramp.join(now, 1));
        let mut waiting = Box::pin(second.reached());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        first.reached().await;
        assert!(!ramp.is_clear(now));
        drop(first);
        waiting.await;
        assert_eq!(clock::now(), now, "no time was needed");
        drop(second);
        assert!(ramp.is_clear(now));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_go_holds_up_nobody_for_long() {
        let ramp = RampQueue::default();
        let now = clock::now();
        let _asleep = ramp.join(now, 1);
        ramp.join(now, 1).reached().await;
        assert_eq!(clock::now() - now, FORFEIT_AFTER);
        ramp.join(clock::now(), 1).reached().await;
        assert_eq!(clock::now() - now, FORFEIT_AFTER, "it has lost its place");
        assert!(ramp.is_clear(clock::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_recalled_turn_holds_up_nobody_and_its_owner_hears_of_it() {
        let ramp = RampQueue::default();
        let now = clock::now();
        let late = now + Duration::from_secs(1);
        let (mut first, _asleep) = (ramp.join(late, 1), ramp.join(late, 1));
        let mut hearing = Box::pin(first.recalled());
        assert!(futures_util::poll!(&mut hearing).is_pending());
        ramp.recall(2, now);
        hearing.await;
        // One that joins with what it was given before has missed the call.
        ramp.join(late, 1).recalled().await;
        first.renew(now + FORFEIT_AFTER / 2, 2);
        assert!(futures_util::poll!(Box::pin(first.recalled())).is_pending());
        ramp.join(now, 2).reached().await;
        assert_eq!(clock::now() - now, FORFEIT_AFTER * 3 / 2);
    }
}
