//! The counts of each query and statement. Whoever looks for what is wrong asks first of which
//! query. So each has counts and latencies of its own, since the start and of the last minute; they
//! outlive a reload, which knows them by name.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use steadfast_cache::Source;

use super::tally::{Buckets, LatencyHistogram, SLOW};
use crate::clock::{millis, now};

/// Counts and latencies of one query or statement.
#[derive(Debug)]
pub(crate) struct Figures {
    /// The names of what is counted: first the ends of calls, then the rest.
    columns: &'static [&'static str],
    /// The number of columns that are ends; a call is in exactly one of these.
    ends: usize,
    counts: Box<[AtomicU64]>,
    latency: LatencyHistogram,
    began: Instant,
    /// The counts of earlier moments, oldest first.
    earlier: Mutex<VecDeque<Sample>>,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    counts: Vec<u64>,
    latencies: Buckets,
}

/// Figures of one query or statement, as `/v1/status` has them.
#[derive(Debug, Serialize)]
pub(crate) struct NamedFigures {
    name: String,
    since_start: Map<String, Json>,
    last_minute: Map<String, Json>,
}

const OF_QUERIES: [&str; 6] = ["memory", "redis", "database", "failed", "stale", "slow"];
const OF_STATEMENTS: [&str; 4] = ["done", "replayed", "failed", "slow"];

/// Samples are taken so far apart,
pub(crate) const SAMPLED_EVERY: Duration = Duration::from_secs(10);
/// and so many are kept: the oldest is the beginning of "the last minute".
const SAMPLES: usize = 6;

impl Figures {
    pub(crate) fn of_query() -> Self {
        Self::new(&OF_QUERIES, 4)
    }

    pub(crate) fn of_statement() -> Self {
        Self::new(&OF_STATEMENTS, 3)
    }

    fn new(columns: &'static [&'static str], ends: usize) -> Self {
        Self {
            columns,
            ends,
            counts: columns.iter().map(|_| AtomicU64::new(0)).collect(),
            latency: LatencyHistogram::default(),
            began: now(),
            earlier: Mutex::default(),
        }
    }

    /// A read was answered.
    pub(crate) fn answered(&self, source: Source, stale: bool, took: Duration) {
        let end = match source {
            Source::Memory => "memory",
            Source::Redis => "redis",
            _ => "database",
        };
        if stale {
            self.add("stale");
        }
        self.ended(end, took);
    }

    /// A statement was run, or had been before.
    pub(crate) fn done(&self, replayed: bool, took: Duration) {
        self.ended(if replayed { "replayed" } else { "done" }, took);
    }

    pub(crate) fn failed(&self, took: Duration) {
        self.ended("failed", took);
    }

    fn ended(&self, end: &'static str, took: Duration) {
        self.add(end);
        if took > SLOW {
            self.add("slow");
        }
        self.latency.record(took);
    }

    /// The few names are compared faster than a map would look them up.
    fn add(&self, column: &'static str) {
        if let Some(index) = self.columns.iter().position(|name| *name == column) {
            self.counts[index].fetch_add(1, Relaxed);
        }
    }

    /// Remembers the counts of this moment, for the last minute.
    pub(crate) fn sample(&self) {
        let mut earlier = self.earlier.lock();
        if earlier.len() == SAMPLES {
            earlier.pop_front();
        }
        earlier.push_back(self.now());
    }

    fn now(&self) -> Sample {
        Sample {
            at: now(),
            counts: self
                .counts
                .iter()
                .map(|count| count.load(Relaxed))
                .collect(),
            latencies: self.latency.read(),
        }
    }

    /// The figures under their name; each of the two parts says how long it is.
    pub(crate) fn named(&self, name: &str) -> NamedFigures {
        let now = self.now();
        let start = Sample {
            at: self.began,
            counts: vec![0; self.counts.len()],
            latencies: Buckets::default(),
        };
        let earlier = self.earlier.lock();
        // In the first minute nothing is older than the start.
        let minute = earlier.front().filter(|_| earlier.len() == SAMPLES);
        NamedFigures {
            name: name.to_owned(),
            since_start: self.between(&start, &now),
            last_minute: self.between(minute.unwrap_or(&start), &now),
        }
    }

    fn between(&self, from: &Sample, to: &Sample) -> Map<String, Json> {
        let [p50_ms, p99_ms] = to.latencies.quantiles_since(&from.latencies, [0.5, 0.99]);
        let counts = to.counts.iter().zip(&from.counts);
        let counts: Vec<u64> = counts.map(|(to, from)| to.saturating_sub(*from)).collect();
        let mut json = Map::new();
        let window = to.at.saturating_duration_since(from.at);
        json.insert("window_ms".to_owned(), millis(window).into());
        json.insert(
            "calls".to_owned(),
            counts[..self.ends].iter().sum::<u64>().into(),
        );
        for (name, count) in self.columns.iter().zip(counts) {
            json.insert((*name).to_owned(), count.into());
        }
        json.insert("p50_ms".to_owned(), p50_ms.into());
        json.insert("p99_ms".to_owned(), p99_ms.into());
        json
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn s5_each_query_counts_its_calls_since_the_start_and_of_the_last_minute() {
        let figures = Figures::of_query();
        figures.answered(Source::Memory, true, Duration::from_micros(10));
        figures.failed(Duration::from_secs(1));
        for _ in 0..7 {
            figures.sample();
        }
        figures.answered(Source::Redis, false, Duration::from_millis(1));
        let json = serde_json::to_value(figures.named("search")).unwrap();
        assert_eq!(json["name"], "search");
        let all = &json["since_start"];
        assert_eq!(
            (
                &all["calls"],
                &all["memory"],
                &all["failed"],
                &all["stale"],
                &all["slow"]
            ),
            (&json!(3), &json!(1), &json!(1), &json!(1), &json!(1))
        );
        let late = &json["last_minute"];
        assert_eq!((&late["calls"], &late["redis"]), (&json!(1), &json!(1)));
        assert!(late["p99_ms"].as_f64().unwrap() < 1.2, "{late}");
    }

    #[test]
    fn s5_a_statement_counts_what_was_done_and_what_had_been() {
        let figures = Figures::of_statement();
        figures.done(false, Duration::from_millis(3));
        figures.done(true, Duration::from_millis(1));
        figures.failed(Duration::from_millis(1));
        figures.sample();
        let all = &serde_json::to_value(figures.named("rename")).unwrap()["last_minute"];
        assert_eq!(
            (
                &all["calls"],
                &all["done"],
                &all["replayed"],
                &all["failed"]
            ),
            (&json!(3), &json!(1), &json!(1), &json!(1))
        );
    }
}
