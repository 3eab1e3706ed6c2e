//! Bytes on their way out, in pieces.
//!
//! Small requests share a piece, so that many leave in one write. A large one is a piece of its own
//! from the moment it is encoded: it moves from the caller to the batch to the connection without
//! being copied, and leaves by a vectored write. A request always lies within one piece.

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};

/// A request of so many bytes has a piece of its own; a piece as long takes no further request.
pub const PIECE: usize = 16 << 10;
/// Bytes kept at most in pieces that wait to be used again.
pub(super) const KEEP_BYTES: usize = 1 << 20;
/// How many of those, at most.
const MOST_SPARE: usize = 64;

/// Encoded requests, in the order in which they leave.
#[derive(Default)]
pub(super) struct Pieces {
    list: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that have left.
    gone: usize,
    /// Bytes that have not.
    length: usize,
    /// Pieces to use again, all empty: new memory costs a fault for each page of it.
    spare: Vec<Vec<u8>>,
    /// The capacity of the spare pieces, in bytes.
    kept: usize,
}

impl Pieces {
    /// Bytes that have not left.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Iterates over the bytes that are to leave next, piece by piece.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let first = self.list.front().map(|piece| &piece[self.gone..]);
        let others = self.list.iter().skip(1).map(Vec::as_slice);
        first.into_iter().chain(others)
    }

    /// Lets `encode` append to a piece that others share. Returns how many bytes it added, and what
    /// it returned as seen from where those begin.
    #[inline]
    pub(super) fn share(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> usize) -> (usize, usize) {
        if self.list.back().is_none_or(|last| last.len() >= PIECE) {
            let piece = self.take_spare(0..=2 * PIECE).unwrap_or_default();
            self.list.push_back(piece);
        }
        let Some(piece) = self.list.back_mut() else {
            return (0, 0);
        };
        let start = piece.len();
        let told = encode(piece);
        let added = piece.len() - start;
        self.length += added;
        (added, told - start)
    }

    /// An empty piece for a large request of so many bytes, if one is to be used again that is not
    /// much larger.
    pub(super) fn reuse(&mut self, size: usize) -> Option<Vec<u8>> {
        self.take_spare(size..=4 * size)
    }

    fn take_spare(&mut self, room: RangeInclusive<usize>) -> Option<Vec<u8>> {
        let mut pieces = self.spare.iter();
        let place = pieces.rposition(|piece| room.contains(&piece.capacity()))?;
        let piece = self.spare.swap_remove(place);
        self.kept -= piece.capacity();
        Some(piece)
    }

    /// Adds a piece as it is.
    pub(super) fn push(&mut self, piece: Vec<u8>) {
        self.length += piece.len();
        self.list.push_back(piece);
    }

    /// Moves everything from another one behind what is here, and lends it what there is to be used
    /// again.
    pub(super) fn append(&mut self, other: &mut Self) {
        debug_assert_eq!(other.gone, 0);
        if self.length == 0 {
            self.clear();
            std::mem::swap(self, other);
            return;
        }
        self.length += std::mem::take(&mut other.length);
        if let (Some(last), Some(first)) = (self.list.back_mut(), other.list.front())
            && last.len() + first.len() <= PIECE
        {
            last.extend_from_slice(first);
            if let Some(first) = other.list.pop_front() {
                other.recycle(first);
            }
        }
        self.list.append(&mut other.list);
        while let Some(piece) = self.spare.pop() {
            self.kept -= piece.capacity();
            other.recycle(piece);
        }
    }

    /// So many bytes have left.
    pub(super) fn advance(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.length);
        self.length -= bytes;
        self.gone += bytes;
        while let Some(first) = self.list.front()
            && first.len() <= self.gone
        {
            self.gone -= first.len();
            if let Some(first) = self.list.pop_front() {
                self.recycle(first);
            }
        }
    }

    /// Takes out parts of what has not left, each a whole request, in ascending order. Positions
    /// count from the first byte that has not left.
    pub(super) fn cut(&mut self, parts: &[Range<usize>]) {
        let mut parts = parts.iter().peekable();
        // Where a piece begins and ends, before anything is cut out.
        let (mut begin, gone) = (0, self.gone);
        for piece in &mut self.list {
            let end = begin + piece.len();
            let (mut kept, mut read) = (0, 0);
            while let Some(part) = parts.next_if(|part| part.start + gone < end) {
                let (from, to) = (part.start + gone - begin, part.end + gone - begin);
                piece.copy_within(read..from, kept);
                kept += from - read;
                read = to;
                self.length -= part.len();
            }
            if read > 0 {
                piece.copy_within(read.., kept);
                piece.truncate(kept + piece.len() - read);
            }
            begin = end;
        }
        self.list.retain(|piece| !piece.is_empty());
        self.advance(0);
    }

    /// Lays out anew what is here: these parts, each a whole request, in this order. What has a
    /// piece of its own is moved, not copied.
    pub(super) fn arrange(&mut self, parts: impl Iterator<Item = Range<usize>>) {
        debug_assert_eq!(self.gone, 0);
        let mut old = std::mem::take(&mut self.list);
        self.length = 0;
        let begins: Vec<usize> = old
            .iter()
            .scan(0, |end, piece| {
                let begin = *end;
                *end += piece.len();
                Some(begin)
            })
            .collect();
        for part in parts.filter(|part| !part.is_empty()) {
            let place = begins.partition_point(|begin| *begin <= part.start) - 1;
            let piece = &mut old[place];
            if piece.len() == part.len() && part.len() >= PIECE {
                self.push(std::mem::take(piece));
                continue;
            }
            let part = &piece[part.start - begins[place]..part.end - begins[place]];
            self.share(|bytes| {
                bytes.extend_from_slice(part);
                bytes.len()
            });
        }
        old.into_iter().for_each(|piece| self.recycle(piece));
    }

    /// Leaves what is before this position, which lies between two requests. Returns the rest.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        debug_assert_eq!(self.gone, 0);
        let mut rest = Self::default();
        let (mut begin, mut place) = (0, 0);
        while let Some(piece) = self.list.get(place)
            && begin + piece.len() <= at
        {
            begin += piece.len();
            place += 1;
        }
        rest.list = self.list.split_off(place);
        if let Some(piece) = rest.list.front_mut().filter(|_| at > begin) {
            let tail = piece.split_off(at - begin);
            self.list.push_back(std::mem::replace(piece, tail));
        }
        rest.length = self.length - at;
        self.length = at;
        rest
    }

    /// Drops everything that has not left.
    pub(super) fn clear(&mut self) {
        self.length = 0;
        self.gone = 0;
        while let Some(piece) = self.list.pop_front() {
            self.recycle(piece);
        }
    }

    /// Keeps a piece to be used again. What a burst has needed goes back to the allocator.
    fn recycle(&mut self, mut piece: Vec<u8>) {
        let room = piece.capacity();
        if self.kept + room <= KEEP_BYTES && self.spare.len() < MOST_SPARE {
            piece.clear();
            self.kept += room;
            self.spare.push(piece);
        }
    }

    /// Bytes of memory that this holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let pieces = self.list.iter().chain(&self.spare);
        pieces.map(Vec::capacity).sum()
    }
}
