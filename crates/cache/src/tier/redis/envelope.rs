//! The form in which a value is written into Redis.
//!
//! Redis outlives deployments and may be written to by older and newer programs, by a hand, or by a
//! disk that lies. So every value carries a format version and a checksum over all the rest, and
//! reading one has exactly two outcomes: the value as it was written, or a [`DecodeError`] that the
//! caller counts and treats as a miss. Lengths in the bytes are checked against what is there,
//! never trusted.
//!
//! Layout, little endian: version `u8`, flags `u8`, crc32 `u32` of flags and everything after it,
//! kept for `u64` ms, fresh for `u64` ms, cost of loading `u64` µs, version of the value's type
//! `u32`, count of tags `u16`, each as length `u16`, name, token of 16 bytes; then the payload,
//! which if compressed begins with its full length as `u32`.
//!
//! The script that fills adds a *stamp*, which only Redis can know: the moment at which the value
//! expires, in ms of Redis's own clock, as `u48`, and a `u32` that checks it, the sum of that
//! moment and the crc32 modulo the greatest prime below 2^32. With it the format version is 3.
//! Without it (in a cluster, from an earlier program, or if Redis does not tell the time or is
//! older than 7) it is 2, and how old the value is has to be told by the time that Redis says it
//! has left.

use std::borrow::Cow;
use std::time::Duration;

use crate::freshness::Life;

/// The version of what bears no stamp.
pub(crate) const UNSTAMPED: u8 = 2;

/// The version of what bears one, or is to be given one by the script that fills.
pub(crate) const STAMPED: u8 = 3;

/// A random token of 128 bits.
pub(crate) type Token = [u8; 16];

/// A value with what a reader must know to judge it.
#[derive(Debug, PartialEq)]
pub(crate) struct Envelope<'a> {
    pub(crate) life: Life,
    /// The time that the load took, for early refresh.
    pub(crate) cost: Duration,
    /// Of the value's type, as its view says.
    pub(crate) type_version: u32,
    pub(crate) tags: Vec<(Cow<'a, [u8]>, Token)>,
    /// `None` is absence, remembered.
    pub(crate) payload: Option<Cow<'a, [u8]>>,
    /// The moment at which it expires, by Redis's clock in ms, if it bears a stamp.
    pub(crate) expires: Option<u64>,
}

/// The reason why bytes from Redis are not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("of a format version that this program does not know")]
    Version,
    #[error("corrupt")]
    Corrupt,
    #[error("larger than the limit")]
    TooLarge,
}

impl Envelope<'_> {
    /// Encodes without a stamp, compressing a payload longer than `compress_above` if that makes it
    /// shorter. `None` if there are more than 65 535 tags, or one of them is longer than that.
    pub(crate) fn encode(&self, compress_above: usize) -> Option<Vec<u8>> {
        let tag_count = u16::try_from(self.tags.len()).ok()?;
        let payload = self.payload.as_deref().unwrap_or_default();
        let packed = (payload.len() > compress_above)
            .then(|| lz4_flex::compress_prepend_size(payload))
            .filter(|packed| packed.len() < payload.len());
        let flags = if packed.is_some() { COMPRESSED } else { 0 }
            | if self.payload.is_none() { ABSENT } else { 0 }
            | if self.life.own { OWN_LIFE } else { 0 };
        let body = packed.as_deref().unwrap_or(payload);

        let mut out = Vec::with_capacity(
            FIXED + self.tags.iter().map(|t| t.0.len() + 18).sum::<usize>() + body.len(),
        );
        out.extend([UNSTAMPED, flags, 0, 0, 0, 0]);
        out.extend(millis(self.life.keep).to_le_bytes());
        out.extend(millis(self.life.fresh).to_le_bytes());
        out.extend((self.cost.as_micros() as u64).to_le_bytes());
        out.extend(self.type_version.to_le_bytes());
        out.extend(tag_count.to_le_bytes());
        for (name, token) in &self.tags {
            out.extend(u16::try_from(name.len()).ok()?.to_le_bytes());
            out.extend_from_slice(name);
            out.extend(token);
        }
        out.extend_from_slice(body);
        let sum = checksum(flags, &out[CHECKED_FROM..]);
        out[2..CHECKED_FROM].copy_from_slice(&sum.to_le_bytes());
        Some(out)
    }

    /// Decodes; a payload that unpacks to more than `value_max` bytes is refused before it is
    /// unpacked.
    pub(crate) fn decode(bytes: &[u8], value_max: usize) -> Result<Envelope<'_>, DecodeError> {
        let mut rest = Reader(bytes);
        let [version, flags] = rest.array()?;
        let sum = u32::from_le_bytes(rest.array()?);
        let expires = match version {
            UNSTAMPED => None,
            STAMPED => Some(rest.stamp(sum)?),
            _ => return Err(DecodeError::Version),
        };
        if checksum(flags, rest.0) != sum {
            return Err(DecodeError::Corrupt);
        }
        let keep = Duration::from_millis(u64::from_le_bytes(rest.array()?));
        let fresh = Duration::from_millis(u64::from_le_bytes(rest.array()?));
        let cost = Duration::from_micros(u64::from_le_bytes(rest.array()?));
        let type_version = u32::from_le_bytes(rest.array()?);
        let count = u16::from_le_bytes(rest.array()?);
        let mut tags = Vec::new();
        for _ in 0..count {
            let length = u16::from_le_bytes(rest.array()?);
            let name = rest.slice(usize::from(length))?;
            tags.push((Cow::Borrowed(name), rest.array()?));
        }
        let payload = if flags & ABSENT != 0 {
            None
        } else if flags & COMPRESSED != 0 {
            Some(Cow::Owned(unpack(rest, value_max)?))
        } else {
            Some(Cow::Borrowed(rest.0))
        };
        Ok(Envelope {
            life: Life {
                fresh,
                keep,
                own: flags & OWN_LIFE != 0,
            },
            cost,
            type_version,
            tags,
            payload,
            expires,
        })
    }
}

/// Returns the names of the tags in what a value begins with, as many as are whole. They are not
/// checked: a name that is none is a tag that nobody invalidates.
pub(crate) fn tags_in(head: &[u8]) -> Vec<Vec<u8>> {
    let mut tags = Vec::new();
    let is_known = matches!(head.first(), Some(&(UNSTAMPED | STAMPED)));
    let Some(rest) = head.get(FIXED - 2..).filter(|_| is_known) else {
        return tags;
    };
    let mut rest = Reader(rest);
    let count = rest.array().map_or(0, u16::from_le_bytes);
    for _ in 0..count {
        let Ok(length) = rest.array().map(u16::from_le_bytes) else {
            break;
        };
        match (rest.slice(usize::from(length)), rest.array::<16>()) {
            (Ok(name), Ok(_token)) => tags.push(name.to_vec()),
            _ => break,
        }
    }
    tags
}

/// Whether these bytes say that they are a value without a stamp.
pub(crate) fn is_unstamped(bytes: &[u8]) -> bool {
    bytes.first() == Some(&UNSTAMPED)
}

/// Returns where the payload of such bytes ends.
pub(crate) fn payload_end(bytes: &[u8]) -> usize {
    match bytes.first() {
        Some(&STAMPED) => bytes.len().saturating_sub(STAMP),
        _ => bytes.len(),
    }
}

/// Has the script that fills give these encoded bytes a stamp.
pub(crate) fn to_be_stamped(bytes: &mut [u8]) {
    if let Some(version) = bytes.first_mut() {
        *version = STAMPED;
    }
}

/// Gives encoded bytes this stamp instead of what they bear, as the script that fills does it.
#[cfg(test)]
pub(crate) fn stamp(bytes: &mut Vec<u8>, expires: u64) {
    bytes.truncate(payload_end(bytes));
    to_be_stamped(bytes);
    let mut sum = [0; 4];
    sum.copy_from_slice(&bytes[2..CHECKED_FROM]);
    let check = (expires + u64::from(u32::from_le_bytes(sum))) % PRIME;
    bytes.extend_from_slice(&expires.to_le_bytes()[..6]);
    bytes.extend_from_slice(&check.to_le_bytes()[..4]);
}

fn unpack(mut packed: Reader<'_>, value_max: usize) -> Result<Vec<u8>, DecodeError> {
    let length = u32::from_le_bytes(packed.array()?) as usize;
    if length > value_max {
        return Err(DecodeError::TooLarge);
    }
    let unpacked = lz4_flex::decompress(packed.0, length).map_err(|_| DecodeError::Corrupt)?;
    if unpacked.len() == length {
        Ok(unpacked)
    } else {
        Err(DecodeError::Corrupt)
    }
}

fn checksum(flags: u8, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[flags]);
    hasher.update(rest);
    hasher.finalize()
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn slice(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self
            .0
            .split_at_checked(length)
            .ok_or(DecodeError::Corrupt)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk().ok_or(DecodeError::Corrupt)?;
        self.0 = tail;
        Ok(*head)
    }

    /// Takes the stamp off the end of what has this checksum.
    fn stamp(&mut self, sum: u32) -> Result<u64, DecodeError> {
        let (head, stamp) = self
            .0
            .split_last_chunk::<STAMP>()
            .ok_or(DecodeError::Corrupt)?;
        let [a, b, c, d, e, f, check @ ..] = *stamp;
        let expires = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        if (expires + u64::from(sum)) % PRIME != u64::from(u32::from_le_bytes(check)) {
            return Err(DecodeError::Corrupt);
        }
        self.0 = head;
        Ok(expires)
    }
}

const COMPRESSED: u8 = 1;
const ABSENT: u8 = 2;
/// The value has chosen its times itself.
const OWN_LIFE: u8 = 4;
const CHECKED_FROM: usize = 6;
/// Bytes of a stamp.
const STAMP: usize = 10;
/// The greatest prime below 2^32: no one byte that is changed adds a multiple of it.
const PRIME: u64 = 4_294_967_291;
const FIXED: usize = CHECKED_FROM + 30;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelope(payload: Option<Vec<u8>>, tags: Vec<(Vec<u8>, Token)>) -> Envelope<'static> {
        Envelope {
            life: Life {
                fresh: Duration::from_millis(7),
                keep: Duration::from_millis(77),
                own: true,
            },
            cost: Duration::from_micros(1234),
            type_version: 5,
            tags: tags
                .into_iter()
                .map(|(name, token)| (Cow::Owned(name), token))
                .collect(),
            payload: payload.map(Cow::Owned),
            expires: None,
        }
    }

    fn stamped(mut bytes: Vec<u8>, expires: u64) -> Vec<u8> {
        stamp(&mut bytes, expires);
        bytes
    }

    proptest! {
        #[test]
        fn k12_what_is_written_is_read(
            payload in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..4096)),
            tags in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..40), any::<Token>()), 0..5),
            above in 0usize..5000,
            expires in 0u64..1 << 48,
            cut: prop::sample::Index,
        ) {
            let written = envelope(payload, tags);
            let bytes = written.encode(above).unwrap();
            prop_assert_eq!(&Envelope::decode(&bytes, 4096).unwrap(), &written);
            let names: Vec<_> = written.tags.iter().map(|(name, _)| name.to_vec()).collect();
            prop_assert_eq!(&tags_in(&bytes), &names);
            let bytes = stamped(bytes, expires);
            prop_assert_eq!(&tags_in(&bytes), &names);
            // Of what is cut off, those that are whole.
            let found = tags_in(&bytes[..cut.index(bytes.len())]);
            prop_assert!(names.starts_with(&found));
            let written = Envelope { expires: Some(expires), ..written };
            prop_assert_eq!(Envelope::decode(&bytes, 4096), Ok(written));
        }

        #[test]
        fn k12_any_single_changed_byte_is_noticed(payload in proptest::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), with in 1u8.., expires in 0u64..1 << 48) {
            let bytes = envelope(Some(payload), vec![(b"tag".to_vec(), [9; 16])]).encode(100).unwrap();
            for mut bytes in [stamped(bytes.clone(), expires), bytes] {
                let at = at.index(bytes.len());
                bytes[at] ^= with;
                prop_assert!(Envelope::decode(&bytes, 4096).is_err());
            }
        }

        #[test]
        fn k12_no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Envelope::decode(&bytes, 1000), tags_in(&bytes));
            let mut valid_sum = vec![UNSTAMPED, bytes.first().copied().unwrap_or(0)];
            valid_sum.extend(checksum(valid_sum[1], &bytes).to_le_bytes());
            valid_sum.extend(&bytes);
            let _ = (Envelope::decode(&valid_sum, 1000), tags_in(&valid_sum));
            let _ = Envelope::decode(&stamped(valid_sum, 1), 1000);
        }
    }

    #[test]
    fn k12_a_future_version_is_told_from_damage() {
        let mut bytes = envelope(Some(b"x".to_vec()), vec![]).encode(100).unwrap();
        bytes[0] = STAMPED + 1;
        assert_eq!(Envelope::decode(&bytes, 100), Err(DecodeError::Version));
    }

    #[test]
    fn k12_the_stamp_of_another_value_is_noticed() {
        let encoded = |text: &[u8]| envelope(Some(text.to_vec()), vec![]).encode(100).unwrap();
        let (mut one, other) = (stamped(encoded(b"one"), 7), stamped(encoded(b"two"), 8));
        let at = one.len() - STAMP;
        one[at..].copy_from_slice(&other[at..]);
        assert_eq!(Envelope::decode(&one, 100), Err(DecodeError::Corrupt));
    }

    #[test]
    fn k12_a_tag_that_is_too_long_to_be_written_is_not_cut() {
        let tagged = |length| envelope(Some(vec![]), vec![(vec![b'x'; length], [9; 16])]);
        assert!(tagged(65_535).encode(100).is_some());
        assert_eq!(tagged(65_536).encode(100), None);
    }

    #[test]
    fn k12_a_payload_that_claims_to_be_huge_is_refused_before_it_is_unpacked() {
        let bytes = envelope(Some(vec![0; 1 << 20]), vec![])
            .encode(100)
            .unwrap();
        assert!(bytes.len() < 10_000);
        assert_eq!(Envelope::decode(&bytes, 1000), Err(DecodeError::TooLarge));
    }
}
