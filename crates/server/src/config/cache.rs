//! `[cache]` and `[ttl.NAME]`: the tiers, and how long what is in them is good. The defaults are
//! the cache's own.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use steadfast_cache::{Ttl, defaults};

use super::database::GuardConfig;
use super::section::Section;
use super::units::{Bytes, duration};

/// `[cache]`: the tiers and their limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CacheConfig {
    /// Bound of the memory tier; default 64 MiB.
    pub memory_bytes: Bytes,
    /// Largest value that is cached; default 1 MiB.
    pub value_max: Bytes,
    /// Size from which values are compressed in Redis; default 4 KiB.
    pub compress_above: Bytes,
    /// The longest that a read waits for Redis; default 100 ms.
    #[serde(serialize_with = "duration")]
    pub redis_limit: Duration,
    /// How often each process looks at the outbox; default 250 ms.
    #[serde(serialize_with = "duration")]
    pub outbox_poll: Duration,
    /// Age of an unapplied invalidation from which Redis is not believed; default 1 s.
    #[serde(serialize_with = "duration")]
    pub outbox_lag_max: Duration,
}

impl CacheConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let bytes = |key: &str, default| section.bytes(key).unwrap_or(Bytes(default));
        let positive = |key: &str, default| section.positive(key).unwrap_or(default);
        let config = Self {
            memory_bytes: bytes("memory_bytes", defaults::MEMORY_BYTES),
            value_max: bytes("value_max", defaults::VALUE_MAX),
            compress_above: bytes("compress_above", defaults::COMPRESS_ABOVE),
            redis_limit: positive("redis_limit", defaults::REDIS_LIMIT),
            outbox_poll: positive("outbox_poll", defaults::OUTBOX_POLL),
            outbox_lag_max: positive("outbox_lag_max", defaults::OUTBOX_LAG_MAX),
        };
        if config.value_max > config.memory_bytes {
            let message = "is larger than `cache.memory_bytes`: such a value could never be kept";
            section.refuse(section.mistake("value_max", message));
        }
        if config.outbox_poll > config.outbox_lag_max {
            let message = "is longer than `cache.outbox_lag_max`: Redis would be distrusted between two looks";
            section.refuse(section.mistake("outbox_poll", message));
        }
        config
    }
}

/// `[ttl.NAME]`: a class of time to live.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TtlConfig {
    /// How long a value is fresh; default 6 min.
    #[serde(serialize_with = "duration")]
    pub fresh: Duration,
    /// How long after that it may be served stale when it cannot be refreshed; default 1 h, `0s`
    /// for never.
    #[serde(serialize_with = "duration")]
    pub stale: Duration,
    /// Share of `fresh` by which it is shortened at random, so that values do not expire together;
    /// default 0.1.
    pub jitter: f64,
    /// How long an empty answer is kept; default 10 s, `0s` for not at all.
    #[serde(serialize_with = "duration")]
    pub negative: Duration,
    /// Eagerness of the refresh ahead of expiry of what is hot; default 1, 0 turns it off.
    pub early_refresh: f64,
    /// Time a load may take before a stale value is served in its stead; default 100 ms.
    #[serde(serialize_with = "duration")]
    pub soft_limit: Duration,
    /// Time a load may take at all; default 5 s.
    #[serde(serialize_with = "duration")]
    pub hard_limit: Duration,
    /// Time after a failed load in which a value that can be served as stale is not loaded again;
    /// default 1 s, 0 tries at each read.
    #[serde(serialize_with = "duration")]
    pub retry_after: Duration,
    /// `[ttl.NAME.guard]`: bounds of its own within those of `[database.guard]`; default none. A
    /// change needs a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardConfig>,
}

impl TtlConfig {
    fn read(section: &Section<'_>, whole: &GuardConfig) -> Self {
        let guard = section.section("guard");
        let default = Ttl::default();
        let duration = |key: &str, default| section.duration(key).unwrap_or(default);
        let positive = |key: &str, default| section.positive(key).unwrap_or(default);
        let config = Self {
            guard: GuardConfig::read_within(&guard, whole),
            fresh: positive("fresh", default.fresh),
            stale: duration("stale", default.stale),
            jitter: section.number("jitter", 0.0, 0.9).unwrap_or(default.jitter),
            negative: duration("negative", default.negative),
            early_refresh: section
                .number("early_refresh", 0.0, 100.0)
                .unwrap_or(default.early_refresh),
            soft_limit: positive("soft_limit", default.soft_limit),
            hard_limit: positive("hard_limit", default.hard_limit),
            retry_after: duration("retry_after", default.retry_after),
        };
        if config.soft_limit > config.hard_limit {
            let message = "is longer than `hard_limit`: a load would be given up before a stale value is tried";
            let key = if section.has("soft_limit") {
                "soft_limit"
            } else {
                "hard_limit"
            };
            section.refuse(section.mistake(key, message));
        }
        guard.finish();
        config
    }

    pub(crate) fn read_all(root: &Section<'_>, whole: &GuardConfig) -> BTreeMap<String, Self> {
        root.sections("ttl")
            .into_iter()
            .map(|(name, section)| {
                let config = Self::read(&section, whole);
                section.finish();
                (name, config)
            })
            .collect()
    }
}
