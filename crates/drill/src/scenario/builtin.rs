//! The scenarios that come with the lab are files like any other: they can be read, copied and
//! changed.

use super::Scenario;

const FILES: &[&str] = &[
    include_str!("../../scenarios/blip-100ms.toml"),
    include_str!("../../scenarios/crash.toml"),
    include_str!("../../scenarios/restart-5s.toml"),
    include_str!("../../scenarios/restart-45s.toml"),
    include_str!("../../scenarios/partition.toml"),
    include_str!("../../scenarios/half-open.toml"),
    include_str!("../../scenarios/freeze.toml"),
    include_str!("../../scenarios/slow-redis.toml"),
    include_str!("../../scenarios/flapping.toml"),
    include_str!("../../scenarios/auth-failure.toml"),
    include_str!("../../scenarios/token-expiry.toml"),
    include_str!("../../scenarios/high-load.toml"),
    include_str!("../../scenarios/maxclients.toml"),
    include_str!("../../scenarios/oom.toml"),
    include_str!("../../scenarios/loading.toml"),
    include_str!("../../scenarios/readonly-failover.toml"),
    include_str!("../../scenarios/database-outage.toml"),
    include_str!("../../scenarios/redis-and-database.toml"),
    include_str!("../../scenarios/stale-after-recovery.toml"),
    include_str!("../../scenarios/stale-without-memory.toml"),
    include_str!("../../scenarios/loop.toml"),
    include_str!("../../scenarios/failover-planned.toml"),
    include_str!("../../scenarios/primary-killed.toml"),
    include_str!("../../scenarios/primary-frozen.toml"),
    include_str!("../../scenarios/split-brain.toml"),
    include_str!("../../scenarios/sentinels-away.toml"),
    include_str!("../../scenarios/sentinel-stale.toml"),
    include_str!("../../scenarios/replica-lag.toml"),
    include_str!("../../scenarios/cluster-slots-moving.toml"),
    include_str!("../../scenarios/cluster-failover.toml"),
    include_str!("../../scenarios/cluster-primary-killed.toml"),
    include_str!("../../scenarios/cluster-primary-frozen.toml"),
    include_str!("../../scenarios/cluster-shard-down.toml"),
    include_str!("../../scenarios/cluster-shard-frozen.toml"),
    include_str!("../../scenarios/cluster-node-added.toml"),
    include_str!("../../scenarios/cluster-restarted.toml"),
    include_str!("../../scenarios/cluster-addresses.toml"),
    include_str!("../../scenarios/cluster-stale-map.toml"),
];

/// All scenarios that come with the lab, in the order in which they are best met.
pub fn all() -> Vec<Scenario> {
    FILES
        .iter()
        .map(|text| Scenario::parse(text).expect("built-in scenarios parse, as a test shows"))
        .collect()
}

/// The built-in scenario of that name.
pub fn builtin(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}
