//! `[redis.sentinel]`: what is said to the sentinels that `redis.url` names, how much proof of the
//! primary a write needs, and where what they announce can be reached.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::addresses::AddressMap;
use super::credentials::CredentialsConfig;
use super::mistake::Mistake;
use super::secret::SecretUrl;
use super::section::Section;
use super::tls::RedisTlsConfig;
use super::units::{duration, millis, show_duration};

/// `[redis.sentinel]`: only with a `redis.url` of sentinels (`redis-sentinel://…`,
/// `rediss-sentinel://…`).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SentinelConfig {
    /// How recently a majority of the sentinels must have confirmed the primary before anything is
    /// written to it; at least 500 ms. Default: no proof is needed. Costs: without a majority of
    /// sentinels nothing is written to Redis, though the primary serves; invalidations wait.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some")]
    pub proof: Option<Duration>,
    /// How long calls wait at the start of an outage for another primary, if that is longer than
    /// `redis.reconnect_grace`, and it must be; default `0s`: not longer. Costs: in a longer outage
    /// each call of those moments waits in vain.
    #[serde(serialize_with = "duration")]
    pub wait_for_primary: Duration,
    /// `[redis.sentinel.credentials]`: who the service is to the sentinels, from the environment or
    /// a file, read at each connection. Default: as `sentinel_user` and `sentinel_password` in the
    /// URL say, or nobody; never what the servers are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsConfig>,
    /// `[redis.sentinel.tls]`: where sentinels speak TLS otherwise than the servers do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<SentinelTlsConfig>,
    /// `[redis.sentinel.addresses]`: announced addresses, and where they can be reached; default
    /// none: as they are announced.
    #[serde(skip_serializing_if = "AddressMap::is_empty")]
    pub addresses: AddressMap,
}

/// `[redis.sentinel.tls]`: TLS to sentinels, in place of what is spoken to the servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SentinelTlsConfig {
    /// Whether TLS is spoken to sentinels; default yes, once the section is there.
    pub enabled: bool,
    /// How, as in `[redis.tls]`.
    #[serde(flatten, skip_serializing_if = "RedisTlsConfig::is_default")]
    pub how: RedisTlsConfig,
}

impl SentinelConfig {
    /// `None` if there is no such section.
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        if !section.is_given() {
            return None;
        }
        let (credentials, tls) = (section.section("credentials"), section.section("tls"));
        let addresses = section.section("addresses");
        let config = Self {
            proof: section.positive("proof"),
            wait_for_primary: section.duration("wait_for_primary").unwrap_or_default(),
            credentials: CredentialsConfig::read_for_sentinels(&credentials),
            tls: SentinelTlsConfig::read(&tls),
            addresses: AddressMap::read(&addresses),
        };
        if config.proof.is_some_and(|within| within < millis(500)) {
            let message =
                "must be at least 500ms: the sentinels are asked three times within that time";
            section.refuse(section.mistake("proof", message));
        }
        for section in [credentials, tls, addresses] {
            section.finish();
        }
        Some(config)
    }

    /// Names what contradicts the URL and the deadline.
    pub(crate) fn contradictions(
        &self,
        section: &Section<'_>,
        url: &SecretUrl,
        (grace, deadline): (Duration, Duration),
    ) {
        let scheme = url.scheme();
        if !url.is_refused() && !scheme.ends_with("-sentinel") {
            let message = format!(
                "`{}` is of no use: `redis.url` begins with {scheme}://, so no sentinels are asked",
                section.path()
            );
            let wanted = match scheme {
                "rediss" => "rediss-sentinel",
                _ => "redis-sentinel",
            };
            let mistake = Mistake::new(section.place(), message);
            section.refuse(mistake.help(format!(
                "write {wanted}://HOST:26379,HOST:26379,HOST:26379/NAME in `redis.url`, with the name that the sentinels watch, or leave the section out"
            )));
        }
        if self.credentials.is_some() && url.says("sentinel_password") {
            let message = "contradicts `redis.url`, which holds a `sentinel_password`: one of the two must go";
            section.refuse(section.mistake("credentials", message));
        }
        if !self.wait_for_primary.is_zero() && self.wait_for_primary < grace {
            let message = format!(
                "is shorter than `redis.reconnect_grace` ({}), so it changes nothing",
                show_duration(grace)
            );
            let mistake = section.mistake("wait_for_primary", message);
            section.refuse(mistake.help("a longer wait, or none"));
        }
        if self.wait_for_primary > deadline {
            let message = format!(
                "is longer than `redis.deadline` ({}), which ends the call first",
                show_duration(deadline)
            );
            let mistake = section.mistake("wait_for_primary", message);
            section.refuse(mistake.help("a longer deadline, or a shorter wait"));
        }
    }
}

impl SentinelTlsConfig {
    fn read(section: &Section<'_>) -> Option<Self> {
        if !section.is_given() {
            return None;
        }
        let enabled = section.boolean("enabled").unwrap_or(true);
        let others = ["ca", "certificate", "key", "server_name", "min_version"];
        if let Some(key) = others.into_iter().find(|key| !enabled && section.has(key)) {
            let message = format!("means nothing with `{}.enabled = false`", section.path());
            section.refuse(section.mistake(key, message));
        }
        let how = RedisTlsConfig::read(section);
        Some(Self { enabled, how })
    }
}

/// For `#[serde(serialize_with)]`; never called for `None`.
fn some<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration(&value.unwrap_or_default(), serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigError, Sources};

    fn load(text: &str) -> Result<Config, ConfigError> {
        Config::load(&Sources::new().text("test.toml", text))
    }

    const URL: &str = "[redis]\nurl = \"redis-sentinel://a,b,c/main\"\n";

    #[test]
    fn t17_what_is_set_for_sentinels_is_read_shown_and_readable_again() {
        let text = format!(
            "{URL}[redis.sentinel]\nproof = \"5s\"\nwait_for_primary = \"800ms\"\n\
             [redis.sentinel.credentials]\nsource = \"file\"\nuser = \"watch\"\npath = \"/run/secrets/sentinel\"\n\
             [redis.sentinel.tls]\nenabled = false\n\
             [redis.sentinel.addresses]\n\"10.0.0.5:6379\" = \"gateway:7001\"\n\"redis-b\" = \"::1\"\n"
        );
        let config = load(&text).unwrap_or_else(|error| panic!("{error}"));
        let sentinel = config.redis.sentinel.as_ref().unwrap();
        assert_eq!(sentinel.proof, Some(Duration::from_secs(5)));
        assert!(!sentinel.tls.as_ref().unwrap().enabled);
        let shown = config.show();
        assert!(shown.contains("proof = \"5s\""), "{shown}");
        assert!(
            shown.contains("\"10.0.0.5:6379\" = \"gateway:7001\""),
            "{shown}"
        );
        let again = load(&shown).unwrap_or_else(|error| panic!("{error}\n{shown}"));
        assert_eq!(again.redis.sentinel, config.redis.sentinel);
        assert!(load(URL).unwrap().redis.sentinel.is_none());
    }

    #[test]
    fn t25_an_announced_address_is_looked_up_with_its_port_and_then_without() {
        let text = format!(
            "{URL}[redis.sentinel.addresses]\n\"10.0.0.5:6379\" = \"gateway:7001\"\n\
             \"10.0.0.5\" = \"far.example\"\n\"Redis-B\" = \"b.example\"\n\"[fd00::1]:6379\" = \"[::1]:7\"\n"
        );
        let config = load(&text).unwrap_or_else(|error| panic!("{error}"));
        let map = &config.redis.sentinel.as_ref().unwrap().addresses;
        for (from, to) in [
            (("10.0.0.5", 6379), ("gateway", 7001)),
            (("10.0.0.5", 6380), ("far.example", 6380)),
            (("REDIS-b", 1), ("b.example", 1)),
            (("fd00::1", 6379), ("::1", 7)),
            (("10.0.0.6", 6379), ("10.0.0.6", 6379)),
        ] {
            assert_eq!(map.translate(from.0, from.1), (to.0.to_owned(), to.1));
        }
    }

    #[test]
    fn s10_what_contradicts_a_url_of_sentinels_is_named_with_what_to_write_instead() {
        let sentinel = "redis-sentinel://a,b/main";
        for (url, rest, words) in [
            ("redis://h", "", "4:8: `redis.sentinel` is of no use"),
            ("redis://h", "", "write redis-sentinel://HOST:26379"),
            ("rediss://h", "", "write rediss-sentinel://"),
            (
                sentinel,
                "proof = \"100ms\"",
                "`redis.sentinel.proof` must be at least 500ms",
            ),
            (
                sentinel,
                "wait_for_primary = \"9s\"",
                "5:20: `redis.sentinel.wait_for_primary` is longer than `redis.deadline` (1s)",
            ),
            (
                sentinel,
                "prof = \"1s\"",
                "did you mean `redis.sentinel.proof`",
            ),
            (
                "redis-sentinel://a/m?sentinel_password=hunter2",
                "credentials = { source = \"environment\" }",
                "which holds a `sentinel_password`",
            ),
            (
                sentinel,
                "credentials = { source = \"entra\" }",
                "must be one of environment, file",
            ),
            (
                sentinel,
                "tls = { enabled = false, ca = \"ca.pem\" }",
                "`redis.sentinel.tls.ca` means nothing with `redis.sentinel.tls.enabled = false`",
            ),
            (
                sentinel,
                "addresses = { \"a:1\" = \"b\" }",
                "must have a port on both sides, or on neither",
            ),
            (
                sentinel,
                "addresses = { \"a:0\" = \"b:1\" }",
                "is announced by nobody",
            ),
            (
                sentinel,
                "addresses = { a = \"b c\" }",
                "stands for what is no host",
            ),
            (sentinel, "addresses = { a = 5 }", "must be a string"),
            (
                sentinel,
                "addresses = { \"Redis-A\" = \"b\", \"redis-a\" = \"c\" }",
                "is given twice, and stands for two addresses",
            ),
            (
                sentinel,
                "tls = { enabled = false, min_version = \"1.3\" }",
                "`redis.sentinel.tls.min_version` means nothing",
            ),
            (
                sentinel,
                "wait_for_primary = \"100ms\"",
                "is shorter than `redis.reconnect_grace` (250ms), so it changes nothing",
            ),
            (
                sentinel,
                "credentials = { source = \"file\", path = \"/p\", look_every = \"1s\" }",
                "`redis.sentinel.credentials.look_every` is of no use",
            ),
        ] {
            let text = format!("[redis]\nurl = \"{url}\"\n\n[redis.sentinel]\n{rest}\n");
            let shown = load(&text).expect_err(&text).to_string();
            assert!(shown.contains(words), "{words}:\n{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}
