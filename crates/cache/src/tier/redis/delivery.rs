//! The record that Redis keeps of the last delivery from the outbox.
//!
//! Redis is ahead of SQL by what it has applied and SQL has not been told of: the relay died, or
//! its commit failed. Then the rows still wait, and SQL's watermark is what it was when they were
//! taken. Redis may be ahead for no other reason, so without that SQL was rolled back, and the
//! record says so to processes that have not seen SQL before.

use crate::outbox::{Glance, RowMark};

/// The last delivery, as Redis has it on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// SQL's watermark before it.
    from: u64,
    /// That of Redis after it.
    to: u64,
    /// The first of its rows.
    row: RowMark,
}

impl Delivery {
    /// Reads the record as the script `APPLY` writes it; `None` if there is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        Some(Self {
            from: parts.next()?.parse().ok()?,
            to: parts.next()?.parse().ok()?,
            row: RowMark::parse(parts.next()?)?,
        })
    }

    /// The watermark of Redis after it.
    pub(super) fn to(&self) -> u64 {
        self.to
    }

    /// Whether this is what took Redis there, and waits for SQL to be told, as far as a look can
    /// see.
    pub(super) fn may_wait(&self, redis_at: u64, glance: &Glance) -> bool {
        self.to == redis_at && self.from == glance.watermark && glance.may_hold(self.row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::WaitingRow;

    #[test]
    fn k16_redis_may_be_ahead_by_a_delivery_whose_rows_wait_and_by_nothing_else() {
        let at = |id, created_at| RowMark { id, created_at };
        let seen = |watermark, marks: &[RowMark]| Glance {
            database: None,
            watermark,
            waiting: marks
                .iter()
                .map(|&mark| WaitingRow { mark, age_ms: 0 })
                .collect(),
            complete: true,
            spread: 0,
        };
        let record = Delivery::parse("40 42 7@1000").unwrap();
        let waits = |glance: &Glance| record.may_wait(42, glance);
        assert!(waits(&seen(40, &[at(6, 900), at(7, 1000), at(8, 1001)])));
        assert!(!waits(&seen(40, &[])), "nothing waits");
        assert!(!waits(&seen(40, &[at(8, 1001)])), "others wait");
        assert!(
            !waits(&seen(40, &[at(7, 2000)])),
            "its number was given to another"
        );
        assert!(!waits(&seen(39, &[at(7, 1000)])), "SQL was there before");
        let lost = seen(40, &[at(7, 1000)]);
        assert!(!record.may_wait(43, &lost), "Redis went on from there");
        let cut_off = |marks: &[RowMark]| Glance {
            complete: false,
            ..seen(40, marks)
        };
        assert!(waits(&cut_off(&[at(6, 900)])), "it may be beyond");
        let beyond = cut_off(&[at(6, 900), at(8, 1001)]);
        assert!(!waits(&beyond), "it would stand between them");
    }

    #[test]
    fn k16_what_is_no_record_is_none() {
        for text in ["", "40", "40 42", "40 42 -", "40 42 7", "x 42 7@1000"] {
            assert_eq!(Delivery::parse(text), None, "{text}");
        }
    }

    #[test]
    fn k16_rows_are_listed_as_the_script_looks_for_them() {
        let row = |id| RowMark { id, created_at: 5 };
        assert_eq!(RowMark::list(&[row(7), row(8)]), " 7@5 8@5 ");
        assert_eq!(RowMark::parse("7@5"), Some(row(7)));
    }
}
