use steadfast_drill::waiting::{eventually, until};
use steadfast_server::auth::{Role, TokenSpec, issue};

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
        "cache_epochs_total 0",
        "steadfast_reads_failing 0",
        "steadfast_redis_flapping 0",
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_a_call_whose_caller_gave_up_is_counted_as_one_that_failed() {
    use tokio::io::AsyncWriteExt;
    let slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) AS n FROM n";
    let settings = [
        ("redis.url", "redis://127.0.0.1:1"),
        ("queries.slow.sql", slow),
    ];
    let service = Service::with(&settings).await;
    let mut caller = tokio::net::TcpStream::connect(service.addr).await.unwrap();
    caller
        .write_all(b"GET /v1/queries/slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    until("the query is under way", || {
        service.status()["cache"]["flights"].as_u64() >= Some(1)
    })
    .await;
    drop(caller);
    eventually("it is told", async || {
        let text = service.get("/metrics").await.text();
        // Of the whole process, so of other tests too: how many is not known.
        let wanted = [
            "steadfast_read_errors_total{query=\"slow\",error_type=\"abandoned\"} 1",
            "http_route=\"/v1/queries/{name}\",http_response_status_code=\"499\"} ",
        ];
        wanted.iter().all(|line| text.contains(line))
    })
    .await;
    assert_eq!(service.status()["reads"]["failed"], 1);
}

/// The names of metrics in a PromQL expression: what is left once labels, groupings and functions
/// are taken away.
fn names(expression: &str) -> Vec<String> {
    let mut bare = String::new();
    let mut depth = 0_usize;
    let mut quoted = false;
    for c in expression.chars() {
        match c {
            '"' => quoted = !quoted,
            '{' | '[' if !quoted => depth += 1,
            '}' | ']' if !quoted => depth -= 1,
            _ if depth == 0 && !quoted => bare.push(c),
            _ => {}
        }
    }
    for grouping in ["by", "without"] {
        while let Some(start) = bare.find(&format!("{grouping} (")) {
            let end = start + bare[start..].find(')').unwrap();
            bare.replace_range(start..=end, "");
        }
    }
    bare.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.contains('_') && !word.contains(':') && *word != "histogram_quantile")
        .map(str::to_owned)
        .collect()
}

#[test]
fn only_metrics_count_as_names_of_metrics() {
    let expression = "histogram_quantile(0.9, sum by (le, db_name) (rate(a_b{c_d=\"e_{f}\",g=~\"$h\"}[5m]))) > x_y * 0.5 and r:e_c:5m > 1";
    assert_eq!(names(expression), ["a_b", "x_y"]);
}

/// Exported where `[server.tls]`, `[redis.credentials]` or `[auth]` is set, or sentinels watch
/// Redis, and seen there by the tests of those.
const SET_UP: [&str; 7] = [
    "steadfast_redis_sentinels",
    "steadfast_redis_primary_proof_age_seconds",
    "steadfast_redis_replicas",
    "steadfast_redis_replica_lag_bytes",
    "steadfast_tls_certificate_expiry_seconds",
    "steadfast_credentials_expiry_seconds",
    "steadfast_audit_lost_total",
];

/// Exported where Redis is a cluster, and its replicas are read from: seen by a test of
/// [`crate::cluster`], which asks for just these.
pub(crate) const OF_CLUSTER: [&str; 11] = [
    "steadfast_redis_shards",
    "steadfast_redis_shards_without_replica",
    "steadfast_redis_uncovered_slots",
    "steadfast_redis_cluster_view_age_seconds",
    "steadfast_redis_discoveries_total",
    "steadfast_redis_redirects_total",
    "steadfast_redis_node_replies_total",
    "steadfast_redis_node_reconnects_total",
    "steadfast_client_replica_reads_total",
    "steadfast_redis_readable_replicas",
    "steadfast_redis_replica_lag_seconds",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_each_metric_that_the_dashboard_and_the_alerts_name_is_exported() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
    let rules = std::fs::read_to_string(format!("{root}/prometheus/rules.yml")).unwrap();
    let dashboard = std::fs::read_to_string(format!("{root}/grafana/steadfast.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let mut expressions: Vec<String> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .map(str::to_owned)
        .collect();
    assert!(expressions.len() > 15);
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            expressions.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    assert!(expressions.len() > 50);

    let service = Service::demo().await;
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    service.get("/v1/queries/search_users?q=hopper").await;
    let exported = service.get("/metrics").await.text();
    for name in OF_CLUSTER {
        let named = expressions
            .iter()
            .any(|it| names(it).iter().any(|one| one == name));
        assert!(named, "no panel or alert shows {name}");
    }
    for expression in expressions {
        let names = names(&expression);
        assert!(
            !names.is_empty() || expression.contains("steadfast:"),
            "{expression}"
        );
        let elsewhere = [&SET_UP[..], &OF_CLUSTER[..]].concat();
        for name in names
            .iter()
            .filter(|name| !elsewhere.contains(&name.as_str()))
        {
            let line = |end: &str| exported.contains(&format!("\n{name}{end}"));
            assert!(
                line("{") || line(" "),
                "{name}, in {expression}, is not exported"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_the_guide_explains_each_metric_that_is_exported() {
    let guide = include_str!("../../../../docs/operations.md");
    let service = Service::demo().await;
    service.get("/v1/queries/search_users?q=hopper").await;
    let exported = service.get("/metrics").await.text();
    let mut names = 0;
    for line in exported
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
    {
        let name = line.split(' ').next().unwrap();
        let row = guide.lines().any(|row| {
            row.starts_with("| `")
                && (row.contains(&format!("`{name}`")) || row.contains(&format!("`{name}{{")))
        });
        assert!(row, "docs/operations.md does not explain {name}");
        names += 1;
    }
    assert!(names > 30, "only {names}");
}

#[tokio::test]
async fn s4_a_counter_begins_at_zero_so_that_its_first_event_is_a_rise() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("limits.rate.each.requests", "1000"),
        ("auth.issuer", "us"),
        ("auth.audience", "steadfast"),
        ("auth.audit", "off"),
        ("auth.keys.dev.algorithm", "HS256"),
        ("auth.keys.dev.secret", "0123456789abcdef0123456789abcdef"),
    ])
    .await;
    let order = TokenSpec {
        subject: "ada",
        role: Role::Viewer,
        lifetime: std::time::Duration::from_secs(60),
        key: None,
        private_key: None,
        now: jsonwebtoken::get_current_timestamp(),
    };
    let token = issue(service.app.config().auth.as_ref().unwrap(), &order).unwrap();
    let bearer = format!("Bearer {}", secrecy::ExposeSecret::expose_secret(&token));
    let text = service
        .get_with("/metrics", &[("authorization", &bearer)])
        .await
        .text();
    for line in [
        "steadfast_audit_lost_total 0",
        "steadfast_audit_suppressed_total 0",
        "steadfast_log_lost_total 0",
        "steadfast_stalled_callers_total 0",
        "steadfast_auth_refused_total{reason=\"role\"} 0",
        "steadfast_auth_refused_total{reason=\"unknown_key\"} 0",
        "steadfast_rate_limited_total{limit=\"each\"} 0",
        "steadfast_rate_limit_uncounted_total{limit=\"each\"} 0",
        "steadfast_client_connection_events_total{event=\"stuck_reset\"} 0",
        "steadfast_client_connection_events_total{event=\"flapping\"} 0",
        "steadfast_client_errors_total{kind=\"lost\",certainty=\"unknown\"} 0",
        "steadfast_client_errors_total{kind=\"overloaded\",certainty=\"not_sent\"} 0",
        "steadfast_client_retries_total 0",
        "steadfast_redis_failovers_total{history=\"forked\"} 0",
        "steadfast_redis_writes_at_risk_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}
