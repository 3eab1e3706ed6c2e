//! One call's attempts, counted against one deadline. A pause that would end after the deadline is
//! not taken: the caller learns at once what it would otherwise learn late.
//!
//! Whether an error *may* be repeated is not decided here, nor whether the fleet can afford it (the
//! budget); this says only how often and how far apart.
//!
//! ```
//! # #![allow(clippy::disallowed_methods)]
//! use std::time::{Duration, Instant};
//! use steadfast_core::policy::retry::{GiveUp, RetryPolicy, RetryState, Step};
//!
//! let now = Instant::now();
//! let mut retry = RetryState::new(RetryPolicy::default(), now, None, fastrand::Rng::with_seed(1));
//! assert!(matches!(retry.next(now), Step::Pause(_)));      // the first attempt failed
//! assert!(matches!(retry.next(now), Step::Pause(_)));      // the second
//! assert_eq!(retry.next(now), Step::GiveUp(GiveUp::Attempts)); // the third
//! ```

use std::time::{Duration, Instant};

use super::{Backoff, InvalidSetting, Stop, stop::Limit};

/// How often to try, and how far apart.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The pauses between attempts. Default: full jitter from 10 ms to 1 s, doubling.
    pub backoff: Backoff,
    /// When to give up. Default: after 3 attempts.
    pub stop: Stop,
}

impl RetryPolicy {
    /// Pauses and a stop of one's own.
    pub fn new(backoff: Backoff, stop: Stop) -> Self {
        Self { backoff, stop }
    }

    /// A single attempt.
    pub fn none() -> Self {
        Self::new(Backoff::fixed(Duration::ZERO), Stop::after_attempts(1))
    }

    /// Refuses pauses that cannot work; see [`Backoff::validate`].
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        self.backoff.validate()
    }

    /// The most time that may pass between the first failure and the last attempt, if attempts
    /// themselves take none; `None` if there is no such limit. A deadline shorter than this cuts
    /// retries off. Looks at 10 000 attempts at most.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast_core::policy::{Backoff, RetryPolicy, Stop};
    ///
    /// let pause = Backoff::fixed(Duration::from_millis(20));
    /// let policy = RetryPolicy::new(pause, Stop::after_attempts(4));
    /// assert_eq!(policy.longest_pauses(), Some(Duration::from_millis(60)));
    /// assert_eq!(RetryPolicy::none().longest_pauses(), Some(Duration::ZERO));
    /// ```
    pub fn longest_pauses(&self) -> Option<Duration> {
        let (mut longest, mut elapsed) = (Duration::ZERO, Duration::ZERO);
        for attempt in 1..=10_000 {
            let Some(allowed) = self.stop.allowed_elapsed(attempt) else {
                return Some(longest);
            };
            elapsed = elapsed
                .min(allowed)
                .saturating_add(self.backoff.longest(attempt));
            longest = longest.max(elapsed);
        }
        let endless = self.stop.allowed_elapsed(u32::MAX) == Some(Duration::MAX);
        (!endless).then_some(longest)
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let backoff = Backoff::full_jitter(FIRST_PAUSE, LONGEST_PAUSE);
        Self::new(backoff, Stop::after_attempts(ATTEMPTS))
    }
}

/// Attempts of a call by default, the first one included.
pub const ATTEMPTS: u32 = 3;
/// The longest first pause between attempts by default, drawn with full jitter.
pub const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest of all pauses between attempts by default.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One call on its way through its attempts. Made when the first attempt fails or before, but told
/// of the moment at which that attempt began.
#[derive(Clone, Debug)]
pub struct RetryState {
    policy: RetryPolicy,
    started: Instant,
    deadline: Option<Instant>,
    attempts: u32,
    rng: fastrand::Rng,
}

impl RetryState {
    /// A call whose first attempt begins, or began, at `started`, and which must be over by
    /// `deadline`.
    pub fn new(
        policy: RetryPolicy,
        started: Instant,
        deadline: Option<Instant>,
        rng: fastrand::Rng,
    ) -> Self {
        Self {
            policy,
            started,
            deadline,
            attempts: 0,
            rng,
        }
    }

    /// An attempt has failed in a way that allows another: pause, or give up.
    pub fn next(&mut self, now: Instant) -> Step {
        self.next_no_sooner(now, Duration::ZERO)
    }

    /// As [`next`](Self::next), when the failure said not to come back within `at_least`.
    pub fn next_no_sooner(&mut self, now: Instant, at_least: Duration) -> Step {
        if let Some(limit) = self.failed(now) {
            return Step::GiveUp(limit);
        }
        let pause = self
            .policy
            .backoff
            .pause(self.attempts, &mut self.rng)
            .max(at_least);
        match self.remaining(now) {
            Some(remaining) if pause >= remaining => Step::GiveUp(GiveUp::Deadline),
            _ => Step::Pause(pause),
        }
    }

    /// As [`next`](Self::next), when the next attempt waits by itself for what it needs: no pause
    /// is drawn, so none can be too long for the time that is left.
    pub fn next_at_once(&mut self, now: Instant) -> Step {
        match self.failed(now) {
            Some(limit) => Step::GiveUp(limit),
            None if self.remaining(now) == Some(Duration::ZERO) => Step::GiveUp(GiveUp::Deadline),
            None => Step::Pause(Duration::ZERO),
        }
    }

    /// As [`next_at_once`](Self::next_at_once), after an attempt of which nothing reached the
    /// server: it is not counted. A policy that allows one attempt is still obeyed.
    pub fn next_after_none(&self, now: Instant) -> Step {
        let elapsed = now.saturating_duration_since(self.started);
        match self
            .policy
            .stop
            .limit_reached(self.attempts.max(1), elapsed)
        {
            Some(limit) => Step::GiveUp(limit.into()),
            None if self.remaining(now) == Some(Duration::ZERO) => Step::GiveUp(GiveUp::Deadline),
            None => Step::Pause(Duration::ZERO),
        }
    }

    /// Counts an attempt, which may have been the last.
    fn failed(&mut self, now: Instant) -> Option<GiveUp> {
        self.attempts = self.attempts.saturating_add(1);
        let elapsed = now.saturating_duration_since(self.started);
        self.policy
            .stop
            .limit_reached(self.attempts, elapsed)
            .map(GiveUp::from)
    }

    /// Attempts that have failed so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Time left until the deadline; `None` without one.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(now))
    }
}

/// The next step after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait so long, then try again.
    Pause(Duration),
    /// Hand the last error to the caller.
    GiveUp(GiveUp),
}

/// Why there is no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GiveUp {
    /// The policy's attempts are used up.
    Attempts,
    /// The policy's time is used up.
    Delay,
    /// The call's deadline has passed, or would pass within the pause.
    Deadline,
}

impl From<Limit> for GiveUp {
    fn from(limit: Limit) -> Self {
        match limit {
            Limit::Attempts => Self::Attempts,
            Limit::Delay => Self::Delay,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn fixed(pause: Duration, stop: Stop, deadline: Option<Duration>) -> (RetryState, Instant) {
        let now = Instant::now();
        let policy = RetryPolicy::new(Backoff::fixed(pause), stop);
        (
            RetryState::new(
                policy,
                now,
                deadline.map(|d| now + d),
                fastrand::Rng::with_seed(3),
            ),
            now,
        )
    }

    #[test]
    fn by_default_a_call_is_tried_three_times() {
        let now = Instant::now();
        let mut retry = RetryState::new(
            RetryPolicy::default(),
            now,
            None,
            fastrand::Rng::with_seed(3),
        );
        assert!(matches!(retry.next(now), Step::Pause(p) if p <= ms(10)));
        assert!(matches!(retry.next(now), Step::Pause(p) if p <= ms(20)));
        assert_eq!(retry.next(now), Step::GiveUp(GiveUp::Attempts));
        assert_eq!(retry.attempts(), 3);
    }

    #[test]
    fn none_tries_once() {
        let now = Instant::now();
        let mut retry =
            RetryState::new(RetryPolicy::none(), now, None, fastrand::Rng::with_seed(3));
        assert_eq!(retry.next(now), Step::GiveUp(GiveUp::Attempts));
    }

    #[test]
    fn c1_a_pause_that_would_outlive_the_deadline_is_not_taken() {
        let (mut retry, now) = fixed(ms(40), Stop::never(), Some(ms(100)));
        assert_eq!(retry.next(now), Step::Pause(ms(40)));
        assert_eq!(retry.next(now + ms(60)), Step::GiveUp(GiveUp::Deadline));
        assert_eq!(retry.next(now + ms(500)), Step::GiveUp(GiveUp::Deadline));
    }

    #[test]
    fn c20_an_attempt_of_which_nothing_was_sent_counts_as_none() {
        let (mut retry, now) = fixed(ms(1), Stop::after_attempts(3), None);
        let none = Step::Pause(Duration::ZERO);
        assert!((0..9).all(|_| retry.next_after_none(now) == none));
        assert_eq!(retry.attempts(), 0);
        assert_eq!(retry.next_at_once(now), none);
        assert!((0..9).all(|_| retry.next_after_none(now) == none));
        assert_eq!(retry.next(now), Step::Pause(ms(1)));
        assert!((0..9).all(|_| retry.next_after_none(now) == none));
        assert_eq!(retry.attempts(), 2);
        assert_eq!(retry.next(now), Step::GiveUp(GiveUp::Attempts));
    }

    #[test]
    fn c20_whoever_asks_for_one_attempt_gets_one_though_nothing_was_sent() {
        for attempts in [0, 1] {
            let (retry, now) = fixed(ms(1), Stop::after_attempts(attempts), None);
            assert_eq!(
                retry.next_after_none(now),
                Step::GiveUp(GiveUp::Attempts),
                "{attempts}"
            );
        }
    }

    #[test]
    fn c1_attempts_of_which_nothing_was_sent_end_with_the_time_that_is_given() {
        let (retry, now) = fixed(ms(1), Stop::after_delay(ms(50)), None);
        assert_eq!(
            retry.next_after_none(now + ms(49)),
            Step::Pause(Duration::ZERO)
        );
        let over = Step::GiveUp(GiveUp::Delay);
        assert_eq!(retry.next_after_none(now + ms(50)), over);
        let either = Stop::after_attempts(2).or(Stop::after_delay(ms(50)));
        let (retry, now) = fixed(ms(1), either, None);
        assert_eq!(retry.next_after_none(now + ms(50)), over);
        // Only with both: the attempts do not grow, so time alone ends nothing but its deadline.
        let both = Stop::after_attempts(2).and(Stop::after_delay(ms(50)));
        let (retry, now) = fixed(ms(1), both, Some(ms(100)));
        assert_eq!(
            retry.next_after_none(now + ms(99)),
            Step::Pause(Duration::ZERO)
        );
        let over = Step::GiveUp(GiveUp::Deadline);
        assert_eq!(retry.next_after_none(now + ms(100)), over);
    }

    #[test]
    fn a_delay_is_counted_from_the_start_of_the_first_attempt() {
        let (mut retry, now) = fixed(ms(1), Stop::after_delay(ms(50)), None);
        assert_eq!(retry.next(now + ms(49)), Step::Pause(ms(1)));
        assert_eq!(retry.next(now + ms(50)), Step::GiveUp(GiveUp::Delay));
    }

    #[test]
    fn what_the_failure_asked_for_is_waited_for() {
        let (mut retry, now) = fixed(ms(1), Stop::never(), Some(ms(100)));
        assert_eq!(retry.next_no_sooner(now, ms(30)), Step::Pause(ms(30)));
        assert_eq!(
            retry.next_no_sooner(now, Duration::MAX),
            Step::GiveUp(GiveUp::Deadline)
        );
    }

    #[test]
    fn the_longest_pauses_are_summed() {
        assert_eq!(RetryPolicy::default().longest_pauses(), Some(ms(30)));
        assert_eq!(
            RetryPolicy::new(Backoff::fixed(ms(1)), Stop::never()).longest_pauses(),
            None
        );
        let by_time = RetryPolicy::new(Backoff::fixed(ms(30)), Stop::after_delay(ms(100)));
        assert_eq!(by_time.longest_pauses(), Some(ms(130)));
    }
}
