//! Nothing moves, and nothing is lost.

use super::stage::{Admits, Item, Out, Stage};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Nothing is read from the sender nor written to the receiver, until the fault is removed; then
/// all goes on. In one direction a stall, in both what a network does that is cut and mended before
/// anybody gave up. A sender's socket fills up after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stall {}

impl Stall {
    pub(super) fn stage(self) -> impl Stage {
        self
    }
}

impl Stage for Stall {
    fn pass(&mut self, item: Item, at: Instant, out: &mut Out) {
        out.push((at, item));
    }

    fn admits(&self, _now: Instant) -> Admits {
        Admits::Nothing
    }
}
