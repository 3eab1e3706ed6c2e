//! The effect of repeating several commands, each of which alone could be repeated.
//!
//! "Same state, same answer" holds for one command, and is lost when two are put in a row: `GET c`
//! and `SET c 0` are harmless each, but together they take a counter's value and reset it, and a
//! repeat answers 0 while the value is gone with the first answer. So a command that looks at a key
//! must not come before one that writes it.

use std::collections::HashSet;

use super::Effect::Read;
use super::{Args, Keys, effect::Rule};

/// True if one of the commands looks at what a later one writes, so that a repeat of all of them
/// would find something else. Each is given by its name and its arguments.
///
/// ```
/// use steadfast_core::command::looks_before_it_writes;
///
/// let words = |text: &'static str| text.split(' ').map(str::as_bytes);
/// assert!(looks_before_it_writes(["GET counter", "SET counter 0"].map(words)));
/// assert!(!looks_before_it_writes(["SET counter 0", "GET counter"].map(words)));
/// assert!(!looks_before_it_writes(["GET other", "SET counter 0"].map(words)));
/// ```
///
/// Errs on the safe side: a key that a command names counts as looked at and as written, a command
/// without keys, or that may look at others than it names, as concerned with all of them. It goes
/// through every argument, so it is for a repeat that is considered, not for every pipeline.
pub fn looks_before_it_writes<'a, I>(commands: impl IntoIterator<Item = I>) -> bool
where
    I: Iterator<Item = &'a [u8]> + Clone,
{
    let (mut looked_at, mut at_all) = (HashSet::new(), false);
    for args in commands {
        let args = Args(args);
        let Some((group, name)) = args.group() else {
            return true;
        };
        let keys = group.keys.all(&args);
        let looked = at_all || !looked_at.is_empty();
        if looked && group.rule.effect(group.keys, &args) != Read {
            let touches_all = at_all || keys.is_empty();
            if touches_all || names(&args, &keys).any(|name| looked_at.contains(name)) {
                return true;
            }
        }
        if group.rule.looks() {
            at_all |= keys.is_empty() || LOOK_FURTHER.contains(&name);
            looked_at.extend(names(&args, &keys));
        }
    }
    false
}

/// Commands that look at keys which they do not name: by a pattern, or from within a script.
const LOOK_FURTHER: [&str; 5] = ["SORT", "SORT_RO", "EVAL_RO", "EVALSHA_RO", "FCALL_RO"];

/// The arguments at these indices, which ascend. In one pass, because to look one up is to walk to
/// it.
fn names<'a, I: Iterator<Item = &'a [u8]> + Clone>(
    args: &Args<I>,
    keys: &Keys,
) -> impl Iterator<Item = &'a [u8]> {
    let mut keys = keys.iter().copied().peekable();
    args.from(0)
        .enumerate()
        .filter(move |(at, _)| keys.next_if_eq(at).is_some())
        .map(|(_, name)| name)
}

impl Rule {
    /// Whether its answer, or what it leaves, depends on what was there before.
    const fn looks(self) -> bool {
        !matches!(
            self,
            Rule::Overwrite | Rule::Set | Rule::HSetEx | Rule::MSetEx
        )
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_what_looks_at_a_key_before_it_is_written_is_found() {
        let looks = |text: &'static str| {
            looks_before_it_writes(text.split("; ").map(|c| c.split(' ').map(str::as_bytes)))
        };
        for found in [
            "LRANGE q 0 -1; LTRIM q 1 0",
            "COPY a b REPLACE; SET a 1",
            "ZUNIONSTORE b 1 a; ZUNIONSTORE a 1 c",
            "EXPIRE k 60; SET k v",
            "SETRANGE k 10 x; SET k ab",
            "MGET a b; MSET c 1 b 2",
            "DBSIZE; SET k v",
            "GET k; FLUSHALL",
            "GET a; SET b 1; SET a 1",
            "SORT_RO l BY w_*; SET w_1 5",
            "SORT l BY w_* STORE d; SET w_1 5",
            "EVAL_RO script 1 other; SET c 0",
        ] {
            assert!(looks(found), "{found}");
        }
        for missed in [
            "SET k v; EXPIRE k 60",
            "HMSET h f v; EXPIRE h 60",
            "SET k v; SET k w",
            "SETEX k 60 v; GET k",
            "MSET a 1 b 2; MGET a b",
            "GET a; GET a",
        ] {
            assert!(!looks(missed), "{missed}");
        }
    }

    #[test]
    fn many_keys_take_no_longer_than_they_are_many() {
        let counter = Cell::new(0);
        let steps = &counter;
        let key = |n: usize| format!("key:{n}").into_bytes();
        let get = [b"MGET".to_vec()].into_iter().chain((0..5_000).map(key));
        let set = [b"MSET".to_vec()]
            .into_iter()
            .chain((5_000..15_000).map(key));
        let commands = [get.collect::<Vec<_>>(), set.collect()];
        let counted = commands.iter().map(|command| {
            let args = command.iter().map(Vec::as_slice);
            args.inspect(move |_| steps.set(steps.get() + 1))
        });
        assert!(!looks_before_it_writes(counted));
        let steps = steps.get();
        assert!(steps < 10 * 15_002, "{steps} steps for 15 002 arguments");
    }
}
