//! The time for which a value may be believed, decided without a clock.
//!
//! Every rule about age is a function of durations here (a hit compares with what they gave when
//! its value was stored), so that each can be tested to the millisecond and none depends on which
//! clock, process or tier the value came from. Ages are measured by the monotonic clock in memory
//! and across processes by Redis's own clock, of what remains of the time to live; the calendar of
//! another host is never asked, so setting its clock changes nothing.

use std::time::Duration;

use steadfast_core::policy::InvalidSetting;

/// Time to live and limits of one class of data.
///
/// ```
/// use std::time::Duration;
/// use steadfast_cache::Ttl;
///
/// let user = Ttl { fresh: Duration::from_secs(360), ..Ttl::default() };
/// assert!(user.validate().is_ok());
/// assert!(Ttl { stale: Duration::ZERO, ..user }.never_stale());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ttl {
    /// A value is served without question for this long after it was loaded. Default 6 minutes.
    pub fresh: Duration,
    /// After that it is kept for this long, to be served marked as stale when a load is slow,
    /// refused or fails. Zero: the class never serves stale. Default 1 hour; costs memory in both
    /// tiers.
    pub stale: Duration,
    /// Share of `fresh`, from 0 to 1, by which a value's own time may be shortened at random, so
    /// that values loaded together do not expire together. Default 0.1.
    pub jitter: f64,
    /// Absence (the loader answered `None`) is remembered for this long; zero: not at all. Default
    /// 10 s.
    pub negative: Duration,
    /// The eagerness with which a hot value is loaded again before it expires (the `beta` of
    /// XFetch); zero: never. Default 1; at 1, a value that took 20 ms to load is typically
    /// refreshed within its last 20 ms to 100 ms. When it may begin is settled by the class that
    /// loads the value.
    pub early_refresh: f64,
    /// A caller that holds a stale value waits this long for a load, then takes the stale one while
    /// the load goes on. Default 100 ms; zero serves stale at once and refreshes behind it.
    pub soft_limit: Duration,
    /// A load, with its waiting for leases and admission, is given up after this long. Default 5 s.
    pub hard_limit: Duration,
    /// After a failed load, a value that can be served as stale, wherever it is held, is not loaded
    /// again for so long; then one reader tries. Default 1 s; zero: each reader tries, and waits
    /// for it up to `soft_limit`. Where there is nothing to serve, a key whose load has failed
    /// three times in a row is refused
    /// ([`CacheError::Unavailable`](crate::CacheError::Unavailable)) between tries, for 50 ms at
    /// first, twice as long each time, and no longer than this.
    pub retry_after: Duration,
}

impl Default for Ttl {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(360),
            stale: Duration::from_secs(3600),
            jitter: 0.1,
            negative: Duration::from_secs(10),
            early_refresh: 1.0,
            soft_limit: Duration::from_millis(100),
            hard_limit: Duration::from_secs(5),
            retry_after: Duration::from_secs(1),
        }
    }
}

impl Ttl {
    /// Whether the class may never serve a stale value.
    #[must_use]
    pub fn never_stale(&self) -> bool {
        self.stale.is_zero()
    }

    /// Refuses settings that cannot mean anything.
    ///
    /// # Errors
    /// Names the setting and what is wrong with it.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let refuse = |setting, why| Err(InvalidSetting::new(setting, why));
        if self.fresh < Duration::from_millis(1) {
            return refuse("fresh", "must be at least 1 ms");
        }
        for (setting, time) in [
            ("fresh", self.fresh),
            ("stale", self.stale),
            ("negative", self.negative),
        ] {
            if time > LONGEST {
                return refuse(setting, "must be at most 10 years");
            }
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return refuse("jitter", "must be a share from 0 to 1");
        }
        if !(0.0..=1000.0).contains(&self.early_refresh) {
            return refuse("early_refresh", "must be from 0 to 1000");
        }
        if self.hard_limit.is_zero() || self.hard_limit > Duration::from_secs(3600) {
            return refuse("hard_limit", "must be above zero and at most 1 hour");
        }
        if self.retry_after > Duration::from_secs(3600) {
            return refuse("retry_after", "must be at most 1 hour");
        }
        if self.soft_limit > self.hard_limit {
            return refuse("soft_limit", "must not be above hard_limit");
        }
        Ok(())
    }

    /// The life of a value loaded just now; `unit` is a random number in `0..1`.
    pub(crate) fn life(&self, absent: bool, unit: f64) -> Life {
        if absent {
            return Life {
                fresh: self.negative,
                keep: self.negative,
                own: false,
            };
        }
        let fresh = self.jittered(self.fresh, unit);
        Life {
            fresh,
            keep: fresh + self.stale,
            own: false,
        }
    }

    /// The life of a value loaded just now that has chosen its own. A class that never serves stale
    /// does not by a value's leave either.
    pub(crate) fn own_life(&self, chosen: Lifetime, unit: f64) -> Life {
        let fresh = self.jittered(chosen.fresh.min(LONGEST), unit);
        let stale = match self.never_stale() {
            true => Duration::ZERO,
            false => chosen.stale.min(LONGEST),
        };
        Life {
            fresh,
            keep: fresh + stale,
            own: true,
        }
    }

    fn jittered(&self, fresh: Duration, unit: f64) -> Duration {
        fresh.mul_f64(1.0 - self.jitter * unit.clamp(0.0, 1.0))
    }
}

/// The life that a value chooses for itself; see [`View::lifetime_by`](crate::View::lifetime_by). A
/// [`Duration`] becomes one that is fresh for so long, and never stale.
///
/// ```
/// use std::time::Duration;
/// use steadfast_cache::Lifetime;
///
/// let until_it_ends: Lifetime = Duration::from_secs(30).into();
/// assert_eq!(until_it_ends.stale, Duration::ZERO);
/// let longer = Lifetime { stale: Duration::from_secs(600), ..until_it_ends };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The value is served without question for this long after it was loaded. Zero, with `stale`
    /// zero too: it is not kept at all.
    pub fresh: Duration,
    /// After that it is kept for this long, to be served marked as stale, unless its class never
    /// serves stale.
    pub stale: Duration,
}

impl From<Duration> for Lifetime {
    fn from(fresh: Duration) -> Self {
        let stale = Duration::ZERO;
        Self { fresh, stale }
    }
}

/// The times for which one value is fresh and for which it is kept, both counted from its loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) fresh: Duration,
    pub(crate) keep: Duration,
    /// Whether the value has chosen it, and not its class.
    pub(crate) own: bool,
}

/// The use that may be made of a value of some age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    Fresh,
    /// Only when nothing better can be had in time, and marked.
    Stale,
    Expired,
}

impl Life {
    /// No longer than a class allows: what another has loaded may live longer.
    pub(crate) fn within(self, class: &Ttl, absent: bool) -> Self {
        let (fresh, stale) = if absent {
            (class.negative, Duration::ZERO)
        } else {
            (class.fresh, class.stale)
        };
        let fresh = self.fresh.min(fresh);
        Self {
            fresh,
            keep: self.keep.min(fresh + stale),
            own: self.own,
        }
    }

    pub(crate) fn judge(self, age: Duration) -> Freshness {
        if age < self.fresh {
            Freshness::Fresh
        } else if age < self.keep {
            Freshness::Stale
        } else {
            Freshness::Expired
        }
    }

    /// Up to this age a value is fresh and XFetch cannot say yes, so that nearly every hit is
    /// spared the random number.
    pub(crate) fn certain(self, cost: Duration, beta: f64) -> Duration {
        let ahead = cost.as_secs_f64() * (beta * LARGEST_DRAW);
        let ahead = Duration::try_from_secs_f64(ahead).unwrap_or(Duration::MAX);
        self.fresh.saturating_sub(ahead)
    }

    /// Whether a fresh value should be loaded again already (XFetch: Vattani, Chierichetti,
    /// Lowenstein, "Optimal probabilistic cache stampede prevention", VLDB 2015). `unit` is a
    /// random number in `0..1`.
    pub(crate) fn refresh_early(self, age: Duration, cost: Duration, beta: f64, unit: f64) -> bool {
        let draw = -unit.max((-LARGEST_DRAW).exp()).ln();
        let ahead = cost.as_secs_f64() * (beta * draw);
        beta > 0.0 && age.as_secs_f64() + ahead >= self.fresh.as_secs_f64()
    }
}

const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The random factor of XFetch is cut off here: beyond it lies one draw in nine million.
const LARGEST_DRAW: f64 = 16.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn k4_fresh_then_stale_then_expired_to_the_millisecond() {
        let life = Ttl {
            jitter: 0.0,
            fresh: 100 * MS,
            stale: 50 * MS,
            ..Ttl::default()
        }
        .life(false, 0.7);
        assert_eq!(life.judge(99 * MS), Freshness::Fresh);
        assert_eq!(life.judge(100 * MS), Freshness::Stale);
        assert_eq!(life.judge(149 * MS), Freshness::Stale);
        assert_eq!(life.judge(150 * MS), Freshness::Expired);
    }

    #[test]
    fn k4_a_class_without_stale_goes_from_fresh_to_expired() {
        let life = Ttl {
            jitter: 0.0,
            fresh: 100 * MS,
            stale: Duration::ZERO,
            ..Ttl::default()
        }
        .life(false, 0.0);
        assert_eq!(life.judge(100 * MS), Freshness::Expired);
    }

    #[test]
    fn k4_absence_is_never_stale() {
        let life = Ttl {
            negative: 10 * MS,
            ..Ttl::default()
        }
        .life(true, 0.5);
        assert_eq!(life.judge(9 * MS), Freshness::Fresh);
        assert_eq!(life.judge(10 * MS), Freshness::Expired);
    }

    #[test]
    fn each_time_is_refused_by_its_own_name() {
        let ttl = Ttl {
            negative: LONGEST + MS,
            ..Ttl::default()
        };
        assert_eq!(ttl.validate().unwrap_err().setting, "negative");
    }

    #[test]
    fn not_a_number_is_refused_by_name() {
        let ttl = Ttl {
            jitter: f64::NAN,
            ..Ttl::default()
        };
        assert_eq!(ttl.validate().unwrap_err().setting, "jitter");
        let ttl = Ttl {
            early_refresh: f64::NAN,
            ..Ttl::default()
        };
        assert_eq!(ttl.validate().unwrap_err().setting, "early_refresh");
    }

    proptest! {
        #[test]
        fn k4_jitter_only_shortens_and_stays_within_its_share(jitter in 0.0..=1.0f64, unit in 0.0..1.0f64, fresh_ms in 1u64..10_000_000) {
            let ttl = Ttl { jitter, fresh: Duration::from_millis(fresh_ms), ..Ttl::default() };
            let life = ttl.life(false, unit);
            prop_assert!(life.fresh <= ttl.fresh);
            prop_assert!(life.fresh.as_secs_f64() >= ttl.fresh.as_secs_f64() * (1.0 - jitter) - 1e-6);
            prop_assert_eq!(life.keep, life.fresh + ttl.stale);
        }

        #[test]
        fn k4_what_is_certain_is_never_refreshed_early_and_what_is_not_may_be(age_ms in 0u64..1000, cost_ms in 0u64..100, beta in 0.0..4.0f64, draw in 0.0..20.0f64) {
            let life = Life { fresh: 1000 * MS, keep: 2000 * MS, own: false };
            let (age, cost) = (Duration::from_millis(age_ms), Duration::from_millis(cost_ms));
            let (certain, hair) = (life.certain(cost, beta), Duration::from_micros(1));
            if life.refresh_early(age, cost, beta, (-draw).exp()) {
                prop_assert!(age + hair >= certain);
            }
            if beta > 0.0 {
                prop_assert!(life.refresh_early(certain + hair, cost, beta, 0.0));
            }
        }
    }

    #[test]
    fn k4_early_refresh_grows_likelier_towards_the_end() {
        let life = Life {
            fresh: 1000 * MS,
            keep: 2000 * MS,
            own: false,
        };
        let mut rng = fastrand::Rng::with_seed(7);
        let mut share = |age| {
            (0..10_000)
                .filter(|_| life.refresh_early(age, 20 * MS, 1.0, rng.f64()))
                .count()
        };
        let (far, near, last) = (share(800 * MS), share(960 * MS), share(999 * MS));
        assert!(far < 10, "{far}");
        assert!((800..2000).contains(&near), "{near}");
        assert!(last > 9000, "{last}");
    }
}
