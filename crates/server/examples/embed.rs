//! A web application with pages of its own, which serves named queries too, below `/data`: cached
//! through outages of Redis, with health, metrics and the live page.
//!
//!     cargo run -p steadfast-server --example embed
//!
//! `REDIS_URL` names its Redis (redis://127.0.0.1:6379), `LISTEN` where it listens
//! (127.0.0.1:8080). It prints what may be opened, and ends by Ctrl-C. Without a Redis it answers
//! all the same, and `/data/health` says what is wrong.

use std::env::var;
use std::net::SocketAddr;

use steadfast_server::axum::routing::get;
use steadfast_server::axum::{Router, serve};
use steadfast_server::config::Sources;
use steadfast_server::{App, Config, Shutdown, router};

const SETTINGS: &str = r#"
namespace = "embedded"
[queries.double]
sql = "SELECT :n * 2 AS twice"
key = "double:{n}"
ttl = "short"
params.n = { type = "integer", min = 0 }
[ttl.short]
fresh = "1m"
stale = "5m"
"#;

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let redis = var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let listen = var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
    let folder = tempfile::tempdir()?;
    let database = format!("sqlite://{}/data.db", folder.path().display());
    let sources = Sources::new()
        .text("built in", SETTINGS)
        .flag("REDIS_URL", "redis.url", redis)
        .flag("here", "database.url", database);
    let data = App::start(Config::load(&sources)?).await?;

    // A page of the application's own may ask a query without HTTP.
    let asked = data.clone();
    let pages = Router::new()
        .route("/", get(async || "a page of our own\n"))
        .route(
            "/answer",
            get(async move || asked.ask("double", "n=21").await),
        )
        .nest("/data", router(data.clone()));

    let listener = tokio::net::TcpListener::bind(&listen).await?;
    let address = listener.local_addr()?;
    println!("http://{address}/answer");
    println!("http://{address}/data/v1/queries/double?n=4");
    println!("http://{address}/data/health");

    // The service must know when the end begins, to be no longer ready; and who asks, for limits.
    let shutdown = Shutdown::new();
    data.serving(&shutdown);
    let pages = pages.into_make_service_with_connect_info::<SocketAddr>();
    serve(listener, pages)
        .with_graceful_shutdown(async move {
            let _ = tokio::signal::ctrl_c().await;
            shutdown.begin();
        })
        .await?;
    data.close().await;
    println!("closed");
    Ok(())
}
