//! Whether memory may be believed: is it certain that every invalidation of other processes has been heard?
//!
//! The answer is a moment up to which the channel is proven alive, in one atomic, so that a hit can ask for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(crate) struct Coherence {
    base: Instant,
    /// Nanoseconds after `base`.
    proven_until: AtomicU64,
}

impl Coherence {
    /// For a cache without Redis: there is nobody to hear from.
    pub(crate) fn alone(now: Instant) -> Self {
        Self {
            base: now,
            proven_until: AtomicU64::new(u64::MAX),
        }
    }

    /// For a cache whose channel has yet to be heard.
    pub(crate) fn unproven(now: Instant) -> Self {
        Self {
            base: now,
            proven_until: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_proven(&self, now: Instant) -> bool {
        (now.saturating_duration_since(self.base).as_nanos() as u64)
            < self.proven_until.load(Ordering::Acquire)
    }

    /// The channel answered to something sent at `sent`, which holds good for `span` from then.
    pub(crate) fn prove(&self, sent: Instant, span: Duration) {
        let until = (sent + span)
            .saturating_duration_since(self.base)
            .as_nanos() as u64;
        self.proven_until.fetch_max(until, Ordering::AcqRel);
    }

    pub(crate) fn disprove(&self) {
        self.proven_until.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k10_proof_lapses_by_itself() {
        let now = tokio::time::Instant::now().into_std();
        let coherence = Coherence::unproven(now);
        assert!(!coherence.is_proven(now));
        coherence.prove(now, Duration::from_secs(1));
        assert!(coherence.is_proven(now + Duration::from_millis(999)));
        assert!(!coherence.is_proven(now + Duration::from_secs(1)));
        coherence.prove(now + Duration::from_secs(1), Duration::from_secs(1));
        assert!(coherence.is_proven(now + Duration::from_millis(1999)));
        coherence.disprove();
        assert!(!coherence.is_proven(now));
    }
}
