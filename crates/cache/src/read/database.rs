//! Asking the database for a value: by whose right, how long, and what its failing says.

use std::error::Error;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use steadfast_core::policy::breaker::Outcome;

use crate::classes::Class;
use crate::clock::{clock, is_in_runtime};
use crate::codec::message;
use crate::error::{CacheError, LoadError};
use crate::flight::nesting::{Loading, Nested};
use crate::guard::{self, LoadSlot, Permit, Rejection, Urgency};
use crate::parts::Inner;
use crate::sql::{Failure, SourceError};

impl Inner {
    /// Runs a loader by a permit and within its limit; answers with what it loaded and how long
    /// that took. The loader is told the slot that it goes by.
    pub(crate) async fn ask_database<T, L, F>(
        &self,
        asking: Asking<'_>,
        queued: impl FnOnce(),
        lent: impl Future<Output = Arc<Loading>>,
        load: L,
    ) -> Result<(T, Duration), CacheError>
    where
        L: FnOnce(Option<Arc<LoadSlot>>) -> F + Send,
        F: Future<Output = Result<T, LoadError>> + Send,
    {
        let Asking {
            class,
            limit,
            deadline,
            ..
        } = asking;
        if !is_in_runtime() {
            return Err(CacheError::NoRuntime);
        }
        let own = class
            .try_load()
            .map_err(|retry_after| CacheError::Unavailable { retry_after })?;
        let way = self.find_way(&asking, queued, lent).await?;
        let began = clock();
        let slot = way.slot();
        let work = async { load(slot.clone()).await };
        let guarded = AssertUnwindSafe(guard::during(slot.clone(), work)).catch_unwind();
        let ended = tokio::time::timeout_at(deadline.into(), guarded).await;
        let cost = clock().saturating_duration_since(began);
        let (blame, result) = match ended {
            Ok(Ok(Ok(value))) => (Blame::Question, Ok((value, cost))),
            Ok(Ok(Err(error))) => {
                let blame = Blame::of(&error);
                (blame, Err(CacheError::Load(error.into_inner().into())))
            }
            Ok(Err(panic)) => {
                let message = message(&*panic);
                (Blame::Question, Err(CacheError::LoadPanicked { message }))
            }
            // That is between the class and its own limit: of the database as a whole it says
            // nothing.
            Err(_late) => {
                if cost >= limit / 2 {
                    own.record(Outcome::Failure);
                }
                drop(way);
                self.stats.loaded(false, cost);
                return Err(CacheError::LoadTimeout { limit });
            }
        };
        own.record(blame.of_the_class());
        if let (Way::Permit(permit), Some(outcome)) = (way, blame.of_the_database()) {
            permit.record(outcome);
        }
        self.stats.loaded(result.is_ok(), cost);
        result
    }

    /// Finds a permit to go by: one of the guard, that of the load that it is nested in, or that of
    /// a load that waits for this one.
    async fn find_way<'a>(
        &self,
        asking: &'a Asking<'_>,
        queued: impl FnOnce(),
        lent: impl Future<Output = Arc<Loading>>,
    ) -> Result<Way<'a>, CacheError> {
        let (class, deadline) = (asking.class, asking.deadline);
        let own = async {
            match &asking.permission {
                Permission::Within(parent) => Ok(Way::Lent(parent.clone())),
                Permission::Nested(parent) => {
                    let slot = Loading::nested_slot(parent);
                    let slot = tokio::time::timeout_at(deadline.into(), slot).await;
                    slot.map(Way::Nested).map_err(|_late| {
                        let retry_after = Duration::from_millis(10);
                        CacheError::Overloaded { retry_after }
                    })
                }
                Permission::Guard(urgency) => {
                    let permit = self.guard.admit(class.queue, *urgency, deadline, queued);
                    permit
                        .await
                        .map(Way::Permit)
                        .map_err(|refusal| refused(class, refusal))
                }
            }
        };
        tokio::select! {
            biased;
            own = own => own,
            by = lent => Ok(Way::Lent(by)),
        }
    }
}

fn refused(class: &Class, refusal: Rejection) -> CacheError {
    match refusal {
        Rejection::Overloaded { retry_after } => CacheError::Overloaded { retry_after },
        Rejection::Class { bound, retry_after } => CacheError::ClassOverloaded {
            class: class.name.clone(),
            bound,
            retry_after,
        },
        Rejection::Unavailable { retry_after } => CacheError::Unavailable { retry_after },
    }
}

/// The request of a load for a permit.
pub(crate) struct Asking<'a> {
    pub(crate) class: &'a Class,
    pub(crate) permission: Permission,
    /// The time that it may take, and when it has to have ended.
    pub(crate) limit: Duration,
    pub(crate) deadline: Instant,
}

/// By what right a load asks the database.
pub(crate) enum Permission {
    /// By a permit of its own.
    Guard(Urgency),
    /// By that of the load that it is a part of.
    Within(Arc<Loading>),
    /// By that of the load that it is nested in, beside a few others.
    Nested(Arc<Loading>),
}

enum Way<'a> {
    Permit(Permit),
    Nested(Nested<'a>),
    Lent(Arc<Loading>),
}

impl Way<'_> {
    fn slot(&self) -> Option<Arc<LoadSlot>> {
        match self {
            Self::Permit(permit) => Some(permit.slot()),
            Self::Nested(nested) => nested.by.slot(),
            Self::Lent(by) => by.slot(),
        }
    }
}

/// Something that a loader's error says of what it asked, rather than of the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    /// Nothing: it has answered.
    Question,
    /// The database is out of reach, or passes through trouble.
    Database,
    /// Something else is, of which nobody here knows what it is; or the questions of the class take
    /// the database too long. Loads of other classes need not ask it, and may be quick.
    Other,
}

impl Blame {
    fn of(error: &LoadError) -> Self {
        if error.is_unavailable() {
            return Self::Other;
        }
        let mut cause: Option<&(dyn Error + 'static)> = Some(error.inner());
        let mut other = Self::Other;
        while let Some(error) = cause {
            if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
                cause = Some(&**shared);
                continue;
            }
            // A read within the load has failed: that is told to the class of that read.
            if error.is::<CacheError>() {
                other = Self::Question;
            }
            let failure = error.downcast_ref::<SourceError>().map(Failure::of_source);
            let failure = failure.or_else(|| error.downcast_ref().map(Failure::of_sql));
            match failure {
                Some(Failure::OutOfReach) => return Self::Database,
                Some(Failure::OutOfTime) => return other,
                Some(Failure::Lasting) => return Self::Question,
                None => {}
            }
            cause = match error.downcast_ref::<io::Error>() {
                Some(error) if is_of_a_connection(error.kind()) => return other,
                // Its `source` would be that of the error in it.
                Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
                None => error.source(),
            };
        }
        Self::Question
    }

    /// Returns what the guard's breaker is told; `None`: nothing.
    fn of_the_database(self) -> Option<Outcome> {
        match self {
            Self::Question => Some(Outcome::Success),
            Self::Database => Some(Outcome::Failure),
            Self::Other => None,
        }
    }

    /// Returns what the class's own breaker is told.
    fn of_the_class(self) -> Outcome {
        match self {
            Self::Question | Self::Database => Outcome::Success,
            Self::Other => Outcome::Failure,
        }
    }
}

/// Whether nobody answered. A file that is not there is an answer.
fn is_of_a_connection(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        kind,
        Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::NotConnected
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
            | Kind::BrokenPipe
            | Kind::TimedOut
            | Kind::UnexpectedEof
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("a driver's own error")]
    struct Driver(#[source] io::Error);

    #[test]
    fn k9_an_error_says_whether_it_was_the_question_the_database_or_something_else() {
        let of = |error: LoadError| Blame::of(&error);
        let io = |kind: io::ErrorKind| io::Error::from(kind);
        assert_eq!(of("no such thing".into()), Blame::Question);
        assert_eq!(of(LoadError::unavailable("503")), Blame::Other);
        // Of sqlx, whoever called it, by the rule that holds for our own calls.
        assert_eq!(of(sqlx::Error::Tls("no".into()).into()), Blame::Database);
        let ended = SourceError::Ended;
        assert_eq!(of(io::Error::other(ended).into()), Blame::Database);
        assert_eq!(of(sqlx::Error::RowNotFound.into()), Blame::Question);
        // A slow query is no reason to refuse other classes.
        let limit = Duration::from_secs(5);
        let slow = || SourceError::Timeout { limit };
        assert_eq!(of(slow().into()), Blame::Other);
        assert_eq!(of(sqlx::Error::PoolTimedOut.into()), Blame::Database);
        assert_eq!(of(io::Error::other(slow()).into()), Blame::Other);
        // Of other drivers, at any depth.
        let refused = || io(io::ErrorKind::ConnectionRefused);
        assert_eq!(of(refused().into()), Blame::Other);
        assert_eq!(of(Driver(refused()).into()), Blame::Other);
        assert_eq!(of(io::Error::other(Driver(refused())).into()), Blame::Other);
        assert_eq!(of(io(io::ErrorKind::NotFound).into()), Blame::Question);
        // Of a read within the load.
        let nested = |error: Arc<dyn Error + Send + Sync>| of(CacheError::Load(error).into());
        assert_eq!(nested(Arc::new(SourceError::Ended)), Blame::Database);
        assert_eq!(nested(Arc::new(Driver(refused()))), Blame::Question);
        assert_eq!(nested(Arc::new(slow())), Blame::Question);
    }
}
