//! Where callers hand over encoded commands and a driver picks them up.
//!
//! The lock is held for a few dozen nanoseconds, to append bytes and a ticket or to swap two buffers, and never across a system call; a large
//! request is encoded before it is taken. While
//! there is no connection, commands wait here in their order, so that those of a short interruption reach the next connection as they were
//! submitted.

pub(crate) mod order;
mod transaction;

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use steadfast_core::conn::{Batch, Conn, PIECE, Reply, Terms};
use steadfast_core::policy::Bulkhead;
use steadfast_core::policy::bulkhead::Full;

pub(crate) use self::order::{Job, Order, Turn, Turning, Turns};
use self::transaction::Transactions;
use crate::clock::{self, keeper};
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::wire::slot::{self, Blame, Ended, Pending, Ticket};

/// Whether something was left in the lane that has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Some,
}

/// Why calls are refused at once.
#[derive(Debug)]
pub(crate) struct Outage {
    pub(crate) since: Instant,
    pub(crate) cause: Arc<str>,
}

/// Whether calls may pass.
#[derive(Debug, Clone)]
pub(crate) enum Gate {
    /// A driver is in service.
    Open,
    /// A short interruption: calls wait here.
    Waiting,
    /// The server is down: calls are refused. The second is when the next attempt to connect is due.
    Down(Arc<Outage>, Instant),
    /// A connection of one caller is lost for good: calls are refused at once.
    Ended(Arc<str>),
    /// The runtime has ended in which the client's tasks lived: the next call has them started anew.
    Orphaned,
    /// The client is closed.
    Closed,
}

/// How much a driver holds, as of its last look.
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

/// See the module.
pub(crate) struct Lane {
    queue: Mutex<Queue>,
    bulkhead: Bulkhead,
    /// The connection in the hands of a driver: locked for each of its turns, so that deadlines can
    /// be kept should it get no more of them.
    pub(crate) serving: Mutex<Option<Conn<Job>>>,
}

/// How to submit a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) replies: u32,
    /// When the call began, which may be attempts ago.
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    pub(crate) now: Instant,
    /// The place it had when it was first submitted.
    pub(crate) seq: Option<u64>,
    /// Not for a connection that cannot kill those before it: see [`Lane::serves`].
    pub(crate) only_fenced: bool,
    /// It changes nothing on the server.
    pub(crate) read_only: bool,
    /// A connection ended at it before, so it travels apart from the others.
    pub(crate) apart: bool,
}

/// What a request is made of, until it is bytes.
pub(crate) trait Encode {
    /// How many bytes it becomes, or a few more. Zero if it is short.
    fn size(&self) -> usize {
        0
    }

    /// As in [`Batch::push`].
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

    /// The same, of a request that begins or ends a transaction.
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

    /// May it wait here?
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

    /// For the driver: swaps what waits for the empty `spare`, and says how much it holds itself.
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

    /// For whoever serves the lane: wakes it when something is submitted or ordered. False if
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

    /// For a driver that takes nothing new: only what it is told.
    pub(crate) fn take_orders(&self, backlog: Backlog) -> Vec<Order> {
        let mut queue = self.queue.lock();
        queue.attend(backlog);
        std::mem::take(&mut queue.orders)
    }

    /// True if an abandoned connection has to be killed before the transaction may take effect, which it cannot be from within it.
    pub(crate) fn holds_a_fence(&self) -> bool {
        self.queue.lock().transactions.holds_a_fence()
    }

    /// A request with these turns never reached the server.
    pub(crate) fn never_sent(&self, turns: &Turns) {
        let released = self.queue.lock().transactions.never_sent(turns);
        released.into_iter().for_each(|order| self.order(order));
    }

    /// A request with these turns was answered: what has waited for its transaction's end comes before the next command.
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

    /// Refuses what is new, and keeps what waits.
    pub(crate) fn refuse_new(&self) {
        self.queue.lock().gate = Gate::Closed;
    }

    /// Opens or shuts the lane. A closed one stays closed. What waits in it stays only while the gate is open or waiting.
    pub(crate) fn set_gate(&self, gate: Gate) {
        let mut queue = self.queue.lock();
        let turned = match &gate {
            Gate::Open | Gate::Waiting => Vec::new(),
            Gate::Down(..) | Gate::Ended(_) | Gate::Orphaned | Gate::Closed => {
                queue.batch.drain().collect()
            }
        };
        if !matches!(queue.gate, Gate::Closed) {
            queue.gate = gate;
        }
        drop(queue);
        for ticket in turned.into_iter().filter_map(Job::into_ticket) {
            ticket.end(Ended::Turned);
        }
    }

    /// The next connection can kill those before it, or cannot: then what relies on that does not go with it, nor will any that comes.
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

    /// True unless the connection in service is known not to kill those before it.
    pub(crate) fn may_be_fenced(&self) -> bool {
        self.queue.lock().fenced
    }

    /// A driver has ended: it holds nothing any more, and its orders are void.
    pub(crate) fn release(&self) {
        let mut queue = self.queue.lock();
        queue.backlog = Backlog::default();
        queue.orders.clear();
        queue.transactions = Transactions::default();
        queue.parked = None;
        queue.fenced = true;
    }

    /// Moves the time of the next attempt, in the answer of refused calls.
    pub(crate) fn set_retry_at(&self, at: Instant) {
        if let Gate::Down(_, retry_at) = &mut self.queue.lock().gate {
            *retry_at = at;
        }
    }

    pub(crate) fn gate(&self) -> Gate {
        self.queue.lock().gate.clone()
    }

    /// The error of a call that the gate turned away.
    pub(crate) fn refusal(&self, now: Instant) -> Error {
        let mut queue = self.queue.lock();
        match &queue.gate {
            Gate::Down(outage, retry_at) => {
                let error = down(outage, *retry_at, now);
                queue.refused += 1;
                error
            }
            Gate::Ended(cause) => lost(cause),
            Gate::Closed => Error::not_sent(ErrorKind::Closed),
            // So is one that the end of a runtime turned away: it comes again, and is served anew.
            Gate::Open | Gate::Waiting | Gate::Orphaned => Error::not_sent(ErrorKind::Lost {
                cause: "the connection changed before the command was sent".into(),
            }),
        }
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

    /// The runtime has ended in which the lane was served. What waits is turned away, to come again.
    pub(crate) fn orphan(&self) {
        self.set_gate(Gate::Orphaned);
        self.release();
    }

    /// Another runtime serves the lane from now on.
    pub(crate) fn adopt(&self) {
        let mut queue = self.queue.lock();
        if matches!(queue.gate, Gate::Orphaned) {
            queue.gate = Gate::Waiting;
        }
    }

    pub(crate) fn is_orphaned(&self) -> bool {
        matches!(self.queue.lock().gate, Gate::Orphaned)
    }

    /// A lane for the connection that this one had, where nothing new comes.
    pub(crate) fn aside(&self) -> Arc<Self> {
        let aside = Self::new(self.bulkhead);
        aside.set_gate(Gate::Closed);
        Arc::new(aside)
    }

    /// Has the lane looked after for as long as it exists, should nobody serve it.
    pub(crate) fn watch(self: &Arc<Self>) {
        let lane = Arc::downgrade(self);
        let mut seen = 0;
        keeper::watch(move |now| match lane.upgrade() {
            Some(lane) => {
                lane.look_after(&mut seen, now);
                true
            }
            None => false,
        });
    }

    /// Looks whether anybody serves the lane, and keeps its deadlines if nobody does. `seen` is what
    /// [`Queue::attended`] was at the last look. A call is ended only if its caller was seen to run
    /// meanwhile, or what stands still may be the program as a whole.
    fn look_after(&self, seen: &mut u64, now: Instant) {
        let mut queue = self.queue.lock();
        if std::mem::replace(seen, queue.attended) != queue.attended {
            return;
        }
        let gone = queue
            .batch
            .take_out(|job, terms| terms.deadline <= now && job.caller_runs());
        drop(queue);
        // A driver that has it locked is at work.
        let Some(mut serving) = self.serving.try_lock() else {
            return;
        };
        let mut given_up = Vec::new();
        if let Some(conn) = &mut *serving
            && conn.earliest_deadline().is_some_and(|at| at <= now)
        {
            conn.give_up(now, |waiting| {
                waiting.deadline <= now && waiting.ticket.caller_runs()
            });
            given_up.extend(std::iter::from_fn(|| conn.poll_given_up()));
        }
        drop(serving);
        let gone = gone.into_iter().map(|job| (job, Certainty::NotSent));
        let given_up = given_up.into_iter().map(|(job, known, _)| (job, known));
        for (job, certainty) in gone.chain(given_up) {
            if let Job::Turning(turning) = &job
                && certainty == Certainty::NotSent
            {
                self.never_sent(&turning.turns);
            }
            if let Some(ticket) = job.into_ticket() {
                ticket.end(Ended::Unattended(certainty));
            }
        }
    }

    /// Ends those in the queue whose deadline has passed; returns the next deadline.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut queue = self.queue.lock();
        queue.attended += 1;
        let expired = queue.batch.expire(now);
        let next = queue.batch.earliest_deadline();
        drop(queue);
        for job in expired {
            if let Job::Turning(turning) = &job {
                self.never_sent(&turning.turns);
            }
            if let Some(ticket) = job.into_ticket() {
                ticket.end(Ended::Expired {
                    certainty: Certainty::NotSent,
                    fair: true,
                });
            }
        }
        next
    }

    /// Keeps the deadlines of what waits while no driver does. Never ends.
    pub(crate) async fn keep_deadlines(&self) {
        loop {
            let next = self.expire(clock::now());
            let submitted = std::future::poll_fn(|cx| {
                let mut queue = self.queue.lock();
                let earlier = match (queue.batch.earliest_deadline(), next) {
                    (Some(first), Some(next)) => first < next,
                    (first, _) => first.is_some(),
                };
                if earlier {
                    return std::task::Poll::Ready(());
                }
                queue.parked = Some(cx.waker().clone());
                std::task::Poll::Pending
            });
            match next {
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = submitted => {}
                        () = clock::sleep_until(at) => {}
                    }
                }
                None => submitted.await,
            }
        }
    }
}

fn lost(cause: &Arc<str>) -> Error {
    Error::not_sent(ErrorKind::Lost {
        cause: Arc::clone(cause),
    })
}

/// Said of a client whose runtime has ended, to a caller that is in none.
pub(crate) const ORPHANED: ErrorKind = ErrorKind::Runtime {
    why: "the tokio runtime in which it lived has ended, and this call is made outside of any; \
          make it within a tokio runtime, or build the client in one that lives as long as it",
};
/// Said of a client whose runtime exists, and does not run.
pub(crate) const UNATTENDED: ErrorKind = ErrorKind::Runtime {
    why: "the tokio runtime in which it was built does not run its tasks; drive that runtime, keep \
          its threads free of code that blocks, or build the client in another",
};
const UNFENCED: &str = "the next connection may not kill the one before";

fn down(outage: &Outage, retry_at: Instant, now: Instant) -> Error {
    Error::not_sent(ErrorKind::Down {
        down_for: now.saturating_duration_since(outage.since),
        retry_after: retry_at.saturating_duration_since(now),
        cause: Arc::clone(&outage.cause),
    })
}

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
mod tests {
    use super::*;
    use crate::error::Certainty;
    use crate::wire::identity::Identity;

    const BOUNDS: Bulkhead = Bulkhead::new(3, 100);

    fn submit(lane: &Lane, bytes: usize, limit: Duration) -> Result<Submitted, Error> {
        let now = clock::now();
        let ask = Ask {
            replies: 1,
            started: now,
            deadline: now + limit,
            now,
            seq: None,
            only_fenced: false,
            read_only: false,
            apart: false,
        };
        lane.submit(ask, |out: &mut Vec<u8>| {
            out.resize(out.len() + bytes, b'x');
            out.len()
        })
    }

    fn down() -> Gate {
        let now = clock::now();
        let outage = Outage {
            since: now,
            cause: "it is gone".into(),
        };
        Gate::Down(Arc::new(outage), now + Duration::from_millis(70))
    }

    fn ghost() -> Identity {
        Identity {
            id: 7,
            addr: "127.0.0.1:1".into(),
            run_id: None,
        }
    }

    #[test]
    fn a_full_lane_refuses_and_says_which_bound() {
        let lane = Lane::new(BOUNDS);
        let held: Vec<_> = (0..3).map(|_| submit(&lane, 10, BOUND)).collect();
        assert!(held.iter().all(Result::is_ok));
        let error = submit(&lane, 10, BOUND).expect_err("it is full");
        let in_flight = matches!(
            error.kind(),
            ErrorKind::Overloaded {
                bound: Bound::InFlight,
                ..
            }
        );
        assert!(in_flight, "{error}");
        let lane = Lane::new(BOUNDS);
        let _held = [100, 100].map(|bytes| submit(&lane, bytes, BOUND).expect("it passes"));
        let error = submit(&lane, 1, BOUND).expect_err("it is full");
        let bytes = matches!(
            error.kind(),
            ErrorKind::Overloaded {
                bound: Bound::Bytes,
                ..
            }
        );
        assert!(bytes, "{error}");
    }

    #[test]
    fn c11_what_was_written_leaves_its_room_as_soon_as_the_driver_parks() {
        let lane = Lane::new(Bulkhead::new(9, 100));
        let _held = [100, 100].map(|bytes| submit(&lane, bytes, BOUND).expect("it passes"));
        let mut batch = Batch::default();
        lane.take(&mut batch, Backlog::default(), false);
        assert!(submit(&lane, 1, BOUND).is_err(), "it is not written yet");
        let written = Backlog {
            awaiting: 2,
            ..Backlog::default()
        };
        assert!(lane.park(Waker::noop(), written, Left::Nothing));
        assert!(submit(&lane, 1, BOUND).is_ok());
    }

    #[test]
    fn c11_one_large_value_that_waits_does_not_shut_out_the_others() {
        let lane = Lane::new(Bulkhead::new(99, 100));
        let _large = submit(&lane, 5_000, BOUND).expect("it passes");
        let _small = [(); 9].map(|()| submit(&lane, 10, BOUND).expect("there is room"));
        // Nor while the driver has it, and has written a part.
        lane.take(&mut Batch::default(), Backlog::default(), false);
        let held = Backlog {
            awaiting: 10,
            unsent: 4_090,
            longest: 4_000,
        };
        assert!(lane.park(Waker::noop(), held, Left::Nothing));
        let _last = submit(&lane, 10, BOUND).expect("there is room");
        assert!(submit(&lane, 10, BOUND).is_err(), "90 and 10 are 100");
    }

    #[tokio::test]
    async fn c20_what_travels_apart_waits_for_those_before_and_those_after_wait_for_it() {
        let lane = Lane::new(Bulkhead::new(99, 100));
        let now = clock::now();
        let send = |apart| {
            let ask = Ask {
                replies: 1,
                started: now,
                deadline: now + BOUND,
                now,
                seq: None,
                only_fenced: false,
                read_only: false,
                apart,
            };
            let submitted = lane.submit(ask, |out: &mut Vec<u8>| {
                out.push(b'x');
                out.len()
            });
            submitted.expect("there is room").pending
        };
        let _pending = [false, true, false].map(send);
        let mut batch = Batch::default();
        let mut take = |awaiting, all| {
            let backlog = Backlog {
                awaiting,
                ..Backlog::default()
            };
            let (_, left) = lane.take(&mut batch, backlog, all);
            (batch.drain().count(), left)
        };
        assert_eq!(take(0, false), (1, Left::Some));
        assert_eq!(take(1, false), (0, Left::Some), "the first is under way");
        assert_eq!(take(0, false), (1, Left::Some), "it goes alone");
        assert_eq!(take(0, false), (1, Left::Nothing));
        let _pending = [false, true, false].map(send);
        assert_eq!(take(9, true), (3, Left::Nothing), "it has waited enough");
    }

    const BOUND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn what_waits_is_turned_away_when_the_server_is_down_and_so_is_what_comes() {
        let lane = Lane::new(BOUNDS);
        let waiting = submit(&lane, 1, BOUND).expect("it waits");
        lane.set_gate(down());
        assert!(matches!(waiting.pending.await, Ended::Turned));
        let error = submit(&lane, 1, BOUND).expect_err("it is down");
        assert_eq!(error.certainty(), Certainty::NotSent);
        assert!(error.retry_after().expect("it says when") <= Duration::from_millis(70));
        assert_eq!(lane.take_refused(), 1);
        assert_eq!(lane.in_flight(), 0);
    }

    #[test]
    fn a_closed_lane_stays_closed() {
        let lane = Lane::new(BOUNDS);
        lane.refuse_new();
        lane.set_gate(Gate::Open);
        let error = submit(&lane, 1, BOUND).expect_err("it is closed");
        assert!(matches!(error.kind(), ErrorKind::Closed));
    }

    #[tokio::test]
    async fn those_whose_time_is_up_end_and_the_others_keep_their_places() {
        let lane = Lane::new(BOUNDS);
        let hasty = submit(&lane, 5, Duration::ZERO).expect("it waits");
        let patient = submit(&lane, 7, BOUND).expect("it waits");
        assert!(lane.expire(clock::now()).is_some(), "one is left");
        let Ended::Expired { certainty, .. } = hasty.pending.await else {
            panic!("it has expired");
        };
        assert_eq!(certainty, Certainty::NotSent);
        let mut batch = Batch::default();
        lane.take(&mut batch, Backlog::default(), false);
        assert_eq!((batch.len(), batch.byte_len()), (1, 7));
        drop(patient);
    }

    #[tokio::test]
    async fn c18_what_relies_on_a_fence_does_not_go_with_a_connection_that_has_none() {
        let lane = Lane::new(BOUNDS);
        let now = clock::now();
        let ask = Ask {
            replies: 1,
            started: now,
            deadline: now + BOUND,
            now,
            seq: None,
            only_fenced: true,
            read_only: false,
            apart: false,
        };
        let relying = lane
            .submit(ask, |out: &mut Vec<u8>| out.len())
            .expect("it waits");
        let other = submit(&lane, 7, BOUND).expect("it waits");
        lane.serves(false);
        let Ended::Lost { certainty, .. } = relying.pending.await else {
            panic!("it is turned away");
        };
        assert_eq!(certainty, Certainty::NotSent);
        assert_eq!(lane.in_flight(), 1, "the other goes");
        // Nor does one that comes while it serves.
        lane.set_gate(Gate::Open);
        let late = lane.submit(ask, |out: &mut Vec<u8>| out.len());
        let error = late.expect_err("it relies on a fence");
        assert_eq!(error.certainty(), Certainty::NotSent);
        assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error}");
        assert!(submit(&lane, 7, BOUND).is_ok(), "others may");
        // The next one may be another.
        lane.release();
        assert!(lane.submit(ask, |out: &mut Vec<u8>| out.len()).is_ok());
        drop(other);
    }

    #[test]
    fn a_transaction_is_not_interrupted_but_by_its_end() {
        let lane = Lane::new(BOUNDS);
        let now = clock::now();
        let ask = Ask {
            replies: 1,
            started: now,
            deadline: now + BOUND,
            now,
            seq: None,
            only_fenced: false,
            read_only: false,
            apart: false,
        };
        let multi = vec![(0, Turn::Multi)];
        let begun = lane.submit_turning(multi, ask, |out: &mut Vec<u8>| out.len());
        assert!(begun.is_ok());
        lane.order(Order::Fence(ghost()));
        assert!(lane.holds_a_fence());
        lane.order(Order::Abandon("over".into()));
        assert_eq!(
            lane.take_orders(Backlog::default()).len(),
            1,
            "only the end is told at once"
        );
        let done = Reply::One(redis::Value::Nil);
        lane.answered(&vec![(0, Turn::Exec)], &done);
        assert!(!lane.holds_a_fence());
        assert!(
            matches!(&lane.take_orders(Backlog::default())[..], [Order::Fence(known)] if *known == ghost())
        );
    }
}
