//! The lab breaks things for whoever can answer these few questions, and knows nothing else of what
//! it drives. So a drill can be run on a resilient cache, on a plain client beside it, or on a
//! stand-in in a test, and each is judged alike.
//!
//! A subject is an application in small: numbered rows in SQL, each holding a version that only
//! grows, read through whatever cache the subject has. The lab remembers which version was
//! committed when, so it needs to believe nobody: an answer that is older than it may be, and does
//! not say so, is wrong.
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::Mutex;
//! use std::time::Duration;
//! use futures_util::future::{BoxFuture, FutureExt, ready};
//! use steadfast_drill::subject::{
//!     Answer, DatabaseFault, Facts, Failure, SetUpError, Source, Subject,
//! };
//!
//! /// The least of them: its "database" is a map, and it has no Redis.
//! #[derive(Default)]
//! struct Mine(Mutex<HashMap<u64, u64>>);
//!
//! impl Subject for Mine {
//!     fn warm(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
//!         self.0.lock().unwrap().extend((0..keys).map(|key| (key, 0)));
//!         ready(Ok(())).boxed()
//!     }
//!
//!     fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
//!         let version = self.0.lock().unwrap().get(&key).copied();
//!         let (source, age, stale) = (Source::Database, Duration::ZERO, None);
//!         let answer = version.map(|version| Answer { source, version, age, stale });
//!         ready(answer.ok_or(Failure { kind: "database" })).boxed()
//!     }
//!
//!     fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
//!         let mut rows = self.0.lock().unwrap();
//!         let row = rows.entry(key).or_default();
//!         *row = version.max(*row);
//!         ready(Ok(())).boxed()
//!     }
//!
//!     fn database_fault(&self, _fault: DatabaseFault) {}
//!
//!     fn facts(&self) -> Facts {
//!         Facts::default()
//!     }
//!
//!     fn shutdown(&self) -> BoxFuture<'_, ()> {
//!         ready(()).boxed()
//!     }
//! }
//! ```

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::scenario::Store;

/// An application in small that the lab drives. Every method may be called from many tasks at once,
/// at any time between `start` and `shutdown`.
pub trait Subject: Send + Sync {
    /// Makes the rows `0..keys` exist with version 0, and fills the caches with them as far as that
    /// can be done. Called once, before any load and with nothing broken. The lab allows it 30 s.
    fn warm(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>>;

    /// Reads one row as a user would. It ends within the subject's own deadline; the lab measures,
    /// and does not hurry it.
    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>>;

    /// Raises the row's version to `version`, and returns once that is committed and invalidated as
    /// well as the subject can.
    ///
    /// A version never goes down, whatever the order in which writes arrive:
    /// `SET version = :v WHERE id = :k AND version < :v`. A failure means that the write may or may
    /// not have happened.
    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>>;

    /// Slows or breaks the subject's own database from now on, or heals it. It acts on every query
    /// and statement that `read` and `write` cause (an embedded database has no wire that could be
    /// cut). Must take effect at once.
    fn database_fault(&self, fault: DatabaseFault);

    /// Counts since the start, and the states now. Cheap: asked a hundred times a second.
    fn facts(&self) -> Facts;

    /// Ends every task and connection of the subject. The lab allows it 5 s, then drops it.
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}

/// Makes subjects: one that is resilient and, for comparison, one that is not and one whose
/// resilience is built by hand.
pub trait SubjectFactory: Send + Sync {
    /// Starts a subject of that role with a new, empty database of its own.
    fn start(
        &self,
        role: Role,
        endpoint: Endpoint,
    ) -> BoxFuture<'_, Result<Box<dyn Subject>, SetUpError>>;
}

/// The role of a subject in a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The one that is judged.
    Resilient,
    /// The control: the same application as it is written without thought of outages.
    Plain,
    /// The second control: the same application with resilience built by hand.
    HandBuilt,
}

/// Where a subject finds its Redis. It belongs to this subject alone, and the lab is about to break
/// it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// `redis://[user:password@]host:port/0`, or `rediss://`; the password is the one valid at the
    /// start.
    pub redis_url: String,
    /// If set, the current password stands in this file and may change while the drill runs, as a
    /// token would. A subject that can follow it should; others use the password of the URL.
    pub password_file: Option<PathBuf>,
    /// With `rediss://`, the authority that signed the server's certificate, as PEM.
    pub ca_file: Option<PathBuf>,
    /// A folder for the subject's own files. It is gone with the drill, also when that is killed.
    pub folder: Option<PathBuf>,
    /// Whether a subject that has a tier in memory is to use it.
    pub memory: bool,
    /// Whether the subject keeps its data in Redis itself, without a database: `redis_url` is then
    /// one of sentinels or of a cluster, a write is a [`LedgerWrite`](crate::ledger::LedgerWrite),
    /// and a read asks for a [name](crate::ledger::name_of).
    pub ledger: bool,
}

impl Role {
    /// Returns the subject's name in reports.
    pub fn title(self) -> &'static str {
        match self {
            Role::Resilient => "Steadfast",
            Role::Plain => "Plain client",
            Role::HandBuilt => "Built by hand",
        }
    }

    /// Returns what a subject is made of, and so what can be expected of it.
    pub(crate) fn built(self, store: Store) -> &'static str {
        match self {
            Role::Plain if store == Store::Sentinel => {
                "redis-rs with its own client for sentinels, which asks one of them at each connection"
            }
            Role::Plain if store == Store::Cluster => "redis-rs with its own client for clusters",
            Role::Resilient if store != Store::Cache => {
                "this client on its defaults, without a cache"
            }
            Role::Resilient => "this client and cache on their defaults",
            Role::Plain => {
                "redis-rs as its documentation shows it, with a read-through cache; it has neither a tier in memory nor a way round Redis, \
                 so that its reads fail while Redis does follows from how it is built"
            }
            Role::HandBuilt => {
                "an application with a pool, time-outs of 3 s, five attempts with pauses from 1 s, a breaker, and the database where Redis does not answer; \
                 it has no tier in memory, and forgets a deletion that has failed"
            }
        }
    }
}

impl Endpoint {
    /// An endpoint whose password, if any, stands in the URL for good.
    pub fn new(redis_url: impl Into<String>) -> Self {
        Self {
            redis_url: redis_url.into(),
            password_file: None,
            ca_file: None,
            folder: None,
            memory: true,
            ledger: false,
        }
    }

    /// Adds that the subject's data are in Redis itself.
    #[must_use]
    pub fn keeping_a_ledger(mut self) -> Self {
        self.ledger = true;
        self
    }

    /// Adds a file in which the current password is kept.
    #[must_use]
    pub fn with_password_file(mut self, file: PathBuf) -> Self {
        self.password_file = Some(file);
        self
    }

    /// Adds an authority that is believed.
    #[must_use]
    pub fn with_ca_file(mut self, file: PathBuf) -> Self {
        self.ca_file = Some(file);
        self
    }

    /// Leaves out the tier in memory.
    #[must_use]
    pub fn without_memory(mut self) -> Self {
        self.memory = false;
        self
    }

    /// Adds a folder for the subject's own files.
    #[must_use]
    pub fn with_folder(mut self, folder: PathBuf) -> Self {
        self.folder = Some(folder);
        self
    }
}

/// The URL may hold a password, so it is not shown.
impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("password_file", &self.password_file)
            .field("ca_file", &self.ca_file)
            .field("folder", &self.folder)
            .field("memory", &self.memory)
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

/// A read that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The tier that answered.
    pub source: Source,
    /// The version of the row in the answer.
    pub version: u64,
    /// How long ago the answer was read from the database, by the subject's own account.
    pub age: Duration,
    /// Whether the answer may be out of date, as the subject says; none if it cannot say so.
    pub stale: Option<bool>,
}

impl Answer {
    /// Builds the answer of an application whose data are in Redis itself: it is never out of date,
    /// and a key that was never written has version 0.
    pub fn of_redis_itself(version: Option<u64>) -> Self {
        Self {
            source: Source::Redis,
            version: version.unwrap_or(0),
            age: Duration::ZERO,
            stale: Some(false),
        }
    }
}

/// A tier that answers reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The memory of the process.
    Memory,
    /// Redis.
    Redis,
    /// SQL.
    Database,
}

/// A call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Why, as one of a handful of labels: `timeout`, `redis`, `database`, `overloaded`,
    /// `unavailable`… A subject that keeps a ledger says of a write by `not_sent` and `rejected`
    /// that it was not applied; it is judged by that.
    pub kind: &'static str,
}

impl Failure {
    /// Returns whether the subject says by this that a write was not applied.
    #[must_use]
    pub fn denies(&self) -> bool {
        matches!(self.kind, "not_sent" | "rejected")
    }
}

/// A subject could not be started or warmed.
#[derive(Debug, thiserror::Error)]
#[error("the subject could not be set up: {0}")]
pub struct SetUpError(pub String);

/// The state of a subject's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseFault {
    /// Nothing.
    Healthy,
    /// Each query takes this much longer.
    Slow(Duration),
    /// Each query fails at once.
    Down,
}

/// A subject's own counts and states. Counts only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The connection to Redis now.
    pub connection: Connection,
    /// The circuit breaker now; one that has none is always closed.
    pub breaker: Breaker,
    /// Attempts to connect to Redis.
    pub attempts: u64,
    /// Connections made after the first.
    pub reconnects: u64,
    /// Times a supervisor was found stuck and reset.
    pub stuck_resets: u64,
    /// Calls to Redis that were answered: the same calls of which `redis_failed` are the others.
    pub redis_ok: u64,
    /// Calls to Redis that failed, or were refused without being sent.
    pub redis_failed: u64,
    /// All that Redis answered, also to what the subject asks it on its own account to see whether
    /// it lives.
    pub redis_replies: u64,
    /// Queries and statements sent to the database.
    pub sql_queries: u64,
    /// How often it asked who owns which slots of a cluster; `None` if it does not tell.
    pub discoveries: Option<u64>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            connection: Connection::Connecting,
            breaker: Breaker::Closed,
            attempts: 0,
            reconnects: 0,
            stuck_resets: 0,
            redis_ok: 0,
            redis_failed: 0,
            redis_replies: 0,
            sql_queries: 0,
            discoveries: None,
        }
    }
}

/// The state of a subject's connection to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    /// Not there yet, or being made anew.
    Connecting,
    /// In service.
    Ready,
    /// Believed not to answer.
    Down,
}

/// The state of a subject's circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Breaker {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls pass, on trial.
    HalfOpen,
}
