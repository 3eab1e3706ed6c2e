//! The names of servers: where they are, and who they are.
//!
//! An address may lead to another server tomorrow, and a server may get another address. So the two
//! are kept apart: an [`Endpoint`] is dialled, a [`NodeId`] or run id is compared after the
//! handshake.

use std::fmt;
use std::sync::Arc;

/// The most nodes of one cluster that are kept.
pub const MAX_NODES: usize = 1_024;

/// The most sentinels that are kept.
pub const MAX_SENTINELS: usize = 32;

/// The longest host or id that is taken from a reply, in bytes. DNS allows 253.
pub const MAX_NAME: usize = 255;

/// A host and a port, as a server announces them or a person writes them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The host name, or an IP address without brackets.
    pub host: Arc<str>,
    /// The TCP port.
    pub port: u16,
}

impl Endpoint {
    /// Returns the endpoint of this host and port.
    pub fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }
}

/// Writes `host:port`, with brackets around an IPv6 address.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The host of a node as a reply gives it. A server that does not know its own address leaves it
/// out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AnnouncedHost {
    /// The host, by name or address.
    Named(Arc<str>),
    /// The host to which the question was sent (null or empty in the reply).
    AsAsked,
    /// A host that nobody knows (`?` in the reply): the node cannot be reached by this reply.
    Unknown,
}

impl AnnouncedHost {
    /// Reads the text of a reply, of which null is the same as empty. `None` if it cannot be a
    /// host.
    pub fn read(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or_default() {
            "" => Some(Self::AsAsked),
            "?" => Some(Self::Unknown),
            host => is_name(host).then(|| Self::Named(host.into())),
        }
    }

    /// Returns the host to dial, if `asked` is the one that gave this answer.
    pub fn resolve(&self, asked: &Arc<str>) -> Option<Arc<str>> {
        match self {
            Self::Named(host) => Some(host.clone()),
            Self::AsAsked => Some(asked.clone()),
            Self::Unknown => None,
        }
    }
}

/// The identity of a cluster node (`CLUSTER MYID`), which it keeps through restarts and changes of
/// its address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Returns the id of this text, or `None` if it is empty, too long or has other than visible
    /// ASCII letters.
    pub fn new(text: &str) -> Option<Self> {
        is_name(text).then(|| Self(text.into()))
    }

    /// Returns the id as servers write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.0)
    }
}

/// Whether a text can be a host or an id: visible ASCII letters, not too many.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t25_a_host_that_is_left_out_is_the_one_that_was_asked_and_a_question_mark_is_nobody() {
        let asked: Arc<str> = "seed.example".into();
        let resolved = |text| {
            let host = AnnouncedHost::read(text).expect("it is well formed");
            host.resolve(&asked).map(|host| host.to_string())
        };
        assert_eq!(resolved(None).as_deref(), Some("seed.example"));
        assert_eq!(resolved(Some("")).as_deref(), Some("seed.example"));
        assert_eq!(resolved(Some("?")), None);
        assert_eq!(resolved(Some("10.0.0.1")).as_deref(), Some("10.0.0.1"));
        assert_eq!(AnnouncedHost::read(Some("a b")), None);
        assert_eq!(AnnouncedHost::read(Some(&"x".repeat(256))), None);
    }

    #[test]
    fn endpoints_are_written_as_they_are_dialled() {
        assert_eq!(Endpoint::new("::1", 6379).to_string(), "[::1]:6379");
        assert_eq!(
            Endpoint::new("a.example", 6379).to_string(),
            "a.example:6379"
        );
    }
}
