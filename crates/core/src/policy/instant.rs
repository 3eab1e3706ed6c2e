//! Sums of time that cannot overflow: settings may be `Duration::MAX`, and `Instant + Duration` panics.

use std::time::{Duration, Instant};

/// `now + pause`, or a moment so far off that it never comes.
pub(super) fn after(now: Instant, pause: Duration) -> Instant {
    now.checked_add(pause)
        .or_else(|| now.checked_add(FAR_OFF))
        .unwrap_or(now)
}

/// A hundred years.
const FAR_OFF: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;

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
