//! Asking twice, on each database.

use futures_util::future::join_all;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value as Json, json};
use steadfast_drill::process::{MariaDb, Postgres};
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{App, Config};

use crate::harness::{Reply, Service};

const SQLITE: &str = "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, phone_number TEXT NOT NULL, \
                      email TEXT, created_at TEXT NOT NULL)";

async fn post(service: &Service, key: &str, body: &Json) -> Reply {
    let request = Request::post(service.url("/v1/statements/create_user"))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(Full::new(body.to_string().into()))
        .unwrap();
    service.send(request).await
}

async fn count(app: &App, table: &str) -> i64 {
    let sql = format!("SELECT COUNT(*) AS n FROM {table}");
    app.database().select(&sql, &[]).await.unwrap()[0]["n"]
        .as_i64()
        .unwrap()
}

async fn service_on(url: &str, table: &str, ttl: &str) -> Service {
    let sources = Sources::new()
        .text("sample", SAMPLE)
        .flag("test", "redis.url", "redis://127.0.0.1:1")
        .flag("test", "limits.idempotency_ttl", ttl)
        .flag("test", "database.url", url);
    let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
    let mut tx = app.database().begin().await.unwrap();
    tx.execute(table, &[]).await.unwrap();
    tx.commit().await.unwrap();
    Service::from_app(app).await
}

async fn s8_holds_on(url: &str, table: &str) {
    let service = service_on(url, table, "1h").await;
    let ada = json!({"name": "Ada", "phone_number": "101"});

    let first = post(&service, "one", &ada).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.header("idempotency-replayed"), "");
    let again = post(&service, "\"one\"", &ada).await;
    assert_eq!(again.status, 200);
    assert_eq!(again.text(), first.text(), "the same answer");
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(count(&service.app, "users").await, 1);

    let other = json!({"name": "Eve", "phone_number": "102"});
    let refused = post(&service, "one", &other).await;
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert_eq!(refused.json()["type"], "/problems/conflict");
    assert_eq!(count(&service.app, "users").await, 1);
    // Keys that differ in case are different.
    assert_eq!(post(&service, "ONE", &other).await.status, 200);
    assert_eq!(count(&service.app, "users").await, 2);

    // At the same time, from many: one change, and everyone learns the same.
    let bea = json!({"name": "Bea", "phone_number": "103"});
    let all = join_all((0..8).map(|_| post(&service, "many", &bea))).await;
    for reply in &all {
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.text(), all[0].text());
    }
    let fresh = all
        .iter()
        .filter(|reply| reply.header("idempotency-replayed").is_empty());
    assert_eq!(fresh.count(), 1, "one did it, the others heard of it");
    assert_eq!(count(&service.app, "users").await, 3);

    // A change that failed leaves no record: it may be tried again.
    let mut tx = service.app.database().begin().await.unwrap();
    tx.execute("ALTER TABLE users RENAME TO gone", &[])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let cid = json!({"name": "Cid", "phone_number": "104"});
    assert_eq!(post(&service, "later", &cid).await.status, 503);
    let mut tx = service.app.database().begin().await.unwrap();
    tx.execute("ALTER TABLE gone RENAME TO users", &[])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(post(&service, "later", &cid).await.status, 200);
    assert_eq!(count(&service.app, "users").await, 4);
    assert_eq!(count(&service.app, "steadfast_idempotency").await, 4);

    // A table that was dropped is made again, and nothing is refused for it.
    let mut tx = service.app.database().begin().await.unwrap();
    tx.execute("DROP TABLE steadfast_idempotency", &[])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let gil = json!({"name": "Gil", "phone_number": "107"});
    let once = post(&service, "dropped", &gil).await;
    assert_eq!(once.status, 200, "{}", once.text());
    assert_eq!(
        post(&service, "dropped", &gil)
            .await
            .header("idempotency-replayed"),
        "true"
    );
    assert_eq!(count(&service.app, "users").await, 5);

    for bad in ["", "a b", &"x".repeat(256)] {
        assert_eq!(post(&service, bad, &cid).await.status, 400, "{bad:?}");
    }
    service.app.close().await;

    // What has expired is forgotten, and may be used for something else.
    let again = service_on(url, "SELECT 1", "1ms").await;
    let dan = json!({"name": "Dan", "phone_number": "105"});
    assert_eq!(post(&again, "short", &dan).await.status, 200);
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let fay = json!({"name": "Fay", "phone_number": "106"});
    assert_eq!(post(&again, "short", &fay).await.status, 200);
    assert_eq!(count(&again.app, "users").await, 7);
}

#[tokio::test]
async fn s8_the_same_key_changes_the_data_once_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("test.db").display());
    s8_holds_on(&url, SQLITE).await;
}

#[tokio::test]
async fn s8_the_same_key_changes_the_data_once_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let table = "CREATE TABLE users (id BIGINT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(200) NOT NULL, phone_number VARCHAR(40) NOT NULL, \
                 email VARCHAR(200), created_at DATETIME NOT NULL)";
    s8_holds_on(&server.url(), table).await;
}

#[tokio::test]
async fn s8_the_same_key_changes_the_data_once_on_postgres() {
    let server = Postgres::start().await.unwrap();
    let table = "CREATE TABLE users (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT NOT NULL, phone_number TEXT NOT NULL, \
                 email TEXT, created_at TIMESTAMPTZ NOT NULL)";
    s8_holds_on(&server.url(), table).await;
}

#[tokio::test]
async fn s8_an_answer_too_large_to_give_twice_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("test.db").display());
    let sources = Sources::new()
        .text("sample", SAMPLE)
        .flag("test", "redis.url", "redis://127.0.0.1:1")
        .flag("test", "limits.idempotency_body", "8B")
        .flag("test", "database.url", url);
    let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
    let mut tx = app.database().begin().await.unwrap();
    tx.execute(SQLITE, &[]).await.unwrap();
    tx.commit().await.unwrap();
    let service = Service::from_app(app).await;
    let reply = post(
        &service,
        "big",
        &json!({"name": "Ada", "phone_number": "101"}),
    )
    .await;
    assert_eq!(reply.status, 413, "{}", reply.text());
    assert_eq!(count(&service.app, "users").await, 0);
}
