//! The line of those whom the breaker does not let pass freely.
//!
//! After an outage its ramp gives each call a turn, and the calls wait for theirs by timers, which are of whole milliseconds: two that were made
//! one after the other could change places. So each also waits for those before it, but not for long: one that is not polled when its turn
//! has come (its caller does something else) must not hold up the others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Line {
    state: Mutex<State>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Number and turn, in the order of both.
    waiting: VecDeque<(u64, Instant)>,
}

/// A place in the line; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    line: &'a Line,
    number: u64,
}

/// One that has not gone so long after its turn loses its place.
const PATIENCE: Duration = Duration::from_millis(20);

impl Line {
    /// Joins the line, behind all who have.
    pub(crate) fn join(&self, turn: Instant) -> Place<'_> {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.push_back((number, turn));
        Place { line: self, number }
    }

    /// True if nobody waits who is still waited for.
    pub(crate) fn is_clear(&self, now: Instant) -> bool {
        let state = self.state.lock();
        state
            .waiting
            .iter()
            .all(|(_, turn)| *turn + PATIENCE <= now)
    }

    /// Until when somebody with a lower number is waited for.
    fn blocked_until(&self, number: u64, now: Instant) -> Option<Instant> {
        let state = self.state.lock();
        state
            .waiting
            .iter()
            .take_while(|(ahead, _)| *ahead < number)
            .map(|(_, turn)| *turn + PATIENCE)
            .find(|until| *until > now)
    }
}

impl Place<'_> {
    /// Waits until those before it have gone, or have lost their places: 20 ms after the last turn among theirs at the latest.
    pub(crate) async fn reached(&self) {
        loop {
            let moved = self.line.moved.notified();
            let Some(until) = self.line.blocked_until(self.number, clock::now()) else {
                return;
            };
            let _ = tokio::time::timeout_at(until.into(), moved).await;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.line.state.lock();
        let place = state
            .waiting
            .iter()
            .position(|(number, _)| *number == self.number);
        if let Some(place) = place {
            state.waiting.remove(place);
        }
        drop(state);
        self.line.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn c13_whoever_came_first_goes_first() {
        let line = Line::default();
        let now = clock::now();
        let (first, second) = (line.join(now), line.join(now));
        let mut waiting = Box::pin(second.reached());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        first.reached().await;
        assert!(!line.is_clear(now));
        drop(first);
        waiting.await;
        assert_eq!(clock::now(), now, "no time was needed");
        drop(second);
        assert!(line.is_clear(now));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_go_holds_up_nobody_for_long() {
        let line = Line::default();
        let now = clock::now();
        let _asleep = line.join(now);
        line.join(now).reached().await;
        assert_eq!(clock::now() - now, PATIENCE);
        line.join(clock::now()).reached().await;
        assert_eq!(clock::now() - now, PATIENCE, "it has lost its place");
        assert!(line.is_clear(clock::now()));
    }
}
