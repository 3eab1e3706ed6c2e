//! A service on a free port, and a client that speaks plain HTTP to it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value as Json;
use steadfast_drill::process::Redis;
use steadfast_drill::waiting::until;
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{App, Config, Demo, DemoOptions, Served, Shutdown, serve};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Nothing that is waited for takes so long, unless it never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Service {
    pub(crate) app: App,
    pub(crate) addr: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) serving: JoinHandle<Served>,
    client: Client<HttpConnector, Full<Bytes>>,
    _demo: Option<Demo>,
    _folder: Option<tempfile::TempDir>,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Json {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

impl Service {
    /// The demo: a Redis of its own and ten thousand people.
    pub(crate) async fn demo() -> Self {
        let listen = "127.0.0.1:0".parse().unwrap();
        let demo = Demo::start(DemoOptions::new(listen)).await.unwrap();
        assert_eq!(demo.notice(), None, "the tests need a redis-server");
        let app = demo.app().clone();
        Self::serve(app, Some(demo)).await
    }

    /// A service as the sample says, with `settings` over it, and an empty database of its own if
    /// they name none.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        Self::with_more("", settings).await
    }

    /// The same, with more in its file.
    pub(crate) async fn with_more(toml: &str, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite://{}", folder.path().join("test.db").display());
        let mut sources = Sources::new()
            .text("sample", &format!("{SAMPLE}{toml}"))
            .flag("test", "database.url", database);
        for (setting, value) in settings {
            sources = sources.flag("test", setting, *value);
        }
        let mut service = Self::of(Config::load(&sources).unwrap()).await;
        service._folder = Some(folder);
        service
    }

    pub(crate) async fn of(config: Config) -> Self {
        Self::serve(App::start(config).await.unwrap(), None).await
    }

    pub(crate) async fn from_app(app: App) -> Self {
        Self::serve(app, None).await
    }

    async fn serve(app: App, demo: Option<Demo>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let serving = tokio::spawn(serve(listener, app.clone(), shutdown.clone()));
        Self {
            app,
            addr,
            shutdown,
            serving,
            client: Client::builder(TokioExecutor::new()).build_http(),
            _demo: demo,
            _folder: None,
        }
    }

    /// One that something else serves.
    pub(crate) fn at(app: App, addr: SocketAddr) -> Self {
        Self {
            app,
            addr,
            shutdown: Shutdown::new(),
            serving: tokio::spawn(async { Served::Drained }),
            client: Client::builder(TokioExecutor::new()).build_http(),
            _demo: None,
            _folder: None,
        }
    }

    /// Waits until callers should be sent here, asked past HTTP. With Redis away that is not before
    /// the database was first asked how it is.
    pub(crate) async fn ready(&self) {
        until("the service is ready", || self.app.is_ready()).await;
    }

    /// What `/v1/status` says, asked past HTTP.
    pub(crate) fn status(&self) -> Json {
        serde_json::to_value(self.app.status()).unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.get_with(path, &[]).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = Request::get(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Full::default()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Json) -> Reply {
        self.post_bytes(path, "application/json", body.to_string().into())
            .await
    }

    pub(crate) async fn post_bytes(&self, path: &str, kind: &str, body: Bytes) -> Reply {
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.url(path))
            .header("content-type", kind)
            .body(Full::new(body))
            .unwrap();
        self.send(request).await
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        let response = tokio::time::timeout(PATIENCE, self.client.request(request));
        let response = response.await.unwrap().unwrap();
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect());
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: body.await.unwrap().unwrap().to_bytes(),
        }
    }

    /// The answer of `/health` as soon as `wanted` holds of it.
    pub(crate) async fn health_when(&self, wanted: impl Fn(&Json) -> bool) -> Json {
        let mut last = Json::Null;
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                last = self.get("/health").await.json();
                if wanted(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(found.await.is_ok(), "never so: {last}");
        last
    }
}

/// A private Redis, once it is in use.
pub(crate) async fn redis() -> Redis {
    Redis::start().await.unwrap()
}
