//! Many keys at once: a read that loads what is missing in one query, and warming.
//!
//! A batch obeys the rules of single reads. Each missing key gets a flight of its own, so that others join it and it joins
//! others; each is filled under its own lease. Warming cannot take leases, because it learns the keys only with their values; it stores
//! only what was loaded while nothing at all was invalidated.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::sync::Arc;

use futures_util::future::join_all;

use crate::answer::{Answer, Source};
use crate::cache::{Cache, Inner, answer, clock, conclude, wait};
use crate::error::CacheError;
use crate::flight::{Boarding, Leader};
use crate::freshness::Ttl;
use crate::guard::Urgency;
use crate::load::{Job, Stage};
use crate::tier::Key;
use crate::tier::memory::Entry;
use crate::tier::redis::{Fill, Lease, Season};

/// What a warming did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warmed {
    /// Values loaded.
    pub loaded: usize,
    /// Values that are now in memory.
    pub memory: usize,
    /// Values that are now in Redis. The others were overtaken by an invalidation, or Redis could not be reached.
    pub redis: usize,
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// Answers for many keys, in their order. What neither memory nor Redis has is loaded by one call of `load`, which is given
    /// those keys and answers with the values there are; a key it leaves out is absent.
    ///
    /// # Errors
    /// Each answer is its own: see [`Cache::get`].
    pub async fn get_many<K, L, F, E>(
        &self,
        keys: &[K],
        class: &str,
        load: L,
    ) -> Vec<Result<Answer<V>, CacheError>>
    where
        K: AsRef<[u8]>,
        L: FnOnce(Vec<Vec<u8>>) -> F + Send + 'static,
        F: Future<Output = Result<HashMap<Vec<u8>, V>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let inner = &self.inner;
        let class = match inner.class(class) {
            Ok(class) => class,
            Err(error) => return keys.iter().map(|_| Err(error.clone())).collect(),
        };
        let now = clock();
        let mut leaders = Vec::new();
        let answers: Vec<_> = keys
            .iter()
            .map(|key| {
                let key = key.as_ref();
                let held = inner.memory.get(key, &inner.generations);
                if let Some(entry) = held.as_ref().filter(|entry| inner.is_fresh(entry, now)) {
                    entry.count_hit();
                    inner.stats.answered(Source::Memory, false);
                    return Place::Hit(answer(entry, Source::Memory, None, now));
                }
                let held = held.filter(|entry| inner.may_serve_stale(entry, &class, now));
                let passenger =
                    match inner
                        .flights
                        .board(key, std::iter::empty(), &inner.generations)
                    {
                        Boarding::Joined(passenger) => passenger,
                        Boarding::Leader(leader, passenger) => {
                            leaders.push((leader, held.clone()));
                            passenger
                        }
                    };
                Place::Flight(passenger, held)
            })
            .collect();
        if !leaders.is_empty() {
            tokio::spawn(lead_many(inner.clone(), leaders, class, load));
        }
        join_all(answers.into_iter().map(|place| async {
            match place {
                Place::Hit(answer) => Ok(answer),
                Place::Flight(passenger, held) => {
                    let ending = wait(inner, passenger, held, &class, now).await;
                    conclude(inner, ending, None)
                }
            }
        }))
        .await
    }

    /// Loads many values by one query and puts them into memory and Redis, each with these tags, before anybody asks. What an
    /// invalidation overtook meanwhile is left out. Call it at the start, or from time to time.
    ///
    /// # Errors
    /// As [`Cache::get`]; it draws on the guard like any load.
    pub async fn warm<K, I, L, F, E>(
        &self,
        class: &str,
        tags: &[&str],
        load: L,
    ) -> Result<Warmed, CacheError>
    where
        K: AsRef<[u8]>,
        I: IntoIterator<Item = (K, V)>,
        L: FnOnce() -> F + Send,
        F: Future<Output = Result<I, E>> + Send,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let inner = &*self.inner;
        let class = inner.class(class)?;
        let tags: Vec<Vec<u8>> = tags.iter().map(|tag| tag.as_bytes().to_vec()).collect();
        let stripes = inner
            .generations
            .tag_stripes(tags.iter().map(Vec::as_slice));
        let whole = inner.generations.snapshot_all();
        let season = match &inner.redis {
            Some(redis) => redis.open_season(&tags).await.ok(),
            None => None,
        };
        let began = clock();
        let deadline = began + class.hard_limit;
        let (pairs, cost) = inner
            .ask_database(Urgency::Refresh { heat: 0 }, &class, deadline, || (), load)
            .await?;

        let mut warmed = Warmed::default();
        let mut kept = Vec::new();
        for (key, value) in pairs {
            warmed.loaded += 1;
            let bytes = (inner.codec.encode)(&value).map_err(CacheError::Encode)?;
            if bytes.len() > inner.value_max {
                inner.stats.not_stored.add(1);
                continue;
            }
            let key: Key = Arc::from(key.as_ref());
            let snapshot = inner.generations.narrow(&whole, &key, stripes.clone());
            let life = class.lifetime(false, inner.draw());
            let entry = Arc::new(Entry::new(
                Some(value),
                began,
                life,
                cost,
                &snapshot,
                bytes.len(),
            ));
            warmed.memory += usize::from(inner.memory.insert(
                &key,
                &entry,
                &snapshot,
                &inner.generations,
            ));
            kept.push((key, bytes, entry));
        }
        if let Some(season) = season {
            warmed.redis = inner.fill_in_season(&season, &kept).await;
        }
        Ok(warmed)
    }
}

/// A flight to lead, and what could be served meanwhile.
type Led<V> = (Leader<V>, Option<Arc<Entry<V>>>);

enum Place<V> {
    Hit(Answer<V>),
    Flight(crate::flight::Passenger<V>, Option<Arc<Entry<V>>>),
}

impl<V: Clone + Send + Sync + 'static> Inner<V> {
    async fn fill_in_season(
        &self,
        season: &Season,
        kept: &[(Key, bytes::Bytes, Arc<Entry<V>>)],
    ) -> usize {
        let Some(redis) = &self.redis else { return 0 };
        let mut filled = 0;
        for chunk in kept.chunks(FILLS_AT_ONCE) {
            let fills: Vec<_> = chunk
                .iter()
                .map(|(key, bytes, entry)| {
                    let fill = Fill {
                        payload: Some(bytes),
                        life: entry.life,
                        cost: entry.cost,
                        loaded_at: entry.loaded_at,
                    };
                    (&**key, fill)
                })
                .collect();
            match redis.fill_in_season(season, &fills).await {
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

/// Leads the flights of a batch: asks Redis for each, all at once, and the database for the rest in one call.
async fn lead_many<V, L, F, E>(inner: Arc<Inner<V>>, leaders: Vec<Led<V>>, class: Ttl, load: L)
where
    V: Clone + Send + Sync + 'static,
    L: FnOnce(Vec<Vec<u8>>) -> F + Send + 'static,
    F: Future<Output = Result<HashMap<Vec<u8>, V>, E>> + Send + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    let deadline = clock() + class.hard_limit;
    let asked = leaders.into_iter().map(|(leader, held)| {
        let inner = &inner;
        async move {
            let job = Job {
                class,
                tags: Vec::new(),
                held,
                early: false,
            };
            let lease = ask_redis_once(inner, &leader, &job, deadline).await?;
            Some((leader, lease))
        }
    });
    let missing: Vec<(Leader<V>, Option<Lease>)> =
        join_all(asked).await.into_iter().flatten().collect();
    if missing.is_empty() {
        return;
    }
    let keys = missing
        .iter()
        .map(|(leader, _)| leader.key.to_vec())
        .collect();
    let queued = || missing.iter().for_each(|(leader, _)| leader.say_queued());
    let loaded = inner
        .ask_database(Urgency::Needed, &class, deadline, queued, || load(keys))
        .await;
    let inner = &inner;
    match loaded {
        Ok((mut values, cost)) => {
            let stores = missing.into_iter().map(|(leader, lease)| {
                let value = values.remove(&*leader.key);
                async move { inner.store(&leader, &class, value, cost, lease).await }
            });
            join_all(stores).await;
        }
        Err(error) => {
            let releases = missing.into_iter().map(|(leader, lease)| {
                leader.land(Err(error.clone()));
                async move {
                    if let (Some(redis), Some(lease)) = (&inner.redis, lease) {
                        redis.release(&leader.key, &lease).await;
                    }
                }
            });
            join_all(releases).await;
        }
    }
}

/// `None` if Redis answered. A batch does not wait for another process that is loading one of its keys: it loads that one too,
/// without the right to store it.
async fn ask_redis_once<V>(
    inner: &Inner<V>,
    leader: &Leader<V>,
    job: &Job<V>,
    deadline: std::time::Instant,
) -> Option<Option<Lease>>
where
    V: Clone + Send + Sync + 'static,
{
    let Some(redis) = inner
        .redis
        .as_ref()
        .filter(|_| !inner.is_pending(&leader.key, &job.tags))
    else {
        return Some(None);
    };
    match inner.look_and_lease(redis, leader, job, deadline).await {
        Ok(Some(Stage::Answered(loaded))) => {
            leader.land(Ok(loaded));
            None
        }
        Ok(Some(Stage::Load(lease))) => Some(lease),
        Ok(None) => Some(None),
        Err(trouble) => {
            tracing::debug!(%trouble, "a batch goes on without Redis");
            Some(None)
        }
    }
}

/// Fills sent to Redis in one go.
const FILLS_AT_ONCE: usize = 64;
