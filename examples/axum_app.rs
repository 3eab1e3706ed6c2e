//! A web application that starts, serves and reports its health without Redis, and uses it whenever it is there.
//!
//!     cargo run -p steadfast-examples --bin axum_app          # then: curl 127.0.0.1:3000/users/1
//!
//! The cache is an `Option` in every handler: the client itself while Redis is believed to answer, else nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use redis::AsyncCommands;
use serde_json::{Value, json};
use sqlx::SqlitePool;
use steadfast::Client;

struct App {
    redis: Client,
    database: SqlitePool,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    // Returns at once: a service that waits for its cache at the start is down whenever its cache is.
    let redis = Client::builder(&url)?.name("axum_app").build()?;
    let app = Arc::new(App {
        redis: redis.clone(),
        database: users().await?,
    });

    let routes = Router::new()
        .route("/users/{id}", get(user))
        .route("/health", get(health))
        .route("/health/live", get(async || StatusCode::OK))
        .with_state(app);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("http://{}/users/1", listener.local_addr()?);
    axum::serve(listener, routes)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    let unfinished = redis.close(Duration::from_secs(1)).await.unfinished;
    println!("{unfinished} calls to Redis were left unfinished");
    Ok(())
}

/// From the cache if there is one and it has the user, else from the database; the answer says which.
async fn user(State(app): State<Arc<App>>, Path(id): Path<i64>) -> Result<Json<Value>, StatusCode> {
    let key = format!("axum_app:user:{id}");
    if let Some(mut redis) = app.redis.available().cloned() {
        // A cache that fails is a cache that misses.
        if let Ok(Some(name)) = redis.get::<_, Option<String>>(&key).await {
            return Ok(Json(json!({ "id": id, "name": name, "source": "redis" })));
        }
    }
    let name: Option<(String,)> = sqlx::query_as("SELECT name FROM users WHERE id = ?")
        .bind(id)
        .fetch_optional(&app.database)
        .await
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let (name,) = name.ok_or(StatusCode::NOT_FOUND)?;
    if let Some(mut redis) = app.redis.available().cloned() {
        let _: Result<(), _> = redis.set_ex(&key, &name, 360).await;
    }
    Ok(Json(
        json!({ "id": id, "name": name, "source": "database" }),
    ))
}

/// Degraded is not dead: without Redis the application still serves, and says so.
async fn health(State(app): State<Arc<App>>) -> Json<Value> {
    let redis = app.redis.health(Duration::from_millis(500)).await;
    let status = if redis.healthy { "ok" } else { "degraded" };
    Json(json!({
        "status": status,
        "checks": { "redis": { "status": status, "latency_ms": redis.latency_ms, "message": redis.message } },
    }))
}

async fn users() -> Result<SqlitePool, sqlx::Error> {
    let one = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let database = one.connect("sqlite::memory:").await?;
    sqlx::query("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
        .execute(&database)
        .await?;
    sqlx::query("INSERT INTO users (name) VALUES ('Ada Lovelace'), ('Grace Hopper')")
        .execute(&database)
        .await?;
    Ok(database)
}
