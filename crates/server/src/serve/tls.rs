//! The TLS handshake with a caller.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use rustls::server::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::manners::refusal;
use super::wire::CallerSocket;

/// The reason why a handshake with a caller failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("it spoke plain HTTP to a port for TLS")]
    Plain,
    #[error("it did not end the handshake within `limits.header_timeout`")]
    Late,
    #[error("the handshake failed: {0}")]
    Failed(#[from] io::Error),
}

/// The handshake with a caller, within `limit`.
pub(super) async fn accept(
    config: Arc<ServerConfig>,
    wire: CallerSocket,
    limit: Duration,
) -> Result<TlsStream<CallerSocket>, HandshakeError> {
    let handshake = async {
        let mut first = [0];
        wire.peek(&mut first).await?;
        if first[0].is_ascii_alphabetic() {
            say_that_it_is_tls(wire).await?;
            return Err(HandshakeError::Plain);
        }
        Ok(TlsAcceptor::from(config).accept(wire).await?)
    };
    let outcome = timeout(limit, handshake)
        .await
        .unwrap_or(Err(HandshakeError::Late));
    if let Err(why) = &outcome {
        let reason = match why {
            HandshakeError::Plain => "plain_http",
            HandshakeError::Late => "timeout",
            HandshakeError::Failed(_) => "failed",
        };
        counter!("steadfast_tls_refused_total", "reason" => reason).increment(1);
    }
    outcome
}

/// A probe that was not told of TLS should fail with a word of why, and not with what looks like a
/// broken network.
async fn say_that_it_is_tls(mut wire: CallerSocket) -> io::Result<()> {
    let answer = refusal(
        http::StatusCode::BAD_REQUEST,
        "this port speaks TLS: use https://",
    );
    wire.write_all(&answer).await?;
    wire.shutdown().await?;
    // Closed with words unread, the answer could be lost: they are read, as far as they are few.
    let mut rest = [0; 1024];
    for _ in 0..16 {
        if wire.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}
