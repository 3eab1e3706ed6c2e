//! Shows the cache in a web application: axum before it, PostgreSQL behind it, and Redis between
//! them whenever it is there. It starts and serves without Redis too.
//!
//!     export DATABASE_URL=postgres://app@localhost/app REDIS_URL=redis://127.0.0.1:6379
//!     cargo run -p steadfast-cache --example axum
//!     curl -i 127.0.0.1:3000/users/1                     # x-source: database; again: memory
//!     curl -i -X PUT -d 'Grace' 127.0.0.1:3000/users/1   # with what it makes invalid
//!     curl 127.0.0.1:3000/health

use std::error::Error;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use steadfast::Client;
use steadfast_cache::{Cache, CacheError, Database, DatabaseOptions, Ttl, Tx, View, WriteError};

#[derive(Clone, Serialize, Deserialize)]
struct User {
    id: i64,
    name: String,
}

#[derive(Clone)]
struct App {
    redis: Client,
    database: Database,
    users: View<User>,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let variable =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let database = variable("DATABASE_URL", "postgres://postgres@localhost/postgres");
    let database = Database::connect(&database, DatabaseOptions::default())?;
    create(&database).await?;
    // Returns at once: a service that waits for its cache at the start is down whenever its cache
    // is.
    let redis = Client::builder(&variable("REDIS_URL", "redis://127.0.0.1:6379"))?.build()?;
    let cache = Cache::builder(database.clone())
        .redis(redis.clone())
        .namespace("example");
    let cache = cache.class("user", Ttl::default()).build().await?;
    let users = cache.view("user")?;

    let app = App {
        redis: redis.clone(),
        database,
        users,
    };
    let routes = Router::new()
        .route("/users/{id}", get(user).put(rename))
        .route("/visits", get(visits))
        .route("/health", get(health))
        .with_state(app);
    let listener = tokio::net::TcpListener::bind(variable("LISTEN", "127.0.0.1:3000")).await?;
    println!("http://{}/users/1", listener.local_addr()?);
    axum::serve(listener, routes)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    let unfinished = redis.close(Duration::from_secs(1)).await.unfinished;
    println!("{unfinished} calls to Redis were left unfinished");
    Ok(())
}

/// From memory, Redis or PostgreSQL; the answer says which.
async fn user(State(app): State<App>, Path(id): Path<i64>) -> Result<Response, Failure> {
    let database = app.database.clone();
    let load = move || async move {
        let sql = "SELECT id, name FROM example_users WHERE id = $1";
        Ok(database.select_one_as::<User>(sql, &[id.into()]).await?)
    };
    let answer = app.users.get(id, load).await?;
    let headers = [
        (
            HeaderName::from_static("x-source"),
            answer.source.as_str().to_owned(),
        ),
        (header::AGE, answer.age.as_secs().to_string()),
    ];
    let user = answer.value.ok_or(Failure(StatusCode::NOT_FOUND, None))?;
    Ok((headers, Json(user)).into_response())
}

/// The change and its invalidation are committed together: a crash in between can lose neither.
async fn rename(
    State(app): State<App>,
    Path(id): Path<i64>,
    name: String,
) -> Result<StatusCode, Failure> {
    let update = async |tx: &mut Tx| {
        let sql = "UPDATE example_users SET name = $1 WHERE id = $2";
        tx.execute(sql, &[name.into(), id.into()]).await
    };
    let write = app
        .users
        .cache()
        .write(update)
        .invalidates([app.users.target(id)]);
    match write.commit().await?.value.rows_affected {
        0 => Err(Failure(StatusCode::NOT_FOUND, None)),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

/// What lives in Redis alone is left out while Redis is away.
async fn visits(State(app): State<App>) -> Json<Option<u64>> {
    match app.redis.available().cloned() {
        Some(mut redis) => Json(redis.incr("example:visits", 1).await.ok()),
        None => Json(None),
    }
}

/// Degraded is not dead: without Redis the application still serves, and says so.
async fn health(State(app): State<App>) -> Json<serde_json::Value> {
    let redis = app.redis.health(Duration::from_millis(500)).await;
    let status = if redis.healthy { "ok" } else { "degraded" };
    Json(serde_json::json!({ "status": status, "redis": redis.message }))
}

/// A status, and when to ask again.
struct Failure(StatusCode, Option<Duration>);

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.retry_after())
    }
}

impl<E> From<WriteError<E>> for Failure {
    fn from(_: WriteError<E>) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, None)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        if let Some(after) = self.1 {
            let seconds = after.as_secs().max(1).into();
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

async fn create(database: &Database) -> Result<(), Box<dyn Error>> {
    let mut tx = database.begin().await?;
    tx.execute(
        "CREATE TABLE IF NOT EXISTS example_users (id BIGINT PRIMARY KEY, name TEXT NOT NULL)",
        &[],
    )
    .await?;
    tx.execute(
        "INSERT INTO example_users VALUES (1, 'Ada') ON CONFLICT DO NOTHING",
        &[],
    )
    .await?;
    Ok(tx.commit().await?)
}
