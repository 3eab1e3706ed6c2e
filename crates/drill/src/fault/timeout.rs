//! A black hole.

use super::millis;
use super::stage::{Item, Out, Stage};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Bytes vanish, and so does the end of the connection: no FIN, no RST. After `timeout` the
/// connection is closed; with a `timeout` of zero it stays. It is closed when the fault is removed,
/// since a stream with a hole in it serves nobody.
///
/// A network that is cut and mended again loses nothing on the connections that survive: that is
/// [`Stall`](super::Stall).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeout {
    /// How long after it takes hold of a connection that is closed. Milliseconds when written.
    /// Zero, the default: never.
    #[serde(with = "millis", default)]
    pub timeout: Duration,
}

impl Timeout {
    pub(super) fn stage(self, now: Instant) -> impl Stage {
        BlackHole {
            due: (!self.timeout.is_zero()).then(|| now + self.timeout),
        }
    }
}

struct BlackHole {
    due: Option<Instant>,
}

impl Stage for BlackHole {
    fn pass(&mut self, item: Item, at: Instant, out: &mut Out) {
        // What the drill itself decides, as another fault's reset, still happens.
        if item == Item::Close {
            out.push((at, item));
        }
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn wake(&mut self, now: Instant, out: &mut Out) {
        self.due = None;
        out.push((now, Item::Close));
    }

    fn release(&mut self, now: Instant, out: &mut Out) {
        out.push((now, Item::Close));
    }
}
