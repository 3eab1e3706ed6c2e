//! How many calls a second the load generator holds against a subject that answers at once. A drill whose rate comes near this
//! measures the generator; its report then shows arrivals that could not start, or latencies that are the generator's own.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use steadfast_drill::load::{Lane, drive};
use steadfast_drill::scenario::{Arrivals, Phase, Scenario};
use steadfast_drill::subject::{
    Answer, DatabaseFault, Facts, Failure, SetUpError, Source, Subject,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

struct Null;

impl Subject for Null {
    fn warm(&self, _keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        ready(Ok(())).boxed()
    }
    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        let answer = Answer {
            source: Source::Memory,
            version: 0,
            age: Duration::ZERO,
            stale: false,
        };
        ready(Ok(black_box((key, answer)).1)).boxed()
    }
    fn write(&self, _key: u64, _version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        ready(Ok(())).boxed()
    }
    fn database_fault(&self, _fault: DatabaseFault) {}
    fn facts(&self) -> Facts {
        Facts::default()
    }
    fn shutdown(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

fn scenario() -> Scenario {
    let text = "name = 'null'\nphases = { baseline = '60s', fault = '0s', recovery = '0s', recovered = '60s' }\n";
    let mut scenario = Scenario::parse(text).expect("the text above is one");
    scenario.load.in_flight = 1 << 16;
    scenario.load.writes = 0.0;
    scenario
}

fn load(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut group = criterion.benchmark_group("load");
    group.throughput(Throughput::Elements(1));
    let arrivals = [
        // Calls are due faster than they can be started, so the generator never waits.
        ("open_loop", Arrivals::Open { rate: 1e9 }),
        (
            "closed_loop_64",
            Arrivals::Closed {
                callers: 64,
                pause: Duration::ZERO,
            },
        ),
    ];
    for (name, arrivals) in arrivals {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|calls| {
                let scenario = scenario();
                let mut load = scenario.load.clone();
                (load.arrivals, load.calls) = (arrivals, Some(calls));
                runtime.block_on(async {
                    let start = Instant::now();
                    let lane = Arc::new(Lane::new(
                        Arc::new(Null),
                        start,
                        scenario.phases,
                        Duration::ZERO,
                    ));
                    drive(
                        lane.clone(),
                        load,
                        Duration::ZERO,
                        1,
                        CancellationToken::new(),
                    )
                    .await;
                    let took = start.elapsed();
                    let skipped: u64 = lane.record(|record| {
                        Phase::ALL
                            .map(|phase| record.counts(phase).skipped)
                            .iter()
                            .sum()
                    });
                    assert_eq!(skipped, 0, "arrivals were skipped");
                    took
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, load);
criterion_main!(benches);
