//! Owns one socket and its timers, and drives the connection's state machine.
//!
//! A hand-written poll loop, because this is where the time goes: as many commands as wait leave in
//! one write, replies are decoded from one buffer, and they are handed out in small waves, so that
//! callers and server work at the same time instead of in turns.

mod commands;
mod io;
mod replies;
mod time;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use steadfast_core::conn::{Batch, Conn, Watch};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::clock;
use crate::error::Certainty;
use crate::link::alive::Alive;
use crate::link::shared::Shared;
use crate::wire::identity::Identity;
use crate::wire::queue::{Backlog, Gate, Job, Left, SubmitQueue};
use crate::wire::slot::{Blame, Ended, Rejoin, Ticket};
use crate::wire::stream::Stream;

/// A signal of a driver to its supervisor.
#[derive(Debug)]
pub(crate) enum Signal {
    /// No sign of life for a while, while requests wait, which may be nothing.
    Doubtful,
    /// There was one, before the connection was unresponsive.
    Calm,
    /// No sign of life for so long while commands wait; the last of them is given until the
    /// instant. Or a long one may still be on its way, though all of it was written.
    Unresponsive {
        quiet: Duration,
        last: Option<Instant>,
        on_its_way: bool,
    },
    /// The connection has stepped aside: its queue is free for the next.
    Aside,
    /// Bytes come, and no reply has been completed for so long.
    Stuck(Duration),
    /// The end of a silence: how long no byte had come, and how many calls were given up meanwhile.
    Recovered(Duration, usize),
    /// The server could not kill this abandoned connection now: it is to be asked again.
    Unfenced(Box<Identity>),
    /// New credentials were taken (`None`) or refused.
    Reauthenticated(Option<String>),
}

/// A connection at work.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    queue: Arc<SubmitQueue>,
    /// The index of the link; `None` for a dedicated connection, which says nothing about what
    /// calls take.
    link: Option<usize>,
    stream: Stream,
    /// The server's run id, as far as it is known.
    server: Option<Arc<str>>,
    /// The sign of life of the client's tasks. `None` on a dedicated connection.
    _alive: Option<Arc<Alive>>,
    /// The queue on which to finish instead of on its own.
    aside: Option<(Arc<SubmitQueue>, Rejoin)>,
    /// The reason why this connection takes nothing new.
    retiring: Option<Arc<str>>,
    /// New credentials, which travel alone: there are servers that swallow the error of a refused
    /// AUTH while other replies are pending, and then every later reply would go to the wrong
    /// caller.
    authentication: Authentication,
    spare: Batch<Job>,
    /// Whether something was left in the queue until a request has travelled apart, and since when.
    left: Left,
    left_since: Instant,
    timer: Pin<Box<Sleep>>,
    armed: Option<Instant>,
    /// Set when this process stood still, and may not have been told yet what came meanwhile:
    /// nothing is given up before the timer has fired once more.
    look_again: Option<Instant>,
    /// The instant of the last stall: what was under way then, or had waited to be taken, tells
    /// nothing of the server.
    stalled_at: Option<Instant>,
    /// The socket took no more bytes when it was last asked.
    blocked: bool,
    /// So many requests are to be answered, at most, until one is by which the socket was full: it
    /// lies in buffers on the way, and nobody can see how far it has come.
    filled_by: usize,
    /// The instant of the last sweep of requests that nobody waits for.
    swept_at: Instant,
    /// Whether a doubtful silence was told.
    doubtful: bool,
    /// Round trips are short, so that a shorter silence tells as much.
    fast: bool,
    signals: mpsc::UnboundedSender<Signal>,
    overdue_since: Option<Instant>,
    /// Calls given up since then, of unknown outcome.
    given_up: usize,
    /// Good replies of this turn, which the breaker can see at its end.
    successes: u64,
    /// The successes since the budget was last told.
    passed_on: u64,
    /// Slow ones of this turn.
    slow: u32,
    slow_call: Option<Duration>,
    /// The deadline of a call that does not say otherwise.
    usual: Duration,
    last_took: Option<Duration>,
    told_breaker: Instant,
    needs_flush: bool,
    /// Replies handed out since callers last got their turn.
    handed_out: usize,
    /// The instant of giving all others a turn.
    yielded_at: Option<Instant>,
    /// Where their turns took long, the instant until which this one hands out replies.
    turn_until: Option<Instant>,
    /// Whether callers have other connections too, as in a cluster: then they are woken by the
    /// replies of one and write on another, and each would be written for alone.
    gathers: bool,
    /// Whether it has waited to be woken since its last turn.
    parked: bool,
    /// A complaint of the server's after which it closes the connection.
    last_words: Option<String>,
    /// A request that travels apart is given so long before others follow it.
    apart_for: Duration,
}

/// The state of giving new credentials.
#[derive(Default)]
enum Authentication {
    #[default]
    Settled,
    /// The AUTH waits until everything before it is answered.
    Due(Vec<u8>),
    /// The AUTH and its proof are sent.
    Asked,
}

/// The end of a driver: the requests that still wait are in `conn`.
pub(crate) struct Finished {
    pub(crate) cause: Arc<str>,
    pub(crate) conn: Conn<Job>,
    /// Calls given up since it fell silent, of unknown outcome.
    pub(crate) given_up: usize,
    /// Ended by command, not by the network.
    pub(crate) ordered: bool,
    /// Whether the request at the head, or half written, may be what ended it.
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

/// Returns the patience with a shared connection, by whether round trips are short (below 5 ms):
/// a silence becomes doubtful, then unresponsive.
pub(crate) fn patience(response_idle_timeout: Duration, fast: bool) -> (Duration, Duration) {
    match fast {
        true => (response_idle_timeout / 5, response_idle_timeout * 14 / 25),
        false => (response_idle_timeout / 2, response_idle_timeout),
    }
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        queue: Arc<SubmitQueue>,
        link: Option<usize>,
        stream: Stream,
        watch: Watch,
        signals: mpsc::UnboundedSender<Signal>,
        alive: Option<Arc<Alive>>,
    ) -> Self {
        let now = clock::now();
        let conn = Conn::new(watch, shared.settings.reply_limits, now);
        *queue.serving.lock() = Some(conn);
        Self {
            queue,
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
            filled_by: 0,
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
            yielded_at: None,
            turn_until: None,
            gathers: link.is_some() && shared.settings.member.is_some(),
            parked: false,
            last_words: None,
            apart_for: shared.settings.response_idle_timeout,
            shared,
        }
    }

    /// Says whose connection it is: those that were made to another server are not killed on this
    /// one.
    pub(crate) fn of_server(mut self, run_id: Option<Arc<str>>) -> Self {
        self.server = run_id;
        self
    }

    /// Serves until the connection ends.
    pub(crate) async fn run(mut self) -> Finished {
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        let queue = Arc::clone(&self.queue);
        let conn = queue.serving.lock().take();
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
        let queue = Arc::clone(&self.queue);
        let mut serving = queue.serving.lock();
        let conn = serving
            .as_mut()
            .expect("only its driver takes a connection away");
        let turn = self.turn(conn, cx);
        if let Some((aside, _)) = self.aside.take() {
            *aside.serving.lock() = serving.take();
            drop(serving);
            queue.release();
            self.queue = aside;
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
        let lap = self
            .yielded_at
            .take()
            .map(|at| now.saturating_duration_since(at));
        self.turn_until = lap.and_then(replies::long_turn).map(|long| now + long);
        let mut gathers = std::mem::take(&mut self.parked) && self.gathers && conn.awaiting() > 0;
        loop {
            if !gathers {
                self.take_submissions(conn, now)?;
                if self.aside.is_some() {
                    return Ok(());
                }
                self.write(conn, cx, now)?;
            }
            if self.hand_out(conn, now)? {
                self.handed_out = 0;
                return self.give_way(conn, cx, now);
            }
            if self.read(conn, cx)? {
                now = clock::now();
                self.notice_stall(conn, now);
                self.bytes_came(conn, now);
                continue;
            }
            // Some were answered: they ask again before this one parks, or the first of them would
            // wake it to write one command alone.
            let answered = std::mem::take(&mut self.handed_out);
            if answered > 1 || gathers && conn.awaiting() > 0 {
                return self.give_way(conn, cx, now);
            }
            if std::mem::take(&mut gathers) {
                continue;
            }
            self.keep_time(conn, cx, &mut now)?;
            if self.park(conn, cx) {
                self.parked = true;
                return Ok(());
            }
            now = clock::now();
        }
    }

    /// Gives all others a turn before the next. A peer that never stops talking must not keep
    /// deadlines from being kept.
    fn give_way(
        &mut self,
        conn: &mut Conn<Job>,
        cx: &mut Context<'_>,
        mut now: Instant,
    ) -> Result<(), End> {
        let due = [conn.poll_timeout(), self.armed]
            .into_iter()
            .flatten()
            .min();
        if due.is_some_and(|at| at <= now) {
            self.keep_time(conn, cx, &mut now)?;
        }
        self.yielded_at = Some(clock::now());
        cx.waker().wake_by_ref();
        Ok(())
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
        self.queue.park(cx.waker(), Backlog::of(conn), left)
    }
}

/// A connection whose task is ended from without, with its runtime say: each request is told what
/// is known of it.
impl Drop for Driver {
    fn drop(&mut self) {
        let Some(mut conn) = self.queue.serving.lock().take() else {
            return;
        };
        let cause: Arc<str> =
            "the task that served the connection ended, as with its runtime".into();
        if self.link.is_none() {
            self.queue.set_gate(Gate::Ended(Arc::clone(&cause)));
        }
        self.queue.release();
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

#[cfg(test)]
mod tests;
