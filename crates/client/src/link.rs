//! State that outlives a single socket: one [`Link`] per configured connection.

pub(crate) mod alive;
pub(crate) mod connect;
pub(crate) mod crossing;
pub(crate) mod driver;
pub(crate) mod fence;
pub(crate) mod following;
pub(crate) mod liveness;
pub(crate) mod rotation;
pub(crate) mod shared;
pub(crate) mod supervisor;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::link::connect::ServerFacts;
use crate::settings::{HEALTHY_AFTER, Settings};
use crate::wire::identity::Identity;
use crate::wire::queue::SubmitQueue;

/// The state of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ConnectionState {
    /// Connecting for the first time, or anew within the allowance for short interruptions: calls
    /// wait.
    Connecting,
    /// In service.
    Ready,
    /// Of a cluster: some of its slots are served, and others are not, or their nodes are being
    /// connected to. [`Client::toward`](crate::Client::toward) says it of one key.
    Partial,
    /// Down: calls are refused at once.
    Down,
    /// Closed by its owner.
    Closed,
}

/// The state of one connection of the client, which outlives its sockets.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: usize,
    pub(crate) queue: Arc<SubmitQueue>,
    pub(crate) view: Mutex<LinkView>,
    /// The present state, of which each change is told.
    pub(crate) state: watch::Sender<ConnectionState>,
    /// The request that the supervisor connect anew; its reason is in the view.
    pub(crate) kick: Notify,
    /// The number of the connection in service, counted from 1.
    epoch: AtomicU64,
    /// Abandoned connections that the next one must have killed.
    pub(crate) abandoned: Mutex<Vec<Identity>>,
    /// The connections that have stepped aside, to finish what they have.
    asides: Mutex<Vec<Weak<SubmitQueue>>>,
    /// The instant at which the supervisor counts as stuck. `None` while it serves.
    pub(crate) stuck_at: Mutex<Option<Instant>>,
}

/// The knowledge of a link, for status and for decisions of its supervisor.
#[derive(Debug)]
pub(crate) struct LinkView {
    pub(crate) since: Instant,
    /// Attempts to connect, ever.
    pub(crate) attempts: u64,
    /// Attempts of this outage.
    pub(crate) attempt: u32,
    pub(crate) reconnects: u64,
    pub(crate) stuck_resets: u64,
    /// Outages that ended.
    pub(crate) recoveries: u64,
    pub(crate) recovery_total: Duration,
    pub(crate) last_error: Option<Arc<str>>,
    pub(crate) facts: Option<ServerFacts>,
    /// The beginning of the present outage.
    pub(crate) outage_since: Option<Instant>,
    pub(crate) was_up: bool,
    pub(crate) healthy_since: Instant,
    pub(crate) grace_left: Duration,
    /// The reason to replace the connection in service.
    pub(crate) kick: Option<Arc<str>>,
}

impl Link {
    pub(crate) fn new(index: usize, settings: &Settings, now: Instant) -> Self {
        let bulkhead = settings.bulkhead();
        Self {
            index,
            queue: Arc::new(SubmitQueue::new(bulkhead).counted_in(settings.total_bytes.clone())),
            view: Mutex::new(LinkView {
                since: now,
                attempts: 0,
                attempt: 0,
                reconnects: 0,
                stuck_resets: 0,
                recoveries: 0,
                recovery_total: Duration::ZERO,
                last_error: None,
                facts: None,
                outage_since: Some(now),
                was_up: false,
                healthy_since: now,
                grace_left: settings.reconnect_grace,
                kick: None,
            }),
            state: watch::Sender::new(ConnectionState::Connecting),
            kick: Notify::new(),
            epoch: AtomicU64::new(0),
            abandoned: Mutex::new(Vec::new()),
            asides: Mutex::new(Vec::new()),
            stuck_at: Mutex::new(None),
        }
    }

    /// Returns the number of connections that have stepped aside and are not done.
    pub(crate) fn asides(&self) -> usize {
        let mut asides = self.asides.lock();
        asides.retain(|queue| queue.strong_count() > 0);
        asides.len()
    }

    /// Counts the connection in service as one that steps aside, to this queue.
    pub(crate) fn count_aside(&self, queue: &Arc<SubmitQueue>) {
        self.asides.lock().push(Arc::downgrade(queue));
    }

    pub(crate) fn state(&self) -> ConnectionState {
        *self.state.borrow()
    }

    /// Returns whether nobody serves it any more, as the runtime of its tasks has ended. The queue
    /// is asked only where it could be so.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.state() != ConnectionState::Ready && self.queue.is_orphaned()
    }

    pub(crate) fn set_state(&self, state: ConnectionState, now: Instant) {
        if self.state() != state && self.state() != ConnectionState::Closed {
            self.view.lock().since = now;
            self.state.send_replace(state);
        }
    }

    /// The connection in service now, for [`reset`](Self::reset).
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Asks for another connection in place of this one; if it has been replaced already, that was
    /// it.
    pub(crate) fn reset(&self, epoch: u64, cause: &str) {
        {
            let mut view = self.view.lock();
            if self.epoch() != epoch || view.kick.is_some() {
                return;
            }
            view.kick = Some(cause.into());
            // Where it was found is not where the next is to be looked for first.
            if let Some(facts) = &mut view.facts {
                facts.place = None;
            }
        }
        self.kick.notify_one();
    }

    /// Puts a connection into service. Returns how long there was none, if there was one before.
    pub(crate) fn connected(&self, facts: &ServerFacts, now: Instant) -> Option<Duration> {
        let mut view = self.view.lock();
        self.epoch.fetch_add(1, Ordering::Relaxed);
        view.kick = None;
        view.reconnects += u64::from(view.was_up);
        view.facts = Some(facts.clone());
        view.outage_ends(now)
    }

    /// Ends when the client is closed.
    pub(crate) async fn closed(&self) {
        let mut state = self.state.subscribe();
        let _ = state
            .wait_for(|state| *state == ConnectionState::Closed)
            .await;
    }
}

impl LinkView {
    /// Notes that a connection was lost. Returns until when calls may wait for the next.
    pub(crate) fn outage_begins(&mut self, reconnect_grace: Duration, now: Instant) -> Instant {
        if now.saturating_duration_since(self.healthy_since) >= HEALTHY_AFTER {
            self.grace_left = reconnect_grace;
        }
        self.attempt = 0;
        let since = *self.outage_since.get_or_insert(now);
        since + self.grace_left
    }

    /// Notes that calls are answered (again). Returns how long they were not, if they ever were
    /// before.
    pub(crate) fn outage_ends(&mut self, now: Instant) -> Option<Duration> {
        let outage = now.saturating_duration_since(self.outage_since.take()?);
        self.healthy_since = now;
        let first = !std::mem::replace(&mut self.was_up, true);
        if first {
            // Starting is no interruption: it costs nothing of the allowance for those.
            return None;
        }
        self.grace_left = self.grace_left.saturating_sub(outage);
        self.recoveries += 1;
        self.recovery_total += outage;
        Some(outage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn view() -> (Link, Instant) {
        let target = crate::target::Target::parse("redis://h").expect("a good url");
        let now = crate::clock::now();
        (Link::new(0, &Settings::new(target), now), now)
    }

    #[test]
    fn the_allowance_is_spent_by_outages_and_comes_back_after_health() {
        let (link, now) = view();
        let mut view = link.view.lock();
        let now = now + MS * 900;
        assert_eq!(
            view.outage_ends(now),
            None,
            "the first connection ends none"
        );
        let early = now + MS * 10;
        assert_eq!(
            view.outage_begins(MS * 250, early),
            early + MS * 250,
            "however long the first connection took, it has spent nothing"
        );
        view.outage_ends(early);
        let later = now + MS * 6000;
        assert_eq!(view.outage_begins(MS * 250, later), later + MS * 250);
        assert_eq!(view.outage_ends(later + MS * 100), Some(MS * 100));
        let soon = later + MS * 1000;
        assert_eq!(view.outage_begins(MS * 250, soon), soon + MS * 150);
        view.outage_ends(soon + MS * 900);
        let again = soon + MS * 1000;
        assert_eq!(view.outage_begins(MS * 250, again), again, "it is spent");
        view.outage_ends(again);
        let healthy = again + HEALTHY_AFTER;
        assert_eq!(view.outage_begins(MS * 250, healthy), healthy + MS * 250);
    }

    #[test]
    fn a_connection_that_recovered_ends_an_outage_and_is_no_reconnection() {
        let (link, now) = view();
        link.connected(&ServerFacts::default(), now);
        {
            let mut view = link.view.lock();
            view.outage_since = Some(now + MS * 10);
            view.outage_ends(now + MS * 30);
            assert_eq!((view.reconnects, view.recoveries), (0, 1));
            assert_eq!(view.recovery_total, MS * 20);
            assert_eq!(view.outage_ends(now + MS * 40), None, "there is none");
        }
        link.connected(&ServerFacts::default(), now);
        assert_eq!(link.view.lock().reconnects, 1);
    }

    #[test]
    fn only_the_connection_that_was_meant_is_reset() {
        let (link, now) = view();
        let place = Some(crate::link::connect::Location::Unix);
        let facts = ServerFacts {
            place,
            ..ServerFacts::default()
        };
        link.connected(&facts, now);
        link.reset(0, "an answer of none");
        let found_at = |link: &Link| {
            link.view
                .lock()
                .facts
                .as_ref()
                .and_then(|facts| facts.place)
        };
        assert_eq!(found_at(&link), place);
        link.reset(1, "read only");
        link.reset(1, "said twice");
        assert_eq!(link.view.lock().kick.as_deref(), Some("read only"));
        assert_eq!(found_at(&link), None, "others do not look there first");
        link.connected(&ServerFacts::default(), now);
        link.reset(1, "an answer of the one before");
        assert_eq!(link.view.lock().kick, None);
    }

    #[test]
    fn an_abandoned_connection_is_ordered_killed_while_open_and_kept_for_the_next_connection() {
        let (link, now) = view();
        let identity = |id| Identity {
            id,
            addr: "127.0.0.1:1".into(),
            run_id: None,
        };
        link.remember(identity(1));
        let orders = |link: &Link| {
            link.queue
                .take_commands(crate::wire::queue::Backlog::default())
                .len()
        };
        assert_eq!(orders(&link), 0, "there is nobody to tell while it waits");
        link.open(now);
        assert_eq!(orders(&link), 1);
        link.remember(identity(2));
        assert_eq!(orders(&link), 1);
        link.queue.release();
        link.open(now);
        assert_eq!(orders(&link), 2, "the next connection is told of both");
    }
}
