//! The time that one read may spend on Redis, altogether.
//!
//! A limit on each question would let a slow Redis delay a read by as many limits as the read has
//! questions: for what to believe, for the value, for its tags, for the lease. So a read carries
//! one allowance through all of them. Waiting for the value that another process is loading is not
//! charged: that is the load's time, not Redis's.
//!
//! With less left than a question has already taken, none is asked: it would only be late, and
//! count as a failure of a Redis that is well.

use std::time::Duration;

use super::answer::{RedisFailure, RedisResult};
use crate::clock::clock;

#[derive(Clone, Debug)]
pub(crate) struct RedisAllowance {
    left: Duration,
    /// The time that the slowest of the questions so far has taken.
    slowest: Duration,
}

impl RedisAllowance {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            left: limit,
            slowest: Duration::ZERO,
        }
    }

    /// Asks something within what is left, and takes off what it took.
    pub(super) async fn spend<T, F>(&mut self, ask: impl FnOnce(Duration) -> F) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        if self.left.is_zero() || self.left < self.slowest {
            return Err(RedisFailure::NoTime);
        }
        let began = clock();
        let answer = ask(self.left).await;
        self.charge(clock().saturating_duration_since(began));
        answer
    }

    /// Whether nothing has been asked yet.
    pub(super) fn is_unspent(&self) -> bool {
        self.slowest.is_zero()
    }

    /// Returns what may still be spent.
    pub(crate) fn left(&self) -> Duration {
        self.left
    }

    pub(crate) fn charge(&mut self, took: Duration) {
        self.charge_in_vain(took);
        // However short it was, something was asked.
        self.slowest = self.slowest.max(took).max(Duration::from_nanos(1));
    }

    /// Takes off what a question has taken that says nothing of how long another takes.
    pub(super) fn charge_in_vain(&mut self, took: Duration) {
        self.left = self.left.saturating_sub(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn k2_all_questions_of_a_read_share_one_limit() {
        let (limit, took) = (Duration::from_secs(60), Duration::from_millis(20));
        let asking = |limit: Duration| async move {
            tokio::time::sleep(took).await;
            Ok(limit)
        };
        let mut allowance = RedisAllowance::new(limit);
        assert_eq!(allowance.spend(asking).await.unwrap(), limit);
        assert!(allowance.spend(asking).await.unwrap() <= limit - took);
        assert!(allowance.spend(asking).await.unwrap() <= limit - took * 2);
        let mut allowance = RedisAllowance::new(took);
        allowance.spend(asking).await.unwrap();
        let asked = allowance.spend(asking).await;
        assert!(matches!(asked, Err(RedisFailure::NoTime)));
    }

    #[tokio::test]
    async fn k2_with_less_left_than_a_question_has_taken_none_is_asked() {
        let mut allowance = RedisAllowance::new(Duration::from_secs(60));
        assert!(allowance.is_unspent());
        allowance.charge(Duration::ZERO);
        assert!(!allowance.is_unspent(), "however short it was");
        allowance.charge(Duration::from_secs(30));
        allowance.spend(async |_| Ok(())).await.unwrap();
        let left = allowance.left;
        allowance.charge(Duration::from_secs(1));
        let unasked = allowance.spend(async |_| -> RedisResult<()> { panic!("it was asked") });
        assert!(matches!(unasked.await, Err(RedisFailure::NoTime)));
        assert_eq!(allowance.left, left - Duration::from_secs(1));
    }
}
