//! Nobody is there.

use serde::{Deserialize, Serialize};

/// Connections are closed, and new ones refused by the kernel, as if no server ran. It concerns the
/// whole proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Down {}
