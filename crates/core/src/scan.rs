//! All keys of a cluster, by a cursor over its slots.
//!
//! Each server scans its own keys, by a cursor that means nothing to another, and slots change
//! hands meanwhile: a key that moves from a server that has not come to it yet to one that has
//! passed its place would be missed, and nobody would know. So a scan of the cluster is a list of
//! slots to be covered. A node is swept from the beginning of its cursor to the end, and that
//! covers the slots which it owned, with none of their keys elsewhere, at every single step. Each
//! step is one transaction that asks the node for both ([`ScanQuery::step`]): what it says of its
//! slots, and the next keys. Slots that moved are swept again, at whoever owns them then, and only
//! their keys are taken.
//!
//! So every key that was there from the beginning to the end comes at least once; or the scan ends
//! with the slots that it did not cover. A key may come more than once.
//!
//! That rests on what SCAN promises of one server: what is in its table at every call from the
//! first to the last is returned. A server that was restarted, or another one in its place, has
//! another table; so a sweep belongs to one run id.

mod page;
mod slot_set;

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

pub use self::page::{ScanPage, ScanQuery, UnreadablePage, read_scan};
use self::slot_set::SlotSet;
use crate::slot::{Slot, SlotRange};

/// A scan of all slots. `N` is the sender's name of a node, such as
/// [`MemberIndex`](crate::topology::MemberIndex).
///
/// ```
/// use steadfast_core::redis::Value;
/// use steadfast_core::scan::{ClusterScan, ScanPage, ScanStep};
///
/// let one_node = |_slot| Some("a node");
/// let mut scan = ClusterScan::new(ClusterScan::<&str>::ROUNDS);
/// assert_eq!(scan.next_step(one_node), ScanStep::Ask { node: "a node", cursor: 0 });
///
/// // The answer to `ScanQuery::default().step(0)`.
/// let nodes = "07c37df 127.0.0.1:30004@31004 myself,master - 0 0 1 connected 0-16383\n";
/// let text = |text: &str| Value::BulkString(text.into());
/// let scanned = Value::Array(vec![text("0"), Value::Array(vec![text("key")])]);
/// let page = ScanPage::read(Value::Array(vec![text(nodes), scanned]))?;
/// assert_eq!(scan.answered("its run id", page, one_node), [b"key"]);
/// assert_eq!(scan.next_step(one_node), ScanStep::Finished);
/// # Ok::<(), steadfast_core::scan::UnreadablePage>(())
/// ```
#[derive(Debug)]
pub struct ClusterScan<N> {
    uncovered: SlotSet,
    sweep: Option<Sweep<N>>,
    /// The nodes that had their turn in this round.
    had: Vec<N>,
    /// A slot was covered in this round.
    progressed: bool,
    /// Rounds in a row that have covered nothing.
    fruitless: u32,
    rounds: u32,
}

/// One node's keys, from the beginning of its cursor to the end.
#[derive(Debug)]
struct Sweep<N> {
    node: N,
    /// The process that the cursor belongs to; `None` before its first answer.
    run_id: Option<Arc<str>>,
    cursor: u64,
    /// The slots that the node owned alone at every step until now.
    slots: SlotSet,
    /// Steps in a row that got no answer.
    failures: u32,
}

/// The next step of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanStep<N> {
    /// Send [`ScanQuery::step`] with this cursor to this node, as a read that may be repeated
    /// there, and hand in the answer, or that there is none.
    Ask {
        /// The node.
        node: N,
        /// The cursor.
        cursor: u64,
    },
    /// Wait a moment, and ask for a newer view: the slots that are missing move, or have no owner
    /// that answers.
    Wait,
    /// All slots are covered.
    Finished,
    /// Slots are missing, and so many rounds have brought nothing that it is no use to go on.
    GaveUp(Uncovered),
}

/// The end of a scan that did not cover all slots.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct Uncovered {
    /// The slots that were not covered: keys of them may be missing.
    pub slots: Vec<SlotRange>,
}

impl fmt::Display for Uncovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 8;
        f.write_str("the scan has not covered the slots ")?;
        for (at, range) in self.slots.iter().take(MOST).enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{range}")?;
        }
        let more = if self.slots.len() > MOST { ", …" } else { "" };
        write!(
            f,
            "{more}: they had no owner that answers, or moved all the time; keys of them may be missing"
        )
    }
}

impl<N: Clone + PartialEq> ClusterScan<N> {
    /// Rounds that may bring nothing, by default: with a pause of half a second after each, five
    /// seconds.
    pub const ROUNDS: u32 = 10;

    /// A step that failed so often in a row ends the sweep of its node for this round.
    const FAILURES: u32 = 3;

    /// Begins a scan that gives up after so many rounds in a row that have covered no slot.
    pub fn new(rounds: u32) -> Self {
        Self::over(SlotSet::full(), rounds)
    }

    /// Begins a scan for what this query wants: of one slot only if its pattern says so.
    pub fn of(query: &ScanQuery, rounds: u32) -> Self {
        let Some(slot) = query.slot() else {
            return Self::new(rounds);
        };
        let mut one = SlotSet::new();
        one.insert(slot);
        Self::over(one, rounds)
    }

    fn over(uncovered: SlotSet, rounds: u32) -> Self {
        Self {
            uncovered,
            sweep: None,
            had: Vec::new(),
            progressed: false,
            fruitless: 0,
            rounds,
        }
    }

    /// Returns the slots that are not covered yet.
    pub fn uncovered(&self) -> Uncovered {
        Uncovered {
            slots: SlotRange::join(self.uncovered.iter()),
        }
    }

    /// Returns what is to be done next, by the newest view of who owns which slot.
    pub fn next_step(&mut self, owner: impl Fn(Slot) -> Option<N>) -> ScanStep<N> {
        if self.uncovered.is_empty() {
            return ScanStep::Finished;
        }
        if let Some(sweep) = &mut self.sweep {
            sweep
                .slots
                .retain(|slot| owner(slot).as_ref() == Some(&sweep.node));
            if !sweep.slots.is_empty() && sweep.failures < Self::FAILURES {
                return sweep.step();
            }
            self.end_sweep();
        }
        let owners = self.uncovered.iter().filter_map(&owner);
        let Some(node) = { owners }.find(|node| !self.had.contains(node)) else {
            return self.end_round();
        };
        let mut slots = self.uncovered.clone();
        slots.retain(|slot| owner(slot).as_ref() == Some(&node));
        let sweep = self.sweep.insert(Sweep {
            node,
            run_id: None,
            cursor: 0,
            slots,
            failures: 0,
        });
        sweep.step()
    }

    /// Takes in the answer to the last [`ScanStep::Ask`], from the server process of this run id,
    /// and returns the keys that are to be handed out.
    pub fn answered(
        &mut self,
        run_id: &str,
        page: ScanPage,
        owner: impl Fn(Slot) -> Option<N>,
    ) -> Vec<Vec<u8>> {
        let Some(sweep) = &mut self.sweep else {
            return Vec::new();
        };
        sweep.failures = 0;
        let begun = sweep.run_id.get_or_insert_with(|| run_id.into());
        if &**begun != run_id {
            // The cursor was that of another table. Nothing of this sweep counts.
            self.end_sweep();
            return Vec::new();
        }
        sweep.slots.retain(|slot| page.settled.contains(slot));
        let mut keys = page.keys;
        keys.retain(|key| sweep.slots.contains(Slot::of_key(key)));
        sweep.cursor = page.cursor;
        if page.cursor == 0 {
            // A node that was deposed does not know that it owns nothing any more.
            sweep
                .slots
                .retain(|slot| owner(slot).as_ref() == Some(&sweep.node));
            self.progressed |= !sweep.slots.is_empty();
            self.uncovered.subtract(&sweep.slots);
            self.end_sweep();
        }
        keys
    }

    /// The last [`ScanStep::Ask`] got no answer, or none that could be read. It is asked again,
    /// some times. Wait a moment before the next step.
    pub fn failed(&mut self) {
        if let Some(sweep) = &mut self.sweep {
            sweep.failures += 1;
        }
    }

    fn end_sweep(&mut self) {
        self.had.extend(self.sweep.take().map(|sweep| sweep.node));
    }

    /// Every owner of what is missing has had its turn.
    fn end_round(&mut self) -> ScanStep<N> {
        self.had.clear();
        if std::mem::take(&mut self.progressed) {
            self.fruitless = 0;
        } else {
            self.fruitless += 1;
        }
        if self.fruitless >= self.rounds {
            return ScanStep::GaveUp(self.uncovered());
        }
        ScanStep::Wait
    }
}

impl<N: Clone> Sweep<N> {
    fn step(&self) -> ScanStep<N> {
        ScanStep::Ask {
            node: self.node.clone(),
            cursor: self.cursor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t13_a_pattern_has_one_slot_only_if_all_keys_that_match_have() {
        let of = |key: &str| Some(Slot::of_key(key.as_bytes()));
        for (pattern, slot) in [
            ("{user:7}:*", of("user:7")),
            ("cart:{7}*", of("7")),
            ("a{7}[bc]{8}", of("7")),
            ("exactly", of("exactly")),
            ("{}exactly", of("{}exactly")),
            ("*", None),
            ("*{7}", None),
            ("{7*}", None),
            ("{7", of("{7")),
            ("{7*", None),
            ("{}{7}*", None),
            ("{[78]}", None),
            (r"{7\}8}*", None),
            ("", of("")),
        ] {
            assert_eq!(ScanQuery::matching(pattern).slot(), slot, "{pattern}");
        }
        assert_eq!(ScanQuery::default().slot(), None);
        let query = ScanQuery::matching("{a}*");
        let scan = ClusterScan::<u16>::of(&query, 1);
        let one = SlotRange::join(query.slot());
        assert_eq!(scan.uncovered().slots, one);
    }
}
