//! Words with a server on a socket that is not in service yet: commands out, as many replies in.

use bytes::BytesMut;
use redis::Value;
use steadfast_core::resp::{Decoder, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::credentials::Credentials;
use crate::error::connect::ConnectError;
use crate::wire::stream::Stream;
use crate::wire::words::{as_error, command, without_arguments};

/// Bounds on a reply to what the client itself asks a server about the two of them: who it is, what
/// it thinks of a connection. They are the client's own, as these replies are not those of callers.
pub(crate) const OWN_QUESTIONS: Limits = Limits {
    depth: 16,
    elements: 1 << 16,
    bulk_bytes: 1 << 20,
    line_bytes: 1 << 16,
    total_bytes: 8 << 20,
};

/// A stream during the handshake: commands out, as many replies in.
pub(crate) struct Exchange<'a> {
    stream: &'a mut Stream,
    decoder: Decoder,
    input: BytesMut,
    address: &'a str,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(stream: &'a mut Stream, address: &'a str) -> Self {
        Self::limited(stream, address, OWN_QUESTIONS)
    }

    /// Begins an exchange with replies up to these limits.
    pub(crate) fn limited(stream: &'a mut Stream, address: &'a str, limits: Limits) -> Self {
        Self {
            stream,
            decoder: Decoder::new(limits),
            input: BytesMut::with_capacity(4096),
            address,
        }
    }

    pub(crate) async fn exchange(
        &mut self,
        commands: &[Vec<u8>],
    ) -> Result<Vec<Value>, ConnectError> {
        // A server that is full says so and closes before it reads: what it said is worth more than
        // the failure to write.
        let written = self.stream.write_all(&commands.concat()).await;
        let _ = self.stream.flush().await;
        let mut replies = Vec::with_capacity(commands.len());
        while replies.len() < commands.len() {
            match self.reply().await {
                Ok(Value::Push { .. }) => {}
                Ok(reply) => {
                    if replies.is_empty() && is_full(&reply) {
                        return Err(ConnectError::MaxClients);
                    }
                    replies.push(reply);
                }
                Err(error @ ConnectError::Ended(_)) => {
                    // A server that refuses everybody (protected mode, loading behind some proxies)
                    // says so once and closes.
                    if let Some(said) = replies.last() {
                        refused(said)?;
                    }
                    return Err(written
                        .map_or_else(|write| ConnectError::Ended(write.to_string()), |()| error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(replies)
    }

    /// Sends a command without waiting for its reply.
    pub(crate) async fn send(&mut self, command: &[u8]) -> Result<(), ConnectError> {
        let ended = |error: std::io::Error| ConnectError::Ended(error.to_string());
        self.stream.write_all(command).await.map_err(ended)?;
        self.stream.flush().await.map_err(ended)
    }

    /// The next reply. May be dropped and asked again.
    pub(crate) async fn reply(&mut self) -> Result<Value, ConnectError> {
        loop {
            if !self.input.is_empty() {
                self.looks_like_tls()?;
                let decoded =
                    self.decoder
                        .decode(&self.input)
                        .map_err(|error| ConnectError::NotRedis {
                            address: self.address.into(),
                            why: error.to_string(),
                        })?;
                bytes::Buf::advance(&mut self.input, decoded.consumed);
                if let Some(value) = decoded.value {
                    return Ok(value);
                }
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => {
                    return Err(ConnectError::Ended(
                        "the server closed it; if it speaks TLS on this port, use rediss://".into(),
                    ));
                }
                Ok(_) => {}
                Err(error) => {
                    return Err(ConnectError::Ended(self.stream.explain(&error)));
                }
            }
        }
    }

    /// A TLS server answers plain text with an alert record: 21, then a version that begins with 3.
    fn looks_like_tls(&self) -> Result<(), ConnectError> {
        if self.input.starts_with(&[21, 3]) && self.decoder.is_idle() {
            return Err(ConnectError::Tls {
                address: self.address.into(),
                cause: "the server speaks TLS on this port: use rediss://".into(),
            });
        }
        Ok(())
    }
}

fn is_full(reply: &Value) -> bool {
    as_error(reply).is_some_and(|(_, text)| text.starts_with("max number of clients"))
}

/// An ECHO of what nobody else has said, and what it must be answered by.
pub(crate) fn proof(rng: &mut fastrand::Rng) -> (String, Vec<u8>) {
    let nonce = format!("steadfast-{:032x}", rng.u128(..));
    let echo = command(&["ECHO", &nonce]);
    (nonce, echo)
}

/// The command that gives new credentials to a live connection.
pub(crate) fn auth(credentials: &Credentials) -> Vec<u8> {
    command(&["AUTH", credentials.user(), credentials.password()])
}

/// # Errors
/// The reply is an error.
pub(super) fn refused(reply: &Value) -> Result<(), ConnectError> {
    let Some((code, text)) = as_error(reply) else {
        return Ok(());
    };
    let text = without_arguments(text);
    Err(match code.as_str() {
        "LOADING" => ConnectError::Loading,
        "MASTERDOWN" => ConnectError::Replica,
        "WRONGPASS" | "NOAUTH" | "NOPERM" => ConnectError::Auth(format!("{code} {text}")),
        "ERR" if text.starts_with("max number of clients") => ConnectError::MaxClients,
        "ERR" if text.contains("AUTH") || text.contains("password") => ConnectError::Auth(text),
        _ => ConnectError::Refused(format!("{code} {text}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> Value {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error reply")
    }

    #[test]
    fn c16_a_server_that_knows_no_auth_cannot_make_us_tell_the_password() {
        let told = error("ERR unknown command 'AUTH', with args beginning with: 'ada' 's3cret' ");
        let refusal = refused(&told).expect_err("it is an error").to_string();
        assert!(refusal.contains("unknown command"), "{refusal}");
        assert!(!refusal.contains("s3cret"), "{refusal}");
    }
}
