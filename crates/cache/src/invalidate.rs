//! Invalidating: a write with what it makes invalid, and hearing of those of others.

pub(crate) mod channel;
pub(crate) mod statement;
pub(crate) mod write;

pub use statement::Statement;
pub use write::{Commit, Invalidation, Write, WriteError, Written};
