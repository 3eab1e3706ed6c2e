//! The parts that a service is made of, and how they are put together.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::extract::FromRef;
use parking_lot::{Mutex, RwLock};
use tokio::task::JoinSet;

use super::App;
use crate::active_config::ActiveConfig;
use crate::auth::Auth;
use crate::backend::Backend;
use crate::background::Background;
use crate::certificates::Certificates;
use crate::checks::Checks;
use crate::clock::unix_ms;
use crate::config::Config;
#[cfg(feature = "drill")]
use crate::drills::Drills;
use crate::health;
use crate::http::middleware::Middleware;
use crate::life::Life;
use crate::observe::{Observations, vitals};
use crate::query::once::Records;
use crate::query::read::Reads;
use crate::query::write::Writes;
use crate::reload::Reload;
use crate::status::Overview;
use crate::tasks::keep;

/// The parts of one service.
pub(super) struct Parts {
    pub(super) config: Arc<Config>,
    pub(super) backend: Arc<Backend>,
    pub(super) life: Arc<Life>,
    pub(super) observations: Arc<Observations>,
    pub(super) checks: Arc<Checks>,
    pub(super) overview: Arc<Overview>,
    pub(super) in_force: Arc<ActiveConfig>,
    pub(super) admission: Arc<Middleware>,
    pub(super) reads: Arc<Reads>,
    pub(super) writes: Arc<Writes>,
    pub(super) reload: Arc<Reload>,
    #[cfg(feature = "drill")]
    pub(super) drills: Arc<Drills>,
    /// Everything that runs in the background.
    pub(super) tasks: Mutex<JoinSet<()>>,
    pub(super) closed: AtomicBool,
}

impl Parts {
    pub(super) fn new(
        config: Config,
        backend: Arc<Backend>,
        auth: Option<Arc<Auth>>,
        certificates: Option<Arc<Certificates>>,
    ) -> Self {
        let config = Arc::new(config);
        let most_bytes = config.limits.result.as_usize();
        let observations = Arc::new(Observations::new(unix_ms()));
        let life = Arc::new(Life::new(config.limits.subscribers));
        let in_force = Arc::new(ActiveConfig::new(Arc::clone(&config)));
        let speaks_tls = certificates.is_some();
        let checks = Arc::new(Checks {
            registry: health::Registry::default(),
            backend: Arc::clone(&backend),
            certificates,
            observations: Arc::clone(&observations),
            life: Arc::clone(&life),
        });
        let redis = backend.client.clone();
        Self {
            admission: Arc::new(Middleware::new(
                &config,
                redis,
                Arc::clone(&life),
                auth,
                speaks_tls,
            )),
            reads: Arc::new(Reads {
                cache: backend.cache.clone(),
                database: backend.database.clone(),
                observations: Arc::clone(&observations),
                most_bytes,
            }),
            writes: Arc::new(Writes {
                backend: Arc::clone(&backend),
                records: Arc::new(Records::default()),
                observations: Arc::clone(&observations),
                most_bytes,
            }),
            reload: Arc::new(Reload {
                in_force: Arc::clone(&in_force),
                cache: backend.cache.clone(),
                observations: Arc::clone(&observations),
            }),
            overview: Arc::new(Overview {
                checks: Arc::clone(&checks),
                in_force: Arc::clone(&in_force),
                notice: RwLock::default(),
            }),
            #[cfg(feature = "drill")]
            drills: Arc::new(Drills::new(config.drill.reports.clone())),
            tasks: Mutex::new(JoinSet::new()),
            closed: AtomicBool::new(false),
            config,
            backend,
            life,
            observations,
            checks,
            in_force,
        }
    }

    pub(super) fn spawn_tasks(&self) {
        let mut tasks = self.tasks.lock();
        let vitals = &self.observations.vitals;
        keep(&mut tasks, "vitals", vitals, |vitals| {
            vitals::sample(vitals, Duration::from_secs(2))
        });
        let pulse = Background {
            checks: Arc::clone(&self.checks),
            in_force: Arc::clone(&self.in_force),
            records: Arc::clone(&self.writes.records),
            handed_on: Arc::default(),
        };
        pulse.spawn(&mut tasks);
        if let Some(certificates) = self.checks.certificates.clone() {
            let both = (certificates, Arc::clone(&self.observations));
            keep(&mut tasks, "certificates", &both, |(certificates, told)| {
                certificates.keep(told)
            });
        }
        if let Some(auth) = &self.admission.auth {
            keep(&mut tasks, "keys", auth, Auth::keep);
        }
    }
}

/// Lets a handler take a part as its `State`.
macro_rules! hands_out {
    ($($field:ident: $part:ty),+ $(,)?) => {$(
        impl FromRef<App> for Arc<$part> {
            fn from_ref(app: &App) -> Self {
                Arc::clone(&app.inner.$field)
            }
        }
    )+};
}

hands_out! {
    config: Config,
    backend: Backend,
    life: Life,
    observations: Observations,
    checks: Checks,
    overview: Overview,
    in_force: ActiveConfig,
    admission: Middleware,
    reads: Reads,
    writes: Writes,
    reload: Reload,
}

#[cfg(feature = "drill")]
hands_out!(drills: Drills);
