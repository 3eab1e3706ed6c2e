//! When to ask for a newer view.

use std::time::{Duration, Instant};

/// The times of a [`DiscoveryGate`].
#[derive(Clone, Debug)]
pub struct DiscoveryGateConfig {
    /// The least time from the start of one discovery to that of the next. Default 100 ms: ten a
    /// second at most.
    pub shortest: Duration,
    /// The longest pause between two discoveries while what triggered them is not explained.
    /// Default 5 s. All but the shortest are shortened by up to a quarter, so that clients which
    /// have lost the same node do not ask in step.
    pub longest: Duration,
    /// The time after which a discovery is made without a trigger. Default 30 s.
    pub regular: Duration,
    /// The most by which that time is shortened or lengthened, so that clients do not ask in step.
    /// Default 10 s.
    pub regular_spread: Duration,
    /// The most by which the first discovery after a loss is put off, so that clients which have
    /// lost the same node do not ask all at once. Default 100 ms.
    pub loss_spread: Duration,
}

impl Default for DiscoveryGateConfig {
    fn default() -> Self {
        Self {
            shortest: Duration::from_millis(100),
            longest: Duration::from_secs(5),
            regular: Duration::from_secs(30),
            regular_spread: Duration::from_secs(10),
            loss_spread: Duration::from_millis(100),
        }
    }
}

/// A reason to ask for a newer view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A server contradicts the view: MOVED, READONLY, a switch that a sentinel announces. It is
    /// asked as soon as allowed.
    Contradiction,
    /// A MOVED has named the new owner of a slot, a member that is known, and the slot was given to
    /// it. Where slots move one by one that comes again and again, and each time the view changes:
    /// the first is followed as soon as allowed, and while they go on, less often.
    Patched,
    /// Something is not found, or does not answer. Others may know why; while they do not, they
    /// are asked less often.
    Doubt,
    /// A connection was lost, refused or is silent. The same, but that other clients have lost it
    /// too: so the first question is put off for a moment, each by another.
    Loss,
}

/// So many of the shortest pauses are the longest while all is well.
const WHEN_WELL: u32 = 8;

/// Whether a discovery has explained what triggered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explained {
    /// The view has changed.
    Yes,
    /// Nothing has changed, and what was in doubt is well (again). Whatever goes on raising doubts
    /// does so for reasons of its own, and is asked after less often.
    AllWell,
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
    /// One of the reasons was a contradiction.
    contradicted: bool,
    /// One of the reasons for the next discovery was more than a slot that was patched.
    grave: bool,
    /// The same of the discovery that runs, or has run last.
    was_grave: bool,
    /// A reason came while a discovery ran, whose answers may be older.
    again: bool,
    /// The last discovery has explained what asked for it.
    explained: bool,
    pause: Duration,
    /// The part of the pause that is waited for.
    share: f64,
    started: Option<Instant>,
    /// The end of the moment by which what a loss has triggered is put off.
    put_off: Option<Instant>,
    regular: Instant,
}

impl DiscoveryGate {
    /// Returns a gate at which the first discovery is due at once.
    pub fn new(config: DiscoveryGateConfig, seed: u64, now: Instant) -> Self {
        Self {
            pause: config.shortest,
            share: 1.0,
            config,
            rng: fastrand::Rng::with_seed(seed),
            running: false,
            triggered: true,
            contradicted: false,
            grave: true,
            was_grave: true,
            again: false,
            explained: false,
            started: None,
            put_off: None,
            regular: now,
        }
    }

    /// Records a reason for a discovery. It is followed until [`finished`](Self::finished) says
    /// that it is explained.
    pub fn trigger(&mut self, trigger: Trigger, now: Instant) {
        if trigger == Trigger::Contradiction {
            self.pause = self.config.shortest;
            self.contradicted = true;
        }
        if trigger == Trigger::Patched {
            self.pause = self.pause.min(self.longest_when_well());
            self.contradicted = true;
        } else {
            self.grave = true;
        }
        if trigger != Trigger::Loss {
            self.put_off = None;
        } else if !self.triggered && !self.running {
            self.put_off = Some(now + self.config.loss_spread.mul_f64(self.rng.f64()));
        }
        self.triggered = true;
        self.again = self.running;
    }

    /// Returns whether a server has contradicted what is known, and nothing explains it yet.
    pub fn is_contradicted(&self) -> bool {
        self.contradicted
    }

    /// Returns whether a discovery is to begin now; then it is counted as running.
    pub fn poll(&mut self, now: Instant) -> bool {
        let due = self.poll_timeout().is_some_and(|at| at <= now);
        if due {
            // After so long a calm this is another trouble than the last.
            let calm = self.longest_when_well() * 2;
            let rested = |at: Instant| now.saturating_duration_since(at) >= calm;
            if self.explained && self.started.is_some_and(rested) {
                self.pause = self.config.shortest;
            }
            self.running = true;
            self.was_grave = std::mem::take(&mut self.grave) || !self.triggered;
            self.again = false;
            self.put_off = None;
            self.started = Some(now);
        }
        due
    }

    /// Records the end of a discovery.
    pub fn finished(&mut self, explained: Explained, now: Instant) {
        self.running = false;
        self.explained = explained != Explained::NotYet;
        if self.explained {
            self.triggered = self.again;
            self.contradicted &= self.again;
        } else {
            self.grave |= self.was_grave;
        }
        if explained == Explained::Yes && self.was_grave {
            self.pause = self.config.shortest;
        } else if self.explained {
            self.pause = (self.pause * 2).min(self.longest_when_well());
            self.share = 1.0;
        } else if !self.again {
            self.pause = (self.pause * 2).min(self.config.longest);
            self.share = 1.0 - 0.25 * self.rng.f64();
        }
        let spread = self.config.regular_spread;
        let shortened = self.config.regular.saturating_sub(spread);
        self.regular = now + shortened + spread.mul_f64(2.0 * self.rng.f64());
    }

    /// The longest pause while nothing has changed and all are well: a real trouble that begins
    /// meanwhile is found out no later.
    fn longest_when_well(&self) -> Duration {
        (self.config.shortest * WHEN_WELL).min(self.config.longest)
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
        let pause = self.pause.mul_f64(self.share).max(self.config.shortest);
        let due = (started + pause).max(self.put_off.unwrap_or(started));
        Some(due.min(self.regular.max(started + self.config.shortest)))
    }
}
