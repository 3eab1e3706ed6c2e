//! One enum describes what happens to a connection; history, log lines and metrics are all derived from it.
//!
//! Feeding the three apart lets them disagree, at the moment when someone needs them to agree.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::clock;
use crate::incident::{Incident, Incidents};

/// Something that happened to a connection.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Event {
    /// Counts up by one per event of a client.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Which of the client's connections, from 0.
    pub connection: usize,
    /// What happened.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "event", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum EventKind {
    /// An attempt to connect succeeded; the connection is in service.
    Connected {
        /// Where to.
        address: String,
        /// The server's version.
        version: String,
        /// The attempts of this outage, this one included.
        attempt: u32,
        /// From the loss of the last connection to now; absent for the first.
        outage_ms: Option<f64>,
        /// How long the attempt took.
        took_ms: f64,
        /// Calls refused at once since the last connection was in service.
        refused: u64,
    },
    /// An attempt to connect failed.
    ConnectFailed {
        /// The attempts of this outage, this one included.
        attempt: u32,
        /// Why.
        cause: Arc<str>,
        /// When the next one begins.
        retry_in_ms: f64,
    },
    /// A connection ended that was in service.
    Lost {
        /// Why.
        cause: Arc<str>,
        /// Requests written and not answered, those given up while it was silent included: their outcome is unknown.
        unknown: usize,
        /// Requests that were not written.
        not_sent: usize,
    },
    /// No byte came for a while although commands wait: a challenger is dialled.
    Overdue {
        /// For how long no byte has come.
        quiet_ms: f64,
    },
    /// The connection that was overdue answers again.
    Woke {
        /// For how long no byte had come.
        quiet_ms: f64,
        /// Calls refused at once meanwhile.
        refused: u64,
        /// Requests given up meanwhile at their deadlines: their outcome was told as unknown.
        unknown: usize,
    },
    /// A new connection takes the place of one that works, or that stopped answering.
    Replaced {
        /// Why.
        cause: Arc<str>,
        /// Requests written to the old one and not answered: their outcome is unknown.
        unknown: usize,
    },
    /// The allowance for short interruptions is spent: from now on calls are refused at once.
    Down {
        /// Why.
        cause: Arc<str>,
    },
    /// The breaker changed its state.
    Breaker {
        /// From `closed`, `open` or `half_open`.
        from: &'static str,
        /// To.
        to: &'static str,
        /// Why.
        cause: String,
    },
    /// An abandoned connection was killed on the server, so that nothing left in it can be applied.
    Fenced {
        /// The abandoned connection's id.
        id: i64,
    },
    /// The server does not let this user kill connections: last-wins writes are not repeated after an unknown outcome.
    FenceRefused {
        /// The server's answer.
        cause: Arc<str>,
    },
    /// New credentials are in force: a connection that gave them has taken the place of the one before.
    Reauthenticated,
    /// New credentials could not be had, or were refused.
    CredentialsFailed {
        /// Why.
        cause: Arc<str>,
    },
    /// The watchdog found the supervisor stuck and started it anew.
    StuckReset {
        /// For how long it made no progress.
        stuck_ms: f64,
    },
    /// The client was closed.
    Closed {
        /// Calls that it could not finish.
        unfinished: usize,
    },
}

impl EventKind {
    /// Its name, for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connected { .. } => "connected",
            Self::ConnectFailed { .. } => "connect_failed",
            Self::Lost { .. } => "lost",
            Self::Overdue { .. } => "overdue",
            Self::Woke { .. } => "woke",
            Self::Replaced { .. } => "replaced",
            Self::Down { .. } => "down",
            Self::Breaker { .. } => "breaker",
            Self::Fenced { .. } => "fenced",
            Self::FenceRefused { .. } => "fence_refused",
            Self::Reauthenticated => "reauthenticated",
            Self::CredentialsFailed { .. } => "credentials_failed",
            Self::StuckReset { .. } => "stuck_reset",
            Self::Closed { .. } => "closed",
        }
    }
}

/// Where events go.
#[derive(Debug)]
pub(crate) struct Hub {
    seq: AtomicU64,
    history: Mutex<VecDeque<Event>>,
    incidents: Mutex<Incidents>,
    keep: usize,
    live: broadcast::Sender<Event>,
}

impl Hub {
    pub(crate) fn new(keep: usize) -> Self {
        Self {
            seq: AtomicU64::new(0),
            history: Mutex::new(VecDeque::with_capacity(keep.min(1024))),
            incidents: Mutex::default(),
            keep,
            live: broadcast::channel(256).0,
        }
    }

    pub(crate) fn emit(&self, connection: usize, kind: EventKind) {
        log(connection, &kind);
        crate::metrics::count_event(&kind);
        let mut history = self.history.lock();
        let event = Event {
            seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1,
            at_ms: clock::unix_ms(),
            connection,
            kind,
        };
        self.incidents
            .lock()
            .note(connection, event.at_ms, &event.kind);
        remember(&mut history, self.keep, &event);
        // Sent under the lock, so that every listener sees events in their order; it does not block.
        let _ = self.live.send(event);
    }

    pub(crate) fn history(&self) -> Vec<Event> {
        self.history.lock().iter().cloned().collect()
    }

    pub(crate) fn incidents(&self) -> Vec<Incident> {
        self.incidents.lock().list()
    }

    pub(crate) fn subscribe(&self) -> Events {
        Events {
            live: self.live.subscribe(),
        }
    }
}

/// What fails for the same reason, again and again, is one entry (attempts to connect are counted in it): or a long outage would push its own
/// beginning out.
fn remember(history: &mut VecDeque<Event>, keep: usize, event: &Event) {
    if keep == 0 {
        return;
    }
    if let Some(last) = history.back_mut()
        && last.connection == event.connection
        && same_failure(&last.kind, &event.kind)
    {
        *last = event.clone();
        return;
    }
    if history.len() == keep {
        history.pop_front();
    }
    history.push_back(event.clone());
}

fn same_failure(a: &EventKind, b: &EventKind) -> bool {
    match (a, b) {
        (
            EventKind::ConnectFailed {
                attempt: earlier,
                cause: a,
                ..
            },
            EventKind::ConnectFailed {
                attempt: later,
                cause: b,
                ..
            },
        ) => a == b && later > earlier,
        (EventKind::CredentialsFailed { cause: a }, EventKind::CredentialsFailed { cause: b }) => {
            a == b
        }
        _ => false,
    }
}

fn log(connection: usize, kind: &EventKind) {
    match kind {
        EventKind::Connected {
            address,
            version,
            attempt,
            outage_ms,
            took_ms,
            refused,
        } => tracing::info!(
            connection,
            address,
            version,
            attempt,
            outage_ms,
            took_ms,
            refused,
            "connected to redis"
        ),
        EventKind::ConnectFailed {
            attempt,
            cause,
            retry_in_ms,
        } => {
            // An outage of an hour is some 14 000 attempts: the first tells what is wrong, a doubling number of them that it still is.
            if attempt.is_power_of_two() {
                tracing::warn!(connection, attempt, %cause, retry_in_ms, "cannot connect to redis");
            } else {
                tracing::debug!(connection, attempt, %cause, retry_in_ms, "cannot connect to redis");
            }
        }
        EventKind::Lost {
            cause,
            unknown,
            not_sent,
        } => tracing::warn!(connection, %cause, unknown, not_sent, "connection to redis lost"),
        EventKind::Overdue { quiet_ms } => {
            tracing::warn!(connection, quiet_ms, "redis is overdue with its answers");
        }
        EventKind::Down { cause } => {
            tracing::error!(connection, %cause, "redis is down, calls are refused at once");
        }
        EventKind::Breaker { from, to, cause } => {
            tracing::warn!(connection, from, to, cause, "breaker changed");
        }
        EventKind::StuckReset { stuck_ms } => {
            tracing::error!(connection, stuck_ms, "supervisor was stuck, started anew");
        }
        EventKind::FenceRefused { cause } => tracing::warn!(
            connection, %cause,
            "redis does not allow CLIENT KILL: last-wins writes of unknown outcome are not repeated"
        ),
        EventKind::CredentialsFailed { cause } => {
            tracing::error!(connection, %cause, "credentials failed");
        }
        EventKind::Replaced { cause, unknown } => {
            tracing::warn!(connection, %cause, unknown, "connection to redis replaced");
        }
        EventKind::Woke { .. }
        | EventKind::Fenced { .. }
        | EventKind::Reauthenticated
        | EventKind::Closed { .. } => {
            tracing::info!(connection, event = kind.name(), details = ?kind, "redis connection");
        }
    }
}

/// The events of a client as they happen.
///
/// ```no_run
/// use steadfast::EventOrGap;
///
/// # async fn example(client: steadfast::Client) {
/// let mut events = client.events();
/// while let Some(event) = events.next().await {
///     match event {
///         EventOrGap::Event(event) => println!("{}", event.kind.name()),
///         EventOrGap::Gap(missed) => println!("{missed} events were missed"),
///         _ => {}
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Events {
    live: broadcast::Receiver<Event>,
}

/// What [`Events::next`] yields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EventOrGap {
    /// The next event.
    Event(Event),
    /// This listener was too slow (256 events are kept for it): so many were missed. [`Client::history`](crate::Client::history) has the last ones.
    Gap(u64),
}

impl Events {
    /// The next event; `None` once the client is gone.
    pub async fn next(&mut self) -> Option<EventOrGap> {
        match self.live.recv().await {
            Ok(event) => Some(EventOrGap::Event(event)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(EventOrGap::Gap(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(attempt: u32, cause: &str) -> EventKind {
        EventKind::ConnectFailed {
            attempt,
            cause: cause.into(),
            retry_in_ms: 250.0,
        }
    }

    #[test]
    fn a_long_outage_does_not_push_its_own_beginning_out_of_the_history() {
        let hub = Hub::new(10);
        hub.emit(0, EventKind::Reauthenticated);
        for attempt in 1..1000 {
            hub.emit(0, failed(attempt, "refused"));
        }
        hub.emit(0, failed(1000, "loading"));
        let history = hub.history();
        let names: Vec<_> = history.iter().map(|event| event.kind.name()).collect();
        assert_eq!(
            names,
            ["reauthenticated", "connect_failed", "connect_failed"]
        );
        assert!(matches!(
            history[1].kind,
            EventKind::ConnectFailed { attempt: 999, .. }
        ));
    }

    #[tokio::test]
    async fn a_listener_that_is_too_slow_is_told_how_much_it_missed() {
        let hub = Hub::new(10);
        let mut events = hub.subscribe();
        for attempt in 1..=300 {
            hub.emit(0, failed(attempt, "refused"));
        }
        let Some(EventOrGap::Gap(missed)) = events.next().await else {
            panic!("it missed some");
        };
        assert_eq!(missed, 300 - 256);
    }
}
