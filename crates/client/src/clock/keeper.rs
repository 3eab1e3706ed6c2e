//! The one thread beside all runtimes: keeps deadlines where no task can.
//!
//! A call's deadline is kept by the task that serves its connection. Should that task get no turns,
//! because nobody drives its runtime or something blocks it, a timer of the same runtime would not
//! fire either. So this thread looks at each connection ten times a second, and ends the calls
//! whose time is up while their callers run and the task does not. It also lends timers to callers
//! on executors other than tokio. It runs while there is something to look at.

use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::clock;

/// The time between two looks at each connection.
pub(crate) const EVERY: Duration = Duration::from_millis(100);

static KEPT: Mutex<Watchlist> = Mutex::new(Watchlist {
    running: false,
    watched: Vec::new(),
    sleepers: Vec::new(),
    next_sleeper: 0,
});
static CHANGED: Condvar = Condvar::new();

struct Watchlist {
    running: bool,
    watched: Vec<Watched>,
    sleepers: Vec<Sleeper>,
    next_sleeper: u64,
}

/// Looks after something, and returns whether it is still there.
type LookAfter = Box<dyn FnMut(Instant) -> bool + Send>;

struct Watched {
    look: LookAfter,
    /// That is told once: it may go on ten times a second.
    has_panicked: bool,
}

struct Sleeper {
    number: u64,
    at: Instant,
    waker: Waker,
}

/// Has this called ten times a second, until it returns that what it looks after is gone.
pub(crate) fn watch(look: impl FnMut(Instant) -> bool + Send + 'static) {
    let mut kept = KEPT.lock();
    kept.watched.push(Watched {
        look: Box::new(look),
        has_panicked: false,
    });
    ensure_running(kept);
}

/// Waits until `at`, by no runtime's timer.
pub(crate) async fn sleep_until(at: Instant) {
    let mut place = SleeperGuard(None);
    std::future::poll_fn(|cx| {
        if clock::now() >= at {
            return Poll::Ready(());
        }
        let mut kept = KEPT.lock();
        let number = *place.0.get_or_insert_with(|| {
            kept.next_sleeper += 1;
            kept.next_sleeper
        });
        kept.sleepers.retain(|sleeper| sleeper.number != number);
        kept.sleepers.push(Sleeper {
            number,
            at,
            waker: cx.waker().clone(),
        });
        ensure_running(kept);
        CHANGED.notify_one();
        Poll::Pending
    })
    .await;
}

/// The place of a sleeper, given up when it is dropped.
struct SleeperGuard(Option<u64>);

impl Drop for SleeperGuard {
    fn drop(&mut self) {
        if let Some(number) = self.0 {
            let mut kept = KEPT.lock();
            kept.sleepers.retain(|sleeper| sleeper.number != number);
        }
    }
}

/// Starts the thread if it does not run, and gives the lock back. Only then it tells that it
/// cannot: whoever listens may come here again.
fn ensure_running(mut kept: MutexGuard<'_, Watchlist>) {
    if kept.running {
        return;
    }
    let thread = std::thread::Builder::new().name("steadfast-keeper".into());
    let started = thread.spawn(run);
    kept.running = started.is_ok();
    drop(kept);
    if let Err(error) = started {
        tracing::error!(%error, "no thread that keeps deadlines should a runtime not run");
    }
}

fn run() {
    let mut look_at = clock::now() + EVERY;
    loop {
        let now = clock::now();
        let looks = now >= look_at;
        // Late itself, it can say nothing of others.
        let fair = clock::lost(look_at, now).is_none();
        let (watched, wakers) = {
            let mut kept = KEPT.lock();
            let (due, waiting) = std::mem::take(&mut kept.sleepers)
                .into_iter()
                .partition(|sleeper| sleeper.at <= now);
            kept.sleepers = waiting;
            if kept.watched.is_empty() && kept.sleepers.is_empty() && due.is_empty() {
                kept.running = false;
                return;
            }
            let watched = match looks && fair {
                true => std::mem::take(&mut kept.watched),
                false => Vec::new(),
            };
            (watched, due)
        };
        for sleeper in wakers {
            if guarded(|| sleeper.waker.wake()).is_none() {
                tell_of_panic("a waker");
            }
        }
        if looks {
            look_at = now + EVERY;
        }
        look_after(watched, now);
        let mut kept = KEPT.lock();
        let next = kept.sleepers.iter().map(|sleeper| sleeper.at).min();
        let until = next.map_or(look_at, |next| next.min(look_at));
        CHANGED.wait_for(&mut kept, until.saturating_duration_since(clock::now()));
    }
}

/// Does it, though it may panic: what is woken is others' code, and the thread must outlive it.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}

fn tell_of_panic(what: &str) {
    tracing::error!("{what} has panicked; the keeper of deadlines goes on");
}

/// Looks after all, outside the lock: wakers are others' code.
fn look_after(mut watched: Vec<Watched>, now: Instant) {
    if watched.is_empty() {
        return;
    }
    watched.retain_mut(|one| {
        let is_there = guarded(|| (one.look)(now));
        if is_there.is_none() && !std::mem::replace(&mut one.has_panicked, true) {
            tell_of_panic("a look at a connection");
        }
        is_there.unwrap_or(true)
    });
    KEPT.lock().watched.append(&mut watched);
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use steadfast_drill::waiting::until;

    use super::*;

    struct Panics(AtomicBool);

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
            panic!("a waker of the test's");
        }
    }

    #[tokio::test]
    async fn c19_whoever_panics_as_it_is_woken_ends_no_deadline_of_others() {
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&looks);
        watch(move |_| {
            let before = counted.fetch_add(1, Ordering::Relaxed);
            assert!(before != 0, "the first look of the test's panics");
            before < 1_000
        });
        let woken = Arc::new(Panics(AtomicBool::new(false)));
        let waker = Arc::clone(&woken).into();
        let mut sleep = pin!(sleep_until(clock::now() + Duration::from_millis(10)));
        let polled = sleep.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        until("it is woken", || woken.0.load(Ordering::Relaxed)).await;
        let looked = || looks.load(Ordering::Relaxed) > 2;
        until("the others are looked at", looked).await;
    }
}
