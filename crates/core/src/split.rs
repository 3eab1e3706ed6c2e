//! Calls that concern several slots of a cluster: divided, and their answers joined.
//!
//! A server takes a command only if all its keys belong to one slot, and a slot belongs to one
//! server. So what concerns several is sent in parts at once, each of which may be answered,
//! refused or lost. A call that was divided is as certain as its worst part: a write of which one
//! part ran and another failed is half applied, and so of unknown outcome as a whole.
//!
//! - [`command`]: MGET, EXISTS, TOUCH, DEL, UNLINK, and MSET on request, by the slots of their
//!   keys.
//! - [`pipeline`]: a pipeline by slots, and which of its commands are sent again.
//! - [`joined`]: the answers of all primaries to a command without keys.

mod across;
mod keys;
pub mod pipeline;
mod portion;

use std::collections::BTreeSet;

use redis::{Pipeline, Value};
use thiserror::Error;

pub use self::across::joined;
pub use self::keys::{DivideMset, KeyFate, Part, PartsFailed, SplitCommand, command};
pub use self::portion::Portion;
use crate::certainty::Certainty;
use crate::command::place::ServedBy;
use crate::command::{arguments, key_names};
use crate::redis_rs::commands;
use crate::slot::{KeySet, Slot, SlotRange};

/// A part or a command that was not answered, or by an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed<E> {
    /// Why.
    pub error: E,
    /// How much is known of it.
    pub certainty: Certainty,
}

/// An answer that no server gives to the command, so that it cannot be joined with others.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the answer to a part of {command} is not {wanted}: it cannot be joined with the others")]
pub struct UnexpectedAnswer {
    /// The command.
    pub command: &'static str,
    /// The kind of reply that was needed.
    pub wanted: &'static str,
}

/// Why a call cannot be sent to a cluster at all: nothing of it was.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Indivisible {
    /// The keys belong to several slots, and no part would do what the whole does.
    #[error(
        "the keys of {command} belong to the slots {}, and a cluster takes them only of one: give them a common part in braces, as in {{user7}}:name",
        list(.slots)
    )]
    Slots {
        /// The command, or `MULTI` of a transaction.
        command: &'static str,
        /// All of its slots, in the order of their numbers.
        slots: Vec<Slot>,
    },
    /// The command has no place in a cluster, or none in a pipeline.
    #[error("{command} cannot be sent so to a cluster: {served_by}")]
    NoPlace {
        /// The command.
        command: &'static str,
        /// The way to run it instead.
        served_by: ServedBy,
    },
    /// The command concerns all primaries, so that it has no place among those of a pipeline.
    #[error("{command} concerns every primary of a cluster: send it outside the pipeline")]
    Everywhere {
        /// The command.
        command: &'static str,
    },
}

/// The slots as people read them, cut off where they are too many.
fn list(slots: &[Slot]) -> String {
    const MOST: usize = 8;
    let ranges = SlotRange::join(slots.iter().copied());
    let shown: Vec<String> = ranges.iter().take(MOST).map(ToString::to_string).collect();
    let more = if ranges.len() > MOST { ", …" } else { "" };
    shown.join(", ") + more
}

/// Returns the one slot of a transaction, or `None` if it names no keys.
///
/// # Errors
/// The keys belong to several slots, or a command has no place in a cluster.
pub fn transaction_slot(pipeline: &Pipeline) -> Result<Option<Slot>, Indivisible> {
    let mut slots = BTreeSet::new();
    for cmd in commands(pipeline) {
        use crate::command::place::{Place, place};
        match place(arguments(cmd)) {
            Place::Slot(slot) => {
                slots.insert(slot);
            }
            Place::Slots(..) => slots.extend(key_names(arguments(cmd)).map(Slot::of_key)),
            Place::AnyPrimary => {}
            Place::AllPrimaries(_) => {
                let command = name(arguments(cmd));
                return Err(Indivisible::Everywhere { command });
            }
            Place::Refused(served_by) => {
                let command = name(arguments(cmd));
                return Err(Indivisible::NoPlace { command, served_by });
            }
        }
    }
    if slots.len() > 1 {
        return Err(Indivisible::Slots {
            command: "MULTI",
            slots: slots.into_iter().collect(),
        });
    }
    Ok(slots.first().copied())
}

/// Returns the keys of a transaction.
pub fn transaction_keys(pipeline: &Pipeline) -> KeySet {
    use crate::command::place::place_and_keys;
    let keys = commands(pipeline).map(|cmd| place_and_keys(arguments(cmd)).1);
    KeySet::all(&keys.collect::<Vec<_>>())
}

/// The slots of a command that has to have one.
fn crosses<'a>(args: impl Iterator<Item = &'a [u8]> + Clone) -> Indivisible {
    let slots: BTreeSet<Slot> = key_names(args.clone()).map(Slot::of_key).collect();
    Indivisible::Slots {
        command: name(args),
        slots: slots.into_iter().collect(),
    }
}

fn name<'a>(args: impl Iterator<Item = &'a [u8]> + Clone) -> &'static str {
    crate::command::classify(args).name
}

/// Joins numbers.
fn sum<'a>(
    command: &'static str,
    values: impl IntoIterator<Item = &'a Value>,
) -> Result<Value, UnexpectedAnswer> {
    let mut sum = 0_i64;
    for value in values {
        let Value::Int(number) = value else {
            let wanted = "a number";
            return Err(UnexpectedAnswer { command, wanted });
        };
        sum = sum.saturating_add(*number);
    }
    Ok(Value::Int(sum))
}

#[cfg(test)]
mod tests;
