//! What the pure half claims of Redis, held against a real `redis-server`.

#![allow(clippy::unwrap_used)]

mod command_table;
mod redis;
mod samples;
