//! Invalidations that outlive a crash.
//!
//! "Commit, then delete from Redis" loses the second half whenever the process or Redis goes in
//! between, and then a reader sees the old value for as long as it lives. So an invalidation is a
//! row, written by the same transaction as the change: both happen or neither does. What is in the
//! table has still to be applied to Redis; whoever can, does.
//!
//! This module is only the SQL of it. `relay` decides when.

mod insert;
#[cfg(feature = "sqlite")]
mod lease;
mod tables;

pub use insert::Transactional;
pub(crate) use tables::now_sql;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::clock;
use crate::sql::{Database, Param, Pool, Reserved, Session, SessionLimits, SourceError, within};
use crate::target::Target;
#[cfg(feature = "sqlite")]
use lease::Lease;
use tables::{MYSQL_TABLES, POSTGRES_TABLES, SQLITE_TABLES};

/// The outbox of one namespace, on connections of its own.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    reserved: Reserved,
    namespace: Arc<str>,
    /// The database's own number as last seen, or else the one to give it.
    number: Arc<AtomicU64>,
    /// For how long a relay on SQLite may deliver.
    #[cfg(feature = "sqlite")]
    hold: Duration,
}

/// A look at the outbox from outside any transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glance {
    /// The database's own number, by which it is told from others; `None` if it has none.
    pub(crate) database: Option<u64>,
    /// The watermark: all that was applied to Redis and deleted here, as a number that only grows.
    pub(crate) watermark: u64,
    /// The first rows that wait, in the order of their numbers.
    pub(crate) waiting: Vec<WaitingRow>,
    /// Whether there are no more than these.
    pub(crate) complete: bool,
    /// The distance from the first row's number to the newest's.
    pub(crate) spread: i64,
}

/// A row that waits to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitingRow {
    pub(crate) mark: RowMark,
    /// Since it was written, by the database's clock alone. Its transaction may have been committed
    /// much later.
    pub(crate) age_ms: i64,
}

/// The number of a row and when it was written, by which it is told from all others: one that was
/// lost with a rollback may have left its number to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowMark {
    pub(crate) id: i64,
    pub(crate) created_at: i64,
}

/// Rows to be applied, which no other relay applies meanwhile.
#[derive(Debug)]
pub(crate) struct Batch {
    turn: Turn,
    pub(crate) watermark: u64,
    pub(crate) rows: Vec<RowMark>,
    pub(crate) targets: Vec<Target>,
    /// Whether these are all that were there.
    pub(crate) complete: bool,
}

/// The lock or lease that keeps other relays away.
#[derive(Debug)]
enum Turn {
    /// The state row is locked by this session.
    Locked(Session),
    /// The file is not locked.
    #[cfg(feature = "sqlite")]
    Leased(Lease),
}

impl Glance {
    /// Whether this row waits, as far as a look can see: it may be beyond the last that is seen.
    pub(crate) fn may_hold(&self, mark: RowMark) -> bool {
        let is_beyond = |last: &WaitingRow| last.mark.id < mark.id;
        self.waiting.iter().any(|row| row.mark == mark)
            || (!self.complete && self.waiting.last().is_none_or(is_beyond))
    }
}

impl RowMark {
    /// Reads one that was written by [`Display`](fmt::Display).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, created_at) = text.split_once('@')?;
        Some(Self {
            id: id.parse().ok()?,
            created_at: created_at.parse().ok()?,
        })
    }

    /// Writes them one after the other, with a space before and after each.
    pub(crate) fn list(rows: &[Self]) -> String {
        let rows: Vec<_> = rows.iter().map(ToString::to_string).collect();
        format!(" {} ", rows.join(" "))
    }
}

impl fmt::Display for RowMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.created_at)
    }
}

impl Outbox {
    /// `hold` bounds how long a relay that has fallen silent keeps the others away; a database
    /// without a number of its own gets `number`, a random one.
    pub(crate) fn new(database: &Database, namespace: &str, hold: Duration, number: u64) -> Self {
        let limits = SessionLimits {
            lock: LOCK_LIMIT.min(database.query_limit()),
            idle: hold,
        };
        Self {
            reserved: database.reserve(CONNECTIONS, limits),
            namespace: namespace.into(),
            // As SQL can hold it, and not nought, which is none.
            number: Arc::new((number >> 1 | 1).into()),
            #[cfg(feature = "sqlite")]
            hold,
        }
    }

    /// Creates what is missing of the tables, and the namespace's row. Where all is there already
    /// no more rights are needed than to read and write.
    pub(crate) async fn prepare(&self) -> Result<(), SourceError> {
        if let Ok(Some(glance)) = self.glance().await {
            if glance.database.is_none()
                && let Err(error) = self.prepare_once().await
            {
                tracing::warn!(%error, "the database cannot be given a number, by which it would be told from another that uses the same namespace");
            }
            return Ok(());
        }
        match self.prepare_once().await {
            // Two processes may create the same table at the same moment; the second time it is
            // there.
            Err(SourceError::Sql(sqlx::Error::Database(_))) => self.prepare_once().await,
            other => other,
        }
    }

    async fn prepare_once(&self) -> Result<(), SourceError> {
        // A glance that finds no row has found the tables.
        let tables_are_there = self.glance().await.is_ok();
        let (tables, insert): (&[&str], &str) = match *self.reserved.pool() {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => (SQLITE_TABLES, "INSERT OR IGNORE INTO"),
            #[cfg(feature = "mysql")]
            Pool::MySql(_) => (MYSQL_TABLES, "INSERT IGNORE INTO"),
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => (POSTGRES_TABLES, "INSERT INTO"),
        };
        let conflict = match *self.reserved.pool() {
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => "ON CONFLICT DO NOTHING",
            _ => "",
        };
        let rows = format!(
            "{insert} steadfast_outbox_state (namespace, watermark) VALUES (?, 0), ('{DATABASE}', {}) {conflict}",
            self.number.load(Ordering::Relaxed)
        );
        self.within(async {
            let mut session = self.reserved.begin().await?;
            for statement in tables.iter().filter(|_| !tables_are_there) {
                session.execute(statement, &[]).await?;
            }
            session.execute(&rows, &[self.param()]).await?;
            session.commit().await
        })
        .await
    }

    /// Looks without locking anything; `None` if the namespace has no row.
    pub(crate) async fn glance(&self) -> Result<Option<Glance>, SourceError> {
        type Seen = (
            i64,
            Option<i64>,
            Option<i64>,
            Option<i64>,
            Option<i64>,
            Option<i64>,
        );
        let now = self.now();
        let sql = format!(
            "SELECT s.watermark, o.id, o.created_at, {now} - o.created_at, (SELECT MAX(id) FROM steadfast_outbox WHERE namespace = ?), \
             (SELECT watermark FROM steadfast_outbox_state WHERE namespace = '{DATABASE}') \
             FROM steadfast_outbox_state s LEFT JOIN steadfast_outbox o ON o.namespace = s.namespace \
             WHERE s.namespace = ? ORDER BY o.id LIMIT {SEEN_AT_ONCE}"
        );
        let seen: Vec<Seen> = self
            .within(async {
                let mut session = self.reserved.reading().await?;
                let seen = session.fetch(&sql, &[&*self.namespace; 2]).await?;
                session.end().await?;
                Ok(seen)
            })
            .await?;
        let Some((watermark, _, _, _, newest, database)) = seen.first().copied() else {
            return Ok(None);
        };
        let database = database.and_then(|number| u64::try_from(number).ok());
        if let Some(number) = database {
            self.number.store(number, Ordering::Relaxed);
        }
        let waiting: Vec<_> = seen
            .iter()
            .filter_map(|(_, id, created_at, age_ms, _, _)| {
                let mark = RowMark {
                    id: (*id)?,
                    created_at: (*created_at)?,
                };
                Some(WaitingRow {
                    mark,
                    age_ms: age_ms.unwrap_or(0),
                })
            })
            .collect();
        let first = waiting.first().map_or(0, |row| row.mark.id);
        Ok(Some(Glance {
            database,
            watermark: u64::try_from(watermark).unwrap_or(0),
            complete: waiting.len() < SEEN_AT_ONCE,
            spread: newest.unwrap_or(first).saturating_sub(first),
            waiting,
        }))
    }

    /// Counts, but not further than that.
    pub(crate) async fn holds_more_than(&self, rows: i64) -> Result<bool, SourceError> {
        let sql = format!(
            "SELECT COUNT(*) FROM (SELECT id FROM steadfast_outbox WHERE namespace = ? LIMIT {}) AS counted",
            rows.saturating_add(1)
        );
        self.within(async {
            let mut session = self.reserved.reading().await?;
            let counted: Vec<(i64,)> = session.fetch(&sql, &[&self.namespace]).await?;
            session.end().await?;
            Ok(counted.first().is_some_and(|(there,)| *there > rows))
        })
        .await
    }

    /// Keeps all other relays away and takes the oldest rows, no more than `most`, nor of more
    /// bytes than [`BATCH_BYTES`] unless it is one; there may be none. Fails if the state has no
    /// row, or if another relay has its turn for longer than the limit.
    pub(crate) async fn take_batch(&self, most: usize) -> Result<Batch, SourceError> {
        let select = format!(
            "SELECT id, kind, target, created_at FROM steadfast_outbox WHERE namespace = ? ORDER BY id LIMIT {most}"
        );
        self.within(async {
            let (mut session, state) = self.locked().await?;
            let mut rows: Vec<(i64, String, Vec<u8>, i64)> =
                session.fetch(&select, &[&self.namespace]).await?;
            let watermark = state.ok_or(sqlx::Error::RowNotFound)?;
            let found = rows.len();
            let mut bytes = 0;
            let fits = rows.iter().take_while(|(_, _, target, _)| {
                bytes += target.len();
                bytes <= BATCH_BYTES
            });
            let fits = fits.count().max(1).min(found);
            rows.truncate(fits);
            Ok(Batch {
                turn: self.turn(session, fits > 0).await?,
                watermark,
                rows: rows
                    .iter()
                    .map(|&(id, _, _, created_at)| RowMark { id, created_at })
                    .collect(),
                targets: rows
                    .into_iter()
                    .map(|(_, kind, target, _)| Target::from_row(&kind, target))
                    .collect(),
                complete: found < most && fits == found,
            })
        })
        .await
    }

    /// Deletes what was applied and remembers how far Redis is now. Fails if the rows are not all
    /// there, or the watermark is no longer the one at which they were taken: SQL was rolled back
    /// meanwhile, which must not be covered up.
    pub(crate) async fn finish(&self, batch: Batch, watermark: u64) -> Result<usize, SourceError> {
        let ids: Vec<_> = batch.rows.iter().map(|row| row.id.to_string()).collect();
        let delete = format!(
            "DELETE FROM steadfast_outbox WHERE id IN ({})",
            ids.join(", ")
        );
        let update =
            "UPDATE steadfast_outbox_state SET watermark = ? WHERE namespace = ? AND watermark = ?";
        let [before, watermark] =
            [batch.watermark, watermark].map(|at| i64::try_from(at).unwrap_or(i64::MAX));
        self.within(async {
            #[allow(
                clippy::infallible_destructuring_match,
                reason = "without SQLite there is one kind of turn only"
            )]
            let mut session = match batch.turn {
                Turn::Locked(session) => session,
                #[cfg(feature = "sqlite")]
                Turn::Leased(lease) => {
                    let mut session = self.reserved.begin().await?;
                    if !lease.give_back(&mut session, &self.namespace).await? {
                        session.rollback().await?;
                        return Err(SourceError::Ended);
                    }
                    session
                }
            };
            let deleted = session.execute(&delete, &[]).await?.rows_affected;
            let params = [Param::Int(watermark), self.param(), Param::Int(before)];
            let updated = session.execute(update, &params).await?.rows_affected;
            if updated == 0 || deleted < batch.rows.len() as u64 {
                session.rollback().await?;
                return Err(SourceError::Ended);
            }
            session.commit().await?;
            Ok(batch.rows.len())
        })
        .await
    }

    /// Leaves a batch to be delivered later, or by another.
    pub(crate) async fn leave(&self, batch: Batch) -> Result<(), SourceError> {
        self.within(async {
            match batch.turn {
                Turn::Locked(session) => session.rollback().await,
                #[cfg(feature = "sqlite")]
                Turn::Leased(lease) => {
                    let mut session = self.reserved.begin().await?;
                    lease.give_back(&mut session, &self.namespace).await?;
                    session.commit().await
                }
            }
        })
        .await
    }

    /// Begins to bound the table: makes the first row one that means everything. Returns the number
    /// of the last row now; what stands between them [may go](Self::collapse).
    pub(crate) async fn begin_collapse(&self) -> Result<i64, SourceError> {
        self.order_all().await?;
        let newest = "SELECT MAX(id) FROM steadfast_outbox WHERE namespace = ?";
        self.within(async {
            let mut session = self.reserved.reading().await?;
            let newest: Vec<(Option<i64>,)> = session.fetch(newest, &[&self.namespace]).await?;
            session.end().await?;
            Ok(newest.first().and_then(|(id,)| *id).unwrap_or(0))
        })
        .await
    }

    /// Takes away rows up to `newest` that stand behind an order to forget everything, which covers
    /// them. That is done in pieces, each of which stays done; after `limit` no other is begun.
    /// Says whether there may be more of them.
    pub(crate) async fn collapse(&self, newest: i64, limit: Duration) -> Result<bool, SourceError> {
        let until = clock() + limit;
        while self.collapse_piece(newest).await? {
            if clock() >= until {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn collapse_piece(&self, newest: i64) -> Result<bool, SourceError> {
        let oldest = format!(
            "SELECT id, kind FROM steadfast_outbox WHERE namespace = ? ORDER BY id LIMIT {}",
            DELETED_AT_ONCE + 1
        );
        self.within(async {
            let (mut session, _) = self.locked().await?;
            let oldest: Vec<(i64, String)> = session.fetch(&oldest, &[&self.namespace]).await?;
            let behind = match oldest.split_first() {
                Some(((_, kind), behind)) if kind == "all" => behind,
                // Another has delivered the order meanwhile.
                _ => &[],
            };
            let covered = behind.iter().take_while(|(id, _)| *id <= newest);
            let covered: Vec<_> = covered.map(|(id, _)| id.to_string()).collect();
            if covered.is_empty() {
                session.rollback().await?;
                return Ok(false);
            }
            // By their numbers: MariaDB would have a range wait for what others have not committed.
            let delete = format!(
                "DELETE FROM steadfast_outbox WHERE id IN ({})",
                covered.join(", ")
            );
            session.execute(&delete, &[]).await?;
            session.commit().await?;
            Ok(covered.len() == DELETED_AT_ONCE)
        })
        .await
    }

    /// Orders that everything be forgotten, before anything else is delivered, unless that is
    /// ordered already. The first row that waits becomes the order, which covers it; the others
    /// stay behind it, however many they are. Returns the order.
    pub(crate) async fn order_all(&self) -> Result<RowMark, SourceError> {
        let now = self.now();
        let insert = format!(
            "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES (?, 'all', ?, {now})"
        );
        let update = "UPDATE steadfast_outbox SET kind = 'all', target = ? WHERE id = ?";
        let first = "SELECT id, kind, created_at FROM steadfast_outbox WHERE namespace = ? ORDER BY id LIMIT 1";
        let inserted = "SELECT id, kind, created_at FROM steadfast_outbox \
                        WHERE namespace = ? AND kind = 'all' ORDER BY id LIMIT 1";
        self.within(async {
            let (mut session, _) = self.locked().await?;
            let mut order: Vec<(i64, String, i64)> =
                session.fetch(first, &[&self.namespace]).await?;
            let nothing = Param::Bytes(Vec::new());
            match order.first() {
                Some((_, kind, _)) if kind == "all" => {}
                Some((id, ..)) => {
                    session.execute(update, &[nothing, Param::Int(*id)]).await?;
                }
                None => {
                    session.execute(&insert, &[self.param(), nothing]).await?;
                    order = session.fetch(inserted, &[&self.namespace]).await?;
                }
            }
            let &(id, _, created_at) = order.first().ok_or(sqlx::Error::RowNotFound)?;
            session.commit().await?;
            Ok(RowMark { id, created_at })
        })
        .await
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Begins a transaction when no other relay delivers, in which none can begin to; answers the
    /// watermark of the namespace's state.
    async fn locked(&self) -> Result<(Session, Option<u64>), SourceError> {
        let (mut session, sql) = match *self.reserved.pool() {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(_) => (
                self.not_leased().await?,
                "SELECT watermark FROM steadfast_outbox_state WHERE namespace = ?",
            ),
            #[allow(unreachable_patterns)]
            _ => (
                self.reserved.begin().await?,
                "SELECT watermark FROM steadfast_outbox_state WHERE namespace = ? FOR UPDATE",
            ),
        };
        let state: Vec<(i64,)> = session.fetch(sql, &[&self.namespace]).await?;
        let watermark = state
            .first()
            .map(|(watermark,)| u64::try_from(*watermark).unwrap_or(0));
        Ok((session, watermark))
    }

    /// Waits as long for another's lease as for a lock. It looks by reading, which holds up nobody,
    /// and takes the lock once the lease seems free.
    #[cfg(feature = "sqlite")]
    async fn not_leased(&self) -> Result<Session, SourceError> {
        let give_up = clock() + LOCK_LIMIT;
        loop {
            let mut session = self.reserved.reading().await?;
            let taken = Lease::seems_taken(&mut session, &self.namespace).await?;
            session.end().await?;
            if !taken {
                let mut session = self.reserved.begin().await?;
                if !Lease::is_taken(&mut session, &self.namespace).await? {
                    return Ok(session);
                }
                session.rollback().await?;
            }
            if clock() >= give_up {
                return Err(SourceError::Timeout { limit: LOCK_LIMIT });
            }
            tokio::time::sleep(LEASE_LOOK).await;
        }
    }

    /// Takes the lock or lease that keeps other relays away while the rows found are delivered.
    async fn turn(
        &self,
        session: Session,
        #[cfg_attr(not(feature = "sqlite"), allow(unused))] found: bool,
    ) -> Result<Turn, SourceError> {
        #[cfg(feature = "sqlite")]
        if found && matches!(*self.reserved.pool(), Pool::Sqlite(_)) {
            let mut session = session;
            let millis = self.hold.as_millis();
            let lease = Lease::take(&mut session, &self.namespace, millis).await?;
            session.commit().await?;
            return Ok(Turn::Leased(lease));
        }
        Ok(Turn::Locked(session))
    }

    fn param(&self) -> Param {
        Param::Text(self.namespace.to_string())
    }

    fn now(&self) -> &'static str {
        now_sql(self.reserved.pool())
    }

    /// The database ends what it was told to before this does; this is for one that does not answer
    /// at all.
    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        within(self.reserved.query_limit(), work).await
    }
}

/// The name under which the database's own number stands among the watermarks: no namespace is
/// called so.
const DATABASE: &str = "{database}";

/// The rows that a batch takes at most.
pub(crate) const BATCH: usize = 256;

/// Names of so many bytes together: what a slow link to Redis carries well within what applying may
/// take.
const BATCH_BYTES: usize = 64 << 10;

/// The rows that one transaction deletes at most where a full outbox is emptied.
const DELETED_AT_ONCE: usize = 1000;

/// The rows that one look tells apart.
const SEEN_AT_ONCE: usize = 64;

/// One delivers and (not on SQLite) keeps the state row locked meanwhile, one looks.
const CONNECTIONS: u32 = 2;

/// Another relay is waited for so long. In health it is done after two round trips to the database
/// and one to Redis.
const LOCK_LIMIT: Duration = Duration::from_secs(1);
/// The interval at which it is looked whether another relay has given its lease back.
#[cfg(feature = "sqlite")]
const LEASE_LOOK: Duration = Duration::from_millis(20);

#[cfg(all(test, feature = "sqlite", feature = "mysql", feature = "postgres"))]
mod tests;
