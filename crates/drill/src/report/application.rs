//! The findings of a drill of somebody's own application, in the shape that all its forms are made
//! from.

use serde::Serialize;

use super::users::Users;
use super::{FaultSpan, Verdict};
use crate::kpi::Kpi;

/// The version of the JSON form.
pub const SCHEMA: &str = "steadfast-drill-target/2";

/// The findings.
#[derive(Debug, Clone, Serialize)]
pub struct TargetReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The name of the scenario.
    pub scenario: String,
    /// The point of the scenario, in a sentence.
    pub about: String,
    /// The seed of all chance.
    pub seed: u64,
    /// The Redis behind the proxy.
    pub target: String,
    /// The application's command without what looks like a secret; null if the drill did not start
    /// it.
    pub command: Option<String>,
    /// How the application ended by itself; null if it was still running when the drill was over,
    /// as a service is.
    pub exit_status: Option<i32>,
    /// The answers that its users got; null if no load was put on its interface.
    pub users: Option<Users>,
    /// The traffic with Redis of each phase.
    pub phases: Vec<Traffic>,
    /// From the last healing to the first second in which Redis answered half as many commands as
    /// in the baseline, in milliseconds; null if there was none.
    pub redis_in_use_ms: Option<f64>,
    /// For plots.
    pub timeline: TrafficTimeline,
    /// Connections that faults of the protocol no longer acted on, as they could not be followed
    /// command by command to their end (a subscription in RESP2, MONITOR); 0 if the scenario has no
    /// such faults.
    pub unfollowed: u64,
    /// The key figures, which decide the verdict.
    pub kpis: Vec<Kpi>,
    /// The scenario limits stale answers once all has recovered, and no answer could say that it
    /// was stale.
    pub staleness_unseen: bool,
    /// When something was broken.
    pub faults: Vec<FaultSpan>,
    /// The faults that touched nothing, by name.
    pub untouched: Vec<&'static str>,
    /// The application's standard output and error, up to 2 000 lines, without what
    /// looks like a secret.
    pub log: Vec<LogLine>,
    /// Lines that it wrote beyond those.
    pub log_dropped: u64,
    /// Whether every key figure is good enough.
    pub verdict: Verdict,
}

impl TargetReport {
    /// Whether the application did well.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }
}

/// The traffic of one phase.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Traffic {
    /// The phase's name.
    pub name: &'static str,
    /// When it began, from the start of the phases.
    pub from_ms: u64,
    /// When it ended, or was to end.
    pub to_ms: u64,
    /// Connections that the application opened to Redis.
    pub connections: u64,
    /// Bytes that it sent.
    pub bytes_up: u64,
    /// Bytes that Redis answered.
    pub bytes_down: u64,
    /// Commands that Redis answered, without those that set up or check a connection.
    pub answered: u64,
}

/// The data of the plots: columns of equal length, one value for each interval.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TrafficTimeline {
    /// The length of an interval.
    pub interval_ms: u64,
    /// Bytes that the application sent in it.
    pub bytes_up: Vec<u64>,
    /// Bytes that Redis answered in it.
    pub bytes_down: Vec<u64>,
    /// Connections that the application opened in it.
    pub connections: Vec<u64>,
    /// Commands that Redis answered in it.
    pub answered: Vec<u64>,
}

/// A line that the application wrote, to its standard output or its standard error.
#[derive(Debug, Clone, Serialize)]
pub struct LogLine {
    /// When, from the start of the phases.
    pub at_ms: u64,
    /// The line, without passwords, cut at 500 bytes.
    pub text: String,
}
