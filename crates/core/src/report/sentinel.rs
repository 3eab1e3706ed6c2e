//! SENTINEL: the primary that a sentinel names, its replicas, and other sentinels.
//!
//! While a sentinel leads a failover, `SENTINEL MASTER` gives the old address with the new epoch,
//! for as long as it takes to point the other replicas at the new primary; `SENTINEL
//! GET-MASTER-ADDR-BY-NAME` gives the new address from the first moment. So the address is taken
//! from the latter only, and the epoch from the former. MASTER is to be asked *first*: should the
//! failover come between the two questions, the answer is the new address with the old epoch, which
//! wins over nothing. The other way round it would be the old address with the new epoch, which
//! would win over everything.

use std::sync::Arc;

use redis::Value;

use super::reader::{Faults, Fields, Part, ReportError};
use super::role::host;
use crate::node::{Endpoint, MAX_NODES, MAX_SENTINELS, is_name};

/// The part of `SENTINEL MASTER name` that says how much the sentinel's word is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitoredPrimary {
    /// The epoch of the failover that made this configuration. The higher one is the newer.
    pub config_epoch: u64,
    /// The run id of the primary at the address of *this* reply, as the sentinel knows it.
    pub run_id: Option<Arc<str>>,
    /// The number of other sentinels that this one knows.
    pub other_sentinels: usize,
    /// The number of sentinels that have to agree that the primary is down.
    pub quorum: usize,
    /// The sentinel cannot reach the primary.
    pub subjectively_down: bool,
    /// So many sentinels as the quorum asks cannot reach the primary.
    pub objectively_down: bool,
    /// The sentinel is making another server the primary.
    pub failing_over: bool,
}

const MASTER: &str = "SENTINEL MASTER";
const ADDRESS: &str = "SENTINEL GET-MASTER-ADDR-BY-NAME";
const SENTINELS: &str = "SENTINEL SENTINELS";
const REPLICAS: &str = "SENTINEL REPLICAS";
const SWITCH: &str = "+switch-master";

impl MonitoredPrimary {
    /// Reads the reply to `SENTINEL MASTER name`.
    ///
    /// # Errors
    /// The reply is an error, as where the sentinel watches no primary of this name, or malformed.
    pub fn read(reply: &Value) -> Result<Self, ReportError> {
        let fields = Part::new(MASTER, reply).fields("the reply")?;
        let flags = fields.need("flags")?.text("flags")?;
        let has = |flag| flags.split(',').any(|found| found == flag);
        Ok(Self {
            config_epoch: fields.need("config-epoch")?.number("config-epoch")?,
            run_id: run_id(&fields)?,
            other_sentinels: fields
                .need("num-other-sentinels")?
                .number("num-other-sentinels")?,
            quorum: fields.need("quorum")?.number("quorum")?,
            subjectively_down: has("s_down"),
            objectively_down: has("o_down"),
            failing_over: has("failover_in_progress"),
        })
    }
}

/// Reads the reply to `SENTINEL GET-MASTER-ADDR-BY-NAME name`: `None` if the sentinel watches no
/// primary of this name.
///
/// # Errors
/// The reply is neither null nor an address.
pub fn primary_address(reply: &Value) -> Result<Option<Endpoint>, ReportError> {
    let whole = Part::new(ADDRESS, reply);
    if whole.is_nil() {
        return Ok(None);
    }
    let mut items = whole.items("the reply")?;
    let (Some(found), Some(port), None) = (items.next(), items.next(), items.next()) else {
        return Err(whole.error("the reply", "has not just a host and a port"));
    };
    Ok(Some(Endpoint {
        host: host(found, "host")?,
        port: port.port("port")?,
    }))
}

/// A further sentinel, in the reply to `SENTINEL SENTINELS name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSentinel {
    /// Where the sentinel is.
    pub endpoint: Endpoint,
    /// The identity that the sentinel keeps through restarts, where it is known.
    pub run_id: Option<Arc<str>>,
}

impl PeerSentinel {
    /// Reads the reply to `SENTINEL SENTINELS name`, of which the first 32 are taken.
    ///
    /// # Errors
    /// The reply is not a list.
    pub fn read_all(reply: &Value) -> Result<(Vec<Self>, Faults), ReportError> {
        read_list(SENTINELS, reply, MAX_SENTINELS, |fields, endpoint| {
            Ok(Self {
                endpoint,
                run_id: run_id(fields)?,
            })
        })
    }
}

/// A replica, in the reply to `SENTINEL REPLICAS name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentinelReplica {
    /// Where the replica is.
    pub endpoint: Endpoint,
    /// The run id, where it is known.
    pub run_id: Option<Arc<str>>,
    /// The sentinel reaches the replica, and it says that it is a replica whose link to its primary
    /// is up.
    pub in_sync: bool,
    /// The number of bytes that the replica had when the sentinel last asked.
    pub offset: u64,
    /// The priority among those that may be promoted; 0 never is. `None` if it is not told.
    pub priority: Option<u32>,
}

impl SentinelReplica {
    /// Reads the reply to `SENTINEL REPLICAS name`, of which the first 1024 are taken.
    ///
    /// # Errors
    /// The reply is not a list.
    pub fn read_all(reply: &Value) -> Result<(Vec<Self>, Faults), ReportError> {
        read_list(REPLICAS, reply, MAX_NODES, |fields, endpoint| {
            let flags = fields.need("flags")?.text("flags")?;
            let away = ["s_down", "o_down", "disconnected"];
            let reached = !flags.split(',').any(|flag| away.contains(&flag));
            let link = fields.need("master-link-status")?;
            let link_up = link.text("master-link-status")? == "ok";
            let offset = fields.need("slave-repl-offset")?;
            let priority = fields.find("slave-priority");
            Ok(Self {
                endpoint,
                run_id: run_id(fields)?,
                in_sync: reached && link_up,
                offset: offset.number("slave-repl-offset")?,
                priority: priority.and_then(|part| part.number("slave-priority").ok()),
            })
        })
    }
}

fn read_list<T>(
    command: &'static str,
    reply: &Value,
    most: usize,
    read: impl Fn(&Fields<'_>, Endpoint) -> Result<T, ReportError>,
) -> Result<(Vec<T>, Faults), ReportError> {
    let items = Part::new(command, reply).items("the reply")?;
    let mut faults = Faults::default();
    let mut all = Vec::new();
    for (at, item) in items.enumerate().take(most) {
        let one = item.fields(format!("entry {at}")).and_then(|fields| {
            let endpoint = Endpoint {
                host: host(fields.need("ip")?, "ip")?,
                port: fields.need("port")?.port("port")?,
            };
            read(&fields, endpoint)
        });
        all.extend(faults.sort_out(one));
    }
    Ok((all, faults))
}

/// The `runid` of an entry, which is empty until the sentinel has learnt it.
fn run_id(fields: &Fields<'_>) -> Result<Option<Arc<str>>, ReportError> {
    let Some(part) = fields.find("runid") else {
        return Ok(None);
    };
    let text = part.text("runid")?;
    match &*text {
        "" | "?" => Ok(None),
        id if is_name(id) => Ok(Some(id.into())),
        _ => Err(part.error("runid", "is not an id")),
    }
}

/// The message of the channel `+switch-master`: `name old-host old-port new-host new-port`.
///
/// It carries no epoch and may come from one sentinel that is wrong. So it is a reason to ask,
/// never an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchMaster {
    /// The name of the watched primary.
    pub name: Arc<str>,
    /// The primary until now.
    pub from: Endpoint,
    /// The primary from now on.
    pub to: Endpoint,
}

impl SwitchMaster {
    /// Reads the payload of the message.
    ///
    /// # Errors
    /// The payload has not the five words.
    pub fn read(payload: &Value) -> Result<Self, ReportError> {
        let whole = Part::new(SWITCH, payload);
        let text = whole.text("the message")?;
        let words: Vec<&str> = text.split(' ').take(6).collect();
        let &[name, from, from_port, to, to_port] = words.as_slice() else {
            return Err(whole.error("the message", "has not five words"));
        };
        let endpoint = |host: &str, port: &str| {
            let port = port.parse().ok().filter(|port| *port != 0);
            match port {
                Some(port) if is_name(host) => Ok(Endpoint::new(host, port)),
                _ => Err(whole.error("an address", "is not a host and a port")),
            }
        };
        if !is_name(name) {
            return Err(whole.error("the name", "is not a name"));
        }
        Ok(Self {
            name: name.into(),
            from: endpoint(from, from_port)?,
            to: endpoint(to, to_port)?,
        })
    }
}
