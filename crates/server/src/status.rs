//! Everything known of the service at one moment: as `/v1/status` shows it, and as the gauges of
//! `/metrics` show it.

use std::sync::Arc;

use metrics::gauge;
use parking_lot::RwLock;
use serde::Serialize;

use crate::VERSION;
use crate::active_config::ActiveConfig;
use crate::backend::RedisStatus;
use crate::checks::Checks;
use crate::clock::millis;
use crate::health::{Health, Phase};
use crate::nodes::Nodes;
use crate::observe::figures::NamedFigures;
use crate::observe::outages::Outage;
use crate::observe::tally::{Rates, ReadCounts};

/// The answer of `/v1/status`, field by field; the page reads the same.
#[derive(Debug, Serialize)]
pub struct ServiceStatus {
    service: ServiceFacts,
    health: Health,
    reads: ReadCounts,
    rates: Rates,
    queries: Vec<NamedFigures>,
    statements: Vec<NamedFigures>,
    outages: Vec<Outage>,
    redis: RedisStatus,
    nodes: Nodes,
    cache: steadfast_cache::CacheStatus,
    system: SystemFacts,
}

/// The part about the service itself.
#[derive(Debug, Serialize)]
struct ServiceFacts {
    version: &'static str,
    phase: Phase,
    uptime_ms: u64,
    namespace: String,
    in_flight: usize,
    subscribers: usize,
    /// Something that everyone who looks at the page should read.
    notice: Option<String>,
    queries: Vec<String>,
    statements: Vec<String>,
    /// Whether drills may be started over HTTP.
    drills: bool,
}

/// The part about the machine.
#[derive(Debug, Serialize)]
struct SystemFacts {
    /// Absent while it is not known.
    cpu_percent: Option<f64>,
    memory_percent: Option<f64>,
    resident_bytes: u64,
}

/// Puts the status together when it is asked for.
pub(crate) struct Overview {
    pub(crate) checks: Arc<Checks>,
    pub(crate) in_force: Arc<ActiveConfig>,
    pub(crate) notice: RwLock<Option<String>>,
}

impl Overview {
    pub(crate) fn status(&self) -> ServiceStatus {
        let Checks {
            backend,
            observations,
            life,
            ..
        } = &*self.checks;
        let programs = self.in_force.programs();
        let config = self.in_force.started();
        let counts = observations.tally.counts();
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        let [queries, statements] = programs.figures().map(|all| {
            let each = all.into_iter();
            each.map(|(name, figures)| figures.named(name)).collect()
        });
        ServiceStatus {
            service: ServiceFacts {
                version: VERSION,
                phase: life.phase(),
                uptime_ms: millis(life.uptime()),
                namespace: config.namespace.clone(),
                in_flight: life.in_flight(),
                subscribers: life.stream_count(),
                notice: self.notice.read().clone(),
                queries: owned(programs.query_names()),
                statements: owned(programs.statement_names()),
                drills: config.drill.enabled,
            },
            health: self.checks.health(),
            reads: counts,
            rates: counts.rates(),
            queries,
            statements,
            outages: observations.outages_now(),
            redis: backend.redis_status(),
            nodes: backend.nodes(),
            cache: backend.cache.status(),
            system: SystemFacts {
                cpu_percent: observations.vitals.cpu_percent(),
                memory_percent: observations.vitals.memory_percent(),
                resident_bytes: observations.vitals.resident_bytes(),
            },
        }
    }

    /// Sets the gauges that are read rather than counted, just before they are rendered.
    pub(crate) fn set_gauges(&self) {
        let Checks {
            backend,
            observations,
            life,
            certificates,
            ..
        } = &*self.checks;
        let health = self.checks.health();
        gauge!("http_server_active_requests").set(life.in_flight() as f64);
        gauge!("steadfast_event_subscribers").set(life.stream_count() as f64);
        gauge!("steadfast_ready").set(if health.is_ready() { 1.0 } else { 0.0 });
        for (name, check) in health.checks {
            gauge!("steadfast_health", "check" => name).set(check.status.as_number());
        }
        let fails = f64::from(u8::from(observations.felt.fails()));
        gauge!("steadfast_reads_failing").set(fails);
        let vitals = &observations.vitals;
        // What is not known is no number: 0 would be a perfect one.
        let ratio = |percent: Option<f64>| percent.map_or(f64::NAN, |percent| percent / 100.0);
        gauge!("system_cpu_utilization_ratio").set(ratio(vitals.cpu_percent()));
        gauge!("system_memory_utilization_ratio").set(ratio(vitals.memory_percent()));
        gauge!("process_memory_usage_bytes").set(vitals.resident_bytes() as f64);
        gauge!("process_uptime_seconds").set(life.uptime().as_secs_f64());
        if let Some(certificates) = certificates {
            certificates.set_gauges();
        }
        backend.set_gauges();
    }
}
