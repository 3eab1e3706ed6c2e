//! A failure rate needs a memory of fixed size that forgets. Counting over *time* rather than over
//! the last n calls keeps the rate honest when traffic is thin: ten failures of this morning say
//! nothing about now.
//!
//! The window is cut into [`BUCKETS`] slices; each falls out of it whole. So what is counted
//! reaches back between 9⁄10 of the window and the whole of it.

use std::time::{Duration, Instant};

/// Slices of a window.
pub const BUCKETS: usize = 10;

/// Counts of what happened within the last stretch of time. 300 bytes, and constant time for every
/// operation.
///
/// A clock that jumps back (it should not) counts into the newest slice; one that jumps ahead
/// empties the window.
///
/// ```
/// use std::time::{Duration, Instant};
/// use steadfast_core::policy::window::{Counts, Window};
///
/// let (began, length) = (Instant::now(), Duration::from_secs(10));
/// let mut window = Window::new(length, began);
/// window.add(Counts::ok(3), began);
/// window.add(Counts::failure(), began);
/// window.add(Counts::slow(), began); // well, but too late
/// assert_eq!(window.counts(began).total(), 5);
/// assert_eq!(window.counts(began + 2 * length).total(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct Window {
    origin: Instant,
    bucket_nanos: u64,
    tick: u64,
    buckets: [Counts; BUCKETS],
}

impl Window {
    /// An empty window over the last `length`, which is at least 10 ns.
    pub fn new(length: Duration, now: Instant) -> Self {
        let bucket_nanos = clamped_nanos(length) / BUCKETS as u64;
        Self {
            origin: now,
            bucket_nanos: bucket_nanos.max(1),
            tick: 0,
            buckets: [Counts::default(); BUCKETS],
        }
    }

    /// Adds what happened at `now`.
    pub fn add(&mut self, counts: Counts, now: Instant) {
        self.advance(now);
        let bucket = &mut self.buckets[(self.tick % BUCKETS as u64) as usize];
        *bucket = bucket.plus(counts);
    }

    /// The sum of what happened lately.
    pub fn counts(&mut self, now: Instant) -> Counts {
        self.advance(now);
        self.buckets
            .iter()
            .fold(Counts::default(), |sum, bucket| sum.plus(*bucket))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets = [Counts::default(); BUCKETS];
    }

    fn advance(&mut self, now: Instant) {
        let tick = clamped_nanos(now.saturating_duration_since(self.origin)) / self.bucket_nanos;
        if tick <= self.tick {
            return;
        }
        if tick - self.tick >= BUCKETS as u64 {
            self.clear();
        } else {
            for passed in self.tick + 1..=tick {
                self.buckets[(passed % BUCKETS as u64) as usize] = Counts::default();
            }
        }
        self.tick = tick;
    }
}

/// Calls by how they ended. Sums saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ended well and in time.
    pub ok: u64,
    /// Failed.
    pub failed: u64,
    /// Ended well, but took too long.
    pub slow: u64,
}

impl Counts {
    /// So many calls that ended well.
    pub fn ok(n: u64) -> Self {
        Self {
            ok: n,
            ..Self::default()
        }
    }

    /// Counts of a single failure.
    pub fn failure() -> Self {
        Self {
            failed: 1,
            ..Self::default()
        }
    }

    /// Counts of a single slow call.
    pub fn slow() -> Self {
        Self {
            slow: 1,
            ..Self::default()
        }
    }

    /// All calls.
    pub fn total(self) -> u64 {
        self.ok
            .saturating_add(self.failed)
            .saturating_add(self.slow)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            ok: self.ok.saturating_add(other.ok),
            failed: self.failed.saturating_add(other.failed),
            slow: self.slow.saturating_add(other.slow),
        }
    }
}

/// Nanoseconds, cut off after 584 years.
fn clamped_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_slice_falls_out_after_the_length_of_the_window() {
        let start = Instant::now();
        let mut window = Window::new(10 * SECOND, start);
        window.add(Counts::failure(), start);
        window.add(Counts::ok(3), start + 5 * SECOND);
        assert_eq!(
            window.counts(start + 9 * SECOND),
            Counts {
                ok: 3,
                failed: 1,
                slow: 0
            }
        );
        assert_eq!(window.counts(start + 10 * SECOND), Counts::ok(3));
        assert_eq!(window.counts(start + 15 * SECOND), Counts::default());
    }

    #[test]
    fn a_long_gap_empties_the_window() {
        let start = Instant::now();
        let mut window = Window::new(10 * SECOND, start);
        window.add(Counts::slow(), start);
        assert_eq!(window.counts(start + 100_000 * SECOND), Counts::default());
    }

    #[test]
    fn a_clock_that_goes_back_counts_as_now() {
        let start = Instant::now();
        let mut window = Window::new(10 * SECOND, start);
        window.add(Counts::ok(1), start + 5 * SECOND);
        window.add(Counts::ok(1), start + SECOND);
        window.add(Counts::ok(1), start.checked_sub(SECOND).unwrap_or(start));
        assert_eq!(window.counts(start + 14 * SECOND), Counts::ok(3));
        assert_eq!(window.counts(start + 15 * SECOND), Counts::default());
    }

    #[test]
    fn extreme_lengths_work() {
        let start = Instant::now();
        for length in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let mut window = Window::new(length, start);
            window.add(Counts::ok(u64::MAX), start);
            window.add(Counts::ok(u64::MAX), start);
            assert_eq!(window.counts(start).total(), u64::MAX);
        }
    }
}
