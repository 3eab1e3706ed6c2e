//! Toxiproxy's HTTP API for whoever has tests with it already, with its names,
//! attributes, status codes and error bodies, over the proxy of this crate. Toxics that Toxiproxy
//! does not know (`stall`, `hold`, `corrupt`, `reject_next`, `down` and those of Redis' protocol)
//! are added by the same calls.
//!
//! Where it differs, it refuses what Toxiproxy overlooks: an unknown attribute is an error, not a
//! silence. A proxy without a host in `listen` listens on loopback, not on every interface. As
//! there, a browser is turned away, so that no page can reach through it to break anything.
//!
//! ```no_run
//! use steadfast_drill::api::{Proxies, Wanted, serve};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let proxies = Proxies::new(7);
//! let (name, upstream) = ("redis".to_owned(), "127.0.0.1:6379".to_owned());
//! let at = proxies.create(Wanted { name, upstream, ..Wanted::default() }).await.ok();
//! println!("{at:?}"); // where the application is sent
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8474").await?;
//! serve(listener, proxies).await?; // and any client of Toxiproxy breaks it
//! # Ok(()) }
//! ```

mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;

use crate::fault::{Down, Toxic};
use crate::proxy::{Counters, Proxy, ProxyError, ToxicId, check_upstream};

pub use routes::{router, serve};

/// A toxic of our own that stands for a proxy that is not enabled. Not shown.
const DISABLED: &str = "\0disabled";

/// The proxies that the API makes. Cheap to clone; dropped with its last clone, all proxies are
/// gone.
#[derive(Clone, Default)]
pub struct Proxies {
    all: Arc<Mutex<BTreeMap<String, ListedProxy>>>,
    seed: u64,
}

struct ListedProxy {
    resp: bool,
    proxy: Proxy,
    disabled: Option<ToxicId>,
}

/// A proxy as it is asked for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// The proxy's name.
    pub name: String,
    /// Where it listens, as `host:port`; port 0 is a free one. Default: a free port of 127.0.0.1.
    pub listen: String,
    /// Where it connects to, as `host:port`. The name is resolved for each connection.
    pub upstream: String,
    /// Whether it takes connections. Default: yes.
    pub enabled: Option<bool>,
    /// Not of Toxiproxy: whether RESP toxics take hold of connections that are open already, at the
    /// cost of a parse of all bytes. Default: no; a proxy that is there already stays as it is, and
    /// one of which this is changed begins anew, which ends its connections.
    pub resp: Option<bool>,
    /// The toxics that it is made with. A proxy that is there already keeps its own, as in
    /// Toxiproxy, whose clients send back what they once read.
    #[serde(deserialize_with = "routes::toxics_of")]
    pub toxics: Vec<Toxic>,
}

/// A proxy as it is started, checked and resolved.
#[derive(Clone)]
struct ProxyPlan {
    listen: SocketAddr,
    upstream: String,
    resp: bool,
    enabled: bool,
    toxics: Vec<Toxic>,
}

#[derive(Serialize)]
struct ShownProxy {
    name: String,
    listen: String,
    upstream: String,
    enabled: bool,
    toxics: Vec<Toxic>,
}

/// Why something was refused, as Toxiproxy says it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn no_proxy() -> Self {
        Self::new(StatusCode::NOT_FOUND, "proxy not found")
    }

    fn no_toxic() -> Self {
        Self::new(StatusCode::NOT_FOUND, "toxic not found")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.message, "status": self.status.as_u16() });
        (self.status, Json(body)).into_response()
    }
}

impl Proxies {
    /// No proxies yet; what their toxics draw at random comes from the seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Makes a proxy, and says where it listens.
    ///
    /// # Errors
    /// A missing name or upstream, a name that is taken, an address that cannot be had, two toxics
    /// of one name.
    pub async fn create(&self, wanted: Wanted) -> Result<SocketAddr, Refusal> {
        wanted.check()?;
        let (name, plan) = (wanted.name.clone(), wanted.plan().await?);
        let mut all = self.all.lock().await;
        if all.contains_key(&name) {
            return Err(Refusal::new(StatusCode::CONFLICT, "proxy already exists"));
        }
        let entry = self.start(&plan).await?;
        let addr = entry.proxy.addr();
        all.insert(name, entry);
        Ok(addr)
    }

    /// Returns the counts of the proxy of that name.
    pub async fn counters(&self, name: &str) -> Option<Counters> {
        self.all
            .lock()
            .await
            .get(name)
            .map(|entry| entry.proxy.counters())
    }

    /// Takes all toxics away and enables every proxy.
    pub async fn reset(&self) {
        for entry in self.all.lock().await.values_mut() {
            entry.proxy.clear().await;
            entry.disabled = None;
        }
    }

    async fn start(&self, plan: &ProxyPlan) -> Result<ListedProxy, Refusal> {
        let builder = Proxy::builder().seed(self.seed).resp(plan.resp);
        let proxy = builder
            .listen(plan.listen)
            .start_by_name(&plan.upstream)
            .await?;
        let mut entry = ListedProxy {
            resp: plan.resp,
            proxy,
            disabled: None,
        };
        entry.enable(plan.enabled).await;
        for toxic in &plan.toxics {
            let added = entry.proxy.add(toxic.clone()).await;
            added.map_err(|error| Refusal::bad(error.to_string()))?;
        }
        Ok(entry)
    }
}

impl From<ProxyError> for Refusal {
    fn from(error: ProxyError) -> Self {
        match error {
            ProxyError::Taken { addr } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("listen tcp {addr}: bind: address already in use"),
            ),
            ProxyError::Upstream { .. } => Self::bad(error.to_string()),
            other => Self::new(StatusCode::INTERNAL_SERVER_ERROR, other.to_string()),
        }
    }
}

impl Wanted {
    /// Refuses what no proxy can be made of, whatever else is there.
    fn check(&self) -> Result<(), Refusal> {
        for (field, value) in [("name", &self.name), ("upstream", &self.upstream)] {
            if value.is_empty() {
                return Err(Refusal::bad(format!("missing required field: {field}")));
            }
        }
        check_upstream(&self.upstream)?;
        let mut names = BTreeSet::new();
        if self.toxics.iter().all(|toxic| names.insert(&toxic.name)) {
            Ok(())
        } else {
            Err(Refusal::new(StatusCode::CONFLICT, "toxic already exists"))
        }
    }

    /// Resolves where it is to listen, which may take long: never to be awaited with the lock held.
    async fn plan(self) -> Result<ProxyPlan, Refusal> {
        Ok(ProxyPlan {
            listen: self.place().await?.unwrap_or(ANYWHERE),
            upstream: self.upstream,
            resp: self.resp.unwrap_or_default(),
            enabled: self.enabled.unwrap_or(true),
            toxics: self.toxics,
        })
    }

    /// Where it is to listen, if that is said. Never to be awaited with the lock held.
    async fn place(&self) -> Result<Option<SocketAddr>, Refusal> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        resolved(&self.listen).await.map(Some)
    }
}

impl ListedProxy {
    async fn enable(&mut self, enabled: bool) {
        match (enabled, self.disabled) {
            (true, Some(id)) => {
                self.proxy.remove(id).await;
                self.disabled = None;
            }
            (false, None) => {
                let mut down = Toxic::new(Down {});
                down.name = DISABLED.to_owned();
                self.disabled = self.proxy.add(down).await.ok();
            }
            _ => {}
        }
    }

    fn toxics(&self) -> Vec<(ToxicId, Toxic)> {
        let mut toxics = self.proxy.toxics();
        toxics.retain(|(_, toxic)| toxic.name != DISABLED);
        toxics
    }

    fn toxic(&self, name: &str) -> Result<(ToxicId, Toxic), Refusal> {
        self.toxics()
            .into_iter()
            .find(|(_, toxic)| toxic.name == name)
            .ok_or_else(Refusal::no_toxic)
    }

    /// Returns the plan that would make it anew.
    fn plan(&self) -> ProxyPlan {
        ProxyPlan {
            listen: self.proxy.addr(),
            upstream: self.proxy.upstream().to_owned(),
            resp: self.resp,
            enabled: self.disabled.is_none(),
            toxics: self.toxics().into_iter().map(|(_, toxic)| toxic).collect(),
        }
    }

    fn shown(&self, name: &str) -> ShownProxy {
        ShownProxy {
            name: name.to_owned(),
            listen: self.proxy.addr().to_string(),
            upstream: self.proxy.upstream().to_owned(),
            enabled: self.disabled.is_none(),
            toxics: self.toxics().into_iter().map(|(_, toxic)| toxic).collect(),
        }
    }
}

/// Where a proxy listens of which that is not said: on a free port of loopback.
const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// An address as Toxiproxy takes it; without a host it is one of loopback.
async fn resolved(text: &str) -> Result<SocketAddr, Refusal> {
    let text = text
        .strip_prefix("localhost:")
        .or_else(|| text.strip_prefix(':'))
        .map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    let found = tokio::net::lookup_host(&text)
        .await
        .map(Iterator::collect::<Vec<_>>);
    let found = found.map_err(|error| Refusal::bad(format!("{text} is no address: {error}")))?;
    let first = found
        .iter()
        .find(|addr| addr.is_ipv4())
        .or_else(|| found.first());
    first
        .copied()
        .ok_or_else(|| Refusal::bad(format!("{text} is no address")))
}
