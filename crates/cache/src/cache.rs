//! The cache as its callers see it.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use steadfast::{EventKind, EventOrGap};
use tokio::sync::watch;

use crate::answer::{Answer, Source};
use crate::builder::{BuildError, check_classes, longest_life};
use crate::channel;
use crate::classes::{Class, Classes};
use crate::codec::Codec;
use crate::coherence::Coherence;
use crate::ending::{conclude, wait};
use crate::error::CacheError;
use crate::flight::{Boarding, Flights, Passenger};
use crate::freshness::{Freshness, Ttl};
use crate::generation::Generations;
use crate::guard::Guard;
use crate::load::{self, Job};
use crate::moment::{Moment, Nanos};
use crate::relay::Relay;
use crate::sabotage::Sabotage;
use crate::source::Database;
use crate::stats::Stats;
use crate::status::{self, CacheStatus};
use crate::tier::memory::{Entry, Memory};
use crate::tier::redis::RedisTier;
use crate::trust::Trust;

/// A read-through cache: memory, then Redis, then the caller's loader. Cheap to clone; clones share everything.
///
/// See the [crate documentation](crate) for an example.
pub struct Cache<V> {
    pub(crate) inner: Arc<Inner<V>>,
}

pub(crate) struct Inner<V> {
    pub(crate) classes: Classes,
    pub(crate) memory: Memory<V>,
    pub(crate) generations: Generations,
    pub(crate) flights: Arc<Flights<V>>,
    pub(crate) guard: Guard,
    pub(crate) coherence: Arc<Coherence>,
    pub(crate) redis: Option<Arc<RedisTier>>,
    pub(crate) relay: Option<Arc<Relay>>,
    pub(crate) database: Database,
    pub(crate) codec: Codec<V>,
    pub(crate) value_max: usize,
    pub(crate) lease_wait: Duration,
    /// The state of a generator of random numbers that needs no lock.
    pub(crate) draws: AtomicU64,
    pub(crate) stats: Arc<Stats>,
    pub(crate) sabotage: Sabotage,
    /// Dropped with the cache, which ends the tasks that serve it.
    pub(crate) gone: watch::Sender<()>,
}

/// A read being put together; see [`Cache::read`].
#[must_use = "a read does nothing until `get` is called and awaited"]
pub struct Read<'a, V, K> {
    cache: &'a Cache<V>,
    key: K,
    class: &'a str,
    tags: SmallVec<[&'a [u8]; 2]>,
    default: Option<V>,
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<V> std::fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// Starts the tasks that serve the cache; they end when its last clone is dropped.
    pub(crate) fn start(inner: Inner<V>) -> Self {
        let inner = Arc::new(inner);
        let gone = || inner.gone.subscribe();
        tokio::spawn(status::export(Arc::downgrade(&inner), gone()));
        if let (Some(redis), Some(relay)) = (&inner.redis, &inner.relay) {
            tokio::spawn(Trust::run(redis.clone(), gone()));
            tokio::spawn(relay.clone().run(gone()));
            tokio::spawn(relay.clone().keep_watch(gone()));
            tokio::spawn(watch_connection(redis.clone(), gone()));
            tokio::spawn(channel::listen(
                Arc::downgrade(&inner),
                redis.clone(),
                gone(),
            ));
        }
        Self { inner }
    }

    /// Waits for memory to be proven coherent, but not for a Redis that is not there.
    pub(crate) async fn settle(&self, limit: Duration) {
        let give_up = clock() + limit;
        let is_there = || {
            self.inner
                .redis
                .as_ref()
                .is_some_and(|redis| redis.client().available().is_some())
        };
        while is_there() && !self.inner.coherence.is_proven(Moment::now()) && clock() < give_up {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Answers with the value of `key`, from memory, from Redis, or else by `load`, which says `None` if there is no such thing.
    ///
    /// The load runs in a task of its own and at most once at a time for a key; callers that come meanwhile wait for the same one. It is begun
    /// again after an invalidation, so that nobody gets what was loaded before his own write.
    ///
    /// # Errors
    /// [`CacheError`], if there is neither a value nor time, nor room, nor a working database to load one.
    pub async fn get<K, L, F, E>(
        &self,
        key: K,
        class: &str,
        load: L,
    ) -> Result<Answer<V>, CacheError>
    where
        K: AsRef<[u8]>,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        if let Some(answer) = self.inner.glance(key.as_ref(), class, &[]) {
            return Ok(answer);
        }
        Box::pin(self.read(key, class).get_otherwise(load)).await
    }

    /// The long form of [`get`](Self::get), with tags and a default.
    pub fn read<'a, K: AsRef<[u8]>>(&'a self, key: K, class: &'a str) -> Read<'a, V, K> {
        Read {
            cache: self,
            key,
            class,
            tags: SmallVec::new(),
            default: None,
        }
    }

    /// Gives classes other times to live, or adds some, from the next load on: what is held keeps those it was loaded with. Classes that are not
    /// named stay as they are, so that no read under way loses its own.
    ///
    /// # Errors
    /// [`BuildError`] names the class whose times mean nothing; nothing is changed then.
    pub fn change_classes(
        &self,
        classes: impl IntoIterator<Item = (Box<str>, Ttl)>,
    ) -> Result<(), BuildError> {
        let given: Vec<_> = classes.into_iter().collect();
        check_classes(&given)?;
        if let Some(redis) = &self.inner.redis {
            redis.outlast(longest_life(&given));
        }
        self.inner.classes.change(&given);
        Ok(())
    }

    /// A snapshot of what the cache does and believes.
    #[must_use]
    pub fn status(&self) -> CacheStatus {
        CacheStatus::of(&self.inner)
    }

    /// The database behind the cache.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.inner.database
    }
}

impl<'a, V: Clone + Send + Sync + 'static, K: AsRef<[u8]>> Read<'a, V, K> {
    /// The value belongs to this tag: invalidating the tag invalidates it, for every reader. A value carries the tags that were named by the read
    /// that loaded it; a read that names a tag takes no value that does not carry it. So name the same tags wherever the key is read: a value loaded by a
    /// read that names none can be invalidated by its key alone.
    pub fn tag<T: AsRef<[u8]> + ?Sized>(mut self, tag: &'a T) -> Self {
        self.tags.push(tag.as_ref());
        self
    }

    /// The value belongs to all these tags.
    pub fn tags<T: AsRef<[u8]> + 'a>(mut self, tags: impl IntoIterator<Item = &'a T>) -> Self {
        self.tags.extend(tags.into_iter().map(AsRef::as_ref));
        self
    }

    /// What to answer when there is nothing to serve and nothing can be loaded, rather than an error. It is never stored.
    pub fn or(mut self, default: V) -> Self {
        self.default = Some(default);
        self
    }

    /// Answers; see [`Cache::get`].
    ///
    /// # Errors
    /// As [`Cache::get`]; with a default only [`CacheError::UnknownClass`].
    pub async fn get<L, F, E>(self, load: L) -> Result<Answer<V>, CacheError>
    where
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let inner = &self.cache.inner;
        if let Some(answer) = inner.glance(self.key.as_ref(), self.class, &self.tags) {
            return Ok(answer);
        }
        // In a box, so that the future of a hit, which nearly all of them are, is small.
        Box::pin(self.get_otherwise(load)).await
    }

    /// When a glance into memory was not enough.
    async fn get_otherwise<L, F, E>(self, load: L) -> Result<Answer<V>, CacheError>
    where
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let inner = &self.cache.inner;
        let Class { ttl, lane } = inner.classes.find(self.class)?;
        let (key, began) = (self.key.as_ref(), clock());
        let now = began.into();
        let held = inner.memory.get(key, &self.tags, &inner.generations);
        let job = |held, early| Job {
            class: ttl,
            lane,
            tags: owned(&self.tags),
            held,
            early,
        };
        if let Some(entry) = held.as_ref().filter(|entry| inner.is_fresh(entry, now)) {
            let answer = inner.hit(entry, entry.age(now));
            if inner.wants_refresh(entry, &ttl, answer.age) {
                board(inner, key, &self.tags, job(held, true), load);
            }
            return Ok(answer);
        }
        let held = held.filter(|entry| inner.may_serve_stale(entry, &ttl, now));
        let passenger = board(inner, key, &self.tags, job(held.clone(), false), load);
        let ending = wait(inner, passenger, held, &ttl, began).await;
        conclude(inner, ending, self.default)
    }
}

/// Whatever has just been connected to may not be what was believed in.
async fn watch_connection(redis: Arc<RedisTier>, mut gone: watch::Receiver<()>) {
    let mut events = redis.client().events();
    loop {
        let event = tokio::select! {
            _ = gone.changed() => return,
            event = events.next() => event,
        };
        match event {
            Some(EventOrGap::Event(event)) => {
                if matches!(
                    event.kind,
                    EventKind::Connected { .. } | EventKind::Replaced { .. }
                ) {
                    redis.trust.doubt_all();
                }
            }
            Some(_) => redis.trust.doubt_all(),
            None => return,
        }
    }
}

/// Joins or begins the flight for this key.
fn board<V, L, F, E>(
    inner: &Arc<Inner<V>>,
    key: &[u8],
    tags: &[&[u8]],
    job: Job<V>,
    load: L,
) -> Passenger<V>
where
    V: Clone + Send + Sync + 'static,
    L: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<Option<V>, E>> + Send + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    match inner.flights.board(key, tags, &inner.generations) {
        Boarding::Joined(passenger) => passenger,
        Boarding::Leader(leader, passenger) => {
            tokio::spawn(load::lead(inner.clone(), leader, job, load));
            passenger
        }
    }
}

fn owned(tags: &[&[u8]]) -> Vec<Vec<u8>> {
    tags.iter().map(|tag| tag.to_vec()).collect()
}

impl<V: Clone + Send + Sync + 'static> Inner<V> {
    /// All that a hit does, for nearly all hits: what is in memory, fresh beyond doubt and far from its end. Whatever else there is to say of
    /// the key, an unknown class among it, is left to a longer look.
    #[inline]
    fn glance(&self, key: &[u8], class: &str, tags: &[&[u8]]) -> Option<Answer<V>> {
        let now = Moment::now();
        let entry = self.memory.get(key, tags, &self.generations)?;
        let age = entry.age(now);
        (entry.is_certain_at(age) && self.is_current(&entry, now) && self.classes.knows(class))
            .then(|| self.hit(&entry, age))
    }

    /// Answers from memory and counts it.
    #[inline]
    pub(crate) fn hit(&self, entry: &Entry<V>, age: Nanos) -> Answer<V> {
        entry.count_hit();
        self.stats.hit();
        Answer::of(entry, Source::Memory, None, age.into())
    }
}

impl<V> Inner<V> {
    pub(crate) fn is_fresh(&self, entry: &Entry<V>, now: Moment) -> bool {
        entry.freshness(now) == Freshness::Fresh && self.is_current(entry, now)
    }

    /// Whether no invalidation can have been missed.
    #[inline]
    fn is_current(&self, entry: &Entry<V>, now: Moment) -> bool {
        entry.era() == self.generations.era() && self.coherence.vouches(entry.loaded_at, now)
    }

    pub(crate) fn may_serve_stale(&self, entry: &Entry<V>, class: &Ttl, now: Moment) -> bool {
        !class.never_stale() && entry.freshness(now) != Freshness::Expired
    }

    fn wants_refresh(&self, entry: &Entry<V>, class: &Ttl, age: Duration) -> bool {
        let (life, beta) = (entry.life(), class.early_refresh);
        life.refresh_early(age, entry.cost(), beta, self.draw())
    }

    /// A random number in `0..1` (splitmix64).
    pub(crate) fn draw(&self) -> f64 {
        let mut z = self
            .draws
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

pub(crate) fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}
