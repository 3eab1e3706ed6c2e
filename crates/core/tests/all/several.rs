//! Clusters and sentinels: what is read of them, held against real ones.

mod cluster;
mod scan;
mod sentinels;
mod servers;
