//! A pipeline on its way to several nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Pipeline, Value};
use steadfast_core::command::{self, Effect};
use steadfast_core::conn::Reply;
use steadfast_core::redirect::{MAX_HOPS, Routing};
use steadfast_core::redis_rs;
use steadfast_core::slot::Slot;
use steadfast_core::split::Failed;
use steadfast_core::split::pipeline::{
    CommandOutcome, NodePart, PipelineFailed, SplitPipeline, Target, Terms,
};

use super::journey::Limits;
use super::node::may_go_on;
use super::order::{Again, Entered, Entry, Places};
use super::parts::indivisible;
use super::{Aim, Cluster};
use crate::call::plan::{Payload, Plan};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::options::CallOptions;

/// The pause before commands are sent again whose keys are on both sides of a migration.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// The slots that are redirected, and the node that each goes to.
type Turns = BTreeMap<Slot, u16>;

/// A node's answers to its commands.
type Answers = Vec<(Vec<usize>, Result<Vec<Value>, Failed<Error>>)>;

impl Cluster {
    /// A pipeline that is no transaction.
    pub(super) async fn pipeline(
        &self,
        pipeline: &Pipeline,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let limits = Limits::new(plan.limit(options, self.settings().deadline)?);
        let mut split =
            SplitPipeline::<Error>::new(pipeline, options.divide_mset).map_err(indivisible)?;
        let mut slots = BTreeSet::new();
        for cmd in redis_rs::commands(pipeline) {
            slots.extend(command::key_names(command::arguments(cmd)).map(Slot::of_key));
        }
        let any = match slots.first() {
            Some(slot) => *slot,
            None => self.any_slot(),
        };
        // Nobody waits for a node twice, nor for one after another.
        let reached = slots
            .iter()
            .chain([&any])
            .map(|slot| self.reach(*slot, &Aim::Owner, limits.deadline));
        let reached = join_all(reached).await;
        if reached.iter().all(Result::is_err) {
            reached
                .into_iter()
                .find_map(Result::err)
                .map_or(Ok(()), Err)?;
        }
        let mut places: Option<Places<'_>> = None;
        let mut turns = Turns::new();
        let mut rounds = 0;
        let mut parts = split.to_send(|target| self.node_of(target, any, &turns));
        loop {
            let sent = clock::now();
            let answers: Option<Vec<Answers>> = {
                let whole = (pipeline, &plan);
                let sends = parts
                    .iter()
                    .map(|part| self.send_part(part, whole, options, (rounds, &limits)));
                let mut sends = pin!(join_all(sends));
                let polled = match &mut places {
                    None => {
                        let entry = |slot: &Slot| Entry {
                            slot: *slot,
                            key: None,
                            node: self.routes.owner(*slot).unwrap_or_default(),
                        };
                        let entries = slots.iter().map(entry).collect();
                        let times = (sent, limits.deadline);
                        match self.order.enter(entries, times, sends.as_mut()).await {
                            Entered::Sent(entered, polled) => {
                                places = Some(entered);
                                polled.map(Some)
                            }
                            Entered::Waited if sent >= limits.deadline => {
                                return Err(limits.timed_out(Certainty::NotSent));
                            }
                            Entered::Waited => Poll::Ready(None),
                        }
                    }
                    Some(_) if turns.is_empty() => Poll::Pending,
                    Some(places) => {
                        let slots = turns.keys();
                        slots.for_each(|slot| self.order.close(*slot, sent));
                        let goes: Vec<_> = turns.iter().map(|(slot, to)| (*slot, *to)).collect();
                        let again = places.again(&goes, limits.deadline, sends.as_mut());
                        match again.await {
                            Again::Sent(polled) => polled.map(Some),
                            Again::Overtaken | Again::TimedOut => {
                                for part in &parts {
                                    split.record(part.units(), Vec::new(), Some(overtaken()));
                                }
                                break;
                            }
                        }
                    }
                };
                match polled {
                    Poll::Ready(answers) => answers,
                    Poll::Pending => Some(sends.await),
                }
            };
            let Some(answers) = answers else {
                // Slots have changed hands meanwhile: each command goes to whoever owns its slot
                // now.
                self.take_back(&mut split, &parts);
                parts = split.to_send(|target| self.node_of(target, any, &turns));
                continue;
            };
            turns.clear();
            let (mut pauses, mut elsewhere) = (false, false);
            for (part, answers) in parts.iter().zip(answers) {
                for (units, result) in answers {
                    match result {
                        Ok(values) => {
                            pauses |= self.note_redirects(part.node, &values, sent, &mut turns);
                            split.record(&units, values, None);
                        }
                        Err(failed) => {
                            elsewhere |= self.has_left(part.node, &failed.error, plan.effect);
                            split.record(&units, Vec::new(), Some(failed));
                        }
                    }
                }
            }
            rounds += 1;
            // Those of which all is answered hold up nobody.
            if !pauses
                && !elsewhere
                && let Some(places) = &mut places
            {
                places.leave_all_but(|slot| turns.contains_key(&slot));
            }
            let terms = Terms {
                follow: rounds <= MAX_HOPS,
                retry: elsewhere && rounds <= MAX_HOPS,
                effect: options.effect,
            };
            let again = split.again(terms, |effect| {
                matches!(effect, Effect::Read | Effect::LastWins)
            });
            if again.is_nothing() || clock::now() >= limits.deadline {
                break;
            }
            if pauses {
                clock::sleep(TRY_AGAIN).await;
            }
            parts = split.to_send(|target| self.node_of(target, any, &turns));
        }
        if let Some(places) = &mut places {
            places.ran();
        }
        split.finish().map(Reply::Many).map_err(failed)
    }

    /// Makes parts that were not sent ready to be divided anew.
    fn take_back(&self, split: &mut SplitPipeline<'_, Error>, parts: &[NodePart<Option<u16>>]) {
        for part in parts {
            split.record(part.units(), Vec::new(), Some(overtaken()));
        }
        let terms = Terms {
            follow: true,
            retry: true,
            effect: None,
        };
        split.again(terms, |_| false);
    }

    /// The node that a command goes to now. `None` if nobody knows it.
    fn node_of(&self, target: Target<'_>, any: Slot, turns: &Turns) -> Option<u16> {
        let slot = target.slot.unwrap_or(any);
        let redirected = target.redirect.and_then(|_| turns.get(&slot));
        redirected.copied().or_else(|| self.routes.owner(slot))
    }

    async fn send_part(
        &self,
        part: &NodePart<Option<u16>>,
        (whole, plan): (&Pipeline, &Plan),
        options: &CallOptions,
        (rounds, limits): (u32, &Limits),
    ) -> Answers {
        let units = part.units();
        let all = |failed: Failed<Error>| vec![(units.to_vec(), Err(failed))];
        let node = match part.node.map(|number| self.node(number)) {
            Some(Ok(Some(node))) => node,
            Some(Err(error)) => {
                let certainty = error.certainty();
                return all(Failed { error, certainty });
            }
            None | Some(Ok(None)) => {
                let error = self.nobody_serves(self.any_slot());
                let certainty = error.certainty();
                return all(Failed { error, certainty });
            }
        };
        let times = limits.of_attempt(rounds);
        if part.is_whole && !part.asking {
            let payload = Payload::Pipeline(whole);
            let answer = node.attempt(payload, plan.clone(), options, times).await;
            return vec![(units.to_vec(), Self::values(&node, answer))];
        }
        let planned = |payload: Payload<'_>| self.planned(payload, options);
        if !part.asking {
            let payload = Payload::Pipeline(&part.pipeline);
            let answer = match planned(payload) {
                Ok(plan) => node.attempt(payload, plan, options, times).await,
                Err(error) => Err(error),
            };
            return vec![(units.to_vec(), Self::values(&node, answer))];
        }
        // Each behind an ASKING of its own. They are submitted in this order.
        let commands: Vec<_> = redis_rs::commands(&part.pipeline)
            .map(|cmd| cmd.to_cmd())
            .collect();
        let asks = commands.iter().zip(units).map(|(cmd, unit)| {
            let node = &node;
            async move {
                let payload = Payload::Command(cmd);
                let answer = match self.planned(payload, options) {
                    Ok(plan) => {
                        let plan = Plan {
                            asking: true,
                            ..plan
                        };
                        node.attempt(payload, plan, options, times).await
                    }
                    Err(error) => Err(error),
                };
                let answer = match answer {
                    Err(error) => match error.kind() {
                        ErrorKind::Server(said) => Ok(Reply::One(Value::ServerError(said.clone()))),
                        _ => Err(error),
                    },
                    answer => answer,
                };
                (vec![*unit], Self::values(node, answer))
            }
        });
        join_all(asks).await
    }

    /// Takes in the redirects among the answers of a node; true if some are to be tried again after
    /// a pause.
    fn note_redirects(
        &self,
        node: Option<u16>,
        values: &[Value],
        sent: std::time::Instant,
        turns: &mut Turns,
    ) -> bool {
        let Some(node) = node.and_then(|number| self.routes.node(number)) else {
            return false;
        };
        let mut pauses = false;
        for value in values {
            let Value::ServerError(error) = value else {
                continue;
            };
            let details = error.details().unwrap_or_default();
            let (slot, aim) = match Routing::of(error.code(), details) {
                Some(Routing::Moved(redirect)) => {
                    (redirect.slot, self.moved(&node, &redirect, sent))
                }
                Some(Routing::Ask(redirect)) => (redirect.slot, self.asked(&node, &redirect)),
                Some(Routing::TryAgain) => {
                    pauses = true;
                    continue;
                }
                _ => continue,
            };
            let to = match aim {
                Some(Aim::At { endpoint, .. }) => self.find_at(&endpoint),
                Some(Aim::Owner) | None => None,
            };
            if let Some(to) = to.or_else(|| self.routes.owner(slot)) {
                turns.insert(slot, to);
            }
        }
        self.redirects
            .fetch_add(turns.len() as u64, std::sync::atomic::Ordering::Relaxed);
        pauses
    }

    /// Whether commands that failed so go on at another node.
    fn has_left(&self, node: Option<u16>, error: &Error, effect: Effect) -> bool {
        let retired = node.and_then(|number| self.routes.node(number)).is_none();
        if matches!(
            error.kind(),
            ErrorKind::Lost { .. } | ErrorKind::Down { .. }
        ) {
            self.trigger(steadfast_core::topology::Trigger::Doubt);
        }
        retired && may_go_on(error, effect)
    }

    /// Plans a part before it is sent.
    fn planned(&self, payload: Payload<'_>, options: &CallOptions) -> Result<Plan, Error> {
        let plan = payload.plan(self.settings().connections, true)?;
        Ok(plan.adjusted(options, self.settings().repeat_only_reads))
    }
}

fn overtaken() -> Failed<Error> {
    let certainty = Certainty::Rejected;
    let error = Error::new(ErrorKind::Overtaken, certainty);
    Failed { error, certainty }
}

fn failed(failed: PipelineFailed<Error>) -> Error {
    let outcomes = || (0..).zip(&failed.outcomes);
    let of = |unknown: bool| {
        let commands = outcomes().filter(|(_, outcome)| match outcome {
            CommandOutcome::Answered(_) => false,
            CommandOutcome::Failed(certainty) => (*certainty == Certainty::Unknown) == unknown,
        });
        commands.map(|(number, _)| number).collect()
    };
    let answered = |outcome: &CommandOutcome| matches!(outcome, CommandOutcome::Answered(_));
    let done = outcomes().filter(|(_, outcome)| answered(outcome)).count();
    if done == 0 {
        return failed.error.at_best(failed.certainty == Certainty::Unknown);
    }
    let kind = ErrorKind::Partial {
        cause: failed.error.to_string().into(),
        done,
        not_run: of(false),
        unknown: of(true),
    };
    Error::new(kind, failed.certainty)
}
