//! The one clock of the crate: the monotonic one, by way of tokio, so that a test can stop it.

use std::time::Instant;

use tokio::runtime::Handle;

/// Returns the present moment.
pub(crate) fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Returns whether this is called within a tokio runtime. Outside of any nothing can be waited for:
/// neither timers nor connections to databases live there.
pub(crate) fn is_in_runtime() -> bool {
    Handle::try_current().is_ok()
}
