//! The answer of a read: the value, and where it came from.

use std::time::Duration;

/// The value of a read with its provenance.
///
/// ```no_run
/// # use steadfast_cache::{Answer, Source, StaleReason};
/// # fn f(answer: Answer<String>) {
/// match answer.stale {
///     None => println!("{:?}, from {}", answer.value, answer.source.as_str()),
///     Some(StaleReason::Slow) => println!("an old one, while a newer is on its way"),
///     Some(why) => println!("an old one: {}", why.as_str()),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer<V> {
    /// The value; `None` if the source says that there is none.
    pub value: Option<V>,
    /// The origin of the value.
    pub source: Source,
    /// Time since it was loaded from the database; zero for a default.
    pub age: Duration,
    /// The time for which it is, or was, fresh from then on: what its class says, with jitter; for
    /// absence its own. Zero for a default.
    pub fresh_for: Duration,
    /// The reason why it is not fresh, if it is not.
    pub stale: Option<StaleReason>,
}

/// The origin of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
// Four bytes, as the reason: together one word. A processor waits when it copies as a word what was
// just written as two bytes.
#[repr(u32)]
pub enum Source {
    /// This process's memory.
    Memory,
    /// Redis.
    Redis,
    /// The caller's loader, which is to say the database.
    Database,
    /// The default that the caller gave, because all else failed.
    Default,
}

/// The reason why an answer is not fresh: what kept the cache from loading a better one in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[repr(u32)]
pub enum StaleReason {
    /// The load took longer than the soft limit and goes on.
    Slow,
    /// The database is at the limit of what it may be asked.
    Overloaded,
    /// The load failed, or the database is known to be failing.
    Failed,
}

impl Source {
    /// All sources.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Redis, Self::Database, Self::Default];

    /// `memory`, `redis`, `database` or `default`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Database => "database",
            Self::Default => "default",
        }
    }
}

impl StaleReason {
    /// `slow`, `overloaded` or `failed`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Overloaded => "overloaded",
            Self::Failed => "failed",
        }
    }
}
