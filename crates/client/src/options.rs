//! What a caller may say about a single call.

use std::time::Duration;

use steadfast_core::command::Effect;

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
}

impl CallOptions {
    /// The client's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// An absolute limit on the whole call, waits and repeats included, instead of the client's. Longer costs patience in an outage, not
    /// resources of the client: the call keeps its place for so long.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Says what repeating the command does, where the table cannot know (scripts, functions, modules) or is too careful. A caller that says
    /// `Read` or `LastWins` of what accumulates will see it applied twice.
    pub fn effect(mut self, effect: Effect) -> Self {
        self.effect = Some(effect);
        self
    }

    /// At most so many attempts, the first included.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts.max(1));
        self
    }
}
