//! One enum describes what happens to a connection; history, log lines and metrics are all derived from it.
//!
//! Feeding the three apart lets them disagree, at the moment when someone needs them to agree.

pub(crate) mod flapping;
pub(crate) mod incident;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::clock;
use crate::event::flapping::{Flapping, Verdict, Watch, is_part};
use crate::event::incident::{Incident, Incidents};
use crate::named::named;
use crate::sentinel::FailoverHistory;

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
    /// Whether it is one of the many events of a connection that flaps ([`EventKind::Flapping`]), which the history tells as one.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_not"))]
    pub folded: bool,
    /// What happened.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub kind: EventKind,
}

#[cfg(feature = "serde")]
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_not(flag: &bool) -> bool {
    !flag
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
        /// What is known of the data that it holds.
        history: FailoverHistory,
    },
    /// The connection is lost and replaced again and again. From here on the history holds this one entry, which grows, in place of each loss;
    /// listeners hear of it once a second at most, and of what it consists of as ever.
    Flapping(Flapping),
    /// No connection was lost for two minutes.
    FlappingEnded(Flapping),
}

named! {
    impl EventKind {
        /// Its name, for metrics.
        pub fn name;
        /// Each name there is, so that every counter can begin at nought.
        const NAMES;
        Connected => "connected",
        ConnectFailed => "connect_failed",
        Lost => "lost",
        Overdue => "overdue",
        Woke => "woke",
        Replaced => "replaced",
        Down => "down",
        Breaker => "breaker",
        Fenced => "fenced",
        FenceRefused => "fence_refused",
        Reauthenticated => "reauthenticated",
        CredentialsFailed => "credentials_failed",
        StuckReset => "stuck_reset",
        Closed => "closed",
        FailedOver => "failed_over",
        Flapping => "flapping",
        FlappingEnded => "flapping_ended",
    }
}

/// Where events go.
#[derive(Debug)]
pub(crate) struct Hub {
    seq: AtomicU64,
    told: Mutex<Told>,
    keep: usize,
    live: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Told {
    history: VecDeque<Event>,
    incidents: Incidents,
    /// Of each connection that was lost.
    watches: BTreeMap<usize, Watch>,
}

impl Hub {
    pub(crate) fn new(keep: usize) -> Self {
        Self {
            seq: AtomicU64::new(0),
            told: Mutex::default(),
            keep,
            live: broadcast::channel(256).0,
        }
    }

    pub(crate) fn emit(&self, connection: usize, kind: EventKind) {
        crate::metrics::count_event(&kind);
        let mut told = self.told.lock();
        let mut event = self.event(connection, kind);
        let watch = told.watches.entry(connection).or_default();
        let verdict = watch.note(&event.kind, clock::now(), event.at_ms);
        let flaps = watch.state().is_some();
        told.incidents
            .note(connection, event.at_ms, &event.kind, flaps);
        let alone = verdict == Verdict::Alone;
        event.folded = !alone;
        if alone {
            remember(&mut told.history, self.keep, &event);
        }
        // Sent under the lock, so that every listener sees events in their order; it does not block.
        let _ = self.live.send(event.clone());
        let flapping = match verdict {
            Verdict::Alone | Verdict::Part => None,
            Verdict::Begins(state) => {
                fold(&mut told.history, connection, state.since_ms);
                told.incidents.fold(connection, state.since_ms);
                let kind = EventKind::Flapping(state);
                crate::metrics::count_event(&kind);
                Some(self.flapping(&mut told, connection, kind, true))
            }
            Verdict::Grows { now, tell, log } => {
                let grown = self.flapping(&mut told, connection, EventKind::Flapping(now), tell);
                log.then_some(grown)
            }
        };
        drop(told);
        log(connection, &event.kind, alone);
        if let Some(event) = flapping {
            log(connection, &event.kind, true);
        }
    }

    /// Looks whether a connection that flapped has become steady.
    pub(crate) fn settle(&self, connection: usize) {
        let mut told = self.told.lock();
        let watch = told.watches.get_mut(&connection);
        let Some(ended) = watch.and_then(|watch| watch.settle(clock::now())) else {
            return;
        };
        let kind = EventKind::FlappingEnded(ended);
        crate::metrics::count_event(&kind);
        let event = self.flapping(&mut told, connection, kind, true);
        drop(told);
        log(connection, &event.kind, true);
    }

    /// Puts what is told of flapping in the place of what was told before.
    fn flapping(&self, told: &mut Told, connection: usize, kind: EventKind, tell: bool) -> Event {
        let event = self.event(connection, kind);
        remember(&mut told.history, self.keep, &event);
        if tell {
            let _ = self.live.send(event.clone());
        }
        event
    }

    fn event(&self, connection: usize, kind: EventKind) -> Event {
        Event {
            seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1,
            at_ms: clock::unix_ms(),
            connection,
            folded: false,
            kind,
        }
    }

    pub(crate) fn history(&self) -> Vec<Event> {
        self.told.lock().history.iter().cloned().collect()
    }

    pub(crate) fn incidents(&self) -> Vec<Incident> {
        self.told.lock().incidents.list()
    }

    /// The flapping of the connection that does so most.
    pub(crate) fn flaps(&self) -> Option<Flapping> {
        let told = self.told.lock();
        let states = told.watches.values().filter_map(Watch::state);
        states.max_by_key(|state| state.reconnects).cloned()
    }

    pub(crate) fn subscribe(&self) -> Events {
        Events {
            live: self.live.subscribe(),
        }
    }
}

/// Takes out of the history what is told as flapping from now on.
fn fold(history: &mut VecDeque<Event>, connection: usize, since_ms: u64) {
    history.retain(|event| {
        event.connection != connection || event.at_ms < since_ms || !is_part(&event.kind)
    });
}

/// What fails for the same reason, again and again, is one entry (attempts to connect are counted in it): or a long outage would push its own
/// beginning out.
fn remember(history: &mut VecDeque<Event>, keep: usize, event: &Event) {
    if keep == 0 {
        return;
    }
    if let EventKind::Flapping(state) | EventKind::FlappingEnded(state) = &event.kind {
        let same = |kind: &EventKind| matches!(kind, EventKind::Flapping(earlier) if earlier.since_ms == state.since_ms);
        history.retain(|earlier| earlier.connection != event.connection || !same(&earlier.kind));
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

/// Writes what happened to the log; not aloud if it is a part of something that is.
fn log(connection: usize, kind: &EventKind, aloud: bool) {
    match kind {
        kind if !aloud => {
            tracing::debug!(connection, event = kind.name(), details = ?kind, "redis flaps");
        }
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
        EventKind::FailedOver {
            from,
            to,
            epoch,
            votes,
            voters,
            history,
        } => tracing::warn!(
            from,
            to,
            epoch,
            votes,
            voters,
            ?history,
            "redis failed over to another primary"
        ),
        EventKind::Flapping(state) => tracing::warn!(
            connection, reconnects = state.reconnects, since_ms = state.since_ms, cause = %state.cause,
            "the connection to redis flaps: it is lost and replaced again and again"
        ),
        EventKind::FlappingEnded(state) => tracing::info!(
            connection,
            reconnects = state.reconnects,
            since_ms = state.since_ms,
            "the connection to redis no longer flaps"
        ),
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
    use std::time::Duration;

    use super::*;

    fn failed(attempt: u32, cause: &str) -> EventKind {
        EventKind::ConnectFailed {
            attempt,
            cause: cause.into(),
            retry_in_ms: 250.0,
        }
    }

    fn lost() -> EventKind {
        EventKind::Lost {
            cause: "reset".into(),
            unknown: 0,
            not_sent: 0,
        }
    }

    fn connected() -> EventKind {
        EventKind::Connected {
            address: String::new(),
            version: String::new(),
            attempt: 1,
            outage_ms: None,
            took_ms: 1.0,
            refused: 1,
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

    #[tokio::test(start_paused = true)]
    async fn c14_a_connection_that_flaps_is_one_entry_that_grows_among_the_others() {
        let hub = Hub::new(100);
        hub.emit(0, EventKind::Reauthenticated);
        for _ in 0..732 {
            hub.emit(0, lost());
            hub.emit(
                0,
                EventKind::Down {
                    cause: "reset".into(),
                },
            );
            hub.emit(0, connected());
            tokio::time::advance(Duration::from_millis(400)).await;
        }
        hub.emit(1, lost());
        let names = || -> Vec<_> {
            let history = hub.history();
            history.iter().map(|event| event.kind.name()).collect()
        };
        assert_eq!(names(), ["reauthenticated", "flapping", "lost"]);
        assert_eq!(hub.flaps().unwrap().reconnects, 732);
        let incidents = hub.incidents();
        assert_eq!(incidents.len(), 2, "{incidents:?}");
        assert_eq!(incidents[0].times, 732);
        hub.settle(0);
        assert!(hub.flaps().is_some(), "not yet steady");
        tokio::time::advance(crate::event::flapping::STEADY_AFTER).await;
        hub.settle(0);
        assert_eq!(names(), ["reauthenticated", "lost", "flapping_ended"]);
        assert_eq!(hub.flaps(), None);
        hub.emit(0, lost());
        assert_eq!(names().len(), 4, "told one by one again");
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
