use bytes::Bytes;
use serde_json::json;

use crate::harness::{Reply, Service};

fn is_problem(reply: &Reply, status: u16, kind: &str) {
    let text = reply.text();
    assert_eq!(reply.status.as_u16(), status, "{text}");
    assert_eq!(
        reply.header("content-type"),
        "application/problem+json",
        "{text}"
    );
    let body = reply.json();
    assert_eq!(body["type"], kind, "{text}");
    assert_eq!(body["status"], status, "{text}");
    assert!(!body["title"].as_str().unwrap().is_empty());
    assert!(!body["detail"].as_str().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_wrong_request_is_told_what_is_wrong_with_it() {
    let service = Service::demo().await;
    let unknown = service.get("/v1/queries/serch_users?q=a").await;
    is_problem(&unknown, 404, "/problems/unknown-query");
    assert!(
        unknown.text().contains("search_users"),
        "{}",
        unknown.text()
    );
    for (path, parameter) in [
        ("/v1/queries/search_users", "q"),
        ("/v1/queries/search_users?q=", "q"),
        ("/v1/queries/search_users?q=a&limit=0", "limit"),
        ("/v1/queries/search_users?q=a&limit=ten", "limit"),
        ("/v1/queries/search_users?q=a&q=b", "q"),
        ("/v1/queries/search_users?q=a&colour=red", "colour"),
        ("/v1/queries/user_by_id?id=-1", "id"),
    ] {
        let reply = service.get(path).await;
        is_problem(&reply, 400, "/problems/bad-parameter");
        assert_eq!(reply.json()["parameter"], parameter, "{path}");
    }
    for path in [
        "/v1/history?limit=many",
        "/v1/history?limit=100001",
        "/v1/history?limit=1&limit=2",
        "/v1/history?limt=1",
        "/v1/events?last_id=1",
        "/v1/events?last_event_id=1&last_event_id=2",
    ] {
        is_problem(&service.get(path).await, 400, "/problems/bad-parameter");
    }
    is_problem(&service.get("/v1/queries/%FF").await, 400, "about:blank");
    is_problem(&service.get("/nowhere").await, 404, "about:blank");
    is_problem(
        &service.post("/v1/queries/search_users", &json!({})).await,
        405,
        "about:blank",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_wrong_body_is_refused_and_changes_nothing() {
    let service = Service::demo().await;
    let path = "/v1/statements/create_user";
    let kind = "application/json";
    let post =
        |body: &'static str| service.post_bytes(path, kind, Bytes::from_static(body.as_bytes()));
    is_problem(&post("{").await, 400, "/problems/bad-parameter");
    is_problem(&post("[]").await, 400, "/problems/bad-parameter");
    is_problem(
        &post("{\"name\": \"x\"}").await,
        400,
        "/problems/bad-parameter",
    );
    let wrong_type = "{\"name\": 1, \"phone_number\": \"123\"}";
    is_problem(&post(wrong_type).await, 400, "/problems/bad-parameter");
    let form = service
        .post_bytes(path, "text/plain", Bytes::from_static(b"{}"))
        .await;
    is_problem(&form, 415, "/problems/bad-parameter");
    let unknown = service.post("/v1/statements/drop_users", &json!({})).await;
    is_problem(&unknown, 404, "/problems/unknown-query");
    let names = service
        .get("/v1/queries/list_users?after=9999")
        .await
        .json();
    assert_eq!(names["rows"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_a_body_of_ten_megabytes_is_refused_and_the_service_goes_on() {
    let service = Service::demo().await;
    let path = "/v1/statements/create_user";
    let body = Bytes::from(vec![b' '; 10 << 20]);
    let refused = service.post_bytes(path, "application/json", body).await;
    is_problem(&refused, 413, "/problems/too-large");
    assert_eq!(service.get("/health/live").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_key_that_is_taken_is_a_conflict() {
    let text = "
        [server]
        listen = '127.0.0.1:0'
        [redis]
        url = 'redis://127.0.0.1:1'
        [statements.put]
        sql = 'INSERT INTO t (id) VALUES (:id) RETURNING id'
        params.id = { type = 'integer' }
        [queries.broken]
        sql = 'SELECT * FROM no_such_table'
    ";
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", folder.path().join("t.db").display());
    let sources = steadfast_server::config::Sources::new()
        .text("test", text)
        .flag("test", "database.url", database);
    let service = Service::of(steadfast_server::Config::load(&sources).unwrap()).await;
    let mut tx = service.app.database().begin().await.unwrap();
    tx.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)", &[])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let put = service.post("/v1/statements/put", &json!({"id": 7})).await;
    assert_eq!(put.json()["rows"], json!([{"id": 7}]), "{}", put.text());
    let again = service.post("/v1/statements/put", &json!({"id": 7})).await;
    is_problem(&again, 409, "/problems/conflict");
    let broken = service.get("/v1/queries/broken").await;
    is_problem(&broken, 503, "/problems/unavailable");
    assert!(
        !broken.text().contains("no_such_table"),
        "{}",
        broken.text()
    );
}
