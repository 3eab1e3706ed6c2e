//! Commands of many keys, divided by slot.

use std::fmt;

use redis::{Cmd, Value};

use super::{Failed, Indivisible, UnexpectedAnswer, crosses, sum};
use crate::certainty::Certainty;
use crate::command::place::{Place, place};
use crate::redis_rs::CommandRef;
use crate::slot::Slot;

/// Whether MSET may be divided. On one server it is atomic, so that nobody sees some of its keys
/// set and others not; in parts it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DivideMset {
    /// MSET over several slots is refused.
    #[default]
    No,
    /// The caller has asked for it.
    Yes,
}

/// Divides a command whose keys belong to several slots. `None` if it need not be divided: all keys
/// belong to one slot, or it names none.
///
/// ```
/// use steadfast_core::redis::{Value, cmd};
/// use steadfast_core::split::{self, DivideMset, UnexpectedAnswer};
///
/// let mut mget = cmd("MGET");
/// mget.arg("foo").arg("bar").arg("{foo}2");
/// let split = split::command(&mget, DivideMset::No)?.expect("two slots");
/// assert_eq!(split.parts().len(), 2);
///
/// let text = |text: &str| Value::BulkString(text.into());
/// let of_part = |texts: &[&str]| Ok(Value::Array(texts.iter().map(|t| text(t)).collect()));
/// // The parts come in the order of their slots: bar has 5061, foo 12182.
/// let whole = split.join::<UnexpectedAnswer>([of_part(&["b"]), of_part(&["f", "f2"])]);
/// assert_eq!(whole, Ok(Value::Array(vec![text("f"), text("b"), text("f2")])));
/// # Ok::<(), steadfast_core::split::Indivisible>(())
/// ```
///
/// # Errors
/// The command cannot be divided. Nothing has been sent.
pub fn command<'a>(
    cmd: impl Into<CommandRef<'a>>,
    mset: DivideMset,
) -> Result<Option<SplitCommand<'a>>, Indivisible> {
    let args = cmd.into().arguments();
    if !matches!(place(args.clone()), Place::Slots(..)) {
        return Ok(None);
    }
    let name = super::name(args.clone());
    let Some(kind) =
        Division::of(name).filter(|kind| *kind != Division::AllOk || mset == DivideMset::Yes)
    else {
        return Err(crosses(args));
    };
    let args: Vec<&[u8]> = args.skip(1).collect();
    // A pair without its value is the server's to refuse, not ours to divide.
    if !args.len().is_multiple_of(kind.step()) {
        return Err(crosses(cmd_args(name, &args)));
    }
    let slots = args.iter().step_by(kind.step());
    let mut order: Vec<(Slot, usize)> = slots.map(|key| Slot::of_key(key)).zip(0..).collect();
    order.sort_unstable();
    let mut parts: Vec<Bounds> = Vec::new();
    for (at, (slot, _)) in order.iter().enumerate() {
        match parts.last_mut().filter(|last| last.slot == *slot) {
            Some(last) => last.end = at + 1,
            None => parts.push(Bounds {
                slot: *slot,
                start: at,
                end: at + 1,
            }),
        }
    }
    Ok(Some(SplitCommand {
        name,
        kind,
        args,
        keys: order.into_iter().map(|(_, key)| key).collect(),
        parts,
    }))
}

fn cmd_args<'a>(
    name: &'static str,
    args: &'a [&'a [u8]],
) -> impl Iterator<Item = &'a [u8]> + Clone {
    std::iter::once(name.as_bytes()).chain(args.iter().copied())
}

/// A command that was divided. Nothing of it is copied: its parts are views of it.
#[derive(Clone)]
pub struct SplitCommand<'a> {
    name: &'static str,
    kind: Division,
    /// The arguments behind the name.
    args: Vec<&'a [u8]>,
    /// The numbers of its keys, in the order of their slots.
    keys: Vec<usize>,
    parts: Vec<Bounds>,
}

/// Where the keys of a part are in that order.
#[derive(Clone, Copy)]
struct Bounds {
    slot: Slot,
    start: usize,
    end: usize,
}

impl fmt::Debug for SplitCommand<'_> {
    /// Only which keys are where: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitCommand")
            .field("name", &self.name)
            .field("parts", &self.parts().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// A part of a command that concerns one slot: the same command with some of the keys.
#[derive(Clone, Copy)]
pub struct Part<'s> {
    slot: Slot,
    name: &'static str,
    step: usize,
    args: &'s [&'s [u8]],
    keys: &'s [usize],
}

impl<'s> Part<'s> {
    /// Returns the slot.
    pub fn slot(self) -> Slot {
        self.slot
    }

    /// Returns what is to be sent, as a command of its own.
    pub fn cmd(self) -> Cmd {
        let mut cmd = Cmd::new();
        self.arguments().for_each(|arg| {
            cmd.arg(arg);
        });
        cmd
    }

    /// Returns which of the command's keys these are, the first being 0.
    pub fn keys(self) -> &'s [usize] {
        self.keys
    }

    /// Returns the keys themselves.
    pub fn names(self) -> impl Iterator<Item = &'s [u8]> + Clone {
        let (args, step) = (self.args, self.step);
        self.keys.iter().map(move |key| args[key * step])
    }

    /// Returns the name and the arguments.
    pub fn arguments(self) -> impl Iterator<Item = &'s [u8]> + Clone {
        let (args, step) = (self.args, self.step);
        let of_key = move |key: &usize| args[key * step..(key + 1) * step].iter().copied();
        std::iter::once(self.name.as_bytes()).chain(self.keys.iter().flat_map(of_key))
    }

    /// Returns how many these are.
    pub fn argument_count(self) -> usize {
        1 + self.keys.len() * self.step
    }
}

impl fmt::Debug for Part<'_> {
    /// Only which keys: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("slot", &self.slot)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// How the answers of parts become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Division {
    /// A list with an element for each key.
    InOrder,
    Sum {
        writes: bool,
    },
    AllOk,
}

impl Division {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "MGET" => Self::InOrder,
            "EXISTS" | "TOUCH" => Self::Sum { writes: false },
            "DEL" | "UNLINK" => Self::Sum { writes: true },
            "MSET" => Self::AllOk,
            _ => return None,
        })
    }

    /// How many arguments there are for each key.
    fn step(self) -> usize {
        match self {
            Self::AllOk => 2,
            Self::InOrder | Self::Sum { .. } => 1,
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::Sum { writes: true } | Self::AllOk)
    }
}

impl SplitCommand<'_> {
    /// Returns the parts, in the order of their slots. Each may be sent, followed and repeated as a
    /// command of its own.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = Part<'_>> + Clone {
        self.parts.iter().map(|part| self.of(part))
    }

    /// Returns the part of this number, the first being 0.
    pub fn part(&self, number: usize) -> Option<Part<'_>> {
        self.parts.get(number).map(|part| self.of(part))
    }

    fn of(&self, part: &Bounds) -> Part<'_> {
        Part {
            slot: part.slot,
            name: self.name,
            step: self.kind.step(),
            args: &self.args,
            keys: &self.keys[part.start..part.end],
        }
    }

    /// Joins what became of the parts, given in their order. An error reply is a failure, and to be
    /// given as one.
    ///
    /// # Errors
    /// Parts have failed, or an answer is none that a server gives (which counts as unknown).
    ///
    /// # Panics
    /// There are more or fewer results than parts.
    pub fn join<E: From<UnexpectedAnswer>>(
        &self,
        results: impl IntoIterator<Item = Result<Value, Failed<E>>>,
    ) -> Result<Value, PartsFailed<E>> {
        let (mut answers, mut first, mut worst) = (Vec::new(), None, None);
        let mut fates = Vec::new();
        let mut results = results.into_iter();
        for part in self.parts() {
            let result = results.next().expect("there is a result for each part");
            let failed = match result.map(|value| self.checked(part, value)) {
                Ok(Ok(value)) => {
                    answers.push(value);
                    continue;
                }
                Ok(Err(unexpected)) => Failed {
                    error: unexpected.into(),
                    certainty: Certainty::Unknown,
                },
                Err(failed) => failed,
            };
            fates.resize(self.keys.len(), KeyFate::Done);
            for key in part.keys {
                fates[*key] = KeyFate::Failed(failed.certainty);
            }
            // The error told is that of the worst part.
            if worst < Some(failed.certainty) {
                worst = Some(failed.certainty);
                first = Some(failed.error);
            }
        }
        assert!(results.next().is_none(), "there is a part for each result");
        let (Some(error), Some(worst)) = (first, worst) else {
            return Ok(self.whole(answers));
        };
        let half_applied = self.kind.writes() && !answers.is_empty();
        Err(PartsFailed {
            error,
            certainty: if half_applied {
                Certainty::Unknown
            } else {
                worst
            },
            fates,
        })
    }

    /// The answer to a part, if it can be joined.
    fn checked(&self, part: Part<'_>, value: Value) -> Result<Value, UnexpectedAnswer> {
        let wanted = match (self.kind, &value) {
            (Division::InOrder, Value::Array(elements)) if elements.len() == part.keys.len() => {
                return Ok(value);
            }
            (Division::Sum { .. }, Value::Int(_)) | (Division::AllOk, Value::Okay) => {
                return Ok(value);
            }
            (Division::InOrder, _) => "a list with an element for each key",
            (Division::Sum { .. }, _) => "a number",
            (Division::AllOk, _) => "OK",
        };
        Err(UnexpectedAnswer {
            command: self.name,
            wanted,
        })
    }

    /// Joins answers of which each was checked.
    fn whole(&self, answers: Vec<Value>) -> Value {
        match self.kind {
            Division::AllOk => Value::Okay,
            Division::Sum { .. } => sum(self.name, &answers).unwrap_or(Value::Nil),
            Division::InOrder => {
                let mut all = vec![Value::Nil; self.keys.len()];
                for (part, answer) in self.parts().zip(answers) {
                    let Value::Array(elements) = answer else {
                        continue;
                    };
                    for (key, element) in part.keys.iter().zip(elements) {
                        all[*key] = element;
                    }
                }
                Value::Array(all)
            }
        }
    }
}

/// The fate of one key of a command that was divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFate {
    /// The part with this key was answered.
    Done,
    /// The part with this key has failed.
    Failed(Certainty),
}

/// A command that was divided, and of which parts have failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsFailed<E> {
    /// The error of the worst part.
    pub error: E,
    /// How much is known of the whole: as little as of its worst part, and nothing of a write that
    /// is half applied.
    pub certainty: Certainty,
    /// The fate of each key, in their order.
    pub fates: Vec<KeyFate>,
}

impl<E> PartsFailed<E> {
    /// Returns which keys have this fate, the first key being 0.
    pub fn keys(&self, fate: KeyFate) -> impl Iterator<Item = usize> {
        let fates = self.fates.iter().enumerate();
        fates.filter(move |(_, of)| **of == fate).map(|(at, _)| at)
    }
}

/// Says how many keys have which fate: keys may be secrets.
impl<E: fmt::Display> fmt::Display for PartsFailed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (of {} keys", self.error, self.fates.len())?;
        let kinds = [Certainty::NotSent, Certainty::Rejected, Certainty::Unknown];
        let done = [(KeyFate::Done, "done".to_owned())].into_iter();
        let failed = kinds.map(|certainty| (KeyFate::Failed(certainty), certainty.to_string()));
        for (fate, words) in done.chain(failed) {
            match self.keys(fate).count() {
                0 => {}
                count => write!(f, ", {count} {words}")?,
            }
        }
        f.write_str(")")
    }
}

impl<E: std::error::Error> std::error::Error for PartsFailed<E> {}
