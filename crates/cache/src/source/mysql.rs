//! MySQL and MariaDB.

use futures_util::{StreamExt, TryStreamExt};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, Executor, MySql, MySqlConnection};

use super::row::mysql::row as json;
use super::{DatabaseOptions, Executed, Param, Pool, Row, SourceError, param};

/// The pool, and one of connections that only read, if there are to be any.
pub(super) fn connect(
    options: MySqlConnectOptions,
    limits: &DatabaseOptions,
) -> (Pool, Option<Pool>) {
    let options = match &limits.tls {
        Some(tls) => super::tls::mysql(options, tls),
        None => options,
    };
    let pool = |connections| {
        MySqlPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(limits.acquire_timeout)
    };
    let readers = limits.read_only_connections.map(|connections| {
        let only_reads =
            pool(connections).after_connect(|connection, _| Box::pin(only_read(connection)));
        Pool::MySql(only_reads.connect_lazy_with(options.clone()))
    });
    let writers = pool(limits.max_connections).connect_lazy_with(options);
    (Pool::MySql(writers), readers)
}

pub(super) async fn only_read(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    let sql = "SET SESSION TRANSACTION READ ONLY";
    connection.execute(sql).await.map(|_| ())
}

pub(super) async fn select<'e, E>(
    executor: E,
    sql: AssertSqlSafe<String>,
    params: &[Param],
    most: usize,
) -> Result<Vec<Row>, SourceError>
where
    E: Executor<'e, Database = MySql>,
{
    sqlx::query_with(sql, param::mysql(params)?)
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
    E: Executor<'e, Database = MySql>,
{
    let done = sqlx::query_with(sql, param::mysql(params)?)
        .execute(executor)
        .await?;
    let id = i64::try_from(done.last_insert_id())
        .ok()
        .filter(|id| *id != 0);
    Ok(Executed {
        rows_affected: done.rows_affected(),
        last_insert_id: id,
    })
}
