//! An answer is done when the caller's system has taken the last of it, and not when a handler
//! returned, nor when HTTP took over the last of the body. Only the socket knows, so it is watched
//! here: what it has not taken yet counts as in flight, and a caller that takes nothing for too
//! long is let go, whatever it is that it does not read.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::life::InFlight;

/// Requests of one connection whose answers were taken over to be written, and are not known to be
/// written yet.
#[derive(Default)]
pub(super) struct Unwritten(Mutex<Vec<InFlight>>);

/// A socket that knows when all of an answer is written, and for how long none of it was taken.
pub(super) struct CallerSocket {
    stream: TcpStream,
    unwritten: Arc<Unwritten>,
    limit: Duration,
    /// Runs while the caller takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl CallerSocket {
    /// A write that makes no progress for `limit` ends the connection.
    pub(super) fn new(stream: TcpStream, unwritten: Arc<Unwritten>, limit: Duration) -> Self {
        let _ = stream.set_nodelay(true);
        // What was written may still lie in the system's own buffers, for a caller that has stopped
        // reading or is gone.
        let socket = socket2::SockRef::from(&stream);
        let _ = socket.set_tcp_user_timeout(Some(limit));
        // The system says that a caller took something once a third of this is free again. Left to
        // itself it lets the buffer grow to megabytes, and who reads slowly but steadily would seem
        // to read nothing for minutes.
        let _ = socket.set_send_buffer_size(SEND_BUFFER);
        Self {
            stream,
            unwritten,
            limit,
            stalled: None,
        }
    }

    /// Reads the first bytes of the caller without taking them.
    pub(super) async fn peek(&self, first: &mut [u8]) -> io::Result<usize> {
        self.stream.peek(first).await
    }

    fn timed<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(cx));
        metrics::counter!("steadfast_stalled_callers_total").increment(1);
        // A reset, so that the system does not go on keeping what nobody reads.
        let _ = self.stream.set_zero_linger();
        let words = "the caller took nothing of its answer within `limits.write_timeout`";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, words)))
    }
}

/// Bytes of an answer that the system keeps for one caller: enough for some 20 MB a second over 10
/// ms of network.
const SEND_BUFFER: usize = 256 << 10;

impl AsyncRead for CallerSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for CallerSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called by HTTP, and by TLS in between, once they hold back nothing: all that was given to
    /// them is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.unwritten.0.lock().clear();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer on its way. Its request is handed to the wire when the last of the body has been taken
/// over.
pub(super) struct AnswerBody {
    body: Body,
    request: Option<InFlight>,
    unwritten: Arc<Unwritten>,
}

impl AnswerBody {
    /// `request` is what is held in flight; `None` for what has no end of its own.
    pub(super) fn new(body: Body, request: Option<InFlight>, unwritten: Arc<Unwritten>) -> Self {
        Self {
            body,
            request,
            unwritten,
        }
    }
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.unwritten.0.lock().push(request);
        }
    }
}
