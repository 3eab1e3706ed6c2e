//! What a hit costs, beside the map underneath it; and what the format in Redis costs.
//!
//! `cargo bench -p steadfast-cache`. The figures to compare are those of one run on one machine.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "beside/memory.rs"]
mod memory;

use std::cell::Cell;
use std::hash::BuildHasher;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cached::Cached;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use steadfast_cache::{Cache, Database, DatabaseOptions, LoadError, Ttl, View};

use memory::Places;

/// So many that a hit waits for memory, and so few that it does not.
const MANY: usize = 10_000;
const FEW: usize = 100;

/// Lines of the processor's cache that a stored value takes, about: its entry and its slot.
const LINES: usize = 4;

const STORED: u64 = 1;
const READ: u64 = 2;

/// The keys in an order of their own. They are stored in another than that in which they are read,
/// or what is read next would lie next in memory too, as it does in no service.
fn keys(count: usize, order: u64) -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(order);
    let mut keys: Vec<_> = (0..count).map(|n| format!("user:{n}")).collect();
    rng.shuffle(&mut keys);
    keys
}

/// A value of one's own type, of which the cache does not know what a clone of it runs.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct User {
    number: u64,
    since: u64,
}

/// A view that holds the value under so many keys, each with one tag or none.
fn filled<V: Clone + Send + Sync + 'static>(
    count: usize,
    value: V,
    tag: Option<&str>,
    view_of: impl FnOnce(&Cache) -> View<V>,
) -> (tokio::runtime::Runtime, View<V>) {
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
        let view = view_of(&cache).prefix("");
        for key in keys(count, STORED) {
            let value = value.clone();
            let read = view.read(&key).tags(tag.as_slice());
            read.get(|| async { Ok(Some(value)) }).await.unwrap();
        }
        view
    });
    (runtime, view)
}

thread_local! {
    /// The place in memory that this thread has come to.
    static HERE: Cell<u32> = const { Cell::new(0) };
}

async fn never<V>() -> Result<Option<V>, LoadError> {
    unreachable!("everything is in memory")
}

/// Runs the same on so many threads, and answers the time of the slowest. Each begins with another
/// key: in step they would fight for the same entries, which is not what a service does.
fn on_threads(
    threads: usize,
    (keys, rounds): (usize, u64),
    work: impl Fn(std::ops::Range<usize>) + Sync,
) -> Duration {
    let (barrier, work) = (&Barrier::new(threads), &work);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|n| {
                let from = n * keys / threads;
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

/// Measures one subject on so many threads, which is given each key in turn.
fn row(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    threads: usize,
    keys: &[String],
    hit: impl Fn(&String) + Sync,
) {
    group.bench_function(BenchmarkId::new(name, threads), |b| {
        b.iter_custom(|rounds| {
            on_threads(threads, (keys.len(), rounds), |rounds| {
                rounds.for_each(|n| hit(&keys[n % keys.len()]));
            })
        });
    });
}

fn hits(c: &mut Criterion) {
    hits_among(c, "memory_hit", MANY);
    hits_among(c, "memory_hit_among_few", FEW);
}

fn hits_among(c: &mut Criterion, name: &str, count: usize) {
    let bytes = Bytes::from_static(&[b'x'; 64]);
    let of_bytes = |cache: &Cache| cache.view_of_bytes("user").unwrap();
    let (_runtime, view) = filled(count, bytes.clone(), None, of_bytes);
    let (_runtime, tagged) = filled(count, bytes.clone(), Some("users"), of_bytes);
    let user = User {
        number: 7,
        since: 1843,
    };
    let (_runtime, own) = filled(count, user, None, |cache| cache.view("user").unwrap());
    let bare: moka::sync::Cache<String, Bytes> = moka::sync::Cache::new(1_000_000);
    // What `#[cached]` keeps behind a function: a map that orders by use, so that a hit writes,
    // under one lock.
    let mut lru = cached::LruCache::new(1_000_000);
    let quick = quick_cache::sync::Cache::<String, Bytes>::new(1_000_000);
    for key in keys(count, STORED) {
        bare.insert(key.clone(), bytes.clone());
        lru.cache_set(key.clone(), bytes.clone());
        quick.insert(key, bytes.clone());
    }
    let keys = keys(count, READ);
    let lru = parking_lot::Mutex::new(lru);
    let places = Places::new(count * LINES);
    let hasher = foldhash::quality::RandomState::default();
    let mut group = c.benchmark_group(name);
    for threads in [1, 2] {
        row(&mut group, "steadfast", threads, &keys, |key| {
            let answer = view.get(key, never).now_or_never();
            black_box(answer.unwrap().unwrap());
        });
        row(&mut group, "steadfast_with_a_tag", threads, &keys, |key| {
            let answer = tagged.read(key).tag("users").get(never).now_or_never();
            black_box(answer.unwrap().unwrap());
        });
        row(
            &mut group,
            "steadfast_with_a_type_of_ones_own",
            threads,
            &keys,
            |key| {
                let answer = own.get(key, never).now_or_never();
                black_box(answer.unwrap().unwrap());
            },
        );
        row(&mut group, "cached_lru", threads, &keys, |key| {
            black_box(lru.lock().cache_get(key).cloned().unwrap());
        });
        row(&mut group, "bare_moka", threads, &keys, |key| {
            black_box(bare.get(key).unwrap());
        });
        row(&mut group, "bare_quick_cache", threads, &keys, |key| {
            black_box(quick.get(key).unwrap());
        });
        // What is in all the others: the next key is fetched and hashed.
        row(&mut group, "the_key_alone", threads, &keys, |key| {
            black_box(hasher.hash_one(key.as_bytes()));
        });
        // As many places as there are entries, one after the other.
        row(&mut group, "a_place_in_memory", threads, &keys, |_| {
            HERE.with(|here| here.set(places.walk(here.get(), 1)));
        });
        row(&mut group, "the_clock_alone", threads, &keys, |_| {
            black_box(now());
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
