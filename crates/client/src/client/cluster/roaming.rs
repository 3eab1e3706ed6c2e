//! Connections for subscribers: to any node that is a member by the newest view, as all nodes hear
//! of plain channels; or to the owner of a sharded channel's slot, whoever that is now.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use steadfast_core::node::Endpoint;
use steadfast_core::slot::Slot;

use super::Cluster;
use crate::error::connect::ConnectError;
use crate::link::connect::{Found, Location, Network, Transport, WaitsFor, resolved};
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
    /// Of the places of the last attempt: who is there, and the name that the certificate is
    /// expected to carry.
    names: Mutex<HashMap<SocketAddr, (Endpoint, Arc<str>)>>,
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
            let endpoints = match self.slot {
                None => cluster.candidates().into_iter().rev().take(TRIED).collect(),
                Some(slot) => cluster.endpoint_of(slot, limit).await?,
            };
            for endpoint in endpoints {
                match resolved(&self.settings, &endpoint.host, endpoint.port, limit).await {
                    Ok(addresses) => {
                        let name = cluster.name_at(&endpoint);
                        for address in addresses {
                            names.insert(address, (endpoint.clone(), Arc::clone(&name)));
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
            let name = named.map(|(_, name)| name);
            let name = name.unwrap_or_else(|| address.ip().to_string().into());
            self.network
                .open_tcp(&name, address, limit, waits_for)
                .await
        })
    }

    /// Ends when a connection that any node serves has to leave a node that is no member any more:
    /// nothing is published there.
    fn left(&self, place: Location) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let cluster = self.cluster.get().filter(|_| self.slot.is_none());
            let (Some(cluster), Location::Tcp(address)) = (cluster, place) else {
                return std::future::pending().await;
            };
            let named = self.names.lock().get(&address).cloned();
            let by_address = Endpoint::new(&address.ip().to_string(), address.port());
            let at = named.map_or_else(|| by_address.clone(), |(endpoint, _)| endpoint);
            let Some(mut version) = cluster.upgrade().map(|known| known.version.subscribe()) else {
                return;
            };
            loop {
                let known = cluster.upgrade();
                if known.is_none_or(|known| known.is_member(&at, &by_address) == Some(false))
                    || version.changed().await.is_err()
                {
                    return;
                }
            }
        })
    }
}
