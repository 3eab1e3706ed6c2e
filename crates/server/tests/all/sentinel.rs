//! A service whose Redis is watched by sentinels.

use steadfast_drill::process::{Redis, RedisBuilder, Watched};
use steadfast_drill::waiting::eventually;

use crate::harness::Service;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_a_service_follows_the_primary_that_sentinels_name_and_tells_what_it_cost() {
    let watched = Watched::start().await.unwrap();
    let service = Service::with(&[("redis.url", &watched.url())]).await;
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    let named = |at: usize| watched.data[at].addr().to_string();
    let redis = service.status()["redis"].clone();
    assert_eq!(redis["sentinel"]["primary"], named(0), "{redis}");
    assert_eq!(redis["sentinel"]["service"], "main");
    let nodes = nodes_when(&service, |nodes| nodes["servers"][1]["lag_bytes"].is_u64()).await;
    let roles = ["servers", "sentinels"].map(|of| nodes[of].clone());
    assert_eq!(nodes["found_by"], "sentinel");
    let [servers, sentinels] = roles;
    assert_eq!(servers[0]["address"], named(0));
    assert_eq!(servers[0]["role"], "primary");
    assert_eq!(servers[1]["address"], named(1));
    assert_eq!(servers[1]["state"], "in_sync");
    assert_eq!(servers[1]["can_take_over"], true);
    assert_eq!(sentinels["each"].as_array().unwrap().len(), 3);
    assert_eq!(sentinels["each"][0]["state"], "agrees");
    assert_eq!(sentinels["each"][0]["names"], named(0));

    // How far the primary is was asked since the service last wrote anything: then nothing is at
    // risk, whatever it says to itself through Redis meanwhile.
    let before = asked(&watched.data[0]).await;
    eventually(
        "the primary is asked its role again and again",
        async || asked(&watched.data[0]).await >= before + 3,
    )
    .await;
    watched.fail_over().await.unwrap();
    let told = async {
        loop {
            let history = service.get("/v1/history").await.json();
            let events = history["events"].as_array().cloned().unwrap_or_default();
            let switch = events.into_iter().find(|one| one["event"] == "failed_over");
            match switch {
                Some(switch) => break switch,
                None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    };
    let told = tokio::time::timeout(crate::harness::PATIENCE, told).await;
    let told = told.expect("a failover is told");
    assert_eq!(
        (&told["from"], &told["to"]),
        (&named(0).into(), &named(1).into())
    );
    assert_eq!(told["history"]["is"], "same", "{told}");
    assert_eq!(told["history"]["at_risk"], 0, "{told}");
    // By one sentinel's word it goes there, and a moment later a majority has confirmed it.
    let health = service
        .health_when(|health| {
            let all = ["redis", "sentinels"].map(|check| health["checks"][check]["status"].clone());
            all.iter().all(|status| status == "healthy")
        })
        .await;
    assert_eq!(health["status"], "healthy", "{health}");
    assert_eq!(service.status()["redis"]["sentinel"]["primary"], named(1));
    // Those of the new primary, and none of the old one's.
    nodes_when(&service, |nodes| {
        nodes["servers"][0]["address"] == named(1)
            && nodes["servers"][1]["address"] == named(0)
            && nodes["servers"][1]["state"] == "in_sync"
            && nodes["servers"].as_array().unwrap().len() == 2
    })
    .await;
    // Of the whole process: services of other tests set them too, so each is looked at again.
    for (name, wanted) in [
        (
            "steadfast_redis_failovers_total{history=\"same\"}",
            1.0..f64::INFINITY,
        ),
        ("steadfast_redis_sentinels{state=\"agrees\"}", 3.0..3.1),
        ("steadfast_redis_sentinels{state=\"silent\"}", 0.0..0.1),
        ("steadfast_redis_replicas{state=\"in_sync\"}", 1.0..1.1),
        ("steadfast_redis_replicas{state=\"away\"}", 0.0..0.1),
        ("steadfast_redis_primary_proof_age_seconds", 0.0..25.0),
        ("steadfast_redis_replica_lag_bytes", 0.0..1e6),
    ] {
        metric_when(&service, name, |value| wanted.contains(&value)).await;
    }
}

async fn metric_when(service: &Service, name: &str, wanted: impl Fn(f64) -> bool) {
    let mut last = None;
    let found = async {
        loop {
            let metrics = service.get("/metrics").await.text();
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            last = line.and_then(|value| value.trim().parse::<f64>().ok());
            if last.is_some_and(&wanted) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(crate::harness::PATIENCE, found).await;
    assert!(found.is_ok(), "{name} is {last:?}");
}

/// How often a server was asked ROLE.
async fn asked(server: &Redis) -> u64 {
    let stats = server.info("commandstats").await.unwrap();
    let role = stats.split("cmdstat_role:calls=").nth(1);
    role.map_or(0, |role| role.split(',').next().unwrap().parse().unwrap())
}

async fn nodes_when(
    service: &Service,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let mut last = serde_json::Value::Null;
    let found = async {
        loop {
            last = service.status()["nodes"].clone();
            if wanted(&last) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(crate::harness::PATIENCE, found).await;
    assert!(found.is_ok(), "never so: {last}");
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t17_sentinels_get_credentials_of_their_own_from_a_file_and_nobody_sees_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sentinel");
    std::fs::write(&path, "not-this-one\n").unwrap();
    let watched = Watched::start_with(|server| server, &["requirepass s3ntinel"]).await;
    let watched = watched.unwrap();
    let service = Service::with(&[
        ("redis.url", &watched.url()),
        ("redis.sentinel.credentials.source", "file"),
        ("redis.sentinel.credentials.user", "default"),
        ("redis.sentinel.credentials.path", path.to_str().unwrap()),
    ])
    .await;
    let refused = service
        .health_when(|health| {
            let message = health["checks"]["redis"]["message"].as_str();
            message.is_some_and(|message| message.contains("WRONGPASS"))
        })
        .await;
    let check = &refused["checks"]["sentinels"];
    assert_eq!(check["status"], "degraded");
    // They are known, though none of them has said anything yet.
    let message = check["message"].as_str().unwrap();
    assert!(
        message.contains("no sentinel of 3 is known to agree"),
        "{check}"
    );
    assert_eq!(service.status()["nodes"]["sentinels"]["voters"], 3);
    // Rotated while it runs: asked again at each connection.
    std::fs::write(&path, "s3ntinel\n").unwrap();
    let healthy = service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    let settings = service.get("/v1/settings").await.text();
    assert!(settings.contains("\"source\":\"file\""), "{settings}");
    for shown in [settings, refused.to_string(), healthy.to_string()] {
        for secret in ["s3ntinel", "not-this-one"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t19_health_says_which_sentinels_are_silent_and_that_writes_wait_for_a_majority() {
    let watched = Watched::start().await.unwrap();
    let service = Service::with(&[
        ("redis.url", &watched.url()),
        ("redis.sentinel.proof", "1s"),
    ])
    .await;
    let well = service
        .health_when(|health| health["checks"]["sentinels"]["status"] == "healthy")
        .await;
    let message = well["checks"]["sentinels"]["message"].as_str().unwrap();
    assert!(message.contains("sentinels name"), "{message}");
    for sentinel in &watched.sentinels[1..] {
        sentinel.kill().await;
    }
    let ill = service
        .health_when(|health| {
            let check = &health["checks"]["sentinels"];
            let message = check["message"].as_str().unwrap_or_default();
            check["status"] == "degraded" && message.contains("writes to Redis are refused")
        })
        .await;
    assert_eq!(ill["checks"]["redis"]["status"], "healthy", "{ill}");
    let message = ill["checks"]["sentinels"]["message"].as_str().unwrap();
    let silent = watched.sentinels[2].addr().to_string();
    assert!(message.contains(&silent), "{message}");
    let nodes = service.status()["nodes"].clone();
    assert_eq!(nodes["sentinels"]["proof_within_ms"], 1000, "{nodes}");
    let each = nodes["sentinels"]["each"].as_array().unwrap();
    let silent = each.iter().filter(|one| one["state"] == "silent").count();
    assert_eq!(silent, 2, "{nodes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t25_a_service_reaches_what_sentinels_announce_by_the_map_of_its_settings() {
    // Sentinels announce what cannot be reached, and the replica to its primary a name, which the
    // sentinels turn into its address.
    let lines = [
        "sentinel announce-ip 203.0.113.9",
        "sentinel resolve-hostnames yes",
    ];
    let named = |server: RedisBuilder| server.config("replica-announce-ip", "localhost");
    let watched = Watched::start_with(named, &lines).await;
    let watched = watched.unwrap();
    let toml = "\n[redis.sentinel.addresses]\n\"203.0.113.9\" = \"127.0.0.1\"\n\"localhost\" = \"127.0.0.1\"\n";
    let service = Service::with_more(toml, &[("redis.url", &watched.url())]).await;
    let nodes = nodes_when(&service, |nodes| {
        let each = nodes["sentinels"]["each"].as_array();
        each.is_some_and(|each| each.iter().all(|one| one["state"] == "agrees"))
    })
    .await;
    // Announced under the other address, they are the same three.
    assert_eq!(nodes["sentinels"]["voters"], 3, "{nodes}");
    let each = nodes["sentinels"]["each"].as_array().unwrap();
    assert_eq!(each.len(), 3, "{nodes}");
    // Nor is the replica there twice: as the primary calls it, and as sentinels do.
    let nodes = nodes_when(&service, |nodes| nodes["servers"][1]["lag_bytes"].is_u64()).await;
    let servers = nodes["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 2, "{nodes}");
    assert_eq!(servers[1]["address"], watched.data[1].addr().to_string());
    assert_eq!(servers[1]["can_take_over"], true, "{nodes}");
}
