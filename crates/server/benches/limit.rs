//! What a rate limit costs a request, above the round trip to Redis that counting for the fleet takes: the same request without
//! a limit, with one counted in this process alone, and with one counted for the fleet; and that round trip alone. The price is
//! "counted for the fleet" less "no limit" less "round trip".
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    unused_results
)]

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use criterion::{Criterion, criterion_group, criterion_main};
use steadfast_drill::process::Redis;
use steadfast_server::config::Sources;
use steadfast_server::{App, Config, Peer, router};
use tokio::runtime::Runtime;
use tower::ServiceExt;

criterion_group!(benches, limit);
criterion_main!(benches);

const LIMIT: &str = "[limits.rate.each]\nrequests = 1000000\nburst = 1000000\n";

fn limit(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let redis = runtime.block_on(Redis::start()).unwrap();
    let nowhere = "redis://127.0.0.1:1".to_owned();
    let app = |name: &str, url: &str, limit: &str| {
        let database = format!("sqlite://{}", folder.path().join(name).display());
        let sources = Sources::new()
            .text("bench", limit)
            .flag("bench", "redis.url", url)
            .flag("bench", "database.url", database);
        let config = Config::load(&sources).unwrap();
        runtime.block_on(async { App::start(config).await.unwrap() })
    };
    let mut group = c.benchmark_group("rate limit");
    for (name, url, limit) in [
        ("no limit", redis.url(), ""),
        ("counted in this process", nowhere, LIMIT),
        ("counted for the fleet", redis.url(), LIMIT),
    ] {
        let app = app(name, &url, limit);
        if url == redis.url() {
            runtime.block_on(async {
                while app.client().available().is_none() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        group.bench_function(name, |b| {
            b.iter_custom(|times| runtime.block_on(requests(&app, times)));
        });
        runtime.block_on(app.close());
    }
    let client = runtime.block_on(async {
        steadfast::Client::builder(&redis.url())
            .unwrap()
            .connect()
            .await
            .unwrap()
    });
    let mut script = redis::cmd("EVAL");
    script.arg("return {1, 1, 0, 0}").arg(1).arg("k");
    group.bench_function("round trip", |b| {
        b.iter_custom(|times| {
            runtime.block_on(async {
                let began = Instant::now();
                for _ in 0..times {
                    client.send(&script).await.unwrap();
                }
                began.elapsed()
            })
        });
    });
}

async fn requests(app: &App, times: u64) -> Duration {
    let router = router(app.clone());
    let began = Instant::now();
    for _ in 0..times {
        let request = Request::get("/v1/history?limit=1")
            .header("host", "localhost")
            .extension(Peer("127.0.0.1:9".parse().unwrap()))
            .body(Body::empty())
            .unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
    }
    began.elapsed()
}
