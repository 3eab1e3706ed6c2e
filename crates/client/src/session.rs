//! A connection of one's own, for commands that change the connection's state: WATCH, a bare MULTI,
//! SELECT.

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};

use crate::call::dedicated::Dedicated;
use crate::call::plan::Payload;
use crate::error::Error;
use crate::options::CallOptions;
use crate::own_writes::OwnWrites;
use crate::task::cooperatively;

/// A connection of one's own, from [`Client::session`](crate::Client::session). Clones share it. It
/// is not replaced when it is lost: what it was in the middle of is lost with it, and every later
/// call says so.
///
/// ```no_run
/// use steadfast::redis::{self, AsyncCommands};
///
/// # async fn example(client: steadfast::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let mut own = client.session().await?;
/// redis::cmd("WATCH").arg("stock").exec_async(&mut own).await?;
/// let left: u64 = own.get("stock").await?;
/// if left > 0 {
///     // `None` if somebody else has changed it meanwhile.
///     let mut sale = redis::pipe();
///     let sold: Option<(u64,)> = sale.atomic().decr("stock", 1).query_async(&mut own).await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Session {
    connection: Arc<Dedicated>,
    options: CallOptions,
    db: i64,
    /// Told of what is written here, in a cluster.
    writes: Option<Arc<OwnWrites>>,
}

impl Session {
    pub(crate) fn new(connection: Dedicated, db: i64) -> Self {
        Self {
            connection: Arc::new(connection),
            options: CallOptions::new(),
            db,
            writes: None,
        }
    }

    /// The same, of the node of a cluster.
    pub(crate) fn noted_in(mut self, writes: &Arc<OwnWrites>) -> Self {
        self.writes = Some(Arc::clone(writes));
        self
    }

    /// Returns the same session with other options for its calls.
    pub fn with(&self, options: CallOptions) -> Self {
        Self {
            connection: Arc::clone(&self.connection),
            options,
            db: self.db,
            writes: self.writes.clone(),
        }
    }

    /// Sends one command.
    ///
    /// # Errors
    /// As [`Client::send`](crate::Client::send); nothing is ever repeated.
    pub async fn send(&self, cmd: &Cmd) -> Result<Value, Error> {
        let payload = Payload::Command(cmd);
        self.note(payload, false);
        let answer = self.connection.send(cmd, &self.options).await;
        self.note(payload, true);
        cooperatively(answer).await
    }

    /// Sends a pipeline or transaction and returns all its replies in order, as
    /// [`Client::send_pipeline`](crate::Client::send_pipeline) does.
    ///
    /// # Errors
    /// The pipeline as a whole failed; nothing is ever repeated.
    pub async fn send_pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Error> {
        let payload = Payload::Pipeline(pipeline);
        self.note(payload, false);
        let answers = self.connection.send_pipeline(pipeline, &self.options).await;
        self.note(payload, true);
        cooperatively(answers).await
    }

    fn note(&self, payload: Payload<'_>, ended: bool) {
        if let Some(writes) = &self.writes {
            writes.note(payload, ended);
        }
    }

    pub(crate) fn db(&self) -> i64 {
        self.db
    }

    /// Returns false once its connection is lost.
    pub fn is_open(&self) -> bool {
        self.connection.is_open()
    }
}
