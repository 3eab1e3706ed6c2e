//! One server, chosen by its address: for commands that concern a server rather than the data.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use redis::{Cmd, Pipeline, Value};
use steadfast_core::conn::Reply;

use super::Client;
use crate::call::plan::{Payload, many, one};
use crate::error::{Error, ErrorKind};
use crate::options::CallOptions;
use crate::task::cooperatively;

/// A server that a client knows, by its address. From [`Client::node`].
///
/// Its commands go to that server and to no other: an answer is that server's own, and so is a
/// redirect (MOVED, ASK), which is an error here. Who is at the address is looked up for each call,
/// so the handle outlives restarts and failovers.
///
/// ```no_run
/// # async fn example(client: steadfast::Client) -> Result<(), steadfast::Error> {
/// let node = client.node("10.0.0.2:6379");
/// println!("{:?}", node.send(steadfast::redis::cmd("SLOWLOG").arg("GET").arg(10)).await?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct NodeClient {
    client: Client,
    address: Arc<str>,
    options: CallOptions,
}

impl Client {
    /// A handle for commands that concern one server: `host:port` as the server announces it, or as
    /// `translate_addresses` makes it. Of a cluster any node, replicas too, which answer what reads
    /// with data as old as theirs. Elsewhere there is one, the primary: where sentinels name it, a
    /// call during which they name another goes on there.
    ///
    /// Nothing is looked up here. An address that nobody knows is an error of the call,
    /// [`ErrorKind::UnknownNode`], which names those that are known.
    pub fn node(&self, address: &str) -> NodeClient {
        NodeClient {
            client: self.clone(),
            address: address.into(),
            options: CallOptions::new(),
        }
    }

    /// The addresses of the one server that there is, as far as they are known.
    fn addresses(&self) -> Vec<String> {
        let shared = &self.inner.shared;
        let mut all = Vec::new();
        let named = shared.discovery.as_ref();
        let named = named.and_then(|known| known.believed.borrow().clone());
        match named {
            Some(primacy) => all.push(primacy.primary.to_string()),
            None => all.push(shared.settings.target.address.to_string()),
        }
        let views = shared.links.iter().map(|link| link.view.lock());
        let dialled = views.filter_map(|view| Some(view.facts.as_ref()?.address.clone()));
        all.extend(dialled);
        all.dedup();
        all
    }
}

impl NodeClient {
    /// Returns the address that was asked for.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the same server with other options for its calls.
    pub fn with(&self, options: CallOptions) -> Self {
        Self {
            options,
            ..self.clone()
        }
    }

    /// Sends one command.
    ///
    /// # Errors
    /// As [`Client::send`]; [`ErrorKind::UnknownNode`] if nobody knows the address.
    pub async fn send(&self, cmd: &Cmd) -> Result<Value, Error> {
        one(cooperatively(self.run(Payload::Command(cmd)).await).await?)
    }

    /// Sends a pipeline or transaction and returns all its replies in order, as
    /// [`Client::send_pipeline`] does.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Error> {
        if pipeline.is_empty() && !pipeline.is_transaction() {
            return Ok(Vec::new());
        }
        let replies = self.run(Payload::Pipeline(pipeline)).await;
        Ok(many(cooperatively(replies).await?))
    }

    async fn run(&self, payload: Payload<'_>) -> Result<Reply, Error> {
        let inner = &*self.client.inner;
        let options = &self.options;
        if let Some(cluster) = &inner.cluster {
            let settings = &inner.shared.settings;
            let plan = payload.plan(settings.connections, true)?;
            let plan = plan.adjusted(options, settings.repeat_only_reads);
            let asked: BoxFuture<'_, _> =
                Box::pin(cluster.call_at(&self.address, payload, plan, options));
            return asked.await;
        }
        let known = self.client.addresses();
        if !known.iter().any(|address| **address == *self.address) {
            return Err(Error::not_sent(ErrorKind::UnknownNode {
                asked: Arc::clone(&self.address),
                known: known.join(", ").into(),
            }));
        }
        self.client.run(payload, options).await
    }

    pub(crate) fn db(&self) -> i64 {
        self.client.db()
    }
}
