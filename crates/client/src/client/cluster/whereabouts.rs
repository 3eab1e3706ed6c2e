//! The way to one node, which may get another address while calls wait for it.
//!
//! The id makes the node, not its address. So what waits for it goes on waiting when it comes back
//! elsewhere, in its order, and what was abandoned at the old address is killed at the new one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use steadfast_core::node::{Endpoint, NodeId};
use tokio::sync::watch;

use crate::error::connect::ConnectError;
use crate::link::connect::{Found, Location, Network, Transport, WaitsFor};
use crate::settings::Settings;
use crate::wire::stream::Stream;

/// The facts by which a node is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemberFacts {
    pub(super) id: NodeId,
    pub(super) endpoint: Endpoint,
    /// The name in its certificate, where that is not the host.
    pub(super) name_in_certificate: Option<Arc<str>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Whereabouts {
    network: Network,
    member: watch::Sender<MemberFacts>,
}

impl Whereabouts {
    pub(super) fn new(settings: Arc<Settings>, member: MemberFacts) -> Self {
        Self {
            network: Network::new(settings, None),
            member: watch::Sender::new(member),
        }
    }

    pub(super) fn facts(&self) -> MemberFacts {
        self.member.borrow().clone()
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.member.borrow().endpoint.clone()
    }

    pub(super) fn relocate(&self, member: MemberFacts) {
        self.member.send_replace(member);
    }
}

impl Transport for Whereabouts {
    fn places(&self, limit: Duration) -> BoxFuture<'_, Result<Found, ConnectError>> {
        Box::pin(async move {
            let Endpoint { host, port } = self.endpoint();
            let addresses = self.network.resolve(&host, port, limit).await?;
            Ok(Found::of(addresses.into_iter().map(Location::Tcp)))
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
            let member = self.member.borrow().clone();
            let name = member.name_in_certificate.unwrap_or(member.endpoint.host);
            self.network
                .open_tcp(&name, address, limit, waits_for)
                .await
        })
    }

    fn moved(&self) -> BoxFuture<'_, ()> {
        let mut member = self.member.subscribe();
        Box::pin(async move {
            if member.changed().await.is_err() {
                std::future::pending().await
            }
        })
    }
}
