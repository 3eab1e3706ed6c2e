//! The settings of the guard, the urgency of a load, and the reasons why it is refused.

use std::fmt;
use std::time::Duration;

use steadfast_core::policy::InvalidSetting;

/// Bounds on what the cache asks of the database.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GuardOptions {
    /// Loads at once. Default 16; never more than the database has connections for them, 10 by
    /// default.
    pub concurrency: usize,
    /// Loads a second, with bursts of a tenth of that. Default 2 000.
    pub rate: f64,
    /// Loads waiting for admission at most; past it the least wanted are refused. Default 8 192;
    /// each costs some 200 bytes.
    pub waiting: usize,
    /// A load waits for admission while others are admitted: this long at most since the last one
    /// was, or eight times as long as loads take, if that is longer. Default 500 ms. So a healthy
    /// database drains the queue, and before one that stands still nobody waits for long. As long
    /// as no load has ended yet, since the first have connections to open, it is ten times as long.
    /// The load's own deadline always counts: its class's hard limit, less what the load itself
    /// will need (twice what others took, an eighth at least and half at most). Who could not be
    /// admitted by then at the pace of late is refused at once.
    pub wait: Duration,
    /// Loads at once that are nested in one: those that its loader makes necessary by reading
    /// through the cache. They go by its permit, so without a bound one load could ask everything
    /// of the database at once. Default 4, at each level of nesting.
    pub nested: usize,
    /// After an outage, the share of the rate that refreshes may use grows from a tenth to all over
    /// this time. Default 5 s.
    pub ramp: Duration,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self {
            concurrency: 16,
            rate: 2000.0,
            waiting: 8192,
            wait: Duration::from_millis(500),
            nested: 4,
            ramp: Duration::from_secs(5),
        }
    }
}

impl GuardOptions {
    /// The defaults with these two bounds.
    #[must_use]
    pub fn new(concurrency: usize, rate: f64) -> Self {
        Self {
            concurrency,
            rate,
            ..Self::default()
        }
    }

    /// Refuses what cannot work, naming the setting as that of the cache.
    pub(crate) fn validate(&self) -> Result<(), InvalidSetting> {
        if self.nested == 0 || self.nested > NESTED_MOST {
            return Err(InvalidSetting::new(
                "guard.nested",
                "must be from 1 to 10 000",
            ));
        }
        check_concurrency("guard.concurrency", self.concurrency)?;
        check_rate("guard.rate", self.rate)
    }
}

/// Bounds of one class of data, within those of the whole. Without them a class may use all that
/// [`GuardOptions`] allow.
///
/// ```
/// # use steadfast_cache::{CacheBuilder, ClassGuard, GuardOptions};
/// # fn f(builder: CacheBuilder) -> CacheBuilder {
/// let mut whole = GuardOptions::new(8, 500.0);
/// whole.waiting = 1000;
/// builder.guard(whole).class_guard("report", ClassGuard::new(2, 5.0))
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ClassGuard {
    /// Loads of the class at once.
    pub concurrency: usize,
    /// Loads of the class a second, with bursts of a tenth of that.
    pub rate: f64,
}

impl ClassGuard {
    /// Bounds of these two kinds.
    #[must_use]
    pub fn new(concurrency: usize, rate: f64) -> Self {
        Self { concurrency, rate }
    }

    /// Refuses what cannot work, naming the setting.
    pub(crate) fn validate(&self) -> Result<(), InvalidSetting> {
        check_concurrency("concurrency", self.concurrency)?;
        check_rate("rate", self.rate)
    }
}

/// The bound of a [`ClassGuard`] that refuses a load.
///
/// ```
/// use steadfast_cache::{CacheError, ClassBound};
///
/// fn advice(error: &CacheError) -> Option<&'static str> {
///     match error {
///         CacheError::ClassOverloaded { bound: ClassBound::Rate(_), .. } => Some("ask it less"),
///         CacheError::ClassOverloaded { .. } => Some("ask fewer at once"),
///         _ => None,
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ClassBound {
    /// [`ClassGuard::concurrency`].
    Concurrency(usize),
    /// [`ClassGuard::rate`].
    Rate(f64),
}

impl fmt::Display for ClassBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Concurrency(1) => write!(f, "1 load at once"),
            Self::Concurrency(most) => write!(f, "{most} loads at once"),
            Self::Rate(rate) => write!(f, "{rate} loads a second"),
        }
    }
}

fn check_concurrency(setting: &'static str, concurrency: usize) -> Result<(), InvalidSetting> {
    match concurrency {
        0 => Err(InvalidSetting::new(setting, "must be at least 1")),
        _ => Ok(()),
    }
}

fn check_rate(setting: &'static str, rate: f64) -> Result<(), InvalidSetting> {
    if rate.is_finite() && rate >= 0.1 {
        return Ok(());
    }
    Err(InvalidSetting::new(
        setting,
        "must be at least 0.1 a second",
    ))
}

/// The urgency with which a load is wanted; the greater goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// There is something to serve meanwhile; the hotter the key, the more it matters.
    Refresh { hit_count: u32 },
    /// A caller has nothing without it.
    Needed,
}

/// Not now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rejection {
    Overloaded {
        retry_after: Duration,
    },
    /// By a bound of the class.
    Class {
        bound: ClassBound,
        retry_after: Duration,
    },
    Unavailable {
        retry_after: Duration,
    },
}

const NESTED_MOST: usize = 10_000;
