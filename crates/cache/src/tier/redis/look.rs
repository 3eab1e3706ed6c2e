//! A look at one value in Redis.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use steadfast::Effect;

use super::answer::{EpochView, HEAD, RedisFailure, RedisResult, SeenValue};
use super::envelope::{DecodeError, Envelope, Token};
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
    /// The moment of the question.
    pub(crate) asked: Instant,
}

/// The names in Redis of a value and of the tags that it has to carry.
pub(super) struct Names {
    pub(super) value: Vec<u8>,
    pub(super) tags: Vec<Vec<u8>>,
}

impl Names {
    pub(super) fn bytes(&self) -> usize {
        self.value.len() + self.tags.iter().map(Vec::len).sum::<usize>()
    }
}

/// The answer to a look, from a Redis that is the one that was believed in.
pub(super) struct Found {
    /// The milliseconds that the value has left.
    pub(super) left: i64,
    pub(super) value: Option<Vec<u8>>,
    /// The tokens of the tags.
    pub(super) tokens: Vec<Option<Vec<u8>>>,
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
    /// Asks for a value. If Redis turns out to be another than was believed, once more. A value
    /// that lacks one of the tags is none. `carries` is told of the tags that it has beside them,
    /// before their tokens are asked for, and may refuse the value.
    pub(crate) async fn look(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        allowance: &mut RedisAllowance,
        carries: &(dyn Fn(&[&[u8]]) -> bool + Sync),
    ) -> RedisResult<Lookup> {
        let epoch_view = self.epoch_view(allowance).await?;
        match self.look_once(wanted, epoch_view, allowance, carries).await {
            Err(RedisFailure::Replaced) => {
                let epoch_view = self.epoch_view(allowance).await?;
                Box::pin(self.look_once(wanted, epoch_view, allowance, carries)).await
            }
            other => other,
        }
    }

    pub(super) async fn look_once(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        epoch_view: EpochView,
        allowance: &mut RedisAllowance,
        carries: &(dyn Fn(&[&[u8]]) -> bool + Sync),
    ) -> RedisResult<Lookup> {
        let found = self.find(wanted, &epoch_view, allowance).await?;
        let Some(mut bytes) = found.value.filter(|_| found.left != VANISHED) else {
            return Ok(Lookup::Miss(SeenValue {
                epoch_view,
                head: SmallVec::new(),
            }));
        };
        self.together.note_size(wanted.class, bytes.len());
        let seen = SeenValue {
            epoch_view,
            head: bytes.iter().take(HEAD).copied().collect(),
        };
        let (mut envelope, age) = match self.open(&bytes, found.left) {
            Ok(opened) => opened,
            Err(damage) => {
                tracing::warn!(%damage, "a value in Redis is treated as missing");
                self.stats.damaged.add(1);
                return Ok(Lookup::Miss(seen));
            }
        };
        let Some(unnamed) = unnamed(&envelope, wanted.tags, &found.tokens) else {
            return Ok(Lookup::Miss(seen));
        };
        if !unnamed.is_empty() {
            let names: Vec<&[u8]> = unnamed.iter().map(|(name, _)| *name).collect();
            if !carries(&names)
                || !Box::pin(self.hold(&unnamed, &seen.epoch_view, allowance)).await?
            {
                return Ok(Lookup::Miss(seen));
            }
        }
        let Envelope {
            life,
            cost,
            type_version,
            ref tags,
            ref mut payload,
        } = envelope;
        let tags = tags.iter().map(|(tag, _)| tag.to_vec()).collect();
        let payload = match payload.take() {
            // The end of the bytes, which are not copied for it.
            Some(Cow::Borrowed(payload)) => {
                let before = bytes.len() - payload.len();
                bytes.drain(..before);
                Some(bytes)
            }
            other => other.map(Cow::into_owned),
        };
        Ok(Lookup::Hit(RedisValue {
            life,
            cost,
            age,
            type_version,
            tags,
            payload,
            proven: seen.epoch_view.proven,
            seen,
        }))
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
        let names = self.names_of(wanted, epoch_view);
        // In a box, as all that a read does not do for a hit among many: what it holds while it
        // waits is small then.
        let answer = allowance
            .spend(|limit| Box::pin(self.ask_alone(&names, limit)))
            .await?;
        let Some((left, mut found)) = time_and_texts(answer) else {
            return Err(ANOTHER_SHAPE);
        };
        if found.len() != 3 + names.tags.len() {
            return Err(ANOTHER_SHAPE);
        }
        let tokens = found.split_off(3);
        self.check(epoch_view, found[0].as_deref(), found[1].as_deref())?;
        Ok(Found {
            left,
            value: found.pop().flatten(),
            tokens,
        })
    }

    pub(super) fn names_of(&self, wanted: &Wanted<'_>, epoch_view: &EpochView) -> Names {
        Names {
            value: self.names.value(&epoch_view.epoch, wanted.key),
            tags: wanted.tags.iter().map(|tag| self.names.tag(tag)).collect(),
        }
    }

    /// Asks for the time that a value has left, and for epoch, watermark, the value and its tags.
    ///
    /// The time is asked first: if the value is replaced in between, it seems older than it is, not
    /// younger. A cluster's client repeats what was refused of a pipeline, and only that, so there
    /// the time could be asked again after the value was answered: one script asks for both.
    async fn ask_alone(&self, names: &Names, limit: Duration) -> RedisResult<Vec<redis::Value>> {
        let (epoch, watermark) = (self.names.epoch(), self.names.watermark());
        if self.names.are_in_one_slot() {
            let mut ask = redis::cmd("EVAL");
            ask.arg(LOOK).arg(3 + names.tags.len());
            ask.arg(epoch).arg(watermark).arg(&names.value);
            ask.arg(&names.tags);
            let options = asked_within(limit).effect(Effect::Read);
            return self.ask_with(&ask, limit, options).await;
        }
        let mut pipe = redis::Pipeline::with_capacity(2);
        pipe.cmd("PTTL").arg(&names.value);
        pipe.cmd("MGET").arg(epoch).arg(watermark).arg(&names.value);
        pipe.arg(&names.tags);
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
            return Err(ANOTHER_SHAPE);
        };
        self.check(epoch_view, epoch.as_deref(), watermark.as_deref())?;
        let same =
            |((_, token), now): (&(&[u8], Token), &Option<Vec<u8>>)| now.as_deref() == Some(token);
        Ok(tokens.len() == tags.len() && tags.iter().zip(tokens).all(same))
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
