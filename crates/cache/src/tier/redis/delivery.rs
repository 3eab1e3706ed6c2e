//! The record that Redis keeps of the last delivery from the outbox.
//!
//! Redis is ahead of SQL by what it has applied and SQL has not been told of: the relay died, or
//! its commit failed. Then the rows still wait, and SQL's watermark is what it was when they were
//! taken. Or by a delivery that came late: its relay had given up waiting, another has delivered
//! the same rows and told SQL, and what was under way comes to Redis all the same. Then SQL's
//! watermark is one that Redis has answered to such a try. Redis may be ahead for no other reason,
//! so without that SQL was rolled back, and the record says so to processes that have not seen SQL
//! before.

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
    /// The watermark of Redis after the first try to deliver them.
    first_to: u64,
}

impl Delivery {
    /// Reads the record as the script `APPLY` writes it; `None` if there is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        Some(Self {
            from: parts.next()?.parse().ok()?,
            to: parts.next()?.parse().ok()?,
            row: RowMark::parse(parts.next()?)?,
            first_to: parts.next()?.parse().ok()?,
        })
    }

    /// The watermark of Redis after it.
    pub(super) fn to(&self) -> u64 {
        self.to
    }

    /// Whether this is why Redis is there, which is ahead of SQL, as far as a look can see.
    pub(super) fn explains(&self, redis_at: u64, glance: &Glance) -> bool {
        let waits = self.from == glance.watermark && glance.may_hold(self.row);
        let was_told = self.first_to <= glance.watermark;
        self.to == redis_at && (waits || was_told)
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
        let record = Delivery::parse("40 42 7@1000 42").unwrap();
        let waits = |glance: &Glance| record.explains(42, glance);
        assert!(waits(&seen(40, &[at(6, 900), at(7, 1000), at(8, 1001)])));
        assert!(!waits(&seen(40, &[])), "nothing waits");
        assert!(!waits(&seen(40, &[at(8, 1001)])), "others wait");
        assert!(
            !waits(&seen(40, &[at(7, 2000)])),
            "its number was given to another"
        );
        assert!(!waits(&seen(39, &[at(7, 1000)])), "SQL was there before");
        let lost = seen(40, &[at(7, 1000)]);
        assert!(!record.explains(43, &lost), "Redis went on from there");
        let cut_off = |marks: &[RowMark]| Glance {
            complete: false,
            ..seen(40, marks)
        };
        assert!(waits(&cut_off(&[at(6, 900)])), "it may be beyond");
        let beyond = cut_off(&[at(6, 900), at(8, 1001)]);
        assert!(!waits(&beyond), "it would stand between them");
        assert!(!waits(&seen(41, &[at(7, 1000)])), "SQL was told so by none");

        let late = Delivery::parse("40 44 7@1000 42").unwrap();
        let told = |watermark| late.explains(44, &seen(watermark, &[]));
        assert!(told(42) && told(43), "of an earlier try");
        assert!(!told(40) && !told(41), "of none");
    }

    #[test]
    fn k16_what_is_no_record_is_none() {
        for text in [
            "",
            "40",
            "40 42",
            "40 42 -",
            "40 42 7@1000",
            "40 42 7 42",
            "x 42 7@1000 42",
        ] {
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
