//! A snapshot for people and pages.

use std::sync::Weak;
use std::time::Duration;

use tokio::sync::watch;

use crate::guard::GuardStatus;
use crate::monotonic::Monotonic;
use crate::parts::Inner;
use crate::stats::Counts;

/// A snapshot of a cache, of its work and its beliefs. Taken from what is known already: asks
/// nobody.
///
/// ```
/// use steadfast_cache::{CacheStatus, Counts, GuardStatus, RedisTrust};
///
/// fn line(status: &CacheStatus) -> String {
///     let Counts { loads, loads_failed, .. } = status.counts;
///     let GuardStatus { waiting, .. } = status.guard;
///     let shared = match &status.redis {
///         Some(RedisTrust { trusted: true, .. }) => "Redis is read",
///         _ => "memory only",
///     };
///     format!("{shared}; {loads_failed} of {loads} loads failed, {waiting} wait")
/// }
/// # fn example(cache: &steadfast_cache::Cache) {
/// println!("{}", line(&cache.status()));
/// # }
/// ```
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct CacheStatus {
    /// Counts since the cache was built.
    pub counts: Counts,
    /// The database's guard.
    pub guard: GuardStatus,
    /// Bytes in the memory tier, overhead included; lags a little.
    pub memory_bytes: u64,
    /// Entries in the memory tier; lags a little.
    pub memory_entries: u64,
    /// Whether memory is known to have heard of every invalidation; while not, its entries count as
    /// stale.
    pub memory_proven: bool,
    /// Loads under way, by key.
    pub flights: usize,
    /// The belief in Redis; `None` for a cache without one.
    pub redis: Option<RedisTrust>,
    /// Age of the oldest invalidation that waits in the outbox, as last seen.
    pub outbox_lag_ms: Option<u64>,
    /// The reason why the outbox cannot be looked at or drained, in words, if it cannot: the
    /// database is away, a right is missing, Redis refuses.
    pub outbox_trouble: Option<String>,
    /// A task of the cache that has failed within the last minute and was started again, or tasks
    /// that have ended with their runtime and wait for the next read or write within one.
    pub tasks_trouble: Option<String>,
    /// Invalidations of this process that Redis has not applied yet.
    pub outbox_pending: usize,
}

/// The belief of a cache in its Redis.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct RedisTrust {
    /// Whether values are read from it.
    pub trusted: bool,
    /// The reason why none are read, if that is the outbox, that the database was rolled back, or
    /// that another database uses the same namespace.
    pub suspended: Option<&'static str>,
    /// Whether the database was held against Redis since that was connected to, by a look that
    /// began when it was known how far Redis is. Until then the values of Redis count as stale;
    /// except that they count as fresh while memory does, for 1 s at most after the connection was
    /// lost, and while they are younger than 1 s.
    pub proven: bool,
    /// The epoch of its values, if it is known to be current.
    pub epoch: Option<String>,
    /// The watermark that Redis must have reached, as the database said last.
    pub watermark: u64,
    /// The slot of a cluster in which all of the namespace lies, and so on one shard; `None` where
    /// there is one server.
    pub slot: Option<u16>,
}

impl CacheStatus {
    pub(crate) fn of(inner: &Inner) -> Self {
        let redis = inner.redis.as_ref().map(|redis| {
            let (suspended, epoch) = (redis.epoch_guard.suspended(), redis.epoch_guard.epoch());
            RedisTrust {
                trusted: suspended.is_none() && epoch.is_some() && redis.is_reachable(),
                suspended,
                proven: redis.epoch_guard.is_proven(),
                epoch: epoch.map(|epoch| epoch.to_string()),
                watermark: redis.epoch_guard.known_watermark(),
                slot: redis.slot(),
            }
        });
        let relay = inner.relay.as_ref();
        inner.upkeep.ensure();
        inner.export();
        Self {
            counts: inner.stats.snapshot(),
            guard: inner.guard.status(),
            memory_bytes: inner.memory.bytes(),
            memory_entries: inner.memory.entries(),
            memory_proven: inner.coherence.is_proven(Monotonic::now()),
            flights: inner.flights.under_way(),
            redis,
            outbox_lag_ms: relay
                .and_then(|relay| relay.lag())
                .map(|lag| lag.as_millis() as u64),
            outbox_trouble: relay.and_then(|relay| relay.trouble()),
            tasks_trouble: inner.upkeep.trouble(),
            outbox_pending: relay.map_or(0, |relay| relay.pending.len()),
        }
    }
}

/// Tells the metrics recorder from time to time what would be too dear to tell at each step, until
/// the cache is gone.
pub(crate) async fn export(cache: Weak<Inner>, mut gone: watch::Receiver<()>) {
    let mut ticks = tokio::time::interval(EXPORT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = gone.changed() => return,
            _ = ticks.tick() => {}
        }
        if let Some(cache) = cache.upgrade() {
            cache.export();
        }
    }
}

impl Inner {
    fn export(&self) {
        self.stats.memory_bytes.set(self.memory.bytes() as f64);
        self.stats.export_hits();
    }
}

const EXPORT_EVERY: Duration = Duration::from_secs(1);
