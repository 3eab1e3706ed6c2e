//! The part of status and events that tells of sentinels and of failovers.

/// The word of the sentinels, in [`Status`](crate::Status).
///
/// ```
/// use steadfast::{ReplicaStatus, SentinelContact, SentinelStatus};
///
/// fn ready_for_a_failover(sentinels: &SentinelStatus) -> bool {
///     let in_sync = |replica: &ReplicaStatus| replica.in_sync && replica.priority != Some(0);
///     let agrees = |contact: &SentinelContact| contact.error.is_none() && !contact.dissents;
///     sentinels.replicas.iter().any(in_sync) && sentinels.sentinels.iter().all(agrees)
/// }
/// # fn example(client: &steadfast::Client) -> Option<()> {
/// println!("{}", ready_for_a_failover(client.status().sentinel.as_ref()?));
/// # Some(()) }
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SentinelStatus {
    /// The name under which the sentinels watch the primary.
    pub service: String,
    /// The address of the primary that is believed; absent before a sentinel has named one.
    pub primary: Option<String>,
    /// The epoch of that configuration.
    pub epoch: Option<u64>,
    /// The number of times that the primary changed since the client was built.
    pub switches: u64,
    /// The sentinels that name this primary and epoch in answers of the last 10 s.
    pub votes: usize,
    /// The sentinels that there are, by all that is known.
    pub voters: usize,
    /// The time since a majority was last known to agree, in milliseconds; absent if it never was.
    pub confirmed_ms_ago: Option<f64>,
    /// The sentinels that are asked.
    pub sentinels: Vec<SentinelContact>,
    /// The replicas: those that are connected to the primary, as it told last, once a heartbeat;
    /// and those that the sentinels know besides.
    pub replicas: Vec<ReplicaStatus>,
    /// Whether the primary, or a sentinel of late, has told of the replicas. If not, it is not
    /// known which there are, nor whether one is in sync.
    pub replicas_known: bool,
    /// The commands that the server does not allow to this user, of those that tell lag and what a
    /// failover cost (ROLE, INFO).
    pub not_allowed: Vec<&'static str>,
}

/// A replica of the primary.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// The address that the replica announces.
    pub address: String,
    /// Whether it receives what the primary writes, by the word of the primary, or else of a
    /// sentinel.
    pub in_sync: bool,
    /// The bytes of the primary's history that the replica had not acknowledged yet; absent if the
    /// primary does not tell of it.
    pub lag_bytes: Option<u64>,
    /// The replica's `replica-priority`, as a sentinel knows it: 0 is never promoted.
    pub priority: Option<u32>,
}

/// A sentinel that is asked.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SentinelContact {
    /// The address of the sentinel.
    pub address: String,
    /// The time since it last answered, in milliseconds; absent if it never did.
    pub answered_ms_ago: Option<f64>,
    /// The cause why it could not be asked, or that it watches no such primary; absent if all is
    /// well.
    pub error: Option<String>,
    /// Whether it names another primary or epoch than the one that is believed.
    pub dissents: bool,
    /// The primary that it named last.
    pub names: Option<String>,
    /// The epoch that it named with it.
    pub epoch: Option<u64>,
    /// The number of sentinels that must find the primary down before one of them fails over.
    pub quorum: Option<usize>,
    /// Whether it says that so many cannot reach the primary.
    pub thinks_down: bool,
}

/// The relation of a new primary's data to that of the one before, in
/// [`EventKind::FailedOver`](crate::EventKind::FailedOver).
///
/// ```
/// use steadfast::{EventKind, FailoverHistory};
///
/// fn cost(kind: &EventKind) -> Option<String> {
///     let EventKind::FailedOver { to, history, .. } = kind else { return None };
///     Some(match history {
///         FailoverHistory::Same { at_risk, .. } => format!("{to}: {at_risk} writes at risk"),
///         _ => format!("{to}: any write may be lost"),
///     })
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "is", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum FailoverHistory {
    /// The new primary continues the old one's history.
    Same {
        /// Writes that this client was acknowledged so long before the failover was known, in
        /// milliseconds, have survived for certain; absent if no such moment is known.
        certain_ms_ago: Option<f64>,
        /// Calls that may have written and were acknowledged after that moment. They may be lost.
        at_risk: u64,
    },
    /// The new primary has another history: nothing says that any write has survived.
    Forked,
    /// The histories cannot be compared: ROLE or INFO is not allowed, or the new primary did not
    /// serve in time.
    Unknown,
}
