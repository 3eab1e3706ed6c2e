//! Owns one socket and its timers, and drives the connection's state machine.
//!
//! A hand-written poll loop, because this is where the time goes: as many commands as wait leave in one write, replies are decoded from one
//! buffer, and they are handed out in small waves, so that callers and server work at the same time instead of in turns.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use redis::Value;
use steadfast_core::certainty::{Refusal, refusal};
use steadfast_core::conn::{Batch, Conn, Incoming, Lapse, Reply, Terms, Watch};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::clock;
use crate::connect::Identity;
use crate::error::Certainty;
use crate::lane::{Job, Lane, Order};
use crate::shared::Shared;
use crate::slot::Ended;
use crate::stream::Stream;
use crate::transaction::Turns;

/// Replies handed out before callers get their turn: an eighth of those that wait, within these. Small waves keep callers and server at work
/// at the same time; larger ones, where many wait, make fewer and fuller writes of it.
const WAVE: std::ops::RangeInclusive<usize> = 16..=64;
/// Deadline of the driver's own commands: they are watched by `reply_overdue` instead.
const INTERNAL: Duration = Duration::from_secs(3600);

/// What a driver tells its supervisor.
#[derive(Debug)]
pub(crate) enum Signal {
    /// No byte has come for so long while commands wait; the last of them is given until the instant.
    Overdue(Duration, Option<Instant>),
    /// A byte has come after all; how long none had, and how many calls were given up meanwhile.
    Woke(Duration, usize),
    /// The server could not kill this abandoned connection now: it is to be asked again.
    Unfenced(Box<Identity>),
    /// New credentials were taken (`None`) or refused.
    Reauthenticated(Option<String>),
}

/// A connection at work.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    /// Which link's; `None` for a connection that one caller has to itself, which says nothing about what calls take.
    link: Option<usize>,
    stream: Stream,
    conn: Conn<Job>,
    /// Why this connection takes nothing new.
    retiring: Option<Arc<str>>,
    spare: Batch<Job>,
    timer: Pin<Box<Sleep>>,
    armed: Option<Instant>,
    signals: mpsc::UnboundedSender<Signal>,
    overdue_since: Option<Instant>,
    /// Calls given up since then, of unknown outcome.
    given_up: usize,
    /// Good replies of this turn, which the breaker can see at its end.
    successes: u64,
    /// Those since the budget was last told.
    passed_on: u64,
    /// Slow ones of this turn.
    slow: u32,
    slow_call: Option<Duration>,
    /// What a call is given that does not say otherwise.
    usual: Duration,
    last_took: Option<Duration>,
    told_breaker: Instant,
    needs_flush: bool,
}

/// How a driver ended: what still waits is in `conn`.
pub(crate) struct Finished {
    pub(crate) cause: Arc<str>,
    pub(crate) conn: Conn<Job>,
    /// Calls given up since it fell silent, of unknown outcome.
    pub(crate) given_up: usize,
    /// Ended by order, not by the network.
    pub(crate) ordered: bool,
}

struct End {
    cause: Arc<str>,
    ordered: bool,
}

impl End {
    fn network(cause: impl Into<Arc<str>>) -> Self {
        Self {
            cause: cause.into(),
            ordered: false,
        }
    }
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        lane: Arc<Lane>,
        link: Option<usize>,
        stream: Stream,
        watch: Watch,
        signals: mpsc::UnboundedSender<Signal>,
    ) -> Self {
        let now = clock::now();
        Self {
            conn: Conn::new(watch, shared.settings.reply_limits, now),
            lane,
            link,
            stream,
            retiring: None,
            spare: Batch::default(),
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            armed: None,
            signals,
            overdue_since: None,
            given_up: 0,
            successes: 0,
            passed_on: 0,
            slow: 0,
            slow_call: shared.settings.breaker.slow_call,
            usual: shared.settings.deadline,
            last_took: None,
            told_breaker: now,
            needs_flush: false,
            shared,
        }
    }

    /// Serves until the connection ends.
    pub(crate) async fn run(mut self) -> Finished {
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        if end.ordered {
            self.last_look();
        }
        self.tell_breaker(clock::now());
        Finished {
            cause: end.cause,
            conn: self.conn,
            given_up: self.given_up,
            ordered: end.ordered,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        match self.turn(cx) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    /// Works until there is nothing to do (and parks), or until a wave is handed out (and yields).
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let mut now = clock::now();
        loop {
            self.take_submissions(now)?;
            self.write(cx)?;
            if self.hand_out(now)? {
                // A peer that never stops talking must not keep deadlines from being kept.
                if self.conn.poll_timeout().is_some_and(|at| at <= now) {
                    self.lapse(now);
                }
                cx.waker().wake_by_ref();
                return Ok(());
            }
            if self.read(cx)? {
                now = clock::now();
                self.bytes_came(now);
                continue;
            }
            self.keep_time(cx, &mut now)?;
            if self.park(cx) {
                return Ok(());
            }
            now = clock::now();
        }
    }

    fn park(&mut self, cx: &mut Context<'_>) -> bool {
        match &self.retiring {
            Some(_) => self.lane.park_for_orders(cx.waker()),
            None => {
                let (awaiting, unsent) = (self.conn.awaiting(), self.conn.unsent());
                self.lane.park(cx.waker(), awaiting, unsent)
            }
        }
    }

    fn take_submissions(&mut self, now: Instant) -> Result<(), End> {
        if self.retiring.is_some() {
            return self.retire(now);
        }
        let orders = self
            .lane
            .take(&mut self.spare, self.conn.awaiting(), self.conn.unsent());
        // Its own commands come first. What was submitted belongs to the connection even if this is its end: so it is told that it was not sent.
        let obeyed = orders
            .into_iter()
            .try_for_each(|order| self.obey(order, now));
        self.conn.submit(&mut self.spare, now);
        obeyed
    }

    fn obey(&mut self, order: Order, now: Instant) -> Result<(), End> {
        match order {
            Order::Abandon(cause) => {
                return Err(End {
                    cause,
                    ordered: true,
                });
            }
            Order::Yield(cause) => {
                if self.overdue_since.is_some() && !self.last_look() {
                    let ordered = true;
                    return Err(End { cause, ordered });
                }
            }
            Order::Retire(cause) => self.retiring = Some(cause),
            Order::Fence(ghost) => {
                let command = ghost.kill();
                self.submit_own(Job::Fence(Box::new(ghost)), &command, now);
            }
            Order::Reauthenticate(command) => {
                self.submit_own(Job::Reauthenticate, &command, now);
            }
        }
        Ok(())
    }

    /// Ends once everything is answered; what is new stays in the lane for the successor.
    fn retire(&mut self, now: Instant) -> Result<(), End> {
        for order in self.lane.take_orders(self.conn.awaiting()) {
            self.obey(order, now)?;
        }
        match &self.retiring {
            Some(cause) if self.conn.awaiting() == 0 => Err(End {
                cause: Arc::clone(cause),
                ordered: true,
            }),
            _ => Ok(()),
        }
    }

    /// Before the end: hands out what has come already. True if anything had.
    fn last_look(&mut self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        let now = clock::now();
        let mut some = false;
        for _ in 0..LAST_READS {
            if !matches!(self.read(cx), Ok(true)) {
                break;
            }
            some = true;
            self.bytes_came(now);
            while let Ok(true) = self.hand_out(now) {}
        }
        some
    }

    fn submit_own(&mut self, job: Job, command: &[u8], now: Instant) {
        let mut batch = Batch::default();
        let terms = Terms {
            replies: 1,
            deadline: now + INTERNAL,
            submitted: now,
            seq: 0,
        };
        batch.push(job, terms, |bytes| {
            bytes.extend_from_slice(command);
            bytes.len()
        });
        self.conn.submit(&mut batch, now);
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        while !self.conn.transmit().is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, self.conn.transmit()) {
                Poll::Ready(Ok(0)) => return Err(End::network("the connection takes no more")),
                Poll::Ready(Ok(n)) => {
                    self.conn.transmitted(n);
                    self.needs_flush = self.stream.needs_flush();
                }
                Poll::Ready(Err(error)) => return Err(End::network(error.to_string())),
                Poll::Pending => return Ok(()),
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

    /// True if bytes came.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        match tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, self.conn.input()) {
            Poll::Ready(Ok(0)) => Err(End::network("the server closed the connection")),
            Poll::Ready(Ok(_)) => Ok(true),
            Poll::Ready(Err(error)) => Err(End::network(error.to_string())),
            Poll::Pending => Ok(false),
        }
    }

    fn bytes_came(&mut self, now: Instant) {
        self.conn.handle_input(now);
        if let Some(since) = self.overdue_since.take() {
            let quiet = now.saturating_duration_since(since);
            let given_up = std::mem::take(&mut self.given_up);
            let _ = self.signals.send(Signal::Woke(quiet, given_up));
        }
    }

    /// Hands out up to a wave of replies. True if there may be more.
    fn hand_out(&mut self, now: Instant) -> Result<bool, End> {
        let wave = (self.conn.awaiting() / 8).clamp(*WAVE.start(), *WAVE.end());
        for _ in 0..wave {
            match self.conn.poll_incoming() {
                Ok(Some(Incoming::Reply {
                    ticket,
                    reply,
                    taken,
                    given,
                })) => {
                    let took = now.saturating_duration_since(taken);
                    self.judge(&ticket, &reply, took, given);
                    self.answer(ticket, reply, now);
                }
                Ok(Some(Incoming::TooLarge { ticket, error })) => {
                    if let Some(ticket) = ticket.into_ticket() {
                        ticket.end(Ended::TooLarge(error));
                    }
                }
                Ok(Some(Incoming::Push(_))) => {}
                Ok(None) => {
                    self.learn(now);
                    if now.saturating_duration_since(self.told_breaker) > TELL_BREAKER_EVERY {
                        self.tell_breaker(now);
                    }
                    return Ok(false);
                }
                Err(error) => return Err(End::network(error.to_string())),
            }
        }
        self.learn(now);
        Ok(true)
    }

    /// What a wave of replies tells: how many were good, how many slow, and by the last one, how long calls take.
    fn learn(&mut self, now: Instant) {
        if let Some(link) = self.link
            && self.successes > 0
        {
            self.shared.guard.count_successes(link, self.successes);
            self.passed_on += std::mem::take(&mut self.successes);
        }
        if self.slow > 0 {
            let slow = std::mem::take(&mut self.slow);
            let transition = self.shared.guard.record_slow(slow, now);
            self.shared.breaker_changed(transition);
        }
        if let Some(took) = self.last_took.take() {
            self.shared.latency.record(took, now);
            self.shared.observe_rtt(took);
        }
    }

    /// What an answer says of the server. A call with a longer deadline of its own is meant to take long and says nothing; nor does one on a
    /// connection that its caller has to itself.
    fn judge(&mut self, job: &Job, reply: &Reply, took: Duration, given: Duration) {
        if self.link.is_none() {
            return;
        }
        let patient = matches!(job, Job::Call(_) | Job::Fenced(_)) && given > self.usual;
        if !patient {
            self.last_took = Some(took);
        }
        if !patient && self.slow_call.is_some_and(|slow_call| took > slow_call) {
            self.slow += 1;
        } else if !is_refused(reply) {
            self.successes += 1;
        }
    }

    fn answer(&mut self, job: Job, reply: Reply, now: Instant) {
        match job {
            Job::Call(ticket) | Job::Fenced(ticket) => {
                ticket.end(Ended::Answered { reply, at: now });
            }
            Job::Turning(turning) => {
                // First what has waited for the end: the caller's next command comes after it.
                self.lane.answered(&turning.turns, &reply);
                turning.ticket.end(Ended::Answered { reply, at: now });
            }
            Job::Heartbeat => {}
            Job::Fence(ghost) => {
                let done = self.shared.fence_answered(self.link, &ghost, &reply);
                if !done {
                    let _ = self.signals.send(Signal::Unfenced(ghost));
                }
            }
            Job::Reauthenticate => {
                let refused = match reply {
                    Reply::One(Value::ServerError(error)) => Some(error.code().to_owned()),
                    _ => None,
                };
                let _ = self.signals.send(Signal::Reauthenticated(refused));
            }
        }
    }

    fn tell_breaker(&mut self, now: Instant) {
        self.told_breaker = now;
        // Ends the ramp after an outage, so that calls pass freely again.
        let transition = self.shared.guard.settle(now);
        self.shared.breaker_changed(transition);
        let successes = std::mem::take(&mut self.passed_on);
        if successes > 0 {
            self.shared.answered.fetch_add(successes, Ordering::Relaxed);
            self.shared.budget.deposit(successes);
        }
    }

    /// Handles what is due and sets the timer for what is not. One timer serves all deadlines of the connection: it is moved only when
    /// something is due sooner, and may fire early.
    fn keep_time(&mut self, cx: &mut Context<'_>, now: &mut Instant) -> Result<(), End> {
        loop {
            // A lane that nobody takes from has to be watched, too.
            let waiting = match self.retiring {
                Some(_) => self.lane.expire(*now),
                None => None,
            };
            let next = [self.conn.poll_timeout(), waiting];
            let Some(at) = next.into_iter().flatten().min() else {
                return Ok(());
            };
            if at <= *now {
                self.lapse(*now);
                self.write(cx)?;
                continue;
            }
            if self.armed.is_none_or(|armed| at < armed) {
                self.timer.as_mut().reset(at.into());
                self.armed = Some(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.armed = None;
            *now = clock::now();
        }
    }

    /// Handles what time has brought.
    fn lapse(&mut self, now: Instant) {
        let mut timed_out = None;
        while let Some(lapse) = self.conn.poll_lapse(now) {
            match lapse {
                Lapse::Expired {
                    ticket,
                    certainty,
                    waited,
                } => {
                    if self.overdue_since.is_some() && certainty == Certainty::Unknown {
                        self.given_up += 1;
                    }
                    if let Job::Turning(turning) = &ticket {
                        self.lost_track(&turning.turns, certainty);
                    }
                    if let Some(ticket) = ticket.into_ticket() {
                        ticket.end(Ended::Expired(certainty));
                    }
                    // It would have taken at least that.
                    if self.link.is_some() && waited <= self.usual {
                        timed_out = timed_out.max(Some(waited));
                    }
                }
                Lapse::Overdue { quiet } => {
                    self.overdue_since = now.checked_sub(quiet).or(Some(now));
                    let calls = |job: &Job| matches!(job, Job::Call(_) | Job::Fenced(_));
                    let last = self.conn.latest_deadline(calls);
                    let _ = self.signals.send(Signal::Overdue(quiet, last));
                }
                Lapse::Heartbeat => {
                    self.submit_own(Job::Heartbeat, b"*1\r\n$4\r\nPING\r\n", now);
                }
            }
        }
        if let Some(waited) = timed_out {
            self.shared.latency.record(waited, now);
        }
    }

    /// A step of a transaction got no answer in time. If it was sent, nobody knows any more whether a transaction is open here.
    fn lost_track(&self, turns: &Turns, certainty: Certainty) {
        if certainty == Certainty::NotSent {
            self.lane.never_sent(turns);
        } else {
            let cause = "a command of a transaction was not answered in time";
            self.lane.order(Order::Abandon(cause.into()));
        }
    }
}

/// True of what says nothing good of the server: a refusal that is not the command's own fault, alone or in a pipeline.
fn is_refused(reply: &Reply) -> bool {
    let refuses = |value: &Value| match value {
        Value::ServerError(error) => {
            refusal(error.code(), error.details().unwrap_or_default()) != Refusal::Lasting
        }
        _ => false,
    };
    match reply {
        Reply::One(value) => refuses(value),
        Reply::Many(values) => values.iter().any(refuses),
    }
}

/// How often a connection that is to end is read once more, at most.
const LAST_READS: usize = 64;
/// How often the count of successes is passed on.
const TELL_BREAKER_EVERY: Duration = Duration::from_millis(100);
