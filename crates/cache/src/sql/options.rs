//! Limits of a database, and what a statement of it changed.

use std::time::Duration;

use super::tls::DatabaseTls;

/// Limits of a [`Database`](super::Database). A limit of time is above zero and at most 24 days.
///
/// They hold for what is asked through it. What a loader asks by a pool of sqlx itself
/// ([`Database::pool`](super::Database::pool), or one given to
/// [`Database::from_pool`](super::Database::from_pool)) is the loader's own: dropped at its class's
/// hard limit it may go on in the database, while its place among the loads is free at once.
///
/// ```
/// use std::time::Duration;
/// use steadfast_cache::{Database, DatabaseOptions, Pool};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), steadfast_cache::SourceError> {
/// let mut options = DatabaseOptions::default();
/// options.max_connections = 20;
/// options.query_limit = Duration::from_secs(2);
/// // It connects on first use.
/// let database = Database::connect("postgres://app@db.internal/app", options)?;
/// let Pool::Postgres(pool) = database.pool() else { unreachable!() };
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DatabaseOptions {
    /// Connections of the pool at most. Default 10; once it has been pinged, the database holds one
    /// more ([`Database::ping`](super::Database::ping)).
    pub max_connections: u32,
    /// A caller waits this long for a connection. Default 1 s. A SQLite file is opened the first
    /// time, and made, within `query_limit` instead.
    pub acquire_timeout: Duration,
    /// A query ([`Database::select`](super::Database::select)), and each statement of the cache's
    /// own, may take this long. Default 5 s. It is stopped in the database then, and when nobody
    /// waits for it any more: `pg_cancel_backend`, `KILL QUERY`, or SQLite's progress handler, by a
    /// connection that is opened for it.
    /// On [`read_only_connections`](Self::read_only_connections) PostgreSQL, MySQL and MariaDB end
    /// it half a second later by themselves, also if this process is gone.
    pub query_limit: Duration,
    /// A statement in a transaction ([`Tx`](super::Tx)) may take this long. Default 60 s. It is
    /// stopped in the database then, and when the transaction is dropped; PostgreSQL ends by itself
    /// what takes longer, or does nothing for as long, also if this process is gone.
    pub statement_limit: Duration,
    /// TLS towards PostgreSQL, MySQL and MariaDB. Default none: what the URL says, or else TLS if
    /// the server can.
    pub tls: Option<DatabaseTls>,
    /// So many connections beside the pool's, on which the database itself refuses whatever would
    /// write, be it a SELECT of a function that does
    /// ([`SourceError::writes`](super::SourceError::writes));
    /// [`Database::select`](super::Database::select) then runs on these. Default none: it runs on
    /// the pool's, and what writes, writes. Costs no round trip of a query, and keeps what writes
    /// from waiting behind what reads. PostgreSQL is told so by the startup parameter `options`, or
    /// in a transaction of each query where a pooler takes none.
    pub read_only_connections: Option<u32>,
}

impl Default for DatabaseOptions {
    fn default() -> Self {
        Self {
            max_connections: 10,
            acquire_timeout: Duration::from_secs(1),
            query_limit: Duration::from_secs(5),
            statement_limit: Duration::from_secs(60),
            tls: None,
            read_only_connections: None,
        }
    }
}

/// The changes that a statement made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Executed {
    /// Rows inserted, changed or deleted.
    pub rows_affected: u64,
    /// The id given to the last inserted row, where the database says so (not PostgreSQL: use
    /// RETURNING).
    pub last_insert_id: Option<i64>,
}
