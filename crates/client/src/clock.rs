//! The one place where the clock is read: through tokio, so that paused time works in tests.

pub(crate) mod keeper;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use steadfast_core::policy::Deadline;
use tokio::runtime::Handle;

/// Now, on the monotonic clock.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Milliseconds since 1970, for people and for logs; nothing is decided by it.
#[expect(
    clippy::disallowed_methods,
    reason = "a calendar date leaves the process"
)]
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Waits until `at`, on any executor.
pub(crate) async fn sleep_until(at: Instant) {
    match Handle::try_current() {
        Ok(_) => tokio::time::sleep_until(at.into()).await,
        Err(_) => crate::clock::keeper::sleep_until(at).await,
    }
}

/// Waits so long, on any executor.
pub(crate) async fn sleep(time: Duration) {
    sleep_until(Deadline::after(now(), time).instant()).await;
}

/// Returns the result of `work`, or `None` if it has none at `at`. Time that this process stood
/// still is not held against it: what has become ready meanwhile is looked at first.
pub(crate) async fn timeout_at<T>(at: Instant, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        result = work => Some(result),
        () = sleep_fairly_until(at) => None,
    }
}

/// Returns the result of `work`, or `None` if it has none within `limit`.
pub(crate) async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    timeout_at(Deadline::after(now(), limit).instant(), work).await
}

/// Waits until `at`. If this process stood still then, it waits for another moment, so that
/// whatever has become ready meanwhile comes first.
pub(crate) async fn sleep_fairly_until(at: Instant) {
    sleep_until(at).await;
    let now = now();
    if lost(at, now).is_some() {
        sleep_until(now + LOOK_AGAIN).await;
    }
}

/// Time that this process has lost: what was to be done at `at` is done only now. `None` for what a
/// busy machine takes.
pub(crate) fn lost(at: Instant, now: Instant) -> Option<Duration> {
    let late = now.saturating_duration_since(at);
    (late > LATE).then_some(late)
}

/// A timer may be so late on a busy machine.
const LATE: Duration = Duration::from_millis(50);
/// Within so long of its going on, a process is told what has come while it stood still: timers and
/// sockets are looked at together.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A duration as milliseconds with a fraction, for status and metrics.
pub(crate) fn as_ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn c19_what_became_ready_while_the_process_stood_still_is_not_timed_out() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let standing_still = async {
            tokio::time::advance(Duration::from_secs(40)).await;
            tell.send(())
        };
        let waiting = timeout(Duration::from_secs(1), told);
        let (heard, _) = tokio::join!(biased; waiting, standing_still);
        assert_eq!(heard, Some(Ok(())));
        let never = std::future::pending::<()>();
        let begun = now();
        assert_eq!(timeout(Duration::from_secs(1), never).await, None);
        assert_eq!(now() - begun, Duration::from_secs(1));
    }
}
