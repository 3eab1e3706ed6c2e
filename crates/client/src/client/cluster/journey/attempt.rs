//! One attempt of a call: at the node that it goes to, when it has its turn.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use smallvec::SmallVec;
use steadfast_core::conn::Reply;

use super::{Begun, Journey};
use crate::call::plan::{OwnPayload, Plan};
use crate::client::cluster::Aim;
use crate::client::cluster::node::Node;
use crate::client::cluster::order::{Again, Entered, Entry, NOBODY};
use crate::client::cluster::reach::no_room;
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};

/// The result of an attempt.
pub(super) enum Attempted {
    /// Its end, and whether an earlier try at the same node may have run.
    Ended(Result<Reply, Error>, bool),
    /// Its slot changes hands, or has: nothing was sent.
    Elsewhere,
    /// Its ASK is too old to be followed: nothing was sent.
    Outdated,
    /// The call may not be sent again.
    Never(Error),
}

impl<'a> Journey<'a> {
    /// Goes on after an attempt that was made together with others.
    pub(super) fn take_up(&mut self, begun: Begun<'a>) -> (Arc<Node>, Instant, Attempted) {
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
    pub(super) async fn go_to(
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
}
