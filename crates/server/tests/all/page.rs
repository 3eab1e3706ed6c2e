use crate::harness::Service;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_the_page_is_whole_and_asks_nobody_else() {
    let service = Service::demo().await;
    let page = service.get("/").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let html = page.text();
    let mut files = 0;
    for attribute in ["src=\"", "href=\""] {
        for part in html.split(attribute).skip(1) {
            let address = part.split('"').next().unwrap();
            if address.starts_with('#') {
                continue;
            }
            assert!(
                address.starts_with('/') && !address.starts_with("//"),
                "{address}"
            );
            let file = service.get(address).await;
            assert_eq!(file.status, 200, "{address}");
            files += 1;
        }
    }
    assert!(files >= 3);
    assert_eq!(service.get("/assets/../Cargo.toml").await.status, 404);
    assert_eq!(service.get("/assets/none.js").await.status, 404);
}

/// Whoever is called at night follows the page's links into the runbook, and the version that runs
/// is the one to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_the_runbook_is_served_and_has_every_section_the_page_links_to() {
    let service = Service::demo().await;
    let page = service.get("/docs/operations").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let text = service.get("/docs/operations.md").await;
    assert_eq!(text.header("content-type"), "text/markdown; charset=utf-8");
    assert_eq!(
        text.text(),
        include_str!("../../../../docs/operations.md"),
        "as it stands in the repository"
    );
    let sections: Vec<String> = text
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|title| title.to_lowercase().replace(',', "").replace(' ', "-"))
        .collect();
    let linked = include_str!("../../../../web/src/runbook.ts");
    let linked: Vec<&str> = linked
        .split("section: '")
        .skip(1)
        .map(|rest| rest.split('\'').next().unwrap())
        .collect();
    assert!(linked.len() >= 8, "{linked:?}");
    for section in linked {
        assert!(sections.iter().any(|known| known == section), "{section}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_the_last_day_is_told_minute_by_minute() {
    let service = Service::demo().await;
    service.get("/v1/queries/user_by_id?id=1").await;
    let counted = || async {
        let minutes = service.get("/v1/minutes").await.json();
        let rows = minutes["minutes"].as_array().unwrap().clone();
        rows.into_iter().find(|row| {
            let reads = &row["reads"];
            let all = ["memory", "redis", "database"].map(|from| reads[from].as_u64().unwrap());
            all.iter().sum::<u64>() > 0
        })
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let row = loop {
        if let Some(row) = counted().await {
            break row;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "it is never counted"
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert_eq!(row["at_ms"].as_u64().unwrap() % 60_000, 0);
    assert!(row["p99_ms"].as_f64().unwrap() > 0.0, "{row}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_requests_of_another_host_or_origin_are_refused() {
    let service = Service::demo().await;
    let own = format!("http://{}", service.addr);
    for (header, value, status) in [
        ("host", "evil.test", 403),
        ("host", "127.0.0.1.evil.test:8080", 403),
        ("host", "localhost:9", 200),
        ("origin", "http://evil.test", 403),
        ("origin", "null", 403),
        ("origin", own.as_str(), 200),
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "same-origin", 200),
    ] {
        for path in [
            "/v1/status",
            "/health/live",
            "/metrics",
            "/v1/queries/user_by_id?id=1",
        ] {
            let reply = service.get_with(path, &[(header, value)]).await;
            assert_eq!(reply.status.as_u16(), status, "{path} {header}: {value}");
        }
    }
    let navigation = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
    ];
    assert_eq!(service.get_with("/", &navigation).await.status, 200);
}

#[tokio::test]
async fn s5_a_probe_that_names_an_address_learns_health_and_metrics_and_nothing_else() {
    let service = Service::demo().await;
    service.ready().await;
    for (path, host, status) in [
        ("/health/live", "10.1.2.3:8080", 200),
        ("/health", "[fd00::7]:8080", 200),
        ("/health/live", "evil.test", 403),
        ("/", "10.1.2.3:8080", 403),
        ("/metrics", "10.1.2.3:8080", 200),
        ("/metrics", "evil.test", 403),
        ("/v1/status", "10.1.2.3:8080", 403),
    ] {
        let reply = service.get_with(path, &[("host", host)]).await;
        assert_eq!(reply.status, status, "{path} of {host}: {}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_every_answer_carries_security_headers() {
    let service = Service::demo().await;
    for path in ["/", "/v1/status", "/nowhere", "/health"] {
        let reply = service.get(path).await;
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(reply.header("x-frame-options"), "DENY", "{path}");
        assert_eq!(reply.header("referrer-policy"), "no-referrer", "{path}");
        assert!(
            reply
                .header("content-security-policy")
                .contains("frame-ancestors 'none'"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn s6_without_authentication_only_loopback_is_listened_on() {
    let load = |listen: &str| {
        let sources =
            steadfast_server::config::Sources::new().flag("--listen", "server.listen", listen);
        steadfast_server::Config::load(&sources).unwrap()
    };
    let outside =
        steadfast_server::config::Sources::new().flag("--listen", "server.listen", "0.0.0.0:0");
    let mistakes = steadfast_server::Config::load(&outside)
        .unwrap_err()
        .mistakes;
    assert!(
        mistakes[0].message.contains("loopback only"),
        "{mistakes:?}"
    );
    let mut outside = load("127.0.0.1:0");
    outside.server.listen = "0.0.0.0:0".parse().unwrap();
    let refused = steadfast_server::bind(&outside).await.unwrap_err();
    assert!(
        matches!(refused, steadfast_server::BindError::NotLoopback { .. }),
        "{refused}"
    );
    let bound = steadfast_server::bind(&load("127.0.0.1:0")).await.unwrap();
    let taken = bound.local_addr().unwrap().to_string();
    let refused = steadfast_server::bind(&load(&taken)).await.unwrap_err();
    assert!(
        matches!(refused, steadfast_server::BindError::Taken { .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains(&taken));
}
