//! A pipeline on its way to several nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

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

use super::journey::{Limits, no_room, pause_before_trying_again};
use super::node::may_go_on;
use super::order::{Again, Entered, Entry, Places};
use super::parts::indivisible;
use super::{Aim, Cluster};
use crate::call::plan::{Payload, Plan};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::options::CallOptions;

/// The place of no node.
const NOBODY: u16 = u16::MAX;

/// The nodes that redirects lead to, by slot.
type Turns = BTreeMap<Slot, u16>;

/// A node's answers to its commands.
type Answers = Vec<(Vec<usize>, Result<Vec<Value>, Failed<Error>>)>;

type PipelinePart = NodePart<Option<u16>>;

/// A pipeline on its way.
struct Voyage<'a> {
    cluster: &'a Cluster,
    pipeline: &'a Pipeline,
    plan: Plan,
    options: &'a CallOptions,
    limits: Limits,
    /// The slot of what has none.
    any: Slot,
    split: SplitPipeline<'a, Error>,
    places: Option<Places<'a>>,
    turns: Turns,
    rounds: u32,
    hops: u32,
    pauses: u32,
}

/// The parts that are sent at once.
struct Round {
    parts: Vec<PipelinePart>,
    /// The slots of its commands, and the nodes that they go to.
    goes: BTreeSet<(Slot, u16)>,
    /// The slots that take no turn: reads of several keys that wait for a migration.
    apart: BTreeSet<Slot>,
}

/// The result of sending them.
enum RoundSent {
    Answered(Vec<Answers>),
    /// Slots change hands, or have: nothing was sent.
    Elsewhere,
    /// The commands may not be sent again.
    Never(Error),
}

impl Cluster {
    /// A pipeline that is no transaction.
    pub(super) async fn pipeline(
        &self,
        pipeline: &Pipeline,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let limits = Limits::new(plan.limit(options, self.settings().deadline)?);
        let split =
            SplitPipeline::<Error>::new(pipeline, options.divide_mset).map_err(indivisible)?;
        let mut slots = BTreeSet::new();
        for cmd in redis_rs::commands(pipeline) {
            slots.extend(command::key_names(command::arguments(cmd)).map(Slot::of_key));
        }
        let any = slots.first().copied().unwrap_or_else(|| self.any_slot());
        slots.insert(any);
        // Nobody waits for a node twice, nor for one after another.
        let reached = slots
            .iter()
            .map(|slot| self.reach(*slot, &Aim::Owner, &limits));
        let mut reached = join_all(reached).await;
        if reached.iter().all(Result::is_err)
            && let Some(error) = reached.pop().and_then(Result::err)
        {
            return Err(error);
        }
        let voyage = Voyage {
            cluster: self,
            pipeline,
            plan,
            options,
            limits,
            any,
            split,
            places: None,
            turns: Turns::new(),
            rounds: 0,
            hops: 0,
            pauses: 0,
        };
        voyage.run().await
    }
}

impl Voyage<'_> {
    async fn run(mut self) -> Result<Reply, Error> {
        loop {
            let round = self.next_round();
            let sent = clock::now();
            let answers = match self.send(&round, sent).await {
                RoundSent::Answered(answers) => answers,
                RoundSent::Elsewhere if self.limits.deadline <= clock::now() => {
                    return Err(self.limits.timed_out(Certainty::NotSent));
                }
                RoundSent::Elsewhere => {
                    // Each command goes to whoever owns its slot now.
                    self.take_back(&round.parts);
                    continue;
                }
                RoundSent::Never(error) => {
                    let certainty = error.certainty();
                    let failed = Failed { error, certainty };
                    for part in &round.parts {
                        let units = part.units();
                        self.split.record(units, Vec::new(), Some(failed.clone()));
                    }
                    break;
                }
            };
            if !self.take_in(&round.parts, answers, sent).await {
                break;
            }
        }
        if let Some(places) = &mut self.places {
            places.ran();
        }
        self.split.finish().map(Reply::Many).map_err(failed)
    }

    /// Divides what is to be sent by the nodes that it goes to now.
    fn next_round(&mut self) -> Round {
        let (cluster, turns, any) = (self.cluster, &self.turns, self.any);
        let (mut goes, mut apart, mut stay) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let parts = self.split.to_send(|target| {
            let node = cluster.node_of(target, any, turns);
            if let Some(slot) = target.slot {
                let waits = matches!(target.redirect, Some(Routing::TryAgain));
                match waits && target.effect == Effect::Read {
                    true => drop(apart.insert(slot)),
                    false => drop(goes.insert((slot, node.unwrap_or(NOBODY)))),
                }
                stay.insert(slot);
            }
            node
        });
        if let Some(places) = &mut self.places {
            // Slots of which all is answered hold up nobody.
            places.leave_all_but(|slot| stay.contains(&slot));
        }
        Round { parts, goes, apart }
    }

    async fn send(&mut self, round: &Round, sent: Instant) -> RoundSent {
        let (cluster, limits) = (self.cluster, self.limits);
        let Round { parts, goes, apart } = round;
        let (whole, options, rounds) = ((self.pipeline, &self.plan), self.options, self.rounds);
        let sends = parts
            .iter()
            .map(|part| cluster.send_part(part, whole, options, (rounds, &limits)));
        let mut sends = pin!(join_all(sends));
        let polled = match &mut self.places {
            None => {
                let entry = |(slot, node): &(Slot, u16)| Entry {
                    slot: *slot,
                    key: None,
                    node: *node,
                };
                let entries = goes.iter().map(entry).collect();
                let owner = |slot: Slot| cluster.routes.owner(slot).unwrap_or(NOBODY);
                let stands = || goes.iter().all(|(slot, node)| owner(*slot) == *node);
                let times = (sent, limits.deadline);
                let entered = cluster.order.enter(entries, times, stands, sends.as_mut());
                match entered.await {
                    Entered::Sent(entered, polled) => {
                        self.places = Some(entered);
                        polled
                    }
                    Entered::Waited => return RoundSent::Elsewhere,
                    Entered::NoRoom => return RoundSent::Never(no_room()),
                }
            }
            Some(places) => {
                let goes: Vec<(Slot, u16)> = goes
                    .iter()
                    .filter(|(slot, _)| !apart.contains(slot))
                    .copied()
                    .collect();
                for (slot, _) in &goes {
                    cluster.order.close(*slot, sent);
                }
                match places.again(&goes, limits.deadline, sends.as_mut()).await {
                    Again::Sent(polled) => polled,
                    Again::Overtaken | Again::TimedOut => return RoundSent::Never(overtaken()),
                }
            }
        };
        RoundSent::Answered(match polled {
            Poll::Ready(answers) => answers,
            Poll::Pending => sends.await,
        })
    }

    /// Takes in what nodes have answered; false if nothing is sent again.
    async fn take_in(
        &mut self,
        parts: &[PipelinePart],
        answers: Vec<Answers>,
        sent: Instant,
    ) -> bool {
        self.turns.clear();
        let (mut pauses, mut elsewhere) = (false, false);
        for (part, answers) in parts.iter().zip(answers) {
            for (units, result) in answers {
                match result {
                    Ok(values) => {
                        let (cluster, turns) = (self.cluster, &mut self.turns);
                        pauses |= cluster.note_redirects(part.node, &values, sent, turns);
                        self.split.record(&units, values, None);
                    }
                    Err(failed) => {
                        let effect = self.plan.effect;
                        elsewhere |= self.cluster.has_left(part.node, &failed.error, effect);
                        self.split.record(&units, Vec::new(), Some(failed));
                    }
                }
            }
        }
        self.rounds += 1;
        // What waits for a migration is bounded by the deadline only.
        self.hops += u32::from(elsewhere || !self.turns.is_empty());
        let terms = Terms {
            follow: self.hops <= MAX_HOPS,
            retry: elsewhere && self.hops <= MAX_HOPS,
            effect: self.options.effect,
        };
        let again = self.split.again(terms, |effect| {
            matches!(effect, Effect::Read | Effect::LastWins)
        });
        if again.is_nothing() || clock::now() >= self.limits.deadline {
            return false;
        }
        if pauses {
            let pause = pause_before_trying_again(self.pauses);
            self.pauses += 1;
            if clock::now() + pause >= self.limits.deadline {
                return false;
            }
            clock::sleep(pause).await;
        }
        true
    }

    /// Makes parts that were not sent ready to be divided anew.
    fn take_back(&mut self, parts: &[PipelinePart]) {
        for part in parts {
            let error = overtaken();
            let certainty = error.certainty();
            let failed = Failed { error, certainty };
            self.split.record(part.units(), Vec::new(), Some(failed));
        }
        let terms = Terms {
            follow: true,
            retry: true,
            effect: None,
        };
        self.split.again(terms, |_| false);
    }
}

impl Cluster {
    /// The node that a command goes to now. `None` if nobody knows it.
    fn node_of(&self, target: Target<'_>, any: Slot, turns: &Turns) -> Option<u16> {
        let slot = match target.redirect {
            // Of a module's command the server may know another key than we do.
            Some(Routing::Moved(redirect) | Routing::Ask(redirect)) => redirect.slot,
            _ => target.slot.unwrap_or(any),
        };
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
        sent: Instant,
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

fn overtaken() -> Error {
    Error::new(ErrorKind::Overtaken, Certainty::Rejected)
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
