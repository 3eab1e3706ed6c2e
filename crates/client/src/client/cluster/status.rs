//! The state of a cluster, for status pages and for people.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use steadfast_core::slot::SlotRange;

use super::Cluster;
use super::node::Node;
use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::link::ConnectionState;

/// The state of the cluster, in [`Status`](crate::Status).
///
/// ```
/// use steadfast::{ClusterStatus, NodeStatus};
///
/// fn unwell(cluster: &ClusterStatus) -> Vec<&str> {
///     let unwell = |node: &&NodeStatus| !node.serves();
///     let nodes = cluster.nodes.iter().filter(unwell);
///     nodes.filter_map(|node| node.address.as_deref()).collect()
/// }
/// # fn example(client: &steadfast::Client) -> Option<()> {
/// let cluster = client.status().cluster?;
/// println!("{:?}", unwell(&cluster));
/// let owner = cluster.nodes.iter().find(|node| node.owns(12_182))?; // the slot of `foo`
/// println!("`foo` is served: {}", owner.why_not().unwrap_or("yes"));
/// # Some(()) }
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ClusterStatus {
    /// The highest epoch that a node has told.
    pub epoch: u64,
    /// The time since a node last told who owns what, in milliseconds; absent if none ever did.
    pub heard_ms_ago: Option<f64>,
    /// The reason why no node told it when they were asked last; absent if one did.
    pub error: Option<String>,
    /// The questions that the nodes' ACL did not allow when they were asked last, such as `CLUSTER
    /// INFO`: what depends on them is unknown. Empty if all are allowed.
    pub not_allowed: Vec<&'static str>,
    /// The number of times that nodes were asked.
    pub discoveries: u64,
    /// The number of times that a call went on at another node, or at the same once more.
    pub redirects: u64,
    /// Reads that were served by replicas, where these are read from.
    pub replica_reads: u64,
    /// Reads that were to be served by replicas, and were by primaries: no replica was fit, or it
    /// did not answer, or knew nothing of the key.
    pub replica_fallbacks: u64,
    /// The slots that nobody is known to own, such as `0-5460, 7000`; empty if all are owned.
    pub uncovered: String,
    /// The number of those slots.
    pub uncovered_slots: usize,
    /// The nodes, those that are no more members included while their places are not needed.
    pub nodes: Vec<NodeStatus>,
}

/// A node of the cluster.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NodeStatus {
    /// The identity (`CLUSTER MYID`); absent of a node that only a redirect has named.
    pub id: Option<String>,
    /// The address where it is dialled; absent if nobody knows.
    pub address: Option<String>,
    /// Whether it is a primary.
    pub primary: bool,
    /// The address of the primary that a replica follows.
    pub follows: Option<String>,
    /// The greatest age of the data of a replica, in milliseconds; absent of a primary, and where
    /// it is not measured because no replica is read from.
    pub lag_ms: Option<f64>,
    /// Whether the newest view names it.
    pub member: bool,
    /// Whether other nodes think that it does not serve.
    pub failing: bool,
    /// The node's slots, such as `0-5460, 7000`.
    pub slots: String,
    /// The state of the connection to it; absent if nothing was asked of it yet.
    pub state: Option<ConnectionState>,
    /// `closed`, `open` or `half_open`.
    pub breaker: Option<&'static str>,
    /// Calls sent to it, or waiting to be sent, and not yet answered.
    pub in_flight: usize,
    /// Replies received from it so far.
    pub answered: u64,
    /// Times that a lost connection to it was replaced.
    pub reconnects: u64,
    /// Round-trip time as smoothed.
    pub rtt_ms: Option<f64>,
    /// The error that ended the last connection or attempt.
    pub last_error: Option<String>,
}

impl ClusterStatus {
    /// The primaries that the newest view names as owners of slots.
    pub fn owners(&self) -> impl Iterator<Item = &NodeStatus> {
        let owns = |node: &&NodeStatus| node.member && node.primary && !node.slots.is_empty();
        self.nodes.iter().filter(owns)
    }

    /// The replicas that could take over from this primary: members that follow it, and that other
    /// nodes can reach. None of a primary whose address nobody knows.
    pub fn replicas_of<'a>(
        &'a self,
        primary: &'a NodeStatus,
    ) -> impl Iterator<Item = &'a NodeStatus> {
        let follows = |node: &&NodeStatus| {
            let fit = node.member && !node.primary && !node.failing;
            fit && node.follows.is_some() && node.follows == primary.address
        };
        self.nodes.iter().filter(follows)
    }
}

impl NodeStatus {
    /// Returns whether the node answers calls, as far as is known: other nodes can reach it, its
    /// breaker lets calls through, and so does the connection, if there is one already.
    #[must_use]
    pub fn serves(&self) -> bool {
        let connected = self
            .state
            .is_none_or(|state| state == ConnectionState::Ready);
        connected && !self.failing && self.breaker != Some("open")
    }

    /// Returns why it does not answer calls, in words; `None` if it does.
    #[must_use]
    pub fn why_not(&self) -> Option<&str> {
        let ready = self.state == Some(ConnectionState::Ready);
        let error = self.last_error.as_deref().filter(|_| !ready);
        match self.serves() {
            true => None,
            // Connected, so that its last error is of a connection before.
            false if self.failing => Some(error.unwrap_or("other nodes cannot reach it")),
            false if ready => Some("its breaker is open after failures"),
            false => Some(error.unwrap_or("it is being connected to")),
        }
    }

    /// Returns whether it owns this slot.
    #[must_use]
    pub fn owns(&self, slot: u16) -> bool {
        let number = |text: &str| text.parse::<u16>().ok();
        self.slots.split(", ").any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            number(first)
                .zip(number(last))
                .is_some_and(|(first, last)| (first..=last).contains(&slot))
        })
    }
}

impl Cluster {
    pub(crate) fn status(&self) -> ClusterStatus {
        let now = clock::now();
        let known = self.known.lock();
        let topology = &known.topology;
        let nodes = topology.members().map(|(index, member)| {
            let node =
                (self.routes.node(index.number())).or_else(|| self.started_replica(index.number()));
            let lag = self.reads.age_of(index.number(), now);
            let followed = member.follows.as_ref().and_then(|id| topology.find(id));
            let followed = followed.and_then(|of| topology.member(of).endpoint.as_ref());
            let status = node.map(|node| node.client.status());
            NodeStatus {
                id: member.id.as_ref().map(ToString::to_string),
                address: member.endpoint.as_ref().map(ToString::to_string),
                primary: member.is_primary,
                follows: followed.map(ToString::to_string),
                lag_ms: lag.map(clock::as_ms),
                member: member.is_present,
                failing: member.is_failing,
                slots: told(&topology.slots_of(index)),
                state: status.as_ref().map(|status| status.state),
                breaker: status.as_ref().map(|status| status.breaker),
                in_flight: status.as_ref().map_or(0, |status| status.in_flight),
                answered: status.as_ref().map_or(0, |status| status.answered),
                reconnects: status.as_ref().map_or(0, |status| status.reconnects),
                rtt_ms: status.as_ref().and_then(|status| status.rtt_ms),
                last_error: status.and_then(|status| status.last_error),
            }
        });
        let reads = self.reads.counts();
        let uncovered = topology.uncovered();
        ClusterStatus {
            replica_reads: reads.served,
            replica_fallbacks: reads.fell_back,
            epoch: topology.current_epoch(),
            heard_ms_ago: known
                .heard
                .map(|at| clock::as_ms(now.saturating_duration_since(at))),
            error: known.error.as_deref().map(str::to_owned),
            not_allowed: known.not_allowed.iter().copied().collect(),
            discoveries: self.discoveries.load(Ordering::Relaxed),
            redirects: self.redirects.load(Ordering::Relaxed),
            uncovered_slots: uncovered.iter().map(|range| range.slots().count()).sum(),
            uncovered: told(&uncovered),
            nodes: nodes.collect(),
        }
    }

    /// Returns why no node is known, if none is.
    pub(crate) fn trouble(&self) -> Option<Arc<str>> {
        self.known.lock().error.clone()
    }

    /// Waits until all owners of slots are connected.
    pub(crate) async fn first_connections(&self, limit: Duration) -> Result<(), Error> {
        let connected = async {
            let mut version = self.version.subscribe();
            loop {
                let owners = self.routes.owners();
                let mut nodes = Vec::with_capacity(owners.len());
                for owner in owners {
                    nodes.extend(self.node(owner)?);
                }
                // All are dialled by now, each by itself.
                let ready = nodes.iter().map(|node| async move {
                    let mut state = node.client.inner.shared.links[0].state.subscribe();
                    let is_ready = |state: &ConnectionState| *state == ConnectionState::Ready;
                    let _ = state.wait_for(is_ready).await;
                });
                let ready = async {
                    match nodes.is_empty() {
                        true => std::future::pending().await,
                        false => join_all(ready).await,
                    }
                };
                tokio::select! {
                    biased;
                    _ = ready => return Ok(()),
                    // The owners may be others now.
                    changed = version.changed() => if changed.is_err() {
                        return Ok(());
                    },
                }
            }
        };
        let connected = clock::timeout(limit, connected).await;
        connected.unwrap_or_else(|| Err(self.not_connected_within(limit)))
    }

    /// Says how far it has come.
    fn not_connected_within(&self, limit: Duration) -> Error {
        let owners = self.routes.owners();
        let told = || match self.trouble() {
            Some(trouble) => trouble,
            None => format!("no node of the cluster has answered within {limit:?}").into(),
        };
        let nodes: Vec<_> = owners
            .iter()
            .filter_map(|owner| self.routes.node(*owner))
            .collect();
        let is_ready = |node: &Arc<Node>| node.client.state() == ConnectionState::Ready;
        let late = nodes.iter().find(|node| !is_ready(node));
        let cause = late.map_or_else(told, |late| {
            let ready = nodes.iter().filter(|node| is_ready(node)).count();
            let error = late.client.status().last_error;
            let why = error.unwrap_or_else(|| "it is being connected to".to_owned());
            let (at, all) = (late.endpoint(), owners.len());
            let within = format!("{ready} of {all} primaries are connected within {limit:?}");
            format!("{within}; {at}: {why}").into()
        });
        Error::not_sent(ErrorKind::Connect { cause })
    }
}

fn told(ranges: &[SlotRange]) -> String {
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    ranges.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(address: Option<&str>) -> NodeStatus {
        NodeStatus {
            id: None,
            address: address.map(str::to_owned),
            primary: true,
            follows: None,
            lag_ms: None,
            member: true,
            failing: false,
            slots: "0-5460, 7000".to_owned(),
            state: Some(ConnectionState::Ready),
            breaker: Some("closed"),
            in_flight: 0,
            answered: 0,
            reconnects: 0,
            rtt_ms: None,
            last_error: Some("connection reset".to_owned()),
        }
    }

    #[test]
    fn s4_a_node_serves_only_if_others_reach_it_and_its_breaker_lets_calls_through() {
        let well = node(Some("a:1"));
        assert_eq!((well.serves(), well.why_not()), (true, None));
        let unasked = NodeStatus {
            state: None,
            breaker: None,
            ..well.clone()
        };
        assert!(unasked.serves());
        let failing = NodeStatus {
            failing: true,
            ..well.clone()
        };
        assert_eq!(failing.why_not(), Some("other nodes cannot reach it"));
        let open = NodeStatus {
            breaker: Some("open"),
            ..well.clone()
        };
        assert_eq!(open.why_not(), Some("its breaker is open after failures"));
        let down = NodeStatus {
            state: Some(ConnectionState::Down),
            ..well
        };
        assert_eq!(down.why_not(), Some("connection reset"));
    }

    #[test]
    fn s4_only_a_replica_that_others_reach_and_whose_primary_is_known_can_take_over() {
        let follower = |of: Option<&str>, failing| NodeStatus {
            primary: false,
            follows: of.map(str::to_owned),
            failing,
            slots: String::new(),
            ..node(Some("r:1"))
        };
        let cluster = |primary: &NodeStatus, replica| ClusterStatus {
            epoch: 1,
            heard_ms_ago: None,
            error: None,
            not_allowed: Vec::new(),
            discoveries: 0,
            redirects: 0,
            replica_reads: 0,
            replica_fallbacks: 0,
            uncovered: String::new(),
            uncovered_slots: 0,
            nodes: vec![primary.clone(), replica],
        };
        let (known, unknown) = (node(Some("a:1")), node(None));
        let fit = |primary, replica| cluster(primary, replica).replicas_of(primary).count();
        assert_eq!(fit(&known, follower(Some("a:1"), false)), 1);
        assert_eq!(fit(&known, follower(Some("a:1"), true)), 0);
        assert_eq!(fit(&unknown, follower(None, false)), 0);
        assert_eq!(cluster(&known, follower(None, false)).owners().count(), 1);
    }

    #[test]
    fn s4_a_node_owns_the_slots_that_it_names() {
        let owner = node(None);
        let owned = [0, 5460, 7000].map(|slot| owner.owns(slot));
        assert_eq!(owned, [true; 3]);
        assert!(!owner.owns(5461) && !owner.owns(7001));
        let none = NodeStatus {
            slots: String::new(),
            ..owner
        };
        assert!(!none.owns(0));
    }
}
