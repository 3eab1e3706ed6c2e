//! Laws that hold for any input, models that any sequence of operations must agree with, and what
//! is claimed of Redis, held against a real `redis-server`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod breaker_model;
mod command_table;
mod examples;
mod places;
mod policy_laws;
mod redis;
mod samples;
mod several;
mod simulation;
