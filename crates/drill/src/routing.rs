//! The control of drills on a cluster: redis-rs with its own cluster client, used as its
//! documentation shows. It keeps a map of the slots, follows redirects and repeats what failed by
//! itself. Nothing in it is made worse than it is in the field.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, FromRedisValue, RedisError};
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::control::Counts;
use crate::ledger::{LedgerWrite, name_of};
use crate::subject::{
    Answer, Breaker, Connection, DatabaseFault, Endpoint, Facts, Failure, SetUpError, Subject,
};

/// A subject without resilience of its own, whose data are in a cluster.
pub struct Routing {
    client: ClusterClient,
    /// Made once, and then shared, as its documentation advises: it finds its nodes again itself.
    connection: OnceCell<ClusterConnection>,
    counts: Counts,
}

impl Routing {
    /// A subject of the cluster to which these nodes belong. Connects when it is first used.
    ///
    /// # Errors
    /// When the URL is not `redis-cluster://host:port,…`.
    pub fn start(endpoint: &Endpoint) -> Result<Self, SetUpError> {
        let hosts = endpoint.redis_url.strip_prefix("redis-cluster://");
        let hosts = hosts.ok_or_else(|| SetUpError("not a URL of a cluster".into()))?;
        let seeds = hosts.split(',').map(|host| format!("redis://{host}"));
        let client = ClusterClient::new(seeds.collect::<Vec<_>>());
        Ok(Self {
            client: client.map_err(|error| SetUpError(error.to_string()))?,
            connection: OnceCell::new(),
            counts: Counts::default(),
        })
    }

    async fn connection(&self) -> Result<ClusterConnection, RedisError> {
        let connect = || async {
            self.counts.attempts.fetch_add(1, Relaxed);
            let connection = self.client.get_async_connection().await?;
            self.counts.connected.fetch_add(1, Relaxed);
            Ok(connection)
        };
        self.connection.get_or_try_init(connect).await.cloned()
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let outcome = match self.connection().await {
            Ok(mut connection) => command.query_async(&mut connection).await,
            Err(error) => Err(error),
        };
        self.counts.redis(outcome.is_ok());
        outcome.map_err(|error: RedisError| Failure {
            kind: match error.is_timeout() {
                true => "timeout",
                false => "redis",
            },
        })
    }

    async fn write(&self, key: u64, version: u64) -> Result<(), Failure> {
        let written: redis::Value = self.ask(&LedgerWrite::of(key, version).command()).await?;
        drop(written);
        Ok(())
    }
}

impl Subject for Routing {
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
        let connection = match self.connection.get() {
            Some(_) => Connection::Ready,
            None => Connection::Connecting,
        };
        self.counts.facts(connection, Breaker::Closed, 0)
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}
