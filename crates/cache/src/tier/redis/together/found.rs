//! The answer to one question for many, and of it each reader's own part.

use redis::Value;

use super::gathering::Reader;
use crate::tier::redis::look::{Found, Told, text};

/// Texts that Redis has, or has not.
pub(super) type Text = Option<Vec<u8>>;

/// The answers for all of a gathering, in the order of its readers.
pub(super) struct FoundForAll {
    told: ToldForAll,
    /// Of each its value and the tokens of its tags.
    texts: std::vec::IntoIter<Value>,
}

/// What Redis has said beside all these values.
enum ToldForAll {
    Now(u64),
    Left(std::vec::IntoIter<Value>),
}

impl FoundForAll {
    /// Returns what is found for each of these readers, who are all.
    pub(super) fn for_each_of<'r>(
        self,
        readers: impl Iterator<Item = &'r Reader>,
    ) -> impl Iterator<Item = Found> {
        let Self {
            mut told,
            mut texts,
        } = self;
        let mut next = move || texts.next().and_then(text).flatten();
        readers.map_while(move |reader| {
            let told = match &mut told {
                ToldForAll::Now(now) => Told::Now(*now),
                ToldForAll::Left(left) => Told::Left(left_of(&left.next()?)?),
            };
            let value = next();
            let tokens = match reader.tags.as_slice() {
                [] => Vec::new(),
                tags => tags.iter().map(|_| next()).collect(),
            };
            Some(Found {
                told,
                value,
                tokens,
            })
        })
    }
}

/// Takes apart what tells the ages, and epoch, watermark and what each reader has named.
pub(super) fn take_apart(
    mut answer: Vec<Value>,
    readers: &[Reader],
) -> Option<(Text, Text, FoundForAll)> {
    let tags: usize = readers.iter().map(|reader| reader.tags.len()).sum();
    let Some(Value::Array(texts)) = answer.pop() else {
        return None;
    };
    let is_text = |value: &Value| matches!(value, Value::BulkString(_) | Value::Nil);
    if texts.len() != 2 + readers.len() + tags || !texts.iter().all(is_text) {
        return None;
    }
    let told = match answer.as_slice() {
        [Value::Array(now)] => ToldForAll::Now(milliseconds(now)?),
        left if left.len() == readers.len() && left.iter().all(|left| left_of(left).is_some()) => {
            ToldForAll::Left(answer.into_iter())
        }
        _ => return None,
    };
    let mut texts = texts.into_iter();
    let (epoch, watermark) = (texts.next().and_then(text)?, texts.next().and_then(text)?);
    Some((epoch, watermark, FoundForAll { told, texts }))
}

fn left_of(value: &Value) -> Option<i64> {
    match value {
        Value::Int(left) => Some(*left),
        _ => None,
    }
}

/// The answer to TIME, seconds and microseconds, as milliseconds: rounded up, so that nothing seems
/// younger than it is.
fn milliseconds(now: &[Value]) -> Option<u64> {
    let number = |value: &Value| match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    let [seconds, micros] = now else { return None };
    let seconds = number(seconds)?.checked_mul(1000)?;
    seconds.checked_add(number(micros)?.div_ceil(1000))
}
