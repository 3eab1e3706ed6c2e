//! What every policy keeps to, whatever its settings and whatever happens.

use std::time::{Duration, Instant};

use proptest::{collection::vec, prelude::*};
use steadfast_core::policy::{
    Backoff, Breaker, BreakerConfig, Budget, BudgetConfig, Bulkhead, LatencyEstimate, RetryPolicy,
    RetryState, Stop,
    breaker::Admission,
    bulkhead::Full,
    deadline::PROBE_EVERY,
    retry::{GiveUp, Step},
    window::{BUCKETS, Counts, Window},
};

/// Every length of time, with those that people set and those that break sums well represented.
fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => (0..10_000_u64).prop_map(Duration::from_millis),
        2 => any::<u64>().prop_map(Duration::from_nanos),
        1 => any::<u64>().prop_map(Duration::from_secs),
        1 => Just(Duration::ZERO),
        1 => Just(Duration::MAX),
    ]
}

fn factors() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 1.0..4.0_f64, 1 => any::<f64>(), 1 => Just(f64::NAN)]
}

fn attempts() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..40_u32, 1 => any::<u32>(), 1 => Just(u32::MAX)]
}

fn backoffs() -> impl Strategy<Value = Backoff> {
    let simple = prop_oneof![
        durations().prop_map(Backoff::fixed),
        (durations(), durations()).prop_map(|(a, b)| Backoff::random(a, b)),
        (durations(), durations(), factors())
            .prop_map(|(a, b, f)| Backoff::exponential(a, b).factor(f)),
        (durations(), durations(), factors())
            .prop_map(|(a, b, f)| Backoff::full_jitter(a, b).factor(f)),
    ];
    simple.prop_recursive(4, 16, 2, |inner| {
        (inner.clone(), inner, 0..4_u8, attempts()).prop_map(|(a, b, how, n)| match how {
            0 => a + b,
            1 => a.then(n, b),
            2 => a.min(b),
            _ => a.max(b),
        })
    })
}

fn stops() -> impl Strategy<Value = Stop> {
    let simple = prop_oneof![
        attempts().prop_map(Stop::after_attempts),
        durations().prop_map(Stop::after_delay),
        Just(Stop::never()),
    ];
    simple.prop_recursive(3, 8, 2, |inner| {
        (inner.clone(), inner, any::<bool>())
            .prop_map(|(a, b, or)| if or { a.or(b) } else { a.and(b) })
    })
}

proptest! {
    #[test]
    fn a_pause_lies_between_its_bounds_and_never_panics(backoff in backoffs(), n in attempts(), seed: u64) {
        let pause = backoff.pause(n, &mut fastrand::Rng::with_seed(seed));
        prop_assert!(backoff.shortest(n) <= pause && pause <= backoff.longest(n));
    }

    #[test]
    fn growth_never_shrinks_and_never_passes_its_cap(
        first in durations(), cap in durations(), factor in factors(), n in 1..u32::MAX, seed: u64,
    ) {
        let growing = Backoff::exponential(first, cap).factor(factor);
        prop_assert!(growing.longest(n) <= growing.longest(n + 1));
        prop_assert!(growing.longest(u32::MAX) <= cap);
        let jittered = Backoff::full_jitter(first, cap).factor(factor);
        let mut rng = fastrand::Rng::with_seed(seed);
        prop_assert!(jittered.pause(n, &mut rng) <= growing.pause(n, &mut rng));
    }

    #[test]
    fn a_joined_pause_is_made_of_its_parts(a in backoffs(), b in backoffs(), n in 1..1000_u32, times in 0..1000_u32, seed: u64) {
        // The parts are drawn one after the other, so the same seed draws the same.
        let mut rng = fastrand::Rng::with_seed(seed);
        let (of_a, of_b) = (a.pause(n, &mut rng), b.pause(n, &mut rng));
        let drawn = |joined: Backoff| joined.pause(n, &mut fastrand::Rng::with_seed(seed));
        prop_assert_eq!(drawn(a.clone() + b.clone()), of_a.saturating_add(of_b));
        prop_assert_eq!(drawn(a.clone().min(b.clone())), of_a.min(of_b));
        prop_assert_eq!(drawn(a.clone().max(b.clone())), of_a.max(of_b));
        let (part, number) = if n <= times { (&a, n) } else { (&b, n - times) };
        let expected = part.pause(number, &mut fastrand::Rng::with_seed(seed));
        prop_assert_eq!(drawn(a.clone().then(times, b.clone())), expected);
    }

    #[test]
    fn enough_stays_enough(stop in stops(), n in 0..u32::MAX, elapsed in durations(), more in durations()) {
        if stop.stops(n, elapsed) {
            prop_assert!(stop.stops(n + 1, elapsed));
            prop_assert!(stop.stops(n, elapsed.saturating_add(more)));
        }
    }

    #[test]
    fn c1_no_pause_ends_after_the_deadline(
        backoff in backoffs(), stop in stops(), deadline in durations(), seed: u64,
        took in vec((0..500_u64).prop_map(Duration::from_millis), 1..50),
    ) {
        let start = Instant::now();
        let Some(deadline) = start.checked_add(deadline) else { return Ok(()) };
        let policy = RetryPolicy::new(backoff, stop.clone());
        let mut retry = RetryState::new(policy, start, Some(deadline), fastrand::Rng::with_seed(seed));
        let mut now = start;
        for (n, took) in (1..).zip(took) {
            now += took;
            match retry.next(now) {
                Step::Pause(pause) => {
                    prop_assert!(!stop.stops(n, now - start));
                    now += pause;
                    prop_assert!(now < deadline);
                }
                Step::GiveUp(GiveUp::Deadline) => break,
                Step::GiveUp(_) => {
                    prop_assert!(stop.stops(n, now - start));
                    break;
                }
            }
        }
    }

    #[test]
    fn the_pauses_of_a_call_never_add_up_to_more_than_was_said(backoff in backoffs(), stop in stops(), seed: u64) {
        let start = Instant::now();
        let policy = RetryPolicy::new(backoff, stop);
        let Some(longest) = policy.longest_pauses() else { return Ok(()) };
        let mut retry = RetryState::new(policy, start, None, fastrand::Rng::with_seed(seed));
        let mut sum = Duration::ZERO;
        for _ in 0..1000 {
            let Some(now) = start.checked_add(sum) else { break };
            let Step::Pause(pause) = retry.next(now) else { break };
            sum = sum.saturating_add(pause);
        }
        prop_assert!(sum <= longest, "{:?} > {:?}", sum, longest);
    }

    #[test]
    fn a_window_counts_as_a_list_would(
        length in 10..5_000_u64,
        events in vec((0..1_000_u64, 0..3_u8), 1..100),
        jump in 0..100_000_u64,
    ) {
        let start = Instant::now();
        let bucket = Duration::from_millis(length).as_nanos() / BUCKETS as u128;
        let mut window = Window::new(Duration::from_millis(length), start);
        let mut list: Vec<(u128, u8)> = Vec::new();
        let mut now = start;
        for (step, (pause, kind)) in events.into_iter().enumerate() {
            now += Duration::from_millis(if step == 50 { jump } else { pause });
            window.add([Counts::ok(1), Counts::failure(), Counts::slow()][usize::from(kind)], now);
            let tick = (now - start).as_nanos() / bucket;
            list.push((tick, kind));
            let count = |kind| list.iter().filter(|(t, k)| *k == kind && t + BUCKETS as u128 > tick).count() as u64;
            prop_assert_eq!(window.counts(now), Counts { ok: count(0), failed: count(1), slow: count(2) });
        }
    }

    #[test]
    fn c10_a_budget_yields_no_more_than_calls_and_time_have_earned(
        ratio in 0.0..=1.0_f64, per_second in 0.0..1_000.0_f64, cap in 1.0..200.0_f64,
        steps in vec((0..50_u64, prop_oneof![0..20_000_u64, 0..2_000_000_u64], 0..30_u32), 1..100),
    ) {
        let start = Instant::now();
        let budget = Budget::new(BudgetConfig { ratio, per_second, cap }, start).unwrap();
        let (mut now, mut calls, mut got, mut saved) = (start, 0_u64, 0_u64, cap);
        for (n, micros, wanted) in steps {
            calls += n;
            budget.deposit(n);
            now += Duration::from_micros(micros);
            let (all_calls, all_time) = (calls as f64, (now - start).as_secs_f64());
            // Settings are kept to a millionth.
            let rounding = 1e-6 * (2.0 + all_calls + all_time);
            saved = cap.min(saved + ratio * n as f64 + per_second * micros as f64 * 1e-6);
            prop_assert!((budget.balance(now) - saved).abs() <= rounding, "{} for {}", budget.balance(now), saved);
            for _ in 0..wanted {
                let affordable = budget.balance(now) >= 1.0;
                let given = budget.try_withdraw(now).is_ok();
                prop_assert_eq!(affordable, given);
                got += u64::from(given);
                saved -= f64::from(u8::from(given));
            }
            prop_assert!(got as f64 <= cap + ratio * all_calls + per_second * all_time + rounding);
        }
    }

    #[test]
    fn c11_a_bulkhead_keeps_its_bounds_and_refuses_only_at_them(
        calls in 1..20_usize, bytes in 1..500_usize, steps in vec((any::<bool>(), 1..200_usize), 1..200),
    ) {
        let bulkhead = Bulkhead::new(calls, bytes);
        let mut inside: Vec<usize> = Vec::new();
        for (enters, size) in steps {
            let held: usize = inside.iter().sum();
            match bulkhead.admit(inside.len(), held) {
                _ if !enters => drop(inside.pop()),
                Ok(()) => inside.push(size),
                Err(Full::Calls) => prop_assert_eq!(inside.len(), calls),
                Err(Full::Bytes) => prop_assert!(held >= bytes && inside.len() < calls),
            }
            prop_assert!(inside.len() <= calls);
            // Past the bound on bytes by the last call to enter, at most.
            prop_assert!(inside.iter().rev().skip(1).sum::<usize>() < bytes);
        }
    }

    #[test]
    fn c11_an_estimate_refuses_only_what_it_has_seen_and_never_for_long(
        steps in vec((0..200_u64, 1..3_000_u64, any::<bool>()), 1..200),
    ) {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let estimate = LatencyEstimate::new(start);
        let (mut now, mut slowest) = (start, Duration::ZERO);
        let mut refused_since: Option<Instant> = None;
        let mut pilots: Vec<Instant> = Vec::new();
        for (pause, took, reports) in steps {
            now += ms(pause);
            if reports {
                estimate.record(ms(took), now);
                slowest = slowest.max(ms(took));
                prop_assert!(estimate.expected(now) <= slowest);
            }
            prop_assert!(estimate.admit(slowest, now).is_ok());
            let expected = estimate.expected(now);
            match estimate.admit(Duration::ZERO, now) {
                Ok(()) if !expected.is_zero() => {
                    prop_assert!(pilots.last().is_none_or(|last| now - *last >= PROBE_EVERY));
                    pilots.push(now);
                    refused_since = None;
                }
                Ok(()) => refused_since = None,
                Err(doomed) => {
                    prop_assert_eq!(doomed.expected, expected);
                    prop_assert!(doomed.retry_after <= PROBE_EVERY);
                    let since = *refused_since.get_or_insert(now);
                    prop_assert!(now - since < PROBE_EVERY);
                }
            }
        }
    }

    #[test]
    fn c9_a_ramp_delays_by_its_formula_and_never_beyond_its_end(
        length in 1..3_000_u64, rate in 1.0..5_000.0_f64,
        arrivals in vec((0..20_000_u64, 1..50_u32), 1..60),
    ) {
        let start = Instant::now();
        let ramp = Duration::from_millis(length);
        let config = BreakerConfig { ramp, ramp_start: rate, consecutive_failures: Some(1), ..BreakerConfig::default() };
        let mut breaker = Breaker::new(config, start).unwrap();
        breaker.record_loss(start).unwrap();
        breaker.probe_succeeded(start).unwrap();
        let (mut now, mut last) = (start, start);
        let mut let_in = 0.0;
        for (pause, crowd) in arrivals {
            now += Duration::from_micros(pause);
            for _ in 0..crowd {
                let turn = match breaker.try_acquire(now).unwrap() {
                    Admission::Now(_) => now,
                    Admission::Delay { until, .. } => until,
                };
                let_in += 1.0;
                prop_assert!(turn >= now && turn >= last);
                prop_assert!(turn <= (start + ramp).max(now));
                let part = (turn - start).as_secs_f64() / ramp.as_secs_f64();
                if part < 0.999 {
                    // One may go at once; turns are kept to a nanosecond, at a rate that part of
                    // the way has raised.
                    let allowed = 1.0 - rate * ramp.as_secs_f64() * (1.0 - part).ln();
                    prop_assert!(let_in <= allowed + 0.1, "{} > {} at {}", let_in, allowed, part);
                }
                last = turn;
            }
        }
    }
}
