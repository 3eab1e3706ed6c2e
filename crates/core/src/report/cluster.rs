//! The nodes of a cluster and their slots, from any of the three commands that tell them.
//!
//! Only `CLUSTER NODES` tells the epoch of each node, by which two answers can be compared; so it
//! is the one to ask. `CLUSTER SHARDS` and `CLUSTER SLOTS` are read for servers that do not allow
//! it: there the cluster's own epoch, from `CLUSTER INFO`, has to do.

use std::collections::HashMap;
use std::sync::Arc;

use redis::Value;

use super::info::need;
use super::reader::{Faults, Fields, Part, ReportError, parse};
use crate::node::{AnnouncedHost, MAX_NODES, NodeId, is_name};
use crate::slot::{SLOTS, Slot, SlotRange};

/// The nodes that one node of a cluster knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterReport {
    /// The nodes, each once.
    pub nodes: Vec<ReportedNode>,
    /// The entries that could not be read.
    pub faults: Faults,
    /// Every node of the cluster is told, so that one which is not is gone. Slot maps leave out
    /// primaries without slots and replicas that were not heard of.
    pub is_exhaustive: bool,
}

/// A node of a cluster, as one node describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedNode {
    /// The identity. `None` from servers before 4.0, whose slot maps do not tell it.
    pub id: Option<NodeId>,
    /// The host to dial.
    pub host: AnnouncedHost,
    /// The host name that the node announces besides, for the verification of its certificate.
    pub hostname: Option<Arc<str>>,
    /// The hosts besides by which redirects may name the node, on the same port.
    pub other_hosts: Vec<Arc<str>>,
    /// The port to dial.
    pub port: u16,
    /// The port for TLS, where it is told apart.
    pub tls_port: Option<u16>,
    /// Whether the node is a primary.
    pub role: ReportedRole,
    /// The epoch of the node's configuration (of its primary's, for a replica). Only `CLUSTER
    /// NODES` tells it.
    pub epoch: Option<u64>,
    /// The node is the one that was asked.
    pub is_myself: bool,
    /// The node that was asked thinks that this one does not serve.
    pub is_failing: bool,
    /// Most primaries agree on that.
    pub is_failed: bool,
    /// The slots that the node owns.
    pub slots: Vec<SlotRange>,
    /// The slots that are moving from or to this node. Only a node itself tells of its own.
    pub migrations: Vec<Migration>,
}

/// The role of a node in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportedRole {
    /// The node owns slots, or may.
    Primary,
    /// The node follows another, if that one is told.
    Replica(Option<NodeId>),
}

/// A slot on its way between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The slot.
    pub slot: Slot,
    /// The direction, seen from the node that tells.
    pub kind: MigrationKind,
    /// The node at the other end.
    pub other: NodeId,
}

/// The direction of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationKind {
    /// The slot leaves the node.
    Migrating,
    /// The slot comes to the node.
    Importing,
}

const NODES: &str = "CLUSTER NODES";
const SHARDS: &str = "CLUSTER SHARDS";
const SLOT_MAP: &str = "CLUSTER SLOTS";
const INFO: &str = "CLUSTER INFO";

/// The most ranges of one report: each slot by itself.
const MAX_RANGES: usize = SLOTS as usize;

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

impl ClusterReport {
    /// Takes from another report of the same moment which endpoints nodes want to be dialled at:
    /// `CLUSTER NODES` tells their IP addresses, whatever `cluster-preferred-endpoint-type` says.
    /// The addresses stay known as those that redirects may name.
    pub fn prefer_endpoints_of(&mut self, other: &Self) {
        let others = other.nodes.iter();
        let by_id: HashMap<&NodeId, &ReportedNode> = others
            .filter_map(|node| Some((node.id.as_ref()?, node)))
            .collect();
        for node in &mut self.nodes {
            let preferred = node.id.as_ref().and_then(|id| by_id.get(id));
            let Some(preferred) = preferred.filter(|one| one.host != AnnouncedHost::Unknown) else {
                continue;
            };
            let before = std::mem::replace(&mut node.host, preferred.host.clone());
            if node.host == before {
                continue;
            }
            if let AnnouncedHost::Named(host) = before {
                node.other_hosts.push(host);
            }
            node.hostname = node.hostname.take().or_else(|| preferred.hostname.clone());
        }
    }

    /// Returns the node at this place by its own report, that of a server which was asked there.
    pub fn node_at(&self, host: &Arc<str>, port: u16, tls: bool) -> Option<&ReportedNode> {
        self.nodes.iter().find(|node| {
            let own_port = node.tls_port.filter(|_| tls).unwrap_or(node.port);
            own_port == port && node.host.resolve(host).as_ref() == Some(host)
        })
    }
}

/// Gathers nodes, each of which may be told several times (once for each range, in `CLUSTER
/// SLOTS`).
struct Builder {
    command: &'static str,
    report: ClusterReport,
    known: HashMap<String, usize>,
    ranges: usize,
}

impl Builder {
    fn new(command: &'static str) -> Self {
        Self {
            command,
            report: ClusterReport {
                is_exhaustive: command == NODES,
                ..ClusterReport::default()
            },
            known: HashMap::new(),
            ranges: 0,
        }
    }

    fn add(&mut self, node: Result<ReportedNode, ReportError>) -> Result<(), ReportError> {
        let Some(node) = self.report.faults.sort_out(node) else {
            return Ok(());
        };
        self.ranges += node.slots.len();
        if self.ranges > MAX_RANGES {
            let problem = "are more than there are slots";
            return Err(ReportError::new(self.command, "the ranges", problem));
        }
        let name = match &node.id {
            Some(id) => id.to_string(),
            None => format!("{:?} {}", node.host, node.port),
        };
        let nodes = &mut self.report.nodes;
        match self.known.get(&name) {
            Some(&at) => {
                let known = &mut nodes[at];
                known.slots.extend(node.slots);
                // It owns slots in another entry.
                if node.role == ReportedRole::Primary {
                    known.role = ReportedRole::Primary;
                }
            }
            None if nodes.len() == MAX_NODES => {
                let problem = "are more than 1024";
                return Err(ReportError::new(self.command, "the nodes", problem));
            }
            None => {
                self.known.insert(name, nodes.len());
                nodes.push(node);
            }
        }
        Ok(())
    }

    fn finish(self) -> ClusterReport {
        self.report
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

/// The host name, by which a redirect may name a node where another host is preferred.
fn other_hosts(hostname: Option<&str>) -> Vec<Arc<str>> {
    hostname.into_iter().map(Into::into).collect()
}

/// The part of `CLUSTER INFO` that says whether a node's view can be believed, and how old it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// The node serves (`cluster_state:ok`). One in a minority does not.
    pub is_ok: bool,
    /// The highest epoch that the node knows.
    pub current_epoch: u64,
    /// The epoch of the node's own configuration, or of its primary's.
    pub my_epoch: u64,
    /// The number of slots that have an owner.
    pub slots_assigned: u16,
}

impl ClusterInfo {
    /// Reads the text of `CLUSTER INFO`.
    ///
    /// # Errors
    /// A field is missing or malformed.
    pub fn read(text: &str) -> Result<Self, ReportError> {
        let number = |name| parse(INFO, name, need(INFO, text, name)?);
        Ok(Self {
            is_ok: need(INFO, text, "cluster_state")? == "ok",
            current_epoch: number("cluster_current_epoch")?,
            my_epoch: number("cluster_my_epoch")?,
            slots_assigned: parse(
                INFO,
                "cluster_slots_assigned",
                need(INFO, text, "cluster_slots_assigned")?,
            )?,
        })
    }
}
