//! The commands that a replica may serve, and the answers of it that count.

use redis::{Cmd, Value};
use steadfast_core::command::{self, Effect, Errors};
use steadfast_core::conn::Reply;

/// Whether a replica may answer: to what only reads by the table of commands, of one key or by
/// MGET, and means the same on each server. A cursor does not, nor what is known of how a key is
/// kept.
pub(super) fn may_be_stale(cmd: &Cmd) -> bool {
    const OWN: [&str; 8] = [
        "TOUCH",
        "HSCAN",
        "SSCAN",
        "ZSCAN",
        "OBJECT ENCODING",
        "OBJECT FREQ",
        "OBJECT IDLETIME",
        "OBJECT REFCOUNT",
    ];
    let class = command::classify(command::arguments(cmd));
    let mut keys = command::key_names(command::arguments(cmd));
    let (first, second) = (keys.next(), keys.next());
    class.effect == Effect::Read
        && class.blocking.is_none()
        && class.errors == Errors::Refuse
        && !OWN.contains(&class.name)
        && first.is_some()
        && (second.is_none() || class.name == "MGET")
}

/// Whether an answer can come only from where the keys are.
pub(super) fn is_something(cmd: &Cmd, answer: &Reply) -> bool {
    let Reply::One(answer) = answer else {
        return false;
    };
    match (command::classify(command::arguments(cmd)).name, answer) {
        ("MGET", Value::Array(values)) => !values.contains(&Value::Nil),
        _ => !is_nothing(answer),
    }
}

/// Whether it may be the answer for a key that is not there, whichever command was asked.
fn is_nothing(answer: &Value) -> bool {
    match answer {
        Value::Nil | Value::Boolean(false) | Value::ServerError(_) => true,
        Value::Int(number) => *number <= 0,
        Value::Double(number) => *number == 0.0,
        Value::BulkString(text) => text.is_empty(),
        Value::SimpleString(text) => text == "none",
        Value::VerbatimString { text, .. } => text.is_empty(),
        Value::Array(values) | Value::Set(values) => values.iter().all(is_nothing),
        Value::Map(pairs) => pairs.is_empty(),
        _ => false,
    }
}
