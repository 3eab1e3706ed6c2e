//! The connection ends in the middle.

use super::stage::{Item, Out, Stage, Touched};
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
    pub(super) fn stage(self, touched: Touched) -> impl Stage {
        Limiting {
            bytes: self.bytes,
            touched,
        }
    }
}

struct Limiting {
    /// How many may still pass.
    bytes: u64,
    touched: Touched,
}

impl Stage for Limiting {
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
            self.touched.once();
            out.push((at, Item::Close));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::stage::testing::{bytes, start};

    #[test]
    fn d1_a_limit_that_is_not_reached_has_touched_nothing() {
        let (touched, start) = (Touched::default(), start());
        let mut stage = LimitData { bytes: 10 }.stage(touched.clone());
        stage.pass(bytes("012345"), start, &mut Out::new());
        assert_eq!(touched.count(), 0);
        stage.pass(bytes("6789"), start, &mut Out::new());
        assert_eq!(touched.count(), 1);
    }
}
