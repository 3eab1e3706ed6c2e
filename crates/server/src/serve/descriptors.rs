//! Every connection is an open file, and the system gives a process few of them unless it asks for
//! more. Past the limit nothing can be accepted, not even a question for health. So the limit is
//! raised at the start as far as may be, and no more callers are taken than it has room for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, RedisConfig};

/// Returns how many connections of callers there is room for, at most `limits.connections`, and
/// says if it is fewer.
pub(super) fn room(config: &Config) -> usize {
    let wanted = config.limits.connections;
    let own = reserved(config);
    let files = raised_to(u64::try_from(wanted.saturating_add(own)).unwrap_or(u64::MAX));
    let room = usize::try_from(files).unwrap_or(usize::MAX);
    let room = room.saturating_sub(own).clamp(1, wanted);
    if room < wanted {
        tracing::warn!(
            open_files = files,
            needed = wanted.saturating_add(own),
            "only {room} callers can be connected at once, and not `limits.connections` ({wanted}): the system lets this process open {files} files; \
             raise that (`LimitNOFILE` of systemd, `ulimit -n`)"
        );
    }
    room
}

/// The files that the service needs for itself: connections to the database and Redis, spare
/// places, logs, and what the runtime keeps open.
fn reserved(config: &Config) -> usize {
    let database = &config.database;
    let connections = usize::try_from(database.max_connections).unwrap_or(usize::MAX);
    // SQLite opens a database, its log and its index.
    let files = 3 * (connections.saturating_add(database.guard.concurrency) + 1);
    let redis = redis_files(&config.redis);
    (files + redis + super::SPARE_CONNECTIONS + 16).min(1 << 20)
}

/// The connections to Redis, to each node of a cluster as many as to one server. How many nodes
/// there are is told by the cluster, and not known yet.
fn redis_files(config: &RedisConfig) -> usize {
    let scheme = config
        .url
        .expose()
        .split_once("://")
        .map(|(scheme, _)| scheme);
    let nodes = match scheme {
        Some("redis-cluster" | "rediss-cluster") => NODES,
        _ => 1,
    };
    // Beside each one a moment long another that takes its place, or kills what it left behind.
    nodes * (config.connections + 1) + 5
}

/// Nodes of a cluster that there is room for: most have fewer.
const NODES: usize = 16;

/// Raises the soft limit to as much as is needed and the hard one allows; returns what it is then.
fn raised_to(needed: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None: no limit.
    let Some(soft) = current else { return u64::MAX };
    let target = needed.min(maximum.unwrap_or(u64::MAX));
    if soft >= target {
        return soft;
    }
    let raised = Rlimit {
        current: Some(target),
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => {
            tracing::info!(
                from = soft,
                to = target,
                "the limit on open files is raised"
            );
            target
        }
        Err(error) => {
            tracing::warn!(%error, "the limit on open files cannot be raised");
            soft
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn s14_each_node_of_a_cluster_has_connections_of_its_own() {
        let files = |url: &str| {
            let sources = Sources::new().flag("test", "redis.url", url).flag(
                "test",
                "redis.connections",
                "4",
            );
            redis_files(&Config::load(&sources).unwrap().redis)
        };
        assert_eq!(files("redis://a"), 10);
        assert_eq!(files("redis-cluster://a,b"), NODES * 5 + 5);
    }
}
