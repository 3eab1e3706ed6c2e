//! Who carries invalidations from the outbox to Redis, and when.
//!
//! A process that has just committed wakes its relay, so that in health Redis knows within a round trip or two. Every process also
//! looks every `outbox_poll`, so what a dead process left behind, or could not deliver while Redis was down, is delivered by whoever sees it
//! first. Applying is idempotent, so that a relay that dies between Redis and its commit costs nothing but doing it again.
//!
//! A row that nobody gets applied means that Redis holds a value which SQL has overtaken. After `outbox_lag_max` Redis is
//! therefore not read any more, by any process that sees the row, until the outbox is drained.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::cache::clock;
use crate::coherence::Coherence;
use crate::guard::Guard;
use crate::moment::Moment;
use crate::outbox::{Glance, Oldest, Outbox};
use crate::pending::Pending;
use crate::source::SourceError;
use crate::stats::Stats;
use crate::tier::redis::RedisTier;

pub(crate) struct Relay {
    outbox: Outbox,
    served: Served,
    pub(crate) pending: Arc<Pending>,
    poll: Duration,
    lag_max: Duration,
    rows_max: i64,
    wake: Notify,
    rounds: watch::Sender<Rounds>,
    prepared: tokio::sync::OnceCell<()>,
    lag: parking_lot::Mutex<Option<Duration>>,
}

/// What the relay delivers to, and whom it tells how that goes.
pub(crate) struct Served {
    pub(crate) redis: Arc<RedisTier>,
    pub(crate) coherence: Arc<Coherence>,
    pub(crate) guard: Guard,
    pub(crate) stats: Arc<Stats>,
}

/// A round that ends has found nothing left of what was committed before it began.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    begun: u64,
    ended: u64,
}

/// When to look, and when to worry.
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
            wake: Notify::new(),
            rounds: watch::Sender::default(),
            prepared: tokio::sync::OnceCell::new(),
            lag: parking_lot::Mutex::default(),
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

    /// What is committed now will have been applied when this round has ended.
    pub(crate) fn next_round(&self) -> u64 {
        self.rounds.borrow().begun + 1
    }

    /// Something has been committed.
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

    /// Delivers whenever something was committed or was seen to wait, until the cache is gone.
    pub(crate) async fn run(self: Arc<Self>, mut gone: watch::Receiver<()>) {
        loop {
            tokio::select! {
                _ = gone.changed() => return,
                () = self.wake.notified() => {}
            }
            let round = self.begin_round();
            match self.drain().await {
                Ok(true) => self.end_round(round),
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "the outbox cannot be drained"),
            }
        }
    }

    /// Looks every so often, until the cache is gone. Apart from the delivering, which may have to wait for a lock: that nobody gets to
    /// deliver is just what has to be noticed.
    pub(crate) async fn keep_watch(self: Arc<Self>, mut gone: watch::Receiver<()>) {
        let mut watcher = LagWatch::default();
        loop {
            let round = self.begin_round();
            match self.look(&mut watcher).await {
                Ok(true) => self.end_round(round),
                Ok(false) => self.wake(),
                Err(error) => tracing::debug!(%error, "the outbox cannot be looked at"),
            }
            tokio::select! {
                _ = gone.changed() => return,
                () = tokio::time::sleep(self.poll) => {}
            }
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
        let Some(Glance { watermark, oldest }) = self.outbox.glance().await? else {
            tracing::warn!("the outbox has lost its state row; it is made again");
            self.outbox.prepare().await?;
            return Ok(false);
        };
        self.served.redis.trust.learn(watermark);
        let lag = watcher.lag(oldest, clock());
        self.note_lag(lag);
        let Some(oldest) = oldest else {
            self.resume();
            return Ok(true);
        };
        if lag.is_some_and(|lag| lag > self.lag_max) {
            self.suspend(lag);
        }
        // That something waits is known already, and has to be delivered whether this succeeds or not.
        if oldest.spread > self.rows_max
            && let Err(error) = self.keep_bound().await
        {
            tracing::warn!(%error, "the outbox may hold more rows than it should");
        }
        Ok(false)
    }

    async fn keep_bound(&self) -> Result<(), SourceError> {
        if self.outbox.holds_more_than(self.rows_max).await? {
            tracing::warn!(
                more_than = self.rows_max,
                "the outbox is full: its rows are replaced by one that invalidates everything"
            );
            self.outbox.collapse().await?;
        }
        Ok(())
    }

    fn suspend(&self, lag: Option<Duration>) {
        let reason = "invalidations wait in the outbox";
        if self.served.redis.trust.suspend(Some(reason)) {
            tracing::warn!(
                ?lag,
                "invalidations wait in the outbox: redis is not read until they are applied"
            );
            // What waits has not been announced either: memory may hold it too.
            self.served.coherence.disprove(Moment::now());
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

    fn resume(&self) {
        if self.served.redis.trust.suspend(None) {
            tracing::info!("the outbox is drained: redis is read again");
            self.served.stats.suspended.set(0.0);
            self.served.guard.begin_ramp();
        }
    }

    /// Delivers batch after batch; false if Redis cannot be reached.
    async fn drain(&self) -> Result<bool, SourceError> {
        loop {
            if !self.served.redis.is_reachable() {
                return Ok(false);
            }
            // What to believe is found out before anything is locked.
            if self.served.redis.epoch_to_write().await.is_err() {
                return Ok(false);
            }
            let Some(batch) = self.outbox.take_batch().await? else {
                self.resume();
                return Ok(true);
            };
            let last = !batch.is_full();
            match self
                .served
                .redis
                .apply(batch.watermark, &batch.targets)
                .await
            {
                Ok(watermark) => {
                    let rows = self.outbox.finish(batch, watermark).await?;
                    self.served.redis.trust.learn(watermark);
                    self.served.stats.relayed.add(rows as u64);
                }
                Err(trouble) => {
                    tracing::debug!(%trouble, "invalidations stay in the outbox");
                    return Ok(false);
                }
            }
            if last {
                self.note_lag(None);
                self.resume();
                return Ok(true);
            }
        }
    }
}

/// The age of the oldest row: by the database's clock, or by how long this process has seen it, whichever is more. So a
/// clock that is set back can hide nothing.
#[derive(Default)]
struct LagWatch {
    seen: Option<(i64, Instant)>,
}

impl LagWatch {
    fn lag(&mut self, oldest: Option<Oldest>, now: Instant) -> Option<Duration> {
        let oldest = oldest?;
        let since = match self.seen {
            Some((id, since)) if id == oldest.id => since,
            _ => now,
        };
        self.seen = Some((oldest.id, since));
        let by_database = Duration::from_millis(u64::try_from(oldest.age_ms).unwrap_or(0));
        Some(by_database.max(now.saturating_duration_since(since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k8_a_clock_set_back_cannot_hide_a_waiting_row() {
        let now = clock();
        let mut watch = LagWatch::default();
        let row = |age_ms| {
            Some(Oldest {
                id: 7,
                age_ms,
                spread: 0,
            })
        };
        assert_eq!(watch.lag(row(-3_600_000), now), Some(Duration::ZERO));
        assert_eq!(
            watch.lag(row(-3_599_000), now + Duration::from_secs(2)),
            Some(Duration::from_secs(2))
        );
        assert_eq!(
            watch.lag(row(5000), now + Duration::from_secs(3)),
            Some(Duration::from_secs(5))
        );
        assert_eq!(watch.lag(None, now), None);
    }
}
