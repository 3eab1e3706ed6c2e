//! A database says no for many reasons, and only it knows whose mistake each is. A value that its
//! column does not take, or a key that is taken, is the caller's, who can do something about it,
//! and no failure of the service; so it is told apart here, by the code that comes with the words.

use axum::http::StatusCode;
use sqlx::error::{DatabaseError, ErrorKind};
use steadfast_cache::SourceError;

use crate::problem::{Problem, ProblemKind};

/// The mistake of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallerMistake {
    /// The request contradicts the content of the database, or a rule of it.
    Conflict,
    /// A value is not one that its column, or its place in the statement, takes.
    Value,
}

impl CallerMistake {
    /// Returns the caller's mistake in a refusal; `None` if it is not the caller's.
    pub(super) fn of(error: &SourceError) -> Option<Self> {
        let SourceError::Sql(sqlx::Error::Database(error)) = error else {
            return None;
        };
        match error.kind() {
            ErrorKind::NotNullViolation => Some(Self::Value),
            ErrorKind::Other => Self::of_code(&**error),
            _ => Some(Self::Conflict),
        }
    }

    fn of_code(error: &dyn DatabaseError) -> Option<Self> {
        if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
            return Self::of_mysql(error.number());
        }
        let code = error.code()?;
        if error
            .try_downcast_ref::<sqlx::sqlite::SqliteError>()
            .is_some()
        {
            return Self::of_sqlite(code.parse().ok()?);
        }
        // PostgreSQL's classes: data exception, integrity constraint violation; and what a function
        // or a trigger raises.
        match &*code {
            code if code.starts_with("22") => Some(Self::Value),
            code if code.starts_with("23") => Some(Self::Conflict),
            "P0001" | "44000" => Some(Self::Conflict),
            _ => None,
        }
    }

    fn of_mysql(number: u16) -> Option<Self> {
        match number {
            // Cannot be null; out of range; truncated; incorrect; too long; not of a function; not
            // JSON.
            1048 | 1264 | 1265 | 1292 | 1366 | 1367 | 1406 | 1411 | 1690 | 3140 | 3141 | 4038 => {
                Some(Self::Value)
            }
            // SIGNAL; a view's CHECK OPTION; a table's CHECK in MySQL, and in MariaDB.
            1644 | 1369 | 3819 | 4025 => Some(Self::Conflict),
            _ => None,
        }
    }

    /// Judges by SQLite's extended codes, whose last byte is the kind.
    fn of_sqlite(code: i32) -> Option<Self> {
        match (code, code & 0xff) {
            // Of a column's type in a STRICT table.
            (3091, _) => Some(Self::Value),
            (_, 19) => Some(Self::Conflict),
            // Too long, or not of the type that is needed there.
            (_, 18 | 20) => Some(Self::Value),
            _ => None,
        }
    }

    /// Returns the problem for the caller of `name`.
    pub(super) fn problem(self, name: &str) -> Problem {
        match self {
            Self::Conflict => Problem::new(
                ProblemKind::Conflict,
                format!(
                    "`{name}` contradicts what is in the database: a key is taken, or a rule of the table forbids it"
                ),
            ),
            Self::Value => Problem::new(
                ProblemKind::BadParameter,
                format!(
                    "`{name}` was given a value that the database does not take there: missing, too long, out of range or not of its type"
                ),
            )
            .status(StatusCode::UNPROCESSABLE_ENTITY),
        }
    }
}

/// Whether the database said no to a commit, of its own will and knowingly: then nothing was
/// changed.
pub(super) fn was_refused(error: &SourceError) -> bool {
    if CallerMistake::of(error).is_some() {
        return true;
    }
    let SourceError::Sql(sqlx::Error::Database(error)) = error else {
        return false;
    };
    // Rolled back for another transaction's sake. In SQLite: busy.
    error.code().is_some_and(|code| {
        code.starts_with("40") && code.len() == 5 || code == "5" || code == "517"
    })
}

/// A row that has no form here, in words that name its column and its type.
pub(super) fn of_a_column(error: &SourceError) -> Option<Problem> {
    matches!(
        error,
        SourceError::ColumnType { .. }
            | SourceError::ColumnValue { .. }
            | SourceError::ColumnTwice { .. }
    )
    .then(|| Problem::new(ProblemKind::Unavailable, error.to_string()))
}
