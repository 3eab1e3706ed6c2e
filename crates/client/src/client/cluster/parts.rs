//! The places to which a call belongs: to one slot, to several, to any primary or to all of them.
//!
//! What concerns several slots is divided by the rules of [`steadfast_core::split`], each part
//! makes its own journey, and the answers are joined.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{Cmd, ServerError, Value};
use steadfast_core::command::place::{Joining, Place as Belongs, ServedBy, place_and_keys};
use steadfast_core::command::{self, Effect};
use steadfast_core::conn::Reply;
use steadfast_core::redirect::{MAX_HOPS, Routing};
use steadfast_core::slot::Slot;
use steadfast_core::split::{self, Failed, Indivisible, KeyFate, SplitCommand, UnexpectedAnswer};
use steadfast_core::topology::{MemberIndex, Trigger};

use super::Cluster;
use super::limits::Limits;
use super::node::Node;
use super::order::CallRoom;
use super::together::{Whole, keys_of_part};
use crate::call::plan::{Payload, Plan, one};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::link::ConnectionState;
use crate::options::{CallOptions, ReadFrom};

impl Cluster {
    /// Runs one call from beginning to end.
    pub(crate) async fn call(
        &self,
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let may_write = plan.several || plan.effect != Effect::Read;
        if may_write {
            self.writes.note(payload, false);
        }
        let result = match payload {
            Payload::Command(cmd) => self.command(cmd, plan, options).await,
            Payload::Pipeline(pipeline) if pipeline.is_transaction() => {
                let slot = split::transaction_slot(pipeline).map_err(indivisible)?;
                let slot = slot.unwrap_or_else(|| self.any_slot());
                let keys = split::transaction_keys(pipeline);
                self.follow((slot, keys), payload, plan, options).await
            }
            Payload::Pipeline(pipeline) => Box::pin(self.pipeline(pipeline, plan, options)).await,
            // That is what becomes of a call here, and none that is made.
            Payload::Portions(_) => Err(no_place(plan.name, ServedBy::Nothing)),
        };
        // Replicas may be read from since it began.
        if may_write {
            self.writes.note(payload, true);
        }
        result.inspect_err(|error| {
            // No node has counted it.
            let of_none = matches!(
                error.kind(),
                ErrorKind::Down { .. } | ErrorKind::Runtime { .. }
            );
            if of_none && error.at().is_none() {
                crate::metrics::count_error(error);
            }
        })
    }

    async fn command(&self, cmd: &Cmd, plan: Plan, options: &CallOptions) -> Result<Reply, Error> {
        let payload = Payload::Command(cmd);
        let (belongs, keys) = place_and_keys(command::arguments(cmd));
        match belongs {
            Belongs::Slot(slot) => {
                // Most calls end here: what others need is not carried along.
                self.follow_or_read((slot, keys), payload, plan, options)
                    .await
            }
            Belongs::Slots(slot, other) => {
                match split::command(cmd, options.divide_mset).map_err(indivisible) {
                    Ok(Some(parts)) => {
                        let joined = Box::pin(self.divided(&parts, &plan, options)).await;
                        joined.map(Reply::One)
                    }
                    Ok(None) | Err(_) => Err(Error::not_sent(ErrorKind::CrossSlot {
                        command: plan.name,
                        slots: (slot.number(), other.number()),
                    })),
                }
            }
            Belongs::AnyPrimary => {
                let slot = self.any_slot();
                self.follow((slot, keys), payload, plan, options).await
            }
            Belongs::AllPrimaries(joining) => {
                Box::pin(self.everywhere(payload, joining, plan, options)).await
            }
            // What a health check asks: of whichever node.
            Belongs::Refused(ServedBy::Node) if plan.name == "INFO" => {
                let slot = self.any_slot();
                self.follow((slot, keys), payload, plan, options).await
            }
            Belongs::Refused(served_by) => Err(no_place(plan.name, served_by)),
        }
    }

    /// A command of many keys, in a part for each slot.
    async fn divided(
        &self,
        split: &SplitCommand<'_>,
        plan: &Plan,
        options: &CallOptions,
    ) -> Result<Value, Error> {
        let read_from = options.read_from.unwrap_or(self.settings().read_from);
        // A read of a replica, and what replicas have to acknowledge, is each part's own.
        let apart = read_from != ReadFrom::Primary && plan.effect == Effect::Read
            || options.acknowledged_by.is_some();
        let outcomes = match apart {
            false => {
                let limits = Limits::new(plan.limit(options, self.settings().deadline)?);
                let room = CallRoom::default();
                let limits = limits.in_one(&room);
                let whole = Whole {
                    split,
                    plan,
                    options,
                    limits,
                    places: &OnceLock::new(),
                };
                self.together(whole).await
            }
            true => {
                let plan = &plan.clone().in_place_of(&Arc::default());
                let parts = split.parts().map(|part| async move {
                    let cmd = part.cmd();
                    let place = (part.slot(), keys_of_part(part));
                    let payload = Payload::Command(&cmd);
                    let answer = self.follow_or_read(place, payload, plan.clone(), options);
                    answer.await.and_then(one).map_err(|error| Failed {
                        certainty: error.certainty(),
                        error,
                    })
                });
                join_all(parts).await
            }
        };
        split.join(outcomes).map_err(|failed| {
            let keys = || (0..).zip(&failed.fates);
            let of = |unknown: bool| {
                let keys = keys().filter(|(_, fate)| match fate {
                    KeyFate::Done => false,
                    KeyFate::Failed(certainty) => (*certainty == Certainty::Unknown) == unknown,
                });
                keys.map(|(key, _)| key).collect()
            };
            let done = keys().filter(|(_, fate)| **fate == KeyFate::Done).count();
            let kind = ErrorKind::Partial {
                cause: failed.error.to_string().into(),
                done,
                not_run: of(false),
                unknown: of(true),
            };
            let error = Error::new(kind, failed.certainty);
            // Nothing was done: the reason says more.
            match done {
                0 => failed.error,
                _ => error,
            }
        })
    }

    /// A command that concerns every primary. Its answer is whole or an error.
    async fn everywhere(
        &self,
        payload: Payload<'_>,
        joining: Joining,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let limits = Limits::new(plan.limit(options, self.settings().deadline)?);
        self.reach(self.any_slot(), &super::Aim::Owner, &limits)
            .await?;
        if !self.routes.is_covered() {
            return Err(Error::not_sent(ErrorKind::Connect {
                cause: "slots of the cluster have no owner: see status().cluster.uncovered".into(),
            }));
        }
        let reads = plan.effect == Effect::Read;
        if reads {
            self.settled(limits.deadline).await;
        }
        let answers = self.of_all_owners(payload, &plan, options, &limits).await?;
        let some = may_be_done(&answers);
        let answers: Vec<_> = answers.into_values().collect();
        let joined = split::joined(plan.name, joining, answers);
        match joined {
            Ok(Value::ServerError(error)) => Err(Error::refused(error)),
            Ok(value) => Ok(Reply::One(value)),
            // Some have done it, or may have, and others not.
            Err(error) => Err(error.at_best(some && !reads)),
        }
    }

    /// Asks until there is an answer of each owner of slots, by their places.
    async fn of_all_owners(
        &self,
        payload: Payload<'_>,
        plan: &Plan,
        options: &CallOptions,
        limits: &Limits<'_>,
    ) -> Result<BTreeMap<u16, Result<Value, Error>>, Error> {
        let reads = plan.effect == Effect::Read;
        let mut answers = BTreeMap::new();
        let mut refusals = 0;
        loop {
            let owners = self.owners();
            // Keys that have gone over to another node would count twice.
            answers.retain(|owner, _| !reads || owners.contains(owner));
            let missing = owners.iter().filter(|owner| !answers.contains_key(owner));
            let missing: Vec<u16> = missing.copied().collect();
            if missing.is_empty() {
                return Ok(answers);
            }
            let failed = |error: Error| Err(error.at_best(!reads && may_be_done(&answers)));
            let mut nodes = Vec::new();
            for owner in missing {
                match self.node(owner) {
                    Ok(node) => nodes.extend(node),
                    Err(error) => return failed(error),
                }
            }
            if nodes.is_empty() {
                // Only a redirect has told of them: who they are, a view has to tell.
                self.trigger(Trigger::Doubt);
                match self.more_is_known(limits).await {
                    true => continue,
                    false => return failed(unknown_owner()),
                }
            }
            if clock::now() >= limits.deadline {
                return failed(limits.timed_out(Certainty::NotSent));
            }
            let asks = nodes.iter().map(|node| {
                let times = (limits.started, limits.limit);
                let attempt = node.attempt(payload, plan.clone(), options, times);
                async move { (node.number, attempt.await.and_then(one)) }
            });
            let asked = join_all(asks).await;
            let mut elsewhere = false;
            for (node, (number, answer)) in nodes.iter().zip(asked) {
                let answer = answer.map_err(|error| node.blame(error));
                elsewhere |= self.is_no_primary(&answer);
                answers.insert(number, answer);
            }
            // The last refusal stays: without it the others would pass for all.
            let again = elsewhere && refusals < MAX_HOPS;
            refusals += 1;
            if again && self.more_is_known(limits).await {
                answers.retain(|_, answer| !self.is_no_primary(answer));
            }
        }
    }

    /// Waits a little while a server has contradicted what is known and no view explains it.
    async fn settled(&self, deadline: Instant) {
        let until = deadline.min(clock::now() + self.settings().reconnect_grace);
        if self.gate.lock().is_contradicted() {
            // However often slots have moved of late: somebody waits for it.
            self.trigger(Trigger::Contradiction);
        }
        // The first answer may be that of a node which has not heard of it.
        while self.gate.lock().is_contradicted() && clock::now() < until {
            clock::sleep(SETTLING).await;
        }
    }

    /// The places of all owners at one moment: slots go over to another node one after the other.
    fn owners(&self) -> Vec<u16> {
        let owners = self.known.lock().topology.owners();
        owners.into_iter().map(MemberIndex::number).collect()
    }

    /// Whether a node has refused a command that concerns all primaries because it is none now. A
    /// failure is a reason to look who serves.
    fn is_no_primary(&self, answer: &Result<Value, Error>) -> bool {
        let Err(error) = answer else {
            return false;
        };
        match error.kind() {
            ErrorKind::Server(said) => {
                let details = said.details().unwrap_or_default();
                let routing = Routing::of(said.code(), details);
                if routing.as_ref().is_some_and(Routing::triggers_discovery) {
                    self.trigger(Trigger::Contradiction);
                }
                matches!(routing, Some(Routing::ReadOnly | Routing::Moved(_)))
            }
            ErrorKind::Lost { .. } | ErrorKind::Down { .. } | ErrorKind::Timeout { .. } => {
                self.trigger(Trigger::Loss);
                false
            }
            _ => false,
        }
    }

    /// A slot whose owner is in service, if there is one.
    pub(super) fn any_slot(&self) -> Slot {
        let mut rng = self.shared.rng();
        let mut any = || Slot::of_key(&rng.u32(..).to_be_bytes());
        let serves = |slot: &Slot| self.state_of(*slot) == ConnectionState::Ready;
        let first = any();
        match serves(&first) {
            true => first,
            false => (0..ANY).map(|_| any()).find(serves).unwrap_or(first),
        }
    }

    /// Returns a node's answer to a part as values; an error reply to a single command is one.
    pub(super) fn values(
        node: &Node,
        result: Result<Reply, Error>,
    ) -> Result<Vec<Value>, Failed<Error>> {
        match result {
            Ok(Reply::One(value)) => Ok(vec![value]),
            Ok(Reply::Many(values)) => Ok(values),
            Err(error) => Err(Failed {
                certainty: error.certainty(),
                error: node.blame(error),
            }),
        }
    }
}

/// Whether a command has run on a node, or may have.
fn may_be_done(answers: &BTreeMap<u16, Result<Value, Error>>) -> bool {
    answers.values().any(|answer| match answer {
        Ok(_) => true,
        Err(error) => error.certainty() == Certainty::Unknown,
    })
}

fn unknown_owner() -> Error {
    Error::not_sent(ErrorKind::Connect {
        cause: "a node that only a redirect has named owns slots, and no view names it yet".into(),
    })
}

/// How often it is looked whether a contradiction is explained.
const SETTLING: Duration = Duration::from_millis(10);

/// How many slots are looked at for one whose owner serves.
const ANY: usize = 16;

fn no_place(command: &'static str, served_by: ServedBy) -> Error {
    let instead = served_by.advice();
    Error::not_sent(ErrorKind::NoPlace { command, instead })
}

pub(super) fn indivisible(why: Indivisible) -> Error {
    Error::not_sent(match why {
        Indivisible::Slots { command, slots } => {
            let mut slots = slots.into_iter().map(Slot::number);
            let first = slots.next().unwrap_or_default();
            let slots = (first, slots.next().unwrap_or(first));
            ErrorKind::CrossSlot { command, slots }
        }
        Indivisible::NoPlace { command, served_by } => return no_place(command, served_by),
        Indivisible::Everywhere { command } => ErrorKind::NoPlace {
            command,
            instead: "it concerns every primary: send it outside the pipeline",
        },
        _ => ErrorKind::Invalid {
            why: "it cannot be sent to a cluster",
        },
    })
}

impl From<UnexpectedAnswer> for Error {
    fn from(_: UnexpectedAnswer) -> Self {
        let why = "a node has answered by what is no answer to the command";
        Self::new(ErrorKind::Invalid { why }, Certainty::Unknown)
    }
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Self {
        Self::refused(error)
    }
}
