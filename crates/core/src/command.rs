//! What a command does to the server, judged by its name and its arguments.
//!
//! A client that repeats a command after a lost connection must know what a repeat does, and the name alone
//! does not tell: `SET k v` may be sent twice, `SET k v NX` may not, because the answer of the repeat would be
//! a lie. The same table says which commands block, which change the state of their connection and so have
//! no place on a shared one, and where the keys are.

use std::time::Duration;

/// What repeating a command does, from harmless to dangerous. A pipeline has the effect of its worst command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Changes nothing, however often it is sent.
    Read,
    /// Leaves the same state and gives the same answer when repeated. A repeat may overwrite what another
    /// client wrote meanwhile.
    LastWins,
    /// Leaves the same state when repeated, but the answer of the repeat would be a lie (or an error).
    Conditional,
    /// Changes the state once more each time.
    Accumulating,
    /// What it does cannot be told from outside: scripts, functions, modules, unknown commands.
    Opaque,
    /// Concerns the connection or the server rather than the data.
    Control,
}

/// What the table knows of one command with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// What a repeat would do.
    pub effect: Effect,
    /// Whether it may keep its connection waiting, and for how long.
    pub blocking: Option<BlockFor>,
    /// Whether it may run on a connection that other callers use too.
    pub shared: Shared,
    /// The index of the first key among the arguments (the name is argument 0).
    pub first_key: Option<usize>,
    /// The canonical name, such as `GET` or `CLIENT KILL`; `UNKNOWN` if the table has no such command. One of
    /// a bounded set, so that it may label a metric.
    pub name: &'static str,
}

/// How long a blocking command may wait in the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFor {
    /// Until something happens (a timeout of 0).
    Forever,
    /// For this long at most.
    Time(Duration),
}

/// Whether a command may run on a shared connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// It may.
    Yes,
    /// It may not; this serves instead.
    No(Instead),
}

/// What serves a command that is refused on a shared connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// A session: a connection of one's own.
    Session,
    /// The subscriber, which resubscribes by itself.
    PubSub,
    /// Nothing does: it would take the connection from the client that manages it.
    Unsupported,
}
