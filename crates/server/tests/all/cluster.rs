//! A service whose Redis is a cluster.

use serde_json::Value;
use steadfast_drill::process::Cluster;

use crate::harness::Service;

async fn check_when(service: &Service, wanted: impl Fn(&Value) -> bool) -> Value {
    let health = service
        .health_when(|health| wanted(&health["checks"]["shards"]))
        .await;
    health["checks"]["shards"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_a_service_tells_of_each_shard_and_one_that_is_away_only_degrades_it() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let service = Service::with(&[("redis.url", &cluster.url())]).await;
    let well = check_when(&service, |check| check["status"] == "healthy").await;
    let said = well["message"].as_str().unwrap();
    assert!(said.contains("3 shards own all slots and serve"), "{said}");
    let named = |at: usize| cluster.node(at).addr().to_string();
    assert!(
        said.contains("without a replica") && said.contains(&named(2)),
        "{said}"
    );

    let nodes = service.status()["nodes"].clone();
    assert_eq!(nodes["found_by"], "cluster");
    assert_eq!(nodes["shards"]["uncovered"], "");
    let slot = nodes["shards"]["cache_slot"].as_u64().unwrap();
    assert_eq!(nodes["shards"]["cache_away"], false);
    let servers = nodes["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 3, "{nodes}");
    let first = servers.iter().find(|node| node["address"] == named(0));
    let first = first.unwrap_or_else(|| panic!("{nodes}"));
    assert_eq!(first["role"], "primary");
    assert_eq!(first["slots"], "0-5460");
    let metrics = service.get("/metrics").await.text();
    for line in [
        "\nsteadfast_redis_shards{state=\"away\"} ",
        "\nsteadfast_redis_shards_without_replica ",
        "\nsteadfast_redis_uncovered_slots ",
        "\nsteadfast_redis_cluster_view_age_seconds ",
        "\nsteadfast_redis_discoveries_total ",
    ] {
        assert!(metrics.contains(line), "no {line:?} in\n{metrics}");
    }

    // Whichever it is, those of the others are served as before, and it is the cache's or not.
    cluster.node(1).kill().await;
    let away = check_when(&service, |check| check["status"] == "degraded").await;
    let said = away["message"].as_str().unwrap();
    assert!(said.contains("1 of 3 shards do not serve"), "{said}");
    assert!(
        said.contains(&named(1)) && said.contains("slots 5461-10921"),
        "{said}"
    );
    let cache = match (5461..=10921).contains(&slot) {
        true => format!("the cache's shard (slot {slot}) is away"),
        false => format!("the cache (slot {slot}) is not concerned"),
    };
    assert!(said.contains("all other keys are served"), "{said}");
    assert!(said.contains(&cache), "{said}");
    let health = service
        .health_when(|health| health["status"] == "degraded")
        .await;
    assert_ne!(health["checks"]["redis"]["status"], "unhealthy", "{health}");
    cluster.node(1).restart().await.unwrap();
    check_when(&service, |check| check["status"] == "healthy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_when_all_nodes_refuse_all_keys_for_one_shard_nobody_says_that_others_are_served() {
    let builder = Cluster::builder().replicas(0).require_full_coverage(true);
    let cluster = builder.start().await.unwrap();
    let service = Service::with(&[("redis.url", &cluster.url())]).await;
    check_when(&service, |check| check["status"] == "healthy").await;
    cluster.node(1).kill().await;
    let said = |check: &Value| check["message"].as_str().unwrap_or_default().to_owned();
    let refused = |check: &Value| said(check).contains("no node tells who owns which slot");
    let check = check_when(&service, refused).await;
    assert_eq!(check["status"], "degraded");
    assert!(!said(&check).contains("other keys are served"), "{check}");
    assert!(said(&check).contains("last heard"), "{check}");
    cluster.node(1).restart().await.unwrap();
    check_when(&service, |check| check["status"] == "healthy").await;
}
