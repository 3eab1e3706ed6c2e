//! Notes that the connection leaves on a request, for limits, the audit log and health.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request};

/// The address of the caller, as a request carries it. [`serve`](crate::serve) leaves it there. A
/// program that serves the [`router`](crate::router) by itself leaves it, or axum's
/// [`ConnectInfo`]; otherwise all callers are one to limits, and the audit log does not name them.
///
/// ```no_run
/// use std::net::SocketAddr;
/// use steadfast_server::axum::{Extension, Router};
/// use steadfast_server::{App, Peer, router};
///
/// /// What is served to the one who is connected from there.
/// fn for_one(app: App, from: SocketAddr) -> Router {
///     router(app).layer(Extension(Peer(from)))
/// }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

impl Peer {
    /// Takes over who asks from axum, where its own loop has accepted the connection.
    pub(crate) fn find(request: &mut Request) {
        let extensions = request.extensions_mut();
        let told = extensions.get::<ConnectInfo<SocketAddr>>().copied();
        if let (None, Some(ConnectInfo(peer))) = (extensions.get::<Self>(), told) {
            extensions.insert(Self(peer));
        }
    }
}

/// Marks a request that is counted as in flight until its answer is written; the router need not
/// count it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted;

/// Marks a request on a connection beyond `limits.connections`. Such a connection is for probes,
/// and for telling everybody else that there is no room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spare;
