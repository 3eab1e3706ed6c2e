//! Sums of time that cannot overflow: settings may be `Duration::MAX`, and `Instant + Duration`
//! panics.

use std::time::{Duration, Instant};

/// `now + pause`, or a moment so far off that it never comes.
pub(super) fn after(now: Instant, pause: Duration) -> Instant {
    now.checked_add(pause)
        .or_else(|| now.checked_add(FAR_OFF))
        .unwrap_or(now)
}

/// So many nanoseconds, or the longest time there is.
pub(super) fn nanoseconds(n: u128) -> Duration {
    const IN_A_SECOND: u128 = 1_000_000_000;
    let (whole, rest) = (n / IN_A_SECOND, n % IN_A_SECOND);
    match (u64::try_from(whole), u32::try_from(rest)) {
        (Ok(seconds), Ok(nanos)) => Duration::new(seconds, nanos),
        _ => Duration::MAX,
    }
}

/// A hundred years.
const FAR_OFF: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;

    #[test]
    fn nanoseconds_are_whole_times_or_all_there_is() {
        for time in [Duration::ZERO, Duration::new(7, 999_999_999), Duration::MAX] {
            assert_eq!(nanoseconds(time.as_nanos()), time);
        }
        assert_eq!(nanoseconds(u128::MAX), Duration::MAX);
    }

    #[test]
    fn a_sum_past_the_end_of_time_is_merely_far_off() {
        let now = Instant::now();
        assert_eq!(after(now, Duration::MAX), now + FAR_OFF);
        assert_eq!(
            after(now, Duration::from_secs(1)),
            now + Duration::from_secs(1)
        );
    }
}
