//! Whether the runtime in which a client's tasks live runs them.
//!
//! Whoever waits for what a task of the client's is to find out cannot tell a task that finds
//! nothing from one that nobody runs. So that runtime is given a task that only answers: if it does
//! not, the error can say so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::clock;

/// The time that a runtime has to answer, of a call that has waited in vain.
pub(crate) const FOR_A_SIGN: Duration = Duration::from_millis(250);
/// A runtime that has answered so lately is not asked again.
const LATELY: Duration = Duration::from_secs(1);

/// The last sign of a runtime that it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attendance(Arc<Signs>);

#[derive(Debug, Default)]
struct Signs {
    ran_at: watch::Sender<Option<Instant>>,
    /// Whether a task is there that has not answered yet: one at most, however many ask.
    asked: AtomicBool,
}

/// A question whether a runtime runs.
#[derive(Debug)]
pub(crate) struct RollCall(Option<watch::Receiver<Option<Instant>>>);

impl Attendance {
    /// Asks whether this runtime runs, unless it has just shown it.
    pub(crate) fn call_roll(&self, runtime: &Handle) -> RollCall {
        let answer = self.0.ran_at.subscribe();
        let ran_at = *answer.borrow();
        let now = clock::now();
        if ran_at.is_some_and(|at| now.saturating_duration_since(at) < LATELY) {
            return RollCall(None);
        }
        if !self.0.asked.swap(true, Ordering::AcqRel) {
            let asked = Asked(self.clone());
            runtime.spawn(async move { asked.answer() });
        }
        RollCall(Some(answer))
    }
}

impl RollCall {
    /// Returns whether it is answered by then.
    pub(crate) async fn answered_by(self, until: Instant) -> bool {
        let Some(mut answer) = self.0 else {
            return true;
        };
        let answered = clock::timeout_at(until, answer.changed()).await;
        answered.is_some_and(|answered| answered.is_ok())
    }
}

/// A task that is to answer. Dropped with its runtime, it makes room for the next.
struct Asked(Attendance);

impl Asked {
    fn answer(self) {
        self.0.0.ran_at.send_replace(Some(clock::now()));
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.0.asked.store(false, Ordering::Release);
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

    #[test]
    fn c19_a_runtime_that_nobody_drives_is_told_from_one_that_runs_and_from_one_that_has_ended() {
        let (asks, asked) = (runtime(), runtime());
        let attendance = Attendance::default();
        let call = |of: &Runtime| attendance.call_roll(of.handle());
        let is_answered = |roll: RollCall| {
            let moment = Duration::from_millis(20);
            asks.block_on(async { roll.answered_by(clock::now() + moment).await })
        };
        assert!(!is_answered(call(&asked)), "nobody drives it");
        let waiting = [call(&asked), call(&asked)];
        assert_eq!(asked.metrics().num_alive_tasks(), 1, "it is asked once");
        asked.block_on(tokio::task::yield_now());
        for roll in waiting {
            assert!(is_answered(roll), "it was driven");
        }
        assert!(is_answered(call(&asked)), "it ran a moment ago");

        let attendance = Attendance::default();
        let gone = runtime();
        let before = attendance.call_roll(gone.handle());
        drop(gone);
        assert!(!is_answered(before), "it has ended");
        let after = attendance.call_roll(asked.handle());
        asked.block_on(tokio::task::yield_now());
        assert!(is_answered(after), "another runs");
    }
}
