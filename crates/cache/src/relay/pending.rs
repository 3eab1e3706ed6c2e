//! The changes that this process has committed and not yet seen applied to Redis.
//!
//! Between a commit and its relay Redis still holds the old value. A process must not read that
//! back after its own write, so it passes Redis by for these keys and tags, and only for these. An
//! outage lets them pile up, so there is a bound; past it they are no longer told apart: everything
//! counts as overwritten, and Redis is passed by for every key, until the last of them is applied.
//! Nothing is lost that way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::target::Target;

pub(crate) struct Pending {
    /// Names kept, or more than any bound if they have become too many.
    count: AtomicUsize,
    waiting: Mutex<PendingTargets>,
    most: usize,
}

/// The targets, each with the round of the relay that will have applied it.
#[derive(Default)]
struct PendingTargets {
    keys: HashMap<Box<[u8]>, u64>,
    tags: HashMap<Box<[u8]>, u64>,
    all: Option<u64>,
}

impl Pending {
    /// Keeps that many names apart at most.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            count: AtomicUsize::new(0),
            waiting: Mutex::default(),
            most,
        }
    }

    pub(crate) fn add(&self, targets: &[Target], round: u64) {
        let mut waiting = self.waiting.lock();
        for target in targets {
            match target {
                Target::Key(key) => raise(&mut waiting.keys, key, round),
                Target::Tag(tag) => raise(&mut waiting.tags, tag, round),
                Target::All => waiting.all = waiting.all.max(Some(round)),
            }
            if waiting.len() > self.most {
                waiting.stop_telling_apart();
            }
        }
        self.count.store(waiting.count(), Ordering::SeqCst);
    }

    /// Ends a round, and with it all that waited for it.
    pub(crate) fn settle(&self, round: u64) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut waiting = self.waiting.lock();
        waiting.keys.retain(|_, needed| *needed > round);
        waiting.tags.retain(|_, needed| *needed > round);
        waiting.all = waiting.all.filter(|needed| *needed > round);
        self.count.store(waiting.count(), Ordering::SeqCst);
    }

    pub(crate) fn concerns<T: AsRef<[u8]>>(&self, key: Option<&[u8]>, tags: &[T]) -> bool {
        if self.count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let waiting = self.waiting.lock();
        waiting.all.is_some()
            || key.is_some_and(|key| waiting.keys.contains_key(key))
            || tags
                .iter()
                .any(|tag| waiting.tags.contains_key(tag.as_ref()))
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl PendingTargets {
    fn len(&self) -> usize {
        self.keys.len() + self.tags.len()
    }

    fn count(&self) -> usize {
        self.len() + usize::from(self.all.is_some())
    }

    fn stop_telling_apart(&mut self) {
        let rounds = self.keys.drain().chain(self.tags.drain());
        self.all = rounds
            .map(|(_, round)| Some(round))
            .max()
            .flatten()
            .max(self.all);
    }
}

fn raise(rounds: &mut HashMap<Box<[u8]>, u64>, name: &[u8], round: u64) {
    match rounds.get_mut(name) {
        Some(needed) => *needed = round.max(*needed),
        None => drop(rounds.insert(name.into(), round)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &[&str] = &[];

    #[test]
    fn k7_what_is_committed_is_pending_until_a_later_round_ends() {
        let pending = Pending::new(10);
        pending.add(&[Target::key("a"), Target::tag("t")], 3);
        pending.add(&[Target::key("a")], 5);
        assert!(pending.concerns(Some(b"a"), NONE) && pending.concerns(Some(b"x"), &["t"]));
        assert!(pending.concerns(None, &["t"]) && !pending.concerns(None, &["a"]));
        assert!(!pending.concerns(Some(b"t"), NONE));
        pending.settle(4);
        assert!(pending.concerns(Some(b"a"), NONE) && !pending.concerns(Some(b"x"), &["t"]));
        pending.settle(5);
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn k7_past_its_bound_everything_is_pending_and_nothing_is_lost() {
        let pending = Pending::new(100);
        for n in 0..100u64 {
            pending.add(&[Target::key(n.to_le_bytes())], n + 1);
        }
        assert!(!pending.concerns(Some(b"another"), NONE));
        for n in 100..5000u64 {
            pending.add(&[Target::tag(n.to_le_bytes())], n + 1);
            assert!(pending.len() <= 101, "{}", pending.len());
        }
        assert!(pending.concerns(Some(b"another"), NONE) && pending.concerns(None, &["another"]));
        // Not before the last of those that were folded together has been applied.
        pending.settle(4000);
        assert!(pending.concerns(Some(0u64.to_le_bytes().as_slice()), NONE));
        pending.settle(5000);
        assert_eq!(pending.len(), 0);
        assert!(!pending.concerns(Some(b"another"), NONE));
    }

    #[test]
    fn k7_all_is_pending_like_any_other_target() {
        let pending = Pending::new(10);
        pending.add(&[Target::All], 2);
        assert!(pending.concerns(Some(b"a"), NONE));
        pending.settle(1);
        assert!(pending.concerns(Some(b"a"), NONE));
        pending.settle(2);
        assert!(!pending.concerns(Some(b"a"), NONE));
    }
}
