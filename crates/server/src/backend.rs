//! The ground that the service stands on: the client of Redis, the database, and the cache over
//! both. Made from the configuration here, and asked here how they are, so that nothing else knows
//! their settings.

use std::time::Duration;

use bytes::Bytes;
use metrics::{counter, gauge};
use parking_lot::RwLock;
use serde::Serialize;
use steadfast::{
    Backoff, BudgetConfig, Client, ClientBuilder, ConnectionState, RetryPolicy, Stop, Tls,
};
use steadfast_cache::{
    Cache, ClassGuard, Database, DatabaseOptions, DatabaseTls, DatabaseTlsMode, GuardOptions, Ttl,
    View,
};

use crate::config::{
    Config, DatabaseTlsConfig, ReadFrom, RedisConfig, RedisTlsConfig, TlsVersion, TtlConfig,
};
use crate::health::{Check, Status};
use crate::nodes::{Expected, NodeCounters, Nodes, state_name};

mod checks;
mod cluster;
mod credentials;
mod sentinel;

use checks::FailedStatement;

/// Values are rows that are JSON already, so that a hit is served without decoding.
pub(crate) type Rows = View<Bytes>;

/// The reason why client, database or cache cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The client of Redis refused a setting.
    #[error("redis: {0}")]
    Redis(#[from] steadfast::ConfigError),
    /// The database's URL was refused.
    #[error(transparent)]
    Database(#[from] steadfast_cache::SourceError),
    /// The cache refused a setting.
    #[error("cache: {0}")]
    Cache(#[from] steadfast_cache::BuildError),
}

pub(crate) struct Backend {
    pub(crate) client: Client,
    pub(crate) database: Database,
    pub(crate) cache: Cache,
    /// The result of the last ping of the database.
    database_check: RwLock<Check>,
    /// The number of loads that had succeeded at the last ping, and the seconds in which none has
    /// while all were taken.
    stuck: RwLock<(u64, u32)>,
    /// The statement that last failed by the fault of the database; nothing once one was answered.
    statements: RwLock<Option<FailedStatement>>,
    /// The last answer of Redis about itself, and the number of reconnects before it.
    redis_said: RwLock<Option<(u64, steadfast::Health)>>,
    health_timeout: Duration,
    /// What the configuration says of the servers of Redis.
    expected: Expected,
    node_counters: NodeCounters,
    outbox_lag_max: u64,
    /// Loads at once.
    places: usize,
}

/// The connection to Redis, as pages and checks show it.
#[derive(Debug, Clone)]
pub(crate) struct RedisView {
    pub(crate) state: &'static str,
    pub(crate) breaker: &'static str,
    pub(crate) rtt: Option<Duration>,
    pub(crate) flaps: bool,
}

/// The connection to Redis, as `/v1/status` has it.
#[derive(Debug, Serialize)]
pub(crate) struct RedisStatus {
    #[serde(flatten)]
    client: steadfast::Status,
    /// The share of the cache's questions that Redis answered, and in time; `None` before the
    /// first.
    success_rate: Option<f64>,
}

impl Backend {
    pub(crate) async fn start(config: &Config) -> Result<Self, BackendError> {
        let client = redis_client(&config.redis)?.build()?;
        let mut options = DatabaseOptions::default();
        options.max_connections = config.database.max_connections;
        options.acquire_timeout = config.database.acquire_timeout;
        // What its words do not tell, the database does: whether a query writes. No more of them
        // load at once.
        let readers = u32::try_from(config.database.guard.concurrency).unwrap_or(u32::MAX);
        options.read_only_connections = Some(readers);
        // Its caller has gone by then, and was told so: this is for what is left behind.
        options.statement_limit = config.limits.request_timeout + Duration::from_secs(1);
        let limits = config.ttl.values().map(|class| class.hard_limit);
        options.query_limit = limits
            .chain([options.query_limit])
            .max()
            .unwrap_or_default();
        options.tls = config.database.tls.as_ref().map(database_tls);
        let database = Database::connect(config.database.url.expose(), options)?;
        let cache = cache(config, database.clone(), client.clone()).await?;
        Ok(Self {
            client,
            database,
            cache,
            outbox_lag_max: crate::clock::millis(config.cache.outbox_lag_max),
            redis_said: RwLock::default(),
            stuck: RwLock::default(),
            statements: RwLock::default(),
            places: config.database.guard.concurrency,
            health_timeout: config.redis.health_timeout,
            expected: expected(&config.redis),
            node_counters: NodeCounters::default(),
            // Not known is not good: what has not answered yet serves nobody.
            database_check: RwLock::new(Check::new(Status::Unhealthy, "not asked yet")),
        })
    }

    /// Whether a service could stand on what `config` says: files are read and addresses taken
    /// apart, and nothing is connected to.
    pub(crate) fn try_out(config: &Config) -> Result<(), BackendError> {
        let _ = redis_client(&config.redis)?;
        Database::connect(config.database.url.expose(), DatabaseOptions::default())?;
        Ok(())
    }

    pub(crate) fn redis(&self) -> RedisView {
        let status = self.client.status();
        RedisView {
            state: state_name(status.state),
            breaker: status.breaker,
            rtt: status.rtt_ms.map(|ms| Duration::from_secs_f64(ms / 1e3)),
            flaps: status.flapping.is_some(),
        }
    }

    pub(crate) fn redis_status(&self) -> RedisStatus {
        // Of what the cache asked of it since the start, so much was answered, and in time. The
        // client's own count is of commands, which are no part of these calls.
        let counts = self.cache.status().counts;
        let (answered, failed) = (counts.redis_answers, counts.redis_errors);
        RedisStatus {
            client: self.client.status(),
            success_rate: (answered + failed > 0)
                .then(|| answered as f64 / (answered + failed) as f64),
        }
    }

    /// Returns the servers behind the name of Redis.
    pub(crate) fn nodes(&self) -> Nodes {
        self.nodes_of(&self.client.status())
    }

    /// The same, of what the client has just told.
    fn nodes_of(&self, client: &steadfast::Status) -> Nodes {
        let redis = self.cache.status().redis;
        let expected = Expected {
            cache_slot: redis.and_then(|redis| redis.slot),
            ..self.expected
        };
        Nodes::of(client, &expected)
    }

    /// Returns for how long the oldest invalidation has waited to be applied; `None` if none waits,
    /// or it is not known.
    pub(crate) fn outbox_lag_ms(&self) -> Option<u64> {
        self.cache.status().outbox_lag_ms
    }

    pub(crate) fn set_gauges(&self) {
        let state = self.client.status();
        for name in ["connecting", "ready", "partial", "down", "closed"] {
            let is = f64::from(u8::from(name == state_name(state.state)));
            gauge!("steadfast_redis_state", "state" => name).set(is);
        }
        for name in ["closed", "half_open", "open"] {
            let is = f64::from(u8::from(name == state.breaker));
            gauge!("steadfast_breaker_state", "state" => name).set(is);
        }
        self.nodes_of(&state).set_gauges();
        if let Some(cluster) = &state.cluster {
            self.node_counters.count(cluster);
        }
        gauge!("steadfast_redis_in_flight").set(state.in_flight as f64);
        let flaps = f64::from(u8::from(state.flapping.is_some()));
        gauge!("steadfast_redis_flapping").set(flaps);
        counter!("steadfast_redis_attempts_total").absolute(state.attempts);
        counter!("steadfast_redis_reconnects_total").absolute(state.reconnects);
        counter!("steadfast_redis_stuck_resets_total").absolute(state.stuck_resets);
        // What is not known is no number: 0 would be a perfect one.
        let seconds = |ms: Option<f64>| ms.map_or(f64::NAN, |ms| ms / 1e3);
        let in_service = state.state == ConnectionState::Ready;
        let rtt_ms = state.rtt_ms.filter(|_| in_service);
        gauge!("steadfast_redis_mean_recovery_seconds").set(seconds(state.mean_recovery_ms));
        gauge!("steadfast_redis_round_trip_seconds").set(seconds(rtt_ms));
        let guard = self.cache.status().guard;
        gauge!("steadfast_database_loads_running").set(guard.running as f64);
        gauge!("steadfast_database_loads_waiting").set(guard.waiting as f64);
    }

    /// Waits until what was just loaded is stored, so that the next process finds it, and no lease
    /// that nobody holds.
    pub(crate) async fn close(&self) {
        self.cache.finish_loads(Duration::from_secs(1)).await;
        let _ = self.client.close(Duration::from_secs(1)).await;
        self.database.close().await;
    }
}

fn expected(config: &RedisConfig) -> Expected {
    let proof = config.sentinel.as_ref().and_then(|watched| watched.proof);
    let cluster = config.cluster.as_ref();
    let max_lag = cluster.map_or(steadfast::defaults::MAX_LAG, |cluster| cluster.max_lag);
    Expected {
        proof_within_ms: proof.map(crate::clock::millis),
        cache_slot: None,
        reads_replicas: cluster.is_some_and(|cluster| cluster.read_from == ReadFrom::Replicas),
        max_lag_ms: crate::clock::millis(max_lag),
    }
}

/// A client as `[redis]` says, with its TLS and its credentials, to be built or connected.
///
/// ```no_run
/// use steadfast_server::{Config, redis_client};
///
/// # async fn example(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
/// let client = redis_client(&config.redis)?.build()?; // another one, of the same server
/// # Ok(()) }
/// ```
///
/// # Errors
/// If the client refuses a setting.
pub fn redis_client(config: &RedisConfig) -> Result<ClientBuilder, steadfast::ConfigError> {
    let breaker = &config.breaker;
    let retry = &config.retry;
    let mut builder = Client::builder(config.url.expose())?;
    if let Some(settings) = &config.tls {
        builder = builder.tls(tls(settings)?);
    }
    if let Some(settings) = &config.sentinel {
        builder = sentinel::apply(builder, settings)?;
    }
    if let Some(settings) = &config.cluster {
        builder = cluster::apply(builder, settings);
    }
    let builder = credentials::provide(builder, config.credentials.as_ref())
        .name("steadfast")
        .deadline(config.deadline)
        .response_idle_timeout(config.response_idle_timeout)
        .unresponsive_timeout(config.unresponsive_timeout)
        .connect_timeout(config.connect_timeout)
        .reconnect(Backoff::full_jitter(
            config.reconnect_first,
            config.reconnect_cap,
        ))
        .reconnect_grace(config.reconnect_grace)
        .heartbeat(config.heartbeat)
        .connections(config.connections)
        .in_flight(config.in_flight)
        .history(config.history)
        .retry(RetryPolicy::new(
            Backoff::full_jitter(retry.first, retry.cap),
            Stop::after_attempts(retry.attempts),
        ))
        .budget(BudgetConfig {
            ratio: retry.budget_ratio,
            per_second: retry.budget_per_second,
            ..BudgetConfig::default()
        })
        .breaker(steadfast::BreakerConfig {
            failure_rate: breaker.failure_rate,
            minimum_calls: breaker.minimum_calls,
            window: breaker.window,
            consecutive_failures: (breaker.consecutive > 0).then_some(breaker.consecutive),
            open_first: breaker.open_first,
            open_cap: breaker.open_cap,
            ..steadfast::BreakerConfig::default()
        });
    Ok(builder)
}

fn tls(config: &RedisTlsConfig) -> Result<Tls, steadfast::ConfigError> {
    let mut tls = Tls::new();
    if let Some(ca) = &config.ca {
        tls = tls.ca_file(ca)?;
    }
    if let (Some(chain), Some(key)) = (&config.certificate, &config.key) {
        tls = tls.client_certificate(chain, key)?;
    }
    if let Some(name) = &config.server_name {
        tls = tls.server_name(name);
    }
    if config.min_version == TlsVersion::V13 {
        tls = tls.only_tls13();
    }
    Ok(tls)
}

fn database_tls(config: &DatabaseTlsConfig) -> DatabaseTls {
    use crate::config::DatabaseTlsMode as Mode;
    DatabaseTls {
        mode: match config.mode {
            Mode::Off => DatabaseTlsMode::Off,
            Mode::Prefer => DatabaseTlsMode::Prefer,
            Mode::VerifyCa => DatabaseTlsMode::VerifyCa,
            Mode::VerifyFull => DatabaseTlsMode::VerifyFull,
        },
        ca: config.ca.clone(),
        client: config.certificate.clone().zip(config.key.clone()),
    }
}

async fn cache(
    config: &Config,
    database: Database,
    client: Client,
) -> Result<Cache, steadfast_cache::BuildError> {
    let settings = &config.cache;
    let mut builder = Cache::builder(database)
        .redis(client)
        .namespace(config.namespace.clone())
        .memory_bytes(settings.memory_bytes.0)
        .value_max(settings.value_max.as_usize())
        .compress_above(settings.compress_above.as_usize())
        .redis_limit(settings.redis_limit)
        .outbox_poll(settings.outbox_poll)
        .outbox_lag_max(settings.outbox_lag_max)
        .guard(guard(config));
    for (name, class) in &config.ttl {
        builder = builder.class(name.as_str(), class.into());
        if let Some(guard) = &class.guard {
            let guard = ClassGuard::new(guard.concurrency, guard.rate);
            builder = builder.class_guard(name.as_str(), guard);
        }
    }
    if !config.ttl.contains_key("default") {
        builder = builder.class("default", Ttl::default());
    }
    builder.build().await
}

fn guard(config: &Config) -> GuardOptions {
    let mut guard = GuardOptions::default();
    guard.concurrency = config.database.guard.concurrency;
    guard.rate = config.database.guard.rate;
    guard
}

impl From<&TtlConfig> for Ttl {
    fn from(class: &TtlConfig) -> Self {
        Self {
            fresh: class.fresh,
            stale: class.stale,
            jitter: class.jitter,
            negative: class.negative,
            early_refresh: class.early_refresh,
            soft_limit: class.soft_limit,
            hard_limit: class.hard_limit,
            retry_after: class.retry_after,
        }
    }
}
