//! A step of a scan: what is asked of a node, and its answer.

use std::fmt;

use redis::{Cmd, Pipeline, Value};
use thiserror::Error;

use super::slot_set::SlotSet;
use crate::report::{ClusterReport, MigrationKind, ReportedRole};
use crate::slot::{Slot, hash_tag};

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
    pub(super) cursor: u64,
    pub(super) keys: Vec<Vec<u8>>,
    /// The slots that the server owns, with none of their keys elsewhere.
    pub(super) settled: SlotSet,
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
