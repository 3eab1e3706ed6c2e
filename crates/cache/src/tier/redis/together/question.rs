//! The one question that is asked for all readers of a gathering.
//!
//! What goes wrong with it may be due to one of them, and each then asks for himself, or to the
//! server, and then it is the answer for all.

use std::time::Duration;

use redis::Value;
use steadfast::{Effect, ErrorKind};

use super::found::{FoundForAll, take_apart};
use super::gathering::{Gathering, Room};
use crate::monotonic::Monotonic;
use crate::tier::redis::answer::RedisFailure;
use crate::tier::redis::scripts::LOOK_FOR_ALL;
use crate::tier::redis::{RedisTier, asked_within};

impl RedisTier {
    /// Asks for all of these. A failure that may be due to one of them is `Err(None)`.
    pub(super) async fn find_all(
        &self,
        gathering: &Gathering,
        limit: Duration,
    ) -> Result<FoundForAll, Option<RedisFailure>> {
        let answer = match self.names.are_in_one_slot() {
            true => self.ask_for_all_by_script(gathering, limit).await,
            false => self.ask_for_all_by_pipeline(gathering, limit).await,
        }?;
        if let [Value::ServerError(_), ..] = answer.as_slice() {
            // It may not be asked the time.
            self.together.note_unstamped(Monotonic::now());
        }
        let (epoch, watermark, found) = take_apart(answer, &gathering.room.readers).ok_or(None)?;
        self.check(
            &gathering.epoch_view,
            epoch.as_deref(),
            watermark.as_deref(),
        )?;
        Ok(found)
    }

    /// Asks the time, or the time that each value has left, and then for all that the readers have
    /// named. All is answered on one connection, in one attempt, so that it is the time of the
    /// server that has the values. It is asked first: if a value is replaced in between, it seems
    /// older than it is, not younger.
    async fn ask_for_all_by_pipeline(
        &self,
        gathering: &Gathering,
        limit: Duration,
    ) -> Result<Vec<Value>, Option<RedisFailure>> {
        let Room { readers, names, .. } = &gathering.room;
        let tags = readers.iter().flat_map(|reader| &reader.tags);
        let bytes: usize = tags.map(Vec::len).sum();
        let mut values = redis::Cmd::with_capacity(3 + readers.len(), names.len() + bytes + 128);
        values.arg("MGET");
        values.arg(self.names.epoch()).arg(self.names.watermark());
        for reader in readers {
            values.arg(gathering.name_of(reader)).arg(&reader.tags);
        }
        let mut pipe = redis::Pipeline::with_capacity(2);
        if self.together.are_stamped(gathering.began) {
            pipe.cmd("TIME");
        } else {
            for reader in readers {
                pipe.cmd("PTTL").arg(gathering.name_of(reader));
            }
        }
        pipe.add_command(values);
        let client = self.client.with(asked_within(limit));
        let answer = client.send_pipeline(&pipe).await;
        if let Ok(answer) = &answer
            && let Some(refusal) = refusal_of_the_values(answer)
        {
            self.stats.redis_errors.add(1);
            return Err(refusal);
        }
        self.judge(answer)
    }

    async fn ask_for_all_by_script(
        &self,
        gathering: &Gathering,
        limit: Duration,
    ) -> Result<Vec<Value>, Option<RedisFailure>> {
        let readers = &gathering.room.readers;
        let tags: usize = readers.iter().map(|reader| reader.tags.len()).sum();
        let mut ask = redis::cmd("EVAL");
        ask.arg(LOOK_FOR_ALL).arg(2 + readers.len() + tags);
        ask.arg(self.names.epoch()).arg(self.names.watermark());
        for reader in readers {
            ask.arg(gathering.name_of(reader)).arg(&reader.tags);
        }
        // The places of the values among the names.
        let mut place = 3;
        for reader in readers {
            ask.arg(place);
            place += 1 + reader.tags.len();
        }
        let client = self.client.with(asked_within(limit).effect(Effect::Read));
        match self.judge(client.send(&ask).await)? {
            Value::Array(answer) => Ok(answer),
            _ => Err(None),
        }
    }

    /// Counts an answer; says of a failure whether it may be due to one of the values.
    fn judge<T>(&self, answer: Result<T, steadfast::Error>) -> Result<T, Option<RedisFailure>> {
        let counter = match answer {
            Ok(_) => &self.stats.redis_answers,
            Err(_) => &self.stats.redis_errors,
        };
        counter.add(1);
        answer.map_err(|error| match error.kind() {
            ErrorKind::Server(refusal) if !OF_THE_SERVER.contains(&refusal.code()) => None,
            ErrorKind::ReplyTooLarge { .. } => {
                // Its connection has ended with it, for all that were using it.
                self.together.part_for_good();
                None
            }
            // Each has the rest of its time for a question of its own.
            ErrorKind::Timeout { .. } if self.names.are_in_one_slot() => None,
            _ => Some(RedisFailure::Failed(error.into())),
        })
    }
}

impl RedisFailure {
    /// Whether it is due to the state of the server, and so to none of those who asked together.
    pub(super) fn is_of_the_server(&self) -> bool {
        match self {
            Self::Replaced => true,
            Self::Failed(error) => error
                .code()
                .is_some_and(|code| OF_THE_SERVER.contains(&code)),
            _ => false,
        }
    }
}

/// Returns why the values were refused, if they were. A server that loads its data, or has lost its
/// primary, tells the time all the same, so the client does not see a refusal of the whole.
pub(super) fn refusal_of_the_values(answer: &[Value]) -> Option<Option<RedisFailure>> {
    let Some(Value::ServerError(refusal)) = answer.last() else {
        return None;
    };
    let failure = RedisFailure::Failed(refusal.clone().into());
    Some(failure.is_of_the_server().then_some(failure))
}

/// The refusals by which a server says that it serves nobody now.
const OF_THE_SERVER: [&str; 3] = ["LOADING", "MASTERDOWN", "BUSY"];
