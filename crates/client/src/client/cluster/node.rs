//! A node of a cluster: a client of its own, with its own breaker, budget, bounds and fences, so
//! that what befalls one node delays no call to another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use steadfast_core::command::Effect;
use steadfast_core::conn::{PIECE, Reply};
use steadfast_core::node::{Endpoint, NodeId};

use super::hunt::LeftBehind;
use super::whereabouts::{MemberFacts, Whereabouts};
use crate::call;
use crate::call::plan::{Asking, Payload, Plan};
use crate::call::{Carried, Suspicion};
use crate::client::Client;
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::event::Event;
use crate::event::hub::Hub;
use crate::link::ConnectionState;
use crate::options::CallOptions;
use crate::wire::queue::{Encode, Encoded, Gate};

/// See the module.
pub(super) struct Node {
    /// The node's place among all nodes.
    pub(super) number: u16,
    pub(super) id: NodeId,
    whereabouts: Arc<Whereabouts>,
    pub(super) client: Client,
    retired: AtomicBool,
    /// Whether it has owned slots since it was started.
    has_owned: AtomicBool,
    without_slots: Mutex<WithoutSlots>,
    /// The node and its slots, for errors.
    named: RwLock<Arc<str>>,
}

/// What a node that has owned slots, and owns none now, says of it.
#[derive(Clone, Copy, Debug)]
enum WithoutSlots {
    /// It owns some, or never did.
    No,
    /// Nothing yet: it may be cut off from those who know of its successor.
    Since(Instant),
    /// It knows.
    Agreed,
}

/// How long a node that has lost its last slot is asked about it.
const DOUBTED: Duration = Duration::from_secs(60);

/// How long what was asked of a node that is taken out of service may take to be answered.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The events of a node that was left, of which the log is not told yet.
#[must_use = "the log is to be told of them, once no lock is held"]
pub(super) struct Farewell {
    hub: Arc<Hub>,
    events: Vec<Event>,
}

impl Farewell {
    /// Writes them to the log, which may ask the client for anything. No lock is to be held.
    pub(super) fn tell(self) {
        self.hub.log(&self.events);
    }
}

impl Node {
    pub(super) fn new(
        (number, id): (u16, NodeId),
        whereabouts: Arc<Whereabouts>,
        client: Client,
    ) -> Self {
        let named = whereabouts.endpoint().to_string().into();
        Self {
            number,
            id,
            whereabouts,
            client,
            retired: AtomicBool::new(false),
            has_owned: AtomicBool::new(false),
            without_slots: Mutex::new(WithoutSlots::No),
            named: RwLock::new(named),
        }
    }

    /// Makes one attempt, within which only this node is asked.
    pub(super) async fn attempt(
        &self,
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
        times: (Instant, Duration),
    ) -> Result<Reply, Error> {
        let mut carried = Carried::default();
        self.attempt_once(payload, plan, options, times, &mut carried)
            .await
    }

    /// Makes one attempt, and keeps its last try apart from those before. The node repeats by
    /// itself what it may: the result is that of its last try, as certain as that one by itself,
    /// and besides comes whether an earlier one may have run. A redirect proves that nothing of the
    /// last has run, and is followed, whatever is known of those before it.
    ///
    /// Connections to other nodes may have ended at the call: what is suspected of it goes with it,
    /// and comes back with the result.
    ///
    /// A large request is encoded by this function itself, not by the first poll of what it
    /// returns, which may be under the locks of slots that other nodes have too.
    pub(super) fn attempt_after<'a>(
        &'a self,
        payload: Payload<'a>,
        plan: Plan,
        options: &'a CallOptions,
        times: (Instant, Duration),
        suspicion: Suspicion,
    ) -> impl Future<Output = (Result<Reply, Error>, bool, Suspicion)> + Send + 'a {
        let ahead = self.encoded_ahead(payload, &plan, options);
        self.attempt_encoded(ahead, payload, plan, options, times, suspicion)
    }

    /// The same, of a request that was encoded ahead, if it is large.
    pub(super) fn attempt_encoded<'a>(
        &'a self,
        encoded: Option<Encoded>,
        payload: Payload<'a>,
        plan: Plan,
        options: &'a CallOptions,
        times: (Instant, Duration),
        suspicion: Suspicion,
    ) -> impl Future<Output = (Result<Reply, Error>, bool, Suspicion)> + Send + 'a {
        let mut carried = Carried {
            suspicion,
            encoded,
            ..Carried::default()
        };
        async move {
            if has_own_connection(&plan, options) {
                // It has no order with others, so nothing of it need be done under locks.
                tokio::task::yield_now().await;
            }
            let tried = self.attempt_once(payload, plan, options, times, &mut carried);
            let result = tried.await;
            let suspicion = carried.suspicion;
            match carried.alone {
                None => (result, false, suspicion),
                Some(alone) => {
                    let result = result.map_err(|error| error.of_certainty(alone));
                    (result, true, suspicion)
                }
            }
        }
    }

    /// The bytes of a large request, if it is likely to be sent.
    pub(super) fn encoded_ahead(
        &self,
        payload: Payload<'_>,
        plan: &Plan,
        options: &CallOptions,
    ) -> Option<Encoded> {
        let queue = &self.client.inner.shared.links[plan.route.link].queue;
        let takes = || matches!(queue.gate(), Gate::Open | Gate::Waiting);
        if has_own_connection(plan, options) || payload.size() < PIECE || !takes() {
            return None;
        }
        match plan.asking {
            false => Encoded::ahead(payload),
            true => Encoded::ahead(Asking(payload)),
        }
    }

    async fn attempt_once(
        &self,
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
        (started, limit): (Instant, Duration),
        carried: &mut Carried,
    ) -> Result<Reply, Error> {
        let inner = &*self.client.inner;
        if !has_own_connection(&plan, options) {
            let times = (started, limit);
            return call::call_within(&inner.shared, payload, plan, options, times, carried).await;
        }
        let passed = clock::now().saturating_duration_since(started);
        let options = options.clone().deadline(limit.saturating_sub(passed));
        let blocking = inner.blocking.call(
            &inner.shared,
            &inner.connector,
            payload,
            plan,
            &options,
            carried,
        );
        Box::pin(blocking).await
    }

    pub(super) fn has_owned(&self) -> bool {
        self.has_owned.load(Ordering::Relaxed)
    }

    /// Whether calls that failed are worth another try: it answers, or may do so in a moment.
    pub(super) fn may_serve(&self) -> bool {
        let state = self.client.state();
        !self.is_retired() && !matches!(state, ConnectionState::Down | ConnectionState::Closed)
    }

    /// Notes that it owns no slots any more.
    pub(super) fn lost_its_slots(&self, now: Instant) {
        let mut without = self.without_slots.lock();
        if self.has_owned() && matches!(*without, WithoutSlots::No) {
            *without = WithoutSlots::Since(now);
        }
    }

    /// Notes that it says so itself.
    pub(super) fn agrees_to_own_nothing(&self) {
        let mut without = self.without_slots.lock();
        if matches!(*without, WithoutSlots::Since(_)) {
            *without = WithoutSlots::Agreed;
        }
    }

    /// Whether it has lost its slots and may not know it. It may be cut off from the others, who
    /// take their time to hold it for failed.
    pub(super) fn is_doubted(&self, now: Instant) -> bool {
        match *self.without_slots.lock() {
            WithoutSlots::Since(since) => now.saturating_duration_since(since) < DOUBTED,
            WithoutSlots::No | WithoutSlots::Agreed => false,
        }
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Ends it: at once if it does not answer, else when it has answered what it was asked. What
    /// is refused for that goes on at another node. What comes of it is to be told once no lock is
    /// held, and by whoever has found out: where there is no runtime, or one that nobody drives,
    /// no task would.
    pub(super) fn retire(
        self: Arc<Self>,
        at_once: bool,
        left_behind: &Arc<LeftBehind>,
    ) -> Farewell {
        self.retired.store(true, Ordering::Relaxed);
        let limit = if at_once {
            Duration::ZERO
        } else {
            LAST_ANSWERS
        };
        let shared = &self.client.inner.shared;
        let links = shared.links.iter();
        let refused: Vec<_> = links
            .map(|link| (link.index, link.queue.take_refused()))
            .collect();
        let farewell = Farewell {
            events: shared.hub.retire(&refused),
            hub: Arc::clone(&shared.hub),
        };
        // At once: until it is closed, the node may be started anew.
        left_behind.add(&self.id, shared.fences.abandoned());
        // Where the client's own tasks live: whoever finds out need not be in a runtime.
        if let Ok(runtime) = shared.runtime() {
            let left_behind = Arc::clone(left_behind);
            runtime.spawn(async move {
                let _ = self.client.close(limit).await;
                left_behind.hunt(&self.id, &self.client).await;
            });
        }
        farewell
    }

    /// Returns what is known of how to reach it.
    pub(super) fn facts(&self) -> MemberFacts {
        self.whereabouts.facts()
    }

    /// Returns where it is dialled.
    pub(super) fn endpoint(&self) -> Endpoint {
        self.whereabouts.endpoint()
    }

    /// It is at another address now. A connection that serves is to the same node, and stays; where
    /// there is none, it is looked for at the new address at once.
    pub(super) fn relocate(&self, member: MemberFacts) {
        self.client
            .inner
            .shared
            .hub
            .rename(member.endpoint.to_string().into());
        self.whereabouts.relocate(member);
        for link in &self.client.inner.shared.links {
            if link.state() != ConnectionState::Ready {
                link.reset(link.epoch(), "its address has changed");
            }
        }
    }

    /// Replaces its connections.
    pub(super) fn reconnect(&self, why: &str) {
        for link in &self.client.inner.shared.links {
            link.reset(link.epoch(), why);
        }
    }

    /// Says which slots it owns, for errors.
    pub(super) fn name(&self, slots: &str) {
        if !slots.is_empty() {
            self.has_owned.store(true, Ordering::Relaxed);
            *self.without_slots.lock() = WithoutSlots::No;
        }
        let at = self.endpoint();
        let named = match slots {
            "" => format!("node {at}, which owns no slots"),
            slots => format!("node {at}, which owns slots {slots}"),
        };
        *self.named.write() = named.into();
    }

    /// The error, with the node that it comes from.
    pub(super) fn blame(&self, error: Error) -> Error {
        let of_infrastructure = matches!(
            error.kind(),
            ErrorKind::Down { .. }
                | ErrorKind::BreakerOpen { .. }
                | ErrorKind::Lost { .. }
                | ErrorKind::Timeout { .. }
                | ErrorKind::Overloaded { .. }
                | ErrorKind::Connect { .. }
        );
        match of_infrastructure && error.at().is_none() {
            true => error.named(Arc::clone(&self.named.read())),
            false => error,
        }
    }
}

/// Whether a call takes a connection of its own: it blocks, or waits for replicas.
fn has_own_connection(plan: &Plan, options: &CallOptions) -> bool {
    let waits = options.acknowledged_by.is_some() && plan.effect != Effect::Read;
    plan.blocking.is_some() || waits
}

/// Whether a call that failed so on a node that owns its slot no more goes on at the one that does.
pub(super) fn may_go_on(error: &Error, effect: Effect) -> bool {
    let left = matches!(
        error.kind(),
        ErrorKind::Down { .. }
            | ErrorKind::Lost { .. }
            | ErrorKind::Closed
            | ErrorKind::Connect { .. }
            | ErrorKind::BreakerOpen { .. }
    );
    left && match error.certainty() {
        Certainty::NotSent | Certainty::Rejected => true,
        // The new owner has succeeded it by a newer epoch: what the old one still applies is lost.
        Certainty::Unknown => matches!(effect, Effect::Read | Effect::LastWins),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicU64;
    use std::task::{Context, Waker};

    use steadfast_core::slot::Slot;

    use super::*;
    use crate::client::cluster::view::view_of;
    use crate::event::EventKind;
    use crate::event::listener::listen;

    #[tokio::test]
    async fn t5_the_first_poll_of_a_large_request_copies_nothing_under_the_locks_of_its_slot() {
        let builder = crate::Client::builder("redis-cluster://127.0.0.1:9").expect("a good url");
        let client = builder.build().expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        let text = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-16383\n";
        let view = view_of(text);
        assert!(cluster.believe(&view).ignored.is_none());
        let owner = cluster.routes.owner(Slot::new(7).expect("a slot"));
        let node = cluster.node(owner.expect("it is known"));
        let node = node.ok().flatten().expect("it is started");
        let size = 4 << 20;
        let set = redis::cmd("SET").arg("k").arg(vec![0_u8; size]).to_owned();
        let payload = Payload::Command(&set);
        let options = CallOptions::new();
        for (submitted, asking) in [(1, false), (2, true)] {
            let plan = payload.plan(1, true).expect("it may be sent");
            let plan = Plan { asking, ..plan };
            let times = (clock::now(), Duration::from_secs(9));
            let attempt = node.attempt_after(payload, plan, &options, times, Suspicion::default());
            let mut attempt = pin!(attempt);
            let polls = allocation_counter::measure(|| {
                let polled = attempt
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()));
                assert!(polled.is_pending(), "it waits for a connection");
            });
            assert!(polls.bytes_max < PIECE as u64, "{polls:?}");
            let queue = &node.client.inner.shared.links[0].queue;
            assert_eq!(queue.in_flight(), submitted, "it was submitted");
        }
    }

    #[test]
    fn t18_the_end_of_what_a_node_suffered_is_logged_though_no_runtime_is_left_to_do_it() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("there is room");
        let inside = runtime.enter();
        let builder = crate::Client::builder("redis-cluster://127.0.0.1:9").expect("a good url");
        let client = builder.build().expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        let text = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-16383\n\
                    b 127.0.0.1:2@12 slave a 0 0 1 connected\n";
        assert!(cluster.believe(&view_of(text)).ignored.is_none());
        let owner = cluster.routes.owner(Slot::new(7).expect("a slot"));
        let node = cluster.node(owner.expect("it is known"));
        let node = node.ok().flatten().expect("it is started");
        let lost = EventKind::Lost {
            cause: "reset".into(),
            unknown: 0,
            not_sent: 0,
        };
        node.client.inner.shared.hub.emit(0, lost);
        drop(inside);
        drop(runtime);
        let lines = Arc::new(AtomicU64::new(0));
        let (told, asked) = (Arc::clone(&lines), Arc::clone(cluster));
        let listens = listen(move || {
            let is_free = asked.known.try_lock().is_some() && asked.taking_in.try_lock().is_some();
            told.fetch_add(u64::from(is_free), Ordering::Relaxed);
        });
        let text = "b 127.0.0.1:2@12 myself,master - 0 0 2 connected 0-16383\n";
        assert!(cluster.believe(&view_of(text)).ignored.is_none());
        drop(listens);
        assert!(node.is_retired());
        assert_eq!(lines.load(Ordering::Relaxed), 1);
    }
}
