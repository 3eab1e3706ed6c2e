//! The proof that a majority of sentinels names the primary still, for those who write nothing
//! without it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Discovery;
use crate::clock;

/// The place of a write among those that wait for a proof.
pub(crate) struct InLine<'a> {
    discovery: &'a Discovery,
    turn: Option<tokio::sync::MutexGuard<'a, ()>>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.discovery.in_line.fetch_sub(1, Ordering::Relaxed);
        self.turn = None;
    }
}

impl Discovery {
    /// Returns whether a majority of the sentinels has confirmed the primary within this time.
    pub(crate) fn is_proven(&self, within: Duration, now: Instant) -> bool {
        self.proof_age(now).is_some_and(|age| age <= within)
    }

    /// Returns whether no write waits for a majority to confirm the primary.
    pub(crate) fn nobody_waits(&self) -> bool {
        self.in_line.load(Ordering::Relaxed) == 0
    }

    /// Waits until a majority has confirmed the primary within this time, behind all that wait for
    /// it. What is returned keeps those behind back until it is dropped. `None` if that does not
    /// come: the sentinels have `grace` from when it is first found out that the last word of a
    /// majority is too old, as that may be because this process stood still.
    pub(crate) async fn proven(
        &self,
        within: Duration,
        grace: Duration,
        deadline: Instant,
    ) -> Option<InLine<'_>> {
        self.in_line.fetch_add(1, Ordering::Relaxed);
        let mut place = InLine {
            discovery: self,
            turn: None,
        };
        let mut believed = self.believed.subscribe();
        let until = self.lapses_until(grace).min(deadline);
        if !self.is_proven(within, clock::now()) {
            self.want();
        }
        // Those before it wait no longer either.
        place.turn = clock::timeout_at(deadline, self.line.lock()).await;
        while !self.is_proven(within, clock::now()) {
            clock::timeout_at(until, believed.changed()).await?.ok()?;
        }
        place.turn.is_some().then_some(place)
    }

    /// Until when it is waited for the next word of a majority.
    fn lapses_until(&self, grace: Duration) -> Instant {
        let proof = self.majority_at.load(Ordering::Relaxed);
        let mut lapsed = self.lapsed.lock();
        let since = match *lapsed {
            Some((of, since)) if of == proof => since,
            _ => lapsed.insert((proof, clock::now())).1,
        };
        since + grace
    }

    /// Returns how long ago a majority was last known to agree; `None` if it never was.
    pub(crate) fn proof_age(&self, now: Instant) -> Option<Duration> {
        let after = self.majority_at.load(Ordering::Relaxed).checked_sub(1)?;
        let at = self.started + Duration::from_nanos(after);
        Some(now.saturating_duration_since(at))
    }
}
