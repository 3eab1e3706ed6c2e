//! A service whose database runs out of room, of time, or is asked for more than it should give.

use std::path::Path;
use std::process::Command;

use futures_util::future::join_all;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value as Json, json};
use steadfast_cache::{Database, DatabaseOptions};
use steadfast_drill::process::{MariaDb, Postgres};
use steadfast_drill::waiting::eventually;
use steadfast_server::Config;
use steadfast_server::config::Sources;

use crate::harness::{Reply, Service};

const NO_REDIS: &str = "[redis]\nurl = 'redis://127.0.0.1:1'\n";

async fn service(url: &str, text: &str) -> Service {
    let sources = Sources::new()
        .text("test", &format!("{NO_REDIS}{text}"))
        .flag("test", "database.url", url);
    Service::of(Config::load(&sources).unwrap()).await
}

async fn change(database: &Database, sql: &str) {
    let mut tx = database.begin().await.unwrap();
    tx.execute(sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
}

/// A file system of one MiB, gone with it.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(at);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

#[tokio::test]
#[allow(clippy::print_stdout)]
async fn s14_a_disk_that_fills_and_is_freed_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(folder.path()) else {
        println!("skipped: a file system cannot be mounted here");
        return;
    };
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let text = "[statements.add]\nsql = 'INSERT INTO t (text) VALUES (:text)'\nparams.text = { type = 'string', max_length = 5000 }\n";
    let service = service(&url, text).await;
    change(
        service.app.database(),
        "CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)",
    )
    .await;
    let add = async || {
        let body = json!({ "text": "x".repeat(4000) });
        service.post("/v1/statements/add", &body).await.status
    };
    let statements = |health: &Json| health["checks"]["statements"]["status"].clone();
    for _ in 0..3 {
        assert_eq!(add().await, 200);
        let full = folder.path().join("full");
        // As much as there is room for.
        assert!(std::fs::write(&full, vec![0; 2 << 20]).is_err());
        for _ in 0..15 {
            assert_eq!(add().await, 503);
        }
        service
            .health_when(|health| statements(health) == "degraded")
            .await;
        std::fs::remove_file(&full).unwrap();
        for _ in 0..3 {
            assert_eq!(add().await, 200);
        }
        service
            .health_when(|health| statements(health) == "healthy")
            .await;
    }
    service.app.close().await;
}

#[tokio::test]
async fn s14_a_caller_cannot_take_the_writes_away() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let text = "[statements.add]\nsql = 'INSERT OR ROLLBACK INTO t VALUES (:id)'\nparams.id = { type = 'integer' }\n\
                [statements.many]\nsql = 'WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 600) INSERT INTO t SELECT i FROM n RETURNING id'\nmax_rows = 5\n";
    let service = service(&url, text).await;
    change(
        service.app.database(),
        "CREATE TABLE t (id INTEGER PRIMARY KEY)",
    )
    .await;
    for id in 1..5 {
        let body = json!({ "id": id });
        assert_eq!(service.post("/v1/statements/add", &body).await.status, 200);
        for _ in 0..3 {
            assert_eq!(service.post("/v1/statements/add", &body).await.status, 409);
        }
    }
    // What is handed back is bounded, and says so.
    let many = service.post("/v1/statements/many", &json!({})).await.json();
    assert_eq!(
        (&many["affected"], &many["truncated"]),
        (&json!(501), &json!(true))
    );
    assert_eq!(many["rows"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn s14_a_result_larger_than_allowed_is_cut_off_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let text = "[limits]\nresult = '10KiB'\n\
                [queries.rows]\nsql = 'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) SELECT i, zeroblob(:size) AS raw FROM n'\nparams.size = { type = 'integer' }\n";
    let service = service(&url, text).await;
    let cut = service.get("/v1/queries/rows?size=1024").await.json();
    assert_eq!(cut["truncated"], true, "{cut}");
    assert_eq!(cut["rows"].as_array().unwrap().len(), 4);
    let refused = service.get("/v1/queries/rows?size=200000").await;
    assert_eq!(refused.status, 413, "{}", refused.text());
    assert!(refused.text().contains("limits.result"));
}

#[tokio::test]
async fn s14_a_result_without_end_is_left_in_the_database() {
    let server = MariaDb::start().await.unwrap();
    // A limit of its own keeps the database from stopping by itself at one row more than is wanted.
    let text = "[queries.all]\nsql = 'SELECT seq AS n FROM seq_1_to_100000000'\nmax_rows = 10\n\
                [queries.most]\nsql = 'SELECT seq AS n FROM seq_1_to_100000000 LIMIT 99999999'\nmax_rows = 10\n";
    let service = service(&server.url(), text).await;
    let other = Database::connect(&server.url(), DatabaseOptions::default()).unwrap();
    for query in ["all", "most"] {
        let path = format!("/v1/queries/{query}");
        let (cut, live) = tokio::join!(service.get(&path), service.get("/health/live"));
        assert_eq!(live.status, 200);
        assert_eq!(cut.status, 200, "{query}: {}", cut.text());
        let cut = cut.json();
        assert_eq!(cut["truncated"], true, "{cut}");
        assert_eq!(cut["rows"].as_array().unwrap().len(), 10);
    }
    let running =
        "SELECT COUNT(*) AS n FROM information_schema.processlist WHERE info LIKE 'SELECT seq %'";
    eventually("the database has stopped", async || {
        other.select(running, &[]).await.unwrap()[0]["n"].as_i64() == Some(0)
    })
    .await;
}

#[tokio::test]
async fn k13_callers_of_a_slow_query_keep_nobody_else_out() {
    let server = Postgres::start().await.unwrap();
    let text = "[database.guard]\nconcurrency = 2\n[ttl.hurried]\nhard_limit = '300ms'\nsoft_limit = '100ms'\n\
                [queries.slow]\nsql = 'SELECT 1 AS n FROM pg_sleep(60) WHERE :n > 0'\nparams.n = { type = 'integer' }\nttl = 'hurried'\n\
                [queries.quick]\nsql = 'SELECT :n + 0 AS n'\nparams.n = { type = 'integer' }\n";
    let service = service(&server.url(), text).await;
    let other = Database::connect(&server.url(), DatabaseOptions::default()).unwrap();
    let running = async || {
        let sql = "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()";
        other.select(sql, &[]).await.unwrap()[0]["n"]
            .as_i64()
            .unwrap()
    };
    let slow = join_all((1..=8).map(|n| {
        let service = &service;
        async move { service.get(&format!("/v1/queries/slow?n={n}")).await.status }
    }));
    for status in slow.await {
        assert!(status == 504 || status == 503, "{status}");
    }
    assert!(running().await <= 2);
    eventually("the slow ones have ended", async || running().await == 0).await;
    eventually("others are answered", async || {
        service.get("/v1/queries/quick?n=7").await.status == 200
    })
    .await;
    let health = service.get("/health").await.json();
    assert_ne!(health["status"], "unhealthy", "{health}");
}

#[tokio::test]
async fn s3_a_database_that_answers_and_ends_no_query_is_told_as_stuck() {
    let server = Postgres::start().await.unwrap();
    let text = "[limits]\nrequest_timeout = '2m'\n[database.guard]\nconcurrency = 2\n[ttl.patient]\nhard_limit = '100s'\n\
                [queries.rows]\nsql = 'SELECT COUNT(*) AS n FROM t WHERE id <> :id'\nparams.id = { type = 'integer' }\nttl = 'patient'\n";
    let service = service(&server.url(), text).await;
    let other = Database::connect(&server.url(), DatabaseOptions::default()).unwrap();
    change(&other, "CREATE TABLE t (id INT PRIMARY KEY)").await;
    let database = |health: &Json| health["checks"]["database"]["status"].clone();
    service
        .health_when(|health| database(health) == "healthy")
        .await;
    // Somebody alters the table, and takes time: every query of it waits, and the database itself
    // is well.
    let mut altering = other.begin().await.unwrap();
    let lock = "LOCK TABLE t IN ACCESS EXCLUSIVE MODE";
    altering.execute(lock, &[]).await.unwrap();
    let asking = join_all((1..=4).map(|id| {
        let service = &service;
        async move { service.get(&format!("/v1/queries/rows?id={id}")).await }
    }));
    let looking = async {
        let health = service
            .health_when(|health| database(health) == "unhealthy")
            .await;
        let message = health["checks"]["database"]["message"].as_str().unwrap();
        assert!(
            message.contains("every one of the 2 places for loads"),
            "{message}"
        );
        assert_eq!(service.get("/health/ready").await.status, 503);
        altering.rollback().await.unwrap();
        service
            .health_when(|health| database(health) == "healthy")
            .await;
        assert_eq!(service.get("/health/ready").await.status, 200);
    };
    let (replies, ()) = tokio::join!(asking, looking);
    for reply in &replies {
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}

const ADD: &str = "[database]\nmax_connections = 3\n[statements.add]\nsql = 'INSERT INTO t VALUES (:id)'\nparams.id = { type = 'integer' }\n";

async fn post(service: &Service, key: &str, id: i64) -> Reply {
    let request = Request::post(service.url("/v1/statements/add"))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(Full::new(json!({ "id": id }).to_string().into()))
        .unwrap();
    service.send(request).await
}

#[tokio::test]
async fn s8_many_who_wait_for_one_key_hold_one_connection() {
    let server = Postgres::start().await.unwrap();
    let service = service(&server.url(), ADD).await;
    let other = Database::connect(&server.url(), DatabaseOptions::default()).unwrap();
    change(&other, "CREATE TABLE t (id INT PRIMARY KEY)").await;
    assert_eq!(post(&service, "first", 1).await.status, 200);
    // Another process is about to use the key.
    let mut tx = other.begin().await.unwrap();
    let taken = "INSERT INTO steadfast_idempotency SELECT 'same', caller, request_hash, 0, '', created_at, expires_at FROM steadfast_idempotency";
    tx.execute(taken, &[]).await.unwrap();
    let waiting = join_all((0..12).map(|_| post(&service, "same", 2)));
    let asking = async {
        let held = "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        eventually("one waits", async || {
            other.select(held, &[]).await.unwrap()[0]["n"].as_i64() == Some(1)
        })
        .await;
        for id in 3..9 {
            let reply = service
                .post("/v1/statements/add", &json!({ "id": id }))
                .await;
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        tx.rollback().await.unwrap();
    };
    let (replies, ()) = tokio::join!(waiting, asking);
    for reply in &replies {
        assert_eq!(
            (reply.status.as_u16(), reply.text()),
            (200, replies[0].text())
        );
    }
}

#[tokio::test]
async fn s8_a_collation_that_compares_bytes_changes_nothing() {
    let server = MariaDb::start().await.unwrap();
    let other = Database::connect(&server.url(), DatabaseOptions::default()).unwrap();
    change(
        &other,
        "ALTER DATABASE steadfast CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    )
    .await;
    change(&other, "CREATE TABLE t (id INT PRIMARY KEY)").await;
    let service = service(&server.url(), ADD).await;
    let first = post(&service, "one", 1).await;
    assert_eq!(first.status, 200, "{}", first.text());
    let again = post(&service, "one", 1).await;
    assert_eq!((again.status.as_u16(), again.text()), (200, first.text()));
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(post(&service, "one", 2).await.status, 422);
}
