//! HTTP as probes, proxies and strangers speak it, byte by byte.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, Service};

/// What comes back for these bytes, until the connection ends or `enough` has come.
async fn exchange(service: &Service, request: &[u8], enough: &str) -> String {
    let mut stream = TcpStream::connect(service.addr).await.unwrap();
    // It may be refused before all of it is written.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..read]);
            if !enough.is_empty() && String::from_utf8_lossy(&answer).contains(enough) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn quiet() -> Service {
    Service::with(&[("redis.url", "redis://127.0.0.1:1")]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_a_request_of_two_hosts_is_refused_and_a_probe_of_none_is_answered() {
    let service = quiet().await;
    service
        .health_when(|health| health["status"] != "unhealthy")
        .await;
    for (request, status) in [
        (
            "GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil.test\r\n\r\n",
            "400",
        ),
        (
            "GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
            "400",
        ),
        ("GET /health HTTP/1.1\r\n\r\n", "400"),
        ("GET /v1/status HTTP/1.0\r\n\r\n", "400"),
        ("GET / HTTP/1.0\r\n\r\n", "400"),
        ("GET /health/live HTTP/1.0\r\n\r\n", "200"),
        ("GET /health/ready HTTP/1.0\r\n\r\n", "200"),
        ("GET /metrics HTTP/1.0\r\n\r\n", "200"),
        // HAProxy's, where it is told nothing.
        ("OPTIONS / HTTP/1.0\r\n\r\n", "200"),
    ] {
        let request = request.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
        let answer = exchange(&service, request.as_bytes(), "").await;
        assert_eq!(answer.get(9..12), Some(status), "{request}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_what_cannot_be_read_is_refused_as_everything_else_is() {
    let service = quiet().await;
    let long = "a".repeat(300_000);
    let many = "x: y\r\n".repeat(200);
    for (request, statuses) in [
        ("nonsense\r\n\r\n".to_owned(), &["400"][..]),
        (
            "GET / HTTP/1.1\r\nhost localhost\r\n\r\n".to_owned(),
            &["400"],
        ),
        (
            "GET / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n".to_owned(),
            &["400"],
        ),
        (
            format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
            &["414", "431"],
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n"),
            &["431"],
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"),
            &["431"],
        ),
    ] {
        let answer = exchange(&service, request.as_bytes(), "").await;
        let shown = &request[..request.len().min(60)];
        assert!(statuses.contains(&&answer[9..12]), "{shown}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        for header in [
            "content-type: application/problem+json",
            "x-content-type-options: nosniff",
            "content-security-policy: default-src 'none'",
            "cache-control: no-store",
            "connection: close",
        ] {
            assert!(head.contains(header), "{header}: {answer}");
        }
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["status"].to_string(), answer[9..12], "{answer}");
        assert_eq!(head.matches("content-length").count(), 1, "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_who_asks_before_it_sends_too_much_is_told_before() {
    let service = quiet().await;
    let ask = |length: usize| {
        format!(
            "POST /v1/statements/create_user HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let refused = exchange(&service, ask(9 << 20).as_bytes(), "too-large").await;
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
    let wanted = exchange(&service, ask(100).as_bytes(), "100 Continue").await;
    assert!(wanted.starts_with("HTTP/1.1 100"), "{wanted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_assets_are_named_by_what_they_hold_and_sent_small() {
    let service = quiet().await;
    for path in ["/", "/assets/app.js", "/docs", "/docs/reference.js"] {
        let plain = service.get(path).await;
        let tag = plain.header("etag").to_owned();
        assert!(tag.len() > 10, "{path}: {tag}");
        let packed = service
            .get_with(path, &[("accept-encoding", "br, gzip;q=0.8")])
            .await;
        assert_eq!(packed.header("content-encoding"), "gzip", "{path}");
        assert_ne!(packed.header("etag"), tag);
        assert!(packed.body.len() * 2 < plain.body.len() * 3 / 2, "{path}");
        let mut unpacked = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(&packed.body[..]);
        std::io::Read::read_to_end(&mut decoder, &mut unpacked).unwrap();
        assert_eq!(unpacked, plain.body, "{path}");
        let refuses = service
            .get_with(path, &[("accept-encoding", "gzip;q=0")])
            .await;
        assert_eq!(refuses.header("content-encoding"), "", "{path}");
        for header in [tag.clone(), format!("\"x\", W/{tag}")] {
            let again = service.get_with(path, &[("if-none-match", &header)]).await;
            assert_eq!(
                (again.status.as_u16(), again.body.len()),
                (304, 0),
                "{path}"
            );
            assert_eq!(again.header("etag"), tag);
            assert_ne!(again.header("content-security-policy"), "");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_what_nobody_has_answered_yet_is_not_ready() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("database.url", "postgres://127.0.0.1:1/nowhere"),
        (
            "queries.search_users.sql",
            "SELECT 1 AS n WHERE :q LIKE 'x' ESCAPE '!' LIMIT :limit",
        ),
    ])
    .await;
    let since = tokio::time::Instant::now();
    while since.elapsed() < std::time::Duration::from_secs(3) {
        let ready = service.get("/health/ready").await;
        assert_eq!(ready.status, 503, "{}", ready.text());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let one = quiet().await;
    let health = one.health_when(|health| health["checks"]["database"]["status"] == "healthy");
    assert_eq!(health.await["status"], "degraded");
    assert_eq!(
        one.get("/health/ready").await.status,
        200,
        "one source is enough"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_statement_invalidates_what_it_has_made() {
    let redis = crate::harness::redis().await;
    let one = Service::with(&[("redis.url", &redis.url())]).await;
    let table = "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, phone_number TEXT, email TEXT, created_at TEXT)";
    let mut tx = one.app.database().begin().await.unwrap();
    tx.execute(table, &[]).await.unwrap();
    tx.commit().await.unwrap();
    let two = Service::of(one.app.config().clone()).await;
    for service in [&one, &two] {
        service
            .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
            .await;
        let nobody = service.get("/v1/queries/user_by_id?id=1").await.json();
        assert_eq!(nobody["rows"], serde_json::json!([]));
    }
    let person = serde_json::json!({"name": "Ada", "phone_number": "123"});
    let added = one.post("/v1/statements/create_user", &person).await;
    assert_eq!(
        added.json()["rows"],
        serde_json::json!([{"id": 1}]),
        "{}",
        added.text()
    );
    assert_eq!(added.json()["affected"], 1);
    let asked = async |service: &Service| {
        let reply = service.get("/v1/queries/user_by_id?id=1").await;
        reply.json()["rows"][0]["name"] == "Ada"
    };
    assert!(asked(&one).await, "who made it sees it at once");
    let seen = async {
        while !asked(&two).await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let soon = std::time::Duration::from_secs(5);
    assert!(
        tokio::time::timeout(soon, seen).await.is_ok(),
        "the other remembers that it is not there"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_a_statement_that_the_database_refuses_whoever_asks_is_told_in_health() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("statements.make.sql", "INSERT INTO t VALUES (:n)"),
        ("statements.make.params.n.type", "integer"),
    ])
    .await;
    let change = async |sql: &str| {
        let mut tx = service.app.database().begin().await.unwrap();
        tx.execute(sql, &[]).await.unwrap();
        tx.commit().await.unwrap();
    };
    let make = async |n: u64| {
        let body = serde_json::json!({ "n": n });
        service.post("/v1/statements/make", &body).await.status
    };
    let statements = |health: &serde_json::Value| health["checks"]["statements"].clone();
    change("CREATE TABLE t (n INTEGER PRIMARY KEY)").await;
    assert_eq!(make(1).await, 200);
    assert_eq!(make(1).await, 409, "the caller's own fault");
    let health = service.get("/health").await.json();
    assert_eq!(statements(&health)["status"], "healthy", "{health}");
    change("ALTER TABLE t RENAME TO away").await;
    assert_eq!(make(2).await, 503);
    let health = service.get("/health").await.json();
    assert_eq!(statements(&health)["status"], "degraded", "{health}");
    let message = statements(&health)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("`make` was refused"), "{message}");
    change("ALTER TABLE away RENAME TO t").await;
    assert_eq!(make(2).await, 200);
    let health = service.get("/health").await.json();
    assert_eq!(statements(&health)["status"], "healthy", "{health}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_column_that_is_not_returned_undoes_the_statement_that_names_it() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        (
            "statements.make.sql",
            "INSERT INTO t VALUES (7) RETURNING n",
        ),
        ("statements.make.invalidates.keys", "t:{returned.id}"),
    ])
    .await;
    let mut tx = service.app.database().begin().await.unwrap();
    tx.execute("CREATE TABLE t (n INTEGER)", &[]).await.unwrap();
    tx.commit().await.unwrap();
    let made = service
        .post("/v1/statements/make", &serde_json::json!({}))
        .await;
    assert_eq!(made.status, 503, "{}", made.text());
    assert!(made.text().contains("{returned.id}"), "{}", made.text());
    let count = service
        .app
        .database()
        .select("SELECT COUNT(*) AS n FROM t", &[]);
    assert_eq!(count.await.unwrap()[0]["n"], 0);
}
