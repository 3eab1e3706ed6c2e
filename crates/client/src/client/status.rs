//! A client as it is now, for people and for status pages.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Client;
use super::cluster::{Cluster, ClusterStatus};
use crate::breaker::state_name;
use crate::clock;
use crate::event::flapping::Flapping;
use crate::link::fence::Fencing;
use crate::link::{ConnectionState, LinkView};
use crate::sentinel::SentinelStatus;

/// A client as it is now, for status pages and decisions by people.
///
/// ```
/// use steadfast::{Fencing, Flapping, Status};
///
/// fn complaints(status: &Status) -> Vec<String> {
///     let flaps = |f: &Flapping| format!("lost {} times, last by {}", f.reconnects, f.cause);
///     let mut complaints: Vec<_> = status.flapping.iter().map(flaps).collect();
///     if status.fencing == Fencing::Refused {
///         complaints.push("allow CLIENT KILL, so that more writes can be repeated".to_owned());
///     }
///     complaints
/// }
/// # fn example(client: &steadfast::Client) {
/// println!("{:?}", complaints(&client.status()));
/// # }
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Status {
    /// The state of the worst of its connections.
    pub state: ConnectionState,
    /// The time in that state, in milliseconds.
    pub state_for_ms: f64,
    /// The address of the server.
    pub address: String,
    /// The server's version, once known.
    pub server_version: Option<String>,
    /// TLS version and cipher suite, if TLS is spoken.
    pub tls: Option<String>,
    /// Attempts to connect so far, successful ones included.
    pub attempts: u64,
    /// Times that a lost connection was replaced.
    pub reconnects: u64,
    /// Times that the watchdog had to start a supervisor anew, or that an attempt to connect or a
    /// renewal of credentials panicked or kept its thread past its deadline.
    pub stuck_resets: u64,
    /// Mean length of the outages that are over.
    pub mean_recovery_ms: Option<f64>,
    /// The reason for which the last connection or attempt ended.
    pub last_error: Option<String>,
    /// `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// Calls sent, or waiting to be sent, and not yet answered.
    pub in_flight: usize,
    /// Replies received so far; those of the last moments are counted with the next one.
    pub answered: u64,
    /// Round-trip time as smoothed.
    pub rtt_ms: Option<f64>,
    /// Whether abandoned connections can be killed on the server.
    pub fencing: Fencing,
    /// Since when and how often the connection has been lost and replaced again and again; absent
    /// if it is steady.
    pub flapping: Option<Flapping>,
    /// The word of the sentinels; absent where none are asked.
    pub sentinel: Option<SentinelStatus>,
    /// The nodes of the cluster; absent where there is one server.
    pub cluster: Option<ClusterStatus>,
}

impl Client {
    /// A snapshot. Of a cluster, the sums of its nodes.
    pub fn status(&self) -> Status {
        match &self.inner.cluster {
            Some(cluster) => Self::status_of_all(cluster, self.status_of_one()),
            None => self.status_of_one(),
        }
    }

    /// Returns the status of the whole, from that of the link that stands for it.
    fn status_of_all(cluster: &Cluster, front: Status) -> Status {
        let clients = cluster.primaries();
        let nodes: Vec<Status> = clients.iter().map(Self::status).collect();
        let sum = |field: fn(&Status) -> u64| nodes.iter().map(field).sum();
        let worst = nodes
            .iter()
            .find(|node| node.state != ConnectionState::Ready);
        let breaker = nodes.iter().find(|node| node.breaker != "closed");
        let cluster = cluster.status();
        Status {
            server_version: nodes.iter().find_map(|node| node.server_version.clone()),
            tls: nodes.iter().find_map(|node| node.tls.clone()),
            attempts: sum(|node| node.attempts),
            reconnects: sum(|node| node.reconnects),
            stuck_resets: front.stuck_resets + sum(|node| node.stuck_resets),
            mean_recovery_ms: nodes.iter().find_map(|node| node.mean_recovery_ms),
            last_error: worst
                .and_then(|node| node.last_error.clone())
                .or_else(|| cluster.error.clone()),
            breaker: breaker.map_or("closed", |node| node.breaker),
            in_flight: nodes.iter().map(|node| node.in_flight).sum(),
            answered: sum(|node| node.answered),
            rtt_ms: nodes.iter().find_map(|node| node.rtt_ms),
            fencing: fencing(&nodes),
            cluster: Some(cluster),
            ..front
        }
    }

    fn status_of_one(&self) -> Status {
        let shared = &self.inner.shared;
        let state = self.state();
        let now = clock::now();
        let worst = shared.links.iter().find(|link| link.state() == state);
        let views: Vec<_> = shared.links.iter().map(|link| link.view.lock()).collect();
        let sum = |field: fn(&LinkView) -> u64| views.iter().map(|view| field(view)).sum();
        let reconnects: u64 = sum(|view| view.reconnects);
        let recoveries: u64 = sum(|view| view.recoveries);
        let recovery: Duration = views.iter().map(|view| view.recovery_total).sum();
        let view = &views[worst.map_or(0, |link| link.index)];
        Status {
            state,
            state_for_ms: clock::as_ms(now.saturating_duration_since(view.since)),
            address: shared.settings.target.address.to_string(),
            server_version: view.facts.as_ref().map(|facts| facts.version.clone()),
            tls: view.facts.as_ref().and_then(|facts| facts.tls.clone()),
            attempts: sum(|view| view.attempts),
            reconnects,
            stuck_resets: sum(|view| view.stuck_resets),
            mean_recovery_ms: (recoveries > 0).then(|| clock::as_ms(recovery) / recoveries as f64),
            last_error: view.last_error.as_deref().map(str::to_owned),
            breaker: state_name(shared.breaker.state()),
            in_flight: shared.links.iter().map(|link| link.queue.in_flight()).sum(),
            answered: shared.answered.load(Ordering::Relaxed),
            rtt_ms: shared.rtt().map(clock::as_ms),
            fencing: shared.fences.fencing(),
            flapping: shared.hub.flaps(),
            sentinel: shared.discovery.as_ref().map(|known| known.status(now)),
            cluster: None,
        }
    }
}

fn fencing(nodes: &[Status]) -> Fencing {
    let any = |fencing| nodes.iter().any(|node| node.fencing == fencing);
    match (any(Fencing::Refused), any(Fencing::Works)) {
        (true, _) => Fencing::Refused,
        (false, true) => Fencing::Works,
        (false, false) => Fencing::Untried,
    }
}
