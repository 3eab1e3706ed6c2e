//! A rate with a burst, kept as one moment: when the bucket will be full again. That is the generic
//! cell rate algorithm (GCRA, ITU-T I.371) in its form of virtual scheduling. Nothing is refilled,
//! so a caller that is away costs nothing, and a refusal knows when the next one may go.

use std::time::{Duration, Instant};

use super::instant::after;

/// So many in each period, evenly spread, and so many of them at once.
///
/// ```
/// use std::time::{Duration, Instant};
/// use steadfast_core::policy::RateLimit;
///
/// let limit = RateLimit::new(10, Duration::from_secs(1), 2);
/// # #[allow(clippy::disallowed_methods)]
/// let now = Instant::now();
/// let one = limit.take(now, now).unwrap();
/// let two = limit.take(one.full_at, now).unwrap();
/// assert_eq!(two.remaining, 0);
/// assert_eq!(limit.take(two.full_at, now), Err(Duration::from_millis(100)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    interval: Duration,
    capacity: Duration,
}

/// A request that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// When the bucket will be full again: to be handed in with the next one.
    pub full_at: Instant,
    /// How many more may come at this moment.
    pub remaining: u32,
}

impl RateLimit {
    /// A limit of `quota` in each `period`, of which `burst` may come at once. A quota of 0 counts
    /// as 1.
    #[must_use]
    pub fn new(quota: u32, period: Duration, burst: u32) -> Self {
        let interval = period / quota.max(1);
        Self {
            interval,
            capacity: interval.saturating_mul(burst),
        }
    }

    /// Takes one at `now` from a bucket that will be full at `full_at`; a moment that is past, or
    /// `now`, says that it is full.
    ///
    /// # Errors
    /// How long to wait until one may go. Nothing was taken then.
    pub fn take(&self, full_at: Instant, now: Instant) -> Result<Taken, Duration> {
        let full_at = after(full_at.max(now), self.interval);
        let owed = full_at.saturating_duration_since(now);
        let Some(room) = self.capacity.checked_sub(owed) else {
            return Err(owed - self.capacity);
        };
        let remaining = room.as_nanos() / self.interval.as_nanos().max(1);
        Ok(Taken {
            full_at,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_then_one_each_interval() {
        let limit = RateLimit::new(10, Duration::from_secs(1), 3);
        let start = Instant::now();
        let (mut full_at, mut now, mut passed) = (start, start, 0);
        for _ in 0..1000 {
            match limit.take(full_at, now) {
                Ok(taken) => {
                    full_at = taken.full_at;
                    passed += 1;
                }
                Err(wait) => now += wait,
            }
        }
        let most = 3.0 + 10.0 * (now - start).as_secs_f64();
        assert!((f64::from(passed) - most).abs() < 1.5, "{passed} of {most}");
    }

    #[test]
    fn settings_without_bounds_do_not_overflow() {
        let now = Instant::now();
        let limit = RateLimit::new(0, Duration::MAX, u32::MAX);
        assert!(limit.take(now, now).is_ok());
        let endless = RateLimit::new(u32::MAX, Duration::from_nanos(1), u32::MAX);
        assert!(endless.take(now, now).is_ok());
    }
}
