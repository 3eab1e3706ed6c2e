//! Invalidations that outlive a crash.
//!
//! "Commit, then delete from Redis" loses the second half whenever the process or Redis goes in between, and then a reader sees the
//! old value for as long as it lives. So an invalidation is a row, written by the same transaction as the change: both happen or
//! neither does. What is in the table has still to be applied to Redis; whoever can, does.
//!
//! This module is only the SQL of it. `relay` decides when.

#[cfg(feature = "mysql")]
use sqlx::MySql;
#[cfg(feature = "postgres")]
use sqlx::Postgres;
#[cfg(feature = "sqlite")]
use sqlx::Sqlite;
use sqlx::{AssertSqlSafe, Transaction};

use crate::source::{Database, Pool, SourceError, Tx, within};
use crate::target::Target;

/// The outbox of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    database: Database,
    namespace: Box<str>,
}

/// A look at the outbox from outside any transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Glance {
    /// What has been applied to Redis and deleted from the table, as a number that only grows.
    pub(crate) watermark: u64,
    pub(crate) oldest: Option<Oldest>,
}

/// The row that has waited longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Oldest {
    pub(crate) id: i64,
    /// By the database's clock alone.
    pub(crate) age_ms: i64,
    /// How far the newest row's number is ahead of it.
    pub(crate) spread: i64,
}

/// Rows to be applied, with the state row locked against every other relay.
#[derive(Debug)]
pub(crate) struct Batch {
    tx: Tx,
    pub(crate) watermark: u64,
    ids: Vec<i64>,
    pub(crate) targets: Vec<Target>,
}

impl Batch {
    /// Whether there may be more.
    pub(crate) fn is_full(&self) -> bool {
        self.ids.len() >= BATCH
    }
}

/// A transaction into which an invalidation can be written: [`Tx`], or any of sqlx's own.
pub trait Transactional: sealed::Sealed + Send {
    #[doc(hidden)]
    fn insert(
        &mut self,
        namespace: &str,
        targets: &[Target],
    ) -> impl Future<Output = Result<(), SourceError>> + Send;
}

mod sealed {
    pub trait Sealed {}
}

impl Outbox {
    pub(crate) fn new(database: Database, namespace: &str) -> Self {
        Self {
            database,
            namespace: namespace.into(),
        }
    }

    /// Creates what is missing of the tables, and the namespace's row. Where all is there already no more rights are needed than to read and write.
    pub(crate) async fn prepare(&self) -> Result<(), SourceError> {
        if matches!(self.glance().await, Ok(Some(_))) {
            return Ok(());
        }
        match self.prepare_once().await {
            // Two processes may create the same table at the same moment; the second time it is there.
            Err(SourceError::Sql(sqlx::Error::Database(_))) => self.prepare_once().await,
            other => other,
        }
    }

    async fn prepare_once(&self) -> Result<(), SourceError> {
        // A glance that finds no row has found the tables.
        let tables_are_there = self.glance().await.is_ok();
        let statements: &[&str] = match *self.database.pool() {
            _ if tables_are_there => &[],
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => SQLITE_TABLES,
            #[cfg(feature = "mysql")]
            Pool::MySql(_) => MYSQL_TABLES,
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => POSTGRES_TABLES,
        };
        let mut tx = self.database.begin().await?;
        for statement in statements {
            tx.execute(statement, &[]).await?;
        }
        let insert = match *self.database.pool() {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => {
                "INSERT OR IGNORE INTO steadfast_outbox_state (namespace, watermark) VALUES (?, 0)"
            }
            #[cfg(feature = "mysql")]
            Pool::MySql(_) => {
                "INSERT IGNORE INTO steadfast_outbox_state (namespace, watermark) VALUES (?, 0)"
            }
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => {
                "INSERT INTO steadfast_outbox_state (namespace, watermark) VALUES ($1, 0) ON CONFLICT DO NOTHING"
            }
        };
        tx.execute(
            insert,
            &[crate::source::Param::Text(self.namespace.to_string())],
        )
        .await?;
        tx.commit().await
    }

    /// Looks without locking anything; `None` if the namespace has no row.
    pub(crate) async fn glance(&self) -> Result<Option<Glance>, SourceError> {
        type Seen = (i64, Option<i64>, Option<i64>, Option<i64>);
        let limit = self.database.query_limit();
        let seen: Option<Seen> = within(limit, async {
            Ok(match *self.database.pool() {
                #[cfg(feature = "sqlite")]
                Pool::Sqlite(ref pool) => {
                    let sql = glance_sql(SQLITE_NOW, "?", "?");
                    sqlx::query_as(AssertSqlSafe(sql))
                        .bind(&*self.namespace)
                        .bind(&*self.namespace)
                        .fetch_optional(pool)
                        .await?
                }
                #[cfg(feature = "mysql")]
                Pool::MySql(ref pool) => {
                    let sql = glance_sql(MYSQL_NOW, "?", "?");
                    sqlx::query_as(AssertSqlSafe(sql))
                        .bind(&*self.namespace)
                        .bind(&*self.namespace)
                        .fetch_optional(pool)
                        .await?
                }
                #[cfg(feature = "postgres")]
                Pool::Postgres(ref pool) => {
                    let sql = glance_sql(POSTGRES_NOW, "$1", "$2");
                    sqlx::query_as(AssertSqlSafe(sql))
                        .bind(&*self.namespace)
                        .bind(&*self.namespace)
                        .fetch_optional(pool)
                        .await?
                }
            })
        })
        .await?;
        let Some((watermark, id, age_ms, newest)) = seen else {
            return Ok(None);
        };
        let oldest = id.map(|id| Oldest {
            id,
            age_ms: age_ms.unwrap_or(0),
            spread: newest.unwrap_or(id) - id,
        });
        Ok(Some(Glance {
            watermark: u64::try_from(watermark).unwrap_or(0),
            oldest,
        }))
    }

    /// Counts, but not further than that.
    pub(crate) async fn holds_more_than(&self, rows: i64) -> Result<bool, SourceError> {
        let place = match self.database.pool() {
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => "$1",
            _ => "?",
        };
        let sql = format!(
            "SELECT COUNT(*) AS rows_there FROM (SELECT id FROM steadfast_outbox WHERE namespace = {place} LIMIT {}) AS counted",
            rows.saturating_add(1)
        );
        let namespace = [crate::source::Param::Text(self.namespace.to_string())];
        // Not by `Database::select`, whose connections the loads may hold, most of all while Redis is away and rows pile up.
        let counted = within(self.database.query_limit(), async {
            let mut tx = self.database.begin().await?;
            tx.select(&sql, &namespace).await
        })
        .await?;
        let there = counted.first().and_then(|row| row["rows_there"].as_i64());
        Ok(there.is_some_and(|there| there > rows))
    }

    /// Locks the namespace's state and takes the oldest rows; `None` if there are none. Fails if the state has no row to be locked.
    pub(crate) async fn take_batch(&self) -> Result<Option<Batch>, SourceError> {
        within(self.database.query_limit(), async {
            let mut tx = self.database.begin().await?;
            let namespace = &*self.namespace;
            type State = Option<(i64,)>;
            type Waiting = Vec<(i64, String, Vec<u8>)>;
            let (watermark, rows): (State, Waiting) = match tx {
                #[cfg(feature = "sqlite")]
                Tx::Sqlite(ref mut tx) => (
                    sqlx::query_as("SELECT watermark FROM steadfast_outbox_state WHERE namespace = ?")
                        .bind(namespace)
                        .fetch_optional(&mut **tx)
                        .await?,
                    sqlx::query_as("SELECT id, kind, target FROM steadfast_outbox WHERE namespace = ? ORDER BY id LIMIT 256")
                        .bind(namespace)
                        .fetch_all(&mut **tx)
                        .await?,
                ),
                #[cfg(feature = "mysql")]
                Tx::MySql(ref mut tx) => (
                    sqlx::query_as("SELECT watermark FROM steadfast_outbox_state WHERE namespace = ? FOR UPDATE")
                        .bind(namespace)
                        .fetch_optional(&mut **tx)
                        .await?,
                    sqlx::query_as("SELECT id, kind, target FROM steadfast_outbox WHERE namespace = ? ORDER BY id LIMIT 256")
                        .bind(namespace)
                        .fetch_all(&mut **tx)
                        .await?,
                ),
                #[cfg(feature = "postgres")]
                Tx::Postgres(ref mut tx) => (
                    sqlx::query_as("SELECT watermark FROM steadfast_outbox_state WHERE namespace = $1 FOR UPDATE")
                        .bind(namespace)
                        .fetch_optional(&mut **tx)
                        .await?,
                    sqlx::query_as("SELECT id, kind, target FROM steadfast_outbox WHERE namespace = $1 ORDER BY id LIMIT 256")
                        .bind(namespace)
                        .fetch_all(&mut **tx)
                        .await?,
                ),
            };
            if rows.is_empty() {
                tx.rollback().await?;
                return Ok(None);
            }
            let (watermark,) = watermark.ok_or(sqlx::Error::RowNotFound)?;
            let ids = rows.iter().map(|row| row.0).collect();
            let targets = rows.into_iter().map(|(_, kind, target)| Target::from_row(&kind, target)).collect();
            Ok(Some(Batch { tx, watermark: u64::try_from(watermark).unwrap_or(0), ids, targets }))
        })
        .await
    }

    /// Deletes what was applied and remembers how far Redis is now.
    pub(crate) async fn finish(
        &self,
        mut batch: Batch,
        watermark: u64,
    ) -> Result<usize, SourceError> {
        let ids = batch
            .ids
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        within(self.database.query_limit(), async {
            batch
                .tx
                .execute(
                    &format!("DELETE FROM steadfast_outbox WHERE id IN ({ids})"),
                    &[],
                )
                .await?;
            let update = match &batch.tx {
                #[cfg(feature = "postgres")]
                Tx::Postgres(_) => {
                    "UPDATE steadfast_outbox_state SET watermark = $1 WHERE namespace = $2"
                }
                _ => "UPDATE steadfast_outbox_state SET watermark = ? WHERE namespace = ?",
            };
            let watermark = i64::try_from(watermark).unwrap_or(i64::MAX);
            let params = [
                crate::source::Param::Int(watermark),
                crate::source::Param::Text(self.namespace.to_string()),
            ];
            batch.tx.execute(update, &params).await?;
            batch.tx.commit().await?;
            Ok(batch.ids.len())
        })
        .await
    }

    /// Bounds the table: puts one row that means everything in the place of all that are there now.
    pub(crate) async fn collapse(&self) -> Result<(), SourceError> {
        within(self.database.query_limit(), async {
            let mut tx = self.database.begin().await?;
            let namespace = [crate::source::Param::Text(self.namespace.to_string())];
            let (lock, delete) = match tx {
                #[cfg(feature = "sqlite")]
                Tx::Sqlite(_) => (
                    "SELECT watermark FROM steadfast_outbox_state WHERE namespace = ?",
                    "DELETE FROM steadfast_outbox WHERE namespace = ?",
                ),
                #[cfg(feature = "mysql")]
                Tx::MySql(_) => (
                    "SELECT watermark FROM steadfast_outbox_state WHERE namespace = ? FOR UPDATE",
                    "DELETE FROM steadfast_outbox WHERE namespace = ?",
                ),
                #[cfg(feature = "postgres")]
                Tx::Postgres(_) => (
                    "SELECT watermark FROM steadfast_outbox_state WHERE namespace = $1 FOR UPDATE",
                    "DELETE FROM steadfast_outbox WHERE namespace = $1",
                ),
            };
            tx.select(lock, &namespace).await?;
            tx.execute(delete, &namespace).await?;
            tx.insert(&self.namespace, &[Target::All]).await?;
            tx.commit().await
        })
        .await
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl sealed::Sealed for Tx {}
#[cfg(feature = "sqlite")]
impl sealed::Sealed for Transaction<'_, Sqlite> {}
#[cfg(feature = "mysql")]
impl sealed::Sealed for Transaction<'_, MySql> {}
#[cfg(feature = "postgres")]
impl sealed::Sealed for Transaction<'_, Postgres> {}

impl Transactional for Tx {
    async fn insert(&mut self, namespace: &str, targets: &[Target]) -> Result<(), SourceError> {
        match *self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref mut tx) => tx.insert(namespace, targets).await,
            #[cfg(feature = "mysql")]
            Self::MySql(ref mut tx) => tx.insert(namespace, targets).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(ref mut tx) => tx.insert(namespace, targets).await,
        }
    }
}

macro_rules! insert_for {
    ($database:ty, $row:expr) => {
        impl Transactional for Transaction<'_, $database> {
            async fn insert(&mut self, namespace: &str, targets: &[Target]) -> Result<(), SourceError> {
                for chunk in targets.chunks(ROWS_AT_ONCE) {
                    let row: fn(usize) -> String = $row;
                    let rows = (0..chunk.len()).map(row).collect::<Vec<_>>().join(", ");
                    let sql = format!("INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES {rows}");
                    let mut query = sqlx::query(AssertSqlSafe(sql));
                    for target in chunk {
                        let (kind, bytes) = target.row();
                        query = query.bind(namespace).bind(kind).bind(bytes);
                    }
                    query.execute(&mut **self).await?;
                }
                Ok(())
            }
        }
    };
}

#[cfg(feature = "sqlite")]
insert_for!(Sqlite, |_| format!("(?, ?, ?, {SQLITE_NOW})"));
#[cfg(feature = "mysql")]
insert_for!(MySql, |_| format!("(?, ?, ?, {MYSQL_NOW})"));
#[cfg(feature = "postgres")]
insert_for!(Postgres, |at| format!(
    "(${}, ${}, ${}, {POSTGRES_NOW})",
    at * 3 + 1,
    at * 3 + 2,
    at * 3 + 3
));

/// The time by the database's clock, in milliseconds since 1970.
pub(crate) fn now_sql(database: &Database) -> &'static str {
    match *database.pool() {
        #[cfg(feature = "sqlite")]
        Pool::Sqlite(_) => SQLITE_NOW,
        #[cfg(feature = "mysql")]
        Pool::MySql(_) => MYSQL_NOW,
        #[cfg(feature = "postgres")]
        Pool::Postgres(_) => POSTGRES_NOW,
    }
}

fn glance_sql(now: &str, first: &str, second: &str) -> String {
    format!(
        "SELECT s.watermark, o.id, {now} - o.created_at, (SELECT MAX(id) FROM steadfast_outbox WHERE namespace = {first}) \
         FROM steadfast_outbox_state s LEFT JOIN steadfast_outbox o ON o.namespace = s.namespace \
         WHERE s.namespace = {second} ORDER BY o.id LIMIT 1"
    )
}

/// As many rows as a batch asks for.
const BATCH: usize = 256;

const ROWS_AT_ONCE: usize = 100;

/// Milliseconds since 1970 by the database's clock.
const SQLITE_NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)";
const MYSQL_NOW: &str = "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)";
const POSTGRES_NOW: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

const SQLITE_TABLES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS steadfast_outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, \
     kind TEXT NOT NULL, target BLOB NOT NULL, created_at INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS steadfast_outbox_order ON steadfast_outbox (namespace, id)",
    "CREATE TABLE IF NOT EXISTS steadfast_outbox_state (namespace TEXT NOT NULL PRIMARY KEY, watermark INTEGER NOT NULL)",
];

const MYSQL_TABLES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS steadfast_outbox (id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, namespace VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, \
     kind VARCHAR(8) NOT NULL, target MEDIUMBLOB NOT NULL, created_at BIGINT NOT NULL, KEY steadfast_outbox_order (namespace, id)) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS steadfast_outbox_state (namespace VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL PRIMARY KEY, \
     watermark BIGINT NOT NULL) ENGINE=InnoDB",
];

const POSTGRES_TABLES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS steadfast_outbox (id BIGSERIAL PRIMARY KEY, namespace TEXT NOT NULL, kind TEXT NOT NULL, \
     target BYTEA NOT NULL, created_at BIGINT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS steadfast_outbox_order ON steadfast_outbox (namespace, id)",
    "CREATE TABLE IF NOT EXISTS steadfast_outbox_state (namespace TEXT NOT NULL PRIMARY KEY, watermark BIGINT NOT NULL)",
];
