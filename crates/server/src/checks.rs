//! Health, put together from what every part of the service knows already.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::VERSION;
use crate::backend::Backend;
use crate::certificates::Certificates;
use crate::health::{self, Check, Health, Registry};
use crate::life::Life;
use crate::observe::Observations;

/// Names of the checks of the service itself; others are an embedding program's.
const OWN_CHECKS: &[&str] = &[
    "reads",
    "redis",
    "sentinels",
    "shards",
    "database",
    "breaker",
    "outbox",
    "statements",
    "cpu",
    "memory",
    "certificate",
];

/// Everything that health is judged by.
pub(crate) struct Checks {
    pub(crate) registry: Registry,
    pub(crate) backend: Arc<Backend>,
    pub(crate) certificates: Option<Arc<Certificates>>,
    pub(crate) observations: Arc<Observations>,
    pub(crate) life: Arc<Life>,
}

impl Checks {
    /// The health of the service, from what is known already.
    pub(crate) fn health(&self) -> Health {
        let mut checks: BTreeMap<String, Check> = self.registry.results();
        let mut add = |name: &str, check: Check| checks.insert(name.to_owned(), check);
        for (name, check) in self.backend.checks() {
            add(name, check);
        }
        for (name, check) in self.observations.vitals.checks() {
            add(name, check);
        }
        add("reads", self.observations.felt.check());
        if let Some(certificates) = &self.certificates {
            add("certificate", certificates.check());
        }
        Health {
            status: health::judge(&checks, OWN_CHECKS),
            phase: self.life.phase(),
            version: VERSION,
            uptime_s: self.life.uptime().as_secs(),
            checks,
        }
    }
}
