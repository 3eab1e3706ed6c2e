//! The answer to CLUSTER SHARDS.

use redis::Value;

use super::{Builder, ClusterReport, MAX_RANGES, ReportedNode, ReportedRole, SHARDS, other_hosts};
use crate::node::{AnnouncedHost, MAX_NODES, NodeId, is_name};
use crate::report::reader::{Fields, Part, ReportError};
use crate::slot::{Slot, SlotRange};

impl ClusterReport {
    /// Reads the reply to `CLUSTER SHARDS` (Redis 7).
    ///
    /// # Errors
    /// The reply is not a list, or names more than 1024 nodes.
    pub fn read_shards(reply: &Value) -> Result<Self, ReportError> {
        let whole = Part::new(SHARDS, reply);
        let mut report = Builder::new(SHARDS);
        for (at, shard) in whole.items("the reply")?.enumerate() {
            match read_shard(shard, at) {
                Ok(nodes) => {
                    for node in nodes {
                        report.add(node)?;
                    }
                }
                Err(error) => report.add(Err(error))?,
            }
        }
        Ok(report.finish())
    }
}

/// The nodes of one shard, of which the primary has its slots.
fn read_shard(
    shard: Part<'_>,
    at: usize,
) -> Result<Vec<Result<ReportedNode, ReportError>>, ReportError> {
    let place = |what| format!("shard {at}, {what}");
    let fields = shard.fields(format!("shard {at}"))?;
    let bounds: Vec<u16> = fields
        .need("slots")?
        .items(place("slots"))?
        .take(2 * MAX_RANGES)
        .map(|bound| bound.number(place("slots")))
        .collect::<Result<_, _>>()?;
    let wrong = || shard.error(place("slots"), "are not ranges");
    if !bounds.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let slots = bounds
        .chunks_exact(2)
        .map(|pair| SlotRange::new(Slot::new(pair[0])?, Slot::new(pair[1])?))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(wrong)?;
    let nodes = fields.need("nodes")?.items(place("nodes"))?;
    if nodes.len() > MAX_NODES {
        return Err(shard.error(place("nodes"), "are more than 1024"));
    }
    let nodes = nodes.enumerate().map(|(n, node)| {
        let place = format!("shard {at}, node {n}");
        let mut node = read_shard_node(&node.fields(&place)?, &node, &place)?;
        // One that has failed is still told as master beside the one that has taken over.
        if node.role == ReportedRole::Primary {
            node.slots.clone_from(&slots);
        }
        Ok(node)
    });
    Ok(nodes.collect())
}

fn read_shard_node(
    fields: &Fields<'_>,
    part: &Part<'_>,
    place: &str,
) -> Result<ReportedNode, ReportError> {
    let within = |what| format!("{place}, {what}");
    let port = |name: &'static str| fields.find(name).map(|port| port.port(within(name)));
    let (plain, tls_port) = (port("port").transpose()?, port("tls-port").transpose()?);
    let id = fields.need("id")?.text(within("id"))?;
    let endpoint = fields.need("endpoint")?.text_or_nil(within("endpoint"))?;
    let hostname = fields
        .find("hostname")
        .and_then(|name| name.text("hostname").ok())
        .filter(|name| is_name(name));
    let is_failing = &*fields.need("health")?.text(within("health"))? == "fail";
    Ok(ReportedNode {
        id: Some(NodeId::new(&id).ok_or_else(|| part.error(within("id"), "is not an id"))?),
        host: AnnouncedHost::read(endpoint.as_deref())
            .ok_or_else(|| part.error(within("endpoint"), "is not a host"))?,
        other_hosts: other_hosts(hostname.as_deref()),
        hostname: hostname.map(|name| name.as_ref().into()),
        port: plain
            .or(tls_port)
            .ok_or_else(|| part.error(within("port"), "is missing"))?,
        tls_port,
        role: match &*fields.need("role")?.text(within("role"))? {
            "master" | "primary" => ReportedRole::Primary,
            "replica" | "slave" => ReportedRole::Replica(None),
            _ => return Err(part.error(within("role"), "is neither master nor replica")),
        },
        epoch: None,
        is_myself: false,
        is_failing,
        is_failed: is_failing,
        slots: Vec::new(),
        migrations: Vec::new(),
    })
}
