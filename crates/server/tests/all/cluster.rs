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
    let servers = nodes["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 3, "{nodes}");
    let first = servers.iter().find(|node| node["address"] == named(0));
    let first = first.unwrap_or_else(|| panic!("{nodes}"));
    assert_eq!(first["role"], "primary");
    assert_eq!(first["slots"], "0-5460");
    let metrics = service.get("/metrics").await.text();
    for line in [
        "\nsteadfast_redis_shards{state=\"away\"} ",
        "\nsteadfast_redis_uncovered_slots ",
        "\nsteadfast_redis_cluster_view_age_seconds ",
        "\nsteadfast_redis_discoveries_total ",
    ] {
        assert!(metrics.contains(line), "no {line:?} in\n{metrics}");
    }

    // Whichever it is, those of the others are served as before.
    cluster.node(1).kill().await;
    let away = check_when(&service, |check| check["status"] == "degraded").await;
    let said = away["message"].as_str().unwrap();
    assert!(said.contains("1 of 3 shards do not serve"), "{said}");
    assert!(
        said.contains(&named(1)) && said.contains("slots 5461-10921"),
        "{said}"
    );
    let health = service
        .health_when(|health| health["status"] == "degraded")
        .await;
    assert_ne!(health["checks"]["redis"]["status"], "unhealthy", "{health}");
    cluster.node(1).restart().await.unwrap();
    check_when(&service, |check| check["status"] == "healthy").await;
}
