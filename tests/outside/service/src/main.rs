//! A web application that has a router, a fallback and a shutdown of its own, and puts the service
//! below `/data`. Given a secret, it asks for tokens.

use axum::Router;
use axum::routing::get;
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

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(redis), Some(database)) = (arguments.next(), arguments.next()) else {
        return Err("usage: service redis://HOST:PORT sqlite://FILE [SECRET]".into());
    };
    let mut sources = Sources::new()
        .text("built in", SETTINGS)
        .flag("first argument", "redis.url", redis)
        .flag("second argument", "database.url", database);
    if let Some(secret) = arguments.next() {
        for (setting, value) in [
            ("auth.issuer", "us"),
            ("auth.audience", "us"),
            ("auth.audit", "off"),
            ("auth.keys.own.algorithm", "HS256"),
            ("auth.keys.own.secret", &secret),
        ] {
            sources = sources.flag("third argument", setting, value);
        }
    }
    let data = App::start(Config::load(&sources)?).await?;
    let asked = data.clone();
    let pages = Router::new()
        .route("/", get(async || "a page of our own\n"))
        .route(
            "/double",
            get(async move || asked.ask("double", "n=21").await),
        )
        .nest("/data", router(data.clone()))
        .fallback(async || "nothing of ours\n");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let shutdown = Shutdown::new();
    data.serving(&shutdown);
    axum::serve(listener, pages)
        .with_graceful_shutdown(async move {
            let _ = tokio::signal::ctrl_c().await;
            shutdown.begin();
        })
        .await?;
    data.close().await;
    println!("closed");
    Ok(())
}
