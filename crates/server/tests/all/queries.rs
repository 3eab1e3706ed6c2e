use std::time::Duration;

use serde_json::json;
use steadfast_drill::waiting::eventually;

use crate::harness::{Service, redis};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_users_are_found_by_name_or_phone_number_and_added() {
    let service = Service::demo().await;
    let found = service.get("/v1/queries/search_users?q=ada").await;
    assert_eq!(found.status, 200, "{}", found.text());
    let found = found.json();
    assert_eq!(found["query"], "search_users");
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 20);
    assert!(
        rows.iter()
            .all(|row| { row["name"].as_str().unwrap().to_lowercase().contains("ada") })
    );
    let phone = service
        .get("/v1/queries/search_users?q=7700%20900123&limit=3")
        .await
        .json();
    assert!(!phone["rows"].as_array().unwrap().is_empty());

    let name = "Zenobia Quite-Unheard-Of";
    let before = service
        .get("/v1/queries/search_users?q=Zenobia")
        .await
        .json();
    assert_eq!(before["rows"], json!([]));
    let person = json!({"name": name, "phone_number": "+44 7700 900000", "email": "z@example.org"});
    let added = service.post("/v1/statements/create_user", &person).await;
    assert_eq!(added.status, 200, "{}", added.text());
    assert_eq!(added.json()["affected"], 1);
    let id = added.json()["rows"][0]["id"].as_i64().unwrap();
    let after = service
        .get("/v1/queries/search_users?q=Zenobia")
        .await
        .json();
    assert_eq!(
        after["rows"][0]["name"], name,
        "the answer from before must not be served"
    );
    let one = service
        .get(&format!("/v1/queries/user_by_id?id={id}"))
        .await
        .json();
    assert_eq!(one["rows"][0]["email"], "z@example.org");

    let changed = json!({"id": id, "phone_number": "12345"});
    service
        .post("/v1/statements/update_user_phone", &changed)
        .await;
    let one = service
        .get(&format!("/v1/queries/user_by_id?id={id}"))
        .await
        .json();
    assert_eq!(one["rows"][0]["phone_number"], "12345");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_parameters_are_bound_and_patterns_mean_themselves() {
    let service = Service::demo().await;
    for attempt in [
        "%27%20OR%201%3D1%20--",
        "%25",
        "_da",
        "ada%27%3B%20DROP%20TABLE%20users%3B--",
        "!",
        "%5C",
    ] {
        let reply = service
            .get(&format!("/v1/queries/search_users?q={attempt}"))
            .await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["rows"], json!([]), "{attempt}");
    }
    let all = service.get("/v1/queries/list_users?limit=500").await.json();
    assert_eq!(all["rows"].as_array().unwrap().len(), 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_every_read_says_where_it_came_from() {
    let service = Service::demo().await;
    let path = "/v1/queries/search_users?q=lovelace";
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    let first = service.get(path).await;
    assert_eq!(first.json()["source"], "database");
    assert_eq!(
        first.header("cache-status"),
        "Steadfast; fwd=miss; detail=database"
    );
    assert_eq!(first.header("age"), "0");
    let second = service.get(path).await;
    let body = second.json();
    assert_eq!(
        (&body["source"], &body["stale"]),
        (&json!("memory"), &json!(false))
    );
    let ttl = |status: &str, detail: &str| -> i64 {
        let ttl = status.strip_prefix("Steadfast; hit; ttl=");
        let ttl = ttl.and_then(|rest| rest.strip_suffix(&format!("; detail={detail}")));
        ttl.unwrap_or_else(|| panic!("{status}")).parse().unwrap()
    };
    let left = ttl(second.header("cache-status"), "memory");
    assert!((1..=360).contains(&left), "{left} s of six minutes");
    assert!(second.header("age").parse::<u64>().is_ok());
    assert_eq!(first.json()["rows"], body["rows"]);

    // That there is nothing is remembered for a shorter time, and says so.
    let nobody = "/v1/queries/user_by_id?id=99999";
    service.get(nobody).await;
    let nobody = service.get(nobody).await;
    let left = ttl(nobody.header("cache-status"), "memory");
    assert!((1..=10).contains(&left), "{left} s of ten");

    // Another process, with a memory of its own, finds it in Redis.
    let config = service.app.config().clone();
    let other = Service::of(config).await;
    other
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    let third = other.get(path).await;
    assert_eq!(third.json()["source"], "redis");
    assert!(ttl(third.header("cache-status"), "redis") > 0);
    assert_eq!(third.json()["rows"], body["rows"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_a_stale_answer_says_so_everywhere() {
    let service = Service::with(&[
        ("redis.url", "redis://127.0.0.1:1"),
        ("ttl.brief.fresh", "1s"),
        ("ttl.brief.jitter", "0"),
        ("ttl.brief.early_refresh", "0"),
        ("queries.gone.sql", "SELECT n FROM t"),
        ("queries.gone.ttl", "brief"),
    ])
    .await;
    let change = async |sql: &str| {
        let mut tx = service.app.database().begin().await.unwrap();
        tx.execute(sql, &[]).await.unwrap();
        tx.commit().await.unwrap();
    };
    change("CREATE TABLE t (n INTEGER)").await;
    change("INSERT INTO t VALUES (7)").await;
    let path = "/v1/queries/gone";
    assert_eq!(service.get(path).await.json()["rows"], json!([{"n": 7}]));
    change("DROP TABLE t").await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let stale = service.get(path).await;
    assert_eq!(stale.status, 200, "{}", stale.text());
    let body = stale.json();
    assert_eq!(
        (&body["stale"], &body["source"]),
        (&json!(true), &json!("memory"))
    );
    assert!(body["age_ms"].as_u64() > Some(2000), "{body}");
    let status = stale.header("cache-status");
    let ttl = status
        .strip_prefix("Steadfast; hit; ttl=-")
        .and_then(|rest| rest.strip_suffix("; detail=memory-stale-failed"));
    assert!(
        ttl.unwrap_or(status).parse::<u64>().unwrap() >= 1,
        "{status}"
    );
    assert!(stale.header("age").parse::<u64>().unwrap() >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_answers_go_on_while_redis_is_killed_and_started_again() {
    let redis = redis().await;
    let service = Service::with(&[("redis.url", &redis.url())]).await;
    let mut tx = service.app.database().begin().await.unwrap();
    for sql in [
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, phone_number TEXT, email TEXT, created_at TEXT)",
        "INSERT INTO users (name, phone_number, email, created_at) VALUES ('Ada', '1', 'a', 'now')",
    ] {
        tx.execute(sql, &[]).await.unwrap();
    }
    tx.commit().await.unwrap();
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    let ask = |n: usize| {
        let path = format!("/v1/queries/search_users?q=a&limit={}", n % 100 + 1);
        let service = &service;
        async move {
            let started = tokio::time::Instant::now();
            let reply = service.get(&path).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(reply.json()["rows"][0]["name"], "Ada");
            assert!(started.elapsed() < Duration::from_secs(5));
        }
    };
    for n in 0..50 {
        ask(n).await;
    }
    redis.kill().await;
    for n in 0..150 {
        ask(n).await;
        assert_eq!(service.get("/health/ready").await.status, 200);
    }
    let health = service
        .health_when(|health| health["status"] == "degraded")
        .await;
    let message = health["checks"]["redis"]["message"].as_str().unwrap();
    assert!(
        message.contains("answers come from memory and the database")
            || message.contains("connecting"),
        "{message}"
    );
    redis.restart().await.unwrap();
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;
    for n in 0..50 {
        ask(n).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s13_releases_side_by_side_are_never_answered_with_what_the_other_has_kept() {
    let redis = redis().await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let release = async |sql: &str, more: &[(&str, &str)]| {
        let mut settings = vec![
            ("redis.url", redis.url()),
            ("database.url", url.clone()),
            ("queries.one.sql", sql.to_owned()),
            ("queries.one.key", "one".to_owned()),
            (
                "statements.touch.sql",
                "DELETE FROM steadfast_outbox WHERE 1 = 0".to_owned(),
            ),
            ("statements.touch.invalidates.keys", "one".to_owned()),
        ];
        settings.extend(
            more.iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let settings: Vec<(&str, &str)> = settings
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        let service = Service::with(&settings).await;
        service
            .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
            .await;
        service
    };
    let ask = async |service: &Service| service.get("/v1/queries/one").await.json();
    let rows = "SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3";
    let old = release("SELECT 1 AS n, 'private' AS s", &[]).await;
    assert_eq!(ask(&old).await["rows"][0]["s"], "private");
    for (sql, more, wanted) in [
        ("SELECT 1 AS n", &[][..], json!([{"n": 1}])),
        (rows, &[], json!([{"n": 1}, {"n": 2}, {"n": 3}])),
        (
            rows,
            &[("queries.one.max_rows", "2")],
            json!([{"n": 1}, {"n": 2}]),
        ),
    ] {
        let new = release(sql, more).await;
        let answer = ask(&new).await;
        assert_eq!(answer["rows"], wanted, "{answer}");
        assert_eq!(answer["source"], "database", "{answer}");
        // The next process of the same release has it from Redis.
        let same = release(sql, more).await;
        let answer = ask(&same).await;
        assert_eq!(
            (&answer["rows"], &answer["source"]),
            (&wanted, &json!("redis"))
        );
        // And one statement of whichever release invalidates the key for all.
        let touched = old.post("/v1/statements/touch", &json!({})).await;
        assert_eq!(touched.status, 200, "{}", touched.text());
        eventually("the other process loads it again", async || {
            ask(&same).await["source"] != "memory"
        })
        .await;
        assert_eq!(ask(&old).await["rows"][0]["s"], "private");
    }
}
