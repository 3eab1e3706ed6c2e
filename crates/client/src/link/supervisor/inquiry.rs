//! The server's word about a connection that is silent, asked on another.
//!
//! A silent connection may be dead, or the server may have good reasons to let it wait: writes are
//! paused for a failover, a module answers from a thread of its own, a large value is still on its
//! way. CLIENT LIST tells these apart.

use std::sync::Arc;

use bytes::BytesMut;
use redis::Value;
use steadfast_core::resp::{Decoder, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::link::connect::OWN_QUESTIONS;
use crate::wire::identity::Identity;
use crate::wire::stream::Stream;

/// The server's knowledge of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The server has no such connection.
    Gone,
    /// A command on it waits for something.
    Blocked,
    /// Part of a request has arrived: so many bytes.
    Receiving(u64),
    /// The server waits for a request on it.
    Idle,
    /// The server does not tell.
    Untold,
}

/// Asks the server about a connection of this client.
///
/// # Errors
/// The connection on which it was asked is no good.
pub(super) async fn ask(stream: &mut Stream, about: &Identity) -> Result<Finding, Arc<str>> {
    let id = about.id.to_string();
    let mut command = Vec::new();
    encode::command(
        ["CLIENT", "LIST", "ID", &id].map(str::as_bytes).into_iter(),
        &mut command,
    );
    let broken = |error: std::io::Error| Arc::from(error.to_string());
    stream.write_all(&command).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut decoder = Decoder::new(OWN_QUESTIONS);
    let mut input = BytesMut::with_capacity(1024);
    loop {
        if stream.read_buf(&mut input).await.map_err(broken)? == 0 {
            return Err("the server closed the connection".into());
        }
        while !input.is_empty() {
            let decoded = decoder
                .decode(&input)
                .map_err(|error| Arc::from(error.to_string()))?;
            bytes::Buf::advance(&mut input, decoded.consumed);
            match decoded.value {
                Some(Value::Push { .. }) => {}
                Some(reply) => return Ok(find(&reply, about)),
                None => break,
            }
        }
    }
}

fn find(reply: &Value, about: &Identity) -> Finding {
    let list = match reply {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes),
        Value::VerbatimString { text, .. } => text.as_str().into(),
        _ => return Finding::Untold,
    };
    let own = list.lines().find(|line| {
        field(line, "id") == Some(&about.id.to_string()) && field(line, "addr") == Some(&about.addr)
    });
    let Some(line) = own else {
        return Finding::Gone;
    };
    if field(line, "flags").is_some_and(|flags| flags.contains('b')) {
        return Finding::Blocked;
    }
    let number = |name| field(line, name).and_then(|text| text.parse::<u64>().ok());
    match number("qbuf") {
        Some(0) | None => Finding::Idle,
        Some(bytes) => Finding::Receiving(bytes + number("argv-mem").unwrap_or(0)),
    }
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace()
        .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c7_what_the_server_says_of_a_connection_is_read() {
        let about = Identity {
            id: 5,
            addr: "127.0.0.1:5".into(),
            run_id: None,
        };
        let found = |line: &str| find(&Value::BulkString(line.as_bytes().to_vec()), &about);
        let line = "id=5 addr=127.0.0.1:5 flags=N qbuf=0 argv-mem=10 cmd=get\n";
        assert_eq!(found(line), Finding::Idle);
        assert_eq!(found(&line.replace("=N", "=b")), Finding::Blocked);
        assert_eq!(
            found(&line.replace("qbuf=0", "qbuf=70")),
            Finding::Receiving(80)
        );
        assert_eq!(found(&line.replace("addr=127", "addr=128")), Finding::Gone);
        assert_eq!(found(""), Finding::Gone);
        assert_eq!(find(&Value::Nil, &about), Finding::Untold);
    }
}
