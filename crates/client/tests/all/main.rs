//! The client's promises, each on a real server. One binary, so that it links once.
#![allow(
    clippy::unwrap_used,
    reason = "tests say what they expect by unwrapping it"
)]

mod compat;
mod outage;
mod promises;
mod pubsub;
mod support;
