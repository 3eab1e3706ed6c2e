//! The control of drills in which the primary moves: redis-rs with its own client for sentinels,
//! used as its documentation shows. It asks a sentinel whenever it needs a connection, which it
//! does when it finds the one that it has broken or its server to be no primary any more. Nothing
//! in it is made worse than it is in the field.

use std::sync::{Mutex as Slot, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{Cmd, ErrorKind, FromRedisValue, RedisConnectionInfo, RedisError, ServerErrorKind};
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::control::Counts;
use crate::ledger::{LedgerWrite, name_of};
use crate::subject::{
    Answer, Breaker, Connection, DatabaseFault, Endpoint, Facts, Failure, SetUpError, Subject,
};

/// A subject without resilience, whose data are in Redis itself.
pub struct Asking {
    /// One caller asks at a time; the others find its connection.
    sentinels: Mutex<SentinelClient>,
    connection: Slot<Option<MultiplexedConnection>>,
    counts: Counts,
}

impl Asking {
    /// A subject of the primary that these sentinels name. Connects when it is first used.
    ///
    /// # Errors
    /// When the URL is not `redis-sentinel://[user:password@]host:port,…/name`.
    pub fn start(endpoint: &Endpoint) -> Result<Self, SetUpError> {
        let failed = |error: &dyn std::fmt::Display| SetUpError(error.to_string());
        let rest = endpoint.redis_url.strip_prefix("redis-sentinel://");
        let (hosts, name) = rest
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(|| failed(&"not a URL of sentinels"))?;
        let (login, hosts) = hosts.rsplit_once('@').unwrap_or(("", hosts));
        let mut login_there = RedisConnectionInfo::default();
        if let Some((user, password)) = login.split_once(':') {
            login_there = login_there.set_username(user).set_password(password);
        }
        let login_there =
            SentinelNodeConnectionInfo::default().set_redis_connection_info(login_there);
        let seeds = hosts.split(',').map(|host| format!("redis://{host}"));
        let primary = SentinelServerType::Master;
        let client = SentinelClient::build(seeds.collect(), name, Some(login_there), primary);
        Ok(Self {
            sentinels: Mutex::new(client.map_err(|error| failed(&error))?),
            connection: Slot::new(None),
            counts: Counts::default(),
        })
    }

    fn slot(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        let slot = self.connection.lock();
        slot.unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        let known = self.slot().clone();
        if let Some(connection) = known {
            return Ok(connection);
        }
        let mut sentinels = self.sentinels.lock().await;
        let known = self.slot().clone();
        if let Some(connection) = known {
            return Ok(connection);
        }
        self.counts.attempts.fetch_add(1, Relaxed);
        let connection = sentinels.get_async_connection().await?;
        self.counts.connected.fetch_add(1, Relaxed);
        Ok(self.slot().insert(connection).clone())
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let outcome = match self.connection().await {
            Ok(mut connection) => command.query_async(&mut connection).await,
            Err(error) => Err(error),
        };
        self.counts.redis(outcome.is_ok());
        outcome.map_err(|error: RedisError| {
            let is_deposed = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
            if error.is_unrecoverable_error() || is_deposed {
                *self.slot() = None;
            }
            Failure {
                kind: match () {
                    () if error.is_timeout() => "timeout",
                    () if is_deposed => "readonly",
                    () => "redis",
                },
            }
        })
    }

    async fn write(&self, key: u64, version: u64) -> Result<(), Failure> {
        let written: redis::Value = self.ask(&LedgerWrite::of(key, version).command()).await?;
        drop(written);
        Ok(())
    }
}

impl Subject for Asking {
    fn warm(&self, _keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        async move {
            while self.read(0).await.is_err() {
                sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        }
        .boxed()
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        async move {
            let version = self.ask(redis::cmd("GET").arg(name_of(key))).await?;
            Ok(Answer::of_redis_itself(version))
        }
        .boxed()
    }

    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        self.write(key, version).boxed()
    }

    fn database_fault(&self, _fault: DatabaseFault) {}

    fn facts(&self) -> Facts {
        let connection = match &*self.slot() {
            Some(_) => Connection::Ready,
            None => Connection::Down,
        };
        let reconnects = self.counts.connected.load(Relaxed).saturating_sub(1);
        self.counts.facts(connection, Breaker::Closed, reconnects)
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        *self.slot() = None;
        std::future::ready(()).boxed()
    }
}
