//! A pipeline, divided by slot, and which of its commands are sent again.
//!
//! Its commands go to the owners of their slots, in one part for each node, and each answer comes
//! back to the place of its command. When some are redirected and others lost, the pipeline is not
//! simply sent again: a command is, only if nothing of it has run or it may be repeated, and never
//! behind a later one of the same key that has run, because what was submitted first runs first.

mod again;
mod finish;
mod sending;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use redis::{Pipeline, Value};

pub use self::again::{Again, Terms};
pub use self::finish::{CommandOutcome, PipelineFailed};
pub use self::sending::NodePart;
use super::keys::{DivideMset, SplitCommand, command};
use super::portion::Portion;
use super::{Failed, Indivisible, name};
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
    /// Each command is moved once, however many slots there are: what waits for very many slots,
    /// and goes on in one after the other, costs no more than what goes at once.
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
