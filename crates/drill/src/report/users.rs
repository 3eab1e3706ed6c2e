//! The answers that the users of an application got, as they stand in the report.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Latency, latency, rounded};
use crate::record::{Interval, Record};
use crate::scenario::Phases;
use crate::timeline::millis;
use crate::verdict::ms;

/// The answers that the users got.
#[derive(Debug, Clone, Serialize)]
pub struct Users {
    /// The requests, with their weights.
    pub requests: Vec<String>,
    /// The answers of each phase.
    pub phases: Vec<UsersPhase>,
    /// From the first thing broken to the first request that failed, in milliseconds; null if none
    /// did.
    pub felt_ms: Option<f64>,
    /// From the last healing to the start of the first second in which no request failed, in
    /// milliseconds; null if there was none.
    pub well_ms: Option<f64>,
    /// Reads that were not held against writes: writes of the same key overlapped, or the fate of
    /// one was not known.
    pub unjudged: u64,
    /// Requests that started more than 50 ms late, as this machine had no time for them.
    pub late: u64,
    /// For plots.
    pub timeline: UsersTimeline,
}

/// The answers of one phase. A request counts for the phase in which it was meant to start.
#[derive(Debug, Clone, Serialize)]
pub struct UsersPhase {
    /// The phase's name.
    pub name: &'static str,
    /// When it began, from the start of the phases.
    pub from_ms: u64,
    /// When it ended.
    pub to_ms: u64,
    /// Requests that were sent.
    pub calls: u64,
    /// Requests that were answered as expected.
    pub ok: u64,
    /// Requests that could not be sent, as too many were running.
    pub skipped: u64,
    /// Failed requests by kind; of writes with `write_` before it.
    pub errors: BTreeMap<String, u64>,
    /// Answers older than a write that was confirmed.
    pub wrong: u64,
    /// Answers that said they were stale.
    pub stale: u64,
    /// The time that they took.
    pub latency_ms: Latency,
    /// The same as a histogram: pairs of microseconds and how many requests took so long, to three
    /// digits.
    pub histogram_us: Vec<(u64, u64)>,
}

/// The data of the plots: columns of equal length, one value for each interval.
#[derive(Debug, Clone, Default, Serialize)]
pub struct UsersTimeline {
    /// The length of an interval.
    pub interval_ms: u64,
    /// Requests a second that were answered as expected.
    pub answered: Vec<f64>,
    /// Requests a second that failed or could not be sent.
    pub failed: Vec<f64>,
    /// Answers a second that were too old.
    pub wrong: Vec<f64>,
    /// The time that 99 of 100 took at most, in milliseconds; null where there were none.
    pub p99_ms: Vec<Option<f64>>,
}

impl Users {
    pub(crate) fn of(
        record: &Record,
        phases: Phases,
        requests: Vec<String>,
        unjudged: u64,
    ) -> Self {
        let end = millis(record.end());
        let spans = phases
            .spans()
            .into_iter()
            .filter(|(_, span)| !span.is_empty());
        let last = phases.spans().len() - 1;
        let phases = spans.map(|(phase, span)| {
            let counts = record.counts(phase);
            let to = millis(span.end);
            UsersPhase {
                name: phase.name(),
                from_ms: millis(span.start),
                to_ms: if phase as usize == last {
                    to.max(end)
                } else {
                    to
                },
                calls: counts.calls(),
                ok: counts.ok(),
                skipped: counts.skipped,
                errors: counts.errors.clone(),
                wrong: counts.wrong,
                stale: counts.stale,
                latency_ms: latency(counts),
                histogram_us: counts.histogram(),
            }
        });
        let moments = record.moments();
        Self {
            requests,
            phases: phases.collect(),
            felt_ms: moments.detect.map(ms),
            well_ms: moments.users_well.map(ms),
            unjudged,
            late: record.started_late().calls,
            timeline: timeline(record),
        }
    }
}

fn timeline(record: &Record) -> UsersTimeline {
    let (length, intervals) = record.intervals();
    let per_second = |count: fn(&Interval) -> u32| -> Vec<f64> {
        let rate = |interval| rounded(f64::from(count(interval)) / length.as_secs_f64());
        intervals.iter().map(rate).collect()
    };
    let p99 = |interval: &Interval| {
        (!interval.latency.is_empty())
            .then(|| interval.latency.value_at_quantile(0.99) as f64 / 1e3)
    };
    UsersTimeline {
        interval_ms: millis(length),
        answered: per_second(|i| i.sources.iter().sum::<u32>() + i.written),
        failed: per_second(|i| i.failed + i.skipped),
        wrong: per_second(|i| i.wrong),
        p99_ms: intervals.iter().map(p99).collect(),
    }
}
