//! A client whose calls have options of their own.

use redis::{Cmd, Pipeline, Value};

use super::Client;
use crate::error::Error;
use crate::options::CallOptions;

/// A client with options of its own for its calls. From [`Client::with`].
#[derive(Clone, Debug)]
pub struct ScopedClient {
    pub(super) client: Client,
    pub(super) options: CallOptions,
}

impl ScopedClient {
    /// Sends one command, as [`Client::send`] does.
    ///
    /// # Errors
    /// Sends one command, as [`Client::send`] does.
    pub async fn send(&self, cmd: &Cmd) -> Result<Value, Error> {
        self.client.send_with(cmd, &self.options).await
    }

    /// Sends a pipeline or transaction, as [`Client::send_pipeline`] does.
    ///
    /// # Errors
    /// Sends a pipeline or transaction, as [`Client::send_pipeline`] does.
    pub async fn send_pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Error> {
        self.client
            .send_pipeline_with(pipeline, &self.options)
            .await
    }

    pub(crate) fn db(&self) -> i64 {
        self.client.db()
    }
}
