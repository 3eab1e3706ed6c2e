//! The setting up of a client. Every setting says its default and what it costs.

use std::sync::Arc;
use std::time::Duration;

use steadfast_core::policy::{Backoff, BreakerConfig, BudgetConfig, RetryPolicy};
use steadfast_core::resp::Limits;

use crate::client::Client;
use crate::client::cluster::{Cluster, Roaming};
use crate::clock;
use crate::credentials::{Credentials, CredentialsProvider, StaticCredentials};
use crate::error::{ConfigError, Error, ErrorKind};
use crate::link::connect::{Connector, Network, Transport};
use crate::link::shared::Shared;
use crate::options::ReadFrom;
use crate::resolve::{Names, Resolve};
use crate::sentinel::Translation;
#[cfg(feature = "tls")]
use crate::settings::SentinelTls;
use crate::settings::Settings;
use crate::target::{Address, Role, Target};
use crate::task::check_drivers;
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// Sets up a [`Client`]. From [`Client::builder`].
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Backoff, Client, RetryPolicy, Stop};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), steadfast::ConfigError> {
/// let pauses = Backoff::full_jitter(Duration::from_millis(5), Duration::from_millis(100));
/// let client = Client::builder("redis://127.0.0.1:6379/0")?
///     .name("checkout")
///     .deadline(Duration::from_millis(300))
///     .retry(RetryPolicy::new(pauses, Stop::after_attempts(4)))
///     .build()?; // at once, Redis up or not
///
/// // What means nothing is refused here, by its name.
/// let refused = Client::builder("redis://127.0.0.1")?.connections(0).build();
/// assert!(refused.unwrap_err().to_string().contains("connections"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until build() or connect()"]
pub struct ClientBuilder {
    settings: Settings,
    provider: Option<Arc<dyn CredentialsProvider>>,
}

impl ClientBuilder {
    pub(crate) fn new(url: &str) -> Result<Self, ConfigError> {
        let mut target = Target::parse(url)?;
        let provider = target
            .credentials
            .take()
            .map(|credentials| Arc::new(StaticCredentials::new(credentials)) as _);
        let settings = Settings::new(target);
        Ok(Self { settings, provider })
    }

    /// The absolute limit on a whole call: waiting, every attempt, every pause. Default: 1 s.
    /// Longer means that in the first moments of an outage callers wait longer.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// Sets how long a connection may be silent while commands wait. Default: 500 ms; somewhat more
    /// than half of it (280 ms) where round trips are below 5 ms. After half of it (a fifth, 100
    /// ms) a standby connection is dialled, which costs a connection attempt whenever the server
    /// pauses that long. Then the silent connection is replaced, unless the server says that a
    /// command in it waits; or the server counts as down, if the standby is silent too. Shorter
    /// notices sooner, and takes more pauses of the server for its end.
    pub fn response_idle_timeout(mut self, after: Duration) -> Self {
        self.settings.response_idle_timeout = after;
        self
    }

    /// Sets how long a connection that answers nothing is kept while no standby connection
    /// succeeds, in case it recovers. Default: 30 s.
    pub fn unresponsive_timeout(mut self, after: Duration) -> Self {
        self.settings.unresponsive_timeout = after;
        self
    }

    /// The limit on each phase of connecting: credentials, DNS, TCP, TLS, handshake. Default: 1 s
    /// each.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.settings.connect_timeout = limit;
        self
    }

    /// Sets how failed calls are repeated, where that is safe. Default: 3 attempts, full jitter
    /// from 10 ms to 1 s.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry = policy;
        self
    }

    /// Sets the bound of all repeats together. Default: 10 % of calls plus 10 a second.
    pub fn budget(mut self, budget: BudgetConfig) -> Self {
        self.settings.budget = budget;
        self
    }

    /// Sets when calls are refused without being tried. Default: 50 % of at least 20 calls in 10 s,
    /// or 5 in a row.
    pub fn breaker(mut self, breaker: BreakerConfig) -> Self {
        self.settings.breaker = breaker;
        self
    }

    /// The pauses between attempts to connect; the first attempt after a loss is immediate.
    /// Default: full jitter from 20 ms to 250 ms. The cap bounds how long after its return a server
    /// is in service again, and how often each client knocks in an outage.
    pub fn reconnect(mut self, backoff: Backoff) -> Self {
        self.settings.reconnect = backoff;
        self
    }

    /// Sets how long calls wait for the next connection at the start of an outage; after that they
    /// are refused at once. The grace comes back after 5 s of health. Default: 250 ms. Zero: never
    /// wait. Unless it is zero, calls wait longer for the first attempt to connect to a node of a
    /// cluster: until it has failed, for up to [`connect_timeout`](Self::connect_timeout) or half
    /// of [`deadline`](Self::deadline), whichever is shorter.
    pub fn reconnect_grace(mut self, wait: Duration) -> Self {
        self.settings.reconnect_grace = wait;
        self
    }

    /// Sets how often an idle connection is pinged. Default: 1 s.
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.settings.heartbeat = every;
        self
    }

    /// Connections to the server. Default: 1, which is faster than most pools. With more, the
    /// commands of one key still keep their order, also where they have several keys, and the
    /// others lose theirs. A command whose keys belong to several connections (MSET, FLUSHALL, a
    /// pipeline) then waits for a round trip of the others, and holds up those that come after it
    /// to them: keys with the same hash tag (`{…}`) avoid that.
    pub fn connections(mut self, connections: usize) -> Self {
        self.settings.connections = connections;
        self
    }

    /// Calls in flight per connection, beyond which calls fail as overloaded. Default: 8 192.
    /// Worst-case memory is this times the size of a command and its reply.
    pub fn in_flight(mut self, calls: usize) -> Self {
        self.settings.in_flight = calls;
        self
    }

    /// Bytes waiting to be sent per connection, beyond which calls fail as overloaded. Default: 64
    /// MiB. The longest request that waits does not count, so that one large value does not shut
    /// out all others: worst-case memory is this and the two longest. In a cluster it is the bound
    /// for all nodes together too, and half of it that of one node.
    pub fn buffered_bytes(mut self, bytes: usize) -> Self {
        self.settings.buffered_bytes = bytes;
        self
    }

    /// Connections for commands that block, opened when needed; one more such call at a time fails
    /// as overloaded. Default: 4; at most 65 536. Where no element may be lost with a call that is
    /// cancelled, BLMOVE serves and BLPOP does not: see [`Client::send`].
    pub fn blocking_connections(mut self, connections: usize) -> Self {
        self.settings.blocking_connections = connections;
        self
    }

    /// Sets the age (up to a tenth less, at random) at which a connection is replaced, at least
    /// 100 ms. Default: never. For load balancers that cut old connections, and for names that move
    /// to another server. A blocking call finishes first; a subscriber tells `Lost` and `Resumed`;
    /// a session, which nothing can replace, ends.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.settings.max_age = Some(age);
        self
    }

    /// Sets the time without progress after which a supervisor is started anew. Default: 30 s.
    pub fn watchdog_timeout(mut self, after: Duration) -> Self {
        self.settings.watchdog_timeout = after;
        self
    }

    /// Events kept for [`Client::history`]. Default: 100; each takes some 200 bytes.
    pub fn history(mut self, events: usize) -> Self {
        self.settings.history = events;
        self
    }

    /// The name under which the server lists the connections (CLIENT LIST). Default: none.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// The role a server must have to be put into service. Default: [`Role::Primary`].
    pub fn role(mut self, role: Role) -> Self {
        self.settings.role = role;
        self
    }

    /// Sets how TLS is spoken (feature `tls`, on by default), and switches it on. Default for
    /// `rediss://`: the system's roots, TLS 1.2 or later.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.settings.tls = Some(tls);
        self
    }

    /// Sets the source of user name and password, instead of the URL.
    pub fn credentials(mut self, provider: impl CredentialsProvider + 'static) -> Self {
        self.provider = Some(Arc::new(provider));
        self
    }

    /// Sets the resolver of the host's name. Default: the system.
    pub fn resolver(mut self, resolver: impl Resolve + 'static) -> Self {
        self.settings.names = Arc::new(Names::new(resolver));
        self
    }

    /// Sets how long calls wait at the start of an outage for another primary, if that is longer
    /// than [`reconnect_grace`](Self::reconnect_grace): through an election, say, instead of
    /// failing after the allowance; up to their deadlines and within the bounds of what may wait.
    /// Not behind a server that is silent: it counts as down. Default: not longer; one that is
    /// shorter is refused, because it would change nothing. Costs: in a longer outage each call in
    /// those moments waits in vain.
    pub fn wait_for_primary(mut self, wait: Duration) -> Self {
        self.settings.wait_for_primary = wait;
        self
    }

    /// Refuses whatever may write, as not sent, unless a majority of the sentinels has confirmed
    /// address and epoch of the primary within this time, which is 500 ms at least; they are asked
    /// three times as often, and when their last word is first found too old, writes wait for the
    /// next as long as for a short interruption. Default: no proof is needed. Costs: without a
    /// majority of sentinels there are no writes, though the primary serves.
    pub fn primary_proof(mut self, within: Duration) -> Self {
        self.settings.primary_proof = Some(within);
        self
    }

    /// Turns each address that a server announces (a sentinel, a replica, a node of a cluster, a
    /// redirect) into the one to connect to: for networks in which servers announce what cannot be
    /// reached from here. It is called with the announced host and port, and must not block.
    /// Default: taken as it is.
    ///
    /// ```
    /// # fn main() -> Result<(), steadfast::ConfigError> {
    /// let builder = steadfast::Client::builder("redis-sentinel://gateway:26379/main")?
    ///     .translate_addresses(|_announced, port| ("gateway".into(), port));
    /// # Ok(()) }
    /// ```
    pub fn translate_addresses(
        mut self,
        by: impl Fn(&str, u16) -> (String, u16) + Send + Sync + 'static,
    ) -> Self {
        self.settings.translation = Translation::new(by);
        self
    }

    /// Sets which servers of a cluster serve commands that only read: GET, MGET, HGETALL and the
    /// like, of one key or by MGET. Pipelines, transactions, scripts, cursors and what blocks are
    /// served by primaries. Default: [`ReadFrom::Primary`]. Costs of replicas: data as old as
    /// [`max_lag`](Self::max_lag), a second question for a key that is not there, a connection to
    /// each replica, and four questions to each node in that time.
    pub fn read_from(mut self, servers: ReadFrom) -> Self {
        self.settings.read_from = servers;
        self
    }

    /// Sets how old the data of a replica may be that is read from: at least 100 ms. Default: 1 s.
    /// It is measured: a replica may be read from only while it is known to have everything that
    /// its primary had acknowledged so long ago. Where INFO is not allowed none is.
    pub fn max_lag(mut self, age: Duration) -> Self {
        self.settings.max_lag = age;
        self
    }

    /// User name and password that sentinels are given. Default: those of the URL (`sentinel_user`,
    /// `sentinel_password`), or none; never those of the servers.
    pub fn sentinel_credentials(mut self, credentials: Credentials) -> Self {
        self.settings.target.sentinel_credentials = Some(credentials);
        self
    }

    /// Sets where user name and password for sentinels come from, asked at each connection to one
    /// of them; in place of [`sentinel_credentials`](Self::sentinel_credentials). When to ask again
    /// is not asked: no connection to a sentinel lives so long that it matters.
    pub fn sentinel_credentials_from(
        mut self,
        provider: impl CredentialsProvider + 'static,
    ) -> Self {
        self.settings.sentinel_provider = Some(Arc::new(provider));
        self
    }

    /// Sets how TLS is spoken to sentinels (feature `tls`); `None`: not at all. Default: as to the
    /// servers.
    #[cfg(feature = "tls")]
    pub fn sentinel_tls(mut self, tls: Option<Tls>) -> Self {
        self.settings.sentinel_tls = tls.map_or(SentinelTls::None, SentinelTls::Own);
        self
    }

    /// Repeats last-wins writes of unknown outcome even where abandoned connections cannot be
    /// killed on the server. Default: no. A write that was left in an abandoned connection may then
    /// be applied after a later one.
    pub fn repeat_without_fence(mut self, allowed: bool) -> Self {
        self.settings.repeat_without_fence = allowed;
        self
    }

    /// After an unknown outcome, repeats only what reads. Default: no, so that last-wins writes
    /// (plain SET, EXPIRE…) are repeated too. What the caller says of a single call by
    /// [`CallOptions::effect`](crate::CallOptions::effect) stands. Costs: a short interruption is
    /// no longer invisible to writes.
    pub fn repeat_only_reads(mut self, only: bool) -> Self {
        self.settings.repeat_only_reads = only;
        self
    }

    /// The largest reply that is accepted; see [`Limits`] for each default and what it costs in
    /// memory. A call whose reply is larger fails at once by [`ErrorKind::ReplyTooLarge`], is not
    /// made again, and ends its connection, because the rest of the stream cannot be followed. So
    /// does a message that a [`PubSub`](crate::PubSub) gets: it is not heard, and the cause of
    /// `Lost` names the limit. In a cluster a subscriber asks for CLUSTER INFO, of about 1 KiB.
    pub fn reply_limits(mut self, limits: Limits) -> Self {
        self.settings.reply_limits = limits;
        self
    }

    /// The seed of all jitter, for tests that must repeat. Default: random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = seed;
        self
    }

    /// Starts the client and returns at once, whether Redis is up or not.
    ///
    /// It lives in the tokio runtime in which this is called. Calls may be made in others, and on
    /// other executors; once its runtime has ended, it goes on in that of the next call.
    ///
    /// # Errors
    /// A setting cannot work, or there is no tokio runtime, or one without timers or IO.
    pub fn build(self) -> Result<Client, ConfigError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        check_drivers(&runtime)?;
        if matches!(self.settings.target.address, Address::Cluster(_)) {
            return self.build_cluster();
        }
        let network = |shared: &Shared| {
            let discovery = shared.discovery.clone();
            Arc::new(Network::new(Arc::clone(&shared.settings), discovery)) as _
        };
        let client = self.build_over(network)?;
        Ok(client.watched())
    }

    /// Builds the client over sockets that come from elsewhere.
    pub(crate) fn build_over(
        self,
        transport: impl FnOnce(&Shared) -> Arc<dyn Transport>,
    ) -> Result<Client, ConfigError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        let settings = self.settings;
        settings.validate()?;
        #[cfg(feature = "tls")]
        let settings = settings.with_tls_prepared()?;
        let shared = Arc::new(Shared::new(settings, clock::now())?);
        let transport = transport(&shared);
        let connector = Connector::new(Arc::clone(&shared.settings), self.provider, transport);
        Ok(Client::start(shared, Arc::new(connector), runtime, None))
    }

    fn build_cluster(self) -> Result<Client, ConfigError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        let settings = self.settings;
        settings.validate()?;
        #[cfg(feature = "tls")]
        let settings = settings.with_tls_prepared()?;
        let seeds = match &settings.target.address {
            Address::Cluster(target) => target.seeds.clone(),
            _ => Vec::new(),
        };
        let shared = Arc::new(Shared::new(settings, clock::now())?);
        let roaming = Arc::new(Roaming::new(Arc::clone(&shared.settings), None));
        let transport = Arc::clone(&roaming) as _;
        let settings = Arc::clone(&shared.settings);
        let connector = Connector::new(settings, self.provider.clone(), transport);
        let connector = Arc::new(connector);
        let cluster = Cluster::new(
            Arc::clone(&shared),
            Arc::clone(&connector),
            self.provider,
            seeds,
        );
        let cluster = Arc::new(cluster);
        roaming.belongs_to(&cluster);
        Ok(Client::start(shared, connector, runtime, Some(cluster)))
    }

    /// Starts the client and waits for its first connection, up to the deadline of a call.
    ///
    /// # Errors
    /// A setting cannot work, or no connection came about; why is in the message.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.build().map_err(|error| {
            Error::not_sent(ErrorKind::Connect {
                cause: error.to_string().into(),
            })
        })?;
        client.first_connection(client.default_deadline()).await?;
        Ok(client)
    }
}
