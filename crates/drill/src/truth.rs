//! Whether an answer was right can only be said by someone who remembers what was true when. The
//! lab writes through the subject and notes when each write was confirmed; whatever is read later
//! is held against that, not against what the subject believes. Pure: times are given, as lengths
//! from the start of the load.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::subject::Answer;

/// Commits remembered of one row. Forgetting the oldest can only excuse an answer, never condemn
/// one.
const REMEMBERED: usize = 1024;

/// The versions that the database is known to have held.
#[derive(Debug)]
pub struct Truth {
    allowed_age: Duration,
    rows: HashMap<u64, RowHistory>,
}

#[derive(Debug, Default)]
struct RowHistory {
    /// The highest version that any write was given.
    issued: u64,
    /// Versions and when they were confirmed, both growing.
    confirmed: VecDeque<(u64, Duration)>,
}

impl Truth {
    /// Begins with all rows at version 0. An answer may be older than the database by `allowed_age`
    /// without saying so.
    pub fn new(allowed_age: Duration) -> Self {
        Self {
            allowed_age,
            rows: HashMap::new(),
        }
    }

    /// Returns the version that the next write of the row carries.
    pub fn next_version(&mut self, key: u64) -> u64 {
        let row = self.rows.entry(key).or_default();
        row.issued += 1;
        row.issued
    }

    /// Notes that the write of that version was confirmed at that time.
    pub fn confirm(&mut self, key: u64, version: u64, at: Duration) {
        let row = self.rows.entry(key).or_default();
        if row
            .confirmed
            .back()
            .is_none_or(|(newest, _)| *newest < version)
        {
            row.confirmed.push_back((version, at));
        }
        if row.confirmed.len() > REMEMBERED {
            row.confirmed.pop_front();
        }
    }

    /// Returns whether the answer to a read that began at `begun` is wrong: the row had been
    /// replaced long before and the answer does not say that it is stale, or no such version was
    /// ever written.
    pub fn is_wrong(&self, key: u64, answer: &Answer, begun: Duration) -> bool {
        let Some(row) = self.rows.get(&key) else {
            return answer.version != 0;
        };
        if answer.version > row.issued {
            return true;
        }
        let next = row
            .confirmed
            .partition_point(|(version, _)| *version <= answer.version);
        let replaced = row.confirmed.get(next).map(|(_, at)| *at);
        let is_stale = answer.stale == Some(true);
        !is_stale && replaced.is_some_and(|at| at + self.allowed_age < begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::Source;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn answer(version: u64, stale: bool) -> Answer {
        Answer {
            source: Source::Memory,
            version,
            age: Duration::ZERO,
            stale: Some(stale),
        }
    }

    fn written_twice() -> Truth {
        let mut truth = Truth::new(s(2));
        for at in [s(10), s(20)] {
            let version = truth.next_version(7);
            truth.confirm(7, version, at);
        }
        truth
    }

    #[test]
    fn d4_an_old_answer_is_wrong_once_the_allowed_age_is_over() {
        let truth = written_twice();
        assert!(!truth.is_wrong(7, &answer(1, false), s(22)));
        assert!(truth.is_wrong(7, &answer(1, false), s(23)));
        assert!(truth.is_wrong(7, &answer(0, false), s(13)));
        assert!(!truth.is_wrong(7, &answer(2, false), s(99)));
    }

    #[test]
    fn d4_an_old_answer_that_says_it_is_stale_is_not_wrong() {
        assert!(!written_twice().is_wrong(7, &answer(0, true), s(99)));
    }

    #[test]
    fn d4_a_version_that_was_never_written_is_wrong_even_if_stale() {
        let truth = written_twice();
        assert!(truth.is_wrong(7, &answer(3, true), s(21)));
        assert!(truth.is_wrong(8, &answer(1, false), s(21)));
    }

    #[test]
    fn a_write_whose_fate_is_unknown_excuses_both_answers() {
        let mut truth = written_twice();
        assert_eq!(truth.next_version(7), 3);
        assert!(!truth.is_wrong(7, &answer(3, false), s(99)));
        assert!(!truth.is_wrong(7, &answer(2, false), s(99)));
    }

    #[test]
    fn a_late_confirmation_of_an_older_version_changes_nothing() {
        let mut truth = Truth::new(s(0));
        let (first, second) = (truth.next_version(1), truth.next_version(1));
        truth.confirm(1, second, s(5));
        truth.confirm(1, first, s(9));
        assert!(truth.is_wrong(1, &answer(0, false), s(6)));
        assert!(!truth.is_wrong(1, &answer(2, false), s(99)));
    }
}
