//! Health as load balancers and people ask for it. Nothing here waits for anything.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use crate::app::App;
use crate::auth::Caller;
use crate::serve::Peer;

/// `GET /health/live`: the process runs its tasks. Nothing else is touched.
pub(super) async fn live() -> &'static str {
    "alive\n"
}

/// `GET /health/ready`: 200 while callers should be sent here, serving or degraded; else 503.
pub(super) async fn ready(State(app): State<App>) -> Response {
    let health = app.health();
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
/// Where callers are asked who they are, those who do not say it from elsewhere learn how each check is, and not why or where.
pub(super) async fn health(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    caller: Option<Extension<Caller>>,
) -> Response {
    let mut health = app.health();
    let near = peer.is_some_and(|Extension(peer)| peer.0.ip().to_canonical().is_loopback());
    if app.auth().is_some() && caller.is_none() && !near {
        for check in health.checks.values_mut() {
            check.message.clear();
        }
    }
    (status(health.is_ready()), Json(health)).into_response()
}

fn status(ready: bool) -> StatusCode {
    if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
