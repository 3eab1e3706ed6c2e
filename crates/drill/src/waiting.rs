//! Waiting for a fact rather than for a time, so that tests hold on a busy machine too.

use std::future::{Future, ready};
use std::panic::Location;
use std::time::Duration;

use tokio::time::{sleep, timeout};

/// Waits until a fact holds that is looked at in this process, every 5 ms.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use steadfast_drill::waiting::until;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let looks = AtomicU32::new(0);
/// until("it is the third look", || looks.fetch_add(1, Ordering::Relaxed) == 2).await;
/// assert_eq!(looks.into_inner(), 3);
/// # }
/// ```
///
/// # Panics
/// After a minute and a half it names the fact, and the line that waits for it.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    wait(
        LIMIT,
        LOOK,
        what,
        Location::caller(),
        move || ready(holds()),
    )
}

/// Waits until a fact holds that is asked for, such as of a server, every 20 ms.
///
/// ```no_run
/// use steadfast_drill::process::Redis;
/// use steadfast_drill::waiting::eventually;
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let redis = Redis::start().await?;
/// eventually("somebody is blocked", async || {
///     let clients = redis.info("clients").await;
///     clients.is_ok_and(|clients| clients.contains("blocked_clients:1"))
/// })
/// .await;
/// # Ok(()) }
/// ```
///
/// # Panics
/// As [`until`] does.
// Not an `AsyncFnMut`: of the futures of those the compiler cannot yet see that they may be sent to
// another thread.
#[track_caller]
pub fn eventually<F: Future<Output = bool>>(
    what: &str,
    holds: impl FnMut() -> F,
) -> impl Future<Output = ()> {
    wait(LIMIT, ASK, what, Location::caller(), holds)
}

async fn wait<F: Future<Output = bool>>(
    limit: Duration,
    every: Duration,
    what: &str,
    at: &Location<'_>,
    mut holds: impl FnMut() -> F,
) {
    let holding = async {
        while !holds().await {
            sleep(every).await;
        }
    };
    let waited = timeout(limit, holding).await;
    assert!(waited.is_ok(), "{at}: it never came that {what}");
}

/// The time after which a fact never comes, generous to a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(90);
/// The pauses between looks, and between questions, which cost the one that is asked.
const LOOK: Duration = Duration::from_millis(5);
const ASK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_in_vain_is_told_for_what_and_where() {
        let vain = wait(LOOK, LOOK, "one is two", Location::caller(), async || false);
        let panic = tokio::spawn(vain).await.unwrap_err().into_panic();
        let told = panic.downcast::<String>().unwrap();
        assert!(told.contains(file!()), "{told}");
        assert!(told.ends_with(": it never came that one is two"), "{told}");
    }
}
