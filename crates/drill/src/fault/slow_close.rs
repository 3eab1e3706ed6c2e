//! The end comes late.

use super::millis;
use super::stage::{Item, Out, Stage, Touched};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Delays the end of a connection (or its reset), and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowClose {
    /// How much later. Milliseconds when written.
    #[serde(with = "millis")]
    pub delay: Duration,
}

impl SlowClose {
    pub(super) fn stage(self, touched: Touched) -> impl Stage {
        ClosingLate {
            delay: self.delay,
            touched,
        }
    }
}

struct ClosingLate {
    delay: Duration,
    touched: Touched,
}

impl Stage for ClosingLate {
    fn pass(&mut self, item: Item, at: Instant, out: &mut Out) {
        let late = if matches!(item, Item::Bytes(_)) {
            Duration::ZERO
        } else {
            self.touched.once();
            self.delay
        };
        out.push((at + late, item));
    }
}
