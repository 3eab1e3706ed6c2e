//! Reads and writes by name.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use steadfast_cache::Source;

use super::extract::PathParam;
use crate::active_config::ActiveConfig;
use crate::auth::Caller;
use crate::clock::millis;
use crate::config::LimitsConfig;
use crate::grammar::param;
use crate::problem::{Problem, ProblemKind};
use crate::query::once::Once;
use crate::query::read::{ReadAnswer, Reads};
use crate::query::write::Writes;

/// `GET /v1/queries/{name}?…`
pub(crate) async fn read(
    State(in_force): State<Arc<ActiveConfig>>,
    State(reads): State<Arc<Reads>>,
    PathParam(name): PathParam,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let read = ask(&in_force, &reads, &name, raw.as_deref().unwrap_or_default()).await?;
    Ok(answer(&name, &read))
}

/// Asks the query `name` with parameters as they stand in an address.
pub(crate) async fn ask(
    in_force: &ActiveConfig,
    reads: &Reads,
    name: &str,
    parameters: &str,
) -> Result<ReadAnswer, Problem> {
    let query = in_force
        .programs()
        .query(name)
        .cloned()
        .ok_or_else(|| unknown("query", name, &in_force.programs().query_names()))?;
    let pairs = url::form_urlencoded::parse(parameters.as_bytes());
    let values = param::from_pairs(&query.params, pairs).map_err(bad_parameter)?;
    query.read(reads, values).await
}

/// `POST /v1/statements/{name}` with a JSON object of parameters; with an `Idempotency-Key` it may
/// be sent twice.
pub(crate) async fn write(
    State(in_force): State<Arc<ActiveConfig>>,
    State(writes): State<Arc<Writes>>,
    PathParam(name): PathParam,
    request: Request,
) -> Result<Response, Problem> {
    let statement = in_force
        .programs()
        .statement(&name)
        .cloned()
        .ok_or_else(|| unknown("statement", &name, &in_force.programs().statement_names()))?;
    let limits = &in_force.started().limits;
    let headers = request.headers().clone();
    let caller = request.extensions().get::<Caller>().cloned();
    let members = json_body(limits, request).await?;
    let caller = caller.as_ref().map_or("", |caller| &caller.subject);
    let once = Once::from_headers(limits, &headers, caller, &name, &members)?;
    let values = param::from_json(&statement.params, members).map_err(bad_parameter)?;
    let answer = statement.write(&writes, &values, once.as_ref()).await?;
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if answer.replayed {
        headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// `{"query","rows","truncated","source","stale","age_ms"}`, put together from rows that are JSON
/// already.
pub(crate) fn body(name: &str, read: &ReadAnswer) -> Vec<u8> {
    let source = read.source.as_str();
    let age_ms = millis(read.age);
    let mut body = Vec::with_capacity(read.rows.len() + name.len() + 96);
    body.extend_from_slice(b"{\"query\":\"");
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(b"\",");
    body.extend_from_slice(&read.rows);
    let tail = format!(
        ",\"source\":\"{source}\",\"stale\":{},\"age_ms\":{age_ms}}}",
        read.stale.is_some()
    );
    body.extend_from_slice(tail.as_bytes());
    body
}

fn answer(name: &str, read: &ReadAnswer) -> Response {
    let mut response = Response::new(Body::from(body(name, read)));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert("cache-status", cache_status(read));
    headers.insert(header::AGE, HeaderValue::from(read.age.as_secs()));
    response
}

/// RFC 9211: a hit with the seconds it has left, below 0 and with the reason if it is stale;
/// or that it was forwarded.
fn cache_status(read: &ReadAnswer) -> HeaderValue {
    let source = match read.source {
        Source::Memory => "memory",
        Source::Redis => "redis",
        _ => return HeaderValue::from_static("Steadfast; fwd=miss; detail=database"),
    };
    let left = read.fresh_for.as_secs_f64() - read.age.as_secs_f64();
    let value = match read.stale {
        None => format!("Steadfast; hit; ttl={:.0}; detail={source}", left.max(0.0)),
        // It may be stale before its time, because nobody vouches for it.
        Some(why) => format!(
            "Steadfast; hit; ttl={:.0}; detail={source}-stale-{}",
            left.min(-1.0),
            why.as_str()
        ),
    };
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("Steadfast; hit"))
}

/// The JSON object in a request's body, within `limits.body`.
pub(crate) async fn json_body(
    limits: &LimitsConfig,
    request: Request,
) -> Result<serde_json::Map<String, serde_json::Value>, Problem> {
    let (parts, body) = request.into_parts();
    let body = whole(limits, &parts.headers, body).await?;
    object(&parts.headers, &body)
}

async fn whole(
    limits: &LimitsConfig,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<Bytes, Problem> {
    let limit = limits.body.as_usize();
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    // What is announced costs nothing yet.
    let mut kept = Vec::with_capacity(announced.unwrap_or(0).min(limit).min(AT_ONCE));
    let mut fits = announced.is_none_or(|length| length <= limit);
    if !fits && headers.contains_key(header::EXPECT) {
        // Who asks before it sends is answered before.
        return Err(too_large(limit));
    }
    let mut discarded = 0;
    while fits || discarded < DISCARDED {
        let Some(frame) = body.frame().await else {
            break;
        };
        let Ok(frame) = frame else {
            let problem = "the body could not be read to its end";
            return Err(Problem::new(ProblemKind::Plain, problem));
        };
        let Some(data) = frame.data_ref() else {
            continue;
        };
        fits &= kept.len() + data.len() <= limit;
        if fits {
            kept.extend_from_slice(data);
        } else {
            // Read to the end and thrown away, so that the caller is still there to read why.
            kept = Vec::new();
            discarded += data.len();
        }
    }
    if fits {
        return Ok(Bytes::from(kept));
    }
    Err(too_large(limit))
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is larger than `limits.body` ({limit} bytes)");
    Problem::new(ProblemKind::TooLarge, detail)
}

/// Room that is made for a body before any of it has come.
const AT_ONCE: usize = 64 << 10;

/// The bytes of a body that is too large which are read before the connection is closed on its
/// sender.
const DISCARDED: usize = 64 << 20;

fn object(
    headers: &HeaderMap,
    body: &[u8],
) -> Result<serde_json::Map<String, serde_json::Value>, Problem> {
    let json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            let kind = value.split(';').next().unwrap_or_default().trim();
            kind.eq_ignore_ascii_case("application/json")
        });
    if !json {
        let problem = Problem::new(
            ProblemKind::BadParameter,
            "parameters are sent as `content-type: application/json`",
        );
        return Err(problem.status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    match serde_json::from_slice(body) {
        Ok(serde_json::Value::Object(members)) => Ok(members),
        Ok(_) => Err(Problem::new(
            ProblemKind::BadParameter,
            "the body must be a JSON object of parameters",
        )),
        Err(error) => Err(Problem::new(
            ProblemKind::BadParameter,
            format!("the body is not JSON: {error}"),
        )),
    }
}

fn bad_parameter(bad: param::BadParameter) -> Problem {
    Problem::new(ProblemKind::BadParameter, bad.to_string()).parameter(bad.name)
}

fn unknown(what: &str, name: &str, names: &[&str]) -> Problem {
    let name: String = name.chars().take(64).collect();
    let known = if names.is_empty() {
        format!("no {what} is configured")
    } else {
        format!("there are {}", names.join(", "))
    };
    Problem::new(
        ProblemKind::UnknownQuery,
        format!("there is no {what} `{name}`; {known}"),
    )
}
