//! Pauses say how to try again; something else must say when it is enough. Limits on attempts and
//! limits on time are both needed, and neither covers the other: three attempts may take a minute,
//! one minute may hold a thousand attempts.
//!
//! ```
//! use std::time::Duration;
//! use steadfast_core::policy::Stop;
//!
//! let stop = Stop::after_attempts(5).or(Stop::after_delay(Duration::from_secs(2)));
//! assert!(stop.stops(5, Duration::ZERO));
//! assert!(stop.stops(1, Duration::from_secs(2)));
//! assert!(!stop.stops(4, Duration::from_secs(1)));
//! ```

use std::{sync::Arc, time::Duration};

/// When to give up. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop(Condition);

impl Stop {
    /// After so many attempts, the first one included. 0 counts as 1: the first attempt is always
    /// made.
    pub fn after_attempts(max_attempts: u32) -> Self {
        Self(Condition::Attempts(max_attempts))
    }

    /// Once so much time has passed since the first attempt began.
    pub fn after_delay(delay: Duration) -> Self {
        Self(Condition::Delay(delay))
    }

    /// Not for its own sake; a deadline or a budget ends the call.
    pub fn never() -> Self {
        Self(Condition::Never)
    }

    /// As soon as either stops.
    #[must_use]
    pub fn or(self, other: Stop) -> Self {
        Self(Condition::Or(Arc::new((self, other))))
    }

    /// Only when both stop.
    #[must_use]
    pub fn and(self, other: Stop) -> Self {
        Self(Condition::And(Arc::new((self, other))))
    }

    /// Is it enough, after so many attempts and so much time?
    pub fn stops(&self, attempts: u32, elapsed: Duration) -> bool {
        self.limit_reached(attempts, elapsed).is_some()
    }

    /// The limit that is reached, if it is enough. Of two joined by `and`, the second is named.
    pub fn limit_reached(&self, attempts: u32, elapsed: Duration) -> Option<Limit> {
        match &self.0 {
            Condition::Attempts(max) => (attempts >= *max).then_some(Limit::Attempts),
            Condition::Delay(max) => (elapsed >= *max).then_some(Limit::Delay),
            Condition::Never => None,
            Condition::Or(pair) => pair
                .0
                .limit_reached(attempts, elapsed)
                .or_else(|| pair.1.limit_reached(attempts, elapsed)),
            Condition::And(pair) => pair
                .0
                .limit_reached(attempts, elapsed)
                .and_then(|_| pair.1.limit_reached(attempts, elapsed)),
        }
    }

    /// The elapsed time below which so many attempts are not yet enough; `None` if they are enough
    /// at once.
    pub(super) fn allowed_elapsed(&self, attempts: u32) -> Option<Duration> {
        match &self.0 {
            Condition::Attempts(max) => (attempts < *max).then_some(Duration::MAX),
            Condition::Delay(max) => (!max.is_zero()).then_some(*max),
            Condition::Never => Some(Duration::MAX),
            Condition::Or(pair) => {
                let first = pair.0.allowed_elapsed(attempts)?;
                Some(first.min(pair.1.allowed_elapsed(attempts)?))
            }
            Condition::And(pair) => pair
                .0
                .allowed_elapsed(attempts)
                .max(pair.1.allowed_elapsed(attempts)),
        }
    }
}

/// The limit that was used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The number of attempts.
    Attempts,
    /// The time since the first attempt began.
    Delay,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Attempts(u32),
    Delay(Duration),
    Never,
    Or(Arc<(Stop, Stop)>),
    And(Arc<(Stop, Stop)>),
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn attempts_are_counted_with_the_first() {
        let stop = Stop::after_attempts(3);
        assert!(!stop.stops(2, Duration::MAX));
        assert!(stop.stops(3, Duration::ZERO));
        assert!(stop.stops(u32::MAX, Duration::ZERO));
    }

    #[test]
    fn never_does_not_stop() {
        assert!(!Stop::never().stops(u32::MAX, Duration::MAX));
    }

    #[test]
    fn or_stops_with_either_and_names_it() {
        let stop = Stop::after_attempts(3).or(Stop::after_delay(SECOND));
        assert_eq!(stop.limit_reached(3, Duration::ZERO), Some(Limit::Attempts));
        assert_eq!(stop.limit_reached(1, SECOND), Some(Limit::Delay));
        assert_eq!(stop.limit_reached(2, SECOND / 2), None);
    }

    #[test]
    fn and_stops_only_with_both() {
        let stop = Stop::after_attempts(3).and(Stop::after_delay(SECOND));
        assert!(!stop.stops(3, Duration::ZERO));
        assert!(!stop.stops(1, SECOND));
        assert!(stop.stops(3, SECOND));
        assert!(!stop.and(Stop::never()).stops(3, SECOND));
    }
}
