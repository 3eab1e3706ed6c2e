//! Behind one name of Redis there may be several servers, and sentinels that watch them. Whoever is
//! called at night has to know which of them serves, which could take over, and who says otherwise.
//! So they are listed one by one, from what the client knows already: nobody is asked for it.

use metrics::gauge;
use serde::Serialize;
use steadfast::{
    ConnectionState, NodeStatus, SentinelContact, SentinelStatus, Status as ClientStatus,
};

use crate::health::{Check, Status};

mod counters;
mod shards;

pub(crate) use counters::NodeCounters;
use shards::Shards;

/// What is known of Redis from elsewhere than its client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// How old the proof of the primary may be before writes are refused; `None`: any.
    pub(crate) proof_within_ms: Option<u64>,
    /// The slot in which the cache lies.
    pub(crate) cache_slot: Option<u16>,
    /// Whether reads of a cluster are served by replicas unless a call says otherwise.
    pub(crate) reads_replicas: bool,
    /// How old the data of a replica may be which is read from.
    pub(crate) max_lag_ms: u64,
}

/// The servers behind the name of Redis, in `/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Nodes {
    /// How it is found which of them serves: `single`, `sentinel` or `cluster`.
    found_by: &'static str,
    servers: Vec<ServerNode>,
    /// Absent where none are asked.
    sentinels: Option<Sentinels>,
    /// Absent where there is no cluster.
    shards: Option<Shards>,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct ServerNode {
    address: String,
    /// `primary` or `replica`.
    role: &'static str,
    /// Of one that this service is connected to, the state of its connection (`ready`,
    /// `connecting`, `down`, `closed`), but `away` of a cluster's that other nodes cannot reach; of
    /// another, `in_sync`, `away` or, if nobody has told of late, `unknown`, or in a cluster `idle`
    /// (it was asked nothing yet) or `away`.
    state: &'static str,
    /// How far it is behind the primary; absent of a primary, and where nobody says.
    lag_bytes: Option<u64>,
    /// How old its data are at most, of a cluster's replica; absent of a primary, and where no
    /// replica is read from.
    lag_ms: Option<f64>,
    /// `closed`, `open` or `half_open`; absent where this service sends it nothing.
    breaker: Option<&'static str>,
    /// Whether it can become the primary; absent where nobody says.
    can_take_over: Option<bool>,
    /// The slots that it owns, such as `0-5460, 7000`; absent where there is no cluster.
    slots: Option<String>,
    /// The address of the primary that it follows; absent of a primary, and where nobody says.
    follows: Option<String>,
}

/// The sentinels that watch the primary, and how well it is proven.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Sentinels {
    /// The name under which they watch it.
    service: String,
    primary: Option<String>,
    epoch: Option<u64>,
    /// How often the primary has changed since the start.
    switches: u64,
    /// The sentinels that name this primary and epoch in answers of the last 10 s.
    votes: usize,
    /// How many of them a majority takes, of how many.
    majority: usize,
    voters: usize,
    /// How long ago a majority was last known to agree; absent if it never was.
    confirmed_ms_ago: Option<f64>,
    /// How old that may be before writes are refused; absent if no proof is asked for.
    proof_within_ms: Option<u64>,
    each: Vec<SentinelNode>,
    /// Whether anybody has told of the replicas of late; if not, they are `unknown`.
    replicas_known: bool,
    /// The commands that the primary does not allow to this user, without which lag and the cost of
    /// a failover are not known.
    not_allowed: Vec<&'static str>,
}

/// A sentinel.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct SentinelNode {
    address: String,
    state: SentinelState,
    answered_ms_ago: Option<f64>,
    /// The primary and the epoch that it named last.
    names: Option<String>,
    epoch: Option<u64>,
    /// Why it could not be asked, or does not count.
    error: Option<String>,
}

/// The worth of a sentinel's word just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum SentinelState {
    /// The sentinel names the primary that is believed.
    Agrees,
    /// The sentinel names another primary, or another epoch.
    Disagrees,
    /// The sentinel has not answered, or its answer does not count.
    Silent,
}

/// The time for which an answer counts, as a vote and here: sentinels are asked more often.
const FRESH_MS: f64 = 10_000.0;
/// The time without a majority that is trouble: two rounds of questions were missed, not one.
const UNCONFIRMED_MS: f64 = 25_000.0;

impl Nodes {
    /// Tells of the servers that the client knows.
    pub(crate) fn of(client: &ClientStatus, expected: &Expected) -> Self {
        if let Some(cluster) = &client.cluster {
            let members = cluster.nodes.iter().filter(|node| node.member);
            return Self {
                found_by: "cluster",
                servers: members.map(ServerNode::of_cluster).collect(),
                sentinels: None,
                shards: Some(Shards::of(cluster, expected)),
            };
        }
        let breaker = Some(client.breaker);
        let state = state_name(client.state);
        let node = |address: String, role| ServerNode {
            address,
            role,
            state,
            lag_bytes: None,
            lag_ms: None,
            breaker,
            can_take_over: None,
            slots: None,
            follows: None,
        };
        let Some(watched) = &client.sentinel else {
            return Self {
                found_by: "single",
                servers: vec![node(client.address.clone(), "primary")],
                sentinels: None,
                shards: None,
            };
        };
        let primary = watched.primary.clone();
        let primary = primary.map(|address| node(address, "primary"));
        let replicas = watched.replicas.iter().map(|replica| ServerNode {
            address: replica.address.clone(),
            role: "replica",
            state: match (replica.in_sync, watched.replicas_known) {
                (true, _) => "in_sync",
                (false, true) => "away",
                (false, false) => "unknown",
            },
            lag_bytes: replica.lag_bytes,
            lag_ms: None,
            breaker: None,
            can_take_over: replica.priority.map(|priority| priority > 0),
            slots: None,
            follows: watched.primary.clone(),
        });
        Self {
            found_by: "sentinel",
            servers: primary.into_iter().chain(replicas).collect(),
            sentinels: Some(Sentinels::of(watched, expected.proof_within_ms)),
            shards: None,
        }
    }

    /// Returns how the shards are; `None` where there is no cluster.
    pub(crate) fn shards_check(&self) -> Option<Check> {
        self.shards.as_ref().map(Shards::check)
    }

    /// Returns how the sentinels are; `None` where none are asked.
    pub(crate) fn check(&self) -> Option<Check> {
        let watch = self.sentinels.as_ref()?;
        let said = watch.votes_in_words();
        let ago = watch.confirmed_ms_ago;
        let older_than = |most: f64| ago.is_none_or(|ago| ago > most);
        let refuses = watch
            .proof_within_ms
            .is_some_and(|within| older_than(within as f64));
        let (status, means) = match &watch.primary {
            None => (Status::Degraded, "; none of them has named a primary yet"),
            Some(_) if refuses => (Status::Degraded, "; writes to Redis are refused without it"),
            // As it is for a moment after a failover.
            Some(_) if ago.is_none() => (Status::Degraded, ""),
            Some(_) if older_than(UNCONFIRMED_MS) => (
                Status::Degraded,
                "; should the primary fail, nobody takes over",
            ),
            Some(_) => (Status::Healthy, ""),
        };
        let replicas = match self.replicas_that_are("in_sync") {
            None => "nobody tells whether a replica is in sync".to_owned(),
            Some(0) => "no replica in sync".to_owned(),
            Some(1) => "1 replica in sync".to_owned(),
            Some(n) => format!("{n} replicas in sync"),
        };
        Some(Check::new(status, format!("{said}{means}; {replicas}")))
    }

    /// Returns how the shard of the cache is, in words; `None` where there is no cluster, and where
    /// it is not known.
    pub(crate) fn cache_in_words(&self) -> Option<String> {
        self.shards.as_ref().and_then(Shards::cache_in_words)
    }

    /// Returns how many replicas are in this state; `None` if nobody has told of late.
    fn replicas_that_are(&self, state: &str) -> Option<usize> {
        let known = self.sentinels.as_ref()?.replicas_known;
        let replicas = (self.servers.iter()).filter(|node| node.role == "replica");
        known.then(|| replicas.filter(|node| node.state == state).count())
    }

    /// Sets the gauges of sentinels and replicas, where there are any.
    pub(crate) fn set_gauges(&self) {
        if let Some(shards) = &self.shards {
            shards.set_gauges();
        }
        let Some(watch) = &self.sentinels else { return };
        for (name, state) in [
            ("agrees", SentinelState::Agrees),
            ("disagrees", SentinelState::Disagrees),
            ("silent", SentinelState::Silent),
        ] {
            let of_it = watch.each.iter().filter(|one| one.state == state);
            gauge!("steadfast_redis_sentinels", "state" => name).set(of_it.count() as f64);
        }
        // Infinite before the first one, so that the alert on this age fires.
        let age = watch.confirmed_ms_ago.map_or(f64::INFINITY, |ms| ms / 1e3);
        gauge!("steadfast_redis_primary_proof_age_seconds").set(age);
        let replicas = || self.servers.iter().filter(|node| node.role == "replica");
        for state in ["in_sync", "away"] {
            // Not known is not none, which would wake somebody.
            let count = self.replicas_that_are(state).map_or(f64::NAN, |n| n as f64);
            gauge!("steadfast_redis_replicas", "state" => state).set(count);
        }
        let lag = replicas().filter_map(|node| node.lag_bytes).max();
        let lag = lag.map_or(f64::NAN, |bytes| bytes as f64);
        gauge!("steadfast_redis_replica_lag_bytes").set(lag);
    }
}

impl ServerNode {
    fn of_cluster(node: &NodeStatus) -> Self {
        let address = node.address.clone().or_else(|| node.id.clone());
        Self {
            address: address.unwrap_or_default(),
            role: if node.primary { "primary" } else { "replica" },
            state: match node.state {
                _ if node.failing => "away",
                Some(state) => state_name(state),
                None => "idle",
            },
            lag_bytes: None,
            lag_ms: node.lag_ms,
            breaker: node.breaker,
            can_take_over: None,
            slots: Some(node.slots.clone()),
            follows: node.follows.clone(),
        }
    }
}

impl Sentinels {
    fn of(watched: &SentinelStatus, proof_within_ms: Option<u64>) -> Self {
        Self {
            service: watched.service.clone(),
            primary: watched.primary.clone(),
            epoch: watched.epoch,
            switches: watched.switches,
            votes: watched.votes,
            majority: watched.voters / 2 + 1,
            voters: watched.voters,
            confirmed_ms_ago: watched.confirmed_ms_ago,
            proof_within_ms,
            each: watched.sentinels.iter().map(SentinelNode::of).collect(),
            replicas_known: watched.replicas_known,
            not_allowed: watched.not_allowed.clone(),
        }
    }

    /// "2 of 3 sentinels name 10.0.0.1:6379, epoch 4, last confirmed by a majority 3.1 s ago".
    fn votes_in_words(&self) -> String {
        let mut said = match &self.primary {
            None => format!("no sentinel of {} is known to agree", self.voters),
            Some(primary) => {
                let epoch = self.epoch.unwrap_or_default();
                let confirmed = match self.confirmed_ms_ago {
                    Some(ms) => format!("last confirmed by a majority {:.1} s ago", ms / 1e3),
                    None => "not confirmed by a majority yet".to_owned(),
                };
                format!(
                    "{} of {} sentinels name {primary}, epoch {epoch}, {confirmed}",
                    self.votes, self.voters
                )
            }
        };
        for one in &self.each {
            match (one.state, &one.names, &one.error) {
                (SentinelState::Agrees, ..) => {}
                (SentinelState::Disagrees, Some(other), _) => {
                    let epoch = one.epoch.unwrap_or_default();
                    said.push_str(&format!("; {} names {other}, epoch {epoch}", one.address));
                }
                (_, _, Some(error)) => said.push_str(&format!("; {}: {error}", one.address)),
                _ => said.push_str(&format!("; {} is silent", one.address)),
            }
        }
        said
    }
}

impl SentinelNode {
    fn of(contact: &SentinelContact) -> Self {
        let fresh = contact.answered_ms_ago.is_some_and(|ago| ago < FRESH_MS);
        let state = match (&contact.error, fresh) {
            (None, true) if contact.dissents => SentinelState::Disagrees,
            (None, true) => SentinelState::Agrees,
            _ => SentinelState::Silent,
        };
        Self {
            address: contact.address.clone(),
            state,
            answered_ms_ago: contact.answered_ms_ago,
            names: contact.names.clone(),
            epoch: contact.epoch,
            error: contact.error.clone(),
        }
    }
}

/// Returns the word for a state of the connection to Redis.
pub(crate) fn state_name(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Connecting => "connecting",
        ConnectionState::Ready => "ready",
        ConnectionState::Partial => "partial",
        ConnectionState::Closed => "closed",
        _ => "down",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t20_that_nobody_tells_of_replicas_is_no_word_that_none_is_in_sync() {
        let replica = |state| ServerNode {
            address: "b:1".to_owned(),
            role: "replica",
            state,
            lag_bytes: None,
            lag_ms: None,
            breaker: None,
            can_take_over: None,
            slots: None,
            follows: None,
        };
        let nodes = |state, replicas_known| Nodes {
            found_by: "sentinel",
            servers: vec![replica(state)],
            sentinels: Some(Sentinels {
                service: "main".to_owned(),
                primary: Some("a:1".to_owned()),
                epoch: Some(1),
                switches: 0,
                votes: 3,
                majority: 2,
                voters: 3,
                confirmed_ms_ago: Some(1e3),
                proof_within_ms: None,
                each: Vec::new(),
                replicas_known,
                not_allowed: Vec::new(),
            }),
            shards: None,
        };
        let unknown = nodes("unknown", false);
        assert_eq!(unknown.replicas_that_are("in_sync"), None);
        let said = unknown.check().unwrap().message;
        assert!(
            said.ends_with("nobody tells whether a replica is in sync"),
            "{said}"
        );
        let away = nodes("away", true);
        assert_eq!(away.replicas_that_are("in_sync"), Some(0));
        let said = away.check().unwrap().message;
        assert!(said.ends_with("no replica in sync"), "{said}");
    }
}
