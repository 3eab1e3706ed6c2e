//! The part of Steadfast that can be tested without a network, a clock or a runtime.
//!
//! Whatever makes a resilient client hard to get right is a matter of order and time: which byte
//! came first, which deadline passed, which attempt is the last. So all of it lives here, where
//! time is an argument, bytes are slices and randomness is a seeded generator that is handed in.
//! Nothing in this crate reads a clock, sleeps, spawns, opens a socket or draws unseeded
//! randomness; a test can therefore drive it through a thousand outages in a second and see the
//! same thing each time.
//!
//! - [`certainty`]: what is known of a command that failed.
//! - [`conn`]: one pipelined connection as a state machine.
//! - [`command`]: what a command does, by its name and arguments: may it be repeated, does it
//!   block, where are its keys.
//! - [`policy`]: whether and when to try, pause, refuse or give up.
//! - [`redis_rs`]: how commands of redis-rs are read.
//! - [`resp`]: the Redis protocol, both ways, incrementally.
//!
//! For several servers (Sentinel and Cluster):
//!
//! - [`slot`] and [`node`]: the slot of a key, the address and the identity of a server.
//! - [`report`]: what servers say of themselves and of each other.
//! - [`redirect`]: what an error reply says about which server serves a command.
//! - [`command::place`], [`split`] and [`scan`]: where a command without keys belongs, how those of
//!   several slots are divided and their answers joined, and how all keys of a cluster are gone
//!   through.
//! - [`topology`] and [`sentinel`]: which of their answers to believe, and when to ask again.
//! - [`succession`]: what became of the data when one primary followed another.
//!
//! # Versions
//! Commands and values of redis-rs cross this interface, so its major version is part of ours;
//! [`redis`] is the one that fits, with any of its features. Before 1.0 a minor version may break.

/// The redis-rs whose commands and values cross this interface.
pub use redis;

pub mod certainty;
pub mod command;
pub mod conn;
pub mod node;
pub mod policy;
pub mod redirect;
pub mod redis_rs;
pub mod report;
pub mod resp;
pub mod scan;
pub mod sentinel;
pub mod slot;
pub mod split;
pub mod succession;
pub mod topology;

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
