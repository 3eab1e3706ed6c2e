//! An instance that is to end must first stop being chosen, then stop accepting, then finish. Done
//! in another order, a load balancer sends requests into a closed door. Each step is a signal here,
//! so that every part waits for its own.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

/// A handle on the end of a service; clones are the same one.
///
/// ```
/// let shutdown = steadfast_server::Shutdown::new();
/// let same = shutdown.clone();
/// same.begin();
/// assert!(shutdown.has_begun());
/// same.force(); // asked again: at once
/// ```
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    inner: Arc<ShutdownStages>,
}

#[derive(Debug, Default)]
struct ShutdownStages {
    begun: CancellationToken,
    closing: CancellationToken,
    forced: CancellationToken,
}

impl Shutdown {
    /// Creates a shutdown that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the end: not ready from now on, then the drain. Again has no effect.
    pub fn begin(&self) {
        self.inner.begun.cancel();
    }

    /// Ends at once, whatever is in flight.
    pub fn force(&self) {
        self.inner.begun.cancel();
        self.inner.closing.cancel();
        self.inner.forced.cancel();
    }

    /// Whether it has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.inner.begun.is_cancelled()
    }

    pub(crate) async fn begun(&self) {
        self.inner.begun.cancelled().await;
    }

    /// The drain delay is over: streams end, and nothing more is accepted.
    pub(crate) fn close(&self) {
        self.inner.closing.cancel();
    }

    pub(crate) async fn closing(&self) {
        self.inner.closing.cancelled().await;
    }

    pub(crate) async fn forced(&self) {
        self.inner.forced.cancelled().await;
    }
}
