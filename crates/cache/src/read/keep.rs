//! Keeping what was loaded: in memory before the flight lands, in Redis after it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::load::Job;
use crate::answer::Source;
use crate::clock::clock;
use crate::flight::{Leader, Loaded};
use crate::freshness::Life;
use crate::tier::entry::{Entry, TagNames, Times};
use crate::tier::redis::{Fill, Lease};

impl<V: Clone + Send + Sync + 'static> Job<V> {
    /// Puts what was loaded into memory and lands the flight. What is to be stored in Redis is left
    /// to be sent: no caller waits for that.
    pub(crate) fn keep(
        &self,
        leader: &Leader,
        value: Option<V>,
        cost: Duration,
        lease: Option<Lease>,
    ) -> Option<Stored> {
        let (view, cache) = (&self.view, self.view.core());
        let encoded = value.as_ref().map(|value| view.codec().encode(value));
        // What cannot be kept in Redis as it is can still be answered.
        let encoded = encoded
            .transpose()
            .map_err(|problem| view.cannot_keep(leader.key(), &*problem));
        let can_be_kept = encoded.is_ok();
        let encoded = encoded.unwrap_or_default();
        let length = encoded.as_ref().map_or(0, Bytes::len);
        let life = view.life(&self.ttl, value.as_ref());
        let snapshot = &leader.snapshot();
        cache.failures.forget(leader.key());
        // The database may have been read at any moment of the load: the age is counted from its
        // beginning.
        let now = clock();
        let loaded_at = now.checked_sub(cost).unwrap_or(now);
        let times = Times {
            loaded_at: loaded_at.into(),
            life,
            cost,
            early_refresh: self.ttl.early_refresh,
        };
        let governed = (snapshot, TagNames::from(self.tags.clone()));
        let entry = Entry::new(leader.key(), value, times, governed, view.label(), length);
        if let Some(redis) = cache.redis.as_ref().filter(|_| life.own) {
            redis.outlast(life.keep);
        }
        let keep = can_be_kept && length <= cache.value_max && !life.keep.is_zero();
        if keep {
            cache.memory.insert(&entry, snapshot, &cache.generations);
        } else {
            cache.memory.remove(leader.key());
        }
        let source = Source::Database;
        leader.land(Ok(Loaded { entry, source }));
        if length > cache.value_max {
            cache.stats.not_stored.add(1);
        }
        lease.filter(|_| keep).map(|lease| Stored {
            lease,
            encoded,
            life,
            cost,
            type_version: view.label().version,
            loaded_at,
        })
    }
}

/// A loaded value with the right to store it in Redis.
pub(crate) struct Stored {
    lease: Lease,
    encoded: Option<Bytes>,
    life: Life,
    cost: Duration,
    type_version: u32,
    loaded_at: Instant,
}

impl Stored {
    pub(crate) async fn fill(self) {
        let fill = Fill {
            payload: self.encoded.as_deref(),
            life: self.life,
            cost: self.cost,
            type_version: self.type_version,
            loaded_at: self.loaded_at,
        };
        let filled = self.lease.fill(&fill).await;
        tracing::trace!(?filled, "fill");
    }
}
