//! The core that all views of an application share: one memory, one guard, one channel, one relay.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use steadfast::{EventItem, EventKind};
use tokio::sync::watch;

use crate::classes::{check_apart, check_classes, longest_life};
use crate::clock::clock;
use crate::codec::Codec;
use crate::error::{BuildError, UnknownClass};
use crate::freshness::Ttl;
use crate::invalidate::channel;
use crate::monotonic::Monotonic;
use crate::parts::{Cache, Inner};
use crate::read::view::View;
use crate::sql::Database;
use crate::status::{self, CacheStatus};
use crate::tier::redis::RedisTier;
use crate::upkeep::Kept;

impl Cache {
    /// Starts the tasks that serve the cache; they end when its last clone and its last view are
    /// dropped.
    pub(crate) fn start(inner: Inner) -> Self {
        let inner = Arc::new(inner);
        let gone = &inner.gone.subscribe();
        let cache = Arc::downgrade(&inner);
        let export = move |gone| status::export(cache.clone(), gone);
        let mut kept = vec![Kept::new("exports figures", gone, export)];
        if let (Some(redis), Some(relay)) = (&inner.redis, &inner.relay) {
            let verified = redis.clone();
            let verify = move |gone| verified.clone().keep_verified(gone);
            kept.push(Kept::new("verifies Redis", gone, verify));
            let carrier = relay.clone();
            let carry = move |gone| carrier.clone().run(gone);
            kept.push(Kept::new("carries invalidations to Redis", gone, carry));
            let watcher = relay.clone();
            let watch = move |gone| watcher.clone().keep_watch(gone);
            kept.push(Kept::new("watches the outbox", gone, watch));
            let connected = redis.clone();
            let doubt = move |gone| watch_connection(connected.clone(), gone);
            kept.push(Kept::new("watches the connection", gone, doubt));
            let (cache, heard) = (Arc::downgrade(&inner), redis.clone());
            let listen = move |gone| channel::listen(cache.clone(), heard.clone(), gone);
            kept.push(Kept::new("hears of invalidations", gone, listen));
        }
        inner.upkeep.start(kept);
        Self { inner }
    }

    /// Waits for memory to be proven coherent, but not for a Redis that is not there.
    pub(crate) async fn settle(&self, limit: Duration) {
        let give_up = clock() + limit;
        let is_there = || {
            self.inner
                .redis
                .as_ref()
                .is_some_and(|redis| redis.toward().available().is_some())
        };
        while is_there() && !self.inner.coherence.is_proven(Monotonic::now()) && clock() < give_up {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// A view of the values of one type, kept as JSON in Redis and decoded in memory, with the
    /// times of this class, whose name stands before its keys: in the class `user` the key 7 is
    /// `user:7`, unless the view is given another [`prefix`](View::prefix). Make it once and keep
    /// it; it is cheap to clone. A hit clones the value: where that is dear, let `V` be an `Arc`.
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

    /// A view of bytes that the caller has encoded, kept as they are in both tiers. Views of bytes
    /// look alike: those that share a class and mean different things need different prefixes.
    ///
    /// ```no_run
    /// # use steadfast_cache::Cache;
    /// # async fn render(page: &str) -> std::io::Result<Vec<u8>> { Ok(Vec::new()) }
    /// # async fn f(cache: Cache) -> Result<(), Box<dyn std::error::Error>> {
    /// let pages = cache.view_of_bytes("page")?;
    /// let load = || async { Ok(Some(render("index").await?.into())) };
    /// let html = pages.get("index", load).await?.value;
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
    /// [`BuildError`] names the class whose times or name mean nothing; nothing is changed then.
    pub fn change_classes(
        &self,
        classes: impl IntoIterator<Item = (Box<str>, Ttl)>,
    ) -> Result<(), BuildError> {
        let given: Vec<_> = classes.into_iter().collect();
        check_classes(&given)?;
        let mut names = self.inner.classes.names();
        names.extend(given.iter().map(|(name, _)| name.clone()));
        check_apart(&names)?;
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

    /// Waits until the loads that have begun by now have ended, and what they brought is in Redis,
    /// or their leases are given back; returns how many had not, after `within`. Loads that begin
    /// meanwhile are not waited for, but those within a load are a part of it. A load answers its
    /// readers first, so a program that ends at once after a read may leave Redis without the
    /// value. To be called before that.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn f(cache: steadfast_cache::Cache) {
    /// let unfinished = cache.finish_loads(Duration::from_secs(1)).await;
    /// println!("{unfinished} loads were cut off");
    /// # }
    /// ```
    pub async fn finish_loads(&self, within: Duration) -> usize {
        self.inner.under_way.wait(within).await
    }

    /// The database behind the cache.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.inner.database
    }
}

/// Doubts each Redis that is connected to: it may not be the one that was believed in. In a cluster
/// only the node on which the namespace lives is of interest.
async fn watch_connection(redis: Arc<RedisTier>, mut gone: watch::Receiver<()>) {
    let mut events = redis.client().events();
    let _doubt = DoubtAtEnd(redis.clone(), gone.clone());
    // It was formed while nobody watched, between an earlier run and this one.
    if redis.epoch_guard.epoch().is_some() {
        redis.epoch_guard.doubt_all();
    }
    loop {
        let event = tokio::select! {
            _ = gone.changed() => return,
            event = events.next() => event,
        };
        match event {
            Some(EventItem::Event(event)) => {
                let anew = matches!(
                    event.kind,
                    EventKind::Connected { .. } | EventKind::Replaced { .. }
                );
                let elsewhere = || {
                    let ours = event.node.as_deref().zip(redis.toward().node());
                    ours.is_some_and(|(node, ours)| *node != *ours)
                };
                if anew && !elsewhere() {
                    redis.epoch_guard.doubt_all();
                }
            }
            Some(_) => redis.epoch_guard.doubt_all(),
            // The client is closed, and nothing will be connected to again.
            None => {
                let _ = gone.changed().await;
                return;
            }
        }
    }
}

/// Leaves no belief behind when the watching ends, with its runtime or by a panic: nobody would
/// hear that another Redis was connected to. A cache that is gone has no more to find out: it would
/// hold what it knew against whatever Redis is there by then.
struct DoubtAtEnd(Arc<RedisTier>, watch::Receiver<()>);

impl Drop for DoubtAtEnd {
    fn drop(&mut self) {
        let Self(redis, gone) = self;
        if gone.has_changed().is_ok() {
            redis.epoch_guard.doubt_all();
        }
    }
}
