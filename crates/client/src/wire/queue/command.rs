//! The commands that travel through a connection, and those by which its supervisor directs the
//! driver.

use std::sync::Arc;

use redis::{Pipeline, Value};
use steadfast_core::redis_rs::{self, CommandRef};

use super::SubmitQueue;
use crate::wire::identity::Identity;
use crate::wire::slot::{Rejoin, Ticket};

/// A request that travels through a connection.
#[derive(Debug)]
pub(crate) enum Job {
    /// A call.
    Call(Ticket),
    /// A call that may have run already: only for a connection that can fence its predecessors.
    Fenced(Ticket),
    /// A call behind an ASKING.
    Asking(Box<AskingCall>),
    /// A call that begins or ends a transaction.
    TxTransition(Box<TxTransition>),
    /// A PING of the driver's own.
    Heartbeat,
    /// A CLIENT KILL for this abandoned connection.
    Fence(Box<Identity>),
    /// An AUTH with new credentials.
    Reauthenticate,
    /// The ECHO behind it, of what the server cannot know otherwise: that its answer comes in its
    /// place proves that the AUTH had one.
    Proof(String),
}

impl Job {
    /// Returns the ticket of the caller who waits for it, if one does.
    pub(crate) fn into_ticket(self) -> Option<Ticket> {
        match self {
            Self::Call(ticket) | Self::Fenced(ticket) => Some(ticket),
            Self::Asking(asking) => Some(asking.ticket),
            Self::TxTransition(transition) => Some(transition.ticket),
            Self::Heartbeat | Self::Fence(_) | Self::Reauthenticate | Self::Proof(_) => None,
        }
    }

    fn ticket(&self) -> Option<&Ticket> {
        match self {
            Self::Call(ticket) | Self::Fenced(ticket) => Some(ticket),
            Self::Asking(asking) => Some(&asking.ticket),
            Self::TxTransition(transition) => Some(&transition.ticket),
            Self::Heartbeat | Self::Fence(_) | Self::Reauthenticate | Self::Proof(_) => None,
        }
    }

    /// Returns whether it is a call, and no step of a transaction.
    pub(crate) fn is_call(&self) -> bool {
        matches!(self, Self::Call(_) | Self::Fenced(_) | Self::Asking(_))
    }

    /// Returns whether only a connection that can fence its predecessors may carry it.
    pub(super) fn needs_fence(&self) -> bool {
        match self {
            Self::Fenced(_) => true,
            Self::Asking(asking) => asking.fenced,
            _ => false,
        }
    }

    /// Returns true unless its caller has gone away.
    pub(crate) fn is_wanted(&self) -> bool {
        self.ticket().is_none_or(Ticket::is_wanted)
    }

    /// Returns whether its caller was seen to run since this was asked before.
    pub(super) fn caller_runs(&self) -> bool {
        self.ticket().is_some_and(Ticket::caller_runs)
    }
}

/// A command of a supervisor to its driver.
pub(crate) enum DriverCommand {
    /// End at once; what waits is lost. Answers that have come already are still handed out.
    Abandon(Arc<str>),
    /// End at once, and hand out nothing any more: the server is deposed, and nothing that it
    /// answers counts.
    Depose(Arc<str>),
    /// End for the sake of a standby connection, unless bytes have come after all.
    Yield(Arc<str>),
    /// Take nothing new, and end once everything is answered.
    Retire(Arc<str>),
    /// Kill this abandoned connection on the server, before the next command.
    Fence(Identity),
    /// Give new credentials once everything before is answered, and take nothing new until they
    /// are.
    Reauthenticate(Vec<u8>),
    /// The server is taken for down: end the reads that were not given longer than usual.
    EndReads,
    /// The server is at work on what it was sent, as it says: a sign of life.
    Lives,
    /// Finish what was begun on this queue instead, where nothing new comes: a standby connection
    /// takes over, though this one lives. Reads, and what was not begun, go with the standby.
    StepAside(Arc<SubmitQueue>, Rejoin),
}

/// A step in the transaction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TxStep {
    Multi,
    Exec,
    Discard,
}

/// The steps of a request, each with the place of its reply.
pub(crate) type TxSteps = Vec<(usize, TxStep)>;

/// A call behind an ASKING of our own, whose reply comes first.
#[derive(Debug)]
pub(crate) struct AskingCall {
    pub(crate) ticket: Ticket,
    /// See [`Job::Fenced`].
    pub(super) fenced: bool,
}

/// A request that begins or ends a transaction.
#[derive(Debug)]
pub(crate) struct TxTransition {
    pub(crate) ticket: Ticket,
    pub(crate) steps: TxSteps,
}

impl TxStep {
    pub(crate) fn of<'a>(cmd: impl Into<CommandRef<'a>>) -> Option<Self> {
        let name = cmd.into().arguments().next()?;
        [
            ("MULTI", Self::Multi),
            ("EXEC", Self::Exec),
            ("DISCARD", Self::Discard),
        ]
        .into_iter()
        .find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))
        .map(|(_, step)| step)
    }

    /// Returns the steps of a pipeline that is not a transaction as a whole: such a one begins and
    /// ends in one breath.
    pub(crate) fn all_of(pipeline: &Pipeline) -> TxSteps {
        if pipeline.is_transaction() {
            return TxSteps::new();
        }
        redis_rs::commands(pipeline)
            .enumerate()
            .filter_map(|(place, cmd)| Some((place, Self::of(cmd)?)))
            .collect()
    }

    /// Returns whether this reply ends a transaction, or shows that none was begun.
    pub(super) fn ends_one(self, reply: &Value) -> bool {
        let error = match reply {
            Value::ServerError(error) => Some(error.details().unwrap_or_default()),
            _ => None,
        };
        let without = error.is_some_and(|details| details.contains("without MULTI"));
        match self {
            Self::Multi => error.is_some(),
            // Whatever else it is answered, the server has put the transaction away.
            Self::Exec => !without,
            Self::Discard => error.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_may_begin_one_and_leave_it_open() {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("GET")
            .arg("k")
            .cmd("multi")
            .cmd("SET")
            .arg("k")
            .arg(1);
        assert_eq!(TxStep::all_of(&pipeline), [(1, TxStep::Multi)]);
        pipeline.atomic();
        assert!(TxStep::all_of(&pipeline).is_empty());
    }
}
