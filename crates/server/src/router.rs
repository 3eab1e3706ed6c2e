//! Every address that the service answers, and which handler answers it.

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::app::App;
use crate::http::middleware::{Middleware, around_every_route};
use crate::http::{drills, events, health, openapi, page, queries, status};
use crate::problem::{Problem, ProblemKind};

/// Everything the service answers, to be served by [`serve`](crate::serve) or put into a program's
/// own router. Limits, checks of Host and Origin, and security headers are part of it.
///
/// ```no_run
/// use std::net::SocketAddr;
/// use steadfast_server::axum::{Router, routing::get, serve};
/// use steadfast_server::config::Sources;
/// use steadfast_server::{App, Config, Shutdown, router};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let data = App::start(Config::load(&Sources::new().file("app.toml".as_ref())?)?).await?;
/// let asked = data.clone();
/// let pages = Router::new()
///     .route("/answer", get(async move || asked.ask("user", "id=7").await)) // without HTTP
///     .nest("/data", router(data.clone()));
///
/// let shutdown = Shutdown::new();
/// data.serving(&shutdown); // ready, until the end begins
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
/// let pages = pages.into_make_service_with_connect_info::<SocketAddr>(); // for limits
/// serve(listener, pages)
///     .with_graceful_shutdown(async move {
///         let _ = tokio::signal::ctrl_c().await;
///         shutdown.begin();
///     })
///     .await?;
/// data.close().await;
/// # Ok(()) }
/// ```
pub fn router(app: App) -> Router {
    let mut router = Router::new()
        .route("/v1/queries/{name}", get(queries::read))
        .route("/v1/statements/{name}", post(queries::write))
        .route("/v1/status", get(status::status))
        .route("/v1/settings", get(status::settings))
        .route("/v1/history", get(status::history))
        .route("/v1/minutes", get(status::minutes))
        .route("/v1/events", get(events::events))
        .route("/v1/drills", get(drills::list).post(drills::start))
        .route("/openapi.json", get(openapi::openapi))
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/docs", get(page::reference))
        .route("/docs/{*path}", get(page::reference_asset))
        .route("/", get(page::index).options(health::ready))
        .route("/assets/{*path}", get(page::asset));
    if app.config().metrics.enabled {
        router = router.route("/metrics", get(status::metrics));
    }
    #[cfg(feature = "drill")]
    let router = router
        .route("/v1/drills/{id}", get(drills::one).delete(drills::stop))
        .route("/v1/drills/{id}/events", get(drills::events))
        .route("/v1/drills/{id}/report", get(drills::report));
    router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(
            app.part::<std::sync::Arc<Middleware>>(),
            around_every_route,
        ))
        .with_state(app)
}

async fn unknown() -> Response {
    Problem::new(ProblemKind::Plain, "there is nothing at this address")
        .status(StatusCode::NOT_FOUND)
        .into_response()
}

async fn wrong_method() -> Response {
    Problem::new(ProblemKind::Plain, "this address does not take that method")
        .status(StatusCode::METHOD_NOT_ALLOWED)
        .into_response()
}
