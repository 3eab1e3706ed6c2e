//! Live state as server-sent events. A subscriber costs a position in the feed and what its own
//! socket holds; one that reads nothing is simply not asked for more.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use super::extract::QueryParams;
use super::middleware::Middleware;
use crate::auth::{Caller, LastingRight};
use crate::life::Life;
use crate::observe::Observations;
use crate::problem::{Problem, ProblemKind};

/// A comment is sent after so much silence, so that proxies keep the stream and a dead reader is
/// found.
const QUIET: Duration = Duration::from_secs(15);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Resume {
    last_event_id: Option<String>,
}

/// `GET /v1/events`: everything since `Last-Event-ID` (or `?last_event_id=`), then what happens,
/// for as long as the caller's token is good.
pub(crate) async fn events(
    State(observations): State<Arc<Observations>>,
    State(life): State<Arc<Life>>,
    State(admission): State<Arc<Middleware>>,
    caller: Option<Extension<Caller>>,
    QueryParams(resume): QueryParams<Resume>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let permit = stream_permit(&life)?;
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .or(resume.last_event_id.as_deref());
    let position = observations.feed.subscribe(last);
    let right = LastingRight::new(admission.auth.as_ref(), caller.map(|found| found.0));
    let state = (observations, life, position, permit, right);
    let frames = stream::unfold(
        state,
        |(observations, life, mut position, permit, right)| async {
            let shutdown = life.shutdown();
            let frame = tokio::select! {
                biased;
                () = shutdown.closing() => return None,
                frame = observations.feed.next(&mut position, QUIET) => frame,
            };
            // After the waiting: nothing is told to whom it is no longer meant for.
            if !right.holds() {
                return None;
            }
            let frame = frame.unwrap_or(Bytes::from_static(b": quiet\n\n"));
            Some((
                Ok::<_, std::convert::Infallible>(frame),
                (observations, life, position, permit, right),
            ))
        },
    );
    Ok(stream_of(Body::from_stream(frames)))
}

/// The permit of an event stream, held while it lasts.
pub(crate) fn stream_permit(life: &Life) -> Result<OwnedSemaphorePermit, Problem> {
    life.open_stream().ok_or_else(|| {
        Problem::new(
            ProblemKind::Overloaded,
            "there are as many event streams as `limits.subscribers` allows",
        )
        .retry_after(Some(Duration::from_secs(5)))
    })
}

/// An answer that is an event stream.
pub(crate) fn stream_of(body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
