//! Between a caller's value and the bytes in Redis.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) type CodecError = Arc<dyn Error + Send + Sync>;

/// Two functions rather than a trait: there are two codecs, chosen when the cache is built.
pub(crate) struct Codec<V> {
    pub(crate) encode: fn(&V) -> Result<Bytes, CodecError>,
    pub(crate) decode: fn(Vec<u8>) -> Result<V, CodecError>,
}

impl<V> Clone for Codec<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Codec<V> {}

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
