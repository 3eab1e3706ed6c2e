//! A service whose Redis is watched by sentinels.

use steadfast_drill::process::Watched;

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
    let health = service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    assert_eq!(health["status"], "healthy", "{health}");
    assert_eq!(service.status()["redis"]["sentinel"]["primary"], named(1));
}
