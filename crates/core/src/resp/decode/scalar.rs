//! Values that hold no others: numbers, lines and strings.

use memchr::memchr;
use redis::{Value, VerbatimFormat};

use super::DecodeError;

/// A string whose header has been read, and as much of its content as has come.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) sigil: u8,
    pub(super) length: usize,
    pub(super) content: Vec<u8>,
}

impl Blob {
    /// With room for what has come, or is not much.
    pub(super) fn new(sigil: u8, length: usize, arrived: usize) -> Self {
        let content = Vec::with_capacity(length.min(arrived.max(UNEARNED_BYTES)));
        Self {
            sigil,
            length,
            content,
        }
    }

    /// Bytes that have not come.
    pub(super) fn missing(&self) -> usize {
        self.length - self.content.len()
    }

    /// Makes room for so many bytes, and for four times what has come if they fill it: so what is
    /// moved for that is a third of a large string, not all of it.
    pub(super) fn make_room(&mut self, bytes: usize) {
        let have = self.content.len();
        if self.content.capacity() - have < bytes {
            let target = (have + bytes).max(4 * have).min(self.length);
            self.content.reserve_exact(target - have);
        }
    }

    /// Takes what belongs to the string off the front of `input`; answers with how many bytes that
    /// was.
    pub(super) fn take(&mut self, input: &[u8]) -> usize {
        let have = self.content.len();
        let part = &input[..input.len().min(self.length - have)];
        self.make_room(part.len());
        self.content.extend_from_slice(part);
        part.len()
    }

    pub(super) fn finish(self) -> Result<Value, DecodeError> {
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
/// Redis repeats bytes of a refused command in its error messages, so they need not be UTF-8; what
/// is not is replaced, where redis-rs would give up the connection.
pub(super) fn line_value(sigil: u8, content: &[u8]) -> Result<Value, DecodeError> {
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
            if numeric {
                return by_redis_rs(sigil, content);
            }
            None
        }
    };
    value.ok_or(bad(sigil))
}

/// An error reply. The form of a blob error carries any content.
fn server_error(content: &[u8]) -> Result<Value, DecodeError> {
    let length = format!("{}\r\n", content.len());
    by_redis_rs(b'!', &[length.as_bytes(), content].concat()).map_err(|_| bad(b'-'))
}

/// Lets redis-rs's own parser make what only it can make: its errors have no public constructor,
/// and the content of a big number is of another type with its feature `num-bigint`, which any
/// crate of the program may have switched on.
fn by_redis_rs(sigil: u8, content: &[u8]) -> Result<Value, DecodeError> {
    let frame = [&[sigil], content, b"\r\n"].concat();
    redis::parse_redis_value(&frame).map_err(|_| bad(sigil))
}

fn bad(sigil: u8) -> DecodeError {
    let sigil = char::from(sigil);
    DecodeError::BadContent { sigil }
}

/// Where the first line end begins, in a value of which the first `searched` bytes hold none.
pub(super) fn line_end(rest: &[u8], searched: usize) -> Option<usize> {
    let mut from = searched.min(rest.len());
    loop {
        let feed = from + memchr(b'\n', &rest[from..])?;
        if feed > 1 && rest[feed - 1] == b'\r' {
            return Some(feed - 1);
        }
        from = feed + 1;
    }
}

pub(super) enum Header {
    /// The length claimed, and how many bytes the header takes.
    Length(usize, usize),
    /// Incomplete, negative or wrong.
    Odd,
}

/// The usual header: a sigil, a few digits, a line end.
#[inline]
pub(super) fn header(rest: &[u8]) -> Header {
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

pub(super) enum Number {
    /// The number, and how many bytes its line takes with sigil and line end.
    Value(i64, usize),
    Starved,
    Bad,
}

/// A line that holds an integer. It is at most 23 bytes long, so that looking at it again when it
/// comes in pieces costs next to nothing.
#[inline]
pub(super) fn number(rest: &[u8]) -> Number {
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

/// How many bytes are reserved at most for a string before they have come.
pub(super) const UNEARNED_BYTES: usize = 1 << 20;

/// As many digits as any `i64` has; that many always fit a `u64`.
const MOST_DIGITS: usize = 19;
