//! The line of those who want to write to a SQLite file.
//!
//! SQLite lets one write at a time, and keeps no line: whoever waits asks again after pauses that
//! grow to a tenth of a second, so that who has waited longest has the least chance, and holds a
//! connection meanwhile that others could read by. So within a process the line is here, and a
//! connection is taken only by who is first in it. Those of other processes are still waited for as
//! SQLite does.
//!
//! The cache's own writes go ahead of the line: on them depends what all others may read.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whose turn it is to write; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct WriteQueue {
    /// For the application. The first waits for the file, the others for being the first.
    line: Arc<Semaphore>,
    file: Arc<Semaphore>,
}

/// The right to write, until it is dropped.
#[derive(Debug)]
pub struct WriteTurn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl WriteQueue {
    /// Waits for all who came before.
    pub(crate) async fn turn(&self) -> WriteTurn {
        let _first = self.line.acquire().await;
        self.turn_ahead().await
    }

    /// Waits for who is writing, and for the first in line at most.
    pub(crate) async fn turn_ahead(&self) -> WriteTurn {
        // Neither is ever closed.
        let permit = Arc::clone(&self.file).acquire_owned().await.ok();
        WriteTurn { _permit: permit }
    }
}

impl Default for WriteQueue {
    fn default() -> Self {
        Self {
            line: Arc::new(Semaphore::new(1)),
            file: Arc::new(Semaphore::new(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::sql::{Database, DatabaseOptions, SessionLimits, SourceError};

    /// A database in a file, with four connections.
    async fn database(folder: &tempfile::TempDir) -> Database {
        let url = format!("sqlite://{}", folder.path().join("app.db").display());
        let options = DatabaseOptions {
            max_connections: 4,
            ..DatabaseOptions::default()
        };
        let database = Database::connect(&url, options).unwrap();
        let mut tx = database.begin().await.unwrap();
        let sql = "CREATE TABLE writes (writer INTEGER)";
        tx.execute(sql, &[]).await.unwrap();
        tx.commit().await.unwrap();
        database
    }

    async fn write(database: &Database, writer: i64) -> Result<(), SourceError> {
        let mut tx = database.begin().await?;
        let sql = "INSERT INTO writes (writer) VALUES (?)";
        tx.execute(sql, &[writer.into()]).await?;
        // The others have their pauses meanwhile.
        tokio::time::sleep(Duration::from_millis(20)).await;
        tx.commit().await
    }

    #[tokio::test]
    async fn k13_writers_of_sqlite_have_their_turn_in_order_and_hold_no_connection_until_then() {
        let folder = tempfile::tempdir().unwrap();
        let database = database(&folder).await;
        let writing = database.begin().await.unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let database = database.clone();
            writers.spawn(async move { write(&database, writer).await });
            tokio::task::yield_now().await;
        }
        let one = database.select("SELECT 1 AS one", &[]).await;
        assert_eq!(one.expect("a connection to read by")[0]["one"], 1);
        drop(writing);
        for written in writers.join_all().await {
            written.unwrap();
        }
        let sql = "SELECT writer FROM writes ORDER BY rowid";
        let rows = database.select(sql, &[]).await.unwrap();
        let order: Vec<_> = rows.iter().map(|row| row["writer"].clone()).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[tokio::test]
    async fn k13_a_writer_of_sqlite_that_gives_up_or_leaves_its_write_unfinished_keeps_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let database = database(&folder).await;
        let mut left = database.begin().await.unwrap();
        let sql = "INSERT INTO writes (writer) VALUES (1)";
        left.execute(sql, &[]).await.unwrap();
        let given_up = tokio::time::timeout(Duration::from_millis(50), database.begin());
        assert!(given_up.await.is_err(), "two may write");
        drop(left);
        write(&database, 2).await.unwrap();
        let rows = database.select("SELECT writer FROM writes", &[]).await;
        let rows = rows.unwrap();
        assert_eq!((rows.len(), &rows[0]["writer"]), (1, &2.into()));
    }

    /// Of somebody whose runtime nobody drives, say.
    #[tokio::test]
    async fn k13_a_turn_that_is_never_given_back_ends_no_write() {
        let folder = tempfile::tempdir().unwrap();
        let database = database(&folder).await;
        let limits = SessionLimits {
            lock: Duration::from_millis(50),
            idle: Duration::from_secs(60),
        };
        let _parked = database.writers.turn().await;
        write(&database, 1).await.unwrap();
        let relay = database.reserve(1, limits).begin().await.unwrap();
        relay.rollback().await.unwrap();
    }

    #[tokio::test]
    async fn k14_the_caches_own_writes_wait_for_one_of_the_application_at_most() {
        let queue = WriteQueue::default();
        let order = Arc::new(Mutex::new(Vec::new()));
        let writing = queue.turn().await;
        let mut waiting = tokio::task::JoinSet::new();
        for name in ["first", "second", "third", "ahead"] {
            let (queue, order) = (queue.clone(), Arc::clone(&order));
            waiting.spawn(async move {
                let _turn = match name {
                    "ahead" => queue.turn_ahead().await,
                    _ => queue.turn().await,
                };
                order.lock().push(name);
            });
            tokio::task::yield_now().await;
        }
        drop(writing);
        waiting.join_all().await;
        assert_eq!(*order.lock(), ["first", "ahead", "second", "third"]);
    }
}
