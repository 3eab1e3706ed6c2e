//! Whether memory may be believed: is it certain that every invalidation of other processes has
//! been heard?
//!
//! The answer is a moment up to which the channel is proven alive, in one atomic, so that a hit can
//! ask for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::monotonic::{Monotonic, NanoSpan};

pub(crate) struct Coherence {
    /// The bits of a [`Monotonic`].
    proven_until: AtomicU64,
}

impl Coherence {
    /// For a cache without Redis: there is nobody to hear from.
    pub(crate) fn alone() -> Self {
        Self {
            proven_until: Monotonic::LAST.to_bits().into(),
        }
    }

    /// For a cache whose channel has yet to be heard.
    pub(crate) fn unproven() -> Self {
        Self {
            proven_until: Monotonic::FIRST.to_bits().into(),
        }
    }

    pub(crate) fn is_proven(&self, now: Monotonic) -> bool {
        now < self.proven_until()
    }

    /// Whether a value loaded then may be taken as fresh now: the channel is proven alive; or it
    /// was loaded after the proof had ended, in which case its own load proves for a span that
    /// nothing newer was there.
    #[inline]
    pub(crate) fn vouches(&self, loaded_at: Monotonic, now: Monotonic) -> bool {
        let proven_until = self.proven_until();
        now < proven_until
            || (loaded_at >= proven_until && now.since(loaded_at) < NanoSpan::from(SPAN))
    }

    /// The channel answered to something said to have been sent at `sent`, which holds good for a
    /// [`SPAN`] from then. Nothing was sent later than now.
    pub(crate) fn prove(&self, sent: Monotonic, now: Monotonic) {
        let until = sent.min(now).plus(SPAN.into());
        self.proven_until
            .fetch_max(until.to_bits(), Ordering::AcqRel);
    }

    pub(crate) fn disprove(&self, now: Monotonic) {
        self.proven_until.fetch_min(now.to_bits(), Ordering::AcqRel);
    }

    fn proven_until(&self) -> Monotonic {
        Monotonic::from_bits(self.proven_until.load(Ordering::Acquire))
    }
}

/// The time for which a proof lasts: the longest that memory can be behind without anybody knowing.
pub(crate) const SPAN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn from_now() -> impl Fn(u64) -> Monotonic {
        let now = Monotonic::now();
        move |ms| now.plus(Duration::from_millis(ms).into())
    }

    #[test]
    fn k10_proof_lapses_by_itself() {
        let ms = from_now();
        let coherence = Coherence::unproven();
        assert!(!coherence.is_proven(ms(0)));
        coherence.prove(ms(0), ms(100));
        assert!(coherence.is_proven(ms(999)));
        assert!(!coherence.is_proven(ms(1000)));
        coherence.prove(ms(1000), ms(1000));
        assert!(coherence.is_proven(ms(1999)));
        coherence.disprove(ms(0));
        assert!(!coherence.is_proven(ms(0)));
    }

    #[test]
    fn k10_a_beat_proves_nothing_of_what_is_yet_to_come() {
        let ms = from_now();
        let coherence = Coherence::unproven();
        coherence.prove(Monotonic::LAST, ms(500));
        assert!(coherence.is_proven(ms(1499)) && !coherence.is_proven(ms(1500)));
    }

    #[test]
    fn k10_without_proof_only_what_was_loaded_since_is_fresh_and_only_for_a_span() {
        let ms = from_now();
        let coherence = Coherence::unproven();
        coherence.prove(ms(0), ms(0));
        assert!(coherence.vouches(ms(100), ms(999)));
        coherence.disprove(ms(500));
        assert!(!coherence.vouches(ms(499), ms(500)), "before the loss");
        assert!(coherence.vouches(ms(600), ms(1599)) && !coherence.vouches(ms(600), ms(1600)));
    }
}
