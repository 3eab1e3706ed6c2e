//! When to ask for a newer view, and when a slot that changes hands may be used.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::slot::Slot;

/// The times of a [`DiscoveryGate`].
#[derive(Clone, Debug)]
pub struct DiscoveryGateConfig {
    /// The least time from the start of one discovery to that of the next. Default 100 ms: ten a
    /// second at most.
    pub shortest: Duration,
    /// The longest pause between two discoveries while what triggered them is not explained.
    /// Default 5 s.
    pub longest: Duration,
    /// The time after which a discovery is made without a trigger. Default 30 s.
    pub regular: Duration,
    /// The most by which that time is shortened or lengthened, so that clients do not ask in step.
    /// Default 10 s.
    pub regular_spread: Duration,
}

impl Default for DiscoveryGateConfig {
    fn default() -> Self {
        Self {
            shortest: Duration::from_millis(100),
            longest: Duration::from_secs(5),
            regular: Duration::from_secs(30),
            regular_spread: Duration::from_secs(10),
        }
    }
}

/// A reason to ask for a newer view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A server contradicts the view: MOVED, READONLY, a switch that a sentinel announces. It is
    /// asked as soon as allowed.
    Contradiction,
    /// A connection was lost, refused or is silent. Others may know why; while they do not, they
    /// are asked less often.
    Doubt,
}

/// Whether a discovery has explained what triggered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explained {
    /// The view has changed, or what was in doubt is well again.
    Yes,
    /// Nothing has changed: the nodes may not have agreed yet, so they are asked again.
    NotYet,
}

/// Lets one discovery run at a time, and not too many of them however many reasons there are.
#[derive(Debug)]
pub struct DiscoveryGate {
    config: DiscoveryGateConfig,
    rng: fastrand::Rng,
    running: bool,
    triggered: bool,
    /// A reason came while a discovery ran, whose answers may be older.
    again: bool,
    pause: Duration,
    started: Option<Instant>,
    regular: Instant,
}

impl DiscoveryGate {
    /// Returns a gate at which the first discovery is due at once.
    pub fn new(config: DiscoveryGateConfig, seed: u64, now: Instant) -> Self {
        Self {
            pause: config.shortest,
            config,
            rng: fastrand::Rng::with_seed(seed),
            running: false,
            triggered: true,
            again: false,
            started: None,
            regular: now,
        }
    }

    /// Records a reason for a discovery. It is followed until [`finished`](Self::finished) says
    /// that it is explained.
    pub fn trigger(&mut self, trigger: Trigger) {
        if trigger == Trigger::Contradiction {
            self.pause = self.config.shortest;
        }
        self.triggered = true;
        self.again = self.running;
    }

    /// Returns whether a discovery is to begin now; then it is counted as running.
    pub fn poll(&mut self, now: Instant) -> bool {
        let due = self.poll_timeout().is_some_and(|at| at <= now);
        if due {
            self.running = true;
            self.again = false;
            self.started = Some(now);
        }
        due
    }

    /// Records the end of a discovery.
    pub fn finished(&mut self, explained: Explained, now: Instant) {
        self.running = false;
        if explained == Explained::Yes {
            self.triggered = self.again;
            self.pause = self.config.shortest;
        } else if !self.again {
            self.pause = (self.pause * 2).min(self.config.longest);
        }
        let spread = self.config.regular_spread;
        let shortened = self.config.regular.saturating_sub(spread);
        self.regular = now + shortened + spread.mul_f64(2.0 * self.rng.f64());
    }

    /// Returns when the next discovery is due. `None` while one runs.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        if self.running {
            return None;
        }
        let Some(started) = self.started else {
            return Some(self.regular);
        };
        if !self.triggered {
            return Some(self.regular.max(started + self.config.shortest));
        }
        Some((started + self.pause).min(self.regular.max(started + self.config.shortest)))
    }
}

/// Whether a command may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The command may go.
    Open,
    /// The slot changes hands: the command waits until the gate opens, and no longer than until
    /// then.
    Until(Instant),
}

/// Keeps the order of commands for a slot that changes hands.
///
/// Two commands for one key were sent to the old owner, which redirects both. A third, made
/// meanwhile, would overtake them at the new owner. So it waits until those at the old owner are
/// answered, or sent again. The wait is short; when it is over, those that are still unanswered
/// have lost their turn, and must not be sent again: they end as rejected when their redirect
/// comes.
#[derive(Debug)]
pub struct SlotGate {
    wait: Duration,
    closed: BTreeMap<Slot, Closed>,
    crossings: u64,
}

#[derive(Clone, Copy, Debug)]
struct Closed {
    in_flight: usize,
    until: Instant,
    crossing: u64,
}

/// A change of hands of one slot, by which the commands in flight at that time are known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Crossing(u64);

impl SlotGate {
    /// Returns a gate that holds commands back for so long at most. 20 ms suffice where the old
    /// owner is well.
    pub fn new(wait: Duration) -> Self {
        Self {
            wait,
            closed: BTreeMap::new(),
            crossings: 0,
        }
    }

    /// Closes the gate of a slot of which so many commands are unanswered, at whichever node. Those
    /// take the crossing with them. A change that follows while the gate is closed keeps the first
    /// one's time: a slot that bounces between nodes does not hold its commands for ever.
    pub fn close(&mut self, slot: Slot, in_flight: usize, now: Instant) -> Crossing {
        let until = now + self.wait;
        if let Some(closed) = self.closed.get_mut(&slot) {
            closed.in_flight = in_flight;
            return Crossing(closed.crossing);
        }
        self.crossings += 1;
        let crossing = self.crossings;
        if in_flight > 0 {
            let closed = Closed {
                in_flight,
                until,
                crossing,
            };
            self.closed.insert(slot, closed);
        }
        Crossing(crossing)
    }

    /// Records that a command of a crossing has ended or was sent to the new owner. Returns whether
    /// it kept its turn: if not, it must not be sent again.
    pub fn settle(&mut self, slot: Slot, crossing: Crossing) -> bool {
        let Some(closed) = self.closed.get_mut(&slot) else {
            return false;
        };
        if closed.crossing != crossing.0 {
            return false;
        }
        closed.in_flight = closed.in_flight.saturating_sub(1);
        if closed.in_flight == 0 {
            self.closed.remove(&slot);
        }
        true
    }

    /// Returns whether a new command for a slot may be sent. The first that is let through after
    /// the wait opens the gate for all.
    pub fn pass(&mut self, slot: Slot, now: Instant) -> Passage {
        match self.closed.get(&slot) {
            Some(closed) if now < closed.until => Passage::Until(closed.until),
            Some(_) => {
                self.closed.remove(&slot);
                Passage::Open
            }
            None => Passage::Open,
        }
    }
}
