//! Loads that have begun and not ended, counted for whoever ends a program and wants to wait for
//! them.
//!
//! A load answers its readers first and stores its value in Redis afterwards. A program that ends
//! in between would leave a lease in Redis without a value.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// A count of loads that tells when it is nought.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    count: AtomicUsize,
    ended: Notify,
}

/// One of them, until it is dropped.
struct One(Arc<UnderWay>);

impl Drop for One {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ended.notify_waiters();
        }
    }
}

impl UnderWay {
    /// Runs a load in a task of its own, and counts it until it ends, however it does.
    pub(crate) fn spawn(self: &Arc<Self>, load: impl Future<Output = ()> + Send + 'static) {
        self.count.fetch_add(1, Ordering::AcqRel);
        let one = One(Arc::clone(self));
        tokio::spawn(async move {
            load.await;
            drop(one);
        });
    }

    /// Waits until there is none, or for so long. Returns how many there are.
    pub(crate) async fn wait(&self, within: Duration) -> usize {
        let none = async {
            loop {
                let ended = self.ended.notified();
                if self.count.load(Ordering::Acquire) == 0 {
                    return;
                }
                ended.await;
            }
        };
        let _ = tokio::time::timeout(within, none).await;
        self.count.load(Ordering::Acquire)
    }
}
