//! The one clock of the crate: the monotonic one, by way of tokio, so that a test can stop it.

use std::time::Instant;

/// Returns the present moment.
pub(crate) fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}
