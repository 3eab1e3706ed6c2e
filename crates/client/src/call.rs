//! The one place where policies are ordered.
//!
//! A call passes: the command table (may it run here, may it be repeated), the breaker, the refusal of doomed calls, the bounds of the lane,
//! the connection, and then, if it failed, the judgement whether another attempt is safe and within budget. Every step is under the one
//! deadline that the call began with. The first attempt allocates nothing; what follows a failure may take its time.

pub(crate) mod blocking;
pub(crate) mod dedicated;
pub(crate) mod plan;
mod repeats;

use std::time::{Duration, Instant};

use redis::{Pipeline, ServerError, Value};
use steadfast_core::certainty::{self, Refusal};
use steadfast_core::command::{self, Effect};
use steadfast_core::conn::Reply;
use steadfast_core::policy::Deadline;
use steadfast_core::policy::breaker::{Outcome, Permit};
use steadfast_core::redis_rs;
use tracing::field::Empty;
use tracing::{Instrument, Level};

pub(crate) use self::repeats::{After, Repeats};
use crate::breaker::ramp::Place as InLine;
use crate::breaker::{Held, Pass};
use crate::call::plan::{Payload, Plan};
use crate::clock;
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::link::Link;
use crate::link::crossing::{Lanes, Turn};
use crate::link::fence::Fencing;
use crate::link::shared::Shared;
use crate::options::CallOptions;
use crate::target::Role;
use crate::wire::queue::{Ask, Gate, Lane, Submitted, UNATTENDED};
use crate::wire::slot::{Blame, Ended, Rejoin};

/// One call from beginning to end.
pub(crate) async fn call(
    shared: &Shared,
    payload: Payload<'_>,
    plan: Plan,
    options: &CallOptions,
) -> Result<Reply, Error> {
    let started = clock::now();
    let limit = plan.limit(options, shared.settings.deadline)?;
    let link = &shared.links[plan.route.lane];
    let call = Call {
        shared,
        lane: &link.lane,
        link: Some(link),
        payload,
        plan,
        started,
        limit,
        deadline: Deadline::after(started, limit).instant(),
    };
    // One look at a level that is known, where nobody listens.
    if tracing::span_enabled!(Level::DEBUG) {
        return Box::pin(call.run_in_span(options)).await;
    }
    call.run(options).await
}

/// One attempt on a connection of one's own, which nothing but its deadline limits. Besides the result: the refusal after which the connection is
/// not fit for another call, if there was one.
pub(crate) async fn call_dedicated(
    shared: &Shared,
    lane: &Lane,
    payload: Payload<'_>,
    plan: Plan,
    started: Instant,
    limit: Duration,
) -> (Result<Reply, Error>, Option<Refusal>) {
    let turns = payload.turns();
    let call = Call {
        shared,
        lane,
        link: None,
        payload,
        plan,
        started,
        limit,
        deadline: Deadline::after(started, limit).instant(),
    };
    let ask = Ask {
        replies: call.plan.replies,
        started,
        deadline: call.deadline,
        now: clock::now(),
        seq: None,
        only_fenced: false,
        read_only: call.plan.effect == Effect::Read,
        apart: false,
    };
    if let Err(error) = refuse_without_proof(shared, call.plan.effect, ask.now) {
        return (Err(error), None);
    }
    let submitted = if turns.is_empty() {
        lane.submit(ask, payload)
    } else {
        lane.submit_turning(turns, ask, payload)
    };
    let submitted = match submitted {
        Ok(submitted) => submitted,
        Err(error) => return (Err(error), None),
    };
    let mut place = Place::default();
    let (_, result) = call.judge(submitted.pending.await, &mut place);
    (result, place.unfit)
}

/// Somebody has been told that the server which the shared connection serves from is no primary any more, or wants a password, and it may not be
/// true of that one. So the server is asked, and only its own answer replaces the connection that all callers share.
pub(crate) async fn ask_who_serves(shared: &Shared, link: &Link, epoch: u64, deadline: Instant) {
    let now = clock::now();
    let ask = Ask {
        replies: 2,
        started: now,
        deadline,
        now,
        seq: None,
        only_fenced: false,
        read_only: true,
        apart: false,
    };
    let asked = link.lane.submit(ask, |out: &mut Vec<u8>| {
        // An ACL may bar the one, and old servers do not know the other without arguments.
        out.extend_from_slice(b"*1\r\n$4\r\nROLE\r\n*1\r\n$5\r\nHELLO\r\n");
        out.len()
    });
    let Ok(Submitted { pending, .. }) = asked else {
        return;
    };
    if let Ended::Answered { reply, .. } = pending.await
        && let Some(why) = why_reset(shared, state_told_by(&reply))
    {
        link.reset(epoch, why);
    }
}

/// Why a connection on which that was answered has to be replaced, if it has to be.
pub(crate) fn why_reset(shared: &Shared, refusal: Refusal) -> Option<&'static str> {
    match refusal {
        // Where any role will do, it is the command that is wrong here.
        Refusal::WrongServer | Refusal::Demoted if shared.settings.role == Role::Primary => {
            Some("the server became a replica")
        }
        Refusal::Unauthenticated => Some("the connection lost its authentication"),
        _ => None,
    }
}

/// Where a call stands in the order of submission.
#[derive(Default)]
struct Place<'a> {
    /// Among those that wait for a command of several connections, or are one.
    turn: Option<Turn<'a>>,
    seq: Option<u64>,
    /// The connection in service when it was last submitted.
    epoch: u64,
    /// It may have run already: a connection that cannot kill those before it must not carry it.
    only_fenced: bool,
    /// The next connection waits for this call to come again.
    rejoin: Option<Rejoin>,
    /// Some of it was written when its connection ended.
    begun: bool,
    /// It was answered in words that say that this server is not to be served from any more, and that are not the server's own for certain.
    doubtful: bool,
    /// A connection ended while it was under way.
    suspected: bool,
    /// A connection ended at it, or two did while it was under way: it travels apart from the
    /// others.
    apart: bool,
    /// Another one did, though nothing else was in it: it is not repeated.
    blamed_again: bool,
    /// When it was answered last, if no time was lost meanwhile that was this process's own.
    answered: Option<Instant>,
    /// On a connection of one's own: the refusal after which it is not fit for another call.
    unfit: Option<Refusal>,
}

struct Call<'a> {
    shared: &'a Shared,
    lane: &'a Lane,
    /// `None` on a connection of one's own, where nothing is repeated and the breaker is not asked.
    link: Option<&'a Link>,
    payload: Payload<'a>,
    plan: Plan,
    started: Instant,
    limit: Duration,
    deadline: Instant,
}

impl Call<'_> {
    async fn run(&self, options: &CallOptions) -> Result<Reply, Error> {
        let mut place = Place::default();
        let mut began = self.started;
        if self.shared.links.len() > 1 && self.link.is_some() {
            match self.take_turn().await {
                Ok(None) => {}
                Ok(turn) => {
                    place.turn = turn;
                    began = clock::now();
                }
                Err(error) => {
                    crate::metrics::count_error(&error);
                    return Err(error);
                }
            }
        }
        self.run_from(began, place, options).await
    }

    async fn run_from(
        &self,
        began: Instant,
        mut place: Place<'_>,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let result = match self.attempt(began, &mut place).await {
            Err(error) if !place.blamed_again && self.may_repeat(&error) => {
                Box::pin(self.repeat(error, options, place)).await
            }
            result => result,
        };
        if let Err(error) = &result {
            crate::metrics::count_error(error);
        }
        result
    }

    /// With several connections: its turn, if it has to wait for one. See [`crate::link::crossing`].
    async fn take_turn(&self) -> Result<Option<Turn<'_>>, Error> {
        let (crossings, route) = (&self.shared.crossings, self.plan.route);
        if crossings.len() >= self.shared.settings.in_flight {
            return Err(Error::not_sent(ErrorKind::Overloaded {
                bound: Bound::InFlight,
                retry_after: self.shared.settings.blip_wait,
            }));
        }
        let Some(turn) = crossings.join(route.lanes, route.crosses, self.deadline) else {
            return Ok(None);
        };
        Box::pin(async {
            clock::timeout_at(self.deadline, turn.reached())
                .await
                .ok_or_else(|| self.timed_out(Certainty::NotSent))?;
            let others = self.shared.links.iter().skip(1);
            let behind = others
                .filter(|link| route.crosses && route.lanes.meets(Lanes::of(link.index)))
                .map(|link| self.pass_behind(link));
            futures_util::future::try_join_all(behind).await
        })
        .await?;
        Ok(Some(turn))
    }

    /// Waits until what was submitted to another connection before has been answered.
    async fn pass_behind(&self, link: &Link) -> Result<(), Error> {
        if link.lane.in_flight() == 0 && matches!(link.lane.gate(), Gate::Open) {
            return Ok(());
        }
        let ping = redis::cmd("PING");
        let payload = Payload::Command(&ping);
        let ping = Call {
            lane: &link.lane,
            link: Some(link),
            payload,
            plan: payload.plan(1, true)?,
            ..*self
        };
        let options = CallOptions::new();
        let answer = ping.run_from(clock::now(), Place::default(), &options);
        match answer.await {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::not_sent(error.kind().clone())),
        }
    }

    /// In a span of its own, with OpenTelemetry's names for a call to a database.
    async fn run_in_span(&self, options: &CallOptions) -> Result<Reply, Error> {
        let span = tracing::debug_span!(
            "redis",
            otel.name = self.plan.name,
            otel.kind = "client",
            db.system.name = "redis",
            db.operation.name = self.plan.name,
            server.address = %self.shared.settings.target.address,
            error.type = Empty,
            steadfast.certainty = Empty,
        );
        let result = self.run(options).instrument(span.clone()).await;
        if let Err(error) = &result {
            span.record("error.type", error.label());
            span.record("steadfast.certainty", error.certainty().as_str());
        }
        result
    }

    /// One attempt: breaker, doomed calls, bounds, connection.
    async fn attempt(&self, now: Instant, place: &mut Place<'_>) -> Result<Reply, Error> {
        place.begun = false;
        let pass = self.admit(now)?;
        let mut permit = Held::new(&self.shared.guard, pass.permit);
        let mut now = now;
        let mut line = None;
        if pass.in_line {
            let turn = (pass.not_before.unwrap_or(now), pass.generation);
            line = Some(Box::pin(self.wait_for_turn(turn, &mut permit)).await?);
            now = clock::now();
        }
        self.refuse_if_doomed(now)?;
        refuse_without_proof(self.shared, self.plan.effect, now)?;
        let ask = Ask {
            replies: self.plan.replies,
            started: self.started,
            deadline: self.deadline,
            now,
            seq: place.seq,
            only_fenced: place.only_fenced,
            read_only: self.plan.effect == Effect::Read,
            apart: place.apart,
        };
        place.epoch = self.link.map_or(0, Link::epoch);
        let submit = || self.lane.submit(ask, self.payload);
        let Submitted { pending, seq } = match submit() {
            Err(_) if self.lane.is_orphaned() => {
                self.shared.runtime()?;
                submit()?
            }
            submitted => submitted?,
        };
        drop(line);
        place.turn = place.turn.take().and_then(Turn::submitted);
        place.seq = Some(seq);
        place.rejoin = None;
        let (outcome, result) = self.judge(pending.await, place);
        if std::mem::take(&mut place.doubtful)
            && let Some(link) = self.link
        {
            ask_who_serves(self.shared, link, place.epoch, self.deadline).await;
        }
        if let Some(mut outcome) = outcome
            && let Some(permit) = permit.take()
        {
            // When its caller gets to hear of it tells nothing of the server.
            if permit.is_probe()
                && outcome == Outcome::Success
                && let Some(at) = place.answered
            {
                outcome = self.judge_probe(at.saturating_duration_since(now));
            }
            let transition =
                self.shared
                    .guard
                    .record(permit, outcome, clock_if_needed(outcome, now));
            self.shared.breaker_changed(transition);
        }
        result
    }

    /// The breaker, except within the allowance for a short interruption: then the call waits for the connection instead.
    fn admit(&self, now: Instant) -> Result<Pass, Error> {
        let pass = self.shared.guard.admit(now);
        if let Ok(pass) = &pass {
            let transition = pass.permit.transition().copied();
            self.shared.breaker_changed(transition);
        }
        pass.or_else(|refused| {
            match self.lane.gate() {
                Gate::Waiting | Gate::Orphaned => Ok(Pass {
                    permit: Permit::passed(0),
                    not_before: None,
                    in_line: !self.shared.guard.line.is_clear(now),
                    generation: u64::MAX,
                }),
                // The better answer: since when, and why.
                Gate::Down(..) | Gate::Ended(_) | Gate::Closed => Err(self.lane.refusal(now)),
                Gate::Open => Err(refused),
            }
        })
    }

    /// Waits for the turn that the breaker's ramp has given (in that generation), and for those who came before. If the ramp is cut short, the breaker is
    /// asked again, for another `permit` and another turn.
    async fn wait_for_turn<'g>(
        &'g self,
        (mut turn, generation): (Instant, u64),
        permit: &mut Held<'g>,
    ) -> Result<InLine<'g>, Error> {
        let mut place = self.shared.guard.line.join(turn, generation);
        loop {
            if turn >= self.deadline {
                return Err(doomed(turn.saturating_duration_since(self.started)));
            }
            let reached = async {
                if turn > clock::now() {
                    clock::sleep_until(turn).await;
                }
                // One whose time is up has told nothing of the server.
                clock::timeout_at(self.deadline, place.reached())
                    .await
                    .ok_or_else(|| self.timed_out(Certainty::NotSent))
            };
            tokio::select! {
                biased;
                () = place.recalled() => {}
                reached = reached => return reached.map(|()| place),
            }
            let now = clock::now();
            let pass = self.admit(now)?;
            *permit = Held::new(&self.shared.guard, pass.permit);
            turn = pass.not_before.unwrap_or(now);
            place.renew(turn, pass.generation);
        }
    }

    fn timed_out(&self, certainty: Certainty) -> Error {
        let kind = ErrorKind::Timeout {
            deadline: self.limit,
        };
        Error::new(kind, certainty)
    }

    fn refuse_if_doomed(&self, now: Instant) -> Result<(), Error> {
        let left = self.deadline.saturating_duration_since(now);
        self.shared
            .latency
            .admit(left, now)
            .map_err(|refused| doomed(refused.retry_after))
    }

    /// A probe that takes too long has not succeeded; one with a longer deadline of its own may take it.
    fn judge_probe(&self, took: Duration) -> Outcome {
        let settings = &self.shared.settings;
        if self.limit > settings.deadline {
            Outcome::Success
        } else {
            settings.breaker.judge(took)
        }
    }

    /// What an end means for the caller and for the breaker.
    fn judge(
        &self,
        ended: Ended,
        place: &mut Place<'_>,
    ) -> (Option<Outcome>, Result<Reply, Error>) {
        match ended {
            Ended::Answered { reply, at, fair } => match self.refusal_in(&reply) {
                None => {
                    place.answered = fair.then_some(at);
                    let took = at.saturating_duration_since(self.started);
                    if let Some(discovery) = &self.shared.discovery
                        && !matches!(self.plan.effect, Effect::Read | Effect::Control)
                    {
                        discovery.acknowledge();
                    }
                    self.shared.metrics.answered(self.plan.name, took);
                    let outcome = match &reply {
                        Reply::One(_) => Outcome::Success,
                        Reply::Many(replies) => self.judge_each(replies, place),
                    };
                    (Some(outcome), Ok(reply))
                }
                Some(error) => {
                    let outcome = self.judge_refusal(&error, place);
                    (Some(outcome), Err(error))
                }
            },
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
                let error = self.lane.refusal(clock::now());
                (None, Err(error.at_best(certainty == Certainty::Unknown)))
            }
            // The supervisor counts the loss, once.
            Ended::Lost {
                certainty,
                cause,
                rejoin,
                blame,
            } => {
                place.rejoin = rejoin;
                place.begun = blame != Blame::None;
                let again = blame == Blame::Shared && std::mem::replace(&mut place.suspected, true);
                if blame == Blame::Own || again {
                    place.blamed_again = std::mem::replace(&mut place.apart, true);
                }
                (None, Err(Error::new(ErrorKind::Lost { cause }, certainty)))
            }
            Ended::Turned => (None, Err(self.lane.refusal(clock::now()))),
        }
    }

    /// A call that was given less than the server is given otherwise has run out of its own time, and tells nothing of the server's: those that have more are
    /// not to be refused for its sake.
    fn judge_timeout(&self) -> Option<Outcome> {
        let settings = &self.shared.settings;
        let patience = settings.deadline.min(settings.reply_overdue);
        (self.limit >= patience).then_some(Outcome::Failure)
    }

    /// The refusal in a reply, if it is one: of a single command any error; of a pipeline, as [`refusal_of_all`] says, however few its
    /// commands are.
    fn refusal_in(&self, reply: &Reply) -> Option<Error> {
        match (reply, self.payload) {
            (Reply::Many(replies), Payload::Pipeline(pipeline)) => {
                refusal_of_all(replies, pipeline)
            }
            (Reply::One(reply), Payload::Pipeline(pipeline)) => {
                refusal_of_all(std::slice::from_ref(reply), pipeline)
            }
            (Reply::One(Value::ServerError(error)), Payload::Command(cmd)) => {
                let name = command::arguments(cmd).next().unwrap_or_default();
                Some(Error::server(error.clone(), self.plan.errors, name))
            }
            (_, Payload::Command(_)) => None,
        }
    }

    /// Some commands of a pipeline may have been answered, and others have shown that the server does not serve.
    fn judge_each(&self, replies: &[Value], place: &mut Place<'_>) -> Outcome {
        let mut outcome = Outcome::Success;
        let Payload::Pipeline(pipeline) = self.payload else {
            return outcome;
        };
        for (_, error) in errors_of(replies, pipeline) {
            if self.judge_refusal(&error, place) == Outcome::Failure {
                outcome = Outcome::Failure;
            }
        }
        outcome
    }

    /// What a refusal says of the server. Where the connection cannot serve any more, another is asked for. In the words of a script it says nothing, but may be
    /// reason to ask.
    fn judge_refusal(&self, error: &Error, place: &mut Place<'_>) -> Outcome {
        let refusal = error.refusal().unwrap_or(Refusal::Lasting);
        if error.certainty() != Certainty::Rejected {
            place.doubtful |= why_reset(self.shared, refusal).is_some();
            return Outcome::Success;
        }
        let why = why_reset(self.shared, refusal);
        match (self.link, why) {
            (Some(link), Some(why)) => {
                link.reset(place.epoch, why);
                return Outcome::Failure;
            }
            (None, why) if why.is_some() || refusal == Refusal::Demoted => {
                place.unfit = Some(refusal);
            }
            _ => {}
        }
        match refusal {
            Refusal::Passing => Outcome::Failure,
            _ => Outcome::Success,
        }
    }

    /// Is another attempt safe, and does it make sense?
    fn may_repeat(&self, error: &Error) -> bool {
        let passing = match error.kind() {
            ErrorKind::Lost { .. } => true,
            ErrorKind::Server(_) => match error.refusal() {
                Some(Refusal::WrongServer) => self.shared.settings.role == Role::Primary,
                refusal => refusal != Some(Refusal::Lasting),
            },
            _ => false,
        };
        passing
            && match error.certainty() {
                Certainty::NotSent | Certainty::Rejected => true,
                Certainty::Unknown => self.bears_another(),
            }
    }

    /// May it be sent again although it may have run?
    fn bears_another(&self) -> bool {
        match self.plan.effect {
            Effect::Read => true,
            Effect::LastWins => {
                let fenced =
                    self.shared.fences.fencing() == Fencing::Works && self.lane.may_be_fenced();
                (fenced || self.shared.settings.repeat_without_fence)
                    && !(self.plan.several && self.payload.looks_before_it_writes())
            }
            _ => false,
        }
    }

    /// Further attempts, at the price that [`Repeats`] asks.
    async fn repeat(
        &self,
        mut error: Error,
        options: &CallOptions,
        mut place: Place<'_>,
    ) -> Result<Reply, Error> {
        let mut repeats = Repeats::new(self.shared, options, self.started, self.deadline);
        loop {
            let after = match error.kind() {
                // What others did to the connection before this call was written on it.
                ErrorKind::Lost { .. }
                    if error.certainty() == Certainty::NotSent && !place.begun =>
                {
                    After::Nothing
                }
                ErrorKind::Lost { .. } => After::Loss,
                _ => After::Refusal,
            };
            let unknown = repeats.wait(error, after).await?;
            place.only_fenced = unknown
                && self.plan.effect != Effect::Read
                && !self.shared.settings.repeat_without_fence;
            match self.attempt(clock::now(), &mut place).await {
                // What may have run in an earlier attempt may have run, whatever became of this one.
                Err(next)
                    if !place.blamed_again
                        && self.may_repeat(&next)
                        && (!unknown || self.bears_another()) =>
                {
                    error = next;
                }
                result => return result.map_err(|error| error.at_best(unknown)),
            }
        }
    }
}

/// Refuses what may write while no majority of sentinels confirms the primary, where that is asked
/// for.
fn refuse_without_proof(shared: &Shared, effect: Effect, now: Instant) -> Result<(), Error> {
    let (Some(within), Some(known)) = (shared.settings.primary_proof, &shared.discovery) else {
        return Ok(());
    };
    if effect == Effect::Read || known.is_proven(within, now) {
        return Ok(());
    }
    let age = known.proof_age(now);
    Err(Error::not_sent(ErrorKind::Unproven { within, age }))
}

fn doomed(retry_after: Duration) -> Error {
    Error::not_sent(ErrorKind::Overloaded {
        bound: Bound::Deadline,
        retry_after,
    })
}

fn clock_if_needed(outcome: Outcome, then: Instant) -> Instant {
    match outcome {
        Outcome::Success => then,
        Outcome::Failure | Outcome::Slow => clock::now(),
    }
}

/// A transaction of which nothing ran.
fn was_aborted(replies: &[Value]) -> bool {
    matches!(replies.last(), Some(Value::ServerError(error)) if error.code() == "EXECABORT")
}

/// The refusal of a whole pipeline: only if every reply is a passing one; or, of a transaction that was aborted, the passing one that
/// aborted it. Other errors stay at their places among the replies, as in redis-rs.
fn refusal_of_all(replies: &[Value], pipeline: &Pipeline) -> Option<Error> {
    let passing = |error: &Error| {
        let refusal = error.refusal();
        error.certainty() == Certainty::Rejected && refusal != Some(Refusal::Lasting)
    };
    if was_aborted(replies) {
        return errors_of(replies, pipeline)
            .map(|(_, error)| error)
            .find(passing);
    }
    let mut expected = 0;
    let mut first = None;
    for (at, error) in errors_of(replies, pipeline) {
        if at != expected || !passing(&error) {
            return None;
        }
        expected += 1;
        first.get_or_insert(error);
    }
    first.filter(|_| expected == replies.len())
}

/// The errors among the replies to a pipeline, and where. What is answered while a transaction is queued is the server's own word, also of scripts.
fn errors_of<'a>(
    replies: &'a [Value],
    pipeline: &'a Pipeline,
) -> impl Iterator<Item = (usize, Error)> + 'a {
    let judged = move |at: usize, error: &ServerError| {
        let cmd = (!pipeline.is_transaction())
            .then(|| redis_rs::commands(pipeline).nth(at))
            .flatten();
        let Some(cmd) = cmd else {
            return Error::refused(error.clone());
        };
        let name = command::arguments(cmd).next().unwrap_or_default();
        let errors = command::classify(command::arguments(cmd)).errors;
        Error::server(error.clone(), errors, name)
    };
    replies
        .iter()
        .enumerate()
        .filter_map(move |(at, reply)| match reply {
            Value::ServerError(error) => Some((at, judged(at, error))),
            _ => None,
        })
}

/// What a server says of itself in its answers to ROLE and HELLO.
fn state_told_by(reply: &Reply) -> Refusal {
    let is_text = |value: &Value, word: &str| match value {
        Value::BulkString(text) => text == word.as_bytes(),
        Value::SimpleString(text) => text == word,
        _ => false,
    };
    let is_replica = |value: &Value| ["slave", "replica"].iter().any(|word| is_text(value, word));
    let Reply::Many(replies) = reply else {
        return Refusal::Lasting;
    };
    for reply in replies {
        let replica = match reply {
            Value::ServerError(error) => {
                let details = error.details().unwrap_or_default();
                if certainty::refusal(error.code(), details) == Refusal::Unauthenticated {
                    return Refusal::Unauthenticated;
                }
                false
            }
            Value::Map(pairs) => pairs
                .iter()
                .any(|(key, value)| is_text(key, "role") && is_replica(value)),
            Value::Array(items) => {
                let mut pairs = items.chunks_exact(2);
                items.first().is_some_and(is_replica)
                    || pairs.any(|pair| is_text(&pair[0], "role") && is_replica(&pair[1]))
            }
            _ => false,
        };
        if replica {
            return Refusal::WrongServer;
        }
    }
    Refusal::Lasting
}

#[cfg(test)]
mod tests {
    use steadfast_core::conn::Batch;
    use steadfast_core::policy::breaker::State;

    use super::*;
    use crate::breaker::BreakerSwitch;
    use crate::settings::Settings;
    use crate::target::Target;
    use crate::wire::queue::{Backlog, Job};

    /// No connection yet, so calls wait, though the breaker is open.
    fn waiting() -> Shared {
        let settings = Settings::new(Target::parse("redis://h").expect("a good url"));
        let shared = Shared::new(settings, clock::now()).expect("good settings");
        shared.guard.switch(BreakerSwitch::ForceOpen, clock::now());
        shared
    }

    async fn get(shared: &Shared, key: &str) -> Result<Reply, Error> {
        let mut cmd = redis::cmd("GET");
        cmd.arg(key);
        let payload = Payload::Command(&cmd);
        let plan = payload.plan(1, true)?;
        call(shared, payload, plan, &CallOptions::new()).await
    }

    #[tokio::test(start_paused = true)]
    async fn c13_past_the_open_breaker_nobody_goes_before_those_in_line() {
        let shared = waiting();
        let ahead = shared.guard.line.join(clock::now(), 1);
        let mut call = Box::pin(get(&shared, "k"));
        assert!(futures_util::poll!(&mut call).is_pending());
        let lane = &shared.links[0].lane;
        assert_eq!(lane.in_flight(), 0, "it waits behind the other");
        drop(ahead);
        assert!(futures_util::poll!(&mut call).is_pending());
        assert_eq!(lane.in_flight(), 1);
    }

    /// Closed again, and its ramp has begun.
    fn ramping() -> Shared {
        let shared = waiting();
        shared.guard.switch(BreakerSwitch::Automatic, clock::now());
        shared
    }

    /// What has been submitted, in its order.
    fn submitted(shared: &Shared) -> Batch<Job> {
        let mut batch = Batch::default();
        shared.links[0]
            .lane
            .take(&mut batch, Backlog::default(), false);
        batch
    }

    #[tokio::test(start_paused = true)]
    async fn c13_when_a_ramp_is_cut_short_all_go_at_once_in_their_order() {
        // Either the breaker lets them all go, or it refuses them, and they may wait for a connection nevertheless.
        for switch in [BreakerSwitch::ForceClosed, BreakerSwitch::ForceOpen] {
            let shared = ramping();
            let begun = clock::now();
            let keys: Vec<String> = (0..20).map(|n| n.to_string()).collect();
            let mut calls: Vec<_> = keys.iter().map(|key| Box::pin(get(&shared, key))).collect();
            for call in &mut calls {
                assert!(futures_util::poll!(call).is_pending());
            }
            assert_eq!(submitted(&shared).len(), 1, "only the first has its turn");
            shared.guard.switch(switch, begun);
            for n in (1..calls.len()).rev().chain(1..calls.len()) {
                assert!(futures_util::poll!(&mut calls[n]).is_pending());
            }
            assert_eq!(clock::now(), begun, "the old turns hold up nobody");
            let places: Vec<_> = submitted(&shared).drain().collect();
            assert_eq!(places.len(), calls.len() - 1, "{switch:?}");
            for (n, job) in places.into_iter().enumerate() {
                answer(job);
                let next = futures_util::poll!(&mut calls[n + 1]);
                assert!(next.is_ready(), "{switch:?}: {n} of the line is another's");
            }
        }
    }

    fn answer(job: Job) {
        answer_at(job, clock::now(), true);
    }

    fn answer_at(job: Job, at: Instant, fair: bool) {
        let reply = Reply::One(Value::Nil);
        let ticket = job.into_ticket().expect("it is a call");
        ticket.end(Ended::Answered { reply, at, fair });
    }

    #[tokio::test(start_paused = true)]
    async fn c19_a_probe_is_not_slow_because_this_process_stood_still() {
        let slow = Duration::from_secs(30);
        for (fair, heard_late, state) in [
            (true, false, State::Open),
            (false, false, State::Closed),
            // Answered at once, and its caller had no turn.
            (true, true, State::Closed),
        ] {
            let shared = ramping();
            let link = &shared.links[0];
            link.open(clock::now());
            while shared.guard.state() == State::Closed {
                shared.guard.record_loss(clock::now());
            }
            tokio::time::advance(Duration::from_millis(200)).await;
            let options = CallOptions::new().deadline(shared.settings.deadline);
            let needed = shared.settings.breaker.probe_successes as usize;
            for _ in 0..needed {
                let get = redis::cmd("GET").arg("k").to_owned();
                let payload = Payload::Command(&get);
                let plan = payload.plan(1, true).expect("it may be sent");
                let mut probe = Box::pin(call(&shared, payload, plan, &options));
                assert!(futures_util::poll!(&mut probe).is_pending());
                let jobs: Vec<_> = submitted(&shared).drain().collect();
                let [job] = <[Job; 1]>::try_from(jobs).expect("it is let through");
                let sent = clock::now();
                tokio::time::advance(slow).await;
                answer_at(job, if heard_late { sent } else { clock::now() }, fair);
                assert!(futures_util::poll!(&mut probe).is_ready());
                if state == State::Open {
                    break;
                }
            }
            assert_eq!(shared.guard.state(), state, "{fair} {heard_late}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn c9_one_that_was_recalled_from_a_ramp_is_a_probe_of_the_half_open_breaker() {
        let shared = ramping();
        let link = &shared.links[0];
        link.open(clock::now());
        let mut calls: Vec<_> = (0..4).map(|_| Box::pin(get(&shared, "k"))).collect();
        for call in &mut calls {
            assert!(futures_util::poll!(call).is_pending());
        }
        assert_eq!(
            submitted(&shared).len(),
            1,
            "the others wait for their turns"
        );
        while shared.guard.state() == State::Closed {
            shared.guard.record_loss(clock::now());
        }
        // Nobody asks while it is open.
        tokio::time::advance(Duration::from_millis(200)).await;
        for call in &mut calls[1..] {
            assert!(futures_util::poll!(call).is_pending());
        }
        assert_eq!(shared.guard.state(), State::HalfOpen);
        let probes: Vec<_> = submitted(&shared).drain().collect();
        assert_eq!(probes.len(), 3);
        let needed = shared.settings.breaker.probe_successes as usize;
        for (job, call) in probes.into_iter().zip(&mut calls[1..]).take(needed) {
            assert_eq!(shared.guard.state(), State::HalfOpen);
            answer(job);
            assert!(futures_util::poll!(call).is_ready());
        }
        assert_eq!(shared.guard.state(), State::Closed, "the probes tell it");
    }

    #[tokio::test(start_paused = true)]
    async fn c1_one_whose_time_is_up_in_line_is_not_submitted() {
        let shared = waiting();
        let _ahead = shared
            .guard
            .line
            .join(clock::now() + Duration::from_secs(60), 1);
        let error = tokio::time::timeout(Duration::from_secs(30), get(&shared, "k"))
            .await
            .expect("it has a deadline")
            .expect_err("its turn did not come");
        assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "{error}");
        assert_eq!(error.certainty(), Certainty::NotSent);
        assert_eq!(shared.links[0].lane.in_flight(), 0);
    }
}
