//! A resilient read path is worth most to those who need not write a program for it. This crate puts Steadfast's
//! client and cache behind HTTP: named queries and statements from one configuration file, with health, metrics,
//! events and a page that shows what is happening and why.

pub mod config;
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "read by the configuration, run by the routes to come"
    )
)]
mod query;
