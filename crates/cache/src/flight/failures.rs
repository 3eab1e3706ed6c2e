//! The keys that were loaded in vain lately: by their hashes, in a table of fixed size, so that it
//! does not matter where their values are held.
//!
//! It may take one key for another, and forget one. That costs a load that is tried a little later
//! or sooner, and never correctness.
//!
//! Who holds something stale is served that after the first failure. Who holds nothing may try
//! again at once, since the first failure is often the last (a connection that was cut off, a
//! deadlock); only a key that fails again and again is left alone for a while between tries, longer
//! each time.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::monotonic::Monotonic;

/// The time at which the load of a key failed last.
pub(crate) struct Failures {
    /// Each a part of the key's hash, then how often it has failed in a row, then milliseconds
    /// since the start, one more than there were.
    slots: Box<[AtomicU64]>,
    /// None while nothing has failed, which is nearly always.
    any: AtomicBool,
    start: Monotonic,
    hasher: foldhash::quality::RandomState,
}

impl Failures {
    pub(crate) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            any: AtomicBool::new(false),
            start: Monotonic::now(),
            hasher: foldhash::quality::RandomState::default(),
        }
    }

    /// `tried`: the loader was run, rather than refused.
    pub(crate) fn note(&self, key: &[u8], now: Monotonic, tried: bool) {
        let (slot, mark) = self.slot(key);
        let there = slot.load(Ordering::Relaxed);
        let before = if there & MARK == mark {
            (there & IN_A_ROW) >> STAMP_BITS
        } else {
            0
        };
        let in_a_row = match tried {
            true => (before + 1).min(MOST),
            // Being refused keeps no key away, whatever became of it before.
            false => before.min(u64::from(TRIES) - 1),
        };
        let noted = mark | in_a_row << STAMP_BITS | self.stamp(now);
        slot.store(noted, Ordering::Relaxed);
        self.any.store(true, Ordering::Relaxed);
    }

    pub(crate) fn forget(&self, key: &[u8]) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let (slot, mark) = self.slot(key);
        let there = slot.load(Ordering::Relaxed);
        if there & MARK == mark {
            let _ = slot.compare_exchange(there, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Returns what is left of this span since the last failure, if anything.
    pub(crate) fn wait(&self, key: &[u8], now: Monotonic, span: Duration) -> Option<Duration> {
        self.left(key, now, |_| span)
    }

    /// Returns the time after which a key that fails again and again may be tried again, if it may
    /// not yet; that is `longest` at most.
    pub(crate) fn hold(&self, key: &[u8], now: Monotonic, longest: Duration) -> Option<Duration> {
        self.left(key, now, |in_a_row| match in_a_row.checked_sub(TRIES) {
            Some(more) => longest.min(FIRST_PAUSE * (1 << more)),
            None => Duration::ZERO,
        })
    }

    fn left(
        &self,
        key: &[u8],
        now: Monotonic,
        span: impl FnOnce(u32) -> Duration,
    ) -> Option<Duration> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let (slot, mark) = self.slot(key);
        let there = slot.load(Ordering::Relaxed);
        if there == 0 || there & MARK != mark {
            return None;
        }
        let passed = self.stamp(now).wrapping_sub(there) & STAMP;
        let span = span(((there & IN_A_ROW) >> STAMP_BITS) as u32);
        let left = span.checked_sub(Duration::from_millis(passed))?;
        (!left.is_zero()).then_some(left)
    }

    fn slot(&self, key: &[u8]) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(key);
        (&self.slots[hash as usize % SLOTS], hash & MARK)
    }

    /// Milliseconds, which begin anew after 12 days.
    fn stamp(&self, now: Monotonic) -> u64 {
        let passed: Duration = now.since(self.start).into();
        (passed.as_millis() as u64).wrapping_add(1) & STAMP
    }
}

const SLOTS: usize = 4096;

/// 30 bits of the hash, 4 of the count, 30 of the time.
const STAMP_BITS: u32 = 30;
const STAMP: u64 = (1 << STAMP_BITS) - 1;
const MOST: u64 = 15;
const IN_A_ROW: u64 = MOST << STAMP_BITS;
const MARK: u64 = !(STAMP | IN_A_ROW);

/// So often a key may fail in a row before it is left alone, for so long at first and twice as long
/// each time.
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k9_a_failure_is_remembered_for_a_span_and_until_a_load_succeeds() {
        let (failures, now) = (Failures::new(), Monotonic::now());
        let at = |ms: u64| now.plus(Duration::from_millis(ms).into());
        let span = Duration::from_secs(1);
        assert_eq!(failures.wait(b"a", at(0), span), None);
        failures.note(b"a", at(0), true);
        assert!(failures.wait(b"a", at(900), span).is_some());
        assert_eq!(failures.wait(b"a", at(1100), span), None);
        assert_eq!(failures.wait(b"b", at(0), span), None);
        failures.note(b"a", at(2000), true);
        failures.forget(b"a");
        assert_eq!(failures.wait(b"a", at(2000), span), None);
    }

    #[test]
    fn k9_a_key_that_fails_again_and_again_is_tried_less_and_less_often() {
        let (failures, now) = (Failures::new(), Monotonic::now());
        let at = |ms: u64| now.plus(Duration::from_millis(ms).into());
        let longest = Duration::from_millis(300);
        let hold = |ms| failures.hold(b"a", at(ms), longest);
        for _ in 0..20 {
            failures.note(b"a", at(0), false);
        }
        assert_eq!(hold(0), None, "it was never tried");
        for _ in 0..2 {
            failures.note(b"a", at(0), true);
            assert_eq!(hold(0), None, "it may have been an accident");
        }
        for pause in [50, 100, 200, 300, 300, 300] {
            failures.note(b"a", at(1000), true);
            assert_eq!(hold(1000), Some(Duration::from_millis(pause)));
            assert_eq!(hold(1000 + pause), None);
        }
        failures.note(b"a", at(1500), false);
        assert_eq!(hold(1500), None, "it was refused, and not tried");
        assert!(failures.wait(b"a", at(1500), longest).is_some());
        for _ in 0..20 {
            failures.note(b"a", at(2000), true);
        }
        assert_eq!(hold(2000), Some(longest));
        assert_eq!(failures.hold(b"a", at(2000), Duration::ZERO), None);
        failures.forget(b"a");
        failures.note(b"a", at(2000), true);
        assert_eq!(hold(2000), None);
    }
}
