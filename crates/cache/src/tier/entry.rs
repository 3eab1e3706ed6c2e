//! A value in memory, with all that a hit has to know of it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use smallvec::SmallVec;

use super::generation::{Generations, Snapshot, TagStripes};
use crate::answer::{Answer, Source, StaleReason};
use crate::freshness::Life;
use crate::monotonic::{Monotonic, NanoSpan};

/// A value with all that decides whether it may be served. What a hit reads comes first, in the
/// order in which it does; the value, whose type is erased, has to come last.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry<T: ?Sized = dyn Any + Send + Sync> {
    pub(super) key: SmallVec<[u8; SHORT_KEY]>,
    pub(super) published: AtomicBool,
    /// Whether the value has chosen its life, and not its class.
    own: bool,
    /// Answers given from here: what is hot is refreshed first.
    pub(super) hits: AtomicU32,
    /// The number of the view that stored it.
    view: u64,
    pub(super) tags: TagStripes,
    pub(crate) loaded_at: Monotonic,
    /// The age up to which it is fresh and need not be refreshed early.
    certain: NanoSpan,
    proof_epoch: u64,
    fresh: NanoSpan,
    keep: NanoSpan,
    cost: NanoSpan,
    pub(super) weight: u32,
    version: u32,
    class: usize,
    /// The names of its tags.
    tag_names: Arc<[Vec<u8>]>,
    value: T,
}

/// The origin of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// The number of the view.
    pub(crate) view: u64,
    /// The number of its class.
    pub(crate) class: usize,
    /// The version of its type.
    pub(crate) version: u32,
}

/// The moment at which a value was loaded, and how long it may be believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) loaded_at: Monotonic,
    pub(crate) life: Life,
    /// The time that the load took.
    pub(crate) cost: Duration,
    /// The eagerness of early refresh, as in [`Ttl`](crate::Ttl).
    pub(crate) early_refresh: f64,
}

impl Entry {
    /// `bytes` is the length of the encoded value.
    pub(crate) fn new<V: Send + Sync + 'static>(
        key: &[u8],
        value: Option<V>,
        times: Times,
        (snapshot, tag_names): (&Snapshot, Arc<[Vec<u8>]>),
        label: Label,
        bytes: usize,
    ) -> Arc<Self> {
        let certain = times.life.certain(times.cost, times.early_refresh);
        let named: usize = tag_names.iter().map(|name| name.len() + TAG_OVERHEAD).sum();
        let weight = bytes + key.len() + named + OVERHEAD;
        Arc::new(Entry {
            key: SmallVec::from_slice(key),
            published: AtomicBool::new(false),
            own: times.life.own,
            hits: AtomicU32::new(0),
            view: label.view,
            tags: snapshot.tags.clone(),
            loaded_at: times.loaded_at,
            certain: certain.into(),
            proof_epoch: snapshot.proof_epoch,
            fresh: times.life.fresh.into(),
            keep: times.life.keep.into(),
            cost: times.cost.into(),
            weight: u32::try_from(weight).unwrap_or(u32::MAX),
            version: label.version,
            class: label.class,
            tag_names,
            value,
        })
    }

    /// The value, or its known absence; `None` if it is of another type.
    #[inline]
    pub(crate) fn value<V: 'static>(&self) -> Option<&Option<V>> {
        self.value.downcast_ref()
    }

    #[inline]
    pub(crate) fn view(&self) -> u64 {
        self.view
    }

    pub(crate) fn class(&self) -> usize {
        self.class
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn tag_names(&self) -> &Arc<[Vec<u8>]> {
        &self.tag_names
    }

    pub(crate) fn carries<T: AsRef<[u8]>>(&self, tags: &[T], generations: &Generations) -> bool {
        generations.cover(&self.tags, tags)
    }

    #[inline]
    pub(crate) fn age(&self, now: Monotonic) -> NanoSpan {
        now.since(self.loaded_at)
    }

    /// Whether it is fresh at this age, and not to be refreshed early either.
    #[inline]
    pub(crate) fn is_certain_at(&self, age: NanoSpan) -> bool {
        age < self.certain
    }

    #[inline]
    pub(crate) fn proof_epoch(&self) -> u64 {
        self.proof_epoch
    }

    #[inline]
    pub(crate) fn life(&self) -> Life {
        Life {
            fresh: self.fresh.into(),
            keep: self.keep.into(),
            own: self.own,
        }
    }

    pub(crate) fn cost(&self) -> Duration {
        self.cost.into()
    }

    /// Whether none of its tags has been invalidated since it was loaded.
    pub(crate) fn tags_are_current(&self, generations: &Generations) -> bool {
        generations.tags_are_current(&self.tags)
    }

    pub(crate) fn count_hit(&self) {
        self.hits.store(
            self.hits.load(Ordering::Relaxed).saturating_add(1),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn hit_count(&self) -> u32 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Answers with `value`, which is this entry's.
    #[inline]
    pub(crate) fn answer<V: Clone>(
        &self,
        value: &Option<V>,
        source: Source,
        stale: Option<StaleReason>,
        age: Duration,
    ) -> Answer<V> {
        Answer {
            value: value.clone(),
            source,
            age,
            fresh_for: self.life().fresh,
            stale,
        }
    }
}

/// A key of this many bytes or fewer lies in the entry, a longer one beside it.
const SHORT_KEY: usize = 24;

/// Bytes that the map and the entry take beside key and value, roughly.
pub(super) const OVERHEAD: usize = 240;

/// Bytes that the name of a tag takes beside its own.
const TAG_OVERHEAD: usize = 24;
