//! The adapter to the traits of redis-rs: its users swap the type of their connection and keep their code.

use redis::{Cmd, Pipeline, RedisFuture, RedisResult, ServerError, Value};
use steadfast_core::command::{self, Effect};

use crate::client::{Client, Scoped};
use crate::error::{self, Certainty};
use crate::session::Session;

/// The one way in which a type that sends becomes a connection of redis-rs.
macro_rules! connection_like {
    ($type:ty) => {
        impl redis::aio::ConnectionLike for $type {
            fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
                Box::pin(async move { whole(cmd, self.send(cmd).await?) })
            }

            fn req_packed_commands<'a>(
                &'a mut self,
                pipeline: &'a Pipeline,
                offset: usize,
                count: usize,
            ) -> RedisFuture<'a, Vec<Value>> {
                Box::pin(async move { cut(self.send_pipeline(pipeline).await?, offset, count) })
            }

            fn get_db(&self) -> i64 {
                self.db()
            }
        }
    };
}

connection_like!(Client);
connection_like!(Scoped);
connection_like!(Session);

/// redis-rs makes an error of an answer that holds one (of EXEC, of a script), and so would lose that the rest has run.
fn whole(cmd: &Cmd, answer: Value) -> RedisResult<Value> {
    let nested = matches!(
        answer,
        Value::Array(_) | Value::Set(_) | Value::Map(_) | Value::Attribute { .. }
    );
    if !nested || !may_answer_with_one_within(cmd) {
        return Ok(answer);
    }
    match error_within(&answer) {
        None => Ok(answer),
        Some(error) => Err(error::server_error(error, Certainty::Unknown)),
    }
}

/// Nothing else puts an error into an answer, however long that is.
fn may_answer_with_one_within(cmd: &Cmd) -> bool {
    let class = command::classify(command::arguments(cmd));
    let scripts = ["EVAL_RO", "EVALSHA_RO", "FCALL_RO"];
    class.effect == Effect::Opaque || class.name == "EXEC" || scripts.contains(&class.name)
}

fn error_within(value: &Value) -> Option<&ServerError> {
    match value {
        Value::ServerError(error) => Some(error),
        Value::Array(values) | Value::Set(values) => values.iter().find_map(error_within),
        Value::Map(pairs) => pairs
            .iter()
            .find_map(|(key, value)| error_within(key).or_else(|| error_within(value))),
        Value::Attribute { data, .. } => error_within(data),
        _ => None,
    }
}

/// What redis-rs asks for of all replies: `count` from `offset`. An error among those before is worth more than what follows it (the reason why
/// a transaction was aborted, say).
fn cut(mut replies: Vec<Value>, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
    if offset > 0 {
        let kept = replies.split_off(offset.min(replies.len()));
        let aborted = kept
            .iter()
            .any(|reply| matches!(reply, Value::ServerError(_)));
        if aborted
            && let Some(first) = replies
                .into_iter()
                .find(|reply| matches!(reply, Value::ServerError(_)))
        {
            first.extract_error()?;
        }
        replies = kept;
    }
    replies.truncate(count);
    Ok(replies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_within_is_looked_for_only_where_there_may_be_one() {
        let said = redis::parse_redis_value(b"-WRONGTYPE it is text\r\n");
        let error = said.expect("an error reply");
        let answer = Value::Array(vec![Value::Int(1), error]);
        let attributes = Vec::new();
        let data = Box::new(answer.clone());
        let wrapped = Value::Attribute { data, attributes };
        for name in ["EXEC", "EVAL", "FCALL", "EVAL_RO", "NO.SUCH", "LRANGE"] {
            for answer in [&answer, &wrapped] {
                let found = whole(&redis::cmd(name), answer.clone()).is_err();
                assert_eq!(found, name != "LRANGE", "{name}");
            }
        }
    }
}
