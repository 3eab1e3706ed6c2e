//! ROLE: whether a server is a primary or a replica, and how far its replicas are.

use std::sync::Arc;

use redis::Value;

use super::reader::{Faults, Part, ReportError};
use crate::node::{Endpoint, MAX_NODES, is_name};

/// The answer to ROLE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleReport {
    /// The server is a primary.
    Primary {
        /// The number of bytes of its replication history. It is at or past every write that this
        /// connection got acknowledged before, because commands of one connection run in order.
        offset: u64,
        /// The replicas that are connected.
        replicas: Vec<ReplicaAck>,
        /// The replicas that could not be read.
        faults: Faults,
    },
    /// The server is a replica.
    Replica {
        /// The primary that it follows.
        primary: Endpoint,
        /// The state of its link to the primary.
        link: ReplicaLink,
        /// The number of bytes that it has of the history. `None` before its first synchronisation.
        offset: Option<u64>,
    },
    /// The server is a sentinel, and has no data.
    Sentinel {
        /// The number of primaries that it watches.
        primaries: usize,
    },
}

/// A replica in a primary's answer to ROLE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaAck {
    /// Where the replica is, as it announces itself.
    pub endpoint: Endpoint,
    /// The number of bytes that it has acknowledged.
    pub offset: u64,
}

/// The state of a replica's link to its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaLink {
    /// The replica receives what its primary writes.
    Connected,
    /// The replica does not receive anything now: it connects, or synchronises.
    Interrupted,
}

const ROLE: &str = "ROLE";

impl RoleReport {
    /// Reads the reply to ROLE.
    ///
    /// # Errors
    /// The reply is not that of any server.
    pub fn read(reply: &Value) -> Result<Self, ReportError> {
        let whole = Part::new(ROLE, reply);
        let mut items = whole.items("the reply")?;
        let mut next =
            |name: &'static str| items.next().ok_or_else(|| whole.error(name, "is missing"));
        match &*next("role")?.text("role")? {
            "master" | "primary" => {
                let offset = next("offset")?.number("offset")?;
                let (replicas, faults) = replicas(next("replicas")?)?;
                Ok(Self::Primary {
                    offset,
                    replicas,
                    faults,
                })
            }
            "slave" | "replica" => {
                let primary = Endpoint {
                    host: host(next("primary")?, "primary")?,
                    port: next("port")?.port("port")?,
                };
                let link = match &*next("link")?.text("link")? {
                    "connected" => ReplicaLink::Connected,
                    _ => ReplicaLink::Interrupted,
                };
                let offset: i64 = next("offset")?.number("offset")?;
                Ok(Self::Replica {
                    primary,
                    link,
                    // -1 before the first synchronisation.
                    offset: u64::try_from(offset).ok(),
                })
            }
            "sentinel" => Ok(Self::Sentinel {
                primaries: next("primaries")?.items("primaries")?.len(),
            }),
            _ => Err(whole.error("role", "is none of master, slave and sentinel")),
        }
    }
}

fn replicas(part: Part<'_>) -> Result<(Vec<ReplicaAck>, Faults), ReportError> {
    let items = part.items("replicas")?;
    if items.len() > MAX_NODES {
        return Err(part.error("replicas", "are more than 1024"));
    }
    let mut faults = Faults::default();
    let replicas = items
        .enumerate()
        .filter_map(|(at, replica)| faults.sort_out(replica_ack(replica, at)))
        .collect();
    Ok((replicas, faults))
}

fn replica_ack(part: Part<'_>, at: usize) -> Result<ReplicaAck, ReportError> {
    let place = |what| format!("replica {at}, {what}");
    let mut items = part.items(format!("replica {at}"))?;
    let (Some(host_part), Some(port), Some(offset)) = (items.next(), items.next(), items.next())
    else {
        return Err(part.error(format!("replica {at}"), "has fewer than 3 parts"));
    };
    Ok(ReplicaAck {
        endpoint: Endpoint {
            host: host(host_part, &place("host"))?,
            port: port.port(place("port"))?,
        },
        offset: offset.number(place("offset"))?,
    })
}

/// A host that can be dialled.
pub(super) fn host(part: Part<'_>, place: &str) -> Result<Arc<str>, ReportError> {
    let text = part.text(place)?;
    if !is_name(&text) {
        return Err(part.error(place, "is not a host"));
    }
    Ok(text.as_ref().into())
}
