//! `[redis.cluster]`: which nodes of a cluster reads may be served by, and where the nodes can be
//! reached.

use std::time::Duration;

use serde::Serialize;
use steadfast::defaults;

use super::addresses::AddressMap;
use super::mistake::Mistake;
use super::secret::SecretUrl;
use super::section::Section;
use super::units::{duration, millis, secs};

/// `[redis.cluster]`: only with a `redis.url` of a cluster (`redis-cluster://…`,
/// `rediss-cluster://…`).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// The servers by which reads may be served: `primary` (default), or `replicas`, if one is
    /// fit, else the primary. The cache and the limits of rate ask primaries whatever is set here:
    /// an invalidation must be seen at once. It holds for what else uses the service's client
    /// (`App::client`). Costs of replicas: data as old as `max_lag`, a second question for a key
    /// that is not there, a connection to each replica.
    pub read_from: ReadFrom,
    /// The age that the data of a replica may have at most which is read from; default 1 s, at
    /// least 100 ms. Where replicas are read from, they and their primaries are asked for their
    /// state four times within it.
    #[serde(serialize_with = "duration")]
    pub max_lag: Duration,
    /// `[redis.cluster.addresses]`: announced addresses, and where they can be reached; default
    /// none: as they are announced.
    #[serde(skip_serializing_if = "AddressMap::is_empty")]
    pub addresses: AddressMap,
}

/// The servers by which reads may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ReadFrom {
    /// The primary of the key.
    Primary,
    /// A replica whose data are young enough, if there is one.
    Replicas,
}

impl ClusterConfig {
    /// `None` if there is no such section.
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        if !section.is_given() {
            return None;
        }
        let addresses = section.section("addresses");
        let servers = [
            ("primary", ReadFrom::Primary),
            ("replicas", ReadFrom::Replicas),
        ];
        let config = Self {
            read_from: (section.choice("read_from", &servers)).unwrap_or(ReadFrom::Primary),
            max_lag: section.positive("max_lag").unwrap_or(defaults::MAX_LAG),
            addresses: AddressMap::read(&addresses),
        };
        if config.max_lag < millis(100) || config.max_lag > secs(86_400) {
            let message = "must be at least 100ms and at most a day";
            section.refuse(section.mistake("max_lag", message));
        }
        addresses.finish();
        Some(config)
    }

    /// Names what contradicts the URL.
    pub(crate) fn contradictions(section: &Section<'_>, url: &SecretUrl) {
        let scheme = url.scheme();
        if url.is_refused() || scheme.ends_with("-cluster") {
            return;
        }
        let message = format!(
            "`{}` is of no use: `redis.url` begins with {scheme}://, which is no cluster",
            section.path()
        );
        let wanted = match scheme {
            "rediss" | "rediss-sentinel" => "rediss-cluster",
            _ => "redis-cluster",
        };
        let mistake = Mistake::new(section.place(), message);
        section.refuse(mistake.help(format!(
            "write {wanted}://HOST:6379,HOST:6379 in `redis.url`, with some nodes of the cluster, or leave the section out"
        )));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigError, Sources};

    const URL: &str = "[redis]\nurl = \"redis-cluster://a,b,c\"\n";

    fn load(text: &str) -> Result<Config, ConfigError> {
        Config::load(&Sources::new().text("steadfast.toml", text))
    }

    #[test]
    fn t24_where_a_cluster_is_read_is_set_shown_and_readable_again() {
        let text = format!(
            "{URL}[redis.cluster]\nread_from = \"replicas\"\nmax_lag = \"300ms\"\n\
             [redis.cluster.addresses]\n\"10.0.0.5:6379\" = \"gateway:7001\"\n"
        );
        let config = load(&text).unwrap();
        let cluster = config.redis.cluster.as_ref().unwrap();
        assert_eq!(cluster.read_from, ReadFrom::Replicas);
        assert_eq!(cluster.max_lag, millis(300));
        let reached = cluster.addresses.translate("10.0.0.5", 6379);
        assert_eq!(reached, ("gateway".to_owned(), 7001));
        assert!(
            config
                .notes()
                .iter()
                .any(|note| note.contains("App::client"))
        );
        let again = load(&config.show()).unwrap();
        assert_eq!(again.redis.cluster, config.redis.cluster);
        let plain = load(URL).unwrap();
        assert!(plain.redis.cluster.is_none());
        assert!(
            !plain
                .notes()
                .iter()
                .any(|note| note.contains("App::client"))
        );
    }

    #[test]
    fn t24_the_environment_sets_where_a_cluster_is_read() {
        let variables = [
            ("REDIS_URL", "redis-cluster://a,b"),
            ("STEADFAST__REDIS__CLUSTER__READ_FROM", "replicas"),
            ("STEADFAST__REDIS__CLUSTER__MAX_LAG", "2s"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::load(&Sources::new().environment(variables)).unwrap();
        let cluster = config.redis.cluster.unwrap();
        assert_eq!(cluster.read_from, ReadFrom::Replicas);
        assert_eq!(cluster.max_lag, secs(2));
    }

    #[test]
    fn s10_what_contradicts_a_cluster_is_named_with_what_to_write_instead() {
        let cluster = "redis-cluster://a,b";
        for (url, rest, said) in [
            ("redis://h", "", "4:8: `redis.cluster` is of no use"),
            ("redis://h", "", "write redis-cluster://HOST:6379"),
            ("rediss://h", "", "write rediss-cluster://"),
            ("redis-sentinel://a/m", "", "which is no cluster"),
            (
                cluster,
                "read_from = \"slaves\"",
                "must be one of primary, replicas",
            ),
            (cluster, "max_lag = \"50ms\"", "must be at least 100ms"),
            (
                cluster,
                "maxlag = \"1s\"",
                "did you mean `redis.cluster.max_lag`",
            ),
            (cluster, "addresses = { a = 5 }", "must be a string"),
        ] {
            let text = format!("[redis]\nurl = \"{url}\"\n\n[redis.cluster]\n{rest}\n");
            let error = load(&text).expect_err(&text).to_string();
            assert!(error.contains(said), "{text}\n{error}");
        }
    }
}
