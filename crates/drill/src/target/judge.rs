//! How an application is judged: first by what its users got, then by how it used Redis and how it ended. Pure: what was seen goes in,
//! key figures come out, and the table, the page, the JUnit file and the exit status all show these.

use std::time::Duration;

use crate::record::Record;
use crate::scenario::{Phase, Scenario};
use crate::verdict::{Bound, Kpi, Unit, ms, note_of_resolution, share, sum, untouched_kpi};

use super::SAMPLE;
use super::watch::Seen;

/// What a drill of an application came to.
pub(super) struct Evidence<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) seen: &'a Seen,
    /// What its users got, if a load was put on it.
    pub(super) users: Option<&'a Record>,
    /// How it ended by itself, if it did.
    pub(super) exit_status: Option<i32>,
    /// Whether the drill has started it, and so knows how it ended.
    pub(super) is_ours: bool,
    /// Faults that touched nothing.
    pub(super) untouched: usize,
    /// Whether anything was to be broken.
    pub(super) breaks: bool,
    /// What recovery is held to.
    pub(super) recovery: Duration,
}

pub(super) fn judge(evidence: &Evidence<'_>) -> Vec<Kpi> {
    let mut kpis = Vec::new();
    if evidence.breaks {
        kpis.push(untouched_kpi(evidence.untouched));
    }
    if let Some(users) = evidence.users {
        kpis.extend(by_users(evidence, users));
    }
    kpis.extend(by_redis(evidence));
    if evidence.is_ours {
        kpis.extend(by_end(evidence));
    }
    kpis
}

/// What its users got.
fn by_users(evidence: &Evidence<'_>, users: &Record) -> Vec<Kpi> {
    let thresholds = &evidence.scenario.thresholds;
    let whole = sum(users, &Phase::ALL[1..]);
    let reads = whole.answered() + whole.reads_failed + whole.skipped;
    let writes = whole.written + whole.writes_failed;
    let mut kpis = vec![Kpi {
        ..compared(
            share(whole.reads_failed + whole.skipped, reads),
            figure(
                "errors",
                "whole run",
                Bound::Below,
                thresholds.errors,
                Unit::Ratio,
                "reads of the users that failed, and those that could not start ÷ reads",
            ),
        )
    }];
    if writes > 0 {
        kpis.push(compared(
            share(whole.writes_failed, writes),
            figure(
                "write_errors",
                "whole run",
                Bound::Below,
                thresholds.write_errors,
                Unit::Ratio,
                "writes of the users that failed ÷ writes",
            ),
        ));
        kpis.push(compared(
            Some(whole.wrong as f64),
            figure(
                "wrong_answers",
                "whole run",
                Bound::AtMost,
                0.0,
                Unit::Count,
                "answers older than a write that was confirmed, which do not say that they are stale",
            ),
        ));
    }
    let fault = &users.counts(Phase::Fault).latency;
    if evidence.breaks && !fault.is_empty() {
        kpis.push(compared(
            Some(fault.value_at_quantile(0.99) as f64 / 1e3),
            figure(
                "fault_p99",
                "fault",
                Bound::AtMost,
                ms(thresholds.fault_p99),
                Unit::Ms,
                "what 99 of 100 requests took at most, from when they were meant to start",
            ),
        ));
    }
    kpis.push(compared(
        Some(whole.latency.max() as f64 / 1e3),
        figure(
            "slowest_call",
            "whole run",
            Bound::AtMost,
            ms(thresholds.slowest),
            Unit::Ms,
            "the longest request, from when it was meant to start",
        ),
    ));
    if evidence.breaks {
        kpis.push(Kpi {
            note: note_of_resolution(users.resolution().users, "requests"),
            ..compared(
                users.moments().users_well.map(ms),
                figure(
                    "users_well",
                    "recovery",
                    Bound::Below,
                    ms(evidence.recovery),
                    Unit::Ms,
                    "from the last healing to a whole second in which no request failed",
                ),
            )
        });
    }
    kpis
}

/// How it used Redis.
fn by_redis(evidence: &Evidence<'_>) -> Vec<Kpi> {
    let seen = evidence.seen;
    let before = seen.traffic[Phase::WarmUp as usize].answered
        + seen.traffic[Phase::Baseline as usize].answered;
    let mut kpis = vec![compared(
        Some(before as f64),
        figure(
            "used_redis",
            "baseline",
            Bound::Above,
            0.0,
            Unit::Count,
            "commands that Redis answered before anything was broken; an application without users asks nothing: give it a load (--http)",
        ),
    )];
    // A program that did its work and ended well while all was broken had no need to come back.
    let outlived = evidence.exit_status.is_none()
        || seen.last_at >= drilled(evidence) + Duration::from_millis(500);
    if evidence.breaks && outlived {
        kpis.push(Kpi {
            note: note_of_resolution(Some(SAMPLE), "looks"),
            ..compared(
            seen.in_use().map(ms),
            figure(
                "redis_in_use",
                "recovery",
                Bound::Below,
                ms(evidence.recovery),
                Unit::Ms,
                "from the last healing to the first second in which Redis answered half as many commands as in the baseline",
            ),
        )});
    }
    kpis
}

/// How it ended.
fn by_end(evidence: &Evidence<'_>) -> [Kpi; 2] {
    let lived = match evidence.exit_status {
        Some(_) => evidence.seen.last_at,
        None => evidence.scenario.phases.total().max(evidence.seen.last_at),
    };
    let status = evidence.exit_status.unwrap_or(0);
    let exit = Kpi {
        // A failure to be read as a number: a program ended by a signal has none.
        value: Some(f64::from(status)),
        pass: status == 0,
        ..figure(
            "exit_status",
            "whole run",
            Bound::AtMost,
            0.0,
            Unit::Count,
            "of the program; 0 if it was still running at the end",
        )
    };
    let limit = drilled(evidence);
    let lived = Kpi {
        value: Some(ms(lived)),
        pass: lived >= limit,
        ..figure(
            "lived",
            "whole run",
            Bound::Above,
            ms(limit),
            Unit::Ms,
            "how long the program ran, or was let run: past the fault",
        )
    };
    [exit, lived]
}

/// The end of the fault phase.
fn drilled(evidence: &Evidence<'_>) -> Duration {
    evidence.scenario.phases.spans()[Phase::Fault as usize]
        .1
        .end
}

fn figure(
    name: &'static str,
    phase: &'static str,
    bound: Bound,
    target: f64,
    unit: Unit,
    formula: &'static str,
) -> Kpi {
    Kpi {
        name,
        phase,
        value: None,
        target,
        pass: false,
        bound,
        unit,
        formula,
        note: String::new(),
    }
}

fn compared(value: Option<f64>, kpi: Kpi) -> Kpi {
    Kpi {
        value,
        pass: value.is_some_and(|value| kpi.bound.holds(value, kpi.target)),
        ..kpi
    }
}
