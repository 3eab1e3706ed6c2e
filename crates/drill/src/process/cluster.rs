//! Private clusters: primaries that share the slots among them, and replicas.
//!
//! What is done to one here is what an operator does, by the same commands in the same order, and
//! each method returns when it is so, not when it was told: when all nodes that are awake agree.
//! Nothing goes by time, as a busy machine may take any.
//!
//! How slots are moved: `migration.rs`; what becomes of nodes: `change.rs`; how a cluster gets back
//! to what it was: `heal.rs`; how tests take turns with one: `shared.rs`.

mod change;
mod heal;
mod layout;
mod migration;
mod shared;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use redis::Value;
use tokio::time::{Instant, sleep};

use super::redis::{Redis, RedisBuilder, Tls};
use super::runner::Runner;
use super::{Port, ProcessError, Scratch};

pub use self::change::FailoverKind;
pub use self::layout::{Layout, LayoutNode};
pub use self::shared::SharedCluster;

/// The nodes of a cluster, each a `redis-server` of its own. Dropped, all are killed and their
/// folders removed.
///
/// Nodes go by their position: first the primaries, then the replicas (of the first primary, of the
/// second, and again), then those that were added.
///
/// ```no_run
/// # async fn example() -> Result<(), steadfast_drill::process::ProcessError> {
/// use steadfast_drill::process::{Cluster, FailoverKind};
///
/// let cluster = Cluster::start().await?; // three primaries, a replica of each
/// let first = cluster.layout().await?;
/// cluster.node(0).command(&["SET", "{a}1", "v"]).await.ok();
/// cluster.migrate(15_495, 2, 0).await?; // the slot of `{a}`, with its keys
/// cluster.fail_over(0, FailoverKind::Planned).await?;
/// cluster.node(1).freeze()?;
/// cluster.heal_to(&first).await?; // as at the start, and empty
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Cluster {
    builder: ClusterBuilder,
    nodes: Mutex<Vec<Arc<ClusterNode>>>,
    /// The password by which nodes know each other, as replicas and where keys move.
    secret: String,
    /// Last, so that nothing writes into it any more when it goes.
    place: Place,
}

/// Where the nodes' folders are.
#[derive(Debug)]
enum Place {
    /// In a folder that goes with the cluster.
    Own(Scratch),
    /// In one that goes with the program that runs the tests.
    Shared(PathBuf, Runner),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Own(scratch) => scratch.path(),
            Self::Shared(folder, _) => folder,
        }
    }
}

/// The settings of a [`Cluster`]. By default: three primaries with a replica each, no
/// persistence, no password, no TLS, a node timeout of 2 s.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    primaries: usize,
    replicas: usize,
    node_timeout: Duration,
    settings: RedisBuilder,
    login: Option<String>,
    is_encrypted: bool,
    needs_all: bool,
}

/// A node of a [`Cluster`]: a [`Redis`] that knows others.
#[derive(Debug)]
pub struct ClusterNode {
    redis: Redis,
    id: String,
    /// Where nodes talk to each other.
    bus: Port,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        Self {
            primaries: 3,
            replicas: 1,
            node_timeout: Duration::from_secs(2),
            settings: RedisBuilder::default(),
            login: None,
            is_encrypted: false,
            needs_all: false,
        }
    }
}

impl ClusterBuilder {
    /// How many primaries share the slots. Default: 3, of which one may be away: with fewer no
    /// replica is elected.
    #[must_use]
    pub fn primaries(mut self, primaries: usize) -> Self {
        self.primaries = primaries.max(1);
        self
    }

    /// How many replicas each primary has. Default: 1.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// `cluster-node-timeout`: after how long a silent node is held for failed. Default: 2 s. Below
    /// half a second a busy machine fails over by itself.
    #[must_use]
    pub fn node_timeout(mut self, timeout: Duration) -> Self {
        self.node_timeout = timeout;
        self
    }

    /// `cluster-require-full-coverage`: whether all nodes refuse commands while a slot is not
    /// served, as the servers do by default. Default here: they do not.
    #[must_use]
    pub fn require_full_coverage(mut self, required: bool) -> Self {
        self.needs_all = required;
        self
    }

    /// `requirepass` of every node. Default: none.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        let password = password.into();
        self.login = Some(format!(":{}@", super::redis::percent_encoded(&password)));
        self.settings = self.settings.password(password);
        self
    }

    /// TLS on the ports of every node and between them, and no plain TCP. Default: plain TCP.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.is_encrypted = true;
        let settings = self.settings.tls(tls).config("tls-cluster", "yes");
        self.settings = settings.config("tls-replication", "yes");
        self
    }

    /// Further settings of every node: users, persistence, other lines of `redis.conf`.
    #[must_use]
    pub fn each(mut self, set: impl FnOnce(RedisBuilder) -> RedisBuilder) -> Self {
        self.settings = set(self.settings);
        self
    }

    /// Starts the nodes, makes a cluster of them and waits until all agree that it is well.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`]; [`ProcessError::Silent`] when they do not come together.
    pub async fn start(self) -> Result<Cluster, ProcessError> {
        let scratch = Scratch::new("steadfast-cluster-")?;
        let name = scratch.path().file_name().unwrap_or_default();
        let cluster = Cluster {
            secret: name.to_string_lossy().replace("steadfast-cluster-", ""),
            nodes: Mutex::default(),
            place: Place::Own(scratch),
            builder: self,
        };
        cluster.form().await?;
        Ok(cluster)
    }
}

/// The methods that it has in common with every `redis-server`.
impl Deref for ClusterNode {
    type Target = Redis;

    fn deref(&self) -> &Redis {
        &self.redis
    }
}

impl ClusterNode {
    /// The id by which nodes know each other, which outlives restarts.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the cluster is well by its own word; one that is not refuses what it is asked.
    async fn serves(&self) -> Result<bool, ProcessError> {
        let state = text(&self.command(&["CLUSTER", "INFO"]).await?);
        Ok(state.contains("cluster_state:ok"))
    }

    /// Tells it something that is answered by OK.
    async fn told(&self, args: &[&str]) -> Result<(), ProcessError> {
        match self.command(args).await? {
            Value::Okay => Ok(()),
            other => Err(failed(format!("{args:?} was answered by {other:?}"))),
        }
    }
}

impl Cluster {
    /// A cluster with settings of its own.
    #[must_use]
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// Three primaries with a replica each, without persistence, password or TLS.
    ///
    /// # Errors
    /// See [`ClusterBuilder::start`].
    pub async fn start() -> Result<Self, ProcessError> {
        Self::builder().start().await
    }

    /// The nodes that are members, in their order.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<ClusterNode>> {
        self.lock().clone()
    }

    /// The node at a position.
    ///
    /// # Panics
    /// There are fewer.
    #[must_use]
    pub fn node(&self, at: usize) -> Arc<ClusterNode> {
        let nodes = self.lock();
        let node = nodes.get(at).cloned();
        node.unwrap_or_else(|| panic!("node {at} of a cluster of {}", nodes.len()))
    }

    /// Returns the URL for clients: `redis-cluster://127.0.0.1:port,…`, with all nodes of now,
    /// `rediss-cluster://` with TLS, with the password if there is one.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = match self.builder.is_encrypted {
            true => "rediss-cluster",
            false => "redis-cluster",
        };
        let login = self.builder.login.as_deref().unwrap_or_default();
        let addresses = self.addresses().join(",");
        format!("{scheme}://{login}{addresses}")
    }

    /// `127.0.0.1:port` of each node, in their order.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let nodes = self.nodes();
        nodes.iter().map(|node| node.addr().to_string()).collect()
    }

    /// Waits until all nodes are awake, agree on who owns what and say that all is well, with every
    /// replica in step.
    ///
    /// # Errors
    /// [`ProcessError::Silent`] when it does not come to that within a minute.
    pub async fn well(&self) -> Result<(), ProcessError> {
        self.until("all is well", || self.is_well()).await
    }

    async fn form(&self) -> Result<(), ProcessError> {
        let primaries = self.builder.primaries;
        let all = primaries * (1 + self.builder.replicas);
        let nodes = try_join_all((0..all).map(|_| self.start_node())).await?;
        for (at, node) in nodes.iter().enumerate() {
            let epoch = (at + 1).to_string();
            node.told(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await?;
        }
        for (at, node) in nodes[..primaries].iter().enumerate() {
            let bound = |at: usize| at * usize::from(steadfast_core::slot::SLOTS) / primaries;
            let (first, last) = (bound(at).to_string(), (bound(at + 1) - 1).to_string());
            node.told(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])
                .await?;
        }
        for other in &nodes[1..] {
            meet(&nodes[0], other).await?;
        }
        *self.lock() = nodes.clone();
        self.until("all nodes know all", || self.is_agreed())
            .await?;
        for (at, replica) in nodes[primaries..].iter().enumerate() {
            let primary = nodes[at % primaries].id();
            replica.told(&["CLUSTER", "REPLICATE", primary]).await?;
        }
        self.well().await
    }

    /// Starts a node that knows nobody yet.
    async fn start_node(&self) -> Result<Arc<ClusterNode>, ProcessError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let bus = Port::free()?;
            match self.settings(&bus).start().await {
                Ok(redis) => {
                    let id = text(&redis.command(&["CLUSTER", "MYID"]).await?);
                    return Ok(Arc::new(ClusterNode { redis, id, bus }));
                }
                // Somebody asked for the port of the bus by its number before the server had it.
                Err(ProcessError::PortTaken { .. }) if attempts < 5 => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn settings(&self, bus: &Port) -> RedisBuilder {
        let timeout = self.builder.node_timeout.as_millis().to_string();
        let needs_all = if self.builder.needs_all { "yes" } else { "no" };
        let settings = self.builder.settings.clone().within(self.place.path());
        let settings = match self.place {
            Place::Own(_) => settings,
            Place::Shared(_, runner) => settings.shared(runner),
        };
        settings
            .acl(format!("{PEER} on >{} ~* &* +@all", self.secret))
            .config("masteruser", PEER)
            .config("masterauth", &self.secret)
            .config("cluster-enabled", "yes")
            .config("cluster-port", bus.number().to_string())
            .config("cluster-announce-ip", HOST)
            .config("cluster-node-timeout", timeout)
            .config("cluster-replica-validity-factor", "0")
            .config("cluster-allow-replica-migration", "no")
            .config("cluster-require-full-coverage", needs_all)
    }

    /// Returns the nodes that run and do not stand still.
    fn awake(&self) -> Vec<Arc<ClusterNode>> {
        let nodes = self.nodes();
        nodes.into_iter().filter(|node| node.is_awake()).collect()
    }

    async fn is_well(&self) -> Result<bool, ProcessError> {
        let nodes = self.nodes();
        if nodes.iter().any(|node| !node.is_awake()) || !self.is_agreed().await? {
            return Ok(false);
        }
        for node in nodes {
            let replication = node.info("replication").await?;
            let waits = replication.contains("role:slave")
                && !replication.contains("master_link_status:up");
            if waits || !node.serves().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits for a fact. An error of a node that has just started, or was just told to change, is
    /// none: it is asked again.
    // Not an `AsyncFnMut`: of the futures of those the compiler cannot yet see that they may be
    // sent to another thread.
    async fn until<F: Future<Output = Result<bool, ProcessError>>>(
        &self,
        fact: &str,
        mut look: impl FnMut() -> F,
    ) -> Result<(), ProcessError> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let looked = look().await;
            if let Ok(true) = looked {
                return Ok(());
            }
            if Instant::now() > limit {
                let why = looked.err().map(|error| format!(": {error}"));
                return Err(ProcessError::Silent {
                    program: CLUSTER.into(),
                    waited: PATIENCE,
                    line: format!("it never came that {fact}{}", why.unwrap_or_default()),
                });
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<ClusterNode>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes two nodes know each other, by the address that the other has now.
async fn meet(node: &ClusterNode, other: &ClusterNode) -> Result<(), ProcessError> {
    let (port, bus) = (other.port().to_string(), other.bus.number().to_string());
    node.told(&["CLUSTER", "MEET", HOST, &port, &bus]).await
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        other => format!("{other:?}"),
    }
}

fn failed(cause: String) -> ProcessError {
    ProcessError::Command {
        program: CLUSTER.into(),
        cause,
    }
}

const CLUSTER: &str = "the cluster";
const HOST: &str = "127.0.0.1";
/// As whom nodes know each other: passwords of the drilled application do not matter to them.
const PEER: &str = "steadfast-peer";
/// Generous: a loaded machine is no failure.
const PATIENCE: Duration = Duration::from_secs(60);
