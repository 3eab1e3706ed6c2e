//! The client's promises, each on a real server. One binary, so that it links once.
#![allow(
    clippy::unwrap_used,
    reason = "tests say what they expect by unwrapping it"
)]

mod belonging;
mod blame;
mod bounds;
mod chosen;
mod cluster;
mod commands;
mod compat;
mod credentials;
#[cfg(feature = "entra-id")]
mod entra;
mod examples;
mod fencing;
mod following;
mod gates;
mod handover;
mod liveness;
mod load;
mod malformed;
mod members;
mod order;
mod outage;
mod pipelines;
mod promises;
mod pubsub;
mod replicas;
mod runtimes;
mod scan;
mod sentinel;
mod sentinel_scripted;
mod silence;
mod supervisor;
mod support;
mod telemetry;
mod tls;
mod views;
mod wire;
