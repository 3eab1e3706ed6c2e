//! Commands and replies as the words that they are.

use redis::Value;
use steadfast_core::resp::encode;

/// Encodes a command of words.
pub(crate) fn command(words: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::command(words.iter().map(|word| word.as_bytes()), &mut out);
    out
}

/// Returns code and text of a reply that is an error.
pub(crate) fn as_error(reply: &Value) -> Option<(String, String)> {
    match reply {
        Value::ServerError(error) => Some((
            error.code().to_owned(),
            error.details().unwrap_or_default().to_owned(),
        )),
        _ => None,
    }
}

/// A server that does not know a command says what it was told with it; and AUTH is told a
/// password.
pub(crate) fn without_arguments(mut text: String) -> String {
    if let Some(arguments) = text.find("with args") {
        text.truncate(arguments);
    }
    text
}

/// Returns the text of a reply, which is empty if there is none.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    }
}

/// The version of the server by its own count, as INFO tells it. `redis_version` may be that of
/// Redis which it is compatible with.
pub(crate) fn own_version(info: &str) -> Option<String> {
    let name = info_field(info, "server_name").unwrap_or_else(|| "valkey".into());
    info_field(info, &format!("{name}_version")).or_else(|| info_field(info, "redis_version"))
}

/// A field of what INFO says.
pub(crate) fn info_field(info: &str, name: &str) -> Option<String> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

/// The reason why nothing more is believed of a connection.
pub(crate) const OUT_OF_STEP: &str =
    "the server answered what was not asked: replies are out of step";
