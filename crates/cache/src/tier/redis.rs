//! The tier in Redis, shared by all processes.
//!
//! Every rule that must hold between processes is decided inside Redis, by a script, at the moment of the write: a
//! value is stored only by the holder of the key's lease, and only in the epoch that was seen. What Redis forgets (by eviction,
//! expiry, restart or flush) can therefore only refuse a write, never let a wrong one in.
//!
//! A read asks for the epoch and the watermark along with the value, in one round trip, so that an answer from a Redis that has
//! been rolled back is recognised by the answer itself, not by an event that may come later.

mod apply;
mod fill;
mod scripts;

pub(crate) use fill::{Fill, Lease, Season};

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{FromRedisValue, RedisError};
use steadfast::{CallOptions, Client, ConnectionState};

use crate::envelope::{Damage, Envelope, Token};
use crate::freshness::Lifetime;
use crate::names::Names;
use crate::stats::Stats;
use crate::trust::{Standing, Trust};

pub(crate) struct RedisTier {
    client: Client,
    names: Names,
    limit: Duration,
    value_max: usize,
    compress_above: usize,
    tag_life: Duration,
    tokens: Mutex<fastrand::Rng>,
    lease_checked: bool,
    pub(crate) trust: Trust,
    stats: Arc<Stats>,
}

pub(crate) struct RedisOptions {
    pub(crate) names: Names,
    pub(crate) limit: Duration,
    pub(crate) value_max: usize,
    pub(crate) compress_above: usize,
    /// Longer than any value lives.
    pub(crate) tag_life: Duration,
    pub(crate) seed: u64,
    /// False only in the test that proves why it must be true.
    pub(crate) lease_checked: bool,
}

/// What a look at Redis found.
pub(crate) enum Look {
    Hit(Stored),
    /// Nothing that may be served.
    Miss(Seen),
}

/// What was there, well enough to know it again: whoever fills must not have been overtaken by another fill.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    standing: Standing,
    /// The first bytes, which hold the checksum; none if there was nothing.
    head: Vec<u8>,
}

/// A value as it lay in Redis, not yet decoded.
pub(crate) struct Stored {
    pub(crate) life: Lifetime,
    pub(crate) cost: Duration,
    pub(crate) age: Duration,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) seen: Seen,
}

/// Why Redis was not of use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("redis is not asked: {0}")]
    NotAsked(&'static str),
    #[error("redis has been replaced or rolled back")]
    Replaced,
    #[error("redis failed: {0}")]
    Failed(#[from] RedisError),
    #[error("redis did not answer within its limit")]
    Slow,
}

type Answer<T> = Result<T, Trouble>;

impl RedisTier {
    pub(crate) fn new(
        client: Client,
        options: RedisOptions,
        trust: Trust,
        stats: Arc<Stats>,
    ) -> Self {
        Self {
            client,
            names: options.names,
            limit: options.limit,
            value_max: options.value_max,
            compress_above: options.compress_above,
            tag_life: options.tag_life,
            tokens: Mutex::new(fastrand::Rng::with_seed(options.seed)),
            lease_checked: options.lease_checked,
            trust,
            stats,
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Asks for a value. If Redis turns out to be another than was believed, once more.
    pub(crate) async fn look(&self, key: &[u8], tags: &[Vec<u8>]) -> Answer<Look> {
        let standing = self.standing().await?;
        match self.look_once(key, tags, standing).await {
            Err(Trouble::Replaced) => {
                let standing = self.standing().await?;
                self.look_once(key, tags, standing).await
            }
            other => other,
        }
    }

    async fn look_once(&self, key: &[u8], tags: &[Vec<u8>], standing: Standing) -> Answer<Look> {
        let value_key = self.names.value(&standing.epoch, key);
        let mut ask = redis::cmd("MGET");
        ask.arg(self.names.epoch())
            .arg(self.names.watermark())
            .arg(&value_key);
        for tag in tags {
            ask.arg(self.names.tag(tag));
        }
        // The time left is asked first: if the value is replaced in between, it seems older than it is, not younger.
        let mut pipe = redis::pipe();
        pipe.cmd("PTTL").arg(&value_key).add_command(ask);
        let (remaining, found): (i64, Vec<Option<Vec<u8>>>) = self.ask_pipe(&pipe).await?;
        let [epoch, watermark, bytes, tokens @ ..] = found.as_slice() else {
            return Err(Trouble::NotAsked("its answer has another shape"));
        };
        self.trust
            .check(&standing, epoch.as_deref(), watermark.as_deref())?;
        let Some(bytes) = bytes.as_ref().filter(|_| remaining != VANISHED) else {
            return Ok(Look::Miss(Seen {
                standing,
                head: Vec::new(),
            }));
        };
        let seen = Seen {
            standing,
            head: bytes.iter().take(HEAD).copied().collect(),
        };
        match self.open(bytes, remaining, tags, tokens).await? {
            Ok(Some((life, cost, age, payload))) => Ok(Look::Hit(Stored {
                life,
                cost,
                age,
                payload,
                seen,
            })),
            Ok(None) => Ok(Look::Miss(seen)),
            Err(damage) => {
                tracing::warn!(%damage, "a value in Redis is treated as missing");
                self.stats.damaged.add(1);
                Ok(Look::Miss(seen))
            }
        }
    }

    /// Judges the bytes of a value: `None` if one of its tags has been invalidated.
    #[allow(
        clippy::type_complexity,
        reason = "two failures of different kind, told apart at the only caller"
    )]
    async fn open(
        &self,
        bytes: &[u8],
        remaining_ms: i64,
        tags: &[Vec<u8>],
        tokens: &[Option<Vec<u8>>],
    ) -> Answer<Result<Option<(Lifetime, Duration, Duration, Option<Vec<u8>>)>, Damage>> {
        let envelope = match Envelope::decode(bytes, self.value_max) {
            Ok(envelope) => envelope,
            Err(damage) => return Ok(Err(damage)),
        };
        // The time it has left, by Redis's own clock, tells its age; the host's clock is not asked.
        let keep = envelope.life.keep;
        let Ok(remaining) = u64::try_from(remaining_ms).map(Duration::from_millis) else {
            return Ok(Err(Damage::Corrupt));
        };
        let Some(age) = (keep + TOLERANCE).checked_sub(remaining) else {
            return Ok(Err(Damage::Corrupt));
        };
        let age = age.saturating_sub(TOLERANCE);

        let mut unnamed = Vec::new();
        for (tag, token) in &envelope.tags {
            match tags.iter().position(|name| name == &**tag) {
                Some(at)
                    if tokens
                        .get(at)
                        .is_some_and(|now| now.as_deref() == Some(token)) => {}
                Some(_) => return Ok(Ok(None)),
                None => unnamed.push((self.names.tag(tag), *token)),
            }
        }
        if !unnamed.is_empty() {
            let mut ask = redis::cmd("MGET");
            for (name, _) in &unnamed {
                ask.arg(name);
            }
            let tokens: Vec<Option<Vec<u8>>> = self.ask(&ask).await?;
            if unnamed
                .iter()
                .zip(&tokens)
                .any(|((_, token), now)| now.as_deref() != Some(token))
            {
                return Ok(Ok(None));
            }
        }
        Ok(Ok(Some((
            envelope.life,
            envelope.cost,
            age,
            envelope.payload.map(Cow::into_owned),
        ))))
    }
    /// Whether it is worth asking: down means down, in a short interruption the client waits.
    pub(crate) fn is_reachable(&self) -> bool {
        !matches!(
            self.client.state(),
            ConnectionState::Down | ConnectionState::Closed
        )
    }
    /// The epoch to read in, if Redis may be believed.
    pub(crate) async fn standing(&self) -> Answer<Standing> {
        if !self.is_reachable() {
            return Err(Trouble::NotAsked("it is down"));
        }
        self.trust.standing(self.limit).await
    }

    pub(crate) async fn ask<T: FromRedisValue>(&self, cmd: &redis::Cmd) -> Answer<T> {
        self.ask_within(cmd, self.limit).await
    }

    pub(crate) async fn ask_within<T: FromRedisValue>(
        &self,
        cmd: &redis::Cmd,
        limit: Duration,
    ) -> Answer<T> {
        let mut connection = self.client.with(CallOptions::new().deadline(limit));
        self.count(tokio::time::timeout(limit + GRACE, cmd.query_async(&mut connection)).await)
    }

    async fn ask_pipe<T: FromRedisValue>(&self, pipe: &redis::Pipeline) -> Answer<T> {
        let mut connection = self.client.with(CallOptions::new().deadline(self.limit));
        self.count(
            tokio::time::timeout(self.limit + GRACE, pipe.query_async(&mut connection)).await,
        )
    }

    fn count<T>(
        &self,
        answer: Result<Result<T, RedisError>, tokio::time::error::Elapsed>,
    ) -> Answer<T> {
        let answer = answer
            .map_err(|_| Trouble::Slow)
            .and_then(|answer| answer.map_err(Trouble::Failed));
        if answer.is_err() {
            self.stats.redis_errors.add(1);
        }
        answer
    }

    fn token(&self) -> Token {
        self.tokens.lock().u128(..).to_le_bytes()
    }

    pub(crate) fn began_epoch(&self) {
        self.stats.epochs.add(1);
    }

    pub(crate) fn token_text(&self) -> String {
        format!("{:032x}", self.tokens.lock().u128(..))
    }
}
fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// A value may seem to have this much more time left than it was given: Redis rounds, and its clock is smoothed.
const TOLERANCE: Duration = Duration::from_millis(1000);

/// As many bytes as `TAKE_LEASE` compares.
const HEAD: usize = 6;

/// The time left of a key that is not there.
const VANISHED: i64 = -2;

/// The client keeps its own deadlines; this is only for the case that it does not.
const GRACE: Duration = Duration::from_millis(100);
