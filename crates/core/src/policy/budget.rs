//! Three attempts a call are kind to one call and cruel to a server: in an outage they triple the
//! load just when it can least be borne. A budget lets retries be a small *share* of the calls
//! made, so that they help when few calls fail and vanish when most do. The few a second that come
//! by themselves keep a quiet client able to retry at all.
//!
//! All clones of a client share one budget, so it is lock-free, and on the healthy path, with the
//! balance at its cap, a deposit is two relaxed loads.
//!
//! How it counts: tokens are millionths in one integer, `level`, which is the balance *less what
//! time has added since the start*. So time needs no bookkeeping: the balance at `t` is
//! `min(cap, level + per_second × t)`, and a withdrawal is one compare-and-swap that also cuts the
//! balance to its cap. (The idea is that of GCRA: keep a moment, not a count and a clock.)
//!
//! ```
//! # #![allow(clippy::disallowed_methods)]
//! use std::time::Instant;
//! use steadfast_core::policy::budget::{Budget, BudgetConfig};
//!
//! let now = Instant::now();
//! let config = BudgetConfig {
//!     cap: 1.0,
//!     per_second: 0.0,
//!     ..BudgetConfig::default()
//! };
//! let budget = Budget::new(config, now)?;
//! assert!(budget.try_withdraw(now).is_ok());
//! assert!(budget.try_withdraw(now).is_err());
//! budget.deposit(10); // ten calls were made: a tenth of them may be retried
//! assert!(budget.try_withdraw(now).is_ok());
//! # Ok::<(), steadfast_core::policy::InvalidSetting>(())
//! ```

use std::time::{Duration, Instant};

use super::{
    InvalidSetting,
    atomic::{AtomicI64, Ordering::Relaxed},
};

/// How many retries calls may draw on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetConfig {
    /// Retries earned by each call, 0 to 1. Default: 0.1. The most that retries can add to the load
    /// in the long run.
    pub ratio: f64,
    /// Retries that come by themselves each second, 0 to a million. Default: 10.
    pub per_second: f64,
    /// The most retries that can be saved up, 1 to a million. Default: 100, which is the size of
    /// the burst that the first moment of an outage can see. It is also the balance at the start.
    pub cap: f64,
}

impl BudgetConfig {
    /// Refuses what is out of range, NaN included, by name.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let checks = [
            (
                (0.0..=1.0).contains(&self.ratio),
                "ratio",
                "must be from 0 to 1",
            ),
            (
                (0.0..=1e6).contains(&self.per_second),
                "per_second",
                "must be from 0 to 1 000 000",
            ),
            (
                (1.0..=1e6).contains(&self.cap),
                "cap",
                "must be from 1 to 1 000 000",
            ),
        ];
        match checks.into_iter().find(|(holds, ..)| !holds) {
            Some((_, setting, why)) => Err(InvalidSetting::new(setting, why)),
            None => Ok(()),
        }
    }
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            ratio: 0.1,
            per_second: 10.0,
            cap: 100.0,
        }
    }
}

/// Tokens for retries, shared by all clones of a client. Settings are kept to a millionth.
#[derive(Debug)]
pub struct Budget {
    start: Instant,
    per_call: i64,
    per_second: i64,
    cap: i64,
    /// The balance, less what time has added since `start`.
    level: AtomicI64,
    /// A level from which the balance is at its cap for certain, as of the last withdrawal. Only
    /// spares writes.
    full: AtomicI64,
}

impl Budget {
    /// A full budget. Errors: a setting that [`BudgetConfig::validate`] refuses.
    pub fn new(config: BudgetConfig, now: Instant) -> Result<Self, InvalidSetting> {
        config.validate()?;
        let cap = millionths(config.cap);
        Ok(Self {
            start: now,
            per_call: millionths(config.ratio),
            per_second: millionths(config.per_second),
            cap,
            level: AtomicI64::new(cap),
            full: AtomicI64::new(cap),
        })
    }

    /// So many calls were made; retries are not counted.
    #[inline]
    pub fn deposit(&self, calls: u64) {
        if self.level.load(Relaxed) >= self.full.load(Relaxed) {
            return;
        }
        let earned = i64::try_from(calls)
            .unwrap_or(i64::MAX)
            .saturating_mul(self.per_call);
        self.level.fetch_add(earned.min(self.cap), Relaxed);
    }

    /// Takes a token for one retry. Errors: [`Exhausted`], if less than a whole one is left.
    pub fn try_withdraw(&self, now: Instant) -> Result<(), Exhausted> {
        let accrued = self.accrued(now);
        let mut level = self.level.load(Relaxed);
        loop {
            let balance = (level + accrued).min(self.cap);
            if balance < TOKEN {
                return Err(Exhausted {
                    retry_after: self.time_to_earn(TOKEN - balance),
                });
            }
            match self.level.compare_exchange_weak(
                level,
                balance - TOKEN - accrued,
                Relaxed,
                Relaxed,
            ) {
                Ok(_) => break,
                Err(current) => level = current,
            }
        }
        self.full.store(self.cap - accrued, Relaxed);
        Ok(())
    }

    /// Tokens to be had now.
    pub fn balance(&self, now: Instant) -> f64 {
        (self.level.load(Relaxed) + self.accrued(now)).min(self.cap) as f64 / TOKEN as f64
    }

    /// Returns the tokens that time has added since the start: at most 2⁶¹, which is 70 years at
    /// the highest rate.
    fn accrued(&self, now: Instant) -> i64 {
        let nanos = now.saturating_duration_since(self.start).as_nanos();
        let accrued = nanos.saturating_mul(self.per_second.unsigned_abs().into()) / NANOS;
        i64::try_from(accrued).unwrap_or(i64::MAX).min(1 << 61)
    }

    fn time_to_earn(&self, amount: i64) -> Option<Duration> {
        let (amount, rate) = (
            u128::from(amount.unsigned_abs()),
            u128::from(self.per_second.unsigned_abs()),
        );
        (rate > 0).then(|| super::instant::nanoseconds((amount * NANOS).div_ceil(rate)))
    }
}

/// No retry can be afforded now: too large a share of the calls fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the retry budget is used up")]
pub struct Exhausted {
    /// When time alone will have earned a token, if nobody else takes it; `None` if time earns
    /// none.
    pub retry_after: Option<Duration>,
}

/// The weight of one retry.
const TOKEN: i64 = 1_000_000;
const NANOS: u128 = 1_000_000_000;

fn millionths(tokens: f64) -> i64 {
    (tokens * TOKEN as f64).round() as i64
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::disallowed_methods, clippy::unwrap_used)]
    use super::*;

    fn budget(ratio: f64, per_second: f64, cap: f64) -> (Budget, Instant) {
        let now = Instant::now();
        (
            Budget::new(
                BudgetConfig {
                    ratio,
                    per_second,
                    cap,
                },
                now,
            )
            .unwrap(),
            now,
        )
    }

    fn withdraw_all(budget: &Budget, now: Instant) -> usize {
        (0..)
            .take_while(|_| budget.try_withdraw(now).is_ok())
            .count()
    }

    #[test]
    fn c10_a_tenth_of_the_calls_may_be_retried() {
        let (budget, now) = budget(0.1, 0.0, 100.0);
        assert_eq!(withdraw_all(&budget, now), 100);
        budget.deposit(1);
        assert_eq!(withdraw_all(&budget, now), 0);
        (0..199).for_each(|_| budget.deposit(1));
        assert_eq!(withdraw_all(&budget, now), 20);
    }

    #[test]
    fn c10_ten_a_second_come_by_themselves() {
        let (budget, now) = budget(0.1, 10.0, 100.0);
        assert_eq!(withdraw_all(&budget, now), 100);
        assert_eq!(withdraw_all(&budget, now + Duration::from_secs(3)), 30);
        // Also when asked for in the smallest steps: no fraction is lost.
        let later = now + Duration::from_secs(3);
        let got = (0..=100_000)
            .filter(|n| {
                budget
                    .try_withdraw(later + *n * Duration::from_micros(10))
                    .is_ok()
            })
            .count();
        assert_eq!(got, 10);
    }

    #[test]
    fn no_more_is_saved_than_the_cap() {
        let (budget, now) = budget(0.5, 10.0, 7.0);
        budget.deposit(u64::MAX);
        assert_eq!(withdraw_all(&budget, now), 7);
        budget.deposit(1000);
        assert_eq!(withdraw_all(&budget, now), 7);
        assert_eq!(
            withdraw_all(&budget, now + Duration::from_secs(1_000_000_000)),
            7
        );
    }

    #[test]
    fn an_exhausted_budget_says_when_to_come_back() {
        let (budget, now) = budget(0.1, 10.0, 1.0);
        budget.try_withdraw(now).unwrap();
        let exhausted = budget
            .try_withdraw(now + Duration::from_millis(30))
            .unwrap_err();
        assert_eq!(exhausted.retry_after, Some(Duration::from_millis(70)));
        assert!(
            budget
                .try_withdraw(now + Duration::from_millis(100))
                .is_ok()
        );
    }

    #[test]
    fn without_time_there_is_no_promise_when() {
        let (budget, now) = budget(0.1, 0.0, 1.0);
        budget.try_withdraw(now).unwrap();
        assert_eq!(budget.try_withdraw(now).unwrap_err().retry_after, None);
    }

    #[test]
    fn a_full_budget_is_not_written_to() {
        let (budget, now) = budget(0.1, 10.0, 5.0);
        let later = now + Duration::from_secs(3600);
        budget.try_withdraw(later).unwrap();
        budget.deposit(10);
        let level = budget.level.load(Relaxed);
        budget.deposit(10);
        assert_eq!(budget.level.load(Relaxed), level);
        assert_eq!(budget.balance(later), 5.0);
    }

    #[test]
    fn a_bad_setting_is_refused_by_name() {
        for (config, setting) in [
            (
                BudgetConfig {
                    ratio: f64::NAN,
                    ..BudgetConfig::default()
                },
                "ratio",
            ),
            (
                BudgetConfig {
                    ratio: -0.1,
                    ..BudgetConfig::default()
                },
                "ratio",
            ),
            (
                BudgetConfig {
                    per_second: f64::INFINITY,
                    ..BudgetConfig::default()
                },
                "per_second",
            ),
            (
                BudgetConfig {
                    cap: 0.5,
                    ..BudgetConfig::default()
                },
                "cap",
            ),
        ] {
            assert_eq!(
                Budget::new(config, Instant::now()).unwrap_err().setting,
                setting
            );
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    #![allow(clippy::disallowed_methods, clippy::unwrap_used)]
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn two_who_draw_on_one_token_do_not_both_get_it() {
        loom::model(|| {
            let now = Instant::now();
            let budget = BudgetConfig {
                ratio: 1.0,
                per_second: 0.0,
                cap: 1.0,
            };
            let budget = Arc::new(Budget::new(budget, now).unwrap());
            let other = Arc::clone(&budget);
            let other = thread::spawn(move || u32::from(other.try_withdraw(now).is_ok()));
            let mine = u32::from(budget.try_withdraw(now).is_ok());
            assert_eq!(mine + other.join().unwrap(), 1);
        });
    }

    #[test]
    fn a_deposit_beside_a_withdrawal_is_neither_lost_nor_doubled() {
        loom::model(|| {
            let now = Instant::now();
            let config = BudgetConfig {
                ratio: 1.0,
                per_second: 1.0,
                cap: 2.0,
            };
            let budget = Arc::new(Budget::new(config, now).unwrap());
            budget.try_withdraw(now).unwrap();
            let other = Arc::clone(&budget);
            let other = thread::spawn(move || other.deposit(1));
            budget.try_withdraw(now).unwrap();
            other.join().unwrap();
            assert_eq!(budget.balance(now), 1.0);
        });
    }

    #[test]
    fn time_that_passes_for_two_at_once_is_paid_out_once() {
        loom::model(|| {
            let now = Instant::now();
            let budget = BudgetConfig {
                ratio: 1.0,
                per_second: 1.0,
                cap: 2.0,
            };
            let budget = Arc::new(Budget::new(budget, now).unwrap());
            budget.try_withdraw(now).unwrap();
            budget.try_withdraw(now).unwrap();
            let later = now + Duration::from_secs(1);
            let other = Arc::clone(&budget);
            let other = thread::spawn(move || u32::from(other.try_withdraw(later).is_ok()));
            let mine = u32::from(budget.try_withdraw(later).is_ok());
            assert_eq!(mine + other.join().unwrap(), 1);
            assert!(budget.balance(later) >= 0.0);
        });
    }
}
