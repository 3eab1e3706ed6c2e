//! The kinds of keys: text, bytes, a number, a UUID, or a type of the caller's own.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

/// A key of the cache. Implemented for text, bytes, whole numbers and UUIDs; a type of one's own
/// says how it is written:
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
///
///     // What Target::tag("hall:3") invalidates: the values of all its seats.
///     fn tags(&self) -> Vec<Vec<u8>> {
///         vec![format!("hall:{}", self.hall).into()]
///     }
/// }
/// ```
pub trait Key {
    /// Returns its bytes. Two keys that write the same are the same.
    fn name(&self) -> KeyName<'_>;

    /// Returns the tags that its value carries, beside those of the view and the class; none by
    /// default. They must follow from its bytes. A view whose keys have tags is to be read by keys
    /// of that type only: text with the same bytes has none.
    fn tags(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }
}

/// The bytes of a key, borrowed where they lie in it already.
///
/// ```
/// use steadfast_cache::{Key, KeyName};
///
/// struct Login(String);
///
/// impl Key for Login {
///     fn name(&self) -> KeyName<'_> {
///         KeyName::lent(self.0.as_bytes())
///     }
/// }
/// assert_eq!(&*Login("ada".to_owned()).name(), b"ada");
/// ```
#[derive(Clone, Debug)]
pub struct KeyName<'k>(Bytewise<'k>);

#[derive(Clone, Debug)]
enum Bytewise<'k> {
    Lent(&'k [u8]),
    Written(SmallVec<[u8; ROOM]>),
    Long { whole: Vec<u8>, short: Vec<u8> },
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
        // Writing into memory fails only if a part of the text says that it cannot be written, and
        // then the rest of it is the key.
        let _ = bytes.write_fmt(text);
        Self(Bytewise::Written(bytes.0))
    }

    /// The same, not longer than a name may be: what is, is known by a hash of it.
    #[inline(always)]
    pub(crate) fn bounded(self) -> Self {
        if is_short(&self) { self } else { self.cut() }
    }

    #[cold]
    fn cut(self) -> Self {
        Self(Bytewise::Long {
            short: shortened(&self),
            whole: self.to_vec(),
        })
    }

    /// Returns its bytes as they were before it was shortened.
    pub(crate) fn whole(&self) -> &[u8] {
        match &self.0 {
            Bytewise::Long { whole, .. } => whole,
            _ => self,
        }
    }

    /// The same behind a prefix.
    #[inline(always)]
    pub(crate) fn behind(self, prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return self;
        }
        self.written_behind(prefix)
    }

    /// Reads the name as the cache knows it: behind the prefix, and not longer than it may be. It
    /// is written, where it has to be, into room of the caller's, and moved nowhere.
    #[inline(always)]
    pub(crate) fn read_behind<R>(self, prefix: &[u8], read: impl FnOnce(&[u8]) -> R) -> R {
        // What is lent is not to be dropped, which the compiler does not see. A long one that was
        // written is not freed if `read` panics.
        let own = ManuallyDrop::new(self);
        let (mut room, long);
        let length = prefix.len() + own.len();
        let name = if prefix.is_empty() && is_short(&own) {
            &**own
        } else if length <= ROOM {
            room = [0; ROOM];
            room[..prefix.len()].copy_from_slice(prefix);
            room[prefix.len()..length].copy_from_slice(&own);
            &room[..length]
        } else {
            long = own.written_behind(prefix).bounded();
            &long
        };
        let read = read(name);
        if !matches!(own.0, Bytewise::Lent(_)) {
            drop(ManuallyDrop::into_inner(own));
        }
        read
    }

    fn written_behind(&self, prefix: &[u8]) -> Self {
        let mut bytes = SmallVec::with_capacity(prefix.len() + self.len());
        bytes.extend_from_slice(prefix);
        bytes.extend_from_slice(self);
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
            Bytewise::Long { short, .. } => short,
        }
    }
}

/// A key or a tag as the cache knows it: what is too long to be carried about is its beginning and
/// a hash of all of it. That of a caller which looks like one is hashed too, so that no two names
/// become one.
pub(crate) fn bounded(name: &[u8]) -> Cow<'_, [u8]> {
    if is_short(name) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(shortened(name))
    }
}

#[inline]
fn is_short(name: &[u8]) -> bool {
    name.len() <= LONGEST && !(name.len() == SHORTENED && name[BEGINNING] == 0)
}

#[cold]
fn shortened(name: &[u8]) -> Vec<u8> {
    let hash = Sha256::digest(name);
    let mut short = Vec::with_capacity(SHORTENED);
    short.extend_from_slice(&name[..BEGINNING]);
    short.push(0);
    for byte in hash {
        short.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    short
}

/// A name of this many bytes is carried as it is.
const LONGEST: usize = 512;
/// Of a longer one so many, so that people and prefixes can tell it, then a zero, then its SHA-256
/// in hexadecimal.
const BEGINNING: usize = 64;
const SHORTENED: usize = BEGINNING + 1 + 64;

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

    fn tags(&self) -> Vec<Vec<u8>> {
        (**self).tags()
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

macro_rules! numbers_are_keys {
    ($($of:ty),*) => {$(
        /// In decimal.
        impl Key for $of {
            fn name(&self) -> KeyName<'_> {
                let digits = SmallVec::from_slice(itoa::Buffer::new().format(*self).as_bytes());
                KeyName(Bytewise::Written(digits))
            }
        }
    )*};
}

/// As it is displayed.
impl Key for sqlx::types::Uuid {
    fn name(&self) -> KeyName<'_> {
        KeyName::written(format_args!("{self}"))
    }
}

bytes_are_keys!([u8], Vec<u8>, Box<[u8]>, Arc<[u8]>, Bytes, Cow<'_, [u8]>);
texts_are_keys!(str, String, Box<str>, Arc<str>, Cow<'_, str>);
numbers_are_keys!(
    i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize
);

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
    fn k13_a_long_name_is_its_beginning_and_a_hash_of_the_whole() {
        let (long, other) = ([b'x'; 40_000], [b'x'; 40_001]);
        let short = long.name().behind(b"p:").bounded();
        assert!(short.len() == SHORTENED && short.starts_with(b"p:xxx"));
        assert_eq!(short.whole().len(), 40_002);
        assert_ne!(*bounded(&long), *bounded(&other));
        assert_eq!(*bounded(&[b'x'; LONGEST]), [b'x'; LONGEST]);
        // One that is made to look like another's hash is another name.
        let forged = bounded(&long).into_owned();
        assert_ne!(*bounded(&forged), *forged);
        assert_eq!(bounded(&forged).len(), SHORTENED);
    }

    /// By whoever glances as by whoever looks longer, or memory would not be found again.
    #[test]
    fn k1_a_name_is_the_same_wherever_it_is_put_together() {
        let long = "x".repeat(2000);
        let forged = [&[b'f'; BEGINNING][..], &[0], &[b'a'; 64]].concat();
        let of = |length| &long.as_bytes()[..length];
        let keys = [0, 1, 30, ROOM, ROOM + 1, 500, LONGEST, LONGEST + 1].map(of);
        for key in keys.into_iter().chain([&*forged]) {
            for prefix in ["", "user:", &long[..ROOM], &long[..600]].map(str::as_bytes) {
                let written = || {
                    let mut bytes = Bytes40::default();
                    bytes.0.extend_from_slice(key);
                    KeyName(Bytewise::Written(bytes.0))
                };
                let expected = KeyName::lent(key).behind(prefix).bounded();
                for name in [KeyName::lent(key), written()] {
                    let seen = name.read_behind(prefix, <[u8]>::to_vec);
                    assert_eq!(seen, &*expected, "{} {}", key.len(), prefix.len());
                }
            }
        }
    }

    #[test]
    fn k1_a_key_is_its_bytes_whatever_type_it_has() {
        assert_eq!(&*"7".name(), &*7u64.name());
        assert_eq!(&*String::from("a").name(), &*b"a".name());
        assert_eq!(&*(-1i64).name().behind(b"n:"), b"n:-1");
        let least = i128::MIN.to_string();
        assert_eq!(&*i128::MIN.name(), least.as_bytes());
        let long = "x".repeat(100);
        assert_eq!(&*KeyName::written(format_args!("{long}")), long.as_bytes());
        assert_eq!(
            &*long.name().behind(b"long:"),
            format!("long:{long}").as_bytes()
        );
    }
}
