//! The connection ends in the middle.

use super::stage::{Item, Out, Stage};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Closes a connection once `bytes` have passed since the fault took hold of it; not one more
/// passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitData {
    /// How many bytes pass.
    pub bytes: u64,
}

impl LimitData {
    pub(super) fn stage(self) -> impl Stage {
        self
    }
}

impl Stage for LimitData {
    fn pass(&mut self, item: Item, at: Instant, out: &mut Out) {
        let Item::Bytes(mut bytes) = item else {
            return out.push((at, item));
        };
        let left = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        let ends = bytes.len() >= left;
        bytes.truncate(left);
        self.bytes -= bytes.len() as u64;
        if !bytes.is_empty() {
            out.push((at, Item::Bytes(bytes)));
        }
        if ends {
            out.push((at, Item::Close));
        }
    }
}
