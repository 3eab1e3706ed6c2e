//! A busy service whose Redis goes away for ten seconds; for thirty, if `STEADFAST_SOAK_SECONDS`
//! asks for long runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use steadfast_cache::{Answer, Cache, CacheError, GuardOptions, Source, Ttl};
use tokio::time::Instant;

use crate::site::{Site, text};

const KEYS: usize = 50_000;
const READS_A_SECOND: u64 = 1000;
const BUDGET: f64 = 200.0;
/// Until memory is no longer taken as fresh, and some.
const NOTICING: Duration = Duration::from_millis(1500);

/// What happened in one part of the test.
#[derive(Default)]
struct Tally {
    fresh_hits: AtomicU64,
    oldest_hit_us: AtomicU64,
    stale: AtomicU64,
    loaded: AtomicU64,
    refused_cold: AtomicU64,
    other: Mutex<Vec<String>>,
}

impl Tally {
    fn count(&self, cold: bool, outcome: Result<Answer<String>, CacheError>) {
        match outcome {
            Ok(answer) if answer.stale.is_some() => &self.stale,
            Ok(answer) if answer.source == Source::Database => &self.loaded,
            Ok(answer) => {
                self.oldest_hit_us
                    .fetch_max(answer.age.as_micros() as u64, Ordering::SeqCst);
                &self.fresh_hits
            }
            Err(CacheError::Overloaded { .. }) if cold => &self.refused_cold,
            Err(error) => return self.other.lock().push(error.to_string()),
        }
        .fetch_add(1, Ordering::SeqCst);
    }

    fn numbers(&self) -> [u64; 4] {
        [
            &self.fresh_hits,
            &self.stale,
            &self.loaded,
            &self.refused_cold,
        ]
        .map(|count| count.load(Ordering::SeqCst))
    }
}

struct Load {
    cache: Cache,
    /// How likely a key is to be one of the first so many.
    zipf: Vec<f64>,
    rng: fastrand::Rng,
    loads: Arc<Mutex<Vec<Instant>>>,
    cold: u64,
}

impl Load {
    /// Reads at a steady rate, whether or not answers come, one in a hundred of a key that nobody
    /// has seen.
    async fn run(&mut self, span: Duration) -> Arc<Tally> {
        let tally = Arc::new(Tally::default());
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let end = Instant::now() + span;
        let mut reads = tokio::task::JoinSet::new();
        while Instant::now() < end {
            ticks.tick().await;
            for _ in 0..READS_A_SECOND / 100 {
                let draw = self.rng.f64();
                let cold = self.rng.u8(..100) == 0;
                let key = if cold {
                    KEYS + self.cold as usize
                } else {
                    self.zipf.partition_point(|sum| *sum < draw)
                };
                self.cold += u64::from(cold);
                let (cache, tally, loads) = (self.cache.clone(), tally.clone(), self.loads.clone());
                reads.spawn(async move {
                    let load = move || async move {
                        loads.lock().push(Instant::now());
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        Ok(Some(key.to_string()))
                    };
                    let outcome = text(&cache, "user").get(format!("item:{key}"), load).await;
                    if let Ok(answer) = &outcome {
                        assert_eq!(answer.value.as_deref(), Some(key.to_string().as_str()));
                    }
                    tally.count(cold, outcome);
                });
            }
        }
        while let Some(read) = reads.join_next().await {
            read.unwrap();
        }
        tally
    }
}

fn zipf() -> Vec<f64> {
    let total: f64 = (1..=KEYS).map(|rank| 1.0 / rank as f64).sum();
    let mut sum = 0.0;
    (1..=KEYS)
        .map(|rank| {
            sum += 1.0 / rank as f64 / total;
            sum
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k9_an_outage_of_redis_fails_no_warm_read_and_keeps_to_the_budget() {
    let site = Site::start().await;
    let ttl = Ttl {
        fresh: Duration::from_secs(600),
        early_refresh: 0.0,
        ..Ttl::default()
    };
    let cache = Cache::builder(site.database.clone())
        .redis(site.client().await)
        .namespace("outage")
        .class("user", ttl)
        .guard(GuardOptions::new(16, BUDGET))
        .build()
        .await
        .unwrap();
    let all = || async {
        Ok((0..KEYS)
            .map(|key| (format!("item:{key}"), key.to_string()))
            .collect::<Vec<_>>())
    };
    assert_eq!(text(&cache, "user").warm(all).await.unwrap().memory, KEYS);

    let loads = Arc::new(Mutex::new(Vec::new()));
    let mut load = Load {
        cache: cache.clone(),
        zipf: zipf(),
        rng: fastrand::Rng::with_seed(50),
        loads: loads.clone(),
        cold: 0,
    };
    let before = load.run(Duration::from_secs(1)).await;
    site.redis.kill().await;
    let noticing = load.run(NOTICING).await;
    let long = std::env::var_os("STEADFAST_SOAK_SECONDS").is_some();
    let outage = Duration::from_secs(if long { 30 } else { 10 });
    let during = load.run(outage - NOTICING).await;
    site.redis.restart().await.unwrap();
    let recovering = load.run(Duration::from_secs(5)).await;
    let after = load.run(Duration::from_secs(2)).await;

    let phases = [&before, &noticing, &during, &recovering, &after];
    for (name, phase) in ["before", "noticing", "during", "recovering", "after"]
        .iter()
        .zip(phases)
    {
        let [hits, stale, loaded, refused] = phase.numbers();
        println!(
            "{name}: {hits} hits, {stale} stale, {loaded} loaded, {refused} cold reads refused"
        );
        assert!(
            phase.other.lock().is_empty(),
            "{name}: {:?}",
            phase.other.lock()
        );
    }
    let [hits, stale, loaded, _] = during.numbers();
    let oldest = Duration::from_micros(during.oldest_hit_us.load(Ordering::SeqCst));
    assert!(
        oldest <= Duration::from_secs(1),
        "memory of {oldest:?} was taken as fresh although nothing could be heard"
    );
    assert!(stale > 0 && loaded > 0 && hits > 0);
    let [hits, stale, loaded, refused] = after.numbers();
    assert!(
        hits * 10 > (hits + stale + loaded + refused) * 8,
        "the hit rate did not come back: {hits} hits, {stale} stale, {loaded} loaded"
    );

    // In no second more loads than the rate and its burst.
    let loads = loads.lock();
    let most = (0..loads.len())
        .map(|from| loads[from..].partition_point(|at| *at < loads[from] + Duration::from_secs(1)))
        .max()
        .unwrap_or(0);
    println!("{} loads, at most {most} in a second", loads.len());
    assert!(
        most as f64 <= BUDGET * 1.1 + 20.0,
        "{most} loads in a second"
    );
}
