//! The core that all views of an application share: one memory, one guard, one channel, one relay.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use steadfast::{EventItem, EventKind};
use tokio::sync::watch;

use crate::builder::{BuildError, check_classes, longest_life};
use crate::channel;
use crate::classes::Classes;
use crate::codec::Codec;
use crate::coherence::Coherence;
use crate::error::UnknownClass;
use crate::failures::Failures;
use crate::flight::Flights;
use crate::freshness::Ttl;
use crate::generation::Generations;
use crate::guard::Guard;
use crate::moment::Moment;
use crate::relay::Relay;
use crate::sabotage::Sabotage;
use crate::source::Database;
use crate::stats::Stats;
use crate::status::{self, CacheStatus};
use crate::tier::memory::Memory;
use crate::tier::redis::RedisTier;
use crate::trust::Trust;
use crate::view::View;

/// A read-through cache: memory, then Redis, then the caller's loader. One serves a whole
/// application: its types are read through [views](Self::view), which share its memory, its
/// connections and what it knows. Cheap to clone; clones share everything.
///
/// See the [crate documentation](crate) for an example.
#[derive(Clone)]
pub struct Cache {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) classes: Classes,
    pub(crate) memory: Memory,
    pub(crate) generations: Generations,
    pub(crate) flights: Arc<Flights>,
    pub(crate) failures: Failures,
    pub(crate) guard: Guard,
    pub(crate) coherence: Arc<Coherence>,
    pub(crate) redis: Option<Arc<RedisTier>>,
    pub(crate) relay: Option<Arc<Relay>>,
    pub(crate) database: Database,
    pub(crate) value_max: usize,
    pub(crate) lease_wait: Duration,
    /// The state of a generator of random numbers that needs no lock.
    pub(crate) draws: AtomicU64,
    pub(crate) stats: Arc<Stats>,
    pub(crate) sabotage: Sabotage,
    /// Views made so far.
    pub(crate) views: AtomicU64,
    /// Dropped with the cache, which ends the tasks that serve it.
    pub(crate) gone: watch::Sender<()>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl Cache {
    /// Starts the tasks that serve the cache; they end when its last clone and its last view are
    /// dropped.
    pub(crate) fn start(inner: Inner) -> Self {
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

    /// A view of the values of one type, kept as JSON in Redis and decoded in memory, with the
    /// times of this class. Make it once and keep it; it is cheap to clone. A hit clones the value:
    /// where that is dear, let `V` be an `Arc`.
    ///
    /// # Errors
    /// [`UnknownClass`], if the cache was not given the class.
    pub fn view<V>(&self, class: &str) -> Result<View<V>, UnknownClass>
    where
        V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    {
        let class = self.inner.classes.find(class)?;
        Ok(View::new(self.clone(), class, Codec::json()))
    }

    /// A view of bytes that the caller has encoded, kept as they are in both tiers.
    ///
    /// ```no_run
    /// # use steadfast_cache::Cache;
    /// # async fn render(page: &str) -> std::io::Result<Vec<u8>> { Ok(Vec::new()) }
    /// # async fn f(cache: Cache) -> Result<(), Box<dyn std::error::Error>> {
    /// let pages = cache.view_of_bytes("page")?.prefix("page:");
    /// let html = pages.get("index", || async { Ok(Some(render("index").await?.into())) }).await?.value;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`view`](Self::view).
    pub fn view_of_bytes(&self, class: &str) -> Result<View<Bytes>, UnknownClass> {
        let class = self.inner.classes.find(class)?;
        Ok(View::new(self.clone(), class, Codec::bytes()))
    }

    /// Gives classes other times to live, or adds some, from the next load on: what is held keeps
    /// those it was loaded with. Classes that are not named stay as they are, and views of a class
    /// see its new times.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use steadfast_cache::{Cache, Ttl};
    /// # fn f(cache: &Cache) -> Result<(), Box<dyn std::error::Error>> {
    /// let shorter = Ttl { fresh: Duration::from_secs(60), ..Ttl::default() };
    /// cache.change_classes([("user".into(), shorter)])?;
    /// # Ok(()) }
    /// ```
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
    ///
    /// ```no_run
    /// # fn f(cache: &steadfast_cache::Cache) {
    /// let status = cache.status();
    /// println!("{} hits in memory, {} loads", status.counts.memory, status.counts.loads);
    /// if let Some(trouble) = &status.outbox_trouble {
    ///     println!("invalidations wait: {trouble}");
    /// }
    /// # }
    /// ```
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

/// Whatever has just been connected to may not be what was believed in.
async fn watch_connection(redis: Arc<RedisTier>, mut gone: watch::Receiver<()>) {
    let mut events = redis.client().events();
    loop {
        let event = tokio::select! {
            _ = gone.changed() => return,
            event = events.next() => event,
        };
        match event {
            Some(EventItem::Event(event)) => {
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

impl Inner {
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
