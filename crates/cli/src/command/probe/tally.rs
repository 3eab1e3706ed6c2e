//! The outcomes of the operations: counts by outcome, and a histogram of the times of those that
//! were answered. Failures have no place in the percentiles; a refused call takes microseconds and
//! would flatter them.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The account of one worker; accounts of several are merged.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    /// In nanoseconds, three significant digits, up to ten minutes.
    times: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

/// The figures of a tally, in the order in which they are read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figures {
    pub(super) total: u64,
    pub(super) errors: u64,
    /// 0 to 100; `None` if nothing was tried.
    pub(super) success_percent: Option<f64>,
    /// `None` if nothing was answered.
    pub(super) times: Option<Times>,
}

/// How long the answered operations took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Times {
    pub(super) mean: Duration,
    pub(super) median: Duration,
    pub(super) p95: Duration,
    pub(super) p99: Duration,
    pub(super) max: Duration,
}

const LONGEST: Duration = Duration::from_secs(600);

impl Tally {
    pub(super) fn new() -> Self {
        let times = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
            .expect("the bounds are constants that the histogram allows");
        Self {
            times,
            errors: BTreeMap::new(),
        }
    }

    pub(super) fn answered(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.times.saturating_record(ns.max(1));
    }

    /// Counts a failure under its words. The caller sees to it that they are few.
    pub(super) fn failed(&mut self, why: &str) {
        match self.errors.get_mut(why) {
            Some(n) => *n += 1,
            None => drop(self.errors.insert(why.to_owned(), 1)),
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.times
            .add(&other.times)
            .expect("every tally has the same bounds");
        for (why, n) in &other.errors {
            *self.errors.entry(why.clone()).or_default() += n;
        }
    }

    /// The failures by kind, the most frequent first.
    pub(super) fn errors(&self) -> Vec<(&str, u64)> {
        let mut errors: Vec<_> = self
            .errors
            .iter()
            .map(|(why, n)| (why.as_str(), *n))
            .collect();
        errors.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
        errors
    }

    pub(super) fn figures(&self) -> Figures {
        let answered = self.times.len();
        let errors: u64 = self.errors.values().sum();
        let total = answered + errors;
        let at = |percentile| Duration::from_nanos(self.times.value_at_percentile(percentile));
        Figures {
            total,
            errors,
            success_percent: (total > 0).then(|| answered as f64 / total as f64 * 100.0),
            times: (answered > 0).then(|| Times {
                mean: Duration::from_nanos(self.times.mean() as u64),
                median: at(50.0),
                p95: at(95.0),
                p99: at(99.0),
                max: Duration::from_nanos(self.times.max()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_against_success_but_not_in_the_percentiles() {
        let mut tally = Tally::new();
        for ms in 1..=100 {
            tally.answered(Duration::from_millis(ms));
        }
        for _ in 0..100 {
            tally.failed("timeout");
        }
        let figures = tally.figures();
        assert_eq!((figures.total, figures.errors), (200, 100));
        assert_eq!(figures.success_percent, Some(50.0));
        let times = figures.times.unwrap();
        let near = |d: Duration, ms: f64| (d.as_secs_f64() * 1e3 - ms).abs() / ms < 0.002;
        assert!(
            near(times.mean, 50.5) && near(times.median, 50.0),
            "{times:?}"
        );
        assert!(
            near(times.p95, 95.0) && near(times.p99, 99.0) && near(times.max, 100.0),
            "{times:?}"
        );
    }

    #[test]
    fn nothing_tried_and_nothing_answered_are_told_apart() {
        let mut tally = Tally::new();
        let Figures {
            total: 0,
            success_percent: None,
            times: None,
            ..
        } = tally.figures()
        else {
            panic!("an empty tally has no figures: {:?}", tally.figures());
        };
        tally.failed("refused");
        assert_eq!(tally.figures().success_percent, Some(0.0));
        assert_eq!(tally.figures().times, None);
    }

    #[test]
    fn merged_tallies_add_up_with_the_commonest_error_first() {
        let (mut a, mut b) = (Tally::new(), Tally::new());
        a.failed("rare");
        a.failed("common");
        b.failed("common");
        b.answered(Duration::from_secs(100_000));
        a.merge(&b);
        assert_eq!(a.errors(), [("common", 2), ("rare", 1)]);
        assert!(a.figures().times.unwrap().max >= LONGEST - Duration::from_secs(1));
    }
}
