//! A service can have a healthy Redis, a healthy database and callers who get nothing: a table was
//! renamed, a right withdrawn. So health and page begin with what callers feel. Whether reads fail
//! is judged here, once a second, over the last ten, and where callers are few by the last reads
//! however old they are; it begins and ends as an event that names the query and the cause. Only an
//! answered read ends it: silence is no answer. Pure: counts go in, what changed comes out.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::health::{Check, Status};

/// Seconds that are judged together.
const WINDOW: usize = 10;
/// The share of failed reads from which they are said to fail,
const BEGINS: f64 = 0.05;
/// if at least so many did; so many in a row are enough, however long they took.
const AT_LEAST: u64 = 5;
/// Below this share they are said to be answered again, if any was.
const ENDS: f64 = 0.01;

/// The state of reads, as callers feel it.
#[derive(Debug, Default)]
pub(crate) struct Felt {
    state: Mutex<FeltState>,
}

#[derive(Debug, Default)]
struct FeltState {
    /// The last seconds.
    seconds: VecDeque<FeltSecond>,
    /// Reads that have failed since one was answered.
    in_a_row: u64,
    /// The newest failure that was not the caller's own.
    last: Option<ReadFailure>,
    failing: Option<Failing>,
}

/// The reads that ended within some time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FeltSecond {
    pub(crate) reads: u64,
    pub(crate) answered: u64,
    /// Those that failed by no fault of their callers.
    pub(crate) failed: u64,
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

    /// A second is over, in which these reads ended.
    pub(crate) fn second(&self, second: FeltSecond) -> Option<ReadsChange> {
        let mut state = self.state.lock();
        if state.seconds.len() == WINDOW {
            state.seconds.pop_front();
        }
        state.seconds.push_back(second);
        state.in_a_row = match second.answered {
            0 => state.in_a_row + second.failed,
            _ => 0,
        };
        let in_a_row = state.in_a_row;
        let late = state.late();
        let share = late.share();
        if let Some(failing) = &mut state.failing {
            failing.for_seconds += 1;
            failing.failed += second.failed;
            if late.answered == 0 || share >= ENDS {
                return None;
            }
            let ended = ReadsChange::Ended {
                lasted_ms: Duration::from_secs(failing.for_seconds).as_millis() as u64,
                failed: failing.failed,
            };
            state.failing = None;
            return Some(ended);
        }
        let many = share >= BEGINS && late.failed >= AT_LEAST;
        if !many && in_a_row < AT_LEAST {
            return None;
        }
        let last = state.last.clone()?;
        state.failing = Some(Failing {
            for_seconds: 0,
            failed: late.failed.max(in_a_row),
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
        let late = state.late();
        let (Some(failing), Some(last)) = (&state.failing, &state.last) else {
            let said = match late.reads {
                0 => "no reads of late",
                _ => "reads are answered",
            };
            return Check::new(Status::Healthy, said);
        };
        let percent = late.share() * 100.0;
        let said = match late.reads {
            0 => "no reads of late, and those before failed".to_owned(),
            _ => format!("{percent:.0} % of reads failed in the last {WINDOW} s"),
        };
        let (seconds, newest) = (failing.for_seconds, last.told());
        let message = format!("{said}, for {seconds} s now; the newest failure: {newest}");
        Check::new(Status::Degraded, message)
    }
}

impl FeltState {
    /// All reads of the last seconds.
    fn late(&self) -> FeltSecond {
        let all = self.seconds.iter();
        all.fold(FeltSecond::default(), |sum, second| FeltSecond {
            reads: sum.reads + second.reads,
            answered: sum.answered + second.answered,
            failed: sum.failed + second.failed,
        })
    }
}

impl FeltSecond {
    /// The share of reads that failed.
    fn share(self) -> f64 {
        match self.reads {
            0 => 0.0,
            reads => self.failed as f64 / reads as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second in which all reads were answered but those that failed.
    fn of(reads: u64, failed: u64) -> FeltSecond {
        FeltSecond {
            reads,
            answered: reads - failed,
            failed,
        }
    }

    #[test]
    fn s3_reads_that_fail_begin_and_end_once_and_name_query_and_cause() {
        let felt = Felt::default();
        assert_eq!(felt.second(of(40, 0)), None);
        felt.failed("search", "the table is gone");
        let began = felt.second(of(40, 37));
        assert_eq!(
            began,
            Some(ReadsChange::Began {
                query: "search".to_owned(),
                cause: "the table is gone".to_owned(),
                share: 37.0 / 80.0,
            })
        );
        assert_eq!(felt.second(of(40, 40)), None, "told once");
        let check = felt.check();
        assert_eq!(check.status, Status::Degraded);
        assert!(
            check.message.contains("`search`: the table is gone"),
            "{check:?}"
        );
        let mut changes: Vec<_> = (0..20).filter_map(|_| felt.second(of(40, 0))).collect();
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
        felt.second(of(40, 37));
        let message = felt.check().message;
        assert_eq!(message.matches("search").count(), 1, "{message}");
        assert!(message.contains("was refused by the database"), "{message}");
        assert_eq!(
            named("sea", "the query `search` is wrong"),
            "`sea`: the query `search` is wrong"
        );
    }

    #[test]
    fn s3_a_few_failures_are_not_an_outage_and_no_reads_end_none() {
        let felt = Felt::default();
        assert_eq!(felt.check().message, "no reads of late");
        felt.failed("search", "late");
        assert_eq!(felt.second(of(4, 4)), None, "too few to be sure");
        assert_eq!(felt.second(of(1000, 4)), None, "too small a share");
        assert_eq!(felt.check().message, "reads are answered");
        assert!(felt.second(of(100, 90)).is_some());
        let silence = (0..WINDOW * 3).filter_map(|_| felt.second(of(0, 0)));
        assert_eq!(silence.count(), 0, "nobody was answered");
        let check = felt.check();
        assert_eq!(check.status, Status::Degraded);
        assert!(check.message.contains("no reads of late"), "{check:?}");
        let ended = felt.second(of(1, 0));
        assert!(
            matches!(ended, Some(ReadsChange::Ended { failed: 98, .. })),
            "{ended:?}"
        );
        assert_eq!(felt.check().message, "reads are answered");
    }

    #[test]
    fn s3_few_reads_that_all_fail_are_an_outage_however_far_apart() {
        let felt = Felt::default();
        felt.failed("search", "refused");
        let mut began = Vec::new();
        for second in 0..120 {
            let failed = u64::from(second % 15 == 0);
            began.extend(felt.second(of(failed, failed)));
        }
        assert_eq!(began.len(), 1, "{began:?}");
        assert!(matches!(began[0], ReadsChange::Began { .. }), "{began:?}");
        // A caller who asks wrongly was not answered, and does not end it.
        let wrongly = FeltSecond {
            reads: 1,
            ..FeltSecond::default()
        };
        assert_eq!(felt.second(wrongly), None);
        assert!(felt.fails());
        let few = Felt::default();
        few.failed("search", "refused");
        for second in 0..120 {
            let failed = u64::from(second % 15 == 0);
            assert_eq!(few.second(of(1 + failed, failed)), None, "answered between");
            assert_eq!(few.second(of(failed, failed)), None, "answered between");
        }
    }
}
