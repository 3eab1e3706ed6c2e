//! The slot of a key, which decides the server that owns it in a cluster.
//!
//! A cluster divides all keys among 16 384 slots. The slot is a checksum of the key, or of the part
//! between its first braces, so that keys with the same part in braces stay together. A client that
//! computes another slot than the server pays one redirect for each command; so this follows the
//! [cluster
//! specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/) to
//! the letter, and the tests ask a real server.

mod keys;

use std::fmt;

pub use self::keys::KeySet;

/// The number of slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// One of the 16 384 slots of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// Returns the slot of this number, or `None` from 16 384 on.
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// Returns the slot to which a key belongs.
    ///
    /// ```
    /// use steadfast_core::slot::Slot;
    ///
    /// assert_eq!(Slot::of_key(b"foo").number(), 12182);
    /// assert_eq!(Slot::of_key(b"{user1000}.following"), Slot::of_key(b"user1000"));
    /// ```
    #[inline]
    pub fn of_key(key: &[u8]) -> Self {
        Self(crc16(hash_tag(key)) % SLOTS)
    }

    /// Returns the number of the slot, from 0 to 16 383.
    pub fn number(self) -> u16 {
        self.0
    }

    /// Returns the number of the slot as an index.
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns the part of a key that decides its slot: what stands between the first `{` and the first
/// `}` behind it, if that is not empty; else the whole key.
#[inline]
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = memchr::memchr(b'{', key) else {
        return key;
    };
    let inside = &key[open + 1..];
    match memchr::memchr(b'}', inside) {
        None | Some(0) => key,
        Some(end) => &inside[..end],
    }
}

/// Returns the common slot of some keys.
///
/// # Errors
/// Two of the slots, if the keys do not all belong to the same one.
pub fn common_slot<'a>(
    keys: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<Slot>, (Slot, Slot)> {
    let mut common = None;
    for key in keys {
        let slot = Slot::of_key(key);
        match common {
            None => common = Some(slot),
            Some(first) if first != slot => return Err((first, slot)),
            Some(_) => {}
        }
    }
    Ok(common)
}

/// Slots from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotRange {
    first: Slot,
    last: Slot,
}

impl SlotRange {
    /// Returns the range from `first` to `last`, or `None` if they are in the wrong order.
    pub fn new(first: Slot, last: Slot) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Returns the range of all slots.
    pub fn all() -> Self {
        Self {
            first: Slot(0),
            last: Slot(SLOTS - 1),
        }
    }

    /// Returns the first slot of the range.
    pub fn first(self) -> Slot {
        self.first
    }

    /// Returns the last slot of the range.
    pub fn last(self) -> Slot {
        self.last
    }

    /// Returns the slots of the range in their order.
    pub fn slots(self) -> impl Iterator<Item = Slot> {
        (self.first.0..=self.last.0).map(Slot)
    }

    /// Joins slots that are given in their order into as few ranges as possible.
    pub fn join(slots: impl IntoIterator<Item = Slot>) -> Vec<Self> {
        let mut ranges: Vec<Self> = Vec::new();
        for slot in slots {
            match ranges.last_mut() {
                Some(range) if range.last.0 + 1 == slot.0 => range.last = slot,
                _ => ranges.push(Self {
                    first: slot,
                    last: slot,
                }),
            }
        }
        ranges
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// CRC-16/XMODEM: polynomial 0x1021, initial value 0, neither reflected nor inverted.
#[inline]
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (crc << 8) ^ CRC[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

const CRC: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(crc16(b""), 0);
    }

    #[test]
    fn only_the_first_braces_with_something_between_them_decide() {
        for (key, tag) in [
            ("plain", "plain"),
            ("{user1000}.following", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("}{a}", "a"),
            ("a{b", "a{b"),
            ("{", "{"),
            ("", ""),
        ] {
            assert_eq!(hash_tag(key.as_bytes()), tag.as_bytes(), "{key}");
        }
    }

    #[test]
    fn t10_keys_of_two_slots_have_no_common_one_and_both_are_named() {
        let keys = |names: &'static [&str]| common_slot(names.iter().map(|name| name.as_bytes()));
        assert_eq!(keys(&[]), Ok(None));
        assert_eq!(keys(&["a{x}", "b{x}"]), Ok(Some(Slot::of_key(b"x"))));
        let (a, b) = (Slot::of_key(b"a"), Slot::of_key(b"b"));
        assert_eq!(keys(&["a", "b"]), Err((a, b)));
    }

    #[test]
    fn slots_and_ranges_have_bounds() {
        assert!(Slot::new(16_383).is_some() && Slot::new(16_384).is_none());
        let slot = |n| Slot::new(n).expect("a slot");
        assert!(SlotRange::new(slot(2), slot(1)).is_none());
        let joined = SlotRange::join([0, 1, 2, 5, 7, 8].map(slot));
        let shown: Vec<_> = joined.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["0-2", "5", "7-8"]);
        assert_eq!(SlotRange::all().slots().count(), 16_384);
    }
}
