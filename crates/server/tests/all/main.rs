//! The service through real HTTP, on real servers that each test starts for itself.
#![allow(clippy::unwrap_used)]

mod auth;
mod databases;
mod deploy;
mod drills;
mod events;
mod fuzz;
mod harness;
mod health;
mod input;
mod life;
mod limits;
mod metrics;
mod once;
mod openapi;
mod page;
mod queries;
mod rate;
mod traces;
