//! The SQL database behind the cache.
//!
//! Native pools in an enum rather than a common denominator: each database keeps its own types,
//! placeholders and ways to begin a transaction, and a caller who wants the whole of sqlx takes the
//! pool out by [`Database::pool`]. What the cache itself needs (its outbox, named queries as JSON)
//! is written per dialect here.
//!
//! Pools connect on first use, so a process starts, in whatever state the database is.

#[macro_use]
mod dialects;
mod error;
#[cfg(any(feature = "chrono", feature = "rust_decimal"))]
mod foreign;
mod lent;
#[cfg(feature = "mysql")]
mod mysql;
mod options;
mod param;
mod ping;
#[cfg(feature = "postgres")]
mod postgres;
mod reserved;
mod row;
mod rows;
#[cfg(feature = "sqlite")]
mod sqlite;
mod tls;
mod tx;
mod typed;

pub(crate) use error::Failure;
pub use error::SourceError;
#[cfg(feature = "chrono")]
pub use foreign::NotInCalendar;
pub use lent::{Kind, Lent};
pub use options::{DatabaseOptions, Executed};
pub use param::{Param, ParamType};
pub(crate) use reserved::{Reserved, Session, SessionLimits};
pub use row::Row;
pub use rows::{Bounds, Selected};
pub use tls::{DatabaseTls, DatabaseTlsMode};
pub use tx::Tx;

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ping::Pinger;
#[cfg(feature = "mysql")]
use sqlx::MySqlPool;
#[cfg(feature = "postgres")]
use sqlx::PgPool;
#[cfg(feature = "sqlite")]
use sqlx::SqlitePool;
#[cfg(feature = "postgres")]
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use steadfast_core::policy::InvalidSetting;
use tokio::sync::OnceCell;

use crate::clock::is_in_runtime;

/// A database, cheap to clone: a pool of connections of its own kind.
///
/// ```
/// use steadfast_cache::{Database, DatabaseOptions};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), steadfast_cache::SourceError> {
/// let database = Database::connect("sqlite::memory:", DatabaseOptions::default())?;
/// let mut tx = database.begin().await?;
/// tx.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)", &[]).await?;
/// let made = tx.execute("INSERT INTO users (name) VALUES (?)", &["Ada".into()]).await?;
/// assert_eq!((made.rows_affected, made.last_insert_id), (1, Some(1)));
/// tx.commit().await?;
/// assert_eq!(database.select("SELECT name FROM users", &[]).await?[0]["name"], "Ada");
/// database.close().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Database {
    pool: Pool,
    /// Connections that may only read.
    readers: Option<Pool>,
    /// The options by which connections to PostgreSQL are opened where no startup options are
    /// taken.
    #[cfg(feature = "postgres")]
    plain: Arc<PgConnectOptions>,
    pinger: Pinger,
    /// Set once a SQLite file is there.
    opened: Arc<OnceCell<()>>,
    query_limit: Duration,
    statement_limit: Duration,
}

/// The pool inside a [`Database`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Pool {
    /// SQLite, in WAL mode.
    #[cfg(feature = "sqlite")]
    Sqlite(SqlitePool),
    /// MySQL or MariaDB.
    #[cfg(feature = "mysql")]
    MySql(MySqlPool),
    /// PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(PgPool),
}

impl Database {
    /// Prepares a pool for `sqlite://path`, `mysql://…`, `mariadb://…` or `postgres://…`. Connects
    /// on first use; a SQLite file is created if it is missing, and kept in WAL mode. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`SourceError::Url`] names what is wrong with the URL, [`SourceError::Setting`] a setting
    /// that means nothing, [`SourceError::NoRuntime`] that there is no runtime.
    pub fn connect(url: &str, options: DatabaseOptions) -> Result<Self, SourceError> {
        if !is_in_runtime() {
            return Err(SourceError::NoRuntime);
        }
        for (setting, connections) in [
            ("max_connections", Some(options.max_connections)),
            ("read_only_connections", options.read_only_connections),
        ] {
            if connections == Some(0) {
                return Err(InvalidSetting::new(setting, "must be at least 1").into());
            }
        }
        for (setting, time) in [
            ("acquire_timeout", options.acquire_timeout),
            ("query_limit", options.query_limit),
            ("statement_limit", options.statement_limit),
        ] {
            if time.is_zero() || time > LONGEST_LIMIT {
                let allowed = "must be above zero and at most 24 days";
                return Err(InvalidSetting::new(setting, allowed).into());
            }
        }
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        #[cfg(feature = "postgres")]
        let mut plain = PgConnectOptions::new_without_pgpass();
        let (pool, readers) = match scheme {
            #[cfg(feature = "sqlite")]
            "sqlite" => sqlite::connect(parse(url)?, &options),
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => mysql::connect(parse(url)?, &options),
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => {
                let pools = postgres::connect(parse(url)?, &options);
                plain = pools.plain;
                (pools.pool, pools.readers)
            }
            _ => {
                let problem = unknown(scheme);
                return Err(SourceError::Url { problem });
            }
        };
        Ok(Self {
            pool,
            readers,
            #[cfg(feature = "postgres")]
            plain: Arc::new(plain),
            pinger: Pinger::default(),
            opened: Arc::default(),
            query_limit: options.query_limit,
            statement_limit: options.statement_limit,
        })
    }

    /// Whether [`connect`](Self::connect) would take this URL; connects to nothing.
    ///
    /// ```
    /// use steadfast_cache::Database;
    ///
    /// assert!(Database::check_url("postgres://app@db.internal/app").is_ok());
    /// assert!(Database::check_url("postgres://app@db.internal:none/app").is_err());
    /// ```
    ///
    /// # Errors
    /// [`SourceError::Url`] names what is wrong with it.
    pub fn check_url(url: &str) -> Result<(), SourceError> {
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        match scheme {
            #[cfg(feature = "sqlite")]
            "sqlite" => parse::<sqlx::sqlite::SqliteConnectOptions>(url).map(drop),
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => parse::<sqlx::mysql::MySqlConnectOptions>(url).map(drop),
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => parse::<sqlx::postgres::PgConnectOptions>(url).map(drop),
            _ => Err(SourceError::Url {
                problem: unknown(scheme),
            }),
        }
    }

    /// Takes a pool that the caller made. For SQLite it should be in WAL mode with a busy timeout.
    /// What PostgreSQL's opens from now on gets a setting of ours, `steadfast.session`, by which a
    /// session that is shared is told from one of its own.
    ///
    /// ```no_run
    /// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
    /// use steadfast_cache::{Database, Pool, sqlx};
    ///
    /// // As the application has it already.
    /// let pool = sqlx::PgPool::connect("postgres://app@db.internal/app").await?;
    /// let database = Database::from_pool(Pool::Postgres(pool.clone()));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn from_pool(pool: Pool) -> Self {
        #[cfg(feature = "postgres")]
        let plain = match &pool {
            Pool::Postgres(pool) => {
                let plain = (*pool.connect_options()).clone();
                pool.set_connect_options(postgres::mark(plain.clone()));
                plain
            }
            #[allow(unreachable_patterns)]
            _ => PgConnectOptions::new_without_pgpass(),
        };
        let defaults = DatabaseOptions::default();
        Self {
            pool,
            readers: None,
            #[cfg(feature = "postgres")]
            plain: Arc::new(plain),
            pinger: Pinger::default(),
            opened: Arc::new(OnceCell::new_with(Some(()))),
            query_limit: defaults.query_limit,
            statement_limit: defaults.statement_limit,
        }
    }

    /// The pool inside. What is asked by it directly knows none of our limits: see
    /// [`DatabaseOptions`].
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `sqlite`, `mysql` or `postgresql`: OpenTelemetry's names.
    #[must_use]
    pub fn system(&self) -> &'static str {
        match self.pool {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => "sqlite",
            #[cfg(feature = "mysql")]
            Pool::MySql(_) => "mysql",
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => "postgresql",
        }
    }

    /// Begins a transaction that is about to write. On SQLite it takes the write lock at once
    /// (`BEGIN IMMEDIATE`), since a transaction that reads first and writes later can fail half
    /// way.
    ///
    /// # Errors
    /// [`SourceError::Timeout`], or what the database said.
    pub async fn begin(&self) -> Result<Tx, SourceError> {
        let limit = self.statement_limit;
        let begin = async {
            self.opened().await?;
            Ok(match self.pool {
                #[cfg(feature = "sqlite")]
                Pool::Sqlite(ref pool) => Tx::Sqlite(sqlite::begin(pool, limit).await?),
                #[cfg(feature = "mysql")]
                Pool::MySql(ref pool) => Tx::MySql(mysql::begin(pool, limit).await?),
                #[cfg(feature = "postgres")]
                Pool::Postgres(ref pool) => {
                    Tx::Postgres(postgres::begin(self.way(pool, limit, false)).await?)
                }
            })
        };
        within(self.query_limit, begin).await
    }

    /// Runs a query and gives its rows as JSON: numbers, text, booleans and JSON as such, bytes as
    /// hexadecimal text, points in time as ISO 8601 text, decimals as text. What has no exact form
    /// here ([`SourceError::ColumnType`]) is cast to text in the query. A SELECT that failed
    /// because its connection was gone, or for another reason that passes by itself (a deadlock, a
    /// server that shuts down), is asked once more; what has run out of time is not.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn select(&self, sql: &str, params: &[Param]) -> Result<Vec<Row>, SourceError> {
        self.select_at_most(usize::MAX, sql, params).await
    }

    /// Runs a query as [`select`](Self::select) does, but fetches no more than the first `most`
    /// rows.
    ///
    /// ```no_run
    /// # use steadfast_cache::{Database, SourceError};
    /// # async fn f(database: Database) -> Result<(), SourceError> {
    /// let sql = "SELECT id, name FROM users ORDER BY id";
    /// for row in database.select_at_most(10, sql, &[]).await? {
    ///     println!("{}: {}", row["id"], row["name"]);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn select_at_most(
        &self,
        most: usize,
        sql: &str,
        params: &[Param],
    ) -> Result<Vec<Row>, SourceError> {
        let bounds = Bounds::new(most, usize::MAX);
        Ok(self.select_within(bounds, sql, params).await?.rows)
    }

    /// Runs a query as [`select`](Self::select) does, but keeps no more than `bounds`, and stops
    /// the database where there is more: it bounds what a query may take of memory here and of time
    /// there.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn select_within(
        &self,
        bounds: Bounds,
        sql: &str,
        params: &[Param],
    ) -> Result<Selected, SourceError> {
        match within(self.query_limit, self.select_once(bounds, sql, params)).await {
            Err(error) if may_be_repeated(sql, &error) => {
                tracing::debug!(%error, "a query is asked once more");
                within(self.query_limit, self.select_once(bounds, sql, params)).await
            }
            other => other,
        }
    }

    async fn select_once(
        &self,
        bounds: Bounds,
        sql: &str,
        params: &[Param],
    ) -> Result<Selected, SourceError> {
        self.opened().await?;
        let safe = || AssertSqlSafe(sql.to_owned());
        let (limit, only_reads) = (self.query_limit, self.readers.is_some());
        match *self.readers.as_ref().unwrap_or(&self.pool) {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(ref pool) => sqlite::read(pool, safe(), params, bounds, limit).await,
            #[cfg(feature = "mysql")]
            Pool::MySql(ref pool) => {
                mysql::read(pool, safe(), params, bounds, (limit, only_reads)).await
            }
            #[cfg(feature = "postgres")]
            Pool::Postgres(ref pool) => {
                let way = self.way(pool, limit, only_reads);
                postgres::read(way, sql, params, bounds).await
            }
        }
    }

    #[cfg(feature = "postgres")]
    fn way<'a>(&'a self, pool: &'a PgPool, limit: Duration, only_reads: bool) -> postgres::Way<'a> {
        postgres::Way {
            pool,
            plain: &self.plain,
            limit,
            only_reads,
        }
    }

    /// Connections on which queries can run at the same time.
    pub(crate) fn width(&self) -> usize {
        let pool = self.readers.as_ref().unwrap_or(&self.pool);
        let most: u32 = each!(*pool, Pool[ref pool] => pool.options().get_max_connections());
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Opens a SQLite file the first time beside the pool: making one syncs it four times, and on a
    /// slow disk that takes longer than anyone should wait for a connection.
    async fn opened(&self) -> Result<(), SourceError> {
        #[cfg(feature = "sqlite")]
        if let Pool::Sqlite(pool) = &self.pool
            && !self.opened.initialized()
        {
            // In a box: it is needed once, and would else be part of the future of every query.
            let open = || async { pool.connect_options().connect().await?.close().await };
            Box::pin(self.opened.get_or_try_init(open)).await?;
        }
        Ok(())
    }

    /// Asks the database for a sign of life, by one connection beside the pool's, which therefore
    /// may all be busy; the time it took is the caller's to measure. A database that has no room
    /// for that connection is full, not dead: its saying so is taken for the sign. With
    /// [`DatabaseOptions::read_only_connections`] it is opened as those are, so that what refuses
    /// them is heard here too.
    ///
    /// ```no_run
    /// # async fn f(database: steadfast_cache::Database) {
    /// if let Err(error) = database.ping(std::time::Duration::from_millis(500)).await {
    ///     println!("{error}; it may pass: {}", error.is_passing());
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SourceError::Timeout`] after `limit`, or what the database said.
    pub async fn ping(&self, limit: Duration) -> Result<(), SourceError> {
        let way = ping::Way {
            pool: self.readers.as_ref().unwrap_or(&self.pool),
            only_reads: self.readers.is_some(),
            #[cfg(feature = "postgres")]
            plain: &self.plain,
            query_limit: self.query_limit,
        };
        self.pinger.ping(way, limit).await
    }

    pub(crate) fn query_limit(&self) -> Duration {
        self.query_limit
    }

    /// Closes the pool when all connections have come back, and that of
    /// [`DatabaseOptions::read_only_connections`] with it.
    pub async fn close(&self) {
        self.pinger.close().await;
        for pool in std::iter::once(&self.pool).chain(&self.readers) {
            each!(*pool, Pool[ref pool] => pool.close().await);
        }
    }
}

/// The first word, in capitals.
fn first_word(sql: &str) -> String {
    let letters = sql.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
    let end = letters.find(|c: char| !c.is_ascii_alphabetic());
    letters[..end.unwrap_or(letters.len())].to_ascii_uppercase()
}

/// Returns whether a query may be asked again: what begins with SELECT changes nothing, or is the
/// caller's to answer for.
fn may_be_repeated(sql: &str, error: &SourceError) -> bool {
    let passing = match error {
        SourceError::Sql(sqlx::Error::Io(_)) => true,
        SourceError::Sql(error @ sqlx::Error::Database(_)) => {
            Failure::of_sql(error) == Failure::OutOfReach
        }
        _ => false,
    };
    passing && first_word(sql) == "SELECT"
}

/// Runs with a limit on time, which is kept by a runtime.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    if !is_in_runtime() {
        return Err(SourceError::NoRuntime);
    }
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or(Err(SourceError::Timeout { limit }))
}

fn parse<T: FromStr<Err = sqlx::Error>>(url: &str) -> Result<T, SourceError> {
    url.parse().map_err(|error: sqlx::Error| SourceError::Url {
        problem: match error {
            sqlx::Error::Configuration(problem) => problem.to_string(),
            _ => "cannot be parsed".to_owned(),
        },
    })
}

fn unknown(scheme: &str) -> String {
    let feature = match scheme {
        "sqlite" => "sqlite",
        "mysql" | "mariadb" => "mysql",
        "postgres" | "postgresql" => "postgres",
        _ => return format!("unknown scheme {scheme:?}"),
    };
    format!("this program was built without the feature `{feature}` of steadfast-cache")
}

/// The time by which the database itself ends what takes too long later than this process, so that
/// it is this process that says so.
const GRACE: Duration = Duration::from_millis(500);

/// PostgreSQL counts its limits in milliseconds, up to 2³¹.
const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn k13_a_limit_of_time_that_no_database_can_keep_is_refused_by_name() {
        type Set = fn(&mut DatabaseOptions, Duration);
        let settings: [(&str, Set); 3] = [
            ("acquire_timeout", |options, to| {
                options.acquire_timeout = to
            }),
            ("query_limit", |options, to| options.query_limit = to),
            ("statement_limit", |options, to| {
                options.statement_limit = to
            }),
        ];
        let connect = |set: Set, to| {
            let mut options = DatabaseOptions {
                read_only_connections: Some(1),
                ..DatabaseOptions::default()
            };
            set(&mut options, to);
            Database::connect("sqlite::memory:", options)
        };
        for (setting, set) in settings {
            for refused in [Duration::MAX, LONGEST_LIMIT * 2, Duration::ZERO] {
                let error = connect(set, refused).unwrap_err().to_string();
                assert!(error.contains(setting), "{error}");
            }
            let longest = connect(set, LONGEST_LIMIT).unwrap();
            longest.select("SELECT 1 AS n", &[]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn s12_an_error_of_a_row_names_its_column_and_quotes_no_value() {
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code)]
        enum Colour {
            Red,
        }
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code)]
        struct Painted {
            colour: Colour,
        }
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code)]
        struct Numbered {
            n: u8,
        }
        let database = Database::connect("sqlite::memory:", DatabaseOptions::default()).unwrap();
        let text = database.select_as::<Numbered>("SELECT 'hunter2, expected' AS n", &[]);
        let number = database.select_as::<Numbered>("SELECT 70707 AS n", &[]);
        let colour = database.select_as::<Painted>("SELECT 'hunter2' AS colour", &[]);
        let told = [
            text.await.unwrap_err().to_string(),
            number.await.unwrap_err().to_string(),
            colour.await.unwrap_err().to_string(),
        ];
        for (told, column) in told.iter().zip(["column n", "column n", "column colour"]) {
            assert!(told.contains(column) && told.contains("expected"), "{told}");
            assert!(
                !told.contains("hunter2") && !told.contains("70707"),
                "{told}"
            );
        }
    }

    #[tokio::test]
    async fn a_bad_url_is_refused_without_its_password() {
        for url in [
            "",
            "oracle://x",
            "postgres://user:hunter2@host:notaport/db",
            "mysql://user:hunter2@host:notaport/db",
        ] {
            let error = Database::connect(url, DatabaseOptions::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains("not valid"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
