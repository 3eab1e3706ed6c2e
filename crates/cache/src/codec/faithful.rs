//! Whether JSON brings a value back as it was.
//!
//! It has no word for NaN and infinity, nor for `Some(None)` and `Some(())`: all are written as
//! `null`, and read as `None`. A serializer that writes nothing walks over a value in whose JSON a
//! `null` was found, and refuses it if that `null` stands for something else than nothing.
//!
//! And what is nested too deep can be written, but not read: the reader bounds its own stack.

use std::fmt::Display;

use serde::ser::{self, Serialize, Serializer};

/// Refuses a value that would come back as another one.
pub(super) fn check<T: Serialize + ?Sized>(value: &T) -> Result<(), Unfaithful> {
    value.serialize(Walk { within_some: false })
}

/// Whether lists and maps are nested deeper in it than serde_json reads them.
pub(super) fn is_deep(json: &[u8]) -> bool {
    let opens = |byte: &&u8| matches!(byte, b'[' | b'{');
    // Nearly everything has fewer of them altogether.
    if json.iter().filter(opens).count() <= DEEPEST {
        return false;
    }
    let (mut depth, mut in_text, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                if depth > DEEPEST {
                    return true;
                }
            }
            b']' | b'}' if !in_text => depth -= 1,
            _ => {}
        }
    }
    false
}

/// The depth that serde_json reads by default.
const DEEPEST: usize = 127;

/// A value that JSON cannot hold.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unfaithful(String);

impl ser::Error for Unfaithful {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

type Walked = Result<(), Unfaithful>;

struct Walk {
    /// Whether what comes now is what an option holds.
    within_some: bool,
}

impl Walk {
    fn nothing(&self) -> Walked {
        if self.within_some {
            let problem =
                "JSON writes an option that holds nothing, such as Some(None), as if it were empty";
            return Err(Unfaithful(problem.to_owned()));
        }
        Ok(())
    }

    fn float(number: f64) -> Walked {
        if number.is_finite() {
            return Ok(());
        }
        Err(Unfaithful(format!(
            "JSON has no word for the number {number}"
        )))
    }
}

macro_rules! held {
    ($($name:ident: $of:ty),*) => {$(
        fn $name(self, _: $of) -> Walked {
            Ok(())
        }
    )*};
}

impl Serializer for Walk {
    type Ok = ();
    type Error = Unfaithful;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    held!(
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128, serialize_char: char,
        serialize_str: &str, serialize_bytes: &[u8]
    );

    fn serialize_f32(self, number: f32) -> Walked {
        Self::float(number.into())
    }

    fn serialize_f64(self, number: f64) -> Walked {
        Self::float(number)
    }

    fn serialize_none(self) -> Walked {
        self.nothing()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Walked {
        value.serialize(Self { within_some: true })
    }

    fn serialize_unit(self) -> Walked {
        self.nothing()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Walked {
        self.nothing()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Walked {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Walked {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Walked {
        check(value)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Unfaithful> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Unfaithful> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Unfaithful> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Unfaithful> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Unfaithful> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Unfaithful> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Unfaithful> {
        Ok(self)
    }
}

macro_rules! parts {
    ($($of:ident: $part:ident($($name:ty)?)),*) => {$(
        impl ser::$of for Walk {
            type Ok = ();
            type Error = Unfaithful;

            fn $part<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Walked {
                check(value)
            }

            fn end(self) -> Walked {
                Ok(())
            }
        }
    )*};
}

parts!(
    SerializeSeq: serialize_element(),
    SerializeTuple: serialize_element(),
    SerializeTupleStruct: serialize_field(),
    SerializeTupleVariant: serialize_field(),
    SerializeStruct: serialize_field(&'static str),
    SerializeStructVariant: serialize_field(&'static str)
);

impl ser::SerializeMap for Walk {
    type Ok = ();
    type Error = Unfaithful;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Walked {
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Walked {
        check(value)
    }

    fn end(self) -> Walked {
        Ok(())
    }
}
