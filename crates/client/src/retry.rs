//! Retries for any async function, composed as tenacity composes them.
//!
//! The client repeats its own commands by itself, where that is safe. This is for what stands
//! around it: a look-up that needs several commands, a call to another service. It decides nothing
//! about safety; the function it repeats must bear it.

use std::fmt;
use std::time::{Duration, Instant};

use steadfast_core::policy::retry::{GiveUp, Step};
use steadfast_core::policy::{Backoff, Budget, RetryPolicy, RetryState, Stop};

use crate::clock;
use crate::settings::random_seed;

type OnError<E> = Box<dyn Fn(&E) -> bool + Send + Sync>;
type OnResult<T> = Box<dyn Fn(&T) -> bool + Send + Sync>;
type BeforePause<E> = Box<dyn Fn(&Pause<'_, E>) + Send + Sync>;

/// Repeats an async function.
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Backoff, Retry, Stop};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let ms = Duration::from_millis;
/// let wait = Backoff::fixed(ms(1)) + Backoff::random(Duration::ZERO, ms(2));
/// let retry = Retry::new(wait, Stop::after_attempts(5).or(Stop::after_delay(ms(2_000))))
///     .if_error(|error: &std::io::Error| error.kind() == std::io::ErrorKind::TimedOut)
///     .if_result(|found: &Option<u32>| found.is_none());
///
/// let mut attempts = 0;
/// let found = retry
///     .run(async || {
///         attempts += 1;
///         Ok(if attempts < 3 { None } else { Some(attempts) })
///     })
///     .await;
/// assert_eq!(found.unwrap(), Some(3));
/// # });
/// ```
pub struct Retry<'a, T, E> {
    policy: RetryPolicy,
    deadline: Option<Duration>,
    if_error: Option<OnError<E>>,
    if_result: Option<OnResult<T>>,
    before_pause: Option<BeforePause<E>>,
    budget: Option<&'a Budget>,
    seed: Option<u64>,
}

/// The state of a retry before a pause, for a callback that logs or counts.
#[derive(Debug)]
pub struct Pause<'a, E> {
    /// Attempts so far.
    pub attempts: u32,
    /// The length of the pause.
    pub pause: Duration,
    /// The error of the last attempt; `None` if it was its result that was refused.
    pub error: Option<&'a E>,
}

/// No attempt succeeded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetryError<T, E: fmt::Display + fmt::Debug> {
    /// The last attempt failed.
    #[error("{error} (attempt {attempts}, {why})")]
    Failed {
        /// The error of the last attempt.
        error: E,
        /// Attempts made.
        attempts: u32,
        /// The reason why there was no further one.
        why: Exhausted,
    },
    /// The last result was refused by the predicate.
    #[error("no acceptable result (attempt {attempts}, {why})")]
    Refused {
        /// The last result.
        result: T,
        /// Attempts made.
        attempts: u32,
        /// The reason why there was no further one.
        why: Exhausted,
    },
}

/// The reason why there was no further attempt.
///
/// ```
/// use std::time::Duration;
/// use steadfast::{Backoff, Exhausted, Retry, RetryError, Stop};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let wait = Backoff::fixed(Duration::from_millis(1));
/// let retry = Retry::new(wait, Stop::after_attempts(2)).if_result(|found: &u32| *found < 5);
/// match retry.run(async || Ok::<_, std::io::Error>(3)).await {
///     Err(RetryError::Refused { result, why: Exhausted::Attempts, .. }) => assert_eq!(result, 3),
///     other => panic!("{other:?}"),
/// }
/// # });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exhausted {
    /// The attempts are used up.
    Attempts,
    /// The time is used up.
    Time,
    /// The deadline has passed, or would within the next pause.
    Deadline,
    /// The budget that it shares with others is empty.
    Budget,
    /// The error is not one to repeat on.
    NotRetried,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attempts => "the attempts are used up",
            Self::Time => "the time is used up",
            Self::Deadline => "the deadline leaves no room for another",
            Self::Budget => "the retry budget is empty",
            Self::NotRetried => "the error is not one to repeat on",
        })
    }
}

impl From<GiveUp> for Exhausted {
    fn from(give_up: GiveUp) -> Self {
        match give_up {
            GiveUp::Attempts => Self::Attempts,
            GiveUp::Delay => Self::Time,
            GiveUp::Deadline => Self::Deadline,
        }
    }
}

impl<T, E> fmt::Debug for Retry<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("policy", &self.policy)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<'a, T, E: fmt::Display + fmt::Debug> Retry<'a, T, E> {
    /// Waits as `wait` says, until `stop` says so. Every error is repeated on, no result is.
    pub fn new(wait: Backoff, stop: Stop) -> Self {
        Self {
            policy: RetryPolicy::new(wait, stop),
            deadline: None,
            if_error: None,
            if_result: None,
            before_pause: None,
            budget: None,
            seed: None,
        }
    }

    /// Repeats only on errors for which this holds. Default: on all.
    pub fn if_error(mut self, predicate: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.if_error = Some(Box::new(predicate));
        self
    }

    /// Repeats on results for which this holds. Default: on none.
    pub fn if_result(mut self, predicate: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        self.if_result = Some(Box::new(predicate));
        self
    }

    /// Called before each pause.
    pub fn before_pause(
        mut self,
        callback: impl Fn(&Pause<'_, E>) + Send + Sync + 'static,
    ) -> Self {
        self.before_pause = Some(Box::new(callback));
        self
    }

    /// No pause begins that would end after so long. A running attempt is not cut short: give it a
    /// limit of its own.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Draws each repeat on a budget that others may share, so that together they cannot multiply
    /// the load of an outage.
    pub fn budget(mut self, budget: &'a Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// The seed of the jitter, for tests that must repeat: each run then makes the same pauses.
    /// Default: random, and another one for each run, so that callers which failed together do not
    /// come back together.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Runs `attempt` until it succeeds or there is no further attempt.
    ///
    /// # Errors
    /// The last error, or the last result if that was refused, with the attempts made and why there
    /// was no further one.
    pub async fn run(
        &self,
        mut attempt: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, RetryError<T, E>> {
        let started = clock::now();
        let deadline = self.deadline.and_then(|limit| started.checked_add(limit));
        let rng = fastrand::Rng::with_seed(self.seed.unwrap_or_else(random_seed));
        let mut state = RetryState::new(self.policy.clone(), started, deadline, rng);
        if let Some(budget) = self.budget {
            budget.deposit(1);
        }
        loop {
            let outcome = attempt().await;
            let again = match &outcome {
                Ok(result) => self.if_result.as_ref().is_some_and(|wants| wants(result)),
                Err(error) => self.if_error.as_ref().is_none_or(|wants| wants(error)),
            };
            let outcome = match outcome {
                Ok(result) if !again => return Ok(result),
                outcome => outcome,
            };
            let next = if again {
                self.next(&mut state, clock::now())
            } else {
                Err(Exhausted::NotRetried)
            };
            let pause = match next {
                Ok(pause) => pause,
                Err(why) => return Err(give_up(outcome, state.attempts().max(1), why)),
            };
            if let Some(before_pause) = &self.before_pause {
                before_pause(&Pause {
                    attempts: state.attempts(),
                    pause,
                    error: outcome.as_ref().err(),
                });
            }
            drop(outcome);
            clock::sleep(pause).await;
        }
    }

    fn next(&self, state: &mut RetryState, now: Instant) -> Result<Duration, Exhausted> {
        let pause = match state.next(now) {
            Step::Pause(pause) => pause,
            Step::GiveUp(why) => return Err(why.into()),
        };
        match self.budget {
            Some(budget) => budget
                .try_withdraw(now)
                .map(|()| pause)
                .map_err(|_| Exhausted::Budget),
            None => Ok(pause),
        }
    }
}

fn give_up<T, E: fmt::Display + fmt::Debug>(
    outcome: Result<T, E>,
    attempts: u32,
    why: Exhausted,
) -> RetryError<T, E> {
    match outcome {
        Ok(result) => RetryError::Refused {
            result,
            attempts,
            why,
        },
        Err(error) => RetryError::Failed {
            error,
            attempts,
            why,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use steadfast_core::policy::BudgetConfig;

    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[tokio::test(start_paused = true)]
    async fn it_stops_after_its_attempts_and_hands_over_the_last_error() {
        let mut calls = 0;
        let retry = Retry::<(), _>::new(Backoff::fixed(seconds(1)), Stop::after_attempts(4));
        let begun = clock::now();
        let error = retry
            .run(async || {
                calls += 1;
                Err(format!("failure {calls}"))
            })
            .await
            .unwrap_err();
        assert_eq!(calls, 4);
        assert_eq!(clock::now() - begun, seconds(3));
        let RetryError::Failed {
            error,
            attempts,
            why,
        } = error
        else {
            panic!("it failed");
        };
        assert_eq!(
            (error.as_str(), attempts, why),
            ("failure 4", 4, Exhausted::Attempts)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_is_not_to_be_repeated_on_ends_it_at_once() {
        let mut calls = 0;
        let retry = Retry::<(), _>::new(Backoff::fixed(seconds(1)), Stop::never())
            .if_error(|error: &String| error.contains("passing"));
        let error = retry
            .run(async || {
                calls += 1;
                Err(if calls < 3 { "passing" } else { "lasting" }.to_owned())
            })
            .await
            .unwrap_err();
        assert_eq!(calls, 3);
        assert!(
            error.to_string().contains("not one to repeat on"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_begins_that_would_outlast_the_deadline() {
        let begun = clock::now();
        let retry =
            Retry::<(), String>::new(Backoff::exponential(seconds(1), seconds(60)), Stop::never())
                .deadline(seconds(10));
        let error = retry.run(async || Err("no".into())).await.unwrap_err();
        assert!(clock::now() - begun <= seconds(10));
        assert!(matches!(
            error,
            RetryError::Failed {
                why: Exhausted::Deadline,
                ..
            }
        ));
    }

    /// The pauses of one run, in which every attempt fails.
    async fn pauses(retry: Retry<'_, (), String>) -> Vec<Duration> {
        let made = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let kept = Arc::clone(&made);
        let retry = retry.before_pause(move |pause| kept.lock().push(pause.pause));
        retry.run(async || Err("no".into())).await.unwrap_err();
        let made = made.lock();
        made.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_failed_together_do_not_come_back_together() {
        let retry = || {
            let wait = Backoff::full_jitter(seconds(1), seconds(60));
            Retry::new(wait, Stop::after_attempts(5))
        };
        let all = futures_util::future::join_all((0..100).map(|_| pauses(retry()))).await;
        let first: std::collections::BTreeSet<_> = all.iter().map(|pauses| pauses[0]).collect();
        assert!(first.len() > 95, "{} of 100", first.len());
        // A test that must repeat says so.
        assert_eq!(pauses(retry().seed(7)).await, pauses(retry().seed(7)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_share_a_budget_and_the_callback_sees_each_pause() {
        let config = BudgetConfig {
            ratio: 0.0,
            per_second: 0.001,
            ..BudgetConfig::default()
        };
        let budget = Budget::new(config, clock::now()).unwrap();
        let pauses = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&pauses);
        let retry =
            Retry::<(), String>::new(Backoff::fixed(Duration::from_millis(1)), Stop::never())
                .budget(&budget)
                .before_pause(move |pause| {
                    assert!(pause.error.is_some());
                    counted.fetch_add(1, Ordering::Relaxed);
                });
        let error = retry.run(async || Err("no".into())).await.unwrap_err();
        assert!(matches!(
            error,
            RetryError::Failed {
                why: Exhausted::Budget,
                ..
            }
        ));
        assert_eq!(f64::from(pauses.load(Ordering::Relaxed)), config.cap);
    }
}
