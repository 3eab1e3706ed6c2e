//! Replies: to whom they go, and what they say of the server.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Value;
use steadfast_core::certainty::{Refusal, refusal};
use steadfast_core::conn::{Conn, Incoming, Reply};

use super::{Authentication, Driver, End, Signal, patience};
use crate::clock;
use crate::error::Certainty;
use crate::wire::queue::{Job, Left};
use crate::wire::slot::{Blame, Ended};

/// Replies handed out before callers get their turn: an eighth of those that wait, within these.
/// Small waves keep callers and server at work at the same time; larger ones, where many wait, make
/// fewer and fuller writes of it.
const WAVE: std::ops::RangeInclusive<usize> = 16..=64;
/// Where all others' turns took longer than this, the driver goes on with waves for an eighth of
/// what they took. It is one task of many: thousands of others (callers that are refused and ask
/// again, say) would leave it a wave in each of their rounds, a few thousand replies a second.
const LONG_LAP: Duration = Duration::from_millis(1);
/// It goes on for so long at most, and then to the end of its wave.
const LONGEST_TURN: Duration = Duration::from_millis(1);
/// The time between two reports of the count of successes.
const TELL_BREAKER_EVERY: Duration = Duration::from_millis(100);
/// Round trips are short below this.
const FAST: Duration = Duration::from_millis(5);

impl Driver {
    /// Hands out a wave of replies, or several where turns are rare. True if there may be more.
    pub(super) fn hand_out(&mut self, conn: &mut Conn<Job>, now: Instant) -> Result<bool, End> {
        loop {
            let more = self.hand_out_wave(conn, now)?;
            match self.turn_until {
                None => return Ok(more),
                Some(until) if clock::now() >= until => return Ok(true),
                Some(_) if !more => return Ok(false),
                Some(_) => {}
            }
        }
    }

    /// Hands out up to a wave of replies. True if there may be more.
    fn hand_out_wave(&mut self, conn: &mut Conn<Job>, now: Instant) -> Result<bool, End> {
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
                    self.filled_by = self.filled_by.saturating_sub(1);
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

    /// Learns from a wave of replies: how many were good, how many slow, and by the last one, how
    /// long calls take.
    fn learn(&mut self, conn: &mut Conn<Job>, now: Instant) {
        if let Some(link) = self.link
            && self.successes > 0
        {
            self.shared.breaker.count_successes(link, self.successes);
            self.passed_on += std::mem::take(&mut self.successes);
        }
        if self.slow > 0 {
            let slow = std::mem::take(&mut self.slow);
            let transition = self.shared.breaker.record_slow(slow, now);
            self.shared.breaker_changed(transition);
        }
        if let Some(took) = self.last_took.take() {
            self.shared.latency.record(took, now);
            let fast = self.shared.observe_rtt(took) < FAST;
            self.be_patient(conn, fast);
        }
    }

    /// Sets the patience with silences, by whether round trips are short.
    pub(super) fn be_patient(&mut self, conn: &mut Conn<Job>, fast: bool) {
        if fast != self.fast && self.link.is_some() {
            self.fast = fast;
            let (doubtful, overdue) = patience(self.shared.settings.response_idle_timeout, fast);
            conn.set_patience(doubtful, overdue);
        }
    }

    /// Judges the server by a reply. A call with a longer deadline of its own is meant to take long
    /// and says nothing; nor does one on a connection that its caller has to itself; nor does the
    /// time of one that was under way while this process stood still (not `fair`).
    fn judge(&mut self, job: &Job, reply: &Reply, took: Duration, given: Duration, fair: bool) {
        if self.link.is_none() {
            return;
        }
        if let Reply::One(Value::ServerError(error)) = reply {
            self.listen(error);
        }
        let patient = !fair || job.is_call() && given > self.usual;
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

    /// Gives a reply to whom it is for. What the driver itself has asked must be answered as such a
    /// question is: else replies have got out of step, and none that follows may be believed.
    fn answer(&mut self, job: Job, reply: Reply, at: Instant, fair: bool) -> Result<(), End> {
        match job {
            Job::Call(ticket) | Job::Fenced(ticket) => {
                ticket.end(Ended::Answered { reply, at, fair });
            }
            Job::Asking(asking) if is_asked(&reply) => {
                asking.ticket.end(Ended::Answered { reply, at, fair });
            }
            Job::Asking(asking) => {
                let end = out_of_step("ASKING");
                asking.ticket.end(Ended::Lost {
                    certainty: Certainty::Unknown,
                    cause: Arc::clone(&end.cause),
                    rejoin: None,
                    blame: Blame::None,
                });
                return Err(end);
            }
            Job::TxTransition(transition) => {
                // First what has waited for the end: the caller's next command comes after it.
                self.queue.answered(&transition.steps, &reply);
                transition.ticket.end(Ended::Answered { reply, at, fair });
            }
            Job::Heartbeat => match &reply {
                Reply::One(Value::SimpleString(pong)) if pong == "PONG" => {}
                Reply::One(Value::ServerError(_)) => {}
                _ => return Err(out_of_step("PING")),
            },
            Job::Fence(identity) => {
                let answered = self
                    .shared
                    .fences
                    .fence_answered(self.link, &identity, &reply);
                let done = answered.ok_or_else(|| out_of_step("CLIENT KILL"))?;
                if !done {
                    let _ = self.signals.send(Signal::Unfenced(identity));
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
                // Others may have come since the AUTH was answered: they are due still.
                if matches!(self.authentication, Authentication::Asked) {
                    self.authentication = Authentication::Settled;
                }
                self.left = Left::Nothing;
            }
        }
        Ok(())
    }

    pub(super) fn tell_breaker(&mut self, now: Instant) {
        self.told_breaker = now;
        // Ends the ramp after an outage, so that calls pass freely again.
        let transition = self.shared.breaker.settle(now);
        self.shared.breaker_changed(transition);
        let successes = std::mem::take(&mut self.passed_on);
        if successes > 0 {
            self.shared.answered.fetch_add(successes, Ordering::Relaxed);
            self.shared.budget.deposit(successes);
        }
    }
}

/// How long a turn may hand out replies after all others took so long for theirs. `None`: a wave.
pub(super) fn long_turn(lap: Duration) -> Option<Duration> {
    (lap > LONG_LAP).then(|| (lap / 8).min(LONGEST_TURN))
}

/// The server has answered a question of ours by what is no answer to it.
fn out_of_step(asked: &str) -> End {
    let cause = format!("{asked} was answered by what is no answer to it: replies are out of step");
    let mut end = End::network(cause);
    end.deaf = true;
    end
}

/// Returns whether the first of these replies is one to an ASKING.
fn is_asked(reply: &Reply) -> bool {
    let first = match reply {
        Reply::One(first) => Some(first),
        Reply::Many(replies) => replies.first(),
    };
    matches!(first, Some(Value::Okay | Value::ServerError(_)))
}

/// Returns whether a reply says nothing good of the server: a refusal that is not the command's own
/// fault, alone or in a pipeline.
fn is_refused(reply: &Reply) -> bool {
    let refuses = |value: &Value| match value {
        Value::ServerError(error) => {
            let refusal = refusal(error.code(), error.details().unwrap_or_default());
            !matches!(refusal, Refusal::Lasting | Refusal::Redirected)
        }
        _ => false,
    };
    match reply {
        Reply::One(value) => refuses(value),
        Reply::Many(values) => values.iter().any(refuses),
    }
}
