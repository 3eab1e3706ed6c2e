//! When to ask for a newer view, and when a slot that changes hands may be used.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::slot::Slot;

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
        }
        if explained == Explained::Yes {
            self.pause = self.config.shortest;
        } else if explained == Explained::AllWell {
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

/// Whether a command may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The command may go.
    Open,
    /// The slot changes hands: the command waits until the gate opens, and no longer than until
    /// then.
    Until(Instant),
}

/// Whether a command that was redirected or lost may be sent again now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resubmission {
    /// The command may go, on the connection that was asked for.
    Go,
    /// An earlier command of its key is under way on another connection, where it may still run; or
    /// a later one is on any, and may run before it. It is to be asked again when one of its slot
    /// has ended or was redirected.
    Wait,
    /// Later commands have been let through meanwhile: it must not be sent again.
    Overtaken,
}

/// Keeps the order of commands for a slot while they are under way on more than one connection.
///
/// Two commands for one key were sent to the old owner of a slot, which redirects both. A third,
/// made meanwhile, would overtake them at the new owner. So with the first redirect the gate of the
/// slot closes: new commands wait until those under way have ended. And of those, each is sent
/// again only when all earlier ones have ended or are on the very connection that it takes: one
/// redirected twice would else be overtaken by one redirected once. Nor is one sent again while a
/// later one of its key is under way: where the slot has come back meanwhile, that one may be
/// running.
///
/// The wait is short. When it is over, new commands are let through, and whatever is still under
/// way has lost its turn: if its redirect comes at last, it ends as rejected.
#[derive(Debug)]
pub struct SlotGate {
    wait: Duration,
    closed: BTreeMap<Slot, Closed>,
}

/// A command that is unanswered when the gate of its slot closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// The number in which it was submitted.
    pub command: u64,
    /// The number of the connection that it is on.
    pub connection: u64,
    /// A hash of its key. `None` of a command with several, which keeps its order with all of the
    /// slot.
    pub key: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    /// `None` while it waits to be sent again.
    connection: Option<u64>,
    key: Option<u64>,
}

impl Turn {
    fn shares_key(self, key: Option<u64>) -> bool {
        self.key.is_none() || key.is_none() || self.key == key
    }
}

#[derive(Clone, Debug, Default)]
struct Closed {
    /// `None` once the gate is open again, and only the overtaken are remembered.
    until: Option<Instant>,
    /// The wait was over long before anybody looked, and those under way got another moment.
    was_late: bool,
    /// The commands in their order.
    under_way: BTreeMap<u64, Turn>,
    /// The commands that have lost their turn and are still unanswered.
    overtaken: BTreeSet<u64>,
}

impl Closed {
    /// Whether the time since the wait was over may have been lost by this process.
    fn may_be_ours(&self, until: Instant, now: Instant) -> bool {
        let late = now.saturating_duration_since(until);
        !self.was_late && !self.under_way.is_empty() && late > LATE
    }
}

/// A busy machine looks so late.
const LATE: Duration = Duration::from_millis(50);
/// The time that those under way get besides after a look that was later: what came while this
/// process stood still is read within it.
const MOMENT: Duration = Duration::from_millis(100);

impl SlotGate {
    /// Returns a gate that holds commands back for so long at most. 20 ms suffice where the nodes
    /// are well.
    pub fn new(wait: Duration) -> Self {
        Self {
            wait,
            closed: BTreeMap::new(),
        }
    }

    /// Returns whether no slot changes hands and nothing of such a change is remembered.
    pub fn is_calm(&self) -> bool {
        self.closed.is_empty()
    }

    /// Closes the gate of a slot: with its first redirect, and whenever its owner changes.
    /// `under_way` are the commands of the slot that are unanswered. If the gate is closed already,
    /// it keeps its time: a slot that bounces between nodes does not hold its commands for ever.
    pub fn close(
        &mut self,
        slot: Slot,
        under_way: impl IntoIterator<Item = UnderWay>,
        now: Instant,
    ) {
        let mut under_way = under_way.into_iter().peekable();
        if under_way.peek().is_none() {
            return;
        }
        let closed = self.closed.entry(slot).or_default();
        let known = &closed.overtaken;
        for one in under_way.filter(|one| !known.contains(&one.command)) {
            closed.under_way.entry(one.command).or_insert(Turn {
                connection: Some(one.connection),
                key: one.key,
            });
        }
        if !closed.under_way.is_empty() {
            closed.until.get_or_insert(now + self.wait);
        }
    }

    /// Closes the gate of a slot until then at least, behind a command that was not served and
    /// waits to be sent again: new ones wait, and those under way are not sent again before it.
    pub fn hold(&mut self, slot: Slot, command: u64, key: Option<u64>, until: Instant) {
        let closed = self.closed.entry(slot).or_default();
        if closed.overtaken.contains(&command) {
            return;
        }
        let waits = Turn {
            connection: None,
            key,
        };
        closed.under_way.insert(command, waits);
        closed.until = closed.until.max(Some(until));
    }

    /// Returns whether a new command for a slot may be sent. The first that is let through after
    /// the wait opens the gate for all. Where nobody looked until long after the wait, this process
    /// may have stood still, and the redirects of those under way lie unread: they get another
    /// moment, once.
    pub fn pass(&mut self, slot: Slot, now: Instant) -> Passage {
        let Some(closed) = self.closed.get_mut(&slot) else {
            return Passage::Open;
        };
        match closed.until {
            Some(until) if now < until => Passage::Until(until),
            Some(until) if closed.may_be_ours(until, now) => {
                let until = now + self.wait.min(MOMENT);
                closed.was_late = true;
                closed.until = Some(until);
                Passage::Until(until)
            }
            _ => {
                closed.until = None;
                closed.was_late = false;
                let lost = std::mem::take(&mut closed.under_way);
                closed.overtaken.extend(lost.into_keys());
                Passage::Open
            }
        }
    }

    /// Returns what [`resubmit`](Self::resubmit) would say, and changes nothing: for a command of
    /// several slots, which goes only if it may in all of them.
    pub fn may_resubmit(&self, slot: Slot, command: u64, connection: u64) -> Resubmission {
        let Some(closed) = self.closed.get(&slot) else {
            return Resubmission::Overtaken;
        };
        let Some(turn) = closed.under_way.get(&command) else {
            return Resubmission::Overtaken;
        };
        let mut earlier = closed.under_way.range(..command);
        let goes = earlier
            .all(|(_, other)| !other.shares_key(turn.key) || other.connection == Some(connection));
        let mut later = closed.under_way.range(command + 1..);
        let may_run =
            later.any(|(_, other)| other.shares_key(turn.key) && other.connection.is_some());
        match goes && !may_run {
            true => Resubmission::Go,
            false => Resubmission::Wait,
        }
    }

    /// Records that a command was redirected, or lost, and is to be sent again: it is under way no
    /// more.
    pub fn park(&mut self, slot: Slot, command: u64) {
        let closed = self.closed.get_mut(&slot);
        if let Some(turn) = closed.and_then(|closed| closed.under_way.get_mut(&command)) {
            turn.connection = None;
        }
    }

    /// Returns whether a command for which the gate was closed may be sent again, on this
    /// connection.
    pub fn resubmit(&mut self, slot: Slot, command: u64, connection: u64) -> Resubmission {
        let may = self.may_resubmit(slot, command, connection);
        let closed = self.closed.get_mut(&slot);
        let turn = closed.and_then(|closed| closed.under_way.get_mut(&command));
        if let Some(turn) = turn {
            turn.connection = (may == Resubmission::Go).then_some(connection);
        }
        may
    }

    /// Records that a command has ended. If it ran, earlier ones of its key that are still under
    /// way have been overtaken: a slot that went away and came back within one round trip can do
    /// that. With the last one the gate opens.
    pub fn settle(&mut self, slot: Slot, command: u64, ran: bool) {
        let Some(closed) = self.closed.get_mut(&slot) else {
            return;
        };
        if let Some(turn) = closed.under_way.remove(&command).filter(|_| ran) {
            let earlier = closed.under_way.range(..command);
            let overtaken: Vec<u64> = earlier
                .filter(|(_, other)| other.shares_key(turn.key))
                .map(|(command, _)| *command)
                .collect();
            for command in overtaken {
                closed.under_way.remove(&command);
                closed.overtaken.insert(command);
            }
        }
        closed.overtaken.remove(&command);
        if closed.under_way.is_empty() {
            closed.until = None;
            closed.was_late = false;
            if closed.overtaken.is_empty() {
                self.closed.remove(&slot);
            }
        }
    }
}
