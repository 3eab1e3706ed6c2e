use std::sync::Arc;

use steadfast_drill::waiting::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{PATIENCE, Service};

/// Counts for about a second, which no cache shortens the first time.
const SLOW: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) AS n FROM n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_past_the_bound_a_request_is_refused_at_once_and_health_still_answers() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.concurrency", "1"),
        ("queries.slow.sql", SLOW),
    ])
    .await;
    service.ready().await;
    let service = Arc::new(service);
    let slow = {
        let service = service.clone();
        tokio::spawn(async move { service.get("/v1/queries/slow").await })
    };
    // Not sooner: who came before it would have the one place, and the slow one be refused.
    while service.app.cache().status().guard.running == 0 {
        tokio::task::yield_now().await;
    }
    let refused = service.get("/v1/settings").await;
    assert_eq!(
        refused.json()["type"],
        "/problems/overloaded",
        "{}",
        refused.text()
    );
    assert_eq!(refused.header("retry-after"), "1");
    for path in ["/health/live", "/health", "/metrics"] {
        assert_eq!(service.get(path).await.status, 200, "{path}");
    }
    assert_eq!(slow.await.unwrap().status, 200);
    assert_eq!(
        service.get("/v1/settings").await.status,
        200,
        "the place is free again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_a_request_that_takes_too_long_is_ended() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.request_timeout", "50ms"),
        ("queries.slow.sql", SLOW),
    ])
    .await;
    let late = service.get("/v1/queries/slow").await;
    assert_eq!(
        (late.status.as_u16(), &late.json()["type"]),
        (504, &"/problems/timeout".into())
    );
}

/// Asked for again where the machine is too busy to answer within the limit that the test sets.
async fn metrics(service: &Service) -> String {
    loop {
        let reply = service.get("/metrics").await;
        if reply.status == 200 {
            return reply.text();
        }
        assert_eq!(reply.status, 504, "{}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_what_takes_too_long_is_counted_as_that_and_what_is_given_up_as_given_up() {
    let slow = SLOW.replace("count(*) AS n", "'late', count(*)");
    let write = format!("INSERT INTO steadfast_outbox_state {slow}");
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.request_timeout", "200ms"),
        ("queries.late.sql", SLOW),
        ("statements.late.sql", &write),
    ])
    .await;
    assert_eq!(service.get("/v1/queries/late").await.status, 504);
    let nothing = serde_json::json!({});
    let wrote = service.post("/v1/statements/late", &nothing).await;
    assert_eq!(wrote.status, 504);
    let text = metrics(&service).await;
    for line in [
        "steadfast_read_errors_total{query=\"late\",error_type=\"timeout\"} 1",
        "steadfast_read_errors_total{query=\"late\",error_type=\"abandoned\"} 0",
        "steadfast_writes_total{statement=\"late\",outcome=\"timeout\"} 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }

    let gives_up = async {
        loop {
            let mut caller = tokio::net::TcpStream::connect(service.addr).await.unwrap();
            let request = b"POST /v1/statements/late HTTP/1.1\r\nhost: localhost\r\n\
                            content-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            caller.write_all(request).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            drop(caller);
            let text = metrics(&service).await;
            let line = "steadfast_writes_total{statement=\"late\",outcome=\"abandoned\"} ";
            if !text.contains(&format!("{line}0")) {
                assert!(text.contains(line), "{text}");
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, gives_up).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_who_does_not_say_what_it_wants_is_hung_up_on() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.header_timeout", "200ms"),
    ])
    .await;
    for words in [
        &b""[..],
        b"GET / HTT",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n",
        b"\x16\x03\x01 not http",
    ] {
        let mut stream = tokio::net::TcpStream::connect(service.addr).await.unwrap();
        stream.write_all(words).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{words:?} holds its connection for ever");
    }
    assert_eq!(service.get("/health/live").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_event_streams_are_bounded() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.subscribers", "1"),
    ])
    .await;
    let mut first = tokio::net::TcpStream::connect(service.addr).await.unwrap();
    first
        .write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 15];
    first.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let second = service.get("/v1/events").await;
    assert_eq!(second.json()["type"], "/problems/overloaded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_health_is_reached_while_every_connection_is_taken() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.connections", "2"),
        ("limits.header_timeout", "1h"),
    ])
    .await;
    service.ready().await;
    let connect = || tokio::net::TcpStream::connect(service.addr);
    let holders = [connect().await.unwrap(), connect().await.unwrap()];
    for path in ["/health/live", "/health/ready", "/health", "/metrics"] {
        let reply = service.get(path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.header("connection"), "close", "{path}");
    }
    for path in ["/v1/settings", "/v1/events", "/"] {
        let reply = service.get(path).await;
        assert_eq!(reply.status, 503, "{path}");
        assert_eq!(reply.json()["type"], "/problems/overloaded");
        assert_eq!(reply.header("retry-after"), "1");
    }

    // Who takes the spare places to say nothing on them holds up nobody for long.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(connect().await.unwrap());
    }
    assert_eq!(service.get("/health/live").await.status, 200);

    drop(holders);
    eventually("there is room again", async || {
        service.get("/v1/settings").await.status == 200
    })
    .await;
}

/// On one thread: a place is free before its holder can hear that his connection was closed.
#[tokio::test]
async fn s3_who_comes_first_to_a_place_that_is_free_again_is_answered() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.connections", "1"),
        ("limits.header_timeout", "1h"),
    ])
    .await;
    let mut holder = tokio::net::TcpStream::connect(service.addr).await.unwrap();
    assert_eq!(service.get("/v1/settings").await.status, 503);
    let last = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    holder.write_all(last).await.unwrap();
    let mut answer = Vec::new();
    holder.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    assert_eq!(service.get("/v1/settings").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_a_class_with_bounds_of_its_own_is_refused_while_others_are_answered() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("ttl.report.guard.rate", "0.1"),
        ("queries.report.sql", "SELECT :n AS n"),
        ("queries.report.params.n.type", "integer"),
        ("queries.report.ttl", "report"),
        ("queries.other.sql", "SELECT :n AS n"),
        ("queries.other.params.n.type", "integer"),
    ])
    .await;
    assert_eq!(service.get("/v1/queries/report?n=1").await.status, 200);
    let refused = service.get("/v1/queries/report?n=2").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["type"], "/problems/overloaded");
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    let named = "the class `report` is asked for as much as it may be: 0.1 loads a second by `ttl.report.guard.rate`";
    assert!(detail.starts_with(named), "{detail}");
    assert_ne!(refused.header("retry-after"), "");
    for n in 1..10 {
        let path = format!("/v1/queries/other?n={n}");
        assert_eq!(service.get(&path).await.status, 200);
    }
    // What is held is answered whatever the bound.
    assert_eq!(service.get("/v1/queries/report?n=1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_a_class_with_one_place_is_refused_while_it_is_taken() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("ttl.report.hard_limit", "1h"),
        ("ttl.report.guard.concurrency", "1"),
        ("queries.report.sql", "SELECT 1 AS n"),
        ("queries.report.ttl", "report"),
        ("queries.other.sql", "SELECT 2 AS n"),
    ])
    .await;
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let cache = service.app.cache().clone();
    let busy = tokio::spawn(async move {
        let load = move || async move {
            released.await.unwrap();
            Ok(None)
        };
        cache
            .view_of_bytes("report")
            .unwrap()
            .get("busy", load)
            .await
    });
    while service.app.cache().status().guard.running == 0 {
        tokio::task::yield_now().await;
    }
    let refused = service.get("/v1/queries/report").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    let named = "the class `report` is asked for as much as it may be: 1 load at once by `ttl.report.guard.concurrency`";
    assert!(detail.starts_with(named), "{detail}");
    assert_eq!(service.get("/v1/queries/other").await.status, 200);
    release.send(()).unwrap();
    assert!(busy.await.unwrap().is_ok());
    assert_eq!(service.get("/v1/queries/report").await.status, 200);
}
