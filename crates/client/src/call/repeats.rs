//! The price of a further attempt, whichever connection serves it: one of the policy's attempts, a
//! pause, a token of the budget.
//!
//! Whether a call *may* be made again is for whoever knows its connection; this decides whether it
//! can be afforded.

use std::time::Instant;

use steadfast_core::policy::retry::Step;
use steadfast_core::policy::{RetryPolicy, RetryState, Stop};

use crate::clock;
use crate::error::{Certainty, Error};
use crate::link::shared::Shared;
use crate::options::CallOptions;

/// The end of an attempt that is to be followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// The connection was lost before anything of the call was written: it has loaded nobody, and
    /// counts as none.
    Nothing,
    /// The connection was lost, or turned out to lead elsewhere: waiting for the next one is the
    /// pause.
    Loss,
    /// The server refused it for now.
    Refusal,
}

/// The attempts of one call after its first.
pub(crate) struct Repeats<'a> {
    shared: &'a Shared,
    state: RetryState,
    /// The first repeat after a loss asks for no token: it is what makes a short interruption
    /// invisible, and a loss hits each call once.
    free: bool,
    /// An attempt may have had an effect, which outweighs all others that had none.
    unknown: bool,
}

impl<'a> Repeats<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        options: &CallOptions,
        started: Instant,
        deadline: Instant,
    ) -> Self {
        let mut policy = shared.settings.retry.clone();
        if let Some(attempts) = options.attempts {
            policy = RetryPolicy::new(policy.backoff, Stop::after_attempts(attempts));
        }
        Self {
            shared,
            state: RetryState::new(policy, started, Some(deadline), shared.rng()),
            free: true,
            unknown: false,
        }
    }

    /// Waits until it is time for the next attempt; true if an earlier one may have run.
    ///
    /// # Errors
    /// There is none: this is what the caller gets to know.
    pub(crate) async fn wait(&mut self, error: Error, after: After) -> Result<bool, Error> {
        self.unknown |= error.certainty() == Certainty::Unknown;
        let now = clock::now();
        let step = match after {
            After::Nothing => self.state.next_after_none(now),
            After::Loss => self.state.next_at_once(now),
            After::Refusal => self.state.next(now),
        };
        let Step::Pause(pause) = step else {
            return Err(error.at_best(self.unknown));
        };
        let pays = match after {
            After::Nothing => false,
            After::Loss => !std::mem::take(&mut self.free),
            After::Refusal => true,
        };
        if pays && self.shared.budget.try_withdraw(now).is_err() {
            return Err(error.at_best(self.unknown));
        }
        if !pause.is_zero() {
            clock::sleep(pause).await;
        }
        self.shared.metrics.retried();
        Ok(self.unknown)
    }

    /// Returns whether an attempt may have had an effect.
    pub(crate) fn may_have_run(&self) -> bool {
        self.unknown
    }
}
