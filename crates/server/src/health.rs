//! A health check that asks Redis hangs with Redis, and takes the service out of rotation for a
//! failure it was built to survive. So nothing is asked here: every answer is put together from
//! what is already known, in microseconds, and only what makes serving impossible makes the service
//! unready.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use serde::Serialize;

/// The state of something that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// As it should be.
    Healthy,
    /// Not as it should be, but the service serves.
    Degraded,
    /// Out of order.
    Unhealthy,
}

impl Status {
    /// Returns the value of the gauge: 1, 0.5 or 0.
    pub(crate) fn as_number(self) -> f64 {
        match self {
            Self::Healthy => 1.0,
            Self::Degraded => 0.5,
            Self::Unhealthy => 0.0,
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// The state.
    pub status: Status,
    /// The time that the checked thing took, in milliseconds, where that means something.
    pub latency_ms: Option<f64>,
    /// The explanation, in a few words, for a person.
    pub message: String,
}

impl Check {
    /// A check with its message.
    #[must_use]
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self {
            status,
            latency_ms: None,
            message: message.into(),
        }
    }

    /// Adds the time that the checked thing took.
    #[must_use]
    pub fn latency(mut self, latency: Option<Duration>) -> Self {
        self.latency_ms = latency.map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3);
        self
    }
}

/// The phase of the service's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
#[non_exhaustive]
pub enum Phase {
    /// Not yet listening.
    Starting = 0,
    /// Serving.
    Serving = 1,
    /// About to end.
    Draining = 2,
}

impl Phase {
    pub(crate) fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Starting,
            1 => Self::Serving,
            _ => Self::Draining,
        }
    }
}

/// The answer of `/health`.
///
/// ```
/// use steadfast_server::health::{Health, Phase, Status};
///
/// fn page(health: &Health) -> String {
///     let ill = health.checks.iter().filter(|(_, check)| check.status > Status::Healthy);
///     let ill: Vec<_> = ill.map(|(name, check)| format!("{name}: {}", check.message)).collect();
///     match health.phase {
///         Phase::Serving if health.is_ready() => format!("serving {ill:?}"),
///         phase => format!("{phase:?} {ill:?}"),
///     }
/// }
/// ```
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The worst of what matters: `unhealthy` only if nothing could be served.
    pub status: Status,
    /// The phase of the service's life.
    pub phase: Phase,
    /// The version of the service.
    pub version: &'static str,
    /// Time since the start, in seconds.
    pub uptime_s: u64,
    /// Each check by name.
    pub checks: BTreeMap<String, Check>,
}

impl Health {
    /// Whether callers should be sent here.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Serving && self.status != Status::Unhealthy
    }

    /// Leaves out the messages, which may hold addresses, for callers who are not known.
    #[must_use]
    pub fn anonymous(mut self) -> Self {
        for check in self.checks.values_mut() {
            check.message = String::new();
        }
        self
    }
}

/// Judges the whole by its parts. Redis, or the database, alone can only degrade it: the other
/// still answers. Without both it is out of order, and so it is if a check of the embedding program
/// says so.
pub(crate) fn judge(checks: &BTreeMap<String, Check>, own: &[&str]) -> Status {
    let status = |name: &str| {
        checks
            .get(name)
            .map_or(Status::Healthy, |check| check.status)
    };
    if status("redis") == Status::Unhealthy && status("database") == Status::Unhealthy {
        return Status::Unhealthy;
    }
    checks
        .iter()
        .filter(|(name, _)| !NOTES.contains(&name.as_str()))
        .map(|(name, check)| {
            if own.contains(&name.as_str()) {
                check.status.min(Status::Degraded)
            } else {
                check.status
            }
        })
        .max()
        .unwrap_or(Status::Healthy)
}

/// Checks of the machine: something to know, but no state of the service. A machine at work is not
/// a service in trouble.
const NOTES: [&str; 2] = ["cpu", "memory"];

/// A check of an embedding program: asked in the background, every five seconds.
pub type CustomCheck = Arc<dyn Fn() -> BoxFuture<'static, Check> + Send + Sync>;

/// Checks registered by an embedding program, with their last results.
#[derive(Default)]
pub(crate) struct Registry {
    checks: RwLock<Vec<(String, CustomCheck)>>,
    results: RwLock<BTreeMap<String, Check>>,
}

/// A check that takes longer counts as unhealthy.
const CHECK_LIMIT: Duration = Duration::from_secs(3);

impl Registry {
    pub(crate) fn register(&self, name: &str, check: CustomCheck) {
        let pending = Check::new(Status::Degraded, "not checked yet");
        self.results.write().insert(name.to_owned(), pending);
        self.checks.write().push((name.to_owned(), check));
    }

    /// Asks each check once, all at the same time.
    pub(crate) async fn refresh(&self) {
        let checks: Vec<(String, CustomCheck)> = self.checks.read().clone();
        let asked = checks.into_iter().map(|(name, check)| async move {
            let started = tokio::time::Instant::now();
            // A check that panics ends itself, and not the watch over the others.
            let asking = AssertUnwindSafe(async { check().await }).catch_unwind();
            let mut result = match tokio::time::timeout(CHECK_LIMIT, asking).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Check::new(Status::Unhealthy, "the check panicked"),
                Err(_) => Check::new(Status::Unhealthy, "the check did not end within 3 s"),
            };
            if result.latency_ms.is_none() {
                result = result.latency(Some(started.elapsed()));
            }
            (name, result)
        });
        for (name, result) in futures_util::future::join_all(asked).await {
            self.results.write().insert(name, result);
        }
    }

    pub(crate) fn results(&self) -> BTreeMap<String, Check> {
        self.results.read().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(pairs: &[(&str, Status)]) -> BTreeMap<String, Check> {
        pairs
            .iter()
            .map(|(name, status)| ((*name).to_owned(), Check::new(*status, "")))
            .collect()
    }

    #[tokio::test]
    async fn s3_a_check_that_panics_is_unhealthy_and_the_others_are_asked_on() {
        let registry = Registry::default();
        registry.register("broken", Arc::new(|| panic!("one night")));
        registry.register(
            "well",
            Arc::new(|| Box::pin(async { Check::new(Status::Healthy, "") })),
        );
        registry.refresh().await;
        let results = registry.results();
        assert_eq!(results["broken"].status, Status::Unhealthy);
        assert_eq!(results["broken"].message, "the check panicked");
        assert_eq!(results["well"].status, Status::Healthy);
    }

    #[test]
    fn s3_one_source_less_degrades_and_none_is_unhealthy() {
        use Status::{Degraded, Healthy, Unhealthy};
        let own = ["redis", "database", "reads", "cpu"];
        for (redis, database, whole) in [
            (Healthy, Healthy, Healthy),
            (Unhealthy, Healthy, Degraded),
            (Healthy, Unhealthy, Degraded),
            (Unhealthy, Unhealthy, Unhealthy),
        ] {
            let checks = checks(&[("redis", redis), ("database", database), ("cpu", Healthy)]);
            assert_eq!(judge(&checks, &own), whole);
        }
        assert_eq!(judge(&checks(&[("cpu", Unhealthy)]), &own), Healthy);
        assert_eq!(judge(&checks(&[("reads", Unhealthy)]), &own), Degraded);
        assert_eq!(judge(&checks(&[("billing", Unhealthy)]), &own), Unhealthy);
    }
}
