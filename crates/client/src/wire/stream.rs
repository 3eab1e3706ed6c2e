//! The kinds of socket a connection may run on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A socket that is connected.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<crate::tls::TlsStream>),
    Unix(UnixStream),
    /// A socket of the simulation.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            #[cfg(feature = "tls")]
            Stream::Tls($stream) => $call,
            Stream::Unix($stream) => $call,
            #[cfg(test)]
            Stream::Memory($stream) => $call,
        }
    };
}

impl Stream {
    /// Whether what is written may stay in a buffer until it is flushed.
    pub(crate) fn needs_flush(&self) -> bool {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(_) => true,
            _ => false,
        }
    }

    /// TLS version and cipher suite, if TLS is spoken.
    pub(crate) fn tls_facts(&self) -> Option<String> {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(stream) => crate::tls::facts(stream),
            _ => None,
        }
    }

    /// Says what an error of this socket means to the person who has to mend it.
    pub(crate) fn explain(&self, error: &io::Error) -> String {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(_) => crate::tls::explain(error),
            // A TLS server that is told plain text may reset the connection before its alert is
            // read.
            _ => format!("{error}; if the server speaks TLS on this port, use rediss://"),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn several_pieces_leave_in_one_write() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("it listens");
        let addr = listener.local_addr().expect("it has an address");
        let tcp = TcpStream::connect(addr).await;
        let (unix, _other) = UnixStream::pair().expect("a pair");
        let pieces = [&b"small"[..], &[b'x'; 9_000], b"and another"];
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        for mut stream in [Stream::Tcp(tcp.expect("it connects")), Stream::Unix(unix)] {
            let pieces = pieces.map(io::IoSlice::new);
            let written = poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &pieces));
            assert_eq!(written.await.expect("it takes them"), length, "{stream:?}");
        }
    }
}
