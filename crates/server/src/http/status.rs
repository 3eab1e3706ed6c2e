//! The state of the service, in full: for the page, for `steadfast status`, and for Prometheus.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;

use super::extract::QueryParams;
use crate::active_config::ActiveConfig;
use crate::config::HISTORY_MAX;
use crate::observe::Observations;
use crate::problem::{Problem, ProblemKind};
use crate::status::{Overview, ServiceStatus};
use crate::telemetry;

/// `GET /v1/status`
pub(crate) async fn status(State(overview): State<Arc<Overview>>) -> Json<ServiceStatus> {
    Json(overview.status())
}

/// `GET /v1/settings`: the configuration in force, secrets as `***`.
pub(crate) async fn settings(State(in_force): State<Arc<ActiveConfig>>) -> Response {
    Json(&*in_force.config()).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Depth {
    limit: Option<usize>,
}

/// `GET /v1/history`: what happened to the connections and the service, oldest first, the last
/// `redis.history` of them or `?limit=`; and the outages, oldest first.
pub(crate) async fn history(
    State(in_force): State<Arc<ActiveConfig>>,
    State(observations): State<Arc<Observations>>,
    QueryParams(depth): QueryParams<Depth>,
) -> Result<Json<Value>, Problem> {
    let limit = depth.limit.unwrap_or(in_force.started().redis.history);
    if limit > HISTORY_MAX {
        let detail = format!("`limit` must be at most {HISTORY_MAX}");
        return Err(Problem::new(ProblemKind::BadParameter, detail).parameter("limit".to_owned()));
    }
    Ok(Json(serde_json::json!({
        "events": observations.feed.history(limit),
        "outages": observations.outages_now(),
    })))
}

/// `GET /v1/minutes`: the last day, a row for each minute, oldest first; the newest is still under
/// way.
pub(crate) async fn minutes(State(observations): State<Arc<Observations>>) -> Json<Value> {
    Json(serde_json::json!({ "minutes": observations.minutes.rows() }))
}

/// `GET /metrics`, in Prometheus' text format.
pub(crate) async fn metrics(State(overview): State<Arc<Overview>>) -> Response {
    overview.set_gauges();
    let text = telemetry::metrics().render();
    let kind = (
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    );
    ([kind], text).into_response()
}
