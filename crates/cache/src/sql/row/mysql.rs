//! MySQL and MariaDB. Truths are numbers here, as they are there: `BOOLEAN` is a name for
//! `TINYINT(1)`, which holds a 5 as well.

use sqlx::error::BoxDynError;
use sqlx::mysql::{MySql, MySqlRow, MySqlTypeInfo, MySqlValueRef};
use sqlx::{Column, Decode, Row as _, Type, TypeInfo, ValueRef};

use super::{Cell, Row, Unfit, double, hex, single};
use crate::sql::SourceError;

pub(in crate::sql) fn row(from: &MySqlRow) -> Result<Row, SourceError> {
    let mut row = Row::default();
    for (at, column) in from.columns().iter().enumerate() {
        let name = column.name();
        let info = from.try_get_raw(at)?.type_info().into_owned();
        let cell = cell(from, at, &info).map_err(|why| why.at(name, info.name()))?;
        row.push(name, cell)?;
    }
    Ok(row)
}

fn cell(row: &MySqlRow, at: usize, info: &MySqlTypeInfo) -> Result<Cell, Unfit> {
    let Sent(Some(bytes)) = row.try_get_unchecked(at)? else {
        return Ok(().into());
    };
    Ok(match info.name() {
        // At most 64 of them, the highest first.
        "BIT" => bytes
            .iter()
            .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte))
            .into(),
        // Asked before the signed ones, since a `BOOLEAN` may be either.
        _ if <u64 as Type<MySql>>::compatible(info) => row.try_get_unchecked::<u64, _>(at)?.into(),
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "INT" | "MEDIUMINT" | "BIGINT" => {
            row.try_get_unchecked::<i64, _>(at)?.into()
        }
        "FLOAT" => single(row.try_get_unchecked(at)?),
        "DOUBLE" => double(row.try_get_unchecked(at)?),
        "DECIMAL" => std::str::from_utf8(bytes)?.into(),
        "DATE" => date(bytes).into(),
        "TIMESTAMP" | "DATETIME" => moment(bytes).into(),
        "TIME" => time(bytes).into(),
        "JSON" => Cell::document(std::str::from_utf8(bytes)?)?,
        "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" | "CHAR"
        | "VARCHAR" | "ENUM" | "SET" | "TINYTEXT" | "TEXT" | "MEDIUMTEXT" | "LONGTEXT" => {
            // The names are of a flag which says how text is compared. That these are bytes, says
            // their collation.
            if <str as Type<MySql>>::compatible(info) {
                std::str::from_utf8(bytes)?.into()
            } else {
                hex(bytes)
            }
        }
        _ => return Err(Unfit::Type),
    })
}

/// The bytes that were sent, of whatever type; `None` for NULL. sqlx itself takes a date of zeros
/// for NULL too.
struct Sent<'r>(Option<&'r [u8]>);

impl<'r> Decode<'r, MySql> for Sent<'r> {
    fn decode(value: MySqlValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(<&[u8] as Decode<MySql>>::decode(value).ok()))
    }
}

impl Type<MySql> for Sent<'_> {
    fn type_info() -> MySqlTypeInfo {
        <[u8] as Type<MySql>>::type_info()
    }
}

/// The binary protocol's date: a length, then year, month and day, if they are not all zero.
fn date(bytes: &[u8]) -> String {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let year = u16::from_le_bytes([byte(1), byte(2)]);
    format!("{year:04}-{:02}-{:02}", byte(3), byte(4))
}

/// A date, then hour, minute and second, then microseconds, as far as they are not zero.
fn moment(bytes: &[u8]) -> String {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let micros = u32::from_le_bytes([byte(8), byte(9), byte(10), byte(11)]);
    let (hour, minute, second) = (byte(5), byte(6), byte(7));
    format!(
        "{}T{hour:02}:{minute:02}:{second:02}.{micros:06}",
        date(bytes)
    )
}

/// A length, a sign, then days, hours, minutes and seconds, then microseconds, as far as they are
/// not zero.
fn time(bytes: &[u8]) -> String {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let number = |at| u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
    let sign = if byte(1) == 0 { "" } else { "-" };
    let hours = u64::from(number(2)) * 24 + u64::from(byte(6));
    format!(
        "{sign}{hours:02}:{:02}:{:02}.{:06}",
        byte(7),
        byte(8),
        number(9)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s12_moments_have_one_form_whatever_the_protocol_leaves_out() {
        assert_eq!(moment(&[0]), "0000-00-00T00:00:00.000000");
        assert_eq!(moment(&[4, 0xea, 7, 11, 23]), "2026-11-23T00:00:00.000000");
        assert_eq!(
            moment(&[7, 0xea, 7, 11, 23, 1, 2, 3]),
            "2026-11-23T01:02:03.000000"
        );
        assert_eq!(
            moment(&[11, 0xea, 7, 11, 23, 1, 2, 3, 7, 0, 0, 0]),
            "2026-11-23T01:02:03.000007"
        );
        assert_eq!(time(&[0]), "00:00:00.000000");
        assert_eq!(time(&[8, 1, 34, 0, 0, 0, 22, 59, 58]), "-838:59:58.000000");
    }
}
