//! When things break, and what is broken at a moment. Our own subjects, somebody's application and
//! a drawn schedule are broken by different means; in which order faults begin and end, and whether
//! all is well again, is the same for all of them. Pure: times are given, as lengths from the
//! caller's start.

use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use crate::scenario::{Phase, Scenario};

/// The step of a fault, and which time of it.
pub(crate) type Id = (usize, usize);

/// A moment at which a fault begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) at: Duration,
    pub(crate) begins: bool,
    pub(crate) id: Id,
}

/// Beginnings and ends in the order of their times. What ends at a moment ends before anything
/// begins.
pub(crate) fn moments(spans: impl IntoIterator<Item = (Id, Range<Duration>)>) -> Vec<Moment> {
    let both = |(id, span): (Id, Range<Duration>)| {
        [(span.start, true), (span.end, false)].map(|(at, begins)| Moment { at, begins, id })
    };
    let mut moments: Vec<_> = spans.into_iter().flat_map(both).collect();
    moments.sort_by_key(|moment| (moment.at, moment.begins));
    moments
}

/// The beginnings and ends of a scenario's steps, from the start of its load. An id is the number
/// of a step, and which time of it.
pub(crate) fn moments_of(scenario: &Scenario) -> Vec<Moment> {
    let start = scenario.phases.spans()[Phase::Fault as usize].1.start;
    let spans = scenario
        .steps
        .iter()
        .enumerate()
        .flat_map(|(step, planned)| {
            let spans = planned.spans().enumerate();
            spans.map(move |(time, span)| ((step, time), start + span.start..start + span.end))
        });
    moments(spans)
}

/// The time in which something was broken, from the start of the load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultSpan {
    /// The fault's name, as in a scenario file.
    pub name: &'static str,
    /// When it was broken.
    pub from_ms: u64,
    /// When it was healed.
    pub to_ms: u64,
}

/// Returns for how many milliseconds something was broken: faults that last at once count once.
pub(crate) fn trouble_ms(faults: &[FaultSpan]) -> u64 {
    let mut spans: Vec<_> = faults
        .iter()
        .map(|span| (span.from_ms, span.to_ms))
        .collect();
    spans.sort_unstable();
    let (mut length, mut seen_to) = (0, 0);
    for (from, to) in spans {
        length += to.saturating_sub(from.max(seen_to));
        seen_to = seen_to.max(to);
    }
    length
}

/// The faults that were, and those that still are.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<TimedFault>);

#[derive(Debug)]
struct TimedFault {
    id: Id,
    span: FaultSpan,
    lasts: bool,
}

impl Faults {
    pub(crate) fn begin(&mut self, id: Id, name: &'static str, at: Duration) {
        let at = millis(at);
        let span = FaultSpan {
            name,
            from_ms: at,
            to_ms: at,
        };
        let lasts = true;
        self.0.push(TimedFault { id, span, lasts });
    }

    /// Ends a fault, if it lasts.
    pub(crate) fn end(&mut self, id: Id, at: Duration) {
        if let Some(fault) = self
            .0
            .iter_mut()
            .find(|fault| fault.lasts && fault.id == id)
        {
            fault.lasts = false;
            fault.span.to_ms = millis(at);
        }
    }

    pub(crate) fn lasts(&self, id: Id) -> bool {
        self.lasting().any(|fault| fault.id == id)
    }

    /// Whether no other fault lasts.
    pub(crate) fn is_alone(&self, id: Id) -> bool {
        self.lasting().all(|fault| fault.id == id)
    }

    /// Whether nothing is broken any more.
    pub(crate) fn are_over(&self) -> bool {
        self.lasting().next().is_none()
    }

    /// Returns the faults of now, in the order in which they began.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.lasting().map(|fault| fault.span.name).collect()
    }

    /// All that was broken, in the order in which it began.
    pub(crate) fn spans(&self) -> Vec<FaultSpan> {
        self.0.iter().map(|fault| fault.span.clone()).collect()
    }

    fn lasting(&self) -> impl Iterator<Item = &TimedFault> {
        self.0.iter().filter(|fault| fault.lasts)
    }
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn d1_what_ends_at_a_moment_ends_before_anything_begins() {
        let spans = [
            ((0, 0), ms(10)..ms(20)),
            ((1, 0), ms(20)..ms(30)),
            ((2, 0), ms(10)..ms(30)),
        ];
        let order = moments(spans).into_iter().map(|m| (m.at, m.begins, m.id.0));
        assert_eq!(
            order.collect::<Vec<_>>(),
            [
                (ms(10), true, 0),
                (ms(10), true, 2),
                (ms(20), false, 0),
                (ms(20), true, 1),
                (ms(30), false, 1),
                (ms(30), false, 2),
            ]
        );
    }

    #[test]
    fn d4_trouble_that_overlaps_counts_once() {
        let span = |from_ms, to_ms| FaultSpan {
            name: "crash",
            from_ms,
            to_ms,
        };
        assert_eq!(trouble_ms(&[]), 0);
        let within = [span(4_000, 8_000), span(4_500, 7_500)];
        assert_eq!(trouble_ms(&within), 4_000);
        let apart = [span(9_000, 9_500), span(1_000, 3_000), span(2_000, 4_000)];
        assert_eq!(trouble_ms(&apart), 3_500);
    }

    #[test]
    fn d1_faults_may_overlap_and_all_is_well_after_the_last() {
        let mut faults = Faults::default();
        assert!(faults.are_over());
        faults.begin((0, 0), "crash", ms(1));
        assert!(faults.lasts((0, 0)) && faults.is_alone((0, 0)));
        faults.begin((1, 0), "latency", ms(2));
        assert_eq!(faults.names(), ["crash", "latency"]);
        assert!(!faults.is_alone((0, 0)) && !faults.are_over());
        faults.end((0, 0), ms(5));
        faults.end((0, 0), ms(9));
        assert!(!faults.lasts((0, 0)) && faults.is_alone((1, 0)));
        faults.end((1, 0), ms(7));
        assert!(faults.are_over());
        let spans: Vec<_> = faults
            .spans()
            .iter()
            .map(|s| (s.name, s.from_ms, s.to_ms))
            .collect();
        assert_eq!(spans, [("crash", 1, 5), ("latency", 2, 7)]);
    }
}
