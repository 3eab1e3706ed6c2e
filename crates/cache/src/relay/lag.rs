//! The time for which invalidations have waited.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::outbox::Glance;

/// The longest time that a row of the outbox has waited since it could be seen. A row's own time is
/// when it was written, and its transaction may have been committed long after; and a clock may be
/// set back. So the age of a row is counted from the last look at which it was not there. Only what
/// no look could tell, because it was there before the first one or because too many rows were
/// ahead of it, is as old as it says.
///
/// A full outbox is collapsed: the first row takes the place of those that wait. It is told by rows
/// that are gone though nothing was applied, and the first has waited for as long as they had,
/// which may be longer than it waited itself.
#[derive(Default)]
pub(super) struct LagWatch {
    /// Rows as of the last look, each with the latest moment at which it was certainly not there.
    rows: HashMap<i64, Instant>,
    /// The last look, and the last row that it saw if there may have been others beyond.
    last: Option<(Instant, Option<i64>)>,
    /// The watermark as of the last look.
    watermark: u64,
}

impl LagWatch {
    /// `began`: when the look began.
    pub(super) fn lag(&mut self, glance: &Glance, began: Instant) -> Option<Duration> {
        let collapsed = self.collapsed(glance);
        let since = |id: i64, age_ms: i64| {
            let by_database = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
            let written = began.checked_sub(by_database).unwrap_or(began);
            match (self.rows.get(&id), self.last) {
                (Some(since), _) => *since,
                (None, Some((looked, None))) => looked,
                (None, Some((looked, Some(beyond)))) if id < beyond => looked,
                (None, _) => written,
            }
        };
        let mut rows: HashMap<i64, Instant> = glance
            .waiting
            .iter()
            .map(|row| (row.mark.id, since(row.mark.id, row.age_ms)))
            .collect();
        let first = glance.waiting.first().map(|row| row.mark.id);
        if let Some(since) = first.and_then(|id| rows.get_mut(&id)) {
            *since = collapsed.map_or(*since, |before| before.min(*since));
        }
        let beyond = glance.waiting.last().filter(|_| !glance.complete);
        self.last = Some((began, beyond.map(|row| row.mark.id)));
        (self.rows, self.watermark) = (rows, glance.watermark);
        let oldest = self.rows.values().min()?;
        Some(began.saturating_duration_since(*oldest))
    }

    /// Since when those have waited at most that are gone without having been applied, if any are.
    fn collapsed(&self, glance: &Glance) -> Option<Instant> {
        if glance.watermark != self.watermark {
            return None;
        }
        let last = glance.waiting.last().map_or(0, |row| row.mark.id);
        let would_be_seen = |id: i64| glance.complete || id < last;
        let waits = |id: i64| glance.waiting.iter().any(|row| row.mark.id == id);
        let gone = |(id, _): &(&i64, &Instant)| would_be_seen(**id) && !waits(**id);
        self.rows.iter().filter(gone).map(|(_, since)| *since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::clock;
    use crate::outbox::{RowMark, WaitingRow};

    /// The numbers of rows, and their ages in milliseconds.
    type Rows<'a> = &'a [(i64, i64)];

    fn glance(watermark: u64, rows: Rows<'_>) -> Glance {
        Glance {
            database: None,
            watermark,
            waiting: rows
                .iter()
                .map(|&(id, age_ms)| WaitingRow {
                    mark: RowMark { id, created_at: 0 },
                    age_ms,
                })
                .collect(),
            complete: rows.len() < 3,
            spread: 0,
        }
    }

    /// Looks at those moments, in milliseconds, and gives the lags seen. What is gone was applied.
    fn lags(looks: &[(u64, Rows<'_>)]) -> Vec<Option<u64>> {
        let applied = |(at, rows): &(u64, _)| (*at, *at, *rows);
        lags_at(&looks.iter().map(applied).collect::<Vec<_>>())
    }

    /// The same with the watermark at each look, after the moment.
    fn lags_at(looks: &[(u64, u64, Rows<'_>)]) -> Vec<Option<u64>> {
        let (zero, mut watch) = (clock(), LagWatch::default());
        looks
            .iter()
            .map(|(at, watermark, rows)| {
                let began = zero + Duration::from_millis(*at);
                let lag = watch.lag(&glance(*watermark, rows), began);
                lag.map(|lag| lag.as_millis() as u64)
            })
            .collect()
    }

    /// The rows that wait behind the first are taken away, again and again, by this process or
    /// another. By the clock of the database, which was set back, the first has not been written
    /// yet; and once it is of a long transaction, younger than what stood behind it.
    #[test]
    fn k8_a_collapsed_outbox_has_waited_as_long_as_what_it_has_replaced() {
        let seen = lags_at(&[
            (0, 9, &[]),
            (250, 9, &[(3, -3_600_000), (4, 90)]),
            (500, 9, &[(3, -3_599_750)]),
            (750, 9, &[(2, -3_599_750), (3, -3_599_500)]),
            (1000, 9, &[(2, -3_599_500)]),
            (1250, 12, &[(9, 10)]),
        ]);
        let applied = Some(250);
        assert_eq!(
            seen,
            [None, Some(250), Some(500), Some(750), Some(1000), applied]
        );
    }

    #[test]
    fn k8_what_late_numbers_push_out_of_sight_was_not_replaced() {
        let seen = lags_at(&[
            (0, 9, &[(10, 0), (11, 0), (12, 0)]),
            (250, 9, &[(7, 1500), (8, 1500), (10, 250)]),
            (500, 10, &[(8, 1750), (10, 500), (11, 500)]),
        ]);
        assert_eq!(seen, [Some(0), Some(250), Some(500)]);
    }

    #[test]
    fn k8_a_clock_set_back_cannot_hide_a_waiting_row() {
        let seen = lags(&[
            (0, &[(7, -3_600_000)]),
            (2000, &[(7, -3_599_000)]),
            (3000, &[(7, 5000)]),
            (4000, &[]),
        ]);
        assert_eq!(seen, [Some(0), Some(2000), Some(3000), None]);
    }

    #[test]
    fn k8_a_row_of_a_long_transaction_has_not_waited() {
        let seen = lags(&[
            (1000, &[(9, 20)]),
            (1250, &[(5, 1500)]),
            (1500, &[(5, 1750), (11, 100)]),
        ]);
        assert_eq!(seen, [Some(20), Some(250), Some(500)]);
    }

    #[test]
    fn k8_a_row_that_was_there_before_the_first_look_is_as_old_as_it_says() {
        assert_eq!(lags(&[(0, &[(1, 90)])]), [Some(90)]);
    }

    #[test]
    fn k8_what_stands_behind_too_many_others_is_as_old_as_it_says_and_a_young_one_hides_no_old_one()
    {
        let seen = lags(&[
            (0, &[(10, 0), (11, 0), (12, 0)]),
            (250, &[(14, 240), (15, 10), (16, 10)]),
            (500, &[(13, 3000), (15, 260), (16, 260)]),
        ]);
        assert_eq!(seen, [Some(0), Some(240), Some(260)]);
    }
}
