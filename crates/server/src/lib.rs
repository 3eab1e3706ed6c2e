//! A resilient read path is worth most to those who need not write a program for it. This crate
//! puts Steadfast's client and cache behind HTTP: named queries and statements from one
//! configuration file, with health, metrics, events and a page that shows what is happening and
//! why.
//!
//! ```no_run
//! use steadfast_server::config::{SAMPLE, Sources};
//! use steadfast_server::{App, Config, Signals, bind, run};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let sources = Sources::new().text("sample", SAMPLE).environment(std::env::vars());
//! let mut signals = Signals::install()?; // before anybody is told that it is up
//! let config = Config::load(&sources)?;
//! let listener = bind(&config).await?;
//! let app = App::start(config).await?;
//! run(listener, app, Some(sources), &mut signals).await; // until SIGTERM or SIGINT
//! # Ok(()) }
//! ```
//!
//! A program with a router of its own nests [`router`] below a path and calls [`App::serving`], as
//! `examples/embed.rs` does. Rules and limits name routes without that path, and hold below it.
//!
//! # Features
//! - `drill`: drills over HTTP and the demo, which start and kill private servers and make
//!   certificates. The program has it; an embedded service need not.
//! - `entra-id`: credentials of Azure's Entra ID for Redis.
//!
//! # Versions
//! The router of axum, the secrets of secrecy, the client and the cache cross this interface, so
//! their incompatible versions are part of ours; [`axum`] and [`secrecy`] are those that fit.
//! Before 1.0 a minor version may break.

#![cfg_attr(docsrs, feature(doc_cfg))]

/// The axum whose router crosses this interface.
pub use axum;
/// The secrecy whose secrets cross this interface.
pub use secrecy;

pub mod auth;
pub mod config;
#[cfg(feature = "drill")]
pub mod demo;
#[cfg(feature = "drill")]
pub mod drills;
pub mod health;
pub mod problem;
pub mod telemetry;

mod active_config;
mod address_range;
mod app;
mod backend;
mod background;
mod certificates;
mod checks;
mod clock;
mod complaint;
mod grammar;
mod http;
mod life;
mod lifecycle;
mod limit;
mod nodes;
mod observe;
mod peer;
mod query;
mod reload;
mod role;
mod route;
mod router;
mod serve;
mod shutdown;
mod status;
mod tasks;
mod tls_files;
mod token_key;

pub use app::{App, StartError};
pub use backend::{BackendError, redis_client};
pub use config::Config;
#[cfg(feature = "drill")]
pub use demo::{Demo, DemoOptions};
pub use lifecycle::{Signals, run};
pub use peer::Peer;
pub use router::router;
pub use serve::{BindError, Served, bind, serve};
pub use shutdown::Shutdown;
pub use status::ServiceStatus;

/// The version of the service.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
