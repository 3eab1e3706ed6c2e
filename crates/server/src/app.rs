//! A running service: started, asked and closed here. The parts it is made of are handed out one
//! by one, so that the signature of a handler or a task says what it touches.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::extract::FromRef;

use crate::VERSION;
use crate::auth::Auth;
use crate::backend::{Backend, BackendError};
use crate::certificates::Certificates;
use crate::config::Config;
use crate::health::{CustomCheck, Health};
use crate::http::queries;
use crate::problem::Problem;
use crate::shutdown::Shutdown;
use crate::status::ServiceStatus;
use crate::telemetry;

mod parts;

use parts::Parts;

/// The reason why a service cannot start.
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
///
/// ```no_run
/// use steadfast_server::App;
/// use steadfast_server::problem::ProblemKind;
///
/// # async fn example(app: App) {
/// match app.ask("user", "id=7").await {
///     Ok(json) => println!("{json}"),
///     Err(problem) if problem.kind() == ProblemKind::BadParameter => {
///         println!("asked wrongly: {}", problem.detail());
///     }
///     Err(_) => println!("{:?}", app.health().checks), // why it cannot
/// }
/// println!("{:?}", app.cache().status().counts);
/// println!("{:?}", app.client().status().state);
/// # }
/// ```
#[derive(Clone)]
pub struct App {
    inner: Arc<Parts>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("namespace", &self.inner.config.namespace)
            .field("phase", &self.inner.life.phase())
            .finish_non_exhaustive()
    }
}

impl App {
    /// Starts a service as `config` says. Redis need not be there; the database is asked when it is
    /// needed.
    ///
    /// Must be called within a tokio runtime. The metrics recorder of the process is installed, if
    /// none is.
    ///
    /// # Errors
    /// If a URL or a setting is refused by what it is for.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        telemetry::metrics();
        telemetry::begin_counters(&config);
        let auth = config.auth.as_ref().map(Auth::start).transpose();
        let auth = auth.map_err(StartError::Auth)?;
        let certificates = config.server.tls.as_ref().map(Certificates::start);
        let certificates = certificates.transpose().map_err(StartError::Tls)?;
        for note in config.notes() {
            tracing::info!("{note}");
        }
        let backend = Arc::new(Backend::start(&config).await?);
        let parts = Parts::new(config, backend, auth, certificates.map(Arc::new));
        let app = Self {
            inner: Arc::new(parts),
        };
        let told = serde_json::json!({ "version": VERSION });
        app.inner.observations.feed.tell("started", told);
        app.inner.spawn_tasks();
        Ok(app)
    }

    /// Whether a service could be started as `config` says, as far as that shows without starting
    /// one: certificates and keys are read, addresses taken apart. Must be called within a tokio
    /// runtime.
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

    /// Asks the query `name`, with parameters as they stand in an address (`q=ada&limit=3`), as
    /// `GET /v1/queries/{name}` does, and returns the same answer: JSON as text, since its values
    /// may be more exact than those of who reads them. No limit of callers holds here, and nobody
    /// is asked who it is.
    ///
    /// # Errors
    /// The problem that a caller would be told.
    pub async fn ask(&self, name: &str, parameters: &str) -> Result<String, Problem> {
        let (in_force, reads) = (&self.inner.in_force, &self.inner.reads);
        let read = queries::ask(in_force, reads, name, parameters).await?;
        Ok(String::from_utf8_lossy(&queries::body(name, &read)).into_owned())
    }

    /// Registers a check of the embedding program. It is asked every five seconds and shown by
    /// `/health` under `name`. If it is unhealthy, the service is.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    /// use steadfast_server::health::{Check, Status};
    ///
    /// # fn example(app: steadfast_server::App) {
    /// let took = std::time::Duration::from_millis(2);
    /// let printer = move || async move {
    ///     Check::new(Status::Healthy, "has paper").latency(Some(took))
    /// };
    /// app.register_check("printer", Arc::new(move || Box::pin(printer())));
    /// # }
    /// ```
    pub fn register_check(&self, name: &str, check: CustomCheck) {
        self.inner.checks.registry.register(name, check);
    }

    /// Returns the health of the service, from what is known already.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.checks.health()
    }

    /// Whether callers should be sent here.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.health().is_ready()
    }

    /// Returns everything known, as `/v1/status` and `steadfast status` show it.
    #[must_use]
    pub fn status(&self) -> ServiceStatus {
        self.inner.overview.status()
    }

    /// Marks the service as serving: requests are answered from now on, until `shutdown` begins:
    /// `/health/ready` says 200. [`serve`](crate::serve) does it; a program that serves the
    /// [`router`](crate::router) in a loop of its own must.
    pub fn serving(&self, shutdown: &Shutdown) {
        self.inner.life.serving(shutdown);
        self.inner
            .observations
            .feed
            .tell("serving", serde_json::json!({}));
    }

    /// Marks the service as ending: `/health/ready` says 503, and answers carry
    /// `Connection: close`. As [`serving`](Self::serving).
    pub fn draining(&self) {
        self.inner.life.draining();
        self.inner
            .observations
            .feed
            .tell("draining", serde_json::json!({}));
    }

    /// Stops what runs in the background and closes cache, client and database. Whatever is asked
    /// afterwards fails.
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

    /// Hands out one part.
    pub(crate) fn part<T: FromRef<Self>>(&self) -> T {
        T::from_ref(self)
    }

    /// The certificates of the service, where it speaks TLS.
    pub(crate) fn certificates(&self) -> Option<Arc<Certificates>> {
        self.inner.checks.certificates.clone()
    }
}
