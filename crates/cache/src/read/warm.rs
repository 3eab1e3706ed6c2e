//! Warming: values that are loaded before anybody asks.
//!
//! Warming cannot take leases, because it learns the keys only with their values; Redis's log of
//! what was invalidated lately tells which of them were overtaken.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::database::{Asking, Permission};
use super::load::{inherited, take_over_tags};
use super::view::View;
use crate::clock::{clock, is_in_runtime};
use crate::error::{CacheError, LoadError};
use crate::flight::nesting::Loading;
use crate::guard::Urgency;
use crate::key::Key;
use crate::tier::entry::{Entry, Times};
use crate::tier::generation::WholeSnapshot;
use crate::tier::redis::{Fill, Filled, InWindow, Predecessor, RedisFailure, WarmWindow};

/// The result of a warming.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warmed {
    /// Values loaded.
    pub loaded: usize,
    /// Values that are now in memory.
    pub memory: usize,
    /// Values that are now in Redis. The others were overtaken by an invalidation, or by a value
    /// that was stored just before them, or Redis could not be reached.
    pub redis: usize,
}

impl<V: Clone + Send + Sync + 'static> View<V> {
    /// Loads many values by one query and puts them into memory and Redis before anybody asks. What
    /// an invalidation overtook meanwhile is left out. What takes the place of a value, in memory
    /// or in Redis, carries its tags too. Of a key that is there twice the last value that can be
    /// kept counts. Call it at the start, or from time to time.
    ///
    /// ```no_run
    /// # use steadfast_cache::View;
    /// # async fn best_sellers() -> std::io::Result<Vec<(u64, String)>> { Ok(Vec::new()) }
    /// # async fn f(titles: View<String>) -> Result<(), steadfast_cache::CacheError> {
    /// let warmed = titles.warm(|| async { Ok(best_sellers().await?) }).await?;
    /// println!("{} of {} in memory, {} in Redis", warmed.memory, warmed.loaded, warmed.redis);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`View::get`]; it draws on the guard like any load.
    pub async fn warm<K, I, L, F>(&self, load: L) -> Result<Warmed, CacheError>
    where
        K: Key,
        I: IntoIterator<Item = (K, V)>,
        L: FnOnce() -> F + Send,
        F: Future<Output = Result<I, LoadError>> + Send,
    {
        if !is_in_runtime() {
            return Err(CacheError::NoRuntime);
        }
        let (cache, ttl) = (self.core(), self.ttl());
        cache.upkeep.ensure();
        let whole = cache.generations.snapshot_all();
        let window = match &cache.redis {
            Some(redis) => redis.open_window().await.ok(),
            None => None,
        };
        let began = clock();
        let permission = match Loading::current(&cache.flights) {
            Some(parent) => Permission::Within(parent),
            None => Permission::Guard(Urgency::Refresh { hit_count: 0 }),
        };
        let asking = Asking {
            class: self.class(),
            permission,
            limit: ttl.hard_limit,
            deadline: began + ttl.hard_limit,
        };
        // In a box: it may be large, and would be a part of each future around it.
        let load = |slot| {
            let load = Box::pin(async { load().await });
            Loading::apart(cache.nesting(), slot, load)
        };
        let asked = cache.ask_database(asking, || (), pending(), load);
        let (pairs, cost) = asked.await?;

        let mut warmed = Warmed::default();
        let (mut kept, mut places) = (Vec::new(), HashMap::new());
        for (key, value) in pairs {
            warmed.loaded += 1;
            let name = self.name(&key);
            let bytes = match self.codec().encode(&value) {
                Ok(bytes) => bytes,
                Err(problem) => {
                    self.cannot_keep(&name, &*problem);
                    continue;
                }
            };
            if bytes.len() > cache.value_max {
                cache.stats.not_stored.add(1);
                continue;
            }
            let mut tags = self.tags_of(&key, &name);
            let own = tags.len();
            take_over_tags(&mut tags, self.there(&name).as_deref());
            let life = self.life(&ttl, Some(&value));
            if life.keep.is_zero() {
                continue;
            }
            if let Some(redis) = cache.redis.as_ref().filter(|_| life.own) {
                redis.outlast(life.keep);
            }
            let times = Times {
                loaded_at: began.into(),
                life,
                cost,
                early_refresh: ttl.early_refresh,
            };
            let name = name.to_vec();
            let (entry, in_memory) =
                self.keep_warm(&whole, &name, value, &tags, times, bytes.len());
            let place = *places.entry(name.clone()).or_insert(kept.len());
            let warm = Warm {
                name,
                tags,
                own,
                bytes,
                times,
                entry,
                in_memory,
            };
            match kept.get_mut(place) {
                Some(before) => *before = warm,
                None => kept.push(warm),
            }
        }
        drop(places);
        if let Some(window) = window {
            warmed.redis = self.fill_in_window(window, &whole, &mut kept, began).await;
        }
        warmed.memory = kept.iter().filter(|warm| warm.in_memory).count();
        Ok(warmed)
    }

    /// Puts a value into memory, if nothing that governs it was invalidated since it was asked for.
    fn keep_warm(
        &self,
        whole: &WholeSnapshot,
        name: &[u8],
        value: V,
        tags: &[Vec<u8>],
        times: Times,
        length: usize,
    ) -> (Arc<Entry>, bool) {
        let cache = self.core();
        let snapshot = cache.generations.narrow(whole, name, tags);
        let governed = (&snapshot, tags.to_vec().into());
        let entry = Entry::new(name, Some(value), times, governed, self.label(), length);
        let in_memory = cache.memory.insert(&entry, &snapshot, &cache.generations);
        (entry, in_memory)
    }

    /// Puts what was loaded into Redis. What lies there hands its tags on, to memory too.
    async fn fill_in_window(
        &self,
        mut window: WarmWindow,
        whole: &WholeSnapshot,
        kept: &mut [Warm],
        loaded_at: Instant,
    ) -> usize {
        let mut filled = 0;
        for chunk in kept.chunks_mut(FILLS_AT_ONCE) {
            match self.fill_chunk(&mut window, whole, chunk, loaded_at).await {
                Ok(count) => filled += count,
                Err(trouble) => {
                    tracing::debug!(%trouble, "warming goes on without Redis");
                    break;
                }
            }
        }
        filled
    }

    async fn fill_chunk(
        &self,
        window: &mut WarmWindow,
        whole: &WholeSnapshot,
        chunk: &mut [Warm],
        loaded_at: Instant,
    ) -> Result<usize, RedisFailure> {
        let Some(redis) = &self.core().redis else {
            return Ok(0);
        };
        let keys: Vec<_> = chunk.iter().map(|warm| &*warm.name).collect();
        let there = redis.look_at_places(window, &keys, false).await?;
        for (warm, there) in chunk.iter_mut().zip(&there) {
            self.inherit(whole, warm, there);
        }
        let values = chunk.iter().zip(&there).map(|(warm, there)| InWindow {
            key: &warm.name,
            tags: &warm.tags,
            fill: Fill {
                payload: Some(&warm.bytes),
                life: warm.times.life,
                cost: warm.times.cost,
                type_version: self.label().version,
                loaded_at,
            },
            replaces: Some(there),
        });
        let values: Vec<_> = values.collect();
        let filled = redis.fill_in_window(window, &values).await?;
        for (warm, filled) in chunk.iter_mut().zip(&filled) {
            if *filled == Filled::Overtaken {
                // It lacks the tags of what came.
                self.core().memory.remove_entry(&warm.entry);
                warm.in_memory = false;
            }
        }
        let stored = filled.iter().filter(|filled| **filled == Filled::Stored);
        Ok(stored.count())
    }

    /// Gives a value the tags of what lies in its place, and what memory holds of it too.
    fn inherit(&self, whole: &WholeSnapshot, warm: &mut Warm, there: &Predecessor) {
        if self.core().sabotage.tags_stripped {
            return;
        }
        let held = self.there(&warm.name);
        let tags = inherited(&warm.tags, warm.own, there, held.as_deref());
        let is_wider = tags.iter().any(|tag| !warm.tags.contains(tag));
        warm.tags = tags;
        let first = warm.entry.clone();
        let value = first.value::<V>().filter(|_| is_wider);
        if let Some(value) = value.flatten().cloned() {
            let (tags, length) = (&warm.tags, warm.bytes.len());
            (warm.entry, warm.in_memory) =
                self.keep_warm(whole, &warm.name, value, tags, warm.times, length);
            if !warm.in_memory {
                self.core().memory.remove_entry(&first);
            }
        }
    }
}

/// A value to be put into Redis.
struct Warm {
    name: Vec<u8>,
    /// First those that are its own, of which there are so many.
    tags: Vec<Vec<u8>>,
    own: usize,
    bytes: Bytes,
    times: Times,
    /// As it was put into memory.
    entry: Arc<Entry>,
    in_memory: bool,
}

/// Fills sent to Redis in one go.
const FILLS_AT_ONCE: usize = 64;
