//! The interface depends on the configuration, so its description is made from it, on request: after a reload it tells
//! what is in force, and it can never describe what is not served.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::middleware::Admission;
use crate::VERSION;
use crate::config::{ParamConfig, ParamKind};
use crate::in_force::InForce;
use crate::query::Programs;
use crate::role::RULES;

/// `GET /openapi.json`
pub(crate) async fn openapi(
    State(in_force): State<Arc<InForce>>,
    State(admission): State<Arc<Admission>>,
) -> Json<Value> {
    let mut described = describe(&in_force.programs(), in_force.started().metrics.enabled);
    if admission.auth.is_some() {
        require_roles(&mut described);
    }
    Json(described)
}

fn describe(programs: &Programs, metrics: bool) -> Value {
    let mut paths = fixed_paths();
    if metrics {
        paths.insert(
            "/metrics".to_owned(),
            get(
                "Figures for Prometheus",
                "text/plain",
                json!({"type": "string"}),
            ),
        );
    }
    for query in programs.queries() {
        let parameters: Vec<Value> = query
            .params
            .iter()
            .map(|(name, param)| query_parameter(name, param))
            .collect();
        let operation = json!({
            "operationId": format!("query_{}", query.name),
            "summary": query.description.as_deref().unwrap_or("A read through the cache"),
            "tags": ["queries"],
            "parameters": parameters,
            "responses": read_responses(),
        });
        paths.insert(
            format!("/v1/queries/{}", query.name),
            json!({ "get": operation }),
        );
    }
    for statement in programs.statements() {
        let operation = json!({
            "operationId": format!("statement_{}", statement.name),
            "summary": statement.description.as_deref().unwrap_or("A change"),
            "tags": ["statements"],
            "requestBody": {
                "required": true,
                "content": { "application/json": { "schema": body_schema(&statement.params) } },
            },
            "responses": responses(&reference("Written"), &["400", "403", "409", "413", "415", "422", "503", "504"]),
        });
        paths.insert(
            format!("/v1/statements/{}", statement.name),
            json!({ "post": operation }),
        );
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Steadfast",
            "version": VERSION,
            "description": "Named queries through a cache that stays correct through outages, and the state of the service.",
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

/// Says of each operation which role it takes, as the table of roles has it.
fn require_roles(described: &mut Value) {
    described["components"]["securitySchemes"]["bearer"] = json!({
        "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
    });
    for (path, item) in described["paths"].as_object_mut().into_iter().flatten() {
        let routed = routed(path);
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let needs = RULES
                .iter()
                .find(|rule| rule.method.eq_ignore_ascii_case(method) && rule.path == routed)
                .and_then(|rule| rule.needs);
            let Some(role) = needs else { continue };
            operation["security"] = json!([{ "bearer": [role.name()] }]);
            for status in ["401", "403"] {
                operation["responses"][status] = problem();
            }
        }
    }
}

/// The path of the table that serves a path as it is described.
fn routed(path: &str) -> &str {
    if path.starts_with("/v1/queries/") {
        "/v1/queries/{name}"
    } else if path.starts_with("/v1/statements/") {
        "/v1/statements/{name}"
    } else {
        path
    }
}

fn fixed_paths() -> Map<String, Value> {
    let any = json!({"type": "object"});
    let mut paths = Map::new();
    let mut add = |path: &str, item: Value| paths.insert(path.to_owned(), item);
    add(
        "/health/live",
        get(
            "Whether the process runs",
            "text/plain",
            json!({"type": "string"}),
        ),
    );
    for (path, summary, schema) in [
        (
            "/health/ready",
            "Whether callers should be sent here",
            any.clone(),
        ),
        ("/health", "Every check", reference("Health")),
    ] {
        let content = json!({ "application/json": { "schema": schema } });
        let mut item = get(summary, "application/json", schema);
        item["get"]["responses"]["503"] = json!({
            "description": "Starting, draining, unable to serve, or overloaded",
            "content": content,
        });
        add(path, item);
    }
    add(
        "/v1/status",
        get(
            "Everything known of the service",
            "application/json",
            reference("Status"),
        ),
    );
    add(
        "/v1/settings",
        get(
            "The configuration in force, without secrets",
            "application/json",
            any.clone(),
        ),
    );
    add(
        "/openapi.json",
        get("This description", "application/json", any.clone()),
    );
    add(
        "/v1/minutes",
        get(
            "Figures of the last day, a row for each minute, oldest first",
            "application/json",
            any.clone(),
        ),
    );
    let mut history = get(
        "What happened, and which outages there were, oldest first",
        "application/json",
        reference("History"),
    );
    history["get"]["parameters"] = json!([{
        "name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": super::status::DEEPEST},
    }]);
    add("/v1/history", history);
    let drill = reference("Drill");
    let mut drills = get(
        "Scenarios, and drills that run or ran",
        "application/json",
        any,
    );
    if cfg!(feature = "drill") {
        drills["post"] = json!({
            "operationId": "start_drill",
            "summary": "Starts a drill",
            "tags": ["drills"],
            "requestBody": {
                "required": true,
                "content": { "application/json": { "schema": reference("Order") } },
            },
            "responses": {
                "202": { "description": "Started", "content": { "application/json": { "schema": drill } } },
            },
        });
        for status in ["400", "403", "404", "409", "413", "415", "503"] {
            drills["post"]["responses"][status] = problem();
        }
        for (path, item) in one_drill() {
            add(path, item);
        }
    }
    add("/v1/drills", drills);
    let events = get(
        "Everything that happens, as it happens, and figures every second; goes on after Last-Event-ID",
        "text/event-stream",
        json!({"type": "string"}),
    );
    add("/v1/events", events);
    paths
}

/// The addresses below one drill.
fn one_drill() -> [(&'static str, Value); 3] {
    let text = json!({"type": "string"});
    let mut one = get("One drill", "application/json", reference("Drill"));
    let mut stop = one["get"].take();
    one["get"] = stop.clone();
    stop["summary"] = "Stops it".into();
    stop["responses"]["202"] = stop["responses"]["200"].take();
    stop["responses"]["202"]["description"] = "It heals what it broke, and ends".into();
    if let Some(answers) = stop["responses"].as_object_mut() {
        answers.remove("200");
    }
    one["delete"] = stop;
    let mut events = get(
        "Its progress, four times a second",
        "text/event-stream",
        text.clone(),
    );
    let mut report = get("Its report", "application/json", json!({"type": "object"}));
    for (kind, schema) in [("text/html", &text), ("application/xml", &text)] {
        report["get"]["responses"]["200"]["content"][kind] = json!({ "schema": schema });
    }
    let id = json!({"name": "id", "in": "path", "required": true, "schema": {"type": "integer", "minimum": 1}});
    for item in [&mut one, &mut events, &mut report] {
        for operation in item.as_object_mut().into_iter().flat_map(Map::values_mut) {
            operation["tags"] = json!(["drills"]);
            operation["parameters"] = json!([id]);
            operation["responses"]["404"] = problem();
        }
    }
    report["get"]["parameters"] = json!([id, {
        "name": "format", "in": "query", "schema": {"type": "string", "enum": ["json", "html", "junit"], "default": "json"},
    }]);
    [
        ("/v1/drills/{id}", one),
        ("/v1/drills/{id}/events", events),
        ("/v1/drills/{id}/report", report),
    ]
}

fn get(summary: &str, kind: &str, schema: Value) -> Value {
    let mut responses = responses(&schema, &["400", "403", "503"]);
    responses["200"] =
        json!({ "description": "As asked", "content": { kind: { "schema": schema } } });
    json!({ "get": { "summary": summary, "tags": ["service"], "responses": responses } })
}

fn read_responses() -> Value {
    let mut responses = responses(&reference("Answer"), &["400", "403", "422", "503", "504"]);
    responses["200"]["headers"] = json!({
        "Cache-Status": { "description": "Where it came from (RFC 9211)", "schema": {"type": "string"} },
        "Age": { "description": "Seconds since it was read from the database", "schema": {"type": "integer"} },
    });
    responses
}

fn responses(schema: &Value, refusals: &[&str]) -> Value {
    let mut responses = json!({
        "200": { "description": "As asked", "content": { "application/json": { "schema": schema } } },
    });
    for status in refusals {
        responses[*status] = problem();
    }
    responses
}

fn problem() -> Value {
    json!({
        "description": "Refused",
        "content": { "application/problem+json": { "schema": reference("Problem") } },
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn query_parameter(name: &str, param: &ParamConfig) -> Value {
    let mut described = json!({
        "name": name,
        "in": "query",
        "required": is_required(param),
        "schema": param_schema(param, false),
    });
    if let Some(description) = &param.description {
        described["description"] = json!(description);
    }
    described
}

fn body_schema(params: &std::collections::BTreeMap<String, ParamConfig>) -> Value {
    let properties: Map<String, Value> = params
        .iter()
        .map(|(name, param)| (name.clone(), param_schema(param, param.optional)))
        .collect();
    let required: Vec<&String> = params
        .iter()
        .filter(|(_, param)| is_required(param))
        .map(|(name, _)| name)
        .collect();
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn is_required(param: &ParamConfig) -> bool {
    param.default.is_none() && !param.optional
}

fn param_schema(param: &ParamConfig, nullable: bool) -> Value {
    let (kind, mut schema) = match &param.kind {
        ParamKind::String {
            min_length,
            max_length,
        }
        | ParamKind::Pattern {
            min_length,
            max_length,
            ..
        } => (
            "string",
            json!({ "minLength": min_length, "maxLength": max_length, "pattern": "^[^\\u0000]*$" }),
        ),
        ParamKind::Integer { min, max } => (
            "integer",
            json!({ "format": "int64", "minimum": min, "maximum": max }),
        ),
        ParamKind::Boolean => ("boolean", json!({})),
    };
    schema["type"] = if nullable {
        json!([kind, "null"])
    } else {
        json!(kind)
    };
    if let Some(default) = &param.default {
        schema["default"] = json!(default);
    }
    schema
}

fn schemas() -> Value {
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
        "Problem": {
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
        },
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
        "Health": {
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
        },
        "Order": {
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
        },
        "Drill": {
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
        },
    })
}

fn status_schema() -> Value {
    let object = json!({"type": "object"});
    let figures =
        |what: &str| json!({ "type": "array", "description": what, "items": reference("Figures") });
    json!({
        "type": "object",
        "required": ["service", "health", "reads", "rates", "queries", "statements", "outages", "redis", "cache", "system"],
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
            "cache": object,
            "system": object,
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
            "ended_by": {"enum": ["reconnected", "recovered", null]},
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
