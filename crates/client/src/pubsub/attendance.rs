//! Whether anybody runs the subscriber's task.
//!
//! A runtime that nobody drives, or that is blocked, keeps its tasks and gives them no turns. The
//! subscriber's cannot tell of that, and its listener, who may live in another runtime, would take
//! the silence for a channel on which nothing is published. So the task counts its turns, which it
//! takes with each heartbeat at the latest, and the thread that keeps deadlines looks at them. What
//! stands still as a whole is told nothing: a listener that does not run either is woken first, and
//! hears of it only if it is seen to run while the task still does not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::wire::WRITE;
use crate::clock::keeper;
use crate::settings::Settings;

/// A task that is run may be so late.
const LATE: Duration = Duration::from_millis(500);

/// The turns of a subscriber's task.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: AtomicU64,
    /// The listener was told that there are none.
    missed: AtomicBool,
}

impl Turns {
    pub(super) fn take(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// The listener is told that there are none.
    pub(super) fn miss(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    /// Returns whether the listener was told so since this was asked last.
    pub(super) fn were_missed(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// What the looks at a task's turns have shown.
#[derive(Debug, Default)]
pub(super) struct Attendance {
    /// The turns at the last look.
    seen: u64,
    /// The looks at which there was no other.
    still: u32,
    doubt: Doubt,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doubt {
    #[default]
    None,
    /// There was no turn for too long: the listener was woken, to be seen to run.
    Woken,
    /// It has run. After the next look there has been time for a turn.
    Runs,
    /// It runs, and there has still been no turn at the look before.
    StillRuns,
    /// Nobody runs the task.
    Missed,
}

impl Attendance {
    /// Looks at the turns of a task, if there is one. Returns whether its listener is to be woken.
    pub(super) fn look(&mut self, turns: &Turns, is_lent: bool, settings: &Settings) -> bool {
        let taken = turns.taken();
        if std::mem::replace(&mut self.seen, taken) != taken || !is_lent {
            (self.still, self.doubt) = (0, Doubt::None);
            return false;
        }
        self.still = self.still.saturating_add(1);
        if self.still <= looks(settings) {
            return false;
        }
        let before = self.doubt;
        self.doubt = match before {
            Doubt::None => Doubt::Woken,
            Doubt::Runs => Doubt::StillRuns,
            Doubt::StillRuns => Doubt::Missed,
            Doubt::Woken | Doubt::Missed => before,
        };
        self.doubt != before && matches!(self.doubt, Doubt::Woken | Doubt::Missed)
    }

    /// The listener has been seen to run.
    pub(super) fn listener_runs(&mut self) {
        if self.doubt == Doubt::Woken {
            self.doubt = Doubt::Runs;
        }
    }

    /// Returns whether nobody runs the task, as far as is known now.
    pub(super) fn is_missed(&self, turns: &Turns) -> bool {
        self.doubt == Doubt::Missed && self.seen == turns.taken()
    }
}

/// Returns the looks at which a task that is run may show no turn: it waits for no longer than a
/// heartbeat, its answer, or a write.
fn looks(settings: &Settings) -> u32 {
    let waits = settings.heartbeat.max(settings.response_idle_timeout);
    let longest = waits.max(WRITE).saturating_add(LATE);
    let looks = longest.as_nanos() / keeper::EVERY.as_nanos();
    u32::try_from(looks).unwrap_or(u32::MAX)
}
