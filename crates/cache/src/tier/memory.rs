//! The tier in this process's memory.
//!
//! A hit must cost no more than a look-up: no lock that all keys share, no decoding, nothing
//! allocated. So values are kept decoded, each in its entry with its type erased, and everything
//! that decides whether one may be served is in the entry or in an atomic. The map is cut into
//! shards, in which a hit takes a lock for reading and writes one byte;
//! `docs/design/speed-of-the-cache.md` says why this map.
//!
//! An entry becomes visible in two steps. It is put into the map unpublished, then the counters are
//! looked at, and only if no invalidation has come is it published. An invalidation first moves the
//! counters, then removes. So whichever comes second sees the other: either the counters have moved
//! and the entry is never published, or the entry is in the map and is removed.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quick_cache::sync::{Cache as Map, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::entry::{Entry, OVERHEAD};
use super::generation::{Generations, Snapshot};

pub(crate) struct Memory {
    map: Map<UnderItsKey, Arc<Entry>, Weigh, foldhash::quality::RandomState>,
}

/// The entry once more, as its own key: what the map compares then lies where the value does, and a
/// look-up goes to one place less that is not in the processor's cache.
struct UnderItsKey(Arc<Entry>);

impl Borrow<[u8]> for UnderItsKey {
    #[inline]
    fn borrow(&self) -> &[u8] {
        &self.0.key
    }
}

impl Hash for UnderItsKey {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (*self.0.key).hash(hasher);
    }
}

impl PartialEq for UnderItsKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for UnderItsKey {}

/// Bytes of an entry with its key.
#[derive(Clone)]
struct Weigh;

impl Weighter<UnderItsKey, Arc<Entry>> for Weigh {
    fn weight(&self, _: &UnderItsKey, entry: &Arc<Entry>) -> u64 {
        u64::from(entry.weight)
    }
}

impl Memory {
    /// `value_max` is the longest value that has to find room: a shard must hold several of that
    /// length.
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

    /// Returns what is there, unless it has been invalidated or lacks a tag that the reader names.
    /// Freshness is the caller's to judge.
    pub(crate) fn get<T: AsRef<[u8]>>(
        &self,
        key: &[u8],
        tags: &[T],
        generations: &Generations,
    ) -> Option<Arc<Entry>> {
        let entry = self.map.get(key)?;
        let valid = entry.published.load(Ordering::SeqCst)
            && entry.tags_are_current(generations)
            && generations.cover(&entry.tags, tags);
        valid.then_some(entry)
    }

    /// Stores, if nothing was invalidated since the snapshot. Says whether it did.
    pub(crate) fn insert(
        &self,
        entry: &Arc<Entry>,
        snapshot: &Snapshot,
        generations: &Generations,
    ) -> bool {
        if !generations.is_current(snapshot) {
            return false;
        }
        if let Some(previous) = self.map.peek(&*entry.key) {
            entry
                .hits
                .store(previous.hit_count() / 2, Ordering::Relaxed);
        }
        self.map.insert(UnderItsKey(entry.clone()), entry.clone());
        let current = generations.is_current(snapshot);
        if current {
            entry.published.store(true, Ordering::SeqCst);
        } else {
            self.map
                .remove_if(&*entry.key, |there| Arc::ptr_eq(there, entry));
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

/// The usual weight of an entry; only sizes the map's own books.
const TYPICAL: u64 = 512;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::freshness::Life;
    use crate::monotonic::Monotonic;
    use crate::tier::entry::{Label, Times};

    const NONE: &[&str] = &[];

    fn loaded_now() -> Times {
        Times {
            loaded_at: Monotonic::now(),
            life: Life {
                fresh: Duration::from_secs(9),
                keep: Duration::from_secs(9),
                own: false,
            },
            cost: Duration::ZERO,
            early_refresh: 1.0,
        }
    }

    fn entry(generations: &Generations, key: &[u8], value: u32) -> (Arc<Entry>, Snapshot) {
        let snapshot = generations.snapshot(key, &["tag"]);
        (make(key, value, &snapshot, 4), snapshot)
    }

    fn make(key: &[u8], value: u32, snapshot: &Snapshot, bytes: usize) -> Arc<Entry> {
        let label = Label {
            view: 0,
            class: 0,
            version: 0,
        };
        let governed = (snapshot, Arc::from([]));
        Entry::new(key, Some(value), loaded_now(), governed, label, bytes)
    }

    fn number(entry: &Entry) -> u32 {
        entry.value::<u32>().unwrap().unwrap()
    }

    #[test]
    fn k6_a_value_loaded_before_an_invalidation_does_not_enter() {
        let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
        let key = b"k".as_slice();
        let (value, snapshot) = entry(&generations, key, 1);
        generations.bump_key(key);
        assert!(!memory.insert(&value, &snapshot, &generations));
        assert!(memory.get(key, NONE, &generations).is_none());
    }

    #[test]
    fn a_key_is_found_by_its_bytes_however_long_it_is() {
        let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
        let keys: Vec<_> = (0..100).map(|length| vec![b'x'; length]).collect();
        for key in &keys {
            let (value, snapshot) = entry(&generations, key, key.len() as u32);
            assert!(memory.insert(&value, &snapshot, &generations));
        }
        for key in &keys {
            let found = memory.get(key, NONE, &generations).unwrap();
            assert_eq!(number(&found), key.len() as u32);
            memory.remove(key);
            assert!(memory.get(key, NONE, &generations).is_none());
        }
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn a_value_that_is_replaced_is_let_go() {
        let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
        let (first, snapshot) = entry(&generations, b"k", 1);
        memory.insert(&first, &snapshot, &generations);
        let (second, snapshot) = entry(&generations, b"k", 2);
        memory.insert(&second, &snapshot, &generations);
        assert_eq!((Arc::strong_count(&first), memory.entries()), (1, 1));
    }

    #[test]
    fn k11_a_tag_takes_its_entries_out() {
        let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
        let key = b"k".as_slice();
        let (value, snapshot) = entry(&generations, key, 1);
        assert!(memory.insert(&value, &snapshot, &generations));
        assert!(memory.get(key, NONE, &generations).is_some());
        generations.bump_tag(b"tag");
        assert!(memory.get(key, NONE, &generations).is_none());
    }

    #[test]
    fn k11_a_reader_who_names_a_tag_gets_only_what_carries_it() {
        let (memory, generations) = (Memory::new(1 << 20, 1000), Generations::new());
        let key = b"k".as_slice();
        let (value, snapshot) = entry(&generations, key, 1);
        assert!(memory.insert(&value, &snapshot, &generations));
        assert!(memory.get(key, &["tag"], &generations).is_some());
        assert!(memory.get(key, NONE, &generations).is_some());
        assert!(memory.get(key, &["tag", "other"], &generations).is_none());
    }

    #[test]
    fn k10_the_longest_value_finds_room_on_any_number_of_cores() {
        for (bytes, value_max) in [(64 << 20, 1 << 20), (1 << 20, 200_000), (5000, 1000)] {
            let (memory, generations) = (Memory::new(bytes, value_max), Generations::new());
            let key = b"k".as_slice();
            let snapshot = generations.snapshot(key, NONE);
            memory.insert(&make(key, 1, &snapshot, value_max), &snapshot, &generations);
            assert!(memory.get(key, NONE, &generations).is_some(), "{bytes}");
        }
    }

    #[test]
    fn k10_memory_is_bounded_in_bytes() {
        let (memory, generations) = (Memory::new(100_000, 1000), Generations::new());
        for n in 0..10_000u32 {
            // Keys count too, and are the most of it here.
            let key = format!("{n:01000}");
            let key = key.as_bytes();
            let (value, snapshot) = entry(&generations, key, n);
            memory.insert(&value, &snapshot, &generations);
        }
        assert!(memory.bytes() <= 100_000, "{}", memory.bytes());
        assert!(
            (50..100).contains(&memory.entries()),
            "{}",
            memory.entries()
        );
    }

    /// Writers invalidate and raise the truth; loaders read it and try to store what they read. A
    /// reader that looks after an invalidation has returned must never find anything older.
    #[test]
    fn k6_no_interleaving_shows_an_overtaken_value() {
        use std::sync::atomic::AtomicU32;
        let memory = Arc::new(Memory::new(1 << 20, 1000));
        let generations = Arc::new(Generations::new());
        let (truth, floor) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let key = b"k".as_slice();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let snapshot = generations.snapshot(key, NONE);
                        let read = truth.load(Ordering::SeqCst);
                        let entry = make(key, read, &snapshot, 4);
                        memory.insert(&entry, &snapshot, &generations);
                        let least = floor.load(Ordering::SeqCst);
                        if let Some(found) = memory.get(key, NONE, &generations) {
                            assert!(number(&found) >= least);
                        }
                    }
                });
            }
            scope.spawn(|| {
                for n in 1..20_000 {
                    truth.store(n, Ordering::SeqCst);
                    generations.bump_key(key);
                    memory.remove(key);
                    floor.store(n, Ordering::SeqCst);
                }
            });
        });
    }
}
