//! Health as load balancers and people ask for it. Nothing here waits for anything.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::hosts::names_an_address;
use super::middleware::Middleware;
use crate::auth::Caller;
use crate::checks::Checks;
use crate::peer::Peer;

/// `GET /health/live`: the process runs its tasks. Nothing else is touched.
pub(crate) async fn live() -> &'static str {
    "alive\n"
}

/// `GET /health/ready`: 200 while callers should be sent here, serving or degraded; else 503.
pub(crate) async fn ready(State(checks): State<Arc<Checks>>) -> Response {
    let health = checks.health();
    let ready = health.is_ready();
    let body = serde_json::json!({
        "ready": ready,
        "phase": health.phase,
        "status": health.status,
    });
    (status(ready), Json(body)).into_response()
}

/// `GET /health`: every check. The status of the answer is that of `/health/ready`.
///
/// Where callers are asked who they are, those who do not say it from elsewhere learn how each
/// check is, and not why or where. What a proxy on this machine hands on comes from elsewhere.
pub(crate) async fn health(
    State(checks): State<Arc<Checks>>,
    State(admission): State<Arc<Middleware>>,
    peer: Option<Extension<Peer>>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
) -> Response {
    let mut health = checks.health();
    let loopback = peer.is_some_and(|Extension(peer)| peer.0.ip().to_canonical().is_loopback());
    let handed_on = HANDED_ON.iter().any(|name| headers.contains_key(*name));
    let host = headers.get("host").and_then(|host| host.to_str().ok());
    let near = loopback && !handed_on && host.is_some_and(names_an_address);
    if admission.auth.is_some() && caller.is_none() && !near {
        health = health.anonymous();
    }
    (status(health.is_ready()), Json(health)).into_response()
}

/// Headers that proxies add.
const HANDED_ON: &[&str] = &[
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "cf-connecting-ip",
    "true-client-ip",
];

fn status(ready: bool) -> StatusCode {
    if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
