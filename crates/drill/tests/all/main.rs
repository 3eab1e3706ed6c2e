//! The faults, each shown on real sockets or a real server to be what its name says.

#![allow(clippy::unwrap_used)]

mod api;
mod drills;
mod endings;
mod examples;
mod process_cluster;
mod process_redis;
mod process_sql;
mod proxy_resp;
mod proxy_wire;
mod scripts;
mod subjects;
mod targets;
