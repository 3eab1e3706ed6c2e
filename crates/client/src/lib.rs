//! A Redis client that keeps an application serving when Redis does not.
//!
//! redis-rs supplies commands and values; the connection is Steadfast's own, because what matters
//! in an outage is decided there: what is known of a command whose answer never came, when a silent
//! peer is dead, and how long a call may wait.
//!
//! ```no_run
//! use steadfast::redis::AsyncCommands;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut redis = steadfast::Client::builder("redis://127.0.0.1/")?.build()?;
//! redis.set::<_, _, ()>("greeting", "hello").await?;
//! let greeting: String = redis.get("greeting").await?;
//! # Ok(()) }
//! ```
//!
//! - A call never outlives its deadline (1 s by default), waits, attempts and pauses included.
//! - Every failure says what is known of the command: [`Certainty`]. Only what is safe is repeated.
//! - A short interruption is not noticed; after it, calls to a server that is down are refused in
//!   microseconds.
//! - The client starts without Redis, reconnects for ever, and says what it does:
//!   [`Client::status`], [`Client::events`].
//!
//! # Features
//! `tls` (default): `rediss://` and `Tls`, by rustls. `metrics` (default): metrics through the
//! facade of the crate `metrics`. `serde`: `Serialize` for status, health, events and incidents.
//! `entra-id`: credentials of Azure's Entra ID, with Azure's own crates.
//!
//! # Versions
//! Commands, values and errors of redis-rs cross this interface, so its major version is part of
//! ours: a new one of redis-rs is a new one of this crate. [`redis`] is the one that fits, and
//! `secrecy` for the secrets of Entra ID. Other
//! crates' features never change what this one does. Before 1.0 a minor version may break.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod breaker;
mod call;
mod client;
mod clock;
pub mod credentials;
pub mod defaults;
mod error;
mod event;
mod failover;
mod health;
mod link;
mod membership;
#[cfg_attr(not(feature = "metrics"), path = "metrics/off.rs")]
mod metrics;
mod named;
mod options;
mod own_writes;
mod pubsub;
mod redis_rs;
mod resolve;
mod retry;
mod seeds;
mod sentinel;
mod session;
mod settings;
#[cfg(test)]
mod simulation;
mod sync;
mod target;
mod task;
#[cfg(feature = "tls")]
mod tls;
mod wire;

/// The redis-rs whose commands, values and errors cross this interface.
pub use redis;
/// The secrecy whose secrets Entra ID takes.
#[cfg(feature = "entra-id")]
pub use secrecy;

pub use client::builder::ClientBuilder;
pub use client::chosen::NodeClient;
pub use client::cluster::{ClusterStatus, NodeStatus};
pub use client::scan::KeyScan;
pub use client::status::Status;
pub use client::toward::Toward;
pub use client::{Client, CloseReport, ScopedClient};
pub use error::connect::ConnectError;
pub use error::{Bound, Certainty, ConfigError, Error, ErrorKind, certainty};
pub use event::flapping::Flapping;
pub use event::incident::Incident;
pub use event::{Event, EventItem, EventKind, Events};
pub use health::Health;
pub use link::ConnectionState;
pub use link::fence::Fencing;
pub use options::{CallOptions, ReadFrom};
pub use pubsub::{PubSub, PubSubControl, PubSubEvent};
pub use resolve::{Resolve, SystemResolver};
pub use retry::{Exhausted, Pause, Retry, RetryError};
pub use sentinel::{FailoverHistory, ReplicaStatus, SentinelContact, SentinelStatus};
pub use session::Session;
pub use steadfast_core::command::{Alternative, Effect};
pub use steadfast_core::policy::breaker::BreakerMode;
pub use steadfast_core::policy::{Backoff, BreakerConfig, Budget, BudgetConfig, RetryPolicy, Stop};
pub use steadfast_core::resp::{DecodeError, Limits};
pub use steadfast_core::scan::ScanQuery;
pub use target::Role;
#[cfg(feature = "tls")]
pub use tls::Tls;

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
