//! Loads that have begun and not ended, counted for whoever ends a program and wants to wait for
//! them.
//!
//! A load answers its readers first and stores its value in Redis afterwards, or gives its lease
//! back. A program that ends in between would leave a lease in Redis for which others wait. Each
//! load has a number, so that it can be waited for those that have begun by now, while others go on
//! beginning.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::is_in_runtime;

/// The loads under way, which tells when one has ended.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    counted: Mutex<Counted>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Counted {
    /// The number of the load that begins next.
    next: u64,
    /// The numbers of those under way, each with the count of tasks that belong to it.
    under_way: BTreeMap<u64, usize>,
}

/// A task that belongs to a load, until it is dropped.
#[derive(Debug)]
pub(crate) struct LoadTask {
    loads: Arc<UnderWay>,
    number: u64,
}

tokio::task_local! {
    static TASK: LoadTask;
}

impl LoadTask {
    /// Counts what this task leaves behind as another task of its load, if it belongs to one.
    pub(crate) fn another() -> Option<Self> {
        TASK.try_with(Clone::clone).ok()
    }
}

impl Clone for LoadTask {
    fn clone(&self) -> Self {
        let mut counted = self.loads.counted.lock();
        *counted.under_way.entry(self.number).or_default() += 1;
        Self {
            loads: Arc::clone(&self.loads),
            number: self.number,
        }
    }
}

impl Drop for LoadTask {
    fn drop(&mut self) {
        let mut counted = self.loads.counted.lock();
        if let Some(tasks) = counted.under_way.get_mut(&self.number) {
            *tasks -= 1;
            if *tasks == 0 {
                counted.under_way.remove(&self.number);
                drop(counted);
                self.loads.ended.notify_waiters();
            }
        }
    }
}

impl UnderWay {
    /// Runs a load in a task of its own, and counts it until it and all that it leaves behind have
    /// ended, however they do. What a load begins by reading through the cache belongs to it: who
    /// waits for that load waits for this one too, however late it has begun. Outside of a runtime
    /// it is over before it has begun, and its flight with it.
    pub(crate) fn spawn(self: &Arc<Self>, load: impl Future<Output = ()> + Send + 'static) {
        if !is_in_runtime() {
            return;
        }
        let nested_in = LoadTask::another().filter(|task| Arc::ptr_eq(&task.loads, self));
        let task = nested_in.unwrap_or_else(|| self.begin());
        tokio::spawn(TASK.scope(task, load));
    }

    fn begin(self: &Arc<Self>) -> LoadTask {
        let mut counted = self.counted.lock();
        let number = counted.next;
        counted.next += 1;
        counted.under_way.insert(number, 1);
        let loads = Arc::clone(self);
        LoadTask { loads, number }
    }

    /// Waits until those that have begun before now have ended, or for so long; outside of a
    /// runtime not at all. Returns how many have not.
    pub(crate) async fn wait(&self, within: Duration) -> usize {
        let began = self.counted.lock().next;
        let left = || self.counted.lock().under_way.range(..began).count();
        if !is_in_runtime() {
            return left();
        }
        let none = async {
            loop {
                let mut ended = std::pin::pin!(self.ended.notified());
                // Heard from here on, so that nothing is missed between the look and the wait.
                ended.as_mut().enable();
                if left() == 0 {
                    return;
                }
                ended.await;
            }
        };
        let _ = tokio::time::timeout(within, none).await;
        left()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn k6_loads_that_begin_later_are_not_waited_for() {
        let loads = Arc::new(UnderWay::default());
        let (end_first, first) = oneshot::channel::<()>();
        loads.spawn(async move { drop(first.await) });
        let waiting = tokio::spawn({
            let loads = loads.clone();
            async move { loads.wait(LONG).await }
        });
        tokio::task::yield_now().await;
        loads.spawn(std::future::pending());
        drop(end_first);
        assert_eq!(waiting.await.unwrap(), 0);
        assert_eq!(loads.wait(SHORT).await, 1, "the second");
    }

    #[tokio::test]
    async fn k6_what_a_load_begins_is_waited_for_with_it_and_is_no_others() {
        let (loads, others) = (Arc::new(UnderWay::default()), Arc::new(UnderWay::default()));
        let (end_outer, outer) = oneshot::channel::<()>();
        let (end_inner, inner) = oneshot::channel::<()>();
        loads.spawn({
            let (loads, others) = (loads.clone(), others.clone());
            async move {
                let _ = outer.await;
                loads.spawn(async move { drop(inner.await) });
                others.spawn(std::future::pending());
            }
        });
        let mut waiting = std::pin::pin!(loads.wait(LONG));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(end_outer);
        let early = tokio::time::timeout(SHORT * 5, &mut waiting).await;
        assert!(early.is_err(), "the inner one goes on");
        drop(end_inner);
        assert_eq!(waiting.await, 0);
        assert_eq!(others.wait(SHORT).await, 1, "of another cache");
    }

    #[tokio::test]
    async fn k6_what_a_load_leaves_behind_is_waited_for() {
        let loads = Arc::new(UnderWay::default());
        let (end, rest) = oneshot::channel::<()>();
        loads.spawn(async move {
            let task = LoadTask::another();
            tokio::spawn(async move {
                let _ = rest.await;
                drop(task);
            });
        });
        assert_eq!(loads.wait(SHORT).await, 1);
        drop(end);
        assert_eq!(loads.wait(LONG).await, 0);
        assert!(LoadTask::another().is_none(), "this is no load");
    }
}
