//! A value that nobody has to load, because the caller knows it.
//!
//! The database is not asked, so nothing of its guard is: neither a slot nor the breaker. Whoever
//! is loading the key meanwhile may have read before the caller did, so their right to store is
//! taken from them: in this process by the key's counter, in Redis with their lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::load::{inherited, take_over_tags};
use super::view::View;
use crate::clock::{clock, is_in_runtime};
use crate::freshness::Life;
use crate::key::Key;
use crate::parts::Inner;
use crate::tier::entry::{Entry, Times};
use crate::tier::generation::Snapshot;
use crate::tier::redis::{Fill, Filled, InWindow, Predecessor, RedisTier, WarmWindow};

/// The places that hold a value after [`View::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Put {
    /// This process's memory.
    pub memory: bool,
    /// Redis, from which other processes read it.
    pub redis: bool,
}

impl<V: Clone + Send + Sync + 'static> View<V> {
    /// Stores a value that the caller knows to be that of `key` now, in memory and in Redis, as if
    /// it had just been loaded; says which of them hold it. The database is not asked, so it may be
    /// away. Redis does not hold it if it cannot be reached, or if it is invalidated after Redis
    /// was asked; nor if this process hears of that before. Neither holds a value that is longer
    /// than one may be, cannot be written as it is or has no life, and an older one is removed. It
    /// carries the tags of the view, and those of what it takes the place of in memory and Redis.
    ///
    /// Nobody is told: other processes that have an older value in memory keep it. What has
    /// *changed* is better [written](crate::Cache::write) or [expired](Self::expire). And a value
    /// that was read *before* an invalidation would overtake it: where another may change it
    /// meanwhile, [`get`](Self::get) it instead, which cannot. Another process that is
    /// [warming](Self::warm) and had asked the database before stores in Redis what it read then.
    ///
    /// ```no_run
    /// # async fn f(sessions: steadfast_cache::View<String>) {
    /// let put = sessions.put("s1", "Ada".to_owned()).await;
    /// if !put.redis {
    ///     println!("the other processes do not know of it");
    /// }
    /// # }
    /// ```
    pub async fn put<K: Key>(&self, key: K, value: V) -> Put {
        let (cache, ttl, known_at) = (self.core(), self.ttl(), clock());
        cache.upkeep.ensure();
        let name = self.name(&key);
        let mut tags = self.tags_of(&key, &name);
        let own = tags.len();
        take_over_tags(&mut tags, self.there(&name).as_deref());
        cache.generations.bump_key(&name);
        cache.failures.forget(&name);
        let snapshot = cache.generations.snapshot(&name, &tags);
        let life = self.life(&ttl, Some(&value));
        let Some(bytes) = self.encode_to_keep(&name, &value, life) else {
            cache.remove(&name).await;
            return Put {
                memory: false,
                redis: false,
            };
        };
        let mut putting = Putting {
            view: self,
            name: &name,
            tags,
            own,
            snapshot,
            bytes,
            known_at,
            times: Times {
                loaded_at: known_at.into(),
                life,
                cost: Duration::ZERO,
                early_refresh: ttl.early_refresh,
            },
        };
        // At once: whoever reads the key from now on in this process finds it.
        let first = putting.entry(Some(value));
        let memory = putting.insert(&first);
        putting.reach_redis(first, memory).await
    }

    /// Returns a value as Redis is to hold it; `None` if it cannot be kept.
    fn encode_to_keep(&self, name: &[u8], value: &V, life: Life) -> Option<Bytes> {
        match self.codec().encode(value) {
            Ok(_) if life.keep.is_zero() => None,
            Ok(bytes) if bytes.len() > self.core().value_max => {
                self.core().stats.not_stored.add(1);
                None
            }
            Ok(bytes) => Some(bytes),
            Err(problem) => {
                self.cannot_keep(name, &*problem);
                None
            }
        }
    }
}

/// A value on its way into memory and Redis.
struct Putting<'a, V> {
    view: &'a View<V>,
    name: &'a [u8],
    /// The tags that it carries, first those that are its own, of which there are so many.
    tags: Vec<Vec<u8>>,
    own: usize,
    /// Their counters, and that of its key.
    snapshot: Snapshot,
    bytes: Bytes,
    known_at: Instant,
    times: Times,
}

impl<V: Clone + Send + Sync + 'static> Putting<'_, V> {
    fn entry(&self, value: Option<V>) -> Arc<Entry> {
        let governed = (&self.snapshot, self.tags.clone().into());
        let (label, length) = (self.view.label(), self.bytes.len());
        Entry::new(self.name, value, self.times, governed, label, length)
    }

    fn insert(&self, entry: &Arc<Entry>) -> bool {
        let cache = self.view.core();
        cache
            .memory
            .insert(entry, &self.snapshot, &cache.generations)
    }

    /// Puts it into Redis too, and into memory once more under the tags of what lies there.
    /// `memory` says whether memory holds the `first` entry.
    async fn reach_redis(&mut self, first: Arc<Entry>, memory: bool) -> Put {
        let cache = self.view.core();
        let mut put = Put {
            memory,
            redis: false,
        };
        let changes = cache.generations.tag_changes();
        let taken = cache.take_place(self.name, &self.tags, &self.snapshot);
        let Some((redis, mut window, there)) = taken.await else {
            return put;
        };
        let found = self.inherit(&there);
        let waits = cache.is_pending(None, &found);
        // One of them may have been invalidated before its counter was looked at: Redis can tell.
        let is_unsure = !found.is_empty() && cache.generations.tag_changes() != changes;
        let value = || first.value::<V>().flatten().cloned();
        let wider = (!found.is_empty()).then(|| self.entry(value()));
        if let Some(wider) = &wider {
            // Whoever has begun to read before may bring what Redis still holds, and so may who
            // begins before the entry is there.
            self.stay_ahead();
            put.memory = !waits && !is_unsure && self.insert(wider);
            self.stay_ahead();
            if !put.memory {
                // It would outlive the invalidation of a tag that was found.
                cache.memory.remove_entry(&first);
            }
        }
        // Redis knows nothing of another put by this process.
        if waits || !cache.generations.is_uninvalidated(&self.snapshot) {
            return put;
        }
        redis.outlast(self.times.life.keep);
        match redis.fill_in_window(&mut window, &[self.fill()]).await {
            Ok(filled) => put.redis = filled == [Filled::Stored],
            Err(trouble) => cache.pass_by_redis(&trouble),
        }
        if let Some(wider) = wider.filter(|_| put.redis && is_unsure) {
            put.memory = self.insert(&wider);
        }
        put
    }

    /// Takes over the tags of what lies there, in Redis and in memory; returns those that are new.
    fn inherit(&mut self, there: &Predecessor) -> Vec<Vec<u8>> {
        let cache = self.view.core();
        if cache.sabotage.tags_stripped {
            return Vec::new();
        }
        let held = self.view.there(self.name);
        let tags = inherited(&self.tags, self.own, there, held.as_deref());
        let is_new = |tag: &&Vec<u8>| !self.tags.contains(tag);
        let found: Vec<_> = tags.iter().filter(is_new).cloned().collect();
        self.tags = tags;
        self.snapshot = self.snapshot.with(&cache.generations.tag_stripes(&found));
        found
    }

    fn stay_ahead(&mut self) {
        let generations = &self.view.core().generations;
        self.snapshot = generations.stay_ahead(self.name, self.snapshot.clone());
    }

    fn fill(&self) -> InWindow<'_> {
        InWindow {
            key: self.name,
            tags: &self.tags,
            fill: Fill {
                payload: Some(&self.bytes),
                life: self.times.life,
                cost: self.times.cost,
                type_version: self.view.label().version,
                loaded_at: self.known_at,
            },
            replaces: None,
        }
    }
}

impl Inner {
    /// Asks Redis for the place of a value that is as good as the snapshot is; `None` if Redis is
    /// not to have it.
    async fn take_place(
        &self,
        name: &[u8],
        tags: &[Vec<u8>],
        snapshot: &Snapshot,
    ) -> Option<(&Arc<RedisTier>, WarmWindow, Predecessor)> {
        let redis = self.redis.as_ref().filter(|_| is_in_runtime())?;
        if self.is_pending(Some(name), tags) {
            return None;
        }
        let still = || self.generations.is_uninvalidated(snapshot);
        match redis.take_place(name, still).await {
            Ok(taken) => taken.map(|(window, there)| (redis, window, there)),
            Err(trouble) => {
                self.pass_by_redis(&trouble);
                None
            }
        }
    }

    /// Removes a value from both tiers: a newer one is known that they cannot hold. From memory
    /// once more in the end, since a reader may have taken meanwhile what was still in Redis.
    pub(super) async fn remove(&self, name: &[u8]) {
        self.memory.remove(name);
        if let Some(redis) = self.redis.as_ref().filter(|_| is_in_runtime())
            && let Err(trouble) = redis.remove(name).await
        {
            self.pass_by_redis(&trouble);
        }
        self.generations.bump_key(name);
        self.memory.remove(name);
    }
}
