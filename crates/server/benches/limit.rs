//! What a rate limit costs a request, above the round trip to Redis that counting for the fleet
//! takes: the same request without a limit, with one counted in this process alone, and with one
//! counted for the fleet; and that round trip alone. The price is "counted for the fleet" less "no
//! limit" less "round trip"; nobody should have to reckon it from four lines of a log, so it is
//! written to `bench/LIMIT.md`, by an optimised build only.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    unused_results
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
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
    let taken = Taken::default();
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
            b.iter_custom(|times| taken.note(name, times, runtime.block_on(requests(&app, times))));
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
            let took = runtime.block_on(async {
                let began = Instant::now();
                for _ in 0..times {
                    client.send(&script).await.unwrap();
                }
                began.elapsed()
            });
            taken.note("round trip", times, took)
        });
    });
    group.finish();
    if let Some(report) = taken.report() {
        println!("{report}");
        let measures = std::env::args().any(|argument| argument == "--bench");
        if measures && !cfg!(debug_assertions) {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/LIMIT.md");
            std::fs::write(file, report).unwrap();
        }
    }
}

/// What was measured, by its name.
#[derive(Default)]
struct Taken(RefCell<BTreeMap<&'static str, Samples>>);

#[derive(Default)]
struct Samples {
    /// Microseconds that one call took, one figure for each sample.
    each: Vec<f64>,
    /// Calls of the last one.
    times: u64,
}

impl Taken {
    fn note(&self, name: &'static str, times: u64, took: Duration) -> Duration {
        let mut all = self.0.borrow_mut();
        let samples = all.entry(name).or_default();
        // criterion warms up with 1, 2, 4 and so on, for seconds, and begins its measurement with
        // few again: what came before is of what was cold.
        if times < samples.times {
            samples.each.clear();
        }
        samples.times = times;
        samples.each.push(took.as_secs_f64() * 1e6 / times as f64);
        took
    }

    fn median(&self, name: &str) -> Option<f64> {
        let mut each = self.0.borrow().get(name)?.each.clone();
        each.sort_by(f64::total_cmp);
        each.get(each.len() / 2).copied()
    }

    /// `None` if a filter left one of them out.
    fn report(&self) -> Option<String> {
        let (free, here) = (
            self.median("no limit")?,
            self.median("counted in this process")?,
        );
        let (fleet, trip) = (
            self.median("counted for the fleet")?,
            self.median("round trip")?,
        );
        Some(format!(
            "# What a rate limit costs\n\n\
             Written by the bench `limit`, a part of `make bench` (alone: `scripts/bench limit`); do not edit. Medians, one caller at a time, on this \
             machine, the router called without a socket and Redis beside it.\n\n\
             **A limit counted for the fleet costs {:.1} µs above its round trip to Redis; one counted in this process {:.1} µs.**\n\n\
             | a request | µs |\n|---|---:|\n| without a limit | {free:.1} |\n| counted in this process | {here:.1} |\n\
             | counted for the fleet | {fleet:.1} |\n| round trip of a script alone | {trip:.1} |\n",
            fleet - free - trip,
            here - free,
        ))
    }
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
