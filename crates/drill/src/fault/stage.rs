//! The effect of a fault on one direction of one connection.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A piece of what travels along a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// Bytes, in one piece: they are written by a call of their own.
    Bytes(Bytes),
    /// The sender has ended its side (FIN).
    End,
    /// Both sides of the connection are closed, without a reset.
    Close,
    /// Both sides of the connection are reset (RST).
    Reset,
}

/// Items and the moments from which they may go on; in order of both.
pub(crate) type Out = Vec<(Instant, Item)>;

/// A fault at work on one direction of one connection, from the moment at which it takes hold there
/// until that at which it is removed.
pub(crate) trait Stage: Send {
    /// Takes what arrives at `at` (which may lie ahead, where an earlier fault delays it), and puts
    /// into `out` what becomes of it.
    fn pass(&mut self, item: Item, at: Instant, out: &mut Out);

    /// Whether it admits more at `now`; or from when on, or not until something else happens.
    fn admits(&self, _now: Instant) -> Admits {
        Admits::Now
    }

    /// The moment at which [`Stage::wake`] wants to be called although nothing arrives.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Called at or after [`Stage::due`].
    fn wake(&mut self, _now: Instant, _out: &mut Out) {}

    /// The fault is removed at `now`: puts into `out` what it has kept.
    fn release(&mut self, _now: Instant, _out: &mut Out) {}
}

/// Whether the sender is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admits {
    /// Yes.
    Now,
    /// Not before that moment, though what is on its way goes on.
    From(Instant),
    /// Not while it kept so much; what is on its way goes on.
    Full,
    /// No, and nothing that is on its way goes on either.
    Nothing,
}

/// How often a fault has acted. With 0 it has shown nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Touched(Arc<AtomicU64>);

impl Touched {
    pub(super) fn once(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub(in crate::fault) fn bytes(text: &'static str) -> Item {
        Item::Bytes(Bytes::from_static(text.as_bytes()))
    }

    /// Some moment; what the stages answer is compared with it, not with the clock.
    pub(in crate::fault) fn start() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// All bytes that came out, joined.
    pub(in crate::fault) fn joined(out: &Out) -> Vec<u8> {
        let bytes = out.iter().filter_map(|(_, item)| match item {
            Item::Bytes(bytes) => Some(bytes.to_vec()),
            _ => None,
        });
        bytes.flatten().collect()
    }
}
