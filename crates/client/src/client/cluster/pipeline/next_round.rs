//! The way on of a pipeline after a round: what goes to another node, what waits for a primary, and
//! what ends.

use std::collections::BTreeSet;
use std::pin::pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{ServerError, Value};
use steadfast_core::command::Effect;
use steadfast_core::redirect::{MAX_HOPS, Routing};
use steadfast_core::slot::Slot;
use steadfast_core::split::Failed;
use steadfast_core::topology::Trigger;

use super::round::Round;
use super::{Aims, PipelineRun};
use crate::client::cluster::Aim;
use crate::client::cluster::node::may_go_on;
use crate::client::cluster::reach::{is_for_want_of_a_primary, no_room, pause_before_trying_again};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};

/// The way on after a round.
#[derive(Default)]
pub(super) struct NextRound {
    /// Where redirects lead to, and those whose node was left.
    pub(super) aims: Aims,
    /// Whether something is tried again after a pause.
    pub(super) pauses: bool,
    /// Whether something goes on at another node because its own was left.
    pub(super) elsewhere: bool,
    /// The slots that wait for a primary.
    pub(super) unserved: BTreeSet<Slot>,
}

impl PipelineRun<'_> {
    /// Takes in that commands were not answered by a node.
    pub(super) fn take_in_failure(
        &mut self,
        node: Option<u16>,
        units: &[usize],
        failed: Failed<Error>,
        round: &Round,
        next: &mut NextRound,
    ) {
        self.cluster.doubt_after(&failed.error);
        if let ErrorKind::Server(said) = failed.error.kind()
            && is_refused_for_want_of_a_primary(said)
        {
            self.cluster.trigger(Trigger::Contradiction);
        }
        let (mut stay, mut left) = (Vec::new(), BTreeSet::new());
        for unit in units {
            let slot = self.slot_of(*unit);
            // It would end the connections to one node after another.
            let is_poison = self
                .suspicions
                .get(&slot)
                .is_some_and(|one| one.blamed_again);
            if is_poison {
                stay.push(*unit);
            } else if self.leaves(node, slot, &failed, round) {
                next.aims.entry(slot).or_insert(Some(Aim::Owner));
                left.insert(slot);
            } else if self.waits(node, slot, &failed) {
                next.unserved.insert(slot);
            } else {
                stay.push(*unit);
            }
        }
        next.elsewhere |= !left.is_empty();
        self.note_abandoned(node, left, &failed);
        self.split.record(units, Vec::new(), Some(failed));
        self.split.end_here(&stay);
    }

    /// Whether what failed so at this node goes on at another one.
    fn leaves(&self, node: Option<u16>, slot: Slot, failed: &Failed<Error>, round: &Round) -> bool {
        // If nobody is known who serves its slot, that has been waited for.
        let Some(node) = node else {
            return false;
        };
        let routes = &self.cluster.routes;
        let owner = routes.owner(slot);
        let has_left = routes.node(node).is_none() || owner != Some(node);
        // Where a redirect led to, the next one will lead again; and one that is back is the same
        // server. There a write that was given up could run after its repeat.
        let succeeded = owner != Some(node) && !round.strays.contains(&slot);
        let effect = self.plan.effect;
        let safe = failed.certainty != Certainty::Unknown || succeeded || effect == Effect::Read;
        self.hops < MAX_HOPS && has_left && safe && may_go_on(&failed.error, effect)
    }

    /// Whether what failed so waits for a primary, as long as the caller lets it.
    fn waits(&self, node: Option<u16>, slot: Slot, failed: &Failed<Error>) -> bool {
        let is_owner = node.is_some() && self.cluster.routes.owner(slot) == node;
        let has_not_run = failed.certainty != Certainty::Unknown;
        let by_nobody = is_served_by_nobody(&failed.error, self.plan.effect);
        self.may_wait() && is_owner && has_not_run && by_nobody
    }

    /// Whether commands of it may still wait for a primary.
    fn may_wait(&self) -> bool {
        let cluster = self.cluster;
        let until = self.limits.waits_until(cluster.settings());
        !self.has_waited && !cluster.shared.is_closing() && clock::now() < until
    }

    /// Returns the commands that were answered by a server which is no primary now, or not yet, if
    /// they may wait for one.
    pub(super) fn refused_for_want_of_a_primary(
        &self,
        units: &[usize],
        values: &[Value],
        before: bool,
    ) -> Vec<usize> {
        if before || !self.may_wait() {
            return Vec::new();
        }
        let answered = units.iter().zip(values);
        let refused = answered.filter(|(_, value)| match value {
            Value::ServerError(error) => is_refused_for_want_of_a_primary(error),
            _ => false,
        });
        refused.map(|(unit, _)| *unit).collect()
    }

    /// Waits as long as the slowest of what is sent again has to.
    ///
    /// # Errors
    /// There is no time or room for it.
    pub(super) async fn wait_before(&mut self, next: &NextRound) -> Result<(), Error> {
        let (cluster, limits) = (self.cluster, self.limits);
        if clock::now() >= limits.deadline {
            return Err(limits.timed_out(Certainty::NotSent));
        }
        let until = limits.waits_until(cluster.settings());
        let until = until.min(limits.deadline);
        if let Some(places) = &self.places {
            // Before the wait, or whoever comes meanwhile would go ahead of it.
            for slot in &next.unserved {
                places.hold(*slot);
            }
        }
        if next.pauses {
            let pause = pause_before_trying_again(self.pauses);
            self.pauses += 1;
            if clock::now() + pause >= limits.deadline {
                return Err(limits.timed_out(Certainty::NotSent));
            }
            let room = cluster.order.room(limits.room);
            let _room = room.ok_or_else(no_room)?;
            clock::sleep(pause).await;
        } else if !next.unserved.is_empty() && next.aims.is_empty() {
            let pause = pause_before_trying_again(self.waits);
            self.waits += 1;
            // One of each owner: they are back together.
            let mut owners = BTreeSet::new();
            let slots = next.unserved.iter();
            let slots = slots.filter(|slot| owners.insert(cluster.routes.owner(**slot)));
            let serves =
                slots.map(|slot| cluster.somebody_serves(*slot, pause, (until, limits.room)));
            let serves: FuturesUnordered<_> = serves.collect();
            let mut served = pin!(serves.filter(|served| std::future::ready(*served)));
            // If nobody comes in time, the last refusal tells why.
            self.has_waited = served.next().await.is_none();
        }
        Ok(())
    }

    /// Notes that commands of these slots were given up at a node, where they may still run.
    fn note_abandoned(&mut self, node: Option<u16>, slots: BTreeSet<Slot>, failed: &Failed<Error>) {
        let may_run = failed.certainty == Certainty::Unknown && self.plan.effect != Effect::Read;
        if !may_run || self.cluster.settings().repeat_without_fence {
            return;
        }
        let place = node.and_then(|node| self.cluster.routes.place(node));
        let member = place.as_ref().and_then(|place| place.member.as_ref());
        let Some(id) = member.map(|member| member.id.clone()) else {
            return;
        };
        for slot in slots {
            let abandoned = self.abandoned.entry(slot).or_default();
            abandoned.push((id.clone(), failed.clone()));
        }
    }

    /// Ends what would go back to a node at which an attempt was given up: that one could run after
    /// it.
    pub(super) fn end_where_abandoned(&mut self) {
        let (cluster, turns, any) = (self.cluster, &self.turns, self.any);
        let abandoned = &self.abandoned;
        if abandoned.is_empty() {
            return;
        }
        self.split.end(|target| {
            let at = abandoned.get(&target.slot.unwrap_or(any))?;
            let place = cluster.routes.place(cluster.node_of(target, any, turns)?)?;
            let id = &place.member.as_ref()?.id;
            let (_, failed) = at.iter().find(|(node, _)| node == id)?;
            Some(Failed {
                error: failed.error.clone(),
                certainty: Certainty::NotSent,
            })
        });
    }
}

/// Whether what failed so may wait for a primary, or go on at another node.
pub(super) fn is_served_by_nobody(error: &Error, effect: Effect) -> bool {
    match error.kind() {
        // Of a pipeline that was refused as a whole.
        ErrorKind::Server(said) => is_refused_for_want_of_a_primary(said),
        _ => may_go_on(error, effect),
    }
}

fn is_refused_for_want_of_a_primary(error: &ServerError) -> bool {
    let details = error.details().unwrap_or_default();
    let routing = Routing::of(error.code(), details);
    routing.as_ref().is_some_and(is_for_want_of_a_primary)
}
