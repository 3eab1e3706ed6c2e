//! Between a caller's value and the bytes in Redis.
//!
//! Both ways run the caller's code (his `Serialize` and `Deserialize`), so a panic in them is an error of that one value, like any other.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) type CodecError = Arc<dyn Error + Send + Sync>;

/// Two functions rather than a trait: there are two codecs, chosen when a view is made.
#[derive(Debug)]
pub(crate) struct Codec<V> {
    encode: fn(&V) -> Result<Bytes, CodecError>,
    decode: fn(Vec<u8>) -> Result<V, CodecError>,
}

impl<V> Clone for Codec<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Codec<V> {}

impl<V> Codec<V> {
    pub(crate) fn encode(&self, value: &V) -> Result<Bytes, CodecError> {
        catch_unwind(AssertUnwindSafe(|| (self.encode)(value))).unwrap_or_else(panicked)
    }

    pub(crate) fn decode(&self, bytes: Vec<u8>) -> Result<V, CodecError> {
        catch_unwind(AssertUnwindSafe(|| (self.decode)(bytes))).unwrap_or_else(panicked)
    }
}

impl<V: Serialize + DeserializeOwned> Codec<V> {
    pub(crate) fn json() -> Self {
        Self {
            encode: |value| {
                serde_json::to_vec(value)
                    .map(Bytes::from)
                    .map_err(|error| Arc::new(error) as _)
            },
            decode: |bytes| serde_json::from_slice(&bytes).map_err(|error| Arc::new(error) as _),
        }
    }
}

impl Codec<Bytes> {
    pub(crate) fn bytes() -> Self {
        Self {
            encode: |value| Ok(value.clone()),
            decode: |bytes| Ok(Bytes::from(bytes)),
        }
    }
}

fn panicked<T>(panic: Box<dyn Any + Send>) -> Result<T, CodecError> {
    let error: Box<dyn Error + Send + Sync> = format!("it panicked: {}", message(&*panic)).into();
    Err(error.into())
}

/// What a panic said, if it was text.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "not a text".to_owned())
}
