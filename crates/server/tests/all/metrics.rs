use crate::harness::Service;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_metrics_have_the_names_of_a_database_client() {
    let service = Service::demo().await;
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    for _ in 0..3 {
        service.get("/v1/queries/search_users?q=hopper").await;
    }
    service.get("/v1/queries/search_users").await;
    let reply = service.get("/metrics").await;
    assert!(
        reply
            .header("content-type")
            .starts_with("text/plain; version=0.0.4")
    );
    let text = reply.text();
    for line in [
        "db_client_operation_duration_seconds_count",
        "steadfast_reads_total{query=\"search_users\",source=\"memory\",stale=\"false\"}",
        "http_server_request_duration_seconds_bucket{http_request_method=\"GET\",http_route=\"/v1/queries/{name}\",http_response_status_code=\"200\",le=\"0.001\"}",
        "http_response_status_code=\"400\"",
        "steadfast_ready 1",
        "steadfast_redis_state{state=\"ready\"} 1",
        "steadfast_breaker_state{state=\"closed\"} 1",
        "process_memory_usage_bytes",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(
        !text.contains("hopper"),
        "no value of a caller becomes a label"
    );
}
