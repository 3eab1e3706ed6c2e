//! The client's settings for a cluster, as `[redis.cluster]` says.

use steadfast::ClientBuilder;

use crate::config::{ClusterConfig, ReadFrom};

pub(super) fn apply(mut builder: ClientBuilder, config: &ClusterConfig) -> ClientBuilder {
    if !config.addresses.is_empty() {
        let map = config.addresses.clone();
        builder = builder.translate_addresses(move |host, port| map.translate(host, port));
    }
    builder
        .max_lag(config.max_lag)
        .read_from(match config.read_from {
            ReadFrom::Primary => steadfast::ReadFrom::Primary,
            ReadFrom::Replicas => steadfast::ReadFrom::Replicas,
        })
}
