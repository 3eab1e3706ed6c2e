//! Laws that hold for any input, and models that any sequence of operations must agree with.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod breaker_model;
mod policy_laws;
