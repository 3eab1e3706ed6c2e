//! The traffic through the proxies, per phase and over time, and from when on Redis is in use
//! again. Pure: times are given, as lengths from the start of the phases.

use std::collections::VecDeque;
use std::time::Duration;

use crate::proxy::Counters;
use crate::report::FaultSpan;
use crate::report::application::{Traffic, TrafficTimeline};
use crate::scenario::{Phase, Phases};
use crate::timeline::{Faults, Id, millis};

/// Of the plots, at most, on a drill that is long.
const INTERVALS: u32 = 600;
/// The stretch after the healing in which Redis's answers are held against the baseline.
pub(super) const WINDOW: Duration = Duration::from_secs(1);
/// How often the wires and the application are looked at.
pub(super) const SAMPLE: Duration = Duration::from_millis(20);
/// So much of the baseline's answers is use.
pub(super) const SHARE: f64 = 0.5;

/// All that was seen on the wire between the application and Redis.
pub(super) struct Seen {
    pub(super) traffic: Vec<Traffic>,
    pub(super) timeline: TrafficTimeline,
    phases: Phases,
    pub(super) last: Counters,
    pub(super) last_at: Duration,
    faults: Faults,
    healed: Option<Duration>,
    /// When so many commands had been answered since the start, within the window.
    recent: VecDeque<(Duration, u64)>,
    in_use: Option<Duration>,
}

impl Seen {
    pub(super) fn new(phases: Phases) -> Self {
        let traffic = phases.spans().map(|(phase, span)| Traffic {
            name: phase.name(),
            from_ms: millis(span.start),
            to_ms: millis(span.end),
            connections: 0,
            bytes_up: 0,
            bytes_down: 0,
            answered: 0,
        });
        Self {
            traffic: traffic.to_vec(),
            timeline: TrafficTimeline {
                interval_ms: millis(phases.total() / INTERVALS).max(100),
                ..TrafficTimeline::default()
            },
            phases,
            last: Counters::default(),
            last_at: Duration::ZERO,
            faults: Faults::default(),
            healed: None,
            recent: VecDeque::new(),
            in_use: None,
        }
    }

    /// Begins to count: what came before the start is nobody's.
    pub(super) fn begin(&mut self, counters: Counters) {
        self.last = counters;
    }

    pub(super) fn sample(&mut self, at: Duration, counters: Counters) {
        let before = std::mem::replace(&mut self.last, counters);
        self.last_at = at;
        let traffic = &mut self.traffic[self.phases.at(at) as usize];
        traffic.to_ms = traffic.to_ms.max(millis(at));
        let new = [
            counters.bytes_up - before.bytes_up,
            counters.bytes_down - before.bytes_down,
            counters.accepted - before.accepted,
            counters.answered - before.answered,
        ];
        traffic.bytes_up += new[0];
        traffic.bytes_down += new[1];
        traffic.connections += new[2];
        traffic.answered += new[3];
        self.timeline.add(at, new);
        self.look_for_use(at, counters.answered);
    }

    /// Redis is in use again from the start of the first window with enough answers.
    fn look_for_use(&mut self, at: Duration, answered: u64) {
        let Some(healed) = self.healed else { return };
        self.recent.push_back((at, answered));
        while self
            .recent
            .get(1)
            .is_some_and(|(second, _)| *second + WINDOW <= at)
        {
            self.recent.pop_front();
        }
        let Some((from, before)) = self.recent.front().copied() else {
            return;
        };
        let enough = (self.baseline_rate() * SHARE * WINDOW.as_secs_f64()).max(1.0);
        if self.in_use.is_none() && from + WINDOW <= at && (answered - before) as f64 >= enough {
            self.in_use = Some(from - healed);
        }
    }

    /// Commands a second that Redis answered while all was well.
    pub(super) fn baseline_rate(&self) -> f64 {
        let answered = self.traffic[Phase::Baseline as usize].answered;
        answered as f64 / self.phases.baseline.as_secs_f64()
    }

    /// From the last healing until Redis was in use again.
    pub(super) fn in_use(&self) -> Option<Duration> {
        self.in_use
    }

    /// When the last thing was healed, if nothing is broken now.
    pub(super) fn healed(&self) -> Option<Duration> {
        self.healed
    }

    pub(super) fn begun(&mut self, id: Id, name: &'static str, at: Duration) {
        self.faults.begin(id, name, at);
        (self.healed, self.in_use) = (None, None);
    }

    /// Something was healed. Returns whether nothing is broken any more.
    pub(super) fn ended(&mut self, id: Id, at: Duration, counters: Counters) -> bool {
        self.faults.end(id, at);
        let all_well = self.faults.are_over();
        if all_well {
            self.healed = Some(at);
            self.recent = VecDeque::from([(at, counters.answered)]);
        }
        all_well
    }

    pub(super) fn faults(&self) -> Vec<FaultSpan> {
        self.faults.spans()
    }
}

impl TrafficTimeline {
    fn add(&mut self, at: Duration, [up, down, connections, answered]: [u64; 4]) {
        let index = (millis(at) / self.interval_ms.max(1)) as usize;
        for (column, seen) in [
            (&mut self.bytes_up, up),
            (&mut self.bytes_down, down),
            (&mut self.connections, connections),
            (&mut self.answered, answered),
        ] {
            if column.len() <= index {
                column.resize(index + 1, 0);
            }
            column[index] += seen;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Two seconds of baseline with ten answers a second, then a fault from 3 s to 4 s.
    fn healed_at_four_seconds() -> Seen {
        let phases = Phases {
            warm_up: ms(0),
            baseline: ms(2_000),
            fault: ms(2_000),
            recovery: ms(2_000),
            recovered: ms(2_000),
        };
        let mut seen = Seen::new(phases);
        for n in 0..20 {
            seen.sample(ms(n * 100), answered(n + 1));
        }
        seen.begun((0, 0), "down", ms(3_000));
        assert!(seen.ended((0, 0), ms(4_000), answered(20)));
        seen
    }

    fn answered(count: u64) -> Counters {
        Counters {
            answered: count,
            ..Counters::default()
        }
    }

    #[test]
    fn d7_redis_is_in_use_again_from_the_first_second_with_half_of_the_baselines_answers() {
        let mut seen = healed_at_four_seconds();
        for (at, count) in [
            (4_500, 21),
            (5_000, 22),
            (5_500, 24),
            (6_000, 26),
            (6_500, 29),
        ] {
            seen.sample(ms(at), answered(count));
        }
        assert_eq!(
            seen.in_use(),
            Some(ms(1_500)),
            "5 of 10 between 5.5 s and 6.5 s"
        );
    }

    #[test]
    fn d7_a_few_answers_are_not_use() {
        let mut seen = healed_at_four_seconds();
        for n in 1..40 {
            seen.sample(ms(4_000 + n * 500), answered(20 + n));
        }
        assert_eq!(seen.in_use(), None, "2 a second of 10");
    }
}
