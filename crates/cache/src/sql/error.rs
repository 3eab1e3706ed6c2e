//! The failures of a database.

use std::time::Duration;

use steadfast_core::policy::InvalidSetting;

use super::tls;

/// A database could not do what was asked.
///
/// ```
/// use steadfast_cache::SourceError;
///
/// fn answer(error: &SourceError) -> (u16, String) {
///     match error {
///         error if error.is_passing() => (503, "try again".to_owned()),
///         error if error.writes() => (405, "this only reads".to_owned()),
///         error => (500, error.to_string()),
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The URL is not one of a database that is known here.
    #[error(
        "the database URL is not valid: {problem}; use sqlite://path, mysql://user:password@host/name or postgres://user:password@host/name"
    )]
    Url {
        /// The mistake in it, without the URL itself, which may hold a password.
        problem: String,
    },
    /// A setting of [`DatabaseOptions`](super::DatabaseOptions) that means nothing.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// It was asked outside of any tokio runtime, where no connection to a database lives.
    #[error(
        "the database was asked outside of a tokio runtime; ask it in a task of one, or enter one before (Handle::enter)"
    )]
    NoRuntime,
    /// Nothing came back in time.
    #[error("the database did not answer within {limit:?}")]
    Timeout {
        /// The limit that was passed.
        limit: Duration,
    },
    /// A column has a type that has no JSON form here.
    #[error(
        "column {column} has the type {type_name}, which cannot be shown as JSON; cast it to text in the query"
    )]
    ColumnType {
        /// The column's name.
        column: String,
        /// The column's type.
        type_name: String,
    },
    /// A column has a value that has no JSON form here, though others of its type have one.
    #[error(
        "column {column}, of type {type_name}, has a value that cannot be shown as JSON: {problem}; cast it in the query"
    )]
    ColumnValue {
        /// The column's name.
        column: String,
        /// The column's type.
        type_name: String,
        /// The reason why the value, which is not told itself, has no form.
        problem: &'static str,
    },
    /// Two columns of a row have one name, of which one would be lost.
    #[error("two columns are called {column}; give one of them another name with AS")]
    ColumnTwice {
        /// The name.
        column: String,
    },
    /// A row cannot be read as the type asked for.
    #[error("row {row} is no {type_name}: {problem}")]
    Row {
        /// The row's number, from 1.
        row: usize,
        /// The type.
        type_name: &'static str,
        /// The column and what is wrong with it.
        problem: serde_json::Error,
    },
    /// The transaction has ended: the database rolled it back by itself, or a statement of it ran
    /// out of time.
    #[error("the transaction has ended already, and nothing of it was kept")]
    Ended,
    /// One row alone is larger than what may be kept of the whole result.
    #[error("a row is larger than the {bytes} bytes that a result may have")]
    RowTooLarge {
        /// The bound, [`Bounds::bytes`](super::Bounds::bytes).
        bytes: usize,
    },
    /// The database, or the way to it, refused.
    #[error("the database refused: {}", tls::explain(.0))]
    Sql(#[from] sqlx::Error),
}

impl SourceError {
    /// Whether the same statement might succeed if tried again later: the database was out of
    /// reach, busy or slow.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        Failure::of_source(self) != Failure::Lasting
    }

    /// Whether a table that was asked for is not there.
    pub(crate) fn misses_a_table(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else {
            return false;
        };
        // SQLSTATE of PostgreSQL, and of MySQL; SQLite has but one code for whatever is wrong with
        // a statement.
        error.code().is_some_and(|code| match &*code {
            "42P01" | "42S02" => true,
            "1" => error.message().contains("no such table"),
            _ => false,
        })
    }

    /// Whether SQLite has waited in vain for a lock that another holds on the file (SQLITE_BUSY).
    #[cfg(feature = "sqlite")]
    pub(crate) fn is_of_a_busy_file(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else {
            return false;
        };
        error.code().is_some_and(|code| code == "5")
    }

    /// Whether the database refused it because it writes where only reading is allowed
    /// ([`DatabaseOptions::read_only_connections`](super::DatabaseOptions::read_only_connections)).
    #[must_use]
    pub fn writes(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else {
            return false;
        };
        // SQLSTATE "read-only SQL transaction", of PostgreSQL and MySQL; SQLITE_READONLY.
        error
            .code()
            .is_some_and(|code| matches!(&*code, "25006" | "8"))
    }
}

/// The kind of a database's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It has answered, and would answer the same again.
    Lasting,
    /// It is out of reach, or passes through trouble.
    OutOfReach,
    /// The time did not suffice: another question may well be answered.
    OutOfTime,
}

impl Failure {
    pub(crate) fn of_source(error: &SourceError) -> Self {
        match error {
            SourceError::Timeout { .. } => Self::OutOfTime,
            SourceError::Ended => Self::OutOfReach,
            SourceError::Sql(error) => Self::of_sql(error),
            _ => Self::Lasting,
        }
    }

    /// Judges an error of sqlx, whoever has called it.
    pub(crate) fn of_sql(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => match error.code() {
                Some(code) if OUT_OF_TIME_CODES.contains(&&*code) => Self::OutOfTime,
                Some(code) if is_passing_code(&code) => Self::OutOfReach,
                _ => Self::Lasting,
            },
            // A pool that is full says the same as one whose database refuses every connection.
            sqlx::Error::PoolTimedOut
            | sqlx::Error::Io(_)
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_) => Self::OutOfReach,
            _ => Self::Lasting,
        }
    }
}

/// Whether an error with this code passes by itself. SQLite: busy, locked, interrupted, trouble
/// with the file, a disk that is full; its codes have at most four digits, of which the lowest byte
/// tells the kind. MySQL: deadlock, lock wait (SQLSTATE 40001, HY000 is too wide). PostgreSQL:
/// serialization failure, deadlock, too many connections, a disk that is full, starting up or
/// shutting down.
fn is_passing_code(code: &str) -> bool {
    let sqlite = code.parse::<u32>().ok().filter(|_| code.len() <= 4);
    sqlite.is_some_and(|code| matches!(code & 0xff, 5 | 6 | 9 | 10 | 13 | 14))
        || PASSING_CODES.contains(&code)
}

const PASSING_CODES: &[&str] = &[
    "40001", "40P01", "53100", "53300", "57P01", "57P02", "57P03", "08004", "25P03",
];

/// A statement that took, or a lock that it waited for, too long: PostgreSQL's and MariaDB's.
const OUT_OF_TIME_CODES: &[&str] = &["57014", "55P03", "70100"];
