//! The client's errors as those of redis-rs.

use std::sync::Arc;

use redis::{RedisError, ServerError, ServerErrorKind};
use steadfast_core::certainty::Certainty;

use super::{Error, ErrorKind};

/// An error of Steadfast inside an [`std::io::Error`] inside a [`RedisError`], so that redis-rs
/// users find it by [`certainty`].
impl From<Error> for RedisError {
    fn from(error: Error) -> Self {
        let kind = match &error.kind {
            ErrorKind::Timeout { .. } => std::io::ErrorKind::TimedOut,
            ErrorKind::Lost { .. } => std::io::ErrorKind::ConnectionReset,
            ErrorKind::Down { .. } | ErrorKind::BreakerOpen { .. } => {
                std::io::ErrorKind::ConnectionRefused
            }
            ErrorKind::Invalid { .. }
            | ErrorKind::Refused { .. }
            | ErrorKind::CrossSlot { .. }
            | ErrorKind::NoPlace { .. }
            | ErrorKind::UnknownNode { .. } => std::io::ErrorKind::InvalidInput,
            ErrorKind::ReplyTooLarge { .. } => std::io::ErrorKind::InvalidData,
            ErrorKind::Server(server) => return server_error(server, error.certainty),
            _ => std::io::ErrorKind::Other,
        };
        std::io::Error::new(kind, error).into()
    }
}

/// Marks, in the text of an error reply, that the command may have run half way: a [`RedisError`]
/// has no other room for it.
const HALF_WAY: &str = " [outcome unknown]";

/// An error reply stays one, with its code; where its command may have run half way, its text says
/// so.
pub(crate) fn server_error(error: &ServerError, certainty: Certainty) -> RedisError {
    let detail = error.details().unwrap_or_default();
    let mark = match certainty {
        Certainty::Unknown => HALF_WAY,
        _ => "",
    };
    let line = format!("-{} {detail}{mark}\r\n", error.code());
    redis::parse_redis_value(line.as_bytes())
        .and_then(redis::Value::extract_error)
        .err()
        .unwrap_or_else(|| std::io::Error::other("an error of the server").into())
}

/// Returns what is known of a command that failed with a [`RedisError`] of this client.
///
/// An error that does not come from the connection (a value of another type than asked for, say)
/// belongs to a command that was answered: it counts as `Unknown`, since its effect stands.
///
/// ```no_run
/// use steadfast::redis::{AsyncCommands, RedisResult};
/// use steadfast::{Certainty, certainty};
///
/// # async fn example(mut client: steadfast::Client) {
/// let counted: RedisResult<u64> = client.incr("orders", 1).await;
/// match counted.map_err(|error| certainty(&error)) {
///     Ok(orders) => println!("order {orders}"),
///     Err(Certainty::NotSent | Certainty::Rejected) => println!("not counted; try it again"),
///     Err(_) => println!("it may have been counted; to try again could count it twice"),
/// }
/// # }
/// ```
pub fn certainty(error: &RedisError) -> Certainty {
    // Of a transaction that was aborted nothing has run. One in the words of a script has a source,
    // which is looked at below.
    let mut source = std::error::Error::source(error);
    if source.is_none() && error.kind() == redis::ErrorKind::Server(ServerErrorKind::ExecAbort) {
        return Certainty::Rejected;
    }
    while let Some(inner) = source {
        if let Some(shared) = inner.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>()
            && let Some(own) = own_error(shared.as_ref())
        {
            return own.certainty;
        }
        if let Some(own) = own_error(inner) {
            return own.certainty;
        }
        if let Some(server) = inner.downcast_ref::<ServerError>() {
            return match server.details() {
                Some(details) if details.ends_with(HALF_WAY) => Certainty::Unknown,
                _ => Certainty::Rejected,
            };
        }
        source = inner.source();
    }
    Certainty::Unknown
}

fn own_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
        .and_then(|inner| inner.downcast_ref())
}
