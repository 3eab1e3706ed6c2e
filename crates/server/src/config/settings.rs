//! Every setting with its default, its unit and what it costs, read from one place so that the documentation, the
//! reader and `config show` cannot drift apart.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::secret::SecretUrl;
use super::section::Section;
use super::units::{Bytes, duration, show_duration};

const MIB: u64 = 1 << 20;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// `[server]`: where the service listens and how it ends.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Address to listen on; default `127.0.0.1:8080`, port 0 takes a free one. Without `[auth]` it must be loopback.
    pub listen: SocketAddr,
    /// Names besides the address itself under which browsers may reach the service; default none.
    pub hosts: Vec<String>,
    /// How long the service goes on serving after SIGTERM while `/health/ready` already says 503, so that load
    /// balancers look elsewhere; default 1 s. It lengthens every stop.
    #[serde(serialize_with = "duration")]
    pub drain_delay: Duration,
    /// How long requests in flight may take after that; default 20 s.
    #[serde(serialize_with = "duration")]
    pub drain_limit: Duration,
}

impl ServerConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let listen = section.string("listen").and_then(|text| {
            let parsed = text.parse().ok();
            if parsed.is_none() {
                let message = format!("is {text:?}, but must be an address and a port");
                let mistake = section.mistake("listen", message);
                section.refuse(mistake.help("such as \"127.0.0.1:8080\" or \"[::1]:8080\""));
            }
            parsed
        });
        Self {
            listen: listen.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080)),
            hosts: section.strings("hosts").unwrap_or_default(),
            drain_delay: section.duration("drain_delay").unwrap_or(secs(1)),
            drain_limit: section.positive("drain_limit").unwrap_or(secs(20)),
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]`: what is logged, to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LogConfig {
    /// `text` (default) or `json`.
    pub format: LogFormat,
    /// `error`, `warn`, `info` (default), `debug`, `trace`, or a filter such as `info,sqlx=warn`. Reloaded by SIGHUP.
    pub level: String,
}

impl LogConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let level = section.string("level").unwrap_or_else(|| "info".to_owned());
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&level) {
            section.refuse(section.mistake("level", format!("is not a filter: {error}")));
        }
        Self {
            format: section
                .choice(
                    "format",
                    &[("text", LogFormat::Text), ("json", LogFormat::Json)],
                )
                .unwrap_or(LogFormat::Text),
            level,
        }
    }
}

/// `[redis]`: the server, and how its client behaves.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RedisConfig {
    /// `redis://`, `rediss://` or `unix://`; default `redis://127.0.0.1:6379`. It need not answer for the service to start.
    pub url: SecretUrl,
    /// The longest a call may take with everything it includes; default 1 s.
    #[serde(serialize_with = "duration")]
    pub deadline: Duration,
    /// Silence of a connection, while commands wait, after which a new one is tried; default 500 ms.
    #[serde(serialize_with = "duration")]
    pub reply_overdue: Duration,
    /// Silence after which a connection is given up even if no other can be had; default 30 s.
    #[serde(serialize_with = "duration")]
    pub abandon_after: Duration,
    /// Limit on each phase of connecting (DNS, TCP, TLS, handshake); default 1 s.
    #[serde(serialize_with = "duration")]
    pub connect_timeout: Duration,
    /// First pause between attempts to reconnect; default 20 ms.
    #[serde(serialize_with = "duration")]
    pub reconnect_first: Duration,
    /// Longest pause between attempts to reconnect; default 250 ms. A restarted server is noticed at most so much later.
    #[serde(serialize_with = "duration")]
    pub reconnect_cap: Duration,
    /// How long calls wait at the start of an outage, in case it is short; default 250 ms.
    #[serde(serialize_with = "duration")]
    pub blip_wait: Duration,
    /// How often an idle connection is asked whether it lives; default 1 s.
    #[serde(serialize_with = "duration")]
    pub heartbeat: Duration,
    /// Limit on a health check by `steadfast status`; default 3 s. `HEALTH_CHECK_REDIS_TIMEOUT` sets it in seconds.
    #[serde(serialize_with = "duration")]
    pub health_timeout: Duration,
    /// Connections; default 1. A key always takes the same one.
    pub connections: usize,
    /// Calls under way at once; default 8192. Past it calls are refused.
    pub in_flight: usize,
    /// Events kept for the connection history; default 100.
    pub history: usize,
    /// Calls a second that the client is expected to make, if it is known; it lets `config check` name a breaker that
    /// such traffic can never trip. Changes nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_rate: Option<f64>,
    /// `[redis.retry]`
    pub retry: RetryConfig,
    /// `[redis.breaker]`
    pub breaker: BreakerConfig,
}

impl RedisConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let retry = section.section("retry");
        let breaker = section.section("breaker");
        let config = Self {
            url: SecretUrl::read(
                section,
                "url",
                "redis://127.0.0.1:6379",
                &["redis", "rediss", "unix"],
            ),
            deadline: section.positive("deadline").unwrap_or(secs(1)),
            reply_overdue: section.positive("reply_overdue").unwrap_or(millis(500)),
            abandon_after: section.positive("abandon_after").unwrap_or(secs(30)),
            connect_timeout: section.positive("connect_timeout").unwrap_or(secs(1)),
            reconnect_first: section.positive("reconnect_first").unwrap_or(millis(20)),
            reconnect_cap: section.positive("reconnect_cap").unwrap_or(millis(250)),
            blip_wait: section.duration("blip_wait").unwrap_or(millis(250)),
            heartbeat: section.positive("heartbeat").unwrap_or(secs(1)),
            health_timeout: section.positive("health_timeout").unwrap_or(secs(3)),
            connections: section.count("connections", 1, 64).unwrap_or(1),
            in_flight: section.count("in_flight", 1, 1_000_000).unwrap_or(8192),
            history: section.count("history", 1, 100_000).unwrap_or(100),
            expected_rate: section.number("expected_rate", 0.001, 1e9),
            retry: RetryConfig::read(&retry),
            breaker: BreakerConfig::read(&breaker),
        };
        config.contradictions(section, &retry, &breaker);
        retry.finish();
        breaker.finish();
        config
    }

    fn contradictions(&self, redis: &Section<'_>, retry: &Section<'_>, breaker: &Section<'_>) {
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
        if let Some(rate) = self.expected_rate {
            let seen = rate * self.breaker.window.as_secs_f64();
            let needed = self.breaker.min_calls as f64;
            if self.breaker.consecutive == 0 && seen < needed {
                let message = format!(
                    "can never trip: at `redis.expected_rate` {rate} a second {seen:.0} calls fall into its window, and it judges no fewer than {needed}",
                );
                let mistake = breaker.mistake("min_calls", message);
                breaker.refuse(mistake.help("lower it, widen the window or set `consecutive`"));
            }
        }
        self.ordered(
            redis,
            "reconnect_first",
            self.reconnect_first,
            "reconnect_cap",
            self.reconnect_cap,
        );
        self.ordered(
            redis,
            "reply_overdue",
            self.reply_overdue,
            "abandon_after",
            self.abandon_after,
        );
        self.ordered(
            redis,
            "blip_wait",
            self.blip_wait,
            "deadline",
            self.deadline,
        );
    }

    fn ordered(&self, section: &Section<'_>, a: &str, less: Duration, b: &str, more: Duration) {
        if less > more {
            let key = if section.has(a) { a } else { b };
            let (less, more) = (show_duration(less), show_duration(more));
            let message =
                format!("makes no sense here: `{a}` ({less}) is longer than `{b}` ({more})");
            section.refuse(section.mistake(key, message));
        }
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
        let attempts = section.integer("attempts", 1, 100).unwrap_or(3);
        Self {
            attempts: u32::try_from(attempts).unwrap_or(3),
            first: section.positive("first").unwrap_or(millis(10)),
            cap: section.positive("cap").unwrap_or(secs(1)),
            budget_ratio: section.number("budget_ratio", 0.0, 10.0).unwrap_or(0.1),
            budget_per_second: section
                .number("budget_per_second", 0.0, 1e6)
                .unwrap_or(10.0),
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
    pub min_calls: u32,
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
    fn read(section: &Section<'_>) -> Self {
        let small = |value: Option<i64>, default: u32| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .unwrap_or(default)
        };
        Self {
            failure_rate: section.number("failure_rate", 0.01, 1.0).unwrap_or(0.5),
            min_calls: small(section.integer("min_calls", 1, 1_000_000), 20),
            window: section.positive("window").unwrap_or(secs(10)),
            consecutive: small(section.integer("consecutive", 0, 1_000_000), 5),
            open_first: section.positive("open_first").unwrap_or(millis(100)),
            open_cap: section.positive("open_cap").unwrap_or(secs(5)),
        }
    }
}

/// `[database]`: the source of truth.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DatabaseConfig {
    /// `sqlite://path`, `mysql://…` (MariaDB too) or `postgres://…`; default `sqlite://steadfast.db`, made if missing.
    pub url: SecretUrl,
    /// Connections of the pool; default 10.
    pub max_connections: u32,
    /// How long a load waits for one; default 1 s.
    #[serde(serialize_with = "duration")]
    pub acquire_timeout: Duration,
    /// `[database.guard]`
    pub guard: GuardConfig,
}

/// Which SQL the database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Dialect {
    /// SQLite.
    Sqlite,
    /// MySQL and MariaDB.
    Mysql,
    /// PostgreSQL.
    Postgres,
}

impl DatabaseConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let schemes = ["sqlite", "mysql", "mariadb", "postgres", "postgresql"];
        let connections = section.integer("max_connections", 1, 10_000).unwrap_or(10);
        let guard = section.section("guard");
        let config = Self {
            url: SecretUrl::read(section, "url", "sqlite://steadfast.db", &schemes),
            max_connections: u32::try_from(connections).unwrap_or(10),
            acquire_timeout: section.positive("acquire_timeout").unwrap_or(secs(1)),
            guard: GuardConfig::read(&guard, u32::try_from(connections).unwrap_or(10)),
        };
        guard.finish();
        config
    }

    /// By the scheme of the URL.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self.url.scheme() {
            "mysql" | "mariadb" => Dialect::Mysql,
            "postgres" | "postgresql" => Dialect::Postgres,
            _ => Dialect::Sqlite,
        }
    }
}

/// `[database.guard]`: what an outage of Redis may put on the database.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GuardConfig {
    /// Loads at once; default 8, or `max_connections` if that is less.
    pub concurrency: usize,
    /// Loads a second; default 2000. Past it stale values are served, or calls refused.
    pub rate: f64,
}

impl GuardConfig {
    fn read(section: &Section<'_>, connections: u32) -> Self {
        let connections = connections as usize;
        let concurrency = section.count("concurrency", 1, 10_000);
        if let Some(concurrency) = concurrency.filter(|asked| *asked > connections) {
            let message = format!(
                "is {concurrency}, but `database.max_connections` is {connections}: the rest would only wait for a connection"
            );
            section.refuse(section.mistake("concurrency", message));
        }
        Self {
            concurrency: concurrency.unwrap_or(8.min(connections)),
            rate: section.number("rate", 0.1, 1e9).unwrap_or(2000.0),
        }
    }
}

/// `[cache]`: the tiers and their limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CacheConfig {
    /// Bound of the memory tier; default 64 MiB.
    pub memory_bytes: Bytes,
    /// Largest value that is cached; default 1 MiB.
    pub value_max: Bytes,
    /// Size from which values are compressed in Redis; default 1 KiB.
    pub compress_above: Bytes,
    /// The longest a read waits for Redis; default 50 ms.
    #[serde(serialize_with = "duration")]
    pub redis_limit: Duration,
    /// How often each process looks at the outbox; default 250 ms.
    #[serde(serialize_with = "duration")]
    pub outbox_poll: Duration,
    /// Age of an unapplied invalidation from which Redis is not believed; default 1 s.
    #[serde(serialize_with = "duration")]
    pub outbox_lag_max: Duration,
}

impl CacheConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let config = Self {
            memory_bytes: section.bytes("memory_bytes").unwrap_or(Bytes(64 * MIB)),
            value_max: section.bytes("value_max").unwrap_or(Bytes(MIB)),
            compress_above: section.bytes("compress_above").unwrap_or(Bytes(1 << 10)),
            redis_limit: section.positive("redis_limit").unwrap_or(millis(50)),
            outbox_poll: section.positive("outbox_poll").unwrap_or(millis(250)),
            outbox_lag_max: section.positive("outbox_lag_max").unwrap_or(secs(1)),
        };
        if config.value_max > config.memory_bytes {
            let message = "is larger than `cache.memory_bytes`: such a value could never be kept";
            section.refuse(section.mistake("value_max", message));
        }
        if config.outbox_poll > config.outbox_lag_max {
            let message = "is longer than `cache.outbox_lag_max`: Redis would be distrusted between two looks";
            section.refuse(section.mistake("outbox_poll", message));
        }
        config
    }
}

/// `[ttl.NAME]`: a class of time to live.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TtlConfig {
    /// How long a value is fresh; default 6 min.
    #[serde(serialize_with = "duration")]
    pub fresh: Duration,
    /// How long after that it may be served stale when it cannot be refreshed; default 1 h, `0s` for never.
    #[serde(serialize_with = "duration")]
    pub stale: Duration,
    /// Share of `fresh` by which it is shortened at random, so that values do not expire together; default 0.1.
    pub jitter: f64,
    /// How long an empty answer is kept; default 30 s, `0s` for not at all.
    #[serde(serialize_with = "duration")]
    pub negative: Duration,
    /// Eagerness of the refresh ahead of expiry of what is hot; default 1, 0 turns it off.
    pub early_refresh: f64,
    /// Time a load may take before a stale value is served in its stead; default 100 ms.
    #[serde(serialize_with = "duration")]
    pub soft_limit: Duration,
    /// Time a load may take at all; default 2 s.
    #[serde(serialize_with = "duration")]
    pub hard_limit: Duration,
}

impl TtlConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let config = Self {
            fresh: section.positive("fresh").unwrap_or(secs(360)),
            stale: section.duration("stale").unwrap_or(secs(3600)),
            jitter: section.number("jitter", 0.0, 0.9).unwrap_or(0.1),
            negative: section.duration("negative").unwrap_or(secs(30)),
            early_refresh: section.number("early_refresh", 0.0, 100.0).unwrap_or(1.0),
            soft_limit: section.positive("soft_limit").unwrap_or(millis(100)),
            hard_limit: section.positive("hard_limit").unwrap_or(secs(2)),
        };
        if config.soft_limit > config.hard_limit {
            let message = "is longer than `hard_limit`: a load would be given up before a stale value is tried";
            let key = if section.has("soft_limit") {
                "soft_limit"
            } else {
                "hard_limit"
            };
            section.refuse(section.mistake(key, message));
        }
        config
    }

    pub(crate) fn read_all(root: &Section<'_>) -> BTreeMap<String, Self> {
        root.sections("ttl")
            .into_iter()
            .map(|(name, section)| {
                let config = Self::read(&section);
                section.finish();
                (name, config)
            })
            .collect()
    }
}

/// `[limits]`: what one caller, or all together, may ask for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LimitsConfig {
    /// Largest body of a request; default 1 MiB.
    pub body: Bytes,
    /// Time a request may take; default 10 s. Event streams are exempt.
    #[serde(serialize_with = "duration")]
    pub request_timeout: Duration,
    /// Time a client may take to send its headers; default 10 s.
    #[serde(serialize_with = "duration")]
    pub header_timeout: Duration,
    /// Requests under way at once; default 4096. Past it they are refused with 503, health and metrics excepted.
    pub concurrency: usize,
    /// Connections at once; default 16384. Past it new ones wait to be accepted.
    pub connections: usize,
    /// Event streams at once; default 2048.
    pub subscribers: usize,
}

impl LimitsConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            body: section.bytes("body").unwrap_or(Bytes(MIB)),
            request_timeout: section.positive("request_timeout").unwrap_or(secs(10)),
            header_timeout: section.positive("header_timeout").unwrap_or(secs(10)),
            concurrency: section.count("concurrency", 1, 1_000_000).unwrap_or(4096),
            connections: section.count("connections", 1, 1_000_000).unwrap_or(16384),
            subscribers: section.count("subscribers", 1, 1_000_000).unwrap_or(2048),
        }
    }
}

/// `[drill]`: breaking things on purpose from the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DrillConfig {
    /// Whether drills may be started over HTTP; default no. Drills break only servers that they started themselves.
    pub enabled: bool,
    /// Folder for the reports; default one that is removed at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reports: Option<PathBuf>,
}

impl DrillConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            enabled: section.boolean("enabled").unwrap_or(false),
            reports: section.string("reports").map(PathBuf::from),
        }
    }
}

/// `[metrics]`: the Prometheus endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// Whether `/metrics` answers; default yes.
    pub enabled: bool,
}

impl MetricsConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            enabled: section.boolean("enabled").unwrap_or(true),
        }
    }
}

/// `[tracing]`: traces by OTLP.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TracingConfig {
    /// Where traces are sent, OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`; default nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SecretUrl>,
    /// Share of requests that start a trace of their own; default 0.1. A caller's decision is kept.
    pub sample: f64,
    /// The name of this service in the traces; default `steadfast`.
    pub service_name: String,
}

impl TracingConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            endpoint: section
                .has("endpoint")
                .then(|| SecretUrl::read(section, "endpoint", "", &["http", "https"])),
            sample: section.number("sample", 0.0, 1.0).unwrap_or(0.1),
            service_name: section
                .string("service_name")
                .unwrap_or_else(|| "steadfast".to_owned()),
        }
    }
}
