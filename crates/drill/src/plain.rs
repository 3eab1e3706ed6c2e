//! The control is the application as most are written: one shared connection, opened again by whoever finds it broken; a value
//! read from Redis or else from SQL, and put into Redis for a minute; an entry deleted when its row is written. It has neither a tier in
//! memory nor a way round Redis, so that its reads fail while Redis does follows from how it is built. redis-rs with
//! its own defaults, used as its documentation shows. Nothing in it is made worse than it is in the field.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, RedisError, TlsCertificates};
use tokio::time::Instant;

use crate::subject::{
    Answer, Breaker, Connection, DatabaseFault, Endpoint, Facts, Failure, SetUpError, Source,
    Subject,
};

/// What is kept in Redis stays there this long.
const EXPIRES: u64 = 60;

/// The SQL below a plain subject.
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

/// A subject without resilience.
pub struct Plain {
    client: redis::Client,
    table: Box<dyn Table>,
    connection: Mutex<Option<MultiplexedConnection>>,
    counts: Counts,
    begun: Instant,
}

#[derive(Default)]
struct Counts {
    attempts: AtomicU64,
    connected: AtomicU64,
    redis_ok: AtomicU64,
    redis_failed: AtomicU64,
    sql_queries: AtomicU64,
}

impl Plain {
    /// A subject at that Redis and over that table. Connects when it is first used.
    ///
    /// # Errors
    /// When the URL is not one of a Redis.
    pub fn start(endpoint: &Endpoint, table: Box<dyn Table>) -> Result<Self, SetUpError> {
        let client = client_of(endpoint).map_err(|error| SetUpError(error.to_string()))?;
        let (connection, counts) = (Mutex::new(None), Counts::default());
        Ok(Self {
            client,
            table,
            connection,
            counts,
            begun: Instant::now(),
        })
    }

    fn slot(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        if let Some(connection) = self.slot().clone() {
            return Ok(connection);
        }
        self.counts.attempts.fetch_add(1, Relaxed);
        let connection = self.client.get_multiplexed_async_connection().await?;
        self.counts.connected.fetch_add(1, Relaxed);
        Ok(self.slot().insert(connection).clone())
    }

    async fn redis<T, F>(&self, call: impl FnOnce(MultiplexedConnection) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let outcome = match self.connection().await {
            Ok(connection) => call(connection).await,
            Err(error) => Err(error),
        };
        let counter = if outcome.is_ok() {
            &self.counts.redis_ok
        } else {
            &self.counts.redis_failed
        };
        counter.fetch_add(1, Relaxed);
        outcome.map_err(|error| {
            if error.is_unrecoverable_error() {
                *self.slot() = None;
            }
            Failure {
                kind: if error.is_timeout() {
                    "timeout"
                } else {
                    "redis"
                },
            }
        })
    }

    async fn read(&self, key: u64) -> Result<Answer, Failure> {
        let name = format!("plain:{key}");
        let kept: Option<(u64, u64)> = self
            .redis(|mut connection| {
                let name = name.clone();
                async move { connection.get::<_, Option<String>>(name).await }
            })
            .await?
            .and_then(|text| kept(&text));
        let now = self.begun.elapsed().as_millis() as u64;
        if let Some((version, at)) = kept {
            let age = Duration::from_millis(now.saturating_sub(at));
            return Ok(Answer {
                source: Source::Redis,
                version,
                age,
                stale: false,
            });
        }
        self.counts.sql_queries.fetch_add(1, Relaxed);
        let version = self.table.version(key).await?;
        self.redis(|mut connection| async move {
            connection
                .set_ex::<_, _, ()>(name, told(version, now), EXPIRES)
                .await
        })
        .await?;
        Ok(Answer {
            source: Source::Database,
            version,
            age: Duration::ZERO,
            stale: false,
        })
    }

    async fn write(&self, key: u64, version: u64) -> Result<(), Failure> {
        self.counts.sql_queries.fetch_add(1, Relaxed);
        self.table.raise(key, version).await?;
        let name = format!("plain:{key}");
        self.redis(|mut connection| async move { connection.del::<_, ()>(name).await })
            .await
    }
}

/// What is kept in Redis of a row: its version, and when it was read.
pub(crate) fn told(version: u64, at: u64) -> String {
    format!("{version} {at}")
}

/// The same, read again.
pub(crate) fn kept(text: &str) -> Option<(u64, u64)> {
    let (version, at) = text.split_once(' ')?;
    Some((version.parse().ok()?, at.parse().ok()?))
}

/// redis-rs as it is told to connect there.
pub(crate) fn client_of(endpoint: &Endpoint) -> Result<redis::Client, RedisError> {
    let url = endpoint.redis_url.as_str();
    let Some(file) = &endpoint.ca_file else {
        return redis::Client::open(url);
    };
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: Some(std::fs::read(file)?),
    };
    redis::Client::build_with_tls(url, certificates)
}

impl Subject for Plain {
    fn warm(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        async move {
            self.table.create(keys).await?;
            let failed =
                |failure: Failure| SetUpError(format!("a row could not be read: {}", failure.kind));
            for key in 0..keys {
                self.read(key).await.map_err(failed)?;
            }
            Ok(())
        }
        .boxed()
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        self.read(key).boxed()
    }

    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        self.write(key, version).boxed()
    }

    fn database_fault(&self, fault: DatabaseFault) {
        self.table.fault(fault);
    }

    fn facts(&self) -> Facts {
        let counts = &self.counts;
        Facts {
            connection: if self.slot().is_some() {
                Connection::Ready
            } else {
                Connection::Down
            },
            breaker: Breaker::Closed,
            attempts: counts.attempts.load(Relaxed),
            reconnects: counts.connected.load(Relaxed).saturating_sub(1),
            stuck_resets: 0,
            redis_ok: counts.redis_ok.load(Relaxed),
            redis_failed: counts.redis_failed.load(Relaxed),
            redis_replies: counts.redis_ok.load(Relaxed),
            sql_queries: counts.sql_queries.load(Relaxed),
        }
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        *self.slot() = None;
        std::future::ready(()).boxed()
    }
}
