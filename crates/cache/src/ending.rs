//! How a read ends that memory could not answer.
//!
//! It waits for a flight, but whoever holds something stale need not wait for its end: a load that is slow, refused or failing is no reason to
//! answer with nothing. So each reason to take the stale value is weighed here, and nowhere else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::answer::{Answer, Source, StaleReason};
use crate::cache::Inner;
use crate::error::CacheError;
use crate::flight::{Loaded, Passenger};
use crate::freshness::Ttl;
use crate::moment::Moment;
use crate::tier::memory::Entry;

/// How a read ended: a value, perhaps stale; or why there is none.
pub(crate) type Ending<V> = Result<(Loaded<V>, Option<StaleReason>), CacheError>;

/// Waits for the flight to land, but not past the soft limit if there is something stale to serve.
pub(crate) async fn wait<V>(
    inner: &Inner<V>,
    mut passenger: Passenger<V>,
    held: Option<Arc<Entry<V>>>,
    class: &Ttl,
    began: Instant,
) -> Ending<V>
where
    V: Clone + Send + Sync + 'static,
{
    let mut fallback = held.map(|entry| Loaded {
        entry,
        source: Source::Memory,
    });
    let soft = began + class.soft_limit;
    let hard = began + class.hard_limit + MARGIN;
    loop {
        {
            let progress = passenger.borrow_and_update();
            if let Some(found) = &progress.fallback
                && fallback.is_none()
                && inner.may_serve_stale(&found.entry, class, Moment::now())
            {
                fallback = Some(found.clone());
            }
            match (&progress.outcome, &fallback) {
                (Some(Ok(loaded)), _) => return Ok((loaded.clone(), None)),
                (Some(Err(error)), Some(fallback)) => {
                    return Ok((fallback.clone(), Some(reason(error))));
                }
                (Some(Err(error)), None) => return Err(error.clone()),
                (None, Some(fallback)) if progress.queued => {
                    return Ok((fallback.clone(), Some(StaleReason::Overloaded)));
                }
                (None, _) => {}
            }
        }
        let limit = if fallback.is_some() { soft } else { hard };
        match tokio::time::timeout_at(limit.into(), passenger.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(CacheError::Closed),
            Err(_) => {
                return match fallback {
                    Some(fallback) => Ok((fallback, Some(StaleReason::Slow))),
                    None => Err(CacheError::LoadTimeout {
                        limit: class.hard_limit,
                    }),
                };
            }
        }
    }
}

pub(crate) fn conclude<V: Clone>(
    inner: &Inner<V>,
    ending: Ending<V>,
    default: Option<V>,
) -> Result<Answer<V>, CacheError> {
    match (ending, default) {
        (Ok((loaded, stale)), _) => {
            if loaded.source != Source::Database {
                loaded.entry.count_hit();
            }
            inner.stats.answered(loaded.source, stale.is_some());
            let age = loaded.entry.age(Moment::now());
            Ok(Answer::of(&loaded.entry, loaded.source, stale, age.into()))
        }
        (Err(error), Some(default)) => {
            inner.stats.answered(Source::Default, true);
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
            inner.stats.failed(&error);
            Err(error)
        }
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

/// The leader ends by the hard limit; a passenger allows for what comes after it.
const MARGIN: Duration = Duration::from_millis(500);
