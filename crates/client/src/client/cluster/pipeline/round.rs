//! The commands of a pipeline that are sent at once, and the nodes that they go to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use futures_util::future::join_all;
use smallvec::SmallVec;
use steadfast_core::redirect::Routing;
use steadfast_core::slot::{KeySet, Slot};
use steadfast_core::split::pipeline::{SplitPipeline, Target};

use super::{Aims, PipelinePart, PipelineRun, Turns};
use crate::client::cluster::order::{Entry, NOBODY};
use crate::client::cluster::{Aim, Cluster};
use crate::error::Error;

/// The parts that are sent at once.
pub(super) struct Round {
    pub(super) parts: Vec<PipelinePart>,
    /// The slots of its commands, and the nodes that they go to, with their keys. Reads that
    /// were answered TRYAGAIN take no turn, wherever they go.
    pub(super) goes: Vec<((Slot, u16), KeySet)>,
    /// The slots that go where a redirect leads, and not to their owners.
    pub(super) strays: BTreeSet<Slot>,
    /// Whether some are held back.
    pub(super) holds: bool,
    /// The slots that go where an ASK leads.
    pub(super) asks: BTreeSet<(Slot, u16)>,
    /// By part: the slots that are served when it is, for nothing of them is in another one. Of
    /// those that go where an ASK leads there are none, nor any if there is one part only.
    pub(super) in_one: Vec<Vec<Slot>>,
}

impl Round {
    /// Returns its parts in the order of its slots.
    pub(super) fn entries(&self, until: Instant) -> SmallVec<[Entry; 1]> {
        let entry = |((slot, node), keys): &((Slot, u16), KeySet)| Entry {
            slot: *slot,
            keys: keys.clone(),
            node: *node,
            until,
        };
        self.goes.iter().map(entry).collect()
    }
}

impl<'a> PipelineRun<'a> {
    /// Divides what is to be sent by the nodes that it goes to now.
    pub(super) fn next_round(&mut self) -> Round {
        self.end_where_abandoned();
        self.leave_what_is_over();
        let (cluster, turns, any) = (self.cluster, &self.turns, self.any);
        let parts = self
            .split
            .to_send(|target| cluster.node_of(target, any, turns));
        let mut goes = Vec::new();
        let (mut strays, mut asks) = (BTreeSet::new(), BTreeSet::new());
        for part in &parts {
            let units = part.units().iter();
            for target in units.filter_map(|unit| self.split.target(*unit)) {
                let Some(slot) = target.slot else {
                    continue;
                };
                if !target.aside {
                    goes.push(((slot, part.node.unwrap_or(NOBODY)), target.keys.clone()));
                }
                if part.node != cluster.routes.owner(slot) {
                    strays.insert(slot);
                }
                if matches!(target.redirect, Some(Routing::Ask(_))) {
                    asks.insert((slot, part.node.unwrap_or(NOBODY)));
                }
            }
        }
        let held = self.split.waiting().filter_map(|target| target.slot);
        let held: BTreeSet<Slot> = held.collect();
        if let Some(places) = &mut self.places {
            // Reads that wait for a migration hold up nobody; what waits for them does.
            let takes_turns: BTreeSet<Slot> = goes.iter().map(|((slot, _), _)| *slot).collect();
            let takes_part = |slot: &Slot| takes_turns.contains(slot) || held.contains(slot);
            places.stand_aside(|slot| !takes_part(&slot));
            held.difference(&takes_turns)
                .for_each(|slot| places.hold(*slot));
        }
        goes.sort_by_key(|(goes, _)| *goes);
        let of_one = goes.chunk_by(|(one, _), (other, _)| one == other);
        let all = of_one.map(|of_one| {
            let keys = of_one.iter().map(|(_, keys)| keys);
            (of_one[0].0, KeySet::all(keys))
        });
        Round {
            goes: all.collect(),
            in_one: slots_in_one(&parts, &self.split),
            parts,
            strays,
            holds: !held.is_empty(),
            asks,
        }
    }

    /// Leaves the order of what is answered, or has ended otherwise: it holds up nobody.
    pub(super) fn leave_what_is_over(&mut self) {
        let Some(places) = &mut self.places else {
            return;
        };
        let waits = self.split.waiting().filter(|target| !target.aside);
        let (waiting, ran) = (
            keys_of(waits, self.any),
            keys_of(self.split.ran(), self.any),
        );
        let ran = |slot: Slot| ran.get(&slot).cloned().unwrap_or(KeySet::Empty);
        places.leave_all_but(|slot| waiting.get(&slot).cloned(), ran);
    }

    /// Finds the nodes to which redirects lead, and those of slots whose node was left; for those
    /// that nobody knows yet it waits, as a single command does.
    pub(super) async fn find(&mut self, aims: Aims) {
        let (cluster, limits) = (self.cluster, self.limits);
        let find = |(slot, aim): (Slot, Option<Aim>)| async move {
            let aim = match aim {
                Some(aim) => aim,
                None => {
                    cluster.more_is_known(&limits).await;
                    Aim::Owner
                }
            };
            let reached = cluster.reach(slot, &aim, &limits).await;
            // What goes to its owner is looked up once more when it is sent.
            let stray = matches!(aim, Aim::At { .. });
            stray.then(|| (slot, reached.map_or(NOBODY, |node| node.number)))
        };
        let found = join_all(aims.into_iter().map(find)).await;
        self.turns = found.into_iter().flatten().collect();
    }
}

impl Cluster {
    /// The node that a command goes to now. `None` if nobody knows it.
    pub(super) fn node_of(&self, target: Target<'_>, any: Slot, turns: &Turns) -> Option<u16> {
        let slot = slot_led_to(target, any);
        // What waits for a migration waits at the owner.
        let follows = !matches!(target.redirect, None | Some(Routing::TryAgain));
        match turns.get(&slot).filter(|_| follows) {
            Some(&NOBODY) => None,
            Some(turn) => Some(*turn),
            None => self.routes.owner(slot),
        }
    }
}

/// Returns by part the slots of which all is in it. One node may have several parts, and a slot of
/// it commands in two: ASKING stands between them.
pub(super) fn slots_in_one(
    parts: &[PipelinePart],
    split: &SplitPipeline<'_, Error>,
) -> Vec<Vec<Slot>> {
    if parts.len() < 2 {
        return Vec::new();
    }
    let mut all: Vec<(Slot, usize)> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let targets = part.units().iter().filter_map(|unit| split.target(*unit));
        let slots = targets.filter(|target| !target.aside);
        let slots = slots.filter_map(|target| target.slot);
        all.extend(slots.map(|slot| (slot, at)));
    }
    all.sort_unstable();
    all.dedup();
    let mut in_one = vec![Vec::new(); parts.len()];
    for of_slot in all.chunk_by(|(one, _), (other, _)| one == other) {
        if let [(slot, at)] = of_slot
            && !parts[*at].asking
        {
            in_one[*at].push(*slot);
        }
    }
    in_one
}

/// Returns the slot by which a command goes; what has none is in `any`.
pub(super) fn slot_led_to(target: Target<'_>, any: Slot) -> Slot {
    match target.redirect {
        // Of a module's command the server may know another key than we do.
        Some(Routing::Moved(redirect) | Routing::Ask(redirect)) => redirect.slot,
        _ => target.slot.unwrap_or(any),
    }
}

/// Returns the keys of commands, by slot; what has none is in `any`.
pub(super) fn keys_of<'t>(
    targets: impl Iterator<Item = Target<'t>>,
    any: Slot,
) -> BTreeMap<Slot, KeySet> {
    let mut by_slot = BTreeMap::<Slot, Vec<&KeySet>>::new();
    for target in targets {
        let of_slot = by_slot.entry(target.slot.unwrap_or(any)).or_default();
        of_slot.push(target.keys);
    }
    let all = by_slot.into_iter();
    all.map(|(slot, keys)| (slot, KeySet::all(keys))).collect()
}
