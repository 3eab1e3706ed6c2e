//! A read-through cache in front of SQL that stays correct through outages.
//!
//! A cache is easy while everything works. This one is written from the other end: what may a
//! reader see when Redis is killed, frozen, restarted from an old snapshot, or cut off from one
//! process only; when a process dies between its commit and its invalidation; when the database is
//! at its limit? Each answer carries where it came from and why it is stale, if it is, and the
//! rules that make it so are in the pages of `docs/design/consistency.md`.
//!
//! One [`Cache`] serves an application; each of its types is read through a [`View`].
//!
//! ```
//! use std::time::Duration;
//! use steadfast_cache::{Cache, Database, DatabaseOptions, Param, Ttl, Tx, View};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let database = Database::connect("sqlite::memory:", DatabaseOptions::default())?;
//! # let mut tx = database.begin().await?;
//! # tx.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)", &[]).await?;
//! # tx.execute("INSERT INTO users VALUES (7, 'Ada')", &[]).await?;
//! # tx.commit().await?;
//! let cache = Cache::builder(database.clone())
//!     // .redis(steadfast::Client::builder("redis://127.0.0.1")?.build()?)
//!     .namespace("app")
//!     .class("user", Ttl { fresh: Duration::from_secs(360), ..Ttl::default() })
//!     .build()
//!     .await?;
//! let names: View<String> = cache.view("user")?.tag("users");
//!
//! let load = |id: i64| {
//!     let database = database.clone();
//!     move || async move {
//!         let sql = "SELECT name FROM users WHERE id = ?";
//!         let rows = database.select(sql, &[Param::Int(id)]).await?;
//!         Ok(rows.first().and_then(|row| row["name"].as_str()).map(str::to_owned))
//!     }
//! };
//! let answer = names.get(7, load(7)).await?;
//! assert_eq!((answer.value.as_deref(), answer.source.as_str()), (Some("Ada"), "database"));
//! assert_eq!(names.get(7, load(7)).await?.source.as_str(), "memory");
//!
//! // A change, and what it makes invalid, in one transaction. Others hear of it; this process
//! // reads its own write.
//! let rename = async |tx: &mut Tx| {
//!     let values = [Param::Text("Grace".into()), Param::Int(7)];
//!     tx.execute("UPDATE users SET name = ? WHERE id = ?", &values).await
//! };
//! cache.write(rename).invalidates([names.target(7)]).commit().await?;
//! assert_eq!(names.get(7, load(7)).await?.value.as_deref(), Some("Grace"));
//! # Ok(()) }
//! ```
//!
//! # What it needs
//! A [`Database`], which is a pool of sqlx, also where all loaders use another driver or ask
//! something else: invalidations lie in it until everybody has been told. Redis may be away, or not
//! there at all. A cache that was built without it writes no invalidations down, and other
//! processes hear nothing of them: what they hold lives until its time is over.
//!
//! # Features
//! `sqlite`, `mysql` (MariaDB too), `postgres`: the databases, none by default; SQLite is compiled
//! from its C sources. `tls` (default): TLS towards Redis and the database, by rustls. `chrono` and
//! `rust_decimal`: their dates, times and decimals as a [`Param`]; in rows they are read without,
//! as all types that serde knows.
//!
//! # Versions
//! Pools, transactions and errors of sqlx cross this interface, and the client of [`steadfast`], so
//! their incompatible versions are part of ours; those that fit are [`sqlx`] and [`steadfast`]
//! here. Before 1.0 a minor version may break.

#![cfg_attr(docsrs, feature(doc_cfg))]
// What the databases share is used in full only where all of them are built in, as the tests build
// them.
#![cfg_attr(
    not(all(feature = "sqlite", feature = "mysql", feature = "postgres")),
    allow(unused)
)]

mod answer;
mod builder;
mod cache;
mod classes;
mod clock;
mod codec;
pub mod defaults;
mod error;
mod flight;
mod freshness;
mod guard;
mod invalidate;
pub mod iso8601;
mod key;
mod monotonic;
mod outbox;
mod parts;
mod read;
mod relay;
mod repository;
mod sabotage;
mod sql;
mod stats;
mod status;
mod target;
mod tier;
mod under_way;
mod upkeep;

/// The sqlx whose pools and transactions cross this interface.
pub use sqlx;
/// The client whose connection the cache uses.
pub use steadfast;

pub use steadfast_core::policy::InvalidSetting;

pub use answer::{Answer, Source, StaleReason};
pub use builder::CacheBuilder;
pub use error::{BuildError, CacheError, LoadError, UnknownClass};
pub use freshness::{Lifetime, Ttl};
pub use guard::{ClassBound, ClassGuard, GuardOptions, GuardStatus};
pub use invalidate::{Commit, Invalidation, Statement, Write, WriteError, Written};
pub use key::{Key, KeyName};
pub use outbox::Transactional;
pub use parts::Cache;
pub use read::{Put, Read, ReadMany, View, Warmed};
pub use repository::Repository;
#[cfg(any(test, feature = "sabotage"))]
#[doc(hidden)]
pub use sabotage::Sabotage;
#[cfg(feature = "chrono")]
pub use sql::NotInCalendar;
pub use sql::{
    Bounds, Database, DatabaseOptions, DatabaseTls, DatabaseTlsMode, Executed, Kind, Lent, Param,
    ParamType, Pool, Row, Selected, SourceError, Tx,
};
pub use stats::Counts;
pub use status::{CacheStatus, RedisTrust};
pub use target::Target;

/// The format in Redis, for the benchmark that measures it.
#[cfg(feature = "sabotage")]
#[doc(hidden)]
pub mod measured {
    use std::borrow::Cow;
    use std::time::Duration;

    use crate::freshness::Life;
    use crate::tier::redis::envelope::Envelope;

    /// Encodes a value.
    pub fn seal(payload: &[u8], compress_above: usize) -> Vec<u8> {
        let life = Life {
            fresh: Duration::from_secs(1),
            keep: Duration::from_secs(2),
            own: false,
        };
        let payload = Some(Cow::Borrowed(payload));
        Envelope {
            life,
            cost: Duration::ZERO,
            type_version: 0,
            tags: Vec::new(),
            payload,
            expires: None,
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

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
