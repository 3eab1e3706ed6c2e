//! Values as JSON: exactly; or, where JSON has no such value, as text; or not at all, with the name
//! and the type of the column. A value that became another on its way would be cached, and be
//! believed for as long as it is fresh.

#![cfg_attr(
    not(all(feature = "sqlite", feature = "mysql", feature = "postgres")),
    allow(dead_code, reason = "not each database needs each of these")
)]

mod fields;
#[cfg(feature = "mysql")]
pub(super) mod mysql;
#[cfg(feature = "postgres")]
pub(super) mod postgres;
#[cfg(feature = "sqlite")]
pub(super) mod sqlite;

use std::ops::Index;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::SourceError;

/// One row: its columns in the order of the query, each with its value as JSON.
///
/// ```
/// # fn f(row: &steadfast_cache::Row) {
/// let name = row["name"].as_str();
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    cells: Vec<(Box<str>, Cell)>,
}

#[derive(Clone, Debug)]
struct Cell {
    value: Value,
    origin: Origin,
}

/// The type that a value had in the database, where JSON does not show it.
#[derive(Clone, Debug)]
enum Origin {
    /// Returns its form in JSON.
    Plain,
    /// A document of a JSON column, or a list of such, as the database gave it: a [`Value`] would
    /// round its numbers and order its members.
    Document(Box<RawValue>),
    /// Bytes, of which the value has the hexadecimal digits; or a list of such.
    Bytes,
    /// A floating-point number that JSON has none for, so that its name stands for it; or a list in
    /// which there are such.
    Float,
}

impl Row {
    /// Returns the value of a column. A document that a [`Value`] cannot hold (a number beyond
    /// `f64`, more than 127 levels) is its text here; serialized, the row has every document as the
    /// database gave it.
    #[must_use]
    pub fn get(&self, column: &str) -> Option<&Value> {
        self.iter()
            .find_map(|(name, value)| (name == column).then_some(value))
    }

    /// Returns columns and values, in the order of the query.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.cells.iter().map(|(name, cell)| (&**name, &cell.value))
    }

    /// Adds the next column. Two of one name would be one member of an object.
    fn push(&mut self, column: &str, cell: Cell) -> Result<(), SourceError> {
        if self.get(column).is_some() {
            return Err(SourceError::ColumnTwice {
                column: column.to_owned(),
            });
        }
        self.cells.push((column.into(), cell));
        Ok(())
    }
}

impl Index<&str> for Row {
    type Output = Value;

    /// # Panics
    /// If the row has no such column.
    fn index(&self, column: &str) -> &Value {
        self.get(column).expect("the row has a column of this name")
    }
}

impl PartialEq for Cell {
    fn eq(&self, other: &Self) -> bool {
        let same_origin = match (&self.origin, &other.origin) {
            (Origin::Document(text), Origin::Document(other)) => text.get() == other.get(),
            (origin, other) => std::mem::discriminant(origin) == std::mem::discriminant(other),
        };
        self.value == other.value && same_origin
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.cells.len()))?;
        for (name, cell) in &self.cells {
            map.serialize_entry(&**name, cell)?;
        }
        map.end()
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.origin {
            Origin::Document(document) => document.serialize(serializer),
            Origin::Plain | Origin::Bytes | Origin::Float => self.value.serialize(serializer),
        }
    }
}

impl<T: Into<Value>> From<T> for Cell {
    fn from(value: T) -> Self {
        Self {
            value: value.into(),
            origin: Origin::Plain,
        }
    }
}

impl Cell {
    /// A document of a JSON column.
    fn document(text: &str) -> Result<Self, Unfit> {
        let document = RawValue::from_string(text.to_owned());
        Ok(Self {
            value: serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
            origin: Origin::Document(document.map_err(|_| Unfit::Value("it is not JSON"))?),
        })
    }

    /// A list of values of one type.
    fn list(cells: Vec<Self>) -> Result<Self, Unfit> {
        let unlike_json = cells.iter().map(|cell| &cell.origin);
        let mut unlike_json = unlike_json.filter(|origin| !matches!(origin, Origin::Plain));
        let origin = match unlike_json.next() {
            None => Origin::Plain,
            Some(Origin::Document(_)) => {
                let text = serde_json::value::to_raw_value(&cells);
                Origin::Document(text.map_err(|_| Unfit::Value("it cannot be written as JSON"))?)
            }
            Some(origin) => origin.clone(),
        };
        let value = cells.into_iter().map(|cell| cell.value).collect();
        Ok(Self { value, origin })
    }
}

/// The reason why a value has no form here.
enum Unfit {
    /// Nothing of its type has one.
    Type,
    /// A value that has none.
    Value(&'static str),
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for Unfit {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<std::str::Utf8Error> for Unfit {
    fn from(_: std::str::Utf8Error) -> Self {
        Self::Value("it is not valid UTF-8")
    }
}

impl Unfit {
    fn at(self, column: &str, type_name: &str) -> SourceError {
        let (column, type_name) = (column.to_owned(), type_name.to_owned());
        match self {
            Self::Type => SourceError::ColumnType { column, type_name },
            Self::Value(problem) => SourceError::ColumnValue {
                column,
                type_name,
                problem,
            },
            Self::Sql(error) => error.into(),
        }
    }
}

/// Bytes, in hexadecimal.
fn hex(bytes: &[u8]) -> Cell {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    Cell {
        value: text.into(),
        origin: Origin::Bytes,
    }
}

/// A number; as text if it is none that JSON has.
fn double(value: f64) -> Cell {
    let name = match serde_json::Number::from_f64(value) {
        Some(number) => return Value::Number(number).into(),
        None if value.is_nan() => "NaN",
        None if value > 0.0 => "Infinity",
        None => "-Infinity",
    };
    Cell {
        value: name.into(),
        origin: Origin::Float,
    }
}

/// A number of single precision, with the digits that tell it from its neighbours: 0.1, and not the
/// 0.10000000149011612 of double precision.
fn single(value: f32) -> Cell {
    match value.to_string().parse::<f64>() {
        Ok(same) if value.is_finite() => double(same),
        _ => double(f64::from(value)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn s12_a_row_keeps_its_order_and_its_documents_and_refuses_a_name_given_twice() {
        let mut row = Row::default();
        let deep = format!("{}1e400{}", "[".repeat(200), "]".repeat(200));
        row.push("z", 1.into()).ok().unwrap();
        row.push("a", Cell::document(&deep).ok().unwrap()).unwrap();
        row.push("é", Cell::document("{\"b\":1.0,\"a\":0.10}").ok().unwrap())
            .unwrap();
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(
            text,
            format!("{{\"z\":1,\"a\":{deep},\"é\":{{\"b\":1.0,\"a\":0.10}}}}")
        );
        assert_eq!(row["a"], *deep);
        let again = row.push("z", 2.into()).unwrap_err().to_string();
        assert!(again.contains('z') && again.contains("AS"), "{again}");
        assert!(Cell::document("{").is_err());
    }

    #[test]
    fn s12_what_json_has_no_number_for_is_text() {
        let shown = |cell: Cell| cell.value.to_string();
        assert_eq!(shown(single(0.1)), "0.1");
        assert_eq!(shown(single(f32::MAX)), "3.4028235e+38");
        assert_eq!(shown(single(f32::NAN)), "\"NaN\"");
        assert_eq!(shown(single(f32::NEG_INFINITY)), "\"-Infinity\"");
        assert_eq!(shown(double(f64::INFINITY)), "\"Infinity\"");
        assert_eq!(shown(double(5e-324)), "5e-324");
        assert_eq!(shown(double(-0.0)), "-0.0");
        assert_eq!(shown(hex(&[0, 255, 16])), "\"00ff10\"");
    }
}
