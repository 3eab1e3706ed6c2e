//! The one place that takes commands of redis-rs apart.
//!
//! A pipeline of redis-rs 1.x yields its commands; one of 2.0 yields views of them, which are
//! another type. Whatever judges or sends a command takes a [`CommandRef`], which is made from
//! either, and so does not change when redis-rs does.

use redis::{Arg, Cmd, Pipeline};

/// A command that was built with redis-rs, alone or within a pipeline.
///
/// ```
/// use steadfast_core::redis_rs::{self, CommandRef};
/// use steadfast_core::{command, redis};
///
/// let mut alone = redis::cmd("GET");
/// alone.arg("key");
/// assert!(CommandRef::from(&alone).arguments().eq([&b"GET"[..], b"key"]));
///
/// let mut pipeline = redis::pipe();
/// pipeline.get("a").incr("b", 1);
/// let effects =
///     redis_rs::commands(&pipeline).map(|cmd| command::classify(cmd.arguments()).effect);
/// assert_eq!(effects.max(), Some(command::Effect::Accumulating));
/// ```
#[derive(Clone, Copy)]
pub struct CommandRef<'a>(&'a Cmd);

impl<'a> From<&'a Cmd> for CommandRef<'a> {
    fn from(cmd: &'a Cmd) -> Self {
        Self(cmd)
    }
}

impl<'a> CommandRef<'a> {
    /// Returns name and arguments. A cursor is given as `0`.
    #[inline]
    pub fn arguments(self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
        self.0.args_iter().map(|arg| match arg {
            Arg::Simple(arg) => arg,
            _ => b"0",
        })
    }

    /// Returns name and arguments, if there is no cursor, whose value only redis-rs knows.
    #[inline]
    pub(crate) fn plain_arguments(self) -> impl ExactSizeIterator<Item = Option<&'a [u8]>> + Clone {
        self.0.args_iter().map(|arg| match arg {
            Arg::Simple(arg) => Some(arg),
            _ => None,
        })
    }

    /// Appends it to `out` as redis-rs itself would write it.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        self.0.write_packed_command(out);
    }

    /// The same command, of its own.
    #[must_use]
    pub fn to_cmd(self) -> Cmd {
        self.0.clone()
    }

    /// The same command, but for the argument at that index.
    pub(crate) fn with_argument(self, at: usize, value: &[u8]) -> Cmd {
        let mut cmd = Cmd::new();
        for (index, arg) in self.arguments().enumerate() {
            cmd.arg(if index == at { value } else { arg });
        }
        cmd
    }

    /// Whether its sender has said that no response is to be waited for.
    #[must_use]
    pub fn is_no_response(self) -> bool {
        self.0.is_no_response()
    }
}

impl std::fmt::Debug for CommandRef<'_> {
    /// Only the name: arguments may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.arguments().next().unwrap_or_default();
        f.debug_tuple("CommandRef")
            .field(&String::from_utf8_lossy(name))
            .finish()
    }
}

/// The commands of a pipeline, in their order.
pub fn commands(pipeline: &Pipeline) -> impl Iterator<Item = CommandRef<'_>> {
    pipeline.cmd_iter().map(CommandRef)
}
