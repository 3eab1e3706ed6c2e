//! What a key may be: text, bytes, a number, a UUID, or a type of the caller's own.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

/// A key of the cache. Implemented for text, bytes, whole numbers and UUIDs; a type of one's own says how it is written:
///
/// ```
/// use steadfast_cache::{Key, KeyName};
///
/// struct Seat { hall: u8, row: u16 }
///
/// impl Key for Seat {
///     fn name(&self) -> KeyName<'_> {
///         KeyName::written(format_args!("{}:{}", self.hall, self.row))
///     }
/// }
/// ```
pub trait Key {
    /// Its bytes. Two keys that write the same are the same.
    fn name(&self) -> KeyName<'_>;
}

/// The bytes of a key, borrowed where they lie in it already.
#[derive(Clone, Debug)]
pub struct KeyName<'k>(Bytewise<'k>);

#[derive(Clone, Debug)]
enum Bytewise<'k> {
    Lent(&'k [u8]),
    Written(SmallVec<[u8; ROOM]>),
}

impl<'k> KeyName<'k> {
    /// Bytes that lie in the key.
    #[must_use]
    pub fn lent(bytes: &'k [u8]) -> Self {
        Self(Bytewise::Lent(bytes))
    }

    /// Text that is written out; up to 40 bytes nothing is allocated for it.
    #[must_use]
    pub fn written(text: fmt::Arguments<'_>) -> Self {
        let mut bytes = Bytes40::default();
        // Writing into memory fails only if a part of the text says that it cannot be written, and then the rest of it is the key.
        let _ = bytes.write_fmt(text);
        Self(Bytewise::Written(bytes.0))
    }

    /// The same behind a prefix.
    #[inline]
    pub(crate) fn behind(self, prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return self;
        }
        let mut bytes = SmallVec::with_capacity(prefix.len() + self.len());
        bytes.extend_from_slice(prefix);
        bytes.extend_from_slice(&self);
        Self(Bytewise::Written(bytes))
    }
}

impl Deref for KeyName<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytewise::Lent(bytes) => bytes,
            Bytewise::Written(bytes) => bytes,
        }
    }
}

#[derive(Default)]
struct Bytes40(SmallVec<[u8; ROOM]>);

impl Write for Bytes40 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl<K: Key + ?Sized> Key for &K {
    #[inline]
    fn name(&self) -> KeyName<'_> {
        (**self).name()
    }
}

macro_rules! bytes_are_keys {
    ($($of:ty),*) => {$(
        impl Key for $of {
            #[inline]
            fn name(&self) -> KeyName<'_> {
                KeyName::lent(self.as_ref())
            }
        }
    )*};
}

macro_rules! texts_are_keys {
    ($($of:ty),*) => {$(
        impl Key for $of {
            #[inline]
            fn name(&self) -> KeyName<'_> {
                KeyName::lent(self.as_bytes())
            }
        }
    )*};
}

macro_rules! displayed_are_keys {
    ($($of:ty),*) => {$(
        /// In decimal, or as it is displayed.
        impl Key for $of {
            fn name(&self) -> KeyName<'_> {
                KeyName::written(format_args!("{self}"))
            }
        }
    )*};
}

bytes_are_keys!([u8], Vec<u8>, Box<[u8]>, Arc<[u8]>, Bytes, Cow<'_, [u8]>);
texts_are_keys!(str, String, Box<str>, Arc<str>, Cow<'_, str>);
displayed_are_keys!(
    i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize
);
displayed_are_keys!(sqlx::types::Uuid);

impl<const N: usize> Key for [u8; N] {
    fn name(&self) -> KeyName<'_> {
        KeyName::lent(self)
    }
}

const ROOM: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k1_a_key_is_its_bytes_whatever_type_it_has() {
        assert_eq!(&*"7".name(), &*7u64.name());
        assert_eq!(&*String::from("a").name(), &*b"a".name());
        assert_eq!(&*(-1i64).name().behind(b"n:"), b"n:-1");
        let long = "x".repeat(100);
        assert_eq!(&*KeyName::written(format_args!("{long}")), long.as_bytes());
        assert_eq!(
            &*long.name().behind(b"long:"),
            format!("long:{long}").as_bytes()
        );
    }
}
