//! `[redis]` and what belongs to it: the connection, what is repeated, and when calls are refused.
//! The defaults are the client's own; the contradictions between them are named here.

use std::time::Duration;

use serde::Serialize;
use steadfast::{BudgetConfig, defaults};

use super::cluster::ClusterConfig;
use super::credentials::CredentialsConfig;
use super::secret::{REDIS_SCHEMES, SecretUrl};
use super::section::Section;
use super::sentinel::SentinelConfig;
use super::tls::RedisTlsConfig;
use super::units::{duration, secs, show_duration};

/// Events that are kept at most, of the connections and of the service: `redis.history`, what pages
/// are told and `/v1/history` go no further back.
pub(crate) const HISTORY_MAX: usize = 1024;

/// `[redis]`: the server, and how its client behaves.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RedisConfig {
    /// `redis://`, `rediss://` or `unix://`; `redis-sentinel://HOST,HOST/NAME` where sentinels
    /// watch it; or `redis-cluster://HOST,HOST`, some nodes of a cluster (Redis 7 or later).
    /// Default `redis://127.0.0.1:6379`. It need not answer for the service to start. In a cluster
    /// the cache lies in one slot, on one shard; rate limits are spread over all.
    pub url: SecretUrl,
    /// The longest a call may take with everything it includes; default 1 s.
    #[serde(serialize_with = "duration")]
    pub deadline: Duration,
    /// Silence of a connection, while commands wait, after which a new one is tried; default 500
    /// ms.
    #[serde(serialize_with = "duration")]
    pub response_idle_timeout: Duration,
    /// Silence after which a connection is given up even if no other can be had; default 30 s.
    #[serde(serialize_with = "duration")]
    pub unresponsive_timeout: Duration,
    /// Limit on each phase of connecting (DNS, TCP, TLS, handshake); default 1 s.
    #[serde(serialize_with = "duration")]
    pub connect_timeout: Duration,
    /// First pause between attempts to reconnect; default 20 ms.
    #[serde(serialize_with = "duration")]
    pub reconnect_first: Duration,
    /// Longest pause between attempts to reconnect; default 250 ms. A restarted server is noticed
    /// at most so much later.
    #[serde(serialize_with = "duration")]
    pub reconnect_cap: Duration,
    /// How long calls wait at the start of an outage, in case it is short; default 250 ms. For the
    /// first connection to a node of a cluster they wait for up to `connect_timeout` or half of
    /// `deadline`, unless this is zero.
    #[serde(serialize_with = "duration")]
    pub reconnect_grace: Duration,
    /// How often an idle connection is asked whether it lives; default 1 s.
    #[serde(serialize_with = "duration")]
    pub heartbeat: Duration,
    /// How long Redis may take over the PING by which `/health` tells how it is, sent every 5 s;
    /// default 3 s. Past it the check says degraded. `HEALTH_CHECK_REDIS_TIMEOUT` sets it in
    /// seconds.
    #[serde(serialize_with = "duration")]
    pub health_timeout: Duration,
    /// Connections; default 1. A key always takes the same one.
    pub connections: usize,
    /// Calls under way at once; default 8192. Past it calls are refused.
    pub in_flight: usize,
    /// Events kept for the connection history; default 100, at most 1024.
    pub history: usize,
    /// `[redis.retry]`
    pub retry: RetryConfig,
    /// `[redis.breaker]`
    pub breaker: BreakerConfig,
    /// `[redis.tls]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTlsConfig>,
    /// `[redis.credentials]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsConfig>,
    /// `[redis.sentinel]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<SentinelConfig>,
    /// `[redis.cluster]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterConfig>,
}

impl RedisConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let retry = section.section("retry");
        let breaker = section.section("breaker");
        let tls = section.section("tls");
        let credentials = section.section("credentials");
        let sentinel = section.section("sentinel");
        let cluster = section.section("cluster");
        let positive = |key: &str, default| section.positive(key).unwrap_or(default);
        let count = |key: &str, most, default| section.count(key, 1, most).unwrap_or(default);
        let config = Self {
            url: SecretUrl::read(section, "url", "redis://127.0.0.1:6379", REDIS_SCHEMES),
            deadline: positive("deadline", defaults::DEADLINE),
            response_idle_timeout: positive(
                "response_idle_timeout",
                defaults::RESPONSE_IDLE_TIMEOUT,
            ),
            unresponsive_timeout: positive("unresponsive_timeout", defaults::UNRESPONSIVE_TIMEOUT),
            connect_timeout: positive("connect_timeout", defaults::CONNECT_TIMEOUT),
            reconnect_first: positive("reconnect_first", defaults::RECONNECT_FIRST),
            reconnect_cap: positive("reconnect_cap", defaults::RECONNECT_CAP),
            reconnect_grace: section
                .duration("reconnect_grace")
                .unwrap_or(defaults::RECONNECT_GRACE),
            heartbeat: positive("heartbeat", defaults::HEARTBEAT),
            health_timeout: positive("health_timeout", secs(3)),
            connections: count("connections", 64, defaults::CONNECTIONS),
            in_flight: count("in_flight", 1_000_000, defaults::IN_FLIGHT),
            history: count("history", HISTORY_MAX, defaults::HISTORY),
            retry: RetryConfig::read(&retry),
            breaker: BreakerConfig::read(&breaker),
            tls: tls.is_given().then(|| RedisTlsConfig::read(&tls)),
            credentials: CredentialsConfig::read(&credentials),
            sentinel: SentinelConfig::read(&sentinel),
            cluster: ClusterConfig::read(&cluster),
        };
        if !config.url.is_refused()
            && let Err(error) = steadfast::Client::builder(config.url.expose())
        {
            section.refuse(section.mistake("url", format!("cannot be used: {error}")));
        }
        config.contradictions(section, &retry, &breaker);
        if let Some(watched) = &config.sentinel {
            let times = (config.reconnect_grace, config.deadline);
            watched.contradictions(&sentinel, &config.url, times);
        }
        if config.cluster.is_some() {
            ClusterConfig::contradictions(&cluster, &config.url);
        }
        for section in [retry, breaker, tls, credentials, sentinel, cluster] {
            section.finish();
        }
        config
    }

    /// Whether the URL names nodes of a cluster.
    pub(crate) fn is_cluster(&self) -> bool {
        self.url.scheme().ends_with("-cluster")
    }

    fn contradictions(&self, redis: &Section<'_>, retry: &Section<'_>, breaker: &Section<'_>) {
        if self.url.has_password() && self.credentials.is_some() {
            let message = "holds a password, and `redis.credentials` names another source of it: one of the two must go";
            redis.refuse(redis.mistake("url", message));
        }
        let (first, cap) = (self.reconnect_first, self.reconnect_cap);
        redis.ordered(("reconnect_first", first), ("reconnect_cap", cap));
        retry.ordered(("first", self.retry.first), ("cap", self.retry.cap));
        let (first, cap) = (self.breaker.open_first, self.breaker.open_cap);
        breaker.ordered(("open_first", first), ("open_cap", cap));
        let pauses = self.retry.longest_pauses();
        if pauses >= self.deadline {
            let message = format!(
                "contradicts `redis.deadline`: the pauses between {} attempts may take {}, and a call is over after {}",
                self.retry.attempts,
                show_duration(pauses),
                show_duration(self.deadline),
            );
            let key = if retry.has("attempts") {
                "attempts"
            } else {
                "first"
            };
            let mistake = retry.mistake(key, message);
            retry.refuse(mistake.help("fewer attempts, shorter pauses or a longer deadline"));
        }
        let (overdue, abandoned) = (self.response_idle_timeout, self.unresponsive_timeout);
        redis.ordered(
            ("response_idle_timeout", overdue),
            ("unresponsive_timeout", abandoned),
        );
        redis.ordered(
            ("reconnect_grace", self.reconnect_grace),
            ("deadline", self.deadline),
        );
    }
}

/// `[redis.retry]`: what is repeated and when. Only what is safe to repeat is repeated.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RetryConfig {
    /// Attempts in all; default 3, 1 repeats nothing.
    pub attempts: u32,
    /// Longest first pause, drawn with full jitter; default 10 ms. It doubles with each attempt.
    #[serde(serialize_with = "duration")]
    pub first: Duration,
    /// Longest pause; default 1 s.
    #[serde(serialize_with = "duration")]
    pub cap: Duration,
    /// Repetitions allowed as a share of calls; default 0.1.
    pub budget_ratio: f64,
    /// Repetitions allowed a second besides; default 10.
    pub budget_per_second: f64,
}

impl RetryConfig {
    fn read(section: &Section<'_>) -> Self {
        let attempts = section.integer("attempts", 1, 100);
        let attempts = attempts.and_then(|attempts| u32::try_from(attempts).ok());
        let budget = BudgetConfig::default();
        Self {
            attempts: attempts.unwrap_or(defaults::ATTEMPTS),
            first: section.positive("first").unwrap_or(defaults::FIRST_PAUSE),
            cap: section.positive("cap").unwrap_or(defaults::LONGEST_PAUSE),
            budget_ratio: section
                .number("budget_ratio", 0.0, 10.0)
                .unwrap_or(budget.ratio),
            budget_per_second: section
                .number("budget_per_second", 0.0, 1e6)
                .unwrap_or(budget.per_second),
        }
    }

    fn longest_pauses(&self) -> Duration {
        let mut pause = self.first.min(self.cap);
        let mut sum = Duration::ZERO;
        for _ in 1..self.attempts {
            sum = sum.saturating_add(pause);
            pause = pause.saturating_mul(2).min(self.cap);
        }
        sum
    }
}

/// `[redis.breaker]`: when calls are refused at once because Redis fails.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BreakerConfig {
    /// Share of failures that trips it; default 0.5.
    pub failure_rate: f64,
    /// Calls that must fall into the window before the share is judged; default 20.
    pub minimum_calls: u32,
    /// The window; default 10 s.
    #[serde(serialize_with = "duration")]
    pub window: Duration,
    /// Failures in a row that trip it whatever the share; default 5, 0 turns it off.
    pub consecutive: u32,
    /// First time it stays open; default 100 ms, doubled with each trip in a row.
    #[serde(serialize_with = "duration")]
    pub open_first: Duration,
    /// Longest time it stays open; default 5 s.
    #[serde(serialize_with = "duration")]
    pub open_cap: Duration,
}

impl BreakerConfig {
    /// Reads the section; the defaults are the client's own.
    fn read(section: &Section<'_>) -> Self {
        let default = steadfast::BreakerConfig::default();
        let small = |value: Option<i64>, default: u32| {
            let value = value.and_then(|value| u32::try_from(value).ok());
            value.unwrap_or(default)
        };
        let minimum_calls = section.integer("minimum_calls", 1, 1_000_000);
        let consecutive = section.integer("consecutive", 0, 1_000_000);
        let duration = |key: &str, default| section.positive(key).unwrap_or(default);
        Self {
            failure_rate: section
                .number("failure_rate", 0.01, 1.0)
                .unwrap_or(default.failure_rate),
            minimum_calls: small(minimum_calls, default.minimum_calls),
            window: duration("window", default.window),
            consecutive: small(consecutive, default.consecutive_failures.unwrap_or(0)),
            open_first: duration("open_first", default.open_first),
            open_cap: duration("open_cap", default.open_cap),
        }
    }
}
