//! Drills from the page: start, list, watch, stop, and read the report.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use steadfast_drill::report::{html, json, junit};

use super::events::{stream_of, stream_permit};
use super::extract::{PathParam, QueryParams};
use super::middleware::Middleware;
use super::queries::json_body;
use crate::auth::{Caller, LastingRight};
use crate::config::Config;
use crate::drills::{DrillRequest, DrillRun, DrillSummary, Drills};
use crate::life::Life;
use crate::observe::Observations;
use crate::problem::{Problem, ProblemKind};

/// The report is a page of its own, with script and style inside; it runs without an origin, so it
/// reaches nothing of ours.
const REPORT_POLICY: &str = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// `GET /v1/drills`
pub(crate) async fn list(
    State(config): State<Arc<Config>>,
    State(drills): State<Arc<Drills>>,
) -> Response {
    Json(serde_json::json!({
        "enabled": config.drill.enabled,
        "scenarios": Drills::offers(),
        "drills": drills.list(),
    }))
    .into_response()
}

/// `POST /v1/drills` with `{"scenario": "crash", "control": true}`
pub(crate) async fn start(
    State(config): State<Arc<Config>>,
    State(drills): State<Arc<Drills>>,
    State(observations): State<Arc<Observations>>,
    request: Request,
) -> Result<Response, Problem> {
    if !config.drill.enabled {
        return Err(Problem::new(
            ProblemKind::Forbidden,
            "drills are switched off here; `drill.enabled` switches them on",
        ));
    }
    let body = json_body(&config.limits, request).await?;
    let asked: DrillRequest = serde_json::from_value(body.into())
        .map_err(|error| Problem::new(ProblemKind::BadParameter, error.to_string()))?;
    let summary = drills.start(asked)?;
    observations
        .feed
        .tell("drill", serde_json::json!({ "drill": summary }));
    let started = find(&drills, &summary.id().to_string())?;
    tokio::spawn(async move {
        started.over().await;
        observations.feed.tell(
            "drill_over",
            serde_json::json!({ "drill": started.outcome() }),
        );
    });
    Ok((StatusCode::ACCEPTED, Json(summary)).into_response())
}

/// `GET /v1/drills/{id}`
pub(crate) async fn one(
    State(drills): State<Arc<Drills>>,
    PathParam(id): PathParam,
) -> Result<Json<DrillSummary>, Problem> {
    Ok(Json(find(&drills, &id)?.summary()))
}

/// `DELETE /v1/drills/{id}`: stops it; answers once everything is healed and gone.
pub(crate) async fn stop(
    State(drills): State<Arc<Drills>>,
    PathParam(id): PathParam,
) -> Result<Json<DrillSummary>, Problem> {
    let drill = find(&drills, &id)?;
    drill.stop();
    drill.over().await;
    Ok(Json(drill.summary()))
}

/// `GET /v1/drills/{id}/events`: progress four times a second, from the beginning or from
/// `Last-Event-ID`, to the end of the drill, for as long as the caller's token is good.
pub(crate) async fn events(
    State(drills): State<Arc<Drills>>,
    State(life): State<Arc<Life>>,
    State(admission): State<Arc<Middleware>>,
    caller: Option<Extension<Caller>>,
    PathParam(id): PathParam,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let drill = find(&drills, &id)?;
    let permit = stream_permit(&life)?;
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok());
    let position = drill.feed().subscribe(last);
    let right = LastingRight::new(admission.auth.as_ref(), caller.map(|found| found.0));
    let state = (life, drill, position, permit, right);
    let frames = stream::unfold(state, |(life, drill, mut position, permit, right)| async {
        let shutdown = life.shutdown();
        // Asked before the feed: what is told before the end is told to everyone.
        let over = drill.is_over();
        let quiet = if over {
            Duration::ZERO
        } else {
            Duration::from_secs(5)
        };
        let frame = tokio::select! {
            biased;
            () = shutdown.closing() => return None,
            frame = drill.feed().next(&mut position, quiet) => frame,
        };
        if !right.holds() {
            return None;
        }
        let frame = match frame {
            Some(frame) => frame,
            None if over => return None,
            None => Bytes::from_static(b": quiet\n\n"),
        };
        let next = (life, drill, position, permit, right);
        Some((Ok::<_, std::convert::Infallible>(frame), next))
    });
    Ok(stream_of(Body::from_stream(frames)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Form {
    format: Option<String>,
}

/// `GET /v1/drills/{id}/report?format=json|html|junit`
pub(crate) async fn report(
    State(drills): State<Arc<Drills>>,
    PathParam(id): PathParam,
    QueryParams(form): QueryParams<Form>,
) -> Result<Response, Problem> {
    let report = find(&drills, &id)?.report()?;
    let (kind, text) = match form.format.as_deref().unwrap_or("json") {
        "json" => ("application/json", json::render(&report)),
        "html" => ("text/html; charset=utf-8", html::render(&report)),
        "junit" => (
            "application/xml",
            junit::render(std::slice::from_ref(&*report)),
        ),
        _ => {
            let detail = "`format` must be json, html or junit";
            return Err(Problem::new(ProblemKind::BadParameter, detail));
        }
    };
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if kind.starts_with("text/html") {
        headers.insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(REPORT_POLICY),
        );
        headers.insert(
            header::X_FRAME_OPTIONS,
            HeaderValue::from_static("SAMEORIGIN"),
        );
    }
    Ok(response)
}

fn find(drills: &Drills, id: &str) -> Result<Arc<DrillRun>, Problem> {
    let unknown = || Problem::new(ProblemKind::UnknownQuery, "there is no such drill");
    drills.find(id.parse().map_err(|_| unknown())?)
}
