//! PostgreSQL.
//!
//! What stands before it may share its sessions among clients (PgBouncer in transaction mode and
//! its kind), and then the next statement may run in another session than the last: what was
//! prepared there under a name is another's, and what was set is gone. So each connection is opened
//! with a setting of ours, and asked for it before it is used. Where it is missing, every query has
//! a transaction of its own, which keeps one session, and prepares its statement without a name.

use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres, Row as _,
};

use super::lent::{Kind, Lent, State, may_go_back, sealed};
use super::row::postgres::row as json;
use super::rows::{Bounds, Rest, Selected, gather, gather_all};
use super::{DatabaseOptions, Executed, GRACE, Param, Pool, SourceError, param};

/// Pools, and what their connections are opened with where no options are taken.
pub(super) struct Pools {
    pub(super) pool: Pool,
    /// Of connections that only read, if there are to be any.
    pub(super) readers: Option<Pool>,
    pub(super) plain: PgConnectOptions,
}

pub(super) fn connect(options: PgConnectOptions, limits: &DatabaseOptions) -> Pools {
    let plain = match &limits.tls {
        Some(tls) => super::tls::postgres(options, tls),
        None => options,
    };
    let options = mark(plain.clone());
    let pool = |connections| {
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(limits.acquire_timeout)
    };
    let readers = limits.read_only_connections.map(|connections| {
        // Said with a connection's first message: it costs nothing.
        let only_reads = options.clone().options([
            ("default_transaction_read_only", "on".to_owned()),
            ("statement_timeout", millis(limits.query_limit + GRACE)),
        ]);
        // Each query begins with a question, which finds out what is dead.
        let pool = pool(connections).test_before_acquire(false);
        Pool::Postgres(pool.connect_lazy_with(only_reads))
    });
    let pool = pool(limits.max_connections)
        .after_release(|connection, _| Box::pin(may_go_back(connection)));
    Pools {
        pool: Pool::Postgres(pool.connect_lazy_with(options)),
        readers,
        plain,
    }
}

/// Adds the setting by which a session of our own is told.
pub(super) fn mark(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("steadfast.session", "own")])
}

impl sealed::Sealed for Postgres {}

impl Kind for Postgres {
    type Stop = (Arc<PgConnectOptions>, i32);

    async fn stop((options, pid): &Self::Stop) {
        let stopping = async {
            let mut other = options.connect().await?;
            let sql = format!("SELECT pg_cancel_backend({pid})");
            other.execute(AssertSqlSafe(sql)).await?;
            other.close().await
        };
        if let Err(error) = stopping.await {
            tracing::debug!(%error, "a statement in PostgreSQL could not be stopped");
        }
    }
}

/// The way in which a query is run.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) pool: &'a PgPool,
    /// The options to connect with where no startup options are taken.
    pub(super) plain: &'a PgConnectOptions,
    /// The time that a statement may take.
    pub(super) limit: Duration,
    /// Whether nothing may be written.
    pub(super) only_reads: bool,
}

/// Runs a query.
pub(super) async fn read(
    way: Way<'_>,
    sql: &str,
    params: &[Param],
    bounds: Bounds,
) -> Result<Selected, SourceError> {
    let mut held = taken(way).await?;
    let own = held.keeps_statements();
    if !own {
        let kind = if way.only_reads {
            "READ ONLY"
        } else {
            "READ WRITE"
        };
        let begin = format!("BEGIN {kind}; {}", limited(way.limit));
        held.begin(AssertSqlSafe(begin)).await?;
        ask_session(way.pool, &mut held).await?;
    }
    held.set(State::Asked);
    let read = rows(&mut held, sql, params, own, bounds).await;
    let read = match read {
        // The schema has changed under a statement that was prepared before.
        Err((error, true)) if own && is_outdated(&error) => {
            held.clear_cached_statements().await?;
            rows(&mut held, sql, params, own, bounds).await
        }
        read => read,
    };
    let (result, ended) = match read {
        Ok((selected, ended)) => (Ok(selected), ended),
        Err((error, ended)) => (Err(error), ended),
    };
    if ended {
        held.set(if own { State::Free } else { State::Open });
        if result.is_ok() && !own {
            held.commit().await?;
        }
    }
    result
}

/// Begins a transaction.
pub(super) async fn begin(way: Way<'_>) -> Result<Lent<Postgres>, SourceError> {
    let mut held = taken(way).await?;
    let sql = format!("BEGIN; {}", limited(way.limit));
    held.begin(AssertSqlSafe(sql)).await?;
    if !held.keeps_statements() {
        // Only now there is a session to speak of.
        ask_session(way.pool, &mut held).await?;
        held.set(State::Open);
    }
    Ok(held)
}

/// A connection that answers. Those that were cut off meanwhile are thrown away, however many they
/// are.
async fn taken(way: Way<'_>) -> Result<Lent<Postgres>, SourceError> {
    let mut dead = way.pool.options().get_max_connections();
    loop {
        let connection = acquire(way.pool, way.plain).await?;
        let mut held = Lent::new(connection, way.limit);
        match ask_session(way.pool, &mut held).await {
            Err(error) if dead > 0 && is_cut_off(&error) => dead -= 1,
            asked => {
                asked?;
                held.set(State::Free);
                return Ok(held);
            }
        }
    }
}

/// Takes a connection. What stands between and takes no options is asked without them, once and for
/// all.
pub(super) async fn acquire(
    pool: &PgPool,
    plain: &PgConnectOptions,
) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    match pool.acquire().await {
        Err(error) if takes_no_options(&error) => {
            give_up_options(pool, plain);
            pool.acquire().await
        }
        taken => taken,
    }
}

/// Opens a connection beside the pool, as its own are.
pub(super) async fn open(
    pool: &PgPool,
    plain: &PgConnectOptions,
) -> Result<PgConnection, sqlx::Error> {
    match pool.connect_options().connect().await {
        Err(error) if takes_no_options(&error) => {
            give_up_options(pool, plain);
            pool.connect_options().connect().await
        }
        opened => opened,
    }
}

fn give_up_options(pool: &PgPool, plain: &PgConnectOptions) {
    tracing::info!(
        "what stands before PostgreSQL takes no startup options: its sessions are taken for shared, and each query has a transaction of its own"
    );
    pool.set_connect_options(plain.clone().extra_float_digits(None));
}

/// PgBouncer, and Amazon's RDS Proxy.
fn takes_no_options(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| {
        let message = error.message();
        message.contains("startup parameter") || message.contains("command-line options")
    })
}

/// Learns whether the session is ours alone, and how to stop what it runs.
async fn ask_session(pool: &PgPool, held: &mut Lent<Postgres>) -> Result<(), sqlx::Error> {
    held.set(State::Spoilt);
    let sql = "SELECT pg_backend_pid(), current_setting('steadfast.session', true)";
    let row = sqlx::raw_sql(sql).fetch_one(&mut **held).await?;
    held.can_be_stopped((pool.connect_options(), row.try_get(0)?));
    if row.try_get::<Option<&str>, _>(1)? != Some("own") {
        held.shares_its_session();
    }
    Ok(())
}

/// For the transaction that has begun: a statement that takes longer is ended by the server, and so
/// is a transaction in which nothing is asked.
fn limited(limit: Duration) -> String {
    let limit = millis(limit + GRACE);
    format!(
        "SET LOCAL statement_timeout = {limit}; SET LOCAL idle_in_transaction_session_timeout = {limit}"
    )
}

/// In milliseconds, as far as the server can count; nought would be without end.
pub(super) fn millis(limit: Duration) -> String {
    limit.as_millis().clamp(1, 2_000_000_000).to_string()
}

fn is_cut_off(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| matches!(&*code, "57P01" | "57P02" | "57P05" | "08P01" | "25P03")),
        _ => false,
    }
}

/// "cached plan must not change result type"; or what the statement named was dropped and made
/// again.
fn is_outdated(error: &SourceError) -> bool {
    let SourceError::Sql(sqlx::Error::Database(error)) = error else {
        return false;
    };
    error
        .code()
        .is_some_and(|code| matches!(&*code, "0A000" | "26000"))
}

/// The statement, with the types of its parameters in a comment. What was prepared is found again
/// by its text alone, and a value of another type would be read there as one of the type it was
/// prepared for: eight letters as a number.
fn typed(sql: &str, params: &[Param]) -> AssertSqlSafe<String> {
    let mut text = sql.to_owned();
    for (index, param) in params.iter().enumerate() {
        text.push_str(if index == 0 { "\n-- " } else { ", " });
        text.push_str(param.type_name());
    }
    AssertSqlSafe(text)
}

fn query(
    sql: &str,
    params: &[Param],
    kept: bool,
) -> Result<Query<'static, Postgres, PgArguments>, sqlx::Error> {
    let query = sqlx::query_with(typed(sql, params), param::postgres(params)?);
    Ok(query.persistent(kept && param::may_stay_prepared(params)))
}

async fn rows(
    connection: &mut PgConnection,
    sql: &str,
    params: &[Param],
    kept: bool,
    bounds: Bounds,
) -> Result<(Selected, bool), (SourceError, bool)> {
    let query = query(sql, params, kept).map_err(|error| (error.into(), true))?;
    gather(query.fetch(connection), bounds, Rest::Left, json).await
}

/// Runs a statement that hands rows back, within a transaction. Prepared anew each time: one that
/// was prepared for another schema would end the transaction.
pub(super) async fn select(
    connection: &mut PgConnection,
    sql: &str,
    params: &[Param],
    bounds: Bounds,
) -> Result<Selected, SourceError> {
    let query = query(sql, params, false)?;
    gather_all(query.fetch(connection), bounds, json).await
}

/// Runs a statement. It is `kept` prepared under a name if the session is ours alone.
pub(super) async fn execute(
    connection: &mut PgConnection,
    sql: &str,
    params: &[Param],
    kept: bool,
) -> Result<Executed, SourceError> {
    let done = query(sql, params, kept)?.execute(connection).await?;
    Ok(Executed {
        rows_affected: done.rows_affected(),
        last_insert_id: None,
    })
}
