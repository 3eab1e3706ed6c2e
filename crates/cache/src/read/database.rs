//! Asking the database for a value: by whose right, how long, and what its failing says.

use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use steadfast_core::policy::breaker::Outcome;

use crate::classes::Class;
use crate::clock::clock;
use crate::codec::message;
use crate::error::{CacheError, LoadError};
use crate::flight::nesting::{Loading, Nested};
use crate::guard::{self, LoadSlot, Permit, Rejection, Urgency};
use crate::parts::Inner;
use crate::sql::SourceError;

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
        let own = class
            .try_load()
            .map_err(|retry_after| CacheError::Unavailable { retry_after })?;
        let way = match self.find_way(&asking, queued, lent).await {
            Ok(way) => way,
            Err(refused) => {
                class.record(own, None);
                return Err(refused);
            }
        };
        let began = clock();
        let slot = way.slot();
        let work = async { load(slot.clone()).await };
        let guarded = AssertUnwindSafe(guard::during(slot.clone(), work)).catch_unwind();
        let ended = tokio::time::timeout_at(deadline.into(), guarded).await;
        let cost = clock().saturating_duration_since(began);
        let (outcome, result) = match ended {
            Ok(Ok(Ok(value))) => (Outcome::Success, Ok((value, cost))),
            Ok(Ok(Err(LoadError(error)))) => {
                let error: Arc<dyn Error + Send + Sync> = Arc::from(error);
                (outcome_of(&*error), Err(CacheError::Load(error)))
            }
            Ok(Err(panic)) => {
                let message = message(&*panic);
                (Outcome::Success, Err(CacheError::LoadPanicked { message }))
            }
            // That is between the class and its own limit: of the database as a whole it says
            // nothing.
            Err(_late) => {
                class.record(own, (cost >= limit / 2).then_some(Outcome::Failure));
                drop(way);
                self.stats.loaded(false, cost);
                return Err(CacheError::LoadTimeout { limit });
            }
        };
        class.record(own, Some(Outcome::Success));
        if let Way::Permit(permit) = way {
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

fn outcome_of(error: &(dyn Error + Send + Sync + 'static)) -> Outcome {
    if is_infrastructure(error) {
        Outcome::Failure
    } else {
        Outcome::Success
    }
}

/// Whether a loader's error says something about the database, rather than about the question.
fn is_infrastructure(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    let mut error: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = error {
        if let Some(source) = cause.downcast_ref::<SourceError>() {
            return source.is_passing();
        }
        if let Some(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed) =
            cause.downcast_ref::<sqlx::Error>()
        {
            return true;
        }
        error = cause.source();
    }
    false
}
