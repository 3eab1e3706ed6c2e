//! INFO: the identity of a server and the history of its data.

use std::sync::Arc;

use super::reader::{Faults, ReportError, parse};
use super::role::ReplicaAck;
use crate::node::{Endpoint, MAX_NODES, is_name};

/// The kind of service that a server gives (`redis_mode`, and `mode` in HELLO).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerMode {
    /// A server of its own, alone or with replicas.
    Standalone,
    /// A node of a cluster.
    Cluster,
    /// A sentinel, which has no data.
    Sentinel,
}

impl ServerMode {
    /// Reads the word of a server. `None` if it is none that is known.
    pub fn read(word: &str) -> Option<Self> {
        match word {
            "standalone" => Some(Self::Standalone),
            "cluster" => Some(Self::Cluster),
            "sentinel" => Some(Self::Sentinel),
            _ => None,
        }
    }
}

/// The part of `INFO server` that tells servers apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoServer {
    /// The identity of the server process: another after each restart.
    pub run_id: Arc<str>,
    /// The kind of service, where the server says so.
    pub mode: Option<ServerMode>,
    /// The version, where the server says so.
    pub version: Option<Arc<str>>,
}

const SERVER: &str = "INFO server";
const REPLICATION: &str = "INFO replication";

impl InfoServer {
    /// Reads the text of INFO.
    ///
    /// # Errors
    /// There is no `run_id` in it, as where the ACL or a managed service hides it.
    pub fn read(text: &str) -> Result<Self, ReportError> {
        Ok(Self {
            run_id: id(SERVER, text, "run_id")?,
            mode: field(text, "redis_mode").and_then(ServerMode::read),
            version: field(text, "redis_version")
                .filter(|version| is_name(version))
                .map(Into::into),
        })
    }
}

/// The part of `INFO replication` that tells which history a server's data has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoReplication {
    /// Whether the server is a primary by its own word.
    pub is_primary: bool,
    /// The id of its history (`master_replid`). A promotion or a restart begins another.
    pub history: Arc<str>,
    /// The number of bytes of its history.
    pub offset: u64,
    /// The history that it shares up to a point, where there is one (`master_replid2`).
    pub shared: Option<SharedHistory>,
    /// Whether a replica's link to its primary is up. `None` of a primary.
    pub link_up: Option<bool>,
    /// The replicas that are connected and say how far they are.
    pub replicas: Vec<ReplicaAck>,
    /// The replicas that could not be read.
    pub faults: Faults,
}

/// A history that a server has followed before its own began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedHistory {
    /// The id of that history.
    pub history: Arc<str>,
    /// The first byte that is no longer shared (`second_repl_offset`): a promoted replica has all
    /// bytes before it.
    pub until: u64,
}

impl InfoReplication {
    /// Reads the text of INFO.
    ///
    /// # Errors
    /// The role, the id or the offset of the history is missing or malformed.
    pub fn read(text: &str) -> Result<Self, ReportError> {
        let is_primary = match need(REPLICATION, text, "role")? {
            "master" | "primary" => true,
            "slave" | "replica" => false,
            _ => {
                let problem = "is neither master nor slave";
                return Err(ReportError::new(REPLICATION, "role", problem));
            }
        };
        let offset = need(REPLICATION, text, "master_repl_offset")?;
        let mut faults = Faults::default();
        Ok(Self {
            is_primary,
            history: id(REPLICATION, text, "master_replid")?,
            offset: parse(REPLICATION, "master_repl_offset", offset)?,
            shared: shared(text)?,
            link_up: field(text, "master_link_status").map(|status| status == "up"),
            replicas: replicas(text, &mut faults)?,
            faults,
        })
    }
}

fn shared(text: &str) -> Result<Option<SharedHistory>, ReportError> {
    let Some(history) = field(text, "master_replid2") else {
        return Ok(None);
    };
    let until = need(REPLICATION, text, "second_repl_offset")?;
    let until: i64 = parse(REPLICATION, "second_repl_offset", until)?;
    // Zeros and -1 say that there is none.
    let (false, Ok(until)) = (history.bytes().all(|byte| byte == b'0'), until.try_into()) else {
        return Ok(None);
    };
    let history = id(REPLICATION, text, "master_replid2")?;
    Ok(Some(SharedHistory { history, until }))
}

/// Lines such as `slave0:ip=127.0.0.1,port=6380,state=online,offset=42,lag=0`.
fn replicas(text: &str, faults: &mut Faults) -> Result<Vec<ReplicaAck>, ReportError> {
    let mut replicas = Vec::new();
    for line in text.lines() {
        let Some((name, fields)) = line.split_once(':') else {
            continue;
        };
        let number = name
            .strip_prefix("slave")
            .or_else(|| name.strip_prefix("replica"));
        if number.is_none_or(|number| number.parse::<u32>().is_err()) {
            continue;
        }
        if replicas.len() + faults.count == MAX_NODES {
            let problem = "are more than 1024";
            return Err(ReportError::new(REPLICATION, "replicas", problem));
        }
        replicas.extend(faults.sort_out(replica(fields, replicas.len() + faults.count)));
    }
    Ok(replicas)
}

fn replica(fields: &str, at: usize) -> Result<ReplicaAck, ReportError> {
    let find = |name: &'static str| {
        fields
            .split(',')
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
            .ok_or_else(|| {
                let place = format!("replica {at}, {name}");
                ReportError::new(REPLICATION, place, "is missing")
            })
    };
    let host = find("ip")?;
    if !is_name(host) {
        let place = format!("replica {at}, ip");
        return Err(ReportError::new(REPLICATION, place, "is not a host"));
    }
    Ok(ReplicaAck {
        endpoint: Endpoint::new(host, parse(REPLICATION, "a replica's port", find("port")?)?),
        offset: parse(REPLICATION, "a replica's offset", find("offset")?)?,
    })
}

/// The value of a field in the text of INFO.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim_end)
}

pub(super) fn need<'a>(
    command: &'static str,
    text: &'a str,
    name: &'static str,
) -> Result<&'a str, ReportError> {
    field(text, name).ok_or_else(|| ReportError::new(command, name, "is missing"))
}

fn id(command: &'static str, text: &str, name: &'static str) -> Result<Arc<str>, ReportError> {
    let id = need(command, text, name)?;
    if !is_name(id) {
        return Err(ReportError::new(command, name, "is not an id"));
    }
    Ok(id.into())
}
