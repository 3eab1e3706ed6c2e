//! URLs that name several hosts: the seeds from which the others are learnt.

use steadfast_core::node::Endpoint;
use url::Url;

use crate::error::ConfigError;

/// The form of the hosts of one kind of URL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hosts {
    /// The ending of the schemes, such as `-sentinel`.
    pub(crate) ending: &'static str,
    /// The kind of host, for messages.
    pub(crate) what: &'static str,
    /// The port of a host that names none.
    pub(crate) port: u16,
    /// The most hosts.
    pub(crate) most: usize,
}

impl Hosts {
    /// Returns whether a URL's scheme is one of these.
    pub(crate) fn is_scheme(self, scheme: &str) -> bool {
        let service = scheme.strip_suffix(self.ending);
        service.is_some_and(|service| matches!(service, "redis" | "rediss" | "valkey" | "valkeys"))
    }

    /// Divides `scheme://[user:password@]host,host…/rest` into the same with the first host only,
    /// which a URL may be, and the other hosts. `None` of a URL of another scheme.
    pub(crate) fn divide(self, text: &str) -> Option<(String, Vec<&str>)> {
        let (scheme, rest) = text.split_once("://")?;
        if !self.is_scheme(scheme) {
            return None;
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let mut hosts = hosts.split(',');
        let first = hosts.next().unwrap_or_default();
        Some((format!("{scheme}://{user}{first}{tail}"), hosts.collect()))
    }

    /// Reads the hosts, each once.
    ///
    /// # Errors
    /// A host cannot be read, or they are too many.
    pub(crate) fn read(self, url: &Url, others: &[&str]) -> Result<Vec<Endpoint>, ConfigError> {
        let what = self.what;
        let mut seeds = vec![self.endpoint(url)?];
        for (number, other) in (2..).zip(others) {
            // Not quoted: what is no address may be a password.
            let bad = |why: &str| bad(format!("host {number} is no address of a {what}: {why}"));
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
            if !other.chars().all(plain) {
                return Err(bad("write host or host:port"));
            }
            let url = Url::parse(&format!("redis{}://{other}", self.ending))
                .map_err(|error| bad(&error.to_string()))?;
            if !matches!(url.path(), "" | "/") || !url.username().is_empty() {
                return Err(bad("write host or host:port"));
            }
            let seed = self.endpoint(&url)?;
            if !seeds.contains(&seed) {
                seeds.push(seed);
            }
        }
        if seeds.len() > self.most {
            return Err(bad(format!("it names more than {} {what}s", self.most)));
        }
        if url.path().contains('@') {
            // Not quoted: it may be a password.
            return Err(bad(
                "there is an `@` behind the hosts: write what is special in user and password as %XX".into(),
            ));
        }
        Ok(seeds)
    }

    fn endpoint(self, url: &Url) -> Result<Endpoint, ConfigError> {
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| bad(format!("a {} has no host", self.what)))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match url.port() {
            Some(0) => Err(bad("port 0 cannot be connected to".into())),
            port => Ok(Endpoint::new(host, port.unwrap_or(self.port))),
        }
    }
}

fn bad(why: String) -> ConfigError {
    ConfigError::Url { why }
}
