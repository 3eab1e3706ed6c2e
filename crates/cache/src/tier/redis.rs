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
pub(crate) mod names;
mod scripts;
mod verify;

pub(crate) use allowance::RedisAllowance;
pub(crate) use answer::{RedisFailure, SeenValue};
pub(crate) use apply::apply_limit;
pub(crate) use fill::{Fill, Lease, WarmWindow};

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{FromRedisValue, RedisError};
use smallvec::SmallVec;
use steadfast::{
    CallOptions, Client, ConnectionState, Effect, Error, PubSubControl, ReadFrom, Toward,
};

use crate::freshness::Life;
use crate::outbox::Outbox;
use crate::stats::Stats;
use answer::{EpochView, HEAD, NO_SERVER, RedisResult, millis};
use envelope::{DecodeError, Envelope, Token};
use epoch_guard::EpochGuard;
use names::Names;
use scripts::LOOK;

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

/// The outcome of a look at Redis.
pub(crate) enum Lookup {
    Hit(RedisValue),
    /// Nothing that may be served.
    Miss(SeenValue),
}

/// A value as it lay in Redis, not yet decoded.
pub(crate) struct RedisValue {
    pub(crate) life: Life,
    pub(crate) cost: Duration,
    pub(crate) age: Duration,
    pub(crate) type_version: u32,
    /// The names of all its tags.
    pub(crate) tags: Vec<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) seen: SeenValue,
    /// Whether SQL has said how far Redis must be; if not, this is not fresh.
    pub(crate) proven: bool,
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

    /// Asks for a value. If Redis turns out to be another than was believed, once more. A value
    /// that lacks one of the tags is none. `carries` is told of the tags that it has beside them,
    /// before their tokens are asked for, and may refuse the value.
    pub(crate) async fn look(
        &self,
        key: &[u8],
        tags: &[Vec<u8>],
        allowance: &mut RedisAllowance,
        carries: &(dyn Fn(&[&[u8]]) -> bool + Sync),
    ) -> RedisResult<Lookup> {
        let epoch_view = self.epoch_view(allowance).await?;
        match self
            .look_once(key, tags, epoch_view, allowance, carries)
            .await
        {
            Err(RedisFailure::Replaced) => {
                let epoch_view = self.epoch_view(allowance).await?;
                self.look_once(key, tags, epoch_view, allowance, carries)
                    .await
            }
            other => other,
        }
    }

    async fn look_once(
        &self,
        key: &[u8],
        tags: &[Vec<u8>],
        epoch_view: EpochView,
        allowance: &mut RedisAllowance,
        carries: &(dyn Fn(&[&[u8]]) -> bool + Sync),
    ) -> RedisResult<Lookup> {
        let value_key = self.names.value(&epoch_view.epoch, key);
        let answer = allowance
            .spend(|limit| self.ask_for_value(&value_key, tags, limit))
            .await?;
        let Some((remaining, found)) = time_and_texts(answer) else {
            return Err(RedisFailure::NotAsked("its answer has another shape"));
        };
        let [epoch, watermark, bytes, tokens @ ..] = found.as_slice() else {
            return Err(RedisFailure::NotAsked("its answer has another shape"));
        };
        self.check(&epoch_view, epoch.as_deref(), watermark.as_deref())?;
        let Some(bytes) = bytes.as_ref().filter(|_| remaining != VANISHED) else {
            return Ok(Lookup::Miss(SeenValue {
                epoch_view,
                head: SmallVec::new(),
            }));
        };
        let seen = SeenValue {
            epoch_view,
            head: bytes.iter().take(HEAD).copied().collect(),
        };
        let (envelope, age) = match self.open(bytes, remaining) {
            Ok(opened) => opened,
            Err(damage) => {
                tracing::warn!(%damage, "a value in Redis is treated as missing");
                self.stats.damaged.add(1);
                return Ok(Lookup::Miss(seen));
            }
        };
        let Some(unnamed) = unnamed(&envelope, tags, tokens) else {
            return Ok(Lookup::Miss(seen));
        };
        if !unnamed.is_empty() {
            let names: Vec<&[u8]> = unnamed.iter().map(|(name, _)| *name).collect();
            if !carries(&names) || !self.hold(&unnamed, &seen.epoch_view, allowance).await? {
                return Ok(Lookup::Miss(seen));
            }
        }
        Ok(Lookup::Hit(RedisValue {
            life: envelope.life,
            cost: envelope.cost,
            age,
            type_version: envelope.type_version,
            tags: envelope.tags.iter().map(|(tag, _)| tag.to_vec()).collect(),
            payload: envelope.payload.map(Cow::into_owned),
            proven: seen.epoch_view.proven,
            seen,
        }))
    }

    /// Asks for the time that a value has left, and for epoch, watermark, the value and these tags.
    ///
    /// The time is asked first: if the value is replaced in between, it seems older than it is, not
    /// younger. A cluster's client repeats what was refused of a pipeline, and only that, so there
    /// the time could be asked again after the value was answered: one script asks for both.
    async fn ask_for_value(
        &self,
        value_key: &[u8],
        tags: &[Vec<u8>],
        limit: Duration,
    ) -> RedisResult<Vec<redis::Value>> {
        let (epoch, watermark) = (self.names.epoch(), self.names.watermark());
        if self.names.are_in_one_slot() {
            let mut ask = redis::cmd("EVAL");
            ask.arg(LOOK).arg(3 + tags.len());
            ask.arg(epoch).arg(watermark).arg(value_key);
            for tag in tags {
                ask.arg(self.names.tag(tag));
            }
            let options = asked_within(limit).effect(Effect::Read);
            return self.ask_with(&ask, limit, options).await;
        }
        let mut pipe = redis::Pipeline::with_capacity(2);
        pipe.cmd("PTTL").arg(value_key);
        pipe.cmd("MGET").arg(epoch).arg(watermark).arg(value_key);
        for tag in tags {
            pipe.arg(self.names.tag(tag));
        }
        self.ask_plainly(&pipe, limit).await
    }

    /// Judges the bytes of a value, and tells its age.
    fn open<'b>(
        &self,
        bytes: &'b [u8],
        remaining_ms: i64,
    ) -> Result<(Envelope<'b>, Duration), DecodeError> {
        let envelope = Envelope::decode(bytes, self.value_max)?;
        // The time it has left, by Redis's own clock, tells its age; the host's clock is not asked.
        let remaining = u64::try_from(remaining_ms).map_err(|_| DecodeError::Corrupt)?;
        let age = (envelope.life.keep + TOLERANCE)
            .checked_sub(Duration::from_millis(remaining))
            .ok_or(DecodeError::Corrupt)?;
        Ok((envelope, age.saturating_sub(TOLERANCE)))
    }

    /// Whether these tags still have these tokens, in the Redis that the value came from.
    async fn hold(
        &self,
        tags: &[(&[u8], Token)],
        epoch_view: &EpochView,
        allowance: &mut RedisAllowance,
    ) -> RedisResult<bool> {
        let mut ask = redis::cmd("MGET");
        ask.arg(self.names.epoch()).arg(self.names.watermark());
        for (tag, _) in tags {
            ask.arg(self.names.tag(tag));
        }
        let found: Vec<Option<Vec<u8>>> = allowance
            .spend(|limit| self.ask_within(&ask, limit))
            .await?;
        let [epoch, watermark, tokens @ ..] = found.as_slice() else {
            return Err(RedisFailure::NotAsked("its answer has another shape"));
        };
        self.check(epoch_view, epoch.as_deref(), watermark.as_deref())?;
        let same =
            |((_, token), now): (&(&[u8], Token), &Option<Vec<u8>>)| now.as_deref() == Some(token);
        Ok(tokens.len() == tags.len() && tags.iter().zip(tokens).all(same))
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
        let epoch_view = allowance
            .spend(|limit| self.epoch_guard.epoch_view(limit))
            .await?;
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

/// The tags of a value that were not named, with their tokens; `None` if it lacks a tag that was
/// named, or has an earlier token of it.
fn unnamed<'e>(
    envelope: &'e Envelope<'_>,
    named: &[Vec<u8>],
    tokens: &[Option<Vec<u8>>],
) -> Option<Vec<(&'e [u8], Token)>> {
    let token_of = |name: &[u8]| envelope.tags.iter().find(|(tag, _)| **tag == *name);
    let named_hold = named.len() == tokens.len()
        && named.iter().zip(tokens).all(|(name, now)| {
            token_of(name).is_some_and(|(_, token)| now.as_deref() == Some(token))
        });
    let is_unnamed = |tag: &[u8]| !named.iter().any(|name| name == tag);
    named_hold.then(|| {
        envelope
            .tags
            .iter()
            .filter(|(tag, _)| is_unnamed(tag))
            .map(|(tag, token)| (&**tag, *token))
            .collect()
    })
}

/// The options of all that the cache asks: of the primary, whatever the application's client reads
/// from. A replica that lags still has the tokens and the watermark from before an invalidation of
/// which this process has heard.
fn asked_within(limit: Duration) -> CallOptions {
    CallOptions::new()
        .deadline(limit)
        .read_from(ReadFrom::Primary)
}

/// The answers to PTTL and MGET.
fn time_and_texts(answer: Vec<redis::Value>) -> Option<(i64, Vec<Option<Vec<u8>>>)> {
    let mut answer = answer.into_iter();
    let (Some(redis::Value::Int(remaining)), Some(redis::Value::Array(found))) =
        (answer.next(), answer.next())
    else {
        return None;
    };
    let text = |value| match value {
        redis::Value::BulkString(bytes) => Some(Some(bytes)),
        redis::Value::Nil => Some(None),
        _ => None,
    };
    Some((
        remaining,
        found.into_iter().map(text).collect::<Option<_>>()?,
    ))
}

/// A value may seem to have this much more time left than it was given: Redis rounds, and its clock
/// is smoothed.
const TOLERANCE: Duration = Duration::from_millis(1000);

/// The time for what no reader waits for (proof of the channel, belief, fills), also where a read
/// may spend less: it must work over any round trip.
const ASKED_BY_NO_READER: Duration = Duration::from_millis(250);

/// A tag's token is kept for so much longer than any value that carries it.
const BEYOND_VALUES: Duration = Duration::from_secs(3600);

/// The time left of a key that is not there.
const VANISHED: i64 = -2;

/// The client keeps its own deadlines; this is only for the case that it does not.
const GRACE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
