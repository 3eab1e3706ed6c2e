//! The bytes that the queues of one client hold together.
//!
//! In a cluster each node has queues of its own, each with its bound; but memory is the program's.
//! So past a bound for all of them, a queue takes no more, unless it holds little: one that works
//! is not to be refused because of others that hang.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::MutexGuard;

use super::Inner;

/// The bound on the bytes of several queues, and how many there are.
#[derive(Debug)]
pub(crate) struct TotalBytes {
    held: AtomicUsize,
    most: usize,
}

/// A queue may hold the total divided by this in any case.
const SHARES: usize = 64;

impl TotalBytes {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            held: AtomicUsize::new(0),
            most,
        }
    }

    /// Whether a queue that holds so many bytes itself, without its longest request, may take more.
    pub(super) fn admits(&self, own: usize, longest: usize) -> bool {
        let held = self.held.load(Ordering::Relaxed).saturating_sub(longest);
        held < self.most || own < self.most / SHARES
    }

    /// Counts the bytes of a queue, of which so many were counted before.
    pub(super) fn count(&self, before: usize, now: usize) {
        match now.checked_sub(before) {
            Some(0) => {}
            Some(more) => drop(self.held.fetch_add(more, Ordering::Relaxed)),
            None => drop(self.held.fetch_sub(before - now, Ordering::Relaxed)),
        }
    }
}

/// A queue that is locked. What it holds is counted as it is unlocked.
pub(super) struct Locked<'a> {
    pub(super) inner: MutexGuard<'a, Inner>,
    pub(super) total: Option<&'a TotalBytes>,
}

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(total) = self.total {
            let now = self.inner.bytes();
            let before = std::mem::replace(&mut self.inner.counted, now);
            total.count(before, now);
        }
    }
}
