//! Counters by which a slow load learns that its value was invalidated while it loaded.
//!
//! A load that began before a change must not be stored after it. Remembering every change by its
//! key would need memory without bound, so keys share 65 536 counters, and tags 65 536 more: an
//! invalidation adds one to its counter, a load takes a [`Snapshot`] before it reads anything, and
//! its value enters the memory tier only if the counters are still what they were. Two keys on one
//! counter cost a needless refusal, never a wrong value.
//!
//! A value that comes from Redis may carry tags that no reader named. Their counters are looked at
//! when the tags become known, and only then are the tags' tokens asked of Redis: what was
//! invalidated before that look shows in the tokens, what comes after it in the counters.
//!
//! The *proof epoch* is one counter for all: it moves when the process may have missed
//! invalidations that it cannot name. Entries of an earlier proof epoch are not fresh; they may
//! still be served as stale by a class that allows it.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use smallvec::SmallVec;

pub(crate) struct Generations {
    keys: Box<[AtomicU32]>,
    tags: Box<[AtomicU32]>,
    proof_epoch: AtomicU64,
    /// The number of times that any tag was invalidated.
    tag_changes: AtomicU64,
    /// The number of times that everything was invalidated.
    clears: AtomicU64,
    hasher: foldhash::quality::RandomState,
}

/// One counter as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stripe {
    index: u16,
    seen: u32,
}

pub(crate) type TagStripes = SmallVec<[Stripe; 2]>;

/// The counters of a key and its tags as they were before anything was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) proof_epoch: u64,
    clears: u64,
    key: Stripe,
    pub(crate) tags: TagStripes,
}

impl Snapshot {
    /// The same, with more tags.
    pub(crate) fn with(&self, tags: &[Stripe]) -> Self {
        let mut all = self.clone();
        all.tags.extend_from_slice(tags);
        all
    }
}

impl Generations {
    pub(crate) fn new() -> Self {
        let counters = || (0..STRIPES).map(|_| AtomicU32::new(0)).collect();
        Self {
            keys: counters(),
            tags: counters(),
            proof_epoch: AtomicU64::new(0),
            tag_changes: AtomicU64::new(0),
            clears: AtomicU64::new(0),
            hasher: foldhash::quality::RandomState::default(),
        }
    }

    pub(crate) fn snapshot<T: AsRef<[u8]>>(&self, key: &[u8], tags: &[T]) -> Snapshot {
        Snapshot {
            proof_epoch: self.proof_epoch(),
            clears: self.clears(),
            key: self.look(&self.keys, key),
            tags: self.tag_stripes(tags),
        }
    }

    /// Whether no invalidation of the key or one of the tags has come since, and the proof epoch is
    /// the same.
    pub(crate) fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.proof_epoch() == snapshot.proof_epoch
            && still(&self.keys, snapshot.key)
            && self.tags_are_current(&snapshot.tags)
    }

    /// Whether neither the key nor one of the tags has been invalidated since, by name or with
    /// everything. The proof epoch may be another: what may have been missed is not known to be
    /// outdated.
    pub(crate) fn is_uninvalidated(&self, snapshot: &Snapshot) -> bool {
        self.clears() == snapshot.clears
            && still(&self.keys, snapshot.key)
            && self.tags_are_current(&snapshot.tags)
    }

    pub(crate) fn tags_are_current(&self, tags: &[Stripe]) -> bool {
        tags.iter().all(|stripe| still(&self.tags, *stripe))
    }

    pub(crate) fn bump_key(&self, key: &[u8]) {
        self.keys[self.index(key)].fetch_add(1, Ordering::SeqCst);
    }

    /// Takes from all that were begun before the right to be kept, but not from the one whose
    /// snapshot this is, unless it was invalidated itself. Returns its snapshot from now on.
    pub(crate) fn overtake(&self, key: &[u8], mut snapshot: Snapshot) -> Snapshot {
        let before = self.keys[self.index(key)].fetch_add(1, Ordering::SeqCst);
        if before == snapshot.key.seen {
            snapshot.key.seen = before.wrapping_add(1);
        }
        snapshot
    }

    /// Outdates all other snapshots of the key, unless this one is outdated itself: then nothing
    /// changes, so that who was overtaken does not overtake. Returns its snapshot from now on.
    pub(crate) fn stay_ahead(&self, key: &[u8], mut snapshot: Snapshot) -> Snapshot {
        let (seen, next) = (snapshot.key.seen, snapshot.key.seen.wrapping_add(1));
        let counter = &self.keys[self.index(key)];
        let order = Ordering::SeqCst;
        if counter.compare_exchange(seen, next, order, order).is_ok() {
            snapshot.key.seen = next;
        }
        snapshot
    }

    pub(crate) fn bump_tag(&self, tag: &[u8]) {
        // First: whoever has seen a counter after it was moved sees here that one was.
        self.tag_changes.fetch_add(1, Ordering::SeqCst);
        self.tags[self.index(tag)].fetch_add(1, Ordering::SeqCst);
    }

    /// The number of times that any tag was invalidated. If it has changed since, one may have been
    /// whose counter was looked at only afterwards.
    pub(crate) fn tag_changes(&self) -> u64 {
        self.tag_changes.load(Ordering::SeqCst)
    }

    pub(crate) fn proof_epoch(&self) -> u64 {
        self.proof_epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn begin_proof_epoch(&self) {
        self.proof_epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Everything is invalidated.
    pub(crate) fn clear(&self) {
        self.clears.fetch_add(1, Ordering::SeqCst);
        self.begin_proof_epoch();
    }

    fn clears(&self) -> u64 {
        self.clears.load(Ordering::SeqCst)
    }

    /// The state of all counters, to be compared after a load whose keys were not known before.
    pub(crate) fn snapshot_all(&self) -> WholeSnapshot {
        let seen = |counters: &[AtomicU32]| {
            let seen = counters
                .iter()
                .map(|counter| counter.load(Ordering::SeqCst));
            seen.collect()
        };
        WholeSnapshot {
            proof_epoch: self.proof_epoch(),
            clears: self.clears(),
            keys: seen(&self.keys),
            tags: seen(&self.tags),
        }
    }

    /// Returns the snapshot of this key and these tags as of when the whole was taken.
    pub(crate) fn narrow<T: AsRef<[u8]>>(
        &self,
        whole: &WholeSnapshot,
        key: &[u8],
        tags: &[T],
    ) -> Snapshot {
        let then = |counters: &[u32], name: &[u8]| {
            let index = self.index(name);
            Stripe {
                index: index as u16,
                seen: counters[index],
            }
        };
        Snapshot {
            proof_epoch: whole.proof_epoch,
            clears: whole.clears,
            key: then(&whole.keys, key),
            tags: tags
                .iter()
                .map(|tag| then(&whole.tags, tag.as_ref()))
                .collect(),
        }
    }

    pub(crate) fn tag_stripes<T: AsRef<[u8]>>(&self, tags: &[T]) -> TagStripes {
        tags.iter()
            .map(|tag| self.look(&self.tags, tag.as_ref()))
            .collect()
    }

    /// Whether an invalidation of any of these tags would move one of the counters.
    pub(crate) fn cover<T: AsRef<[u8]>>(&self, stripes: &[Stripe], tags: &[T]) -> bool {
        tags.iter().all(|tag| {
            let index = self.index(tag.as_ref()) as u16;
            stripes.iter().any(|stripe| stripe.index == index)
        })
    }

    fn look(&self, counters: &[AtomicU32], name: &[u8]) -> Stripe {
        let index = self.index(name);
        Stripe {
            index: index as u16,
            seen: counters[index].load(Ordering::SeqCst),
        }
    }

    fn index(&self, name: &[u8]) -> usize {
        self.hasher.hash_one(name) as usize % STRIPES
    }
}

/// Every counter as it was seen.
pub(crate) struct WholeSnapshot {
    proof_epoch: u64,
    clears: u64,
    keys: Box<[u32]>,
    tags: Box<[u32]>,
}

fn still(counters: &[AtomicU32], stripe: Stripe) -> bool {
    counters[usize::from(stripe.index)].load(Ordering::SeqCst) == stripe.seen
}

const STRIPES: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k6_a_snapshot_is_outdated_by_its_key_its_tags_and_the_proof_epoch_only() {
        let generations = Generations::new();
        let take = || generations.snapshot(b"key", &["tag"]);
        let overtaken = |by: &dyn Fn()| {
            let snapshot = take();
            assert!(generations.is_current(&snapshot));
            by();
            !generations.is_current(&snapshot)
        };
        assert!(overtaken(&|| generations.bump_key(b"key")));
        assert!(overtaken(&|| generations.bump_tag(b"tag")));
        assert!(overtaken(&|| generations.begin_proof_epoch()));
        assert!(!overtaken(&|| generations.bump_key(b"another")));
        assert!(!overtaken(&|| generations.bump_tag(b"key")));
    }

    #[test]
    fn k6_a_new_proof_epoch_invalidates_nothing_by_name_and_clearing_does() {
        let generations = Generations::new();
        let held = generations.snapshot(b"key", &["tag"]);
        generations.begin_proof_epoch();
        assert!(!generations.is_current(&held) && generations.is_uninvalidated(&held));
        generations.clear();
        assert!(!generations.is_uninvalidated(&held));
        let held = generations.snapshot(b"key", &["tag"]);
        generations.bump_tag(b"tag");
        assert!(!generations.is_uninvalidated(&held));
    }

    #[test]
    fn k11_a_tag_that_becomes_known_later_outdates_a_snapshot_too() {
        let generations = Generations::new();
        let bare = generations.snapshot::<&str>(b"key", &[]);
        let found = generations.tag_stripes(&["found"]);
        assert!(generations.cover(&found, &["found"]) && !generations.cover(&found, &["other"]));
        let both = bare.with(&found);
        generations.bump_tag(b"found");
        assert!(generations.is_current(&bare) && !generations.is_current(&both));
    }

    #[test]
    fn k6_who_overtakes_outdates_what_began_before_and_is_outdated_by_an_invalidation() {
        let generations = Generations::new();
        let take = || generations.snapshot(b"key", &["tag"]);
        let (older, newer) = (take(), take());
        let newer = generations.overtake(b"key", newer);
        assert!(generations.is_current(&newer) && !generations.is_current(&older));
        generations.bump_key(b"key");
        assert!(!generations.is_current(&newer));
        let invalidated = take();
        generations.bump_key(b"key");
        let invalidated = generations.overtake(b"key", invalidated);
        assert!(!generations.is_current(&invalidated));
    }

    #[test]
    fn k6_who_stays_ahead_outdates_the_others_unless_it_is_outdated_itself() {
        let generations = Generations::new();
        let take = || generations.snapshot(b"key", &["tag"]);
        let (older, newer) = (take(), take());
        let newer = generations.stay_ahead(b"key", newer);
        assert!(generations.is_current(&newer) && !generations.is_current(&older));
        generations.bump_key(b"key");
        let later = take();
        let newer = generations.stay_ahead(b"key", newer);
        assert!(!generations.is_current(&newer) && generations.is_current(&later));
    }

    #[test]
    fn k11_that_some_tag_was_invalidated_shows() {
        let generations = Generations::new();
        let before = generations.tag_changes();
        generations.bump_key(b"key");
        assert_eq!(generations.tag_changes(), before);
        generations.bump_tag(b"tag");
        assert_ne!(generations.tag_changes(), before);
    }

    #[test]
    fn k6_a_whole_snapshot_narrows_to_what_was_seen_then() {
        let generations = Generations::new();
        let whole = generations.snapshot_all();
        generations.bump_key(b"changed");
        generations.bump_tag(b"moved");
        let current = |key: &str, tags: &[&str]| {
            let then = generations.narrow(&whole, key.as_bytes(), tags);
            generations.is_current(&then)
        };
        assert!(current("kept", &["kept"]) && !current("changed", &["kept"]));
        assert!(!current("kept", &["kept", "moved"]));
    }
}
