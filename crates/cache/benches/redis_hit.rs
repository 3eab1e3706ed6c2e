//! What a hit in Redis costs, beside a raw GET of the same client, in turns.
//!
//! `cargo bench -p steadfast-cache --bench redis_hit`. Each turn is that of one subject; a ratio is
//! taken between neighbours, so that it holds on a machine that is not quiet. The last column says
//! how long the machine took to fetch from memory after those turns: a hit waits for memory more
//! than a raw GET does.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "beside/memory.rs"]
mod memory;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use steadfast::Client;
use steadfast_cache::{
    Cache, Database, DatabaseOptions, GuardOptions, LoadError, Source, Ttl, View,
};
use steadfast_drill::process::Redis;

use memory::Places;

/// So many that memory, which has room for some hundred, answers next to nothing.
const KEYS: u64 = 50_000;
const CALLERS: [usize; 3] = [1, 64, 512];

/// 4 MiB of memory, and the steps that are walked in it.
const PLACES: usize = 1 << 16;
const STEPS: usize = 1 << 15;

#[derive(Clone)]
enum Subject {
    Raw(Client),
    Cache(View<Bytes>),
}

impl Subject {
    async fn read(&self, n: u64) {
        match self {
            Self::Raw(client) => {
                let value = client.send(redis::cmd("GET").arg(format!("raw:{n}"))).await;
                assert!(matches!(value.unwrap(), redis::Value::BulkString(_)));
            }
            Self::Cache(view) => {
                let answer = view.get(n, never).await.unwrap();
                assert!(answer.value.is_some() && answer.source != Source::Database);
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Raw(_) => "raw GET",
            Self::Cache(_) => "a hit in Redis",
        }
    }
}

async fn never() -> Result<Option<Bytes>, LoadError> {
    unreachable!("everything is in Redis")
}

/// What was seen in one turn.
struct Turn {
    /// Calls a second.
    rate: f64,
    /// Microseconds of this process's time for each.
    cost: f64,
    /// Nanoseconds for which a place in memory was waited for, afterwards.
    place: f64,
}

async fn turn(subject: &Subject, callers: usize, length: Duration, places: &Places) -> Turn {
    let (stop, calls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (began, spent) = (tokio::time::Instant::now(), processor_time());
    let tasks = (0..callers as u64).map(|caller| {
        let (subject, stop, calls) = (subject.clone(), stop.clone(), calls.clone());
        tokio::spawn(async move {
            let (mut rng, mut own) = (fastrand::Rng::with_seed(caller), 0);
            while !stop.load(Ordering::Relaxed) {
                subject.read(rng.u64(..KEYS)).await;
                own += 1;
            }
            calls.fetch_add(own, Ordering::Relaxed);
        })
    });
    let tasks: Vec<_> = tasks.collect();
    tokio::time::sleep(length).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let (took, spent) = (began.elapsed(), processor_time() - spent);
    let calls = calls.load(Ordering::Relaxed) as f64;
    let began = tokio::time::Instant::now();
    black_box(places.walk(0, STEPS));
    Turn {
        rate: calls / took.as_secs_f64(),
        cost: spent.as_secs_f64() * 1e6 / calls,
        place: began.elapsed().as_secs_f64() * 1e9 / STEPS as f64,
    }
}

/// What the threads of this process have spent, counted by the kernel in nanoseconds.
fn processor_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let spent = threads.filter_map(|thread| {
        let stat = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn subjects(redis: &Redis) -> [Subject; 2] {
    let client = Client::builder(&redis.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let database = Database::connect("sqlite::memory:", DatabaseOptions::default()).unwrap();
    let ttl = Ttl {
        fresh: Duration::from_secs(86_400),
        // Readers look at Redis themselves only if that leaves half of this to a load.
        hard_limit: Duration::from_secs(60),
        ..Ttl::default()
    };
    let cache = Cache::builder(database)
        .redis(client.clone())
        // However busy the machine is, it is Redis that answers.
        .redis_limit(Duration::from_secs(4))
        .class("user", ttl)
        .guard(GuardOptions::new(16, 1e6))
        .memory_bytes(64 << 10)
        .value_max(4 << 10)
        .build()
        .await
        .unwrap();
    let view = cache.view_of_bytes("user").unwrap();
    let value = Bytes::from_static(&[b'x'; 64]);
    let load = || async { Ok((0..KEYS).map(|n| (n, value.clone())).collect::<Vec<_>>()) };
    while view.warm(load).await.unwrap().redis < KEYS as usize {}
    for n in 0..KEYS {
        let mut set = redis::cmd("SET");
        client
            .send(set.arg(format!("raw:{n}")).arg(&*value))
            .await
            .unwrap();
    }
    [Subject::Raw(client), Subject::Cache(view)]
}

async fn compare(repeats: usize, length: Duration) {
    let redis = Redis::start().await.unwrap();
    let subjects = subjects(&redis).await;
    let places = Places::new(PLACES);
    println!(
        "| callers | | calls a second | processor time for each | beside a raw GET | \
         a place in memory |\n|---:|---|---:|---:|---:|---:|"
    );
    for callers in CALLERS {
        let mut turns = [const { Vec::new() }; 2];
        for _ in 0..repeats {
            for (subject, turns) in subjects.iter().zip(&mut turns) {
                turns.push(turn(subject, callers, length, &places).await);
            }
        }
        for (subject, own) in subjects.iter().zip(&turns) {
            let ratios = own
                .iter()
                .zip(&turns[0])
                .map(|(own, raw)| own.cost / raw.cost);
            println!(
                "| {callers} | {} | {:.0} | {:.2} µs | {:.2} | {:.0} ns |",
                subject.name(),
                median(own.iter().map(|turn| turn.rate).collect()),
                median(own.iter().map(|turn| turn.cost).collect()),
                median(ratios.collect()),
                median(own.iter().map(|turn| turn.place).collect()),
            );
        }
    }
    if let Subject::Cache(view) = &subjects[1] {
        let counts = view.cache().status().counts;
        println!(
            "\n{} of the cache's answers came from memory, {} from Redis.",
            counts.memory, counts.redis
        );
    }
    redis.stop().await;
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    // As a test it is only run.
    let (repeats, length) = if std::env::args().any(|argument| argument == "--bench") {
        (7, Duration::from_millis(400))
    } else {
        (1, Duration::from_millis(20))
    };
    runtime.block_on(compare(repeats, length));
}
