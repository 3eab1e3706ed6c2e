//! The journey of a call from node to node, until one of them has served it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use steadfast_core::command::{Effect, Errors};
use steadfast_core::conn::Reply;
use steadfast_core::policy::Deadline;
use steadfast_core::redirect::{MAX_HOPS, Routing};
use steadfast_core::slot::Slot;
use steadfast_core::topology::Trigger;

use super::node::{Node, may_go_on};
use super::order::{Again, Entered, Entry, Places};
use super::{Aim, Cluster};
use crate::call::plan::{OwnPayload, Payload, Plan};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::options::CallOptions;

/// The pause before a command is sent again that was answered TRYAGAIN, and what it grows to.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// The limits of a call.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) started: Instant,
    pub(super) limit: Duration,
    pub(super) deadline: Instant,
}

impl Limits {
    pub(super) fn new(limit: Duration) -> Self {
        let started = clock::now();
        Self {
            started,
            limit,
            deadline: Deadline::after(started, limit).instant(),
        }
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

/// How a call goes on.
enum Next {
    /// At another node, or the same.
    Go(Aim),
    /// When more is known of who serves.
    WhenKnown,
    /// After a pause, where its keys are together again.
    Later,
}

impl Cluster {
    /// A command, transaction or script whose keys have one slot.
    pub(super) async fn follow(
        &self,
        (slot, key): (Slot, Option<u64>),
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let limits = Limits::new(plan.limit(options, self.settings().deadline)?);
        let result = self
            .serve((slot, key), payload, plan, options, &limits)
            .await;
        result.map_err(|error| match error.kind() {
            ErrorKind::Timeout { .. } => {
                let certainty = error.certainty();
                let at = error.at().map(Arc::from);
                let error = limits.timed_out(certainty);
                at.into_iter().fold(error, Error::named)
            }
            _ => error,
        })
    }

    async fn serve(
        &self,
        (slot, key): (Slot, Option<u64>),
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
        limits: &Limits,
    ) -> Result<Reply, Error> {
        let mut node = self.reach(slot, &Aim::Owner, limits.deadline).await?;
        // What has a connection of its own has no order with others.
        let apart = plan.blocking.is_some() || options.acknowledged_by.is_some();
        let blocking = plan.blocking.is_some();
        let mut places: Option<Places<'_>> = None;
        let (mut hops, mut pauses, mut asking) = (0, 0, false);
        let mut unknown = false;
        let mut rest: Option<OwnPayload> = None;
        let mut in_turn = false;
        loop {
            let sent = clock::now();
            let plan = Plan {
                asking,
                ..plan.clone()
            };
            let errors = plan.errors;
            // A repeat would look at what the first run has written.
            let effect = match plan.effect {
                Effect::LastWins if plan.several && payload.looks_before_it_writes() => {
                    Effect::Conditional
                }
                effect => effect,
            };
            let number = node.number;
            let result = {
                let payload = rest.as_ref().map_or(payload, OwnPayload::payload);
                let times = limits.of_attempt(hops + pauses);
                let mut attempt = pin!(node.attempt(payload, plan, options, times));
                let polled = match &mut places {
                    None if apart => Some(Poll::Pending),
                    None => {
                        let entry = Entry {
                            slot,
                            key,
                            node: number,
                        };
                        let times = (sent, limits.deadline);
                        let entries = SmallVec::from_buf([entry]);
                        match self.order.enter(entries, times, attempt.as_mut()).await {
                            Entered::Sent(entered, polled) => {
                                places = Some(entered);
                                Some(polled)
                            }
                            Entered::Waited if clock::now() >= limits.deadline => {
                                return Err(limits.timed_out(Certainty::NotSent));
                            }
                            Entered::Waited => None,
                        }
                    }
                    Some(_) if !in_turn => Some(Poll::Pending),
                    Some(places) => {
                        let goes = [(slot, number)];
                        let again = places.again(&goes, limits.deadline, attempt.as_mut());
                        match again.await {
                            Again::Sent(polled) => Some(polled),
                            Again::Overtaken => {
                                let error = Error::new(ErrorKind::Overtaken, Certainty::Rejected);
                                return Err(error.at_best(unknown));
                            }
                            Again::TimedOut => {
                                return Err(limits.timed_out(Certainty::Rejected).at_best(unknown));
                            }
                        }
                    }
                };
                match polled {
                    Some(Poll::Ready(result)) => Some(result),
                    Some(Poll::Pending) => Some(attempt.await),
                    None => None,
                }
            };
            let Some(result) = result else {
                // It has waited for its slot to change hands.
                node = self.reach(slot, &Aim::Owner, limits.deadline).await?;
                continue;
            };
            let next = match &result {
                Ok(_) => None,
                Err(error) => self.next(&node, slot, errors, effect, error, sent),
            };
            let (Some(next), true) = (next, hops < MAX_HOPS + 1) else {
                if let Some(places) = &mut places
                    && result.as_ref().map_or_else(ran, |_| true)
                {
                    places.ran();
                }
                return result.map_err(|error| node.blame(error).at_best(unknown));
            };
            let error = match result {
                Ok(_) => return result,
                Err(error) => error,
            };
            let error = match is_redirect(&error, errors, slot) {
                true => error.proven_rejected(),
                false => error,
            };
            unknown |= error.certainty() == Certainty::Unknown;
            let read = effect == Effect::Read;
            let aim = match next {
                Next::Go(aim) => {
                    hops += 1;
                    aim
                }
                Next::WhenKnown => {
                    hops += 1;
                    if !self.more_is_known(limits.deadline).await {
                        return Err(node.blame(error).at_best(unknown));
                    }
                    Aim::Owner
                }
                Next::Later => {
                    let pause = (TRY_AGAIN.0 * 2u32.pow(pauses.min(6))).min(TRY_AGAIN.1);
                    pauses += 1;
                    if clock::now() + pause >= limits.deadline {
                        return Err(node.blame(error).at_best(unknown));
                    }
                    self.order_closes(slot, read);
                    clock::sleep(pause).await;
                    Aim::Owner
                }
            };
            self.redirects.fetch_add(1, Ordering::Relaxed);
            // Of reads of several keys that wait for a migration, nobody waits for their turn.
            in_turn = !(read && pauses > 0);
            if in_turn {
                self.order.close(slot, clock::now());
            }
            asking = matches!(aim, Aim::At { asking: true, .. });
            node = match self.reach(slot, &aim, limits.deadline).await {
                Ok(node) => node,
                Err(_) => return Err(error.at_best(unknown)),
            };
            if blocking {
                let passed = clock::now().saturating_duration_since(limits.started);
                rest = payload.with_time_left(passed);
            }
        }
    }

    fn order_closes(&self, slot: Slot, read: bool) {
        if !read {
            self.order.close(slot, clock::now());
        }
    }

    /// How a call goes on that ended so; `None` if that is its end.
    fn next(
        &self,
        node: &Node,
        slot: Slot,
        errors: Errors,
        effect: Effect,
        error: &Error,
        sent: Instant,
    ) -> Option<Next> {
        if let Some(routing) = routing(error, errors, slot) {
            return self.next_by(node, &routing, sent);
        }
        if matches!(
            error.kind(),
            ErrorKind::Lost { .. } | ErrorKind::Down { .. } | ErrorKind::Timeout { .. }
        ) {
            self.trigger(Trigger::Doubt);
        }
        let elsewhere = node.is_retired() || self.routes.owner(slot) != Some(node.number);
        if may_go_on(error, effect) {
            if elsewhere {
                return Some(Next::Go(Aim::Owner));
            }
            let waits = self.settings().wait_for_primary;
            let passed = clock::now().saturating_duration_since(sent);
            if passed < waits && error.certainty() != Certainty::Unknown {
                return Some(Next::WhenKnown);
            }
        }
        None
    }

    fn next_by(&self, node: &Node, routing: &Routing, sent: Instant) -> Option<Next> {
        match routing {
            Routing::Moved(redirect) => Some(
                self.moved(node, redirect, sent)
                    .map_or(Next::WhenKnown, Next::Go),
            ),
            Routing::Ask(redirect) => {
                Some(self.asked(node, redirect).map_or(Next::WhenKnown, Next::Go))
            }
            Routing::TryAgain => Some(Next::Later),
            Routing::Unblocked => {
                self.trigger(Trigger::Contradiction);
                Some(Next::WhenKnown)
            }
            routing => {
                if routing.triggers_discovery() {
                    self.trigger(Trigger::Contradiction);
                }
                None
            }
        }
    }

    /// Waits for the next answer of a node; false if the deadline comes first.
    pub(super) async fn more_is_known(&self, deadline: Instant) -> bool {
        let mut version = self.version.subscribe();
        let changed = version.changed();
        clock::timeout_at(deadline, changed).await.is_some()
    }

    /// The node that an attempt goes to. While nobody knows it, the call waits as for a connection:
    /// for as long as a short interruption may take.
    pub(super) async fn reach(
        &self,
        slot: Slot,
        aim: &Aim,
        deadline: Instant,
    ) -> Result<Arc<Node>, Error> {
        let find = || -> Result<Option<Arc<Node>>, Error> {
            let number = match aim {
                Aim::Owner => self.routes.owner(slot),
                Aim::At { endpoint, .. } => self.find_at(endpoint),
            };
            number.map_or(Ok(None), |number| self.node(number))
        };
        if let Some(node) = find()? {
            return Ok(node);
        }
        let mut version = self.version.subscribe();
        self.trigger(Trigger::Doubt);
        let wait = self
            .settings()
            .reconnect_grace
            .max(self.settings().wait_for_primary);
        let since = match self.known.lock().heard {
            None => self.started,
            Some(_) => clock::now(),
        };
        let until = (since + wait).min(deadline);
        loop {
            if let Some(node) = find()? {
                return Ok(node);
            }
            if clock::timeout_at(until, version.changed()).await.is_none() {
                return Err(self.nobody_serves(slot));
            }
        }
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

/// Returns where an error says the slot is served, if nobody but the server can have said it.
fn routing(error: &Error, errors: Errors, slot: Slot) -> Option<Routing> {
    let ErrorKind::Server(said) = error.kind() else {
        return None;
    };
    let routing = Routing::of(said.code(), said.details().unwrap_or_default())?;
    let proven = error.certainty() == Certainty::Rejected
        || matches!(errors, Errors::ProveNothing | Errors::OfNoKnownCommand)
            && routing.may_redirect_script(Some(slot));
    proven.then_some(routing)
}

fn is_redirect(error: &Error, errors: Errors, slot: Slot) -> bool {
    routing(error, errors, slot).is_some_and(|routing| routing.follows())
}

fn ran(error: &Error) -> bool {
    error.certainty() == Certainty::Unknown || matches!(error.kind(), ErrorKind::Server(_))
}
