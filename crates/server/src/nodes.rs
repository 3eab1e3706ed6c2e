//! Behind one name of Redis there may be several servers, and sentinels that watch them. Whoever is
//! called at night has to know which of them serves, which could take over, and who says otherwise.
//! So they are listed one by one, from what the client knows already: nobody is asked for it.

use metrics::{counter, gauge};
use serde::Serialize;
use steadfast::{
    ClusterStatus, ConnectionState, NodeStatus, SentinelContact, SentinelStatus,
    Status as ClientStatus,
};

use crate::health::{Check, Status};

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
    /// `connecting`, `down`, `closed`); of another, `in_sync` or `away`, or in a cluster `idle` (it
    /// was asked nothing yet) or `away` (other nodes cannot reach it).
    state: &'static str,
    /// How far it is behind the primary; absent of a primary, and where nobody says.
    lag_bytes: Option<u64>,
    /// `closed`, `open` or `half_open`; absent where this service sends it nothing.
    breaker: Option<&'static str>,
    /// Whether it can become the primary; absent where nobody says.
    can_take_over: Option<bool>,
    /// The slots that it owns, such as `0-5460, 7000`; absent where there is no cluster.
    slots: Option<String>,
    /// The address of the primary that it follows; absent of a primary, and where nobody says.
    follows: Option<String>,
}

/// The slots of a cluster, and who serves them.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Shards {
    /// The primaries that own slots.
    primaries: usize,
    /// Those of them that do not serve.
    away: Vec<String>,
    /// Those of them that no replica follows.
    alone: Vec<String>,
    /// The slots that nobody is known to own, such as `0-5460`; empty if all are owned.
    uncovered: String,
    uncovered_slots: usize,
    epoch: u64,
    /// How long ago a node last told who owns what; absent if none ever did.
    heard_ms_ago: Option<f64>,
    /// Why no node told it when they were asked last.
    error: Option<String>,
    discoveries: u64,
    redirects: u64,
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
    pub(crate) fn of(client: &ClientStatus, proof_within_ms: Option<u64>) -> Self {
        if let Some(cluster) = &client.cluster {
            let members = cluster.nodes.iter().filter(|node| node.member);
            return Self {
                found_by: "cluster",
                servers: members.map(ServerNode::of_cluster).collect(),
                sentinels: None,
                shards: Some(Shards::of(cluster)),
            };
        }
        let breaker = Some(client.breaker);
        let state = state_name(client.state);
        let node = |address: String, role| ServerNode {
            address,
            role,
            state,
            lag_bytes: None,
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
            state: if replica.in_sync { "in_sync" } else { "away" },
            lag_bytes: replica.lag_bytes,
            breaker: None,
            can_take_over: replica.priority.map(|priority| priority > 0),
            slots: None,
            follows: watched.primary.clone(),
        });
        Self {
            found_by: "sentinel",
            servers: primary.into_iter().chain(replicas).collect(),
            sentinels: Some(Sentinels::of(watched, proof_within_ms)),
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
        let in_sync = (self.servers.iter())
            .filter(|node| node.state == "in_sync")
            .count();
        let replicas = match in_sync {
            0 => "no replica in sync".to_owned(),
            1 => "1 replica in sync".to_owned(),
            n => format!("{n} replicas in sync"),
        };
        Some(Check::new(status, format!("{said}{means}; {replicas}")))
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
            let of_it = replicas().filter(|node| node.state == state);
            gauge!("steadfast_redis_replicas", "state" => state).set(of_it.count() as f64);
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
                Some(state) => state_name(state),
                None if node.failing => "away",
                None => "idle",
            },
            lag_bytes: None,
            breaker: node.breaker,
            can_take_over: None,
            slots: Some(node.slots.clone()),
            follows: node.follows.clone(),
        }
    }
}

impl Shards {
    fn of(cluster: &ClusterStatus) -> Self {
        let members = || cluster.nodes.iter().filter(|node| node.member);
        let owners = || members().filter(|node| node.primary && !node.slots.is_empty());
        let serves = |node: &NodeStatus| match node.state {
            Some(state) => state == ConnectionState::Ready,
            None => !node.failing,
        };
        let followed = |node: &NodeStatus| {
            let mut replicas = members().filter(|node| !node.primary && !node.failing);
            replicas.any(|replica| replica.follows.is_some() && replica.follows == node.address)
        };
        let away = owners().filter(|node| !serves(node)).map(|node| {
            let address = node
                .address
                .as_deref()
                .unwrap_or("a node without an address");
            let why = node
                .last_error
                .as_deref()
                .unwrap_or("other nodes cannot reach it");
            format!("{address} (slots {}): {why}", node.slots)
        });
        let alone = owners().filter(|node| !followed(node));
        Self {
            primaries: owners().count(),
            away: away.collect(),
            alone: alone.filter_map(|node| node.address.clone()).collect(),
            uncovered: cluster.uncovered.clone(),
            uncovered_slots: cluster.uncovered_slots,
            epoch: cluster.epoch,
            heard_ms_ago: cluster.heard_ms_ago,
            error: cluster.error.clone(),
            discoveries: cluster.discoveries,
            redirects: cluster.redirects,
        }
    }

    /// One shard that is away costs its own keys only.
    fn check(&self) -> Check {
        if self.heard_ms_ago.is_none() {
            let why = self.error.as_deref().unwrap_or("none was asked");
            let message = format!("no node has told who owns which slot: {why}");
            return Check::new(Status::Degraded, message);
        }
        let mut wrong = Vec::new();
        if self.uncovered_slots > 0 {
            wrong.push(format!("nobody owns the slots {}", self.uncovered));
        }
        if !self.away.is_empty() {
            wrong.push(format!(
                "{} of {} shards do not serve: {}",
                self.away.len(),
                self.primaries,
                self.away.join("; ")
            ));
        }
        let mut said = match &wrong[..] {
            [] => format!("{} shards own all slots and serve", self.primaries),
            wrong => format!("{}; all other keys are served", wrong.join("; ")),
        };
        if !self.alone.is_empty() {
            said.push_str(&format!("; without a replica: {}", self.alone.join(", ")));
        }
        let status = match wrong.is_empty() {
            true => Status::Healthy,
            false => Status::Degraded,
        };
        Check::new(status, said)
    }

    fn set_gauges(&self) {
        let away = self.away.len();
        let serving = self.primaries.saturating_sub(away);
        for (state, count) in [("serving", serving), ("away", away)] {
            gauge!("steadfast_redis_shards", "state" => state).set(count as f64);
        }
        gauge!("steadfast_redis_shards_without_replica").set(self.alone.len() as f64);
        gauge!("steadfast_redis_uncovered_slots").set(self.uncovered_slots as f64);
        // Infinite before the first one, so that an alert on this age fires.
        let age = self.heard_ms_ago.map_or(f64::INFINITY, |ms| ms / 1e3);
        gauge!("steadfast_redis_cluster_view_age_seconds").set(age);
        counter!("steadfast_redis_discoveries_total").absolute(self.discoveries);
        counter!("steadfast_redis_redirects_total").absolute(self.redirects);
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
