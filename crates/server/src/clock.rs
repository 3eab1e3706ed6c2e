//! The two clocks of the service: a monotonic one for how long something takes, and the calendar
//! for what leaves the process.

use std::time::{Duration, Instant};

/// Reads the monotonic clock, through tokio, so that paused time works in tests.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Milliseconds since 1970, for people and other programs.
#[expect(
    clippy::disallowed_methods,
    reason = "events leave the process with a calendar date"
)]
pub(crate) fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, millis)
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
