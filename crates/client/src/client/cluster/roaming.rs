//! Connections for subscribers: to any node that is a member by the newest view, as all nodes hear
//! of plain channels; or to the owner of a sharded channel's slot, whoever that is now.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use steadfast_core::node::{Endpoint, NodeId};
use steadfast_core::slot::Slot;

use super::Cluster;
use crate::error::connect::ConnectError;
use crate::link::connect::{Found, Location, Network, Transport, WaitsFor, resolved};
use crate::membership::Membership;
use crate::settings::Settings;
use crate::wire::stream::Stream;

/// The number of nodes that an attempt to connect tries.
const TRIED: usize = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct Roaming {
    network: Network,
    settings: Arc<Settings>,
    cluster: OnceLock<Weak<Cluster>>,
    /// To whose owner it connects, if not to any node.
    slot: Option<Slot>,
    /// Of the places of the last attempt: who is there.
    names: Mutex<HashMap<SocketAddr, Dialled>>,
}

/// Who is at a place that an attempt to connect tries.
#[derive(Clone, Debug)]
struct Dialled {
    endpoint: Endpoint,
    /// The name that the certificate is expected to carry.
    name: Arc<str>,
    /// Where it stands among the nodes, if it was dialled as the owner of the slot.
    owner: Option<u16>,
    /// The identity that it must prove: another server may have got the address.
    member: Option<Arc<Membership>>,
}

impl Roaming {
    pub(crate) fn new(settings: Arc<Settings>, slot: Option<Slot>) -> Self {
        Self {
            network: Network::new(Arc::clone(&settings), None),
            settings,
            cluster: OnceLock::new(),
            slot,
            names: Mutex::default(),
        }
    }

    pub(crate) fn belongs_to(&self, cluster: &Arc<Cluster>) {
        let _ = self.cluster.set(Arc::downgrade(cluster));
    }
}

impl Transport for Roaming {
    fn places(&self, limit: Duration) -> BoxFuture<'_, Result<Found, ConnectError>> {
        Box::pin(async move {
            let cluster = self.cluster.get().and_then(Weak::upgrade);
            let Some(cluster) = cluster else {
                return Err(ConnectError::NoNode {
                    why: "the client is closed".into(),
                });
            };
            let mut places = Vec::new();
            let mut names = HashMap::new();
            let mut last = None;
            // Before it is known where that is: whoever owns it later is another.
            let owner = self.slot.and_then(|slot| cluster.number_of(slot));
            let endpoints = match self.slot {
                None => cluster.candidates().into_iter().rev().take(TRIED).collect(),
                Some(slot) => cluster.endpoint_of(slot, limit).await?,
            };
            for endpoint in endpoints {
                match resolved(&self.settings, &endpoint.host, endpoint.port, limit).await {
                    Ok(addresses) => {
                        let name = cluster.name_at(&endpoint);
                        let member = membership(cluster.ids_at(&endpoint));
                        for address in addresses {
                            let dialled = Dialled {
                                endpoint: endpoint.clone(),
                                name: Arc::clone(&name),
                                owner,
                                member: member.clone(),
                            };
                            names.insert(address, dialled);
                            places.push(Location::Tcp(address));
                        }
                    }
                    Err(error) => last = Some(error),
                }
            }
            *self.names.lock() = names;
            match (places.is_empty(), last) {
                (true, Some(error)) => Err(error),
                _ => Ok(Found::of(places)),
            }
        })
    }

    fn open<'a>(
        &'a self,
        place: Location,
        limit: Duration,
        waits_for: &'a WaitsFor,
    ) -> BoxFuture<'a, Result<(Stream, String), ConnectError>> {
        Box::pin(async move {
            let Location::Tcp(address) = place else {
                return Err(ConnectError::NoNode {
                    why: "it is none of a name".into(),
                });
            };
            let named = self.names.lock().get(&address).cloned();
            let name = named.map(|dialled| dialled.name);
            let name = name.unwrap_or_else(|| address.ip().to_string().into());
            self.network
                .open_tcp(&name, address, limit, waits_for)
                .await
        })
    }

    fn member(&self, place: Location) -> Option<Arc<Membership>> {
        let Location::Tcp(address) = place else {
            return None;
        };
        let names = self.names.lock();
        names
            .get(&address)
            .and_then(|dialled| dialled.member.clone())
    }

    /// Waits until the node at this place is to be left. A subscriber that any node serves leaves
    /// the one that is no member any more, or that the others agree is away, and one of a slot the
    /// one that is its owner no more: nothing is published there. A deposed owner that is cut off
    /// from the others does not know it, and goes on answering.
    fn left(&self, place: Location) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (Some(cluster), Location::Tcp(address)) = (self.cluster.get(), place) else {
                return std::future::pending().await;
            };
            let named = self.names.lock().get(&address).cloned();
            let owner = named.as_ref().and_then(|dialled| dialled.owner);
            let by_address = Endpoint::new(&address.ip().to_string(), address.port());
            let at = named.map_or_else(|| by_address.clone(), |dialled| dialled.endpoint);
            let is_left = |cluster: &Cluster| match self.slot {
                None => cluster.is_left(&at, &by_address),
                Some(slot) => {
                    let now = cluster.number_of(slot);
                    now.zip(owner).is_some_and(|(now, then)| now != then)
                }
            };
            let Some(mut version) = cluster.upgrade().map(|known| known.version.subscribe()) else {
                return;
            };
            loop {
                let known = cluster.upgrade();
                if known.is_none_or(|known| is_left(&known)) || version.changed().await.is_err() {
                    return;
                }
            }
        })
    }
}

/// Returns the proof that a node has one of these ids, if any is known. A subscriber hears of what
/// is published whether the slots are served or not.
fn membership(ids: Vec<NodeId>) -> Option<Arc<Membership>> {
    let member = Membership {
        ids,
        as_replica: false,
        must_serve: false,
    };
    (!member.ids.is_empty()).then(|| Arc::new(member))
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use steadfast_core::topology::View;

    use super::*;
    use crate::client::cluster::view::view_of;
    use crate::clock;
    use crate::link::connect::Connector;

    fn view(epoch: u64, owners: [&str; 2]) -> View {
        let slots = |name: &str| match owners.iter().position(|owner| *owner == name) {
            Some(0) => "0-8191",
            Some(_) => "8192-16383",
            None => "",
        };
        let text = format!(
            "a 127.0.0.1:1@11 master - 0 0 1 connected {}\n\
             b 127.0.0.1:2@12 master - 0 0 2 connected {}\n\
             c 127.0.0.1:3@13 myself,master - 0 0 {epoch} connected {}\n",
            slots("a"),
            slots("b"),
            slots("c"),
        );
        view_of(&text)
    }

    #[tokio::test]
    async fn t15_t18_a_sharded_subscriber_leaves_an_owner_that_was_deposed_and_does_not_know_it() {
        let builder = crate::Client::builder("redis-cluster://127.0.0.1:9").expect("a good url");
        let client = builder.build().expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        assert!(cluster.believe(&view(0, ["a", "b"])).ignored.is_none());
        let slot = Slot::new(7).expect("a slot");
        let roaming = Roaming::new(Arc::clone(&cluster.shared.settings), Some(slot));
        roaming.belongs_to(cluster);
        let found = roaming.places(Duration::from_secs(9)).await;
        let place = Location::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)));
        assert!(found.is_ok(), "the owner is known");
        let mut left = std::pin::pin!(roaming.left(place));
        assert!(poll!(left.as_mut()).is_pending());
        assert!(cluster.believe(&view(0, ["a", "b"])).ignored.is_none());
        assert!(poll!(left.as_mut()).is_pending(), "it still owns the slot");
        assert!(cluster.believe(&view(3, ["c", "b"])).ignored.is_none());
        assert!(poll!(left).is_ready(), "nobody publishes there now");
    }

    #[tokio::test]
    async fn t18_a_subscriber_leaves_a_node_that_the_others_agree_is_away_while_one_is_not() {
        let builder = crate::Client::builder("redis-cluster://127.0.0.1:9").expect("a good url");
        let client = builder.build().expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        let roaming = Roaming::new(Arc::clone(&cluster.shared.settings), None);
        roaming.belongs_to(cluster);
        let mut told = view(3, ["a", "b"]);
        assert!(cluster.believe(&told).ignored.is_none());
        let place = Location::Tcp(SocketAddr::from(([127, 0, 0, 1], 3)));
        let mut left = std::pin::pin!(roaming.left(place));
        assert!(poll!(left.as_mut()).is_pending());
        let mut tell = |failing: bool, failed: bool| {
            told.asked = clock::now();
            told.report.nodes[2].is_failing = failing;
            told.report.nodes[2].is_failed = failed;
            assert!(cluster.believe(&told).ignored.is_none());
        };
        tell(true, false);
        assert!(poll!(left.as_mut()).is_pending(), "one node's suspicion");
        tell(true, true);
        assert!(poll!(left).is_ready());
    }

    #[tokio::test]
    async fn t18_a_subscriber_does_not_listen_to_a_stranger_at_a_node_s_address() {
        let servers = steadfast_drill::process::Cluster::builder().primaries(1);
        let servers = servers.replicas(0).start().await.expect("it starts");
        let node = servers.node(0);
        let builder = crate::Client::builder("redis-cluster://127.0.0.1:9").expect("a good url");
        let client = builder.build().expect("good settings");
        let cluster = client.inner.cluster.as_ref().expect("it is one");
        // Nobody else asks the node who it is.
        cluster.shared.close();
        let dial = async |of: Option<Slot>| {
            let roaming = Arc::new(Roaming::new(Arc::clone(&cluster.shared.settings), of));
            roaming.belongs_to(cluster);
            let settings = Arc::clone(&cluster.shared.settings);
            let connector = Arc::new(Connector::new(settings, None, roaming));
            let ask = connector.ask(Duration::from_secs(9), Vec::new());
            connector.dialled(ask).await.map(|_| ())
        };
        let mut told = view(3, ["a", "b"]);
        told.report.nodes.truncate(1);
        let first = &mut told.report.nodes[0];
        first.port = node.addr().port();
        let slot = Slot::new(7);
        assert!(cluster.believe(&told).ignored.is_none());
        for of in [None, slot] {
            let error = dial(of).await.expect_err("it is another").to_string();
            assert!(error.contains("is another node of the cluster"), "{error}");
        }
        told.asked = clock::now();
        told.report.nodes[0].id = NodeId::new(node.id());
        told.report.nodes[0].epoch = Some(9);
        cluster.believe(&told);
        for of in [None, slot] {
            assert!(dial(of).await.is_ok(), "it is the one that was told of");
        }
    }
}
