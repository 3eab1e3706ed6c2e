//! A task in the background that panics dies without a word, and the service goes on with what was
//! last seen: an outage that never ends, health of yesterday. So it is started anew, loudly, and
//! counted.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use metrics::counter;
use tokio::task::JoinSet;

/// The tasks that are started anew when they panic.
const TASKS: [&str; 10] = [
    "beat",
    "relay",
    "watch",
    "watch_checks",
    "watch_redis",
    "watch_writes",
    "sweep",
    "vitals",
    "certificates",
    "keys",
];
const RESTARTS: &str = "steadfast_task_restarts_total";

/// Lets each counter begin at 0.
pub(crate) fn begin_counters() {
    for task in TASKS {
        counter!(RESTARTS, "task" => task).increment(0);
    }
}

/// Starts a task that works on this, and starts it anew a second after each panic. One that ends
/// otherwise has nothing more to do.
pub(crate) fn keep<S, F>(
    tasks: &mut JoinSet<()>,
    task: &'static str,
    on: &S,
    start: impl Fn(S) -> F + Send + 'static,
) where
    S: Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let on = on.clone();
    tasks.spawn(async move {
        loop {
            let working = AssertUnwindSafe(start(on.clone()));
            if working.catch_unwind().await.is_ok() {
                return;
            }
            tracing::error!(task, "a task of the service panicked, and is started anew");
            counter!(RESTARTS, "task" => task).increment(1);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn s14_a_task_that_panics_is_started_anew_and_counted() {
        let metrics = crate::telemetry::metrics();
        let mut tasks = JoinSet::new();
        let starts = Arc::new(AtomicU32::new(0));
        keep(&mut tasks, "test", &starts, |starts| async move {
            let before = starts.fetch_add(1, Ordering::Relaxed);
            assert!(before == 2, "one night");
        });
        tasks.join_next().await.unwrap().unwrap();
        let line = "steadfast_task_restarts_total{task=\"test\"} 2";
        let text = metrics.render();
        assert!(text.contains(line), "{text}");
    }
}
