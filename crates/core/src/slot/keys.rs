//! The keys of a command, as far as its order with others is concerned.

use std::sync::Arc;

/// The keys of a command, by their hashes. Two keys of one hash make commands wait for one another
/// that need not; never the other way round.
///
/// ```
/// use steadfast_core::slot::KeySet;
///
/// let set = KeySet::of([&b"a"[..]]);
/// let rename = KeySet::of([&b"a"[..], b"b"]);
/// assert!(set.share(&rename));
/// assert!(!set.share(&KeySet::of([&b"b"[..]])));
/// assert!(set.share(&KeySet::Unknown));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySet {
    /// Nobody here knows which they are: the command keeps its order with all of its slot.
    Unknown,
    /// It has none.
    Empty,
    /// A single key.
    One(u64),
    /// More than one: sorted, each once.
    Several(Arc<[u64]>),
}

impl KeySet {
    /// Returns the keys of a command that has just these.
    pub fn of<'k>(names: impl IntoIterator<Item = &'k [u8]>) -> Self {
        let mut hashes = names.into_iter().map(Self::hash);
        match (hashes.next(), hashes.next()) {
            (None, _) => Self::Empty,
            (Some(only), None) => Self::One(only),
            (Some(first), Some(second)) => {
                Self::hashed([first, second].into_iter().chain(hashes).collect())
            }
        }
    }

    /// Returns the same of keys that are hashed already.
    pub fn hashed(mut hashes: Vec<u64>) -> Self {
        hashes.sort_unstable();
        hashes.dedup();
        match hashes[..] {
            [] => Self::Empty,
            [only] => Self::One(only),
            _ => Self::Several(hashes.into()),
        }
    }

    /// Returns the keys of several commands together.
    pub fn all<'k>(keys: impl IntoIterator<Item = &'k Self>) -> Self {
        let mut keys = keys.into_iter();
        let Some(first) = keys.next() else {
            return Self::Empty;
        };
        let mut hashes: Option<Vec<u64>> = None;
        for other in keys.filter(|other| *other != first) {
            let all = match hashes {
                None => first.hashes().map(<[u64]>::to_vec),
                hashes => hashes,
            };
            let (Some(mut all), Some(more)) = (all, other.hashes()) else {
                return Self::Unknown;
            };
            all.extend_from_slice(more);
            hashes = Some(all);
        }
        hashes.map_or_else(|| first.clone(), Self::hashed)
    }

    /// Returns the hash of a key: FNV-1a.
    pub fn hash(key: &[u8]) -> u64 {
        key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Returns whether two commands have a key in common, or may have.
    pub fn share(&self, other: &Self) -> bool {
        match (self.hashes(), other.hashes()) {
            (Some(few), Some(many)) if few.len() > many.len() => other.share(self),
            (Some(few), Some(many)) => few.iter().any(|key| many.binary_search(key).is_ok()),
            _ => true,
        }
    }

    /// Returns those of the keys that are not among others. Of keys that nobody knows all may stay.
    #[must_use]
    pub fn without(&self, others: &Self) -> Self {
        match (self.hashes(), others.hashes()) {
            (Some(keys), Some(others)) => {
                let left = keys.iter().filter(|key| others.binary_search(key).is_err());
                Self::hashed(left.copied().collect())
            }
            (_, None) => Self::Empty,
            (None, _) => Self::Unknown,
        }
    }

    /// Returns them by their hashes, in order; `None` if nobody knows them.
    fn hashes(&self) -> Option<&[u64]> {
        match self {
            Self::Unknown => None,
            Self::Empty => Some(&[]),
            Self::One(key) => Some(std::slice::from_ref(key)),
            Self::Several(keys) => Some(keys),
        }
    }
}
