//! All that one cache is made of, for those who read, write and watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::classes::Classes;
use crate::flight::Flights;
use crate::flight::failures::Failures;
use crate::guard::LoadAdmission;
use crate::relay::Relay;
use crate::sabotage::Sabotage;
use crate::sql::Database;
use crate::stats::Stats;
use crate::tier::coherence::Coherence;
use crate::tier::generation::Generations;
use crate::tier::memory::Memory;
use crate::tier::redis::RedisTier;
use crate::under_way::UnderWay;
use crate::upkeep::Upkeep;

/// A read-through cache: memory, then Redis, then the caller's loader. One serves a whole
/// application: its types are read through [views](Self::view), which share its memory, its
/// connections and what it knows. Cheap to clone; clones share everything.
///
/// See the [crate documentation](crate) for an example.
#[derive(Clone)]
pub struct Cache {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) classes: Classes,
    pub(crate) memory: Memory,
    pub(crate) generations: Generations,
    pub(crate) flights: Arc<Flights>,
    pub(crate) under_way: Arc<UnderWay>,
    pub(crate) failures: Failures,
    pub(crate) guard: LoadAdmission,
    pub(crate) coherence: Arc<Coherence>,
    pub(crate) redis: Option<Arc<RedisTier>>,
    pub(crate) relay: Option<Arc<Relay>>,
    pub(crate) database: Database,
    pub(crate) value_max: usize,
    pub(crate) lease_wait: Duration,
    /// The state of a generator of random numbers that needs no lock.
    pub(crate) draws: AtomicU64,
    pub(crate) stats: Arc<Stats>,
    pub(crate) sabotage: Sabotage,
    /// Views made so far.
    pub(crate) views: AtomicU64,
    /// The tasks that serve it.
    pub(crate) upkeep: Arc<Upkeep>,
    /// Dropped with the cache, which ends the tasks that serve it.
    pub(crate) gone: watch::Sender<()>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl Inner {
    /// Returns what bounds the loads nested in another: the flights of this cache, and
    /// how many at once.
    pub(crate) fn nesting(&self) -> (&Arc<Flights>, usize) {
        (&self.flights, self.guard.nested())
    }

    /// A random number in `0..1` (splitmix64).
    pub(crate) fn draw(&self) -> f64 {
        let mut z = self
            .draws
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
