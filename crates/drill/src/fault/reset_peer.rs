//! The connection is reset.

use super::millis;
use super::stage::{Item, Out, Stage};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Resets connections (a TCP RST to either side) `timeout` after it takes hold of them; until then
/// bytes vanish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetPeer {
    /// How long after it takes hold. Milliseconds when written. Zero, the default: at once.
    #[serde(with = "millis", default)]
    pub timeout: Duration,
}

impl ResetPeer {
    pub(super) fn stage(self, now: Instant) -> impl Stage {
        Resetting {
            due: Some(now + self.timeout),
        }
    }
}

struct Resetting {
    due: Option<Instant>,
}

impl Stage for Resetting {
    fn pass(&mut self, _item: Item, _at: Instant, _out: &mut Out) {}

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn wake(&mut self, now: Instant, out: &mut Out) {
        self.due = None;
        out.push((now, Item::Reset));
    }

    fn release(&mut self, now: Instant, out: &mut Out) {
        out.push((now, Item::Reset));
    }
}
