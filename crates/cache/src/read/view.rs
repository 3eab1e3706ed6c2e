//! One type's values, as their readers see them.
//!
//! All that a hit has to know is settled when the view is made: the class, the type, and which tags
//! its values carry. An entry that was stored by the same view is therefore taken at a glance; what
//! another view has stored under the same key is looked at more closely: it must be of the same
//! type and version, carry this view's tags, and be no older than this view's class allows.

use std::any::TypeId;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::answer::{Answer, Source};
use crate::classes::Class;
use crate::codec::Codec;
use crate::flight::{Cargo, Fallback, Loaded};
use crate::freshness::{Freshness, Life, Lifetime, Ttl};
use crate::key::{Key, KeyName, bounded};
use crate::monotonic::counter::at_latest;
use crate::monotonic::{Monotonic, NanoSpan};
use crate::parts::{Cache, Inner};
use crate::tier::entry::{Entry, Label, is_plain};

/// The values of one type in a [`Cache`](crate::Cache), with the times of one class; see
/// [`Cache::view`](crate::Cache::view).
///
/// ```no_run
/// # use steadfast_cache::{Cache, View};
/// # #[derive(Clone, serde::Serialize, serde::Deserialize)]
/// # struct User { name: String }
/// # async fn load_user(id: u64) -> std::io::Result<Option<User>> { Ok(None) }
/// # async fn f(cache: Cache) -> Result<(), Box<dyn std::error::Error>> {
/// let users: View<User> = cache.view("user")?.tag("users");
///
/// let user = users.get(7, || async { Ok(load_user(7).await?) }).await?.value;
/// # Ok(()) }
/// ```
///
/// A key or a tag may be of any length; one of more than 512 bytes is known, in Redis and in the
/// outbox, by its beginning and a hash of it.
///
/// Keys are those of the whole cache, so each view writes its own behind a prefix, which is the
/// name of its class unless it is given [another](Self::prefix). Two views that share a class and
/// mean different things need one each. That they are of different types is noticed, if serde has
/// different names for these: then each takes the other's values for missing. Two kinds of text
/// look alike.
pub struct View<V> {
    made: Arc<Made<V>>,
}

/// The choices by which a view was made.
struct Made<V> {
    cache: Cache,
    number: u64,
    prefix: Box<[u8]>,
    class: Arc<Class>,
    version: u32,
    tags: Vec<Vec<u8>>,
    tags_by: Option<TagsBy>,
    lifetime_by: Option<LifetimeBy<V>>,
    codec: Codec<V>,
    /// Whether it was told that a value cannot be kept.
    told: AtomicBool,
}

type TagsBy = Arc<dyn Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync>;
type LifetimeBy<V> = Arc<dyn Fn(&V) -> Lifetime + Send + Sync>;

impl<V> Clone for View<V> {
    fn clone(&self) -> Self {
        Self {
            made: self.made.clone(),
        }
    }
}

impl<V> Clone for Made<V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            number: self.number,
            prefix: self.prefix.clone(),
            class: self.class.clone(),
            version: self.version,
            tags: self.tags.clone(),
            tags_by: self.tags_by.clone(),
            lifetime_by: self.lifetime_by.clone(),
            codec: self.codec,
            told: AtomicBool::new(false),
        }
    }
}

impl<V> std::fmt::Debug for View<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("class", &self.made.class.name)
            .field("version", &self.made.version)
            .finish_non_exhaustive()
    }
}

/// The making of a view.
impl<V: Clone + Send + Sync + 'static> View<V> {
    pub(crate) fn new(cache: Cache, class: Arc<Class>, codec: Codec<V>) -> Self {
        let number = cache.inner.views.fetch_add(1, Ordering::Relaxed);
        let made = Made {
            cache,
            number,
            prefix: [class.name.as_bytes(), b":"].concat().into(),
            version: 0,
            tags: class.tags.to_vec(),
            class,
            tags_by: None,
            lifetime_by: None,
            codec,
            told: AtomicBool::new(false),
        };
        Self {
            made: Arc::new(made),
        }
    }

    /// Returns another view, which differs by this.
    fn but(mut self, change: impl FnOnce(&mut Made<V>)) -> Self {
        let made = Arc::make_mut(&mut self.made);
        made.number = made.cache.inner.views.fetch_add(1, Ordering::Relaxed);
        change(made);
        self
    }

    /// All keys are written behind this, rather than behind the name of the class and a colon.
    /// `users.get(7, …)` in the class `user` is the key `user:7` to everybody else, as in
    /// [`Target::key("user:7")`](crate::Target::key). With the prefix `""` keys are written as they
    /// are.
    ///
    /// ```
    /// # use steadfast_cache::{Cache, Database, DatabaseOptions, Target, View};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let database = Database::connect("sqlite::memory:", DatabaseOptions::default())?;
    /// # let cache = Cache::builder(database).class("user", Default::default()).build().await?;
    /// let names: View<String> = cache.view("user")?;
    /// let mails: View<String> = cache.view("user")?.prefix("mail:");
    /// assert_eq!(names.target(7), Target::key("user:7"));
    /// assert_eq!(mails.target(7), Target::key("mail:7"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn prefix(self, prefix: impl AsRef<[u8]>) -> Self {
        self.but(|made| made.prefix = prefix.as_ref().into())
    }

    /// The version of the type, by default 0. Count it up when the type changes in such a way that
    /// the old program could not read what the new one writes, or the new one the old: while both
    /// run, each then reads its own values only, and loads the other's anew.
    ///
    /// ```no_run
    /// # use steadfast_cache::{Cache, View};
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)]
    /// # struct User { name: String, born: u16 }
    /// # fn f(cache: &Cache) -> Result<(), Box<dyn std::error::Error>> {
    /// // Version 2: since there is `born`.
    /// let users: View<User> = cache.view("user")?.version(2);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn version(self, version: u32) -> Self {
        self.but(|made| made.version = version)
    }

    /// Every value carries this tag, however it is read, beside those of its class
    /// ([`CacheBuilder::class_tags`](crate::CacheBuilder::class_tags)). May be called repeatedly.
    #[must_use]
    pub fn tag(self, tag: impl AsRef<[u8]>) -> Self {
        self.but(|made| made.tags.push(bounded(tag.as_ref()).into_owned()))
    }

    /// The value of each key carries these tags too, however it is read. The key is given without
    /// the [`prefix`](Self::prefix), and the tags must depend on nothing else.
    ///
    /// ```no_run
    /// # fn f(views: steadfast_cache::View<String>) {
    /// // "eu/7" carries the tag "region:eu"
    /// let orders = views.tags_by(|key| {
    ///     let region = key.split(|byte| *byte == b'/').next().unwrap_or_default();
    ///     [[b"region:", region].concat()]
    /// });
    /// # }
    /// ```
    #[must_use]
    pub fn tags_by<I>(self, tags: impl Fn(&[u8]) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<Vec<u8>>>,
    {
        let by = move |key: &[u8]| tags(key).into_iter().map(Into::into).collect();
        self.but(|made| made.tags_by = Some(Arc::new(by)))
    }

    /// Lets a value choose its own life, shorter or longer than that of its class, as a token does
    /// that expires. It is counted from the load. A [`Duration`](std::time::Duration) is the time
    /// for which the value is fresh, and then it is gone: it is not served as stale, which a
    /// [`Lifetime`] can allow. Jitter shortens either. A class that never serves stale does not do
    /// so for such a value.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use steadfast_cache::{Cache, Lifetime, View};
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Token { text: String, seconds: u64 }
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Article { text: String, is_archived: bool }
    /// # fn f(cache: &Cache) -> Result<(), Box<dyn std::error::Error>> {
    /// let tokens: View<Token> = cache.view("token")?;
    /// let tokens = tokens.lifetime_by(|token| Duration::from_secs(token.seconds));
    ///
    /// let articles: View<Article> = cache.view("article")?;
    /// let articles = articles.lifetime_by(|article| Lifetime {
    ///     fresh: Duration::from_secs(if article.is_archived { 86_400 } else { 60 }),
    ///     stale: Duration::from_secs(3600),
    /// });
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn lifetime_by<L: Into<Lifetime>>(
        self,
        lifetime: impl Fn(&V) -> L + Send + Sync + 'static,
    ) -> Self {
        let by = move |value: &V| lifetime(value).into();
        self.but(|made| made.lifetime_by = Some(Arc::new(by)))
    }
}

impl<V> View<V> {
    /// The cache that it is a view of.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.made.cache
    }

    #[inline]
    pub(crate) fn core(&self) -> &Arc<Inner> {
        &self.made.cache.inner
    }

    pub(crate) fn codec(&self) -> &Codec<V> {
        &self.made.codec
    }

    pub(crate) fn class(&self) -> &Class {
        &self.made.class
    }

    pub(crate) fn ttl(&self) -> Ttl {
        self.made.class.ttl()
    }

    pub(crate) fn label(&self) -> Label {
        Label {
            view: self.made.number,
            class: self.made.class.number,
            version: self.stamp(),
        }
    }

    /// The version of the type, and which it is: what is stamped otherwise is not for this view.
    fn stamp(&self) -> u32 {
        self.made.version ^ self.made.codec.shape
    }

    /// A key as the cache knows it.
    #[inline]
    pub(crate) fn name<'k>(&self, key: &'k impl Key) -> KeyName<'k> {
        self.whole_name(key).bounded()
    }

    /// A key behind the view's prefix, however long it is: as a [`Target`](crate::Target) names it.
    #[inline]
    pub(crate) fn whole_name<'k>(&self, key: &'k impl Key) -> KeyName<'k> {
        key.name().behind(&self.made.prefix)
    }

    /// The tags that the value of this key carries, which is called so.
    pub(crate) fn tags_of(&self, key: &impl Key, name: &KeyName<'_>) -> Vec<Vec<u8>> {
        let made = &*self.made;
        let mut tags = made.tags.clone();
        tags.extend(key.tags().iter().map(|tag| bounded(tag).into_owned()));
        if let Some(by) = &made.tags_by {
            let key = name.whole().get(made.prefix.len()..).unwrap_or_default();
            tags.extend(by(key).iter().map(|tag| bounded(tag).into_owned()));
        }
        tags
    }

    /// The times of a value that has just been loaded.
    pub(crate) fn life(&self, ttl: &Ttl, value: Option<&V>) -> Life {
        let unit = self.core().draw();
        match value.zip(self.made.lifetime_by.as_ref()) {
            Some((value, by)) => ttl.own_life(by(value), unit),
            None => ttl.life(value.is_none(), unit),
        }
    }

    /// The times of a value that another view may have stored, in this process or another. It may
    /// have been loaded by another class, whose times are not ours; those that a value has chosen
    /// for itself are, if this view lets values choose.
    pub(crate) fn stored_life(&self, ttl: &Ttl, stored: Life, absent: bool) -> Life {
        if self.core().sabotage.class_ignored {
            return stored;
        }
        match stored.own && self.made.lifetime_by.is_some() {
            true if ttl.never_stale() => Life {
                keep: stored.fresh,
                ..stored
            },
            true => stored,
            false => stored.within(ttl, absent),
        }
    }
}

/// A fresh value out of memory. It becomes an answer where that is handed to the caller: whatever
/// is written twice is waited for.
pub(crate) struct Hit<V> {
    value: Option<V>,
    age: NanoSpan,
    fresh_for: NanoSpan,
}

impl<V> From<Hit<V>> for Answer<V> {
    #[inline]
    fn from(hit: Hit<V>) -> Self {
        Self {
            value: hit.value,
            source: Source::Memory,
            age: hit.age.into(),
            fresh_for: hit.fresh_for.into(),
            stale: None,
        }
    }
}

/// A look where a lock is held.
enum Seen {
    /// A value that was taken along, its age, and the age up to which it is fresh.
    Taken(NanoSpan, NanoSpan),
    /// With its age, for what may run code that others have written.
    Entry(Arc<Entry>, NanoSpan),
    /// An entry that does not answer at a glance.
    Something,
}

/// The outcome of a glance into memory.
pub(super) enum Glance<V> {
    Hit(Hit<V>),
    /// There is something, which does not answer at a glance.
    Something,
    /// Nothing that could be served.
    Nothing,
}

impl<V: Clone + Send + Sync + 'static> View<V> {
    pub(crate) fn cargo(&self) -> Cargo {
        Cargo {
            value: TypeId::of::<V>(),
            version: self.made.version,
            class: self.made.class.number,
            limit: self.ttl().hard_limit,
        }
    }

    /// All that a hit does, for nearly all hits: what is in memory, fresh beyond doubt and far from
    /// its end. Whatever else there is to say of the key is left to a longer look.
    #[inline(always)]
    pub(super) fn glance(&self, key: &impl Key, tags: &[Cow<'_, [u8]>]) -> Glance<V> {
        key.name()
            .read_behind(&self.made.prefix, |name| self.glance_at(key, name, tags))
    }

    #[inline(always)]
    fn glance_at(&self, key: &impl Key, name: &[u8], tags: &[Cow<'_, [u8]>]) -> Glance<V> {
        let cache = self.core();
        // Written here once and for all: what goes from hand to hand is copied each time.
        let mut value = None;
        let seen = cache.memory.ask(name, tags, &cache.generations, |entry| {
            // Not before the look-up: if it is a look at the clock it waits for what was asked of
            // memory, and what comes behind it is not begun meanwhile.
            let now = at_latest();
            let age = entry.age(now);
            if !entry.is_certain_at(age) || !cache.is_current(entry, now) {
                return Some(Seen::Something);
            }
            if entry.view() != self.made.number || !is_plain::<V>() {
                return Some(Seen::Entry(Arc::clone(entry), age));
            }
            let Some(held) = entry.value::<V>() else {
                return Some(Seen::Something);
            };
            value = held.cloned();
            self.count_hit(entry);
            Some(Seen::Taken(age, entry.fresh()))
        });
        match seen {
            Some(Seen::Taken(age, fresh_for)) => Glance::Hit(Hit {
                value,
                age,
                fresh_for,
            }),
            Some(Seen::Entry(entry, age)) => {
                let good = entry.view() == self.made.number || self.accepts(key, &entry, age);
                let hit = if good { self.hit(&entry, age) } else { None };
                hit.map_or(Glance::Something, Glance::Hit)
            }
            Some(Seen::Something) => Glance::Something,
            None => Glance::Nothing,
        }
    }

    /// Whether what another view has stored answers this one, at this age.
    #[cold]
    fn accepts(&self, key: &impl Key, entry: &Entry, age: NanoSpan) -> bool {
        self.can_read(key, &self.name(key), entry)
            && self.life_of(entry, &self.ttl()).judge(age.into()) == Freshness::Fresh
    }

    pub(crate) fn can_read(&self, key: &impl Key, name: &KeyName<'_>, entry: &Entry) -> bool {
        let made = &*self.made;
        entry.view() == made.number
            || entry.value::<V>().is_some()
                && entry.version() == self.stamp()
                && entry.carries(&self.tags_of(key, name), &made.cache.inner.generations)
    }

    /// The life of an entry, by this view's class. The life that a value has chosen, and its class
    /// would not have given it, is one only to views that let values choose.
    pub(crate) fn life_of(&self, entry: &Entry, ttl: &Ttl) -> Life {
        let (made, life) = (&*self.made, entry.life());
        let is_of_our_class = entry.class() == made.class.number && !life.own;
        if entry.view() == made.number || is_of_our_class {
            return life;
        }
        let absent = entry.value::<V>().is_none_or(|value| value.is_none());
        self.stored_life(ttl, life, absent)
    }

    /// Returns the value in memory, fresh or not, if this view can read it.
    pub(crate) fn held<T: AsRef<[u8]>>(
        &self,
        key: &impl Key,
        name: &KeyName<'_>,
        tags: &[T],
    ) -> Option<Fallback> {
        let cache = self.core();
        // Before the look: whatever invalidates the key from now on shows in it.
        let then = cache.generations.snapshot(name, tags);
        let entry = cache.memory.get(name, tags, &cache.generations)?;
        let readable = self.can_read(key, name, &entry);
        let source = Source::Memory;
        let loaded = Loaded { entry, source };
        readable.then_some(Fallback { loaded, then })
    }

    /// Returns what memory holds of this key, whether or not this view or this read can take it:
    /// whatever takes its place carries its tags, or invalidating one of them would leave that
    /// fresh.
    pub(crate) fn there(&self, name: &[u8]) -> Option<Arc<Entry>> {
        let cache = self.core();
        let inherits = !cache.sabotage.tags_stripped;
        let there = || cache.memory.get::<&[u8]>(name, &[], &cache.generations);
        inherits.then(there).flatten()
    }

    pub(crate) fn is_fresh(&self, entry: &Entry, ttl: &Ttl, now: Monotonic) -> bool {
        let age = entry.age(now).into();
        self.life_of(entry, ttl).judge(age) == Freshness::Fresh
            && self.core().is_current(entry, now)
    }

    /// Whether it may be served now, though it is not fresh: judged when it is served, not when it
    /// was found.
    pub(crate) fn may_serve_stale(&self, held: &Fallback, ttl: &Ttl, now: Monotonic) -> bool {
        let (entry, generations) = (&held.loaded.entry, &self.core().generations);
        let age = entry.age(now).into();
        !ttl.never_stale()
            && self.life_of(entry, ttl).judge(age) != Freshness::Expired
            && generations.is_uninvalidated(&held.then)
            && entry.tags_are_current(generations)
    }

    /// Whether a load failed so lately that another would be waited for in vain.
    pub(crate) fn has_just_failed(&self, name: &[u8], ttl: &Ttl, now: Monotonic) -> bool {
        let failures = &self.core().failures;
        failures.wait(name, now, ttl.retry_after).is_some()
    }

    /// Counts a value that cannot be kept, and tells of the first through this view.
    pub(crate) fn cannot_keep(&self, key: &[u8], problem: &dyn std::error::Error) {
        self.core().stats.not_encodable.add(1);
        if !self.made.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %problem,
                key = %String::from_utf8_lossy(key),
                value = std::any::type_name::<V>(),
                "a value cannot be written as it is, so it is answered but not kept; further ones through this view are only counted"
            );
        }
    }

    /// Takes the value from memory, and counts that.
    #[inline(always)]
    pub(crate) fn hit(&self, entry: &Entry, age: NanoSpan) -> Option<Hit<V>> {
        let value = entry.value::<V>()?;
        self.count_hit(entry);
        Some(Hit {
            value: value.cloned(),
            age,
            fresh_for: entry.fresh(),
        })
    }

    #[inline]
    fn count_hit(&self, entry: &Entry) {
        entry.count_hit();
        self.core().stats.hit();
    }
}

impl Inner {
    /// Whether no invalidation can have been missed.
    #[inline]
    fn is_current(&self, entry: &Entry, now: Monotonic) -> bool {
        entry.proof_epoch() == self.generations.proof_epoch()
            && self.coherence.vouches(entry.loaded_at, now)
    }
}
