//! The client's settings for sentinels, as `[redis.sentinel]` says.

use steadfast::{ClientBuilder, ConfigError};

use super::credentials;
use crate::config::SentinelConfig;

pub(super) fn apply(
    mut builder: ClientBuilder,
    config: &SentinelConfig,
) -> Result<ClientBuilder, ConfigError> {
    if let Some(within) = config.proof {
        builder = builder.primary_proof(within);
    }
    if let Some(settings) = &config.tls {
        let tls = settings.enabled.then(|| super::tls(&settings.how));
        builder = builder.sentinel_tls(tls.transpose()?);
    }
    if !config.addresses.is_empty() {
        let map = config.addresses.clone();
        builder = builder.translate_addresses(move |host, port| map.translate(host, port));
    }
    let builder = builder.wait_for_primary(config.wait_for_primary);
    let theirs = config.credentials.as_ref();
    Ok(credentials::provide_to_sentinels(builder, theirs))
}
