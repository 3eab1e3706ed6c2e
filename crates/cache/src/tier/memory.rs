//! The tier in this process's memory.
//!
//! A hit must cost no more than a look-up: no lock that all keys share, no decoding, nothing allocated. So values are
//! kept decoded, and everything that decides whether one may be served is in the entry or in an atomic. The map is cut into shards, in which a
//! hit takes a lock for reading and writes one byte; `docs/design/speed-of-the-cache.md` says why this map.
//!
//! An entry becomes visible in two steps. It is put into the map unpublished, then the counters are looked at, and only if
//! no invalidation has come is it published. An invalidation first moves the counters, then removes. So whichever comes second sees the other:
//! either the counters have moved and the entry is never published, or the entry is in the map and is removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quick_cache::sync::{Cache as Map, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::freshness::{Freshness, Lifetime};
use crate::generation::{Generations, Snapshot, TagStripes};

use super::Key;

pub(crate) struct Memory<V> {
    map: Map<Key, Arc<Entry<V>>, Weigh, foldhash::quality::RandomState>,
}

/// Bytes of an entry with its key.
#[derive(Clone)]
struct Weigh;

impl<V> Weighter<Key, Arc<Entry<V>>> for Weigh {
    fn weight(&self, key: &Key, entry: &Arc<Entry<V>>) -> u64 {
        u64::from(entry.weight) + key.len() as u64
    }
}

#[derive(Debug)]
pub(crate) struct Entry<V> {
    pub(crate) value: Option<V>,
    pub(crate) loaded_at: Instant,
    pub(crate) life: Lifetime,
    /// How long the load took.
    pub(crate) cost: Duration,
    era: u64,
    tags: TagStripes,
    weight: u32,
    published: AtomicBool,
    /// Answers given from here: what is hot is refreshed first.
    hits: AtomicU32,
}

impl<V> Entry<V> {
    pub(crate) fn new(
        value: Option<V>,
        loaded_at: Instant,
        life: Lifetime,
        cost: Duration,
        snapshot: &Snapshot,
        bytes: usize,
    ) -> Self {
        Self {
            value,
            loaded_at,
            life,
            cost,
            era: snapshot.era,
            tags: snapshot.tags.clone(),
            weight: u32::try_from(bytes + OVERHEAD).unwrap_or(u32::MAX),
            published: AtomicBool::new(false),
            hits: AtomicU32::new(0),
        }
    }

    #[inline]
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.loaded_at)
    }

    pub(crate) fn era(&self) -> u64 {
        self.era
    }

    pub(crate) fn freshness(&self, now: Instant) -> Freshness {
        self.life.judge(self.age(now))
    }

    pub(crate) fn count_hit(&self) {
        self.hits.store(
            self.hits.load(Ordering::Relaxed).saturating_add(1),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn heat(&self) -> u32 {
        self.hits.load(Ordering::Relaxed)
    }
}

impl<V: Clone + Send + Sync + 'static> Memory<V> {
    /// `value_max` is the longest value that has to find room: a shard must hold several of that length.
    pub(crate) fn new(bytes: u64, value_max: usize) -> Self {
        let longest = (value_max + OVERHEAD) as u64;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        // The map rounds up to a power of two, so this must be one already.
        let shards = (bytes / (longest * 4)).clamp(1, (cores * 4).next_power_of_two());
        let shards = 1 << shards.ilog2();
        let options = OptionsBuilder::new()
            .weight_capacity(bytes)
            .estimated_items_capacity((bytes / TYPICAL).clamp(64, 1 << 24) as usize)
            .shards(shards)
            .build()
            .expect("both of the settings that it asks for are given");
        let hasher = foldhash::quality::RandomState::default();
        Self {
            map: Map::with_options(options, Weigh, hasher, DefaultLifecycle::default()),
        }
    }

    /// What is there, unless it has been invalidated or does not carry a tag that the reader names. Freshness is the caller's to judge.
    pub(crate) fn get<T: AsRef<[u8]>>(
        &self,
        key: &[u8],
        tags: &[T],
        generations: &Generations,
    ) -> Option<Arc<Entry<V>>> {
        let entry = self.map.get(key)?;
        let valid = entry.published.load(Ordering::SeqCst)
            && generations.tags_are_current(&entry.tags)
            && generations.cover(&entry.tags, tags);
        valid.then_some(entry)
    }

    /// Stores, if nothing was invalidated since the snapshot. Says whether it did.
    pub(crate) fn insert(
        &self,
        key: &Key,
        entry: &Arc<Entry<V>>,
        snapshot: &Snapshot,
        generations: &Generations,
    ) -> bool {
        if !generations.is_current(snapshot) {
            return false;
        }
        if let Some(previous) = self.map.peek(&**key) {
            entry.hits.store(previous.heat() / 2, Ordering::Relaxed);
        }
        self.map.insert(key.clone(), entry.clone());
        let current = generations.is_current(snapshot);
        if current {
            entry.published.store(true, Ordering::SeqCst);
        } else {
            self.map
                .remove_if(&**key, |there| Arc::ptr_eq(there, entry));
        }
        current
    }

    pub(crate) fn remove(&self, key: &[u8]) {
        self.map.remove(key);
    }

    pub(crate) fn clear(&self) {
        self.map.clear();
    }

    /// Bytes held, keys and an estimate of the overhead included.
    pub(crate) fn bytes(&self) -> u64 {
        self.map.weight()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.map.len() as u64
    }
}

/// What the map and the entry take beside key and value, roughly.
const OVERHEAD: usize = 200;

/// What an entry may weigh; only sizes the map's own books.
const TYPICAL: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &[&str] = &[];

    fn entry(generations: &Generations, key: &[u8], value: u32) -> (Arc<Entry<u32>>, Snapshot) {
        let snapshot = generations.snapshot(key, &["tag"]);
        let now = tokio::time::Instant::now().into_std();
        let life = Lifetime {
            fresh: Duration::from_secs(1),
            keep: Duration::from_secs(2),
        };
        (
            Arc::new(Entry::new(
                Some(value),
                now,
                life,
                Duration::ZERO,
                &snapshot,
                4,
            )),
            snapshot,
        )
    }

    #[test]
    fn k6_a_value_loaded_before_an_invalidation_does_not_enter() {
        let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
        let key: Key = Arc::from(b"k".as_slice());
        let (value, snapshot) = entry(&generations, &key, 1);
        generations.bump_key(&key);
        assert!(!memory.insert(&key, &value, &snapshot, &generations));
        assert!(memory.get(&key, NONE, &generations).is_none());
    }

    #[test]
    fn k11_a_tag_takes_its_entries_out() {
        let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
        let key: Key = Arc::from(b"k".as_slice());
        let (value, snapshot) = entry(&generations, &key, 1);
        assert!(memory.insert(&key, &value, &snapshot, &generations));
        assert!(memory.get(&key, NONE, &generations).is_some());
        generations.bump_tag(b"tag");
        assert!(memory.get(&key, NONE, &generations).is_none());
    }

    #[test]
    fn k11_a_reader_who_names_a_tag_gets_only_what_carries_it() {
        let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
        let key: Key = Arc::from(b"k".as_slice());
        let (value, snapshot) = entry(&generations, &key, 1);
        assert!(memory.insert(&key, &value, &snapshot, &generations));
        assert!(memory.get(&key, &["tag"], &generations).is_some());
        assert!(memory.get(&key, NONE, &generations).is_some());
        assert!(memory.get(&key, &["tag", "other"], &generations).is_none());
    }

    #[test]
    fn k10_the_longest_value_finds_room_on_any_number_of_cores() {
        for (bytes, value_max) in [(64 << 20, 1 << 20), (1 << 20, 200_000), (4000, 1000)] {
            let (memory, generations) = (Memory::new(bytes, value_max), Generations::new());
            let key: Key = Arc::from(b"k".as_slice());
            let snapshot = generations.snapshot(&key, NONE);
            let now = tokio::time::Instant::now().into_std();
            let life = Lifetime {
                fresh: Duration::from_secs(1),
                keep: Duration::from_secs(2),
            };
            let longest = Entry::new(Some(1u32), now, life, Duration::ZERO, &snapshot, value_max);
            memory.insert(&key, &Arc::new(longest), &snapshot, &generations);
            assert!(memory.get(&key, NONE, &generations).is_some(), "{bytes}");
        }
    }

    #[test]
    fn k10_memory_is_bounded_in_bytes() {
        let (memory, generations) = (Memory::new(100_000, 1000), Generations::new());
        for n in 0..10_000u32 {
            let key: Key = Arc::from(n.to_le_bytes().as_slice());
            let (value, snapshot) = entry(&generations, &key, n);
            memory.insert(&key, &value, &snapshot, &generations);
        }
        assert!(memory.bytes() <= 100_000, "{}", memory.bytes());
        assert!(memory.entries() > 100);
    }

    /// Writers invalidate and raise the truth; loaders read it and try to store what they read. A reader that looks after an
    /// invalidation has returned must never find anything older.
    #[test]
    fn k6_no_interleaving_shows_an_overtaken_value() {
        use std::sync::atomic::AtomicU32;
        let memory = Arc::new(Memory::new(1 << 20, 1000));
        let generations = Arc::new(Generations::new());
        let (truth, floor) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let key: Key = Arc::from(b"k".as_slice());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let snapshot = generations.snapshot(&key, NONE);
                        let read = truth.load(Ordering::SeqCst);
                        let now = tokio::time::Instant::now().into_std();
                        let life = Lifetime {
                            fresh: Duration::from_secs(9),
                            keep: Duration::from_secs(9),
                        };
                        let entry = Arc::new(Entry::new(
                            Some(read),
                            now,
                            life,
                            Duration::ZERO,
                            &snapshot,
                            4,
                        ));
                        memory.insert(&key, &entry, &snapshot, &generations);
                        let least = floor.load(Ordering::SeqCst);
                        if let Some(found) = memory.get(&key, NONE, &generations) {
                            assert!(found.value.unwrap() >= least);
                        }
                    }
                });
            }
            scope.spawn(|| {
                for n in 1..20_000 {
                    truth.store(n, Ordering::SeqCst);
                    generations.bump_key(&key);
                    memory.remove(&key);
                    floor.store(n, Ordering::SeqCst);
                }
            });
        });
    }
}
