//! What the policies cost a call: on the healthy path, where every nanosecond is paid a million
//! times a second, and in an outage, where a refusal has to be cheap enough to be given to
//! everybody.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use steadfast_core::policy::{
    Backoff, Breaker, BreakerConfig, Budget, BudgetConfig, LatencyEstimate,
    breaker::{Admission, Outcome},
};

criterion_group!(benches, breaker, budget, estimate, backoff);
criterion_main!(benches);

fn breaker(c: &mut Criterion) {
    let mut group = c.benchmark_group("breaker");
    let now = Instant::now();
    let later = now + Duration::from_secs(1);

    let mut closed = Breaker::new(BreakerConfig::default(), now).unwrap();
    group.bench_function("closed, a call asked for and recorded", |b| {
        b.iter(|| {
            if let Ok(Admission::Now(permit)) = closed.try_acquire(black_box(later)) {
                black_box(closed.record(permit, Outcome::Success, later));
            }
        });
    });
    group.bench_function("closed, a thousand calls folded in", |b| {
        b.iter(|| closed.record_successes(black_box(1_000), black_box(later)));
    });
    group.bench_function("closed, a failure judged", |b| {
        let config = BreakerConfig {
            consecutive_failures: None,
            minimum_calls: 1,
            failure_rate: 1.0,
            ..BreakerConfig::default()
        };
        let mut judging = Breaker::new(config, now).unwrap();
        judging.record_successes(u64::from(u32::MAX), later);
        b.iter(|| black_box(judging.record_loss(black_box(later))));
    });

    let mut open = Breaker::new(BreakerConfig::default(), now).unwrap();
    open.force_open(now);
    group.bench_function("open, a refusal", |b| {
        b.iter(|| black_box(open.try_acquire(black_box(later))))
    });

    let config = BreakerConfig {
        ramp: Duration::from_secs(3600),
        ramp_start: 1e9,
        ..BreakerConfig::default()
    };
    let mut ramping = Breaker::new(config, now).unwrap();
    ramping.force_open(now);
    ramping.enable(now);
    group.bench_function("ramping, a turn given", |b| {
        b.iter(|| black_box(ramping.try_acquire(black_box(later))))
    });
}

fn budget(c: &mut Criterion) {
    let mut group = c.benchmark_group("budget");
    let now = Instant::now();

    let full = Budget::new(BudgetConfig::default(), now).unwrap();
    group.bench_function("full, a deposit", |b| b.iter(|| full.deposit(black_box(1))));

    let config = BudgetConfig {
        ratio: 1.0,
        ..BudgetConfig::default()
    };
    let busy = Budget::new(config, now).unwrap();
    group.bench_function("a withdrawal and the deposit that made it good", |b| {
        b.iter(|| {
            black_box(busy.try_withdraw(black_box(now))).unwrap();
            busy.deposit(black_box(1));
        });
    });

    let config = BudgetConfig {
        per_second: 0.0,
        cap: 1.0,
        ..BudgetConfig::default()
    };
    let empty = Budget::new(config, now).unwrap();
    empty.try_withdraw(now).unwrap();
    group.bench_function("empty, a refusal", |b| {
        b.iter(|| black_box(empty.try_withdraw(black_box(now))))
    });
}

fn estimate(c: &mut Criterion) {
    let mut group = c.benchmark_group("latency estimate");
    let now = Instant::now();
    let second = Duration::from_secs(1);

    let fast = LatencyEstimate::new(now);
    fast.record(Duration::from_millis(1), now);
    group.bench_function("fast, an admission", |b| {
        b.iter(|| black_box(fast.admit(black_box(second), now).is_ok()))
    });
    group.bench_function("a result recorded", |b| {
        b.iter(|| fast.record(black_box(Duration::from_millis(1)), black_box(now)))
    });

    let slow = LatencyEstimate::new(now);
    slow.record(2 * second, now);
    group.bench_function("slow, a refusal", |b| {
        b.iter(|| black_box(slow.admit(black_box(second), black_box(now))))
    });
}

fn backoff(c: &mut Criterion) {
    let backoff = Backoff::full_jitter(Duration::from_millis(10), Duration::from_secs(1));
    let mut rng = fastrand::Rng::with_seed(1);
    c.bench_function("backoff, a pause drawn", |b| {
        b.iter(|| black_box(backoff.pause(black_box(3), &mut rng)))
    });
}
