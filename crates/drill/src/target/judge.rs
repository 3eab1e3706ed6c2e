//! How an application is judged: first by what its users got, then by how it used Redis and how it
//! ended. Pure: what was seen goes in, key figures come out, and the table, the page, the JUnit
//! file and the exit status all show these.

use std::time::Duration;

use super::watch::{SAMPLE, Seen};
use crate::kpi::{Bound, Kpi, Unit};
use crate::record::Record;
use crate::scenario::{Phase, Scenario, Thresholds};
use crate::verdict::{
    WHOLE, failed_reads, failed_writes, longest, ms, note_of_resolution, p99_of_fault,
    stale_answers, sum, untouched_kpi,
};

/// The evidence of a drill of an application.
pub(super) struct Evidence<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) seen: &'a Seen,
    /// The answers that its users got, if a load was put on it.
    pub(super) users: Option<&'a Record>,
    /// How it ended by itself, if it did.
    pub(super) exit_status: Option<i32>,
    /// Whether the drill has started it, and so knows how it ended.
    pub(super) is_ours: bool,
    /// Faults that touched nothing.
    pub(super) untouched: &'a [&'static str],
    /// Whether anything was to be broken.
    pub(super) breaks: bool,
    /// The limit of recovery.
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

/// Judges the answers that its users got.
fn by_users(evidence: &Evidence<'_>, users: &Record) -> Vec<Kpi> {
    let thresholds = &evidence.scenario.thresholds;
    let whole = sum(users, &Phase::ALL[1..]);
    let mut kpis = vec![
        Kpi::held_to(
            ("errors", WHOLE),
            Bound::Below,
            thresholds.errors,
            Unit::Ratio,
            "reads of the users that failed, and those that could not start ÷ reads",
        )
        .seen(failed_reads(&whole)),
    ];
    if let Some(failed) = failed_writes(&whole) {
        kpis.extend(by_writes(thresholds, failed, whole.wrong));
    }
    let allowed = thresholds.stale_answers;
    kpis.extend(allowed.and_then(|allowed| stale_answers(users, allowed)));
    let p99 = p99_of_fault(users).filter(|_| evidence.breaks);
    kpis.extend(p99.map(|p99| {
        Kpi::held_to(
            ("fault_p99", "fault"),
            Bound::AtMost,
            ms(thresholds.fault_p99),
            Unit::Ms,
            "what 99 of 100 requests took at most, from when they were meant to start",
        )
        .seen(Some(p99))
    }));
    let slowest = Kpi::held_to(
        ("slowest_call", WHOLE),
        Bound::AtMost,
        ms(thresholds.slowest),
        Unit::Ms,
        "the longest request, from when it was meant to start",
    );
    kpis.push(slowest.seen(Some(longest(&whole))));
    if evidence.breaks {
        kpis.push(users_well(evidence, users));
    }
    kpis
}

/// Judges the users' writes, if there were any.
fn by_writes(thresholds: &Thresholds, failed: f64, wrong: u64) -> [Kpi; 2] {
    let errors = Kpi::held_to(
        ("write_errors", WHOLE),
        Bound::Below,
        thresholds.write_errors,
        Unit::Ratio,
        "writes of the users that failed ÷ writes",
    );
    let wrong_answers = Kpi::held_to(
        ("wrong_answers", WHOLE),
        Bound::AtMost,
        0.0,
        Unit::Count,
        "answers older than a write that was confirmed, which do not say that they are stale",
    );
    [
        errors.seen(Some(failed)),
        wrong_answers.seen(Some(wrong as f64)),
    ]
}

fn users_well(evidence: &Evidence<'_>, users: &Record) -> Kpi {
    Kpi::held_to(
        ("users_well", "recovery"),
        Bound::Below,
        ms(evidence.recovery),
        Unit::Ms,
        "from the last healing to a whole second in which no request failed",
    )
    .seen(users.moments().users_well.map(ms))
    .noted(note_of_resolution(users.resolution().users, "requests"))
}

/// How it used Redis.
fn by_redis(evidence: &Evidence<'_>) -> Vec<Kpi> {
    let seen = evidence.seen;
    let before = seen.traffic[Phase::WarmUp as usize].answered
        + seen.traffic[Phase::Baseline as usize].answered;
    let used = Kpi::held_to(
        ("used_redis", "baseline"),
        Bound::Above,
        0.0,
        Unit::Count,
        "commands that Redis answered before anything was broken; an application without users asks nothing: give it a load (--http)",
    );
    let mut kpis = vec![used.seen(Some(before as f64))];
    // A program that did its work and ended well while all was broken had no need to come back.
    let outlived = evidence.exit_status.is_none()
        || seen.last_at >= drilled(evidence) + Duration::from_millis(500);
    if evidence.breaks && outlived {
        let again = Kpi::held_to(
            ("redis_in_use", "recovery"),
            Bound::Below,
            ms(evidence.recovery),
            Unit::Ms,
            "from the last healing to the first second in which Redis answered half as many commands as in the baseline",
        );
        let note = note_of_resolution(Some(SAMPLE), "looks");
        kpis.push(again.seen(seen.in_use().map(ms)).noted(note));
    }
    kpis
}

/// How it ended.
fn by_end(evidence: &Evidence<'_>) -> [Kpi; 2] {
    let ran = match evidence.exit_status {
        Some(_) => evidence.seen.last_at,
        None => evidence.scenario.phases.total().max(evidence.seen.last_at),
    };
    let status = evidence.exit_status.unwrap_or(0);
    let exit = Kpi::held_to(
        ("exit_status", WHOLE),
        Bound::AtMost,
        0.0,
        Unit::Count,
        "of the program; 0 if it was still running at the end",
    );
    let exit = Kpi {
        // A failure to be read as a number: a program ended by a signal has none.
        pass: status == 0,
        ..exit.seen(Some(f64::from(status)))
    };
    let limit = drilled(evidence);
    let lived = Kpi::held_to(
        ("lived", WHOLE),
        Bound::Above,
        ms(limit),
        Unit::Ms,
        "how long the program ran, or was let run: past the fault",
    );
    let lived = Kpi {
        pass: ran >= limit,
        ..lived.seen(Some(ms(ran)))
    };
    [exit, lived]
}

/// The end of the fault phase.
fn drilled(evidence: &Evidence<'_>) -> Duration {
    evidence.scenario.phases.spans()[Phase::Fault as usize]
        .1
        .end
}
