//! The tasks that serve a cache, and who looks after them.
//!
//! A task that panics, or whose runtime ends, is gone without a word, and with it what it saw to:
//! invalidations that nobody carries to Redis, a channel that nobody listens to. So each is started
//! again after a panic, with a pause; those that have ended with their runtime are started in that
//! of whoever uses the cache next, as a client's are; and until then the status says so.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::clock::clock;

/// Begins a task's work, from the start.
type Begin = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// The tasks of one cache.
#[derive(Default)]
pub(crate) struct Upkeep {
    kept: OnceLock<Box<[Kept]>>,
    /// Whether some have ended with their runtime.
    orphaned: AtomicBool,
}

/// A task.
pub(crate) struct Kept {
    /// Its work, in words.
    work: &'static str,
    begin: Begin,
    gone: watch::Receiver<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    runs: bool,
    /// The moment and the words of its last failure.
    failed: Option<(Instant, String)>,
}

impl Kept {
    /// A task that ends when `gone` says that the cache is.
    pub(crate) fn new<F: Future<Output = ()> + Send + 'static>(
        work: &'static str,
        gone: &watch::Receiver<()>,
        begin: impl Fn(watch::Receiver<()>) -> F + Send + Sync + 'static,
    ) -> Self {
        let told = gone.clone();
        Self {
            work,
            begin: Box::new(move || begin(told.clone()).boxed()),
            gone: gone.clone(),
            state: Mutex::default(),
        }
    }

    /// Whether the cache is no more.
    fn is_over(&self) -> bool {
        self.gone.has_changed().is_err()
    }

    fn failed(&self, how: &str) {
        let words = format!("the task that {} {how}; it is started again", self.work);
        tracing::warn!("{words}");
        self.state.lock().failed = Some((clock(), words));
    }
}

impl Upkeep {
    /// Starts the tasks, in the runtime of the caller.
    pub(crate) fn start(self: &Arc<Self>, kept: Vec<Kept>) {
        let _ = self.kept.set(kept.into());
        self.orphaned.store(true, Ordering::Relaxed);
        self.ensure();
    }

    /// Starts those anew that have ended with their runtime, if the caller is in one.
    pub(crate) fn ensure(self: &Arc<Self>) {
        if !self.orphaned.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        self.orphaned.store(false, Ordering::Relaxed);
        for (place, kept) in self.all().iter().enumerate() {
            if !std::mem::replace(&mut kept.state.lock().runs, true) {
                runtime.spawn(Arc::clone(self).keep(place));
            }
        }
    }

    /// Returns what is wrong with the tasks, or was a short time ago.
    pub(crate) fn trouble(&self) -> Option<String> {
        let all = self.all();
        let ended: Vec<_> = all.iter().filter(|kept| !kept.state.lock().runs).collect();
        if !ended.is_empty() {
            let works: Vec<_> = ended.iter().map(|kept| kept.work).collect();
            return Some(format!(
                "the runtime of the tasks has ended that {}: they go on in that of the next read \
                 or write",
                works.join(", that ")
            ));
        }
        let now = clock();
        let lately = |kept: &Kept| {
            let (at, words) = kept.state.lock().failed.clone()?;
            (now.saturating_duration_since(at) < TOLD_FOR).then_some(words)
        };
        all.iter().find_map(lately)
    }

    fn all(&self) -> &[Kept] {
        self.kept.get().map_or(&[], |kept| kept)
    }

    /// Runs a task again and again, until the cache is gone.
    async fn keep(self: Arc<Self>, place: usize) {
        let mut lent = Lent {
            upkeep: self,
            place,
            is_over: false,
        };
        let mut in_a_row = 0_u32;
        loop {
            let began = clock();
            let kept = lent.kept();
            let work = async { (kept.begin)().await };
            let ended = AssertUnwindSafe(work).catch_unwind().await;
            if kept.is_over() {
                break;
            }
            match ended {
                Ok(()) => kept.failed("has ended"),
                Err(panic) => kept.failed(&format!("has panicked: {}", words_of(&*panic))),
            }
            if clock().saturating_duration_since(began) > TOLD_FOR {
                in_a_row = 0;
            }
            let pause = (FIRST_PAUSE * 2_u32.pow(in_a_row.min(10))).min(LONGEST_PAUSE);
            in_a_row += 1;
            let mut gone = kept.gone.clone();
            let _ = tokio::time::timeout(pause, gone.changed()).await;
            if kept.is_over() {
                break;
            }
        }
        lent.is_over = true;
    }
}

/// A task in the hands of a runtime, which may drop it.
struct Lent {
    upkeep: Arc<Upkeep>,
    place: usize,
    is_over: bool,
}

impl Lent {
    fn kept(&self) -> &Kept {
        &self.upkeep.all()[self.place]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.is_over {
            self.kept().state.lock().runs = false;
            self.upkeep.orphaned.store(true, Ordering::Relaxed);
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("in no words")
}

/// The pause before a task is begun again that has failed for the first time, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A failure is told for so long.
const TOLD_FOR: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use steadfast_drill::waiting::until;

    use super::*;

    #[tokio::test]
    async fn k14_a_task_that_panics_is_begun_again_and_told_of() {
        let (cache, gone) = watch::channel(());
        let begun = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&begun);
        let kept = Kept::new("carries water", &gone, move |mut gone| {
            let before = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                assert!(before > 2, "the bucket leaks");
                let _ = gone.changed().await;
            }
        });
        let upkeep = Arc::new(Upkeep::default());
        upkeep.start(vec![kept]);
        assert_eq!(upkeep.trouble(), None);
        let begun = || begun.load(Ordering::Relaxed);
        until("it is begun until it goes on", || begun() == 4).await;
        let trouble = upkeep.trouble().expect("it has failed");
        assert!(trouble.contains("carries water has panicked: the bucket leaks"));
        drop(cache);
        until("its task ends", || Arc::strong_count(&upkeep) == 1).await;
        assert_eq!(begun(), 4);
    }
}
