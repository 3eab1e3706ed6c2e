//! Whether calls may pass, and what they are told where they may not.

use std::sync::Arc;
use std::time::Instant;

use super::{Job, SubmitQueue};
use crate::error::{Error, ErrorKind};
use crate::wire::slot::Ended;

/// The reason why calls are refused at once.
#[derive(Debug)]
pub(crate) struct Outage {
    pub(crate) since: Instant,
    pub(crate) cause: Arc<str>,
}

/// The gate of a queue: whether calls may pass.
#[derive(Debug, Clone)]
pub(crate) enum Gate {
    /// Calls pass: a driver is in service.
    Open,
    /// A short interruption: calls wait here.
    Waiting,
    /// The server is down: calls are refused. The second is when the next attempt to connect is
    /// due.
    Down(Arc<Outage>, Instant),
    /// A connection of one caller is lost for good: calls are refused at once.
    Ended(Arc<str>),
    /// The runtime has ended in which the client's tasks lived: the next call has them started
    /// anew.
    Orphaned,
    /// The client is closed.
    Closed,
}

impl SubmitQueue {
    /// Refuses what is new, and keeps what waits.
    pub(crate) fn refuse_new(&self) {
        self.lock().gate = Gate::Closed;
    }

    /// Opens or shuts the queue. A closed one stays closed. What waits in it stays only while the
    /// gate is open or waiting.
    pub(crate) fn set_gate(&self, gate: Gate) {
        let mut queue = self.lock();
        let turned = match &gate {
            Gate::Open | Gate::Waiting => Vec::new(),
            Gate::Down(..) | Gate::Ended(_) | Gate::Orphaned | Gate::Closed => {
                queue.batch.drain().collect()
            }
        };
        if !matches!(queue.gate, Gate::Closed) {
            queue.gate = gate;
        }
        drop(queue);
        for ticket in turned.into_iter().filter_map(Job::into_ticket) {
            ticket.end(Ended::Turned);
        }
    }

    /// Moves the time of the next attempt, in the answer of refused calls.
    pub(crate) fn set_retry_at(&self, at: Instant) {
        if let Gate::Down(_, retry_at) = &mut self.lock().gate {
            *retry_at = at;
        }
    }

    pub(crate) fn gate(&self) -> Gate {
        self.lock().gate.clone()
    }

    /// Returns the error of a call that the gate turned away.
    pub(crate) fn refusal(&self, now: Instant) -> Error {
        let mut queue = self.lock();
        match &queue.gate {
            Gate::Down(outage, retry_at) => {
                let error = down(outage, *retry_at, now);
                queue.refused += 1;
                error
            }
            Gate::Ended(cause) => lost(cause),
            Gate::Closed => Error::not_sent(ErrorKind::Closed),
            // So is one that the end of a runtime turned away: it comes again, and is served anew.
            Gate::Open | Gate::Waiting | Gate::Orphaned => Error::not_sent(ErrorKind::Lost {
                cause: "the connection changed before the command was sent".into(),
            }),
        }
    }

    /// Turns away what waits, to come again: the runtime has ended in which the queue was served.
    pub(crate) fn orphan(&self) {
        self.set_gate(Gate::Orphaned);
        self.release();
    }

    /// Lets calls wait again: another runtime serves the queue from now on.
    pub(crate) fn adopt(&self) {
        let mut queue = self.lock();
        if matches!(queue.gate, Gate::Orphaned) {
            queue.gate = Gate::Waiting;
        }
    }

    pub(crate) fn is_orphaned(&self) -> bool {
        matches!(self.lock().gate, Gate::Orphaned)
    }
}

pub(super) fn lost(cause: &Arc<str>) -> Error {
    Error::not_sent(ErrorKind::Lost {
        cause: Arc::clone(cause),
    })
}

pub(super) fn down(outage: &Outage, retry_at: Instant, now: Instant) -> Error {
    Error::not_sent(ErrorKind::Down {
        down_for: now.saturating_duration_since(outage.since),
        retry_after: retry_at.saturating_duration_since(now),
        cause: Arc::clone(&outage.cause),
    })
}

/// The message for a caller outside of any runtime, of a client whose runtime has ended.
pub(crate) const ORPHANED: ErrorKind = ErrorKind::Runtime {
    why: "the tokio runtime in which it lived has ended, and this call is made outside of any; \
          make it within a tokio runtime, or build the client in one that lives as long as it",
};

/// The message of a client whose runtime exists, and is not driven.
pub(crate) const UNATTENDED: ErrorKind = ErrorKind::Runtime {
    why: "the tokio runtime in which it was built does not run its tasks; drive that runtime, keep \
          its threads free of code that blocks, or build the client in another",
};
