//! Writing invalidations into the transaction of a change, whoever has begun it.

#[cfg(feature = "mysql")]
use sqlx::MySql;
#[cfg(feature = "postgres")]
use sqlx::Postgres;
#[cfg(feature = "sqlite")]
use sqlx::Sqlite;
use sqlx::{AssertSqlSafe, Transaction};

use super::tables::{MYSQL_NOW, POSTGRES_NOW, SQLITE_NOW};
use crate::sql::{Param, SourceError, Tx};
use crate::target::Target;

/// A transaction into which an invalidation can be written: [`Tx`], or any of sqlx's own.
///
/// ```
/// use steadfast_cache::{Cache, Invalidation, SourceError, Target, Transactional};
///
/// /// For whoever changes a user: apply what it answers, once the transaction is committed.
/// async fn changed<'c>(
///     cache: &'c Cache,
///     tx: &mut impl Transactional,
///     user: i64,
/// ) -> Result<Invalidation<'c>, SourceError> {
///     cache.invalidate_in(tx, &[Target::key(format!("user:{user}"))]).await
/// }
/// ```
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

impl sealed::Sealed for Tx {}
#[cfg(feature = "sqlite")]
impl sealed::Sealed for Transaction<'_, Sqlite> {}
#[cfg(feature = "mysql")]
impl sealed::Sealed for Transaction<'_, MySql> {}
#[cfg(feature = "postgres")]
impl sealed::Sealed for Transaction<'_, Postgres> {}

impl Transactional for Tx {
    async fn insert(&mut self, namespace: &str, targets: &[Target]) -> Result<(), SourceError> {
        for chunk in targets.chunks(ROWS_AT_ONCE) {
            let row: fn(usize) -> String = match *self {
                #[cfg(feature = "sqlite")]
                Self::Sqlite(_) => sqlite_row,
                #[cfg(feature = "mysql")]
                Self::MySql(_) => mysql_row,
                #[cfg(feature = "postgres")]
                Self::Postgres(_) => postgres_row,
            };
            let mut params = Vec::with_capacity(chunk.len() * 3);
            for target in chunk {
                let (kind, bytes) = target.row();
                params.extend([
                    Param::Text(namespace.to_owned()),
                    Param::Text(kind.to_owned()),
                    Param::Bytes(bytes.to_vec()),
                ]);
            }
            self.execute(&insert_sql(chunk.len(), row), &params).await?;
        }
        Ok(())
    }
}

macro_rules! insert_for {
    ($database:ty, $row:expr) => {
        impl Transactional for Transaction<'_, $database> {
            async fn insert(
                &mut self,
                namespace: &str,
                targets: &[Target],
            ) -> Result<(), SourceError> {
                for chunk in targets.chunks(ROWS_AT_ONCE) {
                    let mut query = sqlx::query(AssertSqlSafe(insert_sql(chunk.len(), $row)));
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
insert_for!(Sqlite, sqlite_row);
#[cfg(feature = "mysql")]
insert_for!(MySql, mysql_row);
#[cfg(feature = "postgres")]
insert_for!(Postgres, postgres_row);

fn insert_sql(rows: usize, row: fn(usize) -> String) -> String {
    let rows = (0..rows).map(row).collect::<Vec<_>>().join(", ");
    format!("INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES {rows}")
}

fn sqlite_row(_: usize) -> String {
    format!("(?, ?, ?, {SQLITE_NOW})")
}

fn mysql_row(_: usize) -> String {
    format!("(?, ?, ?, {MYSQL_NOW})")
}

fn postgres_row(at: usize) -> String {
    format!(
        "(${}, ${}, ${}, {POSTGRES_NOW})",
        at * 3 + 1,
        at * 3 + 2,
        at * 3 + 3
    )
}

const ROWS_AT_ONCE: usize = 100;
