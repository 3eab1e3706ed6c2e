//! What a refused call costs: in an outage it is given to everybody, for as long as the outage
//! lasts.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unused_results
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use steadfast::{BreakerMode, Client, ConnectionState};
use steadfast_drill::process::Redis;
use tokio::runtime::Runtime;

criterion_group!(benches, refused);
criterion_main!(benches);

fn refused(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("refused call");
    let mut get = redis::cmd("GET");
    get.arg("key");
    let calls = |client: &Client, times: u64| {
        let (client, get) = (client.clone(), get.clone());
        runtime.block_on(async move {
            let began = Instant::now();
            for _ in 0..times {
                black_box(client.send(black_box(&get)).await.unwrap_err());
            }
            began.elapsed()
        })
    };

    let redis = runtime.block_on(Redis::start()).unwrap();
    let client = runtime
        .block_on(Client::builder(&redis.url()).unwrap().connect())
        .unwrap();
    client.set_breaker_mode(BreakerMode::ForcedOpen);
    group.bench_function("breaker open", |b| {
        b.iter_custom(|times| calls(&client, times));
    });

    client.set_breaker_mode(BreakerMode::Disabled);
    runtime.block_on(async {
        redis.kill().await;
        while client.state() != ConnectionState::Down {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    group.bench_function("server down", |b| {
        b.iter_custom(|times| calls(&client, times));
    });
}
