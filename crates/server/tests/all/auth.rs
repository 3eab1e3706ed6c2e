//! Who may do what, and what is written down of it.

use http_body_util::Full;
use hyper::{Method, Request};
use serde_json::{Value as Json, json};
use steadfast_server::Peer;
use steadfast_server::auth::{RULES, Role};

use crate::guarded::*;

#[tokio::test]
async fn s6_the_role_matrix_holds_for_every_rule_and_role() {
    let guarded = Guarded::hs().await;
    let addr = guarded.service.addr;
    for rule in RULES {
        let path = rule
            .path
            .replace("{name}", "none")
            .replace("{id}", "9")
            .replace("{*path}", "none.js");
        let ask = |token: Option<String>| {
            let mut request = Request::builder()
                .method(Method::from_bytes(rule.method.as_bytes()).unwrap())
                .uri(format!("http://{addr}{path}"));
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            request.body(Full::default()).unwrap()
        };
        if rule.path.ends_with("/events") && !rule.path.contains("{id}") {
            // An answer that has no end: only refusals are looked at.
            assert_eq!(guarded.service.send(ask(None)).await.status, 401);
            continue;
        }
        let anonymous = guarded.service.send(ask(None)).await;
        assert_eq!(
            anonymous.status == 401,
            rule.needs.is_some(),
            "{} {}",
            rule.method,
            rule.path
        );
        for role in Role::ALL {
            let reply = guarded.service.send(ask(Some(guarded.token(role)))).await;
            let allowed = rule.needs.is_none_or(|needs| role >= needs);
            // Drills are switched off in this service, which is another refusal.
            let by_role = reply.status == 403
                && reply
                    .header("www-authenticate")
                    .contains("insufficient_scope");
            assert_eq!(
                !by_role,
                allowed,
                "{} {} as {}: {}",
                rule.method,
                rule.path,
                role.name(),
                reply.status
            );
            assert_ne!(reply.status, 401);
        }
    }
}

#[tokio::test]
async fn s6_changes_are_written_down_with_who_and_what_and_reads_are_not() {
    let guarded = Guarded::hs().await;
    let token = format!("Bearer {}", guarded.token(Role::Operator));
    guarded
        .service
        .get_with("/v1/status?secret=1", &[("authorization", &token)])
        .await;
    let request = Request::post(guarded.service.url("/v1/statements/none?secret=1"))
        .header("authorization", &token)
        .body(Full::default())
        .unwrap();
    assert_eq!(guarded.service.send(request).await.status, 404);
    let lines = guarded.audit(1).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert_eq!(line["who"], "ada");
    assert_eq!(line["role"], "operator");
    assert_eq!(line["method"], "POST");
    assert_eq!(line["path"], "/v1/statements/none");
    assert_eq!(line["outcome"], "allowed");
    assert_eq!(line["status"], 404);
    assert_eq!(line["peer"], "127.0.0.1");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(guarded.folder.path().join("audit.jsonl"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o077, 0, "others can read the audit log");
}

#[tokio::test]
async fn s6_the_description_says_the_role_of_each_operation() {
    let guarded = Guarded::hs().await;
    let token = format!("Bearer {}", guarded.token(Role::Viewer));
    let described = guarded
        .service
        .get_with("/openapi.json", &[("authorization", &token)])
        .await
        .json();
    let mut operations = 0;
    for (path, item) in described["paths"].as_object().unwrap() {
        let routed = match path {
            path if path.starts_with("/v1/queries/") => "/v1/queries/{name}",
            path if path.starts_with("/v1/statements/") => "/v1/statements/{name}",
            path => path,
        };
        for (method, operation) in item.as_object().unwrap() {
            let rule = RULES
                .iter()
                .find(|rule| rule.method.eq_ignore_ascii_case(method) && rule.path == routed);
            let rule =
                rule.unwrap_or_else(|| panic!("{method} {path} is described and has no rule"));
            let said = operation["security"][0]["bearer"][0].as_str();
            assert_eq!(said, rule.needs.map(Role::name), "{method} {path}");
            operations += 1;
        }
    }
    assert!(operations > 8, "{operations}");
}

#[tokio::test]
async fn s6_a_change_whose_caller_hangs_up_is_written_down_all_the_same() {
    let slow = "[statements.slow]\nsql = \"INSERT INTO t SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000000) SELECT i FROM n)\"\n";
    let auth = base(&format!(
        "[auth.keys.dev]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n{slow}"
    ));
    let guarded = Guarded::with(&auth).await;
    let mut tx = guarded.service.app.database().begin().await.unwrap();
    tx.execute("CREATE TABLE t (n INTEGER)", &[]).await.unwrap();
    tx.commit().await.unwrap();
    let head = format!(
        "POST /v1/statements/slow HTTP/1.1\r\ncontent-type: application/json\r\nauthorization: Bearer {}",
        guarded.token(Role::Operator)
    );
    let under_way = || guarded.service.status()["service"]["in_flight"].as_u64() >= Some(1);
    let audit = guarded.folder.path().join("audit.jsonl");
    // Who hangs up before it is known who asks has begun no change.
    while std::fs::read(&audit).is_ok_and(|text| text.is_empty()) {
        hang_up(&guarded, &head, "{}", under_way).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let line = &guarded.audit(1).await[0];
    assert_eq!(line["outcome"], "unfinished", "{line}");
    assert_eq!(
        (&line["who"], &line["path"]),
        (&json!("ada"), &json!("/v1/statements/slow"))
    );
}

#[tokio::test]
async fn s6_behind_a_trusted_proxy_the_audit_log_and_health_know_the_caller() {
    let guarded = Guarded::with(&base(&format!(
        "[auth.keys.dev]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n"
    )))
    .await;
    let forwarded = ("x-forwarded-for", "6.6.6.6, 192.0.2.7");
    let health = guarded
        .service
        .get_with("/health", &[forwarded])
        .await
        .json();
    assert_eq!(health["checks"]["redis"]["message"], "");
    let refused = guarded.service.get_with("/v1/settings", &[forwarded]).await;
    assert_eq!(refused.status, 401);
    assert_eq!(guarded.audit(1).await[0]["peer"], "192.0.2.7");
}

#[tokio::test]
async fn s6_health_tells_strangers_less_and_an_address_decides_who_is_one() {
    let guarded = Guarded::hs().await;
    let up = |health: &Json| health["status"] != "unhealthy";
    guarded.service.health_when(up).await;
    let near = guarded.service.get("/health").await.json();
    assert_ne!(
        near["checks"]["redis"]["message"], "",
        "from loopback in full"
    );
    let stranger = |token: Option<String>| {
        let mut request =
            Request::get("http://localhost/health").extension(Peer("192.0.2.7:9".parse().unwrap()));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let router = steadfast_server::router(guarded.service.app.clone());
        tower::ServiceExt::oneshot(
            router,
            request
                .header("host", "localhost")
                .body(axum::body::Body::empty())
                .unwrap(),
        )
    };
    let told = async |token| {
        let response = stranger(token).await.unwrap();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        serde_json::from_slice::<Json>(&body).unwrap()
    };
    // A proxy on the same machine hands strangers on.
    for more in [("x-forwarded-for", "192.0.2.7"), ("via", "1.1 proxy")] {
        let handed_on = guarded.service.get_with("/health", &[more]).await;
        assert_eq!(handed_on.status, 200, "{more:?}");
        let message = &handed_on.json()["checks"]["redis"]["message"];
        assert_eq!(message, "", "{more:?}");
    }
    let named = guarded
        .service
        .get_with("/health", &[("host", "steadfast.example")])
        .await;
    assert_eq!(named.status, 403, "no name of a service on loopback");
    let little = told(None).await;
    assert_eq!(little["checks"]["redis"]["message"], "");
    assert!(little["checks"]["redis"]["status"].is_string());
    let known = told(Some(guarded.token(Role::Viewer))).await;
    assert_ne!(known["checks"]["redis"]["message"], "");
}
