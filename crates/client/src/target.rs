//! The server to connect to, as a URL names it.

use std::path::PathBuf;

use url::Url;

use crate::credentials::Credentials;
use crate::error::ConfigError;
use crate::membership::{ClusterTarget, NODES};
use crate::sentinel::{SENTINELS, SentinelTarget};

/// The address of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
    /// The sentinels that watch a primary.
    Sentinel(SentinelTarget),
    /// Of some nodes of a cluster.
    Cluster(ClusterTarget),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Sentinel(target) => target.fmt(f),
            Self::Cluster(target) => target.fmt(f),
        }
    }
}

/// The protocol that the server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Resp2,
    Resp3,
}

/// The role that a server must have to be put into service.
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

/// The content of a URL.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: Address,
    /// Whether the URL asks for TLS; never without the feature, which such a URL is refused for.
    pub(crate) tls: bool,
    pub(crate) db: i64,
    pub(crate) protocol: Protocol,
    pub(crate) credentials: Option<Credentials>,
    /// User name and password for sentinels.
    pub(crate) sentinel_credentials: Option<Credentials>,
}

impl Target {
    /// Reads a URL as redis-rs does: `redis://[user[:password]@]host[:port][/db][?protocol=resp3]`,
    /// `rediss://…`, `unix:///path[?db=…]`. And
    /// `redis-sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]`,
    /// `rediss-sentinel://…`. And `redis-cluster://[user:password@]host[:port][,host[:port]…]`,
    /// `rediss-cluster://…`.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let read = Self::read(text);
        match divided_password(text) {
            // Whatever else is wrong would have to be quoted, and may be the password.
            true if read.is_err() || has_stray_at(text) => Err(bad_url(DIVIDED.into())),
            _ => read,
        }
    }

    fn read(text: &str) -> Result<Self, ConfigError> {
        let divided = SENTINELS.divide(text).or_else(|| NODES.divide(text));
        let (one_host, other_hosts) = divided.unwrap_or_else(|| (text.to_owned(), Vec::new()));
        let url = Url::parse(&one_host).map_err(|error| bad_url(error.to_string()))?;
        let sentinels = SENTINELS.is_scheme(url.scheme());
        let cluster = NODES.is_scheme(url.scheme());
        let tls = speaks_tls(url.scheme())?;
        let unix = matches!(url.scheme(), "unix" | "redis+unix");
        let mut path_db = url.path().trim_matches('/');
        let address = if sentinels {
            let (target, db) = SentinelTarget::read(&url, &other_hosts)?;
            path_db = db;
            Address::Sentinel(target)
        } else if cluster {
            Address::Cluster(ClusterTarget::read(&url, &other_hosts)?)
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
        let has_password = url.query_pairs().any(|(key, _)| is_password(&key));
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
                // An `&` in the password begins another parameter.
                _ if has_password => return Err(bad_url(UNKNOWN_BESIDE_PASSWORD.into())),
                other => return Err(bad_url(format!("unknown parameter `{other}`"))),
            }
        }
        if cluster && target.db != 0 {
            return Err(bad_url(
                "a cluster has database 0 only: leave the number out".into(),
            ));
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

/// Returns whether a URL of this scheme asks for TLS.
fn speaks_tls(scheme: &str) -> Result<bool, ConfigError> {
    let of_several = scheme
        .strip_suffix(SENTINELS.ending)
        .or_else(|| scheme.strip_suffix(NODES.ending));
    match of_several.unwrap_or(scheme) {
        "redis" | "valkey" => Ok(false),
        "unix" | "redis+unix" if of_several.is_none() => Ok(false),
        "rediss" | "valkeys" if cfg!(feature = "tls") => Ok(true),
        "rediss" | "valkeys" => Err(ConfigError::NoTls),
        _ => Err(ConfigError::Scheme {
            scheme: scheme.into(),
        }),
    }
}

/// Returns whether a URL says `user:@host`, which, once parsed, is the same as `user@host`.
fn says_no_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    authority
        .rsplit_once('@')
        .is_some_and(|(user, _)| user.ends_with(':'))
}

/// Returns whether an `@` comes after what may have ended the host's part of a URL: then it is not
/// known where the password ends.
fn divided_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find(['/', '?', '#'])
        .is_some_and(|end| rest[end..].contains('@'))
}

/// Returns whether a URL has an `@` in its fragment, which means nothing in it.
fn has_stray_at(url: &str) -> bool {
    url.split_once('#')
        .is_some_and(|(_, fragment)| fragment.contains('@'))
}

fn is_password(key: &str) -> bool {
    matches!(key, "pass" | "password" | "sentinel_password")
}

const DIVIDED: &str = "there is an `@` behind a `/`, `?` or `#`: percent-encode what is special in \
     user name and password (`/` as %2F, `?` as %3F, `#` as %23, `@` as %40)";

const UNKNOWN_BESIDE_PASSWORD: &str = "it has an unknown parameter, which is not shown because it \
     may be part of the password: percent-encode what is special in that (`&` as %26)";

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
            ("redis://u@h/?user=u:@x", "percent-encode"),
        ] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains(want), "{url}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn c14_a_password_that_is_not_encoded_is_never_shown_wherever_it_is_taken_to_end() {
        for url in [
            "redis://app:123/s3cret@host:6379",
            "redis://:p@ss/s3cret@host",
            "redis://app:s3cret/1@host",
            "redis://app:12?s3cret@host",
            "redis://app:12?db=s3cret@host",
            "redis://app:12?protocol=s3cret@host",
            "redis://app:12#s3cret@host",
            "redis://:p#s3cret@host",
            "rediss://app:12/s3cret@host/0?protocol=resp3",
            "redis-sentinel://app:12/s3cret@host/main",
            "redis-sentinel://app:12?s3cret@host/main",
            "redis-sentinel://app:12/m/s3cret@host",
            "redis-cluster://app:12?s3cret@host",
            "redis-cluster://app:12#s3cret@host",
            "unix://app:12?s3cret@/run/redis.sock",
        ] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains("percent-encode"), "{url}: {error}");
            assert!(!error.contains("s3cret"), "{url}: {error}");
        }
        for url in ["redis://h?password=a&s3cret", "redis://h?pass=a&s3=cret"] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains("%26"), "{url}: {error}");
            assert!(!error.contains("s3"), "{url}: {error}");
        }
        // Where it stands for itself, it is taken.
        let target = Target::parse("redis://h/1?user=a@b&password=p@ss").expect("a good url");
        let credentials = target.credentials.expect("it names a user");
        assert_eq!(
            (credentials.user(), credentials.password()),
            ("a@b", "p@ss")
        );
        let target = Target::parse("unix:///run/@redis").expect("a good url");
        assert_eq!(target.address.to_string(), "/run/@redis");
    }
}
