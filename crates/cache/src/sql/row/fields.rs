//! A row as serde reads it: each column is the field of its name.
//!
//! Unlike JSON, a row knows no truth where the database knows none (MySQL, MariaDB, SQLite): there
//! it is 0 or 1, and whoever asks for a `bool` gets one. And it knows bytes and all floating-point
//! numbers, for whoever asks for these.

use serde::de::value::{BorrowedStrDeserializer, SeqDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

use super::{Cell, Origin, Row};

/// Reads the row as a struct or a map of its columns.
///
/// ```
/// # fn f(row: &steadfast_cache::Row) -> Result<(), Box<dyn std::error::Error>> {
/// use serde::Deserialize;
///
/// #[derive(Deserialize)]
/// struct User { id: u64, admin: bool, picture: Option<Vec<u8>> }
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
        let read = match &cell.origin {
            Origin::Document(document) => seed.deserialize(&**document),
            origin => seed.deserialize(Field(&cell.value, origin)),
        };
        read.map_err(|error| Error::custom(format_args!("column {name}: {}", unquoted(&error))))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// A value that is no document, and what it was.
struct Field<'de>(&'de Value, &'de Origin);

impl<'de> Field<'de> {
    /// Returns its bytes, if it is bytes.
    fn bytes(&self) -> Option<Vec<u8>> {
        match (self.1, self.0) {
            (Origin::Bytes, Value::String(digits)) => from_hex(digits),
            _ => None,
        }
    }

    /// Returns its number, if JSON has none for it.
    fn float(&self) -> Option<f64> {
        match (self.1, self.0) {
            (Origin::Float, Value::String(name)) => name.parse().ok(),
            _ => None,
        }
    }

    fn elements<V: Visitor<'de>>(
        values: &'de [Value],
        origin: &'de Origin,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let fields = values.iter().map(|value| Self(value, origin));
        sequence(SeqDeserializer::new(fields), visitor)
    }
}

/// What is wrong, without the value, which serde quotes: it may be a secret.
fn unquoted(error: &Error) -> String {
    let text = error.to_string();
    let quoted = ["invalid type: ", "invalid value: ", "unknown variant "]
        .iter()
        .find_map(|prefix| Some(text.find(prefix)? + prefix.len()));
    let begin = quoted.and_then(|at| Some(at + text[at..].find(['"', '`'])?));
    let end = text.rfind(", expected ");
    match begin.zip(end) {
        Some((begin, end)) if begin < end => {
            format!("{}{}", text[..begin].trim_end(), &text[end..])
        }
        _ => text,
    }
}

impl<'de> IntoDeserializer<'de, Error> for Field<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Hands out a sequence, of which nothing must be left.
fn sequence<'de, I, T, V>(
    mut elements: SeqDeserializer<I, Error>,
    visitor: V,
) -> Result<V::Value, Error>
where
    I: Iterator<Item = T>,
    T: IntoDeserializer<'de, Error>,
    V: Visitor<'de>,
{
    let value = visitor.visit_seq(&mut elements)?;
    elements.end()?;
    Ok(value)
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if rest.is_empty() {
        bytes.collect()
    } else {
        None
    }
}

/// Reads a value as serde_json does.
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

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.float() {
            Some(number) => visitor.visit_f64(number),
            None => self.0.deserialize_f64(visitor),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.bytes() {
            Some(bytes) => visitor.visit_byte_buf(bytes),
            None => self.0.deserialize_byte_buf(visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if let Some(bytes) = self.bytes() {
            return sequence(SeqDeserializer::new(bytes.into_iter()), visitor);
        }
        match self.0 {
            Value::Array(values) => Self::elements(values, self.1, visitor),
            other => other.deserialize_seq(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
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
        deserialize_u16(), deserialize_u32(), deserialize_u64(), deserialize_u128(), deserialize_char(), deserialize_str(), deserialize_string(), deserialize_unit(),
        deserialize_unit_struct(name: &'static str), deserialize_map(),
        deserialize_struct(name: &'static str, fields: &'static [&'static str]),
        deserialize_enum(name: &'static str, variants: &'static [&'static str]), deserialize_identifier(), deserialize_ignored_any(),
    }
}

/// The beginning of the name by which serde_json asks for a
/// [`RawValue`](serde_json::value::RawValue).
const RAW: &str = "$serde_json::private::";
