//! The one enum of what happens to a connection; history, log lines and metrics are all derived
//! from it.
//!
//! Feeding the three apart lets them disagree, at the moment when someone needs them to agree.

pub(crate) mod flapping;
pub(crate) mod hub;
pub(crate) mod incident;
#[cfg(test)]
pub(crate) mod listener;
mod log;

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::event::flapping::Flapping;
use crate::named::named;
use crate::sentinel::FailoverHistory;

/// An event in the life of a connection.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Event {
    /// Counts up by one per event of a client.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The index of the connection among the client's, from 0.
    pub connection: usize,
    /// The address of the node that it leads to; absent where there is one server. In a cluster
    /// each node's connections have numbers of their own.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub node: Option<Arc<str>>,
    /// Whether it is one of the many events of a connection that flaps ([`EventKind::Flapping`]),
    /// which the history tells as one.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_not"))]
    pub folded: bool,
    /// The kind of an event.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub kind: EventKind,
}

#[cfg(feature = "serde")]
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_not(flag: &bool) -> bool {
    !flag
}

/// The kind of an event.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "event", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum EventKind {
    /// An attempt to connect succeeded; the connection is in service.
    Connected {
        /// The address of the server.
        address: String,
        /// The server's version.
        version: String,
        /// The attempts of this outage, this one included.
        attempt: u32,
        /// The time from the loss of the last connection to now; absent for the first.
        outage_ms: Option<f64>,
        /// The time that the attempt took.
        took_ms: f64,
        /// Calls refused at once since the last connection was in service.
        refused: u64,
    },
    /// An attempt to connect failed.
    ConnectFailed {
        /// The attempts of this outage, this one included.
        attempt: u32,
        /// The cause.
        cause: Arc<str>,
        /// The time until the next one begins.
        retry_in_ms: f64,
    },
    /// A connection ended that was in service.
    Lost {
        /// The cause.
        cause: Arc<str>,
        /// Requests written and not answered, those given up while it was silent included: their
        /// outcome is unknown.
        unknown: usize,
        /// Requests that were not written.
        not_sent: usize,
    },
    /// No byte came for a while although commands wait: a standby connection is dialled.
    Unresponsive {
        /// The time for which no byte has come.
        quiet_ms: f64,
    },
    /// The connection that was unresponsive answers again.
    Recovered {
        /// The time for which no byte had come.
        quiet_ms: f64,
        /// Calls refused at once meanwhile.
        refused: u64,
        /// Requests given up meanwhile at their deadlines: their outcome was told as unknown.
        unknown: usize,
    },
    /// A new connection takes the place of one that works, or that stopped answering.
    Replaced {
        /// The cause.
        cause: Arc<str>,
        /// Requests written to the old one and not answered: their outcome is unknown.
        unknown: usize,
    },
    /// The allowance for short interruptions is spent: from now on calls are refused at once.
    Down {
        /// The cause.
        cause: Arc<str>,
    },
    /// The breaker changed its state.
    Breaker {
        /// The state before: `closed`, `open` or `half_open`.
        from: &'static str,
        /// The state since.
        to: &'static str,
        /// The cause.
        cause: String,
    },
    /// An abandoned connection was killed on the server, so that nothing left in it can be applied.
    Fenced {
        /// The abandoned connection's id.
        id: i64,
    },
    /// The server does not let this user kill connections: last-wins writes are not repeated after
    /// an unknown outcome.
    FenceRefused {
        /// The server's answer.
        cause: Arc<str>,
    },
    /// New credentials are in force: a connection that gave them has taken the place of the one
    /// before.
    Reauthenticated,
    /// New credentials could not be had, or were refused.
    CredentialsFailed {
        /// The cause.
        cause: Arc<str>,
    },
    /// The watchdog found the supervisor stuck and started it anew.
    StuckReset {
        /// The time without progress.
        stuck_ms: f64,
    },
    /// A node of a cluster was left while a connection to it was lost, silent or flapping: it owns
    /// no slots any more, or is no member, and others serve what it did. That ends the outage.
    Retired {
        /// Calls refused at once since the last connection was in service.
        refused: u64,
    },
    /// The client was closed; with a [`node`](Event::node), the client's connections to that node
    /// were, because the client is, or the node was left.
    Closed {
        /// Calls that it could not finish.
        unfinished: usize,
    },
    /// The sentinels name another primary, and it serves, or does not within 10 s. Connections to
    /// the old one ended as it was named.
    FailedOver {
        /// The primary until now.
        from: String,
        /// The primary from now on.
        to: String,
        /// The epoch of the new configuration.
        epoch: u64,
        /// The sentinels that name it so far.
        votes: usize,
        /// The sentinels that there are, by all that is known.
        voters: usize,
        /// The relation of its data to that of the primary before.
        history: FailoverHistory,
    },
    /// A seed of a cluster leads to another one: its name or address may belong to others now. Told
    /// once of each node that answers there.
    OtherCluster {
        /// The address at which the other one answers.
        address: String,
        /// The id of the node that answers (`CLUSTER MYID`); empty if it does not tell.
        id: String,
        /// Whether it is taken for ours, made anew, because no node answers that knows a member of
        /// ours. Else it is not believed.
        believed: bool,
    },
    /// The connection is lost and replaced again and again. From here on the history holds this one
    /// entry, which grows, in place of each loss; listeners hear of it once a second at most, and
    /// of what it consists of as ever.
    Flapping(Flapping),
    /// No connection was lost for two minutes, or the node of the cluster was left for others.
    FlappingEnded(Flapping),
}

named! {
    impl EventKind {
        /// Returns the event's name, for metrics.
        pub fn name;
        /// The names that there are, so that every counter can begin at 0.
        const NAMES;
        Connected => "connected",
        ConnectFailed => "connect_failed",
        Lost => "lost",
        Unresponsive => "unresponsive",
        Recovered => "recovered",
        Replaced => "replaced",
        Down => "down",
        Breaker => "breaker",
        Fenced => "fenced",
        FenceRefused => "fence_refused",
        Reauthenticated => "reauthenticated",
        CredentialsFailed => "credentials_failed",
        StuckReset => "stuck_reset",
        Retired => "retired",
        Closed => "closed",
        FailedOver => "failed_over",
        OtherCluster => "other_cluster",
        Flapping => "flapping",
        FlappingEnded => "flapping_ended",
    }
}

/// The events of a client as they happen.
///
/// ```no_run
/// use steadfast::EventItem;
///
/// # async fn example(client: steadfast::Client) {
/// let mut events = client.events();
/// while let Some(event) = events.next().await {
///     match event {
///         EventItem::Event(event) => println!("{}", event.kind.name()),
///         EventItem::Gap(missed) => println!("{missed} events were missed"),
///         _ => {}
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Events {
    live: broadcast::Receiver<Event>,
}

/// An item that [`Events::next`] yields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EventItem {
    /// The next event.
    Event(Event),
    /// A gap: this listener was too slow (256 events are kept for it), and so many were missed.
    /// [`Client::history`](crate::Client::history) has the last ones.
    Gap(u64),
}

impl Events {
    /// Waits for the next event; `None` once the client is gone.
    pub async fn next(&mut self) -> Option<EventItem> {
        match self.live.recv().await {
            Ok(event) => Some(EventItem::Event(event)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(EventItem::Gap(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
