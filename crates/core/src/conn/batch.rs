//! Requests that travel together.
//!
//! Whatever gathers while the driver is busy leaves in one write, so a batch is one buffer of bytes and a list of who begins where in it. A
//! request can be taken out again, or put back to an earlier place, as long as none of it was handed on.

use std::time::Instant;

/// Requests encoded and waiting to be submitted together.
pub struct Batch<T> {
    pub(super) bytes: Vec<u8>,
    pub(super) requests: Vec<Submission<T>>,
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

/// A request in a batch; its offsets are those of the batch's bytes.
#[derive(Debug)]
pub(super) struct Submission<T> {
    pub(super) ticket: T,
    pub(super) terms: Terms,
    pub(super) start: usize,
    /// Past it, the request may have had an effect.
    pub(super) commit: usize,
    pub(super) end: usize,
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
        self.take_out(|_, terms| terms.deadline <= now)
    }

    /// Takes out the requests of which this holds; none of their bytes will be sent.
    pub fn take_out(&mut self, of: impl Fn(&T, &Terms) -> bool) -> Vec<T> {
        let of = |request: &Submission<T>| of(&request.ticket, &request.terms);
        if !self.requests.iter().any(of) {
            return Vec::new();
        }
        let (gone, kept): (Vec<_>, _) =
            std::mem::take(&mut self.requests).into_iter().partition(of);
        self.requests = kept;
        self.rebuild();
        gone.into_iter().map(|request| request.ticket).collect()
    }

    /// The earliest deadline in the batch.
    pub fn earliest_deadline(&self) -> Option<Instant> {
        self.requests.iter().map(|r| r.terms.deadline).min()
    }

    /// Puts requests that were sent again back to the place in which they were first submitted.
    pub(super) fn restore_order(&mut self) {
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
