//! A sign of life, by a connection of its own.
//!
//! Asked through the pool, a database that is merely busy looks dead: in an outage of Redis every
//! connection is taken, and each instance of a service would leave its load balancer just when it
//! is needed. Where there are connections that only read, it is one of those: what stands between
//! may refuse how they are asked for, and then no query is answered by a database that looks well.

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "mysql")]
use sqlx::MySqlConnection;
#[cfg(feature = "postgres")]
use sqlx::PgConnection;
#[cfg(feature = "sqlite")]
use sqlx::SqliteConnection;
#[cfg(feature = "postgres")]
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;

#[cfg(feature = "mysql")]
use super::mysql;
#[cfg(feature = "postgres")]
use super::postgres;
use super::{Pool, SourceError, within};

/// The connection, opened when it is first needed and again after it has failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Pinger(Arc<Mutex<Option<PingConnection>>>);

/// The way in which the connection is opened: that of the connections of queries.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) pool: &'a Pool,
    pub(super) only_reads: bool,
    #[cfg(feature = "postgres")]
    pub(super) plain: &'a PgConnectOptions,
    pub(super) query_limit: Duration,
}

#[derive(Debug)]
enum PingConnection {
    #[cfg(feature = "sqlite")]
    Sqlite(Box<SqliteConnection>),
    #[cfg(feature = "mysql")]
    MySql(Box<MySqlConnection>),
    #[cfg(feature = "postgres")]
    Postgres(Box<PgConnection>),
}

impl Pinger {
    pub(super) async fn ping(&self, way: Way<'_>, limit: Duration) -> Result<(), SourceError> {
        within(limit, async {
            let mut kept = self.0.lock().await;
            // Taken out: whoever gives up half way leaves no connection in an unknown state behind.
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => match PingConnection::open(way).await {
                    Err(error) if is_full(&error) => return Ok(()),
                    opened => opened?,
                },
            };
            connection.ping().await?;
            *kept = Some(connection);
            Ok(())
        })
        .await
    }

    pub(super) async fn close(&self) {
        *self.0.lock().await = None;
    }
}

impl PingConnection {
    async fn open(way: Way<'_>) -> Result<Self, sqlx::Error> {
        Ok(match *way.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(ref pool) => {
                Self::Sqlite(Box::new(pool.connect_options().connect().await?))
            }
            #[cfg(feature = "mysql")]
            Pool::MySql(ref pool) => {
                let mut connection = pool.connect_options().connect().await?;
                if way.only_reads {
                    mysql::only_read(&mut connection, way.query_limit).await?;
                }
                Self::MySql(Box::new(connection))
            }
            #[cfg(feature = "postgres")]
            Pool::Postgres(ref pool) => {
                Self::Postgres(Box::new(postgres::open(pool, way.plain).await?))
            }
        })
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        each!(*self, Self[ref mut connection] => connection.ping().await)
    }
}

/// Whether the database answered that it takes no more connections. MySQL says so before it has
/// learned how to name the SQLSTATE, so its own number counts.
fn is_full(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else {
        return false;
    };
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return error.number() == 1040;
    }
    error.code().is_some_and(|code| code == "53300")
}
