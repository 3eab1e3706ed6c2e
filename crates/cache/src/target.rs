//! The target of an invalidation, and how it is told to other processes.

use crate::key::bounded;

/// A key or a tag to be invalidated.
///
/// ```no_run
/// # async fn f(cache: steadfast_cache::Cache) -> Result<(), steadfast_cache::SourceError> {
/// use steadfast_cache::Target;
///
/// cache.invalidate(&[Target::key("user:7"), Target::tag("users")]).await?;
/// cache.invalidate(&[Target::All]).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Target {
    /// One key.
    Key(Box<[u8]>),
    /// Every value that carries the tag.
    Tag(Box<[u8]>),
    /// Everything in the namespace.
    All,
}

impl Target {
    /// One key.
    pub fn key(key: impl AsRef<[u8]>) -> Self {
        Self::Key(key.as_ref().into())
    }

    /// Every value that carries the tag.
    pub fn tag(tag: impl AsRef<[u8]>) -> Self {
        Self::Tag(tag.as_ref().into())
    }

    /// With a name that is not too long to be carried about.
    pub(crate) fn bounded(&self) -> Self {
        match self {
            Self::Key(key) => Self::Key(bounded(key).into()),
            Self::Tag(tag) => Self::Tag(bounded(tag).into()),
            Self::All => Self::All,
        }
    }

    /// Returns it as the outbox keeps it.
    pub(crate) fn row(&self) -> (&'static str, &[u8]) {
        match self {
            Self::Key(key) => ("key", key),
            Self::Tag(tag) => ("tag", tag),
            Self::All => ("all", b""),
        }
    }

    /// From the outbox; what a newer program may have put there is taken as all.
    pub(crate) fn from_row(kind: &str, target: Vec<u8>) -> Self {
        match kind {
            "key" => Self::Key(target.into()),
            "tag" => Self::Tag(target.into()),
            _ => Self::All,
        }
    }
}

/// An announcement on the channel: these targets were applied, which took the watermark from one
/// number to another.
///
/// On the wire: the new watermark and the old in decimal, each followed by a space, then for each
/// target a letter, its length as `u32` and its bytes. The new watermark stands first because it is
/// Redis that knows it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) before: u64,
    pub(crate) after: u64,
    pub(crate) targets: Vec<Target>,
}

impl Announcement {
    /// Returns all but the new watermark and its space.
    pub(crate) fn body(before: u64, targets: &[Target]) -> Vec<u8> {
        let mut out = format!("{before} ").into_bytes();
        for target in targets {
            let (kind, bytes) = target.row();
            out.push(kind.as_bytes()[0]);
            out.extend((bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        out
    }

    /// `None` if it is not one that this program understands.
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        let (after, rest) = number(message)?;
        let (before, mut rest) = number(rest)?;
        let mut targets = Vec::new();
        while let Some((kind, tail)) = rest.split_first() {
            let (length, tail) = tail.split_first_chunk::<4>()?;
            let (bytes, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            targets.push(match kind {
                b'k' => Target::Key(bytes.into()),
                b't' => Target::Tag(bytes.into()),
                _ => Target::All,
            });
            rest = tail;
        }
        Some(Self {
            before,
            after,
            targets,
        })
    }
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b' ')?;
    let number: u64 = std::str::from_utf8(&bytes[..at]).ok()?.parse().ok()?;
    (number < COUNTABLE).then_some((number, &bytes[at + 1..]))
}

/// Numbers from here on are none that Redis could have counted up to: its scripts lose count there.
pub(crate) const COUNTABLE: u64 = 1 << 53;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target() -> impl Strategy<Value = Target> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..50);
        (0..3, bytes).prop_map(|(kind, bytes)| match kind {
            0 => Target::key(bytes),
            1 => Target::tag(bytes),
            _ => Target::All,
        })
    }

    proptest! {
        #[test]
        fn k10_what_is_announced_is_understood(before in 0..COUNTABLE, after in 0..COUNTABLE, targets in proptest::collection::vec(target(), 0..6)) {
            let mut message = format!("{after} ").into_bytes();
            message.extend(Announcement::body(before, &targets));
            prop_assert_eq!(Announcement::parse(&message), Some(Announcement { before, after, targets }));
        }

        #[test]
        fn k10_no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Announcement::parse(&bytes);
            let _ = Announcement::parse(&[b"1 2 k".as_slice(), &bytes].concat());
        }

        #[test]
        fn k7_rows_keep_their_target(target in target()) {
            let (kind, bytes) = target.row();
            prop_assert_eq!(Target::from_row(kind, bytes.to_vec()), target);
        }
    }
}
