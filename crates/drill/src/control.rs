//! The common parts of the controls: a table of rows, what each keeps of a row in Redis, and what
//! it counts. How each goes to Redis, and what it does when that fails, is its own.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::{RedisError, TlsCertificates};
use tokio::time::{Instant, sleep};

use crate::subject::{
    Answer, Breaker, Connection, DatabaseFault, Endpoint, Facts, Failure, SetUpError, Source,
    Subject,
};

/// The SQL below a control.
pub trait Table: Send + Sync {
    /// Makes the rows `0..keys` exist with version 0.
    fn create(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>>;
    /// The version of a row.
    fn version(&self, key: u64) -> BoxFuture<'_, Result<u64, Failure>>;
    /// Raises the version of a row; never lowers it.
    fn raise(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>>;
    /// Breaks or heals the database, as [`Subject::database_fault`].
    fn fault(&self, fault: DatabaseFault);
}

/// The rows of one control, and what it counts.
pub(crate) struct Rows {
    /// Of its keys in Redis.
    prefix: &'static str,
    pub(crate) table: Box<dyn Table>,
    pub(crate) counts: Counts,
    begun: Instant,
}

/// Counts since the start.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) attempts: AtomicU64,
    pub(crate) connected: AtomicU64,
    pub(crate) lost: AtomicU64,
    redis_ok: AtomicU64,
    redis_failed: AtomicU64,
    sql_queries: AtomicU64,
}

impl Rows {
    pub(crate) fn new(prefix: &'static str, table: Box<dyn Table>) -> Self {
        Self {
            prefix,
            table,
            counts: Counts::default(),
            begun: Instant::now(),
        }
    }

    /// The row's key in Redis.
    pub(crate) fn name(&self, key: u64) -> String {
        format!("{}:{key}", self.prefix)
    }

    /// Milliseconds since the start, by which values in Redis are dated.
    pub(crate) fn now(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// The answer that a value of Redis makes; none if it is no such value.
    pub(crate) fn answer(text: &str, now: u64) -> Option<Answer> {
        let (version, at) = text.split_once(' ')?;
        let (version, at): (u64, u64) = (version.parse().ok()?, at.parse().ok()?);
        Some(Answer {
            source: Source::Redis,
            version,
            age: Duration::from_millis(now.saturating_sub(at)),
            stale: Some(false),
        })
    }

    /// The value that Redis keeps of a row.
    pub(crate) fn value(version: u64, at: u64) -> String {
        format!("{version} {at}")
    }

    /// Asks the database for a row.
    pub(crate) async fn load(&self, key: u64) -> Result<Answer, Failure> {
        self.counts.sql_queries.fetch_add(1, Relaxed);
        Ok(Answer {
            source: Source::Database,
            version: self.table.version(key).await?,
            age: Duration::ZERO,
            stale: Some(false),
        })
    }

    /// Changes a row in the database.
    pub(crate) async fn raise(&self, key: u64, version: u64) -> Result<(), Failure> {
        self.counts.sql_queries.fetch_add(1, Relaxed);
        self.table.raise(key, version).await
    }

    /// Makes the rows, and reads each once. A read that fails is repeated: the machine may be busy,
    /// and nothing is judged yet.
    pub(crate) fn warm<'a>(
        &'a self,
        reader: &'a dyn Subject,
        keys: u64,
    ) -> BoxFuture<'a, Result<(), SetUpError>> {
        async move {
            self.table.create(keys).await?;
            for key in 0..keys {
                let mut attempts = 1;
                while let Err(Failure { kind }) = reader.read(key).await {
                    if attempts == WARM_ATTEMPTS {
                        return Err(SetUpError(format!("a row could not be read: {kind}")));
                    }
                    attempts += 1;
                    sleep(WARM_PAUSE).await;
                }
            }
            Ok(())
        }
        .boxed()
    }
}

impl Counts {
    /// Counts a call to Redis.
    pub(crate) fn redis(&self, answered: bool) {
        let counter = if answered {
            &self.redis_ok
        } else {
            &self.redis_failed
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn facts(&self, connection: Connection, breaker: Breaker, reconnects: u64) -> Facts {
        Facts {
            connection,
            breaker,
            attempts: self.attempts.load(Relaxed),
            reconnects,
            stuck_resets: 0,
            redis_ok: self.redis_ok.load(Relaxed),
            redis_failed: self.redis_failed.load(Relaxed),
            redis_replies: self.redis_ok.load(Relaxed),
            sql_queries: self.sql_queries.load(Relaxed),
            discoveries: None,
        }
    }
}

/// redis-rs as it is told to connect there.
pub(crate) fn client_of(endpoint: &Endpoint) -> Result<redis::Client, SetUpError> {
    let failed = |error: RedisError| SetUpError(error.to_string());
    let url = endpoint.redis_url.as_str();
    let Some(file) = &endpoint.ca_file else {
        return redis::Client::open(url).map_err(failed);
    };
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: Some(std::fs::read(file).map_err(|error| failed(error.into()))?),
    };
    redis::Client::build_with_tls(url, certificates).map_err(failed)
}

/// Reads of a row at most, before a control is said not to be fit for a drill.
const WARM_ATTEMPTS: u32 = 10;
/// Between two of them.
const WARM_PAUSE: Duration = Duration::from_millis(100);
