//! The paths of the API. What Toxiproxy leaves out it means as zero, and what it does not know it
//! says in its own words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::{ANYWHERE, ListedProxy, Proxies, ProxyPlan, Refusal, ShownProxy, Wanted};
use crate::fault::Toxic;
use crate::proxy::check_upstream;

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
        .layer(middleware::from_fn(to_the_end))
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

/// Does what is asked to its end, though whoever has asked hangs up: a change that is dropped in
/// its midst would leave half of it.
async fn to_the_end(request: Request, next: Next) -> Response {
    if request.method() == Method::GET {
        return next.run(request).await;
    }
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Refusal::new(status, "the change has failed half way").into_response()
        }
    }
}

async fn list(State(proxies): State<Proxies>) -> Json<BTreeMap<String, ShownProxy>> {
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
) -> Result<(StatusCode, Json<ShownProxy>), Refusal> {
    let wanted: Wanted = parsed(&body)?;
    let name = wanted.name.clone();
    proxies.create(wanted).await?;
    let all = proxies.all.lock().await;
    Ok((StatusCode::CREATED, Json(entry(&all, &name)?.shown(&name))))
}

async fn populate(State(proxies): State<Proxies>, body: Bytes) -> Result<Response, Refusal> {
    let wanted: Vec<Wanted> = parsed(&body)?;
    let mut names = BTreeSet::new();
    for (at, one) in wanted.iter().enumerate() {
        let place = |said: &str| format!("{said} at proxy {}", at + 1);
        one.check()
            .map_err(|no| Refusal::new(no.status, place(&no.message)))?;
        if !names.insert(&one.name) {
            return Err(Refusal::bad(place("the same name again")));
        }
    }
    let mut planned = Vec::new();
    for one in wanted {
        let (name, resp, place) = (one.name.clone(), one.resp, one.place().await?);
        planned.push((name, (place, resp), one.plan().await?));
    }
    let mut all = proxies.all.lock().await;
    let stays = |all: &BTreeMap<String, ListedProxy>,
                 name: &str,
                 (place, resp): &(Option<SocketAddr>, Option<bool>),
                 plan: &ProxyPlan| {
        all.get(name).is_some_and(|there| {
            there.proxy.upstream() == plan.upstream
                && same_place(*place, there.proxy.addr())
                && resp.is_none_or(|resp| resp == there.resp)
        })
    };
    let mut new: Vec<(&String, &ProxyPlan)> = Vec::new();
    for (name, said, plan) in &planned {
        if !stays(&all, name, said, plan) {
            new.push((name, plan));
        }
    }
    let made = replaced(&proxies, &mut all, &new).await?;
    all.extend(made);
    let mut shown = Vec::new();
    for (name, _, plan) in &planned {
        let entry = all.get_mut(name).ok_or_else(Refusal::no_proxy)?;
        entry.enable(plan.enabled).await;
        shown.push(entry.shown(name));
    }
    Ok((StatusCode::CREATED, Json(json!({ "proxies": shown }))).into_response())
}

/// Starts all of the new ones, or none: then those of the same names are as before. What waits for
/// a port of one that it replaces comes last.
async fn replaced(
    proxies: &Proxies,
    all: &mut BTreeMap<String, ListedProxy>,
    new: &[(&String, &ProxyPlan)],
) -> Result<BTreeMap<String, ListedProxy>, Refusal> {
    let ports: Vec<u16> = new
        .iter()
        .filter_map(|(name, _)| all.get(*name))
        .map(|there| there.proxy.addr().port())
        .collect();
    let (late, early): (Vec<_>, Vec<_>) = new
        .iter()
        .partition(|(_, plan)| ports.contains(&plan.listen.port()));
    let mut made = BTreeMap::new();
    for (name, plan) in early {
        made.insert((*name).clone(), proxies.start(plan).await?);
    }
    let mut before = BTreeMap::new();
    for (name, _) in new {
        if let Some(there) = all.remove(*name) {
            before.insert((*name).clone(), there.plan());
        }
    }
    for (name, plan) in late {
        match started_again(proxies, plan).await {
            Ok(entry) => drop(made.insert((*name).clone(), entry)),
            Err(error) => {
                drop(made);
                for (name, plan) in before {
                    if let Ok(entry) = started_again(proxies, &plan).await {
                        all.insert(name, entry);
                    }
                }
                return Err(error);
            }
        }
    }
    Ok(made)
}

/// Whether a proxy that listens at `addr` is where it is wanted.
fn same_place(wanted: Option<SocketAddr>, addr: SocketAddr) -> bool {
    wanted.is_none_or(|wanted| wanted == addr || (wanted.port() == 0 && wanted.ip() == addr.ip()))
}

async fn reset(State(proxies): State<Proxies>) -> StatusCode {
    proxies.reset().await;
    StatusCode::NO_CONTENT
}

async fn show(
    State(proxies): State<Proxies>,
    Path(name): Path<String>,
) -> Result<Json<ShownProxy>, Refusal> {
    let all = proxies.all.lock().await;
    Ok(Json(entry(&all, &name)?.shown(&name)))
}

async fn update(
    State(proxies): State<Proxies>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<ShownProxy>, Refusal> {
    let wanted: Wanted = parsed(&body)?;
    if !wanted.upstream.is_empty() {
        check_upstream(&wanted.upstream)?;
    }
    if !wanted.name.is_empty() && wanted.name != name {
        return Err(Refusal::bad("name cannot be changed"));
    }
    let place = wanted.place().await?;
    let mut all = proxies.all.lock().await;
    let entry = all.get_mut(&name).ok_or_else(Refusal::no_proxy)?;
    let before = entry.plan();
    let mut plan = before.clone();
    if !wanted.upstream.is_empty() {
        plan.upstream = wanted.upstream;
    }
    plan.resp = wanted.resp.unwrap_or(before.resp);
    let stays = same_place(place, before.listen);
    if !stays {
        plan.listen = place.unwrap_or(ANYWHERE);
        *entry = proxies.start(&plan).await?;
    } else if plan.upstream != before.upstream || plan.resp != before.resp {
        // The new one takes the old one's port.
        let nowhere = ProxyPlan {
            listen: ANYWHERE,
            ..before.clone()
        };
        *entry = proxies.start(&nowhere).await?;
        match started_again(&proxies, &plan).await {
            Ok(started) => *entry = started,
            Err(error) => {
                *entry = started_again(&proxies, &before).await?;
                return Err(error);
            }
        }
    }
    if let Some(enabled) = wanted.enabled {
        entry.enable(enabled).await;
    }
    Ok(Json(entry.shown(&name)))
}

/// A port that was freed a moment ago may not be free yet.
async fn started_again(proxies: &Proxies, plan: &ProxyPlan) -> Result<ListedProxy, Refusal> {
    let mut attempts = 0;
    loop {
        match proxies.start(plan).await {
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
    for (member, value) in changes {
        match (member.as_str(), value) {
            (_, Value::Null) if written.contains_key(&member) => {}
            ("toxicity", toxicity) => drop(written.insert(member, toxicity)),
            ("attributes", Value::Object(new)) => {
                if let Some(Value::Object(old)) = written.get_mut("attributes") {
                    old.extend(new);
                }
            }
            // Clients that send a whole toxic say what is so already.
            ("name" | "type" | "stream", same) if same == "" || written[&member] == same => {}
            ("name" | "type" | "stream", _) => {
                return Err(Refusal::bad(format!("{member} cannot be changed")));
            }
            ("attributes", _) => return Err(Refusal::bad("attributes must be an object")),
            _ => return Err(Refusal::bad(format!("unknown field `{member}`"))),
        }
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

fn entry<'a>(
    all: &'a BTreeMap<String, ListedProxy>,
    name: &str,
) -> Result<&'a ListedProxy, Refusal> {
    all.get(name).ok_or_else(Refusal::no_proxy)
}

fn parsed<T: for<'de> Deserialize<'de>>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad(format!("bad request body: {error}")))
}

/// The toxics that a proxy is made with; Toxiproxy's clients write `null` for none.
pub(super) fn toxics_of<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Toxic>, D::Error> {
    let written = Option::<Vec<Map<String, Value>>>::deserialize(from)?;
    let toxics = written.unwrap_or_default().into_iter().map(toxic_of);
    toxics
        .collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
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
    if written.get("attributes").is_some_and(Value::is_null) {
        written.remove("attributes");
    }
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
