//! One file, a few variables and a few flags decide how the service behaves; a wrong one must be
//! found before the service starts, not at three in the morning. So everything is read and held
//! against everything else at once, and all that is wrong is told together, with its place.
//!
//! ```
//! use steadfast_server::Config;
//! use steadfast_server::config::{SAMPLE, Sources};
//!
//! # fn main() -> Result<(), steadfast_server::config::ConfigError> {
//! let sources = Sources::new().text("sample", SAMPLE);
//! let config = Config::load(&sources.clone().flag("--listen", "server.listen", "127.0.0.1:0"))?;
//! assert_eq!(config.server.listen.port(), 0);
//! println!("{:?}", config.queries.keys());
//! println!("{}", config.show()); // what is in force, without secrets
//!
//! let wrong = Config::load(&sources.flag("--listen", "server.listen", "everywhere"));
//! println!("{}", wrong.unwrap_err()); // each mistake, where it is, and what to write
//! # Ok(()) }
//! ```

mod addresses;
mod auth;
mod cache;
mod cluster;
mod credentials;
mod database;
mod limits;
mod mistake;
mod queries;
mod rate;
mod redis;
mod secret;
mod section;
mod sentinel;
mod server;
mod settings;
mod tls;
mod tree;
mod units;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use steadfast_core::slot::Slot;

pub use addresses::AddressMap;
pub use auth::{AuthConfig, KeyAlgorithm, KeyConfig};
pub use cache::{CacheConfig, TtlConfig};
pub use cluster::{ClusterConfig, ReadFrom};
pub use credentials::{CredentialsConfig, EntraConfig, EntraIdentity};
pub use database::{DatabaseConfig, GuardConfig};
pub use limits::LimitsConfig;
pub use mistake::{ConfigError, Mistake, Origin};
pub use queries::{Invalidates, QueryConfig, StatementConfig};
pub use rate::{Algorithm, By, RateConfig, WhenDown};
pub(crate) use redis::HISTORY_MAX;
pub use redis::{BreakerConfig, RedisConfig, RetryConfig};
pub use secret::{Fingerprint, REDIS_SCHEMES, SecretText, SecretUrl, UrlMistake};
pub use sentinel::{SentinelConfig, SentinelTlsConfig};
pub use server::ServerConfig;
pub use settings::{DrillConfig, LogConfig, LogFormat, MetricsConfig, TracingConfig};
pub use tls::{
    ClientCertificates, DatabaseTlsConfig, DatabaseTlsMode, RedisTlsConfig, ServerTlsConfig,
    TlsVersion,
};
pub use units::Bytes;

use section::{Mistakes, Section};
use units::show_duration;

pub use crate::grammar::dialect::Dialect;
pub use crate::grammar::param::{Match, ParamConfig, ParamKind, Value};

/// A configuration to begin with: the table `users`, searched by name or phone number, listed and
/// added to.
pub const SAMPLE: &str = include_str!("../sample.toml");

/// Everything that can be set, checked and complete.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Config {
    /// Prefix of every key in Redis, and name in the tables that several services share; default
    /// `steadfast`.
    pub namespace: String,
    /// `[server]`
    pub server: ServerConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[redis]`
    pub redis: RedisConfig,
    /// `[database]`
    pub database: DatabaseConfig,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[auth]`; default none: no caller is asked who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthConfig>,
    /// `[drill]`
    pub drill: DrillConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
    /// `[tracing]`
    pub tracing: TracingConfig,
    /// `[ttl.NAME]`
    pub ttl: BTreeMap<String, TtlConfig>,
    /// `[queries.NAME]`
    pub queries: BTreeMap<String, QueryConfig>,
    /// `[statements.NAME]`
    pub statements: BTreeMap<String, StatementConfig>,
}

impl Config {
    /// Reads everything, flags over `STEADFAST__…` over `REDIS_URL`, `DATABASE_URL` and
    /// `HEALTH_CHECK_REDIS_TIMEOUT` over the file over the defaults.
    ///
    /// # Errors
    /// All mistakes at once: what is not TOML, unknown keys, wrong types and limits, and
    /// contradictions.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut unreadable = Vec::new();
        let mut root = tree::parse(&sources.text, &mut unreadable);
        // A file that is not TOML is complained about as such, not for what its rest seems to lack.
        let stop_here = !unreadable.is_empty();
        let mistakes = Mistakes::from(unreadable);
        sources.lay_over(&mut root, &mistakes);
        let section = Section::root(&root, &mistakes);
        let config = (!stop_here).then(|| Self::read(&section, sources.serving));
        if config.is_some() {
            section.finish();
        }
        let mistakes = mistakes.into_sorted();
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            _ => Err(ConfigError {
                source_name: sources.name.clone(),
                text: sources.text.clone(),
                mistakes,
            }),
        }
    }

    /// Returns what is in force, as TOML, with every secret as `***`.
    #[must_use]
    pub fn show(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
    }

    /// Returns what follows from the settings and is easily overlooked, in a sentence each.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.redis.is_cluster() {
            let namespace = &self.namespace;
            let slot = Slot::of_key(format!("{{{namespace}}}").as_bytes()).number();
            notes.push(format!(
                "redis.url names a cluster: all of the cache `{namespace}` lies in slot {slot}, so on one shard, whose memory and speed are its bounds; rate limits are spread over all shards"
            ));
        }
        if let Some(cluster) = &self.redis.cluster
            && cluster.read_from == ReadFrom::Replicas
        {
            notes.push(format!(
                "redis.cluster.read_from names replicas: reads of programs that use the service's client (App::client) may be answered with data {} old; the cache and rate limits ask primaries all the same",
                show_duration(cluster.max_lag)
            ));
        }
        notes
    }

    fn read(root: &Section<'_>, serving: bool) -> Self {
        let within = |name: &str| root.section(name);
        let (server, log, redis) = (within("server"), within("log"), within("redis"));
        let (database, cache, limits) = (within("database"), within("cache"), within("limits"));
        let (drill, metrics, tracing) = (within("drill"), within("metrics"), within("tracing"));
        let database_config = DatabaseConfig::read(&database);
        let ttl = TtlConfig::read_all(root, &database_config.guard);
        let config = Self {
            namespace: read_namespace(root),
            server: ServerConfig::read(&server),
            log: LogConfig::read(&log),
            redis: RedisConfig::read(&redis),
            cache: CacheConfig::read(&cache),
            limits: LimitsConfig::read(&limits),
            auth: AuthConfig::read(root, serving),
            drill: DrillConfig::read(&drill),
            metrics: MetricsConfig::read(&metrics),
            tracing: TracingConfig::read(&tracing),
            queries: QueryConfig::read_all(root, database_config.dialect(), &ttl),
            statements: StatementConfig::read_all(root, database_config.dialect()),
            database: database_config,
            ttl,
        };
        if config.auth.is_none() && !config.server.listen.ip().is_loopback() {
            let message = "can be reached from outside, but without [auth] the service listens on loopback only";
            let mistake = server.mistake("listen", message);
            server.refuse(mistake.help("use 127.0.0.1, or say in [auth] whom to believe"));
        }
        let deadline = config.redis.deadline;
        if config.cache.redis_limit > deadline {
            let message = "is longer than `redis.deadline`, which ends the call first";
            cache.refuse(cache.mistake("redis_limit", message));
        }
        for section in [
            server, log, redis, database, cache, limits, drill, metrics, tracing,
        ] {
            section.finish();
        }
        config
    }
}

fn read_namespace(root: &Section<'_>) -> String {
    let Some(namespace) = root.string("namespace") else {
        return "steadfast".to_owned();
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if namespace.is_empty() || namespace.len() > 64 || !namespace.chars().all(plain) {
        let message = "must have 1 to 64 letters, digits, `_`, `-` or `.`";
        root.refuse(root.mistake("namespace", message));
    }
    namespace
}

/// The file, environment and flags that settings are read from.
#[derive(Clone)]
pub struct Sources {
    name: String,
    text: String,
    path: Option<PathBuf>,
    environment: Vec<(String, String)>,
    /// Names of variables with our prefix that mean no setting.
    strange: Vec<String>,
    flags: Vec<(String, String, String)>,
    serving: bool,
}

/// Leaves out the contents, which may be secret.
impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("name", &self.name)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Default for Sources {
    fn default() -> Self {
        Self::new()
    }
}

impl Sources {
    /// The defaults, and nothing else.
    #[must_use]
    pub fn new() -> Self {
        Self {
            name: "configuration".to_owned(),
            text: String::new(),
            path: None,
            environment: Vec::new(),
            strange: Vec::new(),
            flags: Vec::new(),
            serving: false,
        }
    }

    /// The file at `path`.
    ///
    /// # Errors
    /// If it cannot be read, or is not UTF-8.
    pub fn file(mut self, path: &Path) -> Result<Self, ConfigError> {
        self.name = path.display().to_string();
        self.path = Some(path.to_owned());
        match std::fs::read_to_string(path) {
            Ok(text) => {
                self.text = text;
                Ok(self)
            }
            Err(error) => Err(ConfigError {
                text: String::new(),
                mistakes: vec![Mistake::new(
                    Origin::Nowhere,
                    format!("{} cannot be read: {error}", self.name),
                )],
                source_name: self.name,
            }),
        }
    }

    /// Reads the file again.
    pub(crate) fn read_again(self) -> Result<Self, ConfigError> {
        match self.path.clone() {
            Some(path) => self.file(&path),
            None => Ok(self),
        }
    }

    /// A text in place of a file, called `name` in complaints.
    #[must_use]
    pub fn text(mut self, name: &str, text: &str) -> Self {
        self.name = name.to_owned();
        self.text = text.to_owned();
        self
    }

    /// The environment, of which only the variables that mean settings are kept.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let (settings, others): (Vec<_>, Vec<_>) = variables
            .into_iter()
            .partition(|(name, _)| Self::is_setting(name));
        self.environment = settings;
        self.environment.sort();
        let names = others.into_iter().map(|(name, _)| name);
        self.strange = names
            .filter(|name| name.starts_with("STEADFAST_"))
            .collect();
        self.strange.sort();
        self
    }

    /// Whether a variable of that name means a setting.
    #[must_use]
    pub fn is_setting(name: &str) -> bool {
        name.starts_with(PREFIX) || SHORT.iter().any(|(short, _)| *short == name)
    }

    /// To be held against this machine too, on which the service is to run: the folders that it
    /// writes to must be there.
    #[must_use]
    pub fn to_serve(mut self) -> Self {
        self.serving = true;
        self
    }

    /// A flag as the user knows it (`--listen`), the setting it stands for (`server.listen`) and
    /// its value.
    #[must_use]
    pub fn flag(mut self, flag: &str, setting: &str, value: impl Into<String>) -> Self {
        self.flags
            .push((flag.to_owned(), setting.to_owned(), value.into()));
        self
    }

    fn lay_over(&self, root: &mut tree::Node, mistakes: &Mistakes) {
        self.refuse_misspelt(mistakes);
        for (name, setting) in SHORT {
            let Some((_, value)) = self.environment.iter().find(|(n, _)| n == name) else {
                continue;
            };
            let place = Origin::Environment {
                name: (*name).to_owned(),
            };
            let Some(value) = in_seconds(name, value) else {
                let message = "must be a number of seconds above zero";
                mistakes.push(Mistake::new(place, message));
                continue;
            };
            tree::overlay(root, &path(setting, "."), &value, &place);
        }
        for (name, value) in &self.environment {
            if let Some(setting) = name.strip_prefix(PREFIX) {
                let place = Origin::Environment { name: name.clone() };
                tree::overlay(root, &path(&setting.to_lowercase(), "__"), value, &place);
            }
        }
        for (flag, setting, value) in &self.flags {
            let place = Origin::Flag { name: flag.clone() };
            tree::overlay(root, &path(setting, "."), value, &place);
        }
    }
}

impl Sources {
    /// Names each variable that would be a setting if its parts were parted by two underscores: one
    /// alone may be part of a name. Others that begin alike are not ours, such as those that
    /// Kubernetes sets for a service of this name.
    fn refuse_misspelt(&self, mistakes: &Mistakes) {
        if self.strange.is_empty() {
            return;
        }
        let Ok(defaults) = Config::load(&Self::new()) else {
            return;
        };
        let mut settings = Vec::new();
        if let Ok(defaults) = toml::Table::try_from(defaults) {
            leaves("", &defaults, &mut settings);
        }
        for name in &self.strange {
            let asked = name["STEADFAST_".len()..].to_lowercase();
            if let Some(setting) = settings
                .iter()
                .find(|setting| setting.replace('.', "_") == asked)
            {
                let place = Origin::Environment { name: name.clone() };
                let wanted = format!("{PREFIX}{}", setting.to_uppercase().replace('.', "__"));
                let mistake = Mistake::new(
                    place,
                    "is not read: two underscores part a section from its setting",
                );
                mistakes.push(mistake.help(format!("write {wanted}")));
            }
        }
    }
}

/// Every setting in a table, as `section.setting`.
fn leaves(path: &str, table: &toml::Table, found: &mut Vec<String>) {
    for (key, value) in table {
        let name = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        match value {
            toml::Value::Table(table) => leaves(&name, table, found),
            _ => found.push(name),
        }
    }
}

const PREFIX: &str = "STEADFAST__";

/// Variables with names of their own, as other programs know them.
const SHORT: &[(&str, &str)] = &[
    ("REDIS_URL", "redis.url"),
    ("DATABASE_URL", "database.url"),
    (SECONDS, "redis.health_timeout"),
];
const SECONDS: &str = "HEALTH_CHECK_REDIS_TIMEOUT";

fn path(setting: &str, separator: &str) -> Vec<String> {
    setting.split(separator).map(str::to_owned).collect()
}

/// The one variable that is a bare number of seconds, as a duration with its unit.
fn in_seconds(name: &str, value: &str) -> Option<String> {
    if name != SECONDS {
        return Some(value.to_owned());
    }
    let seconds: f64 = value.parse().ok()?;
    let allowed = seconds > 0.0 && seconds < 86_400.0;
    allowed.then(|| format!("{}us", (seconds * 1e6).round()))
}

#[cfg(test)]
mod tests;
