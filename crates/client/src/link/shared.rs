//! The state that the clones of a client, its supervisors and its drivers have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use steadfast_core::policy::breaker::{Cause, Transition};
use steadfast_core::policy::{Budget, LatencyEstimate};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::breaker::{BreakerGate, state_name};
use crate::error::connect::ConnectError;
use crate::error::{ConfigError, Error, ErrorKind};
use crate::event::EventKind;
use crate::event::hub::Hub;
use crate::link::connect::{Location, MARGIN};
use crate::link::crossing::Crossings;
use crate::link::fence::Fences;
use crate::link::following::Following;
use crate::link::liveness::{Liveness, LivenessProbe};
use crate::link::rotation::InForce;
use crate::link::{ConnectionState, Link};
use crate::metrics::Metrics;
use crate::sentinel::Discovery;
use crate::settings::Settings;
use crate::target::Address;
use crate::task::{Apart, Astray, Owned};
use crate::wire::queue::Gate;

/// The parts of a client that its clones, supervisors and drivers share.
pub(crate) struct Shared {
    /// No other of this program has this number.
    pub(crate) instance: u64,
    pub(crate) settings: Arc<Settings>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) breaker: BreakerGate,
    pub(crate) budget: Budget,
    pub(crate) metrics: Metrics,
    pub(crate) links: Vec<Arc<Link>>,
    /// The abandoned connections, and those that are told of them.
    pub(crate) fences: Arc<Fences>,
    pub(crate) crossings: Crossings,
    /// Replies, of every kind.
    pub(crate) answered: AtomicU64,
    /// Round-trip time as smoothed, in nanoseconds; 0 while unknown.
    rtt_ns: AtomicU64,
    seeds: AtomicU64,
    /// The time that calls take, to refuse those that cannot be answered in time.
    pub(crate) latency: LatencyEstimate,
    /// The credentials in force; of a cluster, those of all its nodes.
    pub(crate) credentials: Arc<InForce>,
    /// The server that connections beside the shared one have to follow.
    pub(crate) following: Following,
    /// The word of the sentinels, where they name the primary.
    pub(crate) discovery: Option<Arc<Discovery>>,
    /// Whether the client is closing: then nothing new begins.
    closing: watch::Sender<bool>,
    /// Finds the runtime that the client's tasks live in.
    home: OnceLock<Box<FindRuntime>>,
    /// Whether that runs them.
    pub(crate) liveness: Liveness,
}

/// The pause before a task is begun anew that ended.
const BEGIN_AGAIN: Duration = Duration::from_millis(100);

/// How many there have been.
static INSTANCES: AtomicU64 = AtomicU64::new(0);

type FindRuntime = dyn Fn() -> Result<Handle, Error> + Send + Sync;

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    pub(crate) fn new(settings: Settings, now: Instant) -> Result<Self, ConfigError> {
        let hub = Arc::new(Hub::new(settings.history));
        Self::with_hub(settings, hub, now)
    }

    /// The same, whose events go there.
    pub(crate) fn with_hub(
        settings: Settings,
        hub: Arc<Hub>,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        // Of a cluster there is one only, which tells the state of the whole.
        let links = match &settings.target.address {
            Address::Cluster(_) => 1,
            _ => settings.connections,
        };
        let setting = |setting: &'static str| {
            move |error: steadfast_core::policy::InvalidSetting| ConfigError::Setting {
                setting,
                why: error.to_string(),
            }
        };
        let settings = Arc::new(settings);
        let links: Vec<_> = (0..links)
            .map(|index| Arc::new(Link::new(index, &settings, now)))
            .collect();
        Ok(Self {
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
            fences: Arc::new(Fences::new(
                links.clone(),
                Arc::clone(&hub),
                matches!(settings.target.address, Address::Sentinel(_)),
            )),
            hub,
            breaker: BreakerGate::new(settings.breaker.clone(), settings.connections, now)
                .map_err(setting("breaker"))?,
            budget: Budget::new(settings.budget, now).map_err(setting("budget"))?,
            metrics: Metrics::new(EventKind::NAMES),
            links,
            crossings: Crossings::default(),
            answered: AtomicU64::new(0),
            rtt_ns: AtomicU64::new(0),
            seeds: AtomicU64::new(settings.seed),
            latency: LatencyEstimate::new(now),
            credentials: Arc::new(InForce::new()),
            following: Following::new(),
            discovery: match &settings.target.address {
                Address::Sentinel(target) => Some(Arc::new(Discovery::new(target, now))),
                Address::Tcp { .. } | Address::Unix(_) | Address::Cluster(_) => None,
            },
            closing: watch::Sender::new(false),
            home: OnceLock::new(),
            liveness: Liveness::default(),
            settings,
        })
    }

    /// Sets how to find the runtime that the client's tasks live in.
    pub(crate) fn lives_in(
        &self,
        home: impl Fn() -> Result<Handle, Error> + Send + Sync + 'static,
    ) {
        let _ = self.home.set(Box::new(home));
    }

    /// The runtime in which the client's tasks live. If it has ended, they are started anew in that
    /// of the caller.
    ///
    /// # Errors
    /// There is none to be had, or the client is no more.
    pub(crate) fn runtime(&self) -> Result<Handle, Error> {
        match self.home.get() {
            Some(home) => home(),
            None => Err(Error::not_sent(ErrorKind::Closed)),
        }
    }

    /// Asks whether the runtime runs in which the client's tasks live, for whoever waits for what
    /// they find out.
    ///
    /// # Errors
    /// As [`runtime`](Self::runtime).
    pub(crate) fn probe_liveness(&self) -> Result<LivenessProbe, Error> {
        Ok(self.liveness.probe_liveness(&self.runtime()?))
    }

    /// Lets nothing new begin.
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

    /// The primary's time of office, where sentinels name it; else 0.
    pub(crate) fn term(&self) -> u64 {
        self.discovery.as_ref().map_or(0, |known| known.term())
    }

    /// Has the sentinels asked at once, where there are any: something is wrong with the primary.
    pub(crate) fn look_for_primary(&self) {
        if let Some(discovery) = &self.discovery {
            discovery.want();
        }
    }

    /// Ends when sentinels name another primary than in this term.
    pub(crate) async fn deposed(&self, term: u64) {
        match &self.discovery {
            Some(discovery) => discovery.switched(term).await,
            None => std::future::pending().await,
        }
    }

    /// A generator of its own for whoever asks, from the client's seed.
    pub(crate) fn rng(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(
            self.seeds
                .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed),
        )
    }

    /// Smoothed as TCP does (RFC 6298): an eighth of each new sample.
    pub(crate) fn observe_rtt(&self, sample: Duration) -> Duration {
        let sample = sample.as_nanos() as u64;
        let old = self.rtt_ns.load(Ordering::Relaxed);
        let new = if old == 0 {
            sample
        } else {
            old - old / 8 + sample / 8
        };
        self.rtt_ns.store(new, Ordering::Relaxed);
        Duration::from_nanos(new)
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        match self.rtt_ns.load(Ordering::Relaxed) {
            0 => None,
            ns => Some(Duration::from_nanos(ns)),
        }
    }

    /// Returns where the client's own connection has found its server. Not of one that does not say
    /// who it is: nobody would notice that it is not that server any more, so each looks for it by
    /// its name.
    pub(crate) fn place(&self) -> Option<Location> {
        let link = &self.links[0];
        let serves = matches!(link.queue.gate(), Gate::Open);
        let view = link.view.lock();
        view.facts
            .as_ref()
            .filter(|facts| serves && facts.run_id.is_some())
            .and_then(|facts| facts.place)
    }

    /// Tells that a supervisor, or its attempt to connect, had to be ended from without.
    pub(crate) fn stuck(&self, link: &Link, after: Duration) {
        link.view.lock().stuck_resets += 1;
        let stuck_ms = crate::clock::as_ms(after);
        self.hub
            .emit(link.index, EventKind::StuckReset { stuck_ms });
    }

    /// Does work in which code of others runs, in a task of its own, for so long at most and a
    /// margin. That it panics, or keeps its thread, is counted.
    ///
    /// # Errors
    /// As it says, or it came to no end.
    pub(crate) async fn apart<T: Send + 'static>(
        &self,
        places: &Apart,
        limit: Duration,
        work: impl Future<Output = Result<T, ConnectError>> + Send + 'static,
    ) -> Result<T, ConnectError> {
        let began = crate::clock::now();
        let astray = match places.run(limit + MARGIN, work).await {
            Ok(done) => return done,
            Err(astray) => astray,
        };
        if astray != Astray::NoPlace {
            let after = crate::clock::now().saturating_duration_since(began);
            self.stuck(&self.links[0], after);
        }
        Err(match astray {
            Astray::Panicked => ConnectError::Panicked,
            Astray::Hangs => {
                let phase = "attempt";
                ConnectError::TimedOut { phase, limit }
            }
            Astray::NoPlace => {
                let phase = "waiting for earlier work, which keeps its thread,";
                ConnectError::TimedOut { phase, limit }
            }
        })
    }

    /// Keeps a task of the client running: begins it anew if it ends before the client does, and
    /// counts that.
    pub(crate) async fn kept<T: Future<Output = ()> + Send + 'static>(
        self: Arc<Self>,
        task: impl Fn() -> T,
    ) {
        loop {
            let began = crate::clock::now();
            let ended = Owned::new(tokio::spawn(task()));
            ended.ended().await;
            if self.is_closing() || self.links[0].state() == ConnectionState::Closed {
                return;
            }
            let after = crate::clock::now().saturating_duration_since(began);
            self.stuck(&self.links[0], after);
            tokio::time::sleep(BEGIN_AGAIN).await;
        }
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
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::target::Target;

    #[tokio::test(start_paused = true)]
    async fn c8_a_task_of_the_client_that_panics_is_begun_anew_and_counted() {
        let settings = Settings::new(Target::parse("redis://h").expect("a good url"));
        let shared = Shared::new(settings, crate::clock::now()).expect("good settings");
        let shared = Arc::new(shared);
        let panicked = Arc::new(AtomicBool::new(false));
        let (again, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let keeps = Arc::clone(&shared);
        let task = move || {
            let (keeps, panicked) = (Arc::clone(&keeps), Arc::clone(&panicked));
            let again = again.clone();
            async move {
                assert!(panicked.swap(true, Ordering::Relaxed), "its own mistake");
                let _ = again.send(());
                keeps.closing().await;
            }
        };
        let kept = tokio::spawn(Arc::clone(&shared).kept(task));
        assert_eq!(begun.recv().await, Some(()));
        assert_eq!(shared.links[0].view.lock().stuck_resets, 1);
        // It ends with the client.
        shared.close();
        assert!(kept.await.is_ok());
        assert_eq!(shared.links[0].view.lock().stuck_resets, 1);
    }
}
