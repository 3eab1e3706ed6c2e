//! The schemas of what the service answers and takes.

use serde_json::{Value, json};

use super::reference;

/// Returns every schema by its name.
pub(super) fn schemas() -> Value {
    let rows = json!({ "type": "array", "items": { "type": "object" } });
    json!({
        "Answer": {
            "type": "object",
            "required": ["query", "rows", "truncated", "source", "stale", "age_ms"],
            "properties": {
                "query": {"type": "string"},
                "rows": rows,
                "truncated": {"type": "boolean", "description": "Whether rows beyond `max_rows` were left out"},
                "source": {"type": "string", "enum": ["memory", "redis", "database"]},
                "stale": {"type": "boolean"},
                "age_ms": {"type": "integer", "minimum": 0},
            },
        },
        "Written": {
            "type": "object",
            "required": ["statement", "affected"],
            "properties": {
                "statement": {"type": "string"},
                "affected": {"type": "integer", "minimum": 0},
                "last_id": {"type": "integer"},
                "rows": rows,
            },
        },
        "Problem": problem_schema(),
        "Status": status_schema(),
        "History": {
            "type": "object",
            "required": ["events", "outages"],
            "properties": {
                "events": { "type": "array", "items": {
                    "type": "object",
                    "required": ["at_ms", "event"],
                    "properties": { "at_ms": {"type": "integer"}, "event": {"type": "string"} },
                } },
                "outages": { "type": "array", "items": reference("Outage") },
            },
        },
        "Outage": outage_schema(),
        "Figures": figures_schema(),
        "Health": health_schema(),
        "Order": order_schema(),
        "Drill": drill_schema(),
    })
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "parameter": {"type": "string"},
            "retry_after_ms": {"type": "integer", "minimum": 0},
        },
    })
}

fn health_schema() -> Value {
    json!({
        "type": "object",
        "required": ["status", "phase", "version", "uptime_s", "checks"],
        "properties": {
            "status": {"type": "string", "enum": ["healthy", "degraded", "unhealthy"]},
            "phase": {"type": "string", "enum": ["starting", "serving", "draining"]},
            "version": {"type": "string"},
            "uptime_s": {"type": "integer", "minimum": 0},
            "checks": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": ["status", "latency_ms", "message"],
                    "properties": {
                        "status": {"type": "string", "enum": ["healthy", "degraded", "unhealthy"]},
                        "latency_ms": {"type": ["number", "null"]},
                        "message": {"type": "string"},
                    },
                },
            },
        },
    })
}

fn order_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "scenario": {"type": "string"},
            "toml": {"type": "string"},
            "control": {"type": "boolean", "default": false},
            "hand_built": {"type": "boolean", "default": false},
            "seed": {"type": "integer", "minimum": 0},
            "calls": {"type": "integer", "minimum": 1, "maximum": 200_000},
        },
        "oneOf": [{"required": ["scenario"]}, {"required": ["toml"]}],
        "additionalProperties": false,
    })
}

fn drill_schema() -> Value {
    json!({
        "type": "object",
        "required": ["id", "scenario", "about", "control", "hand_built", "started_ms", "state"],
        "properties": {
            "id": {"type": "integer"},
            "scenario": {"type": "string"},
            "about": {"type": "string"},
            "control": {"type": "boolean"},
            "hand_built": {"type": "boolean"},
            "started_ms": {"type": "integer"},
            "state": {"type": "string", "enum": ["running", "passed", "failed", "void", "stopped", "broken"]},
            "error": {"type": "string"},
        },
    })
}

fn status_schema() -> Value {
    let object = json!({"type": "object"});
    let figures =
        |what: &str| json!({ "type": "array", "description": what, "items": reference("Figures") });
    json!({
        "type": "object",
        "required": ["service", "health", "reads", "rates", "queries", "statements", "outages", "redis", "nodes", "cache", "system"],
        "properties": {
            "service": object,
            "health": reference("Health"),
            "reads": {"type": "object", "description": "Counts since the start", "additionalProperties": {"type": "integer"}},
            "rates": object,
            "queries": figures("memory, redis, database and failed are the ends of calls; stale and slow are some of these"),
            "statements": figures("done, replayed and failed are the ends of calls; slow are some of these"),
            "outages": { "type": "array", "items": reference("Outage") },
            "redis": {
                "type": "object",
                "properties": { "flapping": {
                    "type": ["object", "null"],
                    "description": "Of a connection that is lost and replaced again and again",
                    "properties": {
                        "since_ms": {"type": "integer"},
                        "reconnects": {"type": "integer"},
                        "last_ms": {"type": "integer"},
                        "cause": {"type": "string"},
                    },
                } },
            },
            "nodes": nodes_schema(),
            "cache": object,
            "system": object,
        },
    })
}

fn nodes_schema() -> Value {
    let text = json!({"type": ["string", "null"]});
    let number = json!({"type": ["number", "null"]});
    json!({
        "type": "object",
        "description": "The servers behind the name of Redis, and the sentinels that watch them",
        "required": ["found_by", "servers", "sentinels", "shards"],
        "properties": {
            "found_by": {"type": "string", "enum": ["single", "sentinel", "cluster"]},
            "servers": {"type": "array", "items": {
                "type": "object",
                "required": ["address", "role", "state"],
                "properties": {
                    "address": {"type": "string"},
                    "role": {"type": "string", "enum": ["primary", "replica"]},
                    "state": {"type": "string", "description": "Of the connection to it (ready, connecting, down, closed); without one, in_sync, unknown, idle or away"},
                    "lag_bytes": {"type": ["integer", "null"], "description": "How far it is behind the primary; null where nobody says"},
                    "lag_ms": {"type": ["number", "null"], "description": "How old the data of a cluster's replica are at most; null where no replica is read from"},
                    "breaker": text,
                    "can_take_over": {"type": ["boolean", "null"]},
                    "slots": text,
                    "follows": text,
                },
            }},
            "shards": {
                "type": ["object", "null"],
                "description": "null where there is no cluster",
                "properties": {
                    "primaries": {"type": "integer", "description": "Those that own slots"},
                    "away": {"type": "array", "items": {"type": "string"}},
                    "alone": {"type": "array", "items": {"type": "string"}, "description": "Those without a replica"},
                    "cache_slot": {"type": ["integer", "null"], "description": "All of the cache lies in it"},
                    "cache_away": {"type": ["boolean", "null"], "description": "Whether nobody serves that slot; null if not known"},
                    "uncovered": {"type": "string", "description": "Slots that nobody owns"},
                    "uncovered_slots": {"type": "integer"},
                    "epoch": {"type": "integer"},
                    "heard_ms_ago": number,
                    "error": text,
                    "discoveries": {"type": "integer"},
                    "redirects": {"type": "integer"},
                    "from_replicas": {
                        "type": ["object", "null"],
                        "description": "null where nothing is read from replicas",
                        "properties": {
                            "max_lag_ms": {"type": "integer", "description": "How old the data of a replica may be which is read from"},
                            "served": {"type": "integer", "description": "Reads that replicas served"},
                            "by_primaries": {"type": "integer", "description": "Reads that primaries served instead"},
                            "replicas": {"type": "integer"},
                            "fit": {"type": "integer", "description": "Those whose data are known to be young enough"},
                            "lag_ms": number,
                        },
                    },
                },
            },
            "sentinels": {
                "type": ["object", "null"],
                "description": "null where none are asked",
                "properties": {
                    "service": {"type": "string"},
                    "primary": text,
                    "epoch": number,
                    "switches": {"type": "integer", "description": "How often the primary has changed since the start"},
                    "votes": {"type": "integer"},
                    "majority": {"type": "integer"},
                    "voters": {"type": "integer"},
                    "confirmed_ms_ago": number,
                    "proof_within_ms": number,
                    "each": {"type": "array", "items": {
                        "type": "object",
                        "properties": {
                            "address": {"type": "string"},
                            "state": {"type": "string", "enum": ["agrees", "disagrees", "silent"]},
                            "answered_ms_ago": number,
                            "names": text,
                            "epoch": number,
                            "error": text,
                        },
                    }},
                    "replicas_known": {"type": "boolean", "description": "Whether anybody has told of the replicas of late"},
                    "not_allowed": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    })
}

fn outage_schema() -> Value {
    let count = |what: &str| json!({"type": "integer", "minimum": 0, "description": what});
    json!({
        "type": "object",
        "description": "Something that was away, from its first sign to its end, with what callers felt meanwhile",
        "required": ["of", "began_ms", "ended_ms", "ended_by", "cause", "flapping", "times", "calls", "failed", "stale", "slow"],
        "properties": {
            "of": {"type": "string", "enum": ["redis", "database", "reads"]},
            "began_ms": {"type": "integer", "description": "Milliseconds since 1970"},
            "ended_ms": {"type": ["integer", "null"], "description": "null while it lasts"},
            "ended_by": {"enum": ["reconnected", "recovered", "succeeded", null]},
            "cause": {"type": "string"},
            "detection_ms": {"type": ["number", "null"], "description": "For how long Redis had been silent when it was noticed"},
            "attempts": count("Attempts to connect that failed"),
            "flapping": {"type": "boolean", "description": "Whether it is many outages of a connection that flaps, told as one"},
            "times": count("How often the connection was lost"),
            "refused": count("Calls to Redis that were refused at once"),
            "unknown": count("Requests to Redis whose outcome is unknown"),
            "calls": count("Reads that ended while it lasted"),
            "failed": count("Reads that failed"),
            "stale": count("Reads answered with something stale"),
            "slow": count("Reads that took longer than 250 ms"),
            "writes": count("Statements that were run"),
            "writes_failed": count("Statements that could not be run"),
        },
    })
}

fn figures_schema() -> Value {
    let part = json!({
        "type": "object",
        "required": ["window_ms", "calls", "failed", "slow", "p50_ms", "p99_ms"],
        "properties": {
            "window_ms": {"type": "integer", "description": "How long these were counted for"},
            "p50_ms": {"type": ["number", "null"]},
            "p99_ms": {"type": ["number", "null"]},
        },
        "additionalProperties": {"type": "integer"},
    });
    json!({
        "type": "object",
        "required": ["name", "since_start", "last_minute"],
        "properties": {
            "name": {"type": "string"},
            "since_start": part,
            "last_minute": part,
        },
    })
}
