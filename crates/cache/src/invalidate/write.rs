//! The write path: the change, its invalidation in the same transaction, and the commit, in an
//! order that cannot be got wrong.

use std::time::Duration;

use crate::clock::is_in_runtime;
use crate::outbox::Transactional;
use crate::parts::{Cache, Inner};
use crate::sql::{SourceError, Tx};
use crate::target::Target;

/// A write that has yet to say what it invalidates; see [`Cache::write`].
///
/// A write that does not say so cannot be committed:
///
/// ```compile_fail,E0599
/// # use steadfast_cache::{Cache, SourceError, Tx};
/// # async fn f(cache: Cache) -> Result<(), Box<dyn std::error::Error>> {
/// let rename = async |tx: &mut Tx| tx.execute("UPDATE users SET name = 'Ada'", &[]).await;
/// cache.write(rename).commit().await?;
/// # Ok(()) }
/// ```
///
/// ```no_run
/// # use steadfast_cache::{Cache, SourceError, Tx};
/// # async fn f(cache: Cache) -> Result<(), Box<dyn std::error::Error>> {
/// let count = async |tx: &mut Tx| tx.execute("UPDATE visits SET n = n + 1", &[]).await;
/// cache.write(count).invalidates_nothing().commit().await?;
/// # Ok(()) }
/// ```
/// One that is dropped is a warning of the compiler:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # use steadfast_cache::{Cache, Tx};
/// # fn f(cache: Cache) {
/// cache.write(async |tx: &mut Tx| tx.execute("UPDATE visits SET n = n + 1", &[]).await);
/// # }
/// ```
#[must_use = "say what the write invalidates, then commit it"]
pub struct Write<'a, F> {
    cache: &'a Cache,
    work: F,
}

/// A write that says what it invalidates. One that is not committed is a warning of the compiler:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # use steadfast_cache::{Cache, Tx};
/// # fn f(cache: Cache) {
/// let count = async |tx: &mut Tx| tx.execute("UPDATE visits SET n = n + 1", &[]).await;
/// cache.write(count).invalidates_nothing();
/// # }
/// ```
#[must_use = "nothing is written until `commit` is called and awaited"]
pub struct Commit<'a, F> {
    cache: &'a Cache,
    work: F,
    targets: Vec<Target>,
}

/// The result of a write that was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written<T> {
    /// The value that the work returned.
    pub value: T,
    /// Whether Redis has forgotten the old values already. If not, it will as soon as it can be
    /// reached, from whichever process gets there first; this process does not read them from Redis
    /// until then.
    pub applied: bool,
}

/// A write that was not committed, or perhaps not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError<E> {
    /// The work returned an error; everything was rolled back.
    #[error("the work failed and was rolled back: {0}")]
    Work(E),
    /// The database refused before the commit; everything was rolled back.
    #[error("nothing was written: {0}")]
    Source(SourceError),
    /// The commit failed. If the connection broke, whether it took effect is unknown; the targets
    /// were invalidated in this process in any case.
    #[error("whether the commit took effect is unknown: {0}")]
    Commit(SourceError),
}

/// Invalidations that were written into a transaction which the caller commits. Call
/// [`apply`](Self::apply) after the commit; if this is dropped instead, the same is done without
/// waiting, and the compiler warns:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # use steadfast_cache::{Cache, SourceError, Target, Tx};
/// # async fn f(cache: Cache, mut tx: Tx) -> Result<(), SourceError> {
/// cache.invalidate_in(&mut tx, &[Target::key("user:7")]).await?;
/// # Ok(()) }
/// ```
///
/// ```no_run
/// #![deny(unused_must_use)]
/// # use steadfast_cache::{Cache, SourceError, Target, Tx};
/// # async fn f(cache: Cache, mut tx: Tx) -> Result<(), SourceError> {
/// let invalidation = cache.invalidate_in(&mut tx, &[Target::key("user:7")]).await?;
/// tx.commit().await?;
/// invalidation.apply().await;
/// # Ok(()) }
/// ```
#[must_use = "after the commit, call `apply`"]
pub struct Invalidation<'a> {
    inner: &'a Inner,
    targets: Vec<Target>,
}

impl Cache {
    /// Runs `work` in a transaction of the cache's database, writes the invalidations given by
    /// [`Write::invalidates`] into the same transaction, and commits. After it has returned, this
    /// process reads nothing older than the write.
    ///
    /// ```no_run
    /// # use steadfast_cache::{Cache, Param, SourceError, Target, Tx};
    /// # async fn f(cache: Cache) -> Result<(), Box<dyn std::error::Error>> {
    /// let written = cache
    ///     .write(async |tx: &mut Tx| {
    ///         let values = [Param::Text("Ada".into()), Param::Int(7)];
    ///         tx.execute("UPDATE users SET name = ? WHERE id = ?", &values).await
    ///     })
    ///     .invalidates([Target::key("user:7"), Target::tag("users")])
    ///     .commit()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn write<F>(&self, work: F) -> Write<'_, F> {
        Write { cache: self, work }
    }

    /// Invalidates keys and tags, in all tiers and processes, durably: the order is in SQL before
    /// this returns. For changes made elsewhere; a change made through SQL here is better made by
    /// [`write`](Self::write) or with [`invalidate_in`](Self::invalidate_in), which cannot be torn
    /// apart by a crash.
    ///
    /// # Errors
    /// What the database said; then other processes have not been told. This process has forgotten
    /// the values in any case.
    pub async fn invalidate(&self, targets: &[Target]) -> Result<Written<()>, SourceError> {
        let targets = &targets.iter().map(Target::bounded).collect::<Vec<_>>()[..];
        self.inner.forget(targets);
        let Some(relay) = self
            .inner
            .relay
            .as_ref()
            .filter(|_| !self.inner.sabotage.outbox_off)
        else {
            return Ok(Written {
                value: (),
                applied: self.inner.apply(targets).await,
            });
        };
        relay.prepare().await?;
        let mut tx = self.inner.database.begin().await?;
        tx.insert(relay.outbox().namespace(), targets).await?;
        tx.commit().await?;
        Ok(Written {
            value: (),
            applied: self.inner.apply(targets).await,
        })
    }

    /// Writes invalidations into a transaction of the caller's own, on the cache's database. They
    /// take effect if it is committed.
    ///
    /// ```no_run
    /// # use steadfast_cache::{Cache, Pool, Target};
    /// # use steadfast_cache::sqlx::SqlitePool;
    /// # async fn f(cache: Cache, pool: SqlitePool) -> Result<(), Box<dyn std::error::Error>> {
    /// use steadfast_cache::sqlx;
    ///
    /// let mut tx = pool.begin().await?;
    /// sqlx::query("UPDATE users SET name = 'Ada' WHERE id = 7").execute(&mut *tx).await?;
    /// let invalidation = cache.invalidate_in(&mut tx, &[Target::key("user:7")]).await?;
    /// tx.commit().await?;
    /// invalidation.apply().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the database said; the transaction should be rolled back.
    pub async fn invalidate_in<T: Transactional>(
        &self,
        tx: &mut T,
        targets: &[Target],
    ) -> Result<Invalidation<'_>, SourceError> {
        let inner = &*self.inner;
        let targets = &targets.iter().map(Target::bounded).collect::<Vec<_>>()[..];
        if let Some(relay) = inner.relay.as_ref().filter(|_| !inner.sabotage.outbox_off) {
            // The tables may be made on another connection: on SQLite that would wait for this very
            // transaction, so it is only tried if it was not done when the cache was built.
            relay.prepare().await?;
            tx.insert(relay.outbox().namespace(), targets).await?;
        }
        Ok(Invalidation::new(inner, targets))
    }
}

impl<'a, F> Write<'a, F> {
    /// Names keys and tags that are invalidated by the write.
    pub fn invalidates(self, targets: impl IntoIterator<Item = Target>) -> Commit<'a, F> {
        self.invalidates_nothing().invalidates(targets)
    }

    /// The write changes nothing that is cached.
    pub fn invalidates_nothing(self) -> Commit<'a, F> {
        Commit {
            cache: self.cache,
            work: self.work,
            targets: Vec::new(),
        }
    }
}

impl<F> Commit<'_, F> {
    /// Names keys and tags that are invalidated too.
    pub fn invalidates(mut self, targets: impl IntoIterator<Item = Target>) -> Self {
        self.targets.extend(targets);
        self
    }

    /// Runs the work and commits.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn commit<T, E>(self) -> Result<Written<T>, WriteError<E>>
    where
        F: AsyncFnOnce(&mut Tx) -> Result<T, E>,
    {
        let inner = &*self.cache.inner;
        if let Some(relay) = &inner.relay {
            relay.prepare().await.map_err(WriteError::Source)?;
        }
        let mut tx = inner.database.begin().await.map_err(WriteError::Source)?;
        let value = match (self.work)(&mut tx).await {
            Ok(value) => value,
            Err(error) => {
                if let Err(error) = tx.rollback().await {
                    tracing::debug!(%error, "rollback");
                }
                return Err(WriteError::Work(error));
            }
        };
        let invalidation = self
            .cache
            .invalidate_in(&mut tx, &self.targets)
            .await
            .map_err(WriteError::Source)?;
        match tx.commit().await {
            Ok(()) => Ok(Written {
                value,
                applied: invalidation.apply().await,
            }),
            Err(error) => {
                drop(invalidation);
                Err(WriteError::Commit(error))
            }
        }
    }
}

impl<'a> Invalidation<'a> {
    pub(crate) fn new(inner: &'a Inner, targets: &[Target]) -> Self {
        Self {
            inner,
            targets: targets.to_vec(),
        }
    }

    /// Forgets the values in this process, and waits a moment for Redis to do so too. Says whether
    /// it did.
    pub async fn apply(mut self) -> bool {
        let targets = std::mem::take(&mut self.targets);
        self.inner.apply(&targets).await
    }
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        if !self.targets.is_empty() {
            self.inner.announce(&self.targets);
        }
    }
}

impl Inner {
    /// Takes the targets out of memory, and sees to it that nothing loaded before now gets in.
    pub(crate) fn forget(&self, targets: &[Target]) {
        for target in targets {
            match target {
                Target::Key(key) => {
                    if !self.sabotage.stripe_not_bumped {
                        self.generations.bump_key(key);
                    }
                    self.memory.remove(key);
                }
                Target::Tag(tag) => self.generations.bump_tag(tag),
                Target::All => {
                    self.generations.clear();
                    self.memory.clear();
                }
            }
        }
    }

    /// After a commit: forgets, and wakes the relay. Answers the round that will have applied it.
    fn announce(&self, targets: &[Target]) -> Option<u64> {
        self.stats.invalidations.add(targets.len() as u64);
        self.upkeep.ensure();
        let round = self.relay.as_ref().map(|relay| {
            // Pending first: a read that begins after this must not take the old value from Redis.
            let round = relay.next_round();
            relay.pending.add(targets, round);
            relay.wake();
            round
        });
        self.forget(targets);
        round
    }

    async fn apply(&self, targets: &[Target]) -> bool {
        let round = self.announce(targets);
        let (Some(relay), Some(redis), Some(round)) = (&self.relay, &self.redis, round) else {
            return true;
        };
        if self.sabotage.outbox_off {
            relay.pending.settle(u64::MAX);
            return redis.apply(0, targets, &[]).await.is_ok();
        }
        is_in_runtime() && redis.is_reachable() && relay.applied(round, APPLY_WAIT).await
    }
}

/// The time for which a writer waits to hear that Redis has forgotten the old values.
const APPLY_WAIT: Duration = Duration::from_millis(250);
