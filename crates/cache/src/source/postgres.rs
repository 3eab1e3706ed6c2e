//! PostgreSQL.

use futures_util::{StreamExt, TryStreamExt};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, Postgres};

use super::row::postgres::row as json;
use super::{DatabaseOptions, Executed, Param, Pool, Row, SourceError, param};

/// The pool, and one of connections that only read, if there are to be any.
pub(super) fn connect(options: PgConnectOptions, limits: &DatabaseOptions) -> (Pool, Option<Pool>) {
    let options = match &limits.tls {
        Some(tls) => super::tls::postgres(options, tls),
        None => options,
    };
    let pool = |connections, options| {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(limits.acquire_timeout);
        Pool::Postgres(pool.connect_lazy_with(options))
    };
    let readers = limits.read_only_connections.map(|connections| {
        // Said with a connection's first message: it costs nothing, and a proxy that shares connections refuses it rather than let
        // it leak into those of others.
        let read_only = [("default_transaction_read_only", "on")];
        pool(connections, options.clone().options(read_only))
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
    E: Executor<'e, Database = Postgres>,
{
    sqlx::query_with(sql, param::postgres(params)?)
        .persistent(param::may_stay_prepared(params))
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
    E: Executor<'e, Database = Postgres>,
{
    let done = sqlx::query_with(sql, param::postgres(params)?)
        .persistent(param::may_stay_prepared(params))
        .execute(executor)
        .await?;
    Ok(Executed {
        rows_affected: done.rows_affected(),
        last_insert_id: None,
    })
}
