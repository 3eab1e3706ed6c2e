//! The meaning of an end: for the caller, for the breaker, and for another attempt.

use std::time::{Duration, Instant};

use redis::{ServerError, Value};
use steadfast_core::certainty::Refusal;
use steadfast_core::command::{self, Effect};
use steadfast_core::conn::Reply;
use steadfast_core::policy::breaker::Outcome;

use super::identification::why_reset;
use super::plan::Payload;
use super::{AttemptHistory, Call};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::link::fence::Fencing;
use crate::target::Role;
use crate::wire::queue::UNATTENDED;
use crate::wire::slot::{Blame, Ended};

impl Call<'_> {
    /// Turns the end of a request into the caller's result and the breaker's outcome.
    pub(super) fn judge(
        &self,
        ended: Ended,
        again: &mut AttemptHistory<'_>,
    ) -> (Option<Outcome>, Result<Reply, Error>) {
        match ended {
            Ended::Answered { reply, at, fair } => self.judge_answer(reply, (at, fair), again),
            Ended::TooLarge(limit) => {
                let kind = ErrorKind::ReplyTooLarge { limit };
                let error = Error::new(kind, Certainty::Unknown);
                (Some(Outcome::Success), Err(error))
            }
            Ended::Expired { certainty, fair } => {
                let outcome = if fair { self.judge_timeout() } else { None };
                (outcome, Err(self.timed_out(certainty)))
            }
            Ended::Unattended(certainty) => (None, Err(Error::new(UNATTENDED, certainty))),
            Ended::Down(certainty) => {
                let error = self.queue.refusal(clock::now());
                (None, Err(error.at_best(certainty == Certainty::Unknown)))
            }
            // The supervisor counts the loss, once.
            Ended::Lost {
                certainty,
                cause,
                rejoin,
                blame,
            } => {
                again.rejoin = rejoin;
                again.begun = blame != Blame::None;
                let before = &mut again.suspicion;
                let shared = blame == Blame::Shared;
                let twice = shared && std::mem::replace(&mut before.suspected, true);
                if blame == Blame::Own || twice {
                    before.blamed_again = std::mem::replace(&mut before.apart, true);
                }
                (None, Err(Error::new(ErrorKind::Lost { cause }, certainty)))
            }
            Ended::Turned => (None, Err(self.queue.refusal(clock::now()))),
        }
    }

    fn judge_answer(
        &self,
        reply: Reply,
        (at, fair): (Instant, bool),
        again: &mut AttemptHistory<'_>,
    ) -> (Option<Outcome>, Result<Reply, Error>) {
        let (reply, asking) = match self.plan.asking {
            true => self.without_asking(reply),
            false => (reply, None),
        };
        let refused = self.refusal_in(&reply);
        // Without leave to ask it would be sent to and fro, and the reason never be told.
        let refused = match (refused, asking) {
            (Some(error), Some(not_allowed)) if error.is_redirect() => Some(not_allowed),
            (refused, _) => refused,
        };
        if let Some(error) = refused {
            let outcome = self.judge_refusal(&error, again);
            return (Some(outcome), Err(error));
        }
        again.answered = fair.then_some(at);
        let took = at.saturating_duration_since(self.started);
        if let Some(discovery) = &self.shared.discovery
            && !matches!(self.plan.effect, Effect::Read | Effect::Control)
            // A message is kept by nobody, so it cannot be lost with the primary.
            && !matches!(self.plan.name, "PUBLISH" | "SPUBLISH")
        {
            discovery.acknowledge();
        }
        self.shared.metrics.answered(self.plan.name, took);
        let outcome = match &reply {
            Reply::One(_) => Outcome::Success,
            Reply::Many(replies) => self.judge_each(replies, again),
        };
        (Some(outcome), Ok(reply))
    }

    /// Returns the reply without that to the ASKING ahead of it, and the error by which that was
    /// refused, if it was.
    fn without_asking(&self, reply: Reply) -> (Reply, Option<Error>) {
        let Reply::Many(mut replies) = reply else {
            return (reply, None);
        };
        if replies.is_empty() {
            return (Reply::Many(replies), None);
        }
        let refused = match replies.remove(0) {
            Value::ServerError(error) => Some(Error::refused(error)),
            _ => None,
        };
        let reply = match self.payload {
            Payload::Command(_) => Reply::One(replies.pop().unwrap_or(Value::Nil)),
            Payload::Pipeline(_) | Payload::Portions(_) => Reply::Many(replies),
        };
        (reply, refused)
    }

    /// Judges a probe by its time; one with a longer deadline of its own may take it.
    pub(super) fn judge_probe(&self, took: Duration) -> Outcome {
        let settings = &self.shared.settings;
        if self.limit > settings.deadline {
            Outcome::Success
        } else {
            settings.breaker.judge(took)
        }
    }

    /// Judges a timeout. A call that was given less time than usual has run out of its own, and
    /// tells nothing of the server: those that have more are not to be refused for its sake.
    fn judge_timeout(&self) -> Option<Outcome> {
        (self.limit >= self.shared.settings.patience()).then_some(Outcome::Failure)
    }

    /// Returns the refusal in a reply, if it is one: of a single command any error; of a pipeline,
    /// as [`refusal_of_all`] says, however few its commands are.
    fn refusal_in(&self, reply: &Reply) -> Option<Error> {
        match (reply, self.payload) {
            (Reply::One(Value::ServerError(error)), Payload::Command(cmd)) => {
                let name = command::arguments(cmd).next().unwrap_or_default();
                Some(Error::server(error.clone(), self.plan.errors, name))
            }
            (_, Payload::Command(_)) => None,
            (Reply::Many(replies), several) => refusal_of_all(replies, several),
            (Reply::One(reply), several) => refusal_of_all(std::slice::from_ref(reply), several),
        }
    }

    /// Judges each reply of a pipeline: some may be answered, and others show that the server does
    /// not serve.
    fn judge_each(&self, replies: &[Value], again: &mut AttemptHistory<'_>) -> Outcome {
        let mut outcome = Outcome::Success;
        if matches!(self.payload, Payload::Command(_)) {
            return outcome;
        }
        for (_, error) in errors_of(replies, self.payload) {
            if self.judge_refusal(&error, again) == Outcome::Failure {
                outcome = Outcome::Failure;
            }
        }
        outcome
    }

    /// Judges the server by a refusal. Where the connection cannot serve any more, another is asked
    /// for. In the words of a script it says nothing, but may be reason to ask.
    fn judge_refusal(&self, error: &Error, again: &mut AttemptHistory<'_>) -> Outcome {
        let refusal = error.refusal().unwrap_or(Refusal::Lasting);
        if error.certainty() != Certainty::Rejected {
            again.doubtful |= why_reset(self.shared, refusal).is_some();
            return Outcome::Success;
        }
        let why = why_reset(self.shared, refusal);
        match (self.link, why) {
            (Some(link), Some(why)) => {
                link.reset(again.epoch, why);
                return Outcome::Failure;
            }
            (None, why) if why.is_some() || refusal == Refusal::Demoted => {
                again.unfit = Some(refusal);
            }
            _ => {}
        }
        match refusal {
            Refusal::Passing => Outcome::Failure,
            _ => Outcome::Success,
        }
    }

    /// Returns whether another attempt is safe and makes sense.
    pub(super) fn may_repeat(&self, error: &Error) -> bool {
        let passing = match error.kind() {
            ErrorKind::Lost { .. } => true,
            ErrorKind::Server(_) => match error.refusal() {
                Some(Refusal::WrongServer) => self.shared.settings.role == Role::Primary,
                // Where it goes on, whoever knows the other nodes decides.
                refusal => !matches!(refusal, Some(Refusal::Lasting | Refusal::Redirected)),
            },
            _ => false,
        };
        passing
            && match error.certainty() {
                Certainty::NotSent | Certainty::Rejected => true,
                Certainty::Unknown => self.bears_another(),
            }
    }

    /// Returns whether it may be sent again although it may have run.
    pub(super) fn bears_another(&self) -> bool {
        match self.plan.effect {
            Effect::Read => true,
            Effect::LastWins => {
                let fenced =
                    self.shared.fences.fencing() == Fencing::Works && self.queue.may_be_fenced();
                (fenced || self.shared.settings.repeat_without_fence)
                    && !(self.plan.several && self.payload.looks_before_it_writes())
            }
            _ => false,
        }
    }
}

/// Returns whether a transaction was aborted, so that nothing of it ran.
fn was_aborted(replies: &[Value]) -> bool {
    matches!(replies.last(), Some(Value::ServerError(error)) if error.code() == "EXECABORT")
}

/// Returns the redirect by which EXEC itself was answered: its slot moved after its commands were
/// queued, and nothing has run.
fn was_redirected(replies: &[Value], payload: Payload<'_>) -> Option<Error> {
    match replies.last() {
        Some(Value::ServerError(error)) if payload.is_transaction() => {
            let error = Error::refused(error.clone());
            (error.refusal() == Some(Refusal::Redirected)).then_some(error)
        }
        _ => None,
    }
}

/// Returns the refusal of a whole pipeline: only if every reply is a passing one; or, of a
/// transaction that was aborted, the passing one that aborted it. Other errors stay at their places
/// among the replies, as in redis-rs; redirects too, because each of them may lead elsewhere.
fn refusal_of_all(replies: &[Value], payload: Payload<'_>) -> Option<Error> {
    let passing = |error: &Error| {
        let refusal = error.refusal();
        error.certainty() == Certainty::Rejected && refusal != Some(Refusal::Lasting)
    };
    if was_aborted(replies) {
        return errors_of(replies, payload)
            .map(|(_, error)| error)
            .find(passing);
    }
    if let Some(redirect) = was_redirected(replies, payload) {
        return Some(redirect);
    }
    let passing = |error: &Error| passing(error) && error.refusal() != Some(Refusal::Redirected);
    let mut expected = 0;
    let mut first = None;
    for (at, error) in errors_of(replies, payload) {
        if at != expected || !passing(&error) {
            return None;
        }
        expected += 1;
        first.get_or_insert(error);
    }
    first.filter(|_| expected == replies.len())
}

/// Returns the errors among the replies to a pipeline, and their places. An answer while a
/// transaction is queued is the server's own word, also of scripts.
fn errors_of<'a>(
    replies: &'a [Value],
    payload: Payload<'a>,
) -> impl Iterator<Item = (usize, Error)> + 'a {
    let judged = move |at: usize, error: &ServerError| {
        let cmd = (!payload.is_transaction()).then(|| payload.command_at(at));
        let Some(cmd) = cmd.flatten() else {
            return Error::refused(error.clone());
        };
        Error::server(error.clone(), cmd.classify().errors, cmd.name())
    };
    replies
        .iter()
        .enumerate()
        .filter_map(move |(at, reply)| match reply {
            Value::ServerError(error) => Some((at, judged(at, error))),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(replies: &[&str], transaction: bool) -> Option<String> {
        let mut pipeline = redis::pipe();
        for _ in 0..2 {
            pipeline.cmd("INCR").arg("k");
        }
        if transaction {
            pipeline.atomic();
        }
        let replies: Vec<Value> = replies
            .iter()
            .map(|reply| {
                let mut decoder = steadfast_core::resp::Decoder::default();
                let decoded = decoder.decode(format!("{reply}\r\n").as_bytes());
                decoded.expect("good").value.expect("whole")
            })
            .collect();
        let error = refusal_of_all(&replies, Payload::Pipeline(&pipeline))?;
        match error.kind() {
            ErrorKind::Server(error) => Some(error.code().to_owned()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn c2_a_pipeline_is_rejected_only_if_every_reply_is_a_passing_refusal() {
        for (replies, code) in [
            (["-LOADING wait", "-BUSY wait"], Some("LOADING")),
            (["-LOADING wait", "-WRONGTYPE no"], None),
            (["-LOADING wait", ":1"], None),
            ([":1", "-LOADING wait"], None),
            ([":1", ":2"], None),
        ] {
            assert_eq!(refused(&replies, false).as_deref(), code, "{replies:?}");
        }
        let aborted = ["+OK", "-OOM no", "-READONLY no", "-EXECABORT discarded"];
        assert_eq!(refused(&aborted, true).as_deref(), Some("READONLY"));
        let by_its_own = ["+OK", "-OOM no", "+QUEUED", "-EXECABORT discarded"];
        assert_eq!(refused(&by_its_own, true), None);
    }
}
