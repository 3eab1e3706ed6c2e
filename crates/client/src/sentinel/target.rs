//! The URL of a primary that sentinels watch.

use std::fmt;
use std::sync::Arc;

use steadfast_core::node::{Endpoint, MAX_SENTINELS};
use url::Url;

use crate::error::ConfigError;
use crate::seeds::Hosts;

/// The sentinels to begin with, and the name of what they watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentinelTarget {
    /// The sentinels to ask first, from 1 to 32.
    pub(crate) seeds: Vec<Endpoint>,
    pub(crate) service: Arc<str>,
}

/// Writes `mymaster by sentinels at a:26379, b:26379`.
impl fmt::Display for SentinelTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by sentinels at ", self.service)?;
        for (at, seed) in self.seeds.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{seed}")?;
        }
        Ok(())
    }
}

/// The form of the sentinels of a URL.
pub(crate) const SENTINELS: Hosts = Hosts {
    ending: "-sentinel",
    what: "sentinel",
    port: 26379,
    most: MAX_SENTINELS,
};

impl SentinelTarget {
    /// Reads what the URL says of the sentinels. Returns the database's part of the path as well.
    ///
    /// # Errors
    /// A host cannot be read, or the path names no primary.
    pub(crate) fn read<'u>(url: &'u Url, others: &[&str]) -> Result<(Self, &'u str), ConfigError> {
        let seeds = SENTINELS.read(url, others)?;
        let path = url.path().trim_matches('/');
        let (service, db) = path.split_once('/').unwrap_or((path, ""));
        let service = percent_encoding::percent_decode_str(service)
            .decode_utf8()
            .map_err(|_| bad("the name of the primary is not UTF-8".into()))?;
        if service.is_empty() {
            return Err(bad(
                "it does not name the primary that the sentinels watch, as in \
                 redis-sentinel://host:26379/mymaster"
                    .into(),
            ));
        }
        let service = service.into();
        Ok((Self { seeds, service }, db))
    }
}

fn bad(why: String) -> ConfigError {
    ConfigError::Url { why }
}

#[cfg(test)]
mod tests {
    use crate::target::{Address, Target};

    #[test]
    fn t17_a_url_names_the_sentinels_and_what_they_watch() {
        let url = "redis-sentinel://ada:p%40ss@a.example:7000,b.example,[::1]:7001/my%20master/3\
                   ?protocol=resp3&sentinel_user=watch&sentinel_password=w%40rd";
        let target = Target::parse(url).expect("a good url");
        let Address::Sentinel(sentinels) = &target.address else {
            panic!("{:?}", target.address)
        };
        let said = "my master by sentinels at a.example:7000, b.example:26379, [::1]:7001";
        assert_eq!(sentinels.to_string(), said);
        assert_eq!((target.db, target.tls), (3, false));
        let credentials = target.credentials.expect("of the data");
        assert_eq!(
            (credentials.user(), credentials.password()),
            ("ada", "p@ss")
        );
        let theirs = target.sentinel_credentials.expect("of the sentinels");
        assert_eq!((theirs.user(), theirs.password()), ("watch", "w@rd"));
        let target = Target::parse("redis-sentinel://h/m").expect("a good url");
        assert_eq!(target.db, 0);
        assert!(target.sentinel_credentials.is_none() && target.credentials.is_none());
    }

    #[test]
    fn t17_a_bad_url_of_sentinels_says_what_is_wrong() {
        for (url, want) in [
            ("redis-sentinel://h", "does not name the primary"),
            (
                "redis-sentinel://h/",
                "redis-sentinel://host:26379/mymaster",
            ),
            ("redis-sentinel:///m", "no host"),
            ("redis-sentinel://a,,b/m", "has no host"),
            ("redis-sentinel://a,b:x/m", "host 2 is no address"),
            (
                "redis-sentinel://a,b,password=s3cret/m",
                "host 3 is no address",
            ),
            ("redis-sentinel://a,b:0/m", "port 0"),
            ("redis-sentinel://h/m/x", "`x` is not a database number"),
            ("redis-sentinel://h/m?wat=1", "unknown parameter `wat`"),
            ("redis-sentinel://ada:99/s3cret@h/0", "percent-encode"),
            ("redis-sentinel://u@h/m", "put a colon behind the name"),
            ("redis://h/0?sentinel_user=x", "only where sentinels"),
            ("redis-sentinel://h/m?sentinel_user=x", "sentinel_password"),
        ] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains(want), "{url}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let many: Vec<_> = (0..33).map(|n| format!("h{n}")).collect();
        let url = format!("redis-sentinel://{}/m", many.join(","));
        let error = Target::parse(&url).expect_err("they are too many");
        assert!(error.to_string().contains("more than 32"), "{error}");
    }
}
