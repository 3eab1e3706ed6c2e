//! A value that nobody has to load, because the caller knows it.
//!
//! The database is not asked, so nothing of its guard is: neither a slot nor the breaker. Whoever
//! is loading the key meanwhile may have read before the caller did, so their right to store is
//! taken from them: in this process by the key's counter, in Redis with their lease.

use super::load::add_tags;
use super::view::View;
use crate::clock::{clock, is_in_runtime};
use crate::key::Key;
use crate::parts::Inner;
use crate::tier::entry::{Entry, Times};
use crate::tier::redis::Fill;

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
    /// carries the tags of the view, and those of what memory held.
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
        if let Some(there) = self.there(&name) {
            add_tags(&mut tags, there.tag_names().iter().map(Vec::as_slice));
        }
        cache.generations.bump_key(&name);
        cache.failures.forget(&name);
        let snapshot = cache.generations.snapshot(&name, &tags);
        let life = self.life(&ttl, Some(&value));
        let bytes = match self.codec().encode(&value) {
            Ok(_) if life.keep.is_zero() => None,
            Ok(bytes) if bytes.len() > cache.value_max => {
                cache.stats.not_stored.add(1);
                None
            }
            Ok(bytes) => Some(bytes),
            Err(problem) => {
                self.cannot_keep(&name, &*problem);
                None
            }
        };
        let Some(bytes) = bytes else {
            cache.remove(&name).await;
            return Put {
                memory: false,
                redis: false,
            };
        };
        let times = Times {
            loaded_at: known_at.into(),
            life,
            cost: Default::default(),
            early_refresh: ttl.early_refresh,
        };
        let (governed, label) = ((&snapshot, tags.clone().into()), self.label());
        let entry = Entry::new(&name, Some(value), times, governed, label, bytes.len());
        let memory = cache.memory.insert(&entry, &snapshot, &cache.generations);
        let redis = match &cache.redis {
            Some(redis) if is_in_runtime() && !cache.is_pending(Some(&name), &tags) => {
                redis.outlast(life.keep);
                let fill = Fill {
                    payload: Some(&bytes),
                    life,
                    cost: Default::default(),
                    type_version: label.version,
                    loaded_at: known_at,
                };
                let still = || cache.generations.is_uninvalidated(&snapshot);
                let put = redis.put(&name, &tags, fill, still).await;
                put.unwrap_or_else(|trouble| {
                    cache.pass_by_redis(&trouble);
                    false
                })
            }
            _ => false,
        };
        Put { memory, redis }
    }
}

impl Inner {
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
