//! What the clones of a client, its supervisors and its drivers have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::conn::Reply;
use steadfast_core::policy::breaker::{Cause, Transition};
use steadfast_core::policy::{Budget, LatencyEstimate};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::breaker::{Guard, state_name};
use crate::client::home::Home;
use crate::error::{ConfigError, Error, ErrorKind};
use crate::event::{EventKind, Hub};
use crate::link::Link;
use crate::link::connect::{Fence, Identity, Place};
use crate::link::crossing::Crossings;
use crate::link::following::Following;
use crate::link::rotation::InForce;
use crate::metrics::Metrics;
use crate::sentinel::Discovery;
use crate::settings::{Address, Settings};
use crate::wire::queue::{Gate, Lane, Order};

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Arc<Settings>,
    pub(crate) hub: Hub,
    pub(crate) guard: Guard,
    pub(crate) budget: Budget,
    pub(crate) metrics: Metrics,
    pub(crate) links: Vec<Arc<Link>>,
    pub(crate) crossings: Crossings,
    /// Of the connections that one caller has to itself.
    dedicated: Mutex<Vec<Weak<Lane>>>,
    /// Replies, of every kind.
    pub(crate) answered: AtomicU64,
    /// Round-trip time as smoothed, in nanoseconds; 0 while unknown.
    rtt_ns: AtomicU64,
    /// Of each link, as its last connection has shown.
    fencing: Mutex<Box<[Fencing]>>,
    seeds: AtomicU64,
    /// What calls take, to refuse those that cannot be answered in time.
    pub(crate) latency: LatencyEstimate,
    /// The credentials in force.
    pub(crate) credentials: InForce,
    /// The server that connections beside the shared one have to follow.
    pub(crate) following: Following,
    /// Where sentinels name the primary.
    pub(crate) discovery: Option<Arc<Discovery>>,
    /// True once the client is closing: nothing new begins.
    closing: watch::Sender<bool>,
    /// What runs the client, for as long as there is one.
    home: OnceLock<Weak<Home>>,
}

/// Whether abandoned connections can be killed on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Fencing {
    /// Not tried yet.
    Untried,
    /// Yes: last-wins writes of unknown outcome are repeated safely.
    Works,
    /// No: the server does not allow it, or did not once since a connection was put into service; such writes are not repeated unless the caller
    /// allows it. A connection that replaces it finds out anew.
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
            crossings: Crossings::default(),
            dedicated: Mutex::default(),
            answered: AtomicU64::new(0),
            rtt_ns: AtomicU64::new(0),
            fencing: Mutex::new(vec![Fencing::Untried; settings.connections].into()),
            seeds: AtomicU64::new(settings.seed),
            latency: LatencyEstimate::new(now),
            credentials: InForce::new(),
            following: Following::new(),
            discovery: match &settings.target.address {
                Address::Sentinel(target) => Some(Arc::new(Discovery::new(target, now))),
                Address::Tcp { .. } | Address::Unix(_) => None,
            },
            closing: watch::Sender::new(false),
            home: OnceLock::new(),
            settings,
        })
    }

    /// The tasks of the client have a place to live.
    pub(crate) fn lives_in(&self, home: &Arc<Home>) {
        let _ = self.home.set(Arc::downgrade(home));
    }

    /// The runtime in which the client's tasks live. If it has ended, they are started anew in that
    /// of the caller.
    ///
    /// # Errors
    /// There is none to be had, or the client is no more.
    pub(crate) fn runtime(&self) -> Result<Handle, Error> {
        let home = self.home.get().and_then(Weak::upgrade);
        match home {
            Some(home) => home.runtime(),
            None => Err(Error::not_sent(ErrorKind::Closed)),
        }
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

    /// Of the client: `Refused` while any connection cannot have others killed.
    pub(crate) fn fencing(&self) -> Fencing {
        of_all(&self.fencing.lock())
    }

    /// A connection of this link is put into service, whose handshake has shown whether it may kill, and asked for these ghosts to be killed.
    pub(crate) fn serves(
        &self,
        link: &Link,
        may_kill: &Result<(), String>,
        ghosts: &[Identity],
        fences: &[Fence],
    ) {
        let refused = fences.iter().find_map(|fence| match fence {
            Fence::Refused(why) => Some(why),
            Fence::Done | Fence::Gone | Fence::NotNow => None,
        });
        match may_kill.as_ref().err().or(refused) {
            Some(why) => self.unfenced(link, why),
            None => {
                link.lane.serves(true);
                self.fencing.lock()[link.index] = Fencing::Works;
            }
        }
        for (ghost, fence) in ghosts.iter().zip(fences) {
            self.fenced(link, ghost, fence);
        }
    }

    /// The server answered a CLIENT KILL that a connection of this link sent. One that it could not obey now stays to be done, and one that it
    /// refused is for the next connection, which may be allowed to: until then a ghost is loose.
    pub(crate) fn fenced(&self, link: &Link, ghost: &Identity, fence: &Fence) {
        match fence {
            Fence::Done => {
                let id = ghost.id;
                self.hub.emit(link.index, EventKind::Fenced { id });
                link.ghosts.lock().retain(|known| known != ghost);
            }
            Fence::Gone => link.ghosts.lock().retain(|known| known != ghost),
            Fence::Refused(why) => self.unfenced(link, why),
            Fence::NotNow => {}
        }
    }

    /// An abandoned connection was made to another server than this link's (`None`: of one caller).
    pub(crate) fn gone(&self, link: Option<usize>, ghost: &Identity) {
        if let Some(link) = link.and_then(|index| self.links.get(index)) {
            self.fenced(link, ghost, &Fence::Gone);
        }
    }

    /// The connection in service of this link cannot have others killed, for as long as it lives: whatever it may be allowed later, a ghost has been
    /// left behind it.
    fn unfenced(&self, link: &Link, why: &str) {
        // Whatever has not been sent yet, and has been looked at before.
        link.lane.serves(false);
        let before = {
            let mut fencing = self.fencing.lock();
            let before = of_all(&fencing);
            fencing[link.index] = Fencing::Refused;
            before
        };
        if before != Fencing::Refused {
            let cause = why.into();
            self.hub.emit(link.index, EventKind::FenceRefused { cause });
        }
    }

    /// A connection was abandoned with writes that may still be applied: every connection that goes on has it killed before its next
    /// command. A link remembers it until the server says that it is gone, so that it survives the loss of the connection that was told.
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

    /// Where the client's own connection has found the server that it serves from. Not of one that does not say who it is: nobody would notice that it
    /// is not that server any more, so each looks for it by its name.
    pub(crate) fn place(&self) -> Option<Place> {
        let link = &self.links[0];
        let serves = matches!(link.lane.gate(), Gate::Open);
        let view = link.view.lock();
        view.facts
            .as_ref()
            .filter(|facts| serves && facts.run_id.is_some())
            .and_then(|facts| facts.place)
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
            .filter(|lane| !matches!(lane.gate(), Gate::Ended(_)))
            .collect()
    }

    /// A connection of this link (`None`: of one caller) was answered to its CLIENT KILL. False if it has to ask again; `None` if that was no
    /// answer to it.
    pub(crate) fn fence_answered(
        &self,
        link: Option<usize>,
        ghost: &Identity,
        reply: &Reply,
    ) -> Option<bool> {
        let Reply::One(value) = reply else {
            return None;
        };
        let fence = Fence::of(value)?;
        if let Some(link) = link.and_then(|index| self.links.get(index)) {
            self.fenced(link, ghost, &fence);
        }
        Some(fence != Fence::NotNow)
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

/// What is true of a client with these connections: its writes go through any of them.
fn of_all(each: &[Fencing]) -> Fencing {
    if each.contains(&Fencing::Refused) {
        Fencing::Refused
    } else if each.contains(&Fencing::Works) {
        Fencing::Works
    } else {
        Fencing::Untried
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
    use crate::settings::Target;
    use crate::wire::queue::Ask;

    fn shared(connections: usize) -> Shared {
        let mut settings = Settings::new(Target::parse("redis://h").expect("a good url"));
        settings.connections = connections;
        Shared::new(settings, clock::now()).expect("good settings")
    }

    fn relying() -> Ask {
        let now = clock::now();
        Ask {
            replies: 1,
            started: now,
            deadline: now + Duration::from_secs(1),
            now,
            seq: None,
            only_fenced: true,
            read_only: false,
            apart: false,
        }
    }

    fn ghost(id: i64) -> Identity {
        let addr = "127.0.0.1:1".into();
        let run_id = None;
        Identity { id, addr, run_id }
    }

    fn noperm() -> Reply {
        let error = redis::parse_redis_value(b"-NOPERM this user has no permissions\r\n");
        let Ok(refused @ Value::ServerError(_)) = error else {
            panic!("it is an error: {error:?}");
        };
        Reply::One(refused)
    }

    fn done() -> Reply {
        Reply::One(Value::Int(1))
    }

    fn refusals(shared: &Shared) -> usize {
        let history = shared.hub.history();
        let refused = |event: &&crate::event::Event| event.kind.name() == "fence_refused";
        history.iter().filter(refused).count()
    }

    #[test]
    fn c18_once_a_kill_is_refused_nothing_that_relies_on_one_is_sent() {
        let shared = shared(1);
        let lane = &shared.links[0].lane;
        let ask = relying();
        let _pending = lane
            .submit(ask, |out: &mut Vec<u8>| out.len())
            .expect("it may be killed");
        assert_eq!(
            shared.fence_answered(Some(0), &ghost(1), &noperm()),
            Some(true)
        );
        assert_eq!(shared.fencing(), Fencing::Refused);
        assert_eq!(lane.in_flight(), 0, "what waited is turned away");
        let late = lane.submit(ask, |out: &mut Vec<u8>| out.len());
        let error = late.expect_err("it was looked at before that was known");
        assert_eq!(error.certainty(), Certainty::NotSent);
    }

    #[test]
    fn c18_one_kill_that_succeeds_does_not_make_up_for_one_that_was_refused() {
        let shared = shared(1);
        let link = &shared.links[0];
        let state = || (shared.fencing(), link.lane.may_be_fenced());
        shared.serves(link, &Ok(()), &[], &[]);
        assert_eq!(state(), (Fencing::Works, true));
        shared.fence_answered(Some(0), &ghost(1), &noperm());
        shared.fence_answered(Some(0), &ghost(2), &done());
        assert_eq!(state(), (Fencing::Refused, false), "while it serves");
        // Nor in a handshake, in whatever order.
        let refused = || Fence::Refused("NOPERM".into());
        for fences in [[refused(), Fence::Done], [Fence::Done, refused()]] {
            link.lane.release();
            shared.serves(link, &Ok(()), &[ghost(1), ghost(2)], &fences);
            assert_eq!(state(), (Fencing::Refused, false), "{fences:?}");
        }
        link.lane.release();
        shared.serves(link, &Ok(()), &[ghost(1)], &[Fence::Done]);
        assert_eq!(state(), (Fencing::Works, true));
        assert_eq!(refusals(&shared), 1, "told once, as it changed");
    }

    #[test]
    fn c18_what_one_connection_is_refused_is_not_granted_by_another() {
        let shared = shared(2);
        let [first, second] = &shared.links[..] else {
            panic!("there are two");
        };
        assert_eq!(shared.fencing(), Fencing::Untried);
        shared.serves(first, &Err("NOPERM".into()), &[], &[]);
        shared.serves(second, &Ok(()), &[], &[]);
        assert_eq!(shared.fencing(), Fencing::Refused);
        first.lane.release();
        assert_eq!(
            shared.fencing(),
            Fencing::Refused,
            "nobody knows better yet"
        );
        shared.serves(first, &Ok(()), &[], &[]);
        assert_eq!(shared.fencing(), Fencing::Works);
    }

    #[test]
    fn c18_a_ghost_that_was_refused_is_killed_by_the_next_connection_that_may() {
        let shared = shared(1);
        let link = &shared.links[0];
        shared.serves(link, &Ok(()), &[], &[]);
        link.open(clock::now());
        shared.bury(Some(ghost(1)));
        assert_eq!(
            link.lane
                .take_orders(crate::wire::queue::Backlog::default())
                .len(),
            1
        );
        shared.fence_answered(Some(0), &ghost(1), &noperm());
        // The next one may not either, and is asked once.
        link.lane.release();
        let ghosts = shared.ghosts();
        assert_eq!(ghosts, [ghost(1)], "a repeat still relies on its end");
        let refused = Fence::Refused("NOPERM".into());
        shared.serves(link, &Ok(()), &ghosts, &[refused]);
        link.open(clock::now());
        assert_eq!(
            link.lane
                .take_orders(crate::wire::queue::Backlog::default())
                .len(),
            0
        );
        let error = link.lane.submit(relying(), |out: &mut Vec<u8>| out.len());
        assert!(error.is_err(), "the ghost is loose");
        // Dialled before it was refused, so it has not been asked: it is now, ahead of what waits.
        link.lane.release();
        shared.serves(link, &Ok(()), &[], &[]);
        link.open(clock::now());
        assert_eq!(
            link.lane
                .take_orders(crate::wire::queue::Backlog::default())
                .len(),
            1
        );
        shared.fence_answered(Some(0), &ghost(1), &done());
        assert!(shared.ghosts().is_empty());
        let submitted = link.lane.submit(relying(), |out: &mut Vec<u8>| out.len());
        assert!(submitted.is_ok(), "nothing can come after it");
    }
}
