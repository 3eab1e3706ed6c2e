//! The one place where policies are ordered.
//!
//! A call passes: the command table (may it run here, may it be repeated), the breaker, the refusal
//! of calls that cannot meet their deadline, the bounds of the queue, the connection, and then, if
//! it failed, the judgement whether another attempt is safe and within budget. Every step is under
//! the one deadline that the call began with. The first attempt allocates nothing; what follows a
//! failure may take its time.

pub(crate) mod blocking;
mod carried;
pub(crate) mod dedicated;
pub(crate) mod identification;
mod judgement;
pub(crate) mod plan;
mod repeats;
mod turn;

use std::time::{Duration, Instant};

use steadfast_core::certainty::Refusal;
use steadfast_core::command::Effect;
use steadfast_core::conn::Reply;
use steadfast_core::policy::Deadline;
use steadfast_core::policy::breaker::{Outcome, Permit};
use tracing::field::Empty;
use tracing::{Instrument, Level};

pub(crate) use self::carried::{Carried, Suspicion};
use self::identification::ask_who_serves;
pub(crate) use self::repeats::{After, Repeats};
use crate::breaker::ramp::RampTicket;
use crate::breaker::{AttemptPermit, HeldPermit};
use crate::call::plan::{Asking, Payload, Plan};
use crate::clock;
use crate::error::{Bound, Certainty, Error, ErrorKind};
use crate::link::Link;
use crate::link::crossing::CrossingTurn;
use crate::link::shared::Shared;
use crate::options::CallOptions;
use crate::sentinel::InLine;
use crate::wire::queue::{Encoded, Gate, PerhapsEncoded, Submission, SubmitQueue, Submitted};
use crate::wire::slot::Rejoin;

/// Runs one call from beginning to end.
pub(crate) async fn call(
    shared: &Shared,
    payload: Payload<'_>,
    plan: Plan,
    options: &CallOptions,
) -> Result<Reply, Error> {
    let started = clock::now();
    let limit = plan.limit(options, shared.settings.deadline)?;
    let times = (started, limit);
    let mut carried = Carried::default();
    call_within(shared, payload, plan, options, times, &mut carried).await
}

/// The same, of a call that began at `started` and takes until `limit` later.
pub(crate) async fn call_within(
    shared: &Shared,
    payload: Payload<'_>,
    plan: Plan,
    options: &CallOptions,
    (started, limit): (Instant, Duration),
    carried: &mut Carried,
) -> Result<Reply, Error> {
    let link = &shared.links[plan.route.link];
    let call = Call {
        shared,
        queue: &link.queue,
        link: Some(link),
        payload,
        plan,
        started,
        limit,
        deadline: Deadline::after(started, limit).instant(),
    };
    // One look at a level that is known, where nobody listens.
    if tracing::span_enabled!(Level::DEBUG) {
        return Box::pin(call.run_in_span(options, carried)).await;
    }
    call.run(options, carried).await
}

/// Makes one attempt on a dedicated connection, which nothing but its deadline limits. Returns
/// besides the result the refusal after which the connection is not fit for another call, if there
/// was one.
pub(crate) async fn call_dedicated(
    shared: &Shared,
    queue: &SubmitQueue,
    payload: Payload<'_>,
    plan: Plan,
    started: Instant,
    limit: Duration,
) -> (Result<Reply, Error>, Option<Refusal>) {
    let steps = payload.steps();
    let call = Call {
        shared,
        queue,
        link: None,
        payload,
        plan,
        started,
        limit,
        deadline: Deadline::after(started, limit).instant(),
    };
    let proof = wait_for_proof(shared, call.plan.effect, call.deadline).await;
    let proof = match proof {
        Ok(proof) => proof,
        Err(error) => return (Err(error), None),
    };
    let submission = Submission {
        replies: call.plan.replies + u32::from(call.plan.asking),
        started,
        deadline: call.deadline,
        now: clock::now(),
        seq: None,
        only_fenced: false,
        read_only: call.plan.effect == Effect::Read,
        apart: false,
    };
    let submitted = if call.plan.asking {
        queue.submit_asking(submission, Asking(payload))
    } else if steps.is_empty() {
        queue.submit(submission, payload)
    } else {
        queue.submit_transition(steps, submission, payload)
    };
    let submitted = match submitted {
        Ok(submitted) => submitted,
        Err(error) => return (Err(error), None),
    };
    drop(proof);
    let mut again = AttemptHistory::default();
    let (_, result) = call.judge(submitted.pending.await, &mut again);
    (result, again.unfit)
}

/// The place of a call in the order of submission, and what its attempts have shown.
#[derive(Default)]
struct AttemptHistory<'a> {
    /// The call's turn among commands whose keys lie on several connections. `None` if it needs
    /// none.
    turn: Option<CrossingTurn<'a>>,
    seq: Option<u64>,
    /// The connection in service when it was last submitted.
    epoch: u64,
    /// Whether it may have run already: then a connection that cannot fence its predecessors must
    /// not carry it.
    only_fenced: bool,
    /// The next connection waits for this call to come again.
    rejoin: Option<Rejoin>,
    /// Whether some of it was written when its connection ended.
    begun: bool,
    /// Whether an error said that this server serves no more, in words that may be a script's.
    doubtful: bool,
    suspicion: Suspicion,
    /// Its bytes, if they were made ahead and not submitted yet.
    encoded: Option<Encoded>,
    /// The time of its last answer, if this process did not stand still meanwhile.
    answered: Option<Instant>,
    /// The refusal after which a dedicated connection must not be used again.
    unfit: Option<Refusal>,
}

struct Call<'a> {
    shared: &'a Shared,
    queue: &'a SubmitQueue,
    /// `None` on a connection of one's own, where nothing is repeated and the breaker is not asked.
    link: Option<&'a Link>,
    payload: Payload<'a>,
    plan: Plan,
    started: Instant,
    limit: Duration,
    deadline: Instant,
}

impl Call<'_> {
    async fn run(&self, options: &CallOptions, carried: &mut Carried) -> Result<Reply, Error> {
        let mut again = AttemptHistory {
            suspicion: carried.suspicion,
            encoded: carried.encoded.take(),
            ..AttemptHistory::default()
        };
        let mut began = self.started;
        let mut probe = None;
        let mut turn = Ok(None);
        if self.shared.links.len() > 1 && self.link.is_some() {
            turn = self.take_turn(&mut probe).await;
        }
        let result = match turn {
            Ok(turn) => {
                if turn.is_some() {
                    again.turn = turn;
                    began = clock::now();
                }
                self.run_from(began, again, options, carried).await
            }
            Err(error) => Err(error),
        };
        let mut error = match result {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        if let Some(probe) = probe {
            error = Box::pin(probe.or_unattended_if_late(error)).await;
        }
        crate::metrics::count_error(&error);
        Err(error)
    }

    async fn run_from(
        &self,
        began: Instant,
        mut again: AttemptHistory<'_>,
        options: &CallOptions,
        carried: &mut Carried,
    ) -> Result<Reply, Error> {
        let result = match self.attempt(began, &mut again).await {
            Err(error) if !again.suspicion.blamed_again && self.may_repeat(&error) => {
                Box::pin(self.repeat(error, options, &mut again, &mut carried.alone)).await
            }
            result => result,
        };
        carried.suspicion = again.suspicion;
        result
    }

    /// Runs in a span of its own, with OpenTelemetry's names for a call to a database.
    async fn run_in_span(
        &self,
        options: &CallOptions,
        carried: &mut Carried,
    ) -> Result<Reply, Error> {
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
        let result = self.run(options, carried).instrument(span.clone()).await;
        if let Err(error) = &result {
            span.record("error.type", error.label());
            span.record("steadfast.certainty", error.certainty().as_str());
        }
        result
    }

    /// Makes one attempt: breaker, deadline, bounds, connection.
    async fn attempt(&self, now: Instant, again: &mut AttemptHistory<'_>) -> Result<Reply, Error> {
        again.begun = false;
        let pass = self.admit(now)?;
        let mut permit = HeldPermit::new(&self.shared.breaker, pass.permit);
        let mut now = now;
        let mut line = None;
        if pass.queued {
            // It may wait until its deadline, and no bound would count these bytes.
            again.encoded = None;
            let turn = (pass.not_before.unwrap_or(now), pass.generation);
            line = Some(Box::pin(self.wait_for_turn(turn, &mut permit)).await?);
            now = clock::now();
        }
        self.refuse_if_infeasible(now)?;
        let proof = wait_for_proof(self.shared, self.plan.effect, self.deadline).await?;
        if proof.is_some() {
            now = clock::now();
        }
        let submission = Submission {
            replies: self.plan.replies + u32::from(self.plan.asking),
            started: self.started,
            deadline: self.deadline,
            now,
            seq: again.seq,
            only_fenced: again.only_fenced,
            read_only: self.plan.effect == Effect::Read,
            apart: again.suspicion.apart,
        };
        again.epoch = self.link.map_or(0, Link::epoch);
        let places = self.plan.places.as_deref();
        let share = places.map(|places| places.share(self.queue));
        let mut ahead = again.encoded.take();
        let mut submit = || {
            let (payload, encoded) = (self.payload, ahead.take());
            match self.plan.asking {
                false => {
                    let request = payload;
                    let request = PerhapsEncoded { request, encoded };
                    self.queue.submit(submission, request)
                }
                true => {
                    let request = Asking(payload);
                    let request = PerhapsEncoded { request, encoded };
                    self.queue.submit_asking(submission, request)
                }
            }
        };
        let Submitted { pending, seq } = match submit() {
            Err(_) if self.queue.is_orphaned() => {
                self.shared.runtime()?;
                submit()?
            }
            submitted => submitted?,
        };
        drop((line, proof));
        again.turn = again.turn.take().and_then(CrossingTurn::submitted);
        again.seq = Some(seq);
        again.rejoin = None;
        let (outcome, result) = self.judge(pending.await, again);
        drop(share);
        if std::mem::take(&mut again.doubtful)
            && let Some(link) = self.link
        {
            ask_who_serves(self.shared, link, again.epoch, self.deadline).await;
        }
        if let Some(mut outcome) = outcome
            && let Some(permit) = permit.take()
        {
            // When its caller gets to hear of it tells nothing of the server.
            if permit.is_probe()
                && outcome == Outcome::Success
                && let Some(at) = again.answered
            {
                outcome = self.judge_probe(at.saturating_duration_since(now));
            }
            let transition =
                self.shared
                    .breaker
                    .record(permit, outcome, clock_if_needed(outcome, now));
            self.shared.breaker_changed(transition);
        }
        result
    }

    /// The breaker, except within the allowance for a short interruption: then the call waits for
    /// the connection instead.
    fn admit(&self, now: Instant) -> Result<AttemptPermit, Error> {
        let pass = self.shared.breaker.admit(now);
        if let Ok(pass) = &pass {
            let transition = pass.permit.transition().copied();
            self.shared.breaker_changed(transition);
        }
        pass.or_else(|refused| {
            match self.queue.gate() {
                Gate::Waiting | Gate::Orphaned => Ok(AttemptPermit {
                    permit: Permit::passed(0),
                    not_before: None,
                    queued: !self.shared.breaker.ramp.is_clear(now),
                    generation: u64::MAX,
                }),
                // This error is more useful than that of the breaker: it says since when Redis is
                // down, and why.
                Gate::Down(..) | Gate::Ended(_) | Gate::Closed => Err(self.queue.refusal(now)),
                Gate::Open => Err(refused),
            }
        })
    }

    /// Waits for the turn that the breaker's ramp has given (in that generation), and for those who
    /// came before. If the ramp is cut short, the breaker is asked again, for another `permit` and
    /// another turn.
    async fn wait_for_turn<'g>(
        &'g self,
        (mut turn, generation): (Instant, u64),
        permit: &mut HeldPermit<'g>,
    ) -> Result<RampTicket<'g>, Error> {
        let mut ticket = self.shared.breaker.ramp.join(turn, generation);
        loop {
            if turn >= self.deadline {
                return Err(deadline_infeasible(
                    turn.saturating_duration_since(self.started),
                ));
            }
            let reached = async {
                if turn > clock::now() {
                    clock::sleep_until(turn).await;
                }
                // One whose time is up has told nothing of the server.
                clock::timeout_at(self.deadline, ticket.reached())
                    .await
                    .ok_or_else(|| self.timed_out(Certainty::NotSent))
            };
            tokio::select! {
                biased;
                () = ticket.recalled() => {}
                reached = reached => return reached.map(|()| ticket),
            }
            let now = clock::now();
            let pass = self.admit(now)?;
            *permit = HeldPermit::new(&self.shared.breaker, pass.permit);
            turn = pass.not_before.unwrap_or(now);
            ticket.renew(turn, pass.generation);
        }
    }

    fn timed_out(&self, certainty: Certainty) -> Error {
        let kind = ErrorKind::Timeout {
            deadline: self.limit,
        };
        Error::new(kind, certainty)
    }

    fn refuse_if_infeasible(&self, now: Instant) -> Result<(), Error> {
        let left = self.deadline.saturating_duration_since(now);
        self.shared
            .latency
            .admit(left, now)
            .map_err(|refused| deadline_infeasible(refused.retry_after))
    }

    /// Further attempts, at the price that [`Repeats`] asks.
    async fn repeat(
        &self,
        mut error: Error,
        options: &CallOptions,
        again: &mut AttemptHistory<'_>,
        alone: &mut Option<Certainty>,
    ) -> Result<Reply, Error> {
        let mut repeats = Repeats::new(self.shared, options, self.started, self.deadline);
        loop {
            let after = match error.kind() {
                // What others did to the connection before this call was written on it.
                ErrorKind::Lost { .. }
                    if error.certainty() == Certainty::NotSent && !again.begun =>
                {
                    After::Nothing
                }
                ErrorKind::Lost { .. } => After::Loss,
                _ => After::Refusal,
            };
            let (before, certainty) = (repeats.may_have_run(), error.certainty());
            let unknown = repeats.wait(error, after).await.inspect_err(|_| {
                *alone = before.then_some(certainty);
            })?;
            again.only_fenced = unknown
                && self.plan.effect != Effect::Read
                && !self.shared.settings.repeat_without_fence;
            match self.attempt(clock::now(), again).await {
                // What may have run in an earlier attempt may have run, whatever became of this
                // one.
                Err(next)
                    if !again.suspicion.blamed_again
                        && self.may_repeat(&next)
                        && (!unknown || self.bears_another()) =>
                {
                    error = next;
                }
                result => {
                    let certainty = result.as_ref().map_or_else(Error::certainty, |_| SERVED);
                    *alone = unknown.then_some(certainty);
                    return result.map_err(|error| error.at_best(unknown));
                }
            }
        }
    }
}

/// The certainty of what was answered, which tells nothing: the answer does.
const SERVED: Certainty = Certainty::Rejected;

/// Refuses what may write while no majority of sentinels confirms the primary, where that is asked
/// for. When that is first found out they are asked and waited for: this process may have stood
/// still. What is returned keeps later ones back until it is dropped.
async fn wait_for_proof(
    shared: &Shared,
    effect: Effect,
    deadline: Instant,
) -> Result<Option<InLine<'_>>, Error> {
    let (Some(within), Some(known)) = (shared.settings.primary_proof, &shared.discovery) else {
        return Ok(None);
    };
    if effect == Effect::Read || known.is_proven(within, clock::now()) && known.nobody_waits() {
        return Ok(None);
    }
    let probe = shared.probe_liveness()?;
    let grace = shared.settings.reconnect_grace;
    if let Some(place) = Box::pin(known.proven(within, grace, deadline)).await {
        return Ok(Some(place));
    }
    let age = known.proof_age(clock::now());
    let unproven = Error::not_sent(ErrorKind::Unproven { within, age });
    Err(probe.or_unattended(unproven).await)
}

fn deadline_infeasible(retry_after: Duration) -> Error {
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

#[cfg(test)]
mod tests;
