//! The answers to what hyper cannot read as HTTP. By itself it gives a bare status, past every
//! layer of ours. Whoever sent it is told no less than others: here the status is given the same
//! body and the same headers as any refusal, on its way to the caller.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::response::IntoResponse;
use bytes::{Buf, Bytes};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::harden::harden;
use crate::problem::{Problem, ProblemKind};

/// A connection on which bare refusals become problems.
pub(super) struct Mannered<S> {
    stream: S,
    /// The rest of a refusal of ours, and the number of hyper's bytes that it stands for.
    instead: Option<(Bytes, usize)>,
}

impl<S> Mannered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            instead: None,
        }
    }
}

/// The status of an answer that is hyper's own: all of ours say that no type is to be guessed.
fn bare(bytes: &[u8]) -> Option<StatusCode> {
    let head = std::str::from_utf8(bytes).ok()?.strip_prefix("HTTP/1.1 ")?;
    let status = StatusCode::from_bytes(head.get(..3)?.as_bytes()).ok()?;
    let whole = head.ends_with("\r\n\r\n") && head.contains("content-length: 0\r\n");
    let ours = head.contains("x-content-type-options");
    (status.is_client_error() && whole && !ours).then_some(status)
}

/// Returns the refusal in full that stands for a bare status.
fn instead_of(status: StatusCode) -> Bytes {
    let detail = match status {
        StatusCode::URI_TOO_LONG => "the address of the request is longer than some 64 KiB",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            "the headers of the request are larger than some 64 KiB, or more than 100"
        }
        _ => "the request is not HTTP/1.1 that can be read",
    };
    refusal(status, detail)
}

/// A problem as it is written to a connection, which ends with it.
pub(super) fn refusal(status: StatusCode, detail: &'static str) -> Bytes {
    let response = Problem::new(ProblemKind::Plain, detail).status(status);
    let (mut parts, _) = response.clone().into_response().into_parts();
    let body = response.body();
    harden(&mut parts.headers);
    let reason = status.canonical_reason().unwrap_or_default();
    let mut out = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in &parts.headers {
        if name == http::header::CONTENT_LENGTH {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(
        format!(
            "connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .as_bytes(),
    );
    out.extend_from_slice(&body);
    out.into()
}

impl<S: AsyncWrite + Unpin> Mannered<S> {
    /// Writes what is written instead; then says for how many bytes it stood.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        let Some((left, stands_for)) = &mut self.instead else {
            return Poll::Ready(Ok(None));
        };
        while left.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            left.advance(written);
        }
        let stands_for = *stands_for;
        self.instead = None;
        Poll::Ready(Ok(Some(stands_for)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mannered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mannered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.instead.is_none() {
            match bare(bytes) {
                None => return Pin::new(&mut self.stream).poll_write(cx, bytes),
                Some(status) => self.instead = Some((instead_of(status), bytes.len())),
            }
        }
        let stood_for = ready!(self.poll_instead(cx));
        Poll::Ready(stood_for.map(|bytes_of_it| bytes_of_it.unwrap_or(bytes.len())))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        match first {
            Some(first) if self.instead.is_some() || bare(first).is_some() => {
                self.poll_write(cx, first)
            }
            _ => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
