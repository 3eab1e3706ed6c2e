//! Many keys at once: a read that loads what is missing in one query.
//!
//! A batch obeys the rules of single reads. Each missing key gets a flight of its own, so that
//! others join it and it joins others; each is filled under its own lease.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{join_all, select_all};

use super::database::{Asking, Permission};
use super::ending::{Ending, conclude, wait};
use super::keep::Stored;
use super::load::{Job, Stage, add_tags, take_over_tags};
use super::view::View;
use crate::answer::{Answer, StaleReason};
use crate::clock::{clock, take_a_turn};
use crate::error::{CacheError, LoadError};
use crate::flight::nesting::Loading;
use crate::flight::{Fallback, Follower, Leader};
use crate::freshness::Ttl;
use crate::guard::Urgency;
use crate::key::{Key, bounded};
use crate::monotonic::Monotonic;
use crate::parts::Inner;
use crate::tier::redis::{Lease, RedisAllowance, RedisFailure};

/// A read of many keys being put together; see [`View::read_many`].
///
/// ```no_run
/// # use steadfast_cache::View;
/// # async fn load_users(ids: &[u64]) -> std::io::Result<Vec<(u64, String)>> { Ok(Vec::new()) }
/// # async fn f(users: View<String>) {
/// let read = users.read_many(&[7, 8, 9]).tags_of(|id| [format!("team:{}", id % 2)]);
/// let read = read.or("somebody".to_owned());
/// let answers = read.get(|ids: Vec<u64>| async move { Ok(load_users(&ids).await?) }).await;
/// # }
/// ```
#[must_use = "a read does nothing until `get` is called and awaited"]
pub struct ReadMany<'a, V, K> {
    view: &'a View<V>,
    keys: &'a [K],
    /// One set for each key, beside those of the view.
    tags: Vec<Vec<Vec<u8>>>,
    default: Option<V>,
}

impl<V: Clone + Send + Sync + 'static> View<V> {
    /// Answers for many keys, in their order. What neither memory nor Redis has is loaded by one
    /// call of `load`, which is given those keys and answers with the pairs of key and value that
    /// there are; a key it leaves out is absent. However many keys it is, that is one load to the
    /// guard. Of what is held already the age is told as of the answer; if it has ceased to be
    /// fresh while the others were loaded, it says that it is stale ([`StaleReason::Slow`]). A
    /// class that never serves stale answers it as it was when the batch began.
    ///
    /// ```no_run
    /// # use std::collections::HashMap;
    /// # use steadfast_cache::View;
    /// # async fn load_users(ids: &[u64]) -> std::io::Result<HashMap<u64, String>> {
    /// #     Ok(HashMap::new())
    /// # }
    /// # async fn f(users: View<String>) {
    /// let load = |ids: Vec<u64>| async move { Ok(load_users(&ids).await?) };
    /// let answers = users.get_many(&[7, 8, 9], load).await;
    /// # }
    /// ```
    ///
    /// # Errors
    /// Each answer is its own: see [`View::get`].
    pub async fn get_many<K, L, F, I>(
        &self,
        keys: &[K],
        load: L,
    ) -> Vec<Result<Answer<V>, CacheError>>
    where
        K: Key + Clone + Eq + Hash + Send + Sync + 'static,
        I: IntoIterator<Item = (K, V)> + Send + 'static,
        L: FnOnce(Vec<K>) -> F + Send + 'static,
        F: Future<Output = Result<I, LoadError>> + Send + 'static,
    {
        self.read_many(keys).get(load).await
    }

    /// The long form of [`get_many`](Self::get_many), with more tags and a default.
    pub fn read_many<'a, K: Key>(&'a self, keys: &'a [K]) -> ReadMany<'a, V, K> {
        ReadMany {
            view: self,
            keys,
            tags: vec![Vec::new(); keys.len()],
            default: None,
        }
    }
}

impl<V: Clone + Send + Sync + 'static, K: Key> ReadMany<'_, V, K> {
    /// All the values belong to this tag, beside those of the view; see
    /// [`Read::tag`](crate::Read::tag).
    pub fn tag<T: AsRef<[u8]> + ?Sized>(self, tag: &T) -> Self {
        self.tags_of(|_| [tag.as_ref().to_vec()])
    }

    /// The value of each key belongs to the tags given for that key, beside those of the view.
    pub fn tags_of<I>(mut self, tags: impl Fn(&K) -> I) -> Self
    where
        I: IntoIterator<Item: Into<Vec<u8>>>,
    {
        for (key, named) in self.keys.iter().zip(&mut self.tags) {
            let tags = tags(key).into_iter().map(Into::into);
            named.extend(tags.map(|tag: Vec<u8>| bounded(&tag).into_owned()));
        }
        self
    }

    /// Sets the answer for a key when there is nothing to serve and nothing can be loaded, rather
    /// than an error. It is never stored.
    pub fn or(mut self, default: V) -> Self {
        self.default = Some(default);
        self
    }

    /// Answers; see [`View::get_many`].
    ///
    /// # Errors
    /// Each answer is its own: see [`View::get`]; none with a default.
    pub async fn get<L, F, I>(self, load: L) -> Vec<Result<Answer<V>, CacheError>>
    where
        K: Clone + Eq + Hash + Send + Sync + 'static,
        I: IntoIterator<Item = (K, V)> + Send + 'static,
        L: FnOnce(Vec<K>) -> F + Send + 'static,
        F: Future<Output = Result<I, LoadError>> + Send + 'static,
    {
        take_a_turn().await;
        let (view, ttl, now) = (self.view, self.view.ttl(), clock());
        let mut led = Vec::new();
        let slots: Vec<_> = self
            .keys
            .iter()
            .zip(self.tags)
            .map(|(key, tags)| take_slot(view, key, &tags, &ttl, now, &mut led))
            .collect();
        if !led.is_empty() {
            view.core()
                .under_way
                .spawn(lead_many(view.clone(), ttl, led, load));
        }
        let settled = join_all(slots.into_iter().map(|slot| async {
            match slot {
                BatchSlot::Settled(settled) => settled,
                BatchSlot::Flight(follower, held) => {
                    let parent = Loading::current(&view.core().flights);
                    Settled::Ended(wait(view, follower, held, &ttl, now, parent).await)
                }
            }
        }))
        .await;
        // Judged and dated when all are served, however long the last was waited for.
        let served = Monotonic::now();
        let endings = settled.into_iter().map(|settled| match settled {
            Settled::Ended(ending) => ending,
            Settled::Held(held, stale) => {
                let stale = stale.or_else(|| has_aged(view, &held, &ttl, served));
                Ok((held.loaded, stale))
            }
        });
        endings
            .map(|ending| conclude(view, ending, self.default.clone()))
            .collect()
    }
}

/// A flight to lead, and how.
struct Led<V, K> {
    leader: Leader,
    job: Job<V>,
    key: K,
}

enum BatchSlot {
    Settled(Settled),
    Flight(Follower, Option<Fallback>),
}

/// A key of which it is settled how it is answered.
enum Settled {
    /// With what memory held at the beginning; and why that was stale then, if it was.
    Held(Fallback, Option<StaleReason>),
    Ended(Ending),
}

/// The reason why what was fresh when the batch began is served as stale, if it is: others of the
/// batch took so long.
fn has_aged<V: Clone + Send + Sync + 'static>(
    view: &View<V>,
    held: &Fallback,
    ttl: &Ttl,
    now: Monotonic,
) -> Option<StaleReason> {
    let aged = !view.is_fresh(&held.loaded.entry, ttl, now) && view.may_serve_stale(held, ttl, now);
    aged.then_some(StaleReason::Slow)
}

/// Answers from memory, or finds a flight for the key; one that is still to be led is put into
/// `led`.
fn take_slot<V: Clone + Send + Sync + 'static, K: Key + Clone>(
    view: &View<V>,
    key: &K,
    tags: &[Vec<u8>],
    ttl: &Ttl,
    now: Instant,
    led: &mut Vec<Led<V, K>>,
) -> BatchSlot {
    let (name, cache, moment) = (view.name(key), view.core(), now.into());
    let named: Vec<&[u8]> = tags.iter().map(Vec::as_slice).collect();
    let held = view.held(key, &name, &named);
    let is_fresh = |held: &Fallback| view.is_fresh(&held.loaded.entry, ttl, moment);
    let held = match held {
        Some(held) if is_fresh(&held) => return BatchSlot::Settled(Settled::Held(held, None)),
        held => held,
    };
    let entry = held.as_ref().map(|held| held.loaded.entry.clone());
    let mut all = view.tags_of(key, &name);
    add_tags(&mut all, named.into_iter());
    if entry.is_none() {
        take_over_tags(&mut all, view.there(&name).as_deref());
    }
    let mut job = Job::new(view, *ttl, all, entry);
    let held = held.filter(|held| view.may_serve_stale(held, ttl, moment));
    job.held = held.as_ref().map(|held| held.loaded.entry.clone());
    let flights = &cache.flights;
    let held = match held {
        Some(held) if view.has_just_failed(&name, ttl, moment) => {
            return BatchSlot::Settled(Settled::Held(held, Some(StaleReason::Failed)));
        }
        held => held,
    };
    if let Err(error) = Loading::check(job.parent.as_ref(), &name) {
        return BatchSlot::Settled(Settled::Ended(Err(error)));
    }
    let world = (&cache.generations, &*cache.coherence);
    let joined = flights.board(&name, view.cargo(), &job.tags, world);
    let (leader, follower) = match joined.led() {
        Ok(both) => both,
        Err(follower) => return BatchSlot::Flight(follower, held),
    };
    job.carry_tags_of(&leader);
    let key = key.clone();
    led.push(Led { leader, job, key });
    BatchSlot::Flight(follower, held)
}

/// Leads the flights of a batch: asks Redis for each, all at once, and the database for the rest in
/// one call.
async fn lead_many<V, K, L, F, I>(view: View<V>, ttl: Ttl, led: Vec<Led<V, K>>, load: L)
where
    V: Clone + Send + Sync + 'static,
    K: Clone + Eq + Hash + Send + Sync,
    I: IntoIterator<Item = (K, V)> + Send + 'static,
    L: FnOnce(Vec<K>) -> F + Send + 'static,
    F: Future<Output = Result<I, LoadError>> + Send + 'static,
{
    let cache = view.core();
    let deadline = clock() + ttl.hard_limit;
    let missing = ask_redis_for_all(cache, led, deadline).await;
    if missing.is_empty() {
        return;
    }
    // As urgent as the most urgent of them.
    let urgency = missing.iter().map(|(led, _)| led.job.urgency()).max();
    let keys = missing.iter().map(|(led, _)| led.key.clone()).collect();
    let queued = || missing.iter().for_each(|(led, _)| led.leader.say_queued());
    let leaders: Vec<&Leader> = missing.iter().map(|(led, _)| &led.leader).collect();
    let lent = leaders.iter().map(|leader| Box::pin(leader.lent()));
    let lent = select_all(lent).map(|(by, _, _)| by);
    let parent = missing.first().and_then(|(led, _)| led.job.parent.clone());
    let permission = match &parent {
        Some(parent) => Permission::Nested(parent.clone()),
        None => Permission::Guard(urgency.unwrap_or(Urgency::Needed)),
    };
    let asking = Asking {
        class: view.class(),
        permission,
        limit: ttl.hard_limit,
        deadline,
    };
    let load = |slot| {
        Loading::within(cache.nesting(), &leaders, parent, slot, async move {
            let pairs = load(keys).await?;
            Ok(pairs.into_iter().collect::<HashMap<K, V>>())
        })
    };
    let loaded = cache.ask_database(asking, queued, lent, load).await;
    match loaded {
        Ok((values, cost)) => {
            let kept = missing.into_iter().filter_map(|(led, lease)| {
                // Not taken out: a key given twice is led twice if it was invalidated in between.
                let value = values.get(&led.key).cloned();
                match led.job.weigh(&led.leader, value) {
                    Ok(value) => led.job.keep(&led.leader, value, cost, lease),
                    Err(error) => {
                        cache.note_failure(led.leader.key(), &error);
                        led.leader.land(Err(error));
                        None
                    }
                }
            });
            // All of them have landed before the first is sent to Redis.
            let kept: Vec<_> = kept.collect();
            for chunk in in_chunks(kept) {
                join_all(chunk.into_iter().map(Stored::fill)).await;
            }
        }
        Err(error) => missing.iter().for_each(|(led, _)| {
            cache.note_failure(led.leader.key(), &error);
            led.leader.land(Err(error.clone()));
        }),
    }
}

/// Asks for each key, many at once but not all, so that a large batch leaves room on the client for
/// others. They share what one read may spend on Redis. Answers with those that have to be loaded.
async fn ask_redis_for_all<V, K>(
    cache: &Inner,
    led: Vec<Led<V, K>>,
    deadline: Instant,
) -> Vec<(Led<V, K>, Option<Lease>)>
where
    V: Clone + Send + Sync + 'static,
{
    let mut missing = Vec::new();
    let redis = cache.redis.as_ref();
    let mut allowance = redis.map(|redis| redis.allowance_until(deadline));
    for chunk in in_chunks(led) {
        let began = clock();
        let asked = chunk.into_iter().map(|mut led| {
            let allowance = allowance.clone();
            async move {
                let lease = ask_redis_once(cache, &mut led, deadline, allowance).await?;
                Some((led, lease))
            }
        });
        missing.extend(join_all(asked).await.into_iter().flatten());
        if let Some(allowance) = &mut allowance {
            allowance.charge(clock().saturating_duration_since(began));
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

/// `None` if Redis answered. A batch does not wait for another process that is loading one of its
/// keys: it loads that one too, without the right to store it.
async fn ask_redis_once<V, K>(
    cache: &Inner,
    Led { leader, job, .. }: &mut Led<V, K>,
    deadline: Instant,
    allowance: Option<RedisAllowance>,
) -> Option<Option<Lease>>
where
    V: Clone + Send + Sync + 'static,
{
    let pending = cache.is_pending(Some(leader.key()), &job.tags);
    let (Some(redis), Some(mut allowance)) = (cache.redis.as_ref().filter(|_| !pending), allowance)
    else {
        return without_lease(leader, job);
    };
    let asked = tokio::select! {
        biased;
        asked = job.look_and_lease(redis, leader, deadline, &mut allowance) => asked,
        // Nobody pays for a slow Redis twice.
        () = leader.hurried() => Err(RedisFailure::NoTime),
    };
    match asked {
        Ok(Some(Stage::Answered(loaded))) => {
            leader.land(Ok(loaded));
            None
        }
        Ok(Some(Stage::Load(lease))) => Some(lease),
        Ok(Some(Stage::Failed(retry_after))) => {
            leader.land(Err(CacheError::Unavailable { retry_after }));
            None
        }
        Ok(None) => Some(None),
        Err(trouble) => {
            cache.pass_by_redis(&trouble);
            without_lease(leader, job)
        }
    }
}

/// Nobody has looked whether the key is to be left alone for a while.
fn without_lease<V>(leader: &Leader, job: &Job<V>) -> Option<Option<Lease>>
where
    V: Clone + Send + Sync + 'static,
{
    let Some(retry_after) = job.is_left_alone(leader) else {
        return Some(None);
    };
    leader.land(Err(CacheError::Unavailable { retry_after }));
    None
}

/// Keys of a batch that are asked for at once: a sixteenth of what a client lets be in flight by
/// default.
const ASKED_AT_ONCE: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Source;
    use crate::parts::Cache;
    use crate::sql::{Database, DatabaseOptions};

    /// The batch has the key twice, and it is invalidated after the first of them has boarded.
    #[tokio::test]
    async fn k11_a_key_that_a_batch_leads_twice_is_not_remembered_as_absent() {
        let database = Database::connect("sqlite::memory:", DatabaseOptions::default()).unwrap();
        let builder = Cache::builder(database).class("user", Ttl::default());
        let cache = builder.build().await.unwrap();
        let users = cache.view::<String>("user").unwrap();
        let (ttl, mut led) = (users.ttl(), Vec::new());
        let mut board = || take_slot(&users, &"a", &[], &ttl, clock(), &mut led);
        let first = board();
        cache.inner.generations.bump_key(b"user:a");
        let second = board();
        assert_eq!(led.len(), 2, "both lead");
        let load = |keys: Vec<&'static str>| async {
            let value = |key| (key, "there".to_owned());
            Ok(keys.into_iter().map(value).collect::<Vec<_>>())
        };
        lead_many(users.clone(), ttl, led, load).await;
        for slot in [first, second] {
            let BatchSlot::Flight(mut follower, _) = slot else {
                panic!("nothing was in memory")
            };
            let outcome = follower.look(|progress| progress.outcome.clone());
            let entry = outcome.unwrap().unwrap().entry;
            assert_eq!(
                entry.value::<String>().unwrap().map(String::as_str),
                Some("there")
            );
        }
        let after = users.get_many(&["a"], load).await;
        let after = after.into_iter().next().unwrap().unwrap();
        assert_eq!(
            (after.value.as_deref(), after.source),
            (Some("there"), Source::Memory)
        );
    }
}
