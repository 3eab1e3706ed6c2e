//! The parts of a pipeline that go their own ways, because each waits for its slot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use steadfast_core::slot::Slot;
use steadfast_core::split::pipeline::SplitPipeline;

use super::round::{keys_of, slot_led_to};
use super::{PipelineRun, Turns};
use crate::client::cluster::Aim;
use crate::client::cluster::order::{Entry, NOBODY, Places};
use crate::clock;
use crate::error::Error;

/// The way of a pipeline, or of a part of it, until it has ended or parts.
pub(super) enum Course<'a> {
    Ended(SplitPipeline<'a, Error>),
    /// What waits goes apart from what does not, each of its slots by itself.
    Parts(Vec<PipelineRun<'a>>),
}

impl<'a> PipelineRun<'a> {
    /// Takes its place among the calls that wait for somebody to serve their slots, if nobody is
    /// known who does: they are sent in the order in which they came. Where that is so of some of
    /// its slots only, returns what belongs to those, a part of each: the rest does not wait.
    pub(super) fn line_up(&mut self) -> Vec<Self> {
        if self.find_unknown() {
            return Vec::new();
        }
        let cluster = self.cluster;
        let unowned: BTreeSet<Slot> = {
            // Half of a view would send those that wait for the other half in any order.
            let _whole = cluster.taking_in.lock();
            let slots = self.split.slots().chain([self.any]);
            let unowned = slots.filter(|slot| cluster.routes.owner(*slot).is_none());
            let unowned = unowned.collect();
            self.places = self.stand_in_line(&unowned);
            unowned
        };
        // A view may have come before that.
        self.find_unknown();
        let is_unowned = |slot: &Slot| unowned.contains(slot);
        let Some(any) = self.split.slots().find(|slot| !is_unowned(slot)) else {
            // A first view is waited for once, and not by each slot.
            return Vec::new();
        };
        self.any = any;
        self.unknown.retain(|slot| !is_unowned(slot));
        let slots: Vec<Slot> = unowned.into_iter().collect();
        let mut parts = self.part_with(&slots).unwrap_or_default();
        for (part, slot) in parts.iter_mut().zip(slots) {
            part.any = slot;
            part.unknown.insert(slot);
        }
        // All that it has are in the parts.
        self.places = None;
        parts
    }

    /// Finds the slots for which there is no node yet; true if there are none.
    fn find_unknown(&mut self) -> bool {
        let slots = self.split.slots().chain([self.any]);
        self.unknown = slots.filter(|slot| !self.is_known(*slot)).collect();
        self.unknown.is_empty()
    }

    fn is_known(&self, slot: Slot) -> bool {
        matches!(self.cluster.found(slot, &Aim::Owner), Ok(Some(_)))
    }

    /// Takes places in the order of these slots, if there is time to wait for their owners.
    fn stand_in_line(&self, slots: &BTreeSet<Slot>) -> Option<Places<'a>> {
        let (cluster, limits) = (self.cluster, &self.limits);
        let untils = slots
            .iter()
            .map(|slot| cluster.waits_until(*slot, &Aim::Owner, limits));
        untils.max().filter(|until| clock::now() < *until)?;
        let keys = keys_of(self.split.waiting(), self.any).into_iter();
        let keys = keys.filter(|(slot, _)| slots.contains(slot));
        let entries = keys.map(|(slot, keys)| Entry {
            slot,
            keys,
            node: NOBODY,
            until: limits.deadline,
        });
        Some(cluster.order.stand_in_line(entries.collect()))
    }

    /// Waits for the nodes of which nobody knew when it came. If none of all comes, it ends.
    pub(super) async fn wait_for_the_unknown(&mut self) {
        let unknown = std::mem::take(&mut self.unknown);
        if self.places.is_some() {
            let first = self
                .cluster
                .reach(self.any, &Aim::Owner, &self.limits)
                .await;
            if let Err(error) = first
                && self.knows_none()
            {
                return self.end_all(&error);
            }
        }
        // Nobody waits for a node twice, nor for one after another.
        let unknown = unknown.iter().filter(|slot| !self.is_known(**slot));
        let reached = unknown.map(|slot| self.cluster.reach(*slot, &Aim::Owner, &self.limits));
        let last = join_all(reached).await.pop();
        if let Some(Err(error)) = last
            && self.knows_none()
        {
            self.end_all(&error);
        }
    }

    fn knows_none(&self) -> bool {
        let mut slots = self.split.slots().chain([self.any]);
        !slots.any(|slot| self.is_known(slot))
    }

    /// Runs the parts of a pipeline until all have ended, and joins them.
    pub(super) async fn run_apart(
        mut whole: SplitPipeline<'a, Error>,
        parts: Vec<Self>,
    ) -> SplitPipeline<'a, Error> {
        let mut under_way: FuturesUnordered<_> = parts.into_iter().map(Self::run).collect();
        let mut ended = Vec::new();
        while let Some(course) = under_way.next().await {
            match course {
                Course::Ended(part) => ended.push(part),
                Course::Parts(parts) => under_way.extend(parts.into_iter().map(Self::run)),
            }
        }
        whole.join(ended);
        whole
    }

    /// Takes out what waits for these slots, in a part for each: its other commands, and those of
    /// others, do not wait with it. `None` if as many calls wait as may.
    pub(super) fn part_with(&mut self, slots: &[Slot]) -> Option<Vec<Self>> {
        let mut lines = match &mut self.line {
            Some(line) => line.divide(slots)?,
            None => BTreeMap::new(),
        };
        // What waits for others is that, and not this.
        self.line.take_if(|line| line.is_empty());
        self.plan.places.get_or_insert_with(Arc::default);
        let slots = || slots.iter().copied();
        let mut places = self.places.as_mut().map(|places| places.divide(slots()));
        let parts = self.split.divide(slots()).into_iter();
        let parts = parts.map(|(slot, split)| Self {
            plan: self.plan.clone(),
            turns: self.turns_of(&split),
            abandoned: only(&self.abandoned, slot),
            suspicions: only(&self.suspicions, slot),
            places: places.as_mut().and_then(|places| places.remove(&slot)),
            line: lines.remove(&slot),
            unknown: BTreeSet::new(),
            split,
            ..*self
        });
        Some(parts.collect())
    }

    /// Returns where redirects lead to of these commands.
    fn turns_of(&self, split: &SplitPipeline<'_, Error>) -> Turns {
        let slots = split.waiting().map(|target| slot_led_to(target, self.any));
        let turns = slots.filter_map(|slot| self.turns.get_key_value(&slot));
        turns.map(|(slot, node)| (*slot, *node)).collect()
    }
}

/// Returns what is known of one slot.
fn only<T: Clone>(by_slot: &BTreeMap<Slot, T>, slot: Slot) -> BTreeMap<Slot, T> {
    let known = by_slot.get(&slot).cloned();
    known.map(|known| (slot, known)).into_iter().collect()
}
