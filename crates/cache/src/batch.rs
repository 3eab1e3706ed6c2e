//! Many keys at once: a read that loads what is missing in one query, and warming.
//!
//! A batch obeys the rules of single reads. Each missing key gets a flight of its own, so that others join it and it joins
//! others; each is filled under its own lease. Warming cannot take leases, because it learns the keys only with their values; it stores
//! only what was loaded while nothing at all was invalidated.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::answer::Answer;
use crate::cache::{Cache, Inner, clock};
use crate::classes::Class;
use crate::ending::{conclude, wait};
use crate::error::CacheError;
use crate::flight::{Boarding, Leader};
use crate::freshness::Lifetime;
use crate::guard::Urgency;
use crate::load::{Job, Kept, Stage};
use crate::tier::memory::{Entry, Times};
use crate::tier::redis::{Fill, Lease, Patience, Season};

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

/// A read of many keys being put together; see [`Cache::read_many`].
#[must_use = "a read does nothing until `get` is called and awaited"]
pub struct ReadMany<'a, V, K> {
    cache: &'a Cache<V>,
    keys: &'a [K],
    class: &'a str,
    /// One set for each key.
    tags: Vec<Vec<Vec<u8>>>,
    default: Option<V>,
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// Answers for many keys, in their order. What neither memory nor Redis has is loaded by one call of `load`, which is given
    /// those keys and answers with the values there are; a key it leaves out is absent. However many keys it is, that is one load to the guard.
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
        self.read_many(keys, class).get(load).await
    }

    /// The long form of [`get_many`](Self::get_many), with tags and a default.
    pub fn read_many<'a, K: AsRef<[u8]>>(
        &'a self,
        keys: &'a [K],
        class: &'a str,
    ) -> ReadMany<'a, V, K> {
        ReadMany {
            cache: self,
            keys,
            class,
            tags: vec![Vec::new(); keys.len()],
            default: None,
        }
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
        let class = inner.classes.find(class)?;
        let tags: Vec<Vec<u8>> = tags.iter().map(|tag| tag.as_bytes().to_vec()).collect();
        let stripes = inner.generations.tag_stripes(&tags);
        let whole = inner.generations.snapshot_all();
        let season = match &inner.redis {
            Some(redis) => redis.open_season(&tags).await.ok(),
            None => None,
        };
        let began = clock();
        let (limit, urgency) = (class.ttl.hard_limit, Urgency::Refresh { heat: 0 });
        let (pairs, cost) = inner
            .ask_database((class.lane, urgency), limit, began + limit, || (), load)
            .await?;

        let mut warmed = Warmed::default();
        let mut kept = Vec::new();
        for (key, value) in pairs {
            warmed.loaded += 1;
            let bytes = inner.codec.encode(&value).map_err(CacheError::Encode)?;
            if bytes.len() > inner.value_max {
                inner.stats.not_stored.add(1);
                continue;
            }
            let key = key.as_ref();
            let snapshot = inner.generations.narrow(&whole, key, stripes.clone());
            let life = class.ttl.lifetime(false, inner.draw());
            let times = Times {
                loaded_at: began.into(),
                life,
                cost,
                early_refresh: class.ttl.early_refresh,
            };
            let entry = Entry::new(key, Some(value), times, &snapshot, bytes.len());
            let stored = inner
                .memory
                .insert(&Arc::new(entry), &snapshot, &inner.generations);
            warmed.memory += usize::from(stored);
            kept.push((key.to_vec(), bytes, life));
        }
        if let Some(season) = season {
            warmed.redis = inner.fill_in_season(&season, &kept, (began, cost)).await;
        }
        Ok(warmed)
    }
}

impl<V: Clone + Send + Sync + 'static, K: AsRef<[u8]>> ReadMany<'_, V, K> {
    /// All the values belong to this tag; see [`Read::tag`](crate::Read::tag).
    pub fn tag<T: AsRef<[u8]> + ?Sized>(self, tag: &T) -> Self {
        self.tags_of(|_| [tag.as_ref().to_vec()])
    }

    /// The value of each key belongs to the tags given for that key.
    pub fn tags_of<I>(mut self, tags: impl Fn(&K) -> I) -> Self
    where
        I: IntoIterator<Item: Into<Vec<u8>>>,
    {
        for (key, named) in self.keys.iter().zip(&mut self.tags) {
            named.extend(tags(key).into_iter().map(Into::into));
        }
        self
    }

    /// What to answer for a key when there is nothing to serve and nothing can be loaded, rather than an error. It is never stored.
    pub fn or(mut self, default: V) -> Self {
        self.default = Some(default);
        self
    }

    /// Answers; see [`Cache::get_many`].
    ///
    /// # Errors
    /// Each answer is its own: see [`Cache::get`]; with a default only [`CacheError::UnknownClass`].
    pub async fn get<L, F, E>(self, load: L) -> Vec<Result<Answer<V>, CacheError>>
    where
        L: FnOnce(Vec<Vec<u8>>) -> F + Send + 'static,
        F: Future<Output = Result<HashMap<Vec<u8>, V>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let inner = &self.cache.inner;
        let class = match inner.classes.find(self.class) {
            Ok(class) => class,
            Err(error) => return self.keys.iter().map(|_| Err(error.clone())).collect(),
        };
        let now = clock();
        let mut led = Vec::new();
        let places: Vec<_> = self
            .keys
            .iter()
            .zip(self.tags)
            .map(|(key, tags)| take_place(inner, key.as_ref(), tags, &class, now, &mut led))
            .collect();
        if !led.is_empty() {
            tokio::spawn(lead_many(inner.clone(), led, class.lane, load));
        }
        let default = &self.default;
        join_all(places.into_iter().map(|place| async {
            match place {
                Place::Hit(answer) => Ok(answer),
                Place::Flight(passenger, held) => {
                    let ending = wait(inner, passenger, held, &class.ttl, now).await;
                    conclude(inner, ending, default.clone())
                }
            }
        }))
        .await
    }
}

/// A flight to lead, and how.
type Led<V> = (Leader<V>, Job<V>);

enum Place<V> {
    Hit(Answer<V>),
    Flight(crate::flight::Passenger<V>, Option<Arc<Entry<V>>>),
}

/// Answers from memory, or finds a flight for the key; one that is still to be led is put into `led`.
fn take_place<V: Clone + Send + Sync + 'static>(
    inner: &Inner<V>,
    key: &[u8],
    tags: Vec<Vec<u8>>,
    class: &Class,
    now: Instant,
    led: &mut Vec<Led<V>>,
) -> Place<V> {
    let held = inner.memory.get(key, &tags, &inner.generations);
    let moment = now.into();
    if let Some(entry) = held.as_ref().filter(|entry| inner.is_fresh(entry, moment)) {
        return Place::Hit(inner.hit(entry, entry.age(moment)));
    }
    let held = held.filter(|entry| inner.may_serve_stale(entry, &class.ttl, moment));
    match inner.flights.board(key, &tags, &inner.generations) {
        Boarding::Joined(passenger) => Place::Flight(passenger, held),
        Boarding::Leader(leader, passenger) => {
            let job = Job {
                class: class.ttl,
                lane: class.lane,
                tags,
                held: held.clone(),
                early: false,
            };
            led.push((leader, job));
            Place::Flight(passenger, held)
        }
    }
}

impl<V: Clone + Send + Sync + 'static> Inner<V> {
    async fn fill_in_season(
        &self,
        season: &Season,
        kept: &[(Vec<u8>, bytes::Bytes, Lifetime)],
        (loaded_at, cost): (Instant, Duration),
    ) -> usize {
        let Some(redis) = &self.redis else { return 0 };
        let mut filled = 0;
        for chunk in kept.chunks(FILLS_AT_ONCE) {
            let fills: Vec<_> = chunk
                .iter()
                .map(|(key, bytes, life)| {
                    let fill = Fill {
                        payload: Some(bytes),
                        life: *life,
                        cost,
                        loaded_at,
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
async fn lead_many<V, L, F, E>(inner: Arc<Inner<V>>, led: Vec<Led<V>>, lane: usize, load: L)
where
    V: Clone + Send + Sync + 'static,
    L: FnOnce(Vec<Vec<u8>>) -> F + Send + 'static,
    F: Future<Output = Result<HashMap<Vec<u8>, V>, E>> + Send + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    let Some(class) = led.first().map(|(_, job)| job.class) else {
        return;
    };
    let deadline = clock() + class.hard_limit;
    let missing = ask_redis_for_all(&inner, led, deadline).await;
    if missing.is_empty() {
        return;
    }
    // As urgent as the most urgent of them.
    let urgency = missing.iter().map(|(_, job, _)| job.urgency()).max();
    let keys = missing
        .iter()
        .map(|(leader, ..)| leader.key.to_vec())
        .collect();
    let queued = || missing.iter().for_each(|(leader, ..)| leader.say_queued());
    let place = (lane, urgency.unwrap_or(Urgency::Needed));
    let loaded = inner
        .ask_database(place, class.hard_limit, deadline, queued, || load(keys))
        .await;
    let inner = &inner;
    match loaded {
        Ok((values, cost)) => {
            let kept = missing.into_iter().filter_map(|(leader, _, lease)| {
                // Not taken out: a key given twice is led twice if it was invalidated in between.
                let value = values.get(&*leader.key).cloned();
                inner.keep(&leader, &class, value, cost, lease)
            });
            // All of them have landed before the first is sent to Redis.
            let kept: Vec<_> = kept.collect();
            for chunk in in_chunks(kept) {
                join_all(chunk.into_iter().map(Kept::fill)).await;
            }
        }
        Err(error) => missing
            .iter()
            .for_each(|(leader, ..)| leader.land(Err(error.clone()))),
    }
}

/// Asks for each key, many at once but not all, so that a large batch leaves room on the client for others. They share what one read may
/// spend on Redis. Answers with those that have to be loaded.
async fn ask_redis_for_all<V>(
    inner: &Inner<V>,
    led: Vec<Led<V>>,
    deadline: Instant,
) -> Vec<(Leader<V>, Job<V>, Option<Lease>)>
where
    V: Clone + Send + Sync + 'static,
{
    let mut missing = Vec::new();
    let mut patience = inner.redis.as_ref().map(|redis| redis.patience());
    for chunk in in_chunks(led) {
        let began = clock();
        let asked = chunk.into_iter().map(|(leader, job)| {
            let patience = patience.clone();
            async move {
                let lease = ask_redis_once(inner, &leader, &job, deadline, patience).await?;
                Some((leader, job, lease))
            }
        });
        missing.extend(join_all(asked).await.into_iter().flatten());
        if let Some(patience) = &mut patience {
            patience.charge(clock().saturating_duration_since(began));
        }
    }
    missing
}

fn in_chunks<T>(all: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<T> = all.by_ref().take(ASKED_AT_ONCE).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// `None` if Redis answered. A batch does not wait for another process that is loading one of its keys: it loads that one too,
/// without the right to store it.
async fn ask_redis_once<V>(
    inner: &Inner<V>,
    leader: &Leader<V>,
    job: &Job<V>,
    deadline: Instant,
    patience: Option<Patience>,
) -> Option<Option<Lease>>
where
    V: Clone + Send + Sync + 'static,
{
    let pending = inner.is_pending(Some(&leader.key), &job.tags);
    let (Some(redis), Some(mut patience)) = (inner.redis.as_ref().filter(|_| !pending), patience)
    else {
        return Some(None);
    };
    match inner
        .look_and_lease(redis, leader, job, deadline, &mut patience)
        .await
    {
        Ok(Some(Stage::Answered(loaded))) => {
            leader.land(Ok(loaded));
            None
        }
        Ok(Some(Stage::Load(lease))) => Some(lease),
        Ok(None) => Some(None),
        Err(trouble) => {
            inner.pass_by_redis(&trouble);
            Some(None)
        }
    }
}

/// Keys of a batch that are asked for at once: a sixteenth of what a client lets be in flight by default.
const ASKED_AT_ONCE: usize = 512;

/// Fills sent to Redis in one go.
const FILLS_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Source;
    use crate::freshness::Ttl;
    use crate::source::{Database, DatabaseOptions};

    /// The batch has the key twice, and it is invalidated after the first of them has boarded.
    #[tokio::test]
    async fn k11_a_key_that_a_batch_leads_twice_is_not_remembered_as_absent() {
        let database = Database::connect("sqlite::memory:", DatabaseOptions::default()).unwrap();
        let builder = Cache::<String>::builder(database).class("user", Ttl::default());
        let cache = builder.build().await.unwrap();
        let inner = &cache.inner;
        let class = inner.classes.find("user").unwrap();
        let mut led = Vec::new();
        let mut board = || take_place(inner, b"a", Vec::new(), &class, clock(), &mut led);
        let first = board();
        inner.generations.bump_key(b"a");
        let second = board();
        assert_eq!(led.len(), 2, "both lead");
        let load = |keys: Vec<Vec<u8>>| async {
            let value = |key| (key, "there".to_owned());
            Ok::<_, std::io::Error>(keys.into_iter().map(value).collect::<HashMap<_, _>>())
        };
        lead_many(inner.clone(), led, class.lane, load).await;
        for place in [first, second] {
            let Place::Flight(passenger, _) = place else {
                panic!("nothing was in memory")
            };
            let outcome = passenger.borrow().outcome.clone();
            let value = outcome.unwrap().unwrap().entry.value.clone();
            assert_eq!(value.as_deref(), Some("there"));
        }
        let after = cache.get_many(&["a"], "user", load).await;
        let after = after.into_iter().next().unwrap().unwrap();
        assert_eq!(
            (after.value.as_deref(), after.source),
            (Some("there"), Source::Memory)
        );
    }
}
