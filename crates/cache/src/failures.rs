//! Which keys were loaded in vain lately: by their hashes, in a table of fixed size, so that it does not matter where their values are held.
//!
//! It may take one key for another, and forget one. That costs a load that is tried a little later or sooner, and never correctness.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::moment::Moment;

/// When the load of a key failed last.
pub(crate) struct Failures {
    /// Each the upper half of the key's hash, then milliseconds since the start, one more than there were.
    slots: Box<[AtomicU64]>,
    /// None while nothing has failed, which is nearly always.
    any: AtomicBool,
    start: Moment,
    hasher: foldhash::quality::RandomState,
}

impl Failures {
    pub(crate) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            any: AtomicBool::new(false),
            start: Moment::now(),
            hasher: foldhash::quality::RandomState::default(),
        }
    }

    pub(crate) fn note(&self, key: &[u8], now: Moment) {
        let (slot, mark) = self.slot(key);
        slot.store(mark | u64::from(self.stamp(now)), Ordering::Relaxed);
        self.any.store(true, Ordering::Relaxed);
    }

    pub(crate) fn forget(&self, key: &[u8]) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let (slot, mark) = self.slot(key);
        let there = slot.load(Ordering::Relaxed);
        if there & !STAMP == mark {
            let _ = slot.compare_exchange(there, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// What is left of this span since the last failure, if anything.
    pub(crate) fn wait(&self, key: &[u8], now: Moment, span: Duration) -> Option<Duration> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let (slot, mark) = self.slot(key);
        let there = slot.load(Ordering::Relaxed);
        if there == 0 || there & !STAMP != mark {
            return None;
        }
        let passed = self.stamp(now).wrapping_sub((there & STAMP) as u32);
        let left = span.checked_sub(Duration::from_millis(passed.into()))?;
        (!left.is_zero()).then_some(left)
    }

    fn slot(&self, key: &[u8]) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(key);
        (&self.slots[hash as usize % SLOTS], hash & !STAMP)
    }

    /// Milliseconds, which begin anew after 49 days.
    fn stamp(&self, now: Moment) -> u32 {
        let passed: Duration = now.since(self.start).into();
        (passed.as_millis() as u32).wrapping_add(1)
    }
}

const SLOTS: usize = 4096;
const STAMP: u64 = 0xFFFF_FFFF;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k9_a_failure_is_remembered_for_a_span_and_until_a_load_succeeds() {
        let (failures, now) = (Failures::new(), Moment::now());
        let at = |ms: u64| now.plus(Duration::from_millis(ms).into());
        let span = Duration::from_secs(1);
        assert_eq!(failures.wait(b"a", at(0), span), None);
        failures.note(b"a", at(0));
        assert!(failures.wait(b"a", at(900), span).is_some());
        assert_eq!(failures.wait(b"a", at(1100), span), None);
        assert_eq!(failures.wait(b"b", at(0), span), None);
        failures.note(b"a", at(2000));
        failures.forget(b"a");
        assert_eq!(failures.wait(b"a", at(2000), span), None);
    }
}
