use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use steadfast_drill::waiting::until;
use steadfast_server::health::{Check, Status};

use crate::harness::{PATIENCE, Service, redis};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_health_tells_each_part_and_ready_holds_without_redis() {
    let redis = redis().await;
    let service = Service::with(&[("redis.url", &redis.url())]).await;
    let health = service
        .health_when(|health| {
            health["checks"]["redis"]["status"] == "healthy"
                && health["checks"]["database"]["latency_ms"].is_number()
        })
        .await;
    for check in ["redis", "database", "breaker", "outbox", "cpu", "memory"] {
        let check = &health["checks"][check];
        assert!(
            check["status"].is_string() && check["message"].is_string(),
            "{health}"
        );
    }
    assert_eq!(service.get("/health/live").await.status, 200);

    redis.kill().await;
    let health = service
        .health_when(|health| health["checks"]["redis"]["status"] == "unhealthy")
        .await;
    assert_eq!(health["status"], "degraded");
    let ready = service.get("/health/ready").await;
    assert_eq!(
        (ready.status.as_u16(), &ready.json()["ready"]),
        (200, &true.into())
    );
    let message = health["checks"]["redis"]["message"].as_str().unwrap();
    assert!(message.contains("is down for"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_redis_is_asked_how_it_is_within_its_time_limit() {
    let redis = redis().await;
    let service = Service::with(&[("redis.url", &redis.url())]).await;
    let health = service
        .health_when(|health| {
            let message = health["checks"]["redis"]["message"].as_str();
            message.is_some_and(|message| message.contains("MiB in use"))
        })
        .await;
    let message = health["checks"]["redis"]["message"].as_str().unwrap();
    assert!(
        message.contains("version ") && message.contains(" clients"),
        "{message}"
    );
    // Nothing answers in a microsecond.
    let hurried =
        Service::with(&[("redis.url", &redis.url()), ("redis.health_timeout", "1us")]).await;
    let health = hurried
        .health_when(|health| {
            let message = health["checks"]["redis"]["message"].as_str();
            message.is_some_and(|message| message.contains("no answer within 1µs"))
        })
        .await;
    assert_eq!(health["checks"]["redis"]["status"], "degraded", "{health}");
    assert_eq!(hurried.get("/health/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_without_redis_and_database_the_service_is_not_ready_but_alive() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("database.url", "postgres://nobody@127.0.0.1:1/nothing"),
    ])
    .await;
    let health = service
        .health_when(|health| health["status"] == "unhealthy")
        .await;
    assert_eq!(health["checks"]["database"]["status"], "unhealthy");
    assert_eq!(service.get("/health/ready").await.status, 503);
    assert_eq!(service.get("/health").await.status, 503);
    assert_eq!(service.get("/health/live").await.status, 200);
    let refused = service.get("/v1/queries/user_by_id?id=1").await;
    assert_eq!(refused.status, 503);
    assert_eq!(
        refused.json()["type"],
        "/problems/unavailable",
        "{}",
        refused.text()
    );
    assert!(!refused.header("retry-after").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_checks_of_an_embedding_program_count() {
    let service = Service::demo().await;
    let check = || -> futures_util::future::BoxFuture<'static, Check> {
        Box::pin(async { Check::new(Status::Unhealthy, "the mill stands still") })
    };
    service.app.register_check("mill", Arc::new(check));
    let health = service
        .health_when(|health| health["status"] == "unhealthy")
        .await;
    assert_eq!(health["checks"]["mill"]["message"], "the mill stands still");
    assert_eq!(service.get("/health/ready").await.status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_a_service_starts_and_serves_without_redis() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("queries.one.sql", "SELECT 1 AS one"),
    ])
    .await;
    let reply = service.get("/v1/queries/one").await;
    assert_eq!(reply.json()["rows"][0]["one"], 1, "{}", reply.text());
    assert_eq!(reply.json()["source"], "database");
    service.ready().await;
    assert_eq!(service.get("/health/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_health_and_what_is_remembered_are_answered_while_redis_is_frozen() {
    let redis = redis().await;
    let service = Service::with(&[
        ("redis.url", &redis.url()),
        ("queries.one.sql", "SELECT 1 AS one"),
    ])
    .await;
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    service.get("/v1/queries/one").await;
    redis.freeze().unwrap();
    let mut slowest = std::time::Duration::ZERO;
    for _ in 0..50 {
        for path in [
            "/health/live",
            "/health/ready",
            "/health",
            "/metrics",
            "/v1/queries/one",
        ] {
            let started = tokio::time::Instant::now();
            assert_eq!(service.get(path).await.status, 200, "{path}");
            slowest = slowest.max(started.elapsed());
        }
    }
    assert!(slowest < std::time::Duration::from_secs(2), "{slowest:?}");
    service
        .health_when(|health| health["checks"]["redis"]["status"] != "healthy")
        .await;
    redis.resume().unwrap();
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_reads_that_fail_are_told_by_health_and_history_though_redis_and_database_are_well() {
    let sql = "SELECT gone FROM renamed WHERE id = :id";
    let service = Service::with(&[
        ("queries.lost.sql", sql),
        ("queries.lost.params.id.type", "integer"),
        ("queries.lost.key", "lost:{id}"),
        ("queries.lost.ttl", "user"),
    ])
    .await;
    for id in 0..20 {
        let answer = service.get(&format!("/v1/queries/lost?id={id}")).await;
        assert_eq!(answer.status, 503);
    }
    let health = service
        .health_when(|health| health["checks"]["reads"]["status"] == "degraded")
        .await;
    assert_eq!(
        health["checks"]["database"]["status"], "healthy",
        "{health}"
    );
    assert_eq!(health["status"], "degraded", "{health}");
    let message = health["checks"]["reads"]["message"].as_str().unwrap();
    assert!(
        message.contains("100 % of reads") && message.contains("`lost`"),
        "{message}"
    );
    let history = service.get("/v1/history").await.text();
    assert!(history.contains("reads_failing"), "{history}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_a_connection_that_flaps_is_a_state_and_one_entry_that_grows() {
    let redis = redis().await;
    let service = Service::with(&[("redis.url", &redis.url())]).await;
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    let lose = async |times: u64| {
        let client = service.app.client();
        for _ in 0..times {
            let before = client.status().reconnects;
            let back = async {
                while client.status().reconnects == before {
                    let _ = redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(PATIENCE, back).await.unwrap();
        }
    };
    let known = async |part: &str| {
        let history = service.get("/v1/history").await.json();
        let events = history["events"].as_array().unwrap().clone();
        events.iter().filter(|event| event["event"] == part).count()
    };
    lose(10).await;
    assert_eq!(service.status()["redis"]["flapping"], Json::Null);
    lose(1).await;
    let health = service
        .health_when(|health| {
            let message = health["checks"]["redis"]["message"].as_str().unwrap();
            message.contains("flapping: reconnected 11 times since ")
        })
        .await;
    assert_eq!(health["checks"]["redis"]["status"], "degraded");
    assert_eq!(health["status"], "degraded");
    let metrics = service.get("/metrics").await.text();
    assert!(metrics.contains("\nsteadfast_redis_flapping 1\n"));
    lose(20).await;
    let told = async {
        // Within a second of it, so that a page hears of it too.
        while known("flapping").await == 0
            || service.status()["outages"][0]["times"].as_u64() < Some(31)
        {
            lose(1).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    let counts = (
        known("flapping").await,
        known("lost").await,
        known("connected").await,
    );
    assert_eq!(
        counts,
        (1, 0, 1),
        "{}",
        service.get("/v1/history").await.text()
    );
    let status = service.status();
    let outages = status["outages"].as_array().unwrap();
    assert_eq!(
        (outages.len(), &outages[0]["flapping"]),
        (1, &true.into()),
        "{outages:?}"
    );
    assert!(status["redis"]["flapping"]["reconnects"].as_u64() >= Some(31));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_a_frozen_redis_that_wakes_ends_its_outage() {
    let redis = redis().await;
    let service = Service::with(&[("redis.url", &redis.url())]).await;
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    redis.freeze().unwrap();
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "unhealthy")
        .await;
    let lasting = service.status()["outages"][0].clone();
    assert_eq!(lasting["ended_ms"], Json::Null, "{lasting}");
    redis.resume().unwrap();
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    until("the outage is over", || {
        !service.status()["outages"][0]["ended_ms"].is_null()
    })
    .await;
}
