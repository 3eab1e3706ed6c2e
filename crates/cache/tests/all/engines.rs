//! The same promises on each database.

use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};
use steadfast_cache::{Cache, Database, DatabaseOptions, Param, Pool, Source, Target, Tx};
use steadfast_drill::process::{MariaDb, Postgres, Redis};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::site::{
    connect, create_table, eventually, invalidate_everywhere, patient, plain, read_item, set_item,
    sqlite, text, write_everywhere, write_item,
};

async fn cache(database: &Database, redis: &Redis) -> Cache {
    let client = steadfast::Client::builder(&redis.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    plain(database).redis(client).build().await.unwrap()
}

macro_rules! in_a_transaction_of_ones_own {
    ($pool:ident, $cache:ident) => {{
        let mut tx = $pool.begin().await.unwrap();
        let change = sqlx::query("UPDATE items SET version = 2");
        change.execute(&mut *tx).await.unwrap();
        let targets = [Target::key("item:7")];
        let invalidation = $cache.invalidate_in(&mut tx, &targets).await.unwrap();
        tx.commit().await.unwrap();
        invalidation.apply().await;
    }};
}

macro_rules! by_another_driver {
    ($pool:ident, $statements:ident) => {{
        let mut tx = $pool.begin().await.unwrap();
        let change = sqlx::query("UPDATE items SET version = 3");
        change.execute(&mut *tx).await.unwrap();
        for row in $statements {
            let row = sqlx::query(AssertSqlSafe(row.sql))
                .bind(row.namespace)
                .bind(row.kind)
                .bind(row.target);
            row.execute(&mut *tx).await.unwrap();
        }
        tx.commit().await.unwrap();
    }};
}

async fn writes_are_seen_and_survive(database: Database) {
    let redis = Redis::start().await.unwrap();
    create_table(&database).await;
    let (first, second) = (
        cache(&database, &redis).await,
        cache(&database, &redis).await,
    );

    // In health: at once here, soon elsewhere.
    write_everywhere(&first, 7, 1).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("1"));
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("1"));

    // In the caller's own transaction of sqlx.
    match database.pool() {
        Pool::Sqlite(pool) => in_a_transaction_of_ones_own!(pool, first),
        Pool::MySql(pool) => in_a_transaction_of_ones_own!(pool, first),
        Pool::Postgres(pool) => in_a_transaction_of_ones_own!(pool, first),
        _ => unreachable!(),
    }
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
    eventually("the other process has heard", || async {
        read_item(&second, 7).await.as_deref() == Some("2")
    })
    .await;

    // By statements that any driver can execute.
    let targets = [Target::key("item:7"), Target::tag("t".repeat(70_000))];
    let (statements, invalidation) = first.invalidation(&targets).await.unwrap();
    match database.pool() {
        Pool::Sqlite(pool) => by_another_driver!(pool, statements),
        Pool::MySql(pool) => by_another_driver!(pool, statements),
        Pool::Postgres(pool) => by_another_driver!(pool, statements),
        _ => unreachable!(),
    }
    invalidation.apply().await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("3"));
    eventually("the other process has heard", || async {
        read_item(&second, 7).await.as_deref() == Some("3")
    })
    .await;

    // Rolled back: nothing is invalidated, in the end.
    let mut tx = database.begin().await.unwrap();
    set_item(&mut tx, 7, 99).await.unwrap();
    drop(
        first
            .invalidate_in(&mut tx, &[Target::key("item:7")])
            .await
            .unwrap(),
    );
    tx.rollback().await.unwrap();
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("3"));

    // Odd bytes survive the way through the table.
    let odd = b"\xff\0\r\n {}".to_vec();
    invalidate_everywhere(&first, &[Target::key(&odd), Target::tag(&odd)]).await;

    // Many at once: more than a batch.
    let many: Vec<_> = (0..600).map(|n| Target::key(format!("item:{n}"))).collect();
    assert!(first.invalidate(&many).await.is_ok());

    // A write while Redis is away is delivered when it is back.
    redis.freeze().unwrap();
    write_item(&first, 7, 4).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("4"));
    redis.resume().unwrap();
    eventually("the outbox is drained", || async {
        database
            .select("SELECT id FROM steadfast_outbox", &[])
            .await
            .unwrap()
            .is_empty()
    })
    .await;
    eventually("the other process sees it", || async {
        read_item(&second, 7).await.as_deref() == Some("4")
    })
    .await;
}

async fn rows_become_json(database: Database, sql: &str, expected: serde_json::Value) {
    let rows = database.select(sql, &[]).await.unwrap();
    assert_eq!(serde_json::to_value(&rows[0]).unwrap(), expected);
}

#[tokio::test]
async fn k7_writes_are_seen_and_survive_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    writes_are_seen_and_survive(connect(&url)).await;
}

#[tokio::test]
async fn k7_writes_are_seen_and_survive_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let database = connect(&server.url());
    writes_are_seen_and_survive(database.clone()).await;
    let sql = "SELECT 1 AS n, 1.5e0 AS f, 'text' AS t, NULL AS nothing, CAST('2026-11-23 12:34:56' AS DATETIME) AS at, \
               CAST(12.30 AS DECIMAL(6,2)) AS amount, X'00ff' AS raw, CAST(18446744073709551615 AS UNSIGNED) AS large";
    let expected = serde_json::json!({"n": 1, "f": 1.5, "t": "text", "nothing": null, "at": "2026-11-23T12:34:56.000000",
        "amount": "12.30", "raw": "00ff", "large": 18_446_744_073_709_551_615u64});
    rows_become_json(database, sql, expected).await;
}

#[tokio::test]
async fn k7_writes_are_seen_and_survive_on_postgres() {
    let server = Postgres::start().await.unwrap();
    let database = connect(&server.url());
    writes_are_seen_and_survive(database.clone()).await;
    let sql = "SELECT 1 AS n, 2::bigint AS b, 1.5::float8 AS f, 'text' AS t, NULL::text AS nothing, true AS yes, \
               TIMESTAMPTZ '2026-11-23 12:34:56+00' AS at, DATE '2026-11-23' AS day, '\\x00ff'::bytea AS raw, \
               '{\"a\": [1]}'::jsonb AS doc, '0190a5b0-0000-7000-8000-000000000001'::uuid AS id";
    let expected = serde_json::json!({"n": 1, "b": 2, "f": 1.5, "t": "text", "nothing": null, "yes": true,
        "at": "2026-11-23T12:34:56.000000Z", "day": "2026-11-23", "raw": "00ff", "doc": {"a": [1]},
        "id": "0190a5b0-0000-7000-8000-000000000001"});
    rows_become_json(database.clone(), sql, expected).await;
    let error = database
        .select("SELECT '1 day'::interval AS lasts", &[])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("lasts") && error.contains("INTERVAL"),
        "{error}"
    );
}

#[tokio::test]
async fn sqlite_rows_become_json_by_the_type_of_the_value() {
    let (database, _folder) = sqlite().await;
    let sql = "SELECT 1 AS n, 1.5 AS f, 'text' AS t, NULL AS empty, X'00ff' AS raw";
    rows_become_json(
        database,
        sql,
        serde_json::json!({"n": 1, "f": 1.5, "t": "text", "empty": null, "raw": "00ff"}),
    )
    .await;
}

/// As on a disk that takes its time over making it.
#[tokio::test]
async fn a_sqlite_file_that_is_long_in_opening_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("slow.db");
    let held = SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true);
    let mut held = held.connect().await.unwrap();
    sqlx::raw_sql("BEGIN EXCLUSIVE; CREATE TABLE t (n INT)")
        .execute(&mut held)
        .await
        .unwrap();
    let mut options = DatabaseOptions::default();
    options.acquire_timeout = Duration::from_millis(300);
    let url = format!("sqlite://{}", file.display());
    let database = Database::connect(&url, options).unwrap();
    let letting_go = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        sqlx::raw_sql("COMMIT").execute(&mut held).await.unwrap();
    };
    let (asked, ()) = tokio::join!(database.select("SELECT 7 AS seven", &[]), letting_go);
    assert_eq!(asked.unwrap()[0]["seven"], 7);
}

#[tokio::test]
async fn parameters_are_bound_and_not_spliced() {
    let (database, _folder) = sqlite().await;
    let odd = "'; DROP TABLE items; --";
    let rows = database
        .select("SELECT ? AS given", &[Param::Text(odd.to_owned())])
        .await
        .unwrap();
    assert_eq!(rows[0]["given"], odd);
    assert!(
        database
            .select("SELECT * FROM items", &[])
            .await
            .unwrap()
            .is_empty()
    );
}

/// As it is in most places: tables are made by their owner, and the application may only read and
/// write them.
#[tokio::test]
async fn k7_an_application_without_the_right_to_create_tables_uses_those_that_are_there() {
    let server = Postgres::start().await.unwrap();
    let owner = connect(&server.url());
    create_table(&owner).await;
    let redis = Redis::start().await.unwrap();
    cache(&owner, &redis).await;
    let mut tx = owner.begin().await.unwrap();
    for statement in [
        "CREATE ROLE app LOGIN",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app",
    ] {
        tx.execute(statement, &[]).await.unwrap();
    }
    tx.commit().await.unwrap();
    let url = server.url().replace("postgres@", "app@");
    let database = connect(&url);
    let refused = database.select("CREATE TABLE mine (id INT)", &[]).await;
    assert!(
        refused.is_err(),
        "the test gives more rights than it means to"
    );
    let (first, second) = (
        cache(&database, &redis).await,
        cache(&database, &redis).await,
    );
    write_everywhere(&first, 7, 1).await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("1"));
    write_everywhere(&first, 7, 2).await;
    eventually("the other process has heard", || async {
        read_item(&second, 7).await.as_deref() == Some("2")
    })
    .await;
    // Another namespace needs a row of its own, and no table.
    let client = steadfast::Client::builder(&redis.url()).unwrap();
    let other = plain(&database)
        .namespace("other")
        .redis(client.connect().await.unwrap())
        .build()
        .await
        .unwrap();
    write_everywhere(&other, 8, 1).await;
}

#[tokio::test]
async fn k9_a_query_whose_connection_is_ended_is_asked_once_more_if_it_only_reads() {
    let server = Postgres::start().await.unwrap();
    let database = connect(&server.url());
    create_table(&database).await;
    let ended_while = async |sql: &'static str| {
        let other = connect(&server.url());
        let asked = tokio::spawn({
            let database = database.clone();
            async move { database.select(sql, &[]).await }
        });
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()";
        eventually("it is ended", || async {
            !other.select(end, &[]).await.unwrap().is_empty()
        })
        .await;
        asked.await.unwrap()
    };
    let rows = ended_while("SELECT 7 AS seven, pg_sleep(2)::text AS slept").await;
    assert_eq!(rows.unwrap()[0]["seven"], 7);
    let insert =
        "WITH slept AS (SELECT pg_sleep(2)) INSERT INTO items SELECT 1, 1 FROM slept RETURNING id";
    assert!(ended_while(insert).await.is_err());
    let rows = database.select("SELECT id FROM items", &[]).await.unwrap();
    assert!(rows.is_empty(), "it was repeated");
}

#[tokio::test]
async fn k9_a_database_that_is_down_is_left_alone_and_used_again() {
    let server = MariaDb::start().await.unwrap();
    let mut options = DatabaseOptions::default();
    options.acquire_timeout = Duration::from_millis(300);
    let database = Database::connect(&server.url(), options).unwrap();
    create_table(&database).await;
    let redis = Redis::start().await.unwrap();
    let cache = cache(&database, &redis).await;
    write_item(&cache, 7, 1).await;
    assert_eq!(read_item(&cache, 7).await.as_deref(), Some("1"));
    server.kill().await;
    // What is held is served; what is not is refused, and soon without being tried.
    assert_eq!(read_item(&cache, 7).await.as_deref(), Some("1"));
    let try_cold = |n: i64| {
        let (cache, database) = (cache.clone(), database.clone());
        async move {
            let load = move || async move { Ok(crate::site::select_item(&database, n).await?) };
            text(&cache, "user").get(format!("cold:{n}"), load).await
        }
    };
    let mut refused = false;
    for n in 0..200 {
        let error = try_cold(n).await.unwrap_err();
        if let Some(pause) = error.retry_after() {
            assert!(pause > Duration::ZERO);
            refused = true;
            break;
        }
    }
    assert!(refused, "the breaker never opened");
    server.restart().await.unwrap();
    eventually("the database is used again", || async {
        try_cold(1000)
            .await
            .is_ok_and(|answer| answer.source == Source::Database)
    })
    .await;
    let written = cache
        .write(async |tx: &mut Tx| set_item(tx, 7, 2).await)
        .invalidates([Target::key("item:7")])
        .commit()
        .await;
    assert!(written.is_ok());
    assert_eq!(read_item(&cache, 7).await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_pool_whose_connections_are_all_taken_is_no_database_that_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = patient();
    options.max_connections = 1;
    let url = format!("sqlite://{}", folder.path().join("busy.db").display());
    let database = Database::connect(&url, options).unwrap();
    let held = database.begin().await.unwrap();
    database.ping(Duration::from_secs(60)).await.unwrap();
    drop(held);
    database.close().await;
}

#[tokio::test]
async fn a_database_that_takes_no_more_connections_is_not_down() {
    let server = Postgres::start().await.unwrap();
    let owner = connect(&server.url());
    let change = async |sql: &str| {
        let mut tx = owner.begin().await.unwrap();
        tx.execute(sql, &[]).await.unwrap();
        tx.commit().await.unwrap();
    };
    change("CREATE ROLE app LOGIN CONNECTION LIMIT 1").await;
    let url = server.url().replace("postgres@", "app@");
    let database = connect(&url);
    let held = database.begin().await.unwrap();
    // This one is not patient: it is refused.
    let another = Database::connect(&url, DatabaseOptions::default()).unwrap();
    let refused = another.select("SELECT 1 AS one", &[]).await;
    assert!(refused.is_err(), "there was room for another connection");
    database.ping(Duration::from_secs(60)).await.unwrap();
    // Any other refusal is none.
    change("ALTER ROLE app NOLOGIN").await;
    assert!(database.ping(Duration::from_secs(5)).await.is_err());
    drop(held);
}

/// A proxy before PostgreSQL that shares connections, and so takes no startup parameter that it
/// does not know: it refuses them in the words of PgBouncer.
async fn refusing_to_read_only(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            tokio::spawn(async move {
                let length = caller.read_u32().await?;
                let mut startup = vec![0; length as usize - 4];
                let _ = caller.read_exact(&mut startup).await?;
                let asked = String::from_utf8_lossy(&startup);
                if asked.contains("default_transaction_read_only") {
                    let told = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter in options: default_transaction_read_only\0\0";
                    caller.write_u8(b'E').await?;
                    caller.write_u32(told.len() as u32 + 4).await?;
                    return caller.write_all(told).await;
                }
                let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
                server.write_u32(length).await?;
                server.write_all(&startup).await?;
                copy_bidirectional(&mut caller, &mut server)
                    .await
                    .map(|_| ())
            });
        }
    });
    own
}

#[tokio::test]
async fn s14_what_takes_no_startup_options_is_asked_without_them_and_only_reads() {
    let server = Postgres::start().await.unwrap();
    let port = refusing_to_read_only(server.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let mut options = patient();
    options.read_only_connections = Some(2);
    let database = Database::connect(&url, options).unwrap();
    database.ping(Duration::from_secs(60)).await.unwrap();
    create_table(&database).await;
    let rows = database.select("SELECT 1 AS one", &[]).await.unwrap();
    assert_eq!(rows[0]["one"], 1);
    let sql = "INSERT INTO items VALUES (1, 1) RETURNING id";
    let error = database.select(sql, &[]).await.unwrap_err();
    assert!(error.writes(), "{error}");
}

/// `counted` writes, which its name does not tell.
async fn selects_only_read(url: &str, function: Option<&'static str>) {
    let mut options = patient();
    options.read_only_connections = Some(2);
    let database = Database::connect(url, options).unwrap();
    // Who takes the pool out has only its patience for a file that is made.
    database.select("SELECT 1 AS one", &[]).await.unwrap();
    let ours = ["CREATE TABLE notes (note VARCHAR(20) NOT NULL)"];
    for statement in ours.into_iter().chain(function) {
        let sql = sqlx::raw_sql(statement);
        match database.pool() {
            Pool::Sqlite(pool) => sql.execute(pool).await.map(|_| ()),
            Pool::MySql(pool) => sql.execute(pool).await.map(|_| ()),
            Pool::Postgres(pool) => sql.execute(pool).await.map(|_| ()),
            _ => unreachable!(),
        }
        .unwrap();
    }
    let counted = || async {
        let rows = database.select("SELECT COUNT(*) AS n FROM notes", &[]);
        rows.await.unwrap()[0]["n"].as_i64()
    };

    let mut writes = vec!["INSERT INTO notes VALUES ('slipped in') RETURNING note"];
    if function.is_some() {
        writes.push("SELECT counted()");
    }
    if matches!(database.pool(), Pool::Postgres(_)) {
        writes.push(
            "WITH w AS (INSERT INTO notes VALUES ('slipped in') RETURNING note) SELECT note FROM w",
        );
    }
    for sql in writes {
        let error = database.select(sql, &[]).await.unwrap_err();
        assert!(error.writes() && !error.is_passing(), "{sql}: {error}");
    }
    assert_eq!(counted().await, Some(0));

    // What is a change, changes, and is seen by those that only read.
    for n in 1..=3 {
        let mut tx = database.begin().await.unwrap();
        let sql = "INSERT INTO notes VALUES ('meant')";
        tx.execute(sql, &[]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(counted().await, Some(n));
    }
    database.close().await;
}

#[tokio::test]
async fn a_select_may_only_read_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    selects_only_read(&url, None).await;
    selects_only_read("sqlite::memory:", None).await;
}

#[tokio::test]
async fn a_select_may_only_read_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let function = "CREATE FUNCTION counted() RETURNS INT MODIFIES SQL DATA \
                    BEGIN INSERT INTO notes VALUES ('slipped in'); RETURN 1; END";
    selects_only_read(&server.url(), Some(function)).await;
}

#[tokio::test]
async fn a_select_may_only_read_on_postgresql() {
    let server = Postgres::start().await.unwrap();
    let function = "CREATE FUNCTION counted() RETURNS INT LANGUAGE sql AS \
                    $$ INSERT INTO notes VALUES ('slipped in'); SELECT 1 $$";
    selects_only_read(&server.url(), Some(function)).await;
}
