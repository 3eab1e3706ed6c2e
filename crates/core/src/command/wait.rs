//! How long a blocking command may keep its connection.
//!
//! The timeout of the server is what the client's own deadline has to follow, and servers take it in two
//! units and at four places.

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
            Wait::BlockOption => block_option(args),
        }
    }
}

/// BLOCK of XREAD and XREADGROUP. What follows GROUP, COUNT and CLAIM are names and numbers, not options: a group may be called `streams`.
///
/// Behind an option that is not known here (a later server's), nobody can tell names from options. So the command is taken to block, for as long as a
/// `BLOCK` behind it says: that costs a connection of its own for a moment, while one that does block would stop everybody on a shared one.
fn block_option<'a, I: Iterator<Item = &'a [u8]> + Clone>(args: &Args<I>) -> Option<BlockFor> {
    let mut options = args.from(1);
    let mut found = None;
    let mut unknown = false;
    while let Some(option) = options.next() {
        let is = |word: &[u8]| option.eq_ignore_ascii_case(word);
        if is(b"BLOCK") {
            found = Some(millis(options.next()));
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
    found.or_else(|| unknown.then_some(BlockFor::Time(Duration::ZERO)))
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

/// A timeout that is missing, negative or no number is refused by the server at once, so it waits for nothing.
fn block_for(timeout: Option<Duration>) -> BlockFor {
    match timeout {
        Some(Duration::ZERO) => BlockFor::Forever,
        Some(timeout) => BlockFor::Time(timeout),
        None => BlockFor::Time(Duration::ZERO),
    }
}
