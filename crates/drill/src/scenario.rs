//! A drill that cannot be read cannot be trusted, so what happens in one stands in a short file
//! that anyone can review: the load, what is broken when and for how long, and what is still good
//! enough. Everything here is pure; a scenario that parses can be run, and one that does not says
//! at which line and column it is wrong.
//!
//! ```
//! let scenario = steadfast_drill::scenario::Scenario::parse(r#"
//!     name = "lunch-break"
//!     about = "Redis is gone for two seconds"
//!     phases = { baseline = "2s", fault = "2s", recovery = "2s", recovered = "2s" }
//!     [[steps]]
//!     fault = "crash"
//! "#)?;
//! assert_eq!(scenario.phases.total(), std::time::Duration::from_secs(9)); // with 1 s to warm up
//! # Ok::<(), steadfast_drill::scenario::ScenarioError>(())
//! ```

mod builtin;
mod http;
mod source;
mod step;
mod value;

use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use crate::fault::Toxic;
use crate::http_load::HttpLoad;

pub use builtin::{all, builtin};

/// The JSON schema of a scenario file, for editors and for checks in CI.
pub const SCHEMA: &str = include_str!("../scenarios/schema.json");

/// A drill, as its file describes it and with everything checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The scenario's name.
    pub name: String,
    /// The point of the scenario, in a sentence.
    pub about: String,
    /// The seed of all chance in the drill. Default 1.
    pub seed: u64,
    /// The load that users make.
    pub load: Load,
    /// How long each part takes.
    pub phases: Phases,
    /// Whether the subject keeps a tier in memory; without it, every read that is answered from a
    /// cache is answered by Redis. Default true.
    pub memory: bool,
    /// Where the subject's data are. Default: in a database, with Redis before it.
    pub store: Store,
    /// The faults, and when they happen.
    pub steps: Vec<Step>,
    /// The limits of what is still good enough.
    pub thresholds: Thresholds,
    /// The requests of users of one's own application over HTTP (`[target.http]`). It has no
    /// meaning for a drill of Steadfast itself.
    pub http: Option<HttpLoad>,
}

/// Where a subject's data are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Store {
    /// In a database of its own, with Redis as a cache before it.
    #[default]
    Cache,
    /// In Redis itself: a primary with a replica that three sentinels watch. What is written is
    /// kept in a [ledger](crate::ledger).
    Sentinel,
    /// In a cluster of three primaries with a replica each, with a ledger too.
    Cluster,
}

impl Store {
    /// The name as in a scenario file.
    pub fn name(self) -> &'static str {
        match self {
            Store::Cache => "cache",
            Store::Sentinel => "sentinel",
            Store::Cluster => "cluster",
        }
    }
}

/// The load that users make.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// When calls start.
    pub arrivals: Arrivals,
    /// Rows in the table; reads and writes choose among them. Default 1 000.
    pub keys: u64,
    /// The exponent of Zipf's law by which keys are chosen: 0 is evenly, 1 (the default) gives the
    /// first key of 1 000 one call in seven.
    pub zipf: f64,
    /// The share of calls that write, from 0 to less than 1. Default 0.02.
    pub writes: f64,
    /// Calls running at once at most; an arrival past that is skipped, and counted. Default 1 024.
    pub in_flight: usize,
    /// The load ends after this many calls (the last phase is made longer or shorter to fit, up to
    /// 10 min). Default: no such end.
    pub calls: Option<u64>,
}

/// When calls start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// So many a second, whether or not earlier ones have ended, as users do.
    Open {
        /// Calls a second.
        rate: f64,
    },
    /// So many callers, each of which waits for its answer, then for `pause`, and calls again.
    Closed {
        /// Callers at once.
        callers: usize,
        /// The pause of each between two calls.
        pause: Duration,
    },
}

/// How long each part of the drill takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Phases {
    /// Load that is not judged, while connections and caches get warm. Default 1 s.
    pub warm_up: Duration,
    /// All is well: what the rest is compared with.
    pub baseline: Duration,
    /// The steps happen in here; whatever is still broken at its end is healed then.
    pub fault: Duration,
    /// All is healed, and the subject finds its way back.
    pub recovery: Duration,
    /// All should be as it was.
    pub recovered: Duration,
}

impl Phases {
    /// The names of the phases and when they begin and end, from the start of the load.
    pub fn spans(&self) -> [(Phase, Range<Duration>); 5] {
        let mut from = Duration::ZERO;
        [
            (Phase::WarmUp, self.warm_up),
            (Phase::Baseline, self.baseline),
            (Phase::Fault, self.fault),
            (Phase::Recovery, self.recovery),
            (Phase::Recovered, self.recovered),
        ]
        .map(|(phase, length)| {
            let span = from..from + length;
            from += length;
            (phase, span)
        })
    }

    /// The phase at that time from the start of the load.
    pub fn at(&self, time: Duration) -> Phase {
        self.spans()
            .into_iter()
            .find(|(_, span)| time < span.end)
            .map_or(Phase::Recovered, |(phase, _)| phase)
    }

    /// From the start of the load to its end.
    pub fn total(&self) -> Duration {
        self.warm_up + self.baseline + self.fault + self.recovery + self.recovered
    }
}

/// A part of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before anything is judged.
    WarmUp,
    /// All is well.
    Baseline,
    /// Something is broken.
    Fault,
    /// All was healed just now.
    Recovery,
    /// All should be as it was.
    Recovered,
}

impl Phase {
    /// All of them in their order.
    pub const ALL: [Phase; 5] = [
        Phase::WarmUp,
        Phase::Baseline,
        Phase::Fault,
        Phase::Recovery,
        Phase::Recovered,
    ];

    /// The name as in the report.
    pub fn name(self) -> &'static str {
        match self {
            Phase::WarmUp => "warm_up",
            Phase::Baseline => "baseline",
            Phase::Fault => "fault",
            Phase::Recovery => "recovery",
            Phase::Recovered => "recovered",
        }
    }
}

/// A fault with its times, once or several times.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// When, from the start of the fault phase. Default 0.
    pub at: Duration,
    /// How long it stays broken. Default: to the end of the fault phase.
    pub lasts: Duration,
    /// From one time to the next.
    pub every: Duration,
    /// How many times. Default once.
    pub times: u32,
    /// The fault.
    pub fault: Fault,
    /// Between which two a fault of the wire happens. Default: the application and Redis.
    pub on: Wire,
}

/// The way from an application to a server that it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wire {
    /// To Redis.
    #[default]
    Redis,
    /// To its database. Only in a drill of an application of one's own.
    Database,
}

impl Step {
    /// On which wire it happens, if it is played on one.
    pub(crate) fn wire(&self) -> Wire {
        match self.fault {
            Fault::DatabaseDown | Fault::DatabaseSlow(_) => Wire::Database,
            _ => self.on,
        }
    }

    /// When it is broken, from the start of the fault phase.
    pub fn spans(&self) -> impl Iterator<Item = Range<Duration>> + '_ {
        (0..self.times).map(|n| {
            let from = self.at + self.every * n;
            from..from + self.lasts
        })
    }
}

/// A fault that a scenario can name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The server is killed, and started again empty at the end.
    Crash,
    /// The server is killed, and started again with the data of a snapshot taken at the start of
    /// the baseline.
    OldSnapshot,
    /// The server is stopped where it stands (`SIGSTOP`): connections stay open, nothing answers.
    Freeze,
    /// The server answers nobody for as long as the step lasts (`CLIENT PAUSE`), as an operator
    /// pauses it before a failover.
    Pause(Duration),
    /// The server drops its clients, and others take all their places.
    MaxClients,
    /// The server refuses what would take memory.
    OutOfMemory,
    /// The server was restarted with its data, and answers LOADING while it reads them.
    Loading,
    /// The server has become a replica: it refuses writes.
    ReadOnly,
    /// The password was changed, and connections that used the old one are closed.
    PasswordChanged,
    /// The user was deleted, and their connections are closed.
    UserDeleted,
    /// A new token was issued some time before the old one ended; connections that used the old one
    /// are closed.
    TokenExpired,
    /// The server shows a certificate whose time is over, and its connections are closed. The
    /// subject speaks TLS.
    CertificateExpired,
    /// The server shows a certificate of another name, and its connections are closed. The subject
    /// speaks TLS.
    CertificateWrong,
    /// Something on the wire between subject and server, or in the protocol spoken on it.
    Wire(Box<Toxic>),
    /// Every query of the database fails.
    DatabaseDown,
    /// Every query of the database takes this much longer.
    DatabaseSlow(Duration),
    /// A sentinel, or a replica of a cluster, is told to fail over, as an operator does it.
    FailoverPlanned,
    /// The primary is killed, and started again at the end: empty, or in a cluster with its data.
    PrimaryKilled,
    /// The primary is stopped where it stands, and goes on at the end, deposed.
    PrimaryFrozen,
    /// The primary is cut off from the sentinels and its replica, and not from its clients.
    SplitBrain,
    /// All sentinels are killed, and started again at the end.
    SentinelsAway,
    /// The first sentinel that a client asks hears of nothing, and names the old primary
    /// after a planned failover.
    SentinelStale,
    /// The replica gets nothing from the primary.
    ReplicaLag,
    /// So many slots a second move from node to node and back.
    SlotsMoving(u32),
    /// A primary and its replica are killed, and started again with their data at the end.
    ShardDown,
    /// A primary and its replica are stopped where they stand, and go on at the end.
    ShardFrozen,
    /// A primary is added and given slots of all others; emptied and removed at the end.
    NodeAdded,
    /// All nodes are killed, and started again with their data at the end.
    AllRestarted,
    /// One node after another is started again at another port.
    AddressesChanged,
    /// A node stands still while slots move; it wakes with the map of before, and all connections
    /// are closed.
    MapStale,
}

impl Fault {
    /// Whether a proxy must stand between the subject and its server.
    pub fn needs_proxy(&self) -> bool {
        matches!(self, Fault::Wire(_))
    }

    /// Whether the server must ask for a user and a password.
    pub fn needs_users(&self) -> bool {
        matches!(
            self,
            Fault::PasswordChanged | Fault::UserDeleted | Fault::TokenExpired
        )
    }

    /// Whether the server must speak TLS, and nothing else.
    pub fn needs_tls(&self) -> bool {
        matches!(self, Fault::CertificateExpired | Fault::CertificateWrong)
    }

    /// The stores to which it can be done.
    pub fn stores(&self) -> &'static [Store] {
        match self {
            Fault::FailoverPlanned | Fault::PrimaryKilled | Fault::PrimaryFrozen => {
                &[Store::Sentinel, Store::Cluster]
            }
            Fault::SplitBrain | Fault::SentinelsAway | Fault::SentinelStale | Fault::ReplicaLag => {
                &[Store::Sentinel]
            }
            Fault::SlotsMoving(_)
            | Fault::ShardDown
            | Fault::ShardFrozen
            | Fault::NodeAdded
            | Fault::AllRestarted
            | Fault::AddressesChanged
            | Fault::MapStale => &[Store::Cluster],
            _ => &[Store::Cache],
        }
    }

    /// Whether the server cannot be told anything while it lasts, or forgets with its end what it
    /// was told.
    fn takes_away(&self) -> bool {
        matches!(
            self,
            Fault::Crash | Fault::OldSnapshot | Fault::Freeze | Fault::Pause(_) | Fault::Loading
        ) || !self.stores().contains(&Store::Cache) && *self != Fault::ReplicaLag
    }

    /// Whether it happens to the server itself: not on the wire before it, nor in the database or
    /// between servers.
    fn is_of_server(&self) -> bool {
        let elsewhere = matches!(
            self,
            Fault::DatabaseDown | Fault::DatabaseSlow(_) | Fault::ReplicaLag
        );
        !elsewhere && !self.needs_proxy()
    }

    /// Why it cannot begin while `other` lasts, if so.
    fn conflict(&self, other: &Fault) -> Option<String> {
        let of_server = self.is_of_server() && other.is_of_server();
        if self.name() == other.name() {
            Some("when it is broken already".to_owned())
        } else if self.needs_tls() && other.needs_tls() {
            Some("and a server shows one certificate at a time".to_owned())
        } else if self.needs_users() && other.needs_users() {
            Some(format!("and {} has its user already", other.name()))
        } else if of_server && other.takes_away() {
            Some(format!("when the server hears nobody for {}", other.name()))
        } else if of_server && self.takes_away() {
            Some(format!(
                "and would heal {} or keep it from being healed",
                other.name()
            ))
        } else {
            None
        }
    }

    /// The name as in a scenario file.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Crash => "crash",
            Fault::OldSnapshot => "old_snapshot",
            Fault::Freeze => "freeze",
            Fault::Pause(_) => "pause",
            Fault::MaxClients => "maxclients",
            Fault::OutOfMemory => "oom",
            Fault::Loading => "loading",
            Fault::ReadOnly => "readonly",
            Fault::PasswordChanged => "password_changed",
            Fault::UserDeleted => "user_deleted",
            Fault::TokenExpired => "token_expired",
            Fault::CertificateExpired => "certificate_expired",
            Fault::CertificateWrong => "certificate_wrong",
            Fault::Wire(toxic) => toxic.fault.name(),
            Fault::DatabaseDown => "database_down",
            Fault::DatabaseSlow(_) => "database_slow",
            Fault::FailoverPlanned => "failover_planned",
            Fault::PrimaryKilled => "primary_killed",
            Fault::PrimaryFrozen => "primary_frozen",
            Fault::SplitBrain => "split_brain",
            Fault::SentinelsAway => "sentinels_away",
            Fault::SentinelStale => "sentinel_stale",
            Fault::ReplicaLag => "replica_lag",
            Fault::SlotsMoving(_) => "slots_moving",
            Fault::ShardDown => "shard_down",
            Fault::ShardFrozen => "shard_frozen",
            Fault::NodeAdded => "node_added",
            Fault::AllRestarted => "all_restarted",
            Fault::AddressesChanged => "addresses_changed",
            Fault::MapStale => "map_stale",
        }
    }
}

/// The limits of what is still good enough. The first five are the KPIs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Thresholds {
    /// The share of calls to Redis that are answered, in baseline and recovered, is above this.
    /// Default 0.99.
    pub connection_success: f64,
    /// The share of reads answered by the database, in the baseline, is below this. Default 0.05.
    pub fallback: f64,
    /// From healing to full recovery takes less than this. Default 1 s.
    pub recovery: Duration,
    /// The share of answered reads that came from memory or Redis, in baseline and recovered, is
    /// above this. Default 0.80.
    pub hit_rate: f64,
    /// The share of reads that fail, in the whole run, is below this. Default 0.01.
    pub errors: f64,
    /// The share of writes that fail, in the whole run, is below this. Default 0.01.
    pub write_errors: f64,
    /// 99 of 100 calls that are meant to start in the fault phase take no longer than this. Default
    /// 500 ms.
    pub fault_p99: Duration,
    /// No call takes longer than this. Default 1.25 s: the usual deadline of one second, and what a
    /// busy machine adds.
    pub slowest: Duration,
    /// An answer this much older than the database is wrong, unless it says that it is stale.
    /// Default 2 s.
    pub allowed_age: Duration,
    /// The share of answers that say that they are stale, once all has recovered, is below this.
    /// Default 0.01; of an application of one's own, whose recovery may outlast its phase, not
    /// judged unless it is set.
    pub stale_answers: Option<f64>,
    /// Acknowledged writes that may be lost, of a subject whose data are in Redis itself. Default
    /// 0.
    pub lost: u64,
    /// Calls that may fail for slots to which nothing is done, of a subject whose data are in a
    /// cluster. Default 0.
    pub failed_elsewhere: u64,
    /// How often its client may ask who owns which slots. Default 100.
    pub discoveries: u64,
    /// How many times as long as before 99 of 100 reads of shards to which nothing is done take at
    /// most while one is frozen or down, of a subject whose data are in a cluster. Not judged
    /// unless it is set.
    pub p99_elsewhere: Option<f64>,
    /// 99 of 100 failed reads of a broken shard take no longer than this, from two seconds after it
    /// was broken. Not judged unless it is set.
    pub refused_within: Option<Duration>,
    /// Whether the control is expected to fail: what the scenario is there to show. Default true.
    pub control_fails: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            connection_success: 0.99,
            fallback: 0.05,
            recovery: Duration::from_secs(1),
            hit_rate: 0.80,
            errors: 0.01,
            write_errors: 0.01,
            fault_p99: Duration::from_millis(500),
            slowest: Duration::from_millis(1250),
            allowed_age: Duration::from_secs(2),
            stale_answers: None,
            lost: 0,
            failed_elsewhere: 0,
            discoveries: 100,
            p99_elsewhere: None,
            refused_within: None,
            control_fails: true,
        }
    }
}

impl Scenario {
    /// Reads a scenario from the text of its file. The first mistake found is the error.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        source::parse(text)
    }

    /// Reads a scenario for a drill of Steadfast itself, which has no wire to a database: `on =
    /// "database"` is an error too. The first mistake found is the error.
    pub fn parse_own(text: &str) -> Result<Self, ScenarioError> {
        source::parse_own(text)
    }

    /// The same scenario with another number of calls after which it ends. At a rate, all its times
    /// grow or shrink with them.
    #[must_use]
    pub fn with_calls(mut self, calls: u64) -> Self {
        let calls = calls.clamp(1, source::MOST_CALLS);
        self.load.calls = Some(calls);
        if let Arrivals::Open { rate } = self.load.arrivals {
            let factor = calls as f64 / rate / self.phases.total().as_secs_f64();
            let scale = |time: &mut Duration| *time = time.mul_f64(factor);
            let phases = &mut self.phases;
            [
                &mut phases.warm_up,
                &mut phases.baseline,
                &mut phases.fault,
                &mut phases.recovery,
                &mut phases.recovered,
            ]
            .into_iter()
            .for_each(scale);
            for step in &mut self.steps {
                [&mut step.at, &mut step.lasts, &mut step.every]
                    .into_iter()
                    .for_each(scale);
                if let Fault::Pause(lasts) = &mut step.fault {
                    scale(lasts);
                }
            }
        }
        self
    }
}

/// A mistake in the text of a scenario, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ScenarioError {
    /// The mistake, and what would be right.
    pub message: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The place in bytes.
    pub span: Range<usize>,
}

impl ScenarioError {
    fn new(text: &str, span: Range<usize>, message: impl Into<String>) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            message: message.into(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            span,
        }
    }
}

#[cfg(test)]
mod tests;
