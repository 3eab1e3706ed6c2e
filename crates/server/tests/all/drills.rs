use serde_json::{Value as Json, json};

use crate::harness::{PATIENCE, Service};

/// Two seconds: long enough to break something and to come back.
const SHORT: &str = r#"
name = "short"
about = "Redis is killed for half a second"
[load]
rate = 200
keys = 50
[phases]
warm_up = "300ms"
baseline = "700ms"
fault = "500ms"
recovery = "1s"
recovered = "700ms"
[thresholds]
slowest = "5s"
recovery = "5s"
[[steps]]
fault = "crash"
"#;

async fn over(service: &Service, id: &Json) -> Json {
    let path = format!("/v1/drills/{id}");
    let waiting = async {
        loop {
            let drill = service.get(&path).await.json();
            if drill["state"] != "running" {
                return drill;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_a_drill_is_started_watched_and_read() {
    let service = Service::demo().await;
    let offered = service.get("/v1/drills").await.json();
    assert_eq!(offered["enabled"], true);
    let names: Vec<&str> = offered["scenarios"]
        .as_array()
        .unwrap()
        .iter()
        .map(|scenario| scenario["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"crash") && names.contains(&"loop"),
        "{names:?}"
    );

    let order = json!({"toml": SHORT, "control": true, "hand_built": true, "seed": 7});
    let started = service.post("/v1/drills", &order).await;
    assert_eq!(started.status, 202, "{}", started.text());
    let id = started.json()["id"].clone();
    let second = service.post("/v1/drills", &order).await;
    assert_eq!(
        (second.status.as_u16(), &second.json()["type"]),
        (409, &json!("/problems/conflict"))
    );

    // The stream ends with the drill, and its last event is the verdict.
    let events = service.get(&format!("/v1/drills/{id}/events")).await.text();
    assert!(events.contains("event: tick\n"), "{events}");
    assert!(
        events.trim_end().lines().rev().nth(1).unwrap() == "event: over",
        "{events}"
    );

    let drill = over(&service, &id).await;
    assert!(
        ["passed", "failed"].contains(&drill["state"].as_str().unwrap()),
        "{drill}"
    );
    let report = service.get(&format!("/v1/drills/{id}/report")).await.json();
    assert_eq!(report["scenario"], "short");
    assert_eq!(report["seed"], 7);
    for beside in ["control", "hand_built"] {
        assert_eq!(drill[beside], true, "{drill}");
        assert_eq!(report[beside]["scenario"], "short", "{beside}: {report}");
        assert!(
            drill["progress"][beside]["calls"].as_u64() > Some(0),
            "{drill}"
        );
    }
    let wrong: u64 = report["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| phase["wrong"].as_u64().unwrap())
        .sum();
    assert_eq!(wrong, 0, "{report}");
    let page = service
        .get(&format!("/v1/drills/{id}/report?format=html"))
        .await;
    assert!(page.text().contains("<svg"));
    assert!(
        page.header("content-security-policy")
            .starts_with("sandbox allow-scripts; default-src 'none'")
    );
    assert_eq!(
        service
            .get(&format!("/v1/drills/{id}/report?format=pdf"))
            .await
            .status,
        400
    );
    let listed = service.get("/v1/drills").await.json();
    assert_eq!(listed["drills"][0]["id"], id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_a_drill_that_is_stopped_takes_everything_down() {
    let service = Service::demo().await;
    let started = service
        .post("/v1/drills", &json!({"scenario": "restart-45s"}))
        .await;
    let id = started.json()["id"].clone();
    let request = hyper::Request::delete(service.url(&format!("/v1/drills/{id}")));
    let stopped = service
        .send(request.body(Default::default()).unwrap())
        .await;
    assert_eq!(stopped.json()["state"], "stopped", "{}", stopped.text());
    let report = service.get(&format!("/v1/drills/{id}/report")).await;
    assert_eq!(report.status, 409);
    let again = service.post("/v1/drills", &json!({"toml": SHORT})).await;
    assert_eq!(again.status, 202, "{}", again.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_a_wrong_order_is_refused_and_drills_are_off_unless_asked_for() {
    let service = Service::demo().await;
    for (order, status) in [
        (json!({}), 400),
        (json!({"scenario": "no-such"}), 404),
        (json!({"scenario": "crash", "toml": "x"}), 400),
        (json!({"toml": "name = 1"}), 400),
        (json!({"scenario": "loop", "calls": 0}), 400),
        (json!({"scenario": "loop", "calls": u64::MAX}), 400),
        (json!({"scenario": "crash", "colour": "red"}), 400),
    ] {
        let refused = service.post("/v1/drills", &order).await;
        assert_eq!(
            refused.status.as_u16(),
            status,
            "{order}: {}",
            refused.text()
        );
    }
    assert_eq!(service.get("/v1/drills/1").await.status, 404);
    assert_eq!(service.get("/v1/drills/x/report").await.status, 404);

    let off = Service::with(&[("redis.url", "redis://127.0.0.1:1")]).await;
    let refused = off.post("/v1/drills", &json!({"scenario": "crash"})).await;
    assert_eq!(refused.json()["type"], "/problems/forbidden");
    assert_eq!(off.get("/v1/drills").await.json()["enabled"], false);
}

/// Every line of the metrics that a drill would change if it counted among the service's own, and
/// that does not change by itself.
fn counted(metrics: &str) -> Vec<String> {
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("cache_") || line.starts_with("steadfast_client_"))
        // Each look at the outbox asks Redis, too.
        .filter(|line| !line.starts_with("cache_redis_answers_total"));
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_a_drill_is_not_counted_among_the_service_s_own() {
    let service = Service::demo().await;
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    service.get("/v1/queries/search_users?q=ada").await;
    let settled = async {
        loop {
            let first = counted(&service.get("/metrics").await.text());
            tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
            if first == counted(&service.get("/metrics").await.text()) {
                return first;
            }
        }
    };
    let before = tokio::time::timeout(PATIENCE, settled).await.unwrap();
    assert!(before.len() > 20, "{before:#?}");
    let started = service.post("/v1/drills", &json!({"toml": SHORT})).await;
    let drill = over(&service, &started.json()["id"]).await;
    assert!(
        drill["progress"]["subject"]["calls"].as_u64() > Some(300),
        "{drill}"
    );
    assert_eq!(counted(&service.get("/metrics").await.text()), before);
}
