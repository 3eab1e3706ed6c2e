//! Values that hold others: arrays, sets, maps, attributes, pushes.

use redis::{PushKind, Value};

use super::DecodeError;

/// An aggregate whose members are still coming.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) sigil: u8,
    pub(super) missing: usize,
    /// The members of an array, set or push.
    pub(super) members: Vec<Value>,
    /// The members of a map, or the attributes of an attribute.
    pub(super) pairs: Vec<(Value, Value)>,
    /// A key whose value has not come yet.
    pub(super) key: Option<Value>,
}

impl Frame {
    pub(super) fn new(sigil: u8, missing: usize, reserve: usize) -> Self {
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
    pub(super) fn add(&mut self, value: Value) {
        self.missing -= 1;
        if !matches!(self.sigil, b'%' | b'|') {
            self.members.push(value);
        } else if let Some(key) = self.key.take() {
            self.pairs.push((key, value));
        } else {
            self.key = Some(value);
        }
    }

    pub(super) fn finish(self) -> Result<Value, DecodeError> {
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
