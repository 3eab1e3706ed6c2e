//! The same counting as in `count.lua`, for one process alone, while the fleet's count is out of
//! reach. It begins where the fleet's last answer left off, so an outage of Redis gives nobody a
//! second burst. Pure: time comes in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use steadfast_core::policy::RateLimit;

use super::{Decision, RateTerms};
use crate::config::Algorithm;

/// The state of one counter.
#[derive(Debug, Clone, Copy)]
enum CounterState {
    /// The moment at which the bucket will be full again.
    Bucket { full_at: Instant },
    /// Counts of the window that began, and of the one before.
    Window {
        began: Instant,
        current: f64,
        previous: f64,
    },
}

/// Counters by name, at most [`MOST`].
#[derive(Debug, Default)]
pub(crate) struct Local {
    held: HashMap<String, CounterState>,
}

/// Counters kept: some 10 MB at most.
const MOST: usize = 65_536;

impl Local {
    /// Takes up what the fleet's count has answered.
    pub(crate) fn learn(&mut self, key: &str, terms: &RateTerms, told: &Decision, now: Instant) {
        let held = match terms.algorithm {
            Algorithm::TokenBucket => CounterState::Bucket {
                full_at: now + told.reset,
            },
            Algorithm::SlidingWindow => CounterState::Window {
                began: now,
                current: f64::from(terms.quota.saturating_sub(told.remaining)),
                previous: 0.0,
            },
        };
        self.keep(key, held, now);
    }

    /// Decides alone.
    pub(crate) fn decide(&mut self, key: &str, terms: &RateTerms, now: Instant) -> Decision {
        let (decision, held) = match terms.algorithm {
            Algorithm::TokenBucket => self.bucket(key, terms, now),
            Algorithm::SlidingWindow => self.window(key, terms, now),
        };
        if decision.passes {
            self.keep(key, held, now);
        }
        decision
    }

    fn bucket(&self, key: &str, terms: &RateTerms, now: Instant) -> (Decision, CounterState) {
        let full_at = match self.held.get(key) {
            Some(CounterState::Bucket { full_at }) => (*full_at).max(now),
            _ => now,
        };
        let taken = RateLimit::new(terms.quota, terms.period, terms.burst).take(full_at, now);
        let full_at = taken.map_or(full_at, |taken| taken.full_at);
        let decision = Decision {
            passes: taken.is_ok(),
            remaining: taken.map_or(0, |taken| taken.remaining),
            wait: taken.err().unwrap_or_default(),
            reset: full_at - now,
        };
        (decision, CounterState::Bucket { full_at })
    }

    fn window(&self, key: &str, terms: &RateTerms, now: Instant) -> (Decision, CounterState) {
        let (mut began, mut current, mut previous) = match self.held.get(key) {
            Some(CounterState::Window {
                began,
                current,
                previous,
            }) => (*began, *current, *previous),
            _ => (now, 0.0, 0.0),
        };
        let passed = now.saturating_duration_since(began);
        if passed >= terms.period {
            (previous, current) = if passed < 2 * terms.period {
                (current, 0.0)
            } else {
                (0.0, 0.0)
            };
            let whole = passed.as_nanos() / terms.period.as_nanos().max(1);
            began += terms.period * u32::try_from(whole).unwrap_or(u32::MAX);
        }
        let into = now.saturating_duration_since(began);
        let share = into.as_secs_f64() / terms.period.as_secs_f64();
        let weighed = previous * (1.0 - share) + current;
        let quota = f64::from(terms.quota);
        let passes = weighed + 1.0 <= quota;
        // Until the window before weighs so much less; or, in a full window, until it is that
        // window before and does.
        let wait = if passes {
            Duration::ZERO
        } else if current + 1.0 <= quota {
            let at = 1.0 - (quota - 1.0 - current) / previous;
            terms.period.mul_f64(at.clamp(0.0, 1.0))
        } else {
            let at = 1.0 - (quota - 1.0) / current;
            terms.period + terms.period.mul_f64(at.clamp(0.0, 1.0))
        };
        let decision = Decision {
            passes,
            remaining: if passes {
                (quota - weighed - 1.0) as u32
            } else {
                0
            },
            wait: if passes {
                Duration::ZERO
            } else {
                wait.saturating_sub(into) + Duration::from_micros(1)
            },
            reset: (2 * terms.period).saturating_sub(into),
        };
        let held = CounterState::Window {
            began,
            current: current + 1.0,
            previous,
        };
        (decision, held)
    }

    fn keep(&mut self, key: &str, held: CounterState, now: Instant) {
        if let Some(place) = self.held.get_mut(key) {
            *place = held;
            return;
        }
        if self.held.len() >= MOST {
            self.held.retain(
                |_, held| !matches!(held, CounterState::Bucket { full_at } if *full_at <= now),
            );
        }
        if self.held.len() >= MOST {
            // So many callers at once are an attack: a part of what is known of them is given up,
            // not the memory.
            let mut n = 0;
            self.held.retain(|_, _| {
                n += 1;
                n % 4 != 0
            });
        }
        self.held.insert(key.to_owned(), held);
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "any instant will do to begin with"
    )]
    use proptest::prelude::*;

    use super::*;

    fn terms(algorithm: Algorithm, quota: u32, burst: u32) -> RateTerms {
        RateTerms {
            algorithm,
            quota,
            period: Duration::from_secs(1),
            burst,
        }
    }

    proptest! {
        #[test]
        fn s7_a_bucket_lets_no_more_pass_than_rate_times_time_and_burst(
            quota in 1u32..500, burst in 1u32..100, gaps in prop::collection::vec(0u64..30_000, 1..800)
        ) {
            let terms = terms(Algorithm::TokenBucket, quota, burst);
            let (mut local, start) = (Local::default(), Instant::now());
            let (mut now, mut passed) = (start, 0u32);
            for gap in gaps {
                now += Duration::from_micros(gap);
                let decision = local.decide("k", &terms, now);
                passed += u32::from(decision.passes);
                if !decision.passes {
                    // Exactly when it says, one more passes.
                    let mut later = Local { held: local.held.clone() };
                    prop_assert!(later.decide("k", &terms, now + decision.wait).passes);
                }
            }
            let most = f64::from(quota) * (now - start).as_secs_f64() + f64::from(burst);
            prop_assert!(f64::from(passed) <= most + 1e-3, "{passed} of {most}");
        }

        #[test]
        fn s7_a_window_lets_no_more_than_its_quota_begin_in_it(
            quota in 1u32..200, gaps in prop::collection::vec(0u64..30_000, 1..800)
        ) {
            let terms = terms(Algorithm::SlidingWindow, quota, quota);
            let (mut local, start) = (Local::default(), Instant::now());
            let (mut now, mut passed) = (start, 0u32);
            for gap in gaps {
                now += Duration::from_micros(gap);
                let decision = local.decide("k", &terms, now);
                passed += u32::from(decision.passes);
                if !decision.passes {
                    // When it says, one more passes.
                    let mut later = Local { held: local.held.clone() };
                    prop_assert!(later.decide("k", &terms, now + decision.wait).passes);
                }
            }
            let windows = 1.0 + (now - start).as_secs_f64().ceil();
            prop_assert!(f64::from(passed) <= f64::from(quota) * windows);
        }
    }

    #[test]
    fn s7_what_the_fleet_answered_is_where_the_process_goes_on() {
        let terms = terms(Algorithm::TokenBucket, 10, 10);
        let now = Instant::now();
        let mut local = Local::default();
        let told = Decision {
            passes: true,
            remaining: 0,
            wait: Duration::ZERO,
            reset: Duration::from_secs(1),
        };
        local.learn("k", &terms, &told, now);
        assert!(
            !local.decide("k", &terms, now).passes,
            "the burst is spent already"
        );
        assert!(local.decide("other", &terms, now).passes);
        assert!(
            local
                .decide("k", &terms, now + Duration::from_millis(101))
                .passes
        );
    }

    #[test]
    fn s7_counters_are_bounded_however_many_callers_come() {
        let terms = terms(Algorithm::TokenBucket, 1, 1);
        let now = Instant::now();
        let mut local = Local::default();
        for n in 0..MOST + 1000 {
            local.decide(&n.to_string(), &terms, now);
        }
        assert!(local.held.len() <= MOST);
    }
}
