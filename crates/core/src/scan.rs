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

use std::fmt;
use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};
use thiserror::Error;

use crate::report::{ClusterReport, MigrationKind, ReportedRole};
use crate::slot::{SLOTS, Slot, SlotRange, hash_tag};

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

/// A choice of keys, and how many are looked at in one step.
#[derive(Clone, Debug)]
pub struct ScanQuery {
    /// Only keys that match this glob pattern. Default: all.
    pub pattern: Option<Vec<u8>>,
    /// Only keys of this type, such as `hash`. Default: all.
    pub kind: Option<String>,
    /// How many places of its table a server looks at in one step, during which it serves nobody
    /// else. Default 1000, well below a millisecond.
    pub count: u32,
}

impl Default for ScanQuery {
    fn default() -> Self {
        Self {
            pattern: None,
            kind: None,
            count: 1000,
        }
    }
}

impl ScanQuery {
    /// A query for the keys that match this glob pattern.
    ///
    /// ```
    /// use steadfast_core::scan::ScanQuery;
    ///
    /// let carts = ScanQuery { count: 200, ..ScanQuery::matching("cart:*") };
    /// ```
    pub fn matching(pattern: impl Into<Vec<u8>>) -> Self {
        Self {
            pattern: Some(pattern.into()),
            ..Self::default()
        }
    }

    /// Returns the slot of all keys that can match the pattern, if that is one: of a pattern with a
    /// hash tag (`{user:7}:*`), or without any wildcard.
    pub fn slot(&self) -> Option<Slot> {
        let pattern = self.pattern.as_deref()?;
        let wild = |byte: &u8| matches!(byte, b'*' | b'?' | b'[' | b'\\');
        let literal = match pattern.iter().position(wild) {
            None => return Some(Slot::of_key(pattern)),
            Some(at) => &pattern[..at],
        };
        // What comes behind a tag that is closed changes nothing; without one the whole key counts.
        let tag = hash_tag(literal);
        (tag.len() < literal.len()).then(|| Slot::of_key(literal))
    }

    /// Returns the SCAN of one step.
    pub fn scan(&self, cursor: u64) -> Cmd {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("COUNT").arg(self.count.max(1));
        if let Some(pattern) = &self.pattern {
            scan.arg("MATCH").arg(pattern);
        }
        if let Some(kind) = &self.kind {
            scan.arg("TYPE").arg(kind);
        }
        scan
    }

    /// Returns the transaction of one step. The answer to its EXEC is read by [`ScanPage::read`].
    ///
    /// The server says within the transaction who it is and what it owns, so that nothing moves in
    /// between.
    pub fn step(&self, cursor: u64) -> Pipeline {
        let mut step = Pipeline::with_capacity(2);
        step.atomic();
        step.cmd("CLUSTER").arg("NODES");
        step.add_command(self.scan(cursor));
        step
    }
}

/// The answer to one step.
pub struct ScanPage {
    cursor: u64,
    keys: Vec<Vec<u8>>,
    /// The slots that the server owns, with none of their keys elsewhere.
    settled: SlotSet,
}

/// The answer to a step cannot be read, or is none of a node of a cluster.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the answer to a step of a scan cannot be read: {mistake}")]
pub struct UnreadablePage {
    mistake: String,
}

impl ScanPage {
    /// Reads the answer to the EXEC of [`ScanQuery::step`]: two elements, what CLUSTER NODES and
    /// SCAN answer.
    ///
    /// # Errors
    /// It cannot be read, which says where; or the server has refused a part of it.
    pub fn read(exec: Value) -> Result<Self, UnreadablePage> {
        let elements: [Value; 2] = match exec {
            Value::Array(elements) => elements.try_into().map_err(|_| wrong("not two elements"))?,
            Value::ServerError(error) => return Err(wrong(error.code())),
            _ => return Err(wrong("not a list")),
        };
        let [nodes, scanned] = elements;
        if let Value::ServerError(error) = &nodes {
            return Err(wrong(&format!("CLUSTER NODES: {}", error.code())));
        }
        let report =
            ClusterReport::read_nodes(&nodes).map_err(|error| wrong(&error.to_string()))?;
        let (cursor, keys) = read_scan(scanned)?;
        Ok(Self {
            cursor,
            keys,
            settled: settled(&report).ok_or_else(|| wrong("CLUSTER NODES: not myself"))?,
        })
    }
}

/// Reads the answer to the SCAN of [`ScanQuery::scan`]: the next cursor, which is 0 at the end, and
/// keys.
///
/// # Errors
/// It cannot be read, which says where; or the server has refused it.
pub fn read_scan(answer: Value) -> Result<(u64, Vec<Vec<u8>>), UnreadablePage> {
    let (cursor, keys) = match answer {
        Value::Array(elements) => match <[Value; 2]>::try_from(elements) {
            Ok([Value::BulkString(cursor), Value::Array(keys)]) => (cursor, keys),
            _ => return Err(wrong("SCAN: not a cursor and keys")),
        },
        Value::ServerError(error) => return Err(wrong(&format!("SCAN: {}", error.code()))),
        _ => return Err(wrong("SCAN: not a list")),
    };
    let cursor = str::from_utf8(&cursor)
        .ok()
        .and_then(|text| text.parse().ok());
    let keys = keys.into_iter().map(|key| match key {
        Value::BulkString(key) => Some(key),
        _ => None,
    });
    Ok((
        cursor.ok_or_else(|| wrong("SCAN: the cursor is not a number"))?,
        keys.collect::<Option<_>>()
            .ok_or_else(|| wrong("SCAN: not a key"))?,
    ))
}

impl fmt::Debug for ScanPage {
    /// Only how many keys: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScanPage")
            .field("cursor", &self.cursor)
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

fn wrong(mistake: &str) -> UnreadablePage {
    UnreadablePage {
        mistake: mistake.to_owned(),
    }
}

/// The slots that a node owns by its own word, but for those that are moving. `None` if it is not
/// told who answers.
fn settled(report: &ClusterReport) -> Option<SlotSet> {
    let myself = report.nodes.iter().find(|node| node.is_myself)?;
    let mut settled = SlotSet::new();
    if matches!(myself.role, ReportedRole::Primary) {
        let slots = myself.slots.iter().flat_map(|range| range.slots());
        slots.for_each(|slot| settled.insert(slot));
        for migration in &myself.migrations {
            if migration.kind == MigrationKind::Migrating {
                settled.remove(migration.slot);
            }
        }
    }
    Some(settled)
}

/// Some of the slots.
#[derive(Clone)]
struct SlotSet(Vec<u64>);

impl SlotSet {
    fn new() -> Self {
        Self(vec![0; usize::from(SLOTS) / 64])
    }

    fn full() -> Self {
        Self(vec![u64::MAX; usize::from(SLOTS) / 64])
    }

    fn contains(&self, slot: Slot) -> bool {
        self.0[slot.index() / 64] & (1 << (slot.index() % 64)) != 0
    }

    fn insert(&mut self, slot: Slot) {
        self.0[slot.index() / 64] |= 1 << (slot.index() % 64);
    }

    fn remove(&mut self, slot: Slot) {
        self.0[slot.index() / 64] &= !(1 << (slot.index() % 64));
    }

    fn iter(&self) -> impl Iterator<Item = Slot> {
        (0..).zip(&self.0).flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = u16::try_from(left.trailing_zeros()).ok()?;
                // Of no slot any more: the word is empty.
                let slot = Slot::new(64_u16 * at + bit).filter(|_| left != 0)?;
                left &= left - 1;
                Some(slot)
            })
        })
    }

    fn retain(&mut self, wanted: impl Fn(Slot) -> bool) {
        let all = self.clone();
        for slot in all.iter().filter(|slot| !wanted(*slot)) {
            self.remove(slot);
        }
    }

    fn subtract(&mut self, other: &Self) {
        let words = self.0.iter_mut().zip(&other.0);
        words.for_each(|(all, taken)| *all &= !taken);
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = SlotRange::join(self.iter());
        f.debug_list()
            .entries(ranges.iter().map(ToString::to_string))
            .finish()
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
