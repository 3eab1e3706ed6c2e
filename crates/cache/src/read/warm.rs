//! Warming: values that are loaded before anybody asks.
//!
//! Warming cannot take leases, because it learns the keys only with their values; Redis's log of
//! what was invalidated lately tells which of them were overtaken.

use std::future::pending;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::database::{Asking, Permission};
use super::load::add_tags;
use super::view::View;
use crate::clock::{clock, is_in_runtime};
use crate::error::{CacheError, LoadError};
use crate::flight::nesting::Loading;
use crate::freshness::Life;
use crate::guard::Urgency;
use crate::key::Key;
use crate::parts::Inner;
use crate::tier::entry::{Entry, Times};
use crate::tier::redis::{Fill, WarmWindow};

/// The result of a warming.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warmed {
    /// Values loaded.
    pub loaded: usize,
    /// Values that are now in memory.
    pub memory: usize,
    /// Values that are now in Redis. The others were overtaken by an invalidation, or Redis could
    /// not be reached.
    pub redis: usize,
}

impl<V: Clone + Send + Sync + 'static> View<V> {
    /// Loads many values by one query and puts them into memory and Redis before anybody asks. What
    /// an invalidation overtook meanwhile is left out. What takes the place of a value in memory
    /// carries its tags too. Call it at the start, or from time to time.
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
        let mut kept = Vec::new();
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
            if let Some(there) = self.there(&name) {
                add_tags(&mut tags, there.tag_names().iter().map(Vec::as_slice));
            }
            let snapshot = cache.generations.narrow(&whole, &name, &tags);
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
            let governed = (&snapshot, tags.clone().into());
            let length = bytes.len();
            let entry = Entry::new(&name, Some(value), times, governed, self.label(), length);
            let stored = cache.memory.insert(&entry, &snapshot, &cache.generations);
            warmed.memory += usize::from(stored);
            kept.push(Warm {
                name: name.to_vec(),
                tags,
                bytes,
                life,
            });
        }
        if let Some(window) = window {
            let times = (began, cost, self.label().version);
            warmed.redis = cache.fill_in_window(window, &kept, times).await;
        }
        Ok(warmed)
    }
}

/// A value to be put into Redis.
struct Warm {
    name: Vec<u8>,
    tags: Vec<Vec<u8>>,
    bytes: Bytes,
    life: Life,
}

impl Inner {
    async fn fill_in_window(
        &self,
        mut window: WarmWindow,
        kept: &[Warm],
        (loaded_at, cost, type_version): (Instant, Duration, u32),
    ) -> usize {
        let Some(redis) = &self.redis else { return 0 };
        let mut filled = 0;
        for chunk in kept.chunks(FILLS_AT_ONCE) {
            let fills: Vec<_> = chunk
                .iter()
                .map(|warm| {
                    let fill = Fill {
                        payload: Some(&warm.bytes),
                        life: warm.life,
                        cost,
                        type_version,
                        loaded_at,
                    };
                    (&*warm.name, &*warm.tags, fill)
                })
                .collect();
            match redis.fill_in_window(&mut window, &fills).await {
                Ok(count) => filled += count,
                Err(trouble) => {
                    tracing::debug!(%trouble, "warming goes on without Redis");
                    break;
                }
            }
        }
        filled
    }
}

/// Fills sent to Redis in one go.
const FILLS_AT_ONCE: usize = 64;
