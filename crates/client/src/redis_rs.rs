//! The adapter to the traits of redis-rs: its users swap the type of their connection and keep
//! their code.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisConnectionInfo, RedisError, RedisFuture,
    RedisResult, ServerError, Value,
};
use steadfast_core::command::{self, Errors};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::chosen::NodeClient;
use crate::client::{Client, ScopedClient};
use crate::error::{self, Certainty};
use crate::session::Session;

/// The one way in which a type that sends becomes a connection of redis-rs.
macro_rules! connection_like {
    ($type:ty) => {
        impl ConnectionLike for $type {
            fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
                Box::pin(async move {
                    if command::arguments(cmd).len() == 0 {
                        return Err(nothing_to_send());
                    }
                    whole(cmd, self.send(cmd).await?)
                })
            }

            fn req_packed_commands<'a>(
                &'a mut self,
                pipeline: &'a Pipeline,
                offset: usize,
                count: usize,
            ) -> RedisFuture<'a, Vec<Value>> {
                Box::pin(async move {
                    if pipeline.is_empty() && !pipeline.is_transaction() {
                        return Err(nothing_to_send());
                    }
                    cut(self.send_pipeline(pipeline).await?, offset, count).await
                })
            }

            fn get_db(&self) -> i64 {
                self.db()
            }
        }
    };
}

connection_like!(Client);
connection_like!(ScopedClient);
connection_like!(NodeClient);
connection_like!(Session);

/// redis-rs makes an error of an answer that holds one (of EXEC, of a script), and so would lose
/// that the rest has run.
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
    matches!(
        class.errors,
        Errors::ProveNothing | Errors::OfNoKnownCommand
    ) || class.name == "EXEC"
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

/// Returns the error of redis-rs for a command or pipeline that is empty.
fn nothing_to_send() -> RedisError {
    (ErrorKind::Client, "empty command").into()
}

/// Returns the replies that redis-rs asks for: `count` from `offset`. Of a transaction that was
/// aborted, the error that redis-rs makes of its refusals.
async fn cut(mut replies: Vec<Value>, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
    if offset > 0 {
        let kept = replies.split_off(offset.min(replies.len()));
        let failed = kept.iter().find_map(|reply| match reply {
            Value::ServerError(error) => Some(error.clone()),
            _ => None,
        });
        if let Some(error) = failed {
            // The reasons stand among the replies before, or in its own words.
            aborted(&replies).await?;
            return Err(error::server_error(&error, Certainty::Rejected));
        }
        replies = kept;
    }
    replies.truncate(count);
    Ok(replies)
}

/// The error of an aborted transaction, with every refusal at the index of its command; nothing if
/// there is none among the replies to what was queued.
///
/// Only redis-rs itself can make that error, so a connection of its own is shown the replies, in
/// memory.
async fn aborted(queued: &[Value]) -> RedisResult<()> {
    let refused = |reply: &Value| matches!(reply, Value::ServerError(_));
    if !queued.iter().any(refused) {
        return Ok(());
    }
    let mut transaction = redis::pipe();
    transaction.atomic();
    let mut said = Vec::new();
    for reply in queued {
        match reply {
            Value::ServerError(error) => {
                let detail = error.details().unwrap_or_default();
                said.extend_from_slice(format!("-{} {detail}\r\n", error.code()).as_bytes());
            }
            _ => said.extend_from_slice(b"+QUEUED\r\n"),
        }
    }
    said.extend_from_slice(b"-EXECABORT Transaction discarded because of previous errors.\r\n");
    // MULTI is the first of those before EXEC.
    for _ in 1..queued.len() {
        transaction.cmd("PING");
    }
    let (theirs, mut ours) = tokio::io::duplex(1 << 16);
    let info = RedisConnectionInfo::default()
        .set_protocol(redis::ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let (mut connection, driver) =
        MultiplexedConnection::new_with_config(&info, theirs, config).await?;
    let server = async {
        // It does not wait for replies before it has asked.
        let mut asked = [0; 1 << 10];
        let _ = ours.read(&mut asked).await;
        let _ = ours.write_all(&said).await;
        while ours.read(&mut asked).await.is_ok_and(|read| read > 0) {}
    };
    let judged = connection.req_packed_commands(&transaction, queued.len(), 1);
    tokio::select! {
        biased;
        judged = judged => judged.map(drop),
        () = driver => Ok(()),
        () = server => Ok(()),
    }
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
