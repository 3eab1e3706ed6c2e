//! The control is the application as most are written: one shared connection, opened again by
//! whoever finds it broken; a value read from Redis or else from SQL, and put into Redis for a
//! minute; an entry deleted when its row is written. It has neither a tier in memory nor a way
//! round Redis, so that its reads fail while Redis does follows from how it is built. redis-rs with
//! its own defaults, used as its documentation shows. Nothing in it is made worse than it is in the
//! field.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, RedisError};

pub use crate::control::Table;
use crate::control::{Rows, client_of};
use crate::subject::{
    Answer, Breaker, Connection, DatabaseFault, Endpoint, Facts, Failure, SetUpError, Subject,
};

/// The seconds for which a value stays in Redis.
const EXPIRES: u64 = 60;

/// A subject without resilience.
pub struct Plain {
    client: redis::Client,
    rows: Rows,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Plain {
    /// A subject at that Redis and over that table. Connects when it is first used.
    ///
    /// # Errors
    /// When the URL is not one of a Redis.
    pub fn start(endpoint: &Endpoint, table: Box<dyn Table>) -> Result<Self, SetUpError> {
        Ok(Self {
            client: client_of(endpoint)?,
            rows: Rows::new("plain", table),
            connection: Mutex::new(None),
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
        let counts = &self.rows.counts;
        counts.attempts.fetch_add(1, Relaxed);
        let connection = self.client.get_multiplexed_async_connection().await?;
        counts.connected.fetch_add(1, Relaxed);
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
        self.rows.counts.redis(outcome.is_ok());
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
        let name = self.rows.name(key);
        let kept: Option<String> = self
            .redis(|mut connection| {
                let name = name.clone();
                async move { connection.get(name).await }
            })
            .await?;
        let now = self.rows.now();
        if let Some(answer) = kept.and_then(|text| Rows::answer(&text, now)) {
            return Ok(answer);
        }
        let answer = self.rows.load(key).await?;
        let value = Rows::value(answer.version, now);
        self.redis(|mut connection| async move {
            connection.set_ex::<_, _, ()>(name, value, EXPIRES).await
        })
        .await?;
        Ok(answer)
    }

    async fn write(&self, key: u64, version: u64) -> Result<(), Failure> {
        self.rows.raise(key, version).await?;
        let name = self.rows.name(key);
        self.redis(|mut connection| async move { connection.del::<_, ()>(name).await })
            .await
    }
}

impl Subject for Plain {
    fn warm(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        self.rows.warm(self, keys)
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        self.read(key).boxed()
    }

    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        self.write(key, version).boxed()
    }

    fn database_fault(&self, fault: DatabaseFault) {
        self.rows.table.fault(fault);
    }

    fn facts(&self) -> Facts {
        let connection = if self.slot().is_some() {
            Connection::Ready
        } else {
            Connection::Down
        };
        let counts = &self.rows.counts;
        let reconnects = counts.connected.load(Relaxed).saturating_sub(1);
        counts.facts(connection, Breaker::Closed, reconnects)
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        *self.slot() = None;
        std::future::ready(()).boxed()
    }
}
