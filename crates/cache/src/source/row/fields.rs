//! A row as serde reads it: each column is the field of its name.
//!
//! Unlike JSON, a row knows no truth where the database knows none (MySQL, MariaDB, SQLite): there it is 0 or 1, and whoever asks for a `bool` gets one.

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

use super::{Cell, Row};

/// Reads the row as a struct or a map of its columns.
///
/// ```
/// # fn f(row: &steadfast_cache::Row) -> Result<(), Box<dyn std::error::Error>> {
/// use serde::Deserialize;
///
/// #[derive(Deserialize)]
/// struct User { id: u64, admin: bool }
///
/// let user = User::deserialize(row)?;
/// # Ok(()) }
/// ```
impl<'de> Deserializer<'de> for &'de Row {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let (rest, value) = (self.cells.iter(), None);
        visitor.visit_map(Columns { rest, value })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name.starts_with(RAW) {
            let text = serde_json::to_vec(self)?;
            return serde_json::Deserializer::from_reader(&text[..])
                .deserialize_newtype_struct(name, visitor);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (rest, value) = (self.cells.iter(), None);
        serde::de::value::MapAccessDeserializer::new(Columns { rest, value })
            .deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier
        ignored_any
    }
}

struct Columns<'de> {
    rest: std::slice::Iter<'de, (Box<str>, Cell)>,
    value: Option<&'de (Box<str>, Cell)>,
}

impl<'de> MapAccess<'de> for Columns<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.value = self.rest.next();
        let name =
            |(name, _): &'de (Box<str>, Cell)| seed.deserialize(BorrowedStrDeserializer::new(name));
        self.value.map(name).transpose()
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let Some((name, cell)) = self.value.take() else {
            return Err(Error::custom("a value was asked for before its column"));
        };
        let read = match &cell.document {
            Some(document) => seed.deserialize(&**document),
            None => seed.deserialize(Field(&cell.value)),
        };
        read.map_err(|error| Error::custom(format_args!("column {name}: {error}")))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// A value that is no document.
struct Field<'de>(&'de Value);

/// As serde_json reads it.
macro_rules! as_json {
    ($($how:ident($($name:ident: $of:ty),*)),* $(,)?) => {$(
        fn $how<V: Visitor<'de>>(self, $($name: $of,)* visitor: V) -> Result<V::Value, Error> {
            self.0.$how($($name,)* visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Field<'de> {
    type Error = Error;

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.as_i64() {
            Some(number @ (0 | 1)) => visitor.visit_bool(number == 1),
            _ => self.0.deserialize_bool(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name.starts_with(RAW) {
            return self.0.deserialize_newtype_struct(name, visitor);
        }
        visitor.visit_newtype_struct(self)
    }

    as_json! {
        deserialize_any(), deserialize_i8(), deserialize_i16(), deserialize_i32(), deserialize_i64(), deserialize_i128(), deserialize_u8(),
        deserialize_u16(), deserialize_u32(), deserialize_u64(), deserialize_u128(), deserialize_f32(), deserialize_f64(), deserialize_char(),
        deserialize_str(), deserialize_string(), deserialize_bytes(), deserialize_byte_buf(), deserialize_unit(),
        deserialize_unit_struct(name: &'static str), deserialize_seq(), deserialize_tuple(length: usize),
        deserialize_tuple_struct(name: &'static str, length: usize), deserialize_map(),
        deserialize_struct(name: &'static str, fields: &'static [&'static str]),
        deserialize_enum(name: &'static str, variants: &'static [&'static str]), deserialize_identifier(), deserialize_ignored_any(),
    }
}

/// How the name begins by which serde_json asks for a [`RawValue`](serde_json::value::RawValue).
const RAW: &str = "$serde_json::private::";
