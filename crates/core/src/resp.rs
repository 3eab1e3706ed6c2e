//! RESP2 and RESP3, both ways, over plain byte slices.
//!
//! The protocol is spoken by a party that may be broken, frozen half way through a reply, or not
//! Redis at all. So decoding is incremental, bounded in every direction, and refuses with a typed
//! error; encoding is one pass into a buffer that the caller keeps. Both are on the path of every
//! call, so neither allocates more than the value that it hands out.

mod decode;
pub mod encode;

pub use decode::{DecodeError, Decoded, Decoder, Limits};
