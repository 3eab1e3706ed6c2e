//! A type as its JSON shows it, in one number.
//!
//! JSON does not say of which type it is: a `User { id, name }` reads as a `Team { id, name }`. So
//! the number of the type that was written stands beside the value, and a reader of another type
//! takes it for missing. A type's name in Rust would not do: it changes with the module that the
//! type lies in, and with the compiler. What serde asks for does not: the name of a struct or an
//! enum (`#[serde(rename = "…")]` keeps it through a renaming), and whether it is text, a number, a
//! list, a map. It is found out by letting the type read itself from something that listens and
//! gives nothing.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Returns the number of a type: the same in every program.
pub(super) fn of<V: DeserializeOwned>() -> u32 {
    crc32fast::hash(asked_by::<V>().as_bytes())
}

fn asked_by<V: DeserializeOwned>() -> String {
    let mut asked = Vec::new();
    // It runs the caller's code: what was heard until it panicked tells enough.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        V::deserialize(Listener(&mut asked)).is_ok()
    }));
    asked.join(" of ")
}

/// Writes down what is asked of it, from the outside to the inside: of a list it hears the first
/// element, of a map the first key, of a struct the name.
struct Listener<'a>(&'a mut Vec<&'static str>);

impl Listener<'_> {
    /// Fails, if the type goes deeper than any needs to: one that is made of itself has no end.
    fn hear(&mut self, asked: &'static str) -> Result<(), NoValue> {
        if self.has_heard_enough() {
            return Err(NoValue);
        }
        self.0.push(asked);
        if self.has_heard_enough() {
            Err(NoValue)
        } else {
            Ok(())
        }
    }

    /// Then there is nothing more in it either: a type that passes over elements which it cannot
    /// read would ask for the next one for ever.
    fn has_heard_enough(&self) -> bool {
        self.0.len() >= DEEPEST
    }
}

macro_rules! heard_as {
    ($($as:literal: $($how:ident)*;)*) => {$($(
        fn $how<V: Visitor<'de>>(mut self, _: V) -> Result<V::Value, NoValue> {
            self.hear($as).and(Err(NoValue))
        }
    )*)*};
}

macro_rules! heard_by_name {
    ($($how:ident($($of:ty),*);)*) => {$(
        fn $how<V: Visitor<'de>>(mut self, name: &'static str, $(_: $of,)* _: V) -> Result<V::Value, NoValue> {
            self.hear(name).and(Err(NoValue))
        }
    )*};
}

impl<'de> Deserializer<'de> for Listener<'_> {
    type Error = NoValue;

    heard_as! {
        "anything": deserialize_any deserialize_ignored_any;
        "truth": deserialize_bool;
        "number": deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
            deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
            deserialize_f32 deserialize_f64;
        "text": deserialize_char deserialize_str deserialize_string deserialize_identifier;
        "bytes": deserialize_bytes deserialize_byte_buf;
        "nothing": deserialize_unit;
    }
    heard_by_name! {
        deserialize_unit_struct();
        deserialize_tuple_struct(usize);
        deserialize_struct(&'static [&'static str]);
        deserialize_enum(&'static [&'static str]);
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, NoValue> {
        self.hear("perhaps")?;
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, NoValue> {
        self.hear(name)?;
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, NoValue> {
        self.hear("list")?;
        visitor.visit_seq(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        mut self,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, NoValue> {
        self.hear("tuple")?;
        visitor.visit_seq(self)
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, NoValue> {
        self.hear("map")?;
        visitor.visit_map(self)
    }
}

impl<'de> SeqAccess<'de> for Listener<'_> {
    type Error = NoValue;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, NoValue> {
        if self.has_heard_enough() {
            return Ok(None);
        }
        seed.deserialize(Listener(self.0)).map(Some)
    }
}

impl<'de> MapAccess<'de> for Listener<'_> {
    type Error = NoValue;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, NoValue> {
        if self.has_heard_enough() {
            return Ok(None);
        }
        seed.deserialize(Listener(self.0)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, NoValue> {
        seed.deserialize(Listener(self.0))
    }
}

/// The listener has no value to give.
#[derive(Debug, thiserror::Error)]
#[error("there is no value")]
struct NoValue;

impl serde::de::Error for NoValue {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

const DEEPEST: usize = 16;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;

    #[derive(serde::Deserialize)]
    struct User {
        _id: u64,
    }

    mod elsewhere {
        #[derive(serde::Deserialize)]
        pub(super) struct User {
            _id: i64,
            _since: Option<u16>,
        }
    }

    #[derive(serde::Deserialize)]
    struct Team {
        _id: u64,
    }

    #[derive(serde::Deserialize)]
    struct Endless(#[expect(dead_code, reason = "it is only asked for")] Vec<Endless>);

    /// Passes over what it cannot read, as some types do.
    struct Lenient;

    impl<'de> serde::Deserialize<'de> for Lenient {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_seq(Lenient)
        }
    }

    impl<'de> Visitor<'de> for Lenient {
        type Value = Self;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self, A::Error> {
            while !matches!(elements.next_element::<u64>(), Ok(None)) {}
            Ok(self)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
            while !matches!(entries.next_key::<u64>(), Ok(None)) {}
            Ok(self)
        }
    }

    #[test]
    fn k12_a_type_that_passes_over_what_it_cannot_read_comes_to_an_end() {
        assert_eq!(asked_by::<Lenient>().split(" of ").count(), DEEPEST);
        let mut asked = Vec::new();
        assert!(Listener(&mut asked).deserialize_map(Lenient).is_ok());
        assert_eq!(asked.len(), DEEPEST);
    }

    #[test]
    fn k12_types_are_told_apart_by_what_serde_calls_them_and_by_nothing_else() {
        assert_eq!(asked_by::<User>(), "User");
        assert_eq!(asked_by::<Arc<elsewhere::User>>(), "User");
        assert_eq!(asked_by::<Team>(), "Team");
        assert_eq!(asked_by::<Option<Vec<Team>>>(), "perhaps of list of Team");
        assert_eq!(asked_by::<(Team, User)>(), "tuple of Team");
        assert_eq!(asked_by::<BTreeMap<String, Team>>(), "map of text");
        assert_eq!(asked_by::<u8>(), asked_by::<i64>());
        assert_ne!(of::<User>(), of::<Team>());
        assert_ne!(of::<String>(), of::<u64>());
        // One that is made of itself comes to an end.
        assert_eq!(asked_by::<Endless>().split(" of ").count(), DEEPEST);
    }
}
