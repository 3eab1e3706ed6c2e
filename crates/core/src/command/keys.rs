//! Where the keys of a command are.
//!
//! A key decides which connection serves a command, so that commands of one key keep their order.
//! Most commands have theirs at fixed places; the rest count them, or put them behind a word.

use smallvec::SmallVec;

use super::Args;

/// The indices of a command's keys among its arguments (the name is argument 0), in their order.
pub type Keys = SmallVec<[usize; 4]>;

/// The places of a command's keys.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeySpec {
    None,
    /// Every `step`-th argument from `first` up to `last`; a negative `last` counts from the end
    /// (-1 is the last argument).
    Range {
        first: usize,
        last: isize,
        step: usize,
    },
    /// The number of keys is at `at` and they follow it, `step` apart; with `store`, argument 1 is
    /// one as well.
    Count {
        at: usize,
        step: usize,
        store: bool,
    },
    /// The first half of what follows `STREAMS`.
    Streams,
    /// Argument 1 and what follows `STORE`.
    Sort,
    /// Argument 1 and what follows `STORE` or `STOREDIST` among the options.
    GeoRadius {
        options: usize,
    },
    /// Argument 3 or, if that is empty, all that follows `KEYS`.
    Migrate,
}

pub(super) const NONE: KeySpec = KeySpec::None;
pub(super) const FIRST: KeySpec = KeySpec::Range {
    first: 1,
    last: 1,
    step: 1,
};
pub(super) const SECOND: KeySpec = KeySpec::Range {
    first: 2,
    last: 2,
    step: 1,
};
pub(super) const TWO: KeySpec = KeySpec::Range {
    first: 1,
    last: 2,
    step: 1,
};
pub(super) const ALL: KeySpec = KeySpec::Range {
    first: 1,
    last: -1,
    step: 1,
};
pub(super) const ALL_BUT_LAST: KeySpec = KeySpec::Range {
    first: 1,
    last: -2,
    step: 1,
};
pub(super) const PAIRS: KeySpec = KeySpec::Range {
    first: 1,
    last: -1,
    step: 2,
};
pub(super) const STORE_SECOND: KeySpec = KeySpec::Range {
    first: 2,
    last: -1,
    step: 1,
};
pub(super) const COUNT_1: KeySpec = KeySpec::Count {
    at: 1,
    step: 1,
    store: false,
};
pub(super) const COUNT_2: KeySpec = KeySpec::Count {
    at: 2,
    step: 1,
    store: false,
};
pub(super) const STORE_COUNT: KeySpec = KeySpec::Count {
    at: 2,
    step: 1,
    store: true,
};

impl KeySpec {
    /// The index of the first key.
    #[inline]
    pub(super) fn first<'a, I: Iterator<Item = &'a [u8]> + Clone>(
        self,
        args: &Args<I>,
    ) -> Option<usize> {
        match self {
            KeySpec::None => None,
            // The furthest argument that must be there: behind a negative `last`, some are not
            // keys.
            KeySpec::Range { first, last, .. } => {
                let behind = if last < 0 { last.unsigned_abs() - 1 } else { 0 };
                args.at(first + behind).map(|_| first)
            }
            KeySpec::Count { store: true, .. } | KeySpec::Sort | KeySpec::GeoRadius { .. } => {
                args.at(1).map(|_| 1)
            }
            _ => self.all(args).first().copied(),
        }
    }

    /// The indices of all keys.
    pub(super) fn all<'a, I: Iterator<Item = &'a [u8]> + Clone>(self, args: &Args<I>) -> Keys {
        let count = args.count();
        match self {
            KeySpec::None => Keys::new(),
            KeySpec::Range { first, last, step } => {
                let end = if last < 0 {
                    (count + 1).saturating_sub(last.unsigned_abs())
                } else {
                    last as usize + 1
                };
                (first..end.min(count)).step_by(step).collect()
            }
            KeySpec::Count { at, step, store } => {
                let claimed = args.at(at).and_then(parse).unwrap_or(0);
                let dest = (store && count > 1).then_some(1);
                dest.into_iter()
                    .chain((at + 1..count).step_by(step).take(claimed))
                    .collect()
            }
            KeySpec::Streams => streams(args, count),
            KeySpec::Sort => with_store(
                args,
                2,
                &[b"STORE"],
                &[(b"LIMIT", 2), (b"GET", 1), (b"BY", 1)],
            ),
            KeySpec::GeoRadius { options } => {
                with_store(args, options, &[b"STORE", b"STOREDIST"], &[(b"COUNT", 1)])
            }
            KeySpec::Migrate => migrate(args, count),
        }
    }
}

fn streams<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: &Args<I>, count: usize) -> Keys {
    let mut options = args.from(1).zip(1..);
    while let Some((option, at)) = options.next() {
        if is(option, b"STREAMS") {
            let first: usize = at + 1;
            return (first..first + (count - first) / 2).collect();
        }
        let takes = match () {
            () if is(option, b"BLOCK") || is(option, b"COUNT") || is(option, b"CLAIM") => 1,
            () if is(option, b"GROUP") => 2,
            // NOACK, or an option of a later server's.
            () => 0,
        };
        options.by_ref().take(takes).for_each(drop);
    }
    Keys::new()
}

/// Argument 1, and what follows the last of the `stores` words from argument `from` on. What
/// follows one of the `other` words (given with how many arguments it takes) is no such word.
fn with_store<'a, I: Iterator<Item = &'a [u8]> + Clone>(
    args: &Args<I>,
    from: usize,
    stores: &[&[u8]],
    other: &[(&[u8], usize)],
) -> Keys {
    let mut keys: Keys = args.at(1).map(|_| 1).into_iter().collect();
    let mut store = None;
    let mut options = args.from(from).zip(from..);
    while let Some((option, _)) = options.next() {
        if stores.iter().any(|word| is(option, word)) {
            store = options.next().map(|(_, at)| at).or(store);
        } else if let Some((_, takes)) = other.iter().find(|(word, _)| is(option, word)) {
            options.by_ref().take(*takes).for_each(drop);
        }
    }
    keys.extend(store);
    keys
}

fn migrate<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: &Args<I>, count: usize) -> Keys {
    match args.at(3) {
        Some(b"") => match args.from(6).position(|arg| is(arg, b"KEYS")) {
            Some(position) => (6 + position + 1..count).collect(),
            None => Keys::new(),
        },
        Some(_) => [3].into_iter().collect(),
        None => Keys::new(),
    }
}

fn parse(arg: &[u8]) -> Option<usize> {
    str::from_utf8(arg).ok()?.parse().ok()
}

fn is(arg: &[u8], word: &[u8]) -> bool {
    arg.eq_ignore_ascii_case(word)
}
