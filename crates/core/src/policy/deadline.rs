//! A call has one absolute deadline, not a timeout for each of its steps: steps add up, a deadline
//! does not. And a call that cannot make its deadline should not be started, because it takes the
//! place of one that can.
//!
//! [`LatencyEstimate`] says what a call is expected to take *now*. It is shared without a lock; on
//! the healthy path it costs one relaxed load. Three things keep it from refusing for ever on the
//! strength of what it once saw: it halves with every [`HALF_LIFE`] in which nothing is learnt; one
//! call in [`PROBE_EVERY`] goes whatever it says, and is learnt from; and it takes on what it
//! learns the faster the longer it has learnt nothing.
//!
//! ```
//! # #![allow(clippy::disallowed_methods)]
//! use std::time::{Duration, Instant};
//! use steadfast_core::policy::deadline::LatencyEstimate;
//!
//! let (now, ms) = (Instant::now(), Duration::from_millis);
//! let estimate = LatencyEstimate::new(now);
//! estimate.record(ms(400), now);
//! assert!(estimate.admit(ms(500), now).is_ok());
//! assert!(estimate.admit(ms(300), now).is_ok());  // doomed, but the one in 100 ms
//! assert!(estimate.admit(ms(300), now).is_err());
//! ```

use std::time::{Duration, Instant};

use super::{
    atomic::{AtomicU64, Ordering::Relaxed},
    instant::after,
};

/// When a call must be over. Sums saturate: `Deadline::after(now, Duration::MAX)` is a century
/// away.
///
/// ```
/// # #![allow(clippy::disallowed_methods)]
/// use std::time::{Duration, Instant};
/// use steadfast_core::policy::Deadline;
///
/// let (now, ms) = (Instant::now(), Duration::from_millis);
/// let call = Deadline::after(now, ms(100));
/// // A step may take 50 ms, but no longer than the call.
/// let step = call.step(now + ms(80), ms(50));
/// assert_eq!(step.instant(), now + ms(100));
/// assert_eq!(step.remaining(now + ms(90)), ms(10));
/// assert!(call.has_passed(now + ms(100)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// At this moment.
    pub fn at(moment: Instant) -> Self {
        Self(moment)
    }

    /// So long from now.
    pub fn after(now: Instant, limit: Duration) -> Self {
        Self(after(now, limit))
    }

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// Time left; nothing if it has passed.
    pub fn remaining(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Is it too late?
    pub fn has_passed(self, now: Instant) -> bool {
        now >= self.0
    }

    /// The deadline of one step that has a limit of its own: whichever comes first.
    #[must_use]
    pub fn step(self, now: Instant, limit: Duration) -> Self {
        self.min(Self::after(now, limit))
    }
}

/// One call that cannot meet its deadline in so much time is let go, so that the estimate can learn
/// that it is wrong.
pub const PROBE_EVERY: Duration = Duration::from_millis(100);

/// The estimate halves in so much time in which no call has ended.
pub const HALF_LIFE: Duration = Duration::from_millis(500);

/// How much of what was known is still there after so much time of new results: half. So a change
/// in the server's latency shows within some tenths of a second, and a single slow answer among
/// fast ones does not.
pub const MEMORY: Duration = Duration::from_millis(200);

/// The time that a call is expected to take, by what calls took lately. All operations are
/// lock-free.
#[derive(Debug)]
pub struct LatencyEstimate {
    start: Instant,
    /// Nanoseconds, as of `learnt_at`; 0 while nothing is known.
    nanos: AtomicU64,
    /// Nanoseconds since `start`.
    learnt_at: AtomicU64,
    /// Nanoseconds since `start` from which the next probe may go.
    next_probe: AtomicU64,
}

impl LatencyEstimate {
    /// Knows nothing, and admits everything.
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            nanos: AtomicU64::new(0),
            learnt_at: AtomicU64::new(0),
            next_probe: AtomicU64::new(0),
        }
    }

    /// A call with so much time left arrives. Errors: [`DeadlineInfeasible`], if it would not be
    /// answered in time.
    ///
    /// `now` is looked at only if the last estimate speaks against the call.
    #[inline]
    pub fn admit(&self, remaining: Duration, now: Instant) -> Result<(), DeadlineInfeasible> {
        if u128::from(self.nanos.load(Relaxed)) <= remaining.as_nanos() {
            return Ok(());
        }
        self.look_closer(remaining, now)
    }

    /// A call ended after so long, waiting included. One that timed out counts too, with the time
    /// it was given: it would have taken at least that. When many end at once, one of them will do.
    ///
    /// Of two that report in the same instant one may be lost, which an estimate can bear.
    pub fn record(&self, took: Duration, now: Instant) {
        let now = self.since_start(now);
        let learnt_at = self.learnt_at.swap(now, Relaxed);
        let (known, took) = (self.nanos.load(Relaxed), nanos(took).max(1));
        let learnt = if known == 0 {
            took
        } else {
            let memory = nanos(MEMORY);
            let passed = now.saturating_sub(learnt_at).max(memory / LEAST_WEIGHT);
            // After a pause one slow answer alone would be believed almost whole, and refuse calls
            // to a server that is well again.
            let passed = if took > known {
                passed.min(memory / MOST_WEIGHT_OF_SLOW)
            } else {
                passed
            };
            blend(known, took, passed, memory)
        };
        self.nanos.store(learnt, Relaxed);
    }

    /// Returns the time that a call is expected to take now; nothing while nothing is known.
    pub fn expected(&self, now: Instant) -> Duration {
        let idle = self
            .since_start(now)
            .saturating_sub(self.learnt_at.load(Relaxed));
        let halvings = idle as f64 / nanos(HALF_LIFE) as f64;
        Duration::from_nanos((self.nanos.load(Relaxed) as f64 * (-halvings).exp2()) as u64)
    }

    #[cold]
    fn look_closer(&self, remaining: Duration, now: Instant) -> Result<(), DeadlineInfeasible> {
        let expected = self.expected(now);
        if expected <= remaining {
            return Ok(());
        }
        let now = self.since_start(now);
        let next = self.next_probe.load(Relaxed);
        let following = now.saturating_add(nanos(PROBE_EVERY));
        if now >= next
            && self
                .next_probe
                .compare_exchange(next, following, Relaxed, Relaxed)
                .is_ok()
        {
            return Ok(());
        }
        let retry_after = Duration::from_nanos(next.saturating_sub(now));
        Err(DeadlineInfeasible {
            expected,
            remaining,
            retry_after,
        })
    }

    fn since_start(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }
}

/// The call would not be answered before its deadline, at the latency now observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a call takes about {} ms at present, and this one has {} ms left", expected.as_millis(), remaining.as_millis())]
pub struct DeadlineInfeasible {
    /// The time that a call takes now.
    pub expected: Duration,
    /// The time that this one had.
    pub remaining: Duration,
    /// When the next call may go whatever it has.
    pub retry_after: Duration,
}

/// Results in the same instant weigh at least 1⁄65 each.
const LEAST_WEIGHT: u64 = 64;
/// A single slow result weighs at most 1⁄5, however long ago the one before it was.
const MOST_WEIGHT_OF_SLOW: u64 = 4;

/// `known + (took − known) · passed / (passed + memory)`, which lies between the two.
fn blend(known: u64, took: u64, passed: u64, memory: u64) -> u64 {
    let (passed, memory) = (u128::from(passed), u128::from(memory));
    let sum = u128::from(known) * memory + u128::from(took) * passed;
    u64::try_from(sum / (passed + memory)).unwrap_or(u64::MAX)
}

/// Nanoseconds, cut off after 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::disallowed_methods, clippy::unwrap_used)]
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// An estimate that has seen nothing but calls of this length, and has just let its pilot go.
    fn after_calls_of(took: Duration) -> (LatencyEstimate, Instant) {
        let start = Instant::now();
        let estimate = LatencyEstimate::new(start);
        estimate.record(took, start);
        estimate.admit(Duration::ZERO, start).unwrap();
        (estimate, start)
    }

    #[test]
    fn c1_a_step_ends_with_its_call_at_the_latest() {
        let now = Instant::now();
        let deadline = Deadline::after(now, ms(100));
        assert_eq!(deadline.step(now, ms(30)).remaining(now), ms(30));
        assert_eq!(deadline.step(now + ms(80), ms(30)), deadline);
        assert_eq!(deadline.step(now, Duration::MAX), deadline);
        assert!(!deadline.has_passed(now + ms(99)) && deadline.has_passed(now + ms(100)));
        assert_eq!(deadline.remaining(now + ms(200)), Duration::ZERO);
    }

    #[test]
    fn while_nothing_is_known_everything_is_admitted() {
        let now = Instant::now();
        let estimate = LatencyEstimate::new(now);
        assert!((0..100).all(|_| estimate.admit(Duration::ZERO, now).is_ok()));
    }

    #[test]
    fn c11_a_call_that_cannot_finish_in_time_is_refused() {
        let (estimate, now) = after_calls_of(ms(400));
        assert!(estimate.admit(ms(400), now).is_ok());
        let doomed = estimate.admit(ms(399), now).unwrap_err();
        assert_eq!(
            doomed,
            DeadlineInfeasible {
                expected: ms(400),
                remaining: ms(399),
                retry_after: ms(100)
            }
        );
    }

    #[test]
    fn c11_one_call_in_100_ms_is_always_admitted() {
        let (estimate, start) = after_calls_of(Duration::from_secs(3600));
        let admitted = (1..=1000)
            .filter(|n| estimate.admit(ms(1), start + ms(*n)).is_ok())
            .count();
        assert_eq!(admitted, 10);
    }

    #[test]
    fn c11_the_refusal_does_not_latch_when_nothing_is_learnt() {
        let (estimate, start) = after_calls_of(ms(1600));
        assert_eq!(estimate.expected(start + 4 * HALF_LIFE), ms(100));
        assert!((0..100).all(|_| estimate.admit(ms(100), start + 4 * HALF_LIFE).is_ok()));
    }

    #[test]
    fn c11_the_pilots_alone_bring_the_estimate_down() {
        let (estimate, start) = after_calls_of(Duration::from_secs(2));
        let mut now = start;
        let mut pilots = 0;
        while estimate.expected(now) > ms(50) {
            now += ms(1);
            if estimate.admit(ms(50), now).is_ok() {
                pilots += 1;
                estimate.record(ms(1), now);
            }
        }
        assert!(pilots <= 15, "{pilots} pilots");
    }

    #[test]
    fn one_slow_answer_among_fast_ones_refuses_nobody() {
        let (estimate, start) = after_calls_of(ms(1));
        let later = start + ms(5);
        estimate.record(ms(900), later);
        assert!(
            estimate.expected(later) < ms(50),
            "{:?}",
            estimate.expected(later)
        );
    }

    #[test]
    fn c11_one_slow_answer_after_a_pause_refuses_nobody() {
        let (estimate, start) = after_calls_of(ms(1));
        let later = start + Duration::from_secs(60);
        estimate.record(ms(2_000), later);
        let ordinary = Duration::from_secs(1);
        assert!((0..100).all(|_| estimate.admit(ordinary, later).is_ok()));
    }

    #[test]
    fn a_server_that_became_slow_is_noticed_within_some_tenths_of_a_second() {
        let (estimate, start) = after_calls_of(ms(1));
        for n in 1..=40 {
            estimate.record(ms(800), start + n * ms(10));
        }
        assert!(estimate.expected(start + ms(400)) > ms(600));
    }

    #[test]
    fn extremes_do_not_panic() {
        let start = Instant::now();
        let estimate = LatencyEstimate::new(start);
        let end = Deadline::after(start, Duration::MAX).instant();
        for now in [end, start, end] {
            estimate.record(Duration::MAX, now);
            estimate.record(Duration::ZERO, now);
            assert!(estimate.admit(Duration::MAX, now).is_ok());
            let _ = estimate.admit(Duration::ZERO, now);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    #![allow(clippy::disallowed_methods, clippy::unwrap_used)]
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn of_two_infeasible_calls_at_once_exactly_one_is_the_probe() {
        loom::model(|| {
            let now = Instant::now();
            let estimate = Arc::new(LatencyEstimate::new(now));
            estimate.record(Duration::from_secs(1), now);
            let other = Arc::clone(&estimate);
            let other = thread::spawn(move || u32::from(other.admit(Duration::ZERO, now).is_ok()));
            let mine = u32::from(estimate.admit(Duration::ZERO, now).is_ok());
            assert_eq!(mine + other.join().unwrap(), 1);
        });
    }

    #[test]
    fn two_who_report_at_once_leave_an_estimate_between_them() {
        loom::model(|| {
            let now = Instant::now();
            let second = Duration::from_secs(1);
            let estimate = Arc::new(LatencyEstimate::new(now));
            let other = Arc::clone(&estimate);
            let other = thread::spawn(move || other.record(second, now));
            estimate.record(3 * second, now + second);
            other.join().unwrap();
            let known = estimate.nanos.load(Relaxed);
            assert!(
                (nanos(second)..=nanos(3 * second)).contains(&known),
                "{known}"
            );
        });
    }
}
