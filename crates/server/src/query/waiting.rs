//! A caller may go away, and its time may be over, while something is done for it. Either way all
//! of that is dropped and no line behind it runs. Whoever waits is therefore watched by what is
//! dropped with it, and the end that nobody was told is counted.

use std::time::{Duration, Instant};

use tokio::time::error::Elapsed;

use crate::clock::now;
use crate::problem::ProblemKind;

tokio::task_local! {
    /// The moment at which the time of the request is over.
    static UNTIL: Option<Instant>;
}

/// Does something for a caller that is answered after `limit` at the latest, whatever has become of
/// it.
pub(crate) async fn within<F: Future>(limit: Duration, work: F) -> Result<F::Output, Elapsed> {
    let until = now().checked_add(limit);
    UNTIL.scope(until, tokio::time::timeout(limit, work)).await
}

/// The reason why there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The caller went away.
    Abandoned,
    /// `limits.request_timeout` was over.
    Late,
    /// The work for the caller panicked.
    Panicked,
}

impl NoAnswer {
    /// The problem of the service that it is; none where the caller went away as it liked.
    pub(super) fn problem(self) -> Option<ProblemKind> {
        match self {
            Self::Abandoned => None,
            Self::Late => Some(ProblemKind::Timeout),
            Self::Panicked => Some(ProblemKind::Internal),
        }
    }

    /// Returns the reason in words, for the operator.
    pub(super) fn cause(self) -> &'static str {
        match self {
            Self::Abandoned => "the caller went away",
            Self::Late => "no answer within `limits.request_timeout`",
            Self::Panicked => "what was done for it panicked; the log says where",
        }
    }
}

/// A caller that waits; dropped before it is [`over`](Self::over), it tells why and after how long.
pub(super) struct AnswerWatch<F: FnOnce(NoAnswer, Duration)> {
    since: Instant,
    until: Option<Instant>,
    tell: Option<F>,
}

impl<F: FnOnce(NoAnswer, Duration)> AnswerWatch<F> {
    pub(super) fn new(tell: F) -> Self {
        Self {
            since: now(),
            until: UNTIL.try_with(|until| *until).ok().flatten(),
            tell: Some(tell),
        }
    }

    /// There is an answer, after so long.
    pub(super) fn over(mut self) -> Duration {
        self.tell = None;
        now().saturating_duration_since(self.since)
    }
}

impl<F: FnOnce(NoAnswer, Duration)> Drop for AnswerWatch<F> {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            let now = now();
            let why = if std::thread::panicking() {
                NoAnswer::Panicked
            } else if self.until.is_some_and(|until| now >= until) {
                NoAnswer::Late
            } else {
                NoAnswer::Abandoned
            };
            tell(why, now.saturating_duration_since(self.since));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_went_away_is_told_from_who_ran_out_of_time() {
        let told = std::cell::Cell::new(None);
        let wait = async || {
            let _waiting = AnswerWatch::new(|why, took| told.set(Some((why, took))));
            std::future::pending::<()>().await;
        };
        let (soon, never) = (Duration::from_millis(20), Duration::from_secs(3600));
        assert!(within(soon, wait()).await.is_err());
        let (why, took) = told.take().unwrap();
        assert_eq!((why, took >= soon), (NoAnswer::Late, true));
        let gone = tokio::time::timeout(soon, within(never, wait())).await;
        assert!(gone.is_err());
        let (why, took) = told.take().unwrap();
        assert_eq!((why, took < never), (NoAnswer::Abandoned, true));
        let answered = async {
            AnswerWatch::new(|why, took| told.set(Some((why, took)))).over();
        };
        assert!(within(never, answered).await.is_ok());
        assert_eq!(told.take(), None);
    }
}
