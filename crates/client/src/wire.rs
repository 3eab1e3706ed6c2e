//! The way of a command's bytes: callers put them into a queue, and replies come back through
//! slots.
//!
//! Nothing here knows which connection the bytes will take, nor what to do when one is lost.

pub(crate) mod identity;
pub(crate) mod queue;
pub(crate) mod slot;
pub(crate) mod stream;
pub(crate) mod words;
