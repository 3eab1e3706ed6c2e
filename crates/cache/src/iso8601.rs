//! Dates, times and moments as serde reads and writes them in a row and in a cached value: the form
//! in which [`Database::select`](crate::Database::select) answers them, whichever database it is.
//! `time`'s own form for serde is another.
//!
//! ```
//! use steadfast_cache::iso8601;
//! use steadfast_cache::sqlx::types::time::{Date, OffsetDateTime};
//!
//! #[derive(Clone, serde::Serialize, serde::Deserialize)]
//! struct User {
//!     name: String,
//!     #[serde(with = "iso8601")]
//!     born: Option<Date>,
//!     #[serde(with = "iso8601")]
//!     seen: OffsetDateTime,
//! }
//!
//! let json = r#"{"name":"Ada","born":"1815-12-10","seen":"2026-11-23T12:34:56.000000Z"}"#;
//! let user: User = serde_json::from_str(json)?;
//! assert_eq!(serde_json::to_string(&user)?, json);
//! # Ok::<(), serde_json::Error>(())
//! ```

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};
use sqlx::types::time::{Date, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

type Described = &'static [BorrowedFormatItem<'static>];

const DATE: Described = format_description!(version = 2, "[year]-[month]-[day]");
/// As databases write it: seconds, and parts of one, may be left out.
const TIME: Described = format_description!(
    version = 2,
    "[hour]:[minute][optional [:[second][optional [.[subsecond digits:1+]]]]]"
);
const OFFSET: Described = format_description!(
    version = 2,
    "[offset_hour sign:mandatory][optional [:[offset_minute][optional [:[offset_second]]]]]"
);

/// A [`Date`], [`Time`], [`PrimitiveDateTime`] or [`OffsetDateTime`], or an `Option` of one. A
/// moment without a zone, as MySQL's `TIMESTAMP` has none, is one in UTC.
pub trait Iso8601: sealed::Form + Sized {}

impl<T: sealed::Form> Iso8601 for T {}

/// For serde: writes it as text, or null.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<T: Iso8601, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.text().serialize(serializer)
}

/// For serde: reads it.
///
/// # Errors
/// Names what a text is not, such as PostgreSQL's `infinity`, without quoting it: it is of a row.
pub fn deserialize<'de, T: Iso8601, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let wrong = || {
        let shown = match &text {
            Some(text) => format!("a text of {} bytes", text.len()),
            None => "null".to_owned(),
        };
        D::Error::custom(format_args!("{shown} is no {}", T::NAME))
    };
    T::read(text.as_deref()).ok_or_else(wrong)
}

/// Returns a moment as it is written.
pub(crate) fn text(moment: &OffsetDateTime) -> String {
    let utc = moment.to_offset(UtcOffset::UTC);
    format!("{}T{}Z", date_text(utc.date()), time_text(utc.time()))
}

mod sealed {
    pub trait Form {
        /// The thing's name.
        const NAME: &'static str;
        /// `None` is null.
        fn text(&self) -> Option<String>;
        /// `None` if it is none.
        fn read(text: Option<&str>) -> Option<Self>
        where
            Self: Sized;
    }
}

impl<T: sealed::Form> sealed::Form for Option<T> {
    const NAME: &'static str = T::NAME;

    fn text(&self) -> Option<String> {
        self.as_ref()?.text()
    }

    fn read(text: Option<&str>) -> Option<Self> {
        match text {
            None => Some(None),
            some => T::read(some).map(Some),
        }
    }
}

impl sealed::Form for Date {
    const NAME: &'static str = "date";

    fn text(&self) -> Option<String> {
        Some(date_text(*self))
    }

    fn read(text: Option<&str>) -> Option<Self> {
        date(text?)
    }
}

impl sealed::Form for Time {
    const NAME: &'static str = "time of day";

    fn text(&self) -> Option<String> {
        Some(time_text(*self))
    }

    fn read(text: Option<&str>) -> Option<Self> {
        time(text?)
    }
}

impl sealed::Form for PrimitiveDateTime {
    const NAME: &'static str = "date and time without a zone";

    fn text(&self) -> Option<String> {
        Some(format!(
            "{}T{}",
            date_text(self.date()),
            time_text(self.time())
        ))
    }

    fn read(text: Option<&str>) -> Option<Self> {
        let (day, at) = text?.split_once(['T', ' '])?;
        Some(Self::new(date(day)?, time(at)?))
    }
}

impl sealed::Form for OffsetDateTime {
    const NAME: &'static str = "moment";

    fn text(&self) -> Option<String> {
        Some(text(self))
    }

    fn read(text: Option<&str>) -> Option<Self> {
        let (day, at) = text?.split_once(['T', ' '])?;
        let zone = at.find(['Z', '+', '-']).unwrap_or(at.len());
        let (at, zone) = at.split_at(zone);
        Some(Self::new_in_offset(
            date(day)?,
            time(at.trim_end())?,
            offset(zone)?,
        ))
    }
}

fn date_text(date: Date) -> String {
    format!(
        "{:04}-{:02}-{:02}",
        date.year(),
        u8::from(date.month()),
        date.day()
    )
}

fn time_text(time: Time) -> String {
    let (hour, minute, second, nano) = time.as_hms_nano();
    match nano % 1000 {
        0 => format!("{hour:02}:{minute:02}:{second:02}.{:06}", nano / 1000),
        _ => format!("{hour:02}:{minute:02}:{second:02}.{nano:09}"),
    }
}

fn date(text: &str) -> Option<Date> {
    Date::parse(text, DATE).ok()
}

fn time(text: &str) -> Option<Time> {
    Time::parse(text, TIME).ok()
}

/// No zone is UTC.
fn offset(zone: &str) -> Option<UtcOffset> {
    match zone {
        "" | "Z" => Some(UtcOffset::UTC),
        zone => UtcOffset::parse(zone, OFFSET).ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::sealed::Form;
    use super::*;

    #[test]
    fn k1_what_is_no_date_or_moment_is_refused() {
        for text in [
            "",
            "infinity",
            "0000-00-00",
            "2026-02-30",
            "0044-03-15 BC",
            "2026-11-23T12:34:56",
            "2026-11",
        ] {
            assert_eq!(Date::read(Some(text)), None, "{text}");
        }
        for text in [
            "-838:59:59.000000",
            "24:00:00.000000",
            "12",
            "12:34:56.",
            "12:34:56Z",
        ] {
            assert_eq!(Time::read(Some(text)), None, "{text}");
        }
        for text in [
            "-infinity",
            "0000-00-00T00:00:00.000000",
            "2026-11-23T11:34:56.000001Z BC",
        ] {
            assert_eq!(OffsetDateTime::read(Some(text)), None, "{text}");
            assert_eq!(PrimitiveDateTime::read(Some(text)), None, "{text}");
        }
        assert_eq!(Date::read(None), None);
        assert_eq!(Option::<Date>::read(None), Some(None));
    }

    #[test]
    fn k1_a_moment_is_the_same_in_every_zone_and_in_utc_without_one() {
        let moment = OffsetDateTime::read(Some("2026-11-23T12:34:56.000001Z"));
        for same in [
            "2026-11-23T18:04:56.000001+05:30",
            "2026-11-23 12:34:56.000001",
            "2026-11-23 04:34:56.000001-08",
        ] {
            assert_eq!(OffsetDateTime::read(Some(same)), moment, "{same}");
        }
        assert_eq!(
            moment.text().as_deref(),
            Some("2026-11-23T12:34:56.000001Z")
        );
    }

    proptest! {
        #[test]
        fn k1_what_is_written_is_read(seconds in -62_135_596_800i64..253_402_300_799, nanos in 0i64..1_000_000_000) {
            let moment = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            let moment = moment.replace_nanosecond(u32::try_from(nanos).unwrap()).unwrap();
            let text = moment.text().unwrap();
            prop_assert_eq!(OffsetDateTime::read(Some(&text)), Some(moment));
            let local = PrimitiveDateTime::new(moment.date(), moment.time());
            prop_assert_eq!(PrimitiveDateTime::read(local.text().as_deref()), Some(local));
        }
    }
}
