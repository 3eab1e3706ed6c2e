//! Notes that the connection leaves on a request, for limits, the audit log and health.

use std::net::SocketAddr;

/// The address of the caller, as a request carries it.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Marks a request that is counted as in flight until its answer is written; the router need not
/// count it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted;

/// Marks a request on a connection beyond `limits.connections`. Such a connection is for probes,
/// and for telling everybody else that there is no room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spare;
