//! What a call carries from its attempts at one node to those at another.

use crate::error::Certainty;
use crate::wire::queue::Encoded;

/// The traces of a call's attempts at one node, for those at another.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// The certainty of the last attempt by itself, where an earlier one may have run: its error
    /// says then that the outcome of the whole is unknown.
    pub(crate) alone: Option<Certainty>,
    pub(crate) suspicion: Suspicion,
    /// The bytes of its first attempt, if they were made ahead.
    pub(crate) encoded: Option<Encoded>,
}

/// The connections that have ended at a call, or while it was under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Suspicion {
    /// A connection ended while it was under way.
    pub(super) suspected: bool,
    /// A connection ended at it, or two did while it was under way: it travels apart from the
    /// others.
    pub(super) apart: bool,
    /// Whether a connection ended a second time at this command, though nothing else was in it: it
    /// is not repeated.
    pub(crate) blamed_again: bool,
}

impl Suspicion {
    /// What is suspected of one of two, or of both.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            suspected: self.suspected || other.suspected,
            apart: self.apart || other.apart,
            blamed_again: self.blamed_again || other.blamed_again,
        }
    }
}
