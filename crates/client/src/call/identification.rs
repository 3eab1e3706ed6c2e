//! Whether a connection still serves from the server that is wanted: asked of the server itself.

use std::time::Instant;

use redis::Value;
use steadfast_core::certainty::{self, Refusal};
use steadfast_core::conn::Reply;

use crate::clock;
use crate::link::Link;
use crate::link::shared::Shared;
use crate::target::Role;
use crate::wire::queue::{Submission, Submitted};
use crate::wire::slot::Ended;
use crate::wire::words::OUT_OF_STEP;

/// Asks the server whether it still serves. A call was told that it is no primary any more, or
/// wants a password, and it may not be true of that one. So the server is asked, and only its own
/// answer replaces the connection that all callers share.
pub(crate) async fn ask_who_serves(shared: &Shared, link: &Link, epoch: u64, deadline: Instant) {
    let now = clock::now();
    let submission = Submission {
        replies: 2,
        started: now,
        deadline,
        now,
        seq: None,
        only_fenced: false,
        read_only: true,
        apart: false,
    };
    let asked = link.queue.submit(submission, |out: &mut Vec<u8>| {
        // An ACL may bar the one, and old servers do not know the other without arguments.
        out.extend_from_slice(b"*1\r\n$4\r\nROLE\r\n*1\r\n$5\r\nHELLO\r\n");
        out.len()
    });
    let Ok(Submitted { pending, .. }) = asked else {
        return;
    };
    if let Ended::Answered { reply, .. } = pending.await {
        let why = match answers(&reply) {
            true => why_reset(shared, state_told_by(&reply)),
            // Whatever follows would be given to the wrong callers.
            false => Some(OUT_OF_STEP),
        };
        if let Some(why) = why {
            link.reset(epoch, why);
        }
    }
}

/// Returns why a connection with this refusal has to be replaced, if it has to be.
pub(crate) fn why_reset(shared: &Shared, refusal: Refusal) -> Option<&'static str> {
    match refusal {
        // Where any role will do, it is the command that is wrong here.
        Refusal::WrongServer | Refusal::Demoted if shared.settings.role == Role::Primary => {
            Some("the server became a replica")
        }
        Refusal::Unauthenticated => Some("the connection lost its authentication"),
        _ => None,
    }
}

/// Returns whether these can be answers to ROLE and HELLO.
fn answers(reply: &Reply) -> bool {
    let can_be = |value: &Value| {
        matches!(
            value,
            Value::Array(_) | Value::Map(_) | Value::ServerError(_)
        )
    };
    matches!(reply, Reply::Many(replies) if replies.iter().all(can_be))
}

/// Reads the state of a server from its answers to ROLE and HELLO.
fn state_told_by(reply: &Reply) -> Refusal {
    let is_text = |value: &Value, word: &str| match value {
        Value::BulkString(text) => text == word.as_bytes(),
        Value::SimpleString(text) => text == word,
        _ => false,
    };
    let is_replica = |value: &Value| ["slave", "replica"].iter().any(|word| is_text(value, word));
    let Reply::Many(replies) = reply else {
        return Refusal::Lasting;
    };
    for reply in replies {
        let replica = match reply {
            Value::ServerError(error) => {
                let details = error.details().unwrap_or_default();
                if certainty::refusal(error.code(), details) == Refusal::Unauthenticated {
                    return Refusal::Unauthenticated;
                }
                false
            }
            Value::Map(pairs) => pairs
                .iter()
                .any(|(key, value)| is_text(key, "role") && is_replica(value)),
            Value::Array(items) => {
                let mut pairs = items.chunks_exact(2);
                items.first().is_some_and(is_replica)
                    || pairs.any(|pair| is_text(&pair[0], "role") && is_replica(&pair[1]))
            }
            _ => false,
        };
        if replica {
            return Refusal::WrongServer;
        }
    }
    Refusal::Lasting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c13_only_what_names_the_role_of_a_replica_shows_one() {
        let text = |text: &str| Value::SimpleString(text.to_owned());
        let bulk = |text: &str| Value::BulkString(text.into());
        let hello = |role| {
            [("server", "redis"), ("role", role)].map(|(name, value)| (bulk(name), bulk(value)))
        };
        let flat = |role| {
            hello(role)
                .into_iter()
                .flat_map(|(name, value)| [name, value])
        };
        let roles = [
            ("slave", Refusal::WrongServer),
            ("replica", Refusal::WrongServer),
            ("master", Refusal::Lasting),
        ];
        for (role, told) in roles {
            for answer in [
                Value::Map(hello(role).to_vec()),
                Value::Array(flat(role).collect()),
                Value::Array(vec![text(role), Value::Int(0)]),
            ] {
                let reply = Reply::Many(vec![Value::Okay, answer]);
                assert_eq!(state_told_by(&reply), told, "{reply:?}");
            }
        }
        let whole = |first, second| answers(&Reply::Many(vec![first, second]));
        assert!(whole(Value::Array(Vec::new()), Value::Map(Vec::new())));
        assert!(!whole(Value::Array(Vec::new()), bulk("another's value")));
        // A name that happens to be that of a role says nothing.
        let name = Value::Map(vec![(bulk("server"), bulk("slave"))]);
        assert_eq!(state_told_by(&Reply::Many(vec![name])), Refusal::Lasting);
        assert_eq!(state_told_by(&Reply::One(text("slave"))), Refusal::Lasting);
    }
}
