//! SQLite: a file in WAL mode, so that readers do not wait for the one writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Executor, Sqlite, SqliteConnection, SqlitePool};

use super::lent::{Kind, Lent, State, may_go_back, sealed};
use super::row::sqlite::row as json;
use super::rows::{Bounds, Rest, Selected, gather, gather_all};
use super::{DatabaseOptions, Executed, Param, Pool, SourceError, first_word, param};

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
            .acquire_timeout(limits.acquire_timeout)
            .after_release(|connection, _| Box::pin(may_go_back(connection)));
        Pool::Sqlite(pool.connect_lazy_with(options))
    };
    let readers = limits.read_only_connections.map(|connections| {
        // Not `mode=ro`, which could neither make a file that is missing nor take up a WAL that was
        // left behind.
        pool(connections, options.clone().pragma("query_only", "ON"))
    });
    (pool(limits.max_connections, options), readers)
}

impl sealed::Sealed for Sqlite {}

impl Kind for Sqlite {
    type Stop = Arc<AtomicBool>;

    async fn stop(stop: &Self::Stop) {
        stop.store(true, Relaxed);
    }
}

/// Runs a query. What reads does so in one snapshot, in which the schema cannot change: sqlx
/// remembers the columns of a statement, which SQLite prepares anew by itself when they have
/// changed. The schema's number is part of the text, so that no statement of another schema is
/// found.
pub(super) async fn read(
    pool: &SqlitePool,
    sql: AssertSqlSafe<String>,
    params: &[Param],
    bounds: Bounds,
    limit: Duration,
) -> Result<Selected, SourceError> {
    let mut held = taken(pool, limit).await?;
    let reads = matches!(&*first_word(&sql.0), "SELECT" | "WITH" | "VALUES");
    let mut sql = sql;
    if reads {
        held.begin("BEGIN").await?;
        held.set(State::Asked);
        let schema: i64 = sqlx::query_scalar(SCHEMA).fetch_one(&mut *held).await?;
        sql = AssertSqlSafe(format!("/* schema {schema} */ {}", sql.0));
    }
    held.set(State::Asked);
    let query = sqlx::query_with(sql, param::sqlite(params)?).persistent(reads);
    let read = gather(query.fetch(&mut *held), bounds, Rest::Left, json).await;
    // Nothing is left in the connection: rows that are not taken are not made.
    let result = match read {
        Ok((selected, _)) => Ok(selected),
        Err((error, _)) => Err(error),
    };
    held.set(if reads { State::Open } else { State::Free });
    if reads && result.is_ok() {
        held.commit().await?;
    }
    result
}

/// Begins a transaction that is about to write.
pub(super) async fn begin(pool: &SqlitePool, limit: Duration) -> Result<Lent<Sqlite>, SourceError> {
    let mut held = taken(pool, limit).await?;
    held.begin("BEGIN IMMEDIATE").await?;
    Ok(held)
}

/// A connection that can be stopped in whatever it computes.
async fn taken(pool: &SqlitePool, limit: Duration) -> Result<Lent<Sqlite>, SourceError> {
    let mut held = Lent::new(pool.acquire().await?, limit);
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    held.lock_handle()
        .await?
        .set_progress_handler(STEPS, move || !told.load(Relaxed));
    held.can_be_stopped(stop);
    held.set(State::Free);
    Ok(held)
}

/// Whether SQLite has ended the transaction by itself (`ROLLBACK` in a conflict clause or a
/// trigger, a disk that is full), so that what follows would be kept at once.
pub(super) async fn has_ended(connection: &mut SqliteConnection) -> bool {
    if connection.execute("BEGIN").await.is_err() {
        return false;
    }
    let _ = connection.execute("ROLLBACK").await;
    true
}

/// Runs a statement that hands rows back, within a transaction. Prepared anew each time, for the
/// schema that is in force now.
pub(super) async fn select(
    connection: &mut SqliteConnection,
    sql: &str,
    params: &[Param],
    bounds: Bounds,
) -> Result<Selected, SourceError> {
    let query = sqlx::query_with(AssertSqlSafe(sql), param::sqlite(params)?).persistent(false);
    gather_all(query.fetch(connection), bounds, json).await
}

/// Runs a statement. SQLite remembers the last row that the connection inserted, whoever it was
/// for. So a row of ours comes before it, by which to see that there was none. The statement is
/// prepared once and kept: no session here is shared.
pub(super) async fn execute(
    connection: &mut SqliteConnection,
    sql: &str,
    params: &[Param],
    _kept: bool,
) -> Result<Executed, SourceError> {
    let inserts = matches!(&*first_word(sql), "INSERT" | "REPLACE" | "WITH");
    if inserts {
        for sql in MARK_ROW {
            sqlx::query(sql).execute(&mut *connection).await?;
        }
    }
    let done = sqlx::query_with(AssertSqlSafe(sql), param::sqlite(params)?)
        .execute(connection)
        .await?;
    let id = done.last_insert_rowid();
    Ok(Executed {
        rows_affected: done.rows_affected(),
        last_insert_id: Some(id).filter(|id| inserts && *id != i64::MIN),
    })
}

/// The number of the schema. Reading a table of the file along with it makes the connection look
/// whether it knows that schema; a pragma alone does not.
const SCHEMA: &str = "SELECT schema_version, (SELECT COUNT(*) FROM sqlite_master WHERE 0) FROM pragma_schema_version";

const MARK_ROW: [&str; 2] = [
    "CREATE TEMP TABLE IF NOT EXISTS steadfast_last_row (id INTEGER PRIMARY KEY)",
    "REPLACE INTO temp.steadfast_last_row VALUES (-9223372036854775807 - 1)",
];

/// Steps of its virtual machine after which SQLite asks whether to go on.
const STEPS: i32 = 1000;
