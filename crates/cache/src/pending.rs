//! What this process has committed and not yet seen applied to Redis.
//!
//! Between a commit and its relay Redis still holds the old value. A process must not read that back after its own write, so it passes
//! Redis by for these keys and tags, and only for these.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::target::Target;

#[derive(Default)]
pub(crate) struct Pending {
    count: AtomicUsize,
    /// Each target with the round of the relay that will have applied it.
    rounds: Mutex<HashMap<Target, u64>>,
}

impl Pending {
    pub(crate) fn add(&self, targets: &[Target], round: u64) {
        let mut rounds = self.rounds.lock();
        for target in targets {
            let entry = rounds.entry(target.clone()).or_default();
            *entry = round.max(*entry);
        }
        self.count.store(rounds.len(), Ordering::SeqCst);
    }

    /// This round has ended, and with it all that waited for it.
    pub(crate) fn settle(&self, round: u64) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut rounds = self.rounds.lock();
        rounds.retain(|_, needed| *needed > round);
        self.count.store(rounds.len(), Ordering::SeqCst);
    }

    pub(crate) fn concerns(&self, key: &[u8], tags: &[Vec<u8>]) -> bool {
        if self.count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let rounds = self.rounds.lock();
        rounds.contains_key(&Target::All)
            || rounds.contains_key(&Target::key(key))
            || tags
                .iter()
                .any(|tag| rounds.contains_key(&Target::tag(tag)))
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k7_what_is_committed_is_pending_until_a_later_round_ends() {
        let pending = Pending::default();
        pending.add(&[Target::key("a"), Target::tag("t")], 3);
        pending.add(&[Target::key("a")], 5);
        assert!(pending.concerns(b"a", &[]) && pending.concerns(b"x", &[b"t".to_vec()]));
        assert!(!pending.concerns(b"t", &[]));
        pending.settle(4);
        assert!(pending.concerns(b"a", &[]) && !pending.concerns(b"x", &[b"t".to_vec()]));
        pending.settle(5);
        assert_eq!(pending.len(), 0);
    }
}
