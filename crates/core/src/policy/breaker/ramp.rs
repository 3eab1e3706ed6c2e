//! After an outage every caller is waiting, and a server that has just come up has cold caches and
//! a backlog. Letting all in at once is how a recovery ends in the next outage; refusing some would
//! be a second outage for them. So for a short time callers are spread out instead: each is told
//! when to go.
//!
//! With start rate `r` and length `T`, the rate of admission is `r / (1 − t/T)`: it begins at `r`,
//! has doubled half-way and is without limit at `T`. By time `t` that has let in
//! `N(t) = −r·T·ln(1 − t/T)` calls; turned round, call number `n` goes at
//! `t(n) = T·(1 − e^(−n / rT))`. Each call takes the next number not yet passed (virtual
//! scheduling, as in GCRA: capacity that nobody used is not saved up). Since `t(n) < T` for every
//! `n`, no call is delayed beyond the end of the ramp however many there are, and there is no crowd
//! waiting at its end.

use std::time::{Duration, Instant};

use crate::policy::instant::after;

/// One ramp, from its start to its end.
#[derive(Clone, Debug)]
pub(super) struct Ramp {
    start: Instant,
    end: Instant,
    seconds: f64,
    /// `r·T`: calls let in when `1 − 1/e` of the ramp is over.
    scale: f64,
    /// The next free number.
    next: f64,
}

impl Ramp {
    /// A ramp that begins now; `None` if it has no length.
    pub(super) fn begin(length: Duration, start_rate: f64, now: Instant) -> Option<Self> {
        let seconds = length.as_secs_f64();
        let scale = start_rate * seconds;
        (scale > 0.0).then(|| Self {
            start: now,
            end: after(now, length),
            seconds,
            scale,
            next: 0.0,
        })
    }

    /// When the next call may go: `now` or later, and never after [`end`](Self::end).
    pub(super) fn admit(&mut self, now: Instant) -> Instant {
        let passed = now.saturating_duration_since(self.start).as_secs_f64();
        let number = self
            .next
            .max(-self.scale * (1.0 - passed / self.seconds).max(0.0).ln());
        self.next = number + 1.0;
        let offset = self.seconds * -(-number / self.scale).exp_m1();
        let turn = Duration::try_from_secs_f64(offset)
            .map_or(self.end, |offset| after(self.start, offset));
        turn.clamp(now, self.end.max(now))
    }

    /// When admission becomes unlimited.
    pub(super) fn end(&self) -> Instant {
        self.end
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_crowd_is_spread_over_the_ramp_and_all_of_it_gets_in() {
        let start = Instant::now();
        let mut ramp = Ramp::begin(SECOND, 1000.0, start).expect("has a length");
        let turns: Vec<_> = (0..20_000).map(|_| ramp.admit(start)).collect();
        assert!(turns.is_sorted());
        assert_eq!(turns[0], start);
        assert!(turns.iter().all(|turn| *turn <= ramp.end()));
        // About 1 000 × ln 2 in the first half, by the formula.
        let first_half = turns
            .iter()
            .filter(|turn| **turn < start + SECOND / 2)
            .count();
        assert!((690..=697).contains(&first_half), "{first_half}");
    }

    #[test]
    fn a_call_below_the_rate_is_not_delayed() {
        let start = Instant::now();
        let mut ramp = Ramp::begin(SECOND, 100.0, start).expect("has a length");
        for n in 0..90 {
            let now = start + n * Duration::from_millis(11);
            // A nanosecond or so of rounding is no delay.
            assert!(ramp.admit(now) <= now + Duration::from_micros(1));
        }
    }

    #[test]
    fn capacity_that_nobody_used_is_not_saved_up() {
        let start = Instant::now();
        let mut ramp = Ramp::begin(SECOND, 100.0, start).expect("has a length");
        let now = start + SECOND / 2;
        let at_once = (0..100)
            .filter(|_| ramp.admit(now) <= now + Duration::from_micros(1))
            .count();
        assert_eq!(at_once, 1);
    }

    #[test]
    fn extremes_do_not_panic() {
        let start = Instant::now();
        assert!(Ramp::begin(Duration::ZERO, 10.0, start).is_none());
        for (length, rate) in [
            (Duration::MAX, f64::MAX),
            (Duration::from_nanos(1), f64::MIN_POSITIVE),
            (Duration::MAX, 1e-300),
        ] {
            if let Some(mut ramp) = Ramp::begin(length, rate, start) {
                for now in [start, start + SECOND, after(start, Duration::MAX)] {
                    let turn = ramp.admit(now);
                    assert!(turn >= now && turn <= ramp.end().max(now));
                }
            }
        }
    }
}
