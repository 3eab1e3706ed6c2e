//! In an outage every call fails for the same reason. The log needs the reason, not one line for
//! each: the first within a second is told, with how many were not told since the last. The metrics
//! have them all.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::unix_ms;

/// The times at which one kind of error was logged.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    /// The second in which something was told last.
    told: AtomicU64,
    untold: AtomicU64,
}

impl Complaints {
    /// Whether to tell one now, and then how many were not told since.
    pub(crate) fn tell(&self) -> Option<u64> {
        self.tell_at(unix_ms() / 1000)
    }

    fn tell_at(&self, second: u64) -> Option<u64> {
        if self.told.swap(second, Relaxed) == second {
            self.untold.fetch_add(1, Relaxed);
            return None;
        }
        Some(self.untold.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s4_one_complaint_a_second_is_told_and_the_others_are_counted() {
        let complaints = Complaints::default();
        assert_eq!(complaints.tell_at(1000), Some(0));
        assert_eq!(complaints.tell_at(1000), None);
        assert_eq!(complaints.tell_at(1000), None);
        assert_eq!(complaints.tell_at(1001), Some(2));
        assert_eq!(complaints.tell_at(1005), Some(0));
    }
}
