//! The parts of a pipeline that go their own ways, because each waits for its slot.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use steadfast_core::slot::Slot;
use steadfast_core::split::pipeline::SplitPipeline;

use super::round::slot_led_to;
use super::{Turns, Voyage};
use crate::error::Error;

/// The way of a pipeline, or of a part of it, until it has ended or parts.
pub(super) enum Course<'a> {
    Ended(SplitPipeline<'a, Error>),
    /// What waits goes apart from what does not, each of its slots by itself.
    Parts(Vec<Voyage<'a>>),
}

impl<'a> Voyage<'a> {
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
