//! The work of the leader of a flight: ask Redis, get the right to fill, ask the database, store,
//! tell.
//!
//! The order carries the proof that nothing overtaken is ever stored (K6). The counters of the
//! memory tier were looked at when the flight began, before anything was read. The lease is taken
//! before the database is asked, so whatever invalidates the key after the read takes the lease
//! away. A step that fails only ever costs the right to store, never the answer; and all the steps
//! that ask Redis before the answer share one limit (K2).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::database::{Asking, Permission};
use super::view::View;
use crate::answer::Source;
use crate::clock::clock;
use crate::error::{CacheError, LoadError};
use crate::flight::nesting::Loading;
use crate::flight::{Leader, Loaded, TAKEN_OVER};
use crate::freshness::{Freshness, Ttl};
use crate::guard::Urgency;
use crate::monotonic::counter::at_latest;
use crate::monotonic::{Monotonic, NanoSpan};
use crate::parts::Inner;
use crate::tier::entry::{Entry, TagNames, Times};
use crate::tier::redis::{
    Lease, Lookup, Predecessor, RedisAllowance, RedisFailure, RedisTier, RedisValue, SeenValue,
    Unfit, Wanted,
};

/// The task of a flight's leader, as known when the flight begins.
pub(crate) struct Job<V> {
    pub(crate) view: View<V>,
    pub(crate) ttl: Ttl,
    /// The tags that what is loaded will carry.
    pub(crate) tags: Vec<Vec<u8>>,
    /// The value that the caller could serve meanwhile.
    pub(crate) held: Option<Arc<Entry>>,
    /// Begun before it was necessary: gives way to any other process that does the same.
    pub(crate) early: bool,
    /// Takes nothing from Redis, and what began to be loaded before is not kept after it.
    pub(crate) anew: bool,
    /// The load that it is nested in.
    pub(crate) parent: Option<Arc<Loading>>,
    pub(crate) first_look: FirstLook,
}

/// The outcome of the reader's own look at Redis, before its flight was led.
pub(crate) enum FirstLook {
    /// There was none.
    None,
    /// Redis had nothing that answers the read; and so much may still be spent on it.
    Missed(SeenValue, RedisAllowance),
    /// Redis was of no use; and so much might still have been spent on it.
    InVain(RedisAllowance),
}

impl FirstLook {
    /// Returns what the read may still spend on Redis; `None` if it has asked nothing.
    pub(crate) fn left(&self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Missed(_, allowance) | Self::InVain(allowance) => Some(allowance.left()),
        }
    }
}

/// The outcome of a look at Redis, for a read.
enum Found {
    /// A value, and the moment at which it was judged.
    Answer(Loaded, Monotonic),
    Nothing(SeenValue),
}

/// The next step of a leader after it has asked Redis.
pub(crate) enum Stage {
    Answered(Loaded),
    /// The database must be asked; with the lease its answer may be stored in Redis.
    Load(Option<Lease>),
    /// A load failed so lately that what is stale has to do; another may be tried after so long.
    Failed(Duration),
}

/// Adds those that are not there yet.
pub(crate) fn add_tags<'t>(tags: &mut Vec<Vec<u8>>, more: impl Iterator<Item = &'t [u8]>) {
    for tag in more {
        if !tags.iter().any(|there| there == tag) {
            tags.push(tag.to_vec());
        }
    }
}

/// Adds the tags of what is there and does not answer the read: what takes its place carries them.
/// Of very many only the first, which were named last: readers who each name another tag come
/// without end.
pub(crate) fn take_over_tags(tags: &mut Vec<Vec<u8>>, there: Option<&Entry>) {
    let names = there.map_or(&[][..], Entry::tag_names);
    add_at_most(tags, names.iter().map(Vec::as_slice));
}

/// Returns the tags of what takes the place of these: its own, so many of the first, then those of
/// what lies in Redis and in memory. What is replaced again and again takes over no more than
/// what is replaced once.
pub(super) fn inherited(
    tags: &[Vec<u8>],
    own: usize,
    there: &Predecessor,
    held: Option<&Entry>,
) -> Vec<Vec<u8>> {
    let (own, before) = tags.split_at(own.min(tags.len()));
    let held = held.map_or(&[][..], Entry::tag_names);
    let others = there.tags.iter().chain(held).chain(before);
    let mut all = own.to_vec();
    add_at_most(&mut all, others.map(Vec::as_slice));
    all
}

fn add_at_most<'t>(tags: &mut Vec<Vec<u8>>, more: impl Iterator<Item = &'t [u8]>) {
    let named = tags.len();
    add_tags(tags, more);
    tags.truncate(named + TAKEN_OVER);
}

/// Leads a flight for a read that began at `began`.
pub(crate) async fn lead<V, L, F>(leader: Leader, mut job: Job<V>, load: L, began: Instant)
where
    V: Clone + Send + Sync + 'static,
    L: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<Option<V>, LoadError>> + Send + 'static,
{
    let cache = job.view.core().clone();
    let deadline = began + job.ttl.hard_limit;
    let lease = match &cache.redis {
        None => None,
        Some(_) if cache.is_pending(Some(leader.key()), &job.tags) => None,
        Some(redis) => match job.ask_redis(redis, &leader, deadline).await {
            Stage::Answered(loaded) => return leader.land(Ok(loaded)),
            Stage::Load(lease) => lease,
            Stage::Failed(retry_after) => {
                return leader.land(Err(CacheError::Unavailable { retry_after }));
            }
        },
    };
    if lease.is_none()
        && let Some(retry_after) = job.is_left_alone(&leader)
    {
        return leader.land(Err(CacheError::Unavailable { retry_after }));
    }
    let permission = match &job.parent {
        Some(parent) => Permission::Nested(parent.clone()),
        None => Permission::Guard(job.urgency()),
    };
    let asking = Asking {
        class: job.view.class(),
        permission,
        limit: job.ttl.hard_limit,
        deadline,
    };
    let (queued, parent) = (|| leader.say_queued(), job.parent.clone());
    let leaders = [&leader];
    let load = |slot| {
        Loading::within(cache.nesting(), &leaders, parent, slot, async {
            load().await
        })
    };
    let loaded = cache
        .ask_database(asking, queued, leader.lent(), load)
        .await;
    let loaded = loaded.and_then(|(value, cost)| Ok((job.weigh(&leader, value)?, cost)));
    match loaded {
        Ok((value, cost)) => {
            if job.anew && !value.can_be_kept {
                // Older than what the reader is told, and nothing takes its place.
                cache.remove(leader.key()).await;
            }
            if let Some(kept) = job.keep(&leader, value, cost, lease) {
                kept.fill().await;
            }
        }
        Err(error) => {
            cache.note_failure(leader.key(), &error);
            leader.land(Err(error));
        }
    }
}

/// Looks at Redis for a reader, in the reader's own task: a hit needs no other. What it finds out
/// otherwise goes into the job, for the leader of the flight. Nothing is `asked` earlier: a value
/// is as old as it was then, and what has passed since. This returns when it was judged, too.
pub(crate) async fn look_first<V>(
    cache: &Inner,
    leader: &Leader,
    job: &mut Job<V>,
    asked: Monotonic,
) -> Option<(Loaded, Monotonic)>
where
    V: Clone + Send + Sync + 'static,
{
    let redis = cache.redis.as_ref()?;
    if cache.is_pending(Some(leader.key()), &job.tags) {
        return None;
    }
    let mut allowance = redis.allowance_of(job.ttl.hard_limit);
    job.first_look = match job.look(redis, leader, asked, &mut allowance).await {
        Ok(Found::Answer(loaded, now)) => return Some((loaded, now)),
        Ok(Found::Nothing(seen)) => FirstLook::Missed(seen, allowance),
        Err(trouble) => {
            cache.pass_by_redis(&trouble);
            FirstLook::InVain(allowance)
        }
    };
    None
}

/// Takes a fresh value from Redis into memory, if it is there, and loads nothing.
pub(crate) async fn look_only<V>(leader: &Leader, job: Job<V>) -> Option<Loaded>
where
    V: Clone + Send + Sync + 'static,
{
    let cache = job.view.core();
    let redis = cache.redis.as_ref()?;
    if cache.is_pending(Some(leader.key()), &job.tags) {
        return None;
    }
    let carries = |tags: &[&[u8]]| cache.may_carry(leader, tags);
    let mut allowance = redis.allowance_of(job.ttl.hard_limit);
    let (wanted, asked) = (job.wanted(leader), Monotonic::now());
    let look = redis.look(&wanted, &mut allowance, &carries);
    match look.await {
        Ok(Lookup::Hit(stored)) => {
            let taken_in = job.take_in(leader, stored, asked).ok();
            taken_in.map(|(loaded, _)| loaded)
        }
        Ok(Lookup::Miss(_)) => None,
        Err(trouble) => {
            cache.pass_by_redis(&trouble);
            None
        }
    }
}

impl Inner {
    /// Whether Redis may still hold what this process has overwritten.
    pub(crate) fn is_pending<T: AsRef<[u8]>>(&self, key: Option<&[u8]>, tags: &[T]) -> bool {
        self.relay
            .as_ref()
            .is_some_and(|relay| relay.pending.concerns(key, tags))
    }

    pub(crate) fn note_failure(&self, key: &[u8], error: &CacheError) {
        self.failures.note(key, Monotonic::now(), error.was_tried());
    }

    /// A read goes on without Redis.
    pub(crate) fn pass_by_redis(&self, trouble: &RedisFailure) {
        tracing::debug!(%trouble, "a read goes on without Redis");
        if matches!(trouble, RedisFailure::NoTime) {
            self.stats.redis_slow.add(1);
        }
    }

    /// A value with tags that nobody named has been found: from here on they outdate the flight,
    /// and what this process has invalidated and Redis has not heard of makes it none. Whatever was
    /// invalidated before shows in the tokens, which are asked for after this.
    fn may_carry(&self, leader: &Leader, tags: &[&[u8]]) -> bool {
        if self.sabotage.tags_dropped {
            return true;
        }
        leader.carries(self.generations.tag_stripes(tags));
        !self.is_pending(None, tags)
    }
}

impl<V: Clone + Send + Sync + 'static> Job<V> {
    /// Takes over the tags that the flight's value has to carry.
    pub(crate) fn carry_tags_of(&mut self, leader: &Leader) {
        add_tags(&mut self.tags, leader.tags().iter().map(Vec::as_slice));
    }

    /// A load by this view, with these times of its class. What is loaded again keeps the tags of
    /// what is held, whoever asks for it.
    pub(crate) fn new(
        view: &View<V>,
        ttl: Ttl,
        mut tags: Vec<Vec<u8>>,
        held: Option<Arc<Entry>>,
    ) -> Self {
        view.core().upkeep.ensure();
        if let Some(entry) = &held
            && !view.core().sabotage.tags_stripped
        {
            add_tags(&mut tags, entry.tag_names().iter().map(Vec::as_slice));
        }
        Self {
            view: view.clone(),
            ttl,
            tags,
            held,
            early: false,
            anew: false,
            parent: Loading::current(&view.core().flights),
            first_look: FirstLook::None,
        }
    }

    pub(crate) fn urgency(&self) -> Urgency {
        match &self.held {
            Some(held) => Urgency::Refresh {
                hit_count: held.hit_count(),
            },
            None => Urgency::Needed,
        }
    }

    /// Looks, and if there is nothing takes the lease; while another process holds it, looks again.
    async fn ask_redis(
        &mut self,
        redis: &Arc<RedisTier>,
        leader: &Leader,
        deadline: Instant,
    ) -> Stage {
        let cache = self.view.core().clone();
        let (mut seen, mut allowance) =
            match std::mem::replace(&mut self.first_look, FirstLook::None) {
                FirstLook::None => (None, redis.allowance_until(deadline)),
                FirstLook::Missed(seen, allowance) => (Some(seen), allowance),
                FirstLook::InVain(_) => return Stage::Load(None),
            };
        let give_up = waits_until(clock(), cache.lease_wait, deadline, &self.ttl);
        let mut pause = FIRST_LOOK;
        let mut is_first = true;
        loop {
            let asking = async {
                match seen.take() {
                    Some(seen) => {
                        self.lease(redis, leader, deadline, seen, &mut allowance)
                            .await
                    }
                    None => {
                        self.look_and_lease(redis, leader, deadline, &mut allowance)
                            .await
                    }
                }
            };
            let asked = tokio::select! {
                biased;
                asked = asking => asked,
                // Nobody pays for a slow Redis twice. What is asked while another process loads is
                // the load's time.
                () = leader.hurried(), if is_first => Err(RedisFailure::NoTime),
            };
            is_first = false;
            match asked {
                Ok(Some(stage)) => return stage,
                Ok(None) => {}
                Err(trouble) => {
                    cache.pass_by_redis(&trouble);
                    return Stage::Load(None);
                }
            }
            // Another process refreshes it: as long as the value is fresh that is soon enough. Once
            // it is not, whoever has joined waits for the other's.
            if self.early
                && let Some(held) = &self.held
                && self.view.is_fresh(held, &self.ttl, Monotonic::now())
            {
                return Stage::Answered(Loaded {
                    entry: held.clone(),
                    source: Source::Memory,
                });
            }
            if clock() + pause >= give_up {
                return Stage::Load(None);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
            // Looking for another's value is the load's time, not Redis's: each look has an
            // allowance of its own.
            allowance = redis.allowance_until(deadline);
        }
    }

    /// A load failed lately, and what Redis had can be served as stale; or there is nothing, and it
    /// has failed again and again: when another may be tried.
    fn has_just_failed(&self, leader: &Leader) -> Option<Duration> {
        let (cache, now) = (self.view.core(), Monotonic::now());
        let held = leader.fallback();
        let may = held.is_some_and(|held| self.view.may_serve_stale(&held, &self.ttl, now));
        if !may {
            return self.is_left_alone(leader);
        }
        let retry_after = cache
            .failures
            .wait(leader.key(), now, self.ttl.retry_after)?;
        (!self.anew).then_some(retry_after)
    }

    /// There is nothing to serve, and loading it has failed again and again: when it may be tried
    /// again.
    pub(crate) fn is_left_alone(&self, leader: &Leader) -> Option<Duration> {
        if self.anew || self.held.is_some() {
            return None;
        }
        let failures = &self.view.core().failures;
        failures.hold(leader.key(), Monotonic::now(), self.ttl.retry_after)
    }

    /// `None`: another process is loading.
    pub(crate) async fn look_and_lease(
        &mut self,
        redis: &Arc<RedisTier>,
        leader: &Leader,
        deadline: Instant,
        allowance: &mut RedisAllowance,
    ) -> Result<Option<Stage>, RedisFailure> {
        let asked = Monotonic::now();
        match self.look(redis, leader, asked, allowance).await? {
            Found::Answer(loaded, _) => Ok(Some(Stage::Answered(loaded))),
            Found::Nothing(seen) => self.lease(redis, leader, deadline, seen, allowance).await,
        }
    }

    fn wanted<'a>(&'a self, leader: &'a Leader) -> Wanted<'a> {
        Wanted {
            key: leader.key(),
            tags: &self.tags,
            class: self.view.class().number,
        }
    }

    /// Looks for a value in Redis, and takes it into memory. Nothing is `asked` earlier.
    async fn look(
        &mut self,
        redis: &Arc<RedisTier>,
        leader: &Leader,
        asked: Monotonic,
        allowance: &mut RedisAllowance,
    ) -> Result<Found, RedisFailure> {
        let carries = |tags: &[&[u8]]| self.view.core().may_carry(leader, tags);
        let wanted = self.wanted(leader);
        let look = redis.look(&wanted, allowance, &carries);
        let stored = match look.await? {
            Lookup::Miss(Unfit { seen, tags }) => {
                self.take_over(leader, &tags);
                return Ok(Found::Nothing(seen));
            }
            Lookup::Hit(stored) => stored,
        };
        match self.take_in(leader, stored, asked) {
            Ok((loaded, now)) => Ok(Found::Answer(loaded, now)),
            Err(Unfit { seen, tags }) => {
                // What takes its place carries its tags.
                if !self.view.core().sabotage.tags_stripped {
                    add_tags(&mut self.tags, tags.iter().map(Vec::as_slice));
                }
                Ok(Found::Nothing(seen))
            }
        }
    }

    /// What takes the place of a value that lacks some of the tags carries its own too; they
    /// outdate the flight from now on.
    fn take_over(&mut self, leader: &Leader, tags: &[Vec<u8>]) {
        let cache = self.view.core();
        if cache.sabotage.tags_stripped {
            return;
        }
        let named = self.tags.len();
        add_at_most(&mut self.tags, tags.iter().map(Vec::as_slice));
        let more = &self.tags[named..];
        if !more.is_empty() {
            leader.carries(cache.generations.tag_stripes(more));
        }
    }

    /// Asks for the right to fill, after a look that has found nothing. `None`: another process is
    /// loading. Who loads anew takes the right from it: what that one loads may be older.
    async fn lease(
        &mut self,
        redis: &Arc<RedisTier>,
        leader: &Leader,
        deadline: Instant,
        seen: SeenValue,
        allowance: &mut RedisAllowance,
    ) -> Result<Option<Stage>, RedisFailure> {
        if let Some(retry_after) = self.has_just_failed(leader) {
            return Ok(Some(Stage::Failed(retry_after)));
        }
        let life = deadline.saturating_duration_since(clock()) + Duration::from_secs(1);
        let lease = redis
            .take_lease(leader.key(), &self.tags, &seen, life, self.anew, allowance)
            .await?;
        Ok(lease.map(|lease| Stage::Load(Some(lease))))
    }

    /// Takes a value from Redis into memory. One that does not answer the read may still be a
    /// fallback. Its age is counted from when Redis was asked: whoever waits for the answer may not
    /// look at it for a long time after it has come. Returns when it was judged, too.
    fn take_in(
        &self,
        leader: &Leader,
        stored: RedisValue,
        asked: Monotonic,
    ) -> Result<(Loaded, Monotonic), Unfit> {
        let (view, cache) = (&self.view, self.view.core());
        let RedisValue { seen, tags, .. } = stored;
        let unfit = |tags: &[Vec<u8>]| {
            let tags = tags.to_vec();
            Err(Unfit { seen, tags })
        };
        if self.anew || stored.type_version != view.label().version {
            return unfit(&tags);
        }
        let bytes = stored.payload.as_ref().map_or(0, Vec::len);
        let value = match stored
            .payload
            .map(|bytes| view.codec().decode(bytes))
            .transpose()
        {
            Ok(value) => value,
            // What serde says of it may quote the value.
            Err(_untold) => {
                tracing::warn!(
                    value = std::any::type_name::<V>(),
                    class = %view.class().name,
                    "a value in Redis cannot be read as this type and is treated as missing"
                );
                cache.stats.damaged.add(1);
                return unfit(&tags);
            }
        };
        let snapshot = &*leader.snapshot();
        let now = at_latest();
        let times = Times {
            loaded_at: asked.minus(stored.age.into()),
            life: view.stored_life(&self.ttl, stored.life, value.is_none()),
            cost: stored.cost,
            early_refresh: self.ttl.early_refresh,
        };
        let tags = TagNames::from(tags);
        let governed = (snapshot, tags.clone());
        let entry = Entry::new(leader.key(), value, times, governed, view.label(), bytes);
        let loaded = Loaded {
            entry,
            source: Source::Redis,
        };
        let a_moment = NanoSpan::from(Duration::from_millis(1));
        let newer = |held: &Arc<Entry>| loaded.entry.loaded_at.since(held.loaded_at) > a_moment;
        let keep = || {
            cache
                .memory
                .insert(&loaded.entry, snapshot, &cache.generations)
        };
        // If SQL was not held against Redis yet, then as memory that nobody vouches for it is fresh
        // only while it is young.
        let vouched = stored.proven || cache.coherence.vouches(times.loaded_at, now);
        let freshness = match times.life.judge(now.since(times.loaded_at).into()) {
            Freshness::Fresh if !vouched => Freshness::Stale,
            other => other,
        };
        match freshness {
            Freshness::Fresh if !self.early || self.held.as_ref().is_none_or(newer) => {
                keep();
                return Ok((loaded, now));
            }
            Freshness::Stale if !self.ttl.never_stale() && self.held.is_none() => {
                keep();
                leader.offer_fallback(loaded);
            }
            _ => {}
        }
        unfit(&tags)
    }
}

/// Returns until when a read that has to have ended by `deadline` waits for the value of another
/// process: half of its time is left to the load itself.
fn waits_until(now: Instant, lease_wait: Duration, deadline: Instant, ttl: &Ttl) -> Instant {
    let half = deadline.checked_sub(ttl.hard_limit / 2).unwrap_or(now);
    (now + lease_wait).min(half)
}

/// The pauses between looks while another process is loading, at first and at last.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k11_what_is_replaced_again_and_again_takes_over_no_more_tags_than_once() {
        let names = |names: std::ops::Range<u32>| -> Vec<Vec<u8>> {
            names.map(|n| n.to_string().into_bytes()).collect()
        };
        let mut tags = names(0..2);
        for round in 1..10 {
            let found = names(round * 100..round * 100 + 5);
            tags = inherited(&tags, 2, &Predecessor::with_tags(found.clone()), None);
            assert_eq!(tags[..2], names(0..2), "its own");
            assert_eq!(tags[2..7], found, "those of late");
            assert!(tags.len() <= 2 + TAKEN_OVER);
        }
        assert_eq!(tags.len(), 2 + TAKEN_OVER);
    }

    #[test]
    fn k13_who_waits_for_anothers_value_leaves_half_of_the_reads_time_to_the_load() {
        let (ttl, now) = (Ttl::default(), clock());
        let (hard, second) = (ttl.hard_limit, Duration::from_secs(1));
        let until = |spent, wait| {
            let deadline = now + hard - spent;
            waits_until(now, wait, deadline, &ttl).saturating_duration_since(now)
        };
        assert_eq!(until(Duration::ZERO, hard * 2), hard / 2);
        assert_eq!(until(Duration::ZERO, second), second, "no longer than that");
        let spent = hard / 4;
        assert_eq!(until(spent, hard * 2), hard / 2 - spent, "on its own look");
        assert_eq!(until(hard, second), Duration::ZERO);
    }
}
