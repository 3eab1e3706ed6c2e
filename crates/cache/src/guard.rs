//! Bounds on the load that an outage of Redis can put on the database.
//!
//! Without Redis every read that memory cannot answer turns to SQL, and a database sized for one
//! read in twenty falls over under all twenty. So loads pass a bulkhead (so many at once) and an
//! admission rate (so many a second). What cannot go at once waits in a short queue, in which a
//! load that a caller cannot do without stands before a refresh, and a hot key before a cold one;
//! the queue is bounded in length and in time. After an outage refreshes are let in at a tenth of
//! the rate, growing to all of it, so that refilling does not become the next outage. A breaker
//! spares a database that fails. A class may have bounds of its own within those of the whole, so
//! that reports do not stand in the way of log-ins.

mod bounds;
mod queue;

pub use bounds::{ClassBound, ClassGuard, GuardOptions};
pub(crate) use bounds::{Rejection, Urgency};

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::policy::breaker::{self, Admission, Breaker, BreakerConfig, Outcome};
use tokio::sync::{Notify, oneshot};

use crate::clock::clock;
use queue::{AdmissionQueue, Entrance};

#[derive(Clone)]
pub(crate) struct LoadAdmission {
    shared: Arc<Mutex<State>>,
    /// Tells one of those who wait that nobody lets them in any more.
    abandoned: Arc<Notify>,
    wait: Duration,
    nested: usize,
}

/// The right to one load.
pub(crate) struct Permit {
    slot: Arc<LoadSlot>,
    since: Instant,
    breaker: Option<breaker::Permit>,
}

/// A load's slot among those that run. It is given back when nothing of the load is left: neither
/// its [`Permit`], nor a statement that goes on in the database and has still to be stopped.
pub(crate) struct LoadSlot {
    guard: LoadAdmission,
    class: usize,
}

tokio::task_local! {
    /// Of the load that runs.
    static SLOT: Arc<LoadSlot>;
}

/// Runs a load that goes by this slot: what it asks of the database keeps it until it has ended
/// there.
pub(crate) async fn during<F: Future>(slot: Option<Arc<LoadSlot>>, load: F) -> F::Output {
    match slot {
        Some(slot) => SLOT.scope(slot, load).await,
        None => load.await,
    }
}

/// The slot of the load that this is called from, if it is one.
pub(crate) fn current() -> Option<Arc<LoadSlot>> {
    SLOT.try_with(Arc::clone).ok()
}

/// A snapshot of the guard, for a status page.
#[derive(Clone, Copy, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct GuardStatus {
    /// Loads under way.
    pub running: usize,
    /// Loads waiting for admission.
    pub waiting: usize,
    /// Whether the breaker keeps loads from a failing database.
    pub open: bool,
}

impl LoadAdmission {
    /// `classes` are the bounds of each class, in the order in which [`admit`](Self::admit) numbers
    /// them.
    pub(crate) fn new(
        options: &GuardOptions,
        classes: &[Option<ClassGuard>],
        now: Instant,
    ) -> Self {
        let breaker = Breaker::new(BreakerConfig::default(), now)
            .expect("the default configuration is valid");
        let state = State {
            queue: AdmissionQueue::new(options, classes, now),
            breaker,
            pumping: false,
        };
        Self {
            shared: Arc::new(Mutex::new(state)),
            abandoned: Arc::default(),
            wait: options.wait,
            nested: options.nested,
        }
    }

    /// Asks for admission; `queued` is called if that is not at once.
    pub(crate) async fn admit(
        &self,
        class: usize,
        urgency: Urgency,
        deadline: Instant,
        queued: impl FnOnce(),
    ) -> Result<Permit, Rejection> {
        let slot = self.take_slot(class, urgency, deadline, queued).await?;
        let now = clock();
        let admission = self.shared.lock().breaker.try_acquire(now);
        match admission {
            Ok(Admission::Now(permit)) => Ok(slot.with(permit)),
            Ok(Admission::Delay { until, permit }) => {
                let slot = slot.with(permit);
                tokio::time::sleep_until(until.min(deadline).into()).await;
                Ok(slot)
            }
            Err(refused) => Err(Rejection::Unavailable {
                retry_after: refused.retry_after,
            }),
        }
    }

    async fn take_slot(
        &self,
        class: usize,
        urgency: Urgency,
        deadline: Instant,
        queued: impl FnOnce(),
    ) -> Result<Permit, Rejection> {
        let now = clock();
        let (turn, latest) = {
            let mut state = self.shared.lock();
            if let Some(refused) = state.refused_by_breaker(now) {
                return Err(refused);
            }
            let latest = state.queue.latest(class, deadline, now);
            match state.queue.enter(class, urgency, latest, now) {
                Entrance::Admitted => return Ok(self.permit(class)),
                Entrance::Full => return Err(state.queue.refusal(class, now)),
                Entrance::Waiting(turn) => (turn, latest),
            }
        };
        queued();
        self.pump();
        let mut waiter = Waiter {
            guard: self,
            class,
            turn,
        };
        let mut give_up = self.give_up(class, latest);
        loop {
            let turn = tokio::time::timeout_at(give_up.into(), &mut waiter.turn);
            let told = tokio::select! {
                biased;
                told = turn => told,
                () = self.abandoned.notified() => {
                    self.pump();
                    continue;
                }
            };
            match told {
                Ok(Ok(())) => return Ok(self.permit(class)),
                Ok(Err(_pushed_out)) => return Err(self.overloaded(class)),
                Err(_too_late) => {
                    let now = clock();
                    // Somebody may have been admitted meanwhile: then the queue moves, and it is
                    // worth the wait.
                    let mut longer = self.give_up(class, latest);
                    // Woken late: it is this process that stood still, and who was to be admitted
                    // meanwhile has yet to be.
                    if now.saturating_duration_since(give_up) > self.wait / 4 {
                        longer = longer.max(now + self.wait / 2).min(latest);
                    }
                    if longer <= give_up || longer <= now {
                        break;
                    }
                    give_up = longer;
                }
            }
        }
        waiter.turn.close();
        // The turn may have come in the very last moment; then the slot is there to be used.
        if waiter.turn.try_recv().is_ok() {
            Ok(self.permit(class))
        } else {
            Err(self.overloaded(class))
        }
    }

    fn permit(&self, class: usize) -> Permit {
        let slot = LoadSlot {
            guard: self.clone(),
            class,
        };
        Permit {
            slot: Arc::new(slot),
            since: clock(),
            breaker: None,
        }
    }

    /// Returns the moment from which on a load of this class that waits now would wait in vain.
    fn give_up(&self, class: usize, latest: Instant) -> Instant {
        let still = self.shared.lock().queue.stands_still_at(class, self.wait);
        still.min(latest)
    }

    fn overloaded(&self, class: usize) -> Rejection {
        self.shared.lock().queue.refusal(class, clock())
    }

    /// Loads at once that may be nested in one.
    pub(crate) fn nested(&self) -> usize {
        self.nested
    }

    /// An outage is over: let refreshes in gently.
    pub(crate) fn begin_ramp(&self) {
        self.shared.lock().queue.ramp_from = Some(clock());
    }

    pub(crate) fn status(&self) -> GuardStatus {
        let state = self.shared.lock();
        GuardStatus {
            running: state.queue.running,
            waiting: state.queue.waiting(),
            open: state.breaker.state() == breaker::State::Open,
        }
    }

    /// Lets in who may go; if the rest only waits for time to pass, sees to it that somebody looks
    /// again then.
    fn pump(&self) {
        let mut state = self.shared.lock();
        let Some(pause) = state.queue.let_in(clock()) else {
            return;
        };
        if std::mem::replace(&mut state.pumping, true) {
            return;
        }
        drop(state);
        let pump = Pump {
            guard: self.clone(),
            is_over: false,
        };
        // Without a runtime it is dropped at once.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(pump.run(pause));
        }
    }
}

/// Lets in who may go, again and again, as long as some only wait for time to pass. It may end with
/// the runtime that it lives in: then one of those who wait in another takes its place.
struct Pump {
    guard: LoadAdmission,
    is_over: bool,
}

impl Pump {
    async fn run(mut self, mut pause: Duration) {
        loop {
            tokio::time::sleep(pause).await;
            let mut state = self.guard.shared.lock();
            let Some(longer) = state.queue.let_in(clock()) else {
                state.pumping = false;
                self.is_over = true;
                return;
            };
            pause = longer;
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if !self.is_over {
            self.guard.shared.lock().pumping = false;
            self.guard.abandoned.notify_one();
        }
    }
}

/// Waits for its turn. Dropped in the moment in which it comes, it gives the slot back.
struct Waiter<'g> {
    guard: &'g LoadAdmission,
    class: usize,
    turn: oneshot::Receiver<()>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.turn.close();
        if self.turn.try_recv().is_ok() {
            drop(self.guard.permit(self.class));
        }
    }
}

impl Permit {
    fn with(mut self, breaker: breaker::Permit) -> Self {
        self.breaker = Some(breaker);
        self
    }

    pub(crate) fn slot(&self) -> Arc<LoadSlot> {
        Arc::clone(&self.slot)
    }

    /// Tells how the load went.
    pub(crate) fn record(mut self, outcome: Outcome) {
        let now = clock();
        if outcome == Outcome::Success {
            let took = now.saturating_duration_since(self.since);
            let slot = &self.slot;
            slot.guard.shared.lock().queue.note(slot.class, took);
        }
        if let Some(permit) = self.breaker.take() {
            let guard = &self.slot.guard;
            let transition = guard.shared.lock().breaker.record(permit, outcome, now);
            if let Some(transition) = transition {
                tracing::warn!(from = ?transition.from, to = ?transition.to, cause = ?transition.cause, "breaker of the database");
                if transition.to == breaker::State::Closed {
                    guard.begin_ramp();
                }
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(permit) = self.breaker.take() {
            self.slot.guard.shared.lock().breaker.forget(permit);
        }
    }
}

impl Drop for LoadSlot {
    fn drop(&mut self) {
        self.guard.shared.lock().queue.leave(self.class);
        self.guard.pump();
    }
}

struct State {
    queue: AdmissionQueue,
    breaker: Breaker,
    pumping: bool,
}

impl State {
    /// Spares the queue those whom the breaker would refuse anyway.
    fn refused_by_breaker(&mut self, now: Instant) -> Option<Rejection> {
        if self.breaker.state() != breaker::State::Open {
            return None;
        }
        match self.breaker.try_acquire(now) {
            Err(refused) => Some(Rejection::Unavailable {
                retry_after: refused.retry_after,
            }),
            Ok(Admission::Now(permit) | Admission::Delay { permit, .. }) => {
                self.breaker.forget(permit);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn k9_a_waiting_load_is_let_in_when_another_ends() {
        let guard = LoadAdmission::new(&GuardOptions::new(1, 1000.0), &[None], clock());
        let deadline = clock() + Duration::from_secs(5);
        let first = guard
            .admit(0, Urgency::Needed, deadline, || ())
            .await
            .ok()
            .unwrap();
        let second = tokio::spawn({
            let guard = guard.clone();
            async move {
                guard
                    .admit(0, Urgency::Needed, deadline, || ())
                    .await
                    .is_ok()
            }
        });
        while guard.status().waiting == 0 {
            tokio::task::yield_now().await;
        }
        first.record(Outcome::Success);
        assert!(second.await.unwrap());
        assert_eq!(guard.status().running, 0);
    }

    #[tokio::test]
    async fn k9_who_goes_away_when_his_turn_comes_leaves_his_place() {
        let guard = LoadAdmission::new(&GuardOptions::new(1, 1000.0), &[None], clock());
        let deadline = clock() + Duration::from_secs(5);
        let admit = || guard.admit(0, Urgency::Needed, deadline, || ());
        let first = admit().await.ok().unwrap();
        let mut second = Box::pin(admit());
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first); // the second is told that its turn has come
        drop(second); // and does not hear it
        assert_eq!(guard.status().running, 0);
        assert!(admit().await.is_ok());
    }

    #[tokio::test]
    async fn k9_the_queue_waits_for_the_first_loads_whose_connections_are_being_opened() {
        let mut options = GuardOptions::new(1, 1000.0);
        options.wait = Duration::from_millis(200);
        let guard = LoadAdmission::new(&options, &[None], clock());
        let deadline = clock() + Duration::from_secs(3600);
        let admit = || guard.admit(0, Urgency::Needed, deadline, || ());
        let first = admit().await.ok().unwrap();
        let opening = async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            first.record(Outcome::Failure);
        };
        let (second, ()) = tokio::join!(admit(), opening);
        let second = second.ok().unwrap();
        // Once it is known how long a load takes, nobody waits before a database that stands still.
        let refused = tokio::time::timeout(Duration::from_secs(60), admit()).await;
        assert!(matches!(
            refused.unwrap(),
            Err(Rejection::Overloaded { .. })
        ));
        drop(second);
        assert_eq!(guard.status().running, 0);
    }

    /// With everything at its default, and many times longer than any of them may wait while nobody
    /// is admitted.
    #[tokio::test]
    async fn k9_by_default_a_queue_is_drained_that_moves_and_left_that_stands_still() {
        let options = GuardOptions::default();
        let guard = LoadAdmission::new(&options, &[None], clock());
        let deadline = clock() + Duration::from_secs(3600);
        let admit = || guard.admit(0, Urgency::Needed, deadline, || ());
        let load = async || {
            let permit = admit().await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            permit.record(Outcome::Success);
            Ok::<_, Rejection>(())
        };
        load().await.unwrap();
        let began = clock();
        for loaded in join_all((0..3000).map(|_| load())).await {
            loaded.unwrap();
        }
        assert!(clock() - began > options.wait * 5);
        let held = join_all((0..options.concurrency).map(|_| admit())).await;
        assert!(held.iter().all(Result::is_ok));
        let asked = clock();
        let refused = admit().await.err().unwrap();
        let waited = clock() - asked;
        assert!(matches!(refused, Rejection::Overloaded { .. }));
        assert!(
            waited >= options.wait && waited < Duration::from_secs(60),
            "{waited:?}"
        );
    }

    #[tokio::test]
    async fn k9_a_failing_database_is_left_alone() {
        let guard = LoadAdmission::new(&GuardOptions::new(4, 1000.0), &[None], clock());
        let deadline = clock() + Duration::from_secs(5);
        let mut refusals = 0;
        for _ in 0..20 {
            match guard.admit(0, Urgency::Needed, deadline, || ()).await {
                Ok(permit) => permit.record(Outcome::Failure),
                Err(Rejection::Unavailable { retry_after }) => {
                    assert!(retry_after > Duration::ZERO);
                    refusals += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(refusals >= 10, "{refusals}");
        assert_eq!(guard.status().running, 0);
    }
}
