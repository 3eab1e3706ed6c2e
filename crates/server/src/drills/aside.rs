//! A drill has a client, a cache and failures of its own. Counted among those of the service they
//! would wake somebody for an outage that was played, so a drill runs on threads of its own, on
//! which nothing is recorded and nothing is logged: whatever it starts, it starts there. What it
//! found is in its progress and its report.

use std::fmt;
use std::io;

use metrics::NoopRecorder;
use tokio::runtime::{Builder, Runtime};
use tracing::subscriber::NoSubscriber;

/// Threads of a drill: load and subject at once, and not more than a small machine has.
const THREADS: usize = 2;

static NOTHING: NoopRecorder = NoopRecorder;

/// The reason why there is no outcome.
#[derive(Debug)]
pub(super) enum AsideError {
    /// There are no threads to be had.
    Threads(io::Error),
    /// The work panicked.
    Panicked,
}

impl fmt::Display for AsideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threads(error) => write!(f, "no threads could be started for it: {error}"),
            Self::Panicked => f.write_str("it panicked"),
        }
    }
}

/// Runs `work` aside and waits for its outcome.
pub(super) async fn run<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, AsideError> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("drill")
        .on_thread_start(record_nothing)
        .enable_all()
        .build()
        .map_err(AsideError::Threads)?;
    let running = runtime.spawn(work);
    let _ended = EndsThreads(Some(runtime));
    running.await.map_err(|_| AsideError::Panicked)
}

/// Turns recording and logging off for as long as the thread lives.
fn record_nothing() {
    std::mem::forget(metrics::set_default_local_recorder(&NOTHING));
    std::mem::forget(tracing::subscriber::set_default(NoSubscriber::default()));
}

/// Ends them without waiting: a runtime must not be dropped where others run.
struct EndsThreads(Option<Runtime>);

impl Drop for EndsThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    #[tokio::test]
    async fn what_panics_aside_is_told_and_harms_nobody() {
        let outcome = run(async { panic!("on purpose") }).await;
        assert!(matches!(outcome, Err::<(), _>(AsideError::Panicked)));
        assert_eq!(run(async { 7 }).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn who_stops_waiting_ends_it() {
        let ended = Arc::new(AtomicBool::new(false));
        let guard = EndsWith(ended.clone());
        let waiting = run(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        let limit = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(limit, waiting).await.is_err());
        while !ended.load(Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    struct EndsWith(Arc<AtomicBool>);

    impl Drop for EndsWith {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
}
