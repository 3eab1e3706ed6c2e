//! Finding out whether Redis may be believed: SQL is asked how far it must be, then Redis how far
//! it is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::RedisTier;
use super::answer::{EpochView, RedisFailure};
use super::delivery::Delivery;
use super::epoch_guard::{Adopted, number_text};
use crate::outbox::Glance;
use crate::sql::SourceError;

impl RedisTier {
    /// Forms a belief whenever one is wanted, until the cache is gone; and tries again by itself
    /// while there is none, since nobody may be reading. A task of its own, so that no reader's
    /// limit cuts it short.
    pub(crate) async fn keep_verified(self: Arc<Self>, mut gone: watch::Receiver<()>) {
        loop {
            tokio::select! {
                _ = gone.changed() => return,
                () = self.epoch_guard.wanted() => {}
                () = tokio::time::sleep(AGAIN) => {
                    if self.epoch_guard.believed().is_some() || !self.is_reachable() {
                        continue;
                    }
                }
            }
            if self.epoch_guard.believed().is_none()
                && let Err(trouble) = self.verify().await
            {
                tracing::debug!(%trouble, "redis cannot be verified");
            }
            self.epoch_guard.settle();
        }
    }

    /// Looks at the outbox, and learns from it what Redis must have reached.
    pub(crate) async fn look_at_sql(&self) -> Result<Option<Glance>, SourceError> {
        let before = self.epoch_guard.before_look();
        let Some(glance) = self.outbox.glance().await? else {
            return Ok(None);
        };
        self.epoch_guard.after_look(before, &glance);
        Ok(Some(glance))
    }

    /// Asks Redis how far it is, for the look at SQL that follows. What its record of the last
    /// delivery does not speak of, that of an earlier version of this library, is not told.
    pub(crate) async fn hear(&self) -> Result<(), RedisFailure> {
        let guard = &self.epoch_guard;
        let server = self.heed_server();
        let connection = guard.before_look().connection;
        let Some(believed) = guard.believed().filter(|_| self.is_reachable()) else {
            return Ok(());
        };
        let epoch_view = EpochView { server, ..believed };
        let mut ask = redis::cmd("MGET");
        ask.arg(self.names.epoch())
            .arg(self.names.watermark())
            .arg(self.names.delivery());
        let (epoch, watermark, delivery): (Option<Vec<u8>>, Option<Vec<u8>>, Option<String>) =
            self.ask(&ask).await?;
        self.check(&epoch_view, epoch.as_deref(), watermark.as_deref())?;
        if let Some(delivery) = delivery.as_deref().and_then(Delivery::parse)
            && watermark.is_some_and(|at| at == delivery.to().to_string().as_bytes())
        {
            guard.hear(connection, epoch_view.epoch, delivery);
        }
        Ok(())
    }

    async fn verify(&self) -> Result<(), RedisFailure> {
        let guard = &self.epoch_guard;
        self.heed_server();
        let connection = guard.before_look().connection;
        let looked = tokio::time::timeout(SQL_LIMIT, self.look_at_sql()).await;
        let glance = looked.ok().and_then(Result::ok).flatten();
        if glance.is_none() {
            guard.without_look();
        }
        guard.await_presence().await;
        let known = guard.required(guard.known_watermark());
        let own = guard.database().map(number_text).unwrap_or_default();
        let mut ask = redis::cmd("EVAL");
        ask.arg(ADOPT)
            .arg(3)
            .arg(self.names.epoch())
            .arg(self.names.watermark())
            .arg(self.names.delivery())
            .arg(known)
            .arg(self.new_epoch())
            .arg(own)
            .arg(self.names.presence(""))
            .arg(self.names.publish());
        let (epoch, watermark, begun, held, delivery): (String, u64, bool, bool, String) =
            self.ask(&ask).await?;
        let proven = glance.is_some_and(|glance| begun || is_level(&glance, watermark));
        let found = (!epoch.is_empty()).then_some(Adopted {
            epoch,
            proven,
            watermark,
            delivery: Delivery::parse(&delivery),
            begun,
            held,
            known,
        });
        if guard.adopt(connection, found) {
            self.began_epoch();
        }
        Ok(())
    }
}

/// Whether SQL and Redis are equally far, and nothing waits that Redis has not been told.
fn is_level(glance: &Glance, watermark: u64) -> bool {
    glance.watermark == watermark && glance.waiting.is_empty()
}

const SQL_LIMIT: Duration = Duration::from_secs(1);

/// Where nothing could be found out, and nobody asks, it is tried again after so long.
const AGAIN: Duration = Duration::from_secs(1);

/// KEYS epoch, watermark, the record of the last delivery. ARGV what SQL says Redis must have
/// reached, a new epoch, the database's number if it is known, how the channels are called on which
/// those of a database listen, the command that publishes on them. Returns the epoch, the
/// watermark, whether the epoch is new, whether there was one before, and the record; no epoch if
/// it is another database's whose processes are there. Keeps the epoch of a Redis that is current,
/// begins a new one otherwise; of several processes that find it behind at once, the first begins
/// it and the others adopt it. A watermark from 2^52 on is none: only a hand can have set it, and
/// there may be no room left to count the next invalidation. Frees before it writes, which a full
/// Redis takes.
const ADOPT: &str = "\
local epoch, watermark = redis.call('GET', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or '') \
if watermark and (watermark >= 4503599627370496 or watermark < 0) then watermark = nil end \
local other = epoch and ARGV[3] ~= '' and string.sub(epoch, 1, 16) ~= ARGV[3] \
if other and redis.call(ARGV[5], ARGV[4] .. string.sub(epoch, 1, 16), ARGV[3]) > 0 then return {'', '0', 0, 1, ''} end \
if other then watermark = nil end \
if epoch and watermark and watermark >= tonumber(ARGV[1]) then return {epoch, string.format('%.0f', watermark), 0, 1, redis.call('GET', KEYS[3]) or ''} end \
local at = string.format('%.0f', math.max(watermark or 0, tonumber(ARGV[1]))) \
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3]) \
redis.call('SET', KEYS[1], ARGV[2]) \
redis.call('SET', KEYS[2], at) \
return {ARGV[2], at, 1, epoch and 1 or 0, ''}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{RowMark, WaitingRow};

    /// As when a process died between a commit and its relay, and nobody else ran.
    #[test]
    fn k16_a_redis_as_far_as_sql_is_not_proven_while_invalidations_wait() {
        let mut glance = Glance {
            database: Some(7),
            watermark: 5,
            waiting: Vec::new(),
            complete: true,
            spread: 0,
        };
        assert!(is_level(&glance, 5) && !is_level(&glance, 6));
        glance.waiting.push(WaitingRow {
            mark: RowMark {
                id: 1,
                created_at: 1,
            },
            age_ms: 0,
        });
        assert!(!is_level(&glance, 5));
    }
}
