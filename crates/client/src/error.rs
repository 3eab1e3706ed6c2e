//! Every failure says what is known of the command, and what to do.
//!
//! An error that leaves open whether a write took effect cannot be handled: so [`Error::certainty`]
//! is on every one of them, also on those that reach the caller as a [`redis::RedisError`] (see
//! [`certainty`]).

mod config;
pub(crate) mod connect;
mod redis_rs;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::ServerError;
use steadfast_core::certainty::{Refusal, refusal, was_refused_before_running};
use steadfast_core::command::{Alternative, Errors};
use steadfast_core::resp::DecodeError;
use thiserror::Error;

pub use self::config::ConfigError;
pub use self::redis_rs::certainty;
pub(crate) use self::redis_rs::server_error;
use crate::named::named;
pub use steadfast_core::certainty::Certainty;

/// The failure of a call, and what is known of its command.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    certainty: Certainty,
    /// The node of a cluster and its slots.
    at: Option<Arc<str>>,
}

/// The kind of a failure.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The call's deadline passed.
    #[error("no answer within {deadline:?}")]
    Timeout {
        /// The deadline that the call had.
        deadline: Duration,
    },
    /// Redis is down, and the call was refused at once.
    #[error("redis has been down for {down_for:?} ({cause}); try again in {retry_after:?}")]
    Down {
        /// The time for which it has been down.
        down_for: Duration,
        /// The time to the next attempt to connect: calling sooner is useless.
        retry_after: Duration,
        /// The cause of the last attempt's end.
        cause: Arc<str>,
    },
    /// Redis answers, but fails too often: the breaker refuses calls for a while.
    #[error("the breaker has been open for {open_for:?}; try again in {retry_after:?}")]
    BreakerOpen {
        /// The time for which it has been open.
        open_for: Duration,
        /// The time until calls may pass again.
        retry_after: Duration,
    },
    /// The client has reached one of its bounds.
    #[error("overloaded: {}", bound.as_str())]
    Overloaded {
        /// The bound that is reached.
        bound: Bound,
        /// The time until a place may be free.
        retry_after: Duration,
    },
    /// The connection was lost while the command was on its way.
    #[error("the connection was lost: {cause}")]
    Lost {
        /// The cause of its end.
        cause: Arc<str>,
    },
    /// The server answered with an error.
    #[error("{}", as_sent(.0))]
    Server(ServerError),
    /// The reply passes a limit of
    /// [`ClientBuilder::reply_limits`](crate::ClientBuilder::reply_limits). The command has run; it
    /// is not sent again, since its reply would be as large, and the connection has ended with it.
    #[error("{limit}: raise it by ClientBuilder::reply_limits, or ask for less at a time")]
    ReplyTooLarge {
        /// The limit that the reply passes.
        limit: DecodeError,
    },
    /// The command cannot run on a connection that is shared.
    #[error("{command} cannot run on a shared connection: {}", remedy(instead))]
    Refused {
        /// The name of the command.
        command: &'static str,
        /// The part of the interface that serves instead.
        instead: Alternative,
    },
    /// The keys of the command, transaction or script belong to several slots of the cluster, and
    /// it is not one that is split.
    #[error(
        "{command} has keys of slots {} and {}, which may lie on different nodes of the cluster: \
         give keys that belong together one hash tag ({{…}}), or send a command for each",
        slots.0, slots.1
    )]
    CrossSlot {
        /// The name of the command.
        command: &'static str,
        /// The first two slots that differ.
        slots: (u16, u16),
    },
    /// The command has no key, and no one place in a cluster.
    #[error("{command} has no one place in a cluster: {instead}")]
    NoPlace {
        /// The name of the command.
        command: &'static str,
        /// The way to run it instead.
        instead: &'static str,
    },
    /// No server is known at the address that was asked for by
    /// [`Client::node`](crate::Client::node).
    #[error("no server is known at {asked}; known are {known}")]
    UnknownNode {
        /// The address.
        asked: Arc<str>,
        /// The addresses that are known.
        known: Arc<str>,
    },
    /// The scan of all keys has ended, and not covered these slots: keys of them may be missing.
    #[error(
        "the scan has not covered the slots {slots}{}: keys of them may be missing; scan again when all slots are served",
        why_uncovered(cause.as_deref())
    )]
    Uncovered {
        /// The slots, such as `0-5460, 7000`.
        slots: Arc<str>,
        /// The reason why the last of its questions failed, if one did.
        cause: Option<Arc<str>>,
    },
    /// Later commands for the same key have run at the new owner of its slot: to send this one
    /// after them would break their order.
    #[error(
        "not sent again: its slot moved, and later commands for its key have run at the new owner"
    )]
    Overtaken,
    /// Several nodes were needed, and some of them failed: of these parts of the call.
    #[error(
        "{done} parts of the call were served, {} were not and {} may have been ({cause})",
        not_run.len(), unknown.len()
    )]
    Partial {
        /// The reason why the first of them failed.
        cause: Arc<str>,
        /// The keys, or the numbers of a pipeline's commands from 0, that were served.
        done: usize,
        /// The positions of the commands of which nothing has run.
        not_run: Vec<usize>,
        /// The positions of the commands that may have run.
        unknown: Vec<usize>,
    },
    /// A blocking command that waits for ever was sent without a deadline of its own.
    #[error(
        "{command} with a timeout of 0 waits for ever: give the call a deadline, \
         as in client.with(CallOptions::new().deadline(…))"
    )]
    NeedsDeadline {
        /// The name of the command.
        command: &'static str,
    },
    /// The client is closed or closing.
    #[error("the client is closed")]
    Closed,
    /// The command is empty, or a pipeline's replies do not add up.
    #[error("{why}")]
    Invalid {
        /// The fault, in words.
        why: &'static str,
    },
    /// The runtime that the client's tasks live in has ended or does not run, so that nobody serves
    /// its connection.
    #[error("nobody serves the client: {why}")]
    Runtime {
        /// The fault of the runtime, and what to do.
        why: &'static str,
    },
    /// No majority of sentinels has confirmed the primary lately, and the call may write: see
    /// [`ClientBuilder::primary_proof`](crate::ClientBuilder::primary_proof).
    #[error(
        "no majority of sentinels has confirmed the primary{}, which is asked for within {within:?}",
        since(*age)
    )]
    Unproven {
        /// The age that the proof may have.
        within: Duration,
        /// The age of the proof; `None` if there never was one.
        age: Option<Duration>,
    },
    /// The server has answered the write, and not so many replicas as were asked for have
    /// acknowledged it in time: see
    /// [`CallOptions::acknowledged_by`](crate::CallOptions::acknowledged_by).
    #[error(
        "the write was answered, and {acked} of the {wanted} replicas that were asked for have acknowledged it"
    )]
    NotReplicated {
        /// The number of replicas that have.
        acked: u32,
        /// The number of replicas that were asked for.
        wanted: u32,
    },
    /// There is no connection for this call: a dedicated one could not be opened, or the client is
    /// not connected yet.
    #[error("cannot connect: {cause}")]
    Connect {
        /// The cause.
        cause: Arc<str>,
    },
}

named! {
    impl ErrorKind {
        /// Returns a label of few values, for metrics and reports.
        pub(crate) fn label;
        /// The labels that there are, so that every counter can begin at 0.
        const LABELS;
        Timeout => "timeout",
        Down => "down",
        BreakerOpen => "breaker_open",
        Overloaded => "overloaded",
        Lost => "lost",
        Server => "server",
        ReplyTooLarge => "reply_too_large",
        Refused => "refused",
        CrossSlot => "cross_slot",
        NoPlace => "no_place",
        UnknownNode => "unknown_node",
        Uncovered => "uncovered",
        Overtaken => "overtaken",
        Partial => "partial",
        NeedsDeadline => "needs_deadline",
        Closed => "closed",
        Invalid => "invalid",
        Runtime => "runtime",
        Unproven => "unproven",
        NotReplicated => "not_replicated",
        Connect => "connect",
    }
}

/// An error reply in the server's words.
fn as_sent(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

/// Says what serves instead of a shared connection.
fn remedy(instead: &Alternative) -> &'static str {
    match instead {
        Alternative::Session => "use client.session()",
        Alternative::PubSub => "use client.pubsub()",
        Alternative::Unsupported => "steadfast does not support it",
    }
}

/// Says why a scan has not covered some slots.
fn why_uncovered(cause: Option<&str>) -> String {
    match cause {
        Some(cause) => format!(" ({cause})"),
        None => ", which had no owner that answers, or moved all the time".to_owned(),
    }
}

/// Says how old a proof is, if there ever was one.
fn since(age: Option<Duration>) -> String {
    age.map_or_else(String::new, |age| format!(" for {age:.1?}"))
}

/// A bound of the client.
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Bound, Error, ErrorKind};
///
/// /// How long to wait before the next call, if that would help.
/// fn pause(error: &Error) -> Option<Duration> {
///     match error.kind() {
///         ErrorKind::Overloaded { bound: Bound::Deadline, .. } => None, // Redis itself is slow
///         ErrorKind::Overloaded { retry_after, .. } => Some(*retry_after),
///         _ => None,
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bound {
    /// Calls sent or waiting to be sent.
    InFlight,
    /// Bytes waiting to be sent.
    Bytes,
    /// Blocking connections.
    Blocking,
    /// The deadline: at the latency now observed, the call could not finish within it.
    Deadline,
}

impl Bound {
    fn as_str(self) -> &'static str {
        match self {
            Self::InFlight => "too many calls are in flight",
            Self::Bytes => "the send buffer is full",
            Self::Blocking => {
                "every connection for commands that block is taken: raise blocking_connections"
            }
            Self::Deadline => {
                "at the latency now observed the call could not finish within its deadline"
            }
        }
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, certainty: Certainty) -> Self {
        Self {
            kind,
            certainty,
            at: None,
        }
    }

    pub(crate) fn not_sent(kind: ErrorKind) -> Self {
        Self::new(kind, Certainty::NotSent)
    }

    /// An error reply to a command of this name, of which an error proves so much.
    pub(crate) fn server(error: ServerError, errors: Errors, name: &[u8]) -> Self {
        let details = error.details().unwrap_or_default();
        let refused = was_refused_before_running(error.code(), details, errors, name);
        let certainty = match refused {
            true => Certainty::Rejected,
            false => Certainty::Unknown,
        };
        Self::new(ErrorKind::Server(error), certainty)
    }

    /// An error reply whose words nobody but the server can have written.
    pub(crate) fn refused(error: ServerError) -> Self {
        Self::new(ErrorKind::Server(error), Certainty::Rejected)
    }

    /// Returns this error, of a call one of whose attempts may have had an effect (`unknown`).
    pub(crate) fn at_best(mut self, unknown: bool) -> Self {
        if unknown {
            self.certainty = Certainty::Unknown;
        }
        self
    }

    /// Returns this error, of a call of whose earlier attempts no more is known than this.
    pub(crate) fn at_least(self, certainty: Certainty) -> Self {
        let worst = self.certainty.max(certainty);
        self.of_certainty(worst)
    }

    /// Marks the error as proof that nothing has run.
    pub(crate) fn proven_rejected(self) -> Self {
        self.of_certainty(Certainty::Rejected)
    }

    /// Returns the same error, with so much known of the command.
    pub(crate) fn of_certainty(mut self, certainty: Certainty) -> Self {
        self.certainty = certainty;
        self
    }

    /// Names the node of the cluster that the error is of.
    pub(crate) fn named(mut self, at: Arc<str>) -> Self {
        self.at = Some(at);
        self
    }

    /// Returns the node of a cluster that failed, with its slots: of errors of the infrastructure,
    /// where one node is to blame.
    ///
    /// ```
    /// fn blame(error: &steadfast::Error) -> String {
    ///     let kind = if error.is_infrastructure() { "infrastructure" } else { error.label() };
    ///     format!("{kind} at {}", error.at().unwrap_or("Redis"))
    /// }
    /// ```
    pub fn at(&self) -> Option<&str> {
        self.at.as_deref()
    }

    /// Returns what is known of the command.
    pub fn certainty(&self) -> Certainty {
        self.certainty
    }

    /// Returns the kind of the failure.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Returns the time until a new call is worth it, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match &self.kind {
            ErrorKind::Down { retry_after, .. }
            | ErrorKind::BreakerOpen { retry_after, .. }
            | ErrorKind::Overloaded { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// Returns whether the infrastructure failed, not the command: such errors count for the
    /// breaker, and a cache may degrade on them.
    pub fn is_infrastructure(&self) -> bool {
        match &self.kind {
            ErrorKind::Server(error) => self.server_refusal(error) != Refusal::Lasting,
            ErrorKind::Refused { .. }
            | ErrorKind::CrossSlot { .. }
            | ErrorKind::NoPlace { .. }
            | ErrorKind::UnknownNode { .. }
            | ErrorKind::NeedsDeadline { .. }
            | ErrorKind::ReplyTooLarge { .. }
            | ErrorKind::Invalid { .. } => false,
            _ => true,
        }
    }

    /// Returns a label of few values, for metrics and reports.
    pub fn label(&self) -> &'static str {
        self.kind.label()
    }

    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match &self.kind {
            ErrorKind::Server(error) => Some(self.server_refusal(error)),
            _ => None,
        }
    }

    /// Returns whether a node has pointed to another.
    pub(crate) fn is_redirect(&self) -> bool {
        self.refusal() == Some(Refusal::Redirected)
    }

    fn server_refusal(&self, error: &ServerError) -> Refusal {
        refusal(error.code(), error.details().unwrap_or_default())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(at) = &self.at {
            write!(f, " ({at})")?;
        }
        write!(f, " [{}]", self.certainty)
    }
}

impl std::error::Error for Error {}
