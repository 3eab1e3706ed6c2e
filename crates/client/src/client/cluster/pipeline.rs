//! A pipeline on its way to several nodes.

mod outlook;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::{Pipeline, Value};
use smallvec::SmallVec;
use steadfast_core::command::Effect;
use steadfast_core::conn::Reply;
use steadfast_core::node::NodeId;
use steadfast_core::redirect::{MAX_HOPS, Routing};
use steadfast_core::slot::{KeySet, Slot};
use steadfast_core::split::pipeline::{
    CommandOutcome, NodePart, PipelineFailed, SplitPipeline, Target, Terms,
};
use steadfast_core::split::{Failed, Portion};
use steadfast_core::topology::Trigger;

use self::outlook::{Outlook, is_served_by_nobody};
use super::journey::{Limits, is_for_want_of_a_primary, no_room};
use super::node::Node;
use super::order::{Again, CallRoom, Entered, Entry, InLine, LostKeys, NOBODY, Places, Slots};
use super::parts::indivisible;
use super::{Aim, Cluster};
use crate::call::Suspicion;
use crate::call::plan::{Payload, Plan};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::options::CallOptions;

/// Where redirects lead to, by slot; `None` if that is yet to be found out.
type Aims = BTreeMap<Slot, Option<Aim>>;

/// The nodes that redirects lead to, by slot.
type Turns = BTreeMap<Slot, u16>;

/// A node's answers to some of its commands.
struct Answer {
    units: Vec<usize>,
    result: Result<Vec<Value>, Failed<Error>>,
    /// Whether an earlier try at this node may have run.
    before: bool,
    suspicion: Suspicion,
}

/// The result of an attempt at a node: its answers, whether an earlier try there may have run, and
/// which connections have ended at it.
type Tried = (Result<Vec<Value>, Failed<Error>>, bool, Suspicion);

/// By slot: what is suspected of its commands.
type Suspicions = BTreeMap<Slot, Suspicion>;

impl Answer {
    /// Whether there is no error in it, which might be a reason to send something again.
    fn is_final(&self) -> bool {
        let values = self.result.as_ref();
        let is_error = |value: &Value| matches!(value, Value::ServerError(_));
        !self.before && values.is_ok_and(|values| !values.iter().any(is_error))
    }

    /// Returns those of its commands that have no answer, or an error for one.
    fn not_served(&self) -> Vec<usize> {
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
    fn may_go_again(&self, whole: Whole<'_>) -> BTreeSet<Slot> {
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

type PipelinePart = NodePart<Option<u16>>;

/// A pipeline on its way.
struct Voyage<'a> {
    cluster: &'a Cluster,
    pipeline: &'a Pipeline,
    plan: Plan,
    options: &'a CallOptions,
    limits: Limits<'a>,
    /// The slot of what has none.
    any: Slot,
    split: SplitPipeline<'a, Error>,
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

/// The parts that are sent at once.
struct Round {
    parts: Vec<PipelinePart>,
    /// The slots of its commands, and the nodes that they go to, with their keys. Reads that
    /// were answered TRYAGAIN take no turn, wherever they go.
    goes: Vec<((Slot, u16), KeySet)>,
    /// The slots that go where a redirect leads, and not to their owners.
    strays: BTreeSet<Slot>,
    /// Whether some are held back.
    holds: bool,
    /// The slots that go where an ASK leads.
    asks: BTreeSet<(Slot, u16)>,
}

impl Round {
    /// Returns its parts in the order of its slots.
    fn entries(&self, until: Instant) -> SmallVec<[Entry; 1]> {
        let entry = |((slot, node), keys): &((Slot, u16), KeySet)| Entry {
            slot: *slot,
            keys: keys.clone(),
            node: *node,
            until,
        };
        self.goes.iter().map(entry).collect()
    }

    /// Returns the slots of which all has been answered by one node, and nothing by an error.
    fn served_by(
        &self,
        part: &PipelinePart,
        answers: &[Answer],
        split: &SplitPipeline<'_, Error>,
    ) -> Vec<Slot> {
        // What is held back is of a slot of others, and is to keep its place.
        if self.holds {
            return Vec::new();
        }
        let not_served = answers.iter().flat_map(Answer::not_served);
        let not_served: BTreeSet<Slot> =
            not_served.filter_map(|unit| split.slot_of(unit)).collect();
        let here = part.node.unwrap_or(NOBODY);
        let is_all = |at: usize| {
            let ((slot, node), _) = &self.goes[at];
            let next = self.goes.get(at + 1).map(|((slot, _), _)| slot);
            let last = at.checked_sub(1).map(|at| &self.goes[at].0.0);
            let is_alone = next != Some(slot) && last != Some(slot);
            *node == here && is_alone && !self.asks.contains(&(*slot, *node))
        };
        let all = (0..self.goes.len()).filter(|at| is_all(*at));
        let all = all.map(|at| self.goes[at].0.0);
        all.filter(|slot| !not_served.contains(slot)).collect()
    }
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

/// The result of sending them.
enum RoundSent {
    Answered(Vec<Vec<Answer>>),
    /// Slots change hands, or have: nothing was sent.
    Elsewhere,
    /// The ASK of these slots is old: nothing was sent.
    Outdated(Slots),
    /// These slots change hands, and others do not: nothing was sent.
    Divided(Slots),
    /// Later commands of these keys have run: nothing was sent.
    Overtaken(LostKeys),
    /// The commands may not be sent again.
    Never(Error),
}

/// The way of a pipeline, or of a part of it, until it has ended or parts.
enum Course<'a> {
    Ended(SplitPipeline<'a, Error>),
    /// What waits goes apart from what does not, each of its slots by itself.
    Parts(Vec<Voyage<'a>>),
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
        let is_known = |slot: &Slot| matches!(self.found(*slot, &Aim::Owner), Ok(Some(_)));
        let slots = || split.slots().chain([any]);
        let all_unknown = || slots().filter(|slot| !is_known(slot)).collect();
        let mut unknown: BTreeSet<Slot> = all_unknown();
        let mut places = None;
        if !unknown.is_empty() {
            // Half of a view would send those that wait for the other half in any order.
            let _whole = self.taking_in.lock();
            unknown = all_unknown();
            if !unknown.is_empty() {
                places = self.line_up_for_first_view(keys_of(split.waiting(), any), &limits);
            }
        }
        if places.is_some() {
            // A first view is waited for once, and not by each slot.
            let first = self.reach(any, &Aim::Owner, &limits).await;
            if let Err(error) = first.map(drop)
                && !slots().any(|slot| is_known(&slot))
            {
                return Err(error);
            }
        }
        // Nobody waits for a node twice, nor for one after another.
        let unknown = unknown.iter().filter(|slot| !is_known(slot));
        let reached = unknown.map(|slot| self.reach(*slot, &Aim::Owner, &limits));
        let last = join_all(reached).await.pop();
        if let Some(Err(error)) = last
            && !slots().any(|slot| is_known(&slot))
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
            places,
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
        let nothing = voyage.split.emptied();
        let split = match voyage.run().await {
            Course::Ended(split) => split,
            Course::Parts(parts) => Box::pin(Voyage::run_apart(nothing, parts)).await,
        };
        split.finish().map(Reply::Many).map_err(failed)
    }
}

impl<'a> Voyage<'a> {
    /// Runs the parts of a pipeline until all have ended, and joins them.
    async fn run_apart(
        mut whole: SplitPipeline<'a, Error>,
        parts: Vec<Self>,
    ) -> SplitPipeline<'a, Error> {
        let mut under_way: FuturesUnordered<_> = parts.into_iter().map(Self::run).collect();
        let mut ended = Vec::new();
        while let Some(course) = under_way.next().await {
            match course {
                Course::Ended(part) => ended.push(part),
                Course::Parts(parts) => under_way.extend(parts.into_iter().map(Self::run)),
            }
        }
        whole.join(ended);
        whole
    }

    async fn run(mut self) -> Course<'a> {
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

    /// Ends what is to be sent of these slots, and is not after all. Of what was sent in an earlier
    /// round that is remembered.
    fn end_in(&mut self, slots: &[Slot], error: &Error) {
        let slots: BTreeSet<&Slot> = slots.iter().collect();
        self.split.end(|target| {
            let ends = target.slot.is_some_and(|slot| slots.contains(&slot));
            ends.then(|| not_sent_for(error))
        });
    }

    /// Ends what has to do with these keys. What else is to be sent of their slots has its turn
    /// still.
    fn end_of_keys(&mut self, lost: &LostKeys) {
        let error = Error::new(ErrorKind::Overtaken, Certainty::NotSent);
        let mut ended = false;
        self.split.end(|target| {
            let lost = lost.get(&target.slot?)?;
            lost.share(target.keys).then(|| {
                ended = true;
                not_sent_for(&error)
            })
        });
        if !ended {
            let slots: Slots = lost.keys().copied().collect();
            self.end_in(&slots, &error);
        }
    }

    /// Ends all that is to be sent.
    fn end_all(&mut self, error: &Error) {
        self.split.end(|_| Some(not_sent_for(error)));
    }

    /// Takes out what waits for these slots, in a part for each: its other commands, and those of
    /// others, do not wait with it. `None` if as many calls wait as may.
    fn part_with(&mut self, slots: &[Slot]) -> Option<Vec<Self>> {
        let mut lines = match &mut self.line {
            Some(line) => line.divide(slots)?,
            None => BTreeMap::new(),
        };
        // What waits for others is that, and not this.
        self.line.take_if(|line| line.is_empty());
        self.plan.places.get_or_insert_with(Arc::default);
        let slots = || slots.iter().copied();
        let mut places = self.places.as_mut().map(|places| places.divide(slots()));
        let parts = self.split.divide(slots()).into_iter();
        let parts = parts.map(|(slot, split)| Self {
            plan: self.plan.clone(),
            turns: self.turns_of(&split),
            abandoned: only(&self.abandoned, slot),
            suspicions: only(&self.suspicions, slot),
            places: places.as_mut().and_then(|places| places.remove(&slot)),
            line: lines.remove(&slot),
            split,
            ..*self
        });
        Some(parts.collect())
    }

    /// Returns where redirects lead to of these commands.
    fn turns_of(&self, split: &SplitPipeline<'_, Error>) -> Turns {
        let slots = split.waiting().map(|target| slot_led_to(target, self.any));
        let turns = slots.filter_map(|slot| self.turns.get_key_value(&slot));
        turns.map(|(slot, node)| (*slot, *node)).collect()
    }

    /// Divides what is to be sent by the nodes that it goes to now.
    fn next_round(&mut self) -> Round {
        self.end_where_abandoned();
        self.leave_what_is_over();
        let (cluster, turns, any) = (self.cluster, &self.turns, self.any);
        let parts = self
            .split
            .to_send(|target| cluster.node_of(target, any, turns));
        let mut goes = Vec::new();
        let (mut strays, mut asks) = (BTreeSet::new(), BTreeSet::new());
        for part in &parts {
            let units = part.units().iter();
            for target in units.filter_map(|unit| self.split.target(*unit)) {
                let Some(slot) = target.slot else {
                    continue;
                };
                if !target.aside {
                    goes.push(((slot, part.node.unwrap_or(NOBODY)), target.keys.clone()));
                }
                if part.node != cluster.routes.owner(slot) {
                    strays.insert(slot);
                }
                if matches!(target.redirect, Some(Routing::Ask(_))) {
                    asks.insert((slot, part.node.unwrap_or(NOBODY)));
                }
            }
        }
        let held = self.split.waiting().filter_map(|target| target.slot);
        let held: BTreeSet<Slot> = held.collect();
        if let Some(places) = &mut self.places {
            // Reads that wait for a migration hold up nobody; what waits for them does.
            let takes_turns: BTreeSet<Slot> = goes.iter().map(|((slot, _), _)| *slot).collect();
            let takes_part = |slot: &Slot| takes_turns.contains(slot) || held.contains(slot);
            places.stand_aside(|slot| !takes_part(&slot));
            held.difference(&takes_turns)
                .for_each(|slot| places.hold(*slot));
        }
        goes.sort_by_key(|(goes, _)| *goes);
        let of_one = goes.chunk_by(|(one, _), (other, _)| one == other);
        let all = of_one.map(|of_one| {
            let keys = of_one.iter().map(|(_, keys)| keys);
            (of_one[0].0, KeySet::all(keys))
        });
        Round {
            goes: all.collect(),
            parts,
            strays,
            holds: !held.is_empty(),
            asks,
        }
    }

    /// Leaves the order of what is answered, or has ended otherwise: it holds up nobody.
    fn leave_what_is_over(&mut self) {
        let Some(places) = &mut self.places else {
            return;
        };
        let waits = self.split.waiting().filter(|target| !target.aside);
        let (waiting, ran) = (
            keys_of(waits, self.any),
            keys_of(self.split.ran(), self.any),
        );
        let ran = |slot: Slot| ran.get(&slot).cloned().unwrap_or(KeySet::Empty);
        places.leave_all_but(|slot| waiting.get(&slot).cloned(), ran);
    }

    async fn send(&mut self, round: &Round, sent: Instant) -> RoundSent {
        let (cluster, limits) = (self.cluster, self.limits);
        let Round {
            parts, goes, asks, ..
        } = round;
        let whole = Whole {
            pipeline: self.pipeline,
            split: &self.split,
            suspicions: &self.suspicions,
            plan: &self.plan,
            options: self.options,
        };
        let times = limits.of_attempt(self.rounds);
        // After a pause there may be no time left: what is sent then is of unknown outcome.
        if times.1.is_zero() {
            return RoundSent::Never(limits.timed_out(Certainty::NotSent));
        }
        // While other nodes have yet to answer: the slots of what may be sent again, and those of
        // which all is served.
        let (unserved, served) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
        let sends = parts.iter().map(|part| async {
            let answers = cluster.send_part(part, whole, times).await;
            // Others may take their time to answer, in which this grows old.
            cluster.note_asks(part.node, &answers);
            let slots = answers.iter().map(|answer| answer.may_go_again(whole));
            slots.for_each(|slots| unserved.lock().extend(slots));
            served
                .lock()
                .extend(round.served_by(part, &answers, whole.split));
            answers
        });
        let mut sends = pin!(join_all(sends));
        // Whoever comes from now on waits for it: one that is served would overtake it.
        let close = || {
            let slots = std::mem::take(&mut *unserved.lock());
            slots.into_iter().for_each(|slot| cluster.order.close(slot));
        };
        let polled = match &mut self.places {
            None => {
                let entries = round.entries(limits.deadline);
                let owner = |slot: Slot| cluster.routes.owner(slot).unwrap_or(NOBODY);
                let stands = || goes.iter().all(|((slot, node), _)| owner(*slot) == *node);
                let line = (&mut self.line, limits.room);
                let entered = cluster
                    .order
                    .enter(entries, sent, stands, line, sends.as_mut());
                match entered.await {
                    Entered::Sent(entered, polled) => {
                        self.places = Some(entered);
                        polled
                    }
                    Entered::Waited => return RoundSent::Elsewhere,
                    Entered::Divided(slots) => return RoundSent::Divided(slots),
                    Entered::NoRoom => return RoundSent::Never(no_room()),
                }
            }
            Some(places) => {
                let goes: Vec<(Slot, u16)> = goes.iter().map(|(goes, _)| *goes).collect();
                for (slot, _) in &goes {
                    cluster.order.close(*slot);
                }
                let stands = |(slot, to)| {
                    !asks.contains(&(slot, to)) || cluster.asked.stands(slot, to, clock::now())
                };
                let again = places.again(&goes, limits.deadline, stands, sends.as_mut());
                match again.await {
                    Again::Sent(polled) => polled,
                    Again::Outdated(slots) => return RoundSent::Outdated(slots),
                    Again::Overtaken(keys) => return RoundSent::Overtaken(keys),
                    Again::Divided(slots) => return RoundSent::Divided(slots),
                    Again::TimedOut => {
                        let error = limits.timed_out(Certainty::NotSent);
                        return RoundSent::Never(error);
                    }
                }
            }
        };
        RoundSent::Answered(match polled {
            Poll::Ready(answers) => answers,
            Poll::Pending => {
                close();
                let answered = std::future::poll_fn(|cx| {
                    let polled = sends.as_mut().poll(cx);
                    close();
                    if let (Poll::Pending, Some(places)) = (&polled, &mut self.places) {
                        places.ran_in(&std::mem::take(&mut *served.lock()));
                    }
                    polled
                });
                answered.await
            }
        })
    }

    /// Takes in what nodes have answered; false if nothing is sent again.
    async fn take_in(&mut self, round: &Round, answers: Vec<Vec<Answer>>, sent: Instant) -> bool {
        if answers.iter().flatten().all(Answer::is_final) {
            for Answer { units, result, .. } in answers.into_iter().flatten() {
                self.split.record(&units, result.unwrap_or_default(), None);
            }
            return round.holds;
        }
        let mut next = Outlook::default();
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
                        .filter(|unit| is_owner(unit) == part.node && !waits.contains(unit))
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
        if again.is_nothing() {
            return false;
        }
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

    /// Returns the slot of a command, given by its number.
    fn slot_of(&self, unit: usize) -> Slot {
        self.split.slot_of(unit).unwrap_or(self.any)
    }

    /// Finds the nodes to which redirects lead, and those of slots whose node was left; for those
    /// that nobody knows yet it waits, as a single command does.
    async fn find(&mut self, aims: Aims) {
        let (cluster, limits) = (self.cluster, self.limits);
        let find = |(slot, aim): (Slot, Option<Aim>)| async move {
            let aim = match aim {
                Some(aim) => aim,
                None => {
                    cluster.more_is_known(&limits).await;
                    Aim::Owner
                }
            };
            let reached = cluster.reach(slot, &aim, &limits).await;
            // What goes to its owner is looked up once more when it is sent.
            let stray = matches!(aim, Aim::At { .. });
            stray.then(|| (slot, reached.map_or(NOBODY, |node| node.number)))
        };
        let found = join_all(aims.into_iter().map(find)).await;
        self.turns = found.into_iter().flatten().collect();
    }
}

impl Cluster {
    /// The node that a command goes to now. `None` if nobody knows it.
    fn node_of(&self, target: Target<'_>, any: Slot, turns: &Turns) -> Option<u16> {
        let slot = slot_led_to(target, any);
        // What waits for a migration waits at the owner.
        let follows = !matches!(target.redirect, None | Some(Routing::TryAgain));
        match turns.get(&slot).filter(|_| follows) {
            Some(&NOBODY) => None,
            Some(turn) => Some(*turn),
            None => self.routes.owner(slot),
        }
    }

    async fn send_part(
        &self,
        part: &PipelinePart,
        whole: Whole<'_>,
        times: (Instant, Duration),
    ) -> Vec<Answer> {
        let units = part.units();
        let all = |(result, before, suspicion): Tried| {
            vec![Answer {
                units: units.to_vec(),
                result,
                before,
                suspicion,
            }]
        };
        let suspicion = whole.suspicion_of(units);
        let node = match part.node.map(|number| self.node(number)) {
            Some(Ok(Some(node))) => node,
            Some(Err(error)) => return all(refused(error)),
            None | Some(Ok(None)) => {
                let slot = units.iter().find_map(|unit| whole.split.slot_of(*unit));
                let slot = slot.unwrap_or_else(|| self.any_slot());
                return all(refused(self.nobody_serves(slot)));
            }
        };
        let Whole { plan, options, .. } = whole;
        if part.asking {
            return self.send_asking(part, &node, whole, times).await;
        }
        if part.is_whole {
            let payload = Payload::Pipeline(whole.pipeline);
            let answer = node.attempt_after(payload, plan.clone(), options, times, suspicion);
            return all(Self::values_apart(&node, answer.await));
        }
        let portions = whole.split.portions(units);
        if plan.blocking.is_some() {
            // What waits in the server is sent again with what is left of its time.
            let mut own = Pipeline::with_capacity(units.len());
            portions.for_each(|portion| {
                own.add_command(portion.to_cmd());
            });
            let payload = Payload::Pipeline(&own);
            let answer = match self.planned(payload, whole) {
                Ok(plan) => {
                    let answer = node.attempt_after(payload, plan, options, times, suspicion);
                    answer.await
                }
                Err(error) => (Err(error), false, suspicion),
            };
            return all(Self::values_apart(&node, answer));
        }
        let portions: SmallVec<[Portion<'_>; 4]> = portions.collect();
        let settings = self.settings();
        let effect = whole.split.effect_of(units);
        let plan = plan.of_portions(&portions, effect, settings.connections);
        let plan = plan.adjusted(options, settings.repeat_only_reads);
        let payload = Payload::Portions(&portions);
        let answer = node.attempt_after(payload, plan, options, times, suspicion);
        all(Self::values_apart(&node, answer.await))
    }

    /// Sends each command behind an ASKING of its own. They are submitted in this order.
    async fn send_asking(
        &self,
        part: &PipelinePart,
        node: &Node,
        whole: Whole<'_>,
        times: (Instant, Duration),
    ) -> Vec<Answer> {
        let (units, options) = (part.units(), whole.options);
        let places = &whole.plan.places.clone().unwrap_or_default();
        let commands: Vec<_> = whole.split.portions(units).map(Portion::to_cmd).collect();
        let asks = commands.iter().zip(units).map(|(cmd, unit)| async move {
            let payload = Payload::Command(cmd);
            let suspicion = whole.suspicion_of(&[*unit]);
            let (answer, before, suspicion) = match self.planned(payload, whole) {
                Ok(plan) => {
                    let plan = Plan {
                        asking: true,
                        ..plan.in_place_of(places)
                    };
                    let answer = node.attempt_after(payload, plan, options, times, suspicion);
                    answer.await
                }
                Err(error) => (Err(error), false, suspicion),
            };
            let answer = match answer {
                Err(error) => match error.kind() {
                    ErrorKind::Server(said) => Ok(Reply::One(Value::ServerError(said.clone()))),
                    _ => Err(error),
                },
                answer => answer,
            };
            let tried = (answer, before, suspicion);
            let (result, before, suspicion) = Self::values_apart(node, tried);
            Answer {
                units: vec![*unit],
                result,
                before,
                suspicion,
            }
        });
        join_all(asks).await
    }

    /// The same as [`values`](Self::values), of a node's last try; a failure is as uncertain as all
    /// of them.
    fn values_apart(
        node: &Node,
        (result, before, suspicion): (Result<Reply, Error>, bool, Suspicion),
    ) -> Tried {
        let result = result.map_err(|error| error.at_best(before));
        (Self::values(node, result), before, suspicion)
    }

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
    fn note_asks(&self, node: Option<u16>, answers: &[Answer]) {
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
    fn doubt_after(&self, error: &Error) {
        if matches!(
            error.kind(),
            ErrorKind::Lost { .. } | ErrorKind::Down { .. } | ErrorKind::Timeout { .. }
        ) {
            self.trigger(Trigger::Loss);
        }
    }

    /// Plans a part of this whole before it is sent.
    fn planned(&self, payload: Payload<'_>, whole: Whole<'_>) -> Result<Plan, Error> {
        let plan = payload.plan(self.settings().connections, true)?;
        let plan = plan.adjusted(whole.options, self.settings().repeat_only_reads);
        let places = whole.plan.places.clone();
        Ok(Plan { places, ..plan })
    }
}

fn refused(error: Error) -> Tried {
    (Err(not_sent_for(&error)), false, Suspicion::default())
}

/// The end of what is not sent for this reason.
fn not_sent_for(error: &Error) -> Failed<Error> {
    Failed {
        error: error.clone(),
        certainty: error.certainty(),
    }
}

/// Returns the slot by which a command goes; what has none is in `any`.
fn slot_led_to(target: Target<'_>, any: Slot) -> Slot {
    match target.redirect {
        // Of a module's command the server may know another key than we do.
        Some(Routing::Moved(redirect) | Routing::Ask(redirect)) => redirect.slot,
        _ => target.slot.unwrap_or(any),
    }
}

/// Returns what is known of one slot.
fn only<T: Clone>(by_slot: &BTreeMap<Slot, T>, slot: Slot) -> BTreeMap<Slot, T> {
    let known = by_slot.get(&slot).cloned();
    known.map(|known| (slot, known)).into_iter().collect()
}

/// Those of the commands that were redirected.
fn redirected(units: &[usize], values: &[Value]) -> Vec<usize> {
    let answered = units.iter().zip(values);
    let redirected =
        answered.filter(|(_, value)| routing_in(value).is_some_and(|routing| routing.follows()));
    redirected.map(|(unit, _)| *unit).collect()
}

/// Returns what an answer says about who serves.
fn routing_in(value: &Value) -> Option<Routing> {
    let Value::ServerError(error) = value else {
        return None;
    };
    Routing::of(error.code(), error.details().unwrap_or_default())
}

/// Returns the keys of commands, by slot; what has none is in `any`.
fn keys_of<'t>(targets: impl Iterator<Item = Target<'t>>, any: Slot) -> BTreeMap<Slot, KeySet> {
    let mut by_slot = BTreeMap::<Slot, Vec<&KeySet>>::new();
    for target in targets {
        let of_slot = by_slot.entry(target.slot.unwrap_or(any)).or_default();
        of_slot.push(target.keys);
    }
    let all = by_slot.into_iter();
    all.map(|(slot, keys)| (slot, KeySet::all(keys))).collect()
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
        return failed.error.at_least(failed.certainty);
    }
    let kind = ErrorKind::Partial {
        cause: failed.error.to_string().into(),
        done,
        not_run: of(false),
        unknown: of(true),
    };
    Error::new(kind, failed.certainty)
}
