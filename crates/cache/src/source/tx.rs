//! A transaction of any of the databases.

#[cfg(feature = "mysql")]
use sqlx::MySql;
#[cfg(feature = "postgres")]
use sqlx::Postgres;
#[cfg(feature = "sqlite")]
use sqlx::Sqlite;
use sqlx::{AssertSqlSafe, Transaction};

#[cfg(feature = "mysql")]
use super::mysql;
#[cfg(feature = "postgres")]
use super::postgres;
#[cfg(feature = "sqlite")]
use super::sqlite;
use super::{Executed, Param, Row, SourceError};

/// A transaction, rolled back when dropped. The variants hold sqlx's own, for use with everything that takes one:
///
/// ```no_run
/// # #[cfg(feature = "sqlite")]
/// # async fn f(mut tx: steadfast_cache::Tx) -> Result<(), Box<dyn std::error::Error>> {
/// if let steadfast_cache::Tx::Sqlite(tx) = &mut tx {
///     sqlx::query("UPDATE users SET name = ? WHERE id = ?").bind("Ada").bind(7).execute(&mut **tx).await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Tx {
    /// SQLite's.
    #[cfg(feature = "sqlite")]
    Sqlite(Transaction<'static, Sqlite>),
    /// MySQL's or MariaDB's.
    #[cfg(feature = "mysql")]
    MySql(Transaction<'static, MySql>),
    /// PostgreSQL's.
    #[cfg(feature = "postgres")]
    Postgres(Transaction<'static, Postgres>),
}

impl Tx {
    /// Runs a statement.
    ///
    /// # Errors
    /// What the database said.
    pub async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, SourceError> {
        let sql = AssertSqlSafe(sql.to_owned());
        match *self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref mut tx) => sqlite::execute(&mut **tx, sql, params).await,
            #[cfg(feature = "mysql")]
            Self::MySql(ref mut tx) => mysql::execute(&mut **tx, sql, params).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(ref mut tx) => postgres::execute(&mut **tx, sql, params).await,
        }
    }

    /// Runs a query, or a statement with RETURNING, and gives its rows as [`Database::select`](super::Database::select) does.
    ///
    /// # Errors
    /// What the database said.
    pub async fn select(&mut self, sql: &str, params: &[Param]) -> Result<Vec<Row>, SourceError> {
        let sql = AssertSqlSafe(sql.to_owned());
        match *self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref mut tx) => sqlite::select(&mut **tx, sql, params, usize::MAX).await,
            #[cfg(feature = "mysql")]
            Self::MySql(ref mut tx) => mysql::select(&mut **tx, sql, params, usize::MAX).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(ref mut tx) => {
                postgres::select(&mut **tx, sql, params, usize::MAX).await
            }
        }
    }

    /// Commits.
    ///
    /// # Errors
    /// What the database said; whether the transaction was committed may then be unknown.
    pub async fn commit(self) -> Result<(), SourceError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(tx) => tx.commit().await?,
            #[cfg(feature = "mysql")]
            Self::MySql(tx) => tx.commit().await?,
            #[cfg(feature = "postgres")]
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }

    /// Rolls back at once, rather than when the connection is next used.
    ///
    /// # Errors
    /// What the database said.
    pub async fn rollback(self) -> Result<(), SourceError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(tx) => tx.rollback().await?,
            #[cfg(feature = "mysql")]
            Self::MySql(tx) => tx.rollback().await?,
            #[cfg(feature = "postgres")]
            Self::Postgres(tx) => tx.rollback().await?,
        }
        Ok(())
    }
}
