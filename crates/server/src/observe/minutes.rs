//! A page shows the last five minutes second by second. Whoever is called an hour after an incident
//! began needs the hour before it, so each minute is kept as one row, for a day. Pure: seconds go
//! in, rows come out.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::Serialize;

use super::tally::{Buckets, ReadCounts};

/// Minutes kept: a day, about 200 kB.
const KEPT: usize = 24 * 60;

/// The last day, minute by minute.
#[derive(Debug, Default)]
pub(crate) struct Minutes {
    state: Mutex<MinuteRows>,
}

#[derive(Debug, Default)]
struct MinuteRows {
    rows: VecDeque<Minute>,
    /// Latencies counted when the newest row began.
    began: Buckets,
}

/// A minute of the service; the newest one is still under way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Minute {
    /// The beginning of the minute.
    at_ms: u64,
    /// Seconds of it that were counted: 60, unless the service started, stood still or is in it
    /// now.
    seconds: u64,
    reads: ReadCounts,
    loads: u64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    /// Seconds at whose end Redis was not in service.
    redis_away_s: u64,
    /// The greatest age of an invalidation not yet in Redis.
    outbox_lag_ms: Option<u64>,
}

/// A second, as it is added to its minute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Second {
    pub(crate) at_ms: u64,
    pub(crate) reads: ReadCounts,
    pub(crate) loads: u64,
    pub(crate) redis_away: bool,
    pub(crate) outbox_lag_ms: Option<u64>,
}

impl Minutes {
    /// Adds a second, with the latencies counted until it began and until it ended.
    pub(crate) fn add(&self, second: Second, before: &Buckets, after: &Buckets) {
        let mut state = self.state.lock();
        let at_ms = second.at_ms - second.at_ms % 60_000;
        if state.rows.back().is_none_or(|row| row.at_ms != at_ms) {
            if state.rows.len() == KEPT {
                state.rows.pop_front();
            }
            state.rows.push_back(Minute::new(at_ms));
            state.began = before.clone();
        }
        let MinuteRows { rows, began } = &mut *state;
        if let Some(row) = rows.back_mut() {
            [row.p50_ms, row.p99_ms, row.p999_ms] =
                after.quantiles_since(began, [0.5, 0.99, 0.999]);
            row.add(second);
        }
    }

    /// Returns the rows, oldest first.
    pub(crate) fn rows(&self) -> Vec<Minute> {
        self.state.lock().rows.iter().cloned().collect()
    }
}

impl Minute {
    fn new(at_ms: u64) -> Self {
        Self {
            at_ms,
            seconds: 0,
            reads: ReadCounts::default(),
            loads: 0,
            p50_ms: None,
            p99_ms: None,
            p999_ms: None,
            redis_away_s: 0,
            outbox_lag_ms: None,
        }
    }

    fn add(&mut self, second: Second) {
        self.seconds += 1;
        self.reads = self.reads.plus(second.reads);
        self.loads += second.loads;
        self.redis_away_s += u64::from(second.redis_away);
        self.outbox_lag_ms = self.outbox_lag_ms.max(second.outbox_lag_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tally::{ReadOutcome, RequestStats};
    use super::*;
    use std::time::Duration;

    fn second(at_ms: u64, memory: u64) -> Second {
        Second {
            at_ms,
            reads: ReadCounts {
                memory,
                ..ReadCounts::default()
            },
            loads: 1,
            redis_away: at_ms < 60_000,
            outbox_lag_ms: (at_ms < 60_000).then_some(at_ms),
        }
    }

    #[test]
    fn s5_a_minute_is_the_sum_of_its_seconds_and_its_p99_is_its_own() {
        let minutes = Minutes::default();
        let tally = RequestStats::default();
        for n in 0..120 {
            let before = tally.latencies();
            let took = Duration::from_millis(if n < 60 { 100 } else { 1 });
            tally.read(ReadOutcome::Memory, false, took);
            minutes.add(second(n * 1000, 1), &before, &tally.latencies());
        }
        let rows = minutes.rows();
        assert_eq!(rows.len(), 2);
        for row in &rows {
            assert_eq!((row.seconds, row.reads.memory, row.loads), (60, 60, 60));
        }
        assert_eq!((rows[0].redis_away_s, rows[1].redis_away_s), (60, 0));
        assert_eq!(rows[0].outbox_lag_ms, Some(59_000));
        assert!((100.0..113.0).contains(&rows[0].p99_ms.unwrap()));
        assert!((1.0..1.2).contains(&rows[1].p99_ms.unwrap()), "{rows:?}");
    }

    #[test]
    fn a_day_is_kept_and_no_more() {
        let minutes = Minutes::default();
        let none = Buckets::default();
        for n in 0..KEPT as u64 + 7 {
            minutes.add(second(n * 60_000, 1), &none, &none);
        }
        let rows = minutes.rows();
        assert_eq!((rows.len(), rows[0].at_ms), (KEPT, 7 * 60_000));
    }
}
