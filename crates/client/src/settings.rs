//! Every number that shapes a client, refused once, at the door.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use steadfast_core::policy::{Backoff, BreakerConfig, BudgetConfig, Bulkhead, RetryPolicy};
use steadfast_core::resp::Limits;
use url::Url;

use crate::credentials::Credentials;
use crate::error::ConfigError;
use crate::resolve::{Resolve, SystemResolver};
use crate::sentinel::{self, SentinelTarget, Translation};
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
    /// Of a primary that sentinels watch.
    Sentinel(SentinelTarget),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Sentinel(target) => target.fmt(f),
        }
    }
}

/// Which protocol the server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Resp2,
    Resp3,
}

/// Which role a server must have to be put into service.
///
/// ```
/// use steadfast::{Client, Role};
///
/// # fn main() -> Result<(), steadfast::ConfigError> {
/// let reads_only = Client::builder("redis://replica.internal")?.role(Role::Any);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// A primary: one that takes writes. A replica in its place is refused.
    #[default]
    Primary,
    /// Any: a client that only reads may do with a replica.
    Any,
}

/// What the URL says.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: Address,
    #[cfg_attr(
        not(feature = "tls"),
        expect(dead_code, reason = "a URL that asks for TLS is refused")
    )]
    pub(crate) tls: bool,
    pub(crate) db: i64,
    pub(crate) protocol: Protocol,
    pub(crate) credentials: Option<Credentials>,
    /// User name and password for sentinels.
    pub(crate) sentinel_credentials: Option<Credentials>,
}

/// How TLS is spoken to sentinels.
#[cfg(feature = "tls")]
#[derive(Clone, Debug, Default)]
pub(crate) enum SentinelTls {
    /// As to the servers that they name.
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
    pub(crate) resolver: Arc<dyn Resolve>,
    pub(crate) deadline: Duration,
    pub(crate) reply_overdue: Duration,
    pub(crate) abandon_after: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) budget: BudgetConfig,
    pub(crate) breaker: BreakerConfig,
    pub(crate) reconnect: Backoff,
    pub(crate) blip_wait: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) buffered_bytes: usize,
    pub(crate) blocking_connections: usize,
    pub(crate) max_age: Option<Duration>,
    pub(crate) stuck_after: Duration,
    pub(crate) history: usize,
    /// How old a majority's word may be for writes; `None`: of any age.
    pub(crate) primary_proof: Option<Duration>,
    pub(crate) translation: Translation,
    /// How long calls wait for the next connection at the start of an outage, if that is longer
    /// than `blip_wait`.
    pub(crate) wait_for_primary: Duration,
    #[cfg(feature = "tls")]
    pub(crate) sentinel_tls: SentinelTls,
    pub(crate) repeat_without_fence: bool,
    pub(crate) repeat_only_reads: bool,
    pub(crate) reply_limits: Limits,
    pub(crate) seed: u64,
}

/// Health that must last before the allowance for short interruptions is whole again.
pub(crate) const HEALTHY_AFTER: Duration = Duration::from_secs(5);

impl Settings {
    pub(crate) fn new(target: Target) -> Self {
        Self {
            #[cfg(feature = "tls")]
            tls: target.tls.then(Tls::new),
            target,
            name: None,
            role: Role::Primary,
            resolver: Arc::new(SystemResolver::default()),
            deadline: Duration::from_secs(1),
            reply_overdue: Duration::from_millis(500),
            abandon_after: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(1),
            retry: RetryPolicy::default(),
            budget: BudgetConfig::default(),
            breaker: BreakerConfig::default(),
            reconnect: Backoff::full_jitter(Duration::from_millis(20), Duration::from_millis(250)),
            blip_wait: Duration::from_millis(250),
            heartbeat: Duration::from_secs(1),
            connections: 1,
            in_flight: 8192,
            buffered_bytes: 64 << 20,
            blocking_connections: 4,
            max_age: None,
            stuck_after: Duration::from_secs(30),
            history: 100,
            primary_proof: None,
            translation: Translation::default(),
            wait_for_primary: Duration::ZERO,
            #[cfg(feature = "tls")]
            sentinel_tls: SentinelTls::AsData,
            repeat_without_fence: false,
            repeat_only_reads: false,
            reply_limits: Limits::default(),
            seed: seed(),
        }
    }

    /// What one connection may hold of calls.
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

    /// How TLS is spoken to sentinels, if it is.
    #[cfg(feature = "tls")]
    pub(crate) fn tls_to_sentinels(&self) -> Option<&Tls> {
        match &self.sentinel_tls {
            SentinelTls::AsData => self.tls.as_ref(),
            SentinelTls::Own(tls) => Some(tls),
            SentinelTls::None => None,
        }
    }

    /// How often a majority of sentinels is to confirm the primary: often enough for the proof that
    /// writes need.
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
            ("reply_overdue", self.reply_overdue),
            ("abandon_after", self.abandon_after),
            ("connect_timeout", self.connect_timeout),
            ("heartbeat", self.heartbeat),
            ("stuck_after", self.stuck_after),
        ];
        for (setting, value) in times {
            if value.is_zero() || value > Duration::from_secs(86_400) {
                return refuse(setting, "must be more than nothing and at most a day");
            }
        }
        if self.blip_wait > Duration::from_secs(86_400) {
            return refuse("blip_wait", "must be at most a day");
        }
        if self.wait_for_primary > Duration::from_secs(86_400) {
            return refuse("wait_for_primary", "must be at most a day");
        }
        if self.primary_proof.is_some() && !matches!(self.target.address, Address::Sentinel(_)) {
            return refuse(
                "primary_proof",
                "needs sentinels: use a URL of the scheme redis-sentinel",
            );
        }
        if self
            .primary_proof
            .is_some_and(|within| within < Duration::from_millis(500))
        {
            return refuse("primary_proof", "must be at least 500 ms");
        }
        if self.stuck_after < self.connect_timeout * 5 {
            return refuse(
                "stuck_after",
                "must be at least 5 × connect_timeout, or a slow attempt to connect counts as stuck",
            );
        }
        if self.connections == 0 || self.connections > 1024 {
            return refuse("connections", "must be from 1 to 1024");
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
}

fn refuse(setting: &'static str, why: &str) -> Result<(), ConfigError> {
    Err(ConfigError::Setting {
        setting,
        why: why.into(),
    })
}

/// Jitter must differ from process to process, or a fleet reconnects in step.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

impl Target {
    /// Reads a URL as redis-rs does: `redis://[user[:password]@]host[:port][/db][?protocol=resp3]`,
    /// `rediss://…`, `unix:///path[?db=…]`. And
    /// `redis-sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]`,
    /// `rediss-sentinel://…`.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let (one_host, other_hosts) = sentinel::divide(text);
        let url = Url::parse(&one_host).map_err(|error| bad_url(error.to_string()))?;
        let tls = match url.scheme() {
            "redis" | "valkey" | "unix" | "redis+unix" | "redis-sentinel" | "valkey-sentinel" => {
                false
            }
            "rediss" | "valkeys" | "rediss-sentinel" | "valkeys-sentinel"
                if !cfg!(feature = "tls") =>
            {
                return Err(ConfigError::NoTls);
            }
            "rediss" | "valkeys" | "rediss-sentinel" | "valkeys-sentinel" => true,
            other => {
                return Err(ConfigError::Scheme {
                    scheme: other.into(),
                });
            }
        };
        let unix = matches!(url.scheme(), "unix" | "redis+unix");
        let sentinels = sentinel::is_scheme(url.scheme());
        let mut path_db = url.path().trim_matches('/');
        let address = if sentinels {
            let (target, db) = SentinelTarget::read(&url, &other_hosts)?;
            path_db = db;
            Address::Sentinel(target)
        } else if unix {
            unix_address(&url)?
        } else {
            tcp_address(&url)?
        };
        let mut target = Self {
            address,
            tls,
            db: 0,
            protocol: Protocol::Resp2,
            credentials: None,
            sentinel_credentials: None,
        };
        let mut user = decoded(url.username(), "user name")?;
        let mut password = url
            .password()
            .map(|password| decoded(password, "password"))
            .transpose()?;
        if !unix {
            target.db = database(path_db)?;
        }
        let (mut sentinel_user, mut sentinel_password) = (None, None);
        for (key, value) in url.query_pairs() {
            match &*key {
                "sentinel_user" | "sentinel_password" if !sentinels => {
                    return Err(bad_url(format!(
                        "`{key}` makes sense only where sentinels are asked"
                    )));
                }
                "sentinel_user" => sentinel_user = Some(value.into_owned()),
                "sentinel_password" => sentinel_password = Some(value.into_owned()),
                "db" => target.db = database(&value)?,
                "user" => user = value.into_owned(),
                "pass" | "password" => password = Some(value.into_owned()),
                "protocol" => target.protocol = protocol(&value)?,
                other => return Err(bad_url(format!("unknown parameter `{other}`"))),
            }
        }
        target.sentinel_credentials = match (sentinel_user, sentinel_password) {
            (None, None) => None,
            (user, Some(password)) => Some(Credentials::new(user.unwrap_or_default(), password)),
            (Some(_), None) => {
                return Err(bad_url(
                    "`sentinel_user` comes without `sentinel_password`".into(),
                ));
            }
        };
        target.credentials = match (user, password) {
            (user, Some(password)) => Some(Credentials::new(user, password)),
            (user, None) if user.is_empty() => None,
            (user, None) if says_no_password(text) => Some(Credentials::new(user, "")),
            _ => return Err(bad_url(USER_ALONE.into())),
        };
        Ok(target)
    }
}

/// True of `user:@host`, which a parsed URL does not tell from `user@host`.
fn says_no_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    authority
        .rsplit_once('@')
        .is_some_and(|(user, _)| user.ends_with(':'))
}

const USER_ALONE: &str = "a user name without a password, which may have been forgotten: for a user that \
     needs none (`nopass`) put a colon behind the name, as in redis://user:@host";

fn bad_url(why: String) -> ConfigError {
    ConfigError::Url { why }
}

fn tcp_address(url: &Url) -> Result<Address, ConfigError> {
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| bad_url("it has no host".into()))?;
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    match url.port() {
        Some(0) => Err(bad_url("port 0 cannot be connected to".into())),
        port => Ok(Address::Tcp {
            host,
            port: port.unwrap_or(6379),
        }),
    }
}

fn unix_address(url: &Url) -> Result<Address, ConfigError> {
    match decoded(url.path(), "path")? {
        path if path.len() > 1 => Ok(Address::Unix(path.into())),
        _ => Err(bad_url("it has no path".into())),
    }
}

fn decoded(text: &str, what: &str) -> Result<String, ConfigError> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| bad_url(format!("the {what} is not UTF-8")))
}

fn database(text: &str) -> Result<i64, ConfigError> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse::<u32>()
        .map(i64::from)
        .map_err(|_| bad_url(format!("`{text}` is not a database number")))
}

fn protocol(text: &str) -> Result<Protocol, ConfigError> {
    match text {
        "2" | "resp2" => Ok(Protocol::Resp2),
        "3" | "resp3" => Ok(Protocol::Resp3),
        other => Err(bad_url(format!(
            "unknown protocol `{other}`: use resp2 or resp3"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_redis_rs_reads_it() {
        let target = Target::parse("rediss://ada:p%40ss@db.example:7000/3?protocol=resp3")
            .expect("a good url");
        assert!(target.tls);
        assert_eq!(target.db, 3);
        assert_eq!(target.protocol, Protocol::Resp3);
        assert_eq!(target.address.to_string(), "db.example:7000");
        for url in [
            "redis://app:@h",
            "redis://app:@[::1]:7000/2",
            "redis://app@h?password=",
        ] {
            let target = Target::parse(url).expect(url);
            let credentials = target.credentials.expect("it names a user");
            assert_eq!((credentials.user(), credentials.password()), ("app", ""));
        }
        for url in ["redis://:@h", "redis://h/?db=1"] {
            assert!(
                Target::parse(url).expect(url).credentials.is_none(),
                "{url}"
            );
        }
        let target = Target::parse("redis://[::1]").expect("a good url");
        assert_eq!(target.address.to_string(), "[::1]:6379");
        let target = Target::parse("unix:///run/redis.sock?db=2").expect("a good url");
        assert_eq!(
            (target.address.to_string().as_str(), target.db),
            ("/run/redis.sock", 2)
        );
    }

    #[test]
    fn a_bad_url_says_what_is_wrong_and_never_shows_the_password() {
        for (url, want) in [
            ("http://localhost", "unknown scheme `http`"),
            ("redis://", "host"),
            ("redis://:s3cret@h/x", "`x` is not a database number"),
            ("redis://:s3cret@h?wat=1", "unknown parameter `wat`"),
            ("redis://:s3cret@h:0", "port 0"),
            ("not a url", "cannot be read"),
            ("redis://u@h", "put a colon behind the name"),
            ("redis://u@h/?user=u:@x", "put a colon behind the name"),
        ] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains(want), "{url}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let mut settings = Settings::new(Target::parse("redis://h").expect("a good url"));
        assert!(settings.validate().is_ok());
        settings.heartbeat = Duration::ZERO;
        let error = settings.validate().expect_err("it is nothing").to_string();
        assert!(error.contains("heartbeat"), "{error}");
        settings.heartbeat = Duration::from_secs(1);
        settings.blip_wait = Duration::MAX;
        let error = settings.validate().expect_err("it never ends").to_string();
        assert!(error.contains("blip_wait"), "{error}");
    }
}
