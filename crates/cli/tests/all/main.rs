//! The built program as its users meet it: what it prints, how it ends, what it leaves behind.
#![allow(clippy::unwrap_used)]

mod cache;
mod config;
mod demo;
mod drain;
mod drill;
mod drill_ends;
#[cfg(feature = "entra-id")]
mod entra;
mod help;
mod pages;
mod probe;
mod program;
mod rate;
mod rooms;
mod secrets;
mod service;
mod surroundings;
mod token;
mod web;
