//! The interface depends on the configuration, so its description is made from it, on request:
//! after a reload it tells what is in force, and it can never describe what is not served.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::middleware::Middleware;
use crate::VERSION;
use crate::active_config::ActiveConfig;
use crate::config::{HISTORY_MAX, ParamConfig, ParamKind};
use crate::query::Programs;
use crate::role::RULES;

mod schemas;

use schemas::schemas;

/// `GET /openapi.json`
pub(crate) async fn openapi(
    State(in_force): State<Arc<ActiveConfig>>,
    State(admission): State<Arc<Middleware>>,
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

/// Adds to each operation the role that it takes, by the table of roles.
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

/// The addresses that do not depend on the configuration.
fn fixed_paths() -> Map<String, Value> {
    let mut paths = Map::new();
    for (path, item) in health_paths().into_iter().chain(state_paths()) {
        paths.insert(path.to_owned(), item);
    }
    paths.insert("/v1/drills".to_owned(), drills_path());
    if cfg!(feature = "drill") {
        for (path, item) in one_drill() {
            paths.insert(path.to_owned(), item);
        }
    }
    paths
}

fn health_paths() -> [(&'static str, Value); 3] {
    let answered = |summary: &str, schema: Value| {
        let content = json!({ "application/json": { "schema": schema } });
        let mut item = get(summary, "application/json", schema);
        item["get"]["responses"]["503"] = json!({
            "description": "Starting, draining, unable to serve, or overloaded",
            "content": content,
        });
        item
    };
    let any = json!({"type": "object"});
    let text = json!({"type": "string"});
    [
        (
            "/health/live",
            get("Whether the process runs", "text/plain", text),
        ),
        (
            "/health/ready",
            answered("Whether callers should be sent here", any),
        ),
        ("/health", answered("Every check", reference("Health"))),
    ]
}

fn state_paths() -> [(&'static str, Value); 6] {
    let any = json!({"type": "object"});
    let json = |summary: &str, schema: Value| get(summary, "application/json", schema);
    let mut history = json(
        "What happened, and which outages there were, oldest first",
        reference("History"),
    );
    history["get"]["parameters"] = json!([{
        "name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": HISTORY_MAX},
    }]);
    let events = get(
        "Everything that happens, as it happens, and figures every second; goes on after Last-Event-ID",
        "text/event-stream",
        json!({"type": "string"}),
    );
    let settings = "The configuration in force, without secrets";
    let minutes = "Figures of the last day, a row for each minute, oldest first";
    [
        (
            "/v1/status",
            json("Everything known of the service", reference("Status")),
        ),
        ("/v1/settings", json(settings, any.clone())),
        ("/openapi.json", json("This description", any.clone())),
        ("/v1/minutes", json(minutes, any)),
        ("/v1/history", history),
        ("/v1/events", events),
    ]
}

fn drills_path() -> Value {
    let mut drills = get(
        "Scenarios, and drills that run or ran",
        "application/json",
        json!({"type": "object"}),
    );
    if cfg!(feature = "drill") {
        let drill = reference("Drill");
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
    }
    drills
}

/// The addresses below one drill.
fn one_drill() -> [(&'static str, Value); 3] {
    let text = json!({"type": "string"});
    let mut one = get("One drill", "application/json", reference("Drill"));
    let mut stop = one["get"].take();
    one["get"] = stop.clone();
    stop["summary"] = "Stops it, and waits until it has healed what it broke".into();
    stop["responses"]["200"]["description"] = "It is over".into();
    stop["responses"]["504"] = problem();
    stop["responses"]["504"]["description"] =
        "It was told to stop, and is not over within `limits.request_timeout`".into();
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
