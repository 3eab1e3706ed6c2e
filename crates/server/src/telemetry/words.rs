//! The description of each metric of the service, for whoever reads `/metrics`; the client and the
//! cache tell of their own.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Name, unit and what is spread over its edges.
const HISTOGRAMS: &[(&str, Unit, &str)] = &[(
    "http_server_request_duration_seconds",
    Unit::Seconds,
    "Time to answer a request, by route, method and status",
)];

/// Name and what is counted.
const COUNTERS: &[(&str, &str)] = &[
    (
        "steadfast_reads_total",
        "Reads by query, where the answer came from, and whether it was stale",
    ),
    (
        "steadfast_read_errors_total",
        "Reads that failed, by query and kind of problem",
    ),
    (
        "steadfast_log_lost_total",
        "Lines of the log that could not be written, because nobody took them",
    ),
    (
        "steadfast_audit_lost_total",
        "Lines of the audit log that could not be written",
    ),
    (
        "steadfast_audit_suppressed_total",
        "Refusals of callers without a name that were too many to be written down",
    ),
    ("steadfast_auth_refused_total", "Callers refused, by reason"),
    (
        "steadfast_rate_limited_total",
        "Calls refused by a rate, by limit",
    ),
    (
        "steadfast_rate_limit_uncounted_total",
        "Calls that the fleet could not count, by limit",
    ),
    (
        "steadfast_stalled_callers_total",
        "Connections reset because the caller took nothing of its answer",
    ),
    (
        "steadfast_writes_total",
        "Statements run, by name and outcome",
    ),
    (
        "steadfast_redis_attempts_total",
        "Attempts to connect to Redis",
    ),
    (
        "steadfast_redis_reconnects_total",
        "Lost connections to Redis that were replaced",
    ),
    (
        "steadfast_redis_failovers_total",
        "Primaries that followed another, by what became of its data",
    ),
    (
        "steadfast_redis_writes_at_risk_total",
        "Acknowledged writes that a failover may have lost",
    ),
    (
        "steadfast_redis_stuck_resets_total",
        "Times that a stuck supervisor of a connection was started anew",
    ),
    (
        "steadfast_redis_discoveries_total",
        "Times that nodes of the cluster were asked who owns what",
    ),
    (
        "steadfast_redis_redirects_total",
        "Calls that went on at another node of the cluster, or at the same once more",
    ),
    (
        "steadfast_redis_node_replies_total",
        "Replies of a node of the cluster, by its address",
    ),
    (
        "steadfast_redis_node_reconnects_total",
        "Lost connections to a node of the cluster that were replaced, by its address",
    ),
    (
        "steadfast_task_restarts_total",
        "Tasks in the background that panicked and were started anew, by name",
    ),
];

/// Name, unit if it has one, and what is measured.
const GAUGES: &[(&str, Option<Unit>, &str)] = &[
    ("http_server_active_requests", None, "Requests under way"),
    ("steadfast_ready", None, "1 while /health/ready says 200"),
    (
        "steadfast_health",
        None,
        "Health by check: 1 healthy, 0.5 degraded, 0 unhealthy",
    ),
    (
        "steadfast_reads_failing",
        None,
        "1 while reads fail by no fault of their callers",
    ),
    (
        "steadfast_redis_flapping",
        None,
        "1 while the connection to Redis is lost and replaced again and again",
    ),
    (
        "steadfast_redis_state",
        None,
        "1 for the state that the connection to Redis is in",
    ),
    (
        "steadfast_breaker_state",
        None,
        "1 for the state that the breaker is in",
    ),
    (
        "steadfast_redis_in_flight",
        None,
        "Calls to Redis that are not answered yet",
    ),
    (
        "steadfast_redis_mean_recovery_seconds",
        Some(Unit::Seconds),
        "Mean time from the loss of a connection to the next in service",
    ),
    (
        "steadfast_redis_round_trip_seconds",
        Some(Unit::Seconds),
        "Round trip to Redis, smoothed",
    ),
    (
        "steadfast_redis_sentinels",
        None,
        "Sentinels by whether they agree on the primary",
    ),
    (
        "steadfast_redis_primary_proof_age_seconds",
        Some(Unit::Seconds),
        "Time since a majority of sentinels confirmed the primary",
    ),
    (
        "steadfast_redis_replicas",
        None,
        "Replicas of the primary by state",
    ),
    (
        "steadfast_redis_replica_lag_bytes",
        Some(Unit::Bytes),
        "How far the replica that is furthest behind is behind the primary",
    ),
    (
        "steadfast_redis_shards",
        None,
        "Primaries of the cluster that own slots, by whether they serve",
    ),
    (
        "steadfast_redis_shards_without_replica",
        None,
        "Primaries of the cluster that own slots and have no replica",
    ),
    (
        "steadfast_redis_uncovered_slots",
        None,
        "Slots of the cluster that nobody owns",
    ),
    (
        "steadfast_redis_readable_replicas",
        None,
        "Replicas of the cluster that are fit to be read from",
    ),
    (
        "steadfast_redis_replica_lag_seconds",
        Some(Unit::Seconds),
        "Greatest age of the data of a replica that may be read from",
    ),
    (
        "steadfast_redis_cluster_view_age_seconds",
        Some(Unit::Seconds),
        "Time since a node of the cluster last told who owns what",
    ),
    (
        "steadfast_database_loads_running",
        None,
        "Loads that the database is busy with",
    ),
    (
        "steadfast_database_loads_waiting",
        None,
        "Loads that wait to be admitted to the database",
    ),
    ("steadfast_event_subscribers", None, "Event streams open"),
    (
        "system_cpu_utilization_ratio",
        None,
        "Share of the machine's processors in use",
    ),
    (
        "system_memory_utilization_ratio",
        None,
        "Share of the machine's memory in use",
    ),
    (
        "process_memory_usage_bytes",
        Some(Unit::Bytes),
        "Resident memory of this process",
    ),
    (
        "process_uptime_seconds",
        Some(Unit::Seconds),
        "Time since the start",
    ),
];

/// Gives the recorder the words for `/metrics`.
pub(super) fn describe() {
    for (name, unit, what) in HISTOGRAMS {
        describe_histogram!(*name, *unit, *what);
    }
    for (name, what) in COUNTERS {
        describe_counter!(*name, *what);
    }
    for (name, unit, what) in GAUGES {
        match unit {
            Some(unit) => describe_gauge!(*name, *unit, *what),
            None => describe_gauge!(*name, *what),
        }
    }
}
