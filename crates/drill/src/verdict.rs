//! Numbers become a judgement here and nowhere else, so that the table, the page and the exit
//! status can never disagree. Pure: a record and thresholds in, key figures out.
//!
//! Each figure, in the order of the report: what it is, of which phases, and when it is good.
//!
//! - **connection_success**: calls to Redis answered ÷ calls to Redis; baseline and recovered;
//!   above 99 %.
//! - **fallback**: reads answered by the database ÷ reads answered; baseline; below 5 %.
//! - **users_well**: from the last healing to a whole second without a failed read or a wrong
//!   answer; recovery; below 1 s (a control: 30 s).
//! - **redis_in_use**: from the last healing to a whole second in which Redis answers at least a
//!   quarter of what it did in the baseline; recovery; below 1 s (a control: 30 s).
//! - **hit_rate**: reads answered by memory or Redis ÷ reads answered; baseline and recovered;
//!   above 80 %.
//! - **errors**: reads that failed, and calls that could not start ÷ reads; whole run; below 1 %.
//! - **write_errors**: writes that failed ÷ writes, if there were any; whole run; below 1 %.
//! - **wrong_answers**: answers too old that do not say so; whole run; 0.
//! - **stale_answers**: answers that say that they are stale ÷ answers that can say so, if there
//!   were any; recovered; below 1 %. Five are let pass, unless they are more than 5 %.
//! - **fault_p99**: what 99 of 100 calls took at most; fault; at most 500 ms.
//! - **untouched**: faults of the wire that acted on nothing, or a scenario that breaks nothing;
//!   fault; 0. With one the verdict is void.
//! - **slowest_call**: the longest call; whole run; at most 1.25 s.
//!
//! A subject whose data are in Redis itself is judged by errors, write_errors, fault_p99 and
//! slowest_call as above, and by its ledger:
//!
//! - **lost**: acknowledged writes that are not there in the end; whole run; at most what the
//!   scenario says (0).
//! - **lost_late**: those of them that were begun 500 ms or more after another primary was named,
//!   and were not lost with it at the next failover; whole run; 0.
//! - **applied_twice**: writes that were applied more than once; whole run; 0.
//! - **denied**: failed writes that were said not to have been applied, and are there; whole run;
//!   0.
//! - **back_in_service**: from another primary being named to the first acknowledged write that
//!   stays, if one was named; fault; below what the scenario says (1 s; a control: 30 s). Of a
//!   fault of a cluster that no other primary mends: from the cluster being whole again to the
//!   first such write of each shard to which something was done, the longest; recovery.
//!
//! And if they are in a cluster, by two more:
//!
//! - **failed_elsewhere**: calls that failed for slots to which nothing was done, without writes of
//!   unknown outcome whose connection the drill closed under them; whole run; at most what the
//!   scenario says (0).
//! - **discoveries**: questions of the client who owns which slots; whole run; at most what the
//!   scenario says (100).
//!
//! Where the scenario says so, by two more:
//!
//! - **p99_elsewhere**: what 99 of 100 reads of shards to which nothing was done took at most while
//!   one was broken ÷ the same before.
//! - **refused_within**: what 99 of 100 failed reads of the broken shard took at most, from two
//!   seconds after it was broken to its healing.

use std::time::Duration;

use serde::Serialize;

pub use crate::kpi::{Bound, Kpi, Unit};
use crate::kpi::{duration, figure};
use crate::ledger::{LedgerReport, ShardsReport};
use crate::record::{Counts, Record};
use crate::scenario::{Phase, Thresholds};
use crate::subject::{Connection, Role};

/// The limit of a control's recovery; ours is held to the scenario's own threshold.
const RECOVERY_OF_CONTROL: Duration = Duration::from_secs(30);

/// The share of stale answers that is allowed once all has recovered. A cache may still serve a
/// stale value while its load waits for a processor on a busy machine; not for long.
const STALE_ANSWERS: f64 = 0.01;

/// So many stale answers are one such moment, and a share of few says nothing else: they are let
/// pass, up to [`OF_FEW`] times the share.
const ONE_MOMENT: u64 = 5;
const OF_FEW: f64 = 5.0;

/// Whether a subject did well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every key figure is good enough.
    Passed,
    /// Some are not.
    Failed,
    /// Something that was to be broken touched nothing, so nothing was proven.
    Void,
}

/// The key figures of one subject, in the order in which they are told. `breaks` says whether the
/// scenario breaks anything that could be recovered from.
pub fn judge(record: &Record, thresholds: &Thresholds, role: Role, breaks: bool) -> Vec<Kpi> {
    let recovery = match role {
        Role::Resilient => thresholds.recovery,
        Role::Plain | Role::HandBuilt => RECOVERY_OF_CONTROL,
    };
    let normal = sum(record, &[Phase::Baseline, Phase::Recovered]);
    let whole = sum(record, &Phase::ALL[1..]);
    let mut kpis = vec![
        connection_success(record, &normal, thresholds),
        fallback(record, thresholds),
    ];
    if breaks {
        kpis.extend(recoveries(record, recovery));
    }
    kpis.push(hit_rate(&normal, thresholds));
    kpis.extend(failures(&whole, thresholds));
    let allowed = thresholds.stale_answers.unwrap_or(STALE_ANSWERS);
    kpis.extend(stale_answers(record, allowed));
    if breaks {
        kpis.extend(fault_p99(record, thresholds));
    }
    kpis.push(slowest_call(&whole, thresholds));
    kpis
}

/// The key figures of a subject whose data are in Redis itself.
pub(crate) fn judge_ledger(
    record: &Record,
    ledger: &LedgerReport,
    thresholds: &Thresholds,
    role: Role,
) -> Vec<Kpi> {
    let whole = sum(record, &Phase::ALL[1..]);
    let mut kpis = failures(&whole, thresholds);
    kpis.retain(|kpi| kpi.name != "wrong_answers");
    kpis.extend([
        count(
            "lost",
            thresholds.lost,
            "acknowledged writes that are not there in the end",
            ledger.lost,
        )
        .noted(format!("of {} acknowledged", ledger.acknowledged)),
        count(
            "lost_late",
            0,
            "acknowledged writes lost that were begun 500 ms or more after another primary was named",
            ledger.lost_late,
        ),
        count(
            "applied_twice",
            0,
            "writes that were applied more than once",
            ledger.twice,
        ),
        count(
            "denied",
            0,
            "failed writes that were said not to have been applied, and are there",
            ledger.denied,
        ),
    ]);
    kpis.extend(of_shards(ledger, thresholds));
    kpis.extend(back_in_service(ledger, thresholds, role));
    kpis.extend(fault_p99(record, thresholds));
    kpis.push(slowest_call(&whole, thresholds));
    kpis
}

/// Judges how long it took until writes were kept again: from the healing, where no other primary
/// mends it, or else from another primary being named, if one was.
fn back_in_service(ledger: &LedgerReport, thresholds: &Thresholds, role: Role) -> Option<Kpi> {
    let limit = match role {
        Role::Resilient => thresholds.recovery,
        Role::Plain | Role::HandBuilt => RECOVERY_OF_CONTROL,
    };
    let held = |phase, formula| {
        let figure = ("back_in_service", phase);
        Kpi::held_to(figure, Bound::Below, ms(limit), Unit::Ms, formula)
    };
    let healed = ledger.shards.filter(|shards| shards.healed_ms.is_some());
    if let Some(shards) = healed {
        let back = held(
            "recovery",
            "from the cluster being whole again to the first acknowledged write that stays, of the shard for which that takes longest",
        );
        return Some(back.seen(shards.back_ms));
    }
    if ledger.failovers == 0 {
        return None;
    }
    let back = held(
        "fault",
        "from another primary being named by two sentinels, or two primaries, to the first acknowledged write that stays",
    );
    Some(back.seen(ledger.back_ms).noted(match ledger.shards {
        None => "± 20 ms, the time between two looks",
        Some(_) => "± 50 ms, the time between two looks",
    }))
}

/// The figures of a subject whose data are in a cluster.
fn of_shards(ledger: &LedgerReport, thresholds: &Thresholds) -> Vec<Kpi> {
    let Some(shards) = &ledger.shards else {
        return Vec::new();
    };
    let elsewhere = count(
        "failed_elsewhere",
        thresholds.failed_elsewhere,
        "calls that failed for slots to which nothing was done",
        shards.failed_elsewhere,
    );
    let there = format!("and {} of shards that were broken", shards.failed_there);
    let discoveries = shards.discoveries.map(|seen| {
        let formula = "questions of the client who owns which slots";
        count("discoveries", thresholds.discoveries, formula, seen)
    });
    [elsewhere.noted(there)]
        .into_iter()
        .chain(discoveries)
        .chain(times_of_shards(shards, thresholds))
        .collect()
}

/// How long reads took while a shard was broken, where the scenario sets limits.
fn times_of_shards(shards: &ShardsReport, thresholds: &Thresholds) -> Vec<Kpi> {
    let elsewhere = thresholds.p99_elsewhere.map(|times| {
        let formula = "what 99 of 100 reads of other shards took at most while one was broken ÷ the same before";
        let held = ("p99_elsewhere", "fault");
        let kpi = Kpi::held_to(held, Bound::AtMost, times, Unit::Ratio, formula);
        let (before, during) = (shards.p99_before_ms, shards.p99_during_ms);
        let ratio = before.zip(during).map(|(before, during)| during / before);
        let told = |ms| figure(ms, Unit::Ms);
        kpi.seen(ratio)
            .noted(format!("{}, and {} before", told(during), told(before)))
    });
    let refused = thresholds.refused_within.map(|limit| {
        let formula = "what 99 of 100 failed reads of the broken shard took at most, from two seconds after it was broken";
        let held = ("refused_within", "fault");
        Kpi::held_to(held, Bound::AtMost, ms(limit), Unit::Ms, formula).seen(shards.refused_ms)
    });
    elsewhere.into_iter().chain(refused).collect()
}

/// A count of the whole run that must not be greater than its target.
fn count(name: &'static str, target: u64, formula: &'static str, seen: u64) -> Kpi {
    let (figure, target) = ((name, WHOLE), target as f64);
    Kpi::held_to(figure, Bound::AtMost, target, Unit::Count, formula).seen(Some(seen as f64))
}

fn connection_success(record: &Record, normal: &Counts, thresholds: &Thresholds) -> Kpi {
    let kpi = Kpi::held_to(
        ("connection_success", "baseline, recovered"),
        Bound::Above,
        thresholds.connection_success,
        Unit::Ratio,
        "calls to Redis answered ÷ calls to Redis",
    );
    let kpi = kpi.seen(share(
        normal.redis_ok,
        normal.redis_ok + normal.redis_failed,
    ));
    // Nothing may have needed Redis; then it is enough that it could have been asked.
    let could_ask = kpi.value.is_none() && record.facts().connection == Connection::Ready;
    Kpi {
        pass: kpi.pass || could_ask,
        ..kpi
    }
}

fn fallback(record: &Record, thresholds: &Thresholds) -> Kpi {
    let baseline = record.counts(Phase::Baseline);
    Kpi::held_to(
        ("fallback", "baseline"),
        Bound::Below,
        thresholds.fallback,
        Unit::Ratio,
        "reads answered by the database ÷ reads answered",
    )
    .seen(share(baseline.sources[2], baseline.answered()))
}

/// The two moments of recovery.
fn recoveries(record: &Record, limit: Duration) -> [Kpi; 2] {
    let (moments, resolution) = (record.moments(), record.resolution());
    let held = |name, formula| {
        Kpi::held_to(
            (name, "recovery"),
            Bound::Below,
            ms(limit),
            Unit::Ms,
            formula,
        )
    };
    let users_well = held(
        "users_well",
        "from the last healing to the first second without a failed read, a read that could not start or a wrong answer",
    );
    let redis_in_use = held(
        "redis_in_use",
        "from the last healing to the first second in which Redis answers a quarter as much as in the baseline, and no call to it fails",
    );
    [
        users_well
            .seen(moments.users_well.map(ms))
            .noted(note_of_resolution(resolution.users, "reads")),
        redis_in_use
            .seen(moments.redis_in_use.map(ms))
            .noted(note_of_resolution(
                resolution.redis,
                "answers of Redis, or looks at them",
            )),
    ]
}

fn hit_rate(normal: &Counts, thresholds: &Thresholds) -> Kpi {
    Kpi::held_to(
        ("hit_rate", "baseline, recovered"),
        Bound::Above,
        thresholds.hit_rate,
        Unit::Ratio,
        "reads answered by memory or Redis ÷ reads answered",
    )
    .seen(share(
        normal.sources[0] + normal.sources[1],
        normal.answered(),
    ))
    .noted(note_of_tiers(normal))
}

/// Judges the failures that users got, in the whole run.
fn failures(whole: &Counts, thresholds: &Thresholds) -> Vec<Kpi> {
    let mut kpis = vec![
        Kpi::held_to(
            ("errors", WHOLE),
            Bound::Below,
            thresholds.errors,
            Unit::Ratio,
            "reads that failed, and calls that could not start ÷ reads",
        )
        .seen(failed_reads(whole)),
    ];
    if let Some(failed) = failed_writes(whole) {
        kpis.push(
            Kpi::held_to(
                ("write_errors", WHOLE),
                Bound::Below,
                thresholds.write_errors,
                Unit::Ratio,
                "writes that failed ÷ writes",
            )
            .seen(Some(failed)),
        );
    }
    let wrong = Kpi::held_to(
        ("wrong_answers", WHOLE),
        Bound::AtMost,
        0.0,
        Unit::Count,
        "answers too old that do not say so",
    );
    kpis.push(wrong.seen(Some(whole.wrong as f64)));
    kpis
}

/// Judges the answers that say that they are stale after Redis has come back and everything has had
/// its time: such an answer is never wrong, so nothing else tells a cache that gives them for ever.
/// None if no answer could say so.
pub(crate) fn stale_answers(record: &Record, allowed: f64) -> Option<Kpi> {
    let Counts {
        stale, stale_known, ..
    } = *record.counts(Phase::Recovered);
    let seen = share(stale, stale_known)?;
    let held = Kpi::held_to(
        ("stale_answers", "recovered"),
        Bound::Below,
        allowed,
        Unit::Ratio,
        "answers that say that they are stale ÷ answers that can say so",
    );
    let kpi = held.seen(Some(seen));
    let is_let_pass = !kpi.pass && stale <= ONE_MOMENT && seen <= allowed * OF_FEW;
    Some(match is_let_pass {
        true => Kpi { pass: true, ..kpi }.noted(format!("{stale} of {stale_known} are let pass")),
        false => kpi,
    })
}

fn fault_p99(record: &Record, thresholds: &Thresholds) -> Option<Kpi> {
    let held = Kpi::held_to(
        ("fault_p99", "fault"),
        Bound::AtMost,
        ms(thresholds.fault_p99),
        Unit::Ms,
        "what 99 of 100 calls took at most, from when they were meant to start",
    );
    p99_of_fault(record).map(|p99| held.seen(Some(p99)))
}

fn slowest_call(whole: &Counts, thresholds: &Thresholds) -> Kpi {
    Kpi::held_to(
        ("slowest_call", WHOLE),
        Bound::AtMost,
        ms(thresholds.slowest),
        Unit::Ms,
        "the longest call, from when it was meant to start",
    )
    .seen(Some(longest(whole)))
}

/// The phases of a figure that is taken from all but the warm-up.
pub(crate) const WHOLE: &str = "whole run";

/// The share of reads that failed or could not start.
pub(crate) fn failed_reads(counts: &Counts) -> Option<f64> {
    let failed = counts.reads_failed + counts.skipped;
    share(failed, counts.answered() + failed)
}

/// The share of writes that failed; none if there were no writes.
pub(crate) fn failed_writes(counts: &Counts) -> Option<f64> {
    share(counts.writes_failed, counts.written + counts.writes_failed)
}

/// The time in milliseconds that 99 of 100 calls of the fault phase took at most; none if there
/// were no calls.
pub(crate) fn p99_of_fault(record: &Record) -> Option<f64> {
    let latency = &record.counts(Phase::Fault).latency;
    (!latency.is_empty()).then(|| latency.value_at_quantile(0.99) as f64 / 1e3)
}

/// The time in milliseconds of the longest call.
pub(crate) fn longest(counts: &Counts) -> f64 {
    counts.latency.max() as f64 / 1e3
}

/// The entry among the faults that touched nothing if a scenario has no step at all.
pub(crate) const NOTHING_IS_BROKEN: &str = "nothing is broken by this scenario";

/// Returns what a fault that touched nothing means, in words.
pub(crate) fn proves_nothing(untouched: &str) -> String {
    match untouched {
        NOTHING_IS_BROKEN => format!("{NOTHING_IS_BROKEN}, so this drill proves nothing"),
        fault => format!("{fault} touched nothing, so this drill proves nothing of it"),
    }
}

/// Whether every fault touched what it was to break.
pub(crate) fn untouched_kpi(untouched: &[&str]) -> Kpi {
    Kpi::held_to(
        ("untouched", "fault"),
        Bound::AtMost,
        0.0,
        Unit::Count,
        "faults that touched nothing of the application; with one, the drill proves nothing",
    )
    .seen(Some(untouched.len() as f64))
    .noted(untouched.join(", "))
}

/// The verdict that the figures come to. A drill that touched nothing proves nothing, whatever else
/// was seen.
pub(crate) fn verdict(kpis: &[Kpi]) -> Verdict {
    if kpis.iter().any(|kpi| kpi.name == "untouched" && !kpi.pass) {
        Verdict::Void
    } else if kpis.iter().all(|kpi| kpi.pass) {
        Verdict::Passed
    } else {
        Verdict::Failed
    }
}

/// How exact a moment is, in words.
pub(crate) fn note_of_resolution(resolution: Option<Duration>, between: &str) -> String {
    resolution.map_or(String::new(), |resolution| {
        let exact = duration(ms(resolution));
        format!("± {exact}, the time between two {between}")
    })
}

/// The share of reads that each tier answered, in words.
fn note_of_tiers(counts: &Counts) -> String {
    let percent = |part| figure(share(part, counts.answered()), Unit::Ratio);
    let [memory, redis, _] = counts.sources;
    format!("memory {}, Redis {}", percent(memory), percent(redis))
}

pub(crate) fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

pub(crate) fn sum(record: &Record, phases: &[Phase]) -> Counts {
    let mut all = record.counts(phases[0]).clone();
    for phase in &phases[1..] {
        all.add(record.counts(*phase));
    }
    all
}

/// Milliseconds, to the microsecond.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests;
