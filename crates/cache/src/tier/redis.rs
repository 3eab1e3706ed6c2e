//! The tier in Redis, shared by all processes.
//!
//! Every rule that must hold between processes is decided inside Redis, by a script, at the moment
//! of the write: a value is stored only by the holder of the key's lease, and only in the epoch
//! that was seen. What Redis forgets (by eviction, expiry, restart or flush) can therefore only
//! refuse a write, never let a wrong one in.
//!
//! A read asks for the epoch and the watermark along with the value, in one round trip, so that an
//! answer from a Redis that has been rolled back is recognised by the answer itself, not by an
//! event that may come later.

mod allowance;
mod answer;
mod apply;
mod delivery;
pub(crate) mod envelope;
pub(crate) mod epoch_guard;
mod fill;
mod look;
pub(crate) mod names;
mod scripts;
mod together;
mod verify;

pub(crate) use allowance::RedisAllowance;
pub(crate) use answer::{RedisFailure, SeenValue};
pub(crate) use apply::apply_limit;
pub(crate) use fill::{Fill, Filled, InWindow, Lease, Predecessor, WarmWindow};
pub(crate) use look::{Lookup, RedisValue, Unfit, Wanted};

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{FromRedisValue, RedisError};
use steadfast::{
    CallOptions, Client, ConnectionState, Effect, Error, PubSubControl, ReadFrom, Toward,
};

use crate::clock::clock;
use crate::outbox::Outbox;
use crate::stats::Stats;
use answer::{EpochView, NO_SERVER, RedisResult, millis};
use envelope::Token;
use epoch_guard::EpochGuard;
use names::Names;
use together::Together;

pub(crate) struct RedisTier {
    client: Client,
    /// The server on which the namespace lives.
    toward: Toward,
    /// The number of that server when it was last asked for anything.
    server: AtomicU32,
    names: Names,
    limit: Duration,
    value_max: usize,
    compress_above: usize,
    /// Milliseconds, longer than any value lives.
    tag_life: AtomicU64,
    tokens: Mutex<fastrand::Rng>,
    lease_checked: bool,
    pub(crate) epoch_guard: EpochGuard,
    together: Together,
    /// Asked for how far Redis must be.
    outbox: Outbox,
    stats: Arc<Stats>,
}

pub(crate) struct RedisOptions {
    pub(crate) names: Names,
    pub(crate) limit: Duration,
    pub(crate) value_max: usize,
    pub(crate) compress_above: usize,
    /// No value lives longer.
    pub(crate) longest_life: Duration,
    pub(crate) seed: u64,
    /// False only in the test that proves why it must be true.
    pub(crate) lease_checked: bool,
}

impl RedisTier {
    pub(crate) fn new(
        client: Client,
        options: RedisOptions,
        (epoch_guard, outbox): (EpochGuard, Outbox),
        stats: Arc<Stats>,
    ) -> Self {
        let tier = Self {
            toward: client.toward(options.names.epoch()),
            server: NO_SERVER.into(),
            together: Together::new(client.reply_limits().total_bytes),
            client,
            names: options.names,
            limit: options.limit,
            value_max: options.value_max,
            compress_above: options.compress_above,
            tag_life: AtomicU64::new(0),
            tokens: Mutex::new(fastrand::Rng::with_seed(options.seed)),
            lease_checked: options.lease_checked,
            epoch_guard,
            outbox,
            stats,
        };
        tier.outlast(options.longest_life);
        tier
    }

    /// Tags outlive values of such a life from now on.
    pub(crate) fn outlast(&self, life: Duration) {
        let tag_life = millis(life + BEYOND_VALUES);
        self.tag_life.fetch_max(tag_life, Ordering::Relaxed);
    }

    /// For how long a tag's token is kept from its last use, in milliseconds.
    fn tag_life(&self) -> u64 {
        self.tag_life.load(Ordering::Relaxed)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Returns the server on which the namespace lives.
    pub(crate) fn toward(&self) -> &Toward {
        &self.toward
    }

    /// Returns the slot of a cluster in which the namespace lies, if it is one.
    pub(crate) fn slot(&self) -> Option<u16> {
        self.names.are_in_one_slot().then(|| self.toward.slot())
    }

    /// Subscribes to a channel of the namespace.
    pub(crate) async fn subscribe(
        &self,
        control: &PubSubControl,
        channel: Vec<u8>,
    ) -> Result<(), Error> {
        match self.names.are_in_one_slot() {
            true => control.ssubscribe(channel).await,
            false => control.subscribe(channel).await,
        }
    }

    /// Ends the subscription to a channel of the namespace.
    pub(crate) async fn unsubscribe(
        &self,
        control: &PubSubControl,
        channel: Vec<u8>,
    ) -> Result<(), Error> {
        match self.names.are_in_one_slot() {
            true => control.sunsubscribe(channel).await,
            false => control.unsubscribe(channel).await,
        }
    }

    /// Doubts what was believed of a server that is not the one of now: a slot of a cluster can get
    /// another owner to which this process was connected all the time. Returns the number of the
    /// one that what is believed from now on is about.
    fn heed_server(&self) -> u32 {
        let before = self.server.load(Ordering::Acquire);
        match self.toward.server().map(u32::from) {
            Some(now) if now != before => {
                // First doubted, then told: who finds the new number finds the old belief gone.
                if before != NO_SERVER {
                    self.epoch_guard.doubt_all();
                }
                self.server.store(now, Ordering::Release);
                now
            }
            _ => before,
        }
    }

    /// Compares what an answer says with what was believed when it was asked for. A question that
    /// was asked of one server may have been answered by another, to which the slot has gone
    /// meanwhile: of that one nothing was believed yet.
    fn check(
        &self,
        epoch_view: &EpochView,
        epoch: Option<&[u8]>,
        watermark: Option<&[u8]>,
    ) -> RedisResult<()> {
        if self.heed_server() != epoch_view.server {
            return Err(RedisFailure::Replaced);
        }
        self.epoch_guard.check(epoch_view, epoch, watermark)
    }

    /// Returns the limit on the time that one read may spend here.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Returns the allowance of one read, yet unspent.
    pub(crate) fn allowance(&self) -> RedisAllowance {
        RedisAllowance::new(self.limit)
    }

    /// Returns the allowance of a read that has to have ended by then.
    pub(crate) fn allowance_until(&self, deadline: Instant) -> RedisAllowance {
        self.allowance_of(deadline.saturating_duration_since(clock()))
    }

    /// Returns the allowance of a read that has so much time: half of it at most, so that a Redis
    /// that is slow leaves the other half to the load.
    pub(crate) fn allowance_of(&self, left: Duration) -> RedisAllowance {
        RedisAllowance::new(self.limit.min(left / 2))
    }

    /// Whether it is worth asking: down means down, in a short interruption the client waits.
    pub(crate) fn is_reachable(&self) -> bool {
        !matches!(
            self.toward.state(),
            ConnectionState::Down | ConnectionState::Closed
        )
    }

    /// The epoch to read in, if Redis may be believed.
    pub(crate) async fn epoch_view(
        &self,
        allowance: &mut RedisAllowance,
    ) -> RedisResult<EpochView> {
        if !self.is_reachable() {
            return Err(RedisFailure::NotAsked("it is down"));
        }
        let server = self.heed_server();
        let epoch_view = match self.epoch_guard.epoch_view_at_once() {
            Some(epoch_view) => epoch_view,
            None => {
                allowance
                    .spend(|limit| Box::pin(self.epoch_guard.epoch_view(limit)))
                    .await?
            }
        };
        Ok(EpochView {
            server,
            ..epoch_view
        })
    }

    pub(crate) async fn ask<T: FromRedisValue>(&self, cmd: &redis::Cmd) -> RedisResult<T> {
        self.ask_within(cmd, self.limit.max(ASKED_BY_NO_READER))
            .await
    }

    pub(crate) async fn ask_within<T: FromRedisValue>(
        &self,
        cmd: &redis::Cmd,
        limit: Duration,
    ) -> RedisResult<T> {
        self.ask_with(cmd, limit, asked_within(limit)).await
    }

    /// Asks what changes nothing that Redis keeps, though its words could: a failover loses nothing
    /// with it, and it needs no proof of the primary.
    async fn ask_only<T: FromRedisValue>(&self, cmd: &redis::Cmd) -> RedisResult<T> {
        let limit = self.limit.max(ASKED_BY_NO_READER);
        let options = asked_within(limit).effect(Effect::Read);
        self.ask_with(cmd, limit, options).await
    }

    async fn ask_with<T: FromRedisValue>(
        &self,
        cmd: &redis::Cmd,
        limit: Duration,
        options: CallOptions,
    ) -> RedisResult<T> {
        let mut connection = self.client.with(options);
        self.count(tokio::time::timeout(limit + GRACE, cmd.query_async(&mut connection)).await)
    }

    async fn ask_pipe<T: FromRedisValue>(
        &self,
        pipe: &redis::Pipeline,
        limit: Duration,
    ) -> RedisResult<T> {
        let mut connection = self.client.with(asked_within(limit));
        self.count(tokio::time::timeout(limit + GRACE, pipe.query_async(&mut connection)).await)
    }

    /// Asks what a read asks most, with nothing between it and the client, which keeps the deadline
    /// by itself.
    async fn ask_plainly(
        &self,
        pipe: &redis::Pipeline,
        limit: Duration,
    ) -> RedisResult<Vec<redis::Value>> {
        let answer = self
            .client
            .with(asked_within(limit))
            .send_pipeline(pipe)
            .await;
        let answer = answer.map_err(RedisError::from).and_then(|values| {
            let values = values.into_iter().map(redis::Value::extract_error);
            values.collect()
        });
        self.count(Ok(answer))
    }

    fn count<T>(
        &self,
        answer: Result<Result<T, RedisError>, tokio::time::error::Elapsed>,
    ) -> RedisResult<T> {
        let answer = answer
            .map_err(|_| RedisFailure::Slow)
            .and_then(|answer| answer.map_err(RedisFailure::Failed));
        let counter = match answer {
            Ok(_) => &self.stats.redis_answers,
            Err(_) => &self.stats.redis_errors,
        };
        counter.add(1);
        answer
    }

    fn token(&self) -> Token {
        self.tokens.lock().u128(..).to_le_bytes()
    }

    pub(crate) fn began_epoch(&self) {
        self.stats.epochs.add(1);
    }

    /// A random word for an epoch of the database's own.
    pub(crate) fn new_epoch(&self) -> String {
        self.epoch_guard.new_epoch(self.tokens.lock().u64(..))
    }

    pub(crate) fn token_text(&self) -> String {
        format!("{:032x}", self.tokens.lock().u128(..))
    }
}

/// The options of all that the cache asks: of the primary, whatever the application's client reads
/// from. A replica that lags still has the tokens and the watermark from before an invalidation of
/// which this process has heard.
fn asked_within(limit: Duration) -> CallOptions {
    CallOptions::new()
        .deadline(limit)
        .read_from(ReadFrom::Primary)
}

/// The time for what no reader waits for (proof of the channel, belief, fills), also where a read
/// may spend less: it must work over any round trip.
const ASKED_BY_NO_READER: Duration = Duration::from_millis(250);

/// A tag's token is kept for so much longer than any value that carries it.
const BEYOND_VALUES: Duration = Duration::from_secs(3600);

/// The client keeps its own deadlines; this is only for the case that it does not.
const GRACE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
