//! What the leader of a flight does: ask Redis, get the right to fill, ask the database, store, tell.
//!
//! The order carries the proof that nothing overtaken is ever stored (K6). The counters of the memory tier were looked at when the
//! flight began, before anything was read. The lease is taken before the database is asked, so whatever invalidates the key
//! after the read takes the lease away. A step that fails only ever costs the right to store, never the answer; and all the steps that
//! ask Redis before the answer share one limit (K2).

use std::error::Error;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use steadfast_core::policy::breaker::Outcome;

use crate::answer::Source;
use crate::cache::{Inner, clock};
use crate::codec::message;
use crate::error::CacheError;
use crate::flight::{Leader, Loaded};
use crate::freshness::{Freshness, Lifetime, Ttl};
use crate::guard::{Refusal, Urgency};
use crate::moment::{Moment, Nanos};
use crate::source::SourceError;
use crate::tier::memory::{Entry, Times};
use crate::tier::redis::{Fill, Lease, Look, Patience, RedisTier, Stored, Trouble};

/// What is known when a flight begins.
pub(crate) struct Job<V> {
    pub(crate) class: Ttl,
    /// The number of the class at the guard.
    pub(crate) lane: usize,
    pub(crate) tags: Vec<Vec<u8>>,
    /// What the caller could serve meanwhile.
    pub(crate) held: Option<Arc<Entry<V>>>,
    /// Begun before it was necessary: gives way to any other process that does the same.
    pub(crate) early: bool,
}

impl<V> Job<V> {
    pub(crate) fn urgency(&self) -> Urgency {
        match &self.held {
            Some(held) => Urgency::Refresh { heat: held.heat() },
            None => Urgency::Needed,
        }
    }
}

/// What Redis had to say.
pub(crate) enum Stage<V> {
    Answered(Loaded<V>),
    /// The database must be asked; with the lease its answer may be stored in Redis.
    Load(Option<Lease>),
}

pub(crate) async fn lead<V, L, F, E>(inner: Arc<Inner<V>>, leader: Leader<V>, job: Job<V>, load: L)
where
    V: Clone + Send + Sync + 'static,
    L: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<Option<V>, E>> + Send + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    let deadline = clock() + job.class.hard_limit;
    let lease = match &inner.redis {
        None => None,
        Some(_) if inner.is_pending(Some(&leader.key), &job.tags) => None,
        Some(redis) => match inner.ask_redis(redis, &leader, &job, deadline).await {
            Stage::Answered(loaded) => return leader.land(Ok(loaded)),
            Stage::Load(lease) => lease,
        },
    };
    let place = (job.lane, job.urgency());
    let queued = || leader.say_queued();
    let loaded = inner
        .ask_database(place, job.class.hard_limit, deadline, queued, load)
        .await;
    match loaded {
        Ok((value, cost)) => {
            if let Some(kept) = inner.keep(&leader, &job.class, value, cost, lease) {
                kept.fill().await;
            }
        }
        Err(error) => leader.land(Err(error)),
    }
}

impl<V: Clone + Send + Sync + 'static> Inner<V> {
    /// Whether Redis may still hold what this process has overwritten.
    pub(crate) fn is_pending<T: AsRef<[u8]>>(&self, key: Option<&[u8]>, tags: &[T]) -> bool {
        self.relay
            .as_ref()
            .is_some_and(|relay| relay.pending.concerns(key, tags))
    }

    /// Looks, and if there is nothing takes the lease; while another process holds it, looks again.
    async fn ask_redis(
        &self,
        redis: &Arc<RedisTier>,
        leader: &Leader<V>,
        job: &Job<V>,
        deadline: Instant,
    ) -> Stage<V> {
        let mut patience = redis.patience();
        let give_up = deadline.min(clock() + self.lease_wait);
        let mut pause = FIRST_LOOK;
        loop {
            match self
                .look_and_lease(redis, leader, job, deadline, &mut patience)
                .await
            {
                Ok(Some(stage)) => return stage,
                Ok(None) => {}
                Err(trouble) => {
                    self.pass_by_redis(&trouble);
                    return Stage::Load(None);
                }
            }
            // Another process refreshes it: as long as the value is fresh that is soon enough. Once it is not, whoever has joined waits for the other's.
            if let Some(held) = job
                .held
                .as_ref()
                .filter(|held| job.early && self.is_fresh(held, Moment::now()))
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
        }
    }

    /// A read goes on without Redis.
    pub(crate) fn pass_by_redis(&self, trouble: &Trouble) {
        tracing::debug!(%trouble, "a read goes on without Redis");
        if matches!(trouble, Trouble::NoTime) {
            self.stats.redis_slow.add(1);
        }
    }

    /// `None`: another process is loading.
    pub(crate) async fn look_and_lease(
        &self,
        redis: &Arc<RedisTier>,
        leader: &Leader<V>,
        job: &Job<V>,
        deadline: Instant,
        patience: &mut Patience,
    ) -> Result<Option<Stage<V>>, Trouble> {
        let carries = |tags: &[&[u8]]| self.may_carry(leader, tags);
        let seen = match redis
            .look(&leader.key, &job.tags, patience, &carries)
            .await?
        {
            Look::Miss(seen) => seen,
            Look::Hit(stored) => {
                let seen = stored.seen.clone();
                if let Some(loaded) = self.take_in(leader, job, stored) {
                    return Ok(Some(Stage::Answered(loaded)));
                }
                seen
            }
        };
        let life = deadline.saturating_duration_since(clock()) + Duration::from_secs(1);
        let lease = redis
            .take_lease(&leader.key, &job.tags, &seen, life, patience)
            .await?;
        Ok(lease.map(|lease| Stage::Load(Some(lease))))
    }

    /// A value with tags that nobody named has been found: from here on they outdate the flight, and what this process has invalidated
    /// and Redis has not heard of makes it none. Whatever was invalidated before shows in the tokens, which are asked for after this.
    fn may_carry(&self, leader: &Leader<V>, tags: &[&[u8]]) -> bool {
        if self.sabotage.tags_dropped {
            return true;
        }
        leader.carries(self.generations.tag_stripes(tags));
        !self.is_pending(None, tags)
    }

    /// Takes a value from Redis into memory; `None` if it does not answer the read, in which case it may still be a fallback.
    fn take_in(&self, leader: &Leader<V>, job: &Job<V>, stored: Stored) -> Option<Loaded<V>> {
        let bytes = stored.payload.as_ref().map_or(0, Vec::len);
        let value = match stored
            .payload
            .map(|bytes| self.codec.decode(bytes))
            .transpose()
        {
            Ok(value) => value,
            Err(error) => {
                tracing::warn!(%error, "a value in Redis cannot be decoded and is treated as missing");
                self.stats.damaged.add(1);
                return None;
            }
        };
        let snapshot = &leader.snapshot_of_found();
        let now = Moment::now();
        let loaded_at = now.minus(stored.age.into());
        let times = Times {
            loaded_at,
            life: stored.life,
            cost: stored.cost,
            early_refresh: job.class.early_refresh,
        };
        let entry = Arc::new(Entry::new(&leader.key, value, times, snapshot, bytes));
        let loaded = Loaded {
            entry,
            source: Source::Redis,
        };
        let a_moment = Nanos::from(Duration::from_millis(1));
        let newer = |held: &Arc<Entry<V>>| loaded.entry.loaded_at.since(held.loaded_at) > a_moment;
        match loaded.entry.freshness(now) {
            Freshness::Fresh if !job.early || job.held.as_ref().is_none_or(newer) => {
                self.memory
                    .insert(&loaded.entry, snapshot, &self.generations);
                Some(loaded)
            }
            Freshness::Stale
                if self.may_serve_stale(&loaded.entry, &job.class, now) && job.held.is_none() =>
            {
                self.memory
                    .insert(&loaded.entry, snapshot, &self.generations);
                leader.offer_fallback(loaded);
                None
            }
            _ => None,
        }
    }

    /// Runs a loader under the guard and within its limit; answers with what it loaded and how long that took.
    pub(crate) async fn ask_database<T, L, F, E>(
        &self,
        (lane, urgency): (usize, Urgency),
        limit: Duration,
        deadline: Instant,
        queued: impl FnOnce(),
        load: L,
    ) -> Result<(T, Duration), CacheError>
    where
        L: FnOnce() -> F + Send,
        F: Future<Output = Result<T, E>> + Send,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let permit = self.guard.admit(lane, urgency, deadline, queued).await;
        let permit = permit.map_err(|refusal| match refusal {
            Refusal::Overloaded { retry_after } => CacheError::Overloaded { retry_after },
            Refusal::Class { bound, retry_after } => CacheError::ClassOverloaded {
                class: self.classes.name(lane).into(),
                bound,
                retry_after,
            },
            Refusal::Unavailable { retry_after } => CacheError::Unavailable { retry_after },
        })?;
        let began = clock();
        let guarded = AssertUnwindSafe(async move { load().await }).catch_unwind();
        let ended = tokio::time::timeout_at(deadline.into(), guarded).await;
        let cost = clock().saturating_duration_since(began);
        let (outcome, result) = match ended {
            Ok(Ok(Ok(value))) => (Outcome::Success, Ok((value, cost))),
            Ok(Ok(Err(error))) => {
                let error: Arc<dyn Error + Send + Sync> = Arc::from(error.into());
                (outcome_of(&*error), Err(CacheError::Load(error)))
            }
            Ok(Err(panic)) => {
                let message = message(&*panic);
                (Outcome::Success, Err(CacheError::LoadPanicked { message }))
            }
            Err(_late) => (Outcome::Failure, Err(CacheError::LoadTimeout { limit })),
        };
        permit.record(outcome);
        self.stats.loaded(result.is_ok(), cost);
        result
    }

    /// Puts what was loaded into memory and lands the flight. What is to be stored in Redis is left to be sent: no caller waits for that.
    pub(crate) fn keep(
        &self,
        leader: &Leader<V>,
        class: &Ttl,
        value: Option<V>,
        cost: Duration,
        lease: Option<Lease>,
    ) -> Option<Kept> {
        let encoded = match value
            .as_ref()
            .map(|value| self.codec.encode(value))
            .transpose()
        {
            Ok(encoded) => encoded,
            Err(error) => {
                leader.land(Err(CacheError::Encode(error)));
                return None;
            }
        };
        let length = encoded.as_ref().map_or(0, Bytes::len);
        let life = class.lifetime(value.is_none(), self.draw());
        let snapshot = leader.snapshot();
        // The database may have been read at any moment of the load: the age is counted from its beginning.
        let now = clock();
        let loaded_at = now.checked_sub(cost).unwrap_or(now);
        let times = Times {
            loaded_at: loaded_at.into(),
            life,
            cost,
            early_refresh: class.early_refresh,
        };
        let entry = Arc::new(Entry::new(&leader.key, value, times, snapshot, length));
        let keep = length <= self.value_max && !life.keep.is_zero();
        if keep {
            self.memory.insert(&entry, snapshot, &self.generations);
        } else {
            self.memory.remove(&leader.key);
        }
        let source = Source::Database;
        leader.land(Ok(Loaded { entry, source }));
        if length > self.value_max {
            self.stats.not_stored.add(1);
        }
        lease.filter(|_| keep).map(|lease| Kept {
            lease,
            encoded,
            life,
            cost,
            loaded_at,
        })
    }
}

/// What was loaded, and the right to store it in Redis.
pub(crate) struct Kept {
    lease: Lease,
    encoded: Option<Bytes>,
    life: Lifetime,
    cost: Duration,
    loaded_at: Instant,
}

impl Kept {
    pub(crate) async fn fill(self) {
        let fill = Fill {
            payload: self.encoded.as_deref(),
            life: self.life,
            cost: self.cost,
            loaded_at: self.loaded_at,
        };
        let filled = self.lease.fill(&fill).await;
        tracing::trace!(?filled, "fill");
    }
}

fn outcome_of(error: &(dyn Error + Send + Sync + 'static)) -> Outcome {
    if is_infrastructure(error) {
        Outcome::Failure
    } else {
        Outcome::Success
    }
}

/// Whether a loader's error says something about the database, rather than about the question.
fn is_infrastructure(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    let mut error: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = error {
        if let Some(source) = cause.downcast_ref::<SourceError>() {
            return source.is_passing();
        }
        if let Some(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed) =
            cause.downcast_ref::<sqlx::Error>()
        {
            return true;
        }
        error = cause.source();
    }
    false
}

/// Another process is loading: how soon to look, at first and at last.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(50);
