//! The journey of a call from node to node, until one of them has served it.

mod attempt;
mod way;

use std::sync::Arc;
use std::time::Instant;

use steadfast_core::command::Effect;
use steadfast_core::conn::Reply;
use steadfast_core::node::NodeId;
use steadfast_core::redirect::{Redirect, Routing};
use steadfast_core::slot::{KeySet, Slot};

use self::attempt::Attempted;
use super::limits::Limits;
use super::node::Node;
use super::order::{InLine, Places};
use super::{Aim, Cluster};
use crate::call::Suspicion;
use crate::call::plan::{OwnPayload, Payload, Plan};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::options::CallOptions;

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

    fn has_run(&mut self) {
        if let Some(places) = &mut self.places {
            places.ran();
        }
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
}
