//! Between a caller's value and the bytes in Redis.
//!
//! Both ways run the caller's code (its `Serialize` and `Deserialize`), so a panic in them is an
//! error of that one value, like any other.

mod faithful;
mod shape;

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
    /// The number of the type; see [`shape`]. Zero for bytes, of which only the caller knows.
    pub(crate) shape: u32,
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
                let json =
                    serde_json::to_vec(value).map_err(|error| Arc::new(error) as CodecError)?;
                // Whatever JSON has no word for it writes as `null`.
                if json.windows(4).any(|word| word == b"null") {
                    faithful::check(value).map_err(|error| Arc::new(error) as CodecError)?;
                }
                // A reader goes no deeper than that, so nobody could read it.
                if faithful::is_deep(&json) {
                    read::<V>(&json)?;
                }
                Ok(Bytes::from(json))
            },
            decode: |bytes| read(&bytes),
            shape: shape::of::<V>(),
        }
    }
}

impl Codec<Bytes> {
    pub(crate) fn bytes() -> Self {
        Self {
            encode: |value| Ok(value.clone()),
            decode: |bytes| Ok(Bytes::from(bytes)),
            shape: 0,
        }
    }
}

fn read<V: DeserializeOwned>(json: &[u8]) -> Result<V, CodecError> {
    serde_json::from_slice(json).map_err(|error| Arc::new(error) as _)
}

fn panicked<T>(panic: Box<dyn Any + Send>) -> Result<T, CodecError> {
    let error: Box<dyn Error + Send + Sync> = format!("it panicked: {}", message(&*panic)).into();
    Err(error.into())
}

/// Returns the message of a panic, if it was text.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "not a text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encodes<V: Serialize + DeserializeOwned>(value: &V) -> bool {
        Codec::<V>::json().encode(value).is_ok()
    }

    #[test]
    fn k12_what_json_would_bring_back_as_something_else_is_not_encoded() {
        assert!(encodes(&Some(1.5)) && encodes(&None::<f64>) && encodes(&vec![None, Some(2)]));
        assert!(!encodes(&f64::NAN) && !encodes(&Some(f32::INFINITY)));
        assert!(!encodes(&vec![(1, Some(f64::NAN))]));
        assert!(!encodes(&Some(None::<u8>)) && !encodes(&vec![Some(())]));
        assert!(encodes(&serde_json::json!({"a": null, "null": [null]})));
        let nested = std::collections::BTreeMap::from([("null", vec![Some("null")])]);
        let text = serde_json::to_string(&nested).unwrap();
        assert!(encodes(&text) && encodes(&Some(text)));
    }

    #[test]
    fn k12_a_number_with_a_point_comes_back_to_its_last_digit() {
        let mut random = fastrand::Rng::with_seed(12);
        let codec = Codec::<f64>::json();
        for _ in 0..10_000 {
            let numbers = [random.f64() * 100.0, f64::from_bits(random.u64(..))];
            for number in numbers.into_iter().filter(|number| number.is_finite()) {
                let bytes = codec.encode(&number).unwrap();
                let back = codec.decode(bytes.to_vec()).unwrap();
                assert_eq!(back.to_bits(), number.to_bits(), "{number}");
            }
        }
    }

    #[test]
    fn k12_what_is_nested_too_deep_to_be_read_is_not_encoded() {
        use serde_json::{Value, json};
        let nested = |depth| (0..depth).fold(json!("[{"), |inner, _| json!([inner]));
        let is_read = |value: &Value| {
            let json = serde_json::to_vec(value).unwrap();
            serde_json::from_slice::<Value>(&json).is_ok()
        };
        for depth in [1, 126, 127, 128, 129, 200] {
            let value = nested(depth);
            assert_eq!(encodes(&value), is_read(&value), "{depth}");
        }
        assert!(encodes(&nested(127)) && !encodes(&nested(128)));
        assert!(
            encodes(&vec![json!({"a\"": [[]]}); 100]),
            "many are not deep"
        );
        assert!(encodes(&"[".repeat(200)), "nor is text");
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Measured {
        name: Option<String>,
        unit: Unit,
        value: Option<f64>,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    enum Unit {
        None,
        Of(Option<f64>, u8),
        Named { factor: Option<f64> },
    }

    #[test]
    fn k12_it_is_found_in_the_fields_of_structs_and_enums() {
        let value = |unit, value| Measured {
            name: None,
            unit,
            value,
        };
        let named = |factor| Unit::Named { factor };
        assert!(encodes(&value(Unit::None, None)) && encodes(&value(named(None), None)));
        assert!(!encodes(&value(Unit::None, Some(f64::NAN))));
        assert!(!encodes(&value(Unit::Of(Some(f64::NEG_INFINITY), 0), None)));
        assert!(!encodes(&value(named(Some(f64::NAN)), None)));
    }
}
