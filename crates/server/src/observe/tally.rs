//! The page shows what happened in the last second, and Prometheus what happened since the start.
//! Both are counted here, from one record per answer, by a few relaxed atomic additions: a read
//! served from memory takes less than a microsecond, and its accounting must not take longer.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

/// A read or a statement that takes longer is slow: what the alert `SteadfastReadsSlow` begins at.
pub(crate) const SLOW: Duration = Duration::from_millis(250);

/// The end of one read, as far as counting goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    Memory,
    Redis,
    Database,
    Failed,
}

/// Counts of reads since the start, by where the answer came from, with their latencies.
#[derive(Debug, Default)]
pub(crate) struct RequestStats {
    memory: AtomicU64,
    redis: AtomicU64,
    database: AtomicU64,
    failed: AtomicU64,
    stale: AtomicU64,
    slow: AtomicU64,
    writes: AtomicU64,
    writes_failed: AtomicU64,
    /// Failed reads that were not their callers' fault.
    faults: AtomicU64,
    latency: LatencyHistogram,
}

impl RequestStats {
    pub(crate) fn read(&self, outcome: ReadOutcome, stale: bool, took: Duration) {
        match outcome {
            ReadOutcome::Memory => &self.memory,
            ReadOutcome::Redis => &self.redis,
            ReadOutcome::Database => &self.database,
            ReadOutcome::Failed => &self.failed,
        }
        .fetch_add(1, Relaxed);
        if stale {
            self.stale.fetch_add(1, Relaxed);
        }
        if took > SLOW {
            self.slow.fetch_add(1, Relaxed);
        }
        self.latency.record(took);
    }

    /// A failed read was not its caller's fault.
    pub(crate) fn fault(&self) {
        self.faults.fetch_add(1, Relaxed);
    }

    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Relaxed)
    }

    pub(crate) fn write(&self) {
        self.writes.fetch_add(1, Relaxed);
    }

    /// A statement could not be run, by no fault of its caller.
    pub(crate) fn write_failed(&self) {
        self.writes_failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn counts(&self) -> ReadCounts {
        ReadCounts {
            memory: self.memory.load(Relaxed),
            redis: self.redis.load(Relaxed),
            database: self.database.load(Relaxed),
            failed: self.failed.load(Relaxed),
            stale: self.stale.load(Relaxed),
            slow: self.slow.load(Relaxed),
            writes: self.writes.load(Relaxed),
            writes_failed: self.writes_failed.load(Relaxed),
        }
    }

    pub(crate) fn latencies(&self) -> Buckets {
        self.latency.read()
    }
}

/// Counts at one moment, or between two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ReadCounts {
    pub(crate) memory: u64,
    pub(crate) redis: u64,
    pub(crate) database: u64,
    pub(crate) failed: u64,
    pub(crate) stale: u64,
    pub(crate) slow: u64,
    pub(crate) writes: u64,
    pub(crate) writes_failed: u64,
}

impl ReadCounts {
    /// What was counted from `earlier` to this; nothing where `earlier` was read later.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            memory: self.memory.saturating_sub(earlier.memory),
            redis: self.redis.saturating_sub(earlier.redis),
            database: self.database.saturating_sub(earlier.database),
            failed: self.failed.saturating_sub(earlier.failed),
            stale: self.stale.saturating_sub(earlier.stale),
            slow: self.slow.saturating_sub(earlier.slow),
            writes: self.writes.saturating_sub(earlier.writes),
            writes_failed: self.writes_failed.saturating_sub(earlier.writes_failed),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            memory: self.memory + other.memory,
            redis: self.redis + other.redis,
            database: self.database + other.database,
            failed: self.failed + other.failed,
            stale: self.stale + other.stale,
            slow: self.slow + other.slow,
            writes: self.writes + other.writes,
            writes_failed: self.writes_failed + other.writes_failed,
        }
    }

    /// Reads that were answered.
    pub(crate) fn answered(self) -> u64 {
        self.memory + self.redis + self.database
    }

    pub(crate) fn reads(self) -> u64 {
        self.memory + self.redis + self.database + self.failed
    }

    /// Share of answered reads that no database was asked for; `None` without any.
    pub(crate) fn hit_rate(self) -> Option<f64> {
        share(self.memory + self.redis, self.reads() - self.failed)
    }

    /// Share of answered reads for which the database was asked; `None` without any.
    pub(crate) fn fallback_rate(self) -> Option<f64> {
        share(self.database, self.reads() - self.failed)
    }

    /// Returns all rates by name.
    pub(crate) fn rates(self) -> Rates {
        Rates {
            hit: self.hit_rate(),
            fallback: self.fallback_rate(),
            error: self.error_rate(),
        }
    }

    /// Share of reads that failed; `None` without any.
    pub(crate) fn error_rate(self) -> Option<f64> {
        share(self.failed, self.reads())
    }
}

/// Shares of reads, from 0 to 1; `None` without any.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Rates {
    hit: Option<f64>,
    fallback: Option<f64>,
    error: Option<f64>,
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Eight buckets to each doubling, from one microsecond to over an hour: within 12 % of the truth.
const PER_DOUBLING: u32 = 8;
const BUCKETS: usize = 33 * PER_DOUBLING as usize;

#[derive(Debug)]
pub(crate) struct LatencyHistogram {
    buckets: Box<[AtomicU64]>,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl LatencyHistogram {
    pub(crate) fn record(&self, took: Duration) {
        self.buckets[bucket(took)].fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Buckets {
        Buckets(
            self.buckets
                .iter()
                .map(|count| count.load(Relaxed))
                .collect(),
        )
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let doubling = micros.ilog2();
    // The three bits below the highest tell the eighth.
    let eighth = if doubling >= 3 {
        (micros >> (doubling - 3)) & 7
    } else {
        (micros << (3 - doubling)) & 7
    };
    ((doubling * PER_DOUBLING) as usize + eighth as usize).min(BUCKETS - 1)
}

/// The upper edge of a bucket, in milliseconds.
fn edge_ms(bucket: usize) -> f64 {
    let doubling = bucket / PER_DOUBLING as usize;
    let eighth = bucket % PER_DOUBLING as usize;
    2_f64.powi(i32::try_from(doubling).unwrap_or(i32::MAX)) * (1.0 + (eighth as f64 + 1.0) / 8.0)
        / 1e3
}

/// Latencies at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buckets(Vec<u64>);

impl Buckets {
    /// The quantiles between an earlier moment and this one, in milliseconds; `None` where nothing
    /// was recorded.
    pub(crate) fn quantiles_since<const N: usize>(
        &self,
        earlier: &Self,
        quantiles: [f64; N],
    ) -> [Option<f64>; N] {
        let before = |index: usize| earlier.0.get(index).copied().unwrap_or(0);
        let counts: Vec<u64> = self
            .0
            .iter()
            .enumerate()
            .map(|(index, count)| count - before(index))
            .collect();
        let total: u64 = counts.iter().sum();
        quantiles.map(|quantile| {
            let rank = ((total as f64 * quantile).ceil() as u64).max(1);
            let mut seen = 0;
            let found = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            found.filter(|_| total > 0).map(edge_ms)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_are_those_of_the_interval() {
        let tally = RequestStats::default();
        for _ in 0..100 {
            tally.read(ReadOutcome::Memory, false, Duration::from_secs(1));
        }
        let earlier = tally.latencies();
        let counts = tally.counts();
        for _ in 0..99 {
            tally.read(ReadOutcome::Redis, false, Duration::from_micros(100));
        }
        tally.read(ReadOutcome::Failed, false, Duration::from_millis(50));
        let [p50, p99, max] = tally
            .latencies()
            .quantiles_since(&earlier, [0.5, 0.99, 1.0]);
        assert!((0.1..0.12).contains(&p50.unwrap()), "{p50:?}");
        assert!((0.1..0.12).contains(&p99.unwrap()), "{p99:?}");
        assert!((50.0..57.0).contains(&max.unwrap()), "{max:?}");
        let interval = tally.counts().since(counts);
        assert_eq!(
            (interval.memory, interval.redis, interval.failed),
            (0, 99, 1)
        );
        assert_eq!(interval.error_rate(), Some(0.01));
        assert_eq!(interval.hit_rate(), Some(1.0));
        assert_eq!(interval.rates().fallback, Some(0.0));
        assert_eq!(ReadCounts::default().rates().hit, None);
        let now = tally.latencies();
        assert_eq!(now.quantiles_since(&now, [0.5]), [None]);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_duration_within_an_eighth(micros in 1_u64..1 << 32) {
            let index = bucket(Duration::from_micros(micros));
            let millis = micros as f64 / 1e3;
            prop_assert!(edge_ms(index) > millis * 0.999);
            prop_assert!(edge_ms(index) <= millis * 1.126 || micros < 8);
        }
    }

    #[test]
    fn no_duration_is_out_of_bounds() {
        assert!(bucket(Duration::ZERO) < BUCKETS);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }
}
