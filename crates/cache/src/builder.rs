//! Settings of a cache, refused once, at the door.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use steadfast::Client;

use crate::cache::{Cache, Inner};
use crate::codec::Codec;
use crate::coherence::Coherence;
use crate::flight::Flights;
use crate::freshness::{InvalidTtl, Ttl};
use crate::generation::Generations;
use crate::guard::{Guard, GuardOptions};
use crate::names::Names;
use crate::outbox::Outbox;
use crate::relay::{Relay, RelayOptions, Served};
use crate::sabotage::Sabotage;
use crate::source::Database;
use crate::stats::Stats;
use crate::tier::memory::Memory;
use crate::tier::redis::{RedisOptions, RedisTier};
use crate::trust::Trust;

/// Collects the settings of a [`Cache`].
#[must_use]
pub struct CacheBuilder<V> {
    pub(crate) database: Database,
    codec: Codec<V>,
    redis: Option<Client>,
    namespace: String,
    classes: Vec<(Box<str>, Ttl)>,
    guard: GuardOptions,
    memory_bytes: u64,
    value_max: usize,
    compress_above: usize,
    redis_limit: Duration,
    lease_wait: Duration,
    outbox_poll: Duration,
    outbox_lag_max: Duration,
    seed: Option<u64>,
    sabotage: Sabotage,
}

/// A cache cannot be built so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No class was given, so nothing could be read.
    #[error("a cache needs at least one class; add one with CacheBuilder::class")]
    NoClass,
    /// A class was given twice.
    #[error("the class {class:?} is given twice")]
    ClassTwice {
        /// Its name.
        class: String,
    },
    /// A class has a setting that means nothing.
    #[error("class {class:?}: {problem}")]
    Class {
        /// Its name.
        class: String,
        /// The setting and what is wrong with it.
        problem: InvalidTtl,
    },
    /// Another setting means nothing.
    #[error("{0}")]
    Setting(&'static str),
}

impl<V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> Cache<V> {
    /// A cache of values that are kept as JSON in Redis and decoded in memory. A hit clones the value: where that is dear,
    /// let `V` be an `Arc`.
    pub fn builder(database: Database) -> CacheBuilder<V> {
        CacheBuilder::new(database, Codec::json())
    }
}

impl Cache<Bytes> {
    /// A cache of bytes that the caller has encoded, kept as they are in both tiers.
    pub fn builder_of_bytes(database: Database) -> CacheBuilder<Bytes> {
        CacheBuilder::new(database, Codec::bytes())
    }
}

impl<V: Clone + Send + Sync + 'static> CacheBuilder<V> {
    fn new(database: Database, codec: Codec<V>) -> Self {
        Self {
            database,
            codec,
            redis: None,
            namespace: "steadfast".to_owned(),
            classes: Vec::new(),
            guard: GuardOptions::default(),
            memory_bytes: 64 << 20,
            value_max: 1 << 20,
            compress_above: 4 << 10,
            redis_limit: Duration::from_millis(100),
            lease_wait: Duration::from_secs(1),
            outbox_poll: Duration::from_millis(250),
            outbox_lag_max: Duration::from_secs(1),
            seed: None,
            sabotage: Sabotage::default(),
        }
    }

    /// The Redis that the processes share. Without one the cache lives in this process alone, and hears of no
    /// invalidation by another.
    pub fn redis(mut self, client: Client) -> Self {
        self.redis = Some(client);
        self
    }

    /// Prefix of every key in Redis, and the name under which invalidations are kept in SQL. Default `steadfast`. Two programs with
    /// different values must not share one.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Adds a class of data with its times to live.
    pub fn class(mut self, name: impl Into<Box<str>>, ttl: Ttl) -> Self {
        self.classes.push((name.into(), ttl));
        self
    }

    /// Bounds on what is asked of the database.
    pub fn guard(mut self, guard: GuardOptions) -> Self {
        self.guard = guard;
        self
    }

    /// The memory tier holds at most so many bytes of encoded values, keys and overhead. Default 64 MiB. Decoded values may take
    /// more than their encoding.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// A value that is longer when encoded is answered but kept in no tier. Default 1 MiB.
    pub fn value_max(mut self, bytes: usize) -> Self {
        self.value_max = bytes;
        self
    }

    /// A value longer than this is compressed in Redis. Default 4 KiB.
    pub fn compress_above(mut self, bytes: usize) -> Self {
        self.compress_above = bytes;
        self
    }

    /// What one question to Redis may add to a read. Default 100 ms.
    pub fn redis_limit(mut self, limit: Duration) -> Self {
        self.redis_limit = limit;
        self
    }

    /// A load waits this long for the value of another process that holds the key's lease, before it asks the database itself. Default 1 s.
    pub fn lease_wait(mut self, wait: Duration) -> Self {
        self.lease_wait = wait;
        self
    }

    /// How often each process looks for invalidations that were left behind. Default 250 ms; costs one small query each time.
    pub fn outbox_poll(mut self, every: Duration) -> Self {
        self.outbox_poll = every;
        self
    }

    /// Redis is not read while an invalidation has waited longer than this to be applied to it. Default 1 s.
    pub fn outbox_lag_max(mut self, lag: Duration) -> Self {
        self.outbox_lag_max = lag;
        self
    }

    /// Makes the random choices (jitter, tokens) repeat themselves, for a test. Processes that share a Redis must not share a seed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Breaks one rule, to prove that the rule is needed.
    #[cfg(any(test, feature = "sabotage"))]
    #[doc(hidden)]
    pub fn sabotage(mut self, sabotage: Sabotage) -> Self {
        self.sabotage = sabotage;
        self
    }

    /// Builds the cache. Neither Redis nor the database need be there. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BuildError`] names the setting that cannot be.
    pub async fn build(self) -> Result<Cache<V>, BuildError> {
        self.check()?;
        let now = tokio::time::Instant::now().into_std();
        let seed = self.seed.unwrap_or_else(entropy);
        let stats = Arc::new(Stats::new());
        let longest = self
            .classes
            .iter()
            .map(|(_, ttl)| ttl.fresh + ttl.stale + ttl.negative + ttl.hard_limit)
            .max();
        let outbox = Outbox::new(self.database.clone(), &self.namespace);
        let redis = self.redis.map(|client| {
            let options = RedisOptions {
                names: Names::new(&self.namespace),
                limit: self.redis_limit,
                value_max: self.value_max,
                compress_above: self.compress_above,
                tag_life: longest.unwrap_or_default() + Duration::from_secs(3600),
                seed: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15),
                lease_checked: !self.sabotage.lease_unchecked,
            };
            let trust = Trust::new(Some(outbox.clone()), !self.sabotage.watermark_ignored);
            Arc::new(RedisTier::new(client, options, trust, stats.clone()))
        });
        let coherence = Arc::new(match &redis {
            Some(_) => Coherence::unproven(now),
            None => Coherence::alone(now),
        });
        let guard = Guard::new(&self.guard, now);
        let relay_options = RelayOptions {
            poll: self.outbox_poll,
            lag_max: self.outbox_lag_max,
            rows_max: OUTBOX_ROWS,
        };
        let relay = redis.clone().map(|redis| {
            let served = Served {
                redis,
                coherence: coherence.clone(),
                guard: guard.clone(),
                stats: stats.clone(),
            };
            Arc::new(Relay::new(outbox, served, &relay_options))
        });
        if let Some(relay) = &relay
            && let Err(error) = relay.prepare().await
        {
            tracing::warn!(%error, "the outbox's tables cannot be made yet");
        }
        let inner = Inner {
            classes: ArcSwap::from_pointee(self.classes),
            memory: Memory::new(self.memory_bytes),
            generations: Generations::new(),
            flights: Arc::new(Flights::new(!self.sabotage.flight_not_detached)),
            guard,
            coherence,
            redis,
            relay,
            database: self.database,
            codec: self.codec,
            value_max: self.value_max,
            lease_wait: self.lease_wait,
            draws: seed.into(),
            stats,
            sabotage: self.sabotage,
            gone: tokio::sync::watch::Sender::default(),
        };
        let cache = Cache::start(inner);
        cache.settle(self.redis_limit * 2).await;
        Ok(cache)
    }

    fn check(&self) -> Result<(), BuildError> {
        if self.classes.is_empty() {
            return Err(BuildError::NoClass);
        }
        check_classes(&self.classes)?;
        if let Some(problem) = self.guard.problem() {
            return Err(BuildError::Setting(problem));
        }
        if self.namespace.is_empty()
            || self.namespace.len() > 64
            || self.namespace.contains(['{', '}'])
        {
            return Err(BuildError::Setting(
                "namespace must have 1 to 64 bytes and no braces",
            ));
        }
        if self.redis_limit.is_zero() {
            return Err(BuildError::Setting("redis_limit must be above zero"));
        }
        if self.outbox_poll.is_zero() || self.outbox_lag_max.is_zero() {
            return Err(BuildError::Setting(
                "outbox_poll and outbox_lag_max must be above zero",
            ));
        }
        if self.value_max > 512 << 20 {
            return Err(BuildError::Setting(
                "value_max must be at most 512 MiB, which is what Redis can hold",
            ));
        }
        Ok(())
    }
}

/// Refuses a class that is given twice, or whose times mean nothing.
pub(crate) fn check_classes(classes: &[(Box<str>, Ttl)]) -> Result<(), BuildError> {
    for (at, (class, ttl)) in classes.iter().enumerate() {
        let named = || class.to_string();
        if classes[..at].iter().any(|(earlier, _)| earlier == class) {
            return Err(BuildError::ClassTwice { class: named() });
        }
        ttl.validate().map_err(|problem| BuildError::Class {
            class: named(),
            problem,
        })?;
    }
    Ok(())
}

/// Invalidations that may wait; past it one that invalidates everything takes their place.
const OUTBOX_ROWS: i64 = 100_000;

/// A seed from the operating system, by way of the standard library's hash keys.
fn entropy() -> u64 {
    RandomState::new().build_hasher().finish()
}
