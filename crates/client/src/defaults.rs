//! The default of each setting that programs around the client show or judge, stated once. What
//! each costs stands with the method of [`ClientBuilder`](crate::ClientBuilder) that sets it.

use std::time::Duration;

pub use steadfast_core::policy::retry::{ATTEMPTS, FIRST_PAUSE, LONGEST_PAUSE};

/// The longest that a call may take with everything it includes.
pub const DEADLINE: Duration = Duration::from_secs(1);
/// The silence of a connection, while commands wait, after which a second one is dialled.
pub const RESPONSE_IDLE_TIMEOUT: Duration = Duration::from_millis(500);
/// The silence after which a connection is given up even if no other can be had.
pub const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// The limit on each phase of connecting: DNS, TCP, TLS, handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The first pause between attempts to reconnect.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(20);
/// The longest pause between attempts to reconnect.
pub const RECONNECT_CAP: Duration = Duration::from_millis(250);
/// The time that calls wait at the start of an outage, in case it is short.
pub const RECONNECT_GRACE: Duration = Duration::from_millis(250);
/// The time between two questions to an idle connection whether it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Connections.
pub const CONNECTIONS: usize = 1;
/// Calls under way at once.
pub const IN_FLIGHT: usize = 8192;
/// Events that are kept.
pub const HISTORY: usize = 100;
/// The age that the data of a replica may have which is read from.
pub const MAX_LAG: Duration = Duration::from_secs(1);
