//! What is known of the service, in full: for the page, for `steadfast status`, and for Prometheus.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;

use super::extract::Asked;
use crate::app::App;
use crate::problem::{Problem, ProblemKind};
use crate::telemetry;

/// `GET /v1/status`
pub(super) async fn status(State(app): State<App>) -> Json<Value> {
    Json(app.status())
}

/// `GET /v1/settings`: the configuration in force, secrets as `***`.
pub(super) async fn settings(State(app): State<App>) -> Response {
    Json(&*app.in_force()).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Depth {
    limit: Option<usize>,
}

/// `GET /v1/history`: what happened to the connections and the service, oldest first, the last `redis.history` of them or `?limit=`; and the outages, oldest
/// first.
pub(super) async fn history(
    State(app): State<App>,
    Asked(depth): Asked<Depth>,
) -> Result<Json<Value>, Problem> {
    let limit = depth.limit.unwrap_or(app.config().redis.history);
    if limit > DEEPEST {
        let detail = format!("`limit` must be at most {DEEPEST}");
        return Err(Problem::new(ProblemKind::BadParameter, detail).parameter("limit".to_owned()));
    }
    Ok(Json(
        serde_json::json!({ "events": app.feed().history(limit), "outages": app.outages_now() }),
    ))
}

/// `GET /v1/minutes`: the last day, a row for each minute, oldest first; the newest is still under way.
pub(super) async fn minutes(State(app): State<App>) -> Json<Value> {
    Json(serde_json::json!({ "minutes": app.minutes().rows() }))
}

/// More is never kept.
pub(super) const DEEPEST: usize = 100_000;

/// `GET /metrics`, in Prometheus' text format.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    app.set_gauges();
    let text = telemetry::metrics().render();
    let kind = (
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    );
    ([kind], text).into_response()
}
