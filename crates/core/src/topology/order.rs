//! When a slot that changes hands may be used.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::slot::{KeySet, Slot};

/// Whether a command may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The command may go.
    Open,
    /// The slot changes hands, and earlier commands of its keys are under way: the command waits
    /// until these have ended, and no longer than until then.
    Until(Instant),
}

/// Whether a command that was redirected or lost may be sent again now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resubmission {
    /// The command may go, on the connection that was asked for.
    Go,
    /// An earlier command of its key is under way on another connection, where it may still run; or
    /// a later one is on any, and may run before it. It is to be asked again when one of its slot
    /// has ended or was redirected, and then at the latest.
    Wait(Instant),
    /// Later commands of some of its keys have run, or were let through meanwhile: what has to do
    /// with [those](SlotGate::lost) must not be sent again.
    Overtaken,
}

/// Keeps the order of a key's commands while they are under way on more than one connection.
///
/// Two commands for one key were sent to the old owner of a slot, which redirects both. A third,
/// made meanwhile, would overtake them at the new owner. So with the first redirect the gate of the
/// slot closes: new commands wait until those of their keys that are under way have ended; those of
/// other keys go. And of those under way, each is sent again only when all earlier ones of its keys
/// have ended or are on the very connection that it takes: one redirected twice would else be
/// overtaken by one redirected once. Nor is one sent again while a later one of its keys is under
/// way: where the slot has come back meanwhile, that one may be running.
///
/// A command is waited for until its own deadline, and not any longer, whoever forgets to end it.
/// After that others are let through, and it has lost its turn for their keys: if its redirect
/// comes at last, what has to do with those ends as rejected.
#[derive(Debug, Default)]
pub struct SlotGate {
    closed: BTreeMap<Slot, Closed>,
}

/// A command that is unanswered when the gate of its slot closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// The number in which it was submitted.
    pub command: u64,
    /// The number of the connection that it is on.
    pub connection: u64,
    /// Its keys in this slot.
    pub keys: KeySet,
    /// Its deadline.
    pub until: Instant,
}

#[derive(Clone, Debug)]
struct Turn {
    /// `None` while it waits to be sent again.
    connection: Option<u64>,
    keys: KeySet,
    until: Instant,
}

#[derive(Clone, Debug, Default)]
struct Closed {
    /// The commands in their order.
    under_way: BTreeMap<u64, Turn>,
    /// The commands that have lost their turn and are still unanswered, and for which keys.
    overtaken: BTreeMap<u64, KeySet>,
}

impl Closed {
    /// Takes their turns for these keys from the commands before this one that have no more time
    /// then.
    fn overtake(&mut self, before: u64, keys: &KeySet, then: Option<Instant>) {
        let earlier = self.under_way.range_mut(..before);
        let is_over = |turn: &Turn| then.is_none_or(|then| turn.until <= then);
        let overtaken = earlier.filter(|(_, turn)| is_over(turn) && turn.keys.share(keys));
        let mut out = Vec::new();
        for (command, turn) in overtaken {
            let left = match turn.keys {
                // Which of them it has nobody here knows.
                KeySet::Unknown => KeySet::Empty,
                _ => turn.keys.without(keys),
            };
            let lost = turn.keys.without(&left);
            let before = self.overtaken.get(command);
            let lost = KeySet::all(before.into_iter().chain([&lost]));
            self.overtaken.insert(*command, lost);
            if left == KeySet::Empty {
                out.push(*command);
            }
            turn.keys = left;
        }
        for command in out {
            self.under_way.remove(&command);
        }
    }

    /// Notes that only these keys of a command are still to be served. Returns the others, as far
    /// as it has its turn for them.
    fn leave_all_but(&mut self, command: u64, keys: &KeySet) -> Option<KeySet> {
        let turn = self.under_way.get_mut(&command)?;
        let mut keys = keys.clone();
        if let Some(lost) = self.overtaken.get_mut(&command) {
            *lost = lost.without(&lost.without(&keys));
            keys = keys.without(lost);
            if *lost == KeySet::Empty {
                self.overtaken.remove(&command);
            }
        }
        let left = turn.keys.without(&keys);
        turn.keys = keys;
        Some(left)
    }
}

impl SlotGate {
    /// Returns a gate through which all may go.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns whether no slot changes hands and nothing of such a change is remembered.
    pub fn is_calm(&self) -> bool {
        self.closed.is_empty()
    }

    /// Closes the gate of a slot: with its first redirect, and whenever its owner changes.
    /// `under_way` are the commands of the slot that are unanswered.
    pub fn close(&mut self, slot: Slot, under_way: impl IntoIterator<Item = UnderWay>) {
        let mut under_way = under_way.into_iter().peekable();
        if under_way.peek().is_none() {
            return;
        }
        let closed = self.closed.entry(slot).or_default();
        let known = &closed.overtaken;
        for one in under_way.filter(|one| !known.contains_key(&one.command)) {
            closed.under_way.entry(one.command).or_insert(Turn {
                connection: Some(one.connection),
                keys: one.keys,
                until: one.until,
            });
        }
    }

    /// Closes the gate of a slot behind a command that was not served and waits to be sent again:
    /// new ones of its keys wait, and those under way are not sent again before it.
    pub fn hold(&mut self, slot: Slot, command: u64, keys: KeySet, until: Instant) {
        let closed = self.closed.entry(slot).or_default();
        let lost = closed.overtaken.get(&command);
        if lost.is_some() && !closed.under_way.contains_key(&command) {
            return;
        }
        let waits = Turn {
            connection: None,
            keys: lost.map_or_else(|| keys.clone(), |lost| keys.without(lost)),
            until,
        };
        closed.under_way.insert(command, waits);
    }

    /// Returns the keys for which a command has lost its turn; all that it may have, if it has none
    /// left.
    pub fn lost(&self, slot: Slot, command: u64) -> KeySet {
        let closed = self.closed.get(&slot);
        let has_turn = |closed: &&Closed| closed.under_way.contains_key(&command);
        match closed.filter(has_turn) {
            None => KeySet::Unknown,
            Some(closed) => {
                let lost = closed.overtaken.get(&command);
                lost.cloned().unwrap_or(KeySet::Empty)
            }
        }
    }

    /// Returns whether a new command with these keys may be sent. One that is let through takes
    /// their turns from those of its keys whose deadlines are over.
    pub fn pass(&mut self, slot: Slot, keys: &KeySet, now: Instant) -> Passage {
        let Some(closed) = self.closed.get_mut(&slot) else {
            return Passage::Open;
        };
        let turns = closed.under_way.values();
        let before = turns.filter(|turn| turn.keys.share(keys));
        match before.map(|turn| turn.until).max() {
            None => Passage::Open,
            Some(until) if now < until => Passage::Until(until),
            Some(_) => {
                closed.overtake(u64::MAX, keys, Some(now));
                Passage::Open
            }
        }
    }

    /// Returns what [`resubmit`](Self::resubmit) would say, and changes nothing: for a command of
    /// several slots, which goes only if it may in all of them.
    pub fn may_resubmit(
        &self,
        slot: Slot,
        command: u64,
        connection: u64,
        now: Instant,
    ) -> Resubmission {
        let Some(closed) = self.closed.get(&slot) else {
            return Resubmission::Overtaken;
        };
        let Some(turn) = closed.under_way.get(&command) else {
            return Resubmission::Overtaken;
        };
        if closed.overtaken.contains_key(&command) {
            return Resubmission::Overtaken;
        }
        let earlier = closed.under_way.range(..command).map(|(_, one)| one);
        let earlier = earlier.filter(|one| one.connection != Some(connection));
        let later = closed.under_way.range(command + 1..).map(|(_, one)| one);
        let later = later.filter(|one| one.connection.is_some());
        let mut before = earlier.chain(later);
        let waits_for = before.find(|one| now < one.until && one.keys.share(&turn.keys));
        waits_for.map_or(Resubmission::Go, |one| Resubmission::Wait(one.until))
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
    pub fn resubmit(
        &mut self,
        slot: Slot,
        command: u64,
        connection: u64,
        now: Instant,
    ) -> Resubmission {
        let may = self.may_resubmit(slot, command, connection, now);
        if let Some(closed) = self.closed.get_mut(&slot)
            && let Some(turn) = closed.under_way.get_mut(&command)
        {
            let goes = may == Resubmission::Go;
            turn.connection = goes.then_some(connection);
            if goes {
                let keys = turn.keys.clone();
                closed.overtake(command, &keys, Some(now));
            }
        }
        may
    }

    /// Records that only these keys of a command are still to be served: what it had to do with the
    /// others has run.
    pub fn narrow(&mut self, slot: Slot, command: u64, keys: &KeySet) {
        let Some(closed) = self.closed.get_mut(&slot) else {
            return;
        };
        if let Some(served) = closed.leave_all_but(command, keys) {
            closed.overtake(command, &served, None);
        }
    }

    /// Records that a command has to do with these of its keys only: for the others it has not run,
    /// and will not.
    pub fn withdraw(&mut self, slot: Slot, command: u64, keys: &KeySet) {
        if let Some(closed) = self.closed.get_mut(&slot) {
            closed.leave_all_but(command, keys);
        }
    }

    /// Records that a command has ended. If it ran, earlier ones of its keys that are still under
    /// way have been overtaken: a slot that went away and came back within one round trip can do
    /// that. With the last one the gate opens.
    pub fn settle(&mut self, slot: Slot, command: u64, ran: bool) {
        let Some(closed) = self.closed.get_mut(&slot) else {
            return;
        };
        if let Some(turn) = closed.under_way.remove(&command).filter(|_| ran) {
            closed.overtake(command, &turn.keys, None);
        }
        closed.overtaken.remove(&command);
        if closed.under_way.is_empty() && closed.overtaken.is_empty() {
            self.closed.remove(&slot);
        }
    }
}
