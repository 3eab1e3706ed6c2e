//! Where a command belongs in a cluster.
//!
//! Most commands name keys, and their slot decides. Of the others some may run anywhere, some
//! concern every primary, and some ask a server about itself: an answer of whichever node happened
//! to be asked would look like one of the cluster. Those are refused, with what serves instead. The
//! servers have an opinion too, the tips `request_policy` and `response_policy` of `COMMAND`; a
//! test compares, and lists where this differs and why.

use std::fmt;

use super::{Alternative, Args, Errors, Shared};
use crate::slot::{KeySet, Slot};

/// Judges where a command belongs in a cluster, by its name and its arguments.
///
/// ```
/// use steadfast_core::command::place::{Joining, Place, ServedBy, place};
/// use steadfast_core::slot::Slot;
///
/// let words = |text: &'static str| text.split(' ').map(str::as_bytes);
/// assert_eq!(place(words("GET key")), Place::Slot(Slot::of_key(b"key")));
/// assert_eq!(place(words("PUBLISH news text")), Place::Slot(Slot::of_key(b"news")));
/// assert_eq!(place(words("DBSIZE")), Place::AllPrimaries(Joining::Sum));
/// assert_eq!(place(words("PING")), Place::AnyPrimary);
/// assert_eq!(place(words("SCAN 0")), Place::Refused(ServedBy::Scan));
/// ```
///
/// Of a module's command nobody here knows the keys; its first argument is taken for one, and the
/// redirect of the server corrects what was guessed wrong.
pub fn place<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: I) -> Place {
    place_and_keys(args).0
}

/// The same, with the command's keys, or its channel.
pub fn place_and_keys<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: I) -> (Place, KeySet) {
    let args = Args(args);
    let Some((group, name)) = args.group() else {
        return (Place::Refused(ServedBy::Nothing), KeySet::Unknown);
    };
    match group.shared {
        Shared::Yes => {}
        Shared::No(instead) => return (refused(instead), KeySet::Unknown),
    }
    let mut keys = group.keys.all(&args).into_iter();
    let mut next = || keys.next().and_then(|at| args.at(at));
    let Some(first) = next() else {
        let place = without_keys(group, name, &args);
        let keys = match (place, group.errors) {
            // Of a module's command its first argument may be none.
            (Place::Slot(_), Errors::OfNoKnownCommand) => KeySet::Unknown,
            (Place::Slot(_), _) => args
                .at(1)
                .map_or(KeySet::Unknown, |channel| KeySet::of([channel])),
            _ => KeySet::Empty,
        };
        return (place, keys);
    };
    let slot = Slot::of_key(first);
    let Some(second) = next() else {
        return (Place::Slot(slot), KeySet::of([first]));
    };
    let (mut all, mut place) = (vec![KeySet::hash(first)], Place::Slot(slot));
    for key in std::iter::once(second).chain(std::iter::from_fn(next)) {
        let other = Slot::of_key(key);
        if other != slot {
            place = Place::Slots(slot, other);
            break;
        }
        all.push(KeySet::hash(key));
    }
    (place, KeySet::hashed(all))
}

fn refused(instead: Alternative) -> Place {
    Place::Refused(match instead {
        Alternative::Session => ServedBy::Session,
        Alternative::PubSub => ServedBy::Subscriber,
        Alternative::Unsupported => ServedBy::Nothing,
    })
}

fn without_keys<'a, I: Iterator<Item = &'a [u8]> + Clone>(
    group: &super::table::Group,
    name: &str,
    args: &Args<I>,
) -> Place {
    let guessed = group.errors == Errors::OfNoKnownCommand;
    match if guessed { Home::Channel } else { home(name) } {
        Home::Any => Place::AnyPrimary,
        Home::All(joining) => Place::AllPrimaries(joining),
        Home::Refused(served_by) => Place::Refused(served_by),
        Home::Channel => match args.at(1) {
            Some(channel) => Place::Slot(Slot::of_key(channel)),
            None => Place::AnyPrimary,
        },
        Home::Numbered => {
            let number = args.at(2).and_then(|arg| str::from_utf8(arg).ok());
            let slot = number.and_then(|number| Slot::new(number.parse().ok()?));
            // What is no number of a slot is refused by whoever gets it.
            slot.map_or(Place::AnyPrimary, Place::Slot)
        }
    }
}

/// The place of a command in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The owner of this slot, to which all keys of the command belong.
    Slot(Slot),
    /// Keys in several slots, of which two are named. Some such commands can be divided
    /// ([`split`](crate::split::command)); the others have no place.
    Slots(Slot, Slot),
    /// Any primary: each would do the same.
    AnyPrimary,
    /// Every primary, whose answers are joined to one.
    AllPrimaries(Joining),
    /// Nowhere, unless by what serves instead.
    Refused(ServedBy),
}

/// How the answers of all primaries become one. An answer is whole or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// The sum of all answers.
    Sum,
    /// A list of all elements.
    Concatenation,
    /// The first of them, if none is an error.
    AllSucceed,
    /// The first success, if there is one: a script runs on one of the servers.
    OneSucceeds,
    /// A list of which each element is 1 if it is so everywhere.
    And,
    /// The first that is not null: a server without keys has none to show.
    FirstPresent,
}

/// The way to run a command that has no place in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedBy {
    /// A node that the caller chooses, as the command concerns a server and not the data.
    Node,
    /// The scan of all slots.
    Scan,
    /// A session on the owner of a key.
    Session,
    /// The subscriber.
    Subscriber,
    /// Nothing: a cluster has no such thing, or the client sees to it itself.
    Nothing,
}

impl ServedBy {
    /// Returns what to do, as the end of a message.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Node => "it concerns one server: send it by `client.node(address)`",
            Self::Scan => {
                "a cursor is valid for one server only: use `client.scan_keys(query)`, which covers all"
            }
            Self::Session => {
                "it changes the state of its connection: use `client.session_for(key)`"
            }
            Self::Subscriber => "use `client.pubsub()`, which subscribes anew when nodes change",
            Self::Nothing => "a cluster has no place for it",
        }
    }
}

impl fmt::Display for ServedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.advice())
    }
}

/// Where a command without keys belongs.
#[derive(Clone, Copy, Debug)]
enum Home {
    Any,
    All(Joining),
    /// With the slot of argument 1, which is a channel or may be a key.
    Channel,
    /// With the slot whose number is argument 2.
    Numbered,
    Refused(ServedBy),
}

/// The home of a command, by its canonical name, where it names no keys. What ought to name some
/// and does not is refused by any server.
fn home(name: &str) -> Home {
    match name {
        "DBSIZE" => Home::All(Joining::Sum),
        "KEYS" => Home::All(Joining::Concatenation),
        "RANDOMKEY" => Home::All(Joining::FirstPresent),
        "SCRIPT EXISTS" => Home::All(Joining::And),
        "FLUSHALL" | "FLUSHDB" | "FUNCTION DELETE" | "FUNCTION FLUSH" | "FUNCTION LOAD"
        | "FUNCTION RESTORE" | "SCRIPT FLUSH" | "SCRIPT LOAD" => Home::All(Joining::AllSucceed),
        "FUNCTION KILL" | "SCRIPT KILL" => Home::All(Joining::OneSucceeds),
        "PUBLISH" => Home::Channel,
        "CLUSTER COUNTKEYSINSLOT" | "CLUSTER GETKEYSINSLOT" => Home::Numbered,
        "SCAN" => Home::Refused(ServedBy::Scan),
        // There is one database.
        "SWAPDB" => Home::Refused(ServedBy::Nothing),
        name if SERVERS.iter().any(|of| is_of(name, of)) && !SAME_ON_ALL.contains(&name) => {
            Home::Refused(ServedBy::Node)
        }
        _ => Home::Any,
    }
}

/// Whether a command has this name, or belongs to the container of this name.
fn is_of(name: &str, of: &str) -> bool {
    name.strip_prefix(of)
        .is_some_and(|rest| rest.is_empty() || (rest.starts_with(' ') && rest != " HELP"))
}

/// Commands and containers that concern a server rather than the data.
const SERVERS: [&str; 24] = [
    "ACL",
    "BGREWRITEAOF",
    "BGSAVE",
    "CLIENT",
    "CLUSTER",
    "COMMANDLOG",
    "CONFIG",
    "DEBUG",
    "FAILOVER",
    "FUNCTION",
    "INFO",
    "LASTSAVE",
    "LATENCY",
    "MEMORY",
    "MODULE",
    "PFSELFTEST",
    "PUBSUB",
    "REPLICAOF",
    "ROLE",
    "SAVE",
    "SCRIPT",
    "SHUTDOWN",
    "SLAVEOF",
    "SLOWLOG",
];

/// Commands, by their first word, that every primary of a cluster answers alike.
const SAME_ON_ALL: [&str; 13] = [
    "ACL CAT",
    "ACL GENPASS",
    "ACL WHOAMI",
    "CLUSTER INFO",
    "CLUSTER KEYSLOT",
    "CLUSTER NODES",
    "CLUSTER REPLICAS",
    "CLUSTER SHARDS",
    "CLUSTER SLAVES",
    "CLUSTER SLOTS",
    "FUNCTION DUMP",
    "FUNCTION LIST",
    "SCRIPT SHOW",
];
