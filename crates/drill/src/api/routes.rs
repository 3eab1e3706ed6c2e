//! The paths of the API. What Toxiproxy leaves out it means as zero, and what it does not know it says in its own words.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Entry, Proxies, Refusal, Shown, Wanted, resolved};
use crate::fault::Toxic;

/// The version of Toxiproxy whose API this is.
const SPEAKS: &str = "2.12.0";

/// The API over these proxies.
pub fn router(proxies: Proxies) -> Router {
    Router::new()
        .route("/version", get(async || Json(json!({ "version": SPEAKS }))))
        .route("/proxies", get(list).post(create))
        .route("/populate", post(populate))
        .route("/reset", post(reset))
        .route(
            "/proxies/{proxy}",
            get(show).post(update).patch(update).delete(remove),
        )
        .route("/proxies/{proxy}/toxics", get(toxics).post(add_toxic))
        .route(
            "/proxies/{proxy}/toxics/{toxic}",
            get(toxic)
                .post(update_toxic)
                .patch(update_toxic)
                .delete(remove_toxic),
        )
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "no such path"))
        .layer(middleware::from_fn(no_browsers))
        .with_state(proxies)
}

/// Serves the API until the future is dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: tokio::net::TcpListener, proxies: Proxies) -> std::io::Result<()> {
    axum::serve(listener, router(proxies)).await
}

async fn no_browsers(request: Request, next: Next) -> Response {
    let agent = request
        .headers()
        .get(header::USER_AGENT)
        .and_then(|agent| agent.to_str().ok());
    if agent.is_some_and(|agent| agent.starts_with("Mozilla/"))
        || request.headers().contains_key(header::ORIGIN)
    {
        return Refusal::new(StatusCode::FORBIDDEN, "User agent not allowed").into_response();
    }
    next.run(request).await
}

async fn list(State(proxies): State<Proxies>) -> Json<BTreeMap<String, Shown>> {
    let all = proxies.all.lock().await;
    Json(
        all.iter()
            .map(|(name, entry)| (name.clone(), entry.shown(name)))
            .collect(),
    )
}

async fn create(
    State(proxies): State<Proxies>,
    body: Bytes,
) -> Result<(StatusCode, Json<Shown>), Refusal> {
    let wanted: Wanted = parsed(&body)?;
    let name = wanted.name.clone();
    proxies.create(wanted).await?;
    let all = proxies.all.lock().await;
    Ok((StatusCode::CREATED, Json(entry(&all, &name)?.shown(&name))))
}

async fn populate(State(proxies): State<Proxies>, body: Bytes) -> Result<Response, Refusal> {
    let wanted: Vec<Wanted> = parsed(&body)?;
    for (at, one) in wanted.iter().enumerate() {
        for (field, value) in [("name", &one.name), ("upstream", &one.upstream)] {
            if value.is_empty() {
                return Err(Refusal::bad(format!(
                    "missing required field: {field} at proxy {}",
                    at + 1
                )));
            }
        }
    }
    let mut shown = Vec::new();
    for one in wanted {
        let (name, enabled) = (one.name.clone(), one.enabled.unwrap_or(true));
        let there = {
            let mut all = proxies.all.lock().await;
            let same = match all.get(&name) {
                Some(there) => {
                    there.upstream == one.upstream
                        && same_place(&one.listen, there.proxy.addr()).await
                }
                None => false,
            };
            if !same {
                all.remove(&name);
            }
            same
        };
        if !there {
            proxies.create(one).await?;
        }
        let mut all = proxies.all.lock().await;
        let entry = all.get_mut(&name).ok_or_else(Refusal::no_proxy)?;
        entry.enable(enabled).await;
        shown.push(entry.shown(&name));
    }
    Ok((StatusCode::CREATED, Json(json!({ "proxies": shown }))).into_response())
}

/// Whether a proxy that listens at `addr` is where `listen` wants it.
async fn same_place(listen: &str, addr: SocketAddr) -> bool {
    match resolved(listen).await {
        Ok(wanted) => wanted == addr || (wanted.port() == 0 && wanted.ip() == addr.ip()),
        Err(_) => listen.is_empty(),
    }
}

async fn reset(State(proxies): State<Proxies>) -> StatusCode {
    proxies.reset().await;
    StatusCode::NO_CONTENT
}

async fn show(
    State(proxies): State<Proxies>,
    Path(name): Path<String>,
) -> Result<Json<Shown>, Refusal> {
    let all = proxies.all.lock().await;
    Ok(Json(entry(&all, &name)?.shown(&name)))
}

async fn update(
    State(proxies): State<Proxies>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Shown>, Refusal> {
    let wanted: Wanted = parsed(&body)?;
    let mut all = proxies.all.lock().await;
    let entry = all.get_mut(&name).ok_or_else(Refusal::no_proxy)?;
    let upstream = if wanted.upstream.is_empty() {
        entry.upstream.clone()
    } else {
        wanted.upstream
    };
    let moved = !wanted.listen.is_empty() && !same_place(&wanted.listen, entry.proxy.addr()).await;
    if moved || upstream != entry.upstream {
        let listen = if moved {
            wanted.listen
        } else {
            entry.proxy.addr().to_string()
        };
        let (toxics, disabled, resp) = (entry.toxics(), entry.disabled.is_some(), entry.resp);
        if !moved {
            // The new one takes the old one's port.
            let nowhere = proxies.start("127.0.0.1:0", &upstream, resp).await?;
            drop(std::mem::replace(entry, nowhere));
        }
        *entry = started_again(&proxies, &listen, &upstream, resp).await?;
        for (_, toxic) in toxics {
            let _ = entry.proxy.add(toxic).await;
        }
        entry.enable(!disabled).await;
    }
    if let Some(enabled) = wanted.enabled {
        entry.enable(enabled).await;
    }
    Ok(Json(entry.shown(&name)))
}

/// A port that was freed a moment ago may not be free yet.
async fn started_again(
    proxies: &Proxies,
    listen: &str,
    upstream: &str,
    resp: bool,
) -> Result<Entry, Refusal> {
    let mut attempts = 0;
    loop {
        match proxies.start(listen, upstream, resp).await {
            Err(error) if error.status == StatusCode::INTERNAL_SERVER_ERROR && attempts < 100 => {
                attempts += 1;
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            outcome => return outcome,
        }
    }
}

async fn remove(
    State(proxies): State<Proxies>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    proxies
        .all
        .lock()
        .await
        .remove(&name)
        .map(|_| StatusCode::NO_CONTENT)
        .ok_or_else(Refusal::no_proxy)
}

async fn toxics(
    State(proxies): State<Proxies>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Toxic>>, Refusal> {
    let all = proxies.all.lock().await;
    Ok(Json(entry(&all, &name)?.shown(&name).toxics))
}

async fn add_toxic(
    State(proxies): State<Proxies>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Toxic>, Refusal> {
    let toxic = toxic_of(parsed(&body)?)?;
    let all = proxies.all.lock().await;
    let entry = entry(&all, &name)?;
    if entry.toxic(&toxic.name).is_ok() {
        return Err(Refusal::new(StatusCode::CONFLICT, "toxic already exists"));
    }
    entry
        .proxy
        .add(toxic.clone())
        .await
        .map_err(|error| Refusal::bad(error.to_string()))?;
    Ok(Json(toxic))
}

async fn toxic(
    State(proxies): State<Proxies>,
    Path((proxy, name)): Path<(String, String)>,
) -> Result<Json<Toxic>, Refusal> {
    let all = proxies.all.lock().await;
    entry(&all, &proxy)?
        .toxic(&name)
        .map(|(_, toxic)| Json(toxic))
}

async fn update_toxic(
    State(proxies): State<Proxies>,
    Path((proxy, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<Toxic>, Refusal> {
    let changes: Map<String, Value> = parsed(&body)?;
    let all = proxies.all.lock().await;
    let entry = entry(&all, &proxy)?;
    let (id, before) = entry.toxic(&name)?;
    let Ok(Value::Object(mut written)) = serde_json::to_value(&before) else {
        return Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the toxic cannot be written",
        ));
    };
    if let Some(toxicity) = changes.get("toxicity") {
        written.insert("toxicity".to_owned(), toxicity.clone());
    }
    if let (Some(Value::Object(new)), Some(Value::Object(old))) =
        (changes.get("attributes"), written.get_mut("attributes"))
    {
        old.extend(new.clone());
    }
    let toxic = toxic_of(written)?;
    entry
        .proxy
        .replace(id, toxic.clone())
        .await
        .map_err(|error| Refusal::bad(error.to_string()))?;
    Ok(Json(toxic))
}

async fn remove_toxic(
    State(proxies): State<Proxies>,
    Path((proxy, name)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let all = proxies.all.lock().await;
    let entry = entry(&all, &proxy)?;
    let (id, _) = entry.toxic(&name)?;
    entry.proxy.remove(id).await;
    Ok(StatusCode::NO_CONTENT)
}

fn entry<'a>(all: &'a BTreeMap<String, Entry>, name: &str) -> Result<&'a Entry, Refusal> {
    all.get(name).ok_or_else(Refusal::no_proxy)
}

fn parsed<T: for<'de> Deserialize<'de>>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad(format!("bad request body: {error}")))
}

/// A toxic as Toxiproxy's clients write it: whatever is left out is zero, which ours want said.
fn toxic_of(mut written: Map<String, Value>) -> Result<Toxic, Refusal> {
    let stream = written
        .get("stream")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    match stream.as_str() {
        "" => drop(written.remove("stream")),
        "upstream" | "downstream" | "both" => {}
        _ => {
            return Err(Refusal::bad(
                "stream was invalid, can be either upstream or downstream",
            ));
        }
    }
    let kind = written
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let left_out: &[&str] = match kind.as_str() {
        "bandwidth" => &["rate"],
        "slow_close" => &["delay"],
        "slicer" => &["average_size"],
        "limit_data" => &["bytes"],
        "" => return Err(Refusal::bad("invalid toxic type")),
        _ => &[],
    };
    let attributes = written.entry("attributes").or_insert_with(|| json!({}));
    if let Value::Object(attributes) = attributes {
        for name in left_out {
            attributes.entry(*name).or_insert(json!(0));
        }
    }
    serde_json::from_value(Value::Object(written)).map_err(|error| {
        let error = error.to_string();
        let unknown = error.contains("unknown variant");
        Refusal::bad(if unknown {
            "invalid toxic type".to_owned()
        } else {
            error
        })
    })
}
