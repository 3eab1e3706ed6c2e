//! The answers of nodes to their parts of a pipeline, and what they say about who serves.

use std::collections::BTreeSet;
use std::time::Instant;

use redis::Value;
use steadfast_core::command::Effect;
use steadfast_core::redirect::{MAX_HOPS, Routing};
use steadfast_core::slot::Slot;
use steadfast_core::split::Failed;
use steadfast_core::split::pipeline::{SplitPipeline, Terms};
use steadfast_core::topology::Trigger;

use super::next_round::{NextRound, is_served_by_nobody};
use super::round::Round;
use super::{Aims, PipelineRun, Whole};
use crate::call::Suspicion;
use crate::client::cluster::Cluster;
use crate::client::cluster::reach::is_for_want_of_a_primary;
use crate::error::{Error, ErrorKind};

/// A node's answers to some of its commands.
pub(super) struct Answer {
    pub(super) units: Vec<usize>,
    pub(super) result: Result<Vec<Value>, Failed<Error>>,
    /// Whether an earlier try at this node may have run.
    pub(super) before: bool,
    pub(super) suspicion: Suspicion,
}

impl Answer {
    /// Whether there is no error in it, which might be a reason to send something again.
    pub(super) fn is_final(&self) -> bool {
        let values = self.result.as_ref();
        let is_error = |value: &Value| matches!(value, Value::ServerError(_));
        !self.before && values.is_ok_and(|values| !values.iter().any(is_error))
    }

    /// Returns those of its commands that have no answer, or an error for one.
    pub(super) fn not_served(&self) -> Vec<usize> {
        let Ok(values) = &self.result else {
            return self.units.clone();
        };
        let answered = self.units.iter().zip(values);
        let errors = answered.filter(|(_, value)| matches!(value, Value::ServerError(_)));
        let without = self.units.iter().skip(values.len());
        errors
            .map(|(unit, _)| unit)
            .chain(without)
            .copied()
            .collect()
    }

    /// Returns the slots of those of its commands that may be sent again.
    pub(super) fn may_go_again(&self, whole: Whole<'_>) -> BTreeSet<Slot> {
        let split = whole.split;
        let goes_again = |(unit, value): (&usize, &Value)| {
            routing_in(value).is_some_and(|routing| {
                let aside =
                    routing == Routing::TryAgain && split.effect_of(&[*unit]) == Effect::Read;
                routing.follows() && !aside || is_for_want_of_a_primary(&routing)
            })
        };
        let units = self.units.iter();
        let slot = |unit: &usize| split.slot_of(*unit);
        match &self.result {
            Ok(values) => {
                let units = units.zip(values).filter(|answer| goes_again(*answer));
                units.filter_map(|(unit, _)| slot(unit)).collect()
            }
            Err(failed) if is_served_by_nobody(&failed.error, whole.plan.effect) => {
                units.filter_map(slot).collect()
            }
            Err(_) => BTreeSet::new(),
        }
    }
}

impl Round {
    /// Returns the slots of which all has been answered in this part, given by its number, and
    /// nothing by an error.
    pub(super) fn served_by(
        &self,
        part: usize,
        answers: &[Answer],
        split: &SplitPipeline<'_, Error>,
    ) -> Vec<Slot> {
        // What is held back is of a slot of others, and is to keep its place.
        let in_part = self.in_one.get(part).filter(|_| !self.holds);
        let Some(in_part) = in_part.filter(|slots| !slots.is_empty()) else {
            return Vec::new();
        };
        let not_served = answers.iter().flat_map(Answer::not_served);
        let not_served: BTreeSet<Slot> =
            not_served.filter_map(|unit| split.slot_of(unit)).collect();
        let all = in_part.iter().copied();
        all.filter(|slot| !not_served.contains(slot)).collect()
    }
}

impl<'a> PipelineRun<'a> {
    /// Takes in what nodes have answered; false if nothing is sent again.
    pub(super) async fn take_in(
        &mut self,
        round: &Round,
        answers: Vec<Vec<Answer>>,
        sent: Instant,
    ) -> bool {
        if answers.iter().flatten().all(Answer::is_final) {
            for Answer { units, result, .. } in answers.into_iter().flatten() {
                self.split.record(&units, result.unwrap_or_default(), None);
            }
            return round.holds;
        }
        let mut next = NextRound::default();
        let answers = round.parts.iter().zip(answers);
        let answers =
            answers.flat_map(|(part, answers)| answers.into_iter().map(move |one| (part, one)));
        for (part, answer) in answers {
            let Answer {
                units,
                result,
                before,
                suspicion,
            } = answer;
            self.suspect(&units, suspicion);
            match result {
                Ok(values) => {
                    let cluster = self.cluster;
                    let aims = &mut next.aims;
                    let scripts = units.iter().map(|unit| self.split.is_script(*unit));
                    let answers = values.iter().zip(scripts);
                    next.pauses |= cluster.note_redirects(part.node, answers, sent, aims);
                    if before {
                        self.split.may_have_run_before(&redirected(&units, &values));
                    }
                    self.note_scripts_that_have_run(part.node, &units, &values);
                    let waits = self.refused_for_want_of_a_primary(&units, &values, before);
                    self.split.record(&units, values, None);
                    // What is refused for now is so by its own node.
                    let is_owner = |unit: &usize| cluster.routes.owner(self.slot_of(*unit));
                    let stay = units.iter().copied();
                    let stay: Vec<_> = stay
                        .filter(|unit| {
                            is_owner(unit) == part.node && waits.binary_search(unit).is_err()
                        })
                        .collect();
                    next.unserved
                        .extend(waits.into_iter().map(|unit| self.slot_of(unit)));
                    self.split.end_here(&stay);
                }
                Err(failed) => self.take_in_failure(part.node, &units, failed, round, &mut next),
            }
        }
        self.rounds += 1;
        // What waits for a migration is bounded by the deadline only: to and fro between two nodes,
        // if its keys are nowhere yet.
        self.hops = match next.pauses {
            true => 0,
            false => self.hops + u32::from(!next.aims.is_empty()),
        };
        let terms = Terms {
            follow: self.hops <= MAX_HOPS,
            retry: next.elsewhere || !next.unserved.is_empty(),
            effect: self.options.effect,
        };
        let again = self.split.again(terms, |effect| {
            matches!(effect, Effect::Read | Effect::LastWins)
        });
        !again.is_nothing() && self.gets_ready(next).await
    }

    /// Gets what waits ready to be sent again; false if there is no time for that.
    async fn gets_ready(&mut self, mut next: NextRound) -> bool {
        let any = self.any;
        let waiting = self.split.waiting_slots();
        let waiting: BTreeSet<Slot> = waiting.map(|slot| slot.unwrap_or(any)).collect();
        // A script may have said so by itself.
        next.unserved.retain(|slot| waiting.contains(slot));
        // Before the wait.
        self.leave_what_is_over();
        if let Err(error) = self.wait_before(&next).await {
            self.end_all(&error);
            return false;
        }
        self.find(next.aims).await;
        true
    }

    /// Notes which connections have ended at these commands.
    fn suspect(&mut self, units: &[usize], suspicion: Suspicion) {
        if suspicion == Suspicion::default() {
            return;
        }
        for unit in units {
            let of_slot = self.suspicions.entry(self.slot_of(*unit)).or_default();
            *of_slot = of_slot.or(suspicion);
        }
    }

    /// Notes the scripts that were answered a redirect to the very node that they were asked of. No
    /// server does that, so the words are theirs, and they have run.
    fn note_scripts_that_have_run(&mut self, node: Option<u16>, units: &[usize], values: &[Value]) {
        let Some(node) = node.and_then(|number| self.cluster.routes.node(number)) else {
            return;
        };
        for (unit, value) in units.iter().zip(values) {
            let routing = routing_in(value);
            if self.split.is_script(*unit)
                && routing.is_some_and(|routing| self.cluster.leads_to(&routing, &node))
            {
                self.split.script_has_run(*unit);
            }
        }
    }
}

impl Cluster {
    /// Takes in the redirects among the answers of a node; true if some are to be tried again after
    /// a pause.
    fn note_redirects<'v>(
        &self,
        node: Option<u16>,
        answers: impl Iterator<Item = (&'v Value, bool)>,
        sent: Instant,
        aims: &mut Aims,
    ) -> bool {
        let Some(node) = node.and_then(|number| self.routes.node(number)) else {
            return false;
        };
        let mut pauses = false;
        let before = aims.len();
        for (value, is_script) in answers {
            let (slot, aim) = match routing_in(value) {
                Some(routing) if is_script && self.leads_to(&routing, &node) => continue,
                Some(Routing::Moved(redirect)) if is_script => {
                    // Where its slot is served is better told by another command.
                    let pointed = || self.pointed(&node, &redirect);
                    aims.entry(redirect.slot).or_insert_with(pointed);
                    continue;
                }
                Some(Routing::Moved(redirect)) => {
                    (redirect.slot, self.moved(&node, &redirect, sent))
                }
                Some(Routing::Ask(redirect)) => (redirect.slot, self.asked(&node, &redirect)),
                Some(Routing::TryAgain) => {
                    pauses = true;
                    continue;
                }
                Some(routing) if routing.triggers_discovery() => {
                    self.trigger(Trigger::Contradiction);
                    continue;
                }
                _ => continue,
            };
            aims.insert(slot, aim);
        }
        let added = aims.len() - before;
        self.redirects
            .fetch_add(added as u64, std::sync::atomic::Ordering::Relaxed);
        pauses
    }

    /// Notes where slots go, by what a node has answered just now.
    pub(super) fn note_asks(&self, node: Option<u16>, answers: &[Answer]) {
        let values = answers
            .iter()
            .filter_map(|answer| answer.result.as_ref().ok());
        for routing in values.flatten().filter_map(routing_in) {
            if let Routing::Ask(redirect) = routing
                && let Some(node) = node.and_then(|number| self.routes.node(number))
            {
                self.note_ask(&node, &redirect);
            }
        }
    }

    /// A failure may be a reason to look who serves.
    pub(super) fn doubt_after(&self, error: &Error) {
        if matches!(
            error.kind(),
            ErrorKind::Lost { .. } | ErrorKind::Down { .. } | ErrorKind::Timeout { .. }
        ) {
            self.trigger(Trigger::Loss);
        }
    }
}

/// Those of the commands that were redirected.
fn redirected(units: &[usize], values: &[Value]) -> Vec<usize> {
    let answered = units.iter().zip(values);
    let redirected =
        answered.filter(|(_, value)| routing_in(value).is_some_and(|routing| routing.follows()));
    redirected.map(|(unit, _)| *unit).collect()
}

/// Returns what an answer says about who serves.
pub(super) fn routing_in(value: &Value) -> Option<Routing> {
    let Value::ServerError(error) = value else {
        return None;
    };
    Routing::of(error.code(), error.details().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;
    use steadfast_core::split::DivideMset;

    use super::super::PipelinePart;
    use super::super::round::slots_in_one;
    use super::*;

    #[test]
    fn t7_t9_a_slot_is_not_served_while_a_command_of_it_is_in_a_later_part() {
        let mut pipeline = redis::pipe();
        pipeline.set("{other}1", 0).set("{k}1", 1);
        pipeline.set("{k}2", 2).set("{other}2", 3);
        let mut split = SplitPipeline::<Error>::new(&pipeline, DivideMset::No).unwrap();
        let parts = split.to_send(|_| Some(0u16));
        let [k, other] = ["k", "other"].map(|key| Slot::of_key(key.as_bytes()));
        let said = |line: String| parse_redis_value(line.as_bytes()).unwrap();
        let moved = |slot| said(format!("-MOVED {slot} h:1\r\n"));
        let ask = said(format!("-ASK {k} h:1\r\n"));
        let answers = vec![moved(other), ask, moved(k), moved(other)];
        split.record(parts[0].units(), answers, None);
        let terms = Terms {
            follow: true,
            retry: true,
            effect: None,
        };
        split.again(terms, |_| false);
        let parts = split.to_send(|_| Some(1u16));
        let units: Vec<_> = parts.iter().map(|part| part.units()).collect();
        assert_eq!(units, [&[0][..], &[1], &[2, 3]]);
        let round = Round {
            in_one: slots_in_one(&parts, &split),
            ..round_of(parts)
        };
        for part in 0..3 {
            assert_eq!(served(&round, part, &split), [], "part {part}");
        }

        // To nodes of their own, each is free when its node has answered.
        for part in &round.parts {
            split.take_back(part.units());
        }
        split.ask_anew(|_| true);
        let parts = split.to_send(|target| Some(u16::from(target.slot == Some(k))));
        let round = Round {
            in_one: slots_in_one(&parts, &split),
            ..round_of(parts)
        };
        let each = [0, 1].map(|part| served(&round, part, &split));
        assert_eq!(each, [[other], [k]]);
        let holds = Round {
            holds: true,
            ..round
        };
        assert_eq!(served(&holds, 0, &split), []);
    }

    fn round_of(parts: Vec<PipelinePart>) -> Round {
        Round {
            parts,
            goes: Vec::new(),
            strays: BTreeSet::new(),
            holds: false,
            asks: BTreeSet::new(),
            in_one: Vec::new(),
        }
    }

    /// Returns what is served when all of this part has been answered.
    fn served(round: &Round, part: usize, split: &SplitPipeline<'_, Error>) -> Vec<Slot> {
        let units = round.parts[part].units().to_vec();
        let answer = Answer {
            result: Ok(vec![Value::Okay; units.len()]),
            units,
            before: false,
            suspicion: Suspicion::default(),
        };
        round.served_by(part, &[answer], split)
    }
}
