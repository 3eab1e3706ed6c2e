//! Requests that travel together.
//!
//! Whatever gathers while the driver is busy leaves in one write, so a batch is a run of bytes (in
//! pieces, of which large requests have their own) and a list of where each request begins. A
//! request can be taken out again, or put back to an earlier place, as long as none of it was
//! handed on.

use std::time::Instant;

use super::pieces::Pieces;

/// Requests encoded and waiting to be submitted together.
pub struct Batch<T> {
    pub(super) bytes: Pieces,
    pub(super) requests: Vec<Submission<T>>,
    /// A request came whose place is before that of one already here.
    pub(super) disordered: bool,
    /// Length of the longest request that came since the batch was empty.
    longest: usize,
    /// Requests that are to travel apart from the others.
    pub(super) apart: usize,
}

/// The terms on which a request travels.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How many replies answer it: 1 for a command, more for a pipeline.
    pub replies: u32,
    /// When it is given up.
    pub deadline: Instant,
    /// When it was submitted.
    pub submitted: Instant,
    /// The place of the request in the order of submission. A request that is sent again keeps the
    /// place it had.
    pub seq: u64,
    /// Whether it changes nothing on the server.
    pub read_only: bool,
    /// Whether it is to travel with no other request beside it, because a connection ended at it
    /// before.
    pub apart: bool,
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
            bytes: Pieces::default(),
            requests: Vec::new(),
            disordered: false,
            longest: 0,
            apart: 0,
        }
    }
}

impl<T> Batch<T> {
    /// Adds one request. `encode` appends its bytes and returns the length of the buffer past which
    /// it may have had an effect: the end of its first command; or, for a transaction, of its last.
    pub fn push(&mut self, ticket: T, terms: Terms, encode: impl FnOnce(&mut Vec<u8>) -> usize) {
        let start = self.bytes.len();
        let (length, commit) = self.bytes.share(encode);
        self.add(ticket, terms, start, commit, length);
    }

    /// An empty buffer in which to encode a large request of so many bytes.
    pub fn buffer(&mut self, size: usize) -> Vec<u8> {
        self.bytes.reuse(size).unwrap_or_default()
    }

    /// Adds one request that was encoded already, which is what a large one should be: it will not
    /// be copied. `commit` is the length past which it may have had an effect.
    pub fn push_encoded(&mut self, ticket: T, terms: Terms, bytes: Vec<u8>, commit: usize) {
        let (start, length) = (self.bytes.len(), bytes.len());
        self.bytes.push(bytes);
        self.add(ticket, terms, start, commit, length);
    }

    fn add(&mut self, ticket: T, terms: Terms, start: usize, commit: usize, length: usize) {
        if let Some(last) = self.requests.last() {
            self.disordered |= terms.seq < last.terms.seq;
        } else {
            self.longest = 0;
        }
        self.longest = self.longest.max(length);
        self.apart += usize::from(terms.apart);
        self.requests.push(Submission {
            ticket,
            terms,
            start,
            commit: start + commit,
            end: start + length,
        });
    }

    /// Takes out the requests whose deadline has passed; none of their bytes will be sent.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        self.take_out(|_, terms| terms.deadline <= now)
    }

    /// Takes out the requests that the predicate picks; none of their bytes will be sent.
    pub fn take_out(&mut self, of: impl Fn(&T, &Terms) -> bool) -> Vec<T> {
        let of = |request: &Submission<T>| of(&request.ticket, &request.terms);
        if !self.requests.iter().any(of) {
            return Vec::new();
        }
        let (gone, kept): (Vec<_>, _) =
            std::mem::take(&mut self.requests).into_iter().partition(of);
        self.requests = kept;
        self.rebuild();
        self.count_apart();
        gone.into_iter().map(|request| request.ticket).collect()
    }

    /// The earliest deadline in the batch.
    pub fn earliest_deadline(&self) -> Option<Instant> {
        self.requests.iter().map(|r| r.terms.deadline).min()
    }

    /// True if a request in the batch is to travel apart from the others.
    pub fn has_apart(&self) -> bool {
        self.apart > 0
    }

    /// Leaves what may travel now: the requests before the first that is to travel apart; or that
    /// one alone if it is the first, and only if nothing is under way (`idle`). Returns the rest.
    #[must_use]
    pub fn split_apart(&mut self, idle: bool) -> Self {
        self.restore_order();
        let first = self.requests.iter().position(|request| request.terms.apart);
        let keep = match first {
            Some(0) => usize::from(idle),
            Some(first) => first,
            None => self.requests.len(),
        };
        let mut rest = Self {
            requests: self.requests.split_off(keep),
            longest: self.longest,
            ..Self::default()
        };
        let cut = rest
            .requests
            .first()
            .map_or(self.bytes.len(), |first| first.start);
        rest.bytes = self.bytes.split_off(cut);
        for request in &mut rest.requests {
            request.start -= cut;
            request.commit -= cut;
            request.end -= cut;
        }
        self.count_apart();
        rest.count_apart();
        rest
    }

    /// Adds all requests of another batch, which is left empty.
    pub fn append(&mut self, other: &mut Self) {
        let offset = self.bytes.len();
        let last = self.requests.last().map(|request| request.terms.seq);
        if let (Some(last), Some(next)) = (last, other.requests.first()) {
            self.disordered |= next.terms.seq < last;
        }
        self.disordered |= std::mem::take(&mut other.disordered);
        self.longest = self.longest.max(std::mem::take(&mut other.longest));
        self.bytes.append(&mut other.bytes);
        for mut request in other.requests.drain(..) {
            request.start += offset;
            request.commit += offset;
            request.end += offset;
            self.requests.push(request);
        }
        self.count_apart();
        other.apart = 0;
    }

    fn count_apart(&mut self) {
        let apart = self.requests.iter().filter(|request| request.terms.apart);
        self.apart = apart.count();
    }

    /// Bytes of the longest request in the batch, or of one that was.
    pub fn longest(&self) -> usize {
        self.longest
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
        let parts = self.requests.iter();
        self.bytes.arrange(parts.map(|part| part.start..part.end));
        let mut start = 0;
        for request in &mut self.requests {
            let length = request.end - request.start;
            request.commit = request.commit - request.start + start;
            request.start = start;
            start += length;
            request.end = start;
        }
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
        self.longest = 0;
        self.apart = 0;
        self.requests.drain(..).map(|request| request.ticket)
    }
}
