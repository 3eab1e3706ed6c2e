#![allow(clippy::disallowed_methods, clippy::unwrap_used)]
use super::*;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const SECOND: Duration = Duration::from_secs(1);

/// Without a ramp, unless a test wants one.
fn breaker(change: impl FnOnce(&mut BreakerConfig)) -> (Breaker, Instant) {
    let now = Instant::now();
    let mut config = BreakerConfig {
        ramp: Duration::ZERO,
        ..BreakerConfig::default()
    };
    change(&mut config);
    (Breaker::new(config, now).unwrap(), now)
}

fn admitted(breaker: &mut Breaker, now: Instant) -> Permit {
    match breaker.try_acquire(now) {
        Ok(Admission::Now(permit)) => permit,
        other => panic!("not admitted at once: {other:?}"),
    }
}

fn call(breaker: &mut Breaker, outcome: Outcome, now: Instant) -> Option<Transition> {
    let permit = admitted(breaker, now);
    breaker.record(permit, outcome, now)
}

fn fail_until_open(breaker: &mut Breaker, now: Instant) -> Transition {
    (0..5)
        .find_map(|_| call(breaker, Outcome::Failure, now))
        .expect("opens")
}

#[test]
fn c9_five_failures_in_a_row_open_it_at_any_rate_of_calls() {
    let (mut breaker, start) = breaker(|_| ());
    let mut opened = None;
    for n in 0..5 {
        assert!(opened.is_none());
        opened = call(&mut breaker, Outcome::Failure, start + n * 60 * SECOND);
    }
    let opened = opened.unwrap();
    assert_eq!((opened.from, opened.to), (State::Closed, State::Open));
    assert_eq!(opened.cause, Cause::ConsecutiveFailures { failed: 5 });
}

#[test]
fn a_success_between_starts_the_row_again() {
    let (mut breaker, now) = breaker(|c| c.minimum_calls = 1000);
    for _ in 0..10 {
        for _ in 0..4 {
            assert_eq!(call(&mut breaker, Outcome::Failure, now), None);
        }
        breaker.record_successes(1, now);
    }
    assert_eq!(breaker.state(), State::Closed);
    for _ in 0..4 {
        assert_eq!(call(&mut breaker, Outcome::Failure, now), None);
    }
    // A report of none is no success.
    breaker.record_successes(0, now);
    assert!(call(&mut breaker, Outcome::Failure, now).is_some());
}

#[test]
fn c9_half_of_twenty_calls_failing_opens_it() {
    let (mut breaker, now) = breaker(|_| ());
    for _ in 0..9 {
        assert_eq!(call(&mut breaker, Outcome::Success, now), None);
        assert_eq!(call(&mut breaker, Outcome::Failure, now), None);
    }
    assert_eq!(call(&mut breaker, Outcome::Success, now), None);
    let opened = call(&mut breaker, Outcome::Failure, now).unwrap();
    assert_eq!(
        opened.cause,
        Cause::FailureRate {
            failed: 10,
            calls: 20
        }
    );
}

#[test]
fn failures_that_left_the_window_do_not_count() {
    let (mut breaker, start) = breaker(|c| c.consecutive_failures = None);
    for n in 0..100 {
        // One a second: never more than ten in the window, so never twenty to judge.
        assert_eq!(
            call(&mut breaker, Outcome::Failure, start + n * SECOND),
            None
        );
    }
}

#[test]
fn c9_slow_calls_open_it() {
    let (mut breaker, now) = breaker(|_| ());
    breaker.record_successes(4, now);
    for _ in 0..15 {
        assert_eq!(call(&mut breaker, Outcome::Slow, now), None);
    }
    let opened = call(&mut breaker, Outcome::Slow, now).unwrap();
    assert_eq!(
        opened.cause,
        Cause::SlowCalls {
            slow: 16,
            calls: 20
        }
    );
}

#[test]
fn a_call_is_slow_beyond_the_limit_and_never_without_one() {
    let config = BreakerConfig::default();
    assert_eq!(config.judge(ms(500)), Outcome::Success);
    assert_eq!(config.judge(ms(501)), Outcome::Slow);
    let config = BreakerConfig {
        slow_call: None,
        ..config
    };
    assert_eq!(config.judge(Duration::MAX), Outcome::Success);
}

#[test]
fn c9_a_lost_connection_counts_once() {
    let (mut breaker, now) = breaker(|_| ());
    let permits: Vec<_> = (0..100).map(|_| admitted(&mut breaker, now)).collect();
    assert_eq!(breaker.record_loss(now), None);
    for permit in permits {
        breaker.forget(permit);
    }
    assert_eq!(breaker.state(), State::Closed);
    for _ in 0..3 {
        assert_eq!(breaker.record_loss(now), None);
    }
    assert_eq!(breaker.record_loss(now).unwrap().to, State::Open);
}

#[test]
fn c6_a_refusal_says_since_when_and_when_to_try_again() {
    let (mut breaker, start) = breaker(|_| ());
    fail_until_open(&mut breaker, start);
    let refused = breaker.try_acquire(start + ms(30)).unwrap_err();
    assert_eq!(
        refused,
        Refused {
            since: start,
            retry_after: ms(70)
        }
    );
    // The trouble goes on through half-open cycles.
    call(&mut breaker, Outcome::Failure, start + ms(100));
    let refused = breaker.try_acquire(start + ms(100)).unwrap_err();
    assert_eq!(
        refused,
        Refused {
            since: start,
            retry_after: ms(200)
        }
    );
}

#[test]
fn the_open_time_doubles_up_to_its_cap() {
    let (mut breaker, start) = breaker(|_| ());
    let mut now = start;
    fail_until_open(&mut breaker, now);
    let mut waits = Vec::new();
    for _ in 0..8 {
        let wait = breaker.try_acquire(now).unwrap_err().retry_after;
        waits.push(wait.as_millis());
        now += wait;
        call(&mut breaker, Outcome::Failure, now);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn the_open_time_starts_again_only_after_lasting_health() {
    let (mut breaker, start) = breaker(|_| ());
    fail_until_open(&mut breaker, start);
    breaker.probe_succeeded(start);
    // Flapping: closed for less than five seconds.
    let again = start + ms(4_900);
    fail_until_open(&mut breaker, again);
    assert_eq!(breaker.try_acquire(again).unwrap_err().retry_after, ms(200));
    breaker.probe_succeeded(again);
    let later = again + ms(5_000);
    fail_until_open(&mut breaker, later);
    assert_eq!(breaker.try_acquire(later).unwrap_err().retry_after, ms(100));
}

#[test]
fn c9_half_open_admits_a_bounded_number_of_probes() {
    let (mut breaker, start) = breaker(|_| ());
    fail_until_open(&mut breaker, start);
    let now = start + ms(100);
    let first = admitted(&mut breaker, now);
    assert!(first.is_probe());
    assert_eq!(first.transition().unwrap().cause, Cause::OpenTimeOver);
    let second = admitted(&mut breaker, now);
    assert_eq!(second.transition(), None);
    let third = admitted(&mut breaker, now);
    assert!(breaker.try_acquire(now).is_err());
    // A probe that is dropped gives its place back.
    breaker.forget(second);
    let fourth = admitted(&mut breaker, now);
    assert!(breaker.try_acquire(now).is_err());
    assert_eq!(breaker.record(first, Outcome::Success, now), None);
    let closed = breaker.record(third, Outcome::Success, now).unwrap();
    assert_eq!(
        (closed.to, closed.cause),
        (State::Closed, Cause::ProbesSucceeded)
    );
    assert_eq!(breaker.record(fourth, Outcome::Failure, now), None);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_slow_probe_opens_again() {
    let (mut breaker, start) = breaker(|_| ());
    fail_until_open(&mut breaker, start);
    let opened = call(&mut breaker, Outcome::Slow, start + ms(100)).unwrap();
    assert_eq!(
        (opened.from, opened.to, opened.cause),
        (State::HalfOpen, State::Open, Cause::ProbeFailed)
    );
}

#[test]
fn a_late_probe_result_does_not_close_a_newer_half_open() {
    let (mut breaker, start) = breaker(|c| c.probe_successes = 1);
    fail_until_open(&mut breaker, start);
    let late = admitted(&mut breaker, start + ms(100));
    let failed = admitted(&mut breaker, start + ms(100));
    breaker.record(failed, Outcome::Failure, start + ms(110));
    let newer = admitted(&mut breaker, start + ms(310));
    assert_eq!(
        breaker.record(late, Outcome::Success, start + ms(320)),
        None
    );
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(
        breaker
            .record(newer, Outcome::Success, start + ms(320))
            .unwrap()
            .to,
        State::Closed
    );
}

#[test]
fn a_late_probe_given_back_frees_no_place_of_a_newer_half_open() {
    let (mut breaker, start) = breaker(|c| c.probes = 1);
    fail_until_open(&mut breaker, start);
    let late = admitted(&mut breaker, start + ms(100));
    breaker.record_loss(start + ms(110));
    let _newer = admitted(&mut breaker, start + ms(310));
    breaker.forget(late);
    assert!(breaker.try_acquire(start + ms(320)).is_err());
}

#[test]
fn probes_that_never_report_do_not_wedge_it() {
    let (mut breaker, start) = breaker(|_| ());
    fail_until_open(&mut breaker, start);
    let now = start + ms(100);
    let leaked: Vec<_> = (0..3).map(|_| admitted(&mut breaker, now)).collect();
    assert_eq!(breaker.poll_timeout(), Some(now + 5 * SECOND));
    assert!(breaker.try_acquire(now + ms(4_999)).is_err());
    let permit = admitted(&mut breaker, now + 5 * SECOND);
    assert_eq!(permit.transition(), None);
    for permit in leaked {
        assert_eq!(
            breaker.record(permit, Outcome::Success, now + 5 * SECOND),
            None
        );
    }
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[test]
fn results_from_before_an_opening_do_not_count_after_it() {
    let (mut breaker, start) = breaker(|_| ());
    let old: Vec<_> = (0..50).map(|_| admitted(&mut breaker, start)).collect();
    fail_until_open(&mut breaker, start);
    breaker.probe_succeeded(start + ms(50)).unwrap();
    for permit in old {
        assert_eq!(
            breaker.record(permit, Outcome::Failure, start + ms(60)),
            None
        );
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn c9_the_clients_own_probe_closes_it_at_once() {
    let (mut breaker, start) = breaker(|_| ());
    assert_eq!(breaker.probe_succeeded(start), None);
    fail_until_open(&mut breaker, start);
    let closed = breaker.probe_succeeded(start + ms(1)).unwrap();
    assert_eq!(
        (closed.from, closed.to, closed.cause),
        (State::Open, State::Closed, Cause::OwnProbe)
    );
    assert!(breaker.passes_freely());
}

#[test]
fn c9_after_closing_calls_are_delayed_and_not_refused() {
    let (mut breaker, start) = breaker(|c| c.ramp = ms(500));
    assert!(breaker.passes_freely());
    fail_until_open(&mut breaker, start);
    breaker.probe_succeeded(start).unwrap();
    assert!(breaker.ramps() && !breaker.passes_freely());
    let mut delayed = 0;
    for _ in 0..10_000 {
        if let Admission::Delay { until, permit } = breaker.try_acquire(start).unwrap() {
            assert!(until <= start + ms(500));
            assert_eq!(breaker.record(permit, Outcome::Success, until), None);
            delayed += 1;
        }
    }
    assert_eq!(delayed, 9_999);
    assert_eq!(breaker.poll_timeout(), Some(start + ms(500)));
    assert_eq!(breaker.handle_timeout(start + ms(500)), None);
    assert!(breaker.passes_freely());
    assert_eq!(breaker.poll_timeout(), None);
}

#[test]
fn a_failure_within_the_ramp_counts() {
    let (mut breaker, start) = breaker(|c| c.ramp = ms(500));
    fail_until_open(&mut breaker, start);
    breaker.probe_succeeded(start).unwrap();
    let opened = (0..5)
        .find_map(|_| breaker.record_loss(start + ms(1)))
        .unwrap();
    assert_eq!(opened.to, State::Open);
}

#[test]
fn calls_that_passed_without_asking_count_in_their_generation_only() {
    let (mut breaker, now) = breaker(|_| ());
    let generation = breaker.generation();
    breaker.record_successes(1_000, now);
    let opened = (0..5)
        .find_map(|_| breaker.record(Permit::passed(generation), Outcome::Failure, now))
        .unwrap();
    assert_eq!(opened.cause, Cause::ConsecutiveFailures { failed: 5 });
    breaker.probe_succeeded(now).unwrap();
    for _ in 0..5 {
        assert_eq!(
            breaker.record(Permit::passed(generation), Outcome::Failure, now),
            None
        );
    }
}

#[test]
fn the_timeout_is_told_and_may_be_handled_without_a_call() {
    let (mut breaker, start) = breaker(|_| ());
    assert_eq!(breaker.poll_timeout(), None);
    fail_until_open(&mut breaker, start);
    assert_eq!(breaker.poll_timeout(), Some(start + ms(100)));
    assert_eq!(breaker.handle_timeout(start + ms(99)), None);
    assert_eq!(
        breaker.handle_timeout(start + ms(100)).unwrap().to,
        State::HalfOpen
    );
    assert_eq!(admitted(&mut breaker, start + ms(100)).transition(), None);
}

#[test]
fn by_hand_it_stays_open_until_enabled() {
    let (mut breaker, start) = breaker(|c| c.ramp = ms(500));
    let opened = breaker.force_open(start).unwrap();
    assert_eq!((opened.to, opened.cause), (State::Open, Cause::ByHand));
    assert_eq!(breaker.force_open(start), None);
    assert_eq!(breaker.probe_succeeded(start), None);
    assert_eq!(breaker.poll_timeout(), None);
    assert!(breaker.try_acquire(start + 3600 * SECOND).is_err());
    assert_eq!(breaker.enable(start).unwrap().to, State::Closed);
    assert!(breaker.ramps());
    assert_eq!(breaker.mode(), BreakerMode::Automatic);
    assert_eq!(breaker.enable(start), None);
}

#[test]
fn by_hand_it_stays_closed_until_enabled() {
    for disabled in [false, true] {
        let (mut breaker, now) = breaker(|_| ());
        fail_until_open(&mut breaker, now);
        let closed = if disabled {
            breaker.disable(now)
        } else {
            breaker.force_closed(now)
        };
        assert_eq!(closed.unwrap().to, State::Closed);
        for _ in 0..1000 {
            assert_eq!(call(&mut breaker, Outcome::Failure, now), None);
        }
        assert!(breaker.passes_freely());
        assert_eq!(breaker.enable(now), None);
        // It begins anew: what was counted meanwhile does not open it.
        assert_eq!(call(&mut breaker, Outcome::Failure, now), None);
        assert_eq!(fail_until_open(&mut breaker, now).to, State::Open);
        assert_eq!(breaker.try_acquire(now).unwrap_err().retry_after, ms(100));
    }
}

#[test]
fn a_bad_setting_is_refused_at_the_door() {
    let config = BreakerConfig {
        failure_rate: f64::NAN,
        ..BreakerConfig::default()
    };
    let error = Breaker::new(config, Instant::now()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "setting `failure_rate` must be above 0 and at most 1"
    );
}
