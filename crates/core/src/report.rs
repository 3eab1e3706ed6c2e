//! Reports of servers about themselves and others, read from their replies.
//!
//! These replies decide where commands go, and whoever answers may be old, broken or hostile. So
//! nothing here guesses: what cannot be read is a [`ReportError`] that says where and what is
//! wrong, and never quotes the reply. Lists are bounded, and one bad element of a list does not
//! refuse the others: it is left out and recorded in [`Faults`].
//!
//! Both protocols are read: RESP3 has maps where RESP2 has flat arrays.

mod cluster;
mod info;
mod reader;
mod role;
mod sentinel;

pub use cluster::{
    ClusterInfo, ClusterReport, Migration, MigrationKind, ReportedNode, ReportedRole,
};
pub use info::{InfoReplication, InfoServer, ServerMode, SharedHistory};
pub use reader::{Faults, ReportError};
pub use role::{ReplicaAck, ReplicaLink, RoleReport};
pub use sentinel::{
    MonitoredPrimary, PeerSentinel, SentinelReplica, SwitchMaster, primary_address,
};

#[cfg(test)]
mod tests;
