//! The parts of a command that go to one node, as one request.
//!
//! A server takes an MGET only of keys of one slot, so one over a hundred slots is a hundred
//! commands. Those for one node travel together: one place in its queue, one call in flight. What
//! is answered to a part is its own: one that is redirected, or fails, goes on alone, by the rules
//! of any command of one slot, with the place that it has in the order of its slot.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Instant;

use futures_util::future::join_all;
use redis::Value;
use smallvec::SmallVec;
use steadfast_core::conn::Reply;
use steadfast_core::slot::{KeySet, Slot};
use steadfast_core::split::{Failed, Part, Portion, SplitCommand, UnexpectedAnswer};

use super::Cluster;
use super::journey::Begun;
use super::limits::Limits;
use super::node::Node;
use super::order::{Entry, Places};
use crate::call::Suspicion;
use crate::call::plan::{Payload, Plan, many, one};
use crate::clock;
use crate::error::Error;
use crate::options::CallOptions;
use crate::wire::queue::SharedPlaces;

/// The outcome of a part.
type Outcome = Result<Value, Failed<Error>>;

/// A command of several slots, and what its parts have in common.
#[derive(Clone, Copy)]
pub(super) struct Whole<'a> {
    pub(super) split: &'a SplitCommand<'a>,
    pub(super) plan: &'a Plan,
    pub(super) options: &'a CallOptions,
    pub(super) limits: Limits<'a>,
    /// The one place that all of it has at a node, whether it goes together or alone.
    pub(super) places: &'a OnceLock<Arc<SharedPlaces>>,
}

impl<'a> Whole<'a> {
    fn part(self, number: usize) -> Part<'a> {
        let part = self.split.part(number);
        part.expect("it is asked for parts by the numbers that they have")
    }
}

impl Cluster {
    /// Sends all parts, those for one node as one request. Returns what became of each.
    pub(super) async fn together(&self, whole: Whole<'_>) -> Vec<Outcome> {
        let mut groups: SmallVec<[(Arc<Node>, Vec<usize>); 4]> = SmallVec::new();
        let mut alone: Vec<usize> = Vec::new();
        for (number, part) in whole.split.parts().enumerate() {
            let owner = self.routes.owner(part.slot());
            let mut known = groups.iter_mut();
            if let Some((_, numbers)) = known.find(|(node, _)| Some(node.number) == owner) {
                numbers.push(number);
                continue;
            }
            // One that cannot be reached now is waited for.
            match owner.map(|owner| self.node(owner)) {
                Some(Ok(Some(node))) => groups.push((node, vec![number])),
                _ => alone.push(number),
            }
        }
        let groups = groups.into_iter();
        let groups = join_all(groups.map(|(node, numbers)| self.sent_to(node, numbers, whole)));
        let (sent, alone) = match alone.is_empty() {
            true => (groups.await, Vec::new()),
            false => tokio::join!(groups, self.each_alone(alone, whole)),
        };
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        outcomes.resize_with(whole.split.parts().len(), || None);
        for (number, outcome) in sent.into_iter().flatten().chain(alone) {
            outcomes[number] = Some(outcome);
        }
        let outcomes = outcomes.into_iter();
        outcomes.map(|one| one.unwrap_or_else(missing)).collect()
    }

    /// Sends parts to one node as one request, but for those that may not be sent now, because
    /// their slots change hands, or have: these go alone.
    async fn sent_to(
        &self,
        node: Arc<Node>,
        mut numbers: Vec<usize>,
        whole: Whole<'_>,
    ) -> Vec<(usize, Outcome)> {
        let mut wait = Vec::new();
        while !numbers.is_empty() {
            let parts = || numbers.iter().map(|number| whole.part(*number));
            let portions: Vec<Portion<'_>> = parts().map(Portion::Part).collect();
            let entries = parts().map(|part| Entry {
                slot: part.slot(),
                keys: keys_of_part(part),
                node: node.number,
                until: whole.limits.deadline,
            });
            let entries = entries.collect();
            let links = self.settings().connections;
            let plan = whole.plan.of_portions(&portions, whole.plan.effect, links);
            let plan = plan.in_place_of(whole.places.get_or_init(Arc::default));
            let (payload, sent) = (Payload::Portions(&portions), clock::now());
            let (times, before) = (whole.limits.of_attempt(0), Suspicion::default());
            let mut attempt = pin!(node.attempt_after(payload, plan, whole.options, times, before));
            let owns = |slot: Slot| self.routes.owner(slot) == Some(node.number);
            let stands = |slot: Slot| owns(slot) && !node.is_retired();
            let entered = self
                .order
                .enter_together(entries, sent, stands, attempt.as_mut());
            let (places, polled) = match entered.await {
                Ok(entered) => entered,
                Err(halted) => {
                    let is_halted = |at: &usize| halted.contains(at);
                    let (halt, go): (Vec<_>, Vec<_>) =
                        (0..numbers.len()).partition(|at| is_halted(at));
                    wait.extend(halt.into_iter().map(|at| numbers[at]));
                    numbers = go.into_iter().map(|at| numbers[at]).collect();
                    continue;
                }
            };
            let answered = async {
                match polled {
                    Poll::Ready(ended) => ended,
                    Poll::Pending => attempt.await,
                }
            };
            let begun = (&node, sent, places);
            // Those that wait hold up none of the others.
            let taken = async {
                let ended = answered.await;
                self.taken_apart(&numbers, ended, begun, whole).await
            };
            let (mut outcomes, waited) = match wait.is_empty() {
                true => (taken.await, Vec::new()),
                false => tokio::join!(taken, self.each_alone(wait, whole)),
            };
            outcomes.extend(waited);
            return outcomes;
        }
        self.each_alone(wait, whole).await
    }

    /// Gives each part what was answered to it; one that was not served goes on alone.
    async fn taken_apart(
        &self,
        numbers: &[usize],
        (result, before, suspicion): (Result<Reply, Error>, bool, Suspicion),
        (node, sent, mut places): (&Arc<Node>, Instant, Places<'_>),
        whole: Whole<'_>,
    ) -> Vec<(usize, Outcome)> {
        let mut outcomes = Vec::with_capacity(numbers.len());
        let mut goes_on = Vec::new();
        let answers = match result {
            Ok(reply) => many(reply),
            Err(error) => {
                goes_on.extend(numbers.iter().map(|number| (*number, error.clone())));
                Vec::new()
            }
        };
        for (number, answer) in numbers.iter().zip(answers) {
            match answer {
                Value::ServerError(said) => {
                    let name = whole.plan.name.as_bytes();
                    let error = Error::server(said, whole.plan.errors, name);
                    goes_on.push((*number, error));
                }
                value => outcomes.push((*number, Ok(value))),
            }
        }
        let slots = goes_on.iter().map(|(number, _)| whole.part(*number).slot());
        let mut apart = places.divide(slots);
        let goes_on = goes_on.into_iter().map(|(number, error)| {
            let begun = Begun {
                node: Arc::clone(node),
                sent,
                error,
                before,
                suspicion,
                // Each part has a slot of its own.
                places: apart.remove(&whole.part(number).slot()),
            };
            (number, begun)
        });
        let goes_on: Vec<_> = goes_on.collect();
        // As far as others are concerned, what was answered has run.
        places.ran();
        drop(places);
        if !goes_on.is_empty() {
            let alone = goes_on
                .into_iter()
                .map(|(number, begun)| self.alone(number, Some(begun), whole));
            outcomes.extend(join_all(alone).await);
        }
        outcomes
    }

    async fn each_alone(&self, numbers: Vec<usize>, whole: Whole<'_>) -> Vec<(usize, Outcome)> {
        let alone = numbers.into_iter();
        join_all(alone.map(|number| self.alone(number, None, whole))).await
    }

    /// Sends one part as a command of its own.
    async fn alone<'a>(
        &'a self,
        number: usize,
        begun: Option<Begun<'a>>,
        whole: Whole<'a>,
    ) -> (usize, Outcome) {
        let part = whole.part(number);
        let cmd = part.cmd();
        let (place, payload) = ((part.slot(), keys_of_part(part)), Payload::Command(&cmd));
        let (options, limits) = (whole.options, whole.limits);
        let places = whole.places.get_or_init(Arc::default);
        let plan = whole.plan.clone().in_place_of(places);
        let journey = self.journey(place, payload, plan, options, limits);
        let ended = Box::pin(journey.begun(begun).finish()).await;
        let outcome = ended.and_then(one).map_err(|error| Failed {
            certainty: error.certainty(),
            error,
        });
        (number, outcome)
    }
}

/// The part's keys, by their hashes.
pub(super) fn keys_of_part(part: Part<'_>) -> KeySet {
    KeySet::of(part.names())
}

/// The outcome of a part of which nobody has told what became of it.
fn missing() -> Outcome {
    let unexpected = UnexpectedAnswer {
        command: "a part",
        wanted: "there",
    };
    let error = Error::from(unexpected);
    let certainty = error.certainty();
    Err(Failed { error, certainty })
}
