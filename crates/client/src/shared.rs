//! What the clones of a client, its supervisors and its drivers have in common.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::conn::Reply;
use steadfast_core::policy::breaker::{Cause, Transition};
use steadfast_core::policy::{Budget, LatencyEstimate};
use tokio::sync::watch;

use crate::connect::{Fence, Identity};
use crate::error::ConfigError;
use crate::event::{EventKind, Hub};
use crate::guard::{Guard, state_name};
use crate::lane::{Gate, Lane, Order};
use crate::link::Link;
use crate::metrics::Metrics;
use crate::rotation::InForce;
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
    /// The credentials in force.
    pub(crate) credentials: InForce,
    /// True once the client is closing: nothing new begins.
    closing: watch::Sender<bool>,
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
            guard: Guard::new(settings.breaker.clone(), settings.connections, now)
                .map_err(setting("breaker"))?,
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
            credentials: InForce::new(),
            closing: watch::Sender::new(false),
            settings,
        })
    }

    /// From now on nothing new begins.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    pub(crate) fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Ends when the client is closing.
    pub(crate) async fn closing(&self) {
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
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

    /// The server answered a CLIENT KILL that a connection of this link sent. One that it could not obey now stays to be done.
    pub(crate) fn fenced(&self, link: &Link, ghost: &Identity, fence: &Fence) {
        let known = match fence {
            Fence::Done => {
                let id = ghost.id;
                self.hub.emit(link.index, EventKind::Fenced { id });
                Ok(())
            }
            Fence::Refused(why) => {
                // Whatever has not been sent yet, and has been looked at before.
                link.lane.serves(false);
                Err(why.clone())
            }
            Fence::NotNow => return,
        };
        link.ghosts.lock().retain(|known| known != ghost);
        self.fencing_known(link.index, &known);
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

    /// Those of the connections that one caller has to itself, as far as they live.
    pub(crate) fn dedicated_lanes(&self) -> Vec<Arc<Lane>> {
        let dedicated = self.dedicated.lock();
        let lanes = dedicated.iter().filter_map(Weak::upgrade);
        lanes
            .filter(|lane| !matches!(lane.gate(), Gate::Down(..)))
            .collect()
    }

    /// A connection of this link (`None`: of one caller) was answered to its CLIENT KILL. False if it has to ask again.
    pub(crate) fn fence_answered(
        &self,
        link: Option<usize>,
        ghost: &Identity,
        reply: &Reply,
    ) -> bool {
        let fence = match reply {
            Reply::One(value) => Fence::of(value),
            Reply::Many(_) => Fence::NotNow,
        };
        if let Some(link) = link.and_then(|index| self.links.get(index)) {
            self.fenced(link, ghost, &fence);
        }
        fence != Fence::NotNow
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

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;
    use crate::clock;
    use crate::error::Certainty;
    use crate::lane::Ask;
    use crate::settings::Target;

    #[test]
    fn c18_once_a_kill_is_refused_nothing_that_relies_on_one_is_sent() {
        let settings = Settings::new(Target::parse("redis://h").expect("a good url"));
        let now = clock::now();
        let shared = Shared::new(settings, now).expect("good settings");
        let lane = &shared.links[0].lane;
        let ask = Ask {
            replies: 1,
            started: now,
            deadline: now + std::time::Duration::from_secs(1),
            now,
            seq: None,
            only_fenced: true,
        };
        let _pending = lane.submit(ask, |out| out.len()).expect("it may be killed");
        let error = redis::parse_redis_value(b"-NOPERM this user has no permissions\r\n");
        let Ok(refused @ Value::ServerError(_)) = error else {
            panic!("it is an error: {error:?}");
        };
        let addr = "127.0.0.1:1".into();
        let ghost = Identity { id: 1, addr };
        assert!(shared.fence_answered(Some(0), &ghost, &Reply::One(refused)));
        assert_eq!(shared.fencing(), Fencing::Refused);
        assert_eq!(lane.in_flight(), 0, "what waited is turned away");
        let late = lane.submit(ask, |out| out.len());
        let error = late.expect_err("it was looked at before that was known");
        assert_eq!(error.certainty(), Certainty::NotSent);
    }
}
