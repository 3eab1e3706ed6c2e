//! The right to deliver on SQLite.
//!
//! Elsewhere a relay keeps the others away by the lock of a row, for as long as Redis takes. SQLite
//! locks no row, but the whole file: with a lock held meanwhile every write of the application
//! would wait for Redis, with a connection of the pool in its hands, until loads found none. So a
//! relay writes down that it delivers, and until when, and commits that before it turns to Redis.
//! What a relay that died has left behind lapses by itself; a clock that was set back voids it. Who
//! has lost the right cannot finish: the rows stay, and are delivered again.

use crate::sql::{Param, Session, SourceError};

use super::tables::SQLITE_NOW;

/// The right of one relay, for a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    /// By which it is told from those before and after it.
    until: i64,
}

impl Lease {
    /// Whether somebody has it, as far as a look without a lock can tell.
    pub(super) async fn seems_taken(
        session: &mut Session,
        namespace: &str,
    ) -> Result<bool, SourceError> {
        let there = "SELECT COUNT(*) FROM sqlite_master WHERE name = 'steadfast_outbox_relay'";
        let there: Vec<(i64,)> = session.fetch(there, &[]).await?;
        if there.first().is_none_or(|(count,)| *count == 0) {
            return Ok(false);
        }
        Self::stands(session, namespace).await
    }

    /// Whether somebody has it, within a transaction that writes.
    pub(super) async fn is_taken(
        session: &mut Session,
        namespace: &str,
    ) -> Result<bool, SourceError> {
        session.execute(TABLE, &[]).await?;
        Self::stands(session, namespace).await
    }

    async fn stands(session: &mut Session, namespace: &str) -> Result<bool, SourceError> {
        let sql = format!(
            "SELECT COUNT(*) FROM steadfast_outbox_relay \
             WHERE namespace = ? AND {SQLITE_NOW} BETWEEN since AND until - 1"
        );
        let taken: Vec<(i64,)> = session.fetch(&sql, &[namespace]).await?;
        Ok(taken.first().is_some_and(|(count,)| *count > 0))
    }

    /// Takes it, which nobody has; it counts once the session is committed.
    pub(super) async fn take(
        session: &mut Session,
        namespace: &str,
        millis: u128,
    ) -> Result<Self, SourceError> {
        let sql = format!(
            "INSERT INTO steadfast_outbox_relay (namespace, since, until) \
             VALUES (?, {SQLITE_NOW}, {SQLITE_NOW} + {millis}) \
             ON CONFLICT (namespace) DO UPDATE SET since = excluded.since, until = excluded.until \
             RETURNING until"
        );
        let taken: Vec<(i64,)> = session.fetch(&sql, &[namespace]).await?;
        let (until,) = taken.first().copied().ok_or(sqlx::Error::RowNotFound)?;
        Ok(Self { until })
    }

    /// Gives it back within a transaction; false if it was lost.
    pub(super) async fn give_back(
        self,
        session: &mut Session,
        namespace: &str,
    ) -> Result<bool, SourceError> {
        let sql = "DELETE FROM steadfast_outbox_relay WHERE namespace = ? AND until = ?";
        let params = [Param::Text(namespace.to_owned()), Param::Int(self.until)];
        let given = session.execute(sql, &params).await?;
        Ok(given.rows_affected > 0)
    }
}

/// Made when it is first needed, so that the outbox of an earlier version goes on.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS steadfast_outbox_relay (namespace TEXT NOT NULL PRIMARY KEY, \
     since INTEGER NOT NULL, until INTEGER NOT NULL)";
