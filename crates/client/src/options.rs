//! The options of a single call.

use std::time::Duration;

use steadfast_core::command::Effect;
use steadfast_core::split::DivideMset;

/// The servers that serve what only reads, where there are replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadFrom {
    /// Primaries: what is read is what was written.
    #[default]
    Primary,
    /// In a cluster replicas, each call one whose data are known to be no older than
    /// [`max_lag`](crate::ClientBuilder::max_lag); the primary where there is none, and where one
    /// does not answer. What the client itself has written it reads again.
    Replicas,
}

/// Options of one call, or of all calls through [`Client::with`](crate::Client::with).
///
/// ```
/// use std::time::Duration;
/// use steadfast::{CallOptions, Effect};
///
/// // A script that only reads, and may take long.
/// let options = CallOptions::new().deadline(Duration::from_secs(10)).effect(Effect::Read);
/// ```
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    pub(crate) deadline: Option<Duration>,
    pub(crate) effect: Option<Effect>,
    pub(crate) attempts: Option<u32>,
    pub(crate) acknowledged_by: Option<(u32, Duration)>,
    pub(crate) read_from: Option<ReadFrom>,
    pub(crate) divide_mset: DivideMset,
}

impl CallOptions {
    /// The client's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets an absolute limit on the whole call, waits and repeats included, instead of the
    /// client's. Longer costs patience in an outage, not resources of the client: the call keeps
    /// its place for so long.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Says what repeating the command does, where the table cannot know (scripts, functions,
    /// modules) or is too careful. A caller that says `Read` or `LastWins` of what accumulates will
    /// see it applied twice.
    pub fn effect(mut self, effect: Effect) -> Self {
        self.effect = Some(effect);
        self
    }

    /// Succeeds only when so many replicas have acknowledged the write too, within this time and
    /// the call's deadline; else it fails as
    /// [`ErrorKind::NotReplicated`](crate::ErrorKind::NotReplicated), of unknown outcome. Nothing
    /// of what only reads.
    ///
    /// The write and a WAIT behind it travel on a connection of their own, of which there are as
    /// many as [`blocking_connections`](crate::ClientBuilder::blocking_connections); so the order
    /// of a key's commands holds only for a caller that awaits each. Replicas that have it make its
    /// loss unlikely, not impossible: who is promoted is not the client's choice.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast::CallOptions;
    ///
    /// let options = CallOptions::new().acknowledged_by(1, Duration::from_millis(200));
    /// ```
    pub fn acknowledged_by(mut self, replicas: u32, within: Duration) -> Self {
        self.acknowledged_by = (replicas > 0).then_some((replicas, within));
        self
    }

    /// Says which servers may serve it, if it only reads, instead of
    /// [`ClientBuilder::read_from`](crate::ClientBuilder::read_from). Nothing where there is no
    /// cluster. The first call that asks for replicas starts to measure them, and is served by the
    /// primary, as are those of the next moments.
    pub fn read_from(mut self, servers: ReadFrom) -> Self {
        self.read_from = Some(servers);
        self
    }

    /// Allows MSET over several slots of a cluster, which is divided then, as MGET is. Default: no,
    /// because on one server it is atomic, and divided it is not: others may see some of it, and if
    /// a part fails, [`ErrorKind::Partial`](crate::ErrorKind::Partial) says which keys were set.
    /// MSETNX never is divided.
    pub fn divide_mset(mut self, allowed: bool) -> Self {
        self.divide_mset = match allowed {
            true => DivideMset::Yes,
            false => DivideMset::No,
        };
        self
    }

    /// Allows so many attempts at most, the first included. One that ended before anything of it
    /// was written counts only where one is all that is asked for.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts.max(1));
        self
    }
}
