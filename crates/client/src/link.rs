//! One connection's place in the client: it stays while sockets come and go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use crate::connect::{Identity, ServerFacts};
use crate::lane::{Lane, LaneBounds};
use crate::settings::{HEALTHY_AFTER, Settings};

/// The state of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConnectionState {
    /// Connecting for the first time, or anew within the allowance for short interruptions: calls wait.
    Connecting,
    /// In service.
    Ready,
    /// Down: calls are refused at once.
    Down,
    /// Closed by its owner.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: usize,
    pub(crate) lane: Arc<Lane>,
    pub(crate) view: Mutex<View>,
    /// Tells of each change of state.
    pub(crate) state: watch::Sender<ConnectionState>,
    /// Asks the supervisor to connect anew; why is in the view.
    pub(crate) kick: Notify,
    /// Abandoned connections that the next one must have killed.
    pub(crate) ghosts: Mutex<Vec<Identity>>,
    /// When the supervisor counts as stuck. `None` while it serves.
    pub(crate) stuck_at: Mutex<Option<Instant>>,
}

/// What is known of a link, for status and for decisions of its supervisor.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) since: Instant,
    /// Attempts to connect, ever.
    pub(crate) attempts: u64,
    /// Attempts of this outage.
    pub(crate) attempt: u32,
    pub(crate) reconnects: u64,
    pub(crate) stuck_resets: u64,
    pub(crate) recovery_total: Duration,
    pub(crate) last_error: Option<Arc<str>>,
    pub(crate) facts: Option<ServerFacts>,
    /// When the present outage began.
    pub(crate) outage_since: Option<Instant>,
    pub(crate) was_up: bool,
    pub(crate) healthy_since: Instant,
    pub(crate) blip_left: Duration,
    pub(crate) kick_cause: Option<Arc<str>>,
}

impl Link {
    pub(crate) fn new(index: usize, settings: &Settings, now: Instant) -> Self {
        let bounds = LaneBounds {
            in_flight: settings.in_flight,
            bytes: settings.buffered_bytes,
        };
        Self {
            index,
            lane: Arc::new(Lane::new(bounds)),
            view: Mutex::new(View {
                since: now,
                attempts: 0,
                attempt: 0,
                reconnects: 0,
                stuck_resets: 0,
                recovery_total: Duration::ZERO,
                last_error: None,
                facts: None,
                outage_since: Some(now),
                was_up: false,
                healthy_since: now,
                blip_left: settings.blip_wait,
                kick_cause: None,
            }),
            state: watch::Sender::new(ConnectionState::Connecting),
            kick: Notify::new(),
            ghosts: Mutex::new(Vec::new()),
            stuck_at: Mutex::new(None),
        }
    }

    pub(crate) fn state(&self) -> ConnectionState {
        *self.state.borrow()
    }

    pub(crate) fn set_state(&self, state: ConnectionState, now: Instant) {
        if self.state() != state && self.state() != ConnectionState::Closed {
            self.view.lock().since = now;
            self.state.send_replace(state);
        }
    }

    /// Asks for a new connection.
    pub(crate) fn reset(&self, cause: &str) {
        self.view.lock().kick_cause = Some(cause.into());
        self.kick.notify_one();
    }
}

impl View {
    /// A connection was lost. Returns until when calls may wait for the next.
    pub(crate) fn outage_begins(&mut self, blip_wait: Duration, now: Instant) -> Instant {
        if now.saturating_duration_since(self.healthy_since) >= HEALTHY_AFTER {
            self.blip_left = blip_wait;
        }
        self.attempt = 0;
        let since = *self.outage_since.get_or_insert(now);
        since + self.blip_left
    }

    /// A connection is in service. Returns how long there was none, if there was one before.
    pub(crate) fn outage_ends(&mut self, now: Instant) -> Option<Duration> {
        let outage = now.saturating_duration_since(self.outage_since.take()?);
        self.blip_left = self.blip_left.saturating_sub(outage);
        self.healthy_since = now;
        let first = !std::mem::replace(&mut self.was_up, true);
        if first {
            return None;
        }
        self.reconnects += 1;
        self.recovery_total += outage;
        Some(outage)
    }
}
