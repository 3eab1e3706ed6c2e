//! A breaker's answer to a call, and the call's report afterwards. A permit is neither
//! `Copy` nor `Clone`, so that one call can report once.

use std::time::{Duration, Instant};

use super::Transition;

/// A call may go, at once or in a moment.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is neither recorded nor forgotten keeps a probe's place"]
pub enum Admission {
    /// Go.
    Now(Permit),
    /// Go then: the breaker closed a moment ago and spreads the crowd out. The place is kept; do
    /// not ask again.
    Delay {
        /// The call's turn, never later than the end of the ramp.
        until: Instant,
        /// Valid now.
        permit: Permit,
    },
}

/// The right to make one call, to be given back by [`record`](super::Breaker::record) or
/// [`forget`](super::Breaker::forget).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is neither recorded nor forgotten keeps a probe's place"]
pub struct Permit {
    pub(super) generation: u64,
    pub(super) probe: bool,
    pub(super) began: Option<Transition>,
}

impl Permit {
    /// For a call that went without asking, while the breaker of that
    /// [generation](super::Breaker::generation) [passed freely](super::Breaker::passes_freely).
    #[inline]
    pub fn passed(generation: u64) -> Self {
        Self {
            generation,
            probe: false,
            began: None,
        }
    }

    /// Does this call find out for the others whether the server is back?
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The change from open to half-open, if this is the call that brought it about.
    pub fn transition(&self) -> Option<&Transition> {
        self.began.as_ref()
    }
}

/// The server is not to be tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open; try again in {} ms", retry_after.as_millis())]
pub struct Refused {
    /// When the trouble began.
    pub since: Instant,
    /// When the next call has a chance.
    pub retry_after: Duration,
}

/// How a call ended, in the eyes of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered in time; a server's "wrong type" is an answer too.
    Success,
    /// The infrastructure failed: timeout, loss, or a server that says it cannot serve.
    Failure,
    /// Answered, but later than [`slow_call`](super::BreakerConfig::slow_call). Of a probe it is a
    /// failure.
    Slow,
}
