//! Moments and spans of time as one number each, for what every hit in memory looks at.
//!
//! `Instant` and `Duration` keep seconds and nanoseconds apart and check each step. That was a
//! third of the instructions of a hit, and twice the room in an entry.

pub(crate) mod counter;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::clock::clock;

/// A moment of the monotonic clock, in nanoseconds. What another process loaded before this one
/// began has its place too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Monotonic(u64);

/// A span of time in nanoseconds; one of more than 584 years is cut to that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NanoSpan(u64);

impl Monotonic {
    pub(crate) const FIRST: Self = Self(0);
    pub(crate) const LAST: Self = Self(u64::MAX);

    #[inline]
    pub(crate) fn now() -> Self {
        clock().into()
    }

    /// Zero if the other is later.
    #[inline]
    pub(crate) fn since(self, earlier: Self) -> NanoSpan {
        NanoSpan(self.0.saturating_sub(earlier.0))
    }

    #[inline]
    pub(crate) fn plus(self, span: NanoSpan) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    #[inline]
    pub(crate) fn minus(self, span: NanoSpan) -> Self {
        Self(self.0.saturating_sub(span.0))
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl From<Instant> for Monotonic {
    #[inline]
    fn from(at: Instant) -> Self {
        let base = *BASE;
        match at.checked_duration_since(base) {
            Some(after) => Self(CENTURY.saturating_add(NanoSpan::from(after).0)),
            None => Self(CENTURY.saturating_sub(NanoSpan::from(base - at).0)),
        }
    }
}

impl From<Duration> for NanoSpan {
    #[inline]
    fn from(span: Duration) -> Self {
        let seconds = span.as_secs().saturating_mul(1_000_000_000);
        Self(seconds.saturating_add(u64::from(span.subsec_nanos())))
    }
}

impl From<NanoSpan> for Duration {
    #[inline]
    fn from(span: NanoSpan) -> Self {
        Self::from_nanos(span.0)
    }
}

/// Any moment of this process; it has the number [`CENTURY`].
static BASE: LazyLock<Instant> = LazyLock::new(clock);

const CENTURY: u64 = 100 * 365 * 86_400 * 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn moments_lie_as_far_apart_as_their_instants_on_both_sides_of_the_first_look(a in -315_360_000_000i64..315_360_000_000, b in -315_360_000_000i64..315_360_000_000) {
            let at = |ms: i64| {
                let span = Duration::from_millis(ms.unsigned_abs());
                if ms < 0 { BASE.checked_sub(span) } else { BASE.checked_add(span) }
            };
            if let (Some(x), Some(y)) = (at(a), at(b)) {
                let (m, n) = (Monotonic::from(x), Monotonic::from(y));
                prop_assert_eq!(m.cmp(&n), x.cmp(&y));
                prop_assert_eq!(Duration::from(m.since(n)), x.saturating_duration_since(y));
                prop_assert_eq!(n.plus(m.since(n)), m.max(n));
                prop_assert_eq!(m.minus(m.since(n)), m.min(n));
            }
        }
    }

    #[test]
    fn what_is_too_long_is_cut() {
        assert_eq!(NanoSpan::from(Duration::MAX), NanoSpan(u64::MAX));
        assert_eq!(Monotonic::LAST.plus(NanoSpan(1)), Monotonic::LAST);
        assert_eq!(Monotonic::FIRST.since(Monotonic::LAST), NanoSpan(0));
    }
}
