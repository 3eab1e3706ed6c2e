//! A read-through cache in front of SQL that stays correct through outages.
//!
//! A cache is easy while everything works. This one is written from the other end: what may a reader see when Redis is killed, frozen,
//! restarted from an old snapshot, or cut off from one process only; when a process dies between its commit and its invalidation;
//! when the database is at its limit? Each answer carries where it came from and why it is stale, if it is, and the rules that make it
//! so are in the pages of `docs/design/consistency.md`.
//!
//! ```no_run
//! use std::time::Duration;
//! use steadfast_cache::{Cache, Database, DatabaseOptions, Param, Ttl};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let database = Database::connect("sqlite://app.db", DatabaseOptions::default())?;
//! let client = steadfast::Client::builder("redis://127.0.0.1")?.build()?;
//! let cache = Cache::<String>::builder(database.clone())
//!     .redis(client)
//!     .namespace("app")
//!     .class("user", Ttl { fresh: Duration::from_secs(360), ..Ttl::default() })
//!     .build()
//!     .await?;
//!
//! let answer = cache
//!     .get("user:7", "user", move || async move {
//!         let rows = database.select("SELECT name FROM users WHERE id = ?", &[Param::Int(7)]).await?;
//!         Ok::<_, steadfast_cache::SourceError>(rows.first().map(|row| row["name"].to_string()))
//!     })
//!     .await?;
//! println!("{:?} from {}", answer.value, answer.source.as_str());
//! # Ok(()) }
//! ```

// What the databases share is used in full only where all of them are built in, as the tests build them.
#![cfg_attr(
    not(all(feature = "sqlite", feature = "mysql", feature = "postgres")),
    allow(unused)
)]

mod answer;
mod batch;
mod builder;
mod cache;
mod channel;
mod classes;
mod codec;
mod coherence;
mod ending;
mod envelope;
mod error;
mod flight;
mod freshness;
mod generation;
mod guard;
mod load;
mod moment;
mod names;
mod outbox;
mod pending;
mod relay;
mod repository;
mod sabotage;
mod source;
mod stats;
mod status;
mod target;
mod tier;
mod trust;
mod write;

pub use answer::{Answer, Source, StaleReason};
pub use batch::{ReadMany, Warmed};
pub use builder::{BuildError, CacheBuilder};
pub use cache::{Cache, Read};
pub use error::CacheError;
pub use freshness::{InvalidTtl, Ttl};
pub use guard::{ClassBound, ClassGuard, GuardOptions, GuardStatus};
pub use outbox::Transactional;
pub use repository::Repository;
#[cfg(any(test, feature = "sabotage"))]
#[doc(hidden)]
pub use sabotage::Sabotage;
pub use source::{
    Database, DatabaseOptions, DatabaseTls, DatabaseTlsMode, Executed, Param, Pool, Row,
    SourceError, Tx,
};
pub use stats::Counts;
pub use status::{CacheStatus, RedisTrust};
pub use target::Target;
pub use write::{Invalidation, Write, WriteError, Written};

/// The format in Redis, for the benchmark that measures it.
#[cfg(feature = "sabotage")]
#[doc(hidden)]
pub mod measured {
    use std::borrow::Cow;
    use std::time::Duration;

    use crate::envelope::Envelope;
    use crate::freshness::Lifetime;

    /// Encodes a value.
    pub fn seal(payload: &[u8], compress_above: usize) -> Vec<u8> {
        let life = Lifetime {
            fresh: Duration::from_secs(1),
            keep: Duration::from_secs(2),
        };
        let payload = Some(Cow::Borrowed(payload));
        Envelope {
            life,
            cost: Duration::ZERO,
            tags: Vec::new(),
            payload,
        }
        .encode(compress_above)
        .expect("there are no tags")
    }

    /// Decodes one; answers its length.
    pub fn open(bytes: &[u8]) -> usize {
        Envelope::decode(bytes, 1 << 20)
            .ok()
            .and_then(|envelope| envelope.payload)
            .map_or(0, |payload| payload.len())
    }
}
