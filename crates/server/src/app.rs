//! One running service: its connections, its queries, what is counted and what is told. Everything a handler needs hangs
//! here, behind one cheap clone, so that an embedding program can have the router without the loop around it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::http::StatusCode;
use metrics::gauge;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::auth::Auth;
use crate::backend::{Backend, BackendError};
use crate::config::Config;
#[cfg(feature = "drill")]
use crate::drills::Drills;
use crate::feed::Feed;
use crate::felt::Felt;
use crate::health::{self, Check, CustomCheck, Health, Phase, Status};
use crate::http::guard::HostRule;
use crate::http::meters::RequestMeters;
use crate::http::proxies::Proxies;
use crate::http::queries;
use crate::limit::Limiter;
use crate::minutes::Minutes;
use crate::outages::{Outage, Outages};
use crate::problem::Problem;
use crate::pulse;
use crate::query::Programs;
use crate::query::once::{self, Records};
use crate::serve::tls::{self, Certificates};
use crate::shutdown::Shutdown;
use crate::tally::Tally;
use crate::telemetry;
use crate::vitals::{self, Vitals};

/// Why a service cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The client, the database or the cache refused its settings.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A key, or the audit log, cannot be used.
    #[error("auth: {0}")]
    Auth(String),
    /// The certificate of the service, or its key, cannot be used.
    #[error("server.tls: {0}")]
    Tls(String),
    /// Something the demo needs could not be made.
    #[error("the demo cannot be set up: {0}")]
    Demo(String),
}

/// A running service. Clones are the same one.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    /// What a reload has changed included.
    in_force: ArcSwap<Config>,
    backend: Backend,
    programs: ArcSwap<Programs>,
    requests: RequestMeters,
    feed: Feed,
    tally: Tally,
    felt: Felt,
    minutes: Minutes,
    outages: Outages,
    vitals: Arc<Vitals>,
    registry: health::Registry,
    phase: AtomicU8,
    shutdown: RwLock<Shutdown>,
    started: Instant,
    in_flight: AtomicUsize,
    places: Arc<Semaphore>,
    subscribers: Arc<Semaphore>,
    host_rule: HostRule,
    proxies: Proxies,
    auth: Option<Arc<Auth>>,
    certificates: Option<Arc<Certificates>>,
    records: Records,
    limiter: Limiter,
    notice: RwLock<Option<String>>,
    #[cfg(feature = "drill")]
    drills: Drills,
    tasks: Mutex<JoinSet<()>>,
    closed: AtomicBool,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("namespace", &self.inner.config.namespace)
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

/// What every check of the service itself is called; others are an embedding program's.
const OWN_CHECKS: &[&str] = &[
    "reads",
    "redis",
    "database",
    "breaker",
    "outbox",
    "statements",
    "cpu",
    "memory",
    "certificate",
];

impl App {
    /// Starts a service as `config` says. Redis need not be there; the database is asked when it is needed.
    ///
    /// Must be called within a tokio runtime. The metrics recorder of the process is installed, if none is.
    ///
    /// # Errors
    /// If a URL or a setting is refused by what it is for.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        telemetry::metrics();
        telemetry::begin_counters(&config);
        let auth = config.auth.as_ref().map(Auth::start).transpose();
        let auth = auth.map_err(StartError::Auth)?;
        let certificates = config
            .server
            .tls
            .as_ref()
            .map(Certificates::start)
            .transpose();
        let certificates = certificates.map_err(StartError::Tls)?.map(Arc::new);
        let backend = Backend::start(&config).await?;
        let app = Self {
            inner: Arc::new(Inner {
                programs: ArcSwap::from_pointee(Programs::compile(&config, &Programs::default())),
                requests: RequestMeters::default(),
                in_force: ArcSwap::from_pointee(config.clone()),
                feed: Feed::new(unix_ms()),
                tally: Tally::default(),
                felt: Felt::default(),
                minutes: Minutes::default(),
                outages: Outages::default(),
                vitals: Arc::default(),
                registry: health::Registry::default(),
                phase: AtomicU8::new(Phase::Starting as u8),
                shutdown: RwLock::default(),
                started: now(),
                in_flight: AtomicUsize::new(0),
                places: Arc::new(Semaphore::new(config.limits.concurrency)),
                subscribers: Arc::new(Semaphore::new(config.limits.subscribers)),
                host_rule: HostRule::new(&config.server),
                proxies: Proxies::new(&config.server),
                auth,
                certificates,
                records: Records::default(),
                limiter: Limiter::new(&config),
                notice: RwLock::default(),
                #[cfg(feature = "drill")]
                drills: Drills::new(config.drill.reports.clone()),
                tasks: Mutex::new(JoinSet::new()),
                closed: AtomicBool::new(false),
                backend,
                config,
            }),
        };
        app.tell("started", serde_json::json!({ "version": VERSION }));
        let mut tasks = app.inner.tasks.lock();
        tasks.spawn(vitals::sample(
            Arc::clone(&app.inner.vitals),
            Duration::from_secs(2),
        ));
        tasks.spawn(pulse::beat(app.clone()));
        tasks.spawn(pulse::relay(app.clone()));
        tasks.spawn(pulse::watch(app.clone()));
        tasks.spawn(pulse::watch_redis(app.clone()));
        tasks.spawn(pulse::watch_writes(app.clone()));
        tasks.spawn(once::sweep(app.clone()));
        if app.certificates().is_some() {
            tasks.spawn(tls::keep(app.clone()));
        }
        if let Some(auth) = app.auth() {
            tasks.spawn(Arc::clone(auth).keep());
        }
        drop(tasks);
        Ok(app)
    }

    /// Whether a service could be started as `config` says, as far as that shows without starting one: certificates and keys are read,
    /// addresses taken apart. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What would be refused at the start.
    pub fn try_out(config: &Config) -> Result<(), StartError> {
        let auth = config.auth.as_ref().map_or(Ok(()), Auth::try_out);
        auth.map_err(StartError::Auth)?;
        Ok(Backend::try_out(config)?)
    }

    /// The configuration that the service was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The client of Redis.
    #[must_use]
    pub fn client(&self) -> &steadfast::Client {
        &self.inner.backend.client
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &steadfast_cache::Cache {
        &self.inner.backend.cache
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &steadfast_cache::Database {
        &self.inner.backend.database
    }

    /// Asks the query `name`, with parameters as they stand in an address (`q=ada&limit=3`), as `GET /v1/queries/{name}` does, and answers what
    /// it answers: JSON as text, since its values may be more exact than those of who reads them. No limit of callers holds here, and nobody is asked
    /// who it is.
    ///
    /// # Errors
    /// The problem that a caller would be told.
    pub async fn ask(&self, name: &str, parameters: &str) -> Result<String, Problem> {
        let read = queries::ask(self, name, parameters).await?;
        Ok(String::from_utf8_lossy(&queries::body(name, &read)).into_owned())
    }

    /// Registers a check of the embedding program: asked every five seconds, shown by `/health` under `name`. If it is unhealthy, the
    /// service is.
    pub fn register_check(&self, name: &str, check: CustomCheck) {
        self.inner.registry.register(name, check);
    }

    /// How the service is, from what is known already.
    #[must_use]
    pub fn health(&self) -> Health {
        let mut checks: BTreeMap<String, Check> = self.inner.registry.results();
        for (name, check) in self.inner.backend.checks() {
            checks.insert(name.to_owned(), check);
        }
        for (name, check) in self.inner.vitals.checks() {
            checks.insert(name.to_owned(), check);
        }
        checks.insert("reads".to_owned(), self.inner.felt.check());
        if let Some(certificates) = self.certificates() {
            checks.insert("certificate".to_owned(), certificates.check());
        }
        Health {
            status: health::judge(&checks, OWN_CHECKS),
            phase: self.phase(),
            version: VERSION,
            uptime_s: self.uptime().as_secs(),
            checks,
        }
    }

    /// Whether callers should be sent here; cheaper than [`health`](Self::health).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Serving && self.health().status != Status::Unhealthy
    }

    /// Everything known, for `/v1/status` and `steadfast status`.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let inner = &self.inner;
        let programs = inner.programs.load();
        let counts = inner.tally.counts();
        let [queries, statements] = programs.figures().map(|all| {
            let each = all.into_iter();
            each.map(|(name, figures)| figures.json(name))
                .collect::<Vec<_>>()
        });
        serde_json::json!({
            "service": {
                "version": VERSION,
                "phase": self.phase(),
                "uptime_ms": millis(self.uptime()),
                "namespace": inner.config.namespace,
                "in_flight": self.in_flight(),
                "subscribers": self.subscriber_count(),
                "notice": *inner.notice.read(),
                "queries": programs.query_names(),
                "statements": programs.statement_names(),
                "drills": inner.config.drill.enabled,
            },
            "health": self.health(),
            "reads": counts,
            "rates": counts.rates(),
            "queries": queries,
            "statements": statements,
            "outages": self.outages_now(),
            "redis": inner.backend.redis_status(),
            "cache": inner.backend.cache_status(),
            "system": {
                "cpu_percent": inner.vitals.cpu_percent(),
                "memory_percent": inner.vitals.memory_percent(),
                "resident_bytes": inner.vitals.resident_bytes(),
            },
        })
    }

    /// Stops what runs in the background and closes cache, client and database. Whatever is asked afterwards fails.
    pub async fn close(&self) {
        if self.inner.closed.swap(true, Relaxed) {
            return;
        }
        #[cfg(feature = "drill")]
        self.inner.drills.close().await;
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock());
        tasks.shutdown().await;
        self.inner.backend.close().await;
    }

    /// Says something that everyone who looks at the page should read.
    #[cfg(feature = "drill")]
    pub(crate) fn set_notice(&self, notice: Option<String>) {
        *self.inner.notice.write() = notice;
    }

    /// Puts what a reload has read in the place of what was.
    pub(crate) fn put_in_force(&self, programs: Programs, config: Config) {
        self.inner.programs.store(Arc::new(programs));
        self.inner.in_force.store(Arc::new(config));
    }

    /// The configuration in force: that of the start, with what a reload has changed.
    pub(crate) fn in_force(&self) -> Arc<Config> {
        self.inner.in_force.load_full()
    }

    /// Says that requests are answered from now on, until `shutdown` begins: `/health/ready` says 200. [`serve`](crate::serve) does it; a
    /// program that serves the [`router`](crate::router) in a loop of its own must.
    pub fn serving(&self, shutdown: &Shutdown) {
        *self.inner.shutdown.write() = shutdown.clone();
        self.inner.phase.store(Phase::Serving as u8, Relaxed);
        self.tell("serving", serde_json::json!({}));
    }

    /// Says that the end is near: `/health/ready` says 503, and answers carry `Connection: close`. As [`serving`](Self::serving).
    pub fn draining(&self) {
        self.inner.phase.store(Phase::Draining as u8, Relaxed);
        self.tell("draining", serde_json::json!({}));
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.phase() == Phase::Draining
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::from_number(self.inner.phase.load(Relaxed))
    }

    pub(crate) fn shutdown(&self) -> Shutdown {
        self.inner.shutdown.read().clone()
    }

    pub(crate) fn uptime(&self) -> Duration {
        now().saturating_duration_since(self.inner.started)
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.inner.backend
    }

    pub(crate) fn programs(&self) -> arc_swap::Guard<Arc<Programs>> {
        self.inner.programs.load()
    }

    pub(crate) fn feed(&self) -> &Feed {
        &self.inner.feed
    }

    pub(crate) fn felt(&self) -> &Felt {
        &self.inner.felt
    }

    pub(crate) fn minutes(&self) -> &Minutes {
        &self.inner.minutes
    }

    /// The last outages, with what has been felt of them so far.
    pub(crate) fn outages_now(&self) -> Vec<Outage> {
        self.inner.outages.list(self.inner.tally.counts())
    }

    pub(crate) fn outages(&self) -> &Outages {
        &self.inner.outages
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.inner.tally
    }

    pub(crate) fn vitals(&self) -> &Vitals {
        &self.inner.vitals
    }

    pub(crate) fn registry(&self) -> &health::Registry {
        &self.inner.registry
    }

    #[cfg(feature = "drill")]
    pub(crate) fn drills(&self) -> &Drills {
        &self.inner.drills
    }

    pub(crate) fn places(&self) -> &Arc<Semaphore> {
        &self.inner.places
    }

    pub(crate) fn subscribers(&self) -> &Arc<Semaphore> {
        &self.inner.subscribers
    }

    pub(crate) fn subscriber_count(&self) -> usize {
        self.inner.config.limits.subscribers - self.inner.subscribers.available_permits()
    }

    pub(crate) fn host_rule(&self) -> &HostRule {
        &self.inner.host_rule
    }

    pub(crate) fn proxies(&self) -> &Proxies {
        &self.inner.proxies
    }

    pub(crate) fn records(&self) -> &Records {
        &self.inner.records
    }

    pub(crate) fn limiter(&self) -> &Limiter {
        &self.inner.limiter
    }

    pub(crate) fn auth(&self) -> Option<&Arc<Auth>> {
        self.inner.auth.as_ref()
    }

    /// The certificates of the service, where it speaks TLS.
    pub(crate) fn certificates(&self) -> Option<&Arc<Certificates>> {
        self.inner.certificates.as_ref()
    }

    /// Whether browsers are told to come by TLS only: not on loopback, where they would take it to heart for every other port.
    pub(crate) fn tells_https(&self) -> bool {
        self.inner.certificates.is_some() && !self.config().server.listen.ip().is_loopback()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.inner.in_flight.load(Relaxed)
    }

    /// Counts a request until what is returned is dropped.
    pub(crate) fn enter(&self) -> InFlight {
        self.inner.in_flight.fetch_add(1, Relaxed);
        InFlight { app: self.clone() }
    }

    pub(crate) fn observe_request(
        &self,
        method: &'static str,
        route: &str,
        status: StatusCode,
        took: Duration,
    ) {
        self.inner.requests.took(method, route, status, took);
    }

    /// An event of the service itself, for pages and the history.
    pub(crate) fn tell(&self, event: &str, details: serde_json::Value) {
        #[derive(Serialize)]
        struct Told<'a> {
            at_ms: u64,
            event: &'a str,
            #[serde(flatten)]
            details: serde_json::Value,
        }
        let at_ms = unix_ms();
        self.inner.feed.event(
            "service",
            &Told {
                at_ms,
                event,
                details,
            },
        );
    }

    /// Sets the gauges that are read rather than counted, just before they are rendered.
    pub(crate) fn set_gauges(&self) {
        gauge!("http_server_active_requests").set(self.in_flight() as f64);
        gauge!("steadfast_event_subscribers").set(self.subscriber_count() as f64);
        gauge!("steadfast_ready").set(if self.is_ready() { 1.0 } else { 0.0 });
        for (name, check) in self.health().checks {
            gauge!("steadfast_health", "check" => name).set(check.status.as_number());
        }
        let fails = f64::from(u8::from(self.inner.felt.fails()));
        gauge!("steadfast_reads_failing").set(fails);
        let vitals = &self.inner.vitals;
        gauge!("system_cpu_utilization_ratio").set(vitals.cpu_percent() / 100.0);
        gauge!("system_memory_utilization_ratio").set(vitals.memory_percent() / 100.0);
        gauge!("process_memory_usage_bytes").set(vitals.resident_bytes() as f64);
        gauge!("process_uptime_seconds").set(self.uptime().as_secs_f64());
        if let Some(certificates) = self.certificates() {
            certificates.set_gauges();
        }
        self.inner.backend.set_gauges();
    }
}

/// A request that is under way.
pub(crate) struct InFlight {
    app: App,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.app.inner.in_flight.fetch_sub(1, Relaxed);
    }
}

/// The version of the service.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Milliseconds since 1970, for people and other programs.
#[expect(
    clippy::disallowed_methods,
    reason = "events leave the process with a calendar date"
)]
pub(crate) fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, millis)
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
