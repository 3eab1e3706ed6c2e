//! A caller whose connection broke cannot know whether its change was made, and dares not ask
//! again. With an `Idempotency-Key` it may: the answer is written down in the transaction of the
//! change itself, so either both are there or neither. Who comes second waits for the row of the
//! first, finds it answered, and gets the same answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::HeaderMap;
use parking_lot::Mutex;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use steadfast_cache::{Database, Param, SourceError, Tx};

use crate::clock::{millis, unix_ms};
use crate::config::LimitsConfig;
use crate::problem::{Problem, ProblemKind};

/// The `Idempotency-Key` of a request, with which it may be sent twice.
#[derive(Debug)]
pub(crate) struct Once {
    key: String,
    caller: String,
    request_hash: String,
    expires_at: u64,
    largest: usize,
}

/// The answer that was given the first time.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// The record of earlier requests under the key.
#[derive(Debug)]
pub(crate) enum Earlier {
    /// There is none: it is to be done now.
    New,
    /// The request was answered before.
    Before(Recorded),
    /// Something else was done under this key.
    Otherwise,
}

/// A key may be so long.
const LONGEST_KEY: usize = 255;

impl Once {
    /// Reads the header, if it is there; `caller` keeps the keys of different callers apart.
    pub(crate) fn from_headers(
        limits: &LimitsConfig,
        headers: &HeaderMap,
        caller: &str,
        statement: &str,
        members: &serde_json::Map<String, Json>,
    ) -> Result<Option<Self>, Problem> {
        let mut values = headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        let text = value.to_str().unwrap_or_default().trim();
        let text = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
            .unwrap_or(text);
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > LONGEST_KEY || !plain || values.next().is_some() {
            return Err(Problem::new(
                ProblemKind::BadParameter,
                "`Idempotency-Key` must be one value of 1 to 255 visible ASCII characters",
            ));
        }
        Ok(Some(Self {
            key: text.to_owned(),
            caller: caller.to_owned(),
            request_hash: hash(statement, members),
            expires_at: unix_ms().saturating_add(millis(limits.idempotency_ttl)),
            largest: limits.idempotency_body.as_usize(),
        }))
    }

    /// Takes the key for this transaction, waiting for one that holds it. What was done before is
    /// told instead.
    pub(crate) async fn take(&self, tx: &mut Tx) -> Result<Earlier, SourceError> {
        let sql = RecordSql::of(tx);
        let now = unix_ms();
        let mine = [
            Param::Text(self.key.clone()),
            Param::Text(self.caller.clone()),
            Param::Text(self.request_hash.clone()),
            integer(now),
            integer(self.expires_at),
        ];
        tx.execute(&sql.insert, &mine).await?;
        let asked = [mine[2].clone(), mine[0].clone(), mine[1].clone()];
        let rows = tx.select(&sql.select, &asked).await?;
        let row = rows.first();
        let number = |name: &str| row.and_then(|row| row[name].as_u64()).unwrap_or_default();
        // Only the row that this transaction just wrote can be without an answer: every other was
        // committed with one.
        if number("status") == 0 {
            return Ok(Earlier::New);
        }
        let text = |name: &str| row.and_then(|row| row[name].as_str()).unwrap_or_default();
        if number("expires_at") <= now {
            tx.execute(
                &sql.renew,
                &[
                    mine[2].clone(),
                    integer(now),
                    integer(self.expires_at),
                    mine[0].clone(),
                    mine[1].clone(),
                ],
            )
            .await?;
            return Ok(Earlier::New);
        }
        if number("same") == 0 {
            return Ok(Earlier::Otherwise);
        }
        Ok(Earlier::Before(Recorded {
            status: u16::try_from(number("status")).unwrap_or(200),
            body: text("body").to_owned(),
        }))
    }

    /// Whether an answer is small enough to be kept.
    pub(crate) fn can_keep(&self, body: &str) -> bool {
        body.len() <= self.largest
    }

    /// Writes down what is answered. False if the row that was taken is gone: swept by a process
    /// whose clock is ahead.
    pub(crate) async fn record(&self, tx: &mut Tx, answer: &Recorded) -> Result<bool, SourceError> {
        let sql = RecordSql::of(tx);
        let params = [
            Param::Int(i64::from(answer.status)),
            Param::Text(answer.body.clone()),
            Param::Text(self.key.clone()),
            Param::Text(self.caller.clone()),
        ];
        let done = tx.execute(&sql.answer, &params).await?;
        Ok(done.rows_affected == 1)
    }
}

fn integer(number: u64) -> Param {
    Param::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn hash(statement: &str, members: &serde_json::Map<String, Json>) -> String {
    let sorted: BTreeMap<&String, &Json> = members.iter().collect();
    let mut hasher = Sha256::new();
    hasher.update(statement.as_bytes());
    hasher.update([0]);
    hasher.update(serde_json::to_vec(&sorted).unwrap_or_default());
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The statements, as each database wants them.
struct RecordSql {
    insert: String,
    select: String,
    renew: String,
    answer: String,
}

impl RecordSql {
    fn of(tx: &Tx) -> Self {
        // Compared there, and told as text: what a collation says of bytes has nothing to do with
        // what they are.
        let (key, lock, kept) = match tx {
            // Taking the row's lock at once: were it shared first, three who want the same key
            // would wait for each other.
            Tx::MySql(_) => (
                "`key`",
                " FOR UPDATE",
                "ON DUPLICATE KEY UPDATE caller = caller",
            ),
            Tx::Postgres(_) => ("\"key\"", " FOR UPDATE", "ON CONFLICT DO NOTHING"),
            _ => ("\"key\"", "", "ON CONFLICT DO NOTHING"),
        };
        let body = match tx {
            Tx::MySql(_) => "CONVERT(body USING utf8mb4) COLLATE utf8mb4_general_ci AS body",
            _ => "body",
        };
        let numbered = matches!(tx, Tx::Postgres(_));
        let place = |text: String| if numbered { number(&text) } else { text };
        Self {
            insert: place(format!(
                "INSERT INTO steadfast_idempotency ({key}, caller, request_hash, status, body, created_at, expires_at) \
                 VALUES (?, ?, ?, 0, '', ?, ?) {kept}"
            )),
            select: place(format!(
                "SELECT CASE WHEN request_hash = ? THEN 1 ELSE 0 END AS same, status, {body}, expires_at FROM steadfast_idempotency WHERE {key} = ? AND caller = ?{lock}"
            )),
            renew: place(format!(
                "UPDATE steadfast_idempotency SET request_hash = ?, status = 0, body = '', created_at = ?, expires_at = ? \
                 WHERE {key} = ? AND caller = ?"
            )),
            answer: place(format!(
                "UPDATE steadfast_idempotency SET status = ?, body = ? WHERE {key} = ? AND caller = ?"
            )),
        }
    }
}

/// `?` as `$1`, `$2`, …
fn number(text: &str) -> String {
    let mut numbered = String::with_capacity(text.len() + 8);
    for (n, part) in text.split('?').enumerate() {
        if n > 0 {
            numbered.push_str(&format!("${n}"));
        }
        numbered.push_str(part);
    }
    numbered
}

/// The table, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Records {
    made: AtomicBool,
    making: tokio::sync::Mutex<()>,
    /// The error of the last sweep, if it failed.
    trouble: Mutex<Option<String>>,
    /// The keys that are in use in this process, by caller and key: no more than there are
    /// requests.
    turns: Arc<Mutex<HashMap<Used, Arc<tokio::sync::Mutex<()>>>>>,
}

type Used = (String, String);

/// The right to use a key, until it is dropped.
#[derive(Debug)]
pub(crate) struct KeyLock {
    held: Option<tokio::sync::OwnedMutexGuard<()>>,
    used: Used,
    turns: Arc<Mutex<HashMap<Used, Arc<tokio::sync::Mutex<()>>>>>,
}

/// A request that waits for a key; dropped, it leaves nothing behind.
struct KeyWaiter<'r> {
    records: &'r Records,
    used: Option<Used>,
}

impl Drop for KeyWaiter<'_> {
    fn drop(&mut self) {
        if let Some(used) = self.used.take() {
            forget(&self.records.turns, &used);
        }
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        self.held = None;
        forget(&self.turns, &self.used);
    }
}

/// The last who has to do with a key takes it away.
fn forget(turns: &Mutex<HashMap<Used, Arc<tokio::sync::Mutex<()>>>>, used: &Used) {
    let mut turns = turns.lock();
    if turns
        .get(used)
        .is_some_and(|turn| Arc::strong_count(turn) == 1)
    {
        turns.remove(used);
    }
}

const TABLE: &str = "steadfast_idempotency";

/// Rows that one sweep takes at a time, so that it holds no lock for long.
const SWEPT: i64 = 1000;

impl Records {
    /// Waits until nobody else of this process uses the key.
    pub(crate) async fn turn(&self, once: &Once) -> KeyLock {
        let used = (once.caller.clone(), once.key.clone());
        let turn = Arc::clone(self.turns.lock().entry(used.clone()).or_default());
        let mut waits = KeyWaiter {
            records: self,
            used: Some(used),
        };
        let held = turn.lock_owned().await;
        KeyLock {
            held: Some(held),
            used: waits.used.take().unwrap_or_default(),
            turns: Arc::clone(&self.turns),
        }
    }

    /// Makes the table if it is not there.
    pub(crate) async fn prepare(&self, database: &Database) -> Result<(), SourceError> {
        if self.made.load(Ordering::Acquire) {
            return Ok(());
        }
        let _alone = self.making.lock().await;
        if !self.made.load(Ordering::Acquire) {
            if look(database).await.is_err() {
                let made = make(database).await;
                // Another process may have been quicker.
                if let Err(error) = look(database).await {
                    return made.and(Err(error));
                }
            }
            self.made.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Whether this failure means that the table was dropped; if so it is made again when it is
    /// needed next.
    pub(crate) async fn was_lost(&self, database: &Database, error: &SourceError) -> bool {
        // Each database names what it misses.
        if !error.to_string().contains(TABLE) || look(database).await.is_ok() {
            return false;
        }
        self.made.store(false, Ordering::Release);
        true
    }

    /// Tells that sweeps fail, or succeed again, when that changes.
    fn note(&self, error: Option<&SourceError>) {
        let error = error.map(ToString::to_string);
        let before = std::mem::replace(&mut *self.trouble.lock(), error.clone());
        if before == error {
            return;
        }
        // Without the lock: whoever writes the log may take his time.
        match &error {
            Some(error) => tracing::warn!(
                error,
                "expired idempotency keys cannot be forgotten: the table {TABLE} grows until they can"
            ),
            None => tracing::info!("expired idempotency keys are forgotten again"),
        }
    }

    /// Forgets what has expired; tells how many.
    pub(crate) async fn sweep(&self, database: &Database) -> Result<u64, SourceError> {
        let swept = self.try_sweep(database).await;
        if let Err(error) = &swept {
            self.was_lost(database, error).await;
        }
        self.note(swept.as_ref().err());
        swept
    }

    async fn try_sweep(&self, database: &Database) -> Result<u64, SourceError> {
        self.prepare(database).await?;
        let mut gone = 0;
        loop {
            let mut tx = database.begin().await?;
            let sql = match &tx {
                Tx::MySql(_) => "DELETE FROM steadfast_idempotency WHERE expires_at <= ? LIMIT ?",
                Tx::Postgres(_) => {
                    "DELETE FROM steadfast_idempotency WHERE ctid IN \
                     (SELECT ctid FROM steadfast_idempotency WHERE expires_at <= $1 LIMIT $2)"
                }
                _ => {
                    "DELETE FROM steadfast_idempotency WHERE rowid IN \
                     (SELECT rowid FROM steadfast_idempotency WHERE expires_at <= ? LIMIT ?)"
                }
            };
            let done = tx
                .execute(sql, &[integer(unix_ms()), Param::Int(SWEPT)])
                .await?;
            tx.commit().await?;
            gone += done.rows_affected;
            if done.rows_affected < SWEPT.unsigned_abs() {
                return Ok(gone);
            }
        }
    }
}

/// Whether the table is there; asked where statements run, since the queries' connections may all
/// be taken.
async fn look(database: &Database) -> Result<(), SourceError> {
    let mut tx = database.begin().await?;
    let there = "SELECT status FROM steadfast_idempotency WHERE 1 = 0";
    tx.select(there, &[]).await.map(drop)
}

async fn make(database: &Database) -> Result<(), SourceError> {
    let mut tx = database.begin().await?;
    // Compared byte by byte: keys and callers that differ in case, or by a blank at the end, are
    // different ones.
    let (key, caller, text) = match &tx {
        Tx::MySql(_) => ("`key` VARBINARY(255)", "VARBINARY(256)", "MEDIUMTEXT"),
        _ => ("\"key\" TEXT", "TEXT", "TEXT"),
    };
    let name = key.split(' ').next().unwrap_or_default();
    let table = format!(
        "CREATE TABLE IF NOT EXISTS steadfast_idempotency ({key} NOT NULL, caller {caller} NOT NULL, request_hash CHAR(64) NOT NULL, \
         status INTEGER NOT NULL, body {text} NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, \
         PRIMARY KEY (caller, {name}))"
    );
    tx.execute(&table, &[]).await?;
    let index = "CREATE INDEX steadfast_idempotency_expiry ON steadfast_idempotency (expires_at)";
    tx.execute(index, &[]).await?;
    tx.commit().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn s8_the_order_of_members_makes_no_other_request_and_all_else_does() {
        let members =
            |text: &str| serde_json::from_str::<serde_json::Map<String, Json>>(text).unwrap();
        let one = hash("add", &members(r#"{"a":1,"b":"x"}"#));
        assert_eq!(one, hash("add", &members(r#"{"b":"x","a":1}"#)));
        assert_ne!(one, hash("add", &members(r#"{"a":2,"b":"x"}"#)));
        assert_ne!(one, hash("adda", &members(r#"{"a":1,"b":"x"}"#)));
        assert_eq!(one.len(), 64);
    }

    #[tokio::test]
    async fn s8_what_has_expired_is_swept_in_steps_and_what_has_not_stays() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("t.db").display());
        let database =
            Database::connect(&url, steadfast_cache::DatabaseOptions::default()).unwrap();
        let records = Records::default();
        records.prepare(&database).await.unwrap();
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) \
                    INSERT INTO steadfast_idempotency SELECT i, '', '', 200, '', 0, CASE WHEN i <= 2497 THEN 1 ELSE 9e15 END FROM n";
        let mut tx = database.begin().await.unwrap();
        tx.execute(fill, &[]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(records.sweep(&database).await.unwrap(), 2497);
        let left = "SELECT COUNT(*) AS n FROM steadfast_idempotency";
        assert_eq!(database.select(left, &[]).await.unwrap()[0]["n"], 3);
        assert_eq!(records.sweep(&database).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn s8_a_record_whose_row_is_gone_is_not_taken_for_kept() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("t.db").display());
        let database =
            Database::connect(&url, steadfast_cache::DatabaseOptions::default()).unwrap();
        Records::default().prepare(&database).await.unwrap();
        let once = Once {
            key: "k".to_owned(),
            caller: String::new(),
            request_hash: "h".to_owned(),
            expires_at: u64::MAX >> 1,
            largest: 100,
        };
        let answer = Recorded {
            status: 200,
            body: "{}".to_owned(),
        };
        let mut tx = database.begin().await.unwrap();
        assert!(matches!(once.take(&mut tx).await.unwrap(), Earlier::New));
        assert!(once.record(&mut tx, &answer).await.unwrap());
        tx.execute("DELETE FROM steadfast_idempotency", &[])
            .await
            .unwrap();
        assert!(!once.record(&mut tx, &answer).await.unwrap());
    }

    #[tokio::test]
    async fn s8_a_sweep_that_fails_is_told_of_until_it_succeeds_and_makes_a_lost_table_again() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("t.db").display());
        let database =
            Database::connect(&url, steadfast_cache::DatabaseOptions::default()).unwrap();
        let records = Records::default();
        records.prepare(&database).await.unwrap();
        let mut tx = database.begin().await.unwrap();
        tx.execute("DROP TABLE steadfast_idempotency", &[])
            .await
            .unwrap();
        tx.commit().await.unwrap();
        records.sweep(&database).await.unwrap_err();
        assert!(records.trouble.lock().is_some());
        assert_eq!(records.sweep(&database).await.unwrap(), 0);
        assert!(records.trouble.lock().is_none());
    }

    #[test]
    fn s4_a_sweep_that_fails_is_told_of_after_its_lock_is_given_back() {
        let records = Arc::new(Records::default());
        let free = Arc::new(Mutex::new(Vec::new()));
        let (of, told) = (Arc::clone(&records), Arc::clone(&free));
        let _listens = crate::telemetry::listen(move || {
            let is_free = of.trouble.try_lock().is_some();
            told.lock().push(is_free);
        });
        let error = SourceError::NoRuntime;
        for error in [Some(&error), Some(&error), None, None] {
            records.note(error);
        }
        assert_eq!(*free.lock(), [true; 2]);
    }

    #[test]
    fn placeholders_are_numbered_in_order() {
        assert_eq!(number("a ? b ?, ?"), "a $1 b $2, $3");
    }
}
