//! Every number that shapes a breaker, refused once at the door when it cannot work.

use std::time::Duration;

use crate::policy::InvalidSetting;

/// When a breaker opens, for how long, and how it lets calls back in.
///
/// ```
/// use steadfast_core::policy::BreakerConfig;
///
/// let config = BreakerConfig { consecutive_failures: Some(3), ..BreakerConfig::default() };
/// assert_eq!(config.validate(), Ok(()));
/// let config = BreakerConfig { failure_rate: f64::NAN, ..config };
/// assert_eq!(config.validate().unwrap_err().setting, "failure_rate");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerConfig {
    /// The time over which rates are taken. Default: 10 s. Longer is calmer, and slower to notice.
    pub window: Duration,
    /// Calls within the window below which no rate is judged. Default: 20, so 2 calls a second are
    /// enough to be judged.
    pub minimum_calls: u32,
    /// The share of calls that failed, above 0 up to 1, from which the breaker opens. Default: 0.5.
    pub failure_rate: f64,
    /// So many failures with no success between them open the breaker, whatever the rate; it is
    /// what works when calls are few. Default: 5. `None`: off.
    pub consecutive_failures: Option<u32>,
    /// A call that ends well but takes longer than this is slow. Default: 500 ms, half the default
    /// deadline of a call. `None`: no call is slow. A server meant to run slow scripts wants more,
    /// or `None`.
    pub slow_call: Option<Duration>,
    /// The share of calls that were slow, above 0 up to 1, from which the breaker opens. Default:
    /// 0.8.
    pub slow_rate: f64,
    /// How long the breaker stays open at first. Default: 100 ms.
    pub open_first: Duration,
    /// The longest it stays open. Default: 5 s. It is also the longest a probe may keep its place
    /// without reporting.
    pub open_cap: Duration,
    /// The growth of the open time from one opening to the next, at least 1. Default: 2.
    pub open_factor: f64,
    /// Closed for so long, the open time starts from `open_first` again. Default: 5 s, so that a
    /// server which comes and goes faster than that is left alone for longer and longer.
    pub healthy_after: Duration,
    /// Calls admitted at one time while half-open. Default: 3.
    pub probes: u32,
    /// Probes that must succeed for the breaker to close. Default: 2. The client's own probe closes
    /// it alone.
    pub probe_successes: u32,
    /// After closing, the time over which admission grows to unlimited; no call is delayed by more.
    /// Default: 100 ms. Zero: no ramp.
    pub ramp: Duration,
    /// Calls a second admitted when the ramp begins. Default: 1 000.
    pub ramp_start: f64,
}

impl BreakerConfig {
    /// Refuses what cannot work: a rate or a factor out of range (NaN is), a count or a time of
    /// zero, a cap below the first open time. Names the first such setting.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let share = |rate: f64| rate > 0.0 && rate <= 1.0;
        let checks = [
            (
                !self.window.is_zero(),
                "window",
                "must be longer than nothing",
            ),
            (
                self.minimum_calls > 0,
                "minimum_calls",
                "must be at least 1",
            ),
            (
                share(self.failure_rate),
                "failure_rate",
                "must be above 0 and at most 1",
            ),
            (
                self.consecutive_failures != Some(0),
                "consecutive_failures",
                "must be at least 1, or off",
            ),
            (
                self.slow_call != Some(Duration::ZERO),
                "slow_call",
                "must be longer than nothing, or off",
            ),
            (
                share(self.slow_rate),
                "slow_rate",
                "must be above 0 and at most 1",
            ),
            (
                !self.open_first.is_zero(),
                "open_first",
                "must be longer than nothing",
            ),
            (
                self.open_cap >= self.open_first,
                "open_cap",
                "must not be below open_first",
            ),
            (
                self.open_factor.is_finite() && self.open_factor >= 1.0,
                "open_factor",
                "must be a number of at least 1",
            ),
            (self.probes > 0, "probes", "must be at least 1"),
            (
                self.probe_successes > 0,
                "probe_successes",
                "must be at least 1",
            ),
            (
                self.ramp_start.is_finite() && self.ramp_start > 0.0,
                "ramp_start",
                "must be a number above 0",
            ),
        ];
        match checks.into_iter().find(|(holds, ..)| !holds) {
            Some((_, setting, why)) => Err(InvalidSetting::new(setting, why)),
            None => Ok(()),
        }
    }

    /// Did a call that ended well after `took` succeed, or was it slow?
    pub fn judge(&self, took: Duration) -> super::Outcome {
        match self.slow_call {
            Some(limit) if took > limit => super::Outcome::Slow,
            _ => super::Outcome::Success,
        }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            minimum_calls: 20,
            failure_rate: 0.5,
            consecutive_failures: Some(5),
            slow_call: Some(Duration::from_millis(500)),
            slow_rate: 0.8,
            open_first: Duration::from_millis(100),
            open_cap: Duration::from_secs(5),
            open_factor: 2.0,
            healthy_after: Duration::from_secs(5),
            probes: 3,
            probe_successes: 2,
            ramp: Duration::from_millis(100),
            ramp_start: 1_000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(BreakerConfig::default().validate(), Ok(()));
    }

    #[test]
    fn each_number_that_cannot_work_is_refused_by_name() {
        type Spoil = fn(&mut BreakerConfig);
        let cases: [(&str, Spoil); 16] = [
            ("window", |c| c.window = Duration::ZERO),
            ("minimum_calls", |c| c.minimum_calls = 0),
            ("failure_rate", |c| c.failure_rate = f64::NAN),
            ("failure_rate", |c| c.failure_rate = 0.0),
            ("failure_rate", |c| c.failure_rate = 1.01),
            ("consecutive_failures", |c| c.consecutive_failures = Some(0)),
            ("slow_call", |c| c.slow_call = Some(Duration::ZERO)),
            ("slow_rate", |c| c.slow_rate = f64::NAN),
            ("open_first", |c| c.open_first = Duration::ZERO),
            ("open_cap", |c| c.open_cap = Duration::from_millis(99)),
            ("open_factor", |c| c.open_factor = f64::NAN),
            ("open_factor", |c| c.open_factor = 0.9),
            ("probes", |c| c.probes = 0),
            ("probe_successes", |c| c.probe_successes = 0),
            ("ramp_start", |c| c.ramp_start = 0.0),
            ("ramp_start", |c| c.ramp_start = f64::INFINITY),
        ];
        for (setting, spoil) in cases {
            let mut config = BreakerConfig::default();
            spoil(&mut config);
            assert_eq!(config.validate().map_err(|e| e.setting), Err(setting));
        }
    }
}
