//! One pipelined connection as a state machine: bytes and time in, bytes and events out.
//!
//! redis-rs cannot say whether a command was written before its connection broke. This machine can,
//! because it alone counts the bytes: each request knows the offset in the stream past which it may
//! have had an effect, and compares it with what the socket took. So every request ends in exactly
//! one of three ways: answered, `NotSent` or `Unknown`.
//!
//! The shell owns the socket and the clock. It submits batches, writes what [`Conn::transmit`]
//! shows, reads into [`Conn::input`] (or [`Conn::input_of_string`]), takes replies one at a time
//! (so that it may hand them out in waves), and calls [`Conn::poll_timeout`] to learn when to come
//! back.

mod batch;
mod lapses;
mod pieces;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use bytes::buf::Limit;
use redis::Value;
use thiserror::Error;

pub use self::batch::{Batch, Terms};
pub use self::lapses::{Lapse, Watch};
pub use self::pieces::PIECE;
use self::pieces::{KEEP_BYTES, Pieces};
use crate::certainty::Certainty;
use crate::resp::{DecodeError, Decoder, Limits};

/// The answer to a request.
#[derive(Debug, PartialEq)]
pub enum Reply {
    /// Of a single command.
    One(Value),
    /// Of a pipeline, in order.
    Many(Vec<Value>),
}

/// Something that came in.
#[derive(Debug)]
pub enum Incoming<T> {
    /// A request was answered.
    Reply {
        /// The shell's own handle for the request.
        ticket: T,
        /// The answer.
        reply: Reply,
        /// When this connection took the request over.
        taken: Instant,
        /// How long the request was given in all.
        given: Duration,
    },
    /// The reply to a request passes a limit. The connection cannot go on; what comes next is the
    /// error that ends it.
    TooLarge {
        /// The shell's own handle for the request.
        ticket: T,
        /// The limit that was passed.
        error: DecodeError,
    },
    /// The server said something unasked (RESP3).
    Push(Value),
}

/// Why a connection cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnError {
    /// The server sent what is not RESP.
    #[error("the server's reply is not RESP: {0}")]
    Decode(#[from] DecodeError),
    /// The server answered what nobody asked.
    #[error("the server sent a reply that nothing asked for: {0}")]
    Unsolicited(String),
}

/// A request that still waits, as [`Conn::give_up`] shows it.
#[derive(Debug)]
pub struct Waiting<'a, T> {
    /// The shell's own handle for the request.
    pub ticket: &'a T,
    /// When it is given up.
    pub deadline: Instant,
    /// How long it was given in all.
    pub given: Duration,
    /// Whether it changes nothing on the server.
    pub read_only: bool,
    /// At least one byte of it was written.
    pub begun: bool,
}

/// A request that ended without a reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Unanswered<T> {
    /// The shell's own handle for the request.
    pub ticket: T,
    /// How much is known of it.
    pub certainty: Certainty,
    /// The connection ended at this request: its reply was due, or it was half written.
    pub blamed: bool,
}

/// The last thing that was reported of a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Doubtful,
    Unresponsive,
}

#[derive(Debug)]
struct Open<T> {
    /// `None` once expired: its replies are read and dropped.
    ticket: Option<T>,
    replies: u32,
    deadline: Instant,
    given: Duration,
    taken: Instant,
    read_only: bool,
    apart: bool,
    /// Stream offset of its first byte.
    start: u64,
    /// Stream offset past which it may have had an effect.
    commit: u64,
    /// Stream offset of its end.
    end: u64,
}

/// One pipelined connection.
///
/// ```
/// use std::time::{Duration, Instant};
/// use steadfast_core::conn::{Batch, Conn, Incoming, Reply, Terms, Watch};
/// use steadfast_core::redis::{self, Value};
/// use steadfast_core::resp::{Limits, encode};
///
/// let (now, second) = (Instant::now(), Duration::from_secs(1)); // the shell's clock, or a test's
/// let watch = Watch {
///     doubtful: second / 4,
///     response_idle_timeout: second / 2,
///     heartbeat: second,
/// };
/// let mut conn = Conn::new(watch, Limits::default(), now);
///
/// let mut batch = Batch::default();
/// let terms = Terms {
///     replies: 1,
///     deadline: now + second,
///     submitted: now,
///     seq: 1,
///     read_only: true,
///     apart: false,
/// };
/// batch.push("ping", terms, |out| {
///     encode::redis_cmd(&redis::cmd("PING"), out);
///     out.len()
/// });
/// conn.submit(&mut batch, now);
/// let bytes = conn.transmit().map(<[u8]>::len).sum(); // for the socket
/// conn.transmitted(bytes);
///
/// conn.input().extend_from_slice(b"+PONG\r\n"); // from the socket
/// conn.handle_input(now);
/// let Ok(Some(Incoming::Reply { ticket, reply, .. })) = conn.poll_incoming() else {
///     unreachable!()
/// };
/// assert_eq!((ticket, reply), ("ping", Reply::One(Value::SimpleString("PONG".to_owned()))));
/// ```
pub struct Conn<T> {
    watch: Watch,
    decoder: Decoder,
    input: BytesMut,
    consumed: usize,
    /// Bytes that are not written yet.
    out: Pieces,
    /// Stream offset of the first byte of that: how many bytes were written, ever.
    written: u64,
    awaiting: VecDeque<Open<T>>,
    /// Replies so far to the pipeline at the head.
    partial: Vec<Value>,
    /// Why the stream cannot be followed any further.
    broken: Option<DecodeError>,
    /// Lower bound of the deadlines that wait.
    earliest: Option<Instant>,
    expired: VecDeque<(T, Certainty, Duration)>,
    /// When the last sign of life came, or the wait began.
    quiet_since: Instant,
    told: Told,
    /// When the last reply was complete, or the wait began.
    unserved_since: Instant,
    stuck_told: bool,
    /// Requests that wait and are to travel apart from the others.
    apart: usize,
    /// Length and end of the longest request that is not written yet, as far as is known.
    longest: (usize, u64),
}

/// Least space offered to a read.
const READ_BYTES: usize = 64 << 10;

/// Shows how much is under way, never what.
impl<T> std::fmt::Debug for Conn<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conn({} requests)", self.awaiting.len())
    }
}

impl<T> Conn<T> {
    /// A connection whose handshake is done.
    pub fn new(watch: Watch, limits: Limits, now: Instant) -> Self {
        Self {
            watch,
            decoder: Decoder::new(limits),
            input: BytesMut::new(),
            consumed: 0,
            out: Pieces::default(),
            written: 0,
            awaiting: VecDeque::new(),
            partial: Vec::new(),
            broken: None,
            earliest: None,
            expired: VecDeque::new(),
            quiet_since: now,
            told: Told::Nothing,
            unserved_since: now,
            stuck_told: false,
            apart: 0,
            longest: (0, 0),
        }
    }

    /// Sets how long a silence is borne, of this one and of those that follow.
    pub fn set_patience(&mut self, doubtful: Duration, response_idle_timeout: Duration) {
        self.watch.doubtful = doubtful;
        self.watch.response_idle_timeout = response_idle_timeout;
    }

    /// Takes over all requests of a batch and leaves it empty, with buffers to reuse.
    pub fn submit(&mut self, batch: &mut Batch<T>, now: Instant) {
        if batch.is_empty() {
            return;
        }
        batch.restore_order();
        if self.awaiting.is_empty() {
            self.quiet_since = now;
            self.unserved_since = now;
        }
        let wire = self.written;
        let origin = wire + self.out.len() as u64;
        self.out.append(&mut batch.bytes);
        batch.apart = 0;
        for request in batch.requests.drain(..) {
            let Terms {
                replies,
                deadline,
                submitted,
                seq: _,
                read_only,
                apart,
            } = request.terms;
            let end = origin + request.end as u64;
            let length = request.end - request.start;
            if length > self.longest.0 || self.longest.1 <= wire {
                self.longest = (length, end);
            }
            self.apart += usize::from(apart);
            if self.earliest.is_none_or(|earliest| deadline < earliest) {
                self.earliest = Some(deadline);
            }
            self.awaiting.push_back(Open {
                ticket: Some(request.ticket),
                replies,
                deadline,
                given: deadline.saturating_duration_since(submitted),
                taken: now,
                read_only,
                apart,
                start: origin + request.start as u64,
                commit: origin + request.commit as u64,
                end,
            });
        }
    }

    /// The bytes to write next, in pieces that can leave by one vectored write.
    pub fn transmit(&self) -> impl Iterator<Item = &[u8]> {
        self.out.iter()
    }

    /// The socket took so many bytes of [`transmit`](Self::transmit).
    pub fn transmitted(&mut self, bytes: usize) {
        self.out.advance(bytes);
        self.written += bytes as u64;
    }

    /// Where to read to. Call [`handle_input`](Self::handle_input) if bytes were added.
    pub fn input(&mut self) -> &mut BytesMut {
        if self.consumed == self.input.len() {
            self.input.clear();
            self.consumed = 0;
            if self.input.capacity() > KEEP_BYTES {
                self.input = BytesMut::new();
            }
        } else if self.consumed > 0 {
            bytes::Buf::advance(&mut self.input, self.consumed);
            self.consumed = 0;
        }
        if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
            self.input.reserve(READ_BYTES);
        }
        &mut self.input
    }

    /// Where to read to instead, if a large string is on its way: its own memory. The same holds as
    /// for [`input`](Self::input).
    pub fn input_of_string(&mut self) -> Option<Limit<&mut Vec<u8>>> {
        // What has come is in there already.
        match self.consumed == self.input.len() {
            true => self.decoder.rest_of_string(READ_BYTES),
            false => None,
        }
    }

    /// Bytes came.
    pub fn handle_input(&mut self, now: Instant) {
        self.handle_life(now);
    }

    /// Records another sign of life: a socket that took no more bytes takes some again, or the
    /// server says that it is at work on what it was sent.
    pub fn handle_life(&mut self, now: Instant) {
        self.quiet_since = now;
        self.told = Told::Nothing;
    }

    /// Takes it that for so long this process, not the server, stood still.
    pub fn handle_stall(&mut self, lost: Duration) {
        self.quiet_since += lost;
        self.unserved_since += lost;
    }

    /// The next reply or push message that is complete.
    ///
    /// # Errors
    /// The connection cannot go on: close it.
    pub fn poll_incoming(&mut self) -> Result<Option<Incoming<T>>, ConnError> {
        if let Some(error) = self.broken {
            return Err(error.into());
        }
        while self.consumed < self.input.len() {
            let rest = &self.input[self.consumed..];
            let decoded = match self.decoder.decode(rest) {
                Ok(decoded) => decoded,
                Err(error) => return self.end_reading(error),
            };
            self.consumed += decoded.consumed;
            let Some(value) = decoded.value else {
                break;
            };
            if matches!(value, Value::Push { .. }) {
                return Ok(Some(Incoming::Push(value)));
            }
            if let Some(incoming) = self.answer(value)? {
                return Ok(Some(incoming));
            }
        }
        Ok(None)
    }

    /// Only whose reply it is can be blamed for its size: the others may be sent again, that one
    /// must not.
    #[cold]
    fn end_reading(&mut self, error: DecodeError) -> Result<Option<Incoming<T>>, ConnError> {
        self.broken = Some(error);
        let unasked = self.decoder.is_in_push(self.input.get(self.consumed));
        let wire = self.written;
        let asked = self.awaiting.front().is_some_and(|head| head.start < wire);
        if error.is_limit() && asked && !unasked {
            self.partial.clear();
            let head = self.awaiting.pop_front();
            if let Some(ticket) = head.and_then(|head| head.ticket) {
                return Ok(Some(Incoming::TooLarge { ticket, error }));
            }
        }
        Err(error.into())
    }

    fn answer(&mut self, value: Value) -> Result<Option<Incoming<T>>, ConnError> {
        // What is not written yet cannot have been answered.
        let wire = self.written;
        let asked = self.awaiting.front_mut().filter(|head| head.start < wire);
        let Some(head) = asked else {
            return Err(ConnError::Unsolicited(describe(&value)));
        };
        let reply = if head.replies == 1 {
            Reply::One(value)
        } else {
            self.partial.push(value);
            if self.partial.len() < head.replies as usize {
                return Ok(None);
            }
            Reply::Many(std::mem::take(&mut self.partial))
        };
        let open = self
            .awaiting
            .pop_front()
            .expect("the head was just looked at");
        self.apart -= usize::from(open.apart);
        self.unserved_since = self.quiet_since;
        self.stuck_told = false;
        Ok(open.ticket.map(|ticket| Incoming::Reply {
            ticket,
            reply,
            taken: open.taken,
            given: open.given,
        }))
    }

    /// Requests that wait for an answer or to be written, expired ones included.
    pub fn awaiting(&self) -> usize {
        self.awaiting.len()
    }

    /// Bytes not yet written.
    pub fn unsent(&self) -> usize {
        self.out.len()
    }

    /// Bytes not yet written of the longest request that is not, as far as is known.
    pub fn unsent_longest(&self) -> usize {
        let (length, end) = self.longest;
        length.min(end.saturating_sub(self.written) as usize)
    }

    /// True while a request waits that is to travel apart from the others.
    pub fn has_apart(&self) -> bool {
        self.apart > 0
    }

    /// Ends the connection: yields every request that still waits, with what is known of it.
    pub fn close(&mut self) -> impl Iterator<Item = Unanswered<T>> + '_ {
        let wire = self.written;
        self.out.clear();
        self.partial.clear();
        self.earliest = None;
        self.apart = 0;
        // Whose reply was too large has been told.
        let blamed = self.broken.is_some_and(|error| error.is_limit());
        self.expired
            .drain(..)
            .map(|(ticket, certainty, _)| Unanswered {
                ticket,
                certainty,
                blamed: false,
            })
            .chain(
                self.awaiting
                    .drain(..)
                    .enumerate()
                    .filter_map(move |(place, open)| {
                        let certainty = if open.commit > wire {
                            Certainty::NotSent
                        } else {
                            Certainty::Unknown
                        };
                        let begun = open.start < wire;
                        Some(Unanswered {
                            ticket: open.ticket?,
                            certainty,
                            blamed: begun && (place == 0 && !blamed || wire < open.end),
                        })
                    }),
            )
    }
}

/// A reply in a few words, without its data.
fn describe(value: &Value) -> String {
    match value {
        Value::ServerError(error) => format!("the error {error}"),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::BulkString(bytes) => format!("a string of {} bytes", bytes.len()),
        Value::Int(_) => "an integer".into(),
        _ => "a simple value".into(),
    }
}

#[cfg(test)]
mod tests;
