//! Values of other crates that programs have already, for placeholders: those of `chrono` and
//! `rust_decimal`. In rows they read themselves, by serde.

#[cfg(feature = "rust_decimal")]
use bigdecimal::num_bigint::BigInt;
#[cfg(feature = "chrono")]
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Timelike};
#[cfg(feature = "rust_decimal")]
use rust_decimal::Decimal;
#[cfg(feature = "rust_decimal")]
use sqlx::types::BigDecimal;
#[cfg(feature = "chrono")]
use sqlx::types::time::{Date, OffsetDateTime, PrimitiveDateTime, Time};

use super::param::{Param, ParamType};

/// A date or time of `chrono` that is none here: its year is beyond 9999, before or after our era,
/// or its second is a leap second, which databases do not have.
///
/// ```
/// # use steadfast_cache::{NotInCalendar, Param};
/// # fn f() -> Result<(), NotInCalendar> {
/// let born = chrono::NaiveDate::from_ymd_opt(1815, 12, 10);
/// let params: [Param; 2] = [born.try_into()?, chrono::DateTime::UNIX_EPOCH.try_into()?];
/// # Ok(()) }
/// ```
#[cfg(feature = "chrono")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the year is beyond 9999, or the second is a leap second, which no database here has")]
pub struct NotInCalendar;

#[cfg(feature = "chrono")]
impl From<time::error::ComponentRange> for NotInCalendar {
    fn from(_: time::error::ComponentRange) -> Self {
        Self
    }
}

#[cfg(feature = "chrono")]
fn date(date: NaiveDate) -> Result<Date, NotInCalendar> {
    // `time` takes more, if any crate of the program has it do so.
    if date.year().unsigned_abs() > 9999 {
        return Err(NotInCalendar);
    }
    let day = u16::try_from(date.ordinal()).map_err(|_| NotInCalendar)?;
    Ok(Date::from_ordinal_date(date.year(), day)?)
}

#[cfg(feature = "chrono")]
fn time_of_day(time: NaiveTime) -> Result<Time, NotInCalendar> {
    let part = |part: u32| u8::try_from(part).map_err(|_| NotInCalendar);
    let (hour, minute, second) = (
        part(time.hour())?,
        part(time.minute())?,
        part(time.second())?,
    );
    // A leap second has more than a second's nanoseconds.
    Ok(Time::from_hms_nano(
        hour,
        minute,
        second,
        time.nanosecond(),
    )?)
}

#[cfg(feature = "chrono")]
fn date_time(moment: NaiveDateTime) -> Result<PrimitiveDateTime, NotInCalendar> {
    Ok(PrimitiveDateTime::new(
        date(moment.date())?,
        time_of_day(moment.time())?,
    ))
}

#[cfg(feature = "chrono")]
fn timestamp<Z: TimeZone>(moment: DateTime<Z>) -> Result<OffsetDateTime, NotInCalendar> {
    Ok(date_time(moment.naive_utc())?.assume_utc())
}

#[cfg(feature = "chrono")]
macro_rules! from_chrono {
    ($([$($zone:ident: $bound:ident)?] $of:ty => $variant:ident by $by:ident),* $(,)?) => {$(
        impl$(<$zone: $bound>)? TryFrom<$of> for Param {
            type Error = NotInCalendar;

            fn try_from(value: $of) -> Result<Self, NotInCalendar> {
                $by(value).map(Self::$variant)
            }
        }

        impl$(<$zone: $bound>)? TryFrom<Option<$of>> for Param {
            type Error = NotInCalendar;

            fn try_from(value: Option<$of>) -> Result<Self, NotInCalendar> {
                value.map_or(Ok(Self::NullOf(ParamType::$variant)), Self::try_from)
            }
        }
    )*};
}

#[cfg(feature = "chrono")]
from_chrono!(
    [] NaiveDate => Date by date,
    [] NaiveTime => Time by time_of_day,
    [] NaiveDateTime => DateTime by date_time,
    [Z: TimeZone] DateTime<Z> => Timestamp by timestamp,
    [] Vec<NaiveDate> => Dates by dates,
    [Z: TimeZone] Vec<DateTime<Z>> => Timestamps by timestamps,
);

#[cfg(feature = "chrono")]
fn dates(days: Vec<NaiveDate>) -> Result<Vec<Date>, NotInCalendar> {
    days.into_iter().map(date).collect()
}

#[cfg(feature = "chrono")]
fn timestamps<Z: TimeZone>(
    moments: Vec<DateTime<Z>>,
) -> Result<Vec<OffsetDateTime>, NotInCalendar> {
    moments.into_iter().map(timestamp).collect()
}

/// With all its digits, trailing zeros too.
#[cfg(feature = "rust_decimal")]
fn decimal(value: Decimal) -> BigDecimal {
    BigDecimal::new(BigInt::from(value.mantissa()), value.scale().into())
}

#[cfg(feature = "rust_decimal")]
impl From<Decimal> for Param {
    fn from(value: Decimal) -> Self {
        Self::Decimal(decimal(value))
    }
}

#[cfg(feature = "rust_decimal")]
impl From<Option<Decimal>> for Param {
    fn from(value: Option<Decimal>) -> Self {
        value.map_or(Self::NullOf(ParamType::Decimal), Self::from)
    }
}

#[cfg(feature = "rust_decimal")]
impl From<Vec<Decimal>> for Param {
    fn from(values: Vec<Decimal>) -> Self {
        Self::Decimals(values.into_iter().map(decimal).collect())
    }
}
