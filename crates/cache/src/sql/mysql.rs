//! MySQL and MariaDB.

use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, MySql, MySqlConnection, MySqlPool,
    Row as _,
};

use super::lent::{Kind, Lent, State, may_go_back, sealed};
use super::row::mysql::row as json;
use super::rows::{Bounds, Rest, Selected, gather, gather_all};
use super::{DatabaseOptions, Executed, GRACE, Param, Pool, SourceError, param};

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
    let limit = limits.query_limit;
    let readers = limits.read_only_connections.map(|connections| {
        // Each query begins with a question, which finds out what is dead.
        let only_reads = pool(connections)
            .test_before_acquire(false)
            .after_connect(move |connection, _| Box::pin(only_read(connection, limit)));
        Pool::MySql(only_reads.connect_lazy_with(options.clone()))
    });
    let writers = pool(limits.max_connections)
        .after_release(|connection, _| Box::pin(may_go_back(connection)));
    (Pool::MySql(writers.connect_lazy_with(options)), readers)
}

/// Lets a session only read, and each query run no longer than `limit`, of which MariaDB and MySQL
/// have different words.
pub(super) async fn only_read(
    connection: &mut MySqlConnection,
    limit: Duration,
) -> Result<(), sqlx::Error> {
    let limit = limit + GRACE;
    let sql = format!(
        "SET /*M!100101 SESSION max_statement_time = {}, */ /*!50708 SESSION max_execution_time = {}, */ \
         SESSION net_write_timeout = 60",
        limit.as_secs_f64(),
        limit.as_millis()
    );
    connection.execute(AssertSqlSafe(sql)).await?;
    let sql = "SET SESSION TRANSACTION READ ONLY";
    connection.execute(sql).await.map(|_| ())
}

impl sealed::Sealed for MySql {}

impl Kind for MySql {
    type Stop = (Arc<MySqlConnectOptions>, u64);

    async fn stop((options, id): &Self::Stop) {
        let stopping = async {
            let mut other = options.connect().await?;
            // The query only: its connection answers when it has ended, where one that is killed
            // hangs up before.
            let sql = format!("KILL QUERY {id}");
            other.execute(AssertSqlSafe(sql)).await?;
            other.close().await
        };
        if let Err(error) = stopping.await {
            tracing::debug!(%error, "a statement in MySQL could not be stopped");
        }
    }
}

/// Runs a query. On connections that are only for this the server itself stops at one row more than
/// is kept.
pub(super) async fn read(
    pool: &MySqlPool,
    sql: AssertSqlSafe<String>,
    params: &[Param],
    bounds: Bounds,
    (limit, only_reads): (Duration, bool),
) -> Result<Selected, SourceError> {
    let most = match bounds.rows.checked_add(1) {
        Some(most) if only_reads => format!(", sql_select_limit = {most}"),
        None if only_reads => ", sql_select_limit = DEFAULT".to_owned(),
        _ => String::new(),
    };
    let mut held = taken(pool, limit, &most).await?;
    held.set(State::Asked);
    let query = sqlx::query_with(sql, param::mysql(params)?);
    let read = gather(query.fetch(&mut *held), bounds, Rest::Left, json).await;
    let (result, ended) = match read {
        Ok((selected, ended)) => (Ok(selected), ended),
        Err((error, ended)) => (Err(error), ended),
    };
    if ended {
        held.set(State::Free);
    }
    result
}

/// Begins a transaction.
pub(super) async fn begin(pool: &MySqlPool, limit: Duration) -> Result<Lent<MySql>, SourceError> {
    let mut held = taken(pool, limit, "").await?;
    held.begin("BEGIN").await?;
    Ok(held)
}

/// A connection that answers, and of which it is known how to stop it. Those that were cut off
/// meanwhile are thrown away, however many they are. Where the server does not commit by itself, a
/// query would begin a transaction that nobody ends, and the next ones would see what that saw.
async fn taken(
    pool: &MySqlPool,
    limit: Duration,
    settings: &str,
) -> Result<Lent<MySql>, SourceError> {
    let mut dead = pool.options().get_max_connections();
    let sql = format!("SET autocommit = 1{settings}; SELECT CONNECTION_ID()");
    loop {
        let mut held = Lent::new(pool.acquire().await?, limit);
        let asked = sqlx::raw_sql(AssertSqlSafe(sql.clone()));
        match asked.fetch_one(&mut *held).await {
            Err(sqlx::Error::Io(_) | sqlx::Error::Tls(_)) if dead > 0 => dead -= 1,
            asked => {
                held.can_be_stopped((pool.connect_options(), asked?.try_get_unchecked(0)?));
                held.set(State::Free);
                return Ok(held);
            }
        }
    }
}

/// Whether the server has rolled the whole transaction back, so that what follows would be kept at
/// once: it was the victim of a deadlock.
pub(super) fn has_ended(error: &SourceError) -> bool {
    let SourceError::Sql(sqlx::Error::Database(error)) = error else {
        return false;
    };
    error.code().is_some_and(|code| code == "40001")
}

/// Runs a statement that hands rows back, within a transaction.
pub(super) async fn select(
    connection: &mut MySqlConnection,
    sql: &str,
    params: &[Param],
    bounds: Bounds,
) -> Result<Selected, SourceError> {
    let query = sqlx::query_with(AssertSqlSafe(sql), param::mysql(params)?);
    gather_all(query.fetch(connection), bounds, json).await
}

/// Runs a statement. It is prepared once and kept: no session here is shared.
pub(super) async fn execute(
    connection: &mut MySqlConnection,
    sql: &str,
    params: &[Param],
    _kept: bool,
) -> Result<Executed, SourceError> {
    let done = sqlx::query_with(AssertSqlSafe(sql), param::mysql(params)?)
        .execute(connection)
        .await?;
    let id = i64::try_from(done.last_insert_id())
        .ok()
        .filter(|id| *id != 0);
    Ok(Executed {
        rows_affected: done.rows_affected(),
        last_insert_id: id,
    })
}
