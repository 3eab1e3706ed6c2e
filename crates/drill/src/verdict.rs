//! Numbers become a judgement here and nowhere else, so that the table, the page and the exit status can never disagree.
//! Pure: a record and thresholds in, key figures out.
//!
//! | figure | formula | phases | good when |
//! |---|---|---|---|
//! | connection_success | calls to Redis answered ÷ calls to Redis | baseline, recovered | > 99 % |
//! | fallback | reads answered by the database ÷ reads answered | baseline | < 5 % |
//! | users_well | from the last healing to a whole second without a failed read or a wrong answer | recovery | < 1 s (a control: 30 s) |
//! | redis_in_use | from the last healing to a whole second in which Redis answers as before | recovery | < 1 s (a control: 30 s) |
//! | hit_rate | reads answered by memory or Redis ÷ reads answered | baseline, recovered | > 80 % |
//! | errors | reads that failed, and calls that could not start ÷ reads | whole run | < 1 % |
//! | write_errors | writes that failed ÷ writes, if there were any | whole run | < 1 % |
//! | wrong_answers | answers too old that do not say so | whole run | 0 |
//! | fault_p99 | what 99 of 100 calls took at most | fault | ≤ 500 ms |
//! | untouched | faults of the protocol that acted on no command; with one the verdict is void | fault | 0 |
//! | slowest_call | the longest call | whole run | ≤ 1.25 s |

use std::time::Duration;

use serde::Serialize;

use crate::record::{Counts, Record};
use crate::report::Verdict;
use crate::scenario::{Phase, Thresholds};
use crate::subject::{Connection, Role};

/// What recovery of the control is held to; ours is held to the scenario's own threshold.
const RECOVERY_OF_CONTROL: Duration = Duration::from_secs(30);

/// A key figure and whether it is good enough.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kpi {
    /// One of the names of the table above.
    pub name: &'static str,
    /// The phases it is taken from.
    pub phase: &'static str,
    /// A share from 0 to 1, milliseconds or a count, as `unit` says. Null if there was nothing to measure, or no recovery.
    pub value: Option<f64>,
    /// What it is held to, in the same unit.
    pub target: f64,
    /// Whether it is good enough.
    pub pass: bool,
    /// How value and target are compared.
    pub bound: Bound,
    /// Of value and target.
    pub unit: Unit,
    /// How it is computed, in words.
    pub formula: &'static str,
    /// What belongs to the figure, in words: how exact it is, or what it is made of. Empty if nothing does.
    pub note: String,
}

/// How a value and its target are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The value must be greater.
    Above,
    /// The value must be smaller.
    Below,
    /// The value must not be greater.
    AtMost,
}

impl Bound {
    /// Returns whether the value is good enough. Nothing is below nought, so a target of 0 allows 0.
    pub(crate) fn holds(self, value: f64, target: f64) -> bool {
        match self {
            Bound::Above => value > target,
            Bound::Below if target == 0.0 => value == 0.0,
            Bound::Below => value < target,
            Bound::AtMost => value <= target,
        }
    }
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share from 0 to 1.
    Ratio,
    /// Milliseconds.
    Ms,
    /// A count.
    Count,
}

/// The key figures of one subject. `breaks` says whether the scenario breaks anything that could be recovered from.
pub fn judge(record: &Record, thresholds: &Thresholds, role: Role, breaks: bool) -> Vec<Kpi> {
    let baseline = record.counts(Phase::Baseline);
    let normal = sum(record, &[Phase::Baseline, Phase::Recovered]);
    let whole = sum(record, &Phase::ALL[1..]);
    let recovery = match role {
        Role::Resilient => thresholds.recovery,
        Role::Plain | Role::HandBuilt => RECOVERY_OF_CONTROL,
    };
    let mut kpis = vec![
        Kpi {
            // Nothing may have needed Redis; then it is enough that it could have been asked.
            pass: above(
                share(normal.redis_ok, normal.redis_ok + normal.redis_failed),
                thresholds.connection_success,
            )
            .unwrap_or(record.facts().connection == Connection::Ready),
            ..ratio(
                "connection_success",
                "baseline, recovered",
                share(normal.redis_ok, normal.redis_ok + normal.redis_failed),
                thresholds.connection_success,
                Bound::Above,
                "calls to Redis answered ÷ calls to Redis",
            )
        },
        ratio(
            "fallback",
            "baseline",
            share(baseline.sources[2], baseline.answered()),
            thresholds.fallback,
            Bound::Below,
            "reads answered by the database ÷ reads answered",
        ),
        Kpi {
            note: note_of_tiers(&normal),
            ..ratio(
                "hit_rate",
                "baseline, recovered",
                share(normal.sources[0] + normal.sources[1], normal.answered()),
                thresholds.hit_rate,
                Bound::Above,
                "reads answered by memory or Redis ÷ reads answered",
            )
        },
        ratio(
            "errors",
            "whole run",
            share(
                whole.reads_failed + whole.skipped,
                whole.answered() + whole.reads_failed + whole.skipped,
            ),
            thresholds.errors,
            Bound::Below,
            "reads that failed, and calls that could not start ÷ reads",
        ),
        Kpi {
            unit: Unit::Count,
            ..ratio(
                "wrong_answers",
                "whole run",
                Some(whole.wrong as f64),
                0.0,
                Bound::AtMost,
                "answers too old that do not say so",
            )
        },
        Kpi {
            unit: Unit::Ms,
            ..ratio(
                "slowest_call",
                "whole run",
                Some(whole.latency.max() as f64 / 1e3),
                ms(thresholds.slowest),
                Bound::AtMost,
                "the longest call, from when it was meant to start",
            )
        },
    ];
    let writes = whole.written + whole.writes_failed;
    if writes > 0 {
        let failed = ratio(
            "write_errors",
            "whole run",
            share(whole.writes_failed, writes),
            thresholds.write_errors,
            Bound::Below,
            "writes that failed ÷ writes",
        );
        kpis.insert(4, failed);
    }
    let fault = &record.counts(Phase::Fault).latency;
    if breaks && !fault.is_empty() {
        let p99 = Kpi {
            unit: Unit::Ms,
            ..ratio(
                "fault_p99",
                "fault",
                Some(fault.value_at_quantile(0.99) as f64 / 1e3),
                ms(thresholds.fault_p99),
                Bound::AtMost,
                "what 99 of 100 calls took at most, from when they were meant to start",
            )
        };
        kpis.insert(kpis.len() - 1, p99);
    }
    if breaks {
        kpis.splice(2..2, recoveries(record, recovery));
    }
    kpis
}

/// Whether every fault touched what it was to break.
pub(crate) fn untouched_kpi(untouched: usize) -> Kpi {
    Kpi {
        unit: Unit::Count,
        ..ratio(
            "untouched",
            "fault",
            Some(untouched as f64),
            0.0,
            Bound::AtMost,
            "faults that touched nothing of the application; with one, the drill proves nothing",
        )
    }
}

/// A drill that touched nothing proves nothing, whatever else was seen.
pub(crate) fn verdict(kpis: &[Kpi]) -> Verdict {
    if kpis.iter().any(|kpi| kpi.name == "untouched" && !kpi.pass) {
        Verdict::Void
    } else if kpis.iter().all(|kpi| kpi.pass) {
        Verdict::Passed
    } else {
        Verdict::Failed
    }
}

/// The two moments of recovery.
fn recoveries(record: &Record, limit: Duration) -> [Kpi; 2] {
    let (moments, resolution) = (record.moments(), record.resolution());
    [
        (
            "users_well",
            moments.users_well,
            "from the last healing to the first second without a failed read, a read that could not start or a wrong answer",
            note_of_resolution(resolution.users, "reads"),
        ),
        (
            "redis_in_use",
            moments.redis_in_use,
            "from the last healing to the first second in which Redis answers a quarter as much as in the baseline, and no call to it fails",
            note_of_resolution(resolution.redis, "answers of Redis, or looks at them"),
        ),
    ]
    .map(|(name, value, formula, note)| Kpi {
        unit: Unit::Ms,
        note,
        ..ratio(
            name,
            "recovery",
            value.map(ms),
            ms(limit),
            Bound::Below,
            formula,
        )
    })
}

/// How exact a moment is, in words.
pub(crate) fn note_of_resolution(resolution: Option<Duration>, between: &str) -> String {
    resolution.map_or(String::new(), |resolution| {
        format!(
            "± {}, the time between two {between}",
            crate::report::duration(ms(resolution))
        )
    })
}

/// The share of reads that each tier answered, in words.
fn note_of_tiers(counts: &Counts) -> String {
    let percent = |part| crate::report::figure(share(part, counts.answered()), Unit::Ratio);
    let [memory, redis, _] = counts.sources;
    format!("memory {}, Redis {}", percent(memory), percent(redis))
}

fn ratio(
    name: &'static str,
    phase: &'static str,
    value: Option<f64>,
    target: f64,
    bound: Bound,
    formula: &'static str,
) -> Kpi {
    let pass = value.is_some_and(|value| bound.holds(value, target));
    Kpi {
        name,
        phase,
        value,
        target,
        pass,
        bound,
        unit: Unit::Ratio,
        formula,
        note: String::new(),
    }
}

fn above(value: Option<f64>, target: f64) -> Option<bool> {
    value.map(|value| value > target)
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
mod tests {
    use super::*;
    use crate::record::Ended;
    use crate::scenario::Phases;
    use crate::subject::{Answer, Facts, Source};

    const fn at(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// One phase a second, in each ten reads: as many from the database and as many failed as told.
    fn record(database: [u64; 5], failed: [u64; 5]) -> Record {
        let second = at(1000);
        let phases = Phases {
            warm_up: second,
            baseline: second,
            fault: second,
            recovery: second,
            recovered: second,
        };
        let mut record = Record::new(phases);
        for phase in 0..5 {
            for n in 0..10 {
                let ended = if n < failed[phase] {
                    Ended::ReadFailed("timeout")
                } else {
                    let source = if n < failed[phase] + database[phase] {
                        Source::Database
                    } else {
                        Source::Redis
                    };
                    let answer = Answer {
                        source,
                        version: 0,
                        age: at(0),
                        stale: false,
                    };
                    Ended::Read {
                        answer,
                        wrong: false,
                    }
                };
                let start = at(phase as u64 * 1000 + n * 100);
                record.call(start, start, start + at(1), ended);
            }
        }
        record.sample(at(1400), Facts::default());
        let facts = Facts {
            connection: Connection::Ready,
            redis_ok: 100,
            ..Facts::default()
        };
        record.sample(at(1500), facts);
        record
    }

    fn kpi(record: &Record, name: &str) -> Kpi {
        let kpis = judge(record, &Thresholds::default(), Role::Resilient, true);
        kpis.into_iter().find(|kpi| kpi.name == name).unwrap()
    }

    #[test]
    fn d4_fallback_is_judged_in_the_baseline_only() {
        let outage = record([10, 0, 10, 10, 0], [0; 5]);
        assert_eq!(
            (
                kpi(&outage, "fallback").value,
                kpi(&outage, "fallback").pass
            ),
            (Some(0.0), true)
        );
        let cold = record([0, 1, 0, 0, 0], [0; 5]);
        assert_eq!(
            (kpi(&cold, "fallback").value, kpi(&cold, "fallback").pass),
            (Some(0.1), false)
        );
    }

    #[test]
    fn d4_hits_are_judged_in_baseline_and_recovered() {
        let slow_to_refill = record([0, 0, 10, 10, 5], [0; 5]);
        assert_eq!(kpi(&slow_to_refill, "hit_rate").value, Some(0.75));
        assert!(!kpi(&slow_to_refill, "hit_rate").pass);
    }

    #[test]
    fn d4_hits_are_told_by_tier_and_recoveries_with_their_resolution() {
        let record = record([0; 5], [0; 5]);
        assert_eq!(kpi(&record, "hit_rate").note, "memory 0 %, Redis 100 %");
        let well = kpi(&record, "users_well").note;
        assert_eq!(well, "± 100 ms, the time between two reads");
        let used = kpi(&record, "redis_in_use").note;
        assert!(used.starts_with("± 10.0 ms"), "{used}");
    }

    #[test]
    fn d4_errors_are_judged_over_all_but_the_warm_up() {
        let warming = record([0; 5], [10, 0, 0, 0, 0]);
        assert_eq!(kpi(&warming, "errors").value, Some(0.0));
        let failing = record([0; 5], [0, 0, 4, 0, 0]);
        assert_eq!(
            (kpi(&failing, "errors").value, kpi(&failing, "errors").pass),
            (Some(0.1), false)
        );
    }

    #[test]
    fn d4_no_recovery_is_a_failed_recovery_and_nothing_broken_needs_none() {
        let mut never = record([0; 5], [0; 5]);
        never.broken(at(2000));
        assert_eq!(
            (
                kpi(&never, "users_well").value,
                kpi(&never, "users_well").pass
            ),
            (None, false)
        );
        assert!(!kpi(&never, "redis_in_use").pass);
        let kpis = judge(&never, &Thresholds::default(), Role::Resilient, false);
        assert!(kpis.iter().all(|kpi| kpi.phase != "recovery"));
    }

    #[test]
    fn d4_failed_writes_count_by_themselves() {
        let mut record = record([0; 5], [0; 5]);
        assert!(
            judge(&record, &Thresholds::default(), Role::Plain, false)
                .iter()
                .all(|kpi| kpi.name != "write_errors")
        );
        record.call(at(2500), at(2500), at(2501), Ended::WriteFailed("redis"));
        assert_eq!(kpi(&record, "write_errors").value, Some(1.0));
        assert!(kpi(&record, "errors").pass);
    }

    #[test]
    fn d4_a_call_that_could_not_start_is_an_error() {
        let mut record = record([0; 5], [0; 5]);
        (0..10).for_each(|_| record.skip(at(2500)));
        assert_eq!(kpi(&record, "errors").value, Some(0.2));
        assert!(!kpi(&record, "errors").pass);
    }

    #[test]
    fn d4_slow_calls_in_the_fault_are_judged_by_themselves_if_anything_is_broken() {
        let mut record = record([0; 5], [0; 5]);
        assert!(kpi(&record, "fault_p99").pass);
        record.call(at(2500), at(2500), at(3200), Ended::Written);
        let p99 = kpi(&record, "fault_p99");
        assert!(
            !p99.pass && p99.value.is_some_and(|ms| ms > 699.0),
            "{p99:?}"
        );
        assert!(kpi(&record, "slowest_call").pass);
        let kpis = judge(&record, &Thresholds::default(), Role::Resilient, false);
        assert!(kpis.iter().all(|kpi| kpi.name != "fault_p99"));
    }

    #[test]
    fn d4_a_target_of_no_errors_can_be_met() {
        let record = record([0; 5], [0; 5]);
        let thresholds = Thresholds {
            errors: 0.0,
            ..Thresholds::default()
        };
        let kpis = judge(&record, &thresholds, Role::Resilient, true);
        let errors = kpis.iter().find(|kpi| kpi.name == "errors").unwrap();
        assert!(errors.pass, "{errors:?}");
    }

    #[test]
    fn d4_one_wrong_answer_fails_the_run() {
        let mut record = record([0; 5], [0; 5]);
        let answer = Answer {
            source: Source::Redis,
            version: 0,
            age: at(0),
            stale: false,
        };
        record.call(
            at(2500),
            at(2500),
            at(2501),
            Ended::Read {
                answer,
                wrong: true,
            },
        );
        assert!(!kpi(&record, "wrong_answers").pass);
    }
}
