//! A connection taken from a pool, and what may go back there.
//!
//! A future that is dropped ends the waiting and not the work: the database goes on with a query
//! that nobody reads, and the pool would hand the connection on in whatever state it is. So whoever
//! takes one says what it is in the midst of. Only what has answered to the end, outside of any
//! transaction, goes back; the rest is stopped in the database and closed, and until that is done
//! it keeps its slot at the guard.

use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Connection, Database, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::runtime::Handle;

use super::{SourceError, within};
use crate::guard::{self, LoadSlot};

/// A database whose running statements can be stopped from outside their connection.
///
/// ```
/// use steadfast_cache::sqlx::Connection;
/// use steadfast_cache::{Kind, Lent};
///
/// async fn answers<D: Kind>(connection: &mut Lent<D>) -> bool {
///     connection.ping().await.is_ok()
/// }
/// ```
pub trait Kind: Database<Connection: Connection<Database = Self>> + sealed::Sealed {
    /// The way to stop what a connection runs.
    #[doc(hidden)]
    type Stop: Send + Sync + 'static;

    #[doc(hidden)]
    fn stop(stop: &Self::Stop) -> impl Future<Output = ()> + Send;
}

pub(super) mod sealed {
    pub trait Sealed {}
}

/// A pool's connection, which dereferences to sqlx's own. It returns to the pool only in a state
/// that was checked; otherwise what it runs is stopped in the database, and it is closed.
pub struct Lent<D: Kind> {
    connection: Option<PoolConnection<D>>,
    stop: Option<D::Stop>,
    state: State,
    own: bool,
    limit: Duration,
    slot: Option<Arc<LoadSlot>>,
    /// The runtime in which it was taken.
    runtime: Option<Handle>,
}

/// The state of a connection between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Of nothing.
    Free,
    /// Of a transaction, between two statements.
    Open,
    /// Of a statement.
    Asked,
    /// Of something that nobody can tell.
    Spoilt,
}

impl<D: Kind> Lent<D> {
    /// Takes a connection that has not been asked anything yet; `limit` is how long a statement may
    /// take.
    pub(super) fn new(connection: PoolConnection<D>, limit: Duration) -> Self {
        Self {
            connection: Some(connection),
            stop: None,
            state: State::Spoilt,
            own: true,
            limit,
            slot: guard::current(),
            runtime: Handle::try_current().ok(),
        }
    }

    /// Tells how to stop what will be run.
    pub(super) fn can_be_stopped(&mut self, stop: D::Stop) {
        self.stop = Some(stop);
    }

    /// Tells that the session behind the connection is shared with others, so that nothing may be
    /// left in it.
    pub(super) fn shares_its_session(&mut self) {
        self.own = false;
    }

    /// Whether statements may be prepared under names, for the next time.
    pub(crate) fn keeps_statements(&self) -> bool {
        self.own
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn set(&mut self, state: State) {
        self.state = state;
    }

    /// Begins a transaction.
    pub(super) async fn begin(&mut self, statement: impl SqlSafeStr) -> Result<(), sqlx::Error> {
        self.state = State::Asked;
        D::TransactionManager::begin(self, Some(statement.into_sql_str())).await?;
        self.state = State::Open;
        Ok(())
    }

    /// Runs a statement of the transaction within the limit.
    pub(super) async fn ask<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut D::Connection) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        if self.state != State::Open {
            return Err(SourceError::Ended);
        }
        self.state = State::Asked;
        let limit = self.limit;
        let result = within(limit, work(&mut **self)).await;
        // What ran out of time runs still.
        if !matches!(result, Err(SourceError::Timeout { .. })) {
            self.state = State::Open;
        }
        result
    }

    pub(super) async fn commit(&mut self) -> Result<(), SourceError> {
        if self.state != State::Open {
            return Err(SourceError::Ended);
        }
        self.state = State::Asked;
        let limit = self.limit;
        let committed = within(limit, async {
            Ok(D::TransactionManager::commit(self).await?)
        });
        let committed = committed.await;
        self.end(&committed);
        committed
    }

    pub(super) async fn rollback(&mut self) -> Result<(), SourceError> {
        if self.state != State::Open {
            return Ok(());
        }
        self.state = State::Asked;
        let limit = self.limit;
        let rolled_back = within(limit, async {
            Ok(D::TransactionManager::rollback(self).await?)
        });
        let rolled_back = rolled_back.await;
        self.end(&rolled_back);
        rolled_back
    }

    /// A transaction that could not be ended may have ended by itself, or not.
    fn end(&mut self, result: &Result<(), SourceError>) {
        self.state = match result {
            Ok(()) if D::TransactionManager::get_transaction_depth(self) == 0 => State::Free,
            Err(SourceError::Timeout { .. }) => State::Asked,
            _ => State::Spoilt,
        };
    }
}

impl<D: Kind> Drop for Lent<D> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let Ok(runtime) = Handle::try_current() else {
            // A pool that is to hold some connections looks for another in its place, in a task.
            let _entered = self.runtime.as_ref().map(Handle::enter);
            drop(connection.detach());
            return;
        };
        if self.state != State::Free {
            let (stop, state, slot) = (self.stop.take(), self.state, self.slot.take());
            runtime.spawn(settle::<D>(connection, stop, state, slot));
        }
    }
}

/// Ends what a connection is in the midst of; it goes back to the pool if that is known to have
/// gone well.
async fn settle<D: Kind>(
    mut connection: PoolConnection<D>,
    stop: Option<D::Stop>,
    state: State,
    slot: Option<Arc<LoadSlot>>,
) {
    if state == State::Open && is_rolled_back::<D>(&mut connection).await {
        return;
    }
    if let Some(stop) = stop.filter(|_| state != State::Spoilt) {
        let _ = tokio::time::timeout(STOPPING, end::<D>(&mut connection, &stop)).await;
    }
    let _ = tokio::time::timeout(CLOSING, connection.close()).await;
    drop(slot);
}

/// Stops what a connection runs, again and again until it has ended: a server that is told before
/// it has begun with the statement may forget it.
async fn end<D: Kind>(connection: &mut D::Connection, stop: &D::Stop) {
    let mut ended = pin!(end_of::<D>(connection));
    loop {
        D::stop(stop).await;
        if tokio::time::timeout(AGAIN, &mut ended).await.is_ok() {
            return;
        }
    }
}

/// Waits for what was stopped to have ended: it is answered, or the server hangs up. In between may
/// come errors that belong to it.
async fn end_of<D: Kind>(connection: &mut D::Connection) {
    for _ in 0..3 {
        if let Ok(()) | Err(sqlx::Error::Io(_)) = connection.ping().await {
            return;
        }
    }
}

async fn is_rolled_back<D: Kind>(connection: &mut D::Connection) -> bool {
    let rolling_back = async {
        while D::TransactionManager::get_transaction_depth(connection) > 0 {
            D::TransactionManager::rollback(connection).await?;
        }
        connection.ping().await
    };
    let rolled_back = tokio::time::timeout(STOPPING, rolling_back).await;
    matches!(rolled_back, Ok(Ok(())))
}

impl<D: Kind> Deref for Lent<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        self.connection.as_ref().expect("it is taken only by drop")
    }
}

impl<D: Kind> DerefMut for Lent<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        self.connection.as_mut().expect("it is taken only by drop")
    }
}

impl<D: Kind> std::fmt::Debug for Lent<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lent")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Whether a connection that its holder has left may be handed on: it answers, and is in no
/// transaction. For those that were taken out of the pool by
/// [`Database::pool`](super::Database::pool), which nobody here has watched.
pub(super) async fn may_go_back<C: Connection>(connection: &mut C) -> Result<bool, sqlx::Error> {
    match tokio::time::timeout(ANSWERING, connection.ping()).await {
        Ok(answered) => answered?,
        Err(_late) => {
            let problem = "a statement that was given up still runs";
            return Err(sqlx::Error::Io(std::io::Error::other(problem)));
        }
    }
    Ok(!connection.is_in_transaction())
}

/// Stopping a statement, or rolling back, may take so long before the connection is closed instead.
/// Nobody waits for it but the slot at the guard, which would be free too soon otherwise; and to
/// stop something a connection has to be opened, which takes a busy machine its time.
const STOPPING: Duration = Duration::from_secs(5);

/// A statement that was told to stop and has not ended is told again after so long.
const AGAIN: Duration = Duration::from_millis(500);

/// A connection that was given back without being asked anything answers within so long, or is
/// closed.
const ANSWERING: Duration = Duration::from_secs(1);

/// Closing may take so long before the connection is dropped instead.
const CLOSING: Duration = Duration::from_secs(5);

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

    use crate::sql::{Database, Pool};

    /// A pool that is to hold some connections begins a task for each that is gone.
    #[test]
    fn k14_a_transaction_dropped_outside_of_a_runtime_panics_nowhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let options = SqliteConnectOptions::new().filename(folder.path().join("x.db"));
        let database = runtime.block_on(async {
            let pool = SqlitePoolOptions::new().min_connections(1);
            let pool = pool.connect_with(options.create_if_missing(true)).await;
            Database::from_pool(Pool::Sqlite(pool.expect("a pool")))
        });
        let transaction = || runtime.block_on(database.begin()).expect("a transaction");
        drop(transaction());
        let outlives = transaction();
        drop(runtime);
        drop(outlives);
    }
}
