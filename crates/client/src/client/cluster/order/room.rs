//! The places of calls that wait, of which there are as many as calls may be under way.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::InOrder;

/// The one place of a call among those that wait, however many of its parts do.
#[derive(Debug, Default)]
pub(in crate::client::cluster) struct CallRoom {
    parts: AtomicUsize,
}

/// The place of a call that waits, until it is dropped.
#[derive(Debug)]
pub(in crate::client::cluster) struct Room<'a> {
    pub(super) waiting: &'a AtomicUsize,
    pub(super) of: Option<&'a CallRoom>,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let is_last = |call: &CallRoom| call.parts.fetch_sub(1, Ordering::AcqRel) == 1;
        if self.of.is_none_or(is_last) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl InOrder {
    /// A place for a call that waits until it is known who serves its slot, or for a part of this
    /// one; `None` if as many wait as may.
    pub(in crate::client::cluster) fn room<'a>(
        &'a self,
        of: Option<&'a CallRoom>,
    ) -> Option<Room<'a>> {
        let waiting = &self.waiting;
        if let Some(call) = of
            && call.parts.fetch_add(1, Ordering::AcqRel) > 0
        {
            return Some(Room { waiting, of });
        }
        let room = Room { waiting, of };
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        (before < self.most).then_some(room)
    }
}
