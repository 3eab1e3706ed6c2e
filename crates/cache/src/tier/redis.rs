//! The tier in Redis, shared by all processes.
//!
//! Every rule that must hold between processes is decided inside Redis, by a script, at the moment of the write: a
//! value is stored only by the holder of the key's lease, and only in the epoch that was seen. What Redis forgets (by eviction,
//! expiry, restart or flush) can therefore only refuse a write, never let a wrong one in.
//!
//! A read asks for the epoch and the watermark along with the value, in one round trip, so that an answer from a Redis that has
//! been rolled back is recognised by the answer itself, not by an event that may come later.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{FromRedisValue, RedisError};
use steadfast::{CallOptions, Client, ConnectionState};

use crate::cache::clock;
use crate::envelope::{Damage, Envelope, Token};
use crate::freshness::Lifetime;
use crate::names::Names;
use crate::stats::Stats;
use crate::target::{Announcement, Target};
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

/// The right to fill one key, proven to Redis by a random token.
pub(crate) struct Lease {
    standing: Standing,
    token: String,
    tags: Vec<(Vec<u8>, Token)>,
}

/// A time in which nothing at all is invalidated.
pub(crate) struct Season {
    standing: Standing,
    watermark: Vec<u8>,
    tags: Vec<(Vec<u8>, Token)>,
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

    /// Asks for the right to fill a key; `None` if another holds it, or has filled it since it was seen. `life` bounds how long a holder that died stands in the way.
    pub(crate) async fn take_lease(
        &self,
        key: &[u8],
        tags: &[Vec<u8>],
        seen: &Seen,
        life: Duration,
    ) -> Answer<Option<Lease>> {
        let standing = &seen.standing;
        let token = self.token_text();
        let mut ask = redis::cmd("EVAL");
        ask.arg(TAKE_LEASE)
            .arg(3 + tags.len())
            .arg(self.names.epoch())
            .arg(self.names.lease(&standing.epoch, key))
            .arg(self.names.value(&standing.epoch, key));
        for tag in tags {
            ask.arg(self.names.tag(tag));
        }
        ask.arg(&*standing.epoch)
            .arg(&token)
            .arg(millis(life))
            .arg(millis(self.tag_life))
            .arg(&seen.head);
        for _ in tags {
            ask.arg(self.token().as_slice());
        }
        let answer: Vec<Vec<u8>> = self.ask(&ask).await?;
        match answer.split_first() {
            Some((verdict, tokens)) if verdict == b"taken" => {
                let tokens = tokens
                    .iter()
                    .map(|token| Token::try_from(token.as_slice()).ok());
                let tags: Option<Vec<_>> = tags
                    .iter()
                    .zip(tokens)
                    .map(|(tag, token)| Some((tag.clone(), token?)))
                    .collect();
                let tags = tags.ok_or(Trouble::NotAsked(
                    "a tag holds something that is not a token",
                ))?;
                Ok(Some(Lease {
                    standing: standing.clone(),
                    token,
                    tags,
                }))
            }
            Some((verdict, _)) if verdict == b"held" => Ok(None),
            _ => {
                self.trust.doubt(&standing.epoch);
                Err(Trouble::NotAsked("its epoch has changed"))
            }
        }
    }

    /// Stores a value, if the lease is still the one in Redis. Says whether it did.
    pub(crate) async fn fill(&self, key: &[u8], lease: &Lease, value: &Fill<'_>) -> Answer<bool> {
        let bytes = self.seal(value, &lease.tags);
        let epoch = &lease.standing.epoch;
        let mut ask = redis::cmd("EVAL");
        ask.arg(if self.lease_checked {
            FILL
        } else {
            FILL_UNCHECKED
        })
        .arg(3);
        ask.arg(self.names.epoch())
            .arg(self.names.lease(epoch, key))
            .arg(self.names.value(epoch, key));
        ask.arg(&**epoch)
            .arg(&lease.token)
            .arg(bytes)
            .arg(value.remaining());
        let stored: i64 = self.ask(&ask).await?;
        self.stats.fills(stored == 1).add(1);
        Ok(stored == 1)
    }

    /// Gives the right back unused, so that another may have it at once.
    pub(crate) async fn release(&self, key: &[u8], lease: &Lease) {
        let mut ask = redis::cmd("EVAL");
        ask.arg(RELEASE)
            .arg(1)
            .arg(self.names.lease(&lease.standing.epoch, key))
            .arg(&lease.token);
        let _: Answer<i64> = self.ask(&ask).await; // if it fails, the lease expires
    }

    /// Prepares for values whose keys are not known before they are loaded: they may be stored as long as nothing at all is
    /// invalidated meanwhile.
    pub(crate) async fn open_season(&self, tags: &[Vec<u8>]) -> Answer<Season> {
        let standing = self.standing().await?;
        let mut ask = redis::cmd("EVAL");
        ask.arg(OPEN_SEASON)
            .arg(2 + tags.len())
            .arg(self.names.epoch())
            .arg(self.names.watermark());
        for tag in tags {
            ask.arg(self.names.tag(tag));
        }
        ask.arg(&*standing.epoch).arg(millis(self.tag_life));
        for _ in tags {
            ask.arg(self.token().as_slice());
        }
        let answer: Vec<Vec<u8>> = self.ask(&ask).await?;
        let Some((watermark, tokens)) = answer.split_first() else {
            self.trust.doubt(&standing.epoch);
            return Err(Trouble::NotAsked("its epoch has changed"));
        };
        self.trust
            .check(&standing, Some(standing.epoch.as_bytes()), Some(watermark))?;
        let tokens = tokens
            .iter()
            .map(|token| Token::try_from(token.as_slice()).ok());
        let tags: Option<Vec<_>> = tags
            .iter()
            .zip(tokens)
            .map(|(tag, token)| Some((tag.clone(), token?)))
            .collect();
        let tags = tags.ok_or(Trouble::NotAsked(
            "a tag holds something that is not a token",
        ))?;
        Ok(Season {
            standing,
            watermark: watermark.clone(),
            tags,
        })
    }

    /// Stores values loaded in that season; answers how many Redis took.
    pub(crate) async fn fill_in_season(
        &self,
        season: &Season,
        values: &[(&[u8], Fill<'_>)],
    ) -> Answer<usize> {
        let epoch = &season.standing.epoch;
        let mut pipe = redis::pipe();
        for (key, value) in values {
            pipe.cmd("EVAL").arg(FILL_IN_SEASON).arg(3);
            pipe.arg(self.names.epoch())
                .arg(self.names.watermark())
                .arg(self.names.value(epoch, key));
            pipe.arg(&**epoch)
                .arg(&season.watermark)
                .arg(self.seal(value, &season.tags))
                .arg(value.remaining());
        }
        let stored: Vec<i64> = self.ask_pipe(&pipe).await?;
        let count = stored.iter().filter(|stored| **stored == 1).count();
        self.stats.fills(true).add(count as u64);
        self.stats.fills(false).add((stored.len() - count) as u64);
        Ok(count)
    }

    /// Forgets what the targets name, raises the watermark and announces it, in one step. `watermark` is SQL's. Answers the new one.
    pub(crate) async fn apply(&self, watermark: u64, targets: &[Target]) -> Answer<u64> {
        self.trust.learn(watermark);
        let body = Announcement::body(watermark, targets);
        let everything = targets.contains(&Target::All);
        for _ in 0..APPLY_ATTEMPTS {
            let epoch = self
                .trust
                .epoch_to_write(self.limit.max(APPLY_LIMIT))
                .await?;
            let mut names = vec![self.names.epoch(), self.names.watermark()];
            for target in targets {
                match target {
                    Target::Key(key) => {
                        names.extend([self.names.value(&epoch, key), self.names.lease(&epoch, key)])
                    }
                    Target::Tag(tag) => names.push(self.names.tag(tag)),
                    Target::All => {}
                }
            }
            let mut ask = redis::cmd("EVAL");
            ask.arg(APPLY).arg(names.len()).arg(names);
            ask.arg(&*epoch)
                .arg(watermark)
                .arg(targets.len())
                .arg(self.names.channel())
                .arg(&body);
            ask.arg(if everything {
                self.token_text()
            } else {
                String::new()
            });
            let applied: i64 = self.ask_within(&ask, self.limit.max(APPLY_LIMIT)).await?;
            if let Ok(applied) = u64::try_from(applied) {
                if everything {
                    self.trust.doubt(&epoch);
                }
                return Ok(applied);
            }
            self.trust.doubt(&epoch); // replaced or behind: find out which, and try again
        }
        Err(Trouble::NotAsked("its epoch keeps changing"))
    }

    /// Whether it is worth asking: down means down, in a short interruption the client waits.
    pub(crate) fn is_reachable(&self) -> bool {
        !matches!(
            self.client.state(),
            ConnectionState::Down | ConnectionState::Closed
        )
    }

    fn seal(&self, value: &Fill<'_>, tags: &[(Vec<u8>, Token)]) -> Vec<u8> {
        let tags = tags
            .iter()
            .map(|(tag, token)| (Cow::Borrowed(tag.as_slice()), *token))
            .collect();
        let envelope = Envelope {
            life: value.life,
            cost: value.cost,
            tags,
            payload: value.payload.map(Cow::Borrowed),
        };
        envelope.encode(self.compress_above)
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

/// A value to be stored.
pub(crate) struct Fill<'a> {
    pub(crate) payload: Option<&'a [u8]>,
    pub(crate) life: Lifetime,
    pub(crate) cost: Duration,
    pub(crate) loaded_at: Instant,
}

impl Fill<'_> {
    /// What is left of its life: Redis counts from the fill, its age is counted from the load.
    fn remaining(&self) -> u64 {
        let age = clock().saturating_duration_since(self.loaded_at);
        millis(self.life.keep.saturating_sub(age)).max(1)
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

/// Applying holds a lock in SQL, so it must not take for ever; and should not give up on a Redis that is only slow.
const APPLY_LIMIT: Duration = Duration::from_millis(250);
const APPLY_ATTEMPTS: usize = 3;

/// KEYS epoch, watermark, all that is to be deleted. ARGV epoch, SQL's watermark, count, channel, announcement, a new epoch or
/// nothing. Refuses if the epoch is another (-1) or Redis is behind SQL (-2): to raise its watermark then would hide that.
const APPLY: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end \
local at = tonumber(redis.call('GET', KEYS[2]) or '-1') or -1 \
if at < tonumber(ARGV[2]) then return -2 end \
for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end \
local new = string.format('%.0f', at + tonumber(ARGV[3])) \
redis.call('SET', KEYS[2], new) \
if ARGV[6] ~= '' then redis.call('SET', KEYS[1], ARGV[6]) end \
redis.call('PUBLISH', ARGV[4], new .. ' ' .. ARGV[5]) \
return tonumber(new)";

/// KEYS epoch, lease, value, tags… ARGV epoch, token, lease ms, tag ms, the head that was seen, a new token per tag.
const TAKE_LEASE: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'epoch'} end \
local head = redis.pcall('GETRANGE', KEYS[3], 0, 5) \
if type(head) == 'string' and head ~= ARGV[5] then return {'held'} end \
if not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then return {'held'} end \
local out = {'taken'} \
for i = 4, #KEYS do \
  redis.call('SET', KEYS[i], ARGV[i + 2], 'NX') \
  redis.call('PEXPIRE', KEYS[i], ARGV[4]) \
  out[#out + 1] = redis.call('GET', KEYS[i]) \
end \
return out";

/// KEYS epoch, watermark, tags… ARGV epoch, tag ms, a new token per tag. Answers the watermark and the tokens, or nothing.
const OPEN_SEASON: &str = "\
local at = redis.call('GET', KEYS[2]) \
if redis.call('GET', KEYS[1]) ~= ARGV[1] or not at then return {} end \
local out = {at} \
for i = 3, #KEYS do \
  redis.call('SET', KEYS[i], ARGV[i], 'NX') \
  redis.call('PEXPIRE', KEYS[i], ARGV[2]) \
  out[#out + 1] = redis.call('GET', KEYS[i]) \
end \
return out";

/// KEYS epoch, watermark, value. ARGV epoch, watermark, bytes, ms.
const FILL_IN_SEASON: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end \
redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4]) \
return 1";

/// KEYS epoch, lease, value. ARGV epoch, token, bytes, ms.
const FILL: &str = "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end \
redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4]) \
redis.call('DEL', KEYS[2]) \
return 1";

/// What FILL must not be: for the test that proves it.
const FILL_UNCHECKED: &str =
    "redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4]) redis.call('DEL', KEYS[2]) return 1";

/// KEYS lease. ARGV token.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
