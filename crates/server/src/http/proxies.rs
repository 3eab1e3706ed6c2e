//! Behind a proxy every caller has the proxy's address, unless the proxy is believed when it says
//! whom it asks for. Each hop appends the address that it was asked by; whatever stands before the
//! first hop that is not ours was written by a stranger. So the list is walked from the right, over
//! our own, to the first that is not.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Request;
use axum::http::HeaderMap;

use crate::address_range::AddressRange;
use crate::config::ServerConfig;
use crate::peer::Peer;

/// The proxies that are believed.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    trusted: Vec<AddressRange>,
}

impl Proxies {
    pub(crate) fn new(config: &ServerConfig) -> Self {
        let trusted = config.trusted_proxies.iter();
        Self {
            trusted: trusted
                .filter_map(|text| AddressRange::parse(text))
                .collect(),
        }
    }

    /// Puts the caller's address in the place of the last proxy's, if that is one of ours.
    pub(crate) fn find_caller(&self, request: &mut Request) {
        let Some(Peer(peer)) = request.extensions().get::<Peer>().copied() else {
            return;
        };
        let caller = self.caller(peer.ip(), request.headers());
        if caller != peer.ip() {
            request
                .extensions_mut()
                .insert(Peer(SocketAddr::new(caller, 0)));
        }
    }

    fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut caller = peer;
        if !self.trusts(peer) {
            return caller;
        }
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        let hops = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
        for hop in hops {
            // What is no address tells no more: the last hop that was understood is as far as
            // anyone knows.
            let Some(address) = address(hop.trim()) else {
                break;
            };
            caller = address;
            if !self.trusts(address) {
                break;
            }
        }
        caller
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|range| range.holds(address))
    }
}

/// An address, with a port or without.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || {
        text.trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .ok()
    };
    let with_port = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    let address: IpAddr = bare().or_else(with_port)?;
    Some(address.to_canonical())
}

const FORWARDED_FOR: &str = "x-forwarded-for";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn s7_forwarded_addresses_are_walked_from_the_right_as_far_as_they_are_ours() {
        let trusted = ["10.0.0.0/8", "fd00::/8", "127.0.0.1"];
        let proxies = Proxies {
            trusted: trusted
                .iter()
                .filter_map(|text| AddressRange::parse(text))
                .collect(),
        };
        for (peer, forwarded, caller) in [
            ("192.0.2.1", &["198.51.100.7"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            (
                "10.0.0.1",
                &["6.6.6.6, 198.51.100.7, 10.9.9.9"],
                "198.51.100.7",
            ),
            (
                "10.0.0.1",
                &["6.6.6.6", "198.51.100.7:4711"],
                "198.51.100.7",
            ),
            ("10.0.0.1", &["6.6.6.6, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
            ("fd00::1", &["[2001:db8::7]:80"], "2001:db8::7"),
            ("::ffff:127.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7"),
        ] {
            let mut headers = HeaderMap::new();
            for line in forwarded {
                headers.append(FORWARDED_FOR, line.parse().unwrap());
            }
            let found = proxies.caller(peer.parse().unwrap(), &headers);
            assert_eq!(
                found,
                caller.parse::<IpAddr>().unwrap(),
                "{peer} {forwarded:?}"
            );
        }
    }
}
