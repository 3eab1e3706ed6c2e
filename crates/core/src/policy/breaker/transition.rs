//! A change of a breaker: one value, from which event, log line and metric are derived.

use std::time::Instant;

/// The state of a breaker, which says what becomes of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Lets them through.
    Closed,
    /// Refuses them.
    Open,
    /// Lets a few through, to find out.
    HalfOpen,
}

/// The authority over a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerMode {
    /// The breaker judges by itself (the default).
    Automatic,
    /// A person has it refuse everything.
    ForcedOpen,
    /// A person has it let everything through; it keeps counting.
    ForcedClosed,
    /// A person has switched it off: it neither counts nor refuses.
    Disabled,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// The state since.
    pub to: State,
    /// The cause of the change.
    pub cause: Cause,
    /// When.
    pub at: Instant,
}

/// Why a breaker changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// So many failures with no success between them.
    ConsecutiveFailures {
        /// Failures in a row.
        failed: u32,
    },
    /// Too large a share of the calls in the window failed.
    FailureRate {
        /// Failures in the window.
        failed: u64,
        /// Calls in the window.
        calls: u64,
    },
    /// Too large a share of the calls in the window was slow.
    SlowCalls {
        /// Slow calls in the window.
        slow: u64,
        /// Calls in the window.
        calls: u64,
    },
    /// The open time is over.
    OpenTimeOver,
    /// A probe failed, was slow, or lost its connection.
    ProbeFailed,
    /// Enough probes succeeded.
    ProbesSucceeded,
    /// The client's own probe succeeded.
    OwnProbe,
    /// A person asked for it.
    ByHand,
}
