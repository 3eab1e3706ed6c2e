//! The place where callers hand over encoded commands and a driver picks them up.
//!
//! The lock is held for a few dozen nanoseconds, to append bytes and a ticket or to swap two
//! buffers, and never across a system call; a large request is encoded before it is taken. While
//! there is no connection, commands wait here in their order, so that those of a short interruption
//! reach the next connection as they were submitted.

mod command;
mod deadlines;
mod gate;
mod places;
mod total;
mod transaction;

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::conn::{Batch, Conn, PIECE, Reply, Terms};
use steadfast_core::policy::Bulkhead;
use steadfast_core::policy::bulkhead::Full;

use self::command::AskingCall;
pub(crate) use self::command::{DriverCommand, Job, TxStep, TxSteps, TxTransition};
pub(crate) use self::gate::{Gate, ORPHANED, Outage, UNATTENDED};
use self::gate::{down, lost};
pub(crate) use self::places::SharedPlaces;
use self::total::Locked;
pub(crate) use self::total::TotalBytes;
use self::transaction::Transactions;
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::wire::slot::{self, Blame, Ended, Pending, Ticket};

/// Whether something was left in the queue that has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Some,
}

/// The load that a driver holds, as of its last look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backlog {
    /// Requests that are not answered.
    pub(crate) awaiting: usize,
    /// Bytes that are not written.
    pub(crate) unsent: usize,
    /// Bytes that are not written of the longest request.
    pub(crate) longest: usize,
    /// Whether one of them travels apart from the others.
    pub(crate) apart: bool,
}

impl Backlog {
    pub(crate) fn of(conn: &Conn<Job>) -> Self {
        Self {
            awaiting: conn.awaiting(),
            unsent: conn.unsent(),
            longest: conn.unsent_longest(),
            apart: conn.has_apart(),
        }
    }
}

struct Inner {
    gate: Gate,
    batch: Batch<Job>,
    backlog: Backlog,
    /// Counts the times that whoever serves the queue has looked after it.
    attended: u64,
    parked: Option<Waker>,
    commands: Vec<DriverCommand>,
    transactions: Transactions,
    next_seq: u64,
    /// Calls refused because the server is down, since the last connection was in service.
    refused: u64,
    /// The connection in service can kill those before it; true while the next is not known.
    fenced: bool,
    /// The bytes that were counted for all queues together.
    counted: usize,
    /// Requests under way that share the place of another part of their call.
    shared: usize,
}

impl Inner {
    /// Returns the bytes that wait here, or with the driver.
    fn bytes(&self) -> usize {
        self.backlog.unsent + self.batch.byte_len()
    }

    fn attend(&mut self, backlog: Backlog) {
        self.backlog = backlog;
        self.attended += 1;
    }
}

/// The queue between callers and a driver.
pub(crate) struct SubmitQueue {
    inner: Mutex<Inner>,
    bulkhead: Bulkhead,
    /// The bytes of this queue and others, where it is not the only one.
    total: Option<Arc<TotalBytes>>,
    /// The connection in the hands of a driver: locked for each of its turns, so that deadlines can
    /// be kept should it get no more of them.
    pub(crate) serving: Mutex<Option<Conn<Job>>>,
}

/// The terms on which a request is submitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Submission {
    pub(crate) replies: u32,
    /// The beginning of the call, which may be attempts ago.
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    pub(crate) now: Instant,
    /// The place it had when it was first submitted.
    pub(crate) seq: Option<u64>,
    /// Whether only a connection that can fence its predecessors may carry it: see
    /// [`SubmitQueue::serves`].
    pub(crate) only_fenced: bool,
    /// Whether it changes nothing on the server.
    pub(crate) read_only: bool,
    /// A connection ended at it before, so it travels apart from the others.
    pub(crate) apart: bool,
}

/// A request that is not bytes yet.
pub(crate) trait Encode {
    /// Returns how many bytes it becomes, or a few more. Zero if it is short.
    fn size(&self) -> usize {
        0
    }

    /// Takes its bytes, if it was encoded ahead.
    fn take_encoded(&mut self) -> Option<Encoded> {
        None
    }

    /// Appends its bytes, as [`Batch::push`] asks.
    fn encode(self, out: &mut Vec<u8>) -> usize;
}

/// A large request that is bytes already, so that whoever submits it under a lock copies nothing.
#[derive(Debug)]
pub(crate) struct Encoded {
    bytes: Vec<u8>,
    commit: usize,
}

impl Encoded {
    /// Encodes a request, if it is large.
    pub(crate) fn ahead(request: impl Encode) -> Option<Self> {
        let size = request.size();
        (size >= PIECE).then(|| {
            let mut bytes = Vec::with_capacity(size);
            let commit = request.encode(&mut bytes);
            Self { bytes, commit }
        })
    }
}

/// A request, and its bytes if it was encoded ahead.
pub(crate) struct PerhapsEncoded<R> {
    pub(crate) request: R,
    pub(crate) encoded: Option<Encoded>,
}

impl<R: Encode> Encode for PerhapsEncoded<R> {
    fn size(&self) -> usize {
        match &self.encoded {
            Some(encoded) => encoded.bytes.len(),
            None => self.request.size(),
        }
    }

    fn take_encoded(&mut self) -> Option<Encoded> {
        self.encoded.take()
    }

    fn encode(self, out: &mut Vec<u8>) -> usize {
        self.request.encode(out)
    }
}

impl<F: FnOnce(&mut Vec<u8>) -> usize> Encode for F {
    fn encode(self, out: &mut Vec<u8>) -> usize {
        self(out)
    }
}

/// A request that was submitted.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub(crate) pending: Pending,
    pub(crate) seq: u64,
}

/// Shows nothing of what waits: commands carry data, and AUTH a password.
impl std::fmt::Debug for SubmitQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SubmitQueue")
    }
}

impl SubmitQueue {
    pub(crate) fn new(bulkhead: Bulkhead) -> Self {
        Self {
            inner: Mutex::new(Inner {
                gate: Gate::Waiting,
                batch: Batch::default(),
                backlog: Backlog::default(),
                attended: 0,
                parked: None,
                commands: Vec::new(),
                transactions: Transactions::default(),
                next_seq: 0,
                refused: 0,
                fenced: true,
                counted: 0,
                shared: 0,
            }),
            bulkhead,
            total: None,
            serving: Mutex::new(None),
        }
    }

    /// Has its bytes counted together with those of others.
    pub(crate) fn counted_in(mut self, total: Option<Arc<TotalBytes>>) -> Self {
        self.total = total;
        self
    }

    fn lock(&self) -> Locked<'_> {
        Locked {
            inner: self.inner.lock(),
            total: self.total.as_deref(),
        }
    }

    /// Hands a request over. A large one is encoded before the lock is taken.
    pub(crate) fn submit(
        &self,
        submission: Submission,
        request: impl Encode,
    ) -> Result<Submitted, Error> {
        let job = if submission.only_fenced {
            Job::Fenced
        } else {
            Job::Call
        };
        self.submit_as(job, submission, request)
    }

    /// Hands over a request behind an ASKING.
    pub(crate) fn submit_asking(
        &self,
        submission: Submission,
        request: impl Encode,
    ) -> Result<Submitted, Error> {
        let fenced = submission.only_fenced;
        let job = |ticket| Job::Asking(Box::new(AskingCall { ticket, fenced }));
        self.submit_as(job, submission, request)
    }

    /// Hands over a request that begins or ends a transaction.
    pub(crate) fn submit_transition(
        &self,
        steps: TxSteps,
        submission: Submission,
        request: impl Encode,
    ) -> Result<Submitted, Error> {
        // What is ordered from now on waits; what was ordered before is ahead of it.
        self.lock().transactions.begin(&steps);
        let job = |ticket| {
            let steps = steps.clone();
            Job::TxTransition(Box::new(TxTransition { ticket, steps }))
        };
        self.submit_as(job, submission, request)
            .inspect_err(|_| self.never_sent(&steps))
    }

    fn submit_as(
        &self,
        job: impl FnOnce(Ticket) -> Job,
        submission: Submission,
        mut request: impl Encode,
    ) -> Result<Submitted, Error> {
        // Of a pipeline of very many commands that takes its time too.
        let (size, encoded) = (request.size(), request.take_encoded());
        let mut queue = self.lock();
        self.admit(&mut queue, &submission)?;
        if let Some(Encoded { bytes, commit }) = encoded {
            return Ok(self.push(queue, job, submission, |batch, job, terms| {
                batch.push_encoded(job, terms, bytes, commit);
            }));
        }
        if size < PIECE {
            return Ok(self.push(queue, job, submission, |batch, job, terms| {
                batch.push(job, terms, |out| request.encode(out));
            }));
        }
        let mut bytes = queue.batch.buffer(size);
        // A long copy holds nobody up.
        drop(queue);
        bytes.reserve_exact(size);
        let commit = request.encode(&mut bytes);
        let mut queue = self.lock();
        self.admit(&mut queue, &submission)?;
        Ok(self.push(queue, job, submission, |batch, job, terms| {
            batch.push_encoded(job, terms, bytes, commit);
        }))
    }

    /// Refuses a request that may not wait here.
    fn admit(&self, queue: &mut Inner, submission: &Submission) -> Result<(), Error> {
        match &queue.gate {
            Gate::Open | Gate::Waiting => {}
            Gate::Down(outage, retry_at) => {
                let error = down(outage, *retry_at, submission.now);
                queue.refused += 1;
                return Err(error);
            }
            Gate::Ended(cause) => return Err(lost(cause)),
            Gate::Orphaned => return Err(Error::not_sent(ORPHANED)),
            Gate::Closed => return Err(Error::not_sent(ErrorKind::Closed)),
        }
        if submission.only_fenced && !queue.fenced {
            let cause = UNFENCED.into();
            return Err(Error::not_sent(ErrorKind::Lost { cause }));
        }
        let inside = queue.backlog.awaiting + queue.batch.len();
        let inside = inside.saturating_sub(queue.shared);
        // The longest does not count, or one large value would shut everybody else out.
        let longest = queue.backlog.longest.max(queue.batch.longest());
        let bytes = queue.bytes().saturating_sub(longest);
        self.bulkhead.admit(inside, bytes).map_err(overloaded)?;
        match &self.total {
            Some(total) if !total.admits(bytes, longest) => Err(overloaded(Full::Bytes)),
            _ => Ok(()),
        }
    }

    /// Adds it to what waits, and wakes who serves the queue.
    fn push(
        &self,
        mut queue: Locked<'_>,
        job: impl FnOnce(Ticket) -> Job,
        submission: Submission,
        add: impl FnOnce(&mut Batch<Job>, Job, Terms),
    ) -> Submitted {
        let seq = submission.seq.unwrap_or(queue.next_seq);
        if submission.seq.is_none() {
            queue.next_seq += 1;
        }
        let (ticket, pending) = slot::pair();
        let terms = Terms {
            replies: submission.replies,
            deadline: submission.deadline,
            submitted: submission.started,
            seq,
            read_only: submission.read_only,
            apart: submission.apart,
        };
        add(&mut queue.batch, job(ticket), terms);
        let parked = queue.parked.take();
        drop(queue);
        if let Some(waker) = parked {
            waker.wake();
        }
        Submitted { pending, seq }
    }

    /// Swaps what waits for the empty `spare` of the driver, which says how much it holds itself.
    /// Leaves what is to wait until another request has travelled apart, unless `all` is to be
    /// taken; and everything where there are credentials to be given first.
    pub(crate) fn take(
        &self,
        spare: &mut Batch<Job>,
        backlog: Backlog,
        all: bool,
    ) -> (Vec<DriverCommand>, Left) {
        let mut queue = self.lock();
        queue.attend(backlog);
        let authenticates =
            |command: &DriverCommand| matches!(command, DriverCommand::Reauthenticate(_));
        let stays = backlog.apart && !all || queue.commands.iter().any(authenticates);
        if !stays {
            std::mem::swap(&mut queue.batch, spare);
        }
        if spare.has_apart() && !all {
            queue.batch = spare.split_apart(backlog.awaiting == 0);
        }
        queue.backlog.awaiting += spare.len();
        queue.backlog.unsent += spare.byte_len();
        queue.backlog.longest = backlog.longest.max(spare.longest());
        let left = match queue.batch.is_empty() {
            true => Left::Nothing,
            false => Left::Some,
        };
        (std::mem::take(&mut queue.commands), left)
    }

    /// Registers the waker of the driver, to be woken when something is submitted or commanded.
    /// Returns false if something already was; what was left before does not count.
    pub(crate) fn park(&self, waker: &Waker, backlog: Backlog, left: Left) -> bool {
        let mut queue = self.lock();
        let submitted = left == Left::Nothing && !queue.batch.is_empty();
        if submitted || !queue.commands.is_empty() {
            return false;
        }
        queue.attend(backlog);
        queue.parked = Some(waker.clone());
        true
    }

    /// Takes the commands alone, for a driver that takes nothing new.
    pub(crate) fn take_commands(&self, backlog: Backlog) -> Vec<DriverCommand> {
        let mut queue = self.lock();
        queue.attend(backlog);
        std::mem::take(&mut queue.commands)
    }

    /// Returns whether an abandoned connection has to be killed before the transaction may take
    /// effect, which it cannot be from within it.
    pub(crate) fn holds_a_fence(&self) -> bool {
        self.lock().transactions.holds_a_fence()
    }

    /// Notes that a request with these steps never reached the server.
    pub(crate) fn never_sent(&self, steps: &TxSteps) {
        let released = self.lock().transactions.never_sent(steps);
        released
            .into_iter()
            .for_each(|command| self.command(command));
    }

    /// Notes that a request with these steps was answered: commands that waited for its
    /// transaction's end come before the next request.
    pub(crate) fn answered(&self, steps: &TxSteps, reply: &Reply) {
        let released = self.lock().transactions.answered(steps, reply);
        released
            .into_iter()
            .for_each(|command| self.command(command));
    }

    /// Tells the driver something.
    pub(crate) fn command(&self, command: DriverCommand) {
        let mut queue = self.lock();
        let Some(command) = queue.transactions.hold(command) else {
            return;
        };
        queue.commands.push(command);
        let parked = queue.parked.take();
        drop(queue);
        if let Some(waker) = parked {
            waker.wake();
        }
    }

    /// Records whether the next connection can fence its predecessors. If it cannot, queued calls
    /// that require fencing fail now with `NotSent`, and later ones are refused.
    pub(crate) fn serves(&self, fenced: bool) {
        let turned = {
            let mut queue = self.lock();
            queue.fenced = fenced;
            match fenced {
                true => return,
                false => queue.batch.take_out(|job, _| job.needs_fence()),
            }
        };
        for ticket in turned.into_iter().filter_map(Job::into_ticket) {
            ticket.end(Ended::Lost {
                certainty: Certainty::NotSent,
                cause: UNFENCED.into(),
                rejoin: None,
                blame: Blame::None,
            });
        }
    }

    /// Returns true unless the connection in service is known not to be able to fence its
    /// predecessors.
    pub(crate) fn may_be_fenced(&self) -> bool {
        self.lock().fenced
    }

    /// Forgets a driver that has ended: it holds nothing any more, and its commands are void.
    pub(crate) fn release(&self) {
        let mut queue = self.lock();
        queue.backlog = Backlog::default();
        queue.commands.clear();
        queue.transactions = Transactions::default();
        queue.parked = None;
        queue.fenced = true;
    }

    /// Calls refused since this was last asked.
    pub(crate) fn take_refused(&self) -> u64 {
        std::mem::take(&mut self.lock().refused)
    }

    /// Requests submitted and not yet answered.
    pub(crate) fn in_flight(&self) -> usize {
        let queue = self.lock();
        queue.backlog.awaiting + queue.batch.len()
    }

    /// Returns a queue for the connection that this one had, to which nothing new comes.
    pub(crate) fn aside(&self) -> Arc<Self> {
        let aside = Self::new(self.bulkhead).counted_in(self.total.clone());
        aside.set_gate(Gate::Closed);
        Arc::new(aside)
    }
}

impl Drop for SubmitQueue {
    fn drop(&mut self) {
        if let Some(total) = &self.total {
            total.count(self.inner.get_mut().counted, 0);
        }
    }
}

const UNFENCED: &str = "the next connection may not kill the one before";

fn overloaded(full: Full) -> Error {
    Error::not_sent(ErrorKind::Overloaded {
        bound: match full {
            Full::Calls => Bound::InFlight,
            Full::Bytes => Bound::Bytes,
        },
        retry_after: Duration::from_millis(10),
    })
}

#[cfg(test)]
mod tests;
