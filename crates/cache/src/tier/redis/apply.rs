//! Applying invalidations, as the relay does.

use std::sync::Arc;
use std::time::Duration;

use super::RedisTier;
use super::allowance::RedisAllowance;
use super::answer::{RedisFailure, RedisResult};
use super::names::Names;
use super::scripts::{APPLY, BEAT, BEAT_SHA};
use crate::outbox::RowMark;
use crate::target::{Announcement, Target};

impl RedisTier {
    /// Forgets what the targets name, raises the watermark and announces it, in one step.
    /// `watermark` is SQL's, and the targets come from these rows of the outbox. Answers the new
    /// watermark.
    pub(crate) async fn apply(
        &self,
        watermark: u64,
        targets: &[Target],
        rows: &[RowMark],
    ) -> RedisResult<u64> {
        let body = Announcement::body(watermark, targets);
        let everything = targets.contains(&Target::All);
        // Whatever SQL has lost, nothing is left in Redis that it could contradict.
        let whatever = everything || !self.epoch_guard.heeds_rollback();
        let rows = RowMark::list(rows);
        let mut allowance = RedisAllowance::new(apply_limit(self.limit));
        for _ in 0..APPLY_ATTEMPTS {
            let epoch = allowance
                .spend(|limit| self.epoch_guard.epoch_to_write(limit))
                .await?;
            let fixed = [
                self.names.epoch(),
                self.names.watermark(),
                self.names.delivery(),
            ];
            let mut names: Vec<Vec<u8>> = fixed.map(<[u8]>::to_vec).into();
            names.extend(self.names.recent().map(<[u8]>::to_vec));
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
                .arg(self.epoch_guard.required(watermark))
                .arg(targets.len())
                .arg(self.names.channel())
                .arg(&body);
            ask.arg(if everything {
                self.new_epoch()
            } else {
                String::new()
            })
            .arg(LOGGED)
            .arg(LOGGED_FOR.as_millis() as u64)
            .arg(self.names.publish())
            .arg(&rows)
            .arg(u8::from(whatever));
            for target in targets.iter().filter(|_| !everything) {
                match target {
                    Target::Key(key) => ask.arg(Names::logged_key(key)),
                    Target::Tag(tag) => ask.arg(Names::logged_tag(tag)),
                    Target::All => continue,
                };
            }
            let applied: i64 = allowance
                .spend(|limit| self.ask_within(&ask, limit))
                .await?;
            if let Ok(applied) = u64::try_from(applied) {
                if everything {
                    self.epoch_guard.doubt(&epoch);
                }
                return Ok(applied);
            }
            if applied == FALLEN {
                return Err(RedisFailure::Fallen);
            }
            self.epoch_guard.doubt(&epoch); // replaced or behind: find out which, and try again
        }
        Err(RedisFailure::NotAsked("its epoch keeps changing"))
    }

    /// The epoch to write in, also while Redis is not read.
    pub(crate) async fn epoch_to_write(&self) -> RedisResult<Arc<str>> {
        self.heed_server();
        self.epoch_guard
            .epoch_to_write(apply_limit(self.limit))
            .await
    }

    /// Sends this process `text` and Redis's watermark, through Redis. The first time on a
    /// connection Redis may not know the script.
    pub(crate) async fn beat(&self, own_channel: &[u8], text: String, first: bool) {
        let forms = [("EVALSHA", BEAT_SHA), ("EVAL", BEAT)];
        for (command, script) in forms.into_iter().skip(usize::from(first)) {
            let mut ask = redis::cmd(command);
            ask.arg(script).arg(1).arg(self.names.watermark());
            ask.arg(own_channel).arg(&text).arg(self.names.publish());
            match self.ask_only::<u64>(&ask).await {
                // Not known yet, or not allowed by that name.
                Err(RedisFailure::Failed(error))
                    if matches!(error.code(), Some("NOSCRIPT" | "NOPERM")) => {}
                _ => return,
            }
        }
    }
}

/// The most that applying may take of Redis's time, where a question of a read may take so much.
pub(crate) fn apply_limit(redis_limit: Duration) -> Duration {
    redis_limit.clamp(APPLY_LIMIT, APPLY_LIMIT_MAX)
}

/// Applying holds a lock in SQL, so all of its attempts together must not take for ever; and should
/// not give up on a Redis that is only slow.
const APPLY_LIMIT: Duration = Duration::from_millis(250);
const APPLY_LIMIT_MAX: Duration = Duration::from_secs(2);
const APPLY_ATTEMPTS: usize = 3;

/// The answer of `APPLY` that SQL was rolled back.
const FALLEN: i64 = -3;

/// Names that each of the two logs of what was invalidated holds at most, and how long it is kept
/// after the last: what is being warmed meanwhile is held against them. Some hundred bytes each.
const LOGGED: usize = 4096;
const LOGGED_FOR: Duration = Duration::from_secs(600);
