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
        self.nanos(now) < self.proven_until.load(Ordering::Acquire)
    }

    /// Whether a value loaded then may be taken as fresh now: the channel is proven alive; or it was loaded after the proof had ended,
    /// in which case its own load proves for a span that nothing newer was there.
    pub(crate) fn vouches(&self, loaded_at: Instant, now: Instant) -> bool {
        let now = self.nanos(now);
        let proven_until = self.proven_until.load(Ordering::Acquire);
        now < proven_until || {
            let loaded_at = self.nanos(loaded_at);
            loaded_at >= proven_until && now < loaded_at.saturating_add(SPAN.as_nanos() as u64)
        }
    }

    /// The channel answered to something sent at `sent`, which holds good for a [`SPAN`] from then.
    pub(crate) fn prove(&self, sent: Instant) {
        self.proven_until
            .fetch_max(self.nanos(sent + SPAN), Ordering::AcqRel);
    }

    pub(crate) fn disprove(&self, now: Instant) {
        self.proven_until
            .fetch_min(self.nanos(now), Ordering::AcqRel);
    }

    fn nanos(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.base).as_nanos() as u64
    }
}

/// How long a proof lasts: the longest that memory can be behind without anybody knowing.
pub(crate) const SPAN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k10_proof_lapses_by_itself() {
        let now = tokio::time::Instant::now().into_std();
        let coherence = Coherence::unproven(now);
        assert!(!coherence.is_proven(now));
        coherence.prove(now);
        assert!(coherence.is_proven(now + Duration::from_millis(999)));
        assert!(!coherence.is_proven(now + SPAN));
        coherence.prove(now + SPAN);
        assert!(coherence.is_proven(now + Duration::from_millis(1999)));
        coherence.disprove(now);
        assert!(!coherence.is_proven(now));
    }

    #[test]
    fn k10_without_proof_only_what_was_loaded_since_is_fresh_and_only_for_a_span() {
        let now = tokio::time::Instant::now().into_std();
        let ms = |ms| now + Duration::from_millis(ms);
        let coherence = Coherence::unproven(now);
        coherence.prove(now);
        assert!(coherence.vouches(ms(100), ms(999)));
        coherence.disprove(ms(500));
        assert!(!coherence.vouches(ms(499), ms(500)), "before the loss");
        assert!(coherence.vouches(ms(600), ms(1599)) && !coherence.vouches(ms(600), ms(1600)));
    }
}
