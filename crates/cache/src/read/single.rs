//! One read: a glance into memory, and what follows if that is not enough.

use std::borrow::Cow;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::database::{Asking, Permission};
use super::ending::{Ending, conclude, wait};
use super::glancing::glancing;
use super::load::{self, Job};
use super::own_look::Boarded;
use super::view::{Glance, View};
use crate::answer::{Answer, Source, StaleReason};
use crate::clock::{clock, is_in_runtime, take_a_turn};
use crate::error::{CacheError, LoadError};
use crate::flight::nesting::Loading;
use crate::flight::{Fallback, Follower};
use crate::freshness::Ttl;
use crate::guard::Urgency;
use crate::invalidate::write::Written;
use crate::key::{Key, KeyName, bounded};
use crate::monotonic::Monotonic;
use crate::sql::SourceError;
use crate::target::Target;

impl<V: Clone + Send + Sync + 'static> View<V> {
    /// Answers with the value of `key`, from memory, from Redis, or else by `load`, which says
    /// `None` if there is no such thing.
    ///
    /// The load runs in a task of its own and at most once at a time for a key; callers that come
    /// meanwhile wait for the same one. It is begun again after an invalidation, so that nobody
    /// gets what was loaded before its own write. Its error may be any ([`LoadError`]).
    ///
    /// # Errors
    /// [`CacheError`], if there is neither a value nor time, nor room, nor a working database to
    /// load one.
    pub fn get<K, L, F>(
        &self,
        key: K,
        load: L,
    ) -> impl Future<Output = Result<Answer<V>, CacheError>>
    where
        K: Key,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
    {
        glancing(
            (self, key, load),
            |(view, key, _)| view.glance(key, &[]),
            |(view, key, load), nothing_held| {
                view.read(key).get_otherwise(load, clock(), nothing_held)
            },
        )
    }

    /// The long form of [`get`](Self::get), with more tags, a default, or past the cache.
    pub fn read<K: Key>(&self, key: K) -> Read<'_, V, K> {
        Read::new(self, key)
    }

    /// Answers with the value of `key` if memory or Redis has one that is fresh, and loads nothing.
    ///
    /// ```no_run
    /// # use steadfast_cache::View;
    /// # async fn load_user(id: u64) -> std::io::Result<Option<String>> { Ok(None) }
    /// # async fn f(users: View<String>) -> Result<(), Box<dyn std::error::Error>> {
    /// if let Some(answer) = users.peek(7).await {
    ///     println!("{:?}, {:?} old", answer.value, answer.age);
    /// }
    /// // From the database, whatever is held.
    /// users.refresh(7, || async { Ok(load_user(7).await?) }).await?;
    /// users.put(8, "Grace".to_owned()).await; // by who knows the value
    /// users.expire(7).await?; // for everybody
    /// # Ok(()) }
    /// ```
    pub async fn peek<K: Key>(&self, key: K) -> Option<Answer<V>> {
        if let Glance::Hit(hit) = self.glance(&key, &[]) {
            return Some(hit.into());
        }
        take_a_turn().await;
        let name = self.name(&key);
        let (ttl, now) = (self.ttl(), Monotonic::now());
        let held = self
            .held::<&[u8]>(&key, &name, &[])
            .map(|held| held.loaded.entry);
        if let Some(entry) = held
            .as_ref()
            .filter(|entry| self.is_fresh(entry, &ttl, now))
        {
            return self.hit(entry, entry.age(now)).map(Answer::from);
        }
        if !is_in_runtime() {
            return None;
        }
        let tags = self.tags_of(&key, &name);
        let (leader, _) =
            self.core()
                .flights
                .begin(&name, self.cargo(), &tags, &self.core().generations, false);
        let found = Box::pin(load::look_only(&leader, Job::new(self, ttl, tags, held))).await?;
        self.answer(&found, None)
    }

    /// Loads the value of `key` whatever is held, stores it and answers with it. Who began to load
    /// it before stores nothing over it; a value that cannot be kept (too long, of no life) removes
    /// the older one. Nobody is told: others that hold the value keep theirs. What has *changed* is
    /// better [written](crate::Cache::write) or [expired](Self::expire).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn refresh<K, L, F>(&self, key: K, load: L) -> Result<Answer<V>, CacheError>
    where
        K: Key,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
    {
        Box::pin(self.read(key).get_anew(load)).await
    }

    /// Removes the value of `key` from all tiers of all processes, durably, as
    /// [`Cache::invalidate`](crate::Cache::invalidate) does: nothing is left that could be served
    /// as stale.
    ///
    /// # Errors
    /// As [`Cache::invalidate`](crate::Cache::invalidate).
    pub async fn expire<K: Key>(&self, key: K) -> Result<Written<()>, SourceError> {
        self.cache().invalidate(&[self.target(key)]).await
    }

    /// Returns the target that a write of this key invalidates.
    pub fn target<K: Key>(&self, key: K) -> Target {
        Target::key(&*self.whole_name(&key))
    }
}

/// A read being put together; see [`View::read`].
///
/// ```no_run
/// # use steadfast_cache::View;
/// # async fn load_user(id: u64) -> std::io::Result<Option<String>> { Ok(None) }
/// # async fn f(users: View<String>) -> Result<(), Box<dyn std::error::Error>> {
/// let load = || async { Ok(load_user(7).await?) };
/// // With one more tag, and something to show if all else fails.
/// let answer = users.read(7).tag("region:eu").or("somebody".to_owned()).get(load).await?;
/// // What the database says now, for this caller alone.
/// let answer = users.read(7).get_uncached(load).await?;
/// # Ok(()) }
/// ```
#[must_use = "a read does nothing until `get` is called and awaited"]
pub struct Read<'a, V, K> {
    view: &'a View<V>,
    key: K,
    tags: SmallVec<[Cow<'a, [u8]>; 2]>,
    default: Option<V>,
}

impl<'a, V: Clone + Send + Sync + 'static, K: Key> Read<'a, V, K> {
    fn new(view: &'a View<V>, key: K) -> Self {
        Self {
            view,
            key,
            tags: SmallVec::new(),
            default: None,
        }
    }

    /// The value belongs to this tag, beside those of the view: invalidating the tag invalidates
    /// it, for every reader. A value carries the tags that were named by the read that loaded it; a
    /// read that names a tag takes no value that does not carry it. What takes the place of a value
    /// carries its tags too, whoever loads it, but at most 16 that its own reader does not name.
    /// Tags that follow from the key are better said once, by [`View::tags_by`].
    pub fn tag<T: AsRef<[u8]> + ?Sized>(mut self, tag: &'a T) -> Self {
        self.tags.push(bounded(tag.as_ref()));
        self
    }

    /// The value belongs to all these tags.
    pub fn tags<T: AsRef<[u8]> + 'a>(mut self, tags: impl IntoIterator<Item = &'a T>) -> Self {
        self.tags
            .extend(tags.into_iter().map(|tag| bounded(tag.as_ref())));
        self
    }

    /// Sets the answer for when there is nothing to serve and nothing can be loaded, rather than an
    /// error. It is never stored.
    pub fn or(mut self, default: V) -> Self {
        self.default = Some(default);
        self
    }

    /// Answers; see [`View::get`].
    ///
    /// # Errors
    /// As [`View::get`]; none with a default.
    pub fn get<L, F>(self, load: L) -> impl Future<Output = Result<Answer<V>, CacheError>>
    where
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
    {
        glancing(
            (self, load),
            |(read, _)| read.view.glance(&read.key, &read.tags),
            |(read, load), nothing_held| read.get_otherwise(load, clock(), nothing_held),
        )
    }

    /// Passes the cache by: loads under the guard, for this caller alone, and stores nothing.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_uncached<L, F>(self, load: L) -> Result<Answer<V>, CacheError>
    where
        L: FnOnce() -> F + Send,
        F: Future<Output = Result<Option<V>, LoadError>> + Send,
    {
        take_a_turn().await;
        let (view, cache, ttl) = (self.view, self.view.core(), self.view.ttl());
        let permission = match Loading::current(&cache.flights) {
            Some(parent) => Permission::Within(parent),
            None => Permission::Guard(Urgency::Needed),
        };
        let asking = Asking {
            class: view.class(),
            permission,
            limit: ttl.hard_limit,
            deadline: clock() + ttl.hard_limit,
        };
        // In a box: it may be large, and would be a part of each future around it.
        let load = |slot| {
            let load = Box::pin(async { load().await });
            Loading::apart(cache.nesting(), slot, load)
        };
        let asked = cache.ask_database(asking, || (), pending(), load);
        let ending = Box::pin(asked).await;
        let loaded = ending.map(|(value, cost)| Answer {
            fresh_for: view.life(&ttl, value.as_ref()).fresh,
            value,
            source: Source::Database,
            age: cost,
            stale: None,
        });
        match loaded {
            Ok(answer) => {
                cache.stats.answered(Source::Database, false);
                Ok(answer)
            }
            Err(error) => conclude(view, Err(error), self.default),
        }
    }

    /// Answers a read that `began` with a glance, which may have found that memory holds nothing:
    /// then it is not looked at again, unless others have had a turn since.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function keeps its arguments twice"
    )]
    fn get_otherwise<L, F>(
        self,
        load: L,
        began: Instant,
        nothing_held: bool,
    ) -> impl Future<Output = Result<Answer<V>, CacheError>>
    where
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
    {
        async move {
            let (now, nothing_held) = match take_a_turn().await {
                true => (Monotonic::now(), false),
                false => (began.into(), nothing_held),
            };
            let (view, name) = (self.view, self.view.name(&self.key));
            // What is not needed while the reader looks at Redis is gone by then: so the future is
            // small.
            let (job, load) = match self.begin(&name, load, now, nothing_held) {
                Begun::Look(job, load) => (job, load),
                Begun::Answered(answer) => return Ok(answer),
                Begun::Ended(ending) => return conclude(view, ending, self.default),
                Begun::Waiting(follower, held, parent) => {
                    let waiting = wait_as_now(view, follower, held, began, parent);
                    return conclude(view, Box::pin(waiting).await, self.default);
                }
            };
            let (follower, found) = match view.look_or_board(&name, job, load, (began, now)).await {
                Boarded::Waiting(follower, found) => (follower, found),
                Boarded::Answered(loaded, now) => {
                    let answer = view.answer_at(now, &loaded, None);
                    // Whoever looks brings the view's own type.
                    let none = || conclude(view, Err(CacheError::Abandoned), self.default);
                    return answer.map_or_else(none, Ok);
                }
            };
            let waiting = wait_as_now(view, follower, found, began, None);
            conclude(view, Box::pin(waiting).await, self.default)
        }
    }

    /// Looks at what memory holds, and finds the way on.
    fn begin<L, F>(
        &self,
        name: &KeyName<'_>,
        load: L,
        now: Monotonic,
        nothing_held: bool,
    ) -> Begun<V, L>
    where
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
    {
        let view = self.view;
        let ttl = view.ttl();
        let held = match nothing_held {
            true => None,
            false => view.held(&self.key, name, &self.tags),
        };
        let entry = held.as_ref().map(|held| held.loaded.entry.clone());
        let mut tags = self.all_tags(name);
        // A glance that named no tag has seen all that there is.
        if entry.is_none() && !(nothing_held && self.tags.is_empty()) {
            load::take_over_tags(&mut tags, view.there(name).as_deref());
        }
        // In a box: what a hit in Redis holds while it waits is small then.
        let mut job = Box::new(Job::new(view, ttl, tags, entry.clone()));
        if let Some(entry) = entry.filter(|entry| view.is_fresh(entry, &ttl, now))
            && let Some(answer) = view.hit(&entry, entry.age(now)).map(Answer::from)
        {
            if wants_refresh(view, &ttl, &entry, answer.age)
                && !view.has_just_failed(name, &ttl, now)
            {
                job.early = true;
                view.board(name, *job, load);
            }
            return Begun::Answered(answer);
        }
        let held = held.filter(|held| view.may_serve_stale(held, &ttl, now));
        job.held = held.as_ref().map(|held| held.loaded.entry.clone());
        if let Some(held) = held
            .as_ref()
            .filter(|_| view.has_just_failed(name, &ttl, now))
        {
            return Begun::Ended(Ok((held.loaded.clone(), Some(StaleReason::Failed))));
        }
        if let Err(error) = Loading::check(job.parent.as_ref(), name) {
            return Begun::Ended(Err(error));
        }
        if held.is_none() && job.parent.is_none() && view.may_look_first(&ttl) {
            return Begun::Look(job, load);
        }
        let parent = job.parent.clone();
        Begun::Waiting(view.board(name, *job, load), held, parent)
    }

    /// Loads whatever is held.
    async fn get_anew<L, F>(self, load: L) -> Result<Answer<V>, CacheError>
    where
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
    {
        take_a_turn().await;
        let (view, began) = (self.view, clock());
        let name = view.name(&self.key);
        let held = view
            .held(&self.key, &name, &self.tags)
            .map(|held| held.loaded.entry);
        let mut tags = self.all_tags(&name);
        if held.is_none() {
            load::take_over_tags(&mut tags, view.there(&name).as_deref());
        }
        let mut job = Job::new(view, view.ttl(), tags, held);
        (job.held, job.anew) = (None, true);
        if let Err(error) = Loading::check(job.parent.as_ref(), &name) {
            return conclude(view, Err(error), self.default);
        }
        let (flights, generations) = (&view.core().flights, &view.core().generations);
        let (leader, follower) = flights.begin(&name, view.cargo(), &job.tags, generations, true);
        job.carry_tags_of(&leader);
        let (ttl, parent) = (job.ttl, job.parent.clone());
        view.core()
            .under_way
            .spawn(load::lead(leader, job, load, began));
        let ending = wait(view, follower, None, &ttl, began, parent).await;
        conclude(view, ending, self.default)
    }

    fn all_tags(&self, name: &KeyName<'_>) -> Vec<Vec<u8>> {
        let mut tags = self.view.tags_of(&self.key, name);
        load::add_tags(&mut tags, self.tags.iter().map(AsRef::as_ref));
        tags
    }
}

/// The way on of a read that a glance has not answered.
enum Begun<V, L> {
    /// The reader looks at Redis itself.
    Look(Box<Job<V>>, L),
    Answered(Answer<V>),
    Ended(Ending),
    /// The read waits for a flight, has perhaps something stale meanwhile, and may be within a
    /// load.
    Waiting(Follower, Option<Fallback>, Option<Arc<Loading>>),
}

/// Waits for a flight by the times that the class has now.
async fn wait_as_now<V: Clone + Send + Sync + 'static>(
    view: &View<V>,
    follower: Follower,
    held: Option<Fallback>,
    began: Instant,
    parent: Option<Arc<Loading>>,
) -> Ending {
    let ttl = view.ttl();
    wait(view, follower, held, &ttl, began, parent).await
}

fn wants_refresh<V: Clone + Send + Sync + 'static>(
    view: &View<V>,
    ttl: &Ttl,
    entry: &crate::tier::entry::Entry,
    age: Duration,
) -> bool {
    let (life, beta) = (view.life_of(entry, ttl), ttl.early_refresh);
    life.refresh_early(age, entry.cost(), beta, view.core().draw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::Cache;
    use crate::sql::{Database, DatabaseOptions};

    /// Hundreds of them wait at once, and are to lie in the processor's nearest caches.
    #[tokio::test]
    async fn k1_a_read_that_waits_for_redis_is_small() {
        let database = Database::connect("sqlite::memory:", DatabaseOptions::default()).unwrap();
        let builder = Cache::builder(database).class("user", Ttl::default());
        let users = builder
            .build()
            .await
            .unwrap()
            .view::<String>("user")
            .unwrap();
        let load = || async { Ok(None) };
        let bytes = size_of_val(&users.read(7).get_otherwise(load, clock(), true));
        assert!(bytes <= 1024, "{bytes}");
        let bytes = size_of_val(&users.get("7", load));
        assert!(
            bytes <= 40,
            "{bytes}: nearly all of them find their value in memory"
        );
    }

    #[tokio::test]
    async fn k1_a_read_that_has_ended_lets_its_loader_go_whoever_keeps_it() {
        let database = Database::connect("sqlite::memory:", DatabaseOptions::default()).unwrap();
        let builder = Cache::builder(database).class("user", Ttl::default());
        let cache = builder.build().await.unwrap();
        let users = cache.view::<String>("user").unwrap();
        let permit = Arc::new("a permit, say");
        for source in [Source::Database, Source::Memory] {
            let held = Arc::clone(&permit);
            let mut read = users.get(7, || async move { Ok(Some((*held).to_owned())) });
            let answer = (&mut read).await.unwrap();
            assert_eq!(answer.source, source);
            cache.finish_loads(Duration::from_secs(60)).await;
            assert_eq!(Arc::strong_count(&permit), 1, "{source:?}");
            assert!(matches!(read.await, Err(CacheError::Abandoned)), "again");
        }
    }
}
