//! A pipeline on its way to several nodes.

mod answers;
mod apart;
mod ending;
mod next_round;
mod round;
mod sending;

use std::collections::{BTreeMap, BTreeSet};

use redis::Pipeline;
use steadfast_core::conn::Reply;
use steadfast_core::node::NodeId;
use steadfast_core::slot::Slot;
use steadfast_core::split::Failed;
use steadfast_core::split::pipeline::{NodePart, SplitPipeline};

use self::apart::Course;
use self::ending::failed;
use self::round::Round;
use self::sending::RoundSent;
use super::limits::Limits;
use super::order::{CallRoom, InLine, Places};
use super::parts::indivisible;
use super::reach::no_room;
use super::{Aim, Cluster};
use crate::call::Suspicion;
use crate::call::plan::Plan;
use crate::clock;
use crate::error::{Certainty, Error};
use crate::options::CallOptions;

/// Where redirects lead to, by slot; `None` if that is yet to be found out.
type Aims = BTreeMap<Slot, Option<Aim>>;

/// The nodes that redirects lead to, by slot.
type Turns = BTreeMap<Slot, u16>;

/// By slot: what is suspected of its commands.
type Suspicions = BTreeMap<Slot, Suspicion>;

type PipelinePart = NodePart<Option<u16>>;

/// A pipeline on its way.
struct PipelineRun<'a> {
    cluster: &'a Cluster,
    pipeline: &'a Pipeline,
    plan: Plan,
    options: &'a CallOptions,
    limits: Limits<'a>,
    /// The slot of what has none.
    any: Slot,
    split: SplitPipeline<'a, Error>,
    /// The slots for which there was no node when it came.
    unknown: BTreeSet<Slot>,
    places: Option<Places<'a>>,
    /// Its place among those that wait for the gates of its slots.
    line: Option<InLine<'a>>,
    turns: Turns,
    /// By slot: the nodes at which an attempt that was given up may still run, and how it failed.
    abandoned: BTreeMap<Slot, Vec<(NodeId, Failed<Error>)>>,
    suspicions: Suspicions,
    rounds: u32,
    hops: u32,
    pauses: u32,
    waits: u32,
    /// Whether nothing of it waits for a primary any more.
    has_waited: bool,
}

/// The pipeline that parts belong to.
#[derive(Clone, Copy)]
struct Whole<'a> {
    pipeline: &'a Pipeline,
    split: &'a SplitPipeline<'a, Error>,
    suspicions: &'a Suspicions,
    plan: &'a Plan,
    options: &'a CallOptions,
}

impl Whole<'_> {
    /// Returns what is suspected of any of these commands.
    fn suspicion_of(&self, units: &[usize]) -> Suspicion {
        if self.suspicions.is_empty() {
            return Suspicion::default();
        }
        let slots = units.iter().filter_map(|unit| self.split.slot_of(*unit));
        let suspicions = slots.filter_map(|slot| self.suspicions.get(&slot).copied());
        suspicions.fold(Suspicion::default(), Suspicion::or)
    }
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
        let room = CallRoom::default();
        let limits = limits.in_one(&room);
        let split =
            SplitPipeline::<Error>::new(pipeline, options.divide_mset).map_err(indivisible)?;
        let any = split.slots().next().unwrap_or_else(|| self.any_slot());
        let mut whole = PipelineRun {
            cluster: self,
            pipeline,
            plan,
            options,
            limits,
            any,
            split,
            unknown: BTreeSet::new(),
            places: None,
            line: None,
            turns: Turns::new(),
            abandoned: BTreeMap::new(),
            suspicions: Suspicions::new(),
            rounds: 0,
            hops: 0,
            pauses: 0,
            waits: 0,
            has_waited: false,
        };
        let nothing = whole.split.emptied();
        let mut parts = whole.line_up();
        let course = match parts.is_empty() {
            true => whole.run().await,
            false => {
                parts.push(whole);
                Course::Parts(parts)
            }
        };
        let split = match course {
            Course::Ended(split) => split,
            Course::Parts(parts) => Box::pin(PipelineRun::run_apart(nothing, parts)).await,
        };
        split.finish().map(Reply::Many).map_err(failed)
    }
}

impl<'a> PipelineRun<'a> {
    async fn run(mut self) -> Course<'a> {
        if !self.unknown.is_empty() {
            Box::pin(self.wait_for_the_unknown()).await;
        }
        loop {
            let round = self.next_round();
            if round.parts.is_empty() {
                break;
            }
            let sent = clock::now();
            match self.send(&round, sent).await {
                RoundSent::Answered(answers) => {
                    if !self.take_in(&round, answers, sent).await {
                        break;
                    }
                }
                RoundSent::Elsewhere => {
                    // Each command goes to whoever owns its slot now.
                    self.take_back(&round);
                    if self.limits.deadline <= clock::now() {
                        self.end_all(&self.limits.timed_out(Certainty::NotSent));
                        break;
                    }
                }
                RoundSent::Outdated(slots) => {
                    self.take_back(&round);
                    self.ask_anew(&slots);
                }
                RoundSent::Divided(slots) => {
                    self.take_back(&round);
                    match self.part_with(&slots) {
                        Some(mut parts) => {
                            parts.push(self);
                            return Course::Parts(parts);
                        }
                        None => self.end_in(&slots, &no_room()),
                    }
                }
                RoundSent::Overtaken(keys) => {
                    self.take_back(&round);
                    self.end_of_keys(&keys);
                }
                RoundSent::Never(error) => {
                    self.take_back(&round);
                    self.end_all(&error);
                    break;
                }
            }
        }
        match &mut self.places {
            Some(places) if self.split.has_run() => places.ran(),
            _ => self.leave_what_is_over(),
        }
        Course::Ended(self.split)
    }

    /// Makes parts that were not sent ready to be divided anew.
    fn take_back(&mut self, round: &Round) {
        for part in &round.parts {
            self.split.take_back(part.units());
        }
    }

    /// The owners of these slots know better now than their ASK. It has led nowhere, so it counts
    /// for none.
    fn ask_anew(&mut self, slots: &[Slot]) {
        let slots: BTreeSet<&Slot> = slots.iter().collect();
        self.split.ask_anew(|slot| slots.contains(&slot));
        self.hops = self.hops.saturating_sub(1);
    }

    /// Returns the slot of a command, given by its number.
    fn slot_of(&self, unit: usize) -> Slot {
        self.split.slot_of(unit).unwrap_or(self.any)
    }
}
