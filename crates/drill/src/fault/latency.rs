//! Everything comes later, by so much, give or take.

use super::millis;
use super::stage::{Item, Out, Stage};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Delays everything, the end of the connection too, by `latency` give or take `jitter`, and never
/// reorders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// How much later. Milliseconds when written.
    #[serde(with = "millis", default)]
    pub latency: Duration,
    /// At most this much more or less, evenly spread. Milliseconds when written. Default: none.
    #[serde(with = "millis", default)]
    pub jitter: Duration,
}

impl Latency {
    /// So many milliseconds, without jitter.
    #[must_use]
    pub const fn of_millis(latency: u64) -> Self {
        Self {
            latency: Duration::from_millis(latency),
            jitter: Duration::ZERO,
        }
    }

    pub(super) fn stage(self, rng: Rng) -> impl Stage {
        Delayed {
            latency: self,
            rng,
            last: None,
        }
    }
}

struct Delayed {
    latency: Latency,
    rng: Rng,
    last: Option<Instant>,
}

impl Stage for Delayed {
    fn pass(&mut self, item: Item, at: Instant, out: &mut Out) {
        let Latency { latency, jitter } = self.latency;
        let late = (latency + jitter.mul_f64(2.0 * self.rng.f64())).saturating_sub(jitter);
        let due = self.last.map_or(at + late, |last| last.max(at + late));
        self.last = Some(due);
        out.push((due, item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::stage::testing::{bytes, start};

    #[test]
    fn all_is_late_by_the_latency_give_or_take_the_jitter_and_in_order() {
        let latency = Latency {
            latency: Duration::from_millis(100),
            jitter: Duration::from_millis(50),
        };
        let (mut stage, mut out, start) = (latency.stage(Rng::with_seed(1)), Out::new(), start());
        for n in 0..1_000 {
            stage.pass(bytes("x"), start + Duration::from_secs(n), &mut out);
        }
        let late =
            |(n, (due, _)): (usize, &(Instant, Item))| *due - start - Duration::from_secs(n as u64);
        let late: Vec<_> = out.iter().enumerate().map(late).collect();
        assert!(
            late.iter()
                .all(|late| (50..=150).contains(&late.as_millis()))
        );
        assert!(
            late.iter().any(|late| late.as_millis() < 60)
                && late.iter().any(|late| late.as_millis() > 140)
        );

        out.clear();
        for _ in 0..1_000 {
            stage.pass(bytes("x"), start + Duration::from_secs(2_000), &mut out);
        }
        assert!(out.is_sorted_by_key(|(due, _)| *due));
    }
}
