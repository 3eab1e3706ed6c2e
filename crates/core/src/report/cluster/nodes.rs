//! The answer to CLUSTER NODES: a line for each node.

use std::sync::Arc;

use redis::Value;

use super::{
    Builder, ClusterReport, MAX_RANGES, Migration, MigrationKind, NODES, ReportedNode, ReportedRole,
};
use crate::node::{AnnouncedHost, NodeId, is_name};
use crate::report::reader::{Part, ReportError, parse};
use crate::slot::{Slot, SlotRange};

impl ClusterReport {
    /// Reads the reply to `CLUSTER NODES`.
    ///
    /// # Errors
    /// The reply is not a text, or names more than 1024 nodes.
    pub fn read_nodes(reply: &Value) -> Result<Self, ReportError> {
        let whole = Part::new(NODES, reply);
        let text = whole.text("the reply")?;
        let mut report = Builder::new(NODES);
        for (at, line) in text.lines().enumerate() {
            // A node of which only an address is known, and neither id nor slots.
            if line.split(' ').nth(2).is_some_and(is_handshake) {
                continue;
            }
            let node = read_line(line, at);
            report.add(node)?;
        }
        Ok(report.finish())
    }
}

fn is_handshake(flags: &str) -> bool {
    flags.split(',').any(|flag| flag == "handshake")
}

/// `id host:port@bus[,hostname[,…]] flags primary ping pong epoch link slot slot-range
/// [slot->-node] [slot-<-node]`
fn read_line(line: &str, at: usize) -> Result<ReportedNode, ReportError> {
    let error = |what, problem| ReportError::new(NODES, format!("line {at}, {what}"), problem);
    let mut words = line.split(' ');
    let mut next = |what| words.next().ok_or_else(|| error(what, "is missing"));
    let id = NodeId::new(next("id")?).ok_or_else(|| error("id", "is not an id"))?;
    let address = next("address")?;
    let flags = next("flags")?;
    let has = |flag| flags.split(',').any(|found| found == flag);
    let primary = next("primary")?;
    let (_ping, _pong) = (next("ping")?, next("pong")?);
    let epoch = parse(NODES, &format!("line {at}, epoch"), next("epoch")?)?;
    let _link = next("link")?;
    let role = match (has("master"), has("slave") || has("replica")) {
        (true, false) => ReportedRole::Primary,
        (false, true) => ReportedRole::Replica(NodeId::new(primary).filter(|_| primary != "-")),
        _ => return Err(error("flags", "are of neither a master nor a slave")),
    };
    let (host, port, hostname) =
        read_address(address).ok_or_else(|| error("address", "is not host:port@bus"))?;
    let mut node = ReportedNode {
        id: Some(id),
        host: if has("noaddr") {
            AnnouncedHost::Unknown
        } else {
            host
        },
        other_hosts: hostname.iter().cloned().collect(),
        hostname,
        port,
        tls_port: None,
        role,
        epoch: Some(epoch),
        is_myself: has("myself"),
        is_failing: has("fail") || has("fail?") || has("noaddr"),
        is_failed: has("fail"),
        slots: Vec::new(),
        migrations: Vec::new(),
    };
    for word in words.filter(|word| !word.is_empty()) {
        let migration = word
            .strip_prefix('[')
            .and_then(|word| word.strip_suffix(']'));
        match migration {
            None => {
                let range = read_range(word).ok_or_else(|| error("slots", "are not a range"))?;
                node.slots.push(range);
            }
            Some(word) => {
                let problem = "is not slot->-node or slot-<-node";
                let read = read_migration(word).ok_or_else(|| error("migration", problem))?;
                if node.migrations.len() == MAX_RANGES {
                    return Err(error("migrations", "are more than there are slots"));
                }
                node.migrations.push(read);
            }
        }
    }
    Ok(node)
}

fn read_address(word: &str) -> Option<(AnnouncedHost, u16, Option<Arc<str>>)> {
    let mut parts = word.split(',');
    let address = parts.next()?;
    let hostname = parts.next().filter(|name| is_name(name)).map(Into::into);
    // Servers before 4.0 do not write the port of the bus.
    let address = address
        .split_once('@')
        .map_or(address, |(address, _)| address);
    let (host, port) = address.rsplit_once(':')?;
    Some((
        AnnouncedHost::read(Some(host))?,
        port.parse().ok()?,
        hostname,
    ))
}

fn read_range(word: &str) -> Option<SlotRange> {
    let slot = |text: &str| Slot::new(text.parse().ok()?);
    match word.split_once('-') {
        Some((first, last)) => SlotRange::new(slot(first)?, slot(last)?),
        None => SlotRange::new(slot(word)?, slot(word)?),
    }
}

fn read_migration(word: &str) -> Option<Migration> {
    let (slot, rest) = word.split_once('-')?;
    let (kind, other) = match rest.split_once('-')? {
        (">", other) => (MigrationKind::Migrating, other),
        ("<", other) => (MigrationKind::Importing, other),
        _ => return None,
    };
    Some(Migration {
        slot: Slot::new(slot.parse().ok()?)?,
        kind,
        other: NodeId::new(other)?,
    })
}
