//! A value in memory, with all that a hit has to know of it.

use std::any::{Any, TypeId};
use std::ops::Deref;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::generation::{Generations, Snapshot, Stripe, TagStripes};
use crate::answer::{Answer, Source, StaleReason};
use crate::freshness::Life;
use crate::monotonic::{Monotonic, NanoSpan};

/// A value with all that decides whether it may be served. What a hit reads comes first, in the
/// order in which it does, and is kept small: it is to lie in few lines of the processor's cache.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry {
    key: KeyBytes,
    pub(super) published: AtomicBool,
    /// Reads since it was last asked for them, up to [`MOST_VISITS`]: what is read stays.
    visits: AtomicU8,
    /// Whether the value has chosen its life, and not its class.
    own: bool,
    /// Answers given from here: what is hot is refreshed first.
    hits: AtomicU32,
    tags: Tags,
    pub(crate) loaded_at: Monotonic,
    /// The age up to which it is fresh and need not be refreshed early.
    certain: NanoSpan,
    proof_epoch: u64,
    /// The number of the view that stored it.
    view: u64,
    fresh: NanoSpan,
    value: Value,
    keep: NanoSpan,
    cost: NanoSpan,
    pub(super) weight: u32,
    version: u32,
    class: usize,
    /// The names of its tags.
    tag_names: TagNames,
}

/// A key that lies in the entry if it is short, and beside it if it is long.
#[derive(Debug)]
enum KeyBytes {
    Short(u8, [u8; SHORT_KEY]),
    Long(Box<[u8]>),
}

/// The counters of tags. Most values have one tag, or none.
#[derive(Debug)]
enum Tags {
    None,
    One(Stripe),
    Many(Box<TagStripes>),
}

/// A value whose type is not known here. One place in memory more is spared for bytes, which most
/// values are where many are read.
#[derive(Debug)]
enum Value {
    Bytes(Bytes),
    /// An `Option` of the type.
    Other(Box<dyn Any + Send + Sync>),
}

/// The names of tags, shared by whoever needs them. For none of them nothing is allocated.
#[derive(Clone, Debug, Default)]
pub(crate) struct TagNames(Option<Arc<[Vec<u8>]>>);

impl From<Vec<Vec<u8>>> for TagNames {
    fn from(names: Vec<Vec<u8>>) -> Self {
        Self((!names.is_empty()).then(|| names.into()))
    }
}

impl Deref for TagNames {
    type Target = [Vec<u8>];

    fn deref(&self) -> &[Vec<u8>] {
        self.0.as_deref().unwrap_or_default()
    }
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
        (snapshot, tag_names): (&Snapshot, TagNames),
        label: Label,
        bytes: usize,
    ) -> Arc<Self> {
        let certain = times.life.certain(times.cost, times.early_refresh);
        let named: usize = tag_names.iter().map(|name| name.len() + TAG_OVERHEAD).sum();
        let weight = bytes + key.len() + named + OVERHEAD;
        Arc::new(Entry {
            key: KeyBytes::new(key),
            published: AtomicBool::new(false),
            visits: AtomicU8::new(0),
            own: times.life.own,
            hits: AtomicU32::new(0),
            tags: Tags::new(&snapshot.tags),
            loaded_at: times.loaded_at,
            certain: certain.into(),
            proof_epoch: snapshot.proof_epoch,
            view: label.view,
            fresh: times.life.fresh.into(),
            value: Value::new(value),
            keep: times.life.keep.into(),
            cost: times.cost.into(),
            weight: u32::try_from(weight).unwrap_or(u32::MAX),
            version: label.version,
            class: label.class,
            tag_names,
        })
    }

    #[inline]
    pub(super) fn key(&self) -> &[u8] {
        match &self.key {
            KeyBytes::Short(length, bytes) => bytes.get(..usize::from(*length)).unwrap_or(bytes),
            KeyBytes::Long(bytes) => bytes,
        }
    }

    /// The value, or its known absence; `None` if it is of another type.
    #[inline]
    pub(crate) fn value<V: 'static>(&self) -> Option<Option<&V>> {
        // One after the other: where the type is known the question is answered by the compiler.
        match &self.value {
            Value::Bytes(bytes) => (bytes as &dyn Any).downcast_ref().map(Some),
            Value::Other(value) => value.downcast_ref().map(Option::as_ref),
        }
    }

    /// The counters of its tags.
    #[inline]
    pub(super) fn tags(&self) -> &[Stripe] {
        match &self.tags {
            Tags::None => &[],
            Tags::One(tag) => slice::from_ref(tag),
            Tags::Many(tags) => tags,
        }
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

    pub(crate) fn tag_names(&self) -> &[Vec<u8>] {
        &self.tag_names
    }

    pub(crate) fn carries<T: AsRef<[u8]>>(&self, tags: &[T], generations: &Generations) -> bool {
        generations.cover(self.tags(), tags)
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

    /// The age up to which it is fresh.
    #[inline]
    pub(crate) fn fresh(&self) -> NanoSpan {
        self.fresh
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
        generations.tags_are_current(self.tags())
    }

    /// Counts, and may lose some of what several threads count at a time.
    #[inline]
    pub(crate) fn count_hit(&self) {
        let hits = self.hits.load(Ordering::Relaxed).saturating_add(1);
        self.hits.store(hits, Ordering::Relaxed);
        let visits = self.visits.load(Ordering::Relaxed);
        if visits < MOST_VISITS {
            self.visits.store(visits + 1, Ordering::Relaxed);
        }
    }

    /// Returns the reads since it was last asked, and counts one of them less or forgets them.
    pub(super) fn visits(&self, forget: bool) -> u8 {
        let visits = self.visits.load(Ordering::Relaxed);
        let left = if forget { 0 } else { visits.saturating_sub(1) };
        self.visits.store(left, Ordering::Relaxed);
        visits
    }

    /// Begins with what is known of the entry whose place it takes.
    pub(super) fn follow(&self, previous: &Self) {
        self.hits.store(previous.hit_count() / 2, Ordering::Relaxed);
        let visits = previous.visits.load(Ordering::Relaxed);
        self.visits.store(visits, Ordering::Relaxed);
    }

    pub(crate) fn hit_count(&self) -> u32 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Answers with `value`, which is this entry's.
    #[inline(always)]
    pub(crate) fn answer<V: Clone>(
        &self,
        value: Option<&V>,
        source: Source,
        stale: Option<StaleReason>,
        age: Duration,
    ) -> Answer<V> {
        Answer {
            value: value.cloned(),
            source,
            age,
            fresh_for: self.life().fresh,
            stale,
        }
    }
}

impl KeyBytes {
    fn new(key: &[u8]) -> Self {
        let mut bytes = [0; SHORT_KEY];
        match bytes.get_mut(..key.len()) {
            Some(room) => {
                room.copy_from_slice(key);
                Self::Short(key.len() as u8, bytes)
            }
            None => Self::Long(key.into()),
        }
    }
}

impl Tags {
    fn new(stripes: &TagStripes) -> Self {
        match stripes.as_slice() {
            [] => Self::None,
            [tag] => Self::One(*tag),
            _ => Self::Many(Box::new(stripes.clone())),
        }
    }
}

impl Value {
    fn new<V: Send + Sync + 'static>(value: Option<V>) -> Self {
        let mut value = Some(value);
        match (&mut value as &mut dyn Any).downcast_mut::<Option<Option<Bytes>>>() {
            Some(bytes) => match bytes.take().flatten() {
                Some(bytes) => Self::Bytes(bytes),
                None => Self::Other(Box::new(None::<Bytes>)),
            },
            None => Self::Other(Box::new(value.flatten())),
        }
    }
}

/// Whether a copy of such a value costs next to nothing and runs nothing that others have written:
/// it may be made while a lock is held.
#[inline]
pub(crate) fn is_plain<V: 'static>() -> bool {
    let value = TypeId::of::<V>();
    value == TypeId::of::<Bytes>()
        || value == TypeId::of::<bool>()
        || value == TypeId::of::<i32>()
        || value == TypeId::of::<i64>()
        || value == TypeId::of::<u32>()
        || value == TypeId::of::<u64>()
        || value == TypeId::of::<f64>()
}

/// The number of reads of an entry that are told apart where it is decided which entries stay.
const MOST_VISITS: u8 = 3;

/// A key of this many bytes or fewer lies in the entry, a longer one beside it.
const SHORT_KEY: usize = 22;

const _: () = assert!(
    size_of::<Entry>() <= 168,
    "few lines of the processor's cache"
);

/// Bytes that the entry, its slot and its place in the queues take beside key and value, roughly.
pub(super) const OVERHEAD: usize = 320;

/// Bytes that the name of a tag takes beside its own.
const TAG_OVERHEAD: usize = 24;
