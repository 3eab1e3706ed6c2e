//! Where callers hand over encoded commands and a driver picks them up.
//!
//! The lock is held for a few dozen nanoseconds, to append bytes and a ticket or to swap two buffers, and never across a system call; a large
//! request is encoded before it is taken. While
//! there is no connection, commands wait here in their order, so that those of a short interruption reach the next connection as they were
//! submitted.

mod deadlines;
mod gate;
mod order;
mod transaction;

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use steadfast_core::conn::{Batch, Conn, PIECE, Reply, Terms};
use steadfast_core::policy::Bulkhead;
use steadfast_core::policy::bulkhead::Full;

pub(crate) use self::gate::{Gate, ORPHANED, Outage, UNATTENDED};
use self::gate::{down, lost};
pub(crate) use self::order::{Job, Order, Turn, Turning, Turns};
use self::transaction::Transactions;
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::wire::slot::{self, Blame, Ended, Pending, Ticket};

/// Whether something was left in the lane that has to wait.
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
}

impl Backlog {
    pub(crate) fn of(conn: &Conn<Job>) -> Self {
        Self {
            awaiting: conn.awaiting(),
            unsent: conn.unsent(),
            longest: conn.unsent_longest(),
        }
    }
}

struct Queue {
    gate: Gate,
    batch: Batch<Job>,
    backlog: Backlog,
    /// Counts the times that whoever serves the lane has looked after it.
    attended: u64,
    parked: Option<Waker>,
    orders: Vec<Order>,
    transactions: Transactions,
    next_seq: u64,
    /// Calls refused because the server is down, since the last connection was in service.
    refused: u64,
    /// The connection in service can kill those before it; true while the next is not known.
    fenced: bool,
}

impl Queue {
    fn attend(&mut self, backlog: Backlog) {
        self.backlog = backlog;
        self.attended += 1;
    }
}

/// The queue between callers and a driver.
pub(crate) struct Lane {
    queue: Mutex<Queue>,
    bulkhead: Bulkhead,
    /// The connection in the hands of a driver: locked for each of its turns, so that deadlines can
    /// be kept should it get no more of them.
    pub(crate) serving: Mutex<Option<Conn<Job>>>,
}

/// The terms on which a request is submitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) replies: u32,
    /// The beginning of the call, which may be attempts ago.
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    pub(crate) now: Instant,
    /// The place it had when it was first submitted.
    pub(crate) seq: Option<u64>,
    /// Whether only a connection that can fence its predecessors may carry it: see [`Lane::serves`].
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

    /// Appends its bytes, as [`Batch::push`] asks.
    fn encode(self, out: &mut Vec<u8>) -> usize;
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
impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lane")
    }
}

impl Lane {
    pub(crate) fn new(bulkhead: Bulkhead) -> Self {
        Self {
            queue: Mutex::new(Queue {
                gate: Gate::Waiting,
                batch: Batch::default(),
                backlog: Backlog::default(),
                attended: 0,
                parked: None,
                orders: Vec::new(),
                transactions: Transactions::default(),
                next_seq: 0,
                refused: 0,
                fenced: true,
            }),
            bulkhead,
            serving: Mutex::new(None),
        }
    }

    /// Hands a request over. A large one is encoded before the lock is taken.
    pub(crate) fn submit(&self, ask: Ask, request: impl Encode) -> Result<Submitted, Error> {
        let job = if ask.only_fenced {
            Job::Fenced
        } else {
            Job::Call
        };
        self.submit_as(job, ask, request)
    }

    /// Hands over a request that begins or ends a transaction.
    pub(crate) fn submit_turning(
        &self,
        turns: Turns,
        ask: Ask,
        request: impl Encode,
    ) -> Result<Submitted, Error> {
        // What is ordered from now on waits; what was ordered before is ahead of it.
        self.queue.lock().transactions.begin(&turns);
        let job = |ticket| {
            let turns = turns.clone();
            Job::Turning(Box::new(Turning { ticket, turns }))
        };
        self.submit_as(job, ask, request)
            .inspect_err(|_| self.never_sent(&turns))
    }

    fn submit_as(
        &self,
        job: impl FnOnce(Ticket) -> Job,
        ask: Ask,
        request: impl Encode,
    ) -> Result<Submitted, Error> {
        let mut queue = self.queue.lock();
        self.admit(&mut queue, &ask)?;
        let size = request.size();
        if size < PIECE {
            return Ok(self.push(queue, job, ask, |batch, job, terms| {
                batch.push(job, terms, |out| request.encode(out));
            }));
        }
        let mut bytes = queue.batch.buffer(size);
        // A long copy holds nobody up.
        drop(queue);
        bytes.reserve_exact(size);
        let commit = request.encode(&mut bytes);
        let mut queue = self.queue.lock();
        self.admit(&mut queue, &ask)?;
        Ok(self.push(queue, job, ask, |batch, job, terms| {
            batch.push_encoded(job, terms, bytes, commit);
        }))
    }

    /// Refuses a request that may not wait here.
    fn admit(&self, queue: &mut Queue, ask: &Ask) -> Result<(), Error> {
        match &queue.gate {
            Gate::Open | Gate::Waiting => {}
            Gate::Down(outage, retry_at) => {
                let error = down(outage, *retry_at, ask.now);
                queue.refused += 1;
                return Err(error);
            }
            Gate::Ended(cause) => return Err(lost(cause)),
            Gate::Orphaned => return Err(Error::not_sent(ORPHANED)),
            Gate::Closed => return Err(Error::not_sent(ErrorKind::Closed)),
        }
        if ask.only_fenced && !queue.fenced {
            let cause = UNFENCED.into();
            return Err(Error::not_sent(ErrorKind::Lost { cause }));
        }
        let inside = queue.backlog.awaiting + queue.batch.len();
        // The longest does not count, or one large value would shut everybody else out.
        let longest = queue.backlog.longest.max(queue.batch.longest());
        let bytes = queue.backlog.unsent + queue.batch.byte_len();
        self.bulkhead
            .admit(inside, bytes.saturating_sub(longest))
            .map_err(overloaded)
    }

    /// Adds it to what waits, and wakes who serves the lane.
    fn push(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        job: impl FnOnce(Ticket) -> Job,
        ask: Ask,
        add: impl FnOnce(&mut Batch<Job>, Job, Terms),
    ) -> Submitted {
        let seq = ask.seq.unwrap_or(queue.next_seq);
        if ask.seq.is_none() {
            queue.next_seq += 1;
        }
        let (ticket, pending) = slot::pair();
        let terms = Terms {
            replies: ask.replies,
            deadline: ask.deadline,
            submitted: ask.started,
            seq,
            read_only: ask.read_only,
            apart: ask.apart,
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
    /// Leaves what is to wait until another request has travelled apart, unless `all` is to be taken; and everything
    /// where there are credentials to be given first.
    pub(crate) fn take(
        &self,
        spare: &mut Batch<Job>,
        backlog: Backlog,
        all: bool,
    ) -> (Vec<Order>, Left) {
        let mut queue = self.queue.lock();
        queue.attend(backlog);
        let authenticates = |order: &Order| matches!(order, Order::Reauthenticate(_));
        if !queue.orders.iter().any(authenticates) {
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
        (std::mem::take(&mut queue.orders), left)
    }

    /// Registers the waker of the driver, to be woken when something is submitted or commanded. Returns false if
    /// something already was; what was left before does not count.
    pub(crate) fn park(&self, waker: &Waker, backlog: Backlog, left: Left) -> bool {
        let mut queue = self.queue.lock();
        let submitted = left == Left::Nothing && !queue.batch.is_empty();
        if submitted || !queue.orders.is_empty() {
            return false;
        }
        queue.attend(backlog);
        queue.parked = Some(waker.clone());
        true
    }

    /// Takes the commands alone, for a driver that takes nothing new.
    pub(crate) fn take_orders(&self, backlog: Backlog) -> Vec<Order> {
        let mut queue = self.queue.lock();
        queue.attend(backlog);
        std::mem::take(&mut queue.orders)
    }

    /// Returns whether an abandoned connection has to be killed before the transaction may take effect, which it cannot be from within it.
    pub(crate) fn holds_a_fence(&self) -> bool {
        self.queue.lock().transactions.holds_a_fence()
    }

    /// Notes that a request with these steps never reached the server.
    pub(crate) fn never_sent(&self, turns: &Turns) {
        let released = self.queue.lock().transactions.never_sent(turns);
        released.into_iter().for_each(|order| self.order(order));
    }

    /// Notes that a request with these steps was answered: commands that waited for its transaction's end come before the next request.
    pub(crate) fn answered(&self, turns: &Turns, reply: &Reply) {
        let released = self.queue.lock().transactions.answered(turns, reply);
        released.into_iter().for_each(|order| self.order(order));
    }

    /// Tells the driver something.
    pub(crate) fn order(&self, order: Order) {
        let mut queue = self.queue.lock();
        let Some(order) = queue.transactions.hold(order) else {
            return;
        };
        queue.orders.push(order);
        let parked = queue.parked.take();
        drop(queue);
        if let Some(waker) = parked {
            waker.wake();
        }
    }

    /// Records whether the next connection can fence its predecessors. If it cannot, queued calls that require fencing fail now with `NotSent`, and later ones are refused.
    pub(crate) fn serves(&self, fenced: bool) {
        let turned = {
            let mut queue = self.queue.lock();
            queue.fenced = fenced;
            match fenced {
                true => return,
                false => queue.batch.take_out(|job, _| matches!(job, Job::Fenced(_))),
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

    /// Returns true unless the connection in service is known not to be able to fence its predecessors.
    pub(crate) fn may_be_fenced(&self) -> bool {
        self.queue.lock().fenced
    }

    /// Forgets a driver that has ended: it holds nothing any more, and its commands are void.
    pub(crate) fn release(&self) {
        let mut queue = self.queue.lock();
        queue.backlog = Backlog::default();
        queue.orders.clear();
        queue.transactions = Transactions::default();
        queue.parked = None;
        queue.fenced = true;
    }

    /// Calls refused since this was last asked.
    pub(crate) fn take_refused(&self) -> u64 {
        std::mem::take(&mut self.queue.lock().refused)
    }

    /// Requests submitted and not yet answered.
    pub(crate) fn in_flight(&self) -> usize {
        let queue = self.queue.lock();
        queue.backlog.awaiting + queue.batch.len()
    }

    /// Returns a queue for the connection that this one had, to which nothing new comes.
    pub(crate) fn aside(&self) -> Arc<Self> {
        let aside = Self::new(self.bulkhead);
        aside.set_gate(Gate::Closed);
        Arc::new(aside)
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
