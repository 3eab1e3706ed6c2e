//! A transaction of any of the databases.

#[cfg(feature = "mysql")]
use sqlx::MySql;
#[cfg(feature = "postgres")]
use sqlx::Postgres;
#[cfg(feature = "sqlite")]
use sqlx::Sqlite;

use super::lent::{Lent, State};
#[cfg(feature = "mysql")]
use super::mysql;
use super::rows::{Bounds, Selected};
#[cfg(feature = "sqlite")]
use super::sqlite;
use super::{Executed, Param, Row, SourceError};

/// A transaction, rolled back when dropped. The variants hold a connection of sqlx, for use with
/// everything that takes one:
///
/// ```no_run
/// # #[cfg(feature = "sqlite")]
/// # async fn f(mut tx: steadfast_cache::Tx) -> Result<(), Box<dyn std::error::Error>> {
/// if let steadfast_cache::Tx::Sqlite(tx) = &mut tx {
///     let change = sqlx::query("UPDATE users SET name = ? WHERE id = ?");
///     change.bind("Ada").bind(7).execute(&mut **tx).await?;
/// }
/// tx.rollback().await?; // or `commit`, or leave both to `Cache::write`
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Tx {
    /// SQLite's.
    #[cfg(feature = "sqlite")]
    Sqlite(Lent<Sqlite>),
    /// MySQL's or MariaDB's.
    #[cfg(feature = "mysql")]
    MySql(Lent<MySql>),
    /// PostgreSQL's.
    #[cfg(feature = "postgres")]
    Postgres(Lent<Postgres>),
}

impl Tx {
    /// Runs a statement, within
    /// [`DatabaseOptions::statement_limit`](super::DatabaseOptions::statement_limit). After that
    /// time, or once the database has ended the transaction by itself, the transaction can only be
    /// dropped.
    ///
    /// # Errors
    /// What the database said; [`SourceError::Timeout`]; [`SourceError::Ended`].
    pub async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, SourceError> {
        let done = each!(*self, Self[ref mut tx], dialect => {
            let kept = tx.keeps_statements();
            tx.ask(async |tx| dialect::execute(tx, sql, params, kept).await)
                .await
        });
        self.heed(done).await
    }

    /// Runs a query, or a statement with RETURNING, and gives its rows as
    /// [`Database::select`](super::Database::select) does.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn select(&mut self, sql: &str, params: &[Param]) -> Result<Vec<Row>, SourceError> {
        let selected = self.select_within(Bounds::NONE, sql, params).await?;
        Ok(selected.rows)
    }

    /// Runs a query as [`select`](Self::select) does, but keeps no more than `bounds`; the
    /// statement runs to its end all the same.
    ///
    /// # Errors
    /// As [`execute`](Self::execute), and [`SourceError::RowTooLarge`].
    pub async fn select_within(
        &mut self,
        bounds: Bounds,
        sql: &str,
        params: &[Param],
    ) -> Result<Selected, SourceError> {
        let selected = each!(*self, Self[ref mut tx], dialect => {
            tx.ask(async |tx| dialect::select(tx, sql, params, bounds).await)
                .await
        });
        self.heed(selected).await
    }

    /// After a failed statement, learns whether the database has ended the transaction with it:
    /// what came next would be no part of any.
    async fn heed<T>(&mut self, result: Result<T, SourceError>) -> Result<T, SourceError> {
        if let Err(error) = &result {
            match *self {
                #[cfg(feature = "sqlite")]
                Self::Sqlite(ref mut tx) if tx.state() == State::Open => {
                    tx.set(State::Spoilt);
                    if !sqlite::has_ended(tx).await {
                        tx.set(State::Open);
                    }
                }
                #[cfg(feature = "mysql")]
                Self::MySql(ref mut tx) if mysql::has_ended(error) => tx.set(State::Spoilt),
                _ => {}
            }
        }
        result
    }

    /// Commits.
    ///
    /// # Errors
    /// What the database said; whether the transaction was committed may then be unknown.
    pub async fn commit(mut self) -> Result<(), SourceError> {
        each!(self, Self[ref mut tx] => tx.commit().await)
    }

    /// Rolls back at once, rather than when the connection is next used.
    ///
    /// # Errors
    /// What the database said.
    pub async fn rollback(mut self) -> Result<(), SourceError> {
        each!(self, Self[ref mut tx] => tx.rollback().await)
    }
}
