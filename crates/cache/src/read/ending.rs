//! The ending of a read that memory could not answer.
//!
//! Such a read waits for a flight, but whoever holds something stale need not wait for its end: a
//! load that is slow, refused or failing is no reason to answer with nothing. So each reason to
//! take the stale value is weighed here, and nowhere else.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::view::View;
use crate::answer::{Answer, Source, StaleReason};
use crate::clock::clock;
use crate::error::CacheError;
use crate::flight::nesting::Loading;
use crate::flight::{Fallback, Follower, Loaded};
use crate::freshness::Ttl;
use crate::monotonic::Monotonic;

/// The ending of a read: a value, perhaps stale; or why there is none.
pub(crate) type Ending = Result<(Loaded, Option<StaleReason>), CacheError>;

/// Waits for the flight to land, but not past the soft limit if there is something stale to serve.
/// A load that waits so, `parent`, lets the flight go by its own permit.
pub(crate) async fn wait<V>(
    view: &View<V>,
    follower: Follower,
    held: Option<Fallback>,
    ttl: &Ttl,
    began: Instant,
    parent: Option<Arc<Loading>>,
) -> Ending
where
    V: Clone + Send + Sync + 'static,
{
    let Some(parent) = parent else {
        return wait_alone(view, follower, held, ttl, began).await;
    };
    let (flight, joined) = (follower.flight().clone(), follower.has_joined());
    let _waits = parent.wait_for(&flight)?;
    let mut waiting = pin!(wait_alone(view, follower, held, ttl, began));
    tokio::select! {
        biased;
        ending = &mut waiting => ending,
        _slot = Loading::nested_slot(&parent), if joined => {
            flight.lend(&parent);
            waiting.await
        }
    }
}

async fn wait_alone<V>(
    view: &View<V>,
    mut follower: Follower,
    held: Option<Fallback>,
    ttl: &Ttl,
    began: Instant,
) -> Ending
where
    V: Clone + Send + Sync + 'static,
{
    let mut fallback = held;
    let soft = began + ttl.soft_limit;
    let hard = began + ttl.hard_limit + MARGIN;
    loop {
        let ended = follower.look(|progress| {
            if fallback.is_none() {
                fallback = progress.fallback.clone();
            }
            // Again each time: it may have expired or been invalidated since.
            let held = fallback.take();
            fallback = held.filter(|held| view.may_serve_stale(held, ttl, Monotonic::now()));
            match (&progress.outcome, &fallback) {
                (Some(Ok(loaded)), _) => Some(Ok((loaded.clone(), None))),
                (Some(Err(error)), Some(held)) => {
                    Some(Ok((held.loaded.clone(), Some(reason(error)))))
                }
                (Some(Err(error)), None) => Some(Err(error.clone())),
                (None, Some(held)) if progress.queued => {
                    Some(Ok((held.loaded.clone(), Some(StaleReason::Overloaded))))
                }
                (None, _) => None,
            }
        });
        if let Some(ending) = ended {
            return ending;
        }
        let limit = if fallback.is_some() { soft } else { hard };
        if tokio::time::timeout_at(limit.into(), follower.changed())
            .await
            .is_err()
        {
            fallback = fallback.filter(|held| view.may_serve_stale(held, ttl, Monotonic::now()));
            if let Some(held) = fallback {
                return Ok((held.loaded, Some(StaleReason::Slow)));
            }
            if clock() >= hard {
                return Err(CacheError::LoadTimeout {
                    limit: ttl.hard_limit,
                });
            }
        }
    }
}

pub(crate) fn conclude<V: Clone + Send + Sync + 'static>(
    view: &View<V>,
    ending: Ending,
    default: Option<V>,
) -> Result<Answer<V>, CacheError> {
    let stats = &view.core().stats;
    let ending = ending.and_then(|(loaded, stale)| {
        // Whoever joins a flight brings the same type.
        view.answer(&loaded, stale).ok_or(CacheError::Abandoned)
    });
    match (ending, default) {
        (Ok(answer), _) => Ok(answer),
        (Err(error), Some(default)) => {
            stats.answered(Source::Default, true);
            let stale = Some(reason(&error));
            Ok(Answer {
                value: Some(default),
                source: Source::Default,
                age: Duration::ZERO,
                fresh_for: Duration::ZERO,
                stale,
            })
        }
        (Err(error), None) => {
            stats.failed(&error);
            Err(error)
        }
    }
}

impl<V: Clone + Send + Sync + 'static> View<V> {
    /// Answers with what a flight has brought, and counts it.
    pub(crate) fn answer(&self, loaded: &Loaded, stale: Option<StaleReason>) -> Option<Answer<V>> {
        self.answer_at(Monotonic::now(), loaded, stale)
    }

    /// The same, at this moment.
    pub(crate) fn answer_at(
        &self,
        now: Monotonic,
        loaded: &Loaded,
        stale: Option<StaleReason>,
    ) -> Option<Answer<V>> {
        let Loaded { entry, source } = loaded;
        let value = entry.value::<V>()?;
        if *source != Source::Database {
            entry.count_hit();
        }
        self.core().stats.answered(*source, stale.is_some());
        let age = entry.age(now).into();
        Some(entry.answer(value, *source, stale, age))
    }
}

fn reason(error: &CacheError) -> StaleReason {
    match error {
        CacheError::Overloaded { .. } | CacheError::ClassOverloaded { .. } => {
            StaleReason::Overloaded
        }
        _ => StaleReason::Failed,
    }
}

/// The leader ends by the hard limit; a follower allows for what comes after it.
const MARGIN: Duration = Duration::from_millis(500);
