//! Every setting with its default, its unit and what it costs, read from one place so that the
//! documentation, the reader and `config show` cannot drift apart.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use steadfast_cache::{Database, DatabaseOptions, GuardOptions, Ttl};

use super::rate::RateConfig;
use super::secret::SecretUrl;
use super::section::Section;
use super::tls::{DatabaseTlsConfig, ServerTlsConfig};
use super::units::{Bytes, duration, millis, secs};
use crate::address_range::AddressRange;
use crate::grammar::dialect::Dialect;

const MIB: u64 = 1 << 20;

/// `[server]`: where the service listens and how it ends.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Address to listen on; default `127.0.0.1:8080`, port 0 takes a free one. Without `[auth]` it
    /// must be loopback.
    pub listen: SocketAddr,
    /// Names besides the address itself under which browsers may reach the service; default none.
    pub hosts: Vec<String>,
    /// Addresses, or ranges such as `10.0.0.0/8`, of the proxies in front: of one that asks from
    /// there, the last address in `X-Forwarded-For` that is none of theirs is the caller's, for
    /// limits, the audit log and health. Default none: whoever connects is the caller.
    pub trusted_proxies: Vec<String>,
    /// How long the service goes on serving after SIGTERM while `/health/ready` already says 503,
    /// so that load balancers look elsewhere; default 1 s. It lengthens every stop.
    #[serde(serialize_with = "duration")]
    pub drain_delay: Duration,
    /// How long requests in flight may take after that, until the last byte of their answers is
    /// written; default 20 s.
    #[serde(serialize_with = "duration")]
    pub drain_limit: Duration,
    /// `[server.tls]`; default none: plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTlsConfig>,
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
        let tls = section.section("tls");
        let config = Self {
            tls: ServerTlsConfig::read(&tls),
            listen: listen.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080)),
            hosts: read_hosts(section),
            trusted_proxies: read_proxies(section),
            drain_delay: section.duration("drain_delay").unwrap_or(secs(1)),
            drain_limit: section.positive("drain_limit").unwrap_or(secs(20)),
        };
        tls.finish();
        config
    }
}

/// Names as they stand in a request's Host, which has neither scheme nor path.
fn read_hosts(section: &Section<'_>) -> Vec<String> {
    let hosts = section.strings("hosts").unwrap_or_default();
    for host in &hosts {
        let plain = |c: char| c.is_alphanumeric() || "-._".contains(c);
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let is_name = !host.is_empty() && host.chars().all(plain);
        if !is_name && address.parse::<IpAddr>().is_err() {
            let message = format!("has {host:?}, which is not the name of a host");
            let mistake = section.mistake("hosts", message);
            section.refuse(mistake.help("without scheme, port or path: \"steadfast.example\""));
        }
    }
    hosts
}

fn read_proxies(section: &Section<'_>) -> Vec<String> {
    let proxies = section.strings("trusted_proxies").unwrap_or_default();
    for proxy in &proxies {
        if AddressRange::parse(proxy).is_none() {
            let message = format!("has {proxy:?}, which is neither an address nor a range of them");
            let mistake = section.mistake("trusted_proxies", message);
            section.refuse(mistake.help("such as \"10.0.0.7\" or \"10.0.0.0/8\""));
        }
    }
    proxies
}

/// The form of log lines.
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
    /// `error`, `warn`, `info` (default), `debug`, `trace`, or a filter such as `info,sqlx=warn`.
    /// Reloaded by SIGHUP.
    pub level: String,
}

impl LogConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let level = section.string("level").unwrap_or_else(|| "info".to_owned());
        if let Err(why) = check_level(&level) {
            let mistake = section.mistake("level", why);
            section.refuse(mistake.help(format!(
                "one of {}, or such a level and others for parts of the program: info,sqlx=warn",
                LEVELS.join(", ")
            )));
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

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Holds a level against the little of the filter's language that can be checked. The whole of it
/// takes any word for the name of a part of the program, `warning` among them, and logs nothing
/// else.
fn check_level(text: &str) -> Result<(), String> {
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    let mut overall = 0;
    for directive in text.split(',').map(str::trim) {
        match directive.split_once('=') {
            None if is_level(directive) => overall += 1,
            None => return Err(format!("names {directive:?}, which is no level")),
            Some((part, level)) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                if part.is_empty() || !part.chars().all(plain) || !is_level(level) {
                    return Err(format!("has {directive:?}, which is no part=level"));
                }
            }
        }
    }
    match overall {
        1 => Ok(()),
        0 => Err("names parts of the program, but no level for all the others".to_owned()),
        _ => Err("names more than one level for the whole program".to_owned()),
    }
}

/// `[database]`: the source of truth.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DatabaseConfig {
    /// `sqlite://path`, `mysql://…` (MariaDB too) or `postgres://…`; default
    /// `sqlite://steadfast.db`, made if missing.
    pub url: SecretUrl,
    /// Connections for statements and the outbox; default 10. Beside them as many as
    /// `guard.concurrency` says, which only read, for queries, and one that watches.
    pub max_connections: u32,
    /// How long a statement, or a query, waits for one of its kind; default 1 s.
    #[serde(serialize_with = "duration")]
    pub acquire_timeout: Duration,
    /// `[database.tls]`; default none: what the URL says (`sslmode`, `ssl-mode`), or else TLS if
    /// the server can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<DatabaseTlsConfig>,
    /// `[database.guard]`
    pub guard: GuardConfig,
}

impl DatabaseConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let schemes = ["sqlite", "mysql", "mariadb", "postgres", "postgresql"];
        let default = DatabaseOptions::default();
        let connections = section.integer("max_connections", 1, 10_000);
        let connections = connections.and_then(|number| u32::try_from(number).ok());
        let (guard, tls) = (section.section("guard"), section.section("tls"));
        let url = SecretUrl::read(section, "url", "sqlite://steadfast.db", &schemes);
        check_database(section, &url);
        let config = Self {
            tls: DatabaseTlsConfig::read(&tls, url.scheme()),
            url,
            max_connections: connections.unwrap_or(default.max_connections),
            acquire_timeout: section
                .positive("acquire_timeout")
                .unwrap_or(default.acquire_timeout),
            guard: GuardConfig::read(&guard),
        };
        guard.finish();
        tls.finish();
        config
    }

    /// Returns the dialect, by the scheme of the URL.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self.url.scheme() {
            "mysql" | "mariadb" => Dialect::Mysql,
            "postgres" | "postgresql" => Dialect::Postgres,
            _ => Dialect::Sqlite,
        }
    }
}

fn check_database(section: &Section<'_>, url: &SecretUrl) {
    if url.is_refused() {
        return;
    }
    if let Err(error) = Database::check_url(url.expose()) {
        section.refuse(section.mistake("url", format!("cannot be used: {error}")));
        return;
    }
    let text = url.expose();
    if url.scheme() == "sqlite" && (text.contains(":memory:") || text.contains("mode=memory")) {
        let message = "is a database in memory, of which each connection would have one of its own";
        let mistake = section.mistake("url", message);
        section.refuse(mistake.help("use a file, such as sqlite://steadfast.db"));
    }
}

/// `[database.guard]`: what an outage of Redis may put on the database; and `[ttl.NAME.guard]`,
/// what the loads of one class may.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GuardConfig {
    /// Loads at once; default 8. The whole's are as many connections to the database, beside its
    /// `max_connections`.
    pub concurrency: usize,
    /// Loads a second; default 2000. Past it stale values are served, or calls refused.
    pub rate: f64,
}

/// Half of the cache's own default (`GuardOptions::concurrency`): here each load at once has a
/// connection of its own, which is opened beside those for statements.
const LOADS_AT_ONCE: usize = 8;

impl GuardConfig {
    fn read(section: &Section<'_>) -> Self {
        Self {
            concurrency: section
                .count("concurrency", 1, 10_000)
                .unwrap_or(LOADS_AT_ONCE),
            rate: section
                .number("rate", 0.1, 1e9)
                .unwrap_or(GuardOptions::default().rate),
        }
    }

    /// The bounds of a class; what is left out is that of the whole.
    fn read_within(section: &Section<'_>, whole: &Self) -> Option<Self> {
        let concurrency = section.count("concurrency", 1, 10_000);
        let rate = section.number("rate", 0.1, 1e9);
        for (key, more, most) in [
            (
                "concurrency",
                concurrency.is_some_and(|asked| asked > whole.concurrency),
                whole.concurrency.to_string(),
            ),
            (
                "rate",
                rate.is_some_and(|asked| asked > whole.rate),
                whole.rate.to_string(),
            ),
        ] {
            if more {
                let message =
                    format!("is more than `database.guard.{key}`, {most}, allows all classes");
                section.refuse(section.mistake(key, message));
            }
        }
        section.is_given().then(|| Self {
            concurrency: concurrency.unwrap_or(whole.concurrency),
            rate: rate.unwrap_or(whole.rate),
        })
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
    /// Size from which values are compressed in Redis; default 4 KiB.
    pub compress_above: Bytes,
    /// The longest that a read waits for Redis; default 100 ms.
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
            compress_above: section.bytes("compress_above").unwrap_or(Bytes(4 << 10)),
            redis_limit: section.positive("redis_limit").unwrap_or(millis(100)),
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
    /// How long after that it may be served stale when it cannot be refreshed; default 1 h, `0s`
    /// for never.
    #[serde(serialize_with = "duration")]
    pub stale: Duration,
    /// Share of `fresh` by which it is shortened at random, so that values do not expire together;
    /// default 0.1.
    pub jitter: f64,
    /// How long an empty answer is kept; default 10 s, `0s` for not at all.
    #[serde(serialize_with = "duration")]
    pub negative: Duration,
    /// Eagerness of the refresh ahead of expiry of what is hot; default 1, 0 turns it off.
    pub early_refresh: f64,
    /// Time a load may take before a stale value is served in its stead; default 100 ms.
    #[serde(serialize_with = "duration")]
    pub soft_limit: Duration,
    /// Time a load may take at all; default 5 s.
    #[serde(serialize_with = "duration")]
    pub hard_limit: Duration,
    /// Time after a failed load in which a value that can be served as stale is not loaded again;
    /// default 1 s, 0 tries at each read.
    #[serde(serialize_with = "duration")]
    pub retry_after: Duration,
    /// `[ttl.NAME.guard]`: bounds of its own within those of `[database.guard]`; default none. A
    /// change needs a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardConfig>,
}

impl TtlConfig {
    fn read(section: &Section<'_>, whole: &GuardConfig) -> Self {
        let guard = section.section("guard");
        let default = Ttl::default();
        let duration = |key: &str, default| section.duration(key).unwrap_or(default);
        let positive = |key: &str, default| section.positive(key).unwrap_or(default);
        let config = Self {
            guard: GuardConfig::read_within(&guard, whole),
            fresh: positive("fresh", default.fresh),
            stale: duration("stale", default.stale),
            jitter: section.number("jitter", 0.0, 0.9).unwrap_or(default.jitter),
            negative: duration("negative", default.negative),
            early_refresh: section
                .number("early_refresh", 0.0, 100.0)
                .unwrap_or(default.early_refresh),
            soft_limit: positive("soft_limit", default.soft_limit),
            hard_limit: positive("hard_limit", default.hard_limit),
            retry_after: duration("retry_after", default.retry_after),
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
        guard.finish();
        config
    }

    pub(crate) fn read_all(root: &Section<'_>, whole: &GuardConfig) -> BTreeMap<String, Self> {
        root.sections("ttl")
            .into_iter()
            .map(|(name, section)| {
                let config = Self::read(&section, whole);
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
    /// Largest body of a request; default 1 MiB, at most 1 GiB. It is held in memory while it is
    /// read, for each request under way.
    pub body: Bytes,
    /// Time a request may take; default 10 s. Event streams are exempt.
    #[serde(serialize_with = "duration")]
    pub request_timeout: Duration,
    /// Time a client may take to send its headers, and before that for the TLS handshake; default
    /// 10 s.
    #[serde(serialize_with = "duration")]
    pub header_timeout: Duration,
    /// Time for which a client may take nothing of its answer, event streams included; default 30
    /// s. Then its connection is reset. Meanwhile it holds a connection, some 64 KiB of the answer
    /// here, and up to 512 KiB that the system keeps for its socket. Less than some 90 KiB in that
    /// time counts as nothing.
    #[serde(serialize_with = "duration")]
    pub write_timeout: Duration,
    /// Largest result that a query, or a statement with RETURNING, may have, in bytes of its rows;
    /// default 32 MiB. What is beyond it is left out and `truncated` said; a row that alone is
    /// larger is refused. As many times that, and as much again while it is made ready, may be held
    /// at once as there are loads and statements.
    pub result: Bytes,
    /// Requests under way at once; default 4096. Past it they are refused with 503, health and
    /// metrics excepted.
    pub concurrency: usize,
    /// Connections at once; default 16384. Past it 16 more are accepted for one question each, of
    /// which those for health and metrics are answered and all others refused with 503; the rest
    /// wait to be accepted.
    pub connections: usize,
    /// Event streams at once; default 2048.
    pub subscribers: usize,
    /// How long an `Idempotency-Key` is remembered; default 24 h. Each costs a row in the database.
    #[serde(serialize_with = "duration")]
    pub idempotency_ttl: Duration,
    /// Largest answer that is kept under an `Idempotency-Key`; default 64 KiB. A change with a
    /// larger one is refused.
    pub idempotency_body: Bytes,
    /// `[limits.rate.NAME]`: how often callers may ask; default no limit.
    pub rate: BTreeMap<String, RateConfig>,
}

impl LimitsConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            body: read_body(section),
            request_timeout: section.positive("request_timeout").unwrap_or(secs(10)),
            header_timeout: section.positive("header_timeout").unwrap_or(secs(10)),
            write_timeout: section.positive("write_timeout").unwrap_or(secs(30)),
            result: section.some_bytes("result").unwrap_or(Bytes(32 * MIB)),
            concurrency: section.count("concurrency", 1, 1_000_000).unwrap_or(4096),
            connections: section.count("connections", 1, 1_000_000).unwrap_or(16384),
            subscribers: section.count("subscribers", 1, 1_000_000).unwrap_or(2048),
            idempotency_ttl: section
                .positive("idempotency_ttl")
                .unwrap_or(secs(24 * 3600)),
            idempotency_body: section.bytes("idempotency_body").unwrap_or(Bytes(64 << 10)),
            rate: RateConfig::read_all(section),
        }
    }
}

fn read_body(section: &Section<'_>) -> Bytes {
    let body = section.some_bytes("body").unwrap_or(Bytes(MIB));
    if body > LARGEST_BODY {
        section.refuse(section.mistake("body", "is more than 1GiB, which no request needs"));
    }
    body
}

const LARGEST_BODY: Bytes = Bytes(1 << 30);

/// `[drill]`: breaking things on purpose from the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DrillConfig {
    /// Whether drills may be started over HTTP; default no. Drills break only servers that they
    /// started themselves.
    pub enabled: bool,
    /// Folder for the reports; default one that is removed at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reports: Option<PathBuf>,
}

impl DrillConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let enabled = section.boolean("enabled").unwrap_or(false);
        if enabled && !cfg!(feature = "drill") {
            let message =
                "cannot be: this program was built without the feature `drill` of steadfast-server";
            section.refuse(section.mistake("enabled", message));
        }
        Self {
            enabled,
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
    /// Where traces are sent, OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`; default
    /// nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SecretUrl>,
    /// Share of requests that start a trace of their own; default 0.1. A caller's decision is kept.
    pub sample: f64,
    /// The name of this service in the traces; default `steadfast`.
    pub service_name: String,
}

impl TracingConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let endpoint = section
            .has("endpoint")
            .then(|| SecretUrl::read(section, "endpoint", "", &["http", "https"]));
        if endpoint.as_ref().is_some_and(SecretUrl::names_a_user) {
            let mistake = section.mistake("endpoint", "names a user, which would not be sent");
            section.refuse(
                mistake.help("put `authorization=…` into the variable OTEL_EXPORTER_OTLP_HEADERS"),
            );
        }
        Self {
            endpoint,
            sample: section.number("sample", 0.0, 1.0).unwrap_or(0.1),
            service_name: section
                .string("service_name")
                .unwrap_or_else(|| "steadfast".to_owned()),
        }
    }
}
