//! Whether the runtime in which a client's tasks live runs them.
//!
//! Whoever waits for what a task of the client's is to find out cannot tell a task that finds
//! nothing from one that nobody runs. So that runtime is given a task that only answers: if it does
//! not, the error can say so.
//!
//! Only a question that has waited for an answer says anything: a runtime that is asked a moment
//! ago may be busy, or be about to answer. Until then it is not known whether it runs, and the
//! error stays what it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::clock::{self, LOOK_AGAIN};
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::wire::queue::UNATTENDED;

/// A runtime that has not answered for so long does not run.
const FOR_A_SIGN: Duration = Duration::from_millis(250);
/// A runtime that has answered so lately is not asked again.
const LATELY: Duration = Duration::from_secs(1);

/// The signs of a runtime that it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Liveness(Arc<watch::Sender<Signs>>);

#[derive(Clone, Copy, Debug, Default)]
struct Signs {
    ran_at: Option<Instant>,
    /// When the question was put that has no answer yet: one at most, however many ask.
    asked_at: Option<Instant>,
}

/// A question whether a runtime runs, by somebody who is about to wait.
#[derive(Debug)]
pub(crate) struct LivenessProbe {
    liveness: Liveness,
    called_at: Instant,
}

impl Liveness {
    /// Asks whether this runtime runs, unless it has just shown it.
    pub(crate) fn probe_liveness(&self, runtime: &Handle) -> LivenessProbe {
        let now = clock::now();
        let ran_at = self.0.borrow().ran_at;
        if ran_at.is_some_and(|at| now.saturating_duration_since(at) < LATELY) {
            return self.called(now);
        }
        self.ask(runtime)
    }

    /// Asks it in any case.
    pub(crate) fn ask(&self, runtime: &Handle) -> LivenessProbe {
        let now = clock::now();
        let asks = self.0.send_if_modified(|signs| {
            let asks = signs.asked_at.is_none();
            signs.asked_at = signs.asked_at.or(Some(now));
            asks
        });
        if asks {
            let asked = Asked(self.clone());
            runtime.spawn(async move { asked.answer() });
        }
        self.called(now)
    }

    fn called(&self, now: Instant) -> LivenessProbe {
        LivenessProbe {
            liveness: self.clone(),
            called_at: now,
        }
    }
}

impl LivenessProbe {
    /// Returns whether a question, of whomever, has had no answer for so long that the runtime does
    /// not run. One whose time has passed while the whole process stood still is given another
    /// moment.
    pub(crate) async fn is_unanswered(&self) -> bool {
        let signs = &self.liveness.0;
        let asked_at = signs.borrow().asked_at;
        let long_ago = |at| clock::now().saturating_duration_since(at) >= FOR_A_SIGN;
        if !asked_at.is_some_and(long_ago) {
            return false;
        }
        let mut signs = signs.subscribe();
        let answered = async {
            let _ = signs.wait_for(|signs| signs.asked_at != asked_at).await;
        };
        clock::timeout(LOOK_AGAIN, answered).await.is_none()
    }

    /// Returns the error that says that the runtime does not run, if that is known; or else this
    /// one, of somebody who has waited for what a task there was to find out.
    pub(crate) async fn or_unattended(&self, error: Error) -> Error {
        let closed = matches!(error.kind(), ErrorKind::Closed);
        match !closed && self.is_unanswered().await {
            true => Error::not_sent(UNATTENDED),
            false => error,
        }
    }

    /// Does the same for a call that may have ended for want of time, and for no other. One that
    /// was refused before it had waited stays what it is.
    pub(crate) async fn or_unattended_if_late(&self, error: Error) -> Error {
        let waited = clock::now().saturating_duration_since(self.called_at);
        let is_late = match error.kind() {
            ErrorKind::Timeout { .. } => true,
            ErrorKind::Overloaded { bound, .. } => {
                *bound == Bound::Deadline && waited >= FOR_A_SIGN
            }
            _ => false,
        };
        match is_late && error.certainty() == Certainty::NotSent {
            true => self.or_unattended(error).await,
            false => error,
        }
    }
}

/// How long somebody who asks again and again has been told that a runtime does not run.
#[derive(Debug, Default)]
pub(crate) struct Silence(Option<Instant>);

impl Silence {
    /// Takes in how another question has failed. Returns whether they have been told so for longer
    /// than that, counted from the first time: one question may take its whole deadline.
    pub(crate) fn outlasts(&mut self, patience: Duration, error: Option<&Error>) -> bool {
        let now = clock::now();
        if !error.is_some_and(is_unattended) {
            self.0 = None;
            return false;
        }
        let since = *self.0.get_or_insert(now);
        now.saturating_duration_since(since) >= patience
    }
}

/// Returns whether an error says that the runtime does not run: it may yet, unlike one that has
/// ended.
pub(crate) fn is_unattended(error: &Error) -> bool {
    let kinds = (error.kind(), UNATTENDED);
    matches!(kinds, (ErrorKind::Runtime { why }, ErrorKind::Runtime { why: of }) if *why == of)
}

/// A task that is to answer. Dropped with its runtime, it makes room for the next.
struct Asked(Liveness);

impl Asked {
    fn answer(self) {
        let ran_at = Some(clock::now());
        self.0.0.send_modify(|signs| signs.ran_at = ran_at);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.0.send_modify(|signs| signs.asked_at = None);
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.expect("there is room")
    }

    #[expect(clippy::disallowed_methods, reason = "code that blocks a runtime")]
    fn stand_still(time: Duration) {
        std::thread::sleep(time);
    }

    fn timed_out() -> Error {
        Error::not_sent(ErrorKind::Timeout {
            deadline: Duration::from_millis(1),
        })
    }

    #[test]
    fn c19_a_runtime_that_nobody_drives_is_told_from_one_that_runs_and_from_one_that_has_ended() {
        let (asks, asked) = (runtime(), runtime());
        let liveness = Liveness::default();
        let call = |of: &Runtime| liveness.probe_liveness(of.handle());
        let is_blamed = |probe: &LivenessProbe| {
            let said = asks.block_on(probe.or_unattended_if_late(timed_out()));
            is_unattended(&said)
        };
        let waiting = [call(&asked), call(&asked)];
        assert_eq!(asked.metrics().num_alive_tasks(), 1, "it is asked once");
        assert!(!is_blamed(&waiting[0]), "it had no time to answer");
        stand_still(FOR_A_SIGN);
        assert!(is_blamed(&waiting[0]), "nobody drives it");
        let late = call(&asked);
        assert!(is_blamed(&late), "it has been silent for others");
        let refused = |bound| {
            Error::not_sent(ErrorKind::Overloaded {
                bound,
                retry_after: Duration::from_secs(7),
            })
        };
        let said = |probe: &LivenessProbe, bound| {
            let said = asks.block_on(probe.or_unattended_if_late(refused(bound)));
            is_unattended(&said)
        };
        assert!(!said(&late, Bound::Deadline), "it was refused at once");
        assert!(said(&waiting[1], Bound::Deadline), "it was not");
        assert!(!said(&waiting[1], Bound::InFlight), "for another reason");
        asked.block_on(tokio::task::yield_now());
        for probe in &waiting {
            assert!(!is_blamed(probe), "it was driven");
        }
        let lately = call(&asked);
        assert_eq!(asked.metrics().num_alive_tasks(), 0, "it ran a moment ago");
        assert!(!is_blamed(&lately));

        let liveness = Liveness::default();
        let gone = runtime();
        let before = liveness.probe_liveness(gone.handle());
        drop(gone);
        let after = liveness.probe_liveness(asked.handle());
        assert_eq!(asked.metrics().num_alive_tasks(), 1, "another is asked");
        assert!(!is_blamed(&before), "of the other it is not known");
        asked.block_on(tokio::task::yield_now());
        assert!(!is_blamed(&after), "another runs");
    }

    #[test]
    fn c19_a_runtime_that_runs_is_believed_to_run_however_little_time_a_caller_has() {
        let asked = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("there is room");
        let asks = runtime();
        for busy in [false, true] {
            let liveness = Liveness::default();
            let hold = Duration::from_millis(if busy { 20 } else { 0 });
            let held = asked.spawn(async move { stand_still(hold) });
            let probe = liveness.probe_liveness(asked.handle());
            let blamed = probe.or_unattended(timed_out());
            let told = match busy {
                true => asks.block_on(blamed),
                false => futures_util::FutureExt::now_or_never(blamed).expect("it does not wait"),
            };
            assert!(!is_unattended(&told), "busy: {busy}");
            asks.block_on(held).expect("it sleeps");
        }
        // What the process has slept through is not the runtime's silence.
        let liveness = Liveness::default();
        let told = asks.block_on(async {
            let probe = liveness.probe_liveness(asks.handle());
            stand_still(FOR_A_SIGN);
            probe.or_unattended(timed_out()).await
        });
        assert!(!is_unattended(&told));
    }
}
