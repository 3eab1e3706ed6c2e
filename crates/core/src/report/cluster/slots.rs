//! The answer to CLUSTER SLOTS.

use redis::Value;

use super::{Builder, ClusterReport, ReportedNode, ReportedRole, SLOT_MAP, other_hosts};
use crate::node::{AnnouncedHost, MAX_NODES, NodeId, is_name};
use crate::report::reader::{Part, ReportError};
use crate::slot::{Slot, SlotRange};

impl ClusterReport {
    /// Reads the reply to `CLUSTER SLOTS`.
    ///
    /// # Errors
    /// The reply is not a list, or names more than 1024 nodes.
    pub fn read_slots(reply: &Value) -> Result<Self, ReportError> {
        let whole = Part::new(SLOT_MAP, reply);
        let mut report = Builder::new(SLOT_MAP);
        for (at, entry) in whole.items("the reply")?.enumerate() {
            match read_slots_entry(entry, at) {
                Ok(nodes) => {
                    for node in nodes {
                        report.add(Ok(node))?;
                    }
                }
                Err(error) => report.add(Err(error))?,
            }
        }
        Ok(report.finish())
    }
}

/// `first last primary replica …`, each node as `host port [id [metadata]]`.
fn read_slots_entry(entry: Part<'_>, at: usize) -> Result<Vec<ReportedNode>, ReportError> {
    let place = |what| format!("entry {at}, {what}");
    let mut items = entry.items(format!("entry {at}"))?;
    let mut next = |what: &'static str| {
        items
            .next()
            .ok_or_else(|| entry.error(place(what), "is missing"))
    };
    let first = Slot::new(next("first slot")?.number(place("first slot"))?);
    let last = Slot::new(next("last slot")?.number(place("last slot"))?);
    let range = first
        .zip(last)
        .and_then(|(first, last)| SlotRange::new(first, last))
        .ok_or_else(|| entry.error(place("slots"), "are not a range"))?;
    let mut primary = read_slots_node(next("primary")?, &place("primary"))?;
    primary.slots.push(range);
    let owner = primary.id.clone();
    let mut nodes = vec![primary];
    for replica in items.take(MAX_NODES) {
        let mut node = read_slots_node(replica, &place("replica"))?;
        node.role = ReportedRole::Replica(owner.clone());
        nodes.push(node);
    }
    Ok(nodes)
}

fn read_slots_node(part: Part<'_>, place: &str) -> Result<ReportedNode, ReportError> {
    let within = |what| format!("{place}, {what}");
    let mut items = part.items(place)?;
    let (Some(host), Some(port)) = (items.next(), items.next()) else {
        return Err(part.error(place, "has fewer than 2 parts"));
    };
    let host = host.text_or_nil(within("host"))?;
    let id = match items.next() {
        Some(id) => {
            let id = id.text(within("id"))?;
            Some(NodeId::new(&id).ok_or_else(|| part.error(within("id"), "is not an id"))?)
        }
        None => None,
    };
    let hostname = items
        .next()
        .and_then(|metadata| metadata.fields("metadata").ok())
        .and_then(|metadata| metadata.find("hostname")?.text("hostname").ok())
        .filter(|name| is_name(name));
    Ok(ReportedNode {
        id,
        host: AnnouncedHost::read(host.as_deref())
            .ok_or_else(|| part.error(within("host"), "is not a host"))?,
        other_hosts: other_hosts(hostname.as_deref()),
        hostname: hostname.map(|name| name.as_ref().into()),
        port: port.port(within("port"))?,
        tls_port: None,
        role: ReportedRole::Primary,
        epoch: None,
        is_myself: false,
        is_failing: false,
        is_failed: false,
        slots: Vec::new(),
        migrations: Vec::new(),
    })
}
