//! The next connections come to nothing.

use serde::{Deserialize, Serialize};

/// Accepts and at once resets the next `n` connections; later ones pass. It concerns the whole
/// proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejectNext {
    /// How many.
    pub n: u64,
}
