//! What the clones of a client, its supervisors and its drivers have in common.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::conn::Reply;
use steadfast_core::policy::breaker::{Cause, Transition};
use steadfast_core::policy::{Budget, LatencyEstimate};

use crate::connect::{self, Identity};
use crate::error::ConfigError;
use crate::event::{EventKind, Hub};
use crate::guard::{Guard, state_name};
use crate::lane::{Gate, Lane, Order};
use crate::link::Link;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Arc<Settings>,
    pub(crate) hub: Hub,
    pub(crate) guard: Guard,
    pub(crate) budget: Budget,
    pub(crate) metrics: Metrics,
    pub(crate) links: Vec<Arc<Link>>,
    /// Of the connections that one caller has to itself.
    dedicated: Mutex<Vec<Weak<Lane>>>,
    /// Replies, of every kind.
    pub(crate) answered: AtomicU64,
    /// Round-trip time as smoothed, in nanoseconds; 0 while unknown.
    rtt_ns: AtomicU64,
    fence: AtomicU8,
    seeds: AtomicU64,
    /// What calls take, to refuse those that cannot be answered in time.
    pub(crate) latency: LatencyEstimate,
}

/// Whether abandoned connections can be killed on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fencing {
    /// Not tried yet.
    Untried,
    /// Yes: last-wins writes of unknown outcome are repeated safely.
    Works,
    /// No: the server does not allow it, and such writes are not repeated unless the caller allows it.
    Refused,
}

impl Shared {
    pub(crate) fn new(settings: Settings, now: Instant) -> Result<Self, ConfigError> {
        let setting = |setting: &'static str| {
            move |error: steadfast_core::policy::InvalidSetting| ConfigError::Setting {
                setting,
                why: error.to_string(),
            }
        };
        let settings = Arc::new(settings);
        Ok(Self {
            hub: Hub::new(settings.history),
            guard: Guard::new(settings.breaker.clone(), now).map_err(setting("breaker"))?,
            budget: Budget::new(settings.budget, now).map_err(setting("budget"))?,
            metrics: Metrics::new(),
            links: (0..settings.connections)
                .map(|index| Arc::new(Link::new(index, &settings, now)))
                .collect(),
            dedicated: Mutex::default(),
            answered: AtomicU64::new(0),
            rtt_ns: AtomicU64::new(0),
            fence: AtomicU8::new(Fencing::Untried as u8),
            seeds: AtomicU64::new(settings.seed),
            latency: LatencyEstimate::new(now),
            settings,
        })
    }

    /// A generator of its own for whoever asks, from the client's seed.
    pub(crate) fn rng(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(
            self.seeds
                .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed),
        )
    }

    /// Smoothed as TCP does (RFC 6298): an eighth of each new sample.
    pub(crate) fn observe_rtt(&self, sample: Duration) {
        let sample = sample.as_nanos() as u64;
        let old = self.rtt_ns.load(Ordering::Relaxed);
        let new = if old == 0 {
            sample
        } else {
            old - old / 8 + sample / 8
        };
        self.rtt_ns.store(new, Ordering::Relaxed);
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        match self.rtt_ns.load(Ordering::Relaxed) {
            0 => None,
            ns => Some(Duration::from_nanos(ns)),
        }
    }

    pub(crate) fn fencing(&self) -> Fencing {
        match self.fence.load(Ordering::Relaxed) {
            1 => Fencing::Works,
            2 => Fencing::Refused,
            _ => Fencing::Untried,
        }
    }

    /// A handshake has shown whether connections can be killed.
    pub(crate) fn fencing_known(&self, connection: usize, known: &Result<(), String>) {
        let fencing = match known {
            Ok(()) => Fencing::Works,
            Err(_) => Fencing::Refused,
        };
        let before = self.fence.swap(fencing as u8, Ordering::Relaxed);
        if let (Err(cause), true) = (known, before != fencing as u8) {
            let cause = cause.as_str().into();
            self.hub.emit(connection, EventKind::FenceRefused { cause });
        }
    }

    /// The server answered a CLIENT KILL that a connection of this link sent.
    pub(crate) fn fenced(&self, link: &Link, ghost: &Identity, result: &Result<(), String>) {
        if result.is_ok() {
            self.hub
                .emit(link.index, EventKind::Fenced { id: ghost.id });
        }
        link.ghosts.lock().retain(|known| known != ghost);
        self.fencing_known(link.index, result);
    }

    /// A connection was abandoned with writes that may still be applied: every connection that goes on has it killed before its next
    /// command. A link remembers it until the server has answered, so that it survives the loss of the connection that was told.
    pub(crate) fn bury(&self, identity: Option<Identity>) {
        let Some(identity) = identity else { return };
        for link in &self.links {
            link.remember(identity.clone());
        }
        for lane in self.dedicated_lanes() {
            lane.order(Order::Fence(identity.clone()));
        }
    }

    /// Abandoned connections that some link has not had killed yet: a new connection does so in its handshake.
    pub(crate) fn ghosts(&self) -> Vec<Identity> {
        let mut all: Vec<Identity> = Vec::new();
        for link in &self.links {
            for ghost in link.ghosts.lock().iter() {
                if !all.contains(ghost) {
                    all.push(ghost.clone());
                }
            }
        }
        all
    }

    /// From now on this connection is told of those that are abandoned.
    pub(crate) fn register(&self, lane: &Arc<Lane>) {
        let mut dedicated = self.dedicated.lock();
        dedicated.retain(|lane| lane.strong_count() > 0);
        dedicated.push(Arc::downgrade(lane));
    }

    /// Those of the connections that one caller has to itself, as far as they are in use.
    pub(crate) fn dedicated_lanes(&self) -> Vec<Arc<Lane>> {
        let dedicated = self.dedicated.lock();
        let lanes = dedicated.iter().filter_map(Weak::upgrade);
        lanes
            .filter(|lane| matches!(lane.gate(), Gate::Open | Gate::Waiting))
            .collect()
    }

    /// Gives new credentials to this link's connection; the first link's to those that one caller has to itself, too.
    pub(crate) fn reauthenticate(&self, link: &Link, command: &[u8]) {
        link.lane.order(Order::Reauthenticate(command.to_vec()));
        if link.index == 0 {
            for lane in self.dedicated_lanes() {
                lane.order(Order::Reauthenticate(command.to_vec()));
            }
        }
    }

    /// A connection of this link (`None`: of one caller) was answered to its CLIENT KILL.
    pub(crate) fn fence_answered(&self, link: Option<usize>, ghost: &Identity, reply: &Reply) {
        let link = link.and_then(|index| self.links.get(index));
        if let (Some(link), Reply::One(value)) = (link, reply) {
            self.fenced(link, ghost, &connect::fence_result(value));
        }
    }

    /// A supervisor, or its attempt to connect, had to be ended from without.
    pub(crate) fn stuck(&self, link: &Link, after: Duration) {
        link.view.lock().stuck_resets += 1;
        let stuck_ms = crate::clock::as_ms(after);
        self.hub
            .emit(link.index, EventKind::StuckReset { stuck_ms });
    }

    /// Tells of a change of the breaker.
    pub(crate) fn breaker_changed(&self, transition: Option<Transition>) {
        if let Some(transition) = transition {
            let kind = EventKind::Breaker {
                from: state_name(transition.from),
                to: state_name(transition.to),
                cause: breaker_cause(transition.cause),
            };
            self.hub.emit(0, kind);
        }
    }
}

fn breaker_cause(cause: Cause) -> String {
    match cause {
        Cause::ConsecutiveFailures { failed } => format!("{failed} failures in a row"),
        Cause::FailureRate { failed, calls } => format!("{failed} of {calls} calls failed"),
        Cause::SlowCalls { slow, calls } => format!("{slow} of {calls} calls were slow"),
        Cause::OpenTimeOver => "its time is over: a few calls are let through on trial".into(),
        Cause::ProbeFailed => "a trial failed".into(),
        Cause::ProbesSucceeded => "the trials succeeded".into(),
        Cause::OwnProbe => "the client's own probe succeeded".into(),
        Cause::ByHand => "switched by hand".into(),
        other => format!("{other:?}"),
    }
}
