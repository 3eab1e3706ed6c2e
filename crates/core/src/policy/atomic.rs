//! The atomics of the policies that are shared without a lock; under `--cfg loom` those of the
//! model checker, which runs a test through every order in which its threads can meet. A target
//! folder of its own keeps the ordinary build from being thrown away:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p steadfast-core --lib -- models
//! ```

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicI64, AtomicU64, Ordering};
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
