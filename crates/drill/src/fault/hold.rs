//! Bytes that arrive long after their sender is gone.

use super::stage::{Admits, Item, Out, Stage};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Takes all that is sent and keeps it until the fault is removed, even when the sender has closed
/// or reset its connection meanwhile: then it still reaches the receiver, late, as bytes do that
/// were left in a socket or a router. Keeps at most 64 MiB a connection, after which the sender is
/// no longer read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {}

impl Hold {
    pub(super) fn stage(self) -> impl Stage {
        Holding {
            kept: Vec::new(),
            bytes: 0,
        }
    }
}

struct Holding {
    kept: Vec<Item>,
    bytes: usize,
}

const LIMIT: usize = 64 << 20;

impl Stage for Holding {
    fn pass(&mut self, item: Item, _at: Instant, _out: &mut Out) {
        if let Item::Bytes(bytes) = &item {
            self.bytes += bytes.len();
        }
        // A reset would overtake the bytes before it, in the kernel of the receiver.
        self.kept
            .push(if item == Item::Reset { Item::End } else { item });
    }

    fn admits(&self, _now: Instant) -> Admits {
        if self.bytes < LIMIT {
            Admits::Now
        } else {
            Admits::Full
        }
    }

    fn release(&mut self, now: Instant, out: &mut Out) {
        out.extend(self.kept.drain(..).map(|item| (now, item)));
    }
}
