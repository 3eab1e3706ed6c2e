//! MySQL and MariaDB.

use futures_util::{StreamExt, TryStreamExt};
use sqlx::mysql::{MySqlArguments, MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, Executor, MySql, MySqlConnection};

use super::row::mysql::row as json;
use super::{DatabaseOptions, Executed, Param, ParamType, Pool, Row, SourceError};

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
    E: Executor<'e, Database = MySql>,
{
    let done = sqlx::query_with(sql, bind(params)?)
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

fn bind(params: &[Param]) -> Result<MySqlArguments, SourceError> {
    use sqlx::Arguments;
    let mut arguments = MySqlArguments::default();
    for param in params {
        match param.clone() {
            Param::Null | Param::NullOf(ParamType::Text) => arguments.add(None::<String>),
            Param::NullOf(ParamType::Bool) => arguments.add(None::<bool>),
            Param::NullOf(ParamType::Int) => arguments.add(None::<i64>),
            Param::NullOf(ParamType::Float) => arguments.add(None::<f64>),
            Param::NullOf(ParamType::Bytes) => arguments.add(None::<Vec<u8>>),
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
