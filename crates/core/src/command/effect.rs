//! The effect of a repeat, where that depends on the arguments.
//!
//! Options are read as the server reads them, each with the arguments that it takes, so that a
//! value which happens to be spelled like an option is not taken for one. An option that is not
//! known here (a later server's) makes the command opaque: better not repeated than repeated
//! wrongly.

use super::Effect::{self, Accumulating, Conditional, Control, LastWins, Opaque, Read};
use super::keys::KeySpec;
use super::{Args, Keys};

/// How the effect of a command follows from its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// The effect is always the same.
    Is(Effect),
    /// `LastWins`, whatever was there before.
    Overwrite,
    Set,
    GetEx,
    HSetEx,
    MSetEx,
    Expire {
        millis: bool,
    },
    /// Repeatable with `REPLACE` among the options from that argument on; else an error the second
    /// time.
    Replace {
        from: usize,
    },
    FunctionLoad,
    FunctionRestore,
    BitField,
    XRead,
    LTrim,
    LRem,
    ZAdd,
    ZRemRangeByRank,
    XAdd,
    AclLog,
    /// Stores under its first key what it computes from the others.
    Store,
    /// Stores under its last key, if it has more than one, what it computes from the first.
    StoreOption,
    /// The name alone says nothing: a subcommand follows.
    Container,
    /// The same, but without a subcommand it reads.
    BareCommand,
}

use Rule::Is;

impl Rule {
    #[inline]
    pub(super) fn effect<'a, I: Iterator<Item = &'a [u8]> + Clone>(
        self,
        keys: KeySpec,
        args: &Args<I>,
    ) -> Effect {
        match self {
            Is(effect) => effect,
            Rule::Set => set(args.from(3)),
            _ => self.seldom(keys, args),
        }
    }

    fn seldom<'a, I: Iterator<Item = &'a [u8]> + Clone>(
        self,
        keys: KeySpec,
        args: &Args<I>,
    ) -> Effect {
        match self {
            Is(effect) => effect,
            Rule::Overwrite => LastWins,
            Rule::Set => set(args.from(3)),
            Rule::GetEx => get_ex(args.from(2)),
            Rule::HSetEx => set(args.from(2)),
            Rule::MSetEx => {
                let pairs = args.at(1).and_then(number).unwrap_or(i64::MAX);
                let options = usize::try_from(pairs)
                    .unwrap_or(usize::MAX)
                    .saturating_mul(2)
                    .saturating_add(2);
                set(args.from(options))
            }
            Rule::Expire { millis } => expire(args, millis),
            Rule::Replace { from } => replace(args.from(from)),
            Rule::FunctionLoad => match args.at(2) {
                Some(option) if is(option, b"REPLACE") => LastWins,
                _ => Conditional,
            },
            Rule::FunctionRestore => match args.at(3) {
                Some(policy) if is(policy, b"REPLACE") => LastWins,
                // The libraries that others have loaded meanwhile would go.
                Some(policy) if is(policy, b"FLUSH") => Accumulating,
                _ => Conditional,
            },
            Rule::BitField => bit_field(args.from(2)),
            Rule::XRead => x_read(keys, args),
            Rule::LTrim => l_trim(args),
            Rule::LRem => match args.at(2).and_then(number) {
                // All of them at once: nothing is left for a repeat.
                Some(0) => Conditional,
                _ => Accumulating,
            },
            Rule::ZAdd => z_add(args.from(2)),
            Rule::ZRemRangeByRank => z_rem_range_by_rank(args),
            Rule::XAdd => x_add(args.from(2)),
            Rule::AclLog => match args.at(2) {
                Some(option) if is(option, b"RESET") => Control,
                _ => Read,
            },
            Rule::Store => {
                let keys = keys.all(args);
                store(args, keys.first().copied(), &keys)
            }
            Rule::StoreOption => {
                let keys = keys.all(args);
                if keys.len() < 2 {
                    Read
                } else {
                    store(args, keys.last().copied(), &keys)
                }
            }
            Rule::Container => Opaque,
            Rule::BareCommand if args.at(1).is_none() => Read,
            Rule::BareCommand => Opaque,
        }
    }
}

/// SET and its kin, from the first option on.
#[inline]
fn set<'a>(mut options: impl Iterator<Item = &'a [u8]>) -> Effect {
    let mut effect = LastWins;
    while let Some(option) = options.next() {
        if is(option, b"EX") || is(option, b"PX") || is(option, b"EXAT") || is(option, b"PXAT") {
            options.next();
        } else if is(option, b"FIELDS") {
            skip_fields(&mut options, 2);
        } else if CONDITIONS.iter().any(|word| is(option, word)) {
            effect = effect.max(Conditional);
        } else if COMPARISONS.iter().any(|word| is(option, word)) {
            options.next();
            effect = effect.max(Conditional);
        } else if !is(option, b"KEEPTTL") {
            return Opaque;
        }
    }
    effect
}

/// GETEX and HGETEX: the value is read, and its time to live set. A value that may be gone by the
/// time of a repeat is lost with the answer, as by GETDEL.
fn get_ex<'a>(mut options: impl Iterator<Item = &'a [u8]>) -> Effect {
    let mut effect = Read;
    while let Some(option) = options.next() {
        let millis = is(option, b"PX");
        if is(option, b"FIELDS") {
            skip_fields(&mut options, 1);
        } else if is(option, b"PERSIST") {
            effect = effect.max(LastWins);
        } else if is(option, b"EX") || millis {
            let lasts = options
                .next()
                .and_then(number)
                .is_some_and(|after| outlasts_a_call(after, millis));
            effect = effect.max(if lasts { LastWins } else { Accumulating });
        } else if is(option, b"EXAT") || is(option, b"PXAT") {
            options.next();
            effect = effect.max(Accumulating);
        } else {
            return Opaque;
        }
    }
    effect
}

/// EXPIRE and its kin: repeatable without a condition, if the key is still there for the repeat.
/// One that is not makes the repeat answer that there was none.
fn expire<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: &Args<I>, millis: bool) -> Effect {
    let lasts = args
        .at(2)
        .and_then(number)
        .is_some_and(|after| outlasts_a_call(after, millis));
    let mut options = args.from(3);
    while let Some(option) = options.next() {
        if !is(option, b"FIELDS") {
            return Conditional;
        }
        skip_fields(&mut options, 1);
    }
    if lasts { LastWins } else { Conditional }
}

/// Skips the fields behind FIELDS: their number, and each as so many arguments. Options may come
/// behind them.
fn skip_fields<'a>(options: &mut impl Iterator<Item = &'a [u8]>, each: usize) {
    let fields = options.next().and_then(number).unwrap_or(0);
    let arguments = usize::try_from(fields).unwrap_or(0).saturating_mul(each);
    options.take(arguments).for_each(drop);
}

/// An id of `$` or `+` is the last one at the moment of the call: a repeat asks from a later moment
/// and says nothing of what came between.
fn x_read<'a, I: Iterator<Item = &'a [u8]> + Clone>(keys: KeySpec, args: &Args<I>) -> Effect {
    let ids = keys.all(args).last().map_or(usize::MAX, |last| last + 1);
    if args.from(ids).any(|id| matches!(id, b"$" | b"+")) {
        Conditional
    } else {
        Read
    }
}

fn replace<'a>(mut options: impl Iterator<Item = &'a [u8]>) -> Effect {
    while let Some(option) = options.next() {
        if is(option, b"REPLACE") {
            return LastWins;
        } else if is(option, b"DB") || is(option, b"IDLETIME") || is(option, b"FREQ") {
            options.next();
        }
    }
    Conditional
}

fn bit_field<'a>(mut operations: impl Iterator<Item = &'a [u8]>) -> Effect {
    let mut effect = Read;
    while let Some(operation) = operations.next() {
        let takes = if is(operation, b"GET") {
            2
        } else if is(operation, b"OVERFLOW") {
            1
        } else if is(operation, b"SET") {
            // It answers with what was there before.
            effect = effect.max(Conditional);
            3
        } else if is(operation, b"INCRBY") {
            effect = effect.max(Accumulating);
            3
        } else {
            return Opaque;
        };
        operations.nth(takes - 1);
    }
    effect
}

/// Trimming to the first or the last so many, to where both overlap, or to none leaves nothing for
/// a repeat to trim. With any other ends, what is kept moves up and is trimmed again.
fn l_trim<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: &Args<I>) -> Effect {
    match (args.at(2).and_then(number), args.at(3).and_then(number)) {
        (Some(0), Some(0..)) | (Some(0), Some(-1)) | (Some(..0), Some(-1..)) => LastWins,
        (Some(start @ 1..), Some(stop @ 0..)) if start > stop => LastWins,
        _ => Accumulating,
    }
}

/// Removing all but so many at either end answers with a count that a repeat would not give; any
/// other ranks are taken by those that follow, which a repeat would remove too.
fn z_rem_range_by_rank<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: &Args<I>) -> Effect {
    match (args.at(2).and_then(number), args.at(3).and_then(number)) {
        (Some(0..), Some(..0)) => Conditional,
        _ => Accumulating,
    }
}

/// ZADD answers how many were added. Its options end where the first score begins.
fn z_add<'a>(options: impl Iterator<Item = &'a [u8]>) -> Effect {
    for option in options {
        if is(option, b"INCR") {
            return Accumulating;
        }
        if ![&b"NX"[..], b"XX", b"GT", b"LT", b"CH"]
            .iter()
            .any(|word| is(option, word))
        {
            break;
        }
    }
    Conditional
}

/// XADD under an id of the caller's choice is refused the second time; under one that the server
/// makes, it adds another entry.
fn x_add<'a>(mut options: impl Iterator<Item = &'a [u8]>) -> Effect {
    while let Some(option) = options.next() {
        if is(option, b"MAXLEN") || is(option, b"MINID") {
            if let Some(b"=" | b"~") = options.next() {
                options.next();
            }
        } else if is(option, b"LIMIT") {
            options.next();
        } else if ![&b"NOMKSTREAM"[..], b"KEEPREF", b"DELREF", b"ACKED"]
            .iter()
            .any(|word| is(option, word))
        {
            let explicit = !option.is_empty()
                && option
                    .iter()
                    .all(|byte| byte.is_ascii_digit() || *byte == b'-');
            return if explicit { Conditional } else { Accumulating };
        }
    }
    Accumulating
}

/// A result is the same each time, unless it took the place of one of its sources.
fn store<'a, I: Iterator<Item = &'a [u8]> + Clone>(
    args: &Args<I>,
    dest: Option<usize>,
    keys: &Keys,
) -> Effect {
    let Some(dest) = dest else { return Opaque };
    let name = args.at(dest);
    let mut sources = keys.iter().filter(|&&key| key != dest);
    if sources.any(|&source| args.at(source) == name) {
        Accumulating
    } else {
        LastWins
    }
}

/// Whether what lives so long is still there when a call is made again, however late within its
/// deadline.
fn outlasts_a_call(after: i64, millis: bool) -> bool {
    after >= if millis { 60_000 } else { 60 }
}

fn number(arg: &[u8]) -> Option<i64> {
    str::from_utf8(arg).ok()?.parse().ok()
}

fn is(arg: &[u8], word: &[u8]) -> bool {
    arg.eq_ignore_ascii_case(word)
}

/// Options that make the answer tell whether a condition held, or what was there before.
const CONDITIONS: [&[u8]; 5] = [b"NX", b"XX", b"GET", b"FNX", b"FXX"];

/// Conditions that compare with the argument behind them.
const COMPARISONS: [&[u8]; 4] = [b"IFEQ", b"IFNE", b"IFDEQ", b"IFDNE"];
