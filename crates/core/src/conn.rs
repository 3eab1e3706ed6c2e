//! One pipelined connection as a state machine: bytes and time in, bytes and events out.
//!
//! redis-rs cannot say whether a command was written before its connection broke. This machine can, because it alone counts the bytes: each
//! request knows the offset in the stream past which it may have had an effect, and compares it with what the socket took. So every request
//! ends in exactly one of three ways: answered, `NotSent` or `Unknown`.
//!
//! The shell owns the socket and the clock. It submits batches, writes what [`Conn::transmit`] shows, reads into [`Conn::input`], takes
//! replies one at a time (so that it may hand them out in waves), and calls [`Conn::poll_timeout`] to learn when to come back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redis::Value;
use thiserror::Error;

use crate::certainty::Certainty;
use crate::resp::{DecodeError, Decoder, Limits};

/// When a connection is overdue and when it is worth a heartbeat.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// No byte for so long while requests wait: overdue.
    pub reply_overdue: Duration,
    /// No request for so long: a heartbeat is due.
    pub heartbeat: Duration,
}

/// Requests encoded and waiting to be submitted together.
pub struct Batch<T> {
    bytes: Vec<u8>,
    requests: Vec<Submission<T>>,
    /// A request came whose place is before that of one already here.
    disordered: bool,
}

/// What a request asks of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How many replies answer it: 1 for a command, more for a pipeline.
    pub replies: u32,
    /// When it is given up.
    pub deadline: Instant,
    /// When it was submitted.
    pub submitted: Instant,
    /// Its place in the order of submission. A request that is sent again keeps the place it had.
    pub seq: u64,
}

#[derive(Debug)]
struct Submission<T> {
    ticket: T,
    terms: Terms,
    start: usize,
    commit: usize,
    end: usize,
}

/// Shows how much it holds, never what: commands carry data, and AUTH a password.
impl<T> std::fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({} requests)", self.requests.len())
    }
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            requests: Vec::new(),
            disordered: false,
        }
    }
}

impl<T> Batch<T> {
    /// Adds one request. `encode` appends its bytes and returns the length of the buffer past which it may have had an effect: the end of
    /// its first command; or, for a transaction, of its last.
    pub fn push(&mut self, ticket: T, terms: Terms, encode: impl FnOnce(&mut Vec<u8>) -> usize) {
        let start = self.bytes.len();
        let commit = encode(&mut self.bytes);
        let end = self.bytes.len();
        if let Some(last) = self.requests.last() {
            self.disordered |= terms.seq < last.terms.seq;
        }
        self.requests.push(Submission {
            ticket,
            terms,
            start,
            commit,
            end,
        });
    }

    /// Takes out the requests whose deadline has passed; none of their bytes will be sent.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        if self.requests.iter().any(|r| r.terms.deadline <= now) {
            let (gone, kept) = std::mem::take(&mut self.requests)
                .into_iter()
                .partition(|r: &Submission<T>| r.terms.deadline <= now);
            self.requests = kept;
            expired.extend(Vec::into_iter(gone).map(|r: Submission<T>| r.ticket));
            self.rebuild();
        }
        expired
    }

    /// The earliest deadline in the batch.
    pub fn earliest_deadline(&self) -> Option<Instant> {
        self.requests.iter().map(|r| r.terms.deadline).min()
    }

    /// Puts requests that were sent again back to the place in which they were first submitted.
    fn restore_order(&mut self) {
        if std::mem::take(&mut self.disordered) {
            self.requests.sort_by_key(|request| request.terms.seq);
            self.rebuild();
        }
    }

    /// Lays the bytes out anew, in the order of the requests.
    fn rebuild(&mut self) {
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for request in &mut self.requests {
            let start = bytes.len();
            bytes.extend_from_slice(&self.bytes[request.start..request.end]);
            request.commit = request.commit - request.start + start;
            request.start = start;
            request.end = bytes.len();
        }
        self.bytes = bytes;
    }

    /// Requests in this batch.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// True if there is nothing to submit.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Bytes in this batch.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes every request out again, none of whose bytes were sent.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.bytes.clear();
        self.disordered = false;
        self.requests.drain(..).map(|request| request.ticket)
    }
}

/// The answer to a request.
#[derive(Debug, PartialEq)]
pub enum Reply {
    /// Of a single command.
    One(Value),
    /// Of a pipeline, in order.
    Many(Vec<Value>),
}

/// What came in.
#[derive(Debug)]
pub enum Incoming<T> {
    /// A request was answered.
    Reply {
        /// What the shell gave with the request.
        ticket: T,
        /// The answer.
        reply: Reply,
        /// When this connection took the request over.
        taken: Instant,
        /// How long the request was given in all.
        given: Duration,
    },
    /// The server said something unasked (RESP3).
    Push(Value),
}

/// What time brought.
#[derive(Debug)]
pub enum Lapse<T> {
    /// A request reached its deadline.
    Expired {
        /// What the shell gave with the request.
        ticket: T,
        /// `NotSent` if it was taken back before a byte of it was written.
        certainty: Certainty,
        /// How long this connection had it, of the time that it was given.
        waited: Duration,
    },
    /// No byte came for `reply_overdue` while requests waited. Told once until a byte comes.
    Overdue {
        /// How long no byte has come.
        quiet: Duration,
    },
    /// Nothing was asked for a heartbeat's time: submit a PING.
    Heartbeat,
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

#[derive(Debug)]
struct Open<T> {
    /// `None` once expired: its replies are read and dropped.
    ticket: Option<T>,
    replies: u32,
    deadline: Instant,
    given: Duration,
    taken: Instant,
    /// Stream offset of its first byte.
    start: u64,
    /// Stream offset past which it may have had an effect.
    commit: u64,
    /// Stream offset of its end.
    end: u64,
}

/// One pipelined connection.
pub struct Conn<T> {
    watch: Watch,
    decoder: Decoder,
    input: BytesMut,
    consumed: usize,
    out: Vec<u8>,
    /// How much of `out` is written.
    written: usize,
    /// Stream offset of `out[0]`.
    base: u64,
    awaiting: VecDeque<Open<T>>,
    /// Replies so far to the pipeline at the head.
    partial: Vec<Value>,
    /// Lower bound of the deadlines that wait.
    earliest: Option<Instant>,
    expired: VecDeque<(T, Certainty, Duration)>,
    /// When the last byte came, or the wait began.
    quiet_since: Instant,
    overdue_told: bool,
}

/// Above this, an empty buffer gives its memory back.
const KEEP_BYTES: usize = 1 << 20;
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
            out: Vec::new(),
            written: 0,
            base: 0,
            awaiting: VecDeque::new(),
            partial: Vec::new(),
            earliest: None,
            expired: VecDeque::new(),
            quiet_since: now,
            overdue_told: false,
        }
    }

    /// Takes over all requests of a batch and leaves it empty, with buffers to reuse.
    pub fn submit(&mut self, batch: &mut Batch<T>, now: Instant) {
        if batch.is_empty() {
            return;
        }
        batch.restore_order();
        if self.awaiting.is_empty() {
            self.quiet_since = now;
        }
        let origin = self.base + self.out.len() as u64;
        if self.out.is_empty() {
            std::mem::swap(&mut self.out, &mut batch.bytes);
        } else {
            self.out.append(&mut batch.bytes);
        }
        // A burst is over: what it needed goes back.
        if batch.bytes.capacity() > KEEP_BYTES {
            batch.bytes.shrink_to(KEEP_BYTES);
        }
        for request in batch.requests.drain(..) {
            let Terms {
                replies,
                deadline,
                submitted,
                seq: _,
            } = request.terms;
            if self.earliest.is_none_or(|earliest| deadline < earliest) {
                self.earliest = Some(deadline);
            }
            self.awaiting.push_back(Open {
                ticket: Some(request.ticket),
                replies,
                deadline,
                given: deadline.saturating_duration_since(submitted),
                taken: now,
                start: origin + request.start as u64,
                commit: origin + request.commit as u64,
                end: origin + request.end as u64,
            });
        }
    }

    /// The bytes to write next; empty if there are none.
    pub fn transmit(&self) -> &[u8] {
        &self.out[self.written..]
    }

    /// The socket took so many bytes of [`transmit`](Self::transmit).
    pub fn transmitted(&mut self, bytes: usize) {
        self.written += bytes;
        debug_assert!(self.written <= self.out.len());
        if self.written == self.out.len() {
            self.base += self.written as u64;
            self.written = 0;
            self.out.clear();
            if self.out.capacity() > KEEP_BYTES {
                self.out.shrink_to(KEEP_BYTES);
            }
        }
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

    /// Bytes came.
    pub fn handle_input(&mut self, now: Instant) {
        self.quiet_since = now;
        self.overdue_told = false;
    }

    /// The next reply or push message that is complete.
    ///
    /// # Errors
    /// The connection cannot go on: close it.
    pub fn poll_incoming(&mut self) -> Result<Option<Incoming<T>>, ConnError> {
        while self.consumed < self.input.len() {
            let decoded = self.decoder.decode(&self.input[self.consumed..])?;
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

    fn answer(&mut self, value: Value) -> Result<Option<Incoming<T>>, ConnError> {
        let Some(head) = self.awaiting.front_mut() else {
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
        Ok(open.ticket.map(|ticket| Incoming::Reply {
            ticket,
            reply,
            taken: open.taken,
            given: open.given,
        }))
    }

    /// When to call [`poll_lapse`](Self::poll_lapse) next. May be early, is never late.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.expired.is_empty() {
            return Some(self.quiet_since);
        }
        if self.awaiting.is_empty() {
            return Some(self.quiet_since + self.watch.heartbeat);
        }
        let overdue = (!self.overdue_told).then(|| self.quiet_since + self.watch.reply_overdue);
        match (overdue, self.earliest) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The next thing that time has brought, until `None`.
    pub fn poll_lapse(&mut self, now: Instant) -> Option<Lapse<T>> {
        if let Some(lapse) = self.next_expired() {
            return Some(lapse);
        }
        if self.awaiting.is_empty() {
            self.earliest = None;
            if now >= self.quiet_since + self.watch.heartbeat {
                self.quiet_since = now;
                return Some(Lapse::Heartbeat);
            }
            return None;
        }
        if !self.overdue_told && now >= self.quiet_since + self.watch.reply_overdue {
            self.overdue_told = true;
            return Some(Lapse::Overdue {
                quiet: now.saturating_duration_since(self.quiet_since),
            });
        }
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.expire(now);
            return self.next_expired();
        }
        None
    }

    fn next_expired(&mut self) -> Option<Lapse<T>> {
        let (ticket, certainty, waited) = self.expired.pop_front()?;
        Some(Lapse::Expired {
            ticket,
            certainty,
            waited,
        })
    }

    /// Ends every request whose time is up. One of which no byte was written is taken back out of the stream, so that `NotSent` stays true.
    fn expire(&mut self, now: Instant) {
        let wire = self.stream_written();
        let mut earliest: Option<Instant> = None;
        let mut removed = 0u64;
        let mut kept = VecDeque::with_capacity(self.awaiting.len());
        for mut open in self.awaiting.drain(..) {
            let overdue = open.deadline <= now;
            if overdue && open.start >= wire {
                let (from, to) = (open.start - removed, open.end - removed);
                self.out
                    .drain((from - self.base) as usize..(to - self.base) as usize);
                removed += to - from;
                let ticket = open.ticket;
                let waited = now.saturating_duration_since(open.taken);
                self.expired
                    .extend(ticket.map(|ticket| (ticket, Certainty::NotSent, waited)));
                continue;
            }
            if overdue {
                let ticket = open.ticket.take();
                let waited = now.saturating_duration_since(open.taken);
                self.expired
                    .extend(ticket.map(|ticket| (ticket, Certainty::Unknown, waited)));
            } else if open.ticket.is_some() {
                earliest = Some(earliest.map_or(open.deadline, |e| e.min(open.deadline)));
            }
            open.start -= removed;
            open.commit -= removed;
            open.end -= removed;
            kept.push_back(open);
        }
        self.awaiting = kept;
        self.earliest = earliest;
        if self.written == self.out.len() {
            self.transmitted(0);
        }
    }

    fn stream_written(&self) -> u64 {
        self.base + self.written as u64
    }

    /// Requests that wait for an answer or to be written, expired ones included.
    pub fn awaiting(&self) -> usize {
        self.awaiting.len()
    }

    /// The latest deadline of the requests that wait, of those that `counts`.
    pub fn latest_deadline(&self, counts: impl Fn(&T) -> bool) -> Option<Instant> {
        self.awaiting
            .iter()
            .filter(|open| open.ticket.as_ref().is_some_and(&counts))
            .map(|open| open.deadline)
            .max()
    }

    /// Bytes not yet written.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.written
    }

    /// True if something was written that has not been answered: after this connection is abandoned, the server may still execute it.
    pub fn has_unanswered_writes(&self) -> bool {
        let wire = self.stream_written();
        self.awaiting
            .front()
            .is_some_and(|open| open.commit <= wire)
    }

    /// Ends the connection: yields every request that still waits, with what is known of it.
    pub fn close(&mut self) -> impl Iterator<Item = (T, Certainty)> + '_ {
        let wire = self.stream_written();
        self.out.clear();
        self.written = 0;
        self.base = wire;
        self.partial.clear();
        self.earliest = None;
        self.expired
            .drain(..)
            .map(|(ticket, certainty, _)| (ticket, certainty))
            .chain(self.awaiting.drain(..).filter_map(move |open| {
                let certainty = if open.commit > wire {
                    Certainty::NotSent
                } else {
                    Certainty::Unknown
                };
                open.ticket.map(|ticket| (ticket, certainty))
            }))
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn start() -> Instant {
        tests_clock::start()
    }

    mod tests_clock {
        use std::time::Instant;

        #[expect(
            clippy::disallowed_methods,
            reason = "an instant to count virtual time from"
        )]
        pub(super) fn start() -> Instant {
            Instant::now()
        }
    }

    fn conn(now: Instant) -> Conn<u32> {
        let watch = Watch {
            reply_overdue: SECOND / 2,
            heartbeat: SECOND,
        };
        Conn::new(watch, Limits::default(), now)
    }

    fn terms(now: Instant, deadline: Duration, seq: u64) -> Terms {
        Terms {
            replies: 1,
            deadline: now + deadline,
            submitted: now,
            seq,
        }
    }

    fn push(batch: &mut Batch<u32>, ticket: u32, terms: Terms) {
        batch.push(ticket, terms, |bytes| {
            bytes.extend_from_slice(format!("{ticket:04}").as_bytes());
            bytes.len()
        });
    }

    fn submit(conn: &mut Conn<u32>, tickets: std::ops::Range<u32>, now: Instant) {
        let mut batch = Batch::default();
        for ticket in tickets {
            push(&mut batch, ticket, terms(now, SECOND, u64::from(ticket)));
        }
        conn.submit(&mut batch, now);
    }

    fn replies(conn: &mut Conn<u32>, bytes: &[u8], now: Instant) -> Vec<u32> {
        conn.input().extend_from_slice(bytes);
        conn.handle_input(now);
        let mut tickets = Vec::new();
        while let Some(incoming) = conn.poll_incoming().expect("good replies") {
            if let Incoming::Reply { ticket, .. } = incoming {
                tickets.push(ticket);
            }
        }
        tickets
    }

    #[test]
    fn a_request_is_not_sent_until_its_last_byte_is_written() {
        let now = start();
        let mut conn = conn(now);
        submit(&mut conn, 0..3, now);
        conn.transmitted(7);
        let ends: Vec<_> = conn.close().collect();
        assert_eq!(
            ends,
            [
                (0, Certainty::Unknown),
                (1, Certainty::NotSent),
                (2, Certainty::NotSent)
            ]
        );
    }

    #[test]
    fn a_pipeline_is_unknown_as_soon_as_its_first_command_is_written() {
        let now = start();
        let mut conn = conn(now);
        let mut batch = Batch::default();
        batch.push(1, terms(now, SECOND, 0), |bytes| {
            bytes.extend_from_slice(b"firstsecond");
            5
        });
        conn.submit(&mut batch, now);
        conn.transmitted(5);
        assert!(conn.has_unanswered_writes());
        assert_eq!(conn.close().collect::<Vec<_>>(), [(1, Certainty::Unknown)]);
    }

    #[test]
    fn an_expired_request_is_cut_out_of_the_stream_before_it_is_called_not_sent() {
        let now = start();
        let mut conn = conn(now);
        let mut batch = Batch::default();
        push(&mut batch, 0, terms(now, SECOND * 9, 0));
        push(&mut batch, 1, terms(now, SECOND / 4, 1));
        push(&mut batch, 2, terms(now, SECOND * 9, 2));
        conn.submit(&mut batch, now);
        conn.transmitted(2);
        let Some(Lapse::Expired {
            ticket, certainty, ..
        }) = conn.poll_lapse(now + SECOND / 3)
        else {
            panic!("it has expired");
        };
        assert_eq!((ticket, certainty), (1, Certainty::NotSent));
        assert_eq!(conn.transmit(), b"000002");
        conn.transmitted(6);
        assert_eq!(replies(&mut conn, b"+OK\r\n+OK\r\n", now), [0, 2]);
    }

    #[test]
    fn the_late_reply_of_an_expired_request_goes_to_nobody() {
        let now = start();
        let mut conn = conn(now);
        submit(&mut conn, 0..2, now);
        conn.transmitted(8);
        let later = now + SECOND;
        let mut expired = Vec::new();
        while let Some(lapse) = conn.poll_lapse(later) {
            if let Lapse::Expired {
                ticket, certainty, ..
            } = lapse
            {
                expired.push((ticket, certainty));
            }
        }
        assert_eq!(expired, [(0, Certainty::Unknown), (1, Certainty::Unknown)]);
        submit(&mut conn, 2..3, later);
        assert_eq!(replies(&mut conn, b":0\r\n:1\r\n:2\r\n", later), [2]);
    }

    #[test]
    fn silence_is_told_once_and_again_only_after_a_byte() {
        let now = start();
        let mut conn = conn(now);
        submit(&mut conn, 0..1, now);
        conn.transmitted(4);
        let overdue =
            |conn: &mut Conn<u32>, at| matches!(conn.poll_lapse(at), Some(Lapse::Overdue { .. }));
        assert!(!overdue(&mut conn, now + SECOND / 3));
        assert!(overdue(&mut conn, now + SECOND / 2));
        assert!(!overdue(&mut conn, now + SECOND * 2 / 3));
        replies(&mut conn, b"$5\r\nhe", now + SECOND * 2 / 3);
        assert!(overdue(&mut conn, now + SECOND * 7 / 6));
    }

    #[test]
    fn an_idle_connection_asks_for_a_heartbeat() {
        let now = start();
        let mut conn = conn(now);
        assert_eq!(conn.poll_timeout(), Some(now + SECOND));
        assert!(conn.poll_lapse(now + SECOND / 2).is_none());
        assert!(matches!(
            conn.poll_lapse(now + SECOND),
            Some(Lapse::Heartbeat)
        ));
    }

    #[test]
    fn what_is_sent_again_takes_its_old_place() {
        let now = start();
        let mut conn = conn(now);
        let mut batch = Batch::default();
        push(&mut batch, 5, terms(now, SECOND, 5));
        push(&mut batch, 6, terms(now, SECOND, 6));
        push(&mut batch, 3, terms(now, SECOND, 3));
        conn.submit(&mut batch, now);
        assert_eq!(conn.transmit(), b"000300050006");
    }

    #[test]
    fn what_a_burst_of_large_values_needed_is_given_back() {
        let now = start();
        let mut conn = conn(now);
        let (mut batch, large) = (Batch::default(), 8 << 20);
        for seq in 0..4u32 {
            for ticket in [2 * seq, 2 * seq + 1] {
                batch.push(ticket, terms(now, SECOND, u64::from(ticket)), |bytes| {
                    bytes.resize(bytes.len() + large, b'x');
                    bytes.len()
                });
                // The second finds the first still unwritten.
                conn.submit(&mut batch, now);
                assert!(batch.bytes.capacity() <= KEEP_BYTES);
            }
            conn.transmitted(conn.transmit().len());
        }
        let mut reply = format!("${large}\r\n").into_bytes();
        reply.resize(reply.len() + large, b'x');
        reply.extend_from_slice(b"\r\n");
        for ticket in 0..8 {
            assert_eq!(replies(&mut conn, &reply, now), [ticket]);
        }
        assert!(conn.out.capacity() <= KEEP_BYTES);
        assert!(conn.input().capacity() <= KEEP_BYTES + READ_BYTES);
    }

    #[test]
    fn a_reply_that_nobody_asked_for_ends_the_connection() {
        let now = start();
        let mut conn = conn(now);
        conn.input().extend_from_slice(b"+OK\r\n");
        assert!(conn.poll_incoming().is_err());
    }

    /// What may happen to a connection, one step at a time.
    #[derive(Clone, Debug)]
    enum Op {
        Submit(Vec<u16>),
        Write(usize),
        Reply(usize),
        Wait(u16),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            proptest::collection::vec(1u16..3000, 1..5).prop_map(Op::Submit),
            (0usize..40).prop_map(Op::Write),
            (0usize..4).prop_map(Op::Reply),
            (1u16..1500).prop_map(Op::Wait),
        ];
        proptest::collection::vec(op, 1..60)
    }

    proptest! {
        /// Whatever happens, each request ends exactly once; `NotSent` only if its bytes never went out whole; answers go to their own.
        #[test]
        fn every_request_ends_once_and_truly(ops in ops()) {
            let mut now = start();
            let mut conn = conn(now);
            let (mut next, mut ended, mut wire) = (0u32, std::collections::BTreeMap::new(), Vec::new());
            let mut answered = 0usize;
            for op in ops {
                match op {
                    Op::Submit(deadlines) => {
                        let mut batch = Batch::default();
                        for ms in deadlines {
                            let deadline = Duration::from_millis(u64::from(ms));
                            push(&mut batch, next, terms(now, deadline, u64::from(next)));
                            next += 1;
                        }
                        conn.submit(&mut batch, now);
                    }
                    Op::Write(bytes) => {
                        let bytes = bytes.min(conn.transmit().len());
                        wire.extend_from_slice(&conn.transmit()[..bytes]);
                        conn.transmitted(bytes);
                    }
                    Op::Reply(count) => {
                        // The server echoes what it has received whole, in order.
                        for _ in 0..count {
                            if wire.len() < (answered + 1) * 4 { break; }
                            let id: i64 = std::str::from_utf8(&wire[answered * 4..answered * 4 + 4]).unwrap().parse().unwrap();
                            answered += 1;
                            conn.input().extend_from_slice(format!(":{id}\r\n").as_bytes());
                            conn.handle_input(now);
                        }
                        while let Some(incoming) = conn.poll_incoming().unwrap() {
                            if let Incoming::Reply { ticket, reply, .. } = incoming {
                                prop_assert_eq!(reply, Reply::One(Value::Int(i64::from(ticket))));
                                prop_assert!(ended.insert(ticket, None).is_none());
                            }
                        }
                    }
                    Op::Wait(ms) => {
                        now += Duration::from_millis(u64::from(ms));
                        while let Some(lapse) = conn.poll_lapse(now) {
                            if let Lapse::Expired { ticket, certainty, .. } = lapse {
                                prop_assert!(ended.insert(ticket, Some(certainty)).is_none());
                            }
                        }
                        prop_assert!(conn.poll_timeout().is_none_or(|at| at > now));
                    }
                }
            }
            for (ticket, certainty) in conn.close() {
                prop_assert!(ended.insert(ticket, Some(certainty)).is_none());
            }
            prop_assert_eq!(ended.len(), next as usize);
            let sent: std::collections::BTreeSet<u32> = wire.chunks_exact(4)
                .map(|id| std::str::from_utf8(id).unwrap().parse().unwrap())
                .collect();
            for (ticket, end) in ended {
                match end {
                    Some(Certainty::NotSent) => prop_assert!(!sent.contains(&ticket)),
                    Some(Certainty::Unknown) => prop_assert!(sent.contains(&ticket) || wire.len() % 4 != 0),
                    _ => prop_assert!(sent.contains(&ticket)),
                }
            }
        }
    }
}
