//! Storing values, by those who have the right to.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RedisTier;
use super::allowance::RedisAllowance;
use super::answer::{EpochView, HEAD, RedisFailure, RedisResult, SeenValue, millis};
use super::envelope::{Envelope, Token, tags_in, to_be_stamped};
use super::names::Names;
use super::scripts::{
    FILL, FILL_IN_WINDOW, FILL_UNCHECKED, OPEN_WINDOW, PLACES, RELEASE, TAKE_LEASE,
};
use crate::clock::clock;
use crate::freshness::Life;
use crate::tier::Key;
use crate::under_way::LoadTask;

/// The right to fill one key, proven to Redis by a random token. Others wait for its holder, so it
/// is given back as soon as it is of no more use, whatever ended that: an error, a panic, a
/// cancelled task, an answer that never came.
pub(crate) struct Lease {
    redis: Arc<RedisTier>,
    key: Key,
    epoch_view: EpochView,
    token: String,
    tags: Vec<(Vec<u8>, Token)>,
    /// Whether Redis may hold it.
    held: bool,
}

/// A state of Redis from before values were loaded whose keys were not known then.
pub(crate) struct WarmWindow {
    epoch_view: EpochView,
    watermark: Vec<u8>,
    /// Tokens of tags, as far as they have been asked for.
    tokens: HashMap<Vec<u8>, Token>,
}

/// A value that was loaded in a window.
pub(crate) struct InWindow<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) tags: &'a [Vec<u8>],
    pub(crate) fill: Fill<'a>,
    /// The value whose place it takes; that of any other it takes only if none is named.
    pub(crate) replaces: Option<&'a Predecessor>,
}

/// The outcome of storing a value in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    Stored,
    /// It was invalidated since the window began, or may have been.
    Refused,
    /// Another value has taken the place since that was looked at.
    Overtaken,
}

/// The value that lay in the place of another before, and hands its tags on.
#[derive(Debug)]
pub(crate) struct Predecessor {
    /// Its first bytes; none if there was nothing.
    head: Vec<u8>,
    /// The names of its tags; of very many or long ones only the first.
    pub(crate) tags: Vec<Vec<u8>>,
}

#[cfg(test)]
impl Predecessor {
    pub(crate) fn with_tags(tags: Vec<Vec<u8>>) -> Self {
        let head = Vec::new();
        Self { head, tags }
    }
}

/// A value to be stored.
pub(crate) struct Fill<'a> {
    pub(crate) payload: Option<&'a [u8]>,
    pub(crate) life: Life,
    pub(crate) cost: Duration,
    pub(crate) type_version: u32,
    pub(crate) loaded_at: Instant,
}

impl Fill<'_> {
    /// Returns what is left of its life: Redis counts from the fill, its age is counted from the
    /// load.
    fn remaining(&self) -> u64 {
        let age = clock().saturating_duration_since(self.loaded_at);
        millis(self.life.keep.saturating_sub(age)).max(1)
    }
}

impl RedisTier {
    /// Asks for the right to fill a key; `None` if another holds it, or has filled it since it was
    /// seen. `life` bounds how long a holder that died stands in the way. Who loads `anew` takes
    /// the right from its holder.
    pub(crate) async fn take_lease(
        self: &Arc<Self>,
        key: &[u8],
        tags: &[Vec<u8>],
        seen: &SeenValue,
        life: Duration,
        anew: bool,
        allowance: &mut RedisAllowance,
    ) -> RedisResult<Option<Lease>> {
        let epoch_view = &seen.epoch_view;
        let mut lease = Lease {
            redis: self.clone(),
            key: key.into(),
            epoch_view: epoch_view.clone(),
            token: self.token_text(),
            tags: Vec::new(),
            held: true,
        };
        let mut ask = redis::cmd("EVAL");
        ask.arg(TAKE_LEASE)
            .arg(3 + tags.len())
            .arg(self.names.epoch())
            .arg(self.names.lease(&epoch_view.epoch, key))
            .arg(self.names.value(&epoch_view.epoch, key));
        for tag in tags {
            ask.arg(self.names.tag(tag));
        }
        ask.arg(&*epoch_view.epoch)
            .arg(&lease.token)
            .arg(millis(life))
            .arg(self.tag_life())
            .arg(seen.head.as_slice())
            .arg(i32::from(anew));
        for _ in tags {
            ask.arg(self.token().as_slice());
        }
        let asked: RedisResult<Vec<Vec<u8>>> =
            allowance.spend(|limit| self.ask_within(&ask, limit)).await;
        // What was never taken need not be given back.
        let answer = asked.inspect_err(|trouble| lease.held = trouble.may_have_run())?;
        match answer.split_first() {
            Some((verdict, tokens)) if verdict == b"taken" => {
                lease.tags = with_tokens(tags, tokens)?;
                Ok(Some(lease))
            }
            Some((verdict, _)) if verdict == b"held" => {
                lease.held = false;
                Ok(None)
            }
            _ => {
                lease.held = false;
                self.epoch_guard.doubt(&epoch_view.epoch);
                Err(RedisFailure::NotAsked("its epoch has changed"))
            }
        }
    }

    /// Gives the right back unused, so that another may have it at once.
    async fn release(&self, name: Vec<u8>, token: String) {
        let mut ask = redis::cmd("EVAL");
        ask.arg(RELEASE).arg(1).arg(name).arg(token);
        let _: RedisResult<i64> = self.ask(&ask).await; // if it fails, the lease expires
    }

    /// Prepares for values whose keys are not known before they are loaded: each may be stored as
    /// long as neither its key nor one of its tags is invalidated meanwhile.
    pub(crate) async fn open_window(&self) -> RedisResult<WarmWindow> {
        let epoch_view = self.epoch_view(&mut self.allowance()).await?;
        let (watermark, _) = self.look_at_window(&epoch_view, &[]).await?;
        Ok(WarmWindow {
            epoch_view,
            watermark,
            tokens: HashMap::new(),
        })
    }

    /// The watermark, and the tokens of these tags.
    async fn look_at_window(
        &self,
        epoch_view: &EpochView,
        tags: &[&Vec<u8>],
    ) -> RedisResult<(Vec<u8>, Vec<(Vec<u8>, Token)>)> {
        let mut ask = redis::cmd("EVAL");
        ask.arg(OPEN_WINDOW)
            .arg(2 + tags.len())
            .arg(self.names.epoch())
            .arg(self.names.watermark());
        for tag in tags {
            ask.arg(self.names.tag(tag));
        }
        ask.arg(&*epoch_view.epoch).arg(self.tag_life());
        for _ in tags {
            ask.arg(self.token().as_slice());
        }
        let answer: Vec<Vec<u8>> = self.ask(&ask).await?;
        let Some((watermark, tokens)) = answer.split_first() else {
            self.epoch_guard.doubt(&epoch_view.epoch);
            return Err(RedisFailure::NotAsked("its epoch has changed"));
        };
        self.check(
            epoch_view,
            Some(epoch_view.epoch.as_bytes()),
            Some(watermark),
        )?;
        let tags: Vec<Vec<u8>> = tags.iter().map(|tag| (*tag).clone()).collect();
        Ok((watermark.clone(), with_tokens(&tags, tokens)?))
    }

    /// Asks for the tokens of tags that are not known yet. They may be asked for after the values
    /// were loaded: a tag that was invalidated since the window began refuses the fill.
    async fn learn_tokens(
        &self,
        window: &mut WarmWindow,
        values: &[InWindow<'_>],
    ) -> RedisResult<()> {
        let named = values.iter().flat_map(|value| value.tags.iter());
        let unknown: HashSet<&Vec<u8>> = named
            .filter(|tag| !window.tokens.contains_key(*tag))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let unknown: Vec<_> = unknown.into_iter().collect();
        let (_, tokens) = self.look_at_window(&window.epoch_view, &unknown).await?;
        window.tokens.extend(tokens);
        Ok(())
    }

    /// Stores values loaded in that window; answers what became of each.
    pub(crate) async fn fill_in_window(
        &self,
        window: &mut WarmWindow,
        values: &[InWindow<'_>],
    ) -> RedisResult<Vec<Filled>> {
        self.learn_tokens(window, values).await?;
        let window = &*window;
        let epoch = &window.epoch_view.epoch;
        let mut pipe = redis::pipe();
        for value in values {
            let token = |tag: &Vec<u8>| Some((tag.clone(), *window.tokens.get(tag)?));
            let tags: Vec<_> = value.tags.iter().filter_map(token).collect();
            let Some(bytes) = self.seal(&value.fill, &tags) else {
                return Err(RedisFailure::NotAsked(
                    "the tags are too many or too long to be written",
                ));
            };
            pipe.cmd("EVAL").arg(FILL_IN_WINDOW).arg(5);
            pipe.arg(self.names.epoch())
                .arg(self.names.watermark())
                .arg(self.names.value(epoch, value.key))
                .arg(&self.names.recent());
            pipe.arg(&**epoch)
                .arg(&window.watermark)
                .arg(bytes)
                .arg(value.fill.remaining())
                .arg(value.replaces.map_or(&b"*"[..], |seen| &seen.head))
                .arg(Names::logged_key(value.key));
            for (tag, _) in &tags {
                pipe.arg(Names::logged_tag(tag));
            }
        }
        let stored: Vec<i64> = self.ask_pipe(&pipe, self.limit).await?;
        let count = stored.iter().filter(|stored| **stored == 1).count();
        self.stats.fills(true).add(count as u64);
        self.stats.fills(false).add((stored.len() - count) as u64);
        let filled = stored.into_iter().map(|stored| match stored {
            1 => Filled::Stored,
            -1 => Filled::Overtaken,
            _ => Filled::Refused,
        });
        Ok(filled.collect())
    }

    /// Prepares for a value that was known when this was called, and takes the place of whatever is
    /// there. Who loads the key meanwhile loses the right to fill it. `still` tells whether the
    /// value is known to be good, for what was invalidated before Redis was asked, which Redis
    /// cannot hold against it; `None` if it is not.
    pub(crate) async fn take_place(
        &self,
        key: &[u8],
        still: impl Fn() -> bool,
    ) -> RedisResult<Option<(WarmWindow, Predecessor)>> {
        let window = self.open_window().await?;
        if !still() {
            return Ok(None);
        }
        let mut there = self.look_at_places(&window, &[key], true).await?;
        Ok(there.pop().map(|there| (window, there)))
    }

    /// Looks at what lies in the places of these keys now. Who loads a key whose place `is_taken`
    /// loses the right to fill it.
    pub(crate) async fn look_at_places(
        &self,
        window: &WarmWindow,
        keys: &[&[u8]],
        is_taken: bool,
    ) -> RedisResult<Vec<Predecessor>> {
        let epoch = &window.epoch_view.epoch;
        let leases = if is_taken { keys } else { &[] };
        let mut ask = redis::cmd("EVAL");
        ask.arg(PLACES).arg(1 + keys.len() + leases.len());
        ask.arg(self.names.epoch());
        for key in keys {
            ask.arg(self.names.value(epoch, key));
        }
        for key in leases {
            ask.arg(self.names.lease(epoch, key));
        }
        ask.arg(&**epoch).arg(keys.len()).arg(LOOKED_AT - 1);
        let found: Vec<Vec<u8>> = self.ask(&ask).await?;
        if found.len() != keys.len() {
            self.epoch_guard.doubt(epoch);
            return Err(RedisFailure::NotAsked("its epoch has changed"));
        }
        let there = found.into_iter().map(|mut head| {
            let tags = tags_in(&head);
            head.truncate(HEAD);
            Predecessor { head, tags }
        });
        Ok(there.collect())
    }

    /// Deletes the value of a key of which a newer one is known that cannot be stored. Who loads
    /// the key meanwhile loses the right to fill it.
    pub(crate) async fn remove(&self, key: &[u8]) -> RedisResult<()> {
        let epoch = self.epoch_to_write().await?;
        let mut ask = redis::cmd("DEL");
        ask.arg(self.names.value(&epoch, key))
            .arg(self.names.lease(&epoch, key));
        self.ask::<i64>(&ask).await.map(drop)
    }

    /// `None` if its tags are too many or too long to be written.
    fn seal(&self, value: &Fill<'_>, tags: &[(Vec<u8>, Token)]) -> Option<Vec<u8>> {
        let tags = tags
            .iter()
            .map(|(tag, token)| (Cow::Borrowed(tag.as_slice()), *token))
            .collect();
        let envelope = Envelope {
            life: value.life,
            cost: value.cost,
            type_version: value.type_version,
            tags,
            payload: value.payload.map(Cow::Borrowed),
            expires: None,
        };
        let mut bytes = envelope.encode(self.compress_above)?;
        // In a cluster the time that is left is asked for: where a slot moves, another node counts
        // it by another clock.
        if !self.names.are_in_one_slot() {
            to_be_stamped(&mut bytes);
        }
        Some(bytes)
    }
}

impl Lease {
    /// Stores a value, if the lease is still the one in Redis. Says whether it did.
    pub(crate) async fn fill(mut self, value: &Fill<'_>) -> RedisResult<bool> {
        let redis = self.redis.clone();
        let Some(bytes) = redis.seal(value, &self.tags) else {
            tracing::warn!(
                "a value has tags too many or too long to be written, and is kept in memory only"
            );
            redis.stats.not_stored.add(1);
            return Ok(false);
        };
        let epoch = &self.epoch_view.epoch;
        let mut ask = redis::cmd("EVAL");
        ask.arg(if redis.lease_checked {
            FILL
        } else {
            FILL_UNCHECKED
        })
        .arg(3);
        ask.arg(redis.names.epoch())
            .arg(redis.names.lease(epoch, &self.key))
            .arg(redis.names.value(epoch, &self.key));
        ask.arg(&**epoch)
            .arg(&self.token)
            .arg(bytes)
            .arg(value.remaining());
        let stored: i64 = redis.ask(&ask).await?;
        self.held = false; // stored and deleted, or it was another's
        redis.stats.fills(stored == 1).add(1);
        Ok(stored == 1)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.held || !self.redis.is_reachable() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (redis, token) = (self.redis.clone(), std::mem::take(&mut self.token));
            let name = redis.names.lease(&self.epoch_view.epoch, &self.key);
            // Whoever waits for the load waits for this too.
            let task = LoadTask::another();
            runtime.spawn(async move {
                redis.release(name, token).await;
                drop(task);
            });
        }
    }
}

/// Bytes of a value with tags that are looked at for their names.
const LOOKED_AT: usize = 4 << 10;

fn with_tokens(tags: &[Vec<u8>], tokens: &[Vec<u8>]) -> RedisResult<Vec<(Vec<u8>, Token)>> {
    let tokens = tokens
        .iter()
        .map(|token| Token::try_from(token.as_slice()).ok());
    let tags: Option<Vec<_>> = tags
        .iter()
        .zip(tokens)
        .map(|(tag, token)| Some((tag.clone(), token?)))
        .collect();
    tags.ok_or(RedisFailure::NotAsked(
        "a tag holds something that is not a token",
    ))
}
