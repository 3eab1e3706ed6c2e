//! Every number that shapes a client, refused once, at the door.

use std::sync::Arc;
use std::time::Duration;

use steadfast_core::policy::{Backoff, BreakerConfig, BudgetConfig, Bulkhead, RetryPolicy};
use steadfast_core::resp::Limits;

use crate::credentials::CredentialsProvider;
use crate::defaults;
use crate::error::ConfigError;
use crate::membership::Membership;
use crate::options::ReadFrom;
use crate::resolve::{Names, SystemResolver};
use crate::sentinel::Translation;
use crate::target::{Address, Role, Target};
#[cfg(feature = "tls")]
use crate::tls::Tls;
use crate::wire::queue::TotalBytes;

/// The way in which TLS is spoken to sentinels.
#[cfg(feature = "tls")]
#[derive(Clone, Debug, Default)]
pub(crate) enum SentinelTls {
    /// TLS as to the servers that they name.
    #[default]
    AsData,
    Own(Tls),
    None,
}

/// All settings of a client.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) target: Target,
    pub(crate) name: Option<String>,
    pub(crate) role: Role,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
    pub(crate) names: Arc<Names>,
    pub(crate) deadline: Duration,
    pub(crate) response_idle_timeout: Duration,
    pub(crate) unresponsive_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) budget: BudgetConfig,
    pub(crate) breaker: BreakerConfig,
    pub(crate) reconnect: Backoff,
    pub(crate) reconnect_grace: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) buffered_bytes: usize,
    /// The bytes of all nodes of a cluster together.
    pub(crate) total_bytes: Option<Arc<TotalBytes>>,
    pub(crate) blocking_connections: usize,
    pub(crate) max_age: Option<Duration>,
    pub(crate) watchdog_timeout: Duration,
    pub(crate) history: usize,
    /// The age that a majority's word may have for writes; `None`: any.
    pub(crate) primary_proof: Option<Duration>,
    pub(crate) translation: Translation,
    pub(crate) read_from: ReadFrom,
    /// The age that the data of a replica may have which is read from.
    pub(crate) max_lag: Duration,
    /// The identity that it must prove, of a cluster's node.
    pub(crate) member: Option<Arc<Membership>>,
    /// The time that calls wait for the next connection at the start of an outage, if that is
    /// longer than `reconnect_grace`.
    pub(crate) wait_for_primary: Duration,
    #[cfg(feature = "tls")]
    pub(crate) sentinel_tls: SentinelTls,
    /// Asked for user name and password at each connection to a sentinel, if there is one.
    pub(crate) sentinel_provider: Option<Arc<dyn CredentialsProvider>>,
    pub(crate) repeat_without_fence: bool,
    pub(crate) repeat_only_reads: bool,
    pub(crate) reply_limits: Limits,
    pub(crate) seed: u64,
}

/// Health that must last before the allowance for short interruptions is whole again.
pub(crate) const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// The most connections for commands that block: more than a server takes from one address.
const MOST_BLOCKING: usize = 1 << 16;

/// The least age at which connections may be replaced: with less the client would do nothing else.
const LEAST_AGE: Duration = Duration::from_millis(100);

impl Settings {
    /// Returns the least deadline with which a call tells of the server when it passes: one with
    /// less has run out of its own time.
    pub(crate) fn patience(&self) -> Duration {
        self.deadline.min(self.response_idle_timeout)
    }

    pub(crate) fn new(target: Target) -> Self {
        Self {
            #[cfg(feature = "tls")]
            tls: target.tls.then(Tls::new),
            target,
            name: None,
            role: Role::Primary,
            names: Arc::new(Names::new(SystemResolver::default())),
            deadline: defaults::DEADLINE,
            response_idle_timeout: defaults::RESPONSE_IDLE_TIMEOUT,
            unresponsive_timeout: defaults::UNRESPONSIVE_TIMEOUT,
            connect_timeout: defaults::CONNECT_TIMEOUT,
            retry: RetryPolicy::default(),
            budget: BudgetConfig::default(),
            breaker: BreakerConfig::default(),
            reconnect: Backoff::full_jitter(defaults::RECONNECT_FIRST, defaults::RECONNECT_CAP),
            reconnect_grace: defaults::RECONNECT_GRACE,
            heartbeat: defaults::HEARTBEAT,
            connections: defaults::CONNECTIONS,
            in_flight: defaults::IN_FLIGHT,
            buffered_bytes: 64 << 20,
            total_bytes: None,
            blocking_connections: 4,
            max_age: None,
            watchdog_timeout: Duration::from_secs(30),
            history: defaults::HISTORY,
            primary_proof: None,
            translation: Translation::default(),
            read_from: ReadFrom::Primary,
            max_lag: defaults::MAX_LAG,
            member: None,
            wait_for_primary: Duration::ZERO,
            #[cfg(feature = "tls")]
            sentinel_tls: SentinelTls::AsData,
            sentinel_provider: None,
            repeat_without_fence: false,
            repeat_only_reads: false,
            reply_limits: Limits::default(),
            seed: random_seed(),
        }
    }

    /// Returns the bounds of one connection.
    pub(crate) fn bulkhead(&self) -> Bulkhead {
        Bulkhead::new(self.in_flight, self.buffered_bytes)
    }

    #[cfg(feature = "tls")]
    pub(crate) fn with_tls_prepared(mut self) -> Result<Self, ConfigError> {
        self.tls.as_mut().map(Tls::prepare).transpose()?;
        if let SentinelTls::Own(tls) = &mut self.sentinel_tls {
            tls.prepare()?;
        }
        Ok(self)
    }

    /// Returns how TLS is spoken to sentinels, if it is.
    #[cfg(feature = "tls")]
    pub(crate) fn tls_to_sentinels(&self) -> Option<&Tls> {
        match &self.sentinel_tls {
            SentinelTls::AsData => self.tls.as_ref(),
            SentinelTls::Own(tls) => Some(tls),
            SentinelTls::None => None,
        }
    }

    /// Returns how often a majority of sentinels is to confirm the primary: often enough for the
    /// proof that writes need.
    pub(crate) fn confirm_every(&self, usual: Duration) -> Duration {
        match self.primary_proof {
            Some(within) => (within / 3).clamp(Duration::from_millis(100), usual),
            None => usual,
        }
    }

    /// Refuses what cannot work, naming the setting.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let times = [
            ("deadline", self.deadline),
            ("response_idle_timeout", self.response_idle_timeout),
            ("unresponsive_timeout", self.unresponsive_timeout),
            ("connect_timeout", self.connect_timeout),
            ("heartbeat", self.heartbeat),
            ("watchdog_timeout", self.watchdog_timeout),
        ];
        for (setting, value) in times {
            if value.is_zero() || value > Duration::from_secs(86_400) {
                return refuse(setting, "must be more than nothing and at most a day");
            }
        }
        if self.reconnect_grace > Duration::from_secs(86_400) {
            return refuse("reconnect_grace", "must be at most a day");
        }
        if self.wait_for_primary > Duration::from_secs(86_400) {
            return refuse("wait_for_primary", "must be at most a day");
        }
        if !self.wait_for_primary.is_zero() && self.wait_for_primary < self.reconnect_grace {
            return refuse(
                "wait_for_primary",
                "is shorter than reconnect_grace, so it would change nothing",
            );
        }
        let in_cluster = matches!(self.target.address, Address::Cluster(_));
        if in_cluster && self.role != Role::Primary {
            return refuse("role", "a cluster serves from its primaries");
        }
        if !in_cluster && self.member.is_none() && self.read_from != ReadFrom::Primary {
            return refuse(
                "read_from",
                "replicas are read from in a cluster only: use a URL of the scheme redis-cluster",
            );
        }
        if self.max_lag < Duration::from_millis(100) || self.max_lag > Duration::from_secs(86_400) {
            return refuse("max_lag", "must be at least 100 ms and at most a day");
        }
        if self.primary_proof.is_some() && !matches!(self.target.address, Address::Sentinel(_)) {
            return refuse(
                "primary_proof",
                "needs sentinels: use a URL of the scheme redis-sentinel",
            );
        }
        if self.max_age.is_some_and(|age| age < LEAST_AGE) {
            return refuse("max_age", "must be at least 100 ms");
        }
        if self
            .primary_proof
            .is_some_and(|within| within < Duration::from_millis(500))
        {
            return refuse("primary_proof", "must be at least 500 ms");
        }
        if self.watchdog_timeout < self.connect_timeout * 5 {
            return refuse(
                "watchdog_timeout",
                "must be at least 5 × connect_timeout, or a slow attempt to connect counts as stuck",
            );
        }
        self.validate_bounds()?;
        for (setting, result) in [
            ("retry", self.retry.validate()),
            ("breaker", self.breaker.validate()),
            ("budget", self.budget.validate()),
            ("reconnect", self.reconnect.validate()),
        ] {
            result.map_err(|error| ConfigError::Setting {
                setting,
                why: error.to_string(),
            })?;
        }
        Ok(())
    }

    fn validate_bounds(&self) -> Result<(), ConfigError> {
        if self.connections == 0 || self.connections > 1024 {
            return refuse("connections", "must be from 1 to 1024");
        }
        if self.blocking_connections > MOST_BLOCKING {
            return refuse("blocking_connections", "must be at most 65536");
        }
        if self.in_flight == 0 {
            return refuse("in_flight", "must be at least 1");
        }
        if self.buffered_bytes < 64 << 10 {
            return refuse("buffered_bytes", "must be at least 64 KiB");
        }
        let limits = &self.reply_limits;
        if limits.depth == 0 || limits.elements == 0 || limits.line_bytes < 1 << 10 {
            return refuse(
                "reply_limits",
                "must admit a depth and an element, and lines of 1 KiB",
            );
        }
        Ok(())
    }
}

fn refuse(setting: &'static str, why: &str) -> Result<(), ConfigError> {
    Err(ConfigError::Setting {
        setting,
        why: why.into(),
    })
}

/// Returns another seed each time. Jitter must differ from process to process, or a fleet
/// reconnects in step.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, ClientBuilder};

    #[test]
    fn settings_that_cannot_work_are_named() {
        let mut settings = Settings::new(Target::parse("redis://h").expect("a good url"));
        assert!(settings.validate().is_ok());
        settings.heartbeat = Duration::ZERO;
        let error = settings.validate().expect_err("it is nothing").to_string();
        assert!(error.contains("heartbeat"), "{error}");
        settings.heartbeat = Duration::from_secs(1);
        settings.reconnect_grace = Duration::MAX;
        let error = settings.validate().expect_err("it never ends").to_string();
        assert!(error.contains("reconnect_grace"), "{error}");
        settings.reconnect_grace = Duration::from_millis(250);
        settings.wait_for_primary = Duration::from_millis(100);
        let error = settings.validate().expect_err("it is of no use");
        let said = error.to_string();
        assert!(said.contains("wait_for_primary"), "{said}");
        settings.wait_for_primary = Duration::from_millis(250);
        assert!(settings.validate().is_ok());
    }

    /// The extremes of one kind of setting: each is refused by its name, or works.
    #[track_caller]
    fn each<T: Copy + std::fmt::Debug>(
        name: &str,
        values: impl IntoIterator<Item = T>,
        set: impl Fn(ClientBuilder, T) -> ClientBuilder,
    ) {
        for value in values {
            let builder = Client::builder("redis://127.0.0.1:1").expect("a good url");
            if let Err(error) = set(builder, value).build() {
                let error = error.to_string();
                assert!(error.contains(name), "{name} of {value:?}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn c11_no_extreme_of_a_setting_panics_in_build() {
        type Set<T> = fn(ClientBuilder, T) -> ClientBuilder;
        let numbers: [(&str, Set<usize>); 5] = [
            ("connections", ClientBuilder::connections),
            ("in_flight", ClientBuilder::in_flight),
            ("buffered_bytes", ClientBuilder::buffered_bytes),
            ("blocking_connections", ClientBuilder::blocking_connections),
            ("history", ClientBuilder::history),
        ];
        for (name, set) in numbers {
            each(name, [0, 1, usize::MAX / 2, usize::MAX], set);
        }
        let times: [(&str, Set<Duration>); 11] = [
            ("deadline", ClientBuilder::deadline),
            (
                "response_idle_timeout",
                ClientBuilder::response_idle_timeout,
            ),
            ("unresponsive_timeout", ClientBuilder::unresponsive_timeout),
            ("connect_timeout", ClientBuilder::connect_timeout),
            ("reconnect_grace", ClientBuilder::reconnect_grace),
            ("heartbeat", ClientBuilder::heartbeat),
            ("max_age", ClientBuilder::max_age),
            ("watchdog_timeout", ClientBuilder::watchdog_timeout),
            ("wait_for_primary", ClientBuilder::wait_for_primary),
            ("primary_proof", ClientBuilder::primary_proof),
            ("max_lag", ClientBuilder::max_lag),
        ];
        for (name, set) in times {
            let least = Duration::from_nanos(1);
            // `watchdog_timeout` is judged by `connect_timeout`, which it is not shorter than.
            let name = match name {
                "connect_timeout" => "_timeout",
                name => name,
            };
            each(name, [Duration::ZERO, least, Duration::MAX], set);
        }
        let most = Client::builder("redis://127.0.0.1:1").expect("a good url");
        let error = most.blocking_connections(usize::MAX).build();
        let error = error.expect_err("a semaphore has not so many").to_string();
        assert!(error.contains("at most 65536"), "{error}");
    }
}
