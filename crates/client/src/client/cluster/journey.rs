//! The journey of a call from node to node, until one of them has served it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use steadfast_core::command::{self, Effect, Errors};
use steadfast_core::conn::Reply;
use steadfast_core::node::NodeId;
use steadfast_core::policy::Deadline;
use steadfast_core::redirect::{MAX_HOPS, Redirect, Routing, is_try_again_for_script};
use steadfast_core::slot::{KeySet, Slot};
use steadfast_core::topology::Trigger;

use super::node::{Node, may_go_on};
use super::order::{Again, CallRoom, Entered, Entry, InLine, NOBODY, Places};
use super::{Aim, Cluster};
use crate::call::Suspicion;
use crate::call::plan::{OwnPayload, Payload, Plan};
use crate::clock;
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::link::attendance::FOR_A_SIGN;
use crate::options::CallOptions;
use crate::settings::Settings;
use crate::wire::queue::UNATTENDED;

/// Returns the pause before a command is sent again that was answered TRYAGAIN so many times
/// before. A slot takes its time to move, so nothing but the deadline ends that.
pub(super) fn pause_before_trying_again(times: u32) -> Duration {
    (TRY_AGAIN.0 * 2u32.pow(times.min(6))).min(TRY_AGAIN.1)
}

/// Whether the server that has answered so is no primary now, or not yet: it runs nothing, and
/// another may come, or the same one.
pub(super) fn is_for_want_of_a_primary(routing: &Routing) -> bool {
    matches!(
        routing,
        Routing::ClusterDown | Routing::MasterDown | Routing::Loading | Routing::ReadOnly
    )
}

/// The first of these pauses, and the longest.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// The limits of a call.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    pub(super) started: Instant,
    pub(super) limit: Duration,
    pub(super) deadline: Instant,
    /// The call's place among those that wait, if its parts share it.
    pub(super) room: Option<&'a CallRoom>,
}

impl<'a> Limits<'a> {
    pub(super) fn new(limit: Duration) -> Self {
        let started = clock::now();
        Self {
            started,
            limit,
            deadline: Deadline::after(started, limit).instant(),
            room: None,
        }
    }

    /// The same, of a call whose parts wait in one place.
    pub(super) fn in_one(self, room: &'a CallRoom) -> Self {
        let room = Some(room);
        Self { room, ..self }
    }

    /// The limits of what takes until then.
    pub(super) fn until(deadline: Instant) -> Self {
        Self::new(deadline.saturating_duration_since(clock::now()))
    }

    /// Returns until when the call may wait for a primary, if its deadline is not before.
    pub(super) fn waits_until(&self, settings: &Settings) -> Instant {
        self.started + settings.wait_for_primary
    }

    pub(super) fn timed_out(&self, certainty: Certainty) -> Error {
        let deadline = self.limit;
        Error::new(ErrorKind::Timeout { deadline }, certainty)
    }

    /// From when and for how long the next attempt is counted: what a node is given after another
    /// has taken its time says little of it.
    pub(super) fn of_attempt(&self, hops: u32) -> (Instant, Duration) {
        match hops {
            0 => (self.started, self.limit),
            _ => {
                let now = clock::now();
                (now, self.deadline.saturating_duration_since(now))
            }
        }
    }
}

/// The way on of a call.
enum Next {
    /// At another node, or the same.
    Go(Aim),
    /// When more is known of who serves.
    WhenKnown,
    /// The same, for as long as the caller lets it wait for a primary.
    WhenServed(Instant),
    /// After a pause, where its keys are together again.
    Later,
}

/// The result of an attempt.
enum Attempted {
    /// Its end, and whether an earlier try at the same node may have run.
    Ended(Result<Reply, Error>, bool),
    /// Its slot changes hands, or has: nothing was sent.
    Elsewhere,
    /// Its ASK is too old to be followed: nothing was sent.
    Outdated,
    /// The call may not be sent again.
    Never(Error),
}

/// A command, transaction or script on its way, whose keys have one slot.
pub(super) struct Journey<'a> {
    cluster: &'a Cluster,
    slot: Slot,
    keys: KeySet,
    payload: Payload<'a>,
    /// The payload for the next attempt, once some of its time is over.
    rest: Option<OwnPayload>,
    plan: Plan,
    options: &'a CallOptions,
    limits: Limits<'a>,
    /// Whether it has a connection of its own, and so no order with others.
    apart: bool,
    places: Option<Places<'a>>,
    /// Its place among those that wait for the gate of its slot.
    line: Option<InLine<'a>>,
    /// Whether it waits for its turn before it is sent again.
    in_turn: bool,
    hops: u32,
    pauses: u32,
    waits: u32,
    /// How much is known of its earlier attempts.
    so_far: Certainty,
    suspicion: Suspicion,
    /// Whether its last attempt was redirected.
    redirected: bool,
    /// The nodes at which an attempt that was given up may still run.
    abandoned_at: Vec<NodeId>,
    /// The redirect, in words that a script may have written, that the next attempt follows: who
    /// said so, and when it had been asked.
    pointed: Option<(Arc<Node>, Redirect, Instant)>,
    /// Its first attempt, if it was made elsewhere.
    begun: Option<Begun<'a>>,
}

/// A first attempt that was made together with others, and did not serve it.
pub(super) struct Begun<'a> {
    pub(super) node: Arc<Node>,
    pub(super) sent: Instant,
    pub(super) error: Error,
    /// Whether an earlier try at the same node may have run.
    pub(super) before: bool,
    pub(super) suspicion: Suspicion,
    pub(super) places: Option<Places<'a>>,
}

impl Cluster {
    /// A command, transaction or script whose keys have one slot.
    pub(super) async fn follow(
        &self,
        place: (Slot, KeySet),
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let suspicion = Suspicion::default();
        self.follow_after(suspicion, place, payload, plan, options)
            .await
    }

    /// The same, of one at which a connection to a replica may have ended.
    pub(super) async fn follow_after(
        &self,
        suspicion: Suspicion,
        (slot, keys): (Slot, KeySet),
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let limits = Limits::new(plan.limit(options, self.settings().deadline)?);
        let mut journey = self.journey((slot, keys), payload, plan, options, limits);
        journey.suspicion = suspicion;
        journey.finish().await
    }

    /// The same, within limits that are known.
    pub(super) fn journey<'a>(
        &'a self,
        (slot, keys): (Slot, KeySet),
        payload: Payload<'a>,
        plan: Plan,
        options: &'a CallOptions,
        limits: Limits<'a>,
    ) -> Journey<'a> {
        Journey {
            cluster: self,
            slot,
            keys,
            payload,
            rest: None,
            apart: plan.blocking.is_some() || options.acknowledged_by.is_some(),
            plan,
            options,
            limits,
            places: None,
            line: None,
            in_turn: false,
            hops: 0,
            pauses: 0,
            waits: 0,
            so_far: Certainty::NotSent,
            suspicion: Suspicion::default(),
            redirected: false,
            abandoned_at: Vec::new(),
            pointed: None,
            begun: None,
        }
    }
}

impl<'a> Journey<'a> {
    /// Goes on after this attempt.
    pub(super) fn begun(mut self, begun: Option<Begun<'a>>) -> Self {
        self.begun = begun;
        self
    }
}

impl<'a> Journey<'a> {
    pub(super) async fn finish(self) -> Result<Reply, Error> {
        let limits = self.limits;
        self.run().await.map_err(|error| match error.kind() {
            ErrorKind::Timeout { .. } => {
                let certainty = error.certainty();
                let at = error.at().map(Arc::from);
                let error = limits.timed_out(certainty);
                at.into_iter().fold(error, Error::named)
            }
            _ => error,
        })
    }

    async fn run(mut self) -> Result<Reply, Error> {
        let mut aim = Aim::Owner;
        let mut last: Option<Error> = None;
        // The moment in which it begins serves for an attempt that is made in it.
        let mut begins = true;
        loop {
            let (node, sent, attempted) = match self.begun.take() {
                Some(begun) => self.take_up(begun),
                None => self.go_to(&aim, &mut begins, &mut last).await?,
            };
            let (result, before) = match attempted {
                Attempted::Ended(result, before) => (result, before),
                Attempted::Never(error) => return Err(error.at_least(self.so_far)),
                Attempted::Elsewhere | Attempted::Outdated
                    if clock::now() >= self.limits.deadline =>
                {
                    return Err(self.limits.timed_out(self.so_far));
                }
                nothing => {
                    if matches!(nothing, Attempted::Outdated) {
                        // Its redirect has led nowhere, so it counts for none.
                        self.hops = self.hops.saturating_sub(1);
                    }
                    aim = Aim::Owner;
                    continue;
                }
            };
            let error = match result {
                Ok(reply) => {
                    self.learn_where_it_was_served(&aim, node.number);
                    self.has_run();
                    return Ok(reply);
                }
                Err(error) => error,
            };
            let routing = self.routing(&node, &error);
            let routed = routing.as_ref();
            let Some(next) = self.next(&node, &aim, (&error, before, routed), sent) else {
                // A refusal of the server or the cluster lets earlier ones of its keys go ahead
                // still.
                let refused = routing.is_some() && !self.is_of_script(&error);
                let error = error.at_best(before);
                let ran = matches!(error.kind(), ErrorKind::Server(_)) && !refused;
                let unknown = error.certainty() == Certainty::Unknown;
                if ran || unknown || self.so_far == Certainty::Unknown {
                    self.has_run();
                }
                return Err(node.blame(error).at_least(self.so_far));
            };
            self.redirected = matches!(routing, Some(Routing::Moved(_) | Routing::Ask(_)));
            self.pointed = match &routing {
                Some(Routing::Moved(redirect)) if self.is_of_script(&error) => {
                    Some((Arc::clone(&node), redirect.clone(), sent))
                }
                _ => None,
            };
            let error = match routing {
                Some(routing) if routing.follows() => {
                    // Its words may be those of a script that has run.
                    if self.is_of_script(&error) {
                        self.so_far = Certainty::Unknown;
                    }
                    error.proven_rejected()
                }
                _ => error,
            };
            self.note(&node, &error, before);
            begins = false;
            aim = match Box::pin(self.goes_on(next)).await {
                Some(aim) => aim,
                None => return Err(node.blame(error).at_least(self.so_far)),
            };
            last = Some(error.at_least(self.so_far));
        }
    }

    /// Goes on after an attempt that was made together with others.
    fn take_up(&mut self, begun: Begun<'a>) -> (Arc<Node>, Instant, Attempted) {
        self.places = begun.places;
        self.suspicion = begun.suspicion;
        let attempted = Attempted::Ended(Err(begun.error), begun.before);
        (begun.node, begun.sent, attempted)
    }

    /// Makes an attempt at the node that it goes to, once that is known. Returns besides which it
    /// was, and when.
    ///
    /// # Errors
    /// No attempt is made any more; the `last` one has failed so, if there was any.
    async fn go_to(
        &mut self,
        aim: &Aim,
        begins: &mut bool,
        last: &mut Option<Error>,
    ) -> Result<(Arc<Node>, Instant, Attempted), Error> {
        self.stand_in_line();
        let reached = match self.cluster.found(self.slot, aim) {
            Ok(Some(node)) => Ok(node),
            _ => {
                *begins = false;
                let reach = self.cluster.reach(self.slot, aim, &self.limits);
                Box::pin(reach).await
            }
        };
        let node = match (reached, last.take()) {
            (Ok(node), Some(error)) if self.abandoned_at.contains(&node.id) => {
                // The one that was given up there could run after it.
                return Err(error);
            }
            (Ok(node), error) => {
                *last = error;
                node
            }
            (Err(error), None) => return Err(error.at_least(self.so_far)),
            (Err(_), Some(error)) => return Err(error),
        };
        let sent = match std::mem::take(begins) {
            true => self.limits.started,
            false => clock::now(),
        };
        let attempted = self.attempt(&node, aim, sent).await;
        Ok((node, sent, attempted))
    }

    /// Notes what is known of an attempt that has failed so at this node, and goes on.
    fn note(&mut self, node: &Node, error: &Error, before: bool) {
        let unknown = before || error.certainty() == Certainty::Unknown;
        let known = match unknown {
            true => Certainty::Unknown,
            false => error.certainty(),
        };
        self.so_far = self.so_far.max(known);
        // What has an answer of the server was sent behind the fence of those before.
        if unknown
            && self.effect() != Effect::Read
            && !matches!(error.kind(), ErrorKind::Server(_))
            && !self.cluster.settings().repeat_without_fence
        {
            self.abandoned_at.push(node.id.clone());
        }
    }

    fn entry(&self, node: u16) -> Entry {
        Entry {
            slot: self.slot,
            keys: self.keys.clone(),
            node,
            until: self.limits.deadline,
        }
    }

    /// Takes its place in the order of its slot while nobody is known who serves that: those that
    /// wait are sent in the order in which they came.
    fn stand_in_line(&mut self) {
        let cluster = self.cluster;
        if self.places.is_some() || self.apart || cluster.routes.owner(self.slot).is_some() {
            return;
        }
        let until = cluster.waits_until(self.slot, &Aim::Owner, &self.limits);
        if clock::now() < until {
            let entries = SmallVec::from_buf([self.entry(NOBODY)]);
            self.places = Some(cluster.order.stand_in_line(entries));
            self.line = None;
            self.in_turn = true;
        }
    }

    fn has_run(&mut self) {
        if let Some(places) = &mut self.places {
            places.ran();
        }
    }

    /// Makes one attempt at this node.
    async fn attempt(&mut self, node: &Node, aim: &Aim, sent: Instant) -> Attempted {
        let (cluster, limits, slot) = (self.cluster, self.limits, self.slot);
        let asking = matches!(aim, Aim::At { asking: true, .. });
        let plan = Plan {
            asking,
            ..self.plan.clone()
        };
        let stands = |(slot, node)| !asking || cluster.asked.stands(slot, node, clock::now());
        if !stands((slot, node.number)) {
            return Attempted::Outdated;
        }
        let payload = self.rest.as_ref().map_or(self.payload, OwnPayload::payload);
        let times = limits.of_attempt(self.hops + self.pauses + self.waits);
        let before = self.suspicion;
        let entry = self.entry(node.number);
        // After a pause there may be no time left: what is sent then is of unknown outcome.
        if times.1.is_zero() {
            return Attempted::Never(limits.timed_out(Certainty::NotSent));
        }
        let mut attempt = pin!(node.attempt_after(payload, plan, self.options, times, before));
        let polled = match &mut self.places {
            None if self.apart => Poll::Pending,
            None => {
                let entries = SmallVec::from_buf([entry]);
                let stands =
                    || cluster.routes.owner(slot) == Some(node.number) && !node.is_retired();
                let line = (&mut self.line, limits.room);
                let entered = cluster
                    .order
                    .enter(entries, sent, stands, line, attempt.as_mut());
                match entered.await {
                    Entered::Sent(entered, polled) => {
                        self.places = Some(entered);
                        polled
                    }
                    Entered::Waited | Entered::Divided(_) => return Attempted::Elsewhere,
                    Entered::NoRoom => return Attempted::Never(no_room()),
                }
            }
            Some(_) if !self.in_turn => Poll::Pending,
            Some(places) => {
                let goes = [(slot, node.number)];
                let again = places.again(&goes, limits.deadline, stands, attempt.as_mut());
                match again.await {
                    Again::Sent(polled) => polled,
                    Again::Outdated(_) => return Attempted::Outdated,
                    // Of its own all that may be known is told by those before.
                    Again::Overtaken(_) => {
                        let error = Error::new(ErrorKind::Overtaken, Certainty::NotSent);
                        return Attempted::Never(error);
                    }
                    Again::TimedOut | Again::Divided(_) => {
                        return Attempted::Never(limits.timed_out(Certainty::NotSent));
                    }
                }
            }
        };
        let (result, before, suspicion) = match polled {
            Poll::Ready(ended) => ended,
            Poll::Pending => attempt.await,
        };
        self.suspicion = suspicion;
        Attempted::Ended(result, before)
    }

    /// Returns what a repeat of it would do.
    fn effect(&self) -> Effect {
        match self.plan.effect {
            // A repeat would look at what the first run has written.
            Effect::LastWins if self.plan.several && self.payload.looks_before_it_writes() => {
                Effect::Conditional
            }
            effect => effect,
        }
    }

    /// Gets ready for the next attempt. Returns where it goes; `None` if there is no time for it.
    async fn goes_on(&mut self, next: Next) -> Option<Aim> {
        let cluster = self.cluster;
        let read = self.effect() == Effect::Read;
        let deadline = self.limits.deadline;
        let aim = match next {
            Next::Go(aim) => {
                self.hops += 1;
                aim
            }
            Next::WhenKnown => {
                self.hops += 1;
                cluster
                    .more_is_known(&self.limits)
                    .await
                    .then_some(Aim::Owner)?
            }
            Next::WhenServed(until) => {
                let until = until.min(deadline);
                // Before the wait, or whoever comes meanwhile would go ahead of it.
                if let Some(places) = &self.places {
                    places.hold(self.slot);
                }
                let pause = pause_before_trying_again(self.waits);
                self.waits += 1;
                let serves = cluster.somebody_serves(self.slot, pause, (until, self.limits.room));
                serves.await.then_some(Aim::Owner)?
            }
            Next::Later => {
                let pause = pause_before_trying_again(self.pauses);
                self.pauses += 1;
                // If its keys are nowhere yet, two nodes send it to and fro until they arrive.
                self.hops = 0;
                if clock::now() + pause >= deadline {
                    return None;
                }
                if !read {
                    cluster.order.close(self.slot);
                }
                let _room = cluster.order.room(self.limits.room)?;
                clock::sleep(pause).await;
                Aim::Owner
            }
        };
        cluster.redirects.fetch_add(1, Ordering::Relaxed);
        // Of reads of several keys that wait for a migration, nobody waits for their turn.
        self.in_turn = !(read && self.pauses > 0);
        if self.in_turn {
            cluster.order.close(self.slot);
        } else if let Some(places) = &mut self.places {
            places.stand_aside(|_| true);
        }
        if self.plan.blocking.is_some() {
            let passed = clock::now().saturating_duration_since(self.limits.started);
            self.rest = self.payload.with_time_left(passed);
        }
        Some(aim)
    }

    /// Returns how the call goes on after this error, and after a try at the same node that may
    /// have run `before`; `None` if that is its end.
    fn next(
        &mut self,
        node: &Node,
        aim: &Aim,
        (error, before, routing): (&Error, bool, Option<&Routing>),
        sent: Instant,
    ) -> Option<Next> {
        let cluster = self.cluster;
        let unknown = before || error.certainty() == Certainty::Unknown;
        if let Some(routing) = routing {
            let next = match (routing, self.is_of_script(error)) {
                (Routing::Moved(redirect), true) => {
                    let aim = cluster.pointed(node, redirect);
                    Some(aim.map_or(Next::WhenKnown, Next::Go))
                }
                _ => self.next_by(node, routing, (sent, unknown)),
            };
            let hops = matches!(next, Some(Next::Go(_) | Next::WhenKnown));
            return next.filter(|_| !hops || self.hops < MAX_HOPS);
        }
        let doubts = match error.kind() {
            ErrorKind::Lost { .. } | ErrorKind::Down { .. } => true,
            // One that was given less time than usual has run out of its own.
            ErrorKind::Timeout { deadline } => *deadline >= cluster.settings().patience(),
            _ => false,
        };
        if doubts {
            cluster.trigger(Trigger::Loss);
        }
        let goes_on = may_go_on(error, self.effect()) && !self.suspicion.blamed_again;
        if cluster.shared.is_closing() || !goes_on {
            return None;
        }
        let owner = cluster.routes.owner(self.slot);
        if node.is_retired() || owner != Some(node.number) {
            // Where a redirect led to, the next one will lead again; and one that is back is the
            // same server. There a write that was given up could run after its repeat.
            let succeeded = *aim == Aim::Owner && owner != Some(node.number);
            let goes = !unknown || succeeded || self.effect() == Effect::Read;
            return (goes && self.hops < MAX_HOPS).then_some(Next::Go(Aim::Owner));
        }
        self.when_served(unknown)
    }

    /// Returns the way on of a call that waits for a primary, as long as the caller lets it.
    fn when_served(&self, unknown: bool) -> Option<Next> {
        let until = self.limits.waits_until(self.cluster.settings());
        let waits = clock::now() < until && !unknown;
        waits.then_some(Next::WhenServed(until))
    }

    fn next_by(
        &mut self,
        node: &Node,
        routing: &Routing,
        (sent, unknown): (Instant, bool),
    ) -> Option<Next> {
        let cluster = self.cluster;
        if let Routing::Moved(redirect) | Routing::Ask(redirect) = routing
            && redirect.slot != self.slot
        {
            // Of a module's command, of which the server knows another argument for the key.
            self.slot = redirect.slot;
            self.keys = KeySet::Unknown;
            self.places = None;
            self.line = None;
        }
        let known = |aim: Option<Aim>| Some(aim.map_or(Next::WhenKnown, Next::Go));
        match routing {
            Routing::Moved(redirect) => known(cluster.moved(node, redirect, sent)),
            Routing::Ask(redirect) => {
                cluster.note_ask(node, redirect);
                known(cluster.asked(node, redirect))
            }
            Routing::TryAgain => Some(Next::Later),
            Routing::Unblocked => {
                cluster.trigger(Trigger::Contradiction);
                Some(Next::WhenKnown)
            }
            routing => {
                if routing.triggers_discovery() {
                    cluster.trigger(Trigger::Contradiction);
                }
                match is_for_want_of_a_primary(routing) {
                    true => self.when_served(unknown),
                    false => None,
                }
            }
        }
    }

    /// Returns whether an error is in words that a script may have written.
    fn is_of_script(&self, error: &Error) -> bool {
        self.plan.errors == Errors::ProveNothing && error.certainty() != Certainty::Rejected
    }

    /// Believes the redirect of a script once the node that it names has run the script: only the
    /// owner of its keys does, so the words were not the script's own. A script without keys runs
    /// anywhere, and proves nothing.
    fn learn_where_it_was_served(&mut self, aim: &Aim, node: u16) {
        if matches!(aim, Aim::At { asking: true, .. }) {
            self.cluster.asked.note(self.slot, node, clock::now());
        }
        let Some((by, redirect, sent)) = self.pointed.take() else {
            return;
        };
        let Payload::Command(cmd) = self.payload else {
            return;
        };
        let has_keys = command::key_names(command::arguments(cmd)).next().is_some();
        if has_keys && matches!(aim, Aim::At { asking: false, .. }) {
            self.cluster.moved(&by, &redirect, sent);
        }
    }

    /// Returns what an error says about who serves, if nobody but the server can have said it. A
    /// script may write any words: it is believed a redirect, but none to the very node that it was
    /// asked of, and no second one in a row.
    fn routing(&self, node: &Node, error: &Error) -> Option<Routing> {
        let ErrorKind::Server(said) = error.kind() else {
            return None;
        };
        let (code, details) = (said.code(), said.details().unwrap_or_default());
        let routing = Routing::of(code, details)?;
        let names = |slot| routing.may_redirect_script(Some(slot));
        let proven = error.certainty() == Certainty::Rejected
            || match (self.plan.errors, self.payload) {
                (Errors::ProveNothing, Payload::Command(cmd)) => {
                    let keys = command::key_names(command::arguments(cmd));
                    let follows = !self.redirected && !self.cluster.leads_to(&routing, node);
                    names(self.slot) && follows
                        || is_try_again_for_script(code, details) && keys.count() > 1
                }
                // Which of its arguments are keys only the server knows.
                (Errors::OfNoKnownCommand, Payload::Command(cmd)) => {
                    let mut args = command::arguments(cmd).skip(1);
                    args.any(|arg| names(Slot::of_key(arg)))
                }
                _ => false,
            };
        proven.then_some(routing)
    }
}

pub(super) fn no_room() -> Error {
    Error::not_sent(ErrorKind::Overloaded {
        bound: Bound::InFlight,
        retry_after: Duration::from_millis(10),
    })
}

impl Cluster {
    /// Waits for the next answer of a node; false if the time is over before, or the client closes.
    pub(super) async fn more_is_known(&self, limits: &Limits<'_>) -> bool {
        let Some(_room) = self.order.room(limits.room) else {
            return false;
        };
        let mut version = self.version.subscribe();
        tokio::select! {
            biased;
            () = self.shared.closing() => false,
            changed = clock::timeout_at(limits.deadline, version.changed()) => changed.is_some(),
        }
    }

    /// Waits for that pause, and then until the owner of a slot is there, or another may be; false
    /// if the time is over before, or the client closes.
    pub(super) async fn somebody_serves(
        &self,
        slot: Slot,
        pause: Duration,
        (until, room): (Instant, Option<&CallRoom>),
    ) -> bool {
        let Some(_room) = self.order.room(room) else {
            return false;
        };
        if clock::now() + pause >= until {
            return false;
        }
        clock::sleep(pause).await;
        let mut version = self.version.subscribe();
        loop {
            let owner = self.routes.owner(slot).map(|number| self.node(number));
            let owner = owner.and_then(Result::ok).flatten();
            let mut changed = pin!(async {
                match &owner {
                    Some(node) => node.client.changed().await,
                    None => std::future::pending().await,
                }
            });
            // From now on no change is missed.
            let missed =
                poll_fn(|context| Poll::Ready(changed.as_mut().poll(context).is_ready())).await;
            if missed || owner.as_ref().is_some_and(|node| node.may_serve()) {
                return true;
            }
            let over = tokio::select! {
                biased;
                () = self.shared.closing() => true,
                () = changed => false,
                known = clock::timeout_at(until, version.changed()) => known.is_none(),
            };
            if over {
                return false;
            }
        }
    }

    /// The node that an attempt goes to. While nobody knows it, the call waits as for a connection:
    /// for as long as a short interruption may take, from its beginning.
    ///
    /// # Errors
    /// Nobody serves the slot; or the client's runtime, in which that would be found out, does not
    /// run.
    pub(super) async fn reach(
        &self,
        slot: Slot,
        aim: &Aim,
        limits: &Limits<'_>,
    ) -> Result<Arc<Node>, Error> {
        let find = || self.found(slot, aim);
        if let Some(node) = find()? {
            return Ok(node);
        }
        self.trigger(Trigger::Doubt);
        let roll = self.shared.call_roll()?;
        let until = self.waits_until(slot, aim, limits);
        let mut version = self.version.subscribe();
        loop {
            if let Some(node) = find()? {
                return Ok(node);
            }
            let now = clock::now();
            if now >= until {
                // It may be in a view that is just being taken in.
                drop(self.taking_in.lock());
                if let Some(node) = find()? {
                    return Ok(node);
                }
                let moment = limits.deadline.min(now + FOR_A_SIGN);
                return Err(match roll.answered_by(moment).await {
                    true => self.nobody_serves(slot),
                    false => Error::not_sent(UNATTENDED),
                });
            }
            let _room = self.order.room(limits.room).ok_or_else(no_room)?;
            tokio::select! {
                biased;
                () = self.shared.closing() => return Err(self.nobody_serves(slot)),
                _ = clock::timeout_at(until, version.changed()) => {}
            }
        }
    }

    /// The node that an attempt goes to, if it is known now.
    pub(super) fn found(&self, slot: Slot, aim: &Aim) -> Result<Option<Arc<Node>>, Error> {
        let number = match aim {
            Aim::Owner => self.routes.owner(slot),
            Aim::At { endpoint, .. } => self.find_at(endpoint),
        };
        number.map_or(Ok(None), |number| self.node(number))
    }

    /// Until when a call waits for a node that nobody knows.
    pub(super) fn waits_until(&self, slot: Slot, aim: &Aim, limits: &Limits<'_>) -> Instant {
        let settings = self.settings();
        let since = match aim {
            Aim::Owner => self.unserved_since(slot),
            // Nobody has heard of it before.
            Aim::At { .. } => clock::now(),
        };
        let until = since + settings.reconnect_grace;
        let until = until.max(limits.waits_until(settings));
        until.min(limits.deadline)
    }

    /// Since when no node is known that serves a slot.
    fn unserved_since(&self, slot: Slot) -> Instant {
        let known = self.known.lock();
        let owned = known.topology.owned_since(slot);
        owned.or(known.first_heard).unwrap_or(self.started)
    }

    pub(super) fn nobody_serves(&self, slot: Slot) -> Error {
        let now = clock::now();
        if self.shared.is_closing() {
            return Error::not_sent(ErrorKind::Closed);
        }
        let (cause, down_for) = {
            let known = self.known.lock();
            let cause = match (&known.error, known.heard) {
                (Some(error), _) => format!("no node of the cluster answers: {error}"),
                (None, None) => "no node of the cluster has answered yet".into(),
                (None, Some(_)) => format!("no node is known that serves slot {slot}"),
            };
            let since = known.heard.unwrap_or(self.started);
            (cause, now.saturating_duration_since(since))
        };
        let due = self.gate.lock().poll_timeout();
        let retry_after = due.map_or(Duration::from_millis(100), |at| {
            at.saturating_duration_since(now)
        });
        Error::not_sent(ErrorKind::Down {
            down_for,
            retry_after,
            cause: cause.into(),
        })
    }
}
