//! SQLite's types belong to values, not to columns.

use sqlx::sqlite::SqliteRow;
use sqlx::{Column, Row as _, TypeInfo, ValueRef};

use super::{Cell, Row, Unfit, double, hex};
use crate::sql::SourceError;

pub(in crate::sql) fn row(from: &SqliteRow) -> Result<Row, SourceError> {
    let mut row = Row::default();
    for (at, column) in from.columns().iter().enumerate() {
        let (name, type_name) = (column.name(), type_name(from, at)?);
        let cell = cell(from, at, &type_name).map_err(|why| why.at(name, &type_name))?;
        row.push(name, cell)?;
    }
    Ok(row)
}

fn type_name(row: &SqliteRow, at: usize) -> Result<String, SourceError> {
    let raw = row.try_get_raw(at)?;
    Ok(if raw.is_null() {
        "NULL".to_owned()
    } else {
        raw.type_info().name().to_owned()
    })
}

fn cell(row: &SqliteRow, at: usize, type_name: &str) -> Result<Cell, Unfit> {
    Ok(match type_name {
        "NULL" => ().into(),
        "REAL" => double(row.try_get_unchecked(at)?),
        "BLOB" => hex(row.try_get_unchecked(at)?),
        "INTEGER" => row.try_get_unchecked::<i64, _>(at)?.into(),
        // A text may hold any bytes.
        _ => std::str::from_utf8(row.try_get_unchecked(at)?)?.into(),
    })
}
