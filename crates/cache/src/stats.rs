//! Counts, once, for both who asks this process ([`crate::Cache::status`]) and who scrapes it (the
//! `metrics` facade).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::answer::Source;
use crate::error::CacheError;

/// A count kept here and, under the same step, in the metrics recorder that was installed when the
/// cache was built.
pub(crate) struct Tally {
    own: AtomicU64,
    exported: metrics::Counter,
}

impl Tally {
    fn new(exported: metrics::Counter) -> Self {
        Self {
            own: AtomicU64::new(0),
            exported,
        }
    }

    pub(crate) fn add(&self, count: u64) {
        self.own.fetch_add(count, Ordering::Relaxed);
        self.exported.increment(count);
    }

    pub(crate) fn count(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }
}

/// A count that every hit raises: with one cell for all threads, they would wait for one another
/// here.
#[derive(Default)]
struct Spread([Cell; CELLS]);

/// A cache line, and its neighbour, which is fetched with it.
#[derive(Default)]
#[repr(align(128))]
struct Cell(AtomicU64);

impl Spread {
    fn add_one(&self) {
        let at = PLACE.with(|place| *place);
        self.0[at].0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0
            .iter()
            .map(|cell| cell.0.load(Ordering::Relaxed))
            .sum()
    }
}

thread_local! {
    static PLACE: usize = NEXT_PLACE.fetch_add(1, Ordering::Relaxed) % CELLS;
}

static NEXT_PLACE: AtomicUsize = AtomicUsize::new(0);
const CELLS: usize = 16;

pub(crate) struct Stats {
    /// Fresh answers from memory, which are not counted in `answers`.
    hits: Spread,
    /// The same in the metrics recorder, which has one cell for all threads and so is told of many
    /// at a time.
    hits_exported: metrics::Counter,
    /// The count of those that it has been told of.
    hits_told: AtomicU64,
    /// By source, fresh then stale.
    answers: [[Tally; 2]; Source::ALL.len()],
    errors: [Tally; ERRORS.len()],
    loads_ok: Tally,
    loads_failed: Tally,
    load_seconds: metrics::Histogram,
    fills_stored: Tally,
    fills_refused: Tally,
    pub(crate) redis_answers: Tally,
    pub(crate) redis_errors: Tally,
    pub(crate) redis_slow: Tally,
    pub(crate) redis_shared: Tally,
    pub(crate) damaged: Tally,
    pub(crate) not_stored: Tally,
    pub(crate) not_encodable: Tally,
    pub(crate) invalidations: Tally,
    pub(crate) relayed: Tally,
    pub(crate) epochs: Tally,
    pub(crate) outbox_lag: metrics::Gauge,
    pub(crate) suspended: metrics::Gauge,
    pub(crate) memory_bytes: metrics::Gauge,
}

impl Stats {
    pub(crate) fn new() -> Self {
        describe();
        let answers = Source::ALL.map(|source| {
            [("false", source.as_str()), ("true", source.as_str())].map(|(stale, source)| {
                Tally::new(
                    metrics::counter!("cache_requests_total", "source" => source, "stale" => stale),
                )
            })
        });
        Self {
            hits: Spread::default(),
            hits_exported: metrics::counter!("cache_requests_total", "source" => Source::Memory.as_str(), "stale" => "false"),
            hits_told: AtomicU64::new(0),
            answers,
            errors: ERRORS
                .map(|kind| Tally::new(metrics::counter!("cache_errors_total", "kind" => kind))),
            loads_ok: Tally::new(metrics::counter!("cache_loads_total", "outcome" => "ok")),
            loads_failed: Tally::new(metrics::counter!("cache_loads_total", "outcome" => "failed")),
            load_seconds: metrics::histogram!("cache_load_seconds"),
            fills_stored: Tally::new(
                metrics::counter!("cache_redis_fills_total", "outcome" => "stored"),
            ),
            fills_refused: Tally::new(
                metrics::counter!("cache_redis_fills_total", "outcome" => "refused"),
            ),
            redis_answers: Tally::new(metrics::counter!("cache_redis_answers_total")),
            redis_errors: Tally::new(metrics::counter!("cache_redis_errors_total")),
            redis_slow: Tally::new(metrics::counter!("cache_redis_slow_total")),
            redis_shared: Tally::new(metrics::counter!("cache_redis_shared_total")),
            damaged: Tally::new(metrics::counter!("cache_damaged_values_total")),
            not_stored: Tally::new(metrics::counter!("cache_oversized_values_total")),
            not_encodable: Tally::new(metrics::counter!("cache_unencodable_values_total")),
            invalidations: Tally::new(metrics::counter!("cache_invalidations_total")),
            relayed: Tally::new(metrics::counter!("outbox_relayed_total")),
            epochs: Tally::new(metrics::counter!("cache_epochs_total")),
            outbox_lag: metrics::gauge!("outbox_lag_seconds"),
            suspended: metrics::gauge!("cache_redis_suspended"),
            memory_bytes: metrics::gauge!("cache_memory_bytes"),
        }
    }

    #[inline]
    pub(crate) fn hit(&self) {
        self.hits.add_one();
    }

    /// Tells the metrics recorder of the hits that it has not been told of yet.
    pub(crate) fn export_hits(&self) {
        let hits = self.hits.count();
        let told = self.hits_told.fetch_max(hits, Ordering::Relaxed);
        self.hits_exported.increment(hits.saturating_sub(told));
    }

    pub(crate) fn answered(&self, source: Source, stale: bool) {
        self.answers[source as usize][usize::from(stale)].add(1);
    }

    pub(crate) fn failed(&self, error: &CacheError) {
        self.errors[kind(error)].add(1);
    }

    pub(crate) fn loaded(&self, ok: bool, took: Duration) {
        if ok {
            self.loads_ok.add(1)
        } else {
            self.loads_failed.add(1)
        }
        self.load_seconds.record(took.as_secs_f64());
    }

    pub(crate) fn fills(&self, stored: bool) -> &Tally {
        if stored {
            &self.fills_stored
        } else {
            &self.fills_refused
        }
    }

    pub(crate) fn snapshot(&self) -> Counts {
        let answers = |source: Source| self.answers[source as usize].iter().map(Tally::count).sum();
        Counts {
            memory: answers(Source::Memory) + self.hits.count(),
            redis: answers(Source::Redis),
            database: answers(Source::Database),
            default: answers(Source::Default),
            stale: self.answers.iter().map(|pair| pair[1].count()).sum(),
            overloaded: self.errors[OVERLOADED].count(),
            errors: self.errors.iter().map(Tally::count).sum(),
            loads: self.loads_ok.count() + self.loads_failed.count(),
            loads_failed: self.loads_failed.count(),
            fills: self.fills_stored.count(),
            fills_refused: self.fills_refused.count(),
            redis_answers: self.redis_answers.count(),
            redis_errors: self.redis_errors.count(),
            redis_slow: self.redis_slow.count(),
            redis_shared: self.redis_shared.count(),
            damaged: self.damaged.count(),
            oversized: self.not_stored.count(),
            unencodable: self.not_encodable.count(),
            invalidations: self.invalidations.count(),
            relayed: self.relayed.count(),
            epochs: self.epochs.count(),
        }
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        self.export_hits();
    }
}

/// Counts since the cache was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Reads answered from memory.
    pub memory: u64,
    /// Reads answered from Redis.
    pub redis: u64,
    /// Reads answered by a load.
    pub database: u64,
    /// Reads answered with the caller's default.
    pub default: u64,
    /// Of all these, the answers that were stale.
    pub stale: u64,
    /// Reads refused because the database was at its limit.
    pub overloaded: u64,
    /// Reads that failed, refusals included.
    pub errors: u64,
    /// Loads begun and ended.
    pub loads: u64,
    /// Loads that failed.
    pub loads_failed: u64,
    /// Values stored in Redis.
    pub fills: u64,
    /// Values that Redis refused because they had been overtaken.
    pub fills_refused: u64,
    /// Calls to Redis that were answered in time. One that several readers share is one.
    pub redis_answers: u64,
    /// Calls to Redis that failed or were late; one that several readers share is one.
    pub redis_errors: u64,
    /// Keys that were read without Redis, or without the right to store them there, because less
    /// was left of [`redis_limit`](crate::CacheBuilder::redis_limit) than a question takes.
    pub redis_slow: u64,
    /// Keys that were asked for by a question which several readers shared.
    pub redis_shared: u64,
    /// Values in Redis that were corrupt or of an unknown format.
    pub damaged: u64,
    /// Values too large to be stored.
    pub oversized: u64,
    /// Values that could not be written as they are, and so were answered but not kept.
    pub unencodable: u64,
    /// Keys and tags invalidated by this process.
    pub invalidations: u64,
    /// Rows of the outbox applied to Redis by this process.
    pub relayed: u64,
    /// Times that Redis was found behind or empty and a new epoch was begun by this process.
    pub epochs: u64,
}

fn kind(error: &CacheError) -> usize {
    match error {
        CacheError::Overloaded { .. } | CacheError::ClassOverloaded { .. } => OVERLOADED,
        CacheError::Unavailable { .. } => 1,
        CacheError::Load(_) => 2,
        CacheError::LoadTimeout { .. } => 3,
        CacheError::LoadPanicked { .. } => 4,
        _ => 5,
    }
}

fn describe() {
    metrics::describe_counter!(
        "cache_requests_total",
        "Reads answered, by source and whether the answer was stale"
    );
    metrics::describe_counter!(
        "cache_errors_total",
        "Reads that ended without an answer, by kind"
    );
    metrics::describe_counter!("cache_loads_total", "Loads from the database, by outcome");
    metrics::describe_histogram!(
        "cache_load_seconds",
        metrics::Unit::Seconds,
        "Time of a load from the database"
    );
    metrics::describe_counter!(
        "cache_redis_fills_total",
        "Values offered to Redis, by whether it stored them"
    );
    metrics::describe_counter!(
        "cache_redis_answers_total",
        "Calls of the cache to Redis that were answered in time"
    );
    metrics::describe_counter!(
        "cache_redis_errors_total",
        "Calls of the cache to Redis that failed or were late"
    );
    metrics::describe_counter!(
        "cache_redis_slow_total",
        "Keys read without Redis, or not stored there, because too little of redis_limit was left"
    );
    metrics::describe_counter!(
        "cache_redis_shared_total",
        "Keys that were asked for by a question which several readers shared"
    );
    metrics::describe_counter!(
        "cache_damaged_values_total",
        "Values in Redis that were corrupt or of an unknown format"
    );
    metrics::describe_counter!(
        "cache_oversized_values_total",
        "Values too large to be stored"
    );
    metrics::describe_counter!(
        "cache_unencodable_values_total",
        "Values that could not be written as they are, answered but not stored"
    );
    metrics::describe_counter!(
        "cache_invalidations_total",
        "Keys and tags invalidated by this process"
    );
    metrics::describe_counter!(
        "outbox_relayed_total",
        "Rows of the outbox applied to Redis by this process"
    );
    metrics::describe_counter!(
        "cache_epochs_total",
        "New epochs begun because Redis was empty or behind"
    );
    metrics::describe_gauge!(
        "outbox_lag_seconds",
        metrics::Unit::Seconds,
        "Age of the oldest invalidation not yet applied to Redis"
    );
    metrics::describe_gauge!(
        "cache_redis_suspended",
        "1 while Redis is not believed because the outbox lags"
    );
    metrics::describe_gauge!(
        "cache_memory_bytes",
        metrics::Unit::Bytes,
        "Bytes in the memory tier"
    );
}

const OVERLOADED: usize = 0;
const ERRORS: [&str; 6] = [
    "overloaded",
    "unavailable",
    "load",
    "timeout",
    "panic",
    "other",
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use metrics::{
        Counter, Gauge, Histogram, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit,
    };

    use super::*;

    /// Keeps the fresh answers from memory, and nothing else.
    #[derive(Default)]
    struct Hits(Arc<AtomicU64>);

    impl Recorder for Hits {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            let labels = [
                Label::from_static_parts("source", "memory"),
                Label::from_static_parts("stale", "false"),
            ];
            if key.name() == "cache_requests_total" && labels.iter().eq(key.labels()) {
                Counter::from_arc(self.0.clone())
            } else {
                Counter::noop()
            }
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn the_recorder_is_told_of_each_hit_once_and_not_at_the_hit() {
        let recorder = Hits::default();
        // Two caches of one process count into the same counter.
        let [one, other] = metrics::with_local_recorder(&recorder, || [Stats::new(), Stats::new()]);
        let exported = || recorder.0.load(Ordering::Relaxed);
        (0..3).for_each(|_| one.hit());
        other.hit();
        assert_eq!(exported(), 0);
        for _ in 0..2 {
            one.export_hits();
            other.export_hits();
            assert_eq!(exported(), 4);
        }
        one.answered(Source::Memory, false);
        one.hit();
        one.export_hits();
        assert_eq!(exported(), 6);
        assert_eq!(one.snapshot().memory, 5);
        other.hit();
        drop(other);
        assert_eq!(exported(), 7);
    }
}
