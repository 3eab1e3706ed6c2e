//! SQLite: a file in WAL mode, so that readers do not wait for the one writer.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Executor, Sqlite};

use super::row::sqlite::row as json;
use super::{DatabaseOptions, Executed, Param, Pool, Row, SourceError, param};

/// The pool, and one of connections that only read, if there are to be any.
pub(super) fn connect(
    options: SqliteConnectOptions,
    limits: &DatabaseOptions,
) -> (Pool, Option<Pool>) {
    let options = options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(limits.query_limit.max(Duration::from_secs(1)));
    let pool = |connections, options| {
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(limits.acquire_timeout);
        Pool::Sqlite(pool.connect_lazy_with(options))
    };
    let readers = limits.read_only_connections.map(|connections| {
        // Not `mode=ro`, which could neither make a file that is missing nor take up a WAL that was left behind.
        pool(connections, options.clone().pragma("query_only", "ON"))
    });
    (pool(limits.max_connections, options), readers)
}

pub(super) async fn select<'e, E>(
    executor: E,
    sql: AssertSqlSafe<String>,
    params: &[Param],
    most: usize,
) -> Result<Vec<Row>, SourceError>
where
    E: Executor<'e, Database = Sqlite>,
{
    sqlx::query_with(sql, param::sqlite(params)?)
        .fetch(executor)
        .map(|row| json(&row?))
        .take(most)
        .try_collect()
        .await
}

pub(super) async fn execute<'e, E>(
    executor: E,
    sql: AssertSqlSafe<String>,
    params: &[Param],
) -> Result<Executed, SourceError>
where
    E: Executor<'e, Database = Sqlite>,
{
    let done = sqlx::query_with(sql, param::sqlite(params)?)
        .execute(executor)
        .await?;
    Ok(Executed {
        rows_affected: done.rows_affected(),
        last_insert_id: Some(done.last_insert_rowid()),
    })
}
