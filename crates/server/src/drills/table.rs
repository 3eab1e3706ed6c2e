//! The database below a drill's subject: numbered rows with a version that only grows, in a SQLite
//! file of its own. SQLite has no wire that could be cut, so an outage of it is made here, in front
//! of every question and every change.

use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use steadfast_cache::{Database, DatabaseOptions, Param, SourceError, Tx};
use steadfast_drill::plain;
use steadfast_drill::subject::{DatabaseFault, Failure, SetUpError};
use tempfile::TempDir;

/// Rows per INSERT.
const BATCH: u64 = 400;

/// Rows of a drill, in a folder that is removed with it.
pub(super) struct Table {
    pub(super) database: Database,
    fault: RwLock<DatabaseFault>,
    _folder: TempDir,
}

impl Table {
    /// An empty table, its file in a folder of its own within `place`. Must be called within a
    /// tokio runtime.
    pub(super) fn new(place: Option<&Path>) -> Result<Self, SetUpError> {
        let folder = tempfile::Builder::new()
            .prefix("table-")
            .tempdir_in(place.map_or_else(std::env::temp_dir, Path::to_owned))
            .map_err(|error| SetUpError(format!("no temporary folder: {error}")))?;
        let url = format!("sqlite://{}", folder.path().join("drill.db").display());
        let database = Database::connect(&url, DatabaseOptions::default()).map_err(set_up)?;
        Ok(Self {
            database,
            fault: RwLock::new(DatabaseFault::Healthy),
            _folder: folder,
        })
    }

    pub(super) async fn create(&self, keys: u64) -> Result<(), SetUpError> {
        let mut tx = self.database.begin().await.map_err(set_up)?;
        let table = "CREATE TABLE rows (id INTEGER PRIMARY KEY, version INTEGER NOT NULL)";
        tx.execute(table, &[]).await.map_err(set_up)?;
        let mut next = 0;
        while next < keys {
            let end = (next + BATCH).min(keys);
            let rows: Vec<String> = (next..end).map(|id| format!("({id}, 0)")).collect();
            let insert = format!("INSERT INTO rows (id, version) VALUES {}", rows.join(", "));
            tx.execute(&insert, &[]).await.map_err(set_up)?;
            next = end;
        }
        tx.commit().await.map_err(set_up)
    }

    pub(super) async fn version(&self, key: u64) -> Result<Option<u64>, TableError> {
        self.suffer().await?;
        let sql = "SELECT version FROM rows WHERE id = ?";
        let rows = self.database.select(sql, &[id(key)]).await?;
        Ok(rows.first().and_then(|row| row["version"].as_u64()))
    }

    /// Raises the version within a transaction; never lowers it.
    pub(super) async fn raise(
        &self,
        tx: &mut Tx,
        key: u64,
        version: u64,
    ) -> Result<(), TableError> {
        self.suffer().await?;
        let sql = "UPDATE rows SET version = ? WHERE id = ? AND version < ?";
        tx.execute(sql, &[id(version), id(key), id(version)])
            .await?;
        Ok(())
    }

    pub(super) fn set_fault(&self, fault: DatabaseFault) {
        *self.fault.write() = fault;
    }

    async fn suffer(&self) -> Result<(), TableError> {
        let fault = *self.fault.read();
        match fault {
            DatabaseFault::Healthy => Ok(()),
            DatabaseFault::Slow(by) => {
                tokio::time::sleep(by.min(Duration::from_secs(60))).await;
                Ok(())
            }
            DatabaseFault::Down => Err(TableError::Down),
        }
    }
}

/// The error of a drill's database that does not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("the drill has taken the database away")]
    Down,
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The same table below the plain control.
pub(super) struct PlainTable(pub(super) Table);

impl plain::Table for PlainTable {
    fn create(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        self.0.create(keys).boxed()
    }

    fn version(&self, key: u64) -> BoxFuture<'_, Result<u64, Failure>> {
        async move {
            match self.0.version(key).await {
                Ok(version) => version.ok_or(FAILED),
                Err(_) => Err(FAILED),
            }
        }
        .boxed()
    }

    fn raise(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            let raised = async {
                let mut tx = self.0.database.begin().await?;
                self.0.raise(&mut tx, key, version).await?;
                Ok::<_, TableError>(tx.commit().await?)
            };
            raised.await.map_err(|_| FAILED)
        }
        .boxed()
    }

    fn fault(&self, fault: DatabaseFault) {
        self.0.set_fault(fault);
    }
}

const FAILED: Failure = Failure { kind: "database" };

fn id(number: u64) -> Param {
    Param::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn set_up(error: SourceError) -> SetUpError {
    SetUpError(error.to_string())
}
