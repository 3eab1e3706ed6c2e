//! Whether a request was meant for this service. A page of another origin, or a name that points
//! here by trickery, is refused, also on loopback.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, Version, header};

use crate::config::ServerConfig;
use crate::problem::{Problem, ProblemKind};

/// The values of Host that mean this service.
#[derive(Debug, Clone)]
pub(crate) struct HostRule {
    named: Vec<String>,
    listen: IpAddr,
}

impl HostRule {
    pub(crate) fn new(config: &ServerConfig) -> Self {
        Self {
            named: config
                .hosts
                .iter()
                .map(|host| host.to_lowercase())
                .collect(),
            listen: config.listen.ip(),
        }
    }

    /// Holds Host, Origin and Sec-Fetch-Site against what this service is called.
    pub(crate) fn check(&self, request: &Request, probe: bool) -> Result<(), Problem> {
        let headers = request.headers();
        let mut hosts = headers.get_all(header::HOST).iter();
        if hosts.next().is_some() && hosts.next().is_some() {
            let problem = "the request names more than one host";
            return Err(Problem::new(ProblemKind::Plain, problem));
        }
        let host = request
            .uri()
            .authority()
            .map(|authority| authority.as_str())
            .or_else(|| text(headers, header::HOST));
        let Some(host) = host else {
            // A probe of HTTP/1.0 need not name one, and no browser speaks it.
            if request.version() == Version::HTTP_10 && probe {
                return Ok(());
            }
            return Err(Problem::new(
                ProblemKind::Plain,
                "the request names no host",
            ));
        };
        let probed = probe && names_an_address(host);
        if !probed && !self.allows(host) {
            return Err(Problem::new(
                ProblemKind::Forbidden,
                "the host of the request is not one of this service; name it in `server.hosts`",
            ));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let same = origin
                .to_str()
                .ok()
                .and_then(|origin| origin.split_once("://"))
                .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
            if !same {
                return Err(foreign());
            }
        }
        let navigates =
            request.method() == Method::GET && text(headers, FETCH_MODE) == Some("navigate");
        if text(headers, FETCH_SITE) == Some("cross-site") && !navigates {
            return Err(foreign());
        }
        Ok(())
    }

    /// On loopback: its names and addresses, and those configured. Elsewhere the address that it
    /// listens on and those configured, or any if none are, since callers there bring a token that
    /// no foreign page has.
    fn allows(&self, host: &str) -> bool {
        let name = without_port(host);
        let address = literal(name);
        // An address can be written in many ways, and stands in brackets only in one of the two.
        let is_named = |named: &String| match address {
            Some(address) => literal(named) == Some(address),
            None => named.eq_ignore_ascii_case(name),
        };
        if self.named.iter().any(is_named) {
            return true;
        }
        if self.listen.is_loopback() {
            return is_localhost(name) || address.is_some_and(|address| address.is_loopback());
        }
        let is_own = !self.listen.is_unspecified() && address == Some(self.listen.to_canonical());
        self.named.is_empty() || is_own
    }
}

/// Whether a host is named as probes name it: by an address, or as this machine. A foreign page
/// cannot make a browser say either of a name that it controls, so that health and metrics may be
/// asked for so whatever `server.hosts` names.
pub(crate) fn names_an_address(host: &str) -> bool {
    let name = without_port(host);
    is_localhost(name) || literal(name).is_some()
}

fn is_localhost(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
}

fn literal(name: &str) -> Option<IpAddr> {
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address
        .parse()
        .ok()
        .map(|address: IpAddr| address.to_canonical())
}

fn without_port(host: &str) -> &str {
    if let Some(end) = host.rfind(']') {
        return &host[..=end];
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn foreign() -> Problem {
    Problem::new(
        ProblemKind::Forbidden,
        "the request comes from a page of another origin",
    )
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rule(listen: &str, hosts: &[&str]) -> HostRule {
        HostRule {
            named: hosts.iter().map(|host| (*host).to_owned()).collect(),
            listen: listen.parse().unwrap(),
        }
    }

    #[test]
    fn s5_only_names_of_this_service_are_answered() {
        let local = rule("127.0.0.1", &["steadfast.test"]);
        for host in [
            "127.0.0.1:8080",
            "localhost",
            "LOCALHOST:1",
            "[::1]:8080",
            "steadfast.test:80",
        ] {
            assert!(local.allows(host), "{host}");
        }
        for host in [
            "evil.test",
            "127.0.0.1.evil.test:8080",
            "",
            "[::2]",
            "10.0.0.1",
            "localhost.evil",
        ] {
            assert!(!local.allows(host), "{host}");
        }
        assert!(rule("0.0.0.0", &[]).allows("anything"));
        assert!(!rule("0.0.0.0", &["a"]).allows("b"));
    }

    #[test]
    fn s5_an_address_is_the_same_however_it_is_written_and_the_own_one_is_admitted() {
        let named = rule("0.0.0.0", &["2001:db8::1", "[2001:db8::2]", "10.0.0.1"]);
        for host in [
            "[2001:db8::1]:8080",
            "[2001:DB8:0::1]",
            "[2001:db8::2]",
            "10.0.0.1:80",
            "[::ffff:10.0.0.1]:80",
        ] {
            assert!(named.allows(host), "{host}");
        }
        for host in ["[2001:db8::3]", "10.0.0.2", "0.0.0.0", "127.0.0.1"] {
            assert!(!named.allows(host), "{host}");
        }
        let own = rule("10.0.0.5", &["steadfast.test"]);
        assert!(own.allows("10.0.0.5:8080") && own.allows("steadfast.test"));
        assert!(!own.allows("10.0.0.6") && !own.allows("localhost"));
    }

    #[test]
    fn s5_a_probe_names_an_instance_by_address_and_nothing_else() {
        for host in [
            "10.1.2.3:8080",
            "[fd00::7]:80",
            "[::1]",
            "localhost:80",
            "127.0.0.1",
        ] {
            assert!(names_an_address(host), "{host}");
        }
        for host in ["evil.test", "10.1.2.3.evil.test:80", "", "localhost.evil"] {
            assert!(!names_an_address(host), "{host}");
        }
    }
}
