//! The share of one node in a call that concerns several.

use redis::Cmd;

use super::keys::Part;
use crate::command::{self, Class};
use crate::redis_rs::CommandRef;
use crate::resp::encode;

/// A command, or a part of one, among those that go to one node together. A view of what the caller
/// has given: nothing is copied before it is encoded.
#[derive(Clone, Copy, Debug)]
pub enum Portion<'a> {
    /// A command as it is.
    Whole(CommandRef<'a>),
    /// The part of a command that concerns one slot.
    Part(Part<'a>),
}

impl<'a> Portion<'a> {
    /// Appends it to `out`.
    pub fn encode(self, out: &mut Vec<u8>) {
        match self {
            Self::Whole(cmd) => encode::redis_cmd(cmd, out),
            Self::Part(part) => encode::counted(part.argument_count(), part.arguments(), out),
        }
    }

    /// Returns as many bytes as that may take, or a few more.
    pub fn most_bytes(self) -> usize {
        match self {
            Self::Whole(cmd) => encode::most_bytes(cmd),
            Self::Part(part) => encode::most_bytes_of(part.arguments()),
        }
    }

    /// Judges it, as [`command::classify`] does.
    pub fn classify(self) -> Class {
        match self {
            Self::Whole(cmd) => command::classify(cmd.arguments()),
            Self::Part(part) => command::classify(part.arguments()),
        }
    }

    /// Returns its name and its arguments. A cursor is given as `0`.
    pub fn arguments(self) -> Vec<&'a [u8]> {
        match self {
            Self::Whole(cmd) => cmd.arguments().collect(),
            Self::Part(part) => part.arguments().collect(),
        }
    }

    /// Returns its name, as the caller has written it.
    pub fn name(self) -> &'a [u8] {
        match self {
            Self::Whole(cmd) => cmd.arguments().next().unwrap_or_default(),
            Self::Part(part) => part.arguments().next().unwrap_or_default(),
        }
    }

    /// Returns it as a command of its own.
    pub fn to_cmd(self) -> Cmd {
        match self {
            Self::Whole(cmd) => cmd.to_cmd(),
            Self::Part(part) => part.cmd(),
        }
    }
}
