//! The cache's promises on real servers.
#![allow(clippy::unwrap_used, missing_docs)]

mod batches;
mod coherence;
mod degradation;
mod engines;
mod flights;
mod oddities;
mod outbox;
mod provenance;
mod site;
