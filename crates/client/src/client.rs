//! The client: cheap to clone, safe from many tasks, alive without Redis.

pub(crate) mod builder;
pub(crate) mod chosen;
mod closing;
pub(crate) mod cluster;
pub(crate) mod home;
pub(crate) mod scan;
mod scoped;
pub(crate) mod status;
pub(crate) mod toward;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, select_all};
use redis::{Cmd, Pipeline, Value};
use steadfast_core::command::Effect;
use steadfast_core::policy::breaker::BreakerMode;
use steadfast_core::resp::Limits;
use steadfast_core::slot::Slot;
use tokio::runtime::Handle;

pub use self::closing::CloseReport;
pub use self::scoped::ScopedClient;
use crate::call::blocking::Blocking;
use crate::call::dedicated::Dedicated;
use crate::call::plan::{Payload, many, one};
use crate::call::{self, Carried};
use crate::client::builder::ClientBuilder;
use crate::client::cluster::Cluster;
use crate::client::home::Home;
use crate::clock;
use crate::error::{ConfigError, Error, ErrorKind};
use crate::event::incident::Incident;
use crate::event::{Event, Events};
use crate::link::ConnectionState;
use crate::link::connect::Connector;
use crate::link::shared::Shared;
use crate::options::CallOptions;
use crate::pubsub::PubSub;
use crate::session::Session;
use crate::task::cooperatively;

/// A Redis client that survives outages. See the [crate's documentation](crate).
///
/// ```no_run
/// use std::time::Duration;
/// use steadfast::redis::AsyncCommands;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = steadfast::Client::builder("redis://127.0.0.1")?.build()?;
/// // Redis as an option: nothing while it is not believed to answer.
/// if let Some(mut redis) = client.available().cloned() {
///     let () = redis.incr("visits", 1).await?;
/// }
/// println!("{}", client.health(Duration::from_millis(500)).await.message);
/// let status = client.status();
/// println!("{:?}, breaker {}", status.state, status.breaker);
/// for outage in client.incidents() {
///     println!("{outage:?}");
/// }
/// let unfinished = client.close(Duration::from_secs(1)).await.unfinished;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    connector: Arc<Connector>,
    blocking: Blocking,
    home: Arc<Home>,
    /// The cluster, where there are many servers. Then no call goes by what stands above.
    cluster: Option<Arc<Cluster>>,
    defaults: CallOptions,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.inner.shared.settings.target.address)
            .field("state", &self.state())
            .finish()
    }
}

impl Client {
    /// A client for this URL: `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS,
    /// `unix:///path`.
    ///
    /// Where sentinels watch the primary:
    /// `redis-sentinel://[user:password@]host[:26379][,host…]/service[/db]`, `rediss-sentinel://…`
    /// for TLS. User and password are those of the servers; sentinels get
    /// `?sentinel_user=…&sentinel_password=…`.
    ///
    /// A cluster, of which the URL names some nodes:
    /// `redis-cluster://[user:password@]host[:6379][,host…]`, `rediss-cluster://…` for TLS. The
    /// others are learnt.
    ///
    /// ```
    /// # fn main() -> Result<(), steadfast::ConfigError> {
    /// let plain = steadfast::Client::builder("redis://app:secret@redis.internal:6380/2")?;
    /// let socket = steadfast::Client::builder("unix:///run/redis/redis.sock")?;
    /// let refused = steadfast::Client::builder("postgres://localhost").unwrap_err();
    /// assert!(refused.to_string().contains("unknown scheme"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The URL cannot be read.
    pub fn builder(url: &str) -> Result<ClientBuilder, ConfigError> {
        ClientBuilder::new(url)
    }

    pub(crate) fn start(
        shared: Arc<Shared>,
        connector: Arc<Connector>,
        runtime: Handle,
        cluster: Option<Arc<Cluster>>,
    ) -> Self {
        let blocking = Blocking::new(shared.settings.blocking_connections);
        let (all, connects) = (Arc::clone(&shared), Arc::clone(&connector));
        let home = Home::new(all, connects, cluster.clone(), runtime);
        Self {
            inner: Arc::new(Inner {
                shared,
                connector,
                blocking,
                home,
                cluster,
                defaults: CallOptions::new(),
            }),
        }
    }

    /// Sends one command and returns its reply.
    ///
    /// ```no_run
    /// use steadfast::redis::cmd;
    /// use steadfast::{Certainty, ErrorKind};
    ///
    /// # async fn example(client: steadfast::Client) {
    /// match client.send(cmd("INCR").arg("orders")).await {
    ///     Ok(reply) => println!("{reply:?}"),
    ///     Err(error) => match (error.certainty(), error.kind()) {
    ///         (Certainty::NotSent, ErrorKind::Down { down_for, .. }) => {
    ///             println!("down for {down_for:?}; not counted")
    ///         }
    ///         (Certainty::Unknown, _) => println!("perhaps counted: {error}"),
    ///         _ => println!("not counted: {error}; try again in {:?}", error.retry_after()),
    ///     },
    /// }
    /// # }
    /// ```
    ///
    /// # Cancellation
    /// Whoever drops this future does not learn what became of the command. A pop (BLPOP, LPOP,
    /// XREADGROUP with NOACK…) that is dropped as its answer comes has taken an element, which is
    /// lost then, as it is where the connection is. Where that must not be, BLMOVE or LMOVE moves
    /// the element to a list of the consumer's own, from which LREM takes it when the work is done.
    ///
    /// # Errors
    /// [`Error::certainty`] says what is known of the command. A reply that is an error is an `Err`
    /// too.
    pub async fn send(&self, cmd: &Cmd) -> Result<Value, Error> {
        self.send_with(cmd, &self.inner.defaults).await
    }

    /// Sends a pipeline or transaction and returns all its replies in order; errors among them are
    /// values. A transaction's are those of MULTI, of each command (`QUEUED`) and of EXEC.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> Result<(), steadfast::Error> {
    /// let mut both = steadfast::redis::pipe();
    /// both.atomic().get("left").incr("right", 1);
    /// for reply in client.send_pipeline(&both).await? {
    ///     println!("{reply:?}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The pipeline as a whole failed.
    pub async fn send_pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Error> {
        self.send_pipeline_with(pipeline, &self.inner.defaults)
            .await
    }

    async fn send_with(&self, cmd: &Cmd, options: &CallOptions) -> Result<Value, Error> {
        one(cooperatively(self.run(Payload::Command(cmd), options).await).await?)
    }

    async fn send_pipeline_with(
        &self,
        pipeline: &Pipeline,
        options: &CallOptions,
    ) -> Result<Vec<Value>, Error> {
        if pipeline.is_empty() && !pipeline.is_transaction() {
            return Ok(Vec::new());
        }
        let replies = self.run(Payload::Pipeline(pipeline), options).await;
        Ok(many(cooperatively(replies).await?))
    }

    async fn run(
        &self,
        payload: Payload<'_>,
        options: &CallOptions,
    ) -> Result<steadfast_core::conn::Reply, Error> {
        let inner = &*self.inner;
        let settings = &inner.shared.settings;
        let plan = payload.plan(settings.connections, true)?;
        let plan = plan.adjusted(options, settings.repeat_only_reads);
        if let Some(cluster) = &inner.cluster {
            // Of a type that is named: whoever awaits it within futures of its own would need a
            // higher recursion limit to compile.
            let routed: BoxFuture<'_, _> = Box::pin(cluster.call(payload, plan, options));
            return routed.await;
        }
        let waits = options.acknowledged_by.is_some() && plan.effect != Effect::Read;
        if plan.blocking.is_some() || waits {
            return Box::pin(inner.blocking.call(
                &inner.shared,
                &inner.connector,
                payload,
                plan,
                options,
                &mut Carried::default(),
            ))
            .await;
        }
        call::call(&inner.shared, payload, plan, options).await
    }

    /// Returns this client with other options for its calls; works through the traits of redis-rs
    /// too.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use steadfast::redis::Script;
    /// use steadfast::{CallOptions, Effect};
    ///
    /// # async fn example(client: steadfast::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // Only its author knows that this script changes nothing, and may be sent again.
    /// let options = CallOptions::new().deadline(Duration::from_secs(10)).effect(Effect::Read);
    /// let script = Script::new("return redis.call('STRLEN', KEYS[1])");
    /// let length: u64 = script.key("text").invoke_async(&mut client.with(options)).await?;
    /// # Ok(()) }
    /// ```
    pub fn with(&self, options: CallOptions) -> ScopedClient {
        ScopedClient {
            client: self.clone(),
            options,
        }
    }

    /// A connection of one's own, for WATCH, a bare MULTI, SELECT and the like.
    ///
    /// # Errors
    /// It could not be opened.
    pub async fn session(&self) -> Result<Session, Error> {
        cooperatively(self.open_session().await).await
    }

    async fn open_session(&self) -> Result<Session, Error> {
        let inner = &*self.inner;
        if inner.shared.is_closing() {
            return Err(Error::not_sent(ErrorKind::Closed));
        }
        if inner.cluster.is_some() {
            return Err(Error::not_sent(ErrorKind::NoPlace {
                command: "a session",
                instead: "use client.session_for(key), which belongs to the node of that key",
            }));
        }
        let limit = inner.shared.settings.deadline;
        let connection = Dedicated::open(&inner.shared, &inner.connector, limit).await?;
        Ok(Session::new(connection, self.db()))
    }

    /// A connection of one's own to the server of this key: in a cluster the node that owns its
    /// slot, of which the session is and stays. It ends when that node is no primary any more; what
    /// it asks for in slots of other nodes is answered by MOVED.
    ///
    /// # Errors
    /// It could not be opened.
    pub async fn session_for(&self, key: impl AsRef<[u8]>) -> Result<Session, Error> {
        let Some(cluster) = &self.inner.cluster else {
            return self.session().await;
        };
        let owner = cooperatively(cluster.owner_of(Slot::of_key(key.as_ref())).await).await?;
        let session = Box::pin(owner.session()).await?;
        Ok(session.noted_in(cluster.writes()))
    }

    /// Subscriptions on a connection of their own, which resubscribe by themselves and report what
    /// may have been missed. They live in the client's runtime; if that ends, they go on in that of
    /// whoever listens.
    pub fn pubsub(&self) -> PubSub {
        PubSub::start(
            Arc::clone(&self.inner.shared),
            Arc::clone(&self.inner.connector),
            None,
            self.inner.home.discovery(),
        )
    }

    /// Subscriptions to sharded channels ([`PubSub::ssubscribe`]) of this channel's slot: in a
    /// cluster on a connection to the node that owns it, wherever it moves. Each move is told as
    /// [`PubSubEvent::Lost`](crate::PubSubEvent::Lost) and `Resumed`. Channels of other slots are
    /// refused; one hash tag (`{…}`) gives channels one slot.
    pub fn pubsub_for(&self, channel: impl AsRef<[u8]>) -> PubSub {
        match &self.inner.cluster {
            Some(cluster) => {
                let slot = Slot::of_key(channel.as_ref());
                let (connector, shared) = (cluster.connector_of(slot), &self.inner.shared);
                let discovery = self.inner.home.discovery();
                PubSub::start(Arc::clone(shared), connector, Some(slot), discovery)
            }
            None => self.pubsub(),
        }
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// Has its calls looked after should its runtime not run.
    pub(crate) fn watched(self) -> Self {
        for link in &self.inner.shared.links {
            link.queue.watch();
        }
        self
    }

    /// The client, if Redis is believed to answer. One whose runtime has ended goes on in that of
    /// whoever asks.
    pub fn available(&self) -> Option<&Self> {
        (self.state() == ConnectionState::Ready).then_some(self)
    }

    /// Returns the limits of a reply, as
    /// [`ClientBuilder::reply_limits`](crate::ClientBuilder::reply_limits) has set them: a larger
    /// one ends its connection.
    pub fn reply_limits(&self) -> Limits {
        self.inner.shared.settings.reply_limits
    }

    /// The state of the worst of its connections.
    pub fn state(&self) -> ConnectionState {
        let rank = |state: &ConnectionState| match state {
            ConnectionState::Ready => 0,
            ConnectionState::Connecting => 1,
            ConnectionState::Partial => 2,
            ConnectionState::Down => 3,
            ConnectionState::Closed => 4,
        };
        let links = &self.inner.shared.links;
        let are_ready = || {
            links
                .iter()
                .all(|link| link.state() == ConnectionState::Ready)
        };
        // Nearly always, and some ask before each call. What is ready lives.
        if self.inner.cluster.is_none() && !links.is_empty() && are_ready() {
            return ConnectionState::Ready;
        }
        self.revive_if_orphaned();
        if let Some(cluster) = &self.inner.cluster {
            cluster.tell_state();
        }
        links
            .iter()
            .map(|link| link.state())
            .max_by_key(rank)
            .unwrap_or(ConnectionState::Closed)
    }

    /// Starts its tasks anew where it is asked, if the runtime has ended in which they lived:
    /// whoever asks before each call whether Redis answers would else never hear that it does.
    fn revive_if_orphaned(&self) {
        let links = &self.inner.shared.links;
        if links.iter().any(|link| link.is_orphaned()) {
            let _ = self.inner.shared.runtime();
        }
    }

    /// Waits until the state changes, from whatever it is now.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) {
    /// loop {
    ///     println!("{:?}", client.state());
    ///     client.changed().await;
    /// }
    /// # }
    /// ```
    pub async fn changed(&self) {
        self.revive_if_orphaned();
        let mut watches: Vec<_> = self
            .inner
            .shared
            .links
            .iter()
            .map(|link| link.state.subscribe())
            .collect();
        let changes = watches.iter_mut().map(|watch| Box::pin(watch.changed()));
        let _ = select_all(changes).await;
    }

    /// The events from now on.
    pub fn events(&self) -> Events {
        self.inner.shared.hub.subscribe()
    }

    /// The last events, oldest first; 100 by default.
    ///
    /// ```no_run
    /// # fn example(client: &steadfast::Client) {
    /// for event in client.history() {
    ///     println!("{} on connection {}: {:?}", event.at_ms, event.connection, event.kind);
    /// }
    /// # }
    /// ```
    pub fn history(&self) -> Vec<Event> {
        self.inner.shared.hub.history()
    }

    /// The last outages (50 are kept), oldest first: cause, time to notice, calls refused, unknown
    /// outcomes, time to recover.
    pub fn incidents(&self) -> Vec<Incident> {
        self.inner.shared.hub.incidents()
    }

    /// Puts a person in charge of the breaker, or the breaker again.
    ///
    /// ```no_run
    /// use steadfast::BreakerMode;
    ///
    /// # fn example(client: &steadfast::Client) {
    /// client.set_breaker_mode(BreakerMode::ForcedOpen); // Redis is spared while it is worked on
    /// client.set_breaker_mode(BreakerMode::Automatic);
    /// client.reconnect(); // and met on a new connection
    /// # }
    /// ```
    pub fn set_breaker_mode(&self, mode: BreakerMode) {
        for node in self.nodes() {
            node.set_breaker_mode(mode);
        }
        let shared = &self.inner.shared;
        let transition = shared.breaker.set_mode(mode, clock::now());
        shared.breaker_changed(transition);
    }

    /// Connects anew, by hand. What is in flight ends as if the connection had been lost, also on
    /// the connections of blocking calls and sessions, and subscribers connect anew.
    pub fn reconnect(&self) {
        for node in self.nodes() {
            node.reconnect();
        }
        let shared = &self.inner.shared;
        for link in &shared.links {
            link.reset(link.epoch(), "reset by hand");
        }
        shared.following.reset();
    }

    /// The clients of a cluster's nodes.
    fn nodes(&self) -> Vec<Self> {
        let cluster = self.inner.cluster.as_ref();
        cluster.map_or_else(Vec::new, |cluster| cluster.clients())
    }

    /// Waits until it is connected.
    pub(crate) async fn first_connection(&self, deadline: Duration) -> Result<(), Error> {
        if let Some(cluster) = &self.inner.cluster {
            return cluster.first_connections(deadline).await;
        }
        let waiting = async {
            for link in &self.inner.shared.links {
                let mut watch = link.state.subscribe();
                let _ = watch
                    .wait_for(|state| *state == ConnectionState::Ready)
                    .await;
            }
        };
        clock::timeout(deadline, waiting).await.ok_or_else(|| {
            let unnamed = self.inner.shared.discovery.as_ref();
            let unnamed = unnamed.filter(|known| known.term() == 0);
            let unnamed = unnamed.map(|known| known.unnamed().to_string());
            let last_error = unnamed.or_else(|| self.status().last_error);
            let cause = last_error.unwrap_or_else(|| {
                let waits_for = self.inner.connector.waits_for.what();
                let what = waits_for.unwrap_or_else(|| "no attempt has begun".into());
                format!("not within {deadline:?}: {what}")
            });
            Error::not_sent(ErrorKind::Connect {
                cause: cause.into(),
            })
        })
    }

    pub(crate) fn db(&self) -> i64 {
        self.inner.shared.settings.target.db
    }

    pub(crate) fn default_deadline(&self) -> Duration {
        self.inner.shared.settings.deadline
    }
}
