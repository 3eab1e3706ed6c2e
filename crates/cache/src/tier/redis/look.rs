//! A look at one value in Redis.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use steadfast::Effect;

use super::answer::{EpochView, HEAD, RedisFailure, RedisResult, SeenValue};
use super::envelope::{DecodeError, Envelope, Token, is_unstamped, payload_end};
use super::scripts::LOOK;
use super::{RedisAllowance, RedisTier, asked_within};
use crate::freshness::Life;

/// The value that a look is for.
pub(crate) struct Wanted<'a> {
    pub(crate) key: &'a [u8],
    /// The tags that it has to carry.
    pub(crate) tags: &'a [Vec<u8>],
    /// The number of its class.
    pub(crate) class: usize,
}

/// The answer to a look, from a Redis that is the one that was believed in.
pub(super) struct Found {
    pub(super) told: Told,
    pub(super) value: Option<Vec<u8>>,
    /// The tokens of the tags.
    pub(super) tokens: Vec<Option<Vec<u8>>>,
}

impl Found {
    /// Whether it is a value without a stamp.
    pub(super) fn is_unstamped(&self) -> bool {
        self.value.as_deref().is_some_and(is_unstamped)
    }
}

/// What Redis has said beside a value, by which its age is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    /// The milliseconds that it has left.
    Left(i64),
    /// The time, in milliseconds of Redis's clock. That tells the age of what bears a stamp.
    Now(u64),
}

/// The name of a tag, and its token.
type Tag = (Vec<u8>, Token);

/// The outcome of a look at Redis.
pub(crate) enum Lookup {
    Hit(RedisValue),
    /// Nothing that may be served.
    Miss(Unfit),
}

/// A value in Redis that does not answer the read, or none: what is known of it.
pub(crate) struct Unfit {
    pub(crate) seen: SeenValue,
    /// The tags that what takes its place has to carry.
    pub(crate) tags: Vec<Vec<u8>>,
}

impl From<SeenValue> for Unfit {
    fn from(seen: SeenValue) -> Self {
        let tags = Vec::new();
        Self { seen, tags }
    }
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
    /// Whether SQL was held against Redis; if not, this is not fresh.
    pub(crate) proven: bool,
}

impl RedisTier {
    /// Asks for a value. If Redis turns out to be another than was believed, once more. A value
    /// that lacks one of the tags is none. `carries` is told of the tags that it has beside them,
    /// before their tokens are asked for, and may refuse the value.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function keeps its arguments twice"
    )]
    pub(crate) fn look(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        allowance: &mut RedisAllowance,
        carries: &(dyn Fn(&[&[u8]]) -> bool + Sync),
    ) -> impl Future<Output = RedisResult<Lookup>> + Send {
        async move {
            let epoch_view = self.epoch_view(allowance).await?;
            match self.look_once(wanted, epoch_view, allowance, carries).await {
                Err(RedisFailure::Replaced) => {}
                other => return other,
            }
            // In a box, as all that a read does not do for a hit among many: what it holds while it
            // waits is small then.
            let once_more = async {
                let epoch_view = self.epoch_view(allowance).await?;
                self.look_once(wanted, epoch_view, allowance, carries).await
            };
            Box::pin(once_more).await
        }
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "an async function keeps its arguments twice"
    )]
    pub(super) fn look_once(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        epoch_view: EpochView,
        allowance: &mut RedisAllowance,
        carries: &(dyn Fn(&[&[u8]]) -> bool + Sync),
    ) -> impl Future<Output = RedisResult<Lookup>> + Send {
        async move {
            let found = self.find(wanted, &epoch_view, allowance).await?;
            let looking_on = match self.open(wanted, epoch_view, found) {
                Ok((value, unnamed)) if unnamed.is_empty() => return Ok(Lookup::Hit(value)),
                // In a box, as above.
                Ok((value, unnamed)) => {
                    Box::pin(self.look_at_tags(value, unnamed, allowance, carries))
                }
                Err(unfit) => return Ok(Lookup::Miss(unfit)),
            };
            looking_on.await
        }
    }

    /// Takes a value out of the bytes that were found, with those of its tags that were not named;
    /// else says what was seen.
    fn open(
        &self,
        wanted: &Wanted<'_>,
        epoch_view: EpochView,
        found: Found,
    ) -> Result<(RedisValue, Vec<Tag>), Unfit> {
        let vanished = matches!(found.told, Told::Left(VANISHED));
        let Some(mut bytes) = found.value.filter(|_| !vanished) else {
            let head = SmallVec::new();
            return Err(SeenValue { epoch_view, head }.into());
        };
        self.together.note_size(wanted.class, bytes.len());
        let seen = SeenValue {
            epoch_view,
            head: SmallVec::from_slice(&bytes[..HEAD.min(bytes.len())]),
        };
        let (mut envelope, age) = match self.decode(&bytes, found.told) {
            Ok(decoded) => decoded,
            Err(damage) => {
                tracing::warn!(%damage, "a value in Redis is treated as missing");
                self.stats.damaged.add(1);
                return Err(seen.into());
            }
        };
        let unnamed = match unnamed(&envelope, wanted.tags, &found.tokens) {
            Ok(unnamed) => unnamed,
            Err(tags) => return Err(Unfit { seen, tags }),
        };
        let Envelope {
            life,
            cost,
            type_version,
            ref tags,
            ref mut payload,
            ..
        } = envelope;
        let tags = tags.iter().map(|(tag, _)| tag.to_vec()).collect();
        let payload = match payload.take() {
            // A part of the bytes, which are not copied for it.
            Some(Cow::Borrowed(payload)) => {
                let (end, length) = (payload_end(&bytes), payload.len());
                bytes.truncate(end);
                bytes.drain(..end - length);
                Some(bytes)
            }
            other => other.map(Cow::into_owned),
        };
        let value = RedisValue {
            life,
            cost,
            age,
            type_version,
            tags,
            payload,
            proven: seen.epoch_view.proven,
            seen,
        };
        Ok((value, unnamed))
    }

    /// Whether the tags of a value hold that nobody named.
    async fn look_at_tags(
        &self,
        value: RedisValue,
        unnamed: Vec<Tag>,
        allowance: &mut RedisAllowance,
        carries: &(dyn Fn(&[&[u8]]) -> bool + Sync),
    ) -> RedisResult<Lookup> {
        let names: Vec<&[u8]> = unnamed.iter().map(|(name, _)| name.as_slice()).collect();
        let hold = carries(&names)
            && self
                .hold(&unnamed, &value.seen.epoch_view, allowance)
                .await?;
        Ok(match hold {
            true => Lookup::Hit(value),
            // The flight is governed by them from now on, so what it brings has to carry them in
            // Redis too.
            false => Lookup::Miss(Unfit {
                seen: value.seen,
                tags: unnamed.into_iter().map(|(name, _)| name).collect(),
            }),
        })
    }

    /// Asks for a value, with others that do so at this moment or alone.
    async fn find(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        epoch_view: &EpochView,
        allowance: &mut RedisAllowance,
    ) -> RedisResult<Found> {
        let _looks = self.together.looks();
        if self.together.invites(wanted)
            && allowance.is_unspent()
            && let Some(found) = self.ask_with_others(wanted, epoch_view, allowance).await
        {
            return found;
        }
        // In a box, as above.
        Box::pin(self.find_alone(wanted, epoch_view, allowance)).await
    }

    async fn find_alone(
        &self,
        wanted: &Wanted<'_>,
        epoch_view: &EpochView,
        allowance: &mut RedisAllowance,
    ) -> RedisResult<Found> {
        let answer = allowance
            .spend(|limit| self.ask_alone(wanted, epoch_view, limit))
            .await?;
        let Some((left, mut found)) = time_and_texts(answer) else {
            return Err(ANOTHER_SHAPE);
        };
        if found.len() != 3 + wanted.tags.len() {
            return Err(ANOTHER_SHAPE);
        }
        let tokens = found.split_off(3);
        self.check(epoch_view, found[0].as_deref(), found[1].as_deref())?;
        Ok(Found {
            told: Told::Left(left),
            value: found.pop().flatten(),
            tokens,
        })
    }

    /// Asks for the time that a value has left, and for epoch, watermark, the value and its tags.
    ///
    /// The time is asked first: if the value is replaced in between, it seems older than it is, not
    /// younger. A cluster's client repeats what was refused of a pipeline, and only that, so there
    /// the time could be asked again after the value was answered: one script asks for both.
    async fn ask_alone(
        &self,
        wanted: &Wanted<'_>,
        epoch_view: &EpochView,
        limit: Duration,
    ) -> RedisResult<Vec<redis::Value>> {
        let (epoch, watermark) = (self.names.epoch(), self.names.watermark());
        let value = self.names.value(&epoch_view.epoch, wanted.key);
        let tags: Vec<_> = wanted.tags.iter().map(|tag| self.names.tag(tag)).collect();
        if self.names.are_in_one_slot() {
            let mut ask = redis::cmd("EVAL");
            ask.arg(LOOK).arg(3 + tags.len());
            ask.arg(epoch).arg(watermark).arg(&value).arg(&tags);
            let options = asked_within(limit).effect(Effect::Read);
            return self.ask_with(&ask, limit, options).await;
        }
        let mut pipe = redis::Pipeline::with_capacity(2);
        pipe.cmd("PTTL").arg(&value);
        pipe.cmd("MGET").arg(epoch).arg(watermark).arg(&value);
        pipe.arg(&tags);
        self.ask_plainly(&pipe, limit).await
    }

    /// Judges the bytes of a value, and tells its age.
    fn decode<'b>(
        &self,
        bytes: &'b [u8],
        told: Told,
    ) -> Result<(Envelope<'b>, Duration), DecodeError> {
        let envelope = Envelope::decode(bytes, self.value_max)?;
        // The time it has left, by Redis's own clock, tells its age; the host's clock is not asked.
        let remaining = match (told, envelope.expires) {
            (Told::Left(left), _) => u64::try_from(left).map_err(|_| DecodeError::Corrupt)?,
            // None, if somebody keeps it for longer than it was to live.
            (Told::Now(now), Some(expires)) => expires.saturating_sub(now),
            (Told::Now(_), None) => return Err(DecodeError::Corrupt),
        };
        let age = (envelope.life.keep + TOLERANCE)
            .checked_sub(Duration::from_millis(remaining))
            .ok_or(DecodeError::Corrupt)?;
        Ok((envelope, age.saturating_sub(TOLERANCE)))
    }

    /// Whether these tags still have these tokens, in the Redis that the value came from.
    async fn hold(
        &self,
        tags: &[Tag],
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
            return Err(ANOTHER_SHAPE);
        };
        self.check(epoch_view, epoch.as_deref(), watermark.as_deref())?;
        let same = |((_, token), now): (&Tag, &Option<Vec<u8>>)| now.as_deref() == Some(token);
        Ok(tokens.len() == tags.len() && tags.iter().zip(tokens).all(same))
    }
}

/// The tags of a value that were not named, with their tokens. An error if the value is none for
/// this reader: it lacks a tag that was named, and what takes its place carries those that it has;
/// or one was invalidated, and nothing is left of it.
fn unnamed(
    envelope: &Envelope<'_>,
    named: &[Vec<u8>],
    tokens: &[Option<Vec<u8>>],
) -> Result<Vec<Tag>, Vec<Vec<u8>>> {
    if named.is_empty() && envelope.tags.is_empty() {
        return Ok(Vec::new());
    }
    let mut lacks = false;
    for (name, now) in named.iter().zip(tokens) {
        match envelope.tags.iter().find(|(tag, _)| **tag == **name) {
            Some((_, token)) if now.as_deref() == Some(token) => {}
            Some(_) => return Err(Vec::new()),
            None => lacks = true,
        }
    }
    let tags = envelope.tags.iter();
    if lacks {
        return Err(tags.map(|(tag, _)| tag.to_vec()).collect());
    }
    Ok(tags
        .filter(|(tag, _)| !named.iter().any(|name| **name == **tag))
        .map(|(tag, token)| (tag.to_vec(), *token))
        .collect())
}

/// The answers to PTTL and MGET.
fn time_and_texts(answer: Vec<redis::Value>) -> Option<(i64, Vec<Option<Vec<u8>>>)> {
    let mut answer = answer.into_iter();
    let (Some(redis::Value::Int(remaining)), Some(redis::Value::Array(found))) =
        (answer.next(), answer.next())
    else {
        return None;
    };
    Some((
        remaining,
        found.into_iter().map(text).collect::<Option<_>>()?,
    ))
}

/// A text, or that there is none; else it is no answer to MGET.
pub(super) fn text(value: redis::Value) -> Option<Option<Vec<u8>>> {
    match value {
        redis::Value::BulkString(bytes) => Some(Some(bytes)),
        redis::Value::Nil => Some(None),
        _ => None,
    }
}

/// Redis has answered what it was not asked.
pub(super) const ANOTHER_SHAPE: RedisFailure =
    RedisFailure::NotAsked("its answer has another shape");

/// A value may seem to have this much more time left than it was given: Redis rounds, and its clock
/// is smoothed.
const TOLERANCE: Duration = Duration::from_millis(1000);

/// The time left of a key that is not there.
const VANISHED: i64 = -2;
