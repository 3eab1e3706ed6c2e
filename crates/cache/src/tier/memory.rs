//! The tier in this process's memory.
//!
//! A hit must cost no more than a look-up: no lock that all keys share, no decoding, nothing
//! allocated. So values are kept decoded, each in its entry with its type erased, and everything
//! that decides whether one may be served is in the entry or in an atomic. The entries lie in
//! shards, by the hashes of their keys ([`table`]); which of them stay is decided at the time of an
//! insert ([`queues`]).
//! `docs/design/speed-of-the-cache.md` says why the tables are our own.
//!
//! An entry becomes visible in two steps. It is put into its shard unpublished, then the counters
//! are looked at, and only if no invalidation has come is it published. An invalidation first moves
//! the counters, then removes. So whichever comes second sees the other: either the counters have
//! moved and the entry is never published, or the entry is in its shard and is removed.

mod queues;
mod table;
#[cfg(test)]
mod tests;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::table::Shard;
use super::entry::{Entry, OVERHEAD};
use super::generation::{Generations, Snapshot};

pub(crate) struct Memory {
    shards: Box<[Shard]>,
    /// With a seed of its own: nobody can choose keys that fall into one place.
    hasher: foldhash::quality::RandomState,
}

impl Memory {
    /// `value_max` is the longest value that has to find room: a shard must hold several of that
    /// length.
    pub(crate) fn new(bytes: u64, value_max: usize) -> Self {
        let longest = (value_max + OVERHEAD) as u64;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let shards = (bytes / (longest * 4)).clamp(1, (cores * 4).next_power_of_two());
        let shards = 1 << shards.ilog2();
        Self {
            shards: (0..shards).map(|_| Shard::new(bytes / shards)).collect(),
            hasher: foldhash::quality::RandomState::default(),
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
        self.ask(key, tags, generations, |entry| Some(Arc::clone(entry)))
    }

    /// Answers with what is to be said of the same. It is lent only, which costs less than a
    /// reference of one's own, and while a lock is held: nothing may be called that others have
    /// written, such as a value's `Clone`.
    #[inline]
    pub(crate) fn ask<T: AsRef<[u8]>, R>(
        &self,
        key: &[u8],
        tags: &[T],
        generations: &Generations,
        ask: impl FnOnce(&Arc<Entry>) -> Option<R>,
    ) -> Option<R> {
        let (shard, hash) = self.shard(key);
        shard.ask(hash, key, |entry| {
            let valid = entry.published.load(Ordering::SeqCst)
                && entry.tags_are_current(generations)
                && generations.cover(entry.tags(), tags);
            if valid { ask(entry) } else { None }
        })
    }

    /// Stores, if there is room and nothing was invalidated since the snapshot. Returns whether it
    /// did.
    pub(crate) fn insert(
        &self,
        entry: &Arc<Entry>,
        snapshot: &Snapshot,
        generations: &Generations,
    ) -> bool {
        if !generations.is_current(snapshot) {
            return false;
        }
        let (shard, hash) = self.shard(entry.key());
        let (is_held, removed) = shard.insert(hash, entry);
        drop(removed);
        let current = generations.is_current(snapshot);
        if current {
            entry.published.store(true, Ordering::SeqCst);
        } else {
            self.remove_entry(entry);
        }
        is_held && current
    }

    pub(crate) fn remove(&self, key: &[u8]) {
        let (shard, hash) = self.shard(key);
        drop(shard.remove_if(hash, key, |_| true));
    }

    /// Removes this very entry, if it is still there.
    pub(crate) fn remove_entry(&self, entry: &Arc<Entry>) {
        let (shard, hash) = self.shard(entry.key());
        drop(shard.remove_if(hash, entry.key(), |there| Arc::ptr_eq(there, entry)));
    }

    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            drop(shard.clear());
        }
    }

    /// Bytes held, keys and an estimate of the overhead included.
    pub(crate) fn bytes(&self) -> u64 {
        self.shards.iter().map(Shard::weight).sum()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len() as u64).sum()
    }

    #[inline]
    fn shard(&self, key: &[u8]) -> (&Shard, u64) {
        let hash = self.hasher.hash_one(key);
        // Not by the bits by which a shard finds a slot.
        let at = (hash >> 32) as usize & (self.shards.len() - 1);
        (&self.shards[at], hash)
    }
}
