//! SQLite: a file in WAL mode, so that readers do not wait for the one writer.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Column, Executor, Row as _, Sqlite, TypeInfo, ValueRef};

use super::{DatabaseOptions, Executed, Param, Pool, Row, SourceError, hex, number};

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
    sqlx::query_with(sql, bind(params)?)
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
    let done = sqlx::query_with(sql, bind(params)?)
        .execute(executor)
        .await?;
    Ok(Executed {
        rows_affected: done.rows_affected(),
        last_insert_id: Some(done.last_insert_rowid()),
    })
}

fn bind(params: &[Param]) -> Result<SqliteArguments, SourceError> {
    use sqlx::Arguments;
    let mut arguments = SqliteArguments::default();
    for param in params {
        match param.clone() {
            Param::Null => arguments.add(None::<String>),
            Param::Bool(value) => arguments.add(value),
            Param::Int(value) => arguments.add(value),
            Param::Float(value) => arguments.add(value),
            Param::Text(value) => arguments.add(value),
            Param::Bytes(value) => arguments.add(value),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn json(row: &SqliteRow) -> Result<Row, SourceError> {
    row.columns()
        .iter()
        .enumerate()
        .map(|(at, column)| Ok((column.name().to_owned(), value(row, at)?)))
        .collect()
}

/// SQLite's types belong to values, not to columns.
fn value(row: &SqliteRow, at: usize) -> Result<Value, SourceError> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let type_name = raw.type_info().name().to_owned();
    Ok(match type_name.as_str() {
        "BOOLEAN" => row.try_get_unchecked::<bool, _>(at)?.into(),
        "REAL" => number(row.try_get_unchecked(at)?),
        "BLOB" => hex(row.try_get_unchecked(at)?),
        "INTEGER" | "INT4" | "INT8" => row.try_get_unchecked::<i64, _>(at)?.into(),
        _ => row.try_get_unchecked::<String, _>(at)?.into(),
    })
}
