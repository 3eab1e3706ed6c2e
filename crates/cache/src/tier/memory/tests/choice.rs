//! Which entries stay.

use cached::Cached;

use super::*;

/// What was read stays, although it is not read while a hundred times as much passes by.
#[test]
fn k10_a_scan_takes_nothing_from_what_is_read_often() {
    // By what is the longest there are few shards, on any number of cores.
    let (memory, generations) = (Memory::new(200_000, 12_000), Generations::new());
    let hot = |n: u32| format!("hot{n}").into_bytes();
    let store = |key: &[u8]| {
        let snapshot = generations.snapshot(key, NONE);
        memory.insert(&make(key, 1, &snapshot, 1000), &snapshot, &generations);
    };
    let is_there = |key: &[u8]| {
        let found = memory.get(key, NONE, &generations);
        found.inspect(|entry| entry.count_hit()).is_some()
    };
    for _ in 0..3 {
        for key in (0..50).map(hot) {
            if !is_there(&key) {
                store(&key);
            }
        }
    }
    for n in 0..10_000 {
        store(format!("cold{n}").as_bytes());
    }
    let left = (0..50).map(hot).filter(|key| is_there(key)).count();
    assert!(left > 40, "{left}");
}

/// Reads of which few keys have many, and now and then some that are read once.
fn trace(scan: u32) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut sums = vec![0.0];
    for rank in 1..20_000 {
        sums.push(sums[rank - 1] + f64::from(rank as u32).powf(-0.9));
    }
    let (mut trace, mut next) = (Vec::new(), 1_000_000);
    for n in 0..60_000 {
        let at = random.f64() * sums[sums.len() - 1];
        trace.push(sums.partition_point(|sum| *sum <= at) as u32);
        if n % 6_000 == 0 {
            trace.extend(next..next + scan);
            next += scan;
        }
    }
    trace
}

/// The share of reads that find their key, where each that does not stores it.
fn ratio(trace: &[u32], mut is_there: impl FnMut(u32) -> bool, mut store: impl FnMut(u32)) -> f64 {
    let mut found = 0;
    for &key in trace {
        match is_there(key) {
            true => found += 1,
            false => store(key),
        }
    }
    f64::from(found) / trace.len() as f64
}

#[test]
fn what_stays_is_chosen_as_well_as_others_do() {
    const ROOM: usize = 1000;
    for (scan, least_gain) in [(0, 0.02), (2000, 0.03)] {
        let trace = trace(scan);
        let weight = 1000 + 4 + OVERHEAD;
        let memory = Memory::new((ROOM * weight) as u64, 100_000);
        let generations = Generations::new();
        let ours = ratio(
            &trace,
            |key| {
                let found = memory.get(&key.to_be_bytes(), NONE, &generations);
                found.inspect(|entry| entry.count_hit()).is_some()
            },
            |key| {
                let key = key.to_be_bytes();
                let snapshot = generations.snapshot(&key, NONE);
                memory.insert(&make(&key, 1, &snapshot, 1000), &snapshot, &generations);
            },
        );
        let quick = quick_cache::sync::Cache::new(ROOM);
        let quick = ratio(
            &trace,
            |key| quick.get(&key).is_some(),
            |key| quick.insert(key, ()),
        );
        let lru = std::cell::RefCell::new(cached::LruCache::new(ROOM));
        let lru = ratio(
            &trace,
            |key| lru.borrow_mut().cache_get(&key).is_some(),
            |key| {
                lru.borrow_mut().cache_set(key, ());
            },
        );
        assert!(
            ours > quick - 0.02 && ours > lru + least_gain,
            "with scans of {scan}: {ours:.3} here, quick_cache {quick:.3}, the last used {lru:.3}"
        );
    }
}
