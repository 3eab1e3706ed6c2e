//! The cache's promises on real servers.
#![allow(clippy::unwrap_used, missing_docs)]

mod degradation;
mod flights;
mod outbox;
mod provenance;
mod site;
