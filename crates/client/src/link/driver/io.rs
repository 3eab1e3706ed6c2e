//! The socket: what is read and written, and what that says of the peer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use steadfast_core::conn::Conn;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::{Driver, End, Signal};
use crate::clock;
use crate::wire::queue::Job;

/// The number of pieces that leave at most in one system call.
const MOST_PIECES: usize = 64;
/// The number of reads at most of a connection that is to end.
const LAST_READS: usize = 64;
/// Rest of a request that fills a socket by itself.
const LONG: usize = 1 << 20;
/// The least time between two sweeps while the socket takes no more.
const SWEEP_EVERY: Duration = Duration::from_millis(10);

impl Driver {
    /// Before the end: hands out what has come already. True if anything had.
    pub(super) fn last_look(&mut self, conn: &mut Conn<Job>) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        let now = clock::now();
        let mut some = false;
        for _ in 0..LAST_READS {
            if !matches!(self.read(conn, cx), Ok(true)) {
                break;
            }
            some = true;
            self.bytes_came(conn, now);
            while let Ok(true) = self.hand_out(conn, now) {}
        }
        some
    }

    pub(super) fn write(
        &mut self,
        conn: &mut Conn<Job>,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Result<(), End> {
        if self.blocked {
            self.sweep(conn, now);
        }
        while conn.unsent() > 0 {
            match self.write_some(conn, cx) {
                Poll::Ready(Ok(0)) => return Err(End::network("the connection takes no more")),
                Poll::Ready(Ok(n)) => {
                    conn.transmitted(n);
                    self.needs_flush = self.stream.needs_flush();
                    // It was full, so the peer has taken something.
                    if std::mem::take(&mut self.blocked) {
                        self.lives(conn, now);
                    }
                }
                Poll::Ready(Err(error)) => return Err(End::network(error.to_string())),
                Poll::Pending => {
                    self.blocked = true;
                    if conn.unsent_longest() >= LONG {
                        self.filled_by = conn.awaiting();
                    }
                    return Ok(());
                }
            }
        }
        if self.needs_flush {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.needs_flush = false,
                Poll::Ready(Err(error)) => return Err(End::network(error.to_string())),
                Poll::Pending => {}
            }
        }
        Ok(())
    }

    /// Makes one system call of as much as may leave in one.
    fn write_some(&mut self, conn: &Conn<Job>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let mut pieces = [IoSlice::new(&[]); MOST_PIECES];
        let mut count = 0;
        for (piece, bytes) in pieces.iter_mut().zip(conn.transmit()) {
            *piece = IoSlice::new(bytes);
            count += 1;
        }
        match &pieces[..count] {
            [one] => stream.poll_write(cx, one),
            several => stream.poll_write_vectored(cx, several),
        }
    }

    /// Takes out what is not begun and nobody waits for any more, while the socket takes no more.
    fn sweep(&mut self, conn: &mut Conn<Job>, now: Instant) {
        if now.saturating_duration_since(self.swept_at) < SWEEP_EVERY {
            return;
        }
        self.swept_at = now;
        conn.give_up(now, |waiting| !waiting.begun && !waiting.ticket.is_wanted());
        while let Some((job, ..)) = conn.poll_given_up() {
            if let Job::TxTransition(transition) = job {
                self.queue.never_sent(&transition.steps);
            }
        }
    }

    /// Reads once. Returns whether bytes came.
    pub(super) fn read(&mut self, conn: &mut Conn<Job>, cx: &mut Context<'_>) -> Result<bool, End> {
        let stream = Pin::new(&mut self.stream);
        let read = match conn.input_of_string() {
            Some(mut rest) => poll_read_buf(stream, cx, &mut rest),
            None => poll_read_buf(stream, cx, conn.input()),
        };
        match read {
            Poll::Ready(Ok(0)) => Err(End::network("the server closed the connection")),
            Poll::Ready(Ok(_)) => Ok(true),
            Poll::Ready(Err(error)) => Err(End::network(error.to_string())),
            Poll::Pending => Ok(false),
        }
    }

    pub(super) fn bytes_came(&mut self, conn: &mut Conn<Job>, now: Instant) {
        conn.handle_input(now);
        self.lives(conn, now);
    }

    pub(super) fn lives(&mut self, conn: &mut Conn<Job>, now: Instant) {
        conn.handle_life(now);
        if let Some(since) = self.overdue_since.take() {
            // It may be the way that has grown long: while what comes after each silence belongs to
            // calls that were given up, nothing would ever be learnt of round trips.
            self.be_patient(conn, false);
            let quiet = now.saturating_duration_since(since);
            let given_up = std::mem::take(&mut self.given_up);
            let _ = self.signals.send(Signal::Recovered(quiet, given_up));
        } else if self.doubtful {
            let _ = self.signals.send(Signal::Calm);
        }
        self.doubtful = false;
    }
}
