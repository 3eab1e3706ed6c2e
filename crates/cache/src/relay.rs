//! The carrying of invalidations from the outbox to Redis: by which process, and when.
//!
//! A process that has just committed wakes its relay, so that in health Redis knows within a round
//! trip or two. Every process also looks every `outbox_poll`, so what a dead process left behind,
//! or could not deliver while Redis was down, is delivered by whoever sees it first. Applying is
//! idempotent, so that a relay that dies between Redis and its commit costs nothing but doing it
//! again.
//!
//! A row that nobody gets applied means that Redis holds a value which SQL has overtaken. After
//! `outbox_lag_max` Redis is therefore not read any more, by any process that sees the row, until
//! the outbox is drained.
//!
//! Delivering and looking have connections of their own in the database, one each, and the database
//! bounds how long either may keep a lock or wait for one. So a relay that is stuck, or cut off in
//! the midst, costs the others a second, and loads that hold every connection of the pool cost them
//! nothing.

mod lag;
pub(crate) mod pending;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::clock::clock;
use crate::guard::LoadAdmission;
use crate::monotonic::Monotonic;
use crate::outbox::{BATCH, Glance, Outbox};
use crate::sql::SourceError;
use crate::stats::Stats;
use crate::tier::coherence::Coherence;
use crate::tier::redis::epoch_guard::{ROLLED_BACK, TAKEN, Vantage};
use crate::tier::redis::{RedisFailure, RedisTier};
use lag::LagWatch;
use pending::Pending;

pub(crate) struct Relay {
    outbox: Outbox,
    served: Served,
    pub(crate) pending: Arc<Pending>,
    poll: Duration,
    lag_max: Duration,
    rows_max: i64,
    /// The last row of those that a full outbox is being rid of.
    collapsing: parking_lot::Mutex<Option<i64>>,
    wake: Notify,
    rounds: watch::Sender<Rounds>,
    prepared: tokio::sync::OnceCell<()>,
    lag: parking_lot::Mutex<Option<Duration>>,
    /// Rows to be taken at a time.
    batch: AtomicUsize,
    /// The reasons why the outbox cannot be looked at, and why it cannot be drained.
    trouble: parking_lot::Mutex<[Option<String>; 2]>,
}

/// The parts that a relay delivers to, and those that it tells how that goes.
pub(crate) struct Served {
    pub(crate) redis: Arc<RedisTier>,
    pub(crate) coherence: Arc<Coherence>,
    pub(crate) guard: LoadAdmission,
    pub(crate) stats: Arc<Stats>,
}

/// A round that ends has found nothing left of what was committed before it began.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    begun: u64,
    ended: u64,
}

/// The times at which to look, and to worry.
pub(crate) struct RelayOptions {
    pub(crate) poll: Duration,
    pub(crate) lag_max: Duration,
    pub(crate) rows_max: i64,
    pub(crate) pending_names: usize,
}

impl Relay {
    pub(crate) fn new(outbox: Outbox, served: Served, options: &RelayOptions) -> Self {
        Self {
            outbox,
            served,
            pending: Arc::new(Pending::new(options.pending_names)),
            poll: options.poll,
            lag_max: options.lag_max,
            rows_max: options.rows_max,
            collapsing: parking_lot::Mutex::default(),
            wake: Notify::new(),
            rounds: watch::Sender::default(),
            prepared: tokio::sync::OnceCell::new(),
            lag: parking_lot::Mutex::default(),
            batch: AtomicUsize::new(BATCH),
            trouble: parking_lot::Mutex::default(),
        }
    }

    /// Creates the tables if that has not been done. A write needs them.
    pub(crate) async fn prepare(&self) -> Result<(), SourceError> {
        self.prepared
            .get_or_try_init(|| self.outbox.prepare())
            .await
            .map(drop)
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Age of the oldest row, as last seen.
    pub(crate) fn lag(&self) -> Option<Duration> {
        *self.lag.lock()
    }

    /// Returns the round by whose end all that is committed now will have been applied.
    pub(crate) fn next_round(&self) -> u64 {
        self.rounds.borrow().begun + 1
    }

    /// Wakes it: something has been committed.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until that round has ended; false if it has not within `limit`.
    pub(crate) async fn applied(&self, round: u64, limit: Duration) -> bool {
        let mut rounds = self.rounds.subscribe();
        let ended = rounds.wait_for(|rounds| rounds.ended >= round);
        tokio::time::timeout(limit, ended)
            .await
            .is_ok_and(|ended| ended.is_ok())
    }

    /// Returns why the outbox cannot be looked at or drained, if it cannot.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.iter().flatten().next().cloned()
    }

    /// Delivers whenever something was committed or was seen to wait, until the cache is gone.
    pub(crate) async fn run(self: Arc<Self>, mut gone: watch::Receiver<()>) {
        let mut failures = 0;
        loop {
            tokio::select! {
                _ = gone.changed() => return,
                () = self.wake.notified() => {}
            }
            let round = self.begin_round();
            let drained = self.drain().await;
            // That nobody could be delivered to says nothing of what went wrong before.
            if !matches!(drained, Ok(false)) {
                self.note(DRAIN, drained.as_ref().err());
            }
            match drained {
                Ok(true) => self.end_round(round),
                Ok(false) => {}
                // It does not pass by itself: what was applied to Redis stays in the table, and
                // would be applied again and again.
                Err(Undelivered::Outbox(error)) if !error.is_passing() => {
                    let pause = self.poll * (1 << failures.min(6));
                    failures += 1;
                    tokio::select! {
                        _ = gone.changed() => return,
                        () = tokio::time::sleep(pause.min(LONGEST_PAUSE)) => {}
                    }
                    continue;
                }
                Err(_) => {}
            }
            failures = 0;
        }
    }

    /// Looks every so often, until the cache is gone. Apart from the delivering, which may have to
    /// wait for a lock: that nobody gets to deliver is just what has to be noticed.
    pub(crate) async fn keep_watch(self: Arc<Self>, mut gone: watch::Receiver<()>) {
        let mut watcher = LagWatch::default();
        let mut asking = JoinSet::new();
        loop {
            let round = self.begin_round();
            self.hear_redis(&mut asking).await;
            let looked = self.look(&mut watcher).await;
            self.note(LOOK, looked.as_ref().err());
            match looked {
                Ok(true) => {
                    // Another process may have drained it.
                    self.note(DRAIN, None::<&SourceError>);
                    self.end_round(round);
                }
                Ok(false) => self.wake(),
                Err(_) => {}
            }
            let epochs = &self.served.redis.epoch_guard;
            let pause = match epochs.is_rolled_back() {
                // The order to invalidate everything could not be given.
                true => self.poll.min(ORDER_AGAIN),
                false => self.poll,
            };
            tokio::select! {
                _ = gone.changed() => return,
                () = epochs.look_wanted() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Asks Redis how far it is, before a look that will be held against it. No look waits long for
    /// that: what comes later is for the next.
    async fn hear_redis(&self, asking: &mut JoinSet<()>) {
        let mut ended = asking.try_join_next();
        if asking.is_empty() {
            let redis = self.served.redis.clone();
            asking.spawn(async move {
                if let Err(trouble) = redis.hear().await {
                    tracing::debug!(%trouble, "redis does not say how far it is");
                }
            });
        }
        if ended.as_ref().is_none_or(Result::is_ok) {
            let answered = tokio::time::timeout(HEARD_WITHIN, asking.join_next()).await;
            ended = answered.ok().flatten();
        }
        if let Some(Err(ended)) = ended
            && let Ok(panic) = ended.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }

    /// Remembers what is wrong, and tells it when it changes.
    fn note<E: ToString>(&self, which: usize, error: Option<&E>) {
        let error = error.map(|error| {
            format!(
                "the outbox cannot be {}: {}",
                WHAT[which],
                error.to_string()
            )
        });
        {
            let mut trouble = self.trouble.lock();
            if trouble[which] == error {
                return;
            }
            trouble[which].clone_from(&error);
        }
        // Told without the lock: whoever listens may ask for the status.
        match &error {
            Some(error) => tracing::warn!("{error}"),
            None => tracing::info!("the outbox can be {} again", WHAT[which]),
        }
    }

    fn begin_round(&self) -> u64 {
        let mut round = 0;
        self.rounds.send_modify(|rounds| {
            rounds.begun += 1;
            round = rounds.begun;
        });
        round
    }

    fn end_round(&self, round: u64) {
        self.pending.settle(round);
        self.rounds
            .send_modify(|rounds| rounds.ended = rounds.ended.max(round));
    }

    /// Learns the watermark and judges the lag; true if nothing waits.
    async fn look(&self, watcher: &mut LagWatch) -> Result<bool, SourceError> {
        self.prepare().await?;
        let epochs = &self.served.redis.epoch_guard;
        let (began, since) = (clock(), epochs.vantage());
        let looked = match self.served.redis.look_at_sql().await {
            Err(error) if error.misses_a_table() => None,
            looked => looked?,
        };
        let Some(glance) = looked else {
            self.outbox.prepare().await?;
            tracing::warn!("the outbox had lost its tables or its state row; they are made again");
            return Ok(false);
        };
        let lag = watcher.lag(&glance, began);
        self.note_lag(lag);
        if epochs.is_taken() {
            self.suspend(TAKEN);
            epochs.ask_again();
            self.keep_bound_of(&glance).await;
            return Ok(false);
        }
        if epochs.is_rolled_back() {
            self.suspend(ROLLED_BACK);
            epochs.all_is_ordered(self.outbox.order_all().await?);
            return Ok(false);
        }
        if glance.waiting.is_empty() {
            self.resume(since);
            epochs.prove(since);
            return Ok(true);
        }
        if lag.is_some_and(|lag| lag > self.lag_max) {
            self.suspend(WAITING);
        }
        epochs.prove(since);
        self.keep_bound_of(&glance).await;
        Ok(false)
    }

    /// Keeps the bound, if it can: that something waits is known already, and has to be delivered
    /// whether this succeeds or not.
    async fn keep_bound_of(&self, glance: &Glance) {
        if glance.spread > self.rows_max
            && let Err(error) = self.keep_bound().await
        {
            tracing::warn!(%error, "the outbox may hold more rows than it should");
        }
    }

    /// Takes only a moment of each look, which has more to watch than this.
    async fn keep_bound(&self) -> Result<(), SourceError> {
        let mut begun = *self.collapsing.lock();
        if begun.is_none() && self.outbox.holds_more_than(self.rows_max).await? {
            tracing::warn!(
                more_than = self.rows_max,
                "the outbox is full: its rows are replaced by one that invalidates everything"
            );
            begun = Some(self.outbox.begin_collapse().await?);
            *self.collapsing.lock() = begun;
        }
        if let Some(newest) = begun
            && !self.outbox.collapse(newest, COLLAPSE_SLICE).await?
        {
            *self.collapsing.lock() = None;
        }
        Ok(())
    }

    fn suspend(&self, reason: &'static str) {
        if self.served.redis.epoch_guard.suspend(reason) {
            tracing::warn!(reason, lag = ?self.lag(), "redis is not read until that has ended");
            // What waits has not been announced either: memory may hold it too.
            self.served.coherence.disprove(Monotonic::now());
            self.served.stats.suspended.set(1.0);
        }
    }

    fn note_lag(&self, lag: Option<Duration>) {
        *self.lag.lock() = lag;
        self.served
            .stats
            .outbox_lag
            .set(lag.unwrap_or_default().as_secs_f64());
    }

    fn resume(&self, since: Vantage) {
        if self.served.redis.epoch_guard.resume(since) {
            tracing::info!("redis is read again: nothing waits in the outbox");
            self.served.stats.suspended.set(0.0);
            self.served.guard.begin_ramp();
        }
    }

    /// Delivers batch after batch; false if Redis cannot be reached.
    async fn drain(&self) -> Result<bool, Undelivered> {
        let redis = &self.served.redis;
        loop {
            if !redis.is_reachable() {
                return Ok(false);
            }
            // What to believe is found out before anything is locked.
            if redis.epoch_to_write().await.is_err() {
                return Ok(false);
            }
            let since = redis.epoch_guard.vantage();
            let known = redis.epoch_guard.known_watermark();
            let most = self.batch.load(Ordering::Relaxed);
            let batch = self.outbox.take_batch(most).await?;
            if redis.epoch_guard.has_fallen(known, batch.watermark) {
                redis.epoch_guard.on_fall(batch.watermark);
            }
            if redis.epoch_guard.is_rolled_back() {
                // To deliver would take it past where it was, and hide that it fell; and that
                // nothing waits may mean that it was lost. A look sees to it, at once.
                self.outbox.leave(batch).await?;
                return Ok(false);
            }
            if batch.targets.is_empty() {
                self.outbox.leave(batch).await?;
                self.resume(since);
                // What was to invalidate everything has been delivered, or is lost: a look tells.
                return Ok(!redis.epoch_guard.is_order_out());
            }
            let (rows, complete) = (batch.rows.clone(), batch.complete);
            let watermark = match redis
                .apply(batch.watermark, &batch.targets, &batch.rows)
                .await
            {
                Ok(watermark) => watermark,
                Err(trouble) => {
                    let fallen = matches!(trouble, RedisFailure::Fallen);
                    // The row on record may lie beyond a batch that was made smaller.
                    let sees_all = complete || most >= BATCH;
                    if fallen && sees_all {
                        redis.epoch_guard.on_fall(batch.watermark);
                    }
                    if let Err(error) = self.outbox.leave(batch).await {
                        tracing::debug!(%error, "a batch that could not be delivered");
                    }
                    if fallen && sees_all {
                        return Ok(false);
                    }
                    if fallen {
                        self.batch.store(BATCH, Ordering::Relaxed);
                        continue;
                    }
                    // The same again might fail again: it may be more than the link or Redis can
                    // take in the time.
                    self.batch.store((rows.len() / 2).max(1), Ordering::Relaxed);
                    return Err(trouble.into());
                }
            };
            self.outbox.finish(batch, watermark).await?;
            self.batch.store((most * 2).min(BATCH), Ordering::Relaxed);
            redis.epoch_guard.learn(watermark, &rows);
            self.served.stats.relayed.add(rows.len() as u64);
            if complete {
                self.note_lag(None);
                self.resume(since);
                return Ok(true);
            }
        }
    }
}

/// The reason why invalidations stay in the outbox.
#[derive(Debug, thiserror::Error)]
enum Undelivered {
    #[error(transparent)]
    Outbox(#[from] SourceError),
    #[error(transparent)]
    Redis(#[from] RedisFailure),
}

/// The two things that can be in trouble.
const LOOK: usize = 0;
const DRAIN: usize = 1;
const WHAT: [&str; 2] = ["looked at", "drained"];

const WAITING: &str = "invalidations wait in the outbox";

/// A look waits so long for Redis to say how far it is.
const HEARD_WITHIN: Duration = Duration::from_millis(25);

/// A look is rid of rows of a full outbox for so long at most, and one piece of them at least.
const COLLAPSE_SLICE: Duration = Duration::from_millis(100);

/// The order to invalidate everything is given again after so long at most.
const ORDER_AGAIN: Duration = Duration::from_secs(1);

/// A delivery that fails for a reason which does not pass is tried again after so long at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
