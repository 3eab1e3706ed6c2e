//! `[server]`: addresses, names and the end of the service.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use super::section::Section;
use super::tls::ServerTlsConfig;
use super::units::{duration, secs};
use crate::address_range::AddressRange;

/// `[server]`: where the service listens and how it ends.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Address to listen on; default `127.0.0.1:8080`, port 0 takes a free one. Without `[auth]` it
    /// must be loopback.
    pub listen: SocketAddr,
    /// Names and addresses under which the service may be reached, besides the address in `listen`
    /// and, if that is loopback, every name of loopback. Default none: then any, unless `listen` is
    /// loopback. A `listen` such as 0.0.0.0 is no address of anybody: name the real ones here.
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
