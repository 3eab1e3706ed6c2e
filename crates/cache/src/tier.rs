//! The two places where values are kept, and what tells whether they may be believed.

pub(crate) mod coherence;
pub(crate) mod entry;
pub(crate) mod generation;
pub(crate) mod memory;
pub(crate) mod redis;

use std::sync::Arc;

/// A key as the memory tier and the flights share it.
pub(crate) type Key = Arc<[u8]>;
