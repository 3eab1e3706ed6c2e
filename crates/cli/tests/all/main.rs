//! The built program as its users meet it: what it prints, how it ends, what it leaves behind.
#![allow(clippy::unwrap_used, dead_code)]

mod config;
mod help;
mod probe;
mod program;
mod web;
