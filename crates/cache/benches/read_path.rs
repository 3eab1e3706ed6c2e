//! What a hit costs, beside the map underneath it; and what the format in Redis costs.
//!
//! `cargo bench -p steadfast-cache`. The figures to compare are those of one run on one machine.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cached::Cached;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use steadfast_cache::{Cache, Database, DatabaseOptions, LoadError, Ttl, View};

const KEYS: usize = 10_000;

fn keys() -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut keys: Vec<_> = (0..KEYS).map(|n| format!("user:{n}")).collect();
    rng.shuffle(&mut keys);
    keys
}

/// A view that holds all the keys, each with one tag or none.
fn filled(tag: Option<&str>) -> (tokio::runtime::Runtime, View<Bytes>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let view = runtime.block_on(async {
        let database = Database::connect("sqlite::memory:", DatabaseOptions::default()).unwrap();
        let ttl = Ttl {
            fresh: Duration::from_secs(86_400),
            ..Ttl::default()
        };
        let cache = Cache::builder(database)
            .class("session", ttl)
            .class("user", ttl)
            .build()
            .await
            .unwrap();
        let view = cache.view_of_bytes("user").unwrap().prefix("");
        for key in keys() {
            let value = || async { Ok(Some(Bytes::from_static(&[b'x'; 64]))) };
            let read = view.read(&key).tags(tag.as_slice());
            read.get(value).await.unwrap();
        }
        view
    });
    (runtime, view)
}

async fn never() -> Result<Option<Bytes>, LoadError> {
    unreachable!("everything is in memory")
}

/// Runs the same on so many threads, and answers the time of the slowest. Each begins with another
/// key: in step they would fight for the same entries, which is not what a service does.
fn on_threads(
    threads: usize,
    rounds: u64,
    work: impl Fn(std::ops::Range<usize>) + Sync,
) -> Duration {
    let (barrier, work) = (&Barrier::new(threads), &work);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|n| {
                let from = n * KEYS / threads;
                scope.spawn(move || {
                    barrier.wait();
                    let began = now();
                    work(from..from + rounds as usize);
                    now() - began
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .max()
            .unwrap()
    })
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
fn now() -> Instant {
    Instant::now()
}

fn hits(c: &mut Criterion) {
    let (_runtime, view) = filled(None);
    let (_other_runtime, tagged) = filled(Some("users"));
    let keys = keys();
    let bare: moka::sync::Cache<String, Bytes> = moka::sync::Cache::new(1_000_000);
    for key in &keys {
        bare.insert(key.clone(), Bytes::from_static(&[b'x'; 64]));
    }
    // What `#[cached]` keeps behind a function: a map that orders by use, so that a hit writes,
    // under one lock.
    let mut lru = cached::LruCache::new(1_000_000);
    for key in &keys {
        lru.cache_set(key.clone(), Bytes::from_static(&[b'x'; 64]));
    }
    let lru = parking_lot::Mutex::new(lru);
    let mut group = c.benchmark_group("memory_hit");
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new("steadfast", threads), |b| {
            b.iter_custom(|rounds| {
                on_threads(threads, rounds, |rounds| {
                    for n in rounds {
                        let answer = view.get(&keys[n % KEYS], never).now_or_never();
                        black_box(answer.unwrap().unwrap());
                    }
                })
            });
        });
        group.bench_function(BenchmarkId::new("steadfast_with_a_tag", threads), |b| {
            b.iter_custom(|rounds| {
                on_threads(threads, rounds, |rounds| {
                    for n in rounds {
                        let read = tagged.read(&keys[n % KEYS]).tag("users");
                        let answer = read.get(never).now_or_never();
                        black_box(answer.unwrap().unwrap());
                    }
                })
            });
        });
        group.bench_function(BenchmarkId::new("cached_lru", threads), |b| {
            b.iter_custom(|rounds| {
                on_threads(threads, rounds, |rounds| {
                    for n in rounds {
                        black_box(lru.lock().cache_get(&keys[n % KEYS]).cloned().unwrap());
                    }
                })
            });
        });
        group.bench_function(BenchmarkId::new("bare_moka", threads), |b| {
            b.iter_custom(|rounds| {
                on_threads(threads, rounds, |rounds| {
                    for n in rounds {
                        black_box(bare.get(&keys[n % KEYS]).unwrap());
                    }
                })
            });
        });
    }
    group.finish();
}

fn format(c: &mut Criterion) {
    let rows: String = (0..40)
        .map(|n| {
            format!(
                "{{\"id\":{n},\"name\":\"Ada Lovelace {n}\",\"email\":\"ada{n}@example.com\"}},"
            )
        })
        .collect();
    let mut group = c.benchmark_group("format");
    for (name, length, compress_above) in [
        ("64_bytes", 64, usize::MAX),
        ("2_KiB", 2048, usize::MAX),
        ("2_KiB_compressed", 2048, 0),
    ] {
        let payload = &rows.as_bytes()[..length];
        let sealed = steadfast_cache::measured::seal(payload, compress_above);
        group.bench_function(BenchmarkId::new("write", name), |b| {
            b.iter(|| steadfast_cache::measured::seal(black_box(payload), compress_above))
        });
        group.bench_function(BenchmarkId::new("read", name), |b| {
            b.iter(|| steadfast_cache::measured::open(black_box(&sealed)))
        });
    }
    group.bench_function("checksum_alone_2_KiB", |b| {
        b.iter(|| crc32fast::hash(black_box(&rows.as_bytes()[..2048])))
    });
    group.finish();
}

criterion_group!(benches, hits, format);
criterion_main!(benches);
