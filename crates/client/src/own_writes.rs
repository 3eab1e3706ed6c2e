//! When this client last wrote to each slot of a cluster, so that it finds again what it has
//! written where it reads from replicas.
//!
//! Whatever sends a command notes it, by whichever way: calls, calls to one node, sessions. Noted
//! is the beginning of a write and its end, each only if replicas are read from by then: one that
//! was under way when the first of these reads came is noted at its end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use steadfast_core::command::{self, Effect};
use steadfast_core::redis_rs;
use steadfast_core::slot::{SLOTS, Slot};

use crate::call::plan::Payload;
use crate::clock;

/// See the module.
#[derive(Debug)]
pub(crate) struct OwnWrites {
    since: Instant,
    /// For how long a write that is under way keeps reads from replicas.
    max_lag: Duration,
    last: OnceLock<Last>,
}

#[derive(Debug)]
struct Last {
    /// When each slot was last written to, in nanoseconds since the client's start.
    slots: Box<[AtomicU64]>,
    /// The same of all slots.
    all: AtomicU64,
}

impl OwnWrites {
    pub(crate) fn new(since: Instant, max_lag: Duration) -> Self {
        Self {
            since,
            max_lag,
            last: OnceLock::new(),
        }
    }

    /// Notes writes from now on.
    pub(crate) fn begin(&self) {
        self.last.get_or_init(|| Last {
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            // What was written before was not noted.
            all: AtomicU64::new(self.nanos(clock::now())),
        });
    }

    /// Whether what is as old as this has all that was written to the slot.
    pub(crate) fn are_before(&self, at: Instant, slot: Slot) -> bool {
        self.last.get().is_some_and(|last| {
            let of_slot = last.slots[usize::from(slot.number())].load(Ordering::Relaxed);
            let of_all = last.all.load(Ordering::Relaxed);
            of_slot.max(of_all) < self.nanos(at)
        })
    }

    /// Notes that these commands are to be sent, or have `ended`.
    pub(crate) fn note(&self, payload: Payload<'_>, ended: bool) {
        let Some(last) = self.last.get() else {
            return;
        };
        let now = self.nanos(clock::now());
        // While it is under way nobody knows when it takes effect.
        let at = match ended {
            true => now,
            false => now.saturating_add(as_nanos(self.max_lag)),
        };
        let note = |cmd: redis_rs::CommandRef<'_>| {
            let class = command::classify(command::arguments(cmd));
            if class.effect == Effect::Read {
                return;
            }
            let mut keys = command::key_names(command::arguments(cmd)).peekable();
            if keys.peek().is_none() || command::reaches_further(&class) {
                last.all.fetch_max(at, Ordering::Relaxed);
            }
            for key in keys {
                let slot = usize::from(Slot::of_key(key).number());
                last.slots[slot].fetch_max(at, Ordering::Relaxed);
            }
        };
        match payload {
            Payload::Command(cmd) => note(cmd.into()),
            Payload::Pipeline(pipeline) => redis_rs::commands(pipeline).for_each(note),
            // Of a call that was noted as a whole.
            Payload::Portions(_) => {}
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        as_nanos(at.saturating_duration_since(self.since))
    }
}

fn as_nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn t24_a_write_that_was_under_way_when_replicas_began_to_be_read_from_is_noted_at_its_end()
     {
        let since = clock::now();
        let writes = OwnWrites::new(since, Duration::from_secs(5));
        let set = redis::cmd("SET").arg("k").arg(2).to_owned();
        let slot = Slot::of_key(b"k");
        writes.note(Payload::Command(&set), false);
        writes.begin();
        clock::sleep(Duration::from_millis(1)).await;
        let measured = clock::now();
        assert!(writes.are_before(measured, slot));
        clock::sleep(Duration::from_millis(1)).await;
        writes.note(Payload::Command(&set), true);
        assert!(!writes.are_before(measured, slot));
        assert!(writes.are_before(measured, Slot::of_key(b"other")));
        // While it is under way, no replica is young enough.
        writes.note(Payload::Command(&set), false);
        assert!(!writes.are_before(clock::now() + Duration::from_secs(4), slot));
    }
}
