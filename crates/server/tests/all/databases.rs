//! The same configuration on each database: only the URL differs.

use serde_json::{Value as Json, json};
use steadfast_cache::Pool;
use steadfast_drill::process::{MariaDb, Postgres};
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{App, Config};

use crate::harness::{Service, redis};

const MORE: &str = r#"
[queries.by_flag]
sql = "SELECT name FROM users WHERE :all OR name = 'Grace Hopper' ORDER BY name"
params.all = { type = "boolean", default = false }

[queries.by_optional_email]
sql = "SELECT id FROM users WHERE email = :email OR (:email IS NULL AND email IS NULL)"
params.email = { type = "string", optional = true }

[queries.few]
sql = "SELECT id FROM users ORDER BY id"
max_rows = 2
"#;

/// Everything the sample promises, through HTTP, on the database at `url`.
async fn s1_holds_on(url: &str, table: &str) {
    let redis = redis().await;
    let more = if url.starts_with("postgres") {
        // PostgreSQL must be told the type of a parameter that it sees only in IS NULL.
        MORE.replace(":email IS NULL", "CAST(:email AS TEXT) IS NULL")
    } else {
        MORE.to_owned()
    };
    let sources = Sources::new()
        .text("sample", &format!("{SAMPLE}{more}"))
        .flag("test", "redis.url", redis.url())
        .flag("test", "database.url", url);
    let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
    let mut tx = app.database().begin().await.unwrap();
    tx.execute(table, &[]).await.unwrap();
    tx.commit().await.unwrap();
    let service = Service::from_app(app).await;
    service
        .health_when(|health| health["checks"]["redis"]["status"] == "healthy")
        .await;

    let rows = |json: Json| {
        json["rows"]
            .as_array()
            .cloned()
            .unwrap_or_else(|| panic!("{json}"))
    };
    let search = "/v1/queries/search_users?q=Hopper";
    assert_eq!(rows(service.get(search).await.json()), Vec::<Json>::new());
    for (name, phone, email) in [
        ("Grace Hopper", "100", Some("grace@example.org")),
        ("Ada Lovelace", "200", None),
        ("100%_Real!", "300", Some("Ünï@example.org")),
    ] {
        let person = json!({"name": name, "phone_number": phone, "email": email});
        let added = service.post("/v1/statements/create_user", &person).await;
        assert_eq!(added.status, 200, "{}", added.text());
        assert_eq!(added.json()["affected"], 1);
    }
    let found = rows(service.get(search).await.json());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["email"], "grace@example.org");
    assert!(
        found[0]["created_at"].as_str().unwrap().starts_with("20"),
        "{found:?}"
    );
    assert_eq!(service.get(search).await.json()["source"], "memory");

    let id = found[0]["id"].as_i64().unwrap();
    let by_id = format!("/v1/queries/user_by_id?id={id}");
    assert_eq!(
        rows(service.get(&by_id).await.json())[0]["phone_number"],
        "100"
    );
    let change = json!({"id": id, "phone_number": "101"});
    service
        .post("/v1/statements/update_user_phone", &change)
        .await;
    assert_eq!(
        rows(service.get(&by_id).await.json())[0]["phone_number"],
        "101"
    );

    for special in ["%25_R", "l!"] {
        let found = rows(
            service
                .get(&format!("/v1/queries/search_users?q={special}"))
                .await
                .json(),
        );
        assert_eq!(found.len(), 1, "{special}");
        assert_eq!(found[0]["name"], "100%_Real!");
    }
    let quote = service
        .get("/v1/queries/search_users?q=%27%5C%27%20OR%201=1")
        .await
        .json();
    assert_eq!(rows(quote), Vec::<Json>::new());
    let count = |path: &'static str| {
        let service = &service;
        async move { rows(service.get(path).await.json()).len() }
    };
    assert_eq!(count("/v1/queries/by_flag").await, 1);
    assert_eq!(count("/v1/queries/by_flag?all=true").await, 3);
    assert_eq!(count("/v1/queries/by_optional_email").await, 1);
    assert_eq!(
        count("/v1/queries/by_optional_email?email=%C3%9Cn%C3%AF@example.org").await,
        1
    );
    let few = service.get("/v1/queries/few").await.json();
    assert_eq!(
        (few["rows"].as_array().unwrap().len(), &few["truncated"]),
        (2, &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_holds_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let table = "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, phone_number TEXT NOT NULL, \
                 email TEXT, created_at TEXT NOT NULL)";
    s1_holds_on(&url, table).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_holds_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let table = "CREATE TABLE users (id BIGINT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(200) NOT NULL, \
                 phone_number VARCHAR(32) NOT NULL, email VARCHAR(254), created_at DATETIME NOT NULL) \
                 CHARACTER SET utf8mb4";
    s1_holds_on(&server.url(), table).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_holds_on_postgresql() {
    let server = Postgres::start().await.unwrap();
    let table = "CREATE TABLE users (id BIGSERIAL PRIMARY KEY, name TEXT NOT NULL, phone_number TEXT NOT NULL, \
                 email TEXT, created_at TIMESTAMPTZ NOT NULL)";
    s1_holds_on(&server.url(), table).await;
}

/// Its words are those of a read; only the database knows what the function does.
const SLY: &str = r#"
[queries.sly]
sql = "SELECT counted() AS n"

[queries.notes]
sql = "SELECT COUNT(*) AS n FROM notes"
ttl = "never"

[ttl.never]
fresh = "1ms"
stale = "0s"

[statements.count]
sql = "INSERT INTO notes VALUES ('meant')"
"#;

async fn s1_a_query_that_writes_is_refused(url: &str, function: &'static str) {
    let sources = Sources::new()
        .text("sly", SLY)
        .flag("test", "redis.url", "redis://127.0.0.1:1")
        .flag("test", "database.url", url);
    let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
    for sql in ["CREATE TABLE notes (note VARCHAR(20))", function] {
        let sql = sqlx::raw_sql(sql);
        match app.database().pool() {
            Pool::MySql(pool) => sql.execute(pool).await.map(|_| ()),
            Pool::Postgres(pool) => sql.execute(pool).await.map(|_| ()),
            _ => unreachable!(),
        }
        .unwrap();
    }
    let service = Service::from_app(app).await;
    let notes = || async {
        let seen = service.get("/v1/queries/notes").await.json();
        seen["rows"][0]["n"].as_i64()
    };
    let refused = service.get("/v1/queries/sly").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("`sly` writes"), "{detail}");
    assert!(detail.contains("[statements]"), "{detail}");
    assert_eq!(notes().await, Some(0));
    let meant = service.post("/v1/statements/count", &json!({})).await;
    assert_eq!(meant.status, 200, "{}", meant.text());
    assert_eq!(notes().await, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_query_that_writes_is_refused_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let function = "CREATE FUNCTION counted() RETURNS INT MODIFIES SQL DATA \
                    BEGIN INSERT INTO notes VALUES ('slipped in'); RETURN 1; END";
    s1_a_query_that_writes_is_refused(&server.url(), function).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_query_that_writes_is_refused_on_postgresql() {
    let server = Postgres::start().await.unwrap();
    let function = "CREATE FUNCTION counted() RETURNS INT LANGUAGE sql AS \
                    $$ INSERT INTO notes VALUES ('slipped in'); SELECT 1 $$";
    s1_a_query_that_writes_is_refused(&server.url(), function).await;
}

/// One connection, so that what the last statement left there would be seen by the next.
const IDS: &str = r#"
[database]
max_connections = 1
[statements.add]
sql = "INSERT INTO numbered (name) VALUES (:name)"
params.name = { type = "string" }
[statements.add_if_new]
params.name = { type = "string" }
[statements.add_or_keep]
params.name = { type = "string" }
[statements.add_bare]
sql = "INSERT INTO bare (name) VALUES (:name)"
params.name = { type = "string" }
"#;

async fn s12_the_last_id_is_that_of_the_row_itself_or_none(
    url: &str,
    tables: [&str; 2],
    (add_if_new, add_or_keep): (&str, &str),
) {
    let sources = Sources::new()
        .text("ids", IDS)
        .flag("test", "redis.url", "redis://127.0.0.1:1")
        .flag("test", "database.url", url)
        .flag("test", "statements.add_if_new.sql", add_if_new)
        .flag("test", "statements.add_or_keep.sql", add_or_keep);
    let app = App::start(Config::load(&sources).unwrap()).await.unwrap();
    let mut tx = app.database().begin().await.unwrap();
    for table in tables {
        tx.execute(table, &[]).await.unwrap();
    }
    tx.commit().await.unwrap();
    let service = Service::from_app(app).await;
    let say = async |statement: &str, name: &str, once: Option<&str>| {
        let mut request = hyper::Request::post(service.url(&format!("/v1/statements/{statement}")))
            .header("content-type", "application/json");
        if let Some(key) = once {
            request = request.header("idempotency-key", key);
        }
        let body = json!({ "name": name }).to_string();
        let reply = service.send(request.body(body.into()).unwrap()).await;
        assert_eq!(reply.status, 200, "{statement} {name}: {}", reply.text());
        reply.json()["last_id"].as_i64()
    };
    let id_of = async |name: &str| {
        let sql = "SELECT id FROM numbered WHERE name = ?";
        let rows = service.app.database().select(sql, &[name.into()]).await;
        let row = serde_json::to_value(rows.unwrap().remove(0)).unwrap();
        row["id"].as_i64()
    };
    for name in ["a", "b"] {
        assert_eq!(say("add", name, None).await, id_of(name).await, "{name}");
    }
    assert_eq!(
        say("add_if_new", "a", None).await,
        None,
        "nothing was added"
    );
    assert_eq!(say("add_bare", "x", None).await, None, "it has no numbers");
    assert_eq!(
        say("add_bare", "y", Some("one")).await,
        None,
        "nor by a key"
    );
    let by_key = say("add", "c", Some("two")).await;
    assert_eq!(by_key, id_of("c").await, "its own, and not the record's");
    assert_eq!(say("add", "c", Some("two")).await, by_key, "told again");
    assert_eq!(say("add_bare", "z", None).await, None);
    let kept = say("add_or_keep", "a", None).await;
    assert!(
        kept.is_none() || kept == id_of("a").await,
        "another row's: {kept:?}"
    );
    assert_eq!(say("add_or_keep", "d", None).await, id_of("d").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_the_last_id_of_mariadb_is_that_of_the_row_itself_or_none() {
    let server = MariaDb::start().await.unwrap();
    s12_the_last_id_is_that_of_the_row_itself_or_none(
        &server.url(),
        [
            "CREATE TABLE numbered (id BIGINT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(40) UNIQUE)",
            "CREATE TABLE bare (name VARCHAR(40) PRIMARY KEY)",
        ],
        (
            "INSERT IGNORE INTO numbered (name) VALUES (:name)",
            "INSERT INTO numbered (name) VALUES (:name) ON DUPLICATE KEY UPDATE name = VALUES(name)",
        ),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_the_last_id_of_sqlite_is_that_of_the_row_itself_or_none() {
    let folder = tempfile::tempdir().unwrap();
    s12_the_last_id_is_that_of_the_row_itself_or_none(
        &format!("sqlite://{}", folder.path().join("t.db").display()),
        [
            "CREATE TABLE numbered (id INTEGER PRIMARY KEY, name TEXT UNIQUE)",
            "CREATE TABLE bare (name TEXT PRIMARY KEY) WITHOUT ROWID",
        ],
        (
            "INSERT OR IGNORE INTO numbered (name) VALUES (:name)",
            "INSERT INTO numbered (name) VALUES (:name) ON CONFLICT (name) DO UPDATE SET name = excluded.name",
        ),
    )
    .await;
}
