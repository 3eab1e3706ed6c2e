//! Whether anybody runs the subscriber's task.
//!
//! A runtime that nobody drives, or that is blocked, keeps its tasks and gives them no turns. The
//! subscriber's cannot tell of that, and its listener, who may live in another runtime, would take
//! the silence for a channel on which nothing is published. So the task counts its turns, which it
//! takes with each heartbeat at the latest, and before and after each write, and the thread that
//! keeps deadlines looks at them. What stands still as a whole is told nothing: a listener that
//! does not run either is woken first, and hears of it only if it is seen to run while the task
//! still does not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::keeper;
use crate::settings::Settings;

/// A peer that takes nothing holds the subscriber up for so long.
pub(super) const WRITE: Duration = Duration::from_secs(1);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    /// A task that is looked at.
    struct Watched {
        attendance: Attendance,
        turns: Turns,
        settings: Settings,
    }

    impl Watched {
        fn new() -> Self {
            Self {
                attendance: Attendance::default(),
                turns: Turns::default(),
                settings: Settings::new(Target::parse("redis://h").expect("a good url")),
            }
        }

        fn look(&mut self) -> bool {
            self.attendance.look(&self.turns, true, &self.settings)
        }

        fn is_missed(&self) -> bool {
            self.attendance.is_missed(&self.turns)
        }

        /// The task takes a turn, and then none for as long as one that is run may.
        fn wait(&mut self) {
            self.turns.take();
            for at in 0..=looks(&self.settings) {
                self.attendance.listener_runs();
                assert!(!self.look() && !self.is_missed(), "look {at}");
            }
        }

        /// The same, and longer, while its listener runs.
        fn miss(&mut self) {
            self.wait();
            assert!(self.look(), "the listener is woken");
            self.attendance.listener_runs();
            assert!(!self.look() && !self.is_missed(), "a moment for a turn");
            assert!(self.look() && self.is_missed(), "nobody runs it");
        }
    }

    #[test]
    fn c19_a_task_without_turns_is_missed_once_its_listener_is_seen_to_run() {
        let mut watched = Watched::new();
        watched.miss();
        for _ in 0..100 {
            watched.attendance.listener_runs();
            assert!(!watched.look(), "the listener is woken for it once");
            assert!(watched.is_missed(), "as long as there is no turn");
        }
        watched.turns.take();
        assert!(!watched.is_missed(), "before the next look, too");
        watched.miss();
    }

    #[test]
    fn c19_a_listener_that_does_not_run_either_misses_nobody() {
        let mut watched = Watched::new();
        watched.wait();
        assert!(watched.look(), "it is woken");
        for _ in 0..100 {
            assert!(!watched.look() && !watched.is_missed());
        }
        watched.attendance.listener_runs();
        assert!(!watched.look() && !watched.is_missed(), "both go on now");
        assert!(watched.look() && watched.is_missed());
    }

    #[test]
    fn c19_a_turn_ends_the_doubt_whenever_it_comes() {
        let mut watched = Watched::new();
        watched.wait();
        watched.wait();
        assert!(watched.look(), "the listener is woken");
        watched.wait();
        assert!(watched.look());
        watched.attendance.listener_runs();
        watched.wait();
        assert!(watched.look());
        watched.attendance.listener_runs();
        assert!(!watched.look(), "the next look would be too late");
        watched.wait();
    }

    #[test]
    fn c19_a_subscriber_that_no_task_has_is_missed_by_nobody() {
        let mut watched = Watched::new();
        let Watched {
            attendance,
            turns,
            settings,
        } = &mut watched;
        for _ in 0..100 {
            assert!(!attendance.look(turns, false, settings));
            attendance.listener_runs();
            assert!(!attendance.is_missed(turns));
        }
        watched.miss();
        let Watched {
            attendance,
            turns,
            settings,
        } = &mut watched;
        let wakes = attendance.look(turns, false, settings);
        assert!(!wakes && !watched.is_missed(), "it was given back");
        watched.miss();
    }

    #[test]
    fn c19_a_task_may_be_without_a_turn_for_the_longest_of_what_it_waits_for() {
        let mut settings = Watched::new().settings;
        let of_a_write = (WRITE + LATE).as_millis() / keeper::EVERY.as_millis();
        let long = Duration::from_secs(7);
        let of_long = (long + LATE).as_millis() / keeper::EVERY.as_millis();
        let [short, longest] = [Duration::from_millis(1), Duration::MAX];
        for (heartbeat, idle, expected) in [
            (short, short, of_a_write),
            (long, short, of_long),
            (short, long, of_long),
            (longest, short, u128::from(u32::MAX)),
        ] {
            (settings.heartbeat, settings.response_idle_timeout) = (heartbeat, idle);
            assert_eq!(u128::from(looks(&settings)), expected);
        }
    }

    #[test]
    fn c19_what_its_listener_was_told_is_asked_for_once() {
        let turns = Turns::default();
        assert!(!turns.were_missed());
        turns.miss();
        assert!(turns.were_missed() && !turns.were_missed());
    }
}
