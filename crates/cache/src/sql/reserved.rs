//! Connections that the cache keeps for itself: for its outbox, and for whatever watches over the
//! database.
//!
//! Asked through the pool, a watcher waits behind the loads, and is blind just when they hold every
//! connection. And a limit of time that only drops a future leaves its session in the database: it
//! goes on waiting for its lock, or keeps one, with nobody left to give it back. So the database
//! itself is told how long a session may wait for a lock, and how long a transaction may stay
//! silent before it is ended; and a session that was not brought to its end here is not put back
//! but closed, which ends its transaction too.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, FromRow};

#[cfg(feature = "sqlite")]
use crate::clock::clock;

#[cfg(feature = "postgres")]
use super::postgres;
use super::{Database, Executed, Param, Pool, SourceError};

/// A small pool of the cache's own.
#[derive(Clone, Debug)]
pub(crate) struct Reserved {
    pool: Pool,
    /// Whose limits hold, and whose file may have to be opened first.
    database: Database,
    limits: SessionLimits,
}

/// Limits that the database itself keeps, so that they hold for a session whose process is gone,
/// stuck or cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLimits {
    /// A lock is waited for so long at most.
    pub(crate) lock: Duration,
    /// A transaction that says nothing for so long is ended. Not in SQLite, whose locks end with
    /// the process that holds them.
    pub(crate) idle: Duration,
}

/// One of the reserved connections. Unless it was ended by one of its own methods, dropping it
/// closes it.
#[derive(Debug)]
pub(crate) struct Session {
    connection: Option<AnyConnection>,
    ended: bool,
}

#[derive(Debug)]
enum AnyConnection {
    #[cfg(feature = "sqlite")]
    Sqlite(PoolConnection<sqlx::Sqlite>),
    #[cfg(feature = "mysql")]
    MySql(PoolConnection<sqlx::MySql>),
    #[cfg(feature = "postgres")]
    Postgres(PoolConnection<sqlx::Postgres>),
}

/// A row that can be had from each of the databases.
pub(crate) trait AnyRow: FromSqlite + FromMySql + FromPostgres + Send + Unpin {}

impl<T: FromSqlite + FromMySql + FromPostgres + Send + Unpin> AnyRow for T {}

macro_rules! rows_of {
    ($name:ident, $feature:literal, $row:ty) => {
        #[cfg(feature = $feature)]
        pub(crate) trait $name: for<'r> FromRow<'r, $row> {}
        #[cfg(feature = $feature)]
        impl<T: for<'r> FromRow<'r, $row>> $name for T {}
        #[cfg(not(feature = $feature))]
        pub(crate) trait $name {}
        #[cfg(not(feature = $feature))]
        impl<T> $name for T {}
    };
}

rows_of!(FromSqlite, "sqlite", sqlx::sqlite::SqliteRow);
rows_of!(FromMySql, "mysql", sqlx::mysql::MySqlRow);
rows_of!(FromPostgres, "postgres", sqlx::postgres::PgRow);

impl Database {
    /// Sets connections apart from the pool's, opened the same way (with the hooks of a pool that
    /// the caller made) when they are first needed.
    pub(crate) fn reserve(&self, connections: u32, limits: SessionLimits) -> Reserved {
        macro_rules! small {
            ($pool:expr, $options:expr) => {
                $pool
                    .options()
                    .clone()
                    .max_connections(connections)
                    .min_connections(0)
                    .acquire_timeout(self.query_limit)
                    .idle_timeout(UNUSED)
                    .connect_lazy_with($options)
            };
        }
        let pool = match self.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(ref pool) => {
                let options = (*pool.connect_options()).clone();
                Pool::Sqlite(small!(pool, options.busy_timeout(limits.lock)))
            }
            #[cfg(feature = "mysql")]
            Pool::MySql(ref pool) => Pool::MySql(small!(pool, (*pool.connect_options()).clone())),
            #[cfg(feature = "postgres")]
            Pool::Postgres(ref pool) => {
                Pool::Postgres(small!(pool, (*pool.connect_options()).clone()))
            }
        };
        Reserved {
            pool,
            database: self.clone(),
            limits,
        }
    }
}

impl Reserved {
    /// A session outside any transaction.
    async fn session(&self) -> Result<Session, SourceError> {
        self.database.opened().await?;
        let connection = match self.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(ref pool) => AnyConnection::Sqlite(pool.acquire().await?),
            #[cfg(feature = "mysql")]
            Pool::MySql(ref pool) => AnyConnection::MySql(pool.acquire().await?),
            #[cfg(feature = "postgres")]
            Pool::Postgres(ref pool) => {
                AnyConnection::Postgres(postgres::acquire(pool, &self.database.plain).await?)
            }
        };
        Ok(Session {
            connection: Some(connection),
            ended: false,
        })
    }

    /// A session for queries that change nothing, under the limits: even they wait for a lock that
    /// a migration holds on the table. In PostgreSQL it is a transaction: without one, whatever
    /// shares sessions may run another's statement.
    pub(crate) async fn reading(&self) -> Result<Session, SourceError> {
        #[allow(unused_mut)]
        let mut session = self.session().await?;
        match self.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => {}
            #[cfg(feature = "mysql")]
            Pool::MySql(_) => session.run(&self.limits()).await?,
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => session.run(&format!("BEGIN; {}", self.limits())).await?,
        }
        Ok(session)
    }

    /// Begins a transaction that is about to write, under the limits, in one round trip.
    pub(crate) async fn begin(&self) -> Result<Session, SourceError> {
        let mut session = self.session().await?;
        #[cfg(feature = "sqlite")]
        if matches!(self.pool, Pool::Sqlite(_)) {
            session.begin_impatiently(self.limits.lock).await?;
            return Ok(session);
        }
        let sql: String = match self.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => String::new(),
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => format!("BEGIN; {}", self.limits()),
            #[cfg(feature = "mysql")]
            Pool::MySql(_) => format!("{}; START TRANSACTION", self.limits()),
        };
        session.run(&sql).await?;
        Ok(session)
    }

    /// The limits, as the database is told them.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    fn limits(&self) -> String {
        let SessionLimits { lock, idle } = self.limits;
        let statement = self.database.query_limit();
        match self.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => String::new(),
            // For this transaction only: a proxy may lend the connection to others.
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => {
                let [lock, idle, statement] = [lock, idle, statement].map(postgres::millis);
                format!(
                    "SET LOCAL lock_timeout = {lock}; SET LOCAL idle_in_transaction_session_timeout = {idle}; \
                     SET LOCAL statement_timeout = {statement}"
                )
            }
            // In whole seconds. MySQL has no limit of that kind for transactions, only for whole
            // sessions; either reads what is meant for it. Where a session does not commit by
            // itself, its first look would be its last: all the later ones would see the same.
            #[cfg(feature = "mysql")]
            Pool::MySql(_) => format!(
                "SET SESSION autocommit = 1, innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {lock} \
                 /*M!100300 , idle_transaction_timeout = {idle}, max_statement_time = {statement} */ \
                 /*!80000 , wait_timeout = {unused}, max_execution_time = {statement}000 */",
                lock = seconds(lock),
                idle = seconds(idle),
                statement = seconds(statement),
                unused = seconds(idle).max(UNUSED.as_secs() * 2),
            ),
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn query_limit(&self) -> Duration {
        self.database.query_limit()
    }
}

impl Session {
    /// Begins a transaction that is about to write, on SQLite, of one who must not come last. Who
    /// waits there for the lock asks for it again and again, after pauses that grow to a tenth of a
    /// second, so that among many writers whoever has waited longest has the least chance. Here the
    /// waiting starts anew before its pauses are long.
    #[cfg(feature = "sqlite")]
    async fn begin_impatiently(&mut self, limit: Duration) -> Result<(), SourceError> {
        let begin = format!(
            "PRAGMA busy_timeout = {}; BEGIN IMMEDIATE; PRAGMA busy_timeout = {}",
            IMPATIENT.as_millis(),
            limit.as_millis()
        );
        let give_up = clock() + limit;
        loop {
            match self.run(&begin).await {
                Err(error) if error.is_of_a_busy_file() && clock() < give_up => {}
                begun => return begun,
            }
        }
    }

    /// Runs statements that have no parameters and whose rows nobody wants.
    async fn run(&mut self, sql: &str) -> Result<(), SourceError> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        each!(*self.connection(), AnyConnection[ref mut connection] => {
            sql.execute(&mut **connection).await.map(drop)?;
        });
        Ok(())
    }

    /// Runs a statement; each place is written `?`.
    pub(crate) async fn execute(
        &mut self,
        sql: &str,
        params: &[Param],
    ) -> Result<Executed, SourceError> {
        let sql = self.placed(sql);
        each!(*self.connection(), AnyConnection[ref mut connection], dialect => {
            dialect::execute(connection, &sql.0, params, false).await
        })
    }

    /// Fetches all rows of a query; each place is written `?` and takes a text.
    pub(crate) async fn fetch<T: AnyRow>(
        &mut self,
        sql: &str,
        params: &[&str],
    ) -> Result<Vec<T>, SourceError> {
        let sql = self.placed(sql);
        macro_rules! rows {
            ($connection:expr) => {
                params
                    .iter()
                    .fold(sqlx::query_as(sql), |query, param| query.bind(*param))
                    .fetch_all(&mut **$connection)
                    .await?
            };
        }
        Ok(match *self.connection() {
            #[cfg(feature = "sqlite")]
            AnyConnection::Sqlite(ref mut connection) => rows!(connection),
            #[cfg(feature = "mysql")]
            AnyConnection::MySql(ref mut connection) => rows!(connection),
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(ref mut connection) => {
                let query = params
                    .iter()
                    .fold(sqlx::query_as(sql), |query, param| query.bind(*param));
                // Without a name: a session that is shared may have another's statement of that
                // name.
                query.persistent(false).fetch_all(&mut **connection).await?
            }
        })
    }

    /// Commits, and gives the connection back.
    pub(crate) async fn commit(mut self) -> Result<(), SourceError> {
        self.run("COMMIT").await?;
        self.ended = true;
        Ok(())
    }

    /// Rolls back, and gives the connection back.
    pub(crate) async fn rollback(mut self) -> Result<(), SourceError> {
        self.run("ROLLBACK").await?;
        self.ended = true;
        Ok(())
    }

    /// Gives the connection back after queries that changed nothing.
    pub(crate) async fn end(mut self) -> Result<(), SourceError> {
        #[cfg(feature = "postgres")]
        if matches!(self.connection, Some(AnyConnection::Postgres(_))) {
            self.run("COMMIT").await?;
        }
        self.ended = true;
        Ok(())
    }

    fn connection(&mut self) -> &mut AnyConnection {
        self.connection.as_mut().expect("taken only when dropped")
    }

    fn placed(&self, sql: &str) -> AssertSqlSafe<String> {
        #[cfg(feature = "postgres")]
        let numbers = matches!(self.connection, Some(AnyConnection::Postgres(_)));
        #[cfg(not(feature = "postgres"))]
        let numbers = false;
        if !numbers {
            return AssertSqlSafe(sql.to_owned());
        }
        let mut numbered = String::with_capacity(sql.len() + 8);
        for (n, part) in sql.split('?').enumerate() {
            if n > 0 {
                numbered.push_str(&format!("${n}"));
            }
            numbered.push_str(part);
        }
        AssertSqlSafe(numbered)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Nobody knows what it is in the middle of. Out of the pool, so that it holds no place
        // there while the database finds out.
        if let Some(connection) = self.connection.take() {
            each!(connection, AnyConnection[connection] => drop(connection.detach()));
        }
    }
}

/// At least one.
#[cfg(feature = "mysql")]
fn seconds(limit: Duration) -> u64 {
    let ms = limit.as_millis();
    u64::try_from(ms.div_ceil(1000)).unwrap_or(u64::MAX).max(1)
}

/// A reserved connection that nobody has used for so long is closed, well before MySQL would.
const UNUSED: Duration = Duration::from_secs(30);

/// SQLite's pauses up to here are 1, 2, 5, 10 and 15 ms.
#[cfg(feature = "sqlite")]
const IMPATIENT: Duration = Duration::from_millis(33);
