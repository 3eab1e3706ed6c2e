//! The effect of a command on the server, judged by its name and its arguments.
//!
//! A client that repeats a command after a lost connection must know what a repeat does, and the
//! name alone does not tell: `SET k v` may be sent twice, `SET k v NX` may not, because the answer
//! of the repeat would be a lie. The same table says which commands block, which change the state
//! of their connection and so have no place on a shared one, and where the keys are.

mod effect;
mod keys;
pub mod place;
mod sequence;
mod table;
mod wait;

use std::time::Duration;

use crate::redis_rs::CommandRef;

use effect::Rule;
pub use keys::Keys;
pub use sequence::looks_before_it_writes;

/// Judges a command by its name, in any case, and its arguments. The name is the first of `args`.
///
/// ```
/// use steadfast_core::command::{Effect, classify};
///
/// let words = |text: &'static str| text.split(' ').map(str::as_bytes);
/// assert_eq!(classify(words("SET key value EX 60")).effect, Effect::LastWins);
/// assert_eq!(classify(words("SET key value NX")).effect, Effect::Conditional);
/// assert_eq!(classify(words("client kill ID 7")).name, "CLIENT KILL");
/// ```
///
/// A command without a name is refused on a shared connection, as Redis would never answer it.
#[inline]
pub fn classify<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: I) -> Class {
    let args = Args(args);
    let Some((group, name)) = args.group() else {
        let instead = Shared::No(Alternative::Unsupported);
        return Class {
            effect: Effect::Opaque,
            blocking: None,
            shared: instead,
            first_key: None,
            errors: Errors::Refuse,
            name: "UNKNOWN",
        };
    };
    Class {
        effect: group.rule.effect(group.keys, &args),
        blocking: group.wait.of(&args),
        shared: group.shared,
        first_key: group.keys.first(&args),
        errors: group.errors,
        name,
    }
}

/// Where the keys are: their indices among `args`, of which the first is the name.
///
/// Keys that only a module, a script without declared keys or a pattern (`SORT … BY`) would touch
/// cannot be told.
pub fn keys<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: I) -> Keys {
    let args = Args(args);
    args.group()
        .map_or_else(Keys::new, |(group, _)| group.keys.all(&args))
}

/// The keys themselves, where [`keys`] finds them.
pub fn key_names<'a, I>(args: I) -> impl Iterator<Item = &'a [u8]>
where
    I: Iterator<Item = &'a [u8]> + Clone,
{
    let mut keys = keys(args.clone()).into_iter().peekable();
    args.enumerate()
        .filter(move |(at, _)| keys.next_if_eq(at).is_some())
        .map(|(_, name)| name)
}

/// True if a command may concern keys that it does not name: all of a database, those of a pattern,
/// or those that only a script or a module knows.
pub fn reaches_further(class: &Class) -> bool {
    const FURTHER: [&str; 9] = [
        "DBSIZE",
        "FLUSHALL",
        "FLUSHDB",
        "KEYS",
        "RANDOMKEY",
        "SCAN",
        "SORT",
        "SORT_RO",
        "SWAPDB",
    ];
    match class.errors {
        Errors::OfNoKnownCommand => true,
        // One that names keys has to name all of them.
        Errors::ProveNothing => class.first_key.is_none(),
        Errors::Refuse | Errors::MayFollowAPart => FURTHER.contains(&class.name),
    }
}

/// The arguments of a redis-rs command, as [`classify`] and [`keys`] take them. A cursor is given
/// as `0`.
#[inline]
pub fn arguments<'a>(
    cmd: impl Into<CommandRef<'a>>,
) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
    cmd.into().arguments()
}

/// The same blocking command for what is left of its timeout once so much of it has `passed`: at
/// least a millisecond, since 0 is for ever. `None` if it does not block, blocks for ever, or says
/// in no way that can be read for how long: then it is sent again as it is.
///
/// Servers before Redis 6 take whole seconds only, and refuse what is left of them.
pub fn with_time_left<'a>(cmd: impl Into<CommandRef<'a>>, passed: Duration) -> Option<redis::Cmd> {
    let cmd = cmd.into();
    let args = Args(cmd.arguments());
    let (group, _) = args.group()?;
    let (at, left) = group.wait.shortened(&args, passed)?;
    Some(cmd.with_argument(at, left.as_bytes()))
}

/// The effect of repeating a command, from harmless to dangerous. A pipeline has the effect of its
/// worst command; but see [`looks_before_it_writes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Changes nothing, however often it is sent.
    Read,
    /// Leaves the same state and gives the same answer when repeated. A repeat may overwrite what
    /// another client wrote meanwhile.
    LastWins,
    /// Leaves the same state when repeated, but the answer of the repeat would be a lie (or an
    /// error).
    Conditional,
    /// Changes the state once more each time; or undoes what others did meanwhile to more than one
    /// key, as FLUSHALL does.
    Accumulating,
    /// An effect that cannot be told from outside: scripts, functions, modules, unknown commands.
    Opaque,
    /// Concerns the connection or the server rather than the data.
    Control,
}

/// An entry of the table for one command with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The effect of a repeat.
    pub effect: Effect,
    /// Whether it may keep its connection waiting, and for how long.
    pub blocking: Option<BlockFor>,
    /// Whether it may run on a connection that other callers use too.
    pub shared: Shared,
    /// The index of the first key among the arguments (the name is argument 0).
    pub first_key: Option<usize>,
    /// Whether an error reply to it proves that it did nothing.
    pub errors: Errors,
    /// The canonical name, such as `GET` or `CLIENT KILL`; `UNKNOWN` if the table has no such
    /// command. One of a bounded set, so that it may label a metric.
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

/// Whether an error reply to a command proves anything, which depends on who may have written its
/// words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errors {
    /// The server refused the command before it ran.
    Refuse,
    /// Some of it may have been done before the error (MIGRATE), unless the server says why it did
    /// not begin.
    MayFollowAPart,
    /// Nothing: a script or function answers in any words it likes, whatever it has done.
    ProveNothing,
    /// Nothing either, of a module's command, unless it is the server that says that there is no
    /// such command.
    OfNoKnownCommand,
}

/// Whether a command may run on a shared connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// The command may share a connection.
    Yes,
    /// The command may not; this serves instead.
    No(Alternative),
}

/// The way to run a command that is refused on a shared connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alternative {
    /// A session: a connection of one's own.
    Session,
    /// The subscriber, which resubscribes by itself.
    PubSub,
    /// Nothing does: it would take the connection from the client that manages it.
    Unsupported,
}

/// The name of a command and its arguments.
struct Args<I>(I);

impl<'a, I: Iterator<Item = &'a [u8]> + Clone> Args<I> {
    fn at(&self, index: usize) -> Option<&'a [u8]> {
        self.0.clone().nth(index)
    }

    fn from(&self, index: usize) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a, I> {
        self.0.clone().skip(index)
    }

    fn count(&self) -> usize {
        self.0.clone().count()
    }

    /// Returns the table's group with the canonical name; `None` if there is no name at all.
    #[inline]
    fn group(&self) -> Option<(&'static table::Group, &'static str)> {
        let mut args = self.0.clone();
        let name = args.next()?;
        let Some((group, known)) = table::find(name, None) else {
            return Some((&table::UNKNOWN, "UNKNOWN"));
        };
        if matches!(group.rule, Rule::Container | Rule::BareCommand)
            && let Some(sub) = args.next()
            && let Some(found) = table::find(name, Some(sub))
        {
            return Some(found);
        }
        Some((group, known))
    }
}

#[cfg(test)]
mod tests;
