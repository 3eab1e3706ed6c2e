//! Pauses must grow, or an outage is met with a hail of attempts; must be capped, or recovery goes
//! unnoticed; and must be scattered, or all callers come back in the same instant and cause the
//! next outage.
//!
//! Pauses are built from four simple ones and joined with `+`, [`then`](Backoff::then),
//! [`min`](Backoff::min) and [`max`](Backoff::max).
//!
//! ```
//! use std::time::Duration;
//! use steadfast_core::policy::Backoff;
//!
//! let ms = Duration::from_millis;
//! // Twice at once with a little scatter, afterwards growing to a second.
//! let backoff = Backoff::random(ms(0), ms(5)).then(2, Backoff::full_jitter(ms(10), ms(1000)));
//! let mut rng = fastrand::Rng::with_seed(7);
//! assert!(backoff.pause(1, &mut rng) <= ms(5));
//! assert!(backoff.pause(40, &mut rng) <= ms(1000));
//! ```

use std::{ops::Add, sync::Arc, time::Duration};

use super::InvalidSetting;

/// How long to pause after each failure. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff(Shape);

impl Backoff {
    /// Always the same pause.
    pub fn fixed(pause: Duration) -> Self {
        Self(Shape::Random {
            min: pause,
            max: pause,
        })
    }

    /// Anything from `min` to `max`, both included, all equally likely. Bounds given in the wrong
    /// order are swapped.
    pub fn random(min: Duration, max: Duration) -> Self {
        Self(Shape::Random {
            min: min.min(max),
            max: min.max(max),
        })
    }

    /// `first`, then twice that, and so on up to `cap`: `min(cap, first × factor^(attempt − 1))`.
    pub fn exponential(first: Duration, cap: Duration) -> Self {
        Self(Shape::Growing {
            first,
            cap,
            factor: 2.0,
            jitter: false,
        })
    }

    /// Anything from nothing to what [`exponential`](Self::exponential) would pause, all equally
    /// likely.
    ///
    /// This is the "full jitter" of Brooker, *Exponential Backoff And Jitter* (AWS, 2015): of the
    /// ways to scatter, the one that spreads a crowd of callers best for the time it costs them.
    pub fn full_jitter(first: Duration, cap: Duration) -> Self {
        Self(Shape::Growing {
            first,
            cap,
            factor: 2.0,
            jitter: true,
        })
    }

    /// Growth from one pause to the next, of `exponential` and `full_jitter`; 2 by default.
    /// Elsewhere, and inside pauses already joined, it changes nothing. A factor below 1 or NaN is
    /// refused by [`validate`](Self::validate), and counts as 1 until then.
    #[must_use]
    pub fn factor(mut self, growth: f64) -> Self {
        if let Shape::Growing { factor, .. } = &mut self.0 {
            *factor = growth;
        }
        self
    }

    /// Pauses as `self` after the first `times` failures, then as `rest`, which counts its attempts
    /// from 1 again.
    #[must_use]
    pub fn then(self, times: u32, rest: Backoff) -> Self {
        Self(Shape::Then(times, Arc::new((self, rest))))
    }

    /// The shorter of the two, each drawn by itself.
    #[must_use]
    pub fn min(self, other: Backoff) -> Self {
        Self(Shape::Min(Arc::new((self, other))))
    }

    /// The longer of the two, each drawn by itself.
    #[must_use]
    pub fn max(self, other: Backoff) -> Self {
        Self(Shape::Max(Arc::new((self, other))))
    }

    /// The pause after failure number `attempt`, 1 being the first; 0 counts as 1. Never panics:
    /// what would overflow is cut off at the cap, or at `Duration::MAX`.
    pub fn pause(&self, attempt: u32, rng: &mut fastrand::Rng) -> Duration {
        self.evaluate(attempt, &mut |min, max| draw(min, max, rng))
    }

    /// The longest that [`pause`](Self::pause) can be for this attempt.
    pub fn longest(&self, attempt: u32) -> Duration {
        self.evaluate(attempt, &mut |_, max| max)
    }

    /// The shortest that [`pause`](Self::pause) can be for this attempt.
    pub fn shortest(&self, attempt: u32) -> Duration {
        self.evaluate(attempt, &mut |min, _| min)
    }

    /// Refuses a factor that is NaN, infinite or below 1, and a cap below the first pause.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        match &self.0 {
            Shape::Random { .. } => Ok(()),
            Shape::Growing { factor, .. } if !(factor.is_finite() && *factor >= 1.0) => Err(
                InvalidSetting::new("factor", "must be a number of at least 1"),
            ),
            Shape::Growing { first, cap, .. } if cap < first => Err(InvalidSetting::new(
                "cap",
                "must not be below the first pause",
            )),
            Shape::Growing { .. } => Ok(()),
            Shape::Then(_, pair) | Shape::Sum(pair) | Shape::Min(pair) | Shape::Max(pair) => {
                pair.0.validate().and_then(|()| pair.1.validate())
            }
        }
    }

    fn evaluate(
        &self,
        attempt: u32,
        choose: &mut dyn FnMut(Duration, Duration) -> Duration,
    ) -> Duration {
        match &self.0 {
            Shape::Random { min, max } => choose(*min, *max),
            Shape::Growing {
                first,
                cap,
                factor,
                jitter,
            } => {
                let longest = grown(*first, *cap, *factor, attempt);
                if *jitter {
                    choose(Duration::ZERO, longest)
                } else {
                    longest
                }
            }
            Shape::Then(times, pair) => match attempt.max(1).checked_sub(*times) {
                None | Some(0) => pair.0.evaluate(attempt, choose),
                Some(attempt) => pair.1.evaluate(attempt, choose),
            },
            Shape::Sum(pair) => pair
                .0
                .evaluate(attempt, choose)
                .saturating_add(pair.1.evaluate(attempt, choose)),
            Shape::Min(pair) => pair
                .0
                .evaluate(attempt, choose)
                .min(pair.1.evaluate(attempt, choose)),
            Shape::Max(pair) => pair
                .0
                .evaluate(attempt, choose)
                .max(pair.1.evaluate(attempt, choose)),
        }
    }
}

/// Both pauses, one after the other.
impl Add for Backoff {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(Shape::Sum(Arc::new((self, other))))
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Random {
        min: Duration,
        max: Duration,
    },
    Growing {
        first: Duration,
        cap: Duration,
        factor: f64,
        jitter: bool,
    },
    Then(u32, Arc<(Backoff, Backoff)>),
    Sum(Arc<(Backoff, Backoff)>),
    Min(Arc<(Backoff, Backoff)>),
    Max(Arc<(Backoff, Backoff)>),
}

/// `min(cap, first × factor^(attempt − 1))`, without overflow.
pub(super) fn grown(first: Duration, cap: Duration, factor: f64, attempt: u32) -> Duration {
    if first.is_zero() {
        return Duration::ZERO;
    }
    let factor = factor.max(1.0); // NaN, too, becomes 1
    let seconds = first.as_secs_f64() * factor.powf(f64::from(attempt.saturating_sub(1)));
    Duration::try_from_secs_f64(seconds).map_or(cap, |pause| pause.max(first).min(cap))
}

fn draw(min: Duration, max: Duration, rng: &mut fastrand::Rng) -> Duration {
    let span = (max - min).as_nanos();
    let nanos = match u64::try_from(span) {
        Ok(span) => u128::from(rng.u64(0..=span)),
        Err(_) => rng.u128(0..=span),
    };
    min.saturating_add(super::instant::nanoseconds(nanos))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::policy::{RetryPolicy, Stop};

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn pauses(backoff: &Backoff, n: u32) -> Vec<Duration> {
        let mut rng = fastrand::Rng::with_seed(1);
        (1..=n)
            .map(|attempt| backoff.pause(attempt, &mut rng))
            .collect()
    }

    #[test]
    fn a_fixed_pause_never_changes() {
        assert_eq!(pauses(&Backoff::fixed(ms(7)), 3), [ms(7); 3]);
    }

    #[test]
    fn an_exponential_pause_doubles_up_to_its_cap() {
        let backoff = Backoff::exponential(ms(10), ms(65));
        assert_eq!(
            pauses(&backoff, 5),
            [ms(10), ms(20), ms(40), ms(65), ms(65)]
        );
    }

    #[test]
    fn the_factor_sets_the_growth() {
        let backoff = Backoff::exponential(ms(10), ms(1000)).factor(3.0);
        assert_eq!(pauses(&backoff, 3), [ms(10), ms(30), ms(90)]);
    }

    #[test]
    fn full_jitter_uses_the_whole_range() {
        let backoff = Backoff::full_jitter(ms(100), ms(100));
        let all = pauses(&backoff, 1000);
        assert!(all.iter().all(|p| *p <= ms(100)));
        assert!(all.iter().any(|p| *p < ms(5)) && all.iter().any(|p| *p > ms(95)));
    }

    #[test]
    fn the_same_seed_gives_the_same_pauses() {
        let backoff = Backoff::full_jitter(ms(10), ms(1000));
        assert_eq!(pauses(&backoff, 20), pauses(&backoff, 20));
    }

    #[test]
    fn then_counts_the_rest_from_one() {
        let backoff = Backoff::fixed(ms(1)).then(2, Backoff::exponential(ms(10), ms(1000)));
        assert_eq!(pauses(&backoff, 4), [ms(1), ms(1), ms(10), ms(20)]);
    }

    #[test]
    fn a_sum_pauses_for_both() {
        let backoff = Backoff::fixed(ms(5)) + Backoff::exponential(ms(10), ms(20));
        assert_eq!(pauses(&backoff, 3), [ms(15), ms(25), ms(25)]);
    }

    #[test]
    fn min_and_max_choose_the_shorter_and_the_longer() {
        let growing = Backoff::exponential(ms(10), ms(1000));
        assert_eq!(
            pauses(&growing.clone().min(Backoff::fixed(ms(15))), 2),
            [ms(10), ms(15)]
        );
        assert_eq!(
            pauses(&growing.max(Backoff::fixed(ms(15))), 2),
            [ms(15), ms(20)]
        );
    }

    #[test]
    fn the_extremes_saturate() {
        let mut rng = fastrand::Rng::with_seed(1);
        let huge = Backoff::exponential(Duration::MAX, Duration::MAX).factor(f64::MAX);
        assert_eq!(huge.pause(u32::MAX, &mut rng), Duration::MAX);
        assert_eq!(
            (huge.clone() + huge).pause(u32::MAX, &mut rng),
            Duration::MAX
        );
        assert_eq!(
            Backoff::exponential(Duration::ZERO, Duration::MAX).pause(u32::MAX, &mut rng),
            Duration::ZERO
        );
        Backoff::random(Duration::ZERO, Duration::MAX).pause(0, &mut rng);
    }

    #[test]
    fn a_factor_that_is_no_growth_is_refused_by_name() {
        for factor in [f64::NAN, f64::INFINITY, 0.5, -2.0] {
            let backoff = Backoff::full_jitter(ms(1), ms(2)).factor(factor);
            assert_eq!(backoff.validate().unwrap_err().setting, "factor");
            let policy = RetryPolicy::new(backoff.clone(), Stop::after_attempts(3));
            assert_eq!(policy.validate().unwrap_err().setting, "factor");
            let joined = Backoff::fixed(ms(1)).then(3, backoff);
            assert_eq!(joined.validate().unwrap_err().setting, "factor");
        }
        assert_eq!(
            Backoff::exponential(ms(2), ms(1))
                .validate()
                .unwrap_err()
                .setting,
            "cap"
        );
    }
}
