//! Owns one socket and its timers, and drives the connection's state machine.
//!
//! A hand-written poll loop, because this is where the time goes: as many commands as wait leave in one write, replies are decoded from one
//! buffer, and they are handed out in small waves, so that callers and server work at the same time instead of in turns.

use std::future::Future;
use std::io::{self, IoSlice};
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
use tokio_util::io::poll_read_buf;

use crate::clock;
use crate::error::Certainty;
use crate::link::alive::Alive;
use crate::link::connect;
use crate::link::shared::Shared;
use crate::wire::identity::Identity;
use crate::wire::queue::{Backlog, Gate, Job, Lane, Left, Order, Turns};
use crate::wire::slot::{Blame, Ended, Rejoin, Ticket};
use crate::wire::stream::Stream;

/// Replies handed out before callers get their turn: an eighth of those that wait, within these. Small waves keep callers and server at work
/// at the same time; larger ones, where many wait, make fewer and fuller writes of it.
const WAVE: std::ops::RangeInclusive<usize> = 16..=64;
/// Deadline of the driver's own commands: they are watched by `reply_overdue` instead.
const INTERNAL: Duration = Duration::from_secs(3600);

/// What a driver tells its supervisor.
#[derive(Debug)]
pub(crate) enum Signal {
    /// No sign of life for a while, while commands wait, which may be nothing.
    Doubtful,
    /// There was one, before the connection was overdue.
    Calm,
    /// No sign of life for so long while commands wait; the last of them is given until the instant.
    Overdue(Duration, Option<Instant>),
    /// The connection has stepped aside: its lane is free for the next.
    Aside,
    /// Bytes come, and no reply has been completed for so long.
    Stuck(Duration),
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
    /// The server's run id, as far as it is known.
    server: Option<Arc<str>>,
    /// What keeps a client's tasks from counting as gone. `None` on a connection of one caller.
    _alive: Option<Arc<Alive>>,
    /// Where to finish instead of on `lane`.
    aside: Option<(Arc<Lane>, Rejoin)>,
    /// Why this connection takes nothing new.
    retiring: Option<Arc<str>>,
    /// New credentials, which travel alone: there are servers that swallow the error of a refused AUTH while other replies are pending, and then
    /// every later reply would go to the wrong caller.
    authentication: Authentication,
    spare: Batch<Job>,
    /// Whether something was left in the lane until a request has travelled apart, and since when.
    left: Left,
    left_since: Instant,
    timer: Pin<Box<Sleep>>,
    armed: Option<Instant>,
    /// This process stood still, and may not have been told yet what came meanwhile: nothing is
    /// given up before the timer has fired once more.
    look_again: Option<Instant>,
    /// When that was noticed last: what was under way then, or had waited to be taken, tells
    /// nothing of the server.
    stalled_at: Option<Instant>,
    /// The socket took no more bytes when it was last asked.
    blocked: bool,
    /// When what nobody waits for any more was last taken out of what is not written.
    swept_at: Instant,
    /// A silence is doubtful, as was told.
    doubtful: bool,
    /// Round trips are short, so that a shorter silence tells as much.
    fast: bool,
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
    /// Replies handed out since callers last got their turn.
    handed_out: usize,
    /// A complaint of the server's after which it closes the connection.
    last_words: Option<String>,
    /// A request that travels apart is given so long before others follow it.
    apart_for: Duration,
}

/// Where the giving of new credentials stands.
#[derive(Default)]
enum Authentication {
    #[default]
    Settled,
    /// The AUTH waits until everything before it is answered.
    Due(Vec<u8>),
    /// It and its proof are sent.
    Asked,
}

/// How a driver ended: what still waits is in `conn`.
pub(crate) struct Finished {
    pub(crate) cause: Arc<str>,
    pub(crate) conn: Conn<Job>,
    /// Calls given up since it fell silent, of unknown outcome.
    pub(crate) given_up: usize,
    /// Ended by order, not by the network.
    pub(crate) ordered: bool,
    /// What was at the head, or half written, may be what ended it.
    pub(crate) blames: bool,
}

struct End {
    cause: Arc<str>,
    ordered: bool,
    blames: bool,
    /// The decoder understands no more: what else has come is not read.
    deaf: bool,
}

impl End {
    fn network(cause: impl Into<Arc<str>>) -> Self {
        Self {
            cause: cause.into(),
            ordered: false,
            blames: true,
            deaf: false,
        }
    }

    fn ordered(cause: Arc<str>, blames: bool) -> Self {
        Self {
            cause,
            ordered: true,
            blames,
            deaf: false,
        }
    }
}

/// How patient the watch over a shared connection is, by whether round trips are short (below 5 ms):
/// a silence becomes doubtful, then overdue.
pub(crate) fn patience(reply_overdue: Duration, fast: bool) -> (Duration, Duration) {
    match fast {
        true => (reply_overdue / 5, reply_overdue * 14 / 25),
        false => (reply_overdue / 2, reply_overdue),
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
        alive: Option<Arc<Alive>>,
    ) -> Self {
        let now = clock::now();
        let conn = Conn::new(watch, shared.settings.reply_limits, now);
        *lane.serving.lock() = Some(conn);
        Self {
            lane,
            _alive: alive,
            aside: None,
            link,
            stream,
            server: None,
            retiring: None,
            authentication: Authentication::Settled,
            spare: Batch::default(),
            left: Left::Nothing,
            left_since: now,
            look_again: None,
            stalled_at: None,
            blocked: false,
            swept_at: now,
            doubtful: false,
            fast: false,
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
            handed_out: 0,
            last_words: None,
            apart_for: shared.settings.reply_overdue,
            shared,
        }
    }

    /// Says whose connection it is: those that were made to another server are not killed on this one.
    pub(crate) fn of_server(mut self, run_id: Option<Arc<str>>) -> Self {
        self.server = run_id;
        self
    }

    /// Serves until the connection ends.
    pub(crate) async fn run(mut self) -> Finished {
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        let lane = Arc::clone(&self.lane);
        let conn = lane.serving.lock().take();
        let mut conn = conn.expect("only its driver takes a connection away");
        let mut cause = end.cause;
        if !end.deaf {
            self.last_look(&mut conn);
            if let Some(words) = self.last_words.take() {
                cause = format!("{cause}; the server's last words: {words}").into();
            }
        }
        self.tell_breaker(clock::now());
        Finished {
            cause,
            conn,
            given_up: self.given_up,
            ordered: end.ordered,
            blames: end.blames,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let lane = Arc::clone(&self.lane);
        let mut serving = lane.serving.lock();
        let conn = serving
            .as_mut()
            .expect("only its driver takes a connection away");
        let turn = self.turn(conn, cx);
        if let Some((aside, _)) = self.aside.take() {
            *aside.serving.lock() = serving.take();
            drop(serving);
            lane.release();
            self.lane = aside;
            let _ = self.signals.send(Signal::Aside);
            // Once more, to park there.
            cx.waker().wake_by_ref();
        }
        match turn {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    /// Works until there is nothing to do (and parks), or until a wave is handed out (and yields).
    fn turn(&mut self, conn: &mut Conn<Job>, cx: &mut Context<'_>) -> Result<(), End> {
        let mut now = clock::now();
        self.notice_stall(conn, now);
        loop {
            self.take_submissions(conn, now)?;
            if self.aside.is_some() {
                return Ok(());
            }
            self.write(conn, cx, now)?;
            if self.hand_out(conn, now)? {
                // A peer that never stops talking must not keep deadlines from being kept.
                if conn.poll_timeout().is_some_and(|at| at <= now)
                    && self.look_again.is_none_or(|at| at <= now)
                {
                    self.lapse(conn, now);
                }
                self.handed_out = 0;
                cx.waker().wake_by_ref();
                return Ok(());
            }
            if self.read(conn, cx)? {
                now = clock::now();
                self.notice_stall(conn, now);
                self.bytes_came(conn, now);
                continue;
            }
            // Some were answered: they ask again before this one parks, or the first of them would wake it to write one command alone.
            if std::mem::take(&mut self.handed_out) > 1 {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            self.keep_time(conn, cx, &mut now)?;
            if self.park(conn, cx) {
                return Ok(());
            }
            now = clock::now();
        }
    }

    /// Sees by its timer whether this process has stood still.
    fn notice_stall(&mut self, conn: &mut Conn<Job>, now: Instant) {
        if self.look_again.is_none()
            && let Some(lost) = self.armed.and_then(|at| clock::lost(at, now))
        {
            conn.handle_stall(lost);
            self.stalled_at = Some(now);
            self.look_again = Some(now + clock::LOOK_AGAIN);
            self.armed = None;
        }
    }

    fn park(&self, conn: &Conn<Job>, cx: &mut Context<'_>) -> bool {
        if self.left == Left::Some && conn.awaiting() == 0 {
            return false;
        }
        // Everything before is answered: it is time for what waits for that.
        if matches!(self.authentication, Authentication::Due(_)) && conn.awaiting() == 0 {
            return false;
        }
        let left = match self.holds_back() {
            true => Left::Some,
            false => self.left,
        };
        self.lane.park(cx.waker(), Backlog::of(conn), left)
    }

    /// True while nothing new is taken.
    fn holds_back(&self) -> bool {
        self.retiring.is_some() || !matches!(self.authentication, Authentication::Settled)
    }

    fn take_submissions(&mut self, conn: &mut Conn<Job>, now: Instant) -> Result<(), End> {
        if self.retiring.is_some() {
            return self.retire(conn, now);
        }
        if self.holds_back() {
            return self.authenticate(conn, now);
        }
        let patient = self.left == Left::Some && now >= self.left_since + self.apart_for;
        let (orders, left) = self.lane.take(&mut self.spare, Backlog::of(conn), patient);
        if left == Left::Some && self.left == Left::Nothing {
            self.left_since = now;
        }
        self.left = left;
        // Its own commands come first. What was submitted belongs to the connection even if this is its end: so it is told that it was not sent.
        let obeyed = orders
            .into_iter()
            .try_for_each(|order| self.obey(order, conn, now));
        self.withdraw_unwanted(now);
        conn.submit(&mut self.spare, now);
        if let Some((_, rejoin)) = &self.aside {
            let rejoin = rejoin.clone();
            self.leave_to_standby(conn, &rejoin, now);
        }
        obeyed
    }

    /// Takes out what has waited for a connection and nobody waits for any more. One that has only
    /// just come is not looked at: its caller is at work on the same memory.
    fn withdraw_unwanted(&mut self, now: Instant) {
        let gone = self.spare.take_out(|job, terms| {
            now.saturating_duration_since(terms.submitted) > JUST_COME && !job.is_wanted()
        });
        for job in gone {
            if let Job::Turning(turning) = job {
                self.lane.never_sent(&turning.turns);
            }
        }
    }

    fn obey(&mut self, order: Order, conn: &mut Conn<Job>, now: Instant) -> Result<(), End> {
        match order {
            Order::Abandon(cause) => return Err(End::ordered(cause, false)),
            Order::Depose(cause) => {
                let mut end = End::ordered(cause, false);
                end.deaf = true;
                return Err(end);
            }
            Order::Yield(cause) => {
                if self.overdue_since.is_some() && !self.last_look(conn) {
                    return Err(End::ordered(cause, true));
                }
            }
            Order::Retire(cause) => self.retiring = Some(cause),
            Order::Fence(ghost) if ghost.is_elsewhere(self.server.as_deref()) => {
                self.shared.fences.gone(self.link, &ghost);
            }
            Order::Fence(ghost) => {
                let command = ghost.kill();
                let until = now + INTERNAL;
                self.submit_own(Job::Fence(Box::new(ghost)), &command, until, conn, now);
            }
            Order::Reauthenticate(command) => {
                self.authentication = Authentication::Due(command);
            }
            Order::EndReads => {
                let usual = self.usual;
                conn.give_up(now, |waiting| waiting.read_only && waiting.given <= usual);
                while let Some((job, certainty, _)) = conn.poll_given_up() {
                    if let Some(ticket) = job.into_ticket() {
                        ticket.end(Ended::Down(certainty));
                    }
                }
            }
            Order::Lives => self.lives(conn, now),
            Order::StepAside(lane, rejoin) => {
                self.retiring = Some("it has finished what it had".into());
                self.aside = Some((lane, rejoin));
            }
        }
        Ok(())
    }

    /// Gives new credentials, once nothing else is on the wire.
    fn authenticate(&mut self, conn: &mut Conn<Job>, now: Instant) -> Result<(), End> {
        for order in self.lane.take_orders(Backlog::of(conn)) {
            self.obey(order, conn, now)?;
        }
        if conn.awaiting() > 0 {
            return Ok(());
        }
        if let Authentication::Due(command) = &mut self.authentication {
            let command = std::mem::take(command);
            self.authentication = Authentication::Asked;
            let (nonce, echo) = connect::proof(&mut self.shared.rng());
            let until = now + INTERNAL;
            self.submit_own(Job::Reauthenticate, &command, until, conn, now);
            self.submit_own(Job::Proof(nonce), &echo, now + self.usual, conn, now);
        }
        Ok(())
    }

    /// What a standby connection can serve goes with it: reads, and what was not begun.
    fn leave_to_standby(&mut self, conn: &mut Conn<Job>, rejoin: &Rejoin, now: Instant) {
        conn.give_up(now, |waiting| waiting.read_only || !waiting.begun);
        let cause: Arc<str> = "a standby connection took over".into();
        while let Some((job, certainty, _)) = conn.poll_given_up() {
            if let Some(ticket) = job.into_ticket() {
                ticket.end(Ended::Lost {
                    certainty,
                    cause: Arc::clone(&cause),
                    rejoin: Some(rejoin.clone()),
                    blame: Blame::None,
                });
            }
        }
        self.link = None;
    }

    /// Ends once everything is answered; what is new stays in the lane for the successor.
    fn retire(&mut self, conn: &mut Conn<Job>, now: Instant) -> Result<(), End> {
        for order in self.lane.take_orders(Backlog::of(conn)) {
            self.obey(order, conn, now)?;
        }
        match &self.retiring {
            Some(cause) if conn.awaiting() == 0 || !self.is_awaited(conn) => {
                Err(End::ordered(Arc::clone(cause), false))
            }
            _ => Ok(()),
        }
    }

    /// False if it has stepped aside, and everything that it has was given up.
    fn is_awaited(&self, conn: &Conn<Job>) -> bool {
        let is_call = |job: &Job| !matches!(job, Job::Heartbeat | Job::Fence(_));
        self.link.is_some() || conn.latest_deadline(is_call).is_some()
    }

    /// Before the end: hands out what has come already. True if anything had.
    fn last_look(&mut self, conn: &mut Conn<Job>) -> bool {
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

    fn submit_own(
        &mut self,
        job: Job,
        command: &[u8],
        until: Instant,
        conn: &mut Conn<Job>,
        now: Instant,
    ) {
        let mut batch = Batch::default();
        let terms = Terms {
            replies: 1,
            deadline: until,
            submitted: now,
            seq: 0,
            read_only: false,
            apart: false,
        };
        batch.push(job, terms, |bytes| {
            bytes.extend_from_slice(command);
            bytes.len()
        });
        conn.submit(&mut batch, now);
    }

    fn write(
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
            if let Job::Turning(turning) = job {
                self.lane.never_sent(&turning.turns);
            }
        }
    }

    /// True if bytes came.
    fn read(&mut self, conn: &mut Conn<Job>, cx: &mut Context<'_>) -> Result<bool, End> {
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

    fn bytes_came(&mut self, conn: &mut Conn<Job>, now: Instant) {
        conn.handle_input(now);
        self.lives(conn, now);
    }

    fn lives(&mut self, conn: &mut Conn<Job>, now: Instant) {
        conn.handle_life(now);
        if let Some(since) = self.overdue_since.take() {
            let quiet = now.saturating_duration_since(since);
            let given_up = std::mem::take(&mut self.given_up);
            let _ = self.signals.send(Signal::Woke(quiet, given_up));
        } else if self.doubtful {
            let _ = self.signals.send(Signal::Calm);
        }
        self.doubtful = false;
    }

    /// Hands out up to a wave of replies. True if there may be more.
    fn hand_out(&mut self, conn: &mut Conn<Job>, now: Instant) -> Result<bool, End> {
        let wave = (conn.awaiting() / 8).clamp(*WAVE.start(), *WAVE.end());
        for _ in 0..wave {
            match conn.poll_incoming() {
                Ok(Some(Incoming::Reply {
                    ticket,
                    reply,
                    taken,
                    given,
                })) => {
                    let took = now.saturating_duration_since(taken);
                    let fair = self.stalled_at.is_none_or(|at| at < taken);
                    self.judge(&ticket, &reply, took, given, fair);
                    self.handed_out += 1;
                    self.answer(ticket, reply, now, fair)?;
                }
                Ok(Some(Incoming::TooLarge { ticket, error })) => {
                    if let Some(ticket) = ticket.into_ticket() {
                        ticket.end(Ended::TooLarge(error));
                    }
                }
                Ok(Some(Incoming::Push(_))) => {}
                Ok(None) => {
                    self.learn(conn, now);
                    if now.saturating_duration_since(self.told_breaker) > TELL_BREAKER_EVERY {
                        self.tell_breaker(now);
                    }
                    return Ok(false);
                }
                Err(error) => {
                    let mut end = End::network(error.to_string());
                    end.deaf = true;
                    return Err(end);
                }
            }
        }
        self.learn(conn, now);
        Ok(true)
    }

    /// What a wave of replies tells: how many were good, how many slow, and by the last one, how long calls take.
    fn learn(&mut self, conn: &mut Conn<Job>, now: Instant) {
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
            let fast = self.shared.observe_rtt(took) < FAST;
            if fast != self.fast && self.link.is_some() {
                self.fast = fast;
                let (doubtful, overdue) = patience(self.shared.settings.reply_overdue, fast);
                conn.set_patience(doubtful, overdue);
            }
        }
    }

    /// What an answer says of the server. A call with a longer deadline of its own is meant to take long and says nothing; nor does one on a
    /// connection that its caller has to itself; nor does the time of one that was under way while this process stood still (not `fair`).
    fn judge(&mut self, job: &Job, reply: &Reply, took: Duration, given: Duration, fair: bool) {
        if self.link.is_none() {
            return;
        }
        if let Reply::One(Value::ServerError(error)) = reply {
            self.listen(error);
        }
        let patient = !fair || matches!(job, Job::Call(_) | Job::Fenced(_)) && given > self.usual;
        if !patient {
            self.last_took = Some(took);
        }
        if !patient && self.slow_call.is_some_and(|slow_call| took > slow_call) {
            self.slow += 1;
        } else if !is_refused(reply) {
            self.successes += 1;
        }
    }

    /// Keeps what a server says before it closes a connection.
    fn listen(&mut self, error: &redis::ServerError) {
        let words = error.details().unwrap_or_default();
        if error.code() == "ERR" && words.starts_with("Protocol error") {
            self.last_words = Some(format!("ERR {words}"));
        }
    }

    /// Gives a reply to whom it is for. What the driver itself has asked must be answered as such a question is: else replies have got out of step,
    /// and none that follows may be believed.
    fn answer(&mut self, job: Job, reply: Reply, at: Instant, fair: bool) -> Result<(), End> {
        match job {
            Job::Call(ticket) | Job::Fenced(ticket) => {
                ticket.end(Ended::Answered { reply, at, fair });
            }
            Job::Turning(turning) => {
                // First what has waited for the end: the caller's next command comes after it.
                self.lane.answered(&turning.turns, &reply);
                turning.ticket.end(Ended::Answered { reply, at, fair });
            }
            Job::Heartbeat => match &reply {
                Reply::One(Value::SimpleString(pong)) if pong == "PONG" => {}
                Reply::One(Value::ServerError(_)) => {}
                _ => return Err(out_of_step("PING")),
            },
            Job::Fence(ghost) => {
                let answered = self.shared.fences.fence_answered(self.link, &ghost, &reply);
                let done = answered.ok_or_else(|| out_of_step("CLIENT KILL"))?;
                if !done {
                    let _ = self.signals.send(Signal::Unfenced(ghost));
                }
            }
            Job::Reauthenticate => {
                let refused = match reply {
                    Reply::One(Value::Okay) => None,
                    Reply::One(Value::ServerError(error)) => Some(error.code().to_owned()),
                    _ => return Err(out_of_step("AUTH")),
                };
                let _ = self.signals.send(Signal::Reauthenticated(refused));
            }
            Job::Proof(nonce) => {
                match &reply {
                    Reply::One(Value::BulkString(echo)) if *echo == nonce.as_bytes() => {}
                    // An ACL without ECHO.
                    Reply::One(Value::ServerError(_)) => {}
                    _ => return Err(out_of_step("ECHO")),
                }
                self.authentication = Authentication::Settled;
                self.left = Left::Nothing;
            }
        }
        Ok(())
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
    fn keep_time(
        &mut self,
        conn: &mut Conn<Job>,
        cx: &mut Context<'_>,
        now: &mut Instant,
    ) -> Result<(), End> {
        loop {
            // A lane that nobody takes from has to be watched, too.
            let waiting = match (self.holds_back(), self.left) {
                (false, Left::Nothing) => None,
                (true, _) => self.lane.expire(*now),
                (false, Left::Some) => {
                    let others = (self.left_since + self.apart_for).max(*now + clock::LOOK_AGAIN);
                    Some(self.lane.expire(*now).map_or(others, |at| at.min(others)))
                }
            };
            let next = [conn.poll_timeout(), waiting];
            let Some(mut at) = next.into_iter().flatten().min() else {
                return Ok(());
            };
            if let Some(again) = self.look_again {
                at = again;
            } else if at <= *now {
                self.lapse(conn, *now);
                self.write(conn, cx, *now)?;
                continue;
            }
            if self.armed.is_none_or(|armed| at < armed) {
                self.timer.as_mut().reset(at.into());
                self.armed = Some(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            *now = clock::now();
            // It may have stood still since this turn began.
            if self.look_again.take().is_none() {
                self.notice_stall(conn, *now);
            }
            self.armed = None;
        }
    }

    /// Handles what time has brought.
    fn lapse(&mut self, conn: &mut Conn<Job>, now: Instant) {
        let mut timed_out = None;
        while let Some(lapse) = conn.poll_lapse(now) {
            match lapse {
                Lapse::Expired {
                    ticket,
                    certainty,
                    waited,
                } => {
                    if self.overdue_since.is_some() && certainty == Certainty::Unknown {
                        self.given_up += 1;
                    }
                    match &ticket {
                        Job::Turning(turning) => self.lost_track(&turning.turns, certainty),
                        Job::Proof(_) => {
                            let cause = "new credentials were not answered in time";
                            self.lane.order(Order::Abandon(cause.into()));
                        }
                        _ => {}
                    }
                    let taken = now.checked_sub(waited);
                    let fair = self.stalled_at.is_none_or(|at| Some(at) < taken);
                    if let Some(ticket) = ticket.into_ticket() {
                        ticket.end(Ended::Expired { certainty, fair });
                    }
                    // It would have taken at least that.
                    if self.link.is_some() && waited <= self.usual && fair {
                        timed_out = timed_out.max(Some(waited));
                    }
                }
                Lapse::Doubtful { .. } => {
                    self.doubtful = true;
                    let _ = self.signals.send(Signal::Doubtful);
                }
                Lapse::Overdue { quiet } => {
                    self.overdue_since = now.checked_sub(quiet).or(Some(now));
                    let calls = |job: &Job| matches!(job, Job::Call(_) | Job::Fenced(_));
                    let last = conn.latest_deadline(calls);
                    let _ = self.signals.send(Signal::Overdue(quiet, last));
                }
                Lapse::Stuck { unserved } => {
                    let _ = self.signals.send(Signal::Stuck(unserved));
                }
                Lapse::Heartbeat => {
                    let ping = b"*1\r\n$4\r\nPING\r\n";
                    self.submit_own(Job::Heartbeat, ping, now + INTERNAL, conn, now);
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

/// A connection whose task is ended from without, with its runtime say: each request is told what is
/// known of it.
impl Drop for Driver {
    fn drop(&mut self) {
        let Some(mut conn) = self.lane.serving.lock().take() else {
            return;
        };
        let cause: Arc<str> =
            "the task that served the connection ended, as with its runtime".into();
        if self.link.is_none() {
            self.lane.set_gate(Gate::Ended(Arc::clone(&cause)));
        }
        self.lane.release();
        let ended: Vec<(Option<Ticket>, Certainty)> = conn
            .close()
            .map(|unanswered| (unanswered.ticket.into_ticket(), unanswered.certainty))
            .collect();
        for (ticket, certainty) in ended {
            if let Some(ticket) = ticket {
                ticket.end(Ended::Lost {
                    certainty,
                    cause: Arc::clone(&cause),
                    rejoin: None,
                    blame: Blame::None,
                });
            }
        }
    }
}

/// The server has answered a question of ours by what is no answer to it.
fn out_of_step(asked: &str) -> End {
    let cause = format!("{asked} was answered by what is no answer to it: replies are out of step");
    let mut end = End::network(cause);
    end.deaf = true;
    end
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

/// How many pieces of what is to be written leave at most in one system call.
const MOST_PIECES: usize = 64;
/// How often a connection that is to end is read once more, at most.
const LAST_READS: usize = 64;
/// How often the count of successes is passed on.
const TELL_BREAKER_EVERY: Duration = Duration::from_millis(100);
/// Round trips are short below this.
const FAST: Duration = Duration::from_millis(5);
/// A request is not asked whether anybody waits for it before it is so old.
const JUST_COME: Duration = Duration::from_millis(1);
/// How often that is asked of what the socket does not take.
const SWEEP_EVERY: Duration = Duration::from_millis(10);
