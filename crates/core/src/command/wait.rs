//! How long a blocking command may keep its connection.
//!
//! The timeout of the server is what the client's own deadline has to follow, and servers take it
//! in two units and at four places.

use std::time::Duration;

use super::{Args, BlockFor};

/// Where a command says how long it blocks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    Never,
    /// Seconds, as the last argument.
    SecondsLast,
    /// Seconds, as the first argument.
    SecondsFirst,
    /// Milliseconds behind `BLOCK`, before `STREAMS`; without it the command does not block.
    BlockOption,
    /// Milliseconds, as the argument of that index.
    Millis {
        at: usize,
    },
}

/// In which unit a timeout is given.
#[derive(Clone, Copy)]
enum TimeoutUnit {
    Seconds,
    Millis,
}

/// The options of XREAD and XREADGROUP.
enum Options {
    /// BLOCK, with its milliseconds at that index.
    Block(usize),
    /// Options that are not known here.
    Unknown,
    Plain,
}

impl Wait {
    #[inline]
    pub(super) fn of<'a, I: Iterator<Item = &'a [u8]> + Clone>(
        self,
        args: &Args<I>,
    ) -> Option<BlockFor> {
        match self {
            Wait::Never => None,
            Wait::SecondsLast => Some(seconds(args.from(1).last())),
            Wait::SecondsFirst => Some(seconds(args.at(1))),
            Wait::Millis { at } => Some(millis(args.at(at))),
            Wait::BlockOption => match options(args) {
                Options::Block(at) => Some(millis(args.at(at))),
                Options::Unknown => Some(BlockFor::Time(Duration::ZERO)),
                Options::Plain => None,
            },
        }
    }

    /// Returns the timeout that is left once so much of it has `passed`, and at which index. It
    /// never becomes 0, which would be for ever. `None` where there is none to shorten.
    pub(super) fn shortened<'a, I: Iterator<Item = &'a [u8]> + Clone>(
        self,
        args: &Args<I>,
        passed: Duration,
    ) -> Option<(usize, String)> {
        let Some(BlockFor::Time(whole)) = self.of(args) else {
            return None;
        };
        let (at, unit) = match self {
            Wait::Never => return None,
            Wait::SecondsLast => (args.count() - 1, TimeoutUnit::Seconds),
            Wait::SecondsFirst => (1, TimeoutUnit::Seconds),
            Wait::Millis { at } => (at, TimeoutUnit::Millis),
            Wait::BlockOption => match options(args) {
                Options::Block(at) => (at, TimeoutUnit::Millis),
                Options::Unknown | Options::Plain => return None,
            },
        };
        if whole.is_zero() {
            return None;
        }
        let left = whole.saturating_sub(passed).max(Duration::from_millis(1));
        let left = match unit {
            TimeoutUnit::Seconds => format!("{:.3}", left.as_secs_f64()),
            TimeoutUnit::Millis => left.as_millis().to_string(),
        };
        Some((at, left))
    }
}

/// Looks for BLOCK among the options. What follows GROUP, COUNT and CLAIM are names and numbers,
/// not options: a group may be called `streams`.
///
/// Behind an option that is not known here (a later server's), nobody can tell names from options.
/// So the command is taken to block, for as long as a `BLOCK` behind it says: that costs a
/// connection of its own for a moment, while one that does block would stop everybody on a shared
/// one.
fn options<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: &Args<I>) -> Options {
    let mut options = (1..).zip(args.from(1));
    let mut found = None;
    let mut unknown = false;
    while let Some((at, option)) = options.next() {
        let is = |word: &[u8]| option.eq_ignore_ascii_case(word);
        if is(b"BLOCK") {
            found = Some(at + 1);
            options.next();
        } else if is(b"STREAMS") {
            break;
        } else if is(b"GROUP") {
            options.by_ref().take(2).for_each(drop);
        } else if is(b"COUNT") || is(b"CLAIM") {
            options.by_ref().take(1).for_each(drop);
        } else if !is(b"NOACK") {
            unknown = true;
        }
    }
    match (found, unknown) {
        (Some(at), _) => Options::Block(at),
        (None, true) => Options::Unknown,
        (None, false) => Options::Plain,
    }
}

fn seconds(arg: Option<&[u8]>) -> BlockFor {
    let seconds: Option<f64> = arg
        .and_then(|arg| str::from_utf8(arg).ok())
        .and_then(|arg| arg.parse().ok());
    block_for(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
}

fn millis(arg: Option<&[u8]>) -> BlockFor {
    let millis = arg
        .and_then(|arg| str::from_utf8(arg).ok())
        .and_then(|arg| arg.parse().ok());
    block_for(millis.map(Duration::from_millis))
}

/// A timeout that is missing, negative or no number is refused by the server at once, so it waits
/// for nothing.
fn block_for(timeout: Option<Duration>) -> BlockFor {
    match timeout {
        Some(Duration::ZERO) => BlockFor::Forever,
        Some(timeout) => BlockFor::Time(timeout),
        None => BlockFor::Time(Duration::ZERO),
    }
}
