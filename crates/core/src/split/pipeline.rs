//! A pipeline, divided by slot, and which of its commands are sent again.
//!
//! Its commands go to the owners of their slots, in one part for each node, and each answer comes
//! back to the place of its command. When some are redirected and others lost, the pipeline is not
//! simply sent again: a command is, only if nothing of it has run or it may be repeated, and never
//! behind a later one of the same key that has run, because what was submitted first runs first.

mod again;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use redis::{Pipeline, ServerError, Value};

pub use self::again::{Again, Terms};
use super::keys::{DivideMset, PartsFailed, SplitCommand, command};
use super::portion::Portion;
use super::{Failed, Indivisible, UnexpectedAnswer, name};
use crate::certainty::Certainty;
use crate::command::place::{Place, place_and_keys};
use crate::command::{Effect, Errors, classify};
use crate::redirect::Routing;
use crate::redis_rs::{CommandRef, commands};
use crate::slot::{KeySet, Slot};

/// A pipeline on its way: which of its commands are to be sent, and what became of the others. `E`
/// is the error of the sender.
///
/// ```
/// use steadfast_core::redis::{ServerError, Value, pipe};
/// use steadfast_core::split::{DivideMset, UnexpectedAnswer, pipeline::SplitPipeline};
///
/// # #[derive(Clone, Debug)] struct MyError;
/// # impl From<UnexpectedAnswer> for MyError { fn from(_: UnexpectedAnswer) -> Self { Self } }
/// # impl From<ServerError> for MyError { fn from(_: ServerError) -> Self { Self } }
/// let mut pipeline = pipe();
/// pipeline.set("foo", 1).incr("bar", 1).get("foo");
/// let mut split = SplitPipeline::<MyError>::new(&pipeline, DivideMset::No)?;
/// // As if each slot had an owner of its own.
/// for part in split.to_send(|target| target.slot) {
///     let answers = part.units().iter().map(|unit| Value::Int(*unit as i64));
///     split.record(part.units(), answers.collect(), None);
/// }
/// assert_eq!(split.finish().unwrap(), [Value::Int(0), Value::Int(1), Value::Int(2)]);
/// # Ok::<(), steadfast_core::split::Indivisible>(())
/// ```
pub struct SplitPipeline<'a, E> {
    /// All commands, also of a part that was taken out.
    entries: Arc<[Entry<'a>]>,
    /// Its own units, in the order of their numbers.
    units: Vec<Unit<E>>,
}

/// A command of the pipeline, all of whose units follow each other.
struct Entry<'a> {
    cmd: CommandRef<'a>,
    divided: Option<SplitCommand<'a>>,
}

/// A unit that is sent to one node: a command, or a part of one.
struct Unit<E> {
    /// Its place among the units of the whole pipeline.
    number: usize,
    entry: usize,
    /// The number of the part of a command that was divided.
    part: usize,
    slot: Option<Slot>,
    keys: KeySet,
    effect: Effect,
    errors: Errors,
    state: State<E>,
    /// How much is known of its earlier attempts, whatever came of a later one.
    so_far: Certainty,
    /// The redirect that was answered to it last.
    redirect: Option<Routing>,
    /// Whether nothing but a redirect has it sent again.
    ends_here: bool,
    /// Whether its redirect is none: a script has written the words.
    has_run: bool,
    /// Whether it is a read that was answered TRYAGAIN.
    aside: bool,
}

impl<E> Unit<E> {
    fn target(&self) -> Target<'_> {
        Target {
            slot: self.slot,
            keys: &self.keys,
            redirect: self.redirect.as_ref(),
            aside: self.aside,
        }
    }

    /// Whether it may have run in an attempt that was not answered.
    fn may_have_run(&self) -> bool {
        self.so_far == Certainty::Unknown
    }

    /// Whether it has to come behind an earlier command with these keys and that effect.
    fn follows(&self, (keys, effect): &(KeySet, Effect)) -> bool {
        let reads = self.effect == Effect::Read && *effect == Effect::Read;
        !reads && keys.share(&self.keys)
    }
}

enum State<E> {
    Waiting,
    Sent,
    Answered(Value),
    Failed(Failed<E>),
}

/// Where a command belongs, for the sender to find its node.
#[derive(Clone, Copy, Debug)]
pub struct Target<'r> {
    /// The slot of its keys. Without any, any primary serves.
    pub slot: Option<Slot>,
    /// Its keys.
    pub keys: &'r KeySet,
    /// The redirect that was answered to it last: MOVED, ASK or TRYAGAIN.
    pub redirect: Option<&'r Routing>,
    /// Whether it is a read that was answered TRYAGAIN: it waits for its keys for as long as they
    /// are apart, so that nobody should wait for it.
    pub aside: bool,
}

/// The commands of a slot that come before another one and are to be sent too, by the part that
/// they are in; `None` for what may still wait when that is sent.
type Before = BTreeMap<Option<usize>, Vec<(KeySet, Effect)>>;

/// The commands for one node, in their order.
#[derive(Clone)]
pub struct NodePart<N> {
    /// The node, as the sender names it.
    pub node: N,
    /// Each of the commands has to be preceded by an ASKING of its own.
    pub asking: bool,
    /// Whether these are all commands of the pipeline and as they were, so that it can be sent
    /// itself.
    pub is_whole: bool,
    units: Vec<usize>,
}

impl<N> NodePart<N> {
    /// Returns the numbers of the commands, for [`SplitPipeline::record`] and
    /// [`SplitPipeline::portions`].
    pub fn units(&self) -> &[usize] {
        &self.units
    }
}

impl<N: fmt::Debug> fmt::Debug for NodePart<N> {
    /// Only how many commands: their arguments may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodePart")
            .field("node", &self.node)
            .field("asking", &self.asking)
            .field("units", &self.units)
            .finish_non_exhaustive()
    }
}

impl<E> fmt::Debug for SplitPipeline<'_, E> {
    /// Only how many commands: their arguments may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitPipeline")
            .field("commands", &self.entries.len())
            .field("units", &self.units.len())
            .finish_non_exhaustive()
    }
}

impl<'a, E> SplitPipeline<'a, E> {
    /// Divides a pipeline that is no transaction: of that see
    /// [`transaction_slot`](super::transaction_slot).
    ///
    /// # Errors
    /// A command that cannot be sent to a cluster so. Nothing has been sent.
    pub fn new(pipeline: &'a Pipeline, mset: DivideMset) -> Result<Self, Indivisible> {
        let (mut entries, mut units) = (Vec::new(), Vec::new());
        for (entry, cmd) in commands(pipeline).enumerate() {
            let class = classify(cmd.arguments());
            let mut unit = |part, slot, keys| {
                let number = units.len();
                units.push(Unit {
                    number,
                    entry,
                    part,
                    slot,
                    keys,
                    effect: class.effect,
                    errors: class.errors,
                    state: State::Waiting,
                    so_far: Certainty::NotSent,
                    redirect: None,
                    ends_here: false,
                    has_run: false,
                    aside: false,
                });
            };
            let mut divided = None;
            let (place, keys) = place_and_keys(cmd.arguments());
            match place {
                Place::Slot(slot) => unit(0, Some(slot), keys),
                Place::AnyPrimary => unit(0, None, keys),
                Place::Slots(..) => {
                    divided = command(cmd, mset)?;
                    let parts = divided.iter().flat_map(SplitCommand::parts).enumerate();
                    parts.for_each(|(at, part)| {
                        unit(at, Some(part.slot()), KeySet::of(part.names()));
                    });
                }
                Place::AllPrimaries(_) => {
                    let command = name(cmd.arguments());
                    return Err(Indivisible::Everywhere { command });
                }
                Place::Refused(served_by) => {
                    let command = name(cmd.arguments());
                    return Err(Indivisible::NoPlace { command, served_by });
                }
            }
            entries.push(Entry { cmd, divided });
        }
        Ok(Self {
            entries: entries.into(),
            units,
        })
    }

    /// Takes what is to be sent now, in one part for each node that `node_of` names. Parts may be
    /// sent at once; commands of one key are in one part, in their order, as long as `node_of`
    /// names one node for a slot.
    ///
    /// What is asked of a node in answer to ASK is a part of its own, because ASKING holds for one
    /// command. Of one slot no command is in an earlier part than the command before it: parts that
    /// are submitted in their order keep that of each key.
    ///
    /// What would be sent to another node than an earlier command of its key, or beside one that
    /// was answered TRYAGAIN, is held back and waits as before, or it could run first.
    pub fn to_send<N: Eq>(&mut self, mut node_of: impl FnMut(Target<'_>) -> N) -> Vec<NodePart<N>> {
        let mut parts: Vec<NodePart<N>> = Vec::new();
        // Before the first redirect one slot has one node, and so one part.
        let redirected = self.units.iter().any(|unit| unit.redirect.is_some());
        let mut by_slot: HashMap<Slot, (usize, Before)> = HashMap::new();
        for unit in &mut self.units {
            if !matches!(unit.state, State::Waiting) {
                continue;
            }
            let node = node_of(unit.target());
            let of_slot = unit.slot.filter(|_| redirected);
            let mut of_slot = of_slot.map(|slot| by_slot.entry(slot).or_default());
            if let Some((_, before)) = &mut of_slot {
                let elsewhere = |at: &Option<usize>| at.is_none_or(|at| parts[at].node != node);
                let mut before_it = before.iter().filter(|(at, _)| elsewhere(at));
                if before_it.any(|(_, ones)| ones.iter().any(|one| unit.follows(one))) {
                    // What it was answered is old by the time that it is sent.
                    unit.redirect = None;
                    let held = before.entry(None).or_default();
                    held.push((unit.keys.clone(), unit.effect));
                    continue;
                }
            }
            let asking = matches!(unit.redirect, Some(Routing::Ask(_)));
            let least = of_slot.as_ref().map(|(least, _)| *least);
            let is_it = |part: &NodePart<N>| part.asking == asking && part.node == node;
            let found = parts.iter().rposition(is_it);
            let at = match found.filter(|at| Some(*at) >= least) {
                Some(at) => at,
                None => {
                    parts.push(NodePart {
                        node,
                        asking,
                        is_whole: false,
                        units: Vec::new(),
                    });
                    parts.len() - 1
                }
            };
            if let Some((least, before)) = of_slot {
                *least = at;
                let waits = matches!(unit.redirect, Some(Routing::TryAgain));
                let beside = before.entry((!waits).then_some(at)).or_default();
                beside.push((unit.keys.clone(), unit.effect));
            }
            parts[at].units.push(unit.number);
            unit.state = State::Sent;
            unit.ends_here = false;
        }
        if let [only] = &mut parts[..] {
            let all = only.units.len() == self.entries.len();
            only.is_whole = all && self.entries.iter().all(|entry| entry.divided.is_none());
        }
        parts
    }

    /// Takes in what became of commands, given by their numbers: the answers, in their order, and
    /// why there are not more of them. Answers that nobody asked for are left out.
    ///
    /// A failure that leaves none unanswered changes nothing. Without a failure, missing answers
    /// leave their commands as they were.
    pub fn record(&mut self, units: &[usize], answers: Vec<Value>, failed: Option<Failed<E>>)
    where
        E: Clone,
    {
        let mut answers = answers.into_iter();
        for number in units {
            let Some(unit) = self.unit_mut(*number) else {
                continue;
            };
            if !matches!(unit.state, State::Sent) {
                continue;
            }
            match (answers.next(), &failed) {
                (Some(value), _) => {
                    unit.so_far = unit.so_far.max(Certainty::Rejected);
                    unit.state = State::Answered(value);
                }
                (None, Some(failed)) => {
                    let mut failed = failed.clone();
                    unit.so_far = unit.so_far.max(failed.certainty);
                    failed.certainty = unit.so_far;
                    unit.state = State::Failed(failed);
                }
                (None, None) => {}
            }
        }
    }

    /// Takes commands back that were to be sent, and were not: they wait as they did before.
    pub fn take_back(&mut self, units: &[usize]) {
        for number in units {
            if let Some(unit) = self.unit_mut(*number)
                && matches!(unit.state, State::Sent)
            {
                unit.state = State::Waiting;
            }
        }
    }

    /// Has the commands of these slots that wait to follow an ASK go to their owners instead.
    pub fn ask_anew(&mut self, of: impl Fn(Slot) -> bool) {
        for unit in &mut self.units {
            let is_asked = matches!(unit.redirect, Some(Routing::Ask(_)));
            if is_asked && matches!(unit.state, State::Waiting) && unit.slot.is_some_and(&of) {
                unit.redirect = None;
            }
        }
    }

    /// Takes all commands of these slots out, for a pipeline of each, which goes its own way until
    /// it is [joined](Self::join) to this one again. Commands keep their numbers.
    ///
    /// Each command is moved once, however many slots there are: what waits for very many slots, and
    /// goes on in one after the other, costs no more than what goes at once.
    #[must_use]
    pub fn divide(&mut self, slots: impl IntoIterator<Item = Slot>) -> BTreeMap<Slot, Self> {
        let slots = slots.into_iter().map(|slot| (slot, self.emptied()));
        let mut parts: BTreeMap<Slot, Self> = slots.collect();
        for unit in std::mem::take(&mut self.units) {
            match unit.slot.and_then(|slot| parts.get_mut(&slot)) {
                Some(part) => part.units.push(unit),
                None => self.units.push(unit),
            }
        }
        parts
    }

    /// Returns a pipeline of which all commands are elsewhere.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self {
            entries: Arc::clone(&self.entries),
            units: Vec::new(),
        }
    }

    /// Takes the commands back that were taken out, with what became of them.
    pub fn join(&mut self, parts: impl IntoIterator<Item = Self>) {
        let parts = parts.into_iter();
        parts.for_each(|part| self.units.extend(part.units));
        self.units.sort_by_key(|unit| unit.number);
    }

    /// Says of commands that an earlier attempt to send them may have run, whatever is recorded of
    /// the last one.
    pub fn may_have_run_before(&mut self, units: &[usize]) {
        for number in units {
            if let Some(unit) = self.unit_mut(*number) {
                unit.so_far = Certainty::Unknown;
            }
        }
    }

    /// Ends commands that are to be sent, and are not after all, where there is a reason why. What
    /// was refused in an earlier attempt is rejected, and what may have run of unknown outcome.
    pub fn end(&mut self, mut why: impl FnMut(Target<'_>) -> Option<Failed<E>>) {
        for unit in &mut self.units {
            if !matches!(unit.state, State::Waiting) {
                continue;
            }
            if let Some(mut failed) = why(unit.target()) {
                failed.certainty = failed.certainty.max(unit.so_far);
                unit.state = State::Failed(failed);
                unit.ends_here = true;
            }
        }
    }

    /// Says of commands that failed that the node which they went to is theirs still: whatever
    /// becomes of others, these are not sent again but by a redirect.
    pub fn end_here(&mut self, units: &[usize]) {
        for number in units {
            if let Some(unit) = self.unit_mut(*number) {
                unit.ends_here = true;
            }
        }
    }

    /// Returns what is to be sent of commands, given by their numbers.
    pub fn portions<'s>(&'s self, units: &'s [usize]) -> impl Iterator<Item = Portion<'s>> {
        let units = units.iter().filter_map(|unit| self.unit(*unit));
        units.map(|unit| self.entries[unit.entry].portion(unit.part))
    }

    /// Returns the worst effect of commands, given by their numbers.
    pub fn effect_of(&self, units: &[usize]) -> Effect {
        let units = units.iter().filter_map(|unit| self.unit(*unit));
        let worst = units.map(|unit| unit.effect).max();
        worst.unwrap_or(Effect::Read)
    }

    /// Returns the slots of all that is to be sent, as often as they occur.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.units.iter().filter_map(|unit| unit.slot)
    }

    /// Returns the slots of what is to be sent, or sent again, and is not under way, as often as
    /// they occur; `None` for what any primary serves.
    pub fn waiting_slots(&self) -> impl Iterator<Item = Option<Slot>> {
        self.waiting().map(|target| target.slot)
    }

    /// Returns where each of these commands belongs.
    pub fn waiting(&self) -> impl Iterator<Item = Target<'_>> {
        let waits = |unit: &&Unit<E>| matches!(unit.state, State::Waiting);
        self.units.iter().filter(waits).map(Unit::target)
    }

    /// Returns where each command belongs that has run, or may have.
    pub fn ran(&self) -> impl Iterator<Item = Target<'_>> {
        let ran = |unit: &&Unit<E>| self.may_have_run(unit);
        self.units.iter().filter(ran).map(Unit::target)
    }

    /// Returns whether all commands have run, or may have.
    pub fn has_run(&self) -> bool {
        self.units.iter().all(|unit| self.may_have_run(unit))
    }

    /// Returns where a command belongs, given by its number.
    pub fn target(&self, unit: usize) -> Option<Target<'_>> {
        self.unit(unit).map(Unit::target)
    }

    /// Returns the slot of a command, given by its number.
    pub fn slot_of(&self, unit: usize) -> Option<Slot> {
        self.unit(unit).and_then(|unit| unit.slot)
    }

    /// Returns whether a command, given by its number, is a script or function, which writes the
    /// words of its errors itself.
    pub fn is_script(&self, unit: usize) -> bool {
        let unit = self.unit(unit);
        unit.is_some_and(|unit| unit.errors == Errors::ProveNothing)
    }

    /// Records that a script has run, whatever its answer looks like: a server does not redirect to
    /// itself.
    pub fn script_has_run(&mut self, unit: usize) {
        if let Some(unit) = self.unit_mut(unit) {
            unit.has_run = true;
        }
    }

    /// Returns the answers to all commands, in their order; also those that are errors, as from one
    /// server.
    ///
    /// # Errors
    /// Commands were not answered. What was never sent counts as such.
    pub fn finish(self) -> Result<Vec<Value>, PipelineFailed<E>>
    where
        E: Clone + From<UnexpectedAnswer> + From<ServerError>,
    {
        let mut units = self.units.into_iter().peekable();
        let mut outcomes = Vec::new();
        let (mut worst, mut has_written): (Option<Failed<E>>, _) = (None, false);
        for (at, entry) in self.entries.iter().enumerate() {
            let count = entry
                .divided
                .as_ref()
                .map_or(1, |split| split.parts().len());
            let mut effect = Effect::Read;
            let mut results = (0..count).map(|part| {
                let is_it = |unit: &Unit<E>| unit.entry == at && unit.part == part;
                let Some(unit) = units.next_if(is_it) else {
                    return Err(not_given_back());
                };
                effect = unit.effect;
                match unit.state {
                    // Refused now, but perhaps not in an earlier attempt.
                    State::Answered(Value::ServerError(error)) if unit.may_have_run() => {
                        Err(Failed {
                            error: E::from(error),
                            certainty: Certainty::Unknown,
                        })
                    }
                    State::Answered(value) => Ok(value),
                    State::Failed(failed) => Err(failed),
                    State::Waiting | State::Sent => {
                        let mut failed = never_sent();
                        // Not this time, but perhaps in an earlier attempt.
                        failed.certainty = unit.so_far;
                        Err(failed)
                    }
                }
            });
            let result = match &entry.divided {
                None => results.next().unwrap_or_else(|| Err(never_sent())),
                Some(split) => joined(split, results),
            };
            outcomes.push(match result {
                Ok(value) => {
                    has_written |= effect != Effect::Read && !is_error(&value);
                    CommandOutcome::Answered(value)
                }
                Err(failed) => {
                    let certainty = failed.certainty;
                    if worst
                        .as_ref()
                        .is_none_or(|worst| worst.certainty < certainty)
                    {
                        worst = Some(failed);
                    }
                    CommandOutcome::Failed(certainty)
                }
            });
        }
        match worst {
            None => Ok(outcomes
                .into_iter()
                .filter_map(CommandOutcome::answer)
                .collect()),
            Some(Failed { error, certainty }) => Err(PipelineFailed {
                error,
                certainty: if has_written {
                    Certainty::Unknown
                } else {
                    certainty
                },
                outcomes,
            }),
        }
    }
}

impl<E> SplitPipeline<'_, E> {
    /// Returns a unit by its number, if it is here.
    fn unit(&self, number: usize) -> Option<&Unit<E>> {
        self.units.get(self.place(number)?)
    }

    fn unit_mut(&mut self, number: usize) -> Option<&mut Unit<E>> {
        let place = self.place(number)?;
        self.units.get_mut(place)
    }

    fn place(&self, number: usize) -> Option<usize> {
        let at_its_place = self.units.get(number);
        match at_its_place.is_some_and(|unit| unit.number == number) {
            true => Some(number),
            false => {
                let found = self.units.binary_search_by_key(&number, |unit| unit.number);
                found.ok()
            }
        }
    }
}

impl Entry<'_> {
    fn portion(&self, part: usize) -> Portion<'_> {
        let part = self.divided.as_ref().and_then(|split| split.part(part));
        part.map_or(Portion::Whole(self.cmd), Portion::Part)
    }
}

/// Joins the parts of a command. Errors that all of them have for an answer are the answer of the
/// whole.
fn joined<E: From<UnexpectedAnswer> + From<ServerError>>(
    split: &SplitCommand<'_>,
    results: impl Iterator<Item = Result<Value, Failed<E>>>,
) -> Result<Value, Failed<E>> {
    let results: Vec<_> = results.collect();
    if let Some(Ok(error)) = results.first()
        && results
            .iter()
            .all(|result| result.as_ref().is_ok_and(is_error))
    {
        return Ok(error.clone());
    }
    let results = results.into_iter().map(|result| match result {
        Ok(Value::ServerError(error)) => Err(Failed {
            error: E::from(error),
            certainty: Certainty::Rejected,
        }),
        result => result,
    });
    split.join(results).map_err(
        |PartsFailed {
             error, certainty, ..
         }| Failed { error, certainty },
    )
}

fn is_error(value: &Value) -> bool {
    matches!(value, Value::ServerError(_))
}

fn never_sent<E: From<UnexpectedAnswer>>() -> Failed<E> {
    let error = UnexpectedAnswer {
        command: "PIPELINE",
        wanted: "there: it was never sent, or its answer was not waited for",
    };
    Failed {
        error: error.into(),
        certainty: Certainty::NotSent,
    }
}

/// A command that was taken out with a part of the pipeline, which was not joined to it again.
fn not_given_back<E: From<UnexpectedAnswer>>() -> Failed<E> {
    Failed {
        certainty: Certainty::Unknown,
        ..never_sent()
    }
}

/// The outcome of one command of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub enum CommandOutcome {
    /// The command was answered, perhaps with an error.
    Answered(Value),
    /// The command was not answered.
    Failed(Certainty),
}

impl CommandOutcome {
    fn answer(self) -> Option<Value> {
        match self {
            Self::Answered(value) => Some(value),
            Self::Failed(_) => None,
        }
    }
}

/// A pipeline of which some commands were not answered.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineFailed<E> {
    /// The error of the worst command.
    pub error: E,
    /// How much is known of the whole: as little as of its worst command, and nothing if others
    /// have written.
    pub certainty: Certainty,
    /// The outcome of each command, in their order.
    pub outcomes: Vec<CommandOutcome>,
}
