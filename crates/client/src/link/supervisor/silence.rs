//! The state of a silence of the connection in service.

use std::time::Instant;

/// The silence of the connection in service.
#[derive(Debug)]
pub(super) enum Silence {
    None,
    /// A silence that may be nothing.
    Doubtful,
    /// A silence that is too long.
    Unresponsive(Unresponsive),
    /// Bytes come, and no reply is completed.
    Stuck,
}

#[derive(Debug)]
pub(super) struct Unresponsive {
    /// The instant since which no byte has come.
    pub(super) since: Instant,
    /// The instant at which the server counts as down, if no standby connection is ready by then.
    pub(super) down_at: Option<Instant>,
    /// The instant at which the connection is given up.
    pub(super) abandon_at: Option<Instant>,
    /// Whether a call under way was given longer than usual, or may still be on its way.
    pub(super) patient: bool,
}

impl Silence {
    /// Returns when the silence has further consequences.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Unresponsive(silent) => {
                let next = [silent.down_at, silent.abandon_at];
                next.into_iter().flatten().min()
            }
            Self::None | Self::Doubtful | Self::Stuck => None,
        }
    }

    /// Sets when the server counts as down, if the silence is too long.
    pub(super) fn set_down_at(&mut self, at: Option<Instant>) {
        if let Self::Unresponsive(silent) = self {
            silent.down_at = at;
        }
    }
}
