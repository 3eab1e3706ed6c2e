//! Breaks Redis on purpose and judges what the users of an application would have felt.
//!
//! As a dev-dependency it starts private servers ([`process`]), stands between them and an
//! application ([`proxy`], [`fault`]), and breaks either; as the program `steadfast drill` it runs
//! whole experiments ([`scenario`], [`run`](mod@run)).
//!
//! # Versions
//! Values of redis-rs and the router of axum cross this interface, so their incompatible versions
//! are part of ours; [`redis`] and [`axum`] are those that fit. The format of scenarios and of
//! `report.json` is versioned by itself; before 1.0 a minor version of this crate may break its
//! functions.

/// The axum whose router crosses this interface.
pub use axum;
/// The redis-rs whose values cross this interface.
pub use redis;

pub mod api;
pub mod asking;
mod certificates;
mod control;
pub mod fault;
pub mod hand_built;
pub mod http_load;
mod kpi;
pub mod ledger;
pub mod load;
pub mod plain;
pub mod process;
pub mod proxy;
pub mod record;
pub mod report;
pub mod routing;
pub mod run;
pub mod scenario;
pub mod schedule;
pub mod scripted;
mod site;
pub mod subject;
pub mod target;
mod timeline;
pub mod truth;
pub mod verdict;
pub mod waiting;

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
