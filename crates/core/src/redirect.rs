//! Error replies that concern which server serves a command.
//!
//! A redirect is the best news that a write can get: the server answers it before it calls the
//! command, so nothing ran, and any command may follow it, INCR as well as GET.
//! [`Refusal`](crate::certainty::Refusal) judges what an error says of one server; this judges what
//! it says of several.

use std::sync::Arc;

use crate::node::{AnnouncedHost, Endpoint};
use crate::slot::Slot;

/// The most redirects that one command follows within its deadline.
pub const MAX_HOPS: u32 = 5;

/// The node to which a redirect points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The slot of the command's keys.
    pub slot: Slot,
    /// The host; left out, it is the one that sent the redirect.
    pub host: AnnouncedHost,
    /// The port.
    pub port: u16,
}

impl Redirect {
    /// Returns the endpoint to dial, where `asked` is the host that sent the redirect. `None` if
    /// the redirect names no host that can be dialled.
    pub fn endpoint(&self, asked: &Arc<str>) -> Option<Endpoint> {
        let host = self.host.resolve(asked)?;
        Some(Endpoint {
            host,
            port: self.port,
        })
    }

    /// Reads `3999 127.0.0.1:6381`, the words behind `MOVED` or `ASK`. IPv6 addresses come without
    /// brackets.
    fn read(detail: &str) -> Option<Self> {
        let (slot, address) = detail.split_once(' ')?;
        let (host, port) = address.rsplit_once(':')?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        Some(Self {
            slot: Slot::new(number(slot)?)?,
            host: AnnouncedHost::read(Some(host))?,
            port: number(port).filter(|port| *port != 0)?,
        })
    }
}

/// Digits only: no sign, no blanks.
fn number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The meaning of an error reply for which server serves a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routing {
    /// The slot belongs to another node from now on.
    Moved(Redirect),
    /// A redirect of this command, and no other: it is to be sent to another node behind an ASKING.
    Ask(Redirect),
    /// Of the command's keys some have migrated and some have not. It lasts as long as the slot's
    /// migration.
    TryAgain,
    /// The slot was moved away, or the server demoted, while a blocking command waited in it.
    Unblocked,
    /// The keys belong to several slots: the command can be sent nowhere.
    CrossSlot,
    /// The cluster, or this node's part of it, does not serve now.
    ClusterDown,
    /// The server is a replica, and this was a write.
    ReadOnly,
    /// The server is a replica that has lost its primary and may not serve old data.
    MasterDown,
    /// The server is a primary with too few replicas to accept writes.
    NoReplicas,
    /// The server reads its data from disk or from its primary.
    Loading,
}

impl Routing {
    /// Judges an error reply by its code and text, as Redis 7 and Valkey word them. `None` if it
    /// says nothing about which server serves, or in words that no server uses.
    ///
    /// ```
    /// use steadfast_core::redirect::Routing;
    ///
    /// let moved = Routing::of("MOVED", "3999 127.0.0.1:6381").expect("a redirect");
    /// assert!(moved.follows() && moved.triggers_discovery());
    /// assert_eq!(Routing::of("MOVED", "my house"), None);
    /// ```
    pub fn of(code: &str, detail: &str) -> Option<Self> {
        Some(match code {
            "MOVED" => Self::Moved(Redirect::read(detail)?),
            "ASK" => Self::Ask(Redirect::read(detail)?),
            "TRYAGAIN" => Self::TryAgain,
            // CLIENT UNBLOCK … ERROR answers by the same code, and says nothing of the server.
            "UNBLOCKED" if detail.starts_with("force unblock from blocking operation") => {
                Self::Unblocked
            }
            "CROSSSLOT" => Self::CrossSlot,
            "CLUSTERDOWN" => Self::ClusterDown,
            "READONLY" => Self::ReadOnly,
            "MASTERDOWN" => Self::MasterDown,
            "NOREPLICAS" => Self::NoReplicas,
            "LOADING" => Self::Loading,
            _ => return None,
        })
    }

    /// Whether the command goes on at once, whatever its effect, at no cost to the retry budget: it
    /// was rejected, and another server or another moment will take it.
    pub fn follows(&self) -> bool {
        matches!(
            self,
            Self::Moved(_) | Self::Ask(_) | Self::TryAgain | Self::Unblocked
        )
    }

    /// Whether the answer shows that the known view may be old, so that a newer one is to be asked
    /// for. ASK and TRYAGAIN belong to a migration under way, about which there is nothing to
    /// learn.
    pub fn triggers_discovery(&self) -> bool {
        !matches!(self, Self::Ask(_) | Self::TryAgain | Self::CrossSlot)
    }

    /// Whether the breaker of the server that answered counts this as a failure. Who redirects is
    /// well.
    pub fn is_failure_of_server(&self) -> bool {
        matches!(
            self,
            Self::ClusterDown
                | Self::ReadOnly
                | Self::MasterDown
                | Self::NoReplicas
                | Self::Loading
        )
    }

    /// Whether these can be the words of the server itself, for a script or function whose keys
    /// have this slot.
    ///
    /// A script may write any words. Before it runs, a server redirects it by the slot of its
    /// declared keys; within it, an access to another slot has words of its own. So only a redirect
    /// for just this slot counts. One that forges such a redirect would be run again where it
    /// leads: so no second one in a row is followed, and none changes a route by its words alone.
    pub fn may_redirect_script(&self, declared: Option<Slot>) -> bool {
        match self {
            Self::Moved(redirect) | Self::Ask(redirect) => Some(redirect.slot) == declared,
            _ => false,
        }
    }
}

/// Whether an error is TRYAGAIN in the server's own words, which it answers before a script of
/// several keys runs. A script that fails with an error of that name has words of its own, and may
/// have written; one that forges these deceives nobody but its own caller.
///
/// Within a script an access to a slot that moves has another answer.
pub fn is_try_again_for_script(code: &str, detail: &str) -> bool {
    code == "TRYAGAIN" && detail == "Multiple keys request during rehashing of slot"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(line: &str) -> Option<Routing> {
        let (code, detail) = line.split_once(' ').unwrap_or((line, ""));
        Routing::of(code, detail)
    }

    fn moved(line: &str) -> Redirect {
        match routing(line) {
            Some(Routing::Moved(redirect) | Routing::Ask(redirect)) => redirect,
            other => panic!("{line} is {other:?}"),
        }
    }

    #[test]
    fn t6_redirects_are_followed_and_are_no_failure() {
        // Each line as a server wrote it; follows, triggers discovery, is a failure of the server.
        for (line, judged) in [
            ("MOVED 10118 127.0.0.1:42311", [true, true, false]),
            ("ASK 10118 127.0.0.1:42311", [true, false, false]),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                [true, false, false],
            ),
            (
                "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
                [true, true, false],
            ),
            (
                "CROSSSLOT Keys in request don't hash to the same slot",
                [false, false, false],
            ),
            ("CLUSTERDOWN The cluster is down", [false, true, true]),
            ("CLUSTERDOWN Hash slot not served", [false, true, true]),
            (
                "READONLY You can't write against a read only replica.",
                [false, true, true],
            ),
            (
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
                [false, true, true],
            ),
            (
                "NOREPLICAS Not enough good replicas to write.",
                [false, true, true],
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                [false, true, true],
            ),
        ] {
            let routing = routing(line).expect(line);
            let found = [
                routing.follows(),
                routing.triggers_discovery(),
                routing.is_failure_of_server(),
            ];
            assert_eq!(found, judged, "{line}");
        }
        for line in [
            "ERR unknown command 'GET'",
            "WRONGTYPE Operation against a key",
            "UNBLOCKED client unblocked via CLIENT UNBLOCK",
        ] {
            assert_eq!(routing(line), None, "{line}");
        }
    }

    #[test]
    fn t25_hosts_of_redirects_may_be_left_out_unknown_names_or_ipv6() {
        let asked: Arc<str> = "asked".into();
        let endpoint = |line| {
            let redirect = moved(line);
            redirect.endpoint(&asked).map(|found| found.to_string())
        };
        assert_eq!(endpoint("MOVED 1 :6381").as_deref(), Some("asked:6381"));
        assert_eq!(endpoint("MOVED 1 ?:6381"), None);
        assert_eq!(
            endpoint("ASK 1 one.example:6381").as_deref(),
            Some("one.example:6381")
        );
        for line in ["MOVED 1 ::1:6381", "MOVED 1 [::1]:6381"] {
            assert_eq!(endpoint(line).as_deref(), Some("[::1]:6381"));
        }
    }

    #[test]
    fn t31_redirects_in_words_that_no_server_uses_are_none() {
        for line in [
            "MOVED",
            "MOVED 1",
            "MOVED 16384 a:1",
            "MOVED -1 a:1",
            "MOVED 1 a",
            "MOVED 1 a:0",
            "MOVED 1 a:65536",
            "MOVED 1 a:+1",
            "MOVED 1 a b:1",
            "ASK x a:1",
        ] {
            assert_eq!(routing(line), None, "{line}");
        }
    }

    #[test]
    fn t10_a_script_is_redirected_only_for_the_slot_of_its_own_keys() {
        let redirect = routing("MOVED 7 a:1").expect("a redirect");
        assert!(redirect.may_redirect_script(Slot::new(7)));
        assert!(!redirect.may_redirect_script(Slot::new(8)));
        assert!(!redirect.may_redirect_script(None));
        let words = "Multiple keys request during rehashing of slot";
        assert!(is_try_again_for_script("TRYAGAIN", words));
        assert!(!is_try_again_for_script("TRYAGAIN", "the stock is locked"));
        let loading = routing("LOADING it loads").expect("it says something");
        assert!(!loading.may_redirect_script(Slot::new(7)));
    }
}
