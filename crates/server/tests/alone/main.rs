//! What counts things of the whole process (files, memory, panics), and so is a program of its own:
//! tests beside it would be counted too.
#![allow(clippy::unwrap_used)]

#[path = "../all/harness.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod harness;
mod malformed;
