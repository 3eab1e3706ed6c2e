//! Drills from the page: start, list, watch, stop, and read the report.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use steadfast_drill::report::{html, json, junit};

use super::events::stream_of;
use super::extract::{Asked, Named};
use super::queries::json_body;
use crate::app::App;
use crate::drills::{Drill, Drills, Order, Summary};
use crate::problem::{Problem, ProblemKind};

/// The report is a page of its own, with script and style inside; it runs without an origin, so it reaches nothing of ours.
const REPORT_POLICY: &str = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// `GET /v1/drills`
pub(super) async fn list(State(app): State<App>) -> Response {
    Json(serde_json::json!({
        "enabled": app.config().drill.enabled,
        "scenarios": Drills::offers(),
        "drills": app.drills().list(),
    }))
    .into_response()
}

/// `POST /v1/drills` with `{"scenario": "crash", "control": true}`
pub(super) async fn start(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    if !app.config().drill.enabled {
        return Err(Problem::new(
            ProblemKind::Forbidden,
            "drills are switched off here; `drill.enabled` switches them on",
        ));
    }
    let body = json_body(&app, request).await?;
    let order: Order = serde_json::from_value(body.into())
        .map_err(|error| Problem::new(ProblemKind::BadParameter, error.to_string()))?;
    let summary = app.drills().start(order)?;
    app.tell("drill", serde_json::json!({ "drill": summary }));
    let started = find(&app, &summary.id().to_string())?;
    tokio::spawn(async move {
        started.over().await;
        app.tell(
            "drill_over",
            serde_json::json!({ "drill": started.outcome() }),
        );
    });
    Ok((StatusCode::ACCEPTED, Json(summary)).into_response())
}

/// `GET /v1/drills/{id}`
pub(super) async fn one(
    State(app): State<App>,
    Named(id): Named,
) -> Result<Json<Summary>, Problem> {
    Ok(Json(find(&app, &id)?.summary()))
}

/// `DELETE /v1/drills/{id}`: stops it; answers once everything is healed and gone.
pub(super) async fn stop(
    State(app): State<App>,
    Named(id): Named,
) -> Result<Json<Summary>, Problem> {
    let drill = find(&app, &id)?;
    drill.stop();
    drill.over().await;
    Ok(Json(drill.summary()))
}

/// `GET /v1/drills/{id}/events`: progress four times a second, from the beginning or from `Last-Event-ID`, to the end of the drill.
pub(super) async fn events(
    State(app): State<App>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let drill = find(&app, &id)?;
    let place = super::events::place(&app)?;
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok());
    let position = drill.feed().subscribe(last);
    let state = (app, drill, position, place);
    let frames = stream::unfold(state, |(app, drill, mut position, place)| async {
        let shutdown = app.shutdown();
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
        let frame = match frame {
            Some(frame) => frame,
            None if over => return None,
            None => Bytes::from_static(b": quiet\n\n"),
        };
        let next = (app, drill, position, place);
        Some((Ok::<_, std::convert::Infallible>(frame), next))
    });
    Ok(stream_of(Body::from_stream(frames)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Form {
    format: Option<String>,
}

/// `GET /v1/drills/{id}/report?format=json|html|junit`
pub(super) async fn report(
    State(app): State<App>,
    Named(id): Named,
    Asked(form): Asked<Form>,
) -> Result<Response, Problem> {
    let report = find(&app, &id)?.report()?;
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

fn find(app: &App, id: &str) -> Result<Arc<Drill>, Problem> {
    let unknown = || Problem::new(ProblemKind::UnknownQuery, "there is no such drill");
    app.drills().find(id.parse().map_err(|_| unknown())?)
}
