//! A service whose Redis is a cluster.

use serde_json::Value;
use steadfast_drill::process::Cluster;
use steadfast_drill::waiting::eventually;

use crate::harness::Service;
use crate::metrics::OF_CLUSTER;

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
    let line = "\nsteadfast_redis_shards{state=\"away\"} ";
    assert!(metrics.contains(line), "no {line:?} in\n{metrics}");

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
    cluster.well().await.unwrap();
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
    cluster.well().await.unwrap();
    check_when(&service, |check| check["status"] == "healthy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t24_a_service_whose_client_reads_from_replicas_says_who_served_and_how_old_they_are() {
    let cluster = Cluster::start().await.unwrap();
    let service = Service::with(&[
        ("redis.url", &cluster.url()),
        ("redis.cluster.read_from", "replicas"),
        ("redis.cluster.max_lag", "10s"),
        ("redis.deadline", "20s"),
    ])
    .await;
    let said = |check: &Value| check["message"].as_str().unwrap_or_default().to_owned();
    let nothing = |check: &Value| said(check).contains("nothing was read yet");
    check_when(&service, |check| {
        check["status"] == "healthy" && nothing(check)
    })
    .await;

    let client = service.app.client().clone();
    let set = redis::cmd("SET").arg("seen").arg(1).to_owned();
    client.send(&set).await.unwrap();
    let get = redis::cmd("GET").arg("seen").to_owned();
    let reads = || service.status()["nodes"]["shards"]["from_replicas"].clone();
    eventually("a replica serves", async || {
        let found: i64 = redis::from_redis_value(client.send(&get).await.unwrap()).unwrap();
        assert_eq!(found, 1);
        reads()["served"].as_u64() > Some(0)
    })
    .await;
    let reading = reads();
    assert_eq!(reading["max_lag_ms"], 10_000);
    assert_eq!(reading["replicas"], 3);
    assert!(reading["fit"].as_u64() > Some(0), "{reading}");
    let servers = service.status()["nodes"]["servers"].clone();
    let mut servers = servers.as_array().unwrap().iter();
    assert!(servers.any(|one| one["role"] == "replica" && one["lag_ms"].is_number()));
    check_when(&service, |check| {
        said(check).contains("fit to be read from; they served")
    })
    .await;
    let metrics = service.get("/metrics").await.text();
    for name in OF_CLUSTER {
        let is_there = |end: &str| metrics.contains(&format!("\n{name}{end}"));
        assert!(is_there("{") || is_there(" "), "no {name} in\n{metrics}");
    }
    let node = cluster.node(0).addr();
    let line = format!("steadfast_redis_node_replies_total{{server_address=\"{node}\"}} ");
    assert!(metrics.contains(&line), "no {line} in\n{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_an_outage_of_a_cluster_is_over_when_a_replica_has_taken_over() {
    let cluster = Cluster::start().await.unwrap();
    let service = Service::with(&[("redis.url", &cluster.url())]).await;
    check_when(&service, |check| check["status"] == "healthy").await;
    // Each of them, so that the service asks of each node that it is asked for.
    let client = service.app.client().clone();
    eventually("all shards are connected to", async || {
        let mut answered = 0;
        for key in 0..32 {
            let get = redis::cmd("GET").arg(key).to_owned();
            answered += usize::from(client.send(&get).await.is_ok());
        }
        answered == 32
    })
    .await;
    let of_redis = || {
        let outages = service.status()["outages"].clone();
        let outages = outages.as_array().unwrap().iter();
        let of_redis = outages.filter(|outage| outage["of"] == "redis");
        of_redis.cloned().collect::<Vec<_>>()
    };
    cluster.node(0).kill().await;
    steadfast_drill::waiting::until("the outage begins", || !of_redis().is_empty()).await;
    steadfast_drill::waiting::until("a replica takes over, and it is over", || {
        of_redis()
            .iter()
            .all(|outage| outage["ended_ms"].is_number())
    })
    .await;
    // The dead node is nobody's loss from now on.
    let told = of_redis();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(of_redis(), told);
}
