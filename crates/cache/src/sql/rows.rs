//! Bounds on how much of a result is kept. A result is as large as the data, which nobody here has
//! sized.

use futures_util::{Stream, TryStreamExt};
use serde_json::Value;

use super::{Row, SourceError};

/// Bounds on what is kept of a result.
///
/// ```no_run
/// # async fn f(database: steadfast_cache::Database) -> Result<(), steadfast_cache::SourceError> {
/// use steadfast_cache::Bounds;
///
/// let some = database.select_within(Bounds::new(100, 1 << 20), "SELECT * FROM users", &[]).await?;
/// println!("{} rows, more: {}", some.rows.len(), some.truncated);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Rows at most.
    pub rows: usize,
    /// Bytes at most, of the values as text. A row that passes this is not kept, nor is any behind
    /// it.
    pub bytes: usize,
}

impl Bounds {
    /// No bounds.
    pub const NONE: Self = Self::new(usize::MAX, usize::MAX);

    /// Bounds of both.
    #[must_use]
    pub const fn new(rows: usize, bytes: usize) -> Self {
        Self { rows, bytes }
    }
}

/// Rows of a result.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Selected {
    /// The rows within the [`Bounds`].
    pub rows: Vec<Row>,
    /// Whether there were more.
    pub truncated: bool,
    /// The number of rows that came, those that were not kept included; of a query that was cut
    /// off, not all there were.
    pub seen: u64,
}

/// The fate of the rest of a result that has passed its bounds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// The rest is left where it is: the caller stops the database.
    Left,
    /// The rest is read and thrown away: the statement writes, and has to come to its end.
    Read,
}

/// Reads a result; tells too whether it was read to its end.
pub(super) async fn gather<R>(
    rows: impl Stream<Item = Result<R, sqlx::Error>>,
    bounds: Bounds,
    rest: Rest,
    json: impl Fn(&R) -> Result<Row, SourceError>,
) -> Result<(Selected, bool), (SourceError, bool)> {
    let mut rows = std::pin::pin!(rows);
    let mut selected = Selected::default();
    let mut room = bounds.bytes;
    let mut unread = 0;
    let mut failed = None;
    loop {
        // A database's error is the end of its answer; what breaks a connection leaves it in no
        // state to be used.
        let row = match rows.try_next().await {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(error) => {
                let ended = matches!(error, sqlx::Error::Database(_));
                return Err((error.into(), ended));
            }
        };
        selected.seen += 1;
        if selected.seen.is_multiple_of(YIELD_EVERY) {
            tokio::task::yield_now().await;
        }
        if failed.is_none() && !selected.truncated {
            if selected.rows.len() < bounds.rows {
                match json(&row) {
                    Ok(row) => match room.checked_sub(weight(&row)) {
                        Some(left) => {
                            room = left;
                            selected.rows.push(row);
                            continue;
                        }
                        None if selected.rows.is_empty() => {
                            let bytes = bounds.bytes;
                            failed = Some(SourceError::RowTooLarge { bytes });
                        }
                        None => selected.truncated = true,
                    },
                    Err(error) => failed = Some(error),
                }
            } else {
                selected.truncated = true;
            }
        }
        unread += 1;
        if rest == Rest::Left && unread > REST {
            return match failed {
                Some(error) => Err((error, false)),
                None => Ok((selected, false)),
            };
        }
    }
    match failed {
        Some(error) => Err((error, true)),
        None => Ok((selected, true)),
    }
}

/// Reads the result of a statement that has to come to its end.
pub(super) async fn gather_all<R>(
    rows: impl Stream<Item = Result<R, sqlx::Error>>,
    bounds: Bounds,
    json: impl Fn(&R) -> Result<Row, SourceError>,
) -> Result<Selected, SourceError> {
    let read = gather(rows, bounds, Rest::Read, json).await;
    read.map(|(selected, _)| selected)
        .map_err(|(error, _)| error)
}

fn weight(row: &Row) -> usize {
    row.iter()
        .map(|(name, value)| name.len() + size(value))
        .sum()
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(values) => values.iter().map(|value| size(value) + 1).sum(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| name.len() + size(value) + 4)
            .sum(),
        _ => 8,
    }
}

/// So many rows past the bounds are read rather than that the connection is given up for them.
const REST: usize = 100;

/// Rows that have arrived already are read without waiting: after so many, others get a turn.
const YIELD_EVERY: u64 = 256;
