use super::*;
use crate::record::Ended;
use crate::scenario::Phases;
use crate::subject::{Answer, Facts, Source};

const fn at(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Makes a record with a phase a second, in each ten reads: as many from the database and as
/// many failed as told.
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
                    stale: Some(false),
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
fn d4_t5_a_shard_that_is_healed_and_not_served_in_time_fails_the_run() {
    let record = record([0; 5], [0; 5]);
    let passes = |healed_ms, back_ms| {
        let shards = ShardsReport {
            healed_ms,
            back_ms,
            ..ShardsReport::default()
        };
        let ledger = LedgerReport {
            shards: Some(shards),
            ..LedgerReport::default()
        };
        let kpis = judge_ledger(&record, &ledger, &Thresholds::default(), Role::Resilient);
        let back = kpis.iter().find(|kpi| kpi.name == "back_in_service");
        back.map(|kpi| kpi.pass)
    };
    assert_eq!(passes(None, None), None);
    assert_eq!(passes(Some(4e3), Some(80.0)), Some(true));
    assert_eq!(passes(Some(4e3), Some(6e3)), Some(false));
    assert_eq!(passes(Some(4e3), None), Some(false));
}

#[test]
fn d4_t5_a_shard_that_is_felt_elsewhere_or_refused_late_fails_the_run_that_limits_it() {
    let shards = ShardsReport {
        p99_before_ms: Some(2.0),
        p99_during_ms: Some(5.0),
        refused_ms: Some(0.4),
        ..ShardsReport::default()
    };
    let limits = |times, within| Thresholds {
        p99_elsewhere: Some(times),
        refused_within: Some(within),
        ..Thresholds::default()
    };
    let passes = |thresholds: &Thresholds| {
        let kpis = times_of_shards(&shards, thresholds);
        kpis.iter().map(|kpi| kpi.pass).collect::<Vec<_>>()
    };
    assert_eq!(passes(&limits(3.0, at(1))), [true, true]);
    let strict = limits(2.0, Duration::from_micros(300));
    assert_eq!(passes(&strict), [false, false]);
    assert!(times_of_shards(&shards, &Thresholds::default()).is_empty());
    let kpi = &times_of_shards(&shards, &strict)[0];
    assert_eq!(kpi.note, "5.00 ms, and 2.00 ms before");
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
fn d4_a_cache_that_stays_stale_once_all_has_recovered_fails_the_run() {
    let stale_at = |seconds: u64, reads: u64| {
        let mut record = record([0; 5], [0; 5]);
        for n in 0..reads {
            let start = at(seconds * 1000 + n);
            let answer = Answer {
                source: Source::Memory,
                version: 0,
                age: at(0),
                stale: Some(true),
            };
            let wrong = false;
            record.call(start, start, start, Ended::Read { answer, wrong });
        }
        record
    };
    // While it is broken, and while it recovers, a cache may be stale.
    for phase in 0..4 {
        let excused = kpi(&stale_at(phase, 10), "stale_answers");
        assert_eq!((excused.value, excused.pass), (Some(0.0), true), "{phase}");
    }
    let for_ever = stale_at(4, 10);
    let judged = kpi(&for_ever, "stale_answers");
    assert_eq!((judged.value, judged.pass), (Some(0.5), false));
    assert_eq!(judged.phase, "recovered");
    let missed = |stale_answers| {
        let thresholds = Thresholds {
            stale_answers,
            ..Thresholds::default()
        };
        let kpis = judge(&for_ever, &thresholds, Role::Resilient, false);
        let missed = kpis.iter().filter(|kpi| !kpi.pass);
        missed.map(|kpi| kpi.name).collect::<Vec<_>>()
    };
    assert_eq!(missed(None), ["stale_answers"], "nothing else tells it");
    assert!(missed(Some(0.6)).is_empty());
}

/// Once all has recovered, so many answers that said that they were stale, that they were not,
/// and that could not say so.
fn judged_for_staleness(allowed: f64, answers: [u64; 3]) -> Option<Kpi> {
    let mut record = record([0; 5], [0, 0, 0, 0, 10]);
    for (said, many) in [Some(true), Some(false), None].into_iter().zip(answers) {
        let answer = Answer {
            source: Source::Database,
            version: 0,
            age: at(0),
            stale: said,
        };
        let wrong = false;
        for _ in 0..many {
            record.call(at(4500), at(4500), at(4501), Ended::Read { answer, wrong });
        }
    }
    stale_answers(&record, allowed)
}

#[test]
fn d4_stale_answers_are_a_share_of_those_that_can_say_so() {
    let of_some = judged_for_staleness(0.01, [10, 10, 1000]).unwrap();
    assert_eq!((of_some.value, of_some.pass), (Some(0.5), false));
    assert_eq!(judged_for_staleness(0.01, [0, 0, 10]), None);
}

#[test]
fn d4_a_few_stale_answers_are_let_pass_unless_they_are_many_of_few_or_none_may_be() {
    let passes = |allowed, stale, fresh| {
        let kpi = judged_for_staleness(allowed, [stale, fresh, 0]).unwrap();
        (kpi.pass, kpi.note)
    };
    let let_pass = |note: &str| (true, note.to_owned());
    assert_eq!(passes(0.01, 5, 245), let_pass("5 of 250 are let pass"));
    assert_eq!(passes(0.01, 1, 19), let_pass("1 of 20 are let pass"));
    assert_eq!(passes(0.01, 2, 298), let_pass(""), "they are few");
    for (allowed, stale, fresh) in [(0.01, 6, 244), (0.01, 1, 18), (0.01, 5, 94), (0.0, 1, 999)] {
        assert!(!passes(allowed, stale, fresh).0, "{stale} of {fresh}");
    }
}

#[test]
fn d4_staleness_is_not_judged_where_nothing_was_answered() {
    let silent = record([0; 5], [0, 0, 0, 0, 10]);
    let kpis = judge(&silent, &Thresholds::default(), Role::Plain, true);
    assert!(kpis.iter().all(|kpi| kpi.name != "stale_answers"));
}

#[test]
fn d4_one_wrong_answer_fails_the_run() {
    let mut record = record([0; 5], [0; 5]);
    let answer = Answer {
        source: Source::Redis,
        version: 0,
        age: at(0),
        stale: Some(false),
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
