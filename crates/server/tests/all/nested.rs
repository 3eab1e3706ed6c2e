//! The service within another program's router: what holds for its own paths holds below any other.

use std::net::SocketAddr;

use axum::Router;
use steadfast_server::auth::Role;
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{App, Config, router};
use tokio::net::TcpListener;

use crate::harness::Service;
use crate::rate::{AUTH, token};

/// Serves the service by the way in which axum serves a program of its own.
async fn embedded(app: App, pages: Router) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let pages = pages.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, pages).await });
    Service::at(app, addr)
}

#[tokio::test]
async fn s6_rules_and_limits_hold_for_a_service_nested_in_another_router() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", folder.path().join("t.db").display());
    let limit = "[limits.rate.few]\nrequests = 1\nper = \"1h\"\nroutes = [\"/v1/history\"]\n";
    let sources = Sources::new()
        .text("test", &format!("{SAMPLE}\n{AUTH}\n{limit}"))
        .flag("test", "redis.url", "redis://127.0.0.1:1")
        .flag("test", "database.url", database);
    let config = Config::load(&sources).unwrap();
    for nest in ["/cache", "/a/b", "/v1", "/as-a-service"] {
        let app = App::start(config.clone()).await.unwrap();
        let pages = match nest {
            "/a/b" => Router::new().nest("/a", Router::new().nest("/b", router(app.clone()))),
            "/as-a-service" => Router::new().nest_service(nest, router(app.clone())),
            _ => Router::new().nest(nest, router(app.clone())),
        };
        let service = embedded(app, pages).await;
        let viewer = token(&service.app, Role::Viewer, "ada");
        let admin = token(&service.app, Role::Admin, "grace");
        let status = async |path: &str, bearer: Option<&str>| {
            let headers: Vec<_> = bearer.map(|it| ("authorization", it)).into_iter().collect();
            let path = format!("{nest}{path}");
            service.get_with(&path, &headers).await.status.as_u16()
        };
        assert_eq!(status("/health/live", None).await, 200, "{nest}: anyone's");
        assert_eq!(status("/docs", None).await, 200, "{nest}: anyone's");
        assert_eq!(status("/v1/status", None).await, 401, "{nest}: a viewer's");
        assert_eq!(status("/v1/status", Some(&viewer)).await, 200, "{nest}");
        assert_eq!(status("/v1/settings", Some(&viewer)).await, 403, "{nest}");
        assert_eq!(status("/v1/settings", Some(&admin)).await, 200, "{nest}");
        let history = [
            status("/v1/history", Some(&viewer)).await,
            status("/v1/history", Some(&viewer)).await,
        ];
        assert_eq!(history, [200, 429], "{nest}: a limit by route");
    }
}

#[tokio::test]
async fn s6_below_a_path_with_a_parameter_names_are_found_and_the_audit_log_says_whom_and_what() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let users = "[queries.answer]\nsql = \"SELECT 42 AS answer\"\nkey = \"answer\"\n";
    let sources = Sources::new()
        .text("test", &format!("{SAMPLE}\n{AUTH}\n{users}"))
        .flag("test", "auth.audit", file("audit.jsonl"))
        .flag("test", "redis.url", "redis://127.0.0.1:1")
        .flag("test", "database.url", format!("sqlite://{}", file("t.db")));
    let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
    let pages = Router::new().nest("/tenants/{tenant}", router(app.clone()));
    let service = embedded(app, pages).await;
    let operator = token(&service.app, Role::Operator, "grace");
    let get = async |path: &str| {
        let path = format!("/tenants/acme{path}");
        service
            .get_with(&path, &[("authorization", &operator)])
            .await
    };
    let answer = get("/v1/queries/answer").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let unknown = get("/v1/queries/acme").await;
    assert!(
        unknown.text().contains("no query `acme`"),
        "{}",
        unknown.text()
    );
    assert_eq!(get("/docs/index.js").await.status, 404);
    let request = hyper::Request::post(service.url("/tenants/acme/v1/statements/none"))
        .header("authorization", &operator)
        .header("content-type", "application/json")
        .body(http_body_util::Full::from("{}"))
        .unwrap();
    service.send(request).await;
    let audit = folder.path().join("audit.jsonl");
    let written = async {
        loop {
            let text = std::fs::read_to_string(&audit).unwrap_or_default();
            if !text.is_empty() {
                return text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let text = tokio::time::timeout(crate::harness::PATIENCE, written)
        .await
        .unwrap();
    assert!(
        text.contains("\"/tenants/acme/v1/statements/none\""),
        "{text}"
    );
    assert!(text.contains("\"peer\":\"127.0.0.1\""), "who asked: {text}");
}
