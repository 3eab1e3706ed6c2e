//! How long an ASK is followed.
//!
//! ASKING does not say of which migration it is. A command that comes late behind it, when its slot
//! has moved on, is back and is on its way to the same node once more, is served there: it creates
//! its key, which is still at the owner, and what was acknowledged so is lost when that key is
//! moved. So an ASK is followed only while it is new. A command that has waited longer, mostly for
//! its turn behind others, asks the owner anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfast_core::slot::Slot;

/// A slot cannot move on, come back and be on its way again within so short a time, but for one
/// that somebody moves to and fro on one machine. Others that wait with a command are told the same
/// by the owner later, which counts for it too, so that a long line does not grow old.
const IS_NEW: Duration = Duration::from_millis(10);

/// See the module. It has an entry for each slot that was on its way since the client started.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// By slot: the node that it goes to, and when that was last known.
    latest: Mutex<BTreeMap<Slot, (u16, Instant)>>,
}

impl Asked {
    /// Notes that keys of a slot are at the node of this number while it migrates: the owner says
    /// so, or they were served there.
    pub(super) fn note(&self, slot: Slot, to: u16, now: Instant) {
        self.latest.lock().insert(slot, (to, now));
    }

    /// Returns whether a command of this slot may be sent to that node behind an ASKING now.
    pub(super) fn stands(&self, slot: Slot, to: u16, now: Instant) -> bool {
        let latest = self.latest.lock().get(&slot).copied();
        latest.is_some_and(|(node, at)| node == to && now.saturating_duration_since(at) <= IS_NEW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn t6_an_ask_stands_while_the_newest_of_its_slot_is_new_and_names_the_same_node() {
        let (asked, now) = (Asked::default(), clock::now());
        let slot = Slot::of_key(b"key");
        assert!(!asked.stands(slot, 1, now));
        asked.note(slot, 1, now);
        assert!(asked.stands(slot, 1, now + IS_NEW));
        assert!(!asked.stands(slot, 1, now + 2 * IS_NEW));
        assert!(!asked.stands(Slot::of_key(b"other"), 1, now));
        asked.note(slot, 1, now + 2 * IS_NEW);
        assert!(asked.stands(slot, 1, now + 2 * IS_NEW));
        // It is on its way back.
        asked.note(slot, 2, now + 2 * IS_NEW);
        assert!(!asked.stands(slot, 1, now + 2 * IS_NEW));
    }
}
