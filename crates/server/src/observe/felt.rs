//! A service can have a healthy Redis, a healthy database and callers who get nothing: a table was
//! renamed, a right withdrawn. So health and page begin with what callers feel. Whether reads fail
//! is judged here, once a second, over the last ten; it begins and ends as an event that names the
//! query and the cause. Pure: counts go in, what changed comes out.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::health::{Check, Status};

/// Seconds that are judged together.
const WINDOW: usize = 10;
/// The share of failed reads from which they are said to fail,
const BEGINS: f64 = 0.05;
/// if at least so many did.
const AT_LEAST: u64 = 5;
/// Below this share they are said to be answered again.
const ENDS: f64 = 0.01;

/// The state of reads, as callers feel it.
#[derive(Debug, Default)]
pub(crate) struct Felt {
    state: Mutex<FeltState>,
}

#[derive(Debug, Default)]
struct FeltState {
    /// Reads and failed ones of each of the last seconds.
    seconds: VecDeque<(u64, u64)>,
    /// The newest failure that was not the caller's own.
    last: Option<ReadFailure>,
    failing: Option<Failing>,
}

#[derive(Debug, Clone)]
struct ReadFailure {
    query: String,
    cause: String,
}

impl ReadFailure {
    /// The cause with its query, whose name many causes hold already.
    fn told(&self) -> String {
        named(&self.query, &self.cause)
    }
}

/// A cause with the name of its query, once.
pub(crate) fn named(query: &str, cause: &str) -> String {
    let name = format!("`{query}`");
    if cause.contains(&name) {
        cause.to_owned()
    } else {
        format!("{name}: {cause}")
    }
}

#[derive(Debug)]
struct Failing {
    for_seconds: u64,
    failed: u64,
}

/// A change that callers feel.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum ReadsChange {
    /// Reads have begun to fail.
    Began {
        query: String,
        cause: String,
        share: f64,
    },
    /// Reads are answered again.
    Ended { lasted_ms: u64, failed: u64 },
}

impl ReadsChange {
    pub(crate) fn event(&self) -> &'static str {
        match self {
            Self::Began { .. } => "reads_failing",
            Self::Ended { .. } => "reads_answered",
        }
    }
}

impl Felt {
    /// A read failed, and not by its caller's fault. `cause` is what the caller was told: it holds
    /// no value.
    pub(crate) fn failed(&self, query: &str, cause: &str) {
        self.state.lock().last = Some(ReadFailure {
            query: query.to_owned(),
            cause: cause.to_owned(),
        });
    }

    /// A second is over, in which so many reads ended, and so many of them failed by no fault of
    /// their callers.
    pub(crate) fn second(&self, reads: u64, failed: u64) -> Option<ReadsChange> {
        let mut state = self.state.lock();
        if state.seconds.len() == WINDOW {
            state.seconds.pop_front();
        }
        state.seconds.push_back((reads, failed));
        let (share, failures) = state.share();
        if let Some(failing) = &mut state.failing {
            failing.for_seconds += 1;
            failing.failed += failed;
            if share >= ENDS {
                return None;
            }
            let ended = ReadsChange::Ended {
                lasted_ms: Duration::from_secs(failing.for_seconds).as_millis() as u64,
                failed: failing.failed,
            };
            state.failing = None;
            return Some(ended);
        }
        if share < BEGINS || failures < AT_LEAST {
            return None;
        }
        let last = state.last.clone()?;
        state.failing = Some(Failing {
            for_seconds: 0,
            failed: failures,
        });
        Some(ReadsChange::Began {
            query: last.query,
            cause: last.cause,
            share,
        })
    }

    /// Whether reads fail.
    pub(crate) fn fails(&self) -> bool {
        self.state.lock().failing.is_some()
    }

    /// Returns the check for health: degraded while reads fail.
    pub(crate) fn check(&self) -> Check {
        let state = self.state.lock();
        match (&state.failing, &state.last) {
            (Some(failing), Some(last)) => {
                let percent = state.share().0 * 100.0;
                Check::new(
                    Status::Degraded,
                    format!(
                        "{percent:.0} % of reads failed in the last {WINDOW} s, for {} s now; the newest failure: {}",
                        failing.for_seconds,
                        last.told()
                    ),
                )
            }
            _ => Check::new(Status::Healthy, "reads are answered"),
        }
    }
}

impl FeltState {
    /// The share of reads that failed, and how many.
    fn share(&self) -> (f64, u64) {
        let (reads, failed) = self
            .seconds
            .iter()
            .fold((0, 0), |(reads, failed), (r, f)| (reads + r, failed + f));
        let share = if reads == 0 {
            0.0
        } else {
            failed as f64 / reads as f64
        };
        (share, failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3_reads_that_fail_begin_and_end_once_and_name_query_and_cause() {
        let felt = Felt::default();
        assert_eq!(felt.second(40, 0), None);
        felt.failed("search", "the table is gone");
        let began = felt.second(40, 37);
        assert_eq!(
            began,
            Some(ReadsChange::Began {
                query: "search".to_owned(),
                cause: "the table is gone".to_owned(),
                share: 37.0 / 80.0,
            })
        );
        assert_eq!(felt.second(40, 40), None, "told once");
        let check = felt.check();
        assert_eq!(check.status, Status::Degraded);
        assert!(
            check.message.contains("`search`: the table is gone"),
            "{check:?}"
        );
        let mut changes: Vec<_> = (0..20).filter_map(|_| felt.second(40, 0)).collect();
        assert_eq!(changes.len(), 1, "{changes:?}");
        let ended = changes.pop();
        assert!(
            matches!(ended, Some(ReadsChange::Ended { failed: 77, .. })),
            "{ended:?}"
        );
        assert_eq!(felt.check().status, Status::Healthy);
    }

    #[test]
    fn s3_a_cause_that_names_its_query_is_told_without_naming_it_twice() {
        let felt = Felt::default();
        felt.failed("search", "the query `search` was refused by the database");
        felt.second(40, 37);
        let message = felt.check().message;
        assert_eq!(message.matches("search").count(), 1, "{message}");
        assert!(message.contains("was refused by the database"), "{message}");
        assert_eq!(
            named("sea", "the query `search` is wrong"),
            "`sea`: the query `search` is wrong"
        );
    }

    #[test]
    fn s3_a_few_failures_are_not_an_outage_and_no_reads_end_one() {
        let felt = Felt::default();
        felt.failed("search", "late");
        assert_eq!(felt.second(4, 4), None, "too few to be sure");
        assert_eq!(felt.second(1000, 4), None, "too small a share");
        assert!(felt.second(10, 100).is_some());
        let ended = (0..WINDOW).filter_map(|_| felt.second(0, 0)).count();
        assert_eq!(ended, 1, "nobody asks, so nobody is refused");
    }
}
