//! Takes each event once, and derives history, incidents, flapping, log and metrics from it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::flapping::{FlapDetector, FlapVerdict, Flapping, is_part};
use super::incident::{Incident, Incidents};
use super::log::log;
use super::{Event, EventKind, Events};
use crate::clock;
use crate::metrics;

/// The one place that takes events, keeps and passes them on: of one server, or of the nodes of a
/// cluster together.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    all: Arc<All>,
    node: Option<Arc<NodeName>>,
}

/// A node, and what its connections are numbered from.
#[derive(Debug)]
struct NodeName {
    name: Mutex<Arc<str>>,
    first: usize,
    /// Whether others serve what it did. Changed and read under the lock of what is told.
    retired: AtomicBool,
}

#[derive(Debug)]
struct All {
    seq: AtomicU64,
    told: Mutex<RecordedEvents>,
    keep: usize,
    live: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct RecordedEvents {
    history: VecDeque<Event>,
    incidents: Incidents,
    /// The flapping of each connection that was lost.
    watches: BTreeMap<usize, FlapDetector>,
}

impl Hub {
    pub(crate) fn new(keep: usize) -> Self {
        let all = All {
            seq: AtomicU64::new(0),
            told: Mutex::default(),
            keep,
            live: broadcast::channel(256).0,
        };
        Self {
            all: Arc::new(all),
            node: None,
        }
    }

    /// The same for a node of a cluster, whose connections are numbered from `first`.
    pub(crate) fn of_node(&self, name: Arc<str>, first: usize) -> Self {
        Self {
            all: Arc::clone(&self.all),
            node: Some(Arc::new(NodeName {
                name: Mutex::new(name),
                first,
                retired: AtomicBool::new(false),
            })),
        }
    }

    /// The node has another address now.
    pub(crate) fn rename(&self, name: Arc<str>) {
        if let Some(node) = &self.node {
            *node.name.lock() = name;
        }
    }

    /// Returns the connection's number among those of all nodes.
    fn number(&self, connection: usize) -> usize {
        connection + self.node.as_ref().map_or(0, |node| node.first)
    }

    pub(crate) fn emit(&self, connection: usize, kind: EventKind) {
        let connection = self.number(connection);
        let _span = self.span();
        let mut told = self.all.told.lock();
        if self.is_retired() && is_part(&kind) && !matches!(kind, EventKind::Fenced { .. }) {
            drop(told);
            tracing::debug!(connection, event = kind.name(), details = ?kind, "of a node that was left");
            return;
        }
        metrics::count_event(kind.name());
        let mut event = self.event(connection, kind);
        let watch = told.watches.entry(connection).or_default();
        let verdict = watch.note(&event.kind, clock::now(), event.at_ms);
        let flaps = watch.state().is_some();
        told.incidents
            .note(connection, event.at_ms, &event.kind, flaps);
        let alone = verdict == FlapVerdict::Alone;
        event.folded = !alone;
        if alone {
            remember(&mut told.history, self.all.keep, &event);
        }
        // Sent under the lock, so that every listener sees events in their order; it does not
        // block.
        let _ = self.all.live.send(event.clone());
        let flapping = match verdict {
            FlapVerdict::Alone | FlapVerdict::Part => None,
            FlapVerdict::Begins(state) => {
                fold(&mut told.history, connection, state.since_ms);
                told.incidents.fold(connection, state.since_ms);
                let kind = EventKind::Flapping(state);
                metrics::count_event(kind.name());
                Some(self.flapping(&mut told, connection, kind, true))
            }
            FlapVerdict::Grows { now, tell, log } => {
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

    /// The node was left for others, which serve what it did. What its connections have suffered
    /// is over with that, and what becomes of them from now on is nobody's outage. Of each comes
    /// the calls that it has refused. What there is to log is for [`log`](Self::log), since a node
    /// is left under locks that calls and the status ask for.
    #[must_use]
    pub(crate) fn retire(&self, connections: &[(usize, u64)]) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(node) = &self.node else {
            return events;
        };
        let mut told = self.all.told.lock();
        node.retired.store(true, Ordering::Relaxed);
        for (connection, refused) in connections {
            let connection = self.number(*connection);
            let watch = told.watches.remove(&connection);
            let flaps = watch.and_then(|watch| watch.state().cloned());
            if flaps.is_none() && !told.incidents.lasts(connection) {
                continue;
            }
            let retired = EventKind::Retired { refused: *refused };
            let ended = flaps.map(EventKind::FlappingEnded);
            for kind in [retired].into_iter().chain(ended) {
                metrics::count_event(kind.name());
                let event = self.event(connection, kind);
                told.incidents
                    .note(connection, event.at_ms, &event.kind, false);
                remember(&mut told.history, self.all.keep, &event);
                let _ = self.all.live.send(event.clone());
                events.push(event);
            }
        }
        events
    }

    /// Writes events to the log.
    pub(crate) fn log(&self, events: &[Event]) {
        let _span = self.span();
        for event in events {
            log(event.connection, &event.kind, true);
        }
    }

    fn is_retired(&self) -> bool {
        let node = self.node.as_ref();
        node.is_some_and(|node| node.retired.load(Ordering::Relaxed))
    }

    /// The span in which what concerns a node is logged.
    fn span(&self) -> Option<tracing::span::EnteredSpan> {
        self.node.as_ref().map(|node| {
            let name = Arc::clone(&node.name.lock());
            let node = &*name;
            tracing::info_span!("redis node", node).entered()
        })
    }

    /// Looks whether a connection that flapped has become steady.
    pub(crate) fn settle(&self, connection: usize) {
        let connection = self.number(connection);
        let mut told = self.all.told.lock();
        let watch = told.watches.get_mut(&connection);
        let Some(ended) = watch.and_then(|watch| watch.settle(clock::now())) else {
            return;
        };
        let kind = EventKind::FlappingEnded(ended);
        metrics::count_event(kind.name());
        let event = self.flapping(&mut told, connection, kind, true);
        drop(told);
        log(connection, &event.kind, true);
    }

    /// Puts what is told of flapping in the place of what was told before.
    fn flapping(
        &self,
        told: &mut RecordedEvents,
        connection: usize,
        kind: EventKind,
        tell: bool,
    ) -> Event {
        let event = self.event(connection, kind);
        remember(&mut told.history, self.all.keep, &event);
        if tell {
            let _ = self.all.live.send(event.clone());
        }
        event
    }

    fn event(&self, connection: usize, kind: EventKind) -> Event {
        Event {
            seq: self.all.seq.fetch_add(1, Ordering::Relaxed) + 1,
            at_ms: clock::unix_ms(),
            connection,
            node: (self.node.as_ref()).map(|node| Arc::clone(&node.name.lock())),
            folded: false,
            kind,
        }
    }

    pub(crate) fn history(&self) -> Vec<Event> {
        self.all.told.lock().history.iter().cloned().collect()
    }

    pub(crate) fn incidents(&self) -> Vec<Incident> {
        self.all.told.lock().incidents.list()
    }

    /// The flapping of the connection that does so most.
    pub(crate) fn flaps(&self) -> Option<Flapping> {
        let told = self.all.told.lock();
        let states = told.watches.values().filter_map(FlapDetector::state);
        states.max_by_key(|state| state.reconnects).cloned()
    }

    pub(crate) fn subscribe(&self) -> Events {
        Events {
            live: self.all.live.subscribe(),
        }
    }
}

/// Takes out of the history what is told as flapping from now on.
fn fold(history: &mut VecDeque<Event>, connection: usize, since_ms: u64) {
    history.retain(|event| {
        event.connection != connection || event.at_ms < since_ms || !is_part(&event.kind)
    });
}

/// Keeps an event. A connection's failures for the same reason are one entry, the newest (attempts
/// to connect are counted in it): or a long outage would push its own beginning out, by itself or
/// in turns with that of another connection.
fn remember(history: &mut VecDeque<Event>, keep: usize, event: &Event) {
    if keep == 0 {
        return;
    }
    if let EventKind::Flapping(state) | EventKind::FlappingEnded(state) = &event.kind {
        let same = |kind: &EventKind| matches!(kind, EventKind::Flapping(earlier) if earlier.since_ms == state.since_ms);
        history.retain(|earlier| earlier.connection != event.connection || !same(&earlier.kind));
    }
    let mut of_it = (0..history.len())
        .rev()
        .filter(|at| history[*at].connection == event.connection)
        .take_while(|at| is_failure(&history[*at].kind));
    if let Some(earlier) = of_it.find(|at| same_failure(&history[*at].kind, &event.kind)) {
        history.remove(earlier);
    } else if history.len() == keep {
        history.pop_front();
    }
    history.push_back(event.clone());
}

fn is_failure(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::ConnectFailed { .. } | EventKind::CredentialsFailed { .. }
    )
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::EventItem;
    use crate::event::listener::listen;

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

    #[test]
    fn c14_outages_of_several_connections_leave_each_other_s_beginning_in_the_history() {
        let hub = Hub::new(10);
        for connection in 0..3 {
            hub.emit(connection, lost());
        }
        for attempt in 1..200 {
            for connection in 0..3 {
                // Of two addresses, of which each fails in its own way.
                let cause = if attempt % 2 == 0 {
                    "refused"
                } else {
                    "no route"
                };
                hub.emit(connection, failed(attempt, cause));
            }
        }
        let history = hub.history();
        let names: Vec<_> = history.iter().map(|event| event.kind.name()).collect();
        let expected = [vec!["lost"; 3], vec!["connect_failed"; 6]].concat();
        assert_eq!(names, expected);
        assert!(history.is_sorted_by_key(|event| event.seq), "oldest first");
        let newest = &history.last().unwrap().kind;
        assert!(matches!(
            newest,
            EventKind::ConnectFailed { attempt: 199, .. }
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn t18_what_a_node_suffered_is_over_once_others_serve_in_its_place() {
        let hub = Hub::new(100);
        let node = hub.of_node("10.0.0.1:6379".into(), 1_024);
        for _ in 0..14 {
            node.emit(0, lost());
            node.emit(0, connected());
            tokio::time::advance(Duration::from_millis(400)).await;
        }
        node.emit(0, lost());
        node.emit(1, lost());
        node.emit(1, connected());
        hub.emit(7, lost());
        assert!(hub.flaps().is_some());
        let mut live = hub.subscribe();
        // A node is left under locks that whoever writes the log may ask for.
        let lines = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&lines);
        let listens = listen(move || {
            told.fetch_add(1, Ordering::Relaxed);
        });
        let events = node.retire(&[(0, 5), (1, 0)]);
        assert_eq!(lines.load(Ordering::Relaxed), 0);
        node.log(&events);
        assert_eq!(lines.load(Ordering::Relaxed), 2);
        drop(listens);
        // The tasks of what was left have yet to end.
        node.emit(0, failed(2, "refused"));
        node.emit(0, EventKind::Fenced { id: 9 });
        assert_eq!(hub.flaps(), None);
        let incidents = hub.incidents();
        let of_node = |at: usize| incidents.iter().filter(move |one| one.connection == at);
        assert!(of_node(1_024).all(|one| one.recovery_ms.is_some() && one.refused >= 5));
        assert_eq!(
            of_node(7).filter(|one| one.recovery_ms.is_none()).count(),
            1
        );
        let mut told = Vec::new();
        while let Ok(event) = live.live.try_recv() {
            told.push((event.connection, event.kind.name()));
        }
        let expected = ["retired", "flapping_ended", "fenced"];
        assert_eq!(told, expected.map(|name| (1_024, name)));
        // Started anew, as the one that it is now.
        let again = hub.of_node("10.0.0.1:6379".into(), 1_024);
        again.emit(0, lost());
        assert_eq!(hub.flaps(), None, "counted anew");
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
        let Some(EventItem::Gap(missed)) = events.next().await else {
            panic!("it missed some");
        };
        assert_eq!(missed, 300 - 256);
    }
}
