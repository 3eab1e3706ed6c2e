//! The cache's promises on real servers.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod batches;
mod belief;
mod cluster;
mod coherence;
mod degradation;
mod engines;
mod examples;
mod flights;
mod history;
mod nested;
mod oddities;
mod outage;
mod outbox;
mod parameters;
mod pooler;
mod pools;
mod promotion;
mod provenance;
mod put;
mod rollback;
mod runtimes;
mod site;
mod tags;
mod views;
mod watching;
