//! The service through real HTTP, on real servers that each test starts for itself.
#![allow(clippy::unwrap_used)]

mod acl;
mod auth;
mod auth_config;
mod authority;
mod cluster;
mod databases;
mod deploy;
mod drain;
mod drills;
mod events;
mod examples;
mod fuzz;
mod guarded;
mod harness;
mod health;
mod input;
mod jwks;
mod life;
mod limits;
mod manners;
mod metrics;
mod nested;
mod once;
mod openapi;
mod page;
mod queries;
mod rate;
mod sentinel;
mod sql_tls;
mod surroundings;
mod tls;
mod tokens;
mod traces;
mod values;
