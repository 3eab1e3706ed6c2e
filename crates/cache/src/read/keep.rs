//! Keeping what was loaded: in memory before the flight lands, in Redis after it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::load::Job;
use crate::answer::Source;
use crate::clock::clock;
use crate::codec::message;
use crate::error::CacheError;
use crate::flight::{Leader, Loaded};
use crate::freshness::Life;
use crate::tier::entry::{Entry, TagNames, Times};
use crate::tier::redis::{Fill, Lease};

impl<V: Clone + Send + Sync + 'static> Job<V> {
    /// Finds out whether what was loaded can be kept, and for how long. A value may choose that by
    /// itself, and if that panics it is as if its load had.
    pub(crate) fn weigh(
        &self,
        leader: &Leader,
        value: Option<V>,
    ) -> Result<Weighed<V>, CacheError> {
        let (view, cache) = (&self.view, self.view.core());
        let chosen = AssertUnwindSafe(|| view.life(&self.ttl, value.as_ref()));
        let life = catch_unwind(chosen).map_err(|panic| {
            let message = message(&*panic);
            CacheError::LoadPanicked { message }
        })?;
        let encoded = value.as_ref().map(|value| view.codec().encode(value));
        // What cannot be kept in Redis as it is can still be answered.
        let encoded = encoded
            .transpose()
            .map_err(|problem| view.cannot_keep(leader.key(), &*problem));
        let is_whole = encoded.is_ok();
        let encoded = encoded.unwrap_or_default();
        let length = encoded.as_ref().map_or(0, Bytes::len);
        if length > cache.value_max {
            cache.stats.not_stored.add(1);
        }
        Ok(Weighed {
            can_be_kept: is_whole && length <= cache.value_max && !life.keep.is_zero(),
            value,
            encoded,
            life,
        })
    }

    /// Puts what was loaded into memory and lands the flight. What is to be stored in Redis is left
    /// to be sent: no caller waits for that.
    pub(crate) fn keep(
        &self,
        leader: &Leader,
        weighed: Weighed<V>,
        cost: Duration,
        lease: Option<Lease>,
    ) -> Option<Stored> {
        let (view, cache) = (&self.view, self.view.core());
        let Weighed {
            value,
            encoded,
            life,
            can_be_kept,
        } = weighed;
        let length = encoded.as_ref().map_or(0, Bytes::len);
        let mut snapshot = leader.snapshot().into_owned();
        if self.anew {
            snapshot = cache.generations.overtake(leader.key(), snapshot);
        }
        let snapshot = &snapshot;
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
        if can_be_kept {
            cache.memory.insert(&entry, snapshot, &cache.generations);
        } else {
            cache.memory.remove(leader.key());
        }
        let source = Source::Database;
        leader.land(Ok(Loaded { entry, source }));
        lease.filter(|_| can_be_kept).map(|lease| Stored {
            lease,
            encoded,
            life,
            cost,
            type_version: view.label().version,
            loaded_at,
        })
    }
}

/// A loaded value, and what is to become of it.
pub(crate) struct Weighed<V> {
    value: Option<V>,
    encoded: Option<Bytes>,
    life: Life,
    pub(crate) can_be_kept: bool,
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
