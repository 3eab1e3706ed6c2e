//! The failures of an attempt to connect.

use std::time::Duration;

use thiserror::Error;

/// The failure of an attempt to connect.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name could not be resolved.
    #[error("cannot resolve `{host}`: {cause}")]
    Dns {
        /// The name.
        host: String,
        /// The cause.
        cause: String,
    },
    /// No TCP connection (or Unix socket) could be opened.
    #[error("cannot connect to {address}: {cause}")]
    Tcp {
        /// The address.
        address: String,
        /// The cause.
        cause: String,
    },
    /// The TLS handshake failed.
    #[error("tls to {address} failed: {cause}")]
    Tls {
        /// The address.
        address: String,
        /// The cause, and what to do.
        cause: String,
    },
    /// A phase took longer than it may.
    #[error("{phase} took longer than {limit:?}")]
    TimedOut {
        /// `dns`, `tcp`, `tls`, `credentials` or `handshake`; `attempt`, if something in it keeps
        /// its thread. Or the wait for an earlier one that does, in words.
        phase: &'static str,
        /// The time that the phase had.
        limit: Duration,
    },
    /// Credentials could not be had.
    #[error("no credentials: {0}")]
    Credentials(String),
    /// The server refused the credentials, or wants some.
    #[error("the server refused the credentials: {0}")]
    Auth(String),
    /// The server is loading its data.
    #[error("the server is loading its data")]
    Loading,
    /// The server is a replica, and a primary is wanted.
    #[error("the server is a replica, and a primary is wanted")]
    Replica,
    /// The server has no place for another client.
    #[error("the server has reached its maximum of clients (maxclients)")]
    MaxClients,
    /// The server answered the handshake with another error.
    #[error("the server refused the handshake: {0}")]
    Refused(String),
    /// The peer is not a Redis server.
    #[error("what answers at {address} is not a redis server: {why}")]
    NotRedis {
        /// The address.
        address: String,
        /// The oddity.
        why: String,
    },
    /// The peer is a sentinel, which has no data.
    #[error(
        "{address} is a sentinel and has no data: write redis-sentinel://{address}/NAME, with the name that it watches"
    )]
    Sentinel {
        /// The address.
        address: String,
    },
    /// The server that answers is a node of a cluster, and one server is wanted.
    #[error(
        "{address} is a node of a cluster, which serves its own slots only: write redis-cluster://{address}"
    )]
    Cluster {
        /// The address of the server.
        address: String,
    },
    /// The server that answers is no node of a cluster.
    #[error("{address} is a server by itself and no node of a cluster: write redis://{address}")]
    NotCluster {
        /// The address of the server.
        address: String,
    },
    /// The server that answers is another node of the cluster than the one that is wanted.
    #[error(
        "{address} is another node of the cluster ({found}) than the one that was looked for there ({wanted})"
    )]
    Stranger {
        /// The address of the server.
        address: String,
        /// The id that it has.
        found: String,
        /// The id that was looked for.
        wanted: String,
    },
    /// The node does not serve: it has lost the majority of its cluster, or has not found it yet.
    #[error("{address} is a node of a cluster that does not serve now (cluster_state:fail)")]
    ClusterDown {
        /// The address of the server.
        address: String,
    },
    /// No node of the cluster is known that could be connected to.
    #[error("no node of the cluster is known: {why}")]
    NoNode {
        /// The errors of those that were asked.
        why: String,
    },
    /// No sentinel names the primary that is wanted.
    #[error("no sentinel names a primary for `{service}`: {why}")]
    NoPrimary {
        /// The name under which the sentinels watch it.
        service: String,
        /// The outcome of asking each sentinel.
        why: String,
    },
    /// The peer is not a sentinel.
    #[error("what answers at {address} is not a sentinel: {why}")]
    NotSentinel {
        /// The address.
        address: String,
        /// The oddity.
        why: String,
    },
    /// The credentials provider or the resolver panicked.
    #[error("the credentials provider or the resolver panicked")]
    Panicked,
    /// The connection ended in the handshake.
    #[error("the connection ended during the handshake: {0}")]
    Ended(String),
}
