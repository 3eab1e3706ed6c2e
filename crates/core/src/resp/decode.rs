//! Bytes into replies.
//!
//! A reply arrives in pieces of any size, from a peer that may never send the rest, so the decoder is a state
//! machine that stops anywhere and goes on there. It keeps its own stack, so that no nesting can overflow the
//! thread's; it remembers how far it has looked for a line end, so that no byte is scanned twice; it moves
//! the parts of an unfinished bulk string into their place as they come, so that the read buffer stays small;
//! and it reserves memory by what has arrived, never by what a length claims. The values are those that
//! redis-rs' own parser would build of the same bytes.
//!
//! The streamed strings and aggregates of the RESP3 specification (`$?`, `*?`) are sent by no server and
//! refused as a bad length.

use memchr::memchr;
use redis::{PushKind, Value, VerbatimFormat};

/// What one reply may cost. All limits hold per top-level value.
///
/// They guard against a peer that is broken or hostile, so the defaults admit whatever a healthy Redis can
/// answer in practice. A reply past a limit ends the connection: the stream cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many aggregates may be nested. Default 128; redis-rs refuses at 100.
    pub depth: usize,
    /// How many values a reply may consist of, whatever their nesting. Default 16 777 216.
    pub elements: usize,
    /// Bytes of one bulk string, verbatim string or blob error. Default 512 MiB, which is Redis' own
    /// `proto-max-bulk-len`.
    pub bulk_bytes: usize,
    /// Bytes of one line (simple string, error, big number, double), without its line end. Default 1 MiB.
    pub line_bytes: usize,
    /// Bytes of memory that the decoded reply holds: its strings, and the size of a [`Value`] for each of its
    /// elements. Default 1 GiB, the worst case of memory for one reply (twice that for a moment, while a
    /// growing buffer moves).
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

/// What one call of [`Decoder::decode`] achieved.
#[derive(Debug, PartialEq)]
pub struct Decoded {
    /// How many bytes of the input are done with; the next call's input begins behind them.
    pub consumed: usize,
    /// The first complete top-level value, or `None` when more bytes are needed.
    pub value: Option<Value>,
}

/// Why the bytes are not a reply that can be accepted.
///
/// After any of these the position in the stream is lost: the connection has to be closed and the decoder
/// dropped with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A value began with a byte that names no type. Plain text or TLS on the wrong port looks like this.
    #[error(
        "a reply began with byte {byte:#04x}, which is no RESP type; is the peer a Redis server, and is TLS set as it expects?"
    )]
    UnknownType {
        /// The byte found.
        byte: u8,
    },
    /// The length of a string or aggregate is not a number, or negative where there is no null form.
    #[error("the length of a `{sigil}` reply is not a valid number")]
    BadLength {
        /// The type of the value.
        sigil: char,
    },
    /// The content of a number, boolean, null, verbatim string or push is not what its type demands.
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
        /// What the header claims, in bytes.
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
    /// `input` begins where the last call's [`consumed`](Decoded::consumed) ended, so bytes that were not
    /// consumed are given again, with more behind them. Finished children of an unfinished aggregate and
    /// parts of an unfinished string are consumed; what is not is at most one line.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not RESP or the reply passes a limit. The stream is then lost.
    #[inline]
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, DecodeError> {
        let mut at = 0;
        loop {
            let value = match self.step(input, &mut at)? {
                Step::Value(value) => value,
                Step::Opened => continue,
                Step::Starved => {
                    return Ok(Decoded {
                        consumed: at,
                        value: None,
                    });
                }
            };
            if let Some(value) = self.add(value)? {
                return Ok(Decoded {
                    consumed: at,
                    value: Some(value),
                });
            }
        }
    }

    /// Whether the decoder stands between two top-level values. Bytes that it did not consume are the
    /// caller's to know of.
    pub fn is_idle(&self) -> bool {
        self.stack.is_empty() && self.blob.is_none()
    }

    /// Reads one scalar, or the header of one aggregate.
    #[inline]
    fn step(&mut self, input: &[u8], at: &mut usize) -> Result<Step, DecodeError> {
        if self.blob.is_some() {
            return self.resume_blob(input, at);
        }
        let rest = &input[*at..];
        let Some(&sigil) = rest.first() else {
            return Ok(Step::Starved);
        };
        match sigil {
            b'$' => self.bulk(input, at),
            b':' => integer(rest, at),
            b'+' if rest.starts_with(b"+OK\r\n") => {
                self.searched = 0;
                *at += 5;
                Ok(Step::Value(Value::Okay))
            }
            b'*' | b'%' | b'~' | b'>' | b'|' => self.open(sigil, rest, at),
            b'+' | b'-' | b'_' | b'#' | b',' | b'(' => self.line(sigil, rest, at),
            b'!' | b'=' => self.blob(sigil, input, at),
            byte => Err(DecodeError::UnknownType { byte }),
        }
    }

    #[inline]
    fn bulk(&mut self, input: &[u8], at: &mut usize) -> Result<Step, DecodeError> {
        let rest = &input[*at..];
        let Header::Length(length, size) = header(rest) else {
            return self.odd_header(b'$', rest, at);
        };
        if let Some((content, [b'\r', b'\n', ..])) = rest[size..].split_at_checked(length) {
            self.admit(length)?;
            *at += size + length + 2;
            return Ok(Step::Value(Value::BulkString(content.to_vec())));
        }
        self.blob(b'$', input, at)
    }

    /// Begins a string that has to be put together from parts, or converted.
    #[cold]
    fn blob(&mut self, sigil: u8, input: &[u8], at: &mut usize) -> Result<Step, DecodeError> {
        let rest = &input[*at..];
        let Header::Length(length, size) = header(rest) else {
            return self.odd_header(sigil, rest, at);
        };
        self.admit(length)?;
        *at += size;
        let arrived = rest.len() - size;
        let content = Vec::with_capacity(length.min(arrived.max(UNEARNED_BYTES)));
        self.blob = Some(Blob {
            sigil,
            length,
            content,
        });
        self.resume_blob(input, at)
    }

    #[cold]
    fn resume_blob(&mut self, input: &[u8], at: &mut usize) -> Result<Step, DecodeError> {
        let Some(blob) = &mut self.blob else {
            return Ok(Step::Starved);
        };
        let rest = &input[*at..];
        let rest = &rest[blob.take(rest)..];
        *at = input.len() - rest.len();
        if blob.content.len() < blob.length {
            return Ok(Step::Starved);
        }
        match rest {
            [] | [b'\r'] => Ok(Step::Starved),
            [b'\r', b'\n', ..] => {
                *at += 2;
                let blob = self.blob.take().map(Blob::finish).transpose()?;
                Ok(blob.map_or(Step::Starved, Step::Value))
            }
            _ => Err(DecodeError::MissingLineEnd),
        }
    }

    /// Reads the header of an aggregate: opens it, or answers with it if nothing is in it.
    #[inline]
    fn open(&mut self, sigil: u8, rest: &[u8], at: &mut usize) -> Result<Step, DecodeError> {
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
            return frame.finish().map(Step::Value);
        }
        self.stack.push(frame);
        Ok(Step::Opened)
    }

    /// A header that is no plain length: not all there, a null form, or wrong.
    #[cold]
    fn odd_header(&mut self, sigil: u8, rest: &[u8], at: &mut usize) -> Result<Step, DecodeError> {
        let bad = DecodeError::BadLength {
            sigil: char::from(sigil),
        };
        match number(rest) {
            Number::Value(-1, size) => {
                *at += size;
                match sigil {
                    b'$' | b'*' | b'~' => Ok(Step::Value(Value::Nil)),
                    b'>' => Frame::new(sigil, 0, 0).finish().map(Step::Value),
                    _ => Err(bad),
                }
            }
            Number::Starved => Ok(Step::Starved),
            Number::Value(..) | Number::Bad => Err(bad),
        }
    }

    /// Reads a value that is one line.
    #[cold]
    fn line(&mut self, sigil: u8, rest: &[u8], at: &mut usize) -> Result<Step, DecodeError> {
        let limit = self.limits.line_bytes;
        let Some(end) = line_end(rest, self.searched) else {
            self.searched = rest.len();
            if rest.len() > limit.saturating_add(2) {
                return Err(DecodeError::LineTooLong { limit });
            }
            return Ok(Step::Starved);
        };
        self.searched = 0;
        if end - 1 > limit {
            return Err(DecodeError::LineTooLong { limit });
        }
        self.spend(end)?;
        *at += end + 2;
        line_value(sigil, &rest[1..end]).map(Step::Value)
    }

    /// Puts a finished value into the innermost open aggregate. Answers with the outermost one once that is
    /// complete.
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

enum Step {
    /// A value that is complete in itself.
    Value(Value),
    /// An aggregate was opened; its members follow.
    Opened,
    /// More bytes are needed.
    Starved,
}

/// An aggregate whose members are still coming.
#[derive(Debug)]
struct Frame {
    sigil: u8,
    missing: usize,
    /// The members of an array, set or push.
    members: Vec<Value>,
    /// The members of a map, or the attributes of an attribute.
    pairs: Vec<(Value, Value)>,
    /// A key whose value has not come yet.
    key: Option<Value>,
}

impl Frame {
    fn new(sigil: u8, missing: usize, reserve: usize) -> Self {
        let paired = matches!(sigil, b'%' | b'|');
        Self {
            sigil,
            missing,
            members: Vec::with_capacity(if paired { 0 } else { reserve }),
            pairs: Vec::with_capacity(if paired { reserve / 2 } else { 0 }),
            key: None,
        }
    }

    #[inline]
    fn add(&mut self, value: Value) {
        self.missing -= 1;
        if !matches!(self.sigil, b'%' | b'|') {
            self.members.push(value);
        } else if let Some(key) = self.key.take() {
            self.pairs.push((key, value));
        } else {
            self.key = Some(value);
        }
    }

    fn finish(self) -> Result<Value, DecodeError> {
        match self.sigil {
            b'*' => Ok(Value::Array(self.members)),
            b'~' => Ok(Value::Set(self.members)),
            b'%' => Ok(Value::Map(self.pairs)),
            // The value that the attributes belong to comes last and finds no key to go with.
            b'|' => Ok(Value::Attribute {
                data: Box::new(self.key.unwrap_or(Value::Nil)),
                attributes: self.pairs,
            }),
            _ => push(self.members),
        }
    }
}

fn push(mut members: Vec<Value>) -> Result<Value, DecodeError> {
    if members.is_empty() {
        return Ok(Value::Push {
            kind: PushKind::Other(String::new()),
            data: members,
        });
    }
    let kind = match members.remove(0) {
        Value::SimpleString(kind) => Some(kind),
        Value::BulkString(kind) => String::from_utf8(kind).ok(),
        _ => None,
    };
    let kind = match kind.ok_or(DecodeError::BadContent { sigil: '>' })? {
        kind if kind == "invalidate" => PushKind::Invalidate,
        kind if kind == "message" => PushKind::Message,
        kind if kind == "pmessage" => PushKind::PMessage,
        kind if kind == "smessage" => PushKind::SMessage,
        kind if kind == "subscribe" => PushKind::Subscribe,
        kind if kind == "psubscribe" => PushKind::PSubscribe,
        kind if kind == "ssubscribe" => PushKind::SSubscribe,
        kind if kind == "unsubscribe" => PushKind::Unsubscribe,
        kind if kind == "punsubscribe" => PushKind::PUnsubscribe,
        kind if kind == "sunsubscribe" => PushKind::SUnsubscribe,
        kind => PushKind::Other(kind),
    };
    Ok(Value::Push {
        kind,
        data: members,
    })
}

/// A string whose header has been read, and as much of its content as has come.
#[derive(Debug)]
struct Blob {
    sigil: u8,
    length: usize,
    content: Vec<u8>,
}

impl Blob {
    /// Takes what belongs to the string off the front of `input`; answers with how many bytes that was.
    fn take(&mut self, input: &[u8]) -> usize {
        let have = self.content.len();
        let part = &input[..input.len().min(self.length - have)];
        if self.content.capacity() < have + part.len() {
            let target = (have + part.len()).max(2 * have).min(self.length);
            self.content.reserve_exact(target - have);
        }
        self.content.extend_from_slice(part);
        part.len()
    }

    fn finish(self) -> Result<Value, DecodeError> {
        match self.sigil {
            b'$' => Ok(Value::BulkString(self.content)),
            b'!' => server_error(&self.content),
            _ => verbatim(&String::from_utf8_lossy(&self.content)),
        }
    }
}

fn verbatim(content: &str) -> Result<Value, DecodeError> {
    let (format, text) = content
        .split_once(':')
        .ok_or(DecodeError::BadContent { sigil: '=' })?;
    let format = match format {
        "txt" => VerbatimFormat::Text,
        "mkd" => VerbatimFormat::Markdown,
        other => VerbatimFormat::Unknown(other.to_owned()),
    };
    Ok(Value::VerbatimString {
        format,
        text: text.to_owned(),
    })
}

/// The content of a line, without its sigil and line end, as a value.
///
/// Redis repeats bytes of a refused command in its error messages, so they need not be UTF-8; what is not is
/// replaced, where redis-rs would give up the connection.
fn line_value(sigil: u8, content: &[u8]) -> Result<Value, DecodeError> {
    let text = || String::from_utf8_lossy(content);
    let value = match sigil {
        b'+' if content == b"OK" => Some(Value::Okay),
        b'+' => Some(Value::SimpleString(text().into_owned())),
        b'-' => return server_error(content),
        b'_' => content.is_empty().then_some(Value::Nil),
        b'#' => match content {
            b"t" => Some(Value::Boolean(true)),
            b"f" => Some(Value::Boolean(false)),
            _ => None,
        },
        b',' => text().parse().ok().map(Value::Double),
        _ => {
            let digits = content
                .strip_prefix(b"-")
                .or(content.strip_prefix(b"+"))
                .unwrap_or(content);
            let numeric = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            numeric.then(|| Value::BigNumber(content.to_vec()))
        }
    };
    value.ok_or(DecodeError::BadContent {
        sigil: char::from(sigil),
    })
}

/// redis-rs keeps the making of its errors to its own parser, so that is what makes them. The form of a blob
/// error carries any content.
fn server_error(content: &[u8]) -> Result<Value, DecodeError> {
    let mut frame = format!("!{}\r\n", content.len()).into_bytes();
    frame.extend_from_slice(content);
    frame.extend_from_slice(b"\r\n");
    redis::parse_redis_value(&frame).map_err(|_| DecodeError::BadContent { sigil: '-' })
}

fn integer(rest: &[u8], at: &mut usize) -> Result<Step, DecodeError> {
    match number(rest) {
        Number::Value(value, size) => {
            *at += size;
            Ok(Step::Value(Value::Int(value)))
        }
        Number::Starved => Ok(Step::Starved),
        Number::Bad => Err(DecodeError::BadContent { sigil: ':' }),
    }
}

/// Where the first line end begins, in a value of which the first `searched` bytes hold none.
fn line_end(rest: &[u8], searched: usize) -> Option<usize> {
    let mut from = searched.min(rest.len());
    loop {
        let feed = from + memchr(b'\n', &rest[from..])?;
        if feed > 1 && rest[feed - 1] == b'\r' {
            return Some(feed - 1);
        }
        from = feed + 1;
    }
}

enum Header {
    /// The length claimed, and how many bytes the header takes.
    Length(usize, usize),
    /// Incomplete, negative or wrong.
    Odd,
}

/// The usual header: a sigil, a few digits, a line end.
#[inline]
fn header(rest: &[u8]) -> Header {
    let mut length: u64 = 0;
    for (i, &byte) in rest.iter().enumerate().skip(1).take(MOST_DIGITS) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            let ended = i > 1 && byte == b'\r' && rest.get(i + 1) == Some(&b'\n');
            return match usize::try_from(length) {
                Ok(length) if ended => Header::Length(length, i + 2),
                _ => Header::Odd,
            };
        }
        length = length * 10 + u64::from(digit);
    }
    Header::Odd
}

enum Number {
    /// The number, and how many bytes its line takes with sigil and line end.
    Value(i64, usize),
    Starved,
    Bad,
}

/// A line that holds an integer. It is at most 23 bytes long, so that looking at it again when it comes in
/// pieces costs next to nothing.
#[inline]
fn number(rest: &[u8]) -> Number {
    let negative = rest.get(1) == Some(&b'-');
    let start = if negative || rest.get(1) == Some(&b'+') {
        2
    } else {
        1
    };
    let mut magnitude: u64 = 0;
    let mut i = start;
    loop {
        match rest.get(i) {
            Some(byte @ b'0'..=b'9') if i - start < MOST_DIGITS => {
                magnitude = magnitude * 10 + u64::from(byte - b'0');
                i += 1;
            }
            Some(b'\r') if i > start => break,
            Some(_) => return Number::Bad,
            None => return Number::Starved,
        }
    }
    let value = if negative {
        0i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    };
    match (rest.get(i + 1), value) {
        (Some(b'\n'), Some(value)) => Number::Value(value, i + 2),
        (None, Some(_)) => Number::Starved,
        _ => Number::Bad,
    }
}

/// As many digits as any `i64` has; that many always fit a `u64`.
const MOST_DIGITS: usize = 19;

/// The bytes of the shortest value there is, `_` and a line end.
const SHORTEST_VALUE: usize = 3;

/// How many members are reserved at most before they have come (per open aggregate).
const UNEARNED_ELEMENTS: usize = 512;

/// How many bytes are reserved at most for a string before they have come.
const UNEARNED_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests;
