use super::*;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn record() -> Record {
    let second = ms(1000);
    let phases = Phases {
        warm_up: ms(0),
        baseline: second,
        fault: second,
        recovery: second,
        recovered: second * 2,
    };
    Record::new(phases)
}

const ANSWERED: Ended = Ended::Read {
    answer: Answer {
        source: Source::Memory,
        version: 0,
        age: Duration::ZERO,
        stale: Some(false),
    },
    wrong: false,
};

fn facts(connection: Connection, redis_ok: u64, redis_failed: u64) -> Facts {
    Facts {
        connection,
        redis_ok,
        redis_failed,
        redis_replies: redis_ok,
        ..Facts::default()
    }
}

#[test]
fn d4_recovery_is_full_at_the_start_of_the_first_quiet_second() {
    let mut record = record();
    record.sample(ms(900), facts(Connection::Ready, 100, 0));
    record.broken(ms(1000));
    record.sample(ms(1040), facts(Connection::Down, 100, 1));
    record.healed(ms(2000));
    record.sample(ms(2020), facts(Connection::Down, 100, 1));
    record.sample(ms(2060), facts(Connection::Ready, 101, 1));
    record.call(ms(2080), ms(2080), ms(2090), ANSWERED);
    record.call(ms(2100), ms(2100), ms(2150), Ended::ReadFailed("timeout"));
    record.sample(ms(3149), facts(Connection::Ready, 300, 1));
    let moments = record.moments();
    assert_eq!(moments.users_well, None, "a second has not passed");
    record.sample(ms(3150), facts(Connection::Ready, 301, 1));
    let expected = Moments {
        detect: Some(ms(40)),
        first_success: Some(ms(60)),
        users_well: Some(ms(150)),
        redis_in_use: Some(ms(60)),
    };
    assert_eq!(record.moments(), expected);
    assert_eq!(record.moments().full(), Some(ms(150)));
}

#[test]
fn d4_redis_is_not_in_use_before_it_answers_though_its_users_are_well() {
    let mut record = record();
    record.sample(ms(0), facts(Connection::Ready, 0, 0));
    record.sample(ms(900), facts(Connection::Ready, 100, 0));
    record.broken(ms(1000));
    record.healed(ms(2000));
    record.call(ms(2001), ms(2001), ms(2002), ANSWERED);
    // The connection is believed to be well all the time, but one answer comes in a second
    // where a hundred did.
    for at in [2_000, 2_300, 2_900] {
        record.sample(ms(at), facts(Connection::Ready, 101, 0));
    }
    record.sample(ms(3_400), facts(Connection::Ready, 102, 0));
    for n in 1..=12 {
        record.sample(
            ms(3_500 + n * 100),
            facts(Connection::Ready, 102 + n * 10, 0),
        );
    }
    let moments = record.moments();
    assert_eq!(moments.users_well, Some(ms(2)));
    assert_eq!(moments.redis_in_use, Some(ms(1_400)), "{moments:?}");
    let resolution = record.resolution();
    assert_eq!(resolution.redis, Some(ms(10)));
    assert_eq!(resolution.users, None, "nothing was read in the baseline");
}

#[test]
fn d4_a_first_success_needs_no_call_of_the_load() {
    let mut record = record();
    record.broken(ms(1000));
    record.sample(ms(1990), facts(Connection::Down, 100, 1));
    record.healed(ms(2000));
    let alive = Facts {
        redis_replies: 101,
        ..facts(Connection::Ready, 100, 1)
    };
    record.sample(ms(2030), alive);
    assert_eq!(record.moments().first_success, Some(ms(30)));
}

#[test]
fn d4_the_first_success_is_seen_by_whichever_count_is_the_first_to_grow() {
    let mut record = record();
    record.broken(ms(1000));
    record.sample(ms(1990), facts(Connection::Ready, 100, 0));
    record.healed(ms(2000));
    let lags = Facts {
        redis_replies: 100,
        ..facts(Connection::Ready, 101, 0)
    };
    record.sample(ms(2030), lags);
    assert_eq!(record.moments().first_success, Some(ms(30)));
}

#[test]
fn d4_a_failure_after_the_quiet_second_is_not_counted_as_recovering() {
    let mut record = record();
    record.broken(ms(1000));
    record.healed(ms(2000));
    record.call(ms(2000), ms(2000), ms(2002), ANSWERED);
    record.sample(ms(3100), facts(Connection::Ready, 1, 0));
    record.call(ms(3500), ms(3500), ms(3600), Ended::ReadFailed("timeout"));
    assert_eq!(record.moments().users_well, Some(ms(2)));
}

#[test]
fn d4_a_subject_that_hangs_after_the_healing_is_not_well_before_it_answers() {
    let mut record = record();
    record.broken(ms(1000));
    record.healed(ms(2000));
    record.sample(ms(2900), facts(Connection::Ready, 1, 0));
    assert_eq!(
        record.moments().users_well,
        None,
        "nothing was answered yet"
    );
    // What began at once failed only after more than a second; the next was answered.
    record.call(ms(2010), ms(2010), ms(3210), Ended::ReadFailed("timeout"));
    record.call(ms(3300), ms(3300), ms(3301), ANSWERED);
    record.sample(ms(4301), facts(Connection::Ready, 2, 0));
    assert_eq!(record.moments().users_well, Some(ms(1301)));
}

#[test]
fn d4_a_call_that_could_not_start_disturbs_the_quiet_second() {
    let mut record = record();
    record.broken(ms(1000));
    record.healed(ms(2000));
    record.call(ms(2000), ms(2000), ms(2001), ANSWERED);
    record.skip(ms(2400));
    record.sample(ms(4000), facts(Connection::Ready, 1, 0));
    assert_eq!(record.moments().users_well, Some(ms(400)));
}

#[test]
fn d4_a_subject_that_never_comes_back_never_recovers() {
    let mut record = record();
    record.broken(ms(1000));
    record.healed(ms(2000));
    for at in (2000..5000).step_by(10) {
        record.sample(ms(at), facts(Connection::Down, 0, at));
    }
    assert_eq!(record.moments().redis_in_use, None);
    assert_eq!(record.moments().first_success, None);
}

#[test]
fn d3_memory_does_not_grow_with_the_length_of_the_run() {
    let day = Duration::from_secs(24 * 3600);
    let mut record = Record::new(Phases {
        warm_up: ms(0),
        baseline: day,
        fault: day,
        recovery: day,
        recovered: day,
    });
    for hour in 0..1000 {
        record.call(ms(hour * 3_600_000), ms(0), ms(1), Ended::Written);
    }
    assert!(record.intervals().1.len() <= 2 * INTERVALS as usize);
}

#[test]
fn calls_count_for_the_phase_in_which_they_were_meant_to_start() {
    let mut record = record();
    record.call(ms(999), ms(999), ms(1500), Ended::Written);
    record.skip(ms(1500));
    assert_eq!(record.counts(Phase::Baseline).calls(), 1);
    assert_eq!(record.counts(Phase::Baseline).latency.max() / 1000, 501);
    assert_eq!(record.counts(Phase::Fault).skipped, 1);
}
