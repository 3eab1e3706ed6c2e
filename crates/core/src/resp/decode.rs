//! Bytes into replies.
//!
//! A reply arrives in pieces of any size, from a peer that may never send the rest, so the decoder
//! is a state machine that stops anywhere and goes on there. It keeps its own stack, so that no
//! nesting can overflow the thread's; it remembers how far it has looked for a line end, so that no
//! byte is scanned twice; it moves the parts of an unfinished bulk string into their place as they
//! come, so that the read buffer stays small, and lets a large one be read straight into its place
//! ([`Decoder::rest_of_string`]); and it reserves memory by what has arrived, never by what a
//! length claims. The values are those that redis-rs' own parser would build of the same bytes.
//!
//! The streamed strings and aggregates of the RESP3 specification (`$?`, `*?`) are sent by no
//! server and refused as a bad length.

mod aggregate;
mod scalar;

use bytes::BufMut;
use bytes::buf::Limit;
use redis::Value;

use aggregate::Frame;
use scalar::{Blob, Header, Number, header, line_end, line_value, number};

/// Bounds on one reply. All limits hold per top-level value.
///
/// They guard against a peer that is broken or hostile, so the defaults admit whatever a healthy
/// Redis can answer in practice. A reply past a limit ends the connection: the stream cannot be
/// followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many aggregates may be nested. Default 128; redis-rs refuses at 100.
    pub depth: usize,
    /// How many values a reply may consist of, whatever their nesting. Default 16 777 216.
    pub elements: usize,
    /// Bytes of one bulk string, verbatim string or blob error. Default 512 MiB, which is Redis'
    /// own `proto-max-bulk-len`.
    pub bulk_bytes: usize,
    /// Bytes of one line (simple string, error, big number, double), without its line end. Default
    /// 1 MiB.
    pub line_bytes: usize,
    /// Bytes of memory that the decoded reply holds: its strings, and the size of a [`Value`] for
    /// each of its elements. Default 1 GiB, the worst case of memory for one reply (twice that for
    /// a moment, while a growing buffer moves).
    pub total_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            depth: 128,
            elements: 1 << 24,
            bulk_bytes: 512 << 20,
            line_bytes: 1 << 20,
            total_bytes: 1 << 30,
        }
    }
}

/// The outcome of one call of [`Decoder::decode`].
#[derive(Debug, PartialEq)]
pub struct Decoded {
    /// How many bytes of the input are done with; the next call's input begins behind them.
    pub consumed: usize,
    /// The first complete top-level value, or `None` when more bytes are needed.
    pub value: Option<Value>,
}

/// Why the bytes are not a reply that can be accepted.
///
/// After any of these the position in the stream is lost: the connection has to be closed and the
/// decoder dropped with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A value began with a byte that names no type. Plain text or TLS on the wrong port looks like
    /// this.
    #[error(
        "a reply began with byte {byte:#04x}, which is no RESP type; is the peer a Redis server, and is TLS set as it expects?"
    )]
    UnknownType {
        /// The byte found.
        byte: u8,
    },
    /// The length of a string or aggregate is not a number, or negative where there is no null
    /// form.
    #[error("the length of a `{sigil}` reply is not a valid number")]
    BadLength {
        /// The type of the value.
        sigil: char,
    },
    /// The content of a number, boolean, null, verbatim string or push is not what its type
    /// demands.
    #[error("the content of a `{sigil}` reply is malformed")]
    BadContent {
        /// The type of the value.
        sigil: char,
    },
    /// A string is not followed by a line end.
    #[error("a string reply is not ended by CR LF where its length says it ends")]
    MissingLineEnd,
    /// A line has no end within its limit.
    #[error("a line of a reply is longer than {limit} bytes")]
    LineTooLong {
        /// The limit passed, in bytes.
        limit: usize,
    },
    /// Aggregates are nested beyond [`Limits::depth`].
    #[error("a reply is nested deeper than {limit} levels")]
    TooDeep {
        /// The limit passed.
        limit: usize,
    },
    /// The reply claims more values than [`Limits::elements`].
    #[error("a reply claims more than {limit} elements")]
    TooManyElements {
        /// The limit passed.
        limit: usize,
    },
    /// A string claims more bytes than [`Limits::bulk_bytes`].
    #[error("a string of {claimed} bytes in a reply is larger than the limit of {limit}")]
    BulkTooLarge {
        /// The length that the header claims, in bytes.
        claimed: usize,
        /// The limit passed, in bytes.
        limit: usize,
    },
    /// The whole reply would hold more memory than [`Limits::total_bytes`].
    #[error("a reply needs more than {limit} bytes of memory")]
    ReplyTooLarge {
        /// The limit passed, in bytes.
        limit: usize,
    },
}

impl DecodeError {
    /// True if the bytes are RESP, but more of it than [`Limits`] admit.
    pub fn is_limit(&self) -> bool {
        matches!(
            self,
            Self::LineTooLong { .. }
                | Self::TooDeep { .. }
                | Self::TooManyElements { .. }
                | Self::BulkTooLarge { .. }
                | Self::ReplyTooLarge { .. }
        )
    }
}

/// An incremental decoder of one connection's replies.
///
/// ```
/// use redis::Value;
/// use steadfast_core::resp::Decoder;
///
/// let mut decoder = Decoder::default();
/// let first = decoder.decode(b"$5\r\nhel")?;
/// assert_eq!((first.consumed, first.value), (7, None));
/// let second = decoder.decode(b"lo\r\n+OK\r\n")?;
/// assert_eq!((second.consumed, second.value), (4, Some(Value::BulkString(b"hello".to_vec()))));
/// # Ok::<(), steadfast_core::resp::DecodeError>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    limits: Limits,
    /// The aggregates that are open, outermost first.
    stack: Vec<Frame>,
    /// The string whose header has been read, but not all of its content.
    blob: Option<Blob>,
    /// How many bytes of the unconsumed input are known to hold no line end.
    searched: usize,
    /// Values promised by the headers of the current reply.
    elements: usize,
    /// Bytes accounted to the current reply.
    bytes: usize,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Takes in what has arrived, up to the end of the first complete top-level value.
    ///
    /// `input` begins where the last call's [`consumed`](Decoded::consumed) ended, so bytes that
    /// were not consumed are given again, with more behind them. Finished children of an unfinished
    /// aggregate and parts of an unfinished string are consumed; what is not is at most one line.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not RESP or the reply passes a limit. The stream is then
    /// lost.
    #[inline]
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, DecodeError> {
        if self.is_idle()
            && let Some((value, consumed)) = self.usual(input)
        {
            self.searched = 0;
            let value = Some(value);
            return Ok(Decoded { consumed, value });
        }
        self.walk(input)
    }

    /// The replies that most commands get, if they are all there: what [`walk`](Self::walk) would
    /// make of them, without its state.
    #[inline]
    fn usual(&self, input: &[u8]) -> Option<(Value, usize)> {
        match input {
            [b'+', b'O', b'K', b'\r', b'\n', ..] => Some((Value::Okay, 5)),
            [b'$', ..] => {
                let Header::Length(length, size) = header(input) else {
                    return None;
                };
                let (content, rest) = input[size..].split_at_checked(length)?;
                let admitted = length <= self.limits.bulk_bytes.min(self.limits.total_bytes);
                (admitted && rest.starts_with(b"\r\n"))
                    .then(|| (Value::BulkString(content.to_vec()), size + length + 2))
            }
            [b':', ..] => match number(input) {
                Number::Value(value, size) => Some((Value::Int(value), size)),
                Number::Starved | Number::Bad => None,
            },
            _ => None,
        }
    }

    fn walk(&mut self, input: &[u8]) -> Result<Decoded, DecodeError> {
        let mut at = 0;
        loop {
            let value = match self.step(input, &mut at)? {
                DecodeStep::Opened => continue,
                DecodeStep::Starved => None,
                DecodeStep::Value(value) => match self.add(value)? {
                    None => continue,
                    value => value,
                },
            };
            let consumed = at;
            return Ok(Decoded { consumed, value });
        }
    }

    /// Where to read the next bytes to, without another copy, if at least `least` of what is
    /// missing belong to one string. Everything given to [`decode`](Self::decode) must have been
    /// consumed, as it is in the midst of a string.
    pub fn rest_of_string(&mut self, least: usize) -> Option<Limit<&mut Vec<u8>>> {
        let blob = self.blob.as_mut()?;
        let missing = blob.missing();
        if missing < least {
            return None;
        }
        blob.make_room(least);
        let room = blob.content.capacity() - blob.content.len();
        Some((&mut blob.content).limit(room.min(missing)))
    }

    /// Whether the decoder stands between two top-level values. Bytes that it did not consume are
    /// the caller's to know of.
    pub fn is_idle(&self) -> bool {
        self.stack.is_empty() && self.blob.is_none()
    }

    /// Whether what is being decoded is a push message, which answers no request. `next` is the
    /// first byte that is not consumed.
    pub fn is_in_push(&self, next: Option<&u8>) -> bool {
        match self.stack.first() {
            Some(outermost) => outermost.sigil == b'>',
            None => self.blob.is_none() && next == Some(&b'>'),
        }
    }

    /// Reads one scalar, or the header of one aggregate.
    #[inline]
    fn step(&mut self, input: &[u8], at: &mut usize) -> Result<DecodeStep, DecodeError> {
        if self.blob.is_some() {
            return self.resume_blob(input, at);
        }
        let rest = &input[*at..];
        let Some(&sigil) = rest.first() else {
            return Ok(DecodeStep::Starved);
        };
        match sigil {
            b'$' => self.bulk(input, at),
            b':' => integer(rest, at),
            b'+' if rest.starts_with(b"+OK\r\n") => {
                self.searched = 0;
                *at += 5;
                Ok(DecodeStep::Value(Value::Okay))
            }
            b'*' | b'%' | b'~' | b'>' | b'|' => self.open(sigil, rest, at),
            b'+' | b'-' | b'_' | b'#' | b',' | b'(' => self.line(sigil, rest, at),
            b'!' | b'=' => self.blob(sigil, input, at),
            byte => Err(DecodeError::UnknownType { byte }),
        }
    }

    #[inline]
    fn bulk(&mut self, input: &[u8], at: &mut usize) -> Result<DecodeStep, DecodeError> {
        let rest = &input[*at..];
        let Header::Length(length, size) = header(rest) else {
            return self.odd_header(b'$', rest, at);
        };
        if let Some((content, [b'\r', b'\n', ..])) = rest[size..].split_at_checked(length) {
            self.admit(length)?;
            *at += size + length + 2;
            return Ok(DecodeStep::Value(Value::BulkString(content.to_vec())));
        }
        self.blob(b'$', input, at)
    }

    /// Begins a string that has to be put together from parts, or converted.
    #[cold]
    fn blob(&mut self, sigil: u8, input: &[u8], at: &mut usize) -> Result<DecodeStep, DecodeError> {
        let rest = &input[*at..];
        let Header::Length(length, size) = header(rest) else {
            return self.odd_header(sigil, rest, at);
        };
        self.admit(length)?;
        *at += size;
        let arrived = rest.len() - size;
        self.blob = Some(Blob::new(sigil, length, arrived));
        self.resume_blob(input, at)
    }

    #[cold]
    fn resume_blob(&mut self, input: &[u8], at: &mut usize) -> Result<DecodeStep, DecodeError> {
        let Some(blob) = &mut self.blob else {
            return Ok(DecodeStep::Starved);
        };
        let rest = &input[*at..];
        let rest = &rest[blob.take(rest)..];
        *at = input.len() - rest.len();
        if blob.content.len() < blob.length {
            return Ok(DecodeStep::Starved);
        }
        match rest {
            [] | [b'\r'] => Ok(DecodeStep::Starved),
            [b'\r', b'\n', ..] => {
                *at += 2;
                let blob = self.blob.take().map(Blob::finish).transpose()?;
                Ok(blob.map_or(DecodeStep::Starved, DecodeStep::Value))
            }
            _ => Err(DecodeError::MissingLineEnd),
        }
    }

    /// Reads the header of an aggregate: opens it, or answers with it if nothing is in it.
    #[inline]
    fn open(&mut self, sigil: u8, rest: &[u8], at: &mut usize) -> Result<DecodeStep, DecodeError> {
        let Header::Length(length, size) = header(rest) else {
            return self.odd_header(sigil, rest, at);
        };
        let limit = self.limits.elements - self.elements;
        let members = match sigil {
            b'%' => length.saturating_mul(2),
            b'|' => length.saturating_mul(2).saturating_add(1),
            _ => length,
        };
        if members > limit {
            return Err(DecodeError::TooManyElements {
                limit: self.limits.elements,
            });
        }
        if self.stack.len() >= self.limits.depth {
            return Err(DecodeError::TooDeep {
                limit: self.limits.depth,
            });
        }
        self.elements += members;
        self.spend(members.saturating_mul(size_of::<Value>()))?;
        *at += size;
        let arrived = (rest.len() - size) / SHORTEST_VALUE;
        let frame = Frame::new(sigil, members, members.min(arrived.min(UNEARNED_ELEMENTS)));
        if members == 0 {
            return frame.finish().map(DecodeStep::Value);
        }
        self.stack.push(frame);
        Ok(DecodeStep::Opened)
    }

    /// A header that is no plain length: not all there, a null form, or wrong.
    #[cold]
    fn odd_header(
        &mut self,
        sigil: u8,
        rest: &[u8],
        at: &mut usize,
    ) -> Result<DecodeStep, DecodeError> {
        let bad = DecodeError::BadLength {
            sigil: char::from(sigil),
        };
        match number(rest) {
            Number::Value(-1, size) => {
                *at += size;
                match sigil {
                    b'$' | b'*' | b'~' => Ok(DecodeStep::Value(Value::Nil)),
                    b'>' => Frame::new(sigil, 0, 0).finish().map(DecodeStep::Value),
                    _ => Err(bad),
                }
            }
            Number::Starved => Ok(DecodeStep::Starved),
            Number::Value(..) | Number::Bad => Err(bad),
        }
    }

    /// Reads a value that is one line.
    #[cold]
    fn line(&mut self, sigil: u8, rest: &[u8], at: &mut usize) -> Result<DecodeStep, DecodeError> {
        let limit = self.limits.line_bytes;
        let Some(end) = line_end(rest, self.searched) else {
            self.searched = rest.len();
            if rest.len() > limit.saturating_add(2) {
                return Err(DecodeError::LineTooLong { limit });
            }
            return Ok(DecodeStep::Starved);
        };
        self.searched = 0;
        if end - 1 > limit {
            return Err(DecodeError::LineTooLong { limit });
        }
        self.spend(end)?;
        *at += end + 2;
        line_value(sigil, &rest[1..end]).map(DecodeStep::Value)
    }

    /// Puts a finished value into the innermost open aggregate. Answers with the outermost one once
    /// that is complete.
    #[inline]
    fn add(&mut self, mut value: Value) -> Result<Option<Value>, DecodeError> {
        while let Some(frame) = self.stack.last_mut() {
            frame.add(value);
            if frame.missing > 0 {
                return Ok(None);
            }
            let Some(frame) = self.stack.pop() else {
                return Ok(None);
            };
            value = frame.finish()?;
        }
        self.elements = 0;
        self.bytes = 0;
        Ok(Some(value))
    }

    #[inline]
    fn admit(&mut self, length: usize) -> Result<(), DecodeError> {
        let limit = self.limits.bulk_bytes;
        if length > limit {
            return Err(DecodeError::BulkTooLarge {
                claimed: length,
                limit,
            });
        }
        self.spend(length)
    }

    #[inline]
    fn spend(&mut self, bytes: usize) -> Result<(), DecodeError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.total_bytes {
            return Err(DecodeError::ReplyTooLarge {
                limit: self.limits.total_bytes,
            });
        }
        Ok(())
    }
}

enum DecodeStep {
    /// A value that is complete in itself.
    Value(Value),
    /// An aggregate was opened; its members follow.
    Opened,
    /// More bytes are needed.
    Starved,
}

fn integer(rest: &[u8], at: &mut usize) -> Result<DecodeStep, DecodeError> {
    match number(rest) {
        Number::Value(value, size) => {
            *at += size;
            Ok(DecodeStep::Value(Value::Int(value)))
        }
        Number::Starved => Ok(DecodeStep::Starved),
        Number::Bad => Err(DecodeError::BadContent { sigil: ':' }),
    }
}

/// The bytes of the shortest value there is, `_` and a line end.
const SHORTEST_VALUE: usize = 3;

/// How many members are reserved at most before they have come (per open aggregate).
const UNEARNED_ELEMENTS: usize = 512;

#[cfg(test)]
mod tests;
