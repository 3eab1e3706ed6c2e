use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use steadfast_server::Served;

use crate::harness::{PATIENCE, Service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_no_request_that_was_accepted_fails_while_the_service_drains() {
    // Counts for about a second, and longer than the drain delay.
    let slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) AS n FROM n";
    let service = Service::with(&[
        ("server.drain_delay", "200ms"),
        ("redis.url", "redis://127.0.0.1:1"),
        ("queries.slow.sql", slow),
    ])
    .await;
    let service = Arc::new(service);
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (service, answered) = (service.clone(), answered.clone());
            // As a load balancer does: it sends requests until it hears that it should not.
            tokio::spawn(async move {
                while ask(tokio::net::TcpStream::connect(service.addr).await.unwrap()).await {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    while answered.load(Ordering::Relaxed) < 100 {
        tokio::task::yield_now().await;
    }
    let slow = service.clone();
    let slow = tokio::spawn(async move { slow.get("/v1/queries/slow").await });
    while service.app.status()["service"]["in_flight"].as_u64() < Some(1) {
        tokio::task::yield_now().await;
    }
    service.shutdown.begin();
    for caller in callers {
        tokio::time::timeout(PATIENCE, caller)
            .await
            .unwrap()
            .unwrap();
    }
    let slow = tokio::time::timeout(PATIENCE, slow).await.unwrap().unwrap();
    assert_eq!(slow.json()["rows"][0]["n"], 3_000_000, "{}", slow.text());
    assert_eq!(slow.header("connection"), "close");
    let service = Arc::into_inner(service).unwrap();
    let served = tokio::time::timeout(PATIENCE, service.serving)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(served, Served::Drained);
}

/// Asks for readiness over `stream`; an answer that breaks off fails the test.
async fn ask(mut stream: tokio::net::TcpStream) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let request = b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("\"phase\""),
        "an accepted request must be answered: {answer:?}"
    );
    answer.starts_with("HTTP/1.1 200")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_a_service_told_not_to_wait_does_not() {
    let service = Service::with(&[
        ("server.drain_delay", "1h"),
        ("redis.url", "redis://127.0.0.1:1"),
    ])
    .await;
    service.shutdown.begin();
    service.shutdown.force();
    let served = tokio::time::timeout(Duration::from_secs(10), service.serving)
        .await
        .unwrap();
    assert_eq!(served.unwrap(), Served::Forced);
}
