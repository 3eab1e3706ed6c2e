//! PostgreSQL, in its binary formats (`src/backend/utils/adt` in its source).

use sqlx::postgres::{PgRow, PgTypeInfo, PgTypeKind};
use sqlx::{Column, Row as _, TypeInfo, ValueRef};

use super::{Cell, Row, Unfit, double, hex, single};
use crate::sql::SourceError;

pub(in crate::sql) fn row(from: &PgRow) -> Result<Row, SourceError> {
    let mut row = Row::default();
    for (at, column) in from.columns().iter().enumerate() {
        let (name, info) = (column.name(), column.type_info());
        let cell = cell(from, at, info).map_err(|why| why.at(name, info.name()))?;
        row.push(name, cell)?;
    }
    Ok(row)
}

fn cell(row: &PgRow, at: usize, info: &PgTypeInfo) -> Result<Cell, Unfit> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok(().into());
    }
    value(info, raw.as_bytes().map_err(sqlx::Error::Decode)?)
}

fn value(info: &PgTypeInfo, bytes: &[u8]) -> Result<Cell, Unfit> {
    let text = || std::str::from_utf8(bytes);
    let cell = match info.name() {
        "BOOL" => exactly(bytes).map(|[byte]| (byte != 0).into()),
        "INT2" => exactly(bytes).map(|bytes| i16::from_be_bytes(bytes).into()),
        "INT4" => exactly(bytes).map(|bytes| i32::from_be_bytes(bytes).into()),
        "INT8" => exactly(bytes).map(|bytes| i64::from_be_bytes(bytes).into()),
        "OID" => exactly(bytes).map(|bytes| u32::from_be_bytes(bytes).into()),
        "FLOAT4" => exactly(bytes).map(|bytes| single(f32::from_be_bytes(bytes))),
        "FLOAT8" => exactly(bytes).map(|bytes| double(f64::from_be_bytes(bytes))),
        "NUMERIC" => numeric(bytes).map(Cell::from),
        "TEXT" | "VARCHAR" | "CHAR" | "\"CHAR\"" | "NAME" | "UNKNOWN" | "XML" | "citext" => {
            Some(text()?.into())
        }
        "BYTEA" => Some(hex(bytes)),
        "TIMESTAMP" => exactly(bytes).map(|bytes| moment(i64::from_be_bytes(bytes), "").into()),
        "TIMESTAMPTZ" => exactly(bytes).map(|bytes| moment(i64::from_be_bytes(bytes), "Z").into()),
        "DATE" => exactly(bytes).map(|bytes| date(i32::from_be_bytes(bytes)).into()),
        "TIME" => exactly(bytes).map(|bytes| time(i64::from_be_bytes(bytes)).into()),
        "TIMETZ" => zoned(bytes).map(Cell::from),
        "UUID" => Some(uuid(bytes).into()),
        "JSON" => Some(Cell::document(text()?)?),
        // One byte with the version of the format comes first.
        "JSONB" => Some(Cell::document(std::str::from_utf8(
            bytes.get(1..).unwrap_or_default(),
        )?)?),
        _ => match info.kind() {
            PgTypeKind::Enum(_) => Some(text()?.into()),
            PgTypeKind::Array(of) => return array(of, bytes),
            _ => return Err(Unfit::Type),
        },
    };
    cell.ok_or(WRONG_LENGTH)
}

fn exactly<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

/// The number of dimensions, a flag, the type of the elements; for each dimension its length and
/// its first index; then the elements, each behind its length, which is -1 for NULL.
fn array(of: &PgTypeInfo, mut bytes: &[u8]) -> Result<Cell, Unfit> {
    let mut word = || -> Result<i32, Unfit> {
        let (word, rest) = bytes.split_first_chunk().ok_or(WRONG_LENGTH)?;
        bytes = rest;
        Ok(i32::from_be_bytes(*word))
    };
    let (dimensions, _, _) = (word()?, word()?, word()?);
    let mut lengths = Vec::new();
    for _ in 0..dimensions {
        lengths.push(usize::try_from(word()?).map_err(|_| WRONG_LENGTH)?);
        word()?;
    }
    if lengths.is_empty() {
        return Cell::list(Vec::new());
    }
    nested(of, &lengths, &mut bytes)
}

/// The rest of an array that has these lengths.
fn nested(of: &PgTypeInfo, lengths: &[usize], bytes: &mut &[u8]) -> Result<Cell, Unfit> {
    let Some((length, inner)) = lengths.split_first() else {
        let (size, rest) = bytes.split_first_chunk().ok_or(WRONG_LENGTH)?;
        let Ok(size) = usize::try_from(i32::from_be_bytes(*size)) else {
            *bytes = rest;
            return Ok(().into());
        };
        let (element, rest) = rest.split_at_checked(size).ok_or(WRONG_LENGTH)?;
        *bytes = rest;
        return value(of, element);
    };
    let cells = (0..*length).map(|_| nested(of, inner, bytes));
    Cell::list(cells.collect::<Result<_, _>>()?)
}

const WRONG_LENGTH: Unfit = Unfit::Value("its length is not that of its type");

/// Digits to the base of 10 000: their number, the weight of the first, the sign, the places to
/// show, the digits.
fn numeric(bytes: &[u8]) -> Option<String> {
    let word = |at: usize| {
        let bytes = bytes.get(2 * at..2 * at + 2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    let (count, weight) = (i32::from(word(0)?), i32::from(word(1)?.cast_signed()));
    let sign = match word(2)? {
        0 => "",
        0x4000 => "-",
        0xC000 => return Some("NaN".to_owned()),
        0xD000 => return Some("Infinity".to_owned()),
        0xF000 => return Some("-Infinity".to_owned()),
        _ => return None,
    };
    let places = usize::from(word(3)?);
    let digit = |at: i32| match usize::try_from(at) {
        Ok(place) if at < count => word(4 + place),
        _ => Some(0),
    };
    let mut whole = String::new();
    for at in 0..=weight {
        whole.push_str(&format!("{:04}", digit(at)?));
    }
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    if places == 0 {
        return Some(format!("{sign}{whole}"));
    }
    let mut fraction = String::new();
    for at in 1..=places.div_ceil(4) {
        let at = weight + i32::try_from(at).ok()?;
        fraction.push_str(&format!("{:04}", digit(at)?));
    }
    Some(format!("{sign}{whole}.{}", fraction.get(..places)?))
}

/// Microseconds since the beginning of 2000. PostgreSQL's own words for what ISO 8601 has none for.
fn moment(micros: i64, zone: &str) -> String {
    match micros {
        i64::MAX => return "infinity".to_owned(),
        i64::MIN => return "-infinity".to_owned(),
        _ => {}
    }
    let (date, era) = civil(micros.div_euclid(DAY));
    format!("{date}T{}{zone}{era}", time(micros.rem_euclid(DAY)))
}

/// Days since the beginning of 2000.
fn date(days: i32) -> String {
    match days {
        i32::MAX => return "infinity".to_owned(),
        i32::MIN => return "-infinity".to_owned(),
        _ => {}
    }
    let (date, era) = civil(i64::from(days));
    format!("{date}{era}")
}

/// Microseconds since midnight, which may be 24:00.
fn time(micros: i64) -> String {
    let (second, micro) = (micros / 1_000_000, micros % 1_000_000);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{micro:06}")
}

/// A time of day, then the seconds that its zone is behind UTC.
fn zoned(bytes: &[u8]) -> Option<String> {
    let (micros, behind) = bytes.split_at_checked(8)?;
    let ahead = -i64::from(i32::from_be_bytes(behind.try_into().ok()?));
    let micros = i64::from_be_bytes(micros.try_into().ok()?);
    let (sign, far) = (if ahead < 0 { '-' } else { '+' }, ahead.abs());
    let (hours, minutes, seconds) = (far / 3600, far / 60 % 60, far % 60);
    let seconds = match seconds {
        0 => String::new(),
        some => format!(":{some:02}"),
    };
    Some(format!(
        "{}{sign}{hours:02}:{minutes:02}{seconds}",
        time(micros)
    ))
}

/// The date so many days after 2000-01-01, in the proleptic Gregorian calendar, counted in years
/// that begin in March, so that the leap day is the last of its year; and ` BC` if it is of a year
/// before the first.
fn civil(days: i64) -> (String, &'static str) {
    let days = days + 730_425; // from 0000-03-01 to 2000-01-01
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    // There is no year 0.
    let (year, era) = if year > 0 {
        (year, "")
    } else {
        (1 - year, " BC")
    };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

fn uuid(bytes: &[u8]) -> String {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let group = |from, to| text.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        group(0, 8),
        group(8, 12),
        group(12, 16),
        group(16, 20),
        group(20, 32)
    )
}

const DAY: i64 = 86_400_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, text) in [
            (0, "2000-01-01"),
            (59, "2000-02-29"),
            (60, "2000-03-01"),
            (-1, "1999-12-31"),
            (-10_957, "1970-01-01"),
            (9_862, "2027-01-01"),
            (-730_119, "0001-01-01"),
            (-730_120, "0001-12-31 BC"),
            (-746_416, "0045-05-20 BC"),
            (i32::MAX, "infinity"),
            (i32::MIN, "-infinity"),
        ] {
            assert_eq!(date(days), text);
        }
    }

    #[test]
    fn micros_become_moments() {
        let text = moment(DAY + 3_723_000_004, "Z");
        assert_eq!(text, "2000-01-02T01:02:03.000004Z");
        assert_eq!(moment(i64::MAX, "Z"), "infinity");
        assert_eq!(moment(-730_120 * DAY, ""), "0001-12-31T00:00:00.000000 BC");
    }

    #[test]
    fn s12_decimals_keep_every_digit() {
        let shown = |words: &[u16]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            numeric(&bytes)
        };
        for (words, text) in [
            (&[0, 0, 0, 0][..], "0"),
            (&[0, 0, 0, 2], "0.00"),
            (&[2, 0, 0x4000, 2, 1, 5000], "-1.50"),
            (&[1, 1, 0, 0, 3], "30000"),
            (&[1, u16::MAX, 0, 3, 50], "0.005"),
            (&[1, u16::MAX - 1, 0, 8, 1], "0.00000001"),
            (&[0, 0, 0xC000, 0], "NaN"),
            (&[0, 0, 0xF000, 0], "-Infinity"),
        ] {
            assert_eq!(shown(words).as_deref(), Some(text));
        }
        assert_eq!(shown(&[1, 0, 0, 0]), None);
    }
}
