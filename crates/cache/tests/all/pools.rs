//! What becomes of a connection when what was asked of it failed, was given up, or was too large.

use std::time::Duration;

use steadfast_cache::{
    Bounds, Cache, CacheError, Database, DatabaseOptions, GuardOptions, Param, SourceError, Ttl,
    View,
};
use steadfast_drill::fault::{Direction, Fault, Latency, Stall, Toxic};
use steadfast_drill::process::{MariaDb, Postgres};
use steadfast_drill::proxy::Proxy;

use crate::site::{connect, eventually};

async fn run(database: &Database, sql: &str) {
    let mut tx = database.begin().await.unwrap();
    tx.execute(sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn number(database: &Database, sql: &str) -> i64 {
    let rows = database.select(sql, &[]).await.unwrap();
    rows[0].iter().next().unwrap().1.as_i64().unwrap()
}

fn options(connections: u32, readers: Option<u32>) -> DatabaseOptions {
    let mut options = DatabaseOptions::default();
    options.max_connections = connections;
    options.read_only_connections = readers;
    // Whether one comes free is what is asked, not how soon.
    options.acquire_timeout = Duration::from_secs(60);
    options.query_limit = Duration::from_secs(60);
    options
}

fn file(options: DatabaseOptions) -> (Database, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    (Database::connect(&url, options).unwrap(), folder)
}

/// SQLite rolls back by itself in a conflict clause, in a trigger, and when its file can grow no
/// more; sqlx does not notice.
#[tokio::test]
async fn k13_a_transaction_that_sqlite_ended_by_itself_leaves_no_connection_behind() {
    let (database, _folder) = file(options(1, None));
    run(
        &database,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, text BLOB)",
    )
    .await;
    run(&database, "CREATE TRIGGER no BEFORE INSERT ON t WHEN NEW.id = 13 BEGIN SELECT RAISE(ROLLBACK, 'no'); END").await;
    run(&database, "INSERT INTO t VALUES (1, '')").await;
    for bad in [
        "INSERT OR ROLLBACK INTO t VALUES (1, 'again')",
        "INSERT INTO t VALUES (13, '')",
        "INSERT INTO t VALUES (14, zeroblob(1000000))",
    ] {
        for _ in 0..2 {
            let mut tx = database.begin().await.unwrap();
            tx.execute("PRAGMA max_page_count = 20", &[]).await.unwrap();
            assert!(tx.execute(bad, &[]).await.is_err(), "{bad}");
            // Whether the whole transaction is gone or the statement alone: nothing of it may be
            // kept.
            let _ = tx.execute("INSERT INTO t VALUES (99, 'kept?')", &[]).await;
            let ended = tx.execute("DELETE FROM t WHERE id = 99", &[]).await;
            if matches!(ended, Err(SourceError::Ended)) {
                assert!(matches!(tx.commit().await, Err(SourceError::Ended)));
            } else {
                tx.rollback().await.unwrap();
            }
        }
        let mut tx = database.begin().await.unwrap();
        tx.execute("PRAGMA max_page_count = 1000000", &[])
            .await
            .unwrap();
        tx.commit().await.unwrap();
        run(&database, "INSERT INTO t VALUES (2, '')").await;
        run(&database, "DELETE FROM t WHERE id = 2").await;
        assert_eq!(
            number(&database, "SELECT COUNT(*) FROM t").await,
            1,
            "{bad}"
        );
    }
}

/// As a caller of sqlx may leave it, who takes the pool out.
#[tokio::test]
async fn k13_a_pool_that_is_used_past_us_gets_no_connection_back_in_a_transaction() {
    let (database, _folder) = file(options(1, None));
    run(&database, "CREATE TABLE t (id INTEGER PRIMARY KEY)").await;
    let steadfast_cache::Pool::Sqlite(pool) = database.pool() else {
        unreachable!()
    };
    for _ in 0..3 {
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        sqlx::query("INSERT OR ROLLBACK INTO t VALUES (1), (1)")
            .execute(&mut *tx)
            .await
            .unwrap_err();
        drop(tx);
    }
    run(&database, "INSERT INTO t VALUES (7)").await;
    assert_eq!(number(&database, "SELECT id FROM t").await, 7);
}

#[tokio::test]
async fn k13_after_a_deadlock_mariadb_keeps_nothing_of_what_follows_in_the_transaction() {
    let server = MariaDb::start().await.unwrap();
    let database = connect(&server.url());
    run(
        &database,
        "CREATE TABLE t (id INT PRIMARY KEY, n INT) ENGINE=InnoDB",
    )
    .await;
    run(&database, "INSERT INTO t VALUES (1, 0), (2, 0)").await;
    let (mut first, mut second) = (
        database.begin().await.unwrap(),
        database.begin().await.unwrap(),
    );
    let set = |id| format!("UPDATE t SET n = n + 1 WHERE id = {id}");
    first.execute(&set(1), &[]).await.unwrap();
    second.execute(&set(2), &[]).await.unwrap();
    let (sql_1, sql_2) = (set(1), set(2));
    let (one, two) = tokio::join!(first.execute(&sql_2, &[]), second.execute(&sql_1, &[]));
    let (mut victim, other) = if one.is_err() {
        (first, second)
    } else {
        (second, first)
    };
    assert!(one.is_err() != two.is_err());
    let more = victim.execute("INSERT INTO t VALUES (3, 0)", &[]).await;
    assert!(matches!(more, Err(SourceError::Ended)));
    assert!(matches!(victim.commit().await, Err(SourceError::Ended)));
    other.commit().await.unwrap();
    assert_eq!(number(&database, "SELECT COUNT(*) FROM t").await, 2);
}

/// Where it is seen what runs in the database.
enum Watch {
    MariaDb,
    Postgres,
}

impl Watch {
    /// How often this statement runs now. Whatever else does is nothing to count: connections are
    /// opened, asked for their numbers, told to stop.
    async fn running(&self, other: &Database, statement: &str) -> i64 {
        let rows = match self {
            Self::MariaDb => {
                "SELECT COUNT(*) AS n FROM information_schema.processlist WHERE command IN ('Execute', 'Query') AND id <> CONNECTION_ID() AND LOCATE(?, info) = 1"
            }
            Self::Postgres => {
                "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() AND starts_with(query, $1)"
            }
        };
        let rows = other.select(rows, &[statement.into()]).await.unwrap();
        rows[0]["n"].as_i64().unwrap()
    }
}

/// A result far larger than what is kept of it is left in the database, at once, and the database
/// stops.
async fn a_large_result_is_left(url: &str, sql: &str, watch: Option<Watch>) {
    for readers in [None, Some(1)] {
        let database = Database::connect(url, options(1, readers)).unwrap();
        let other = Database::connect(url, options(1, None)).unwrap();
        // Nothing here stands still meanwhile.
        let beats = tokio::spawn(async {
            let mut longest = Duration::ZERO;
            loop {
                let before = tokio::time::Instant::now();
                tokio::time::sleep(Duration::from_millis(10)).await;
                longest = longest.max(before.elapsed());
                if longest > Duration::from_secs(10) {
                    return longest;
                }
            }
        });
        for _ in 0..3 {
            let selected = database
                .select_within(Bounds::new(10, usize::MAX), sql, &[])
                .await
                .unwrap();
            assert_eq!((selected.rows.len(), selected.truncated), (10, true));
        }
        if let Some(watch) = &watch {
            eventually("the database has stopped", || async {
                watch.running(&other, sql).await == 0
            })
            .await;
        }
        assert_eq!(number(&database, "SELECT 7 AS seven").await, 7);
        assert!(!beats.is_finished(), "the runtime stood still");
        beats.abort();
    }
}

#[tokio::test]
async fn k13_a_result_that_is_cut_off_is_not_read_to_its_end() {
    let (mariadb, postgres) = tokio::join!(MariaDb::start(), Postgres::start());
    let (mariadb, postgres) = (mariadb.unwrap(), postgres.unwrap());
    let sql = "SELECT seq AS n FROM seq_1_to_100000000";
    a_large_result_is_left(&mariadb.url(), sql, Some(Watch::MariaDb)).await;
    // With a limit of its own the server is not told ours.
    let sql = "SELECT seq AS n FROM seq_1_to_100000000 LIMIT 99999999";
    a_large_result_is_left(&mariadb.url(), sql, Some(Watch::MariaDb)).await;
    let sql = "SELECT generate_series(1, 100000000) AS n";
    a_large_result_is_left(&postgres.url(), sql, Some(Watch::Postgres)).await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    a_large_result_is_left(&url, sql, None).await;
}

/// Opens both connections: a busy machine may take longer for one than the callers have.
async fn open_both(database: &Database, slow: &str) {
    let brief = slow.replace("60", "0.3");
    let (one, other) = tokio::join!(database.select(&brief, &[]), database.select(&brief, &[]));
    one.and(other).unwrap();
}

/// Two places, six callers at a time of what takes a minute, a third of a second for each.
async fn what_is_given_up_ends(url: &str, slow: &'static str, watch: Option<Watch>) {
    for readers in [None, Some(2)] {
        let database = Database::connect(url, options(2, readers)).unwrap();
        let other = Database::connect(url, options(1, None)).unwrap();
        let mut guard = GuardOptions::new(2, 1000.0);
        guard.wait = Duration::from_secs(20);
        let hurried = Ttl {
            hard_limit: Duration::from_millis(300),
            soft_limit: Duration::ZERO,
            ..Ttl::default()
        };
        let cache = Cache::builder(database.clone())
            .class("hurried", hurried)
            .class("patient", Ttl::default())
            .guard(guard)
            .build()
            .await
            .unwrap();
        let hurried: View<i64> = cache.view("hurried").unwrap();
        let patient: View<i64> = cache.view("patient").unwrap();
        let (mut round, mut most) = (0, 0);
        let began = tokio::time::Instant::now();
        // Until some of it was seen to run, which on a busy machine may not be the first time; and
        // the class may be left alone for a while.
        while round == 0 || (watch.is_some() && most == 0) {
            round += 1;
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "nothing was seen to run"
            );
            if watch.is_some() {
                open_both(&database, slow).await;
            }
            let calls = (0..6).map(|n| {
                let (hurried, database) = (hurried.clone(), database.clone());
                tokio::spawn(async move {
                    let load = move || async move {
                        let rows = database.select(slow, &[]).await?;
                        Ok(rows[0]["n"].as_i64())
                    };
                    hurried.get(format!("slow:{round}:{n}"), load).await
                })
            });
            let calls: Vec<_> = calls.collect();
            while !calls.iter().all(|call| call.is_finished()) {
                if let Some(watch) = &watch {
                    let running = watch.running(&other, slow).await;
                    assert!(running <= 2, "{running} run in the database");
                    most = most.max(running);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            for call in calls {
                assert!(call.await.unwrap().is_err());
            }
            eventually("every place is free", || async {
                cache.status().guard.running == 0
            })
            .await;
            if let Some(watch) = &watch {
                assert_eq!(
                    watch.running(&other, slow).await,
                    0,
                    "a place was free before its work had ended"
                );
            }
        }
        // Others are not kept out; the breaker, which has seen failures, may have to be waited for.
        eventually("another is answered", || async {
            let database = database.clone();
            let load = move || async move {
                let rows = database.select("SELECT 7 AS n", &[]).await?;
                Ok(rows[0]["n"].as_i64())
            };
            match patient.get("quick", load).await {
                Ok(answer) => answer.value == Some(7),
                Err(CacheError::Unavailable { .. }) => false,
                // Of a machine on which all this takes its time.
                Err(CacheError::LoadTimeout { .. } | CacheError::Load(_)) => false,
                Err(error) => panic!("{error}"),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn k13_a_query_that_is_given_up_ends_in_mariadb_and_only_then_leaves_its_place() {
    let server = MariaDb::start().await.unwrap();
    what_is_given_up_ends(&server.url(), "SELECT SLEEP(60) AS n", Some(Watch::MariaDb)).await;
}

#[tokio::test]
async fn k13_a_query_that_is_given_up_ends_in_postgres_and_only_then_leaves_its_place() {
    let server = Postgres::start().await.unwrap();
    let sql = "SELECT 1 AS n FROM pg_sleep(60)";
    what_is_given_up_ends(&server.url(), sql, Some(Watch::Postgres)).await;
}

#[tokio::test]
async fn k13_a_query_that_is_given_up_ends_in_sqlite_and_only_then_leaves_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("t.db").display());
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) AS n FROM n";
    what_is_given_up_ends(&url, sql, None).await;
}

/// A database behind a wire that can be broken.
async fn behind_a_proxy(url: &str, port: u16) -> (Proxy, String) {
    let proxy = Proxy::start(([127, 0, 0, 1], port).into()).await.unwrap();
    let through = url.replace(&format!(":{port}"), &format!(":{}", proxy.addr().port()));
    assert_ne!(through, url);
    (proxy, through)
}

async fn break_wire(proxy: &Proxy, direction: Direction, fault: Fault) {
    let toxic = Toxic {
        name: "broken".into(),
        direction,
        toxicity: 1.0,
        fault,
    };
    proxy.add(toxic).await.unwrap();
}

/// To stop a query a connection has to be opened, which takes its time over a long wire. Until the
/// query has ended its place is taken.
async fn a_place_is_free_only_when_its_query_has_ended(
    url: &str,
    port: u16,
    (brief, slow): (&'static str, &'static str),
    watch: Watch,
) {
    let (proxy, through) = behind_a_proxy(url, port).await;
    let database = Database::connect(&through, options(2, None)).unwrap();
    let other = Database::connect(url, options(1, None)).unwrap();
    let (one, two) = tokio::join!(database.select(brief, &[]), database.select(brief, &[]));
    one.and(two).unwrap();
    let far = Latency {
        latency: Duration::from_millis(300),
        jitter: Duration::ZERO,
    };
    break_wire(&proxy, Direction::Downstream, Fault::Latency(far)).await;
    let hurried = Ttl {
        hard_limit: Duration::from_secs(5),
        ..Ttl::default()
    };
    let cache = Cache::builder(database.clone())
        .class("hurried", hurried)
        .guard(GuardOptions::new(2, 1000.0));
    let cache = cache.build().await.unwrap();
    let view: View<i64> = cache.view("hurried").unwrap();
    let calls = (0..2).map(|n| {
        let (view, database) = (view.clone(), database.clone());
        tokio::spawn(async move {
            let load = move || async move {
                database.select(slow, &[]).await?;
                Ok(None)
            };
            view.get(format!("slow:{n}"), load).await
        })
    });
    let calls: Vec<_> = calls.collect();
    eventually("they run", || async {
        watch.running(&other, slow).await == 2
    })
    .await;
    // Nothing more is begun, so that a place which is free has to be one that nothing runs by.
    loop {
        let places = cache.status().guard.running as i64;
        let running = watch.running(&other, slow).await;
        assert!(running <= places, "{running} run by {places} places");
        if places == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for call in calls {
        assert!(call.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn k13_a_place_is_free_only_when_its_query_has_ended_in_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let sql = ("SELECT SLEEP(0.2) AS n", "SELECT SLEEP(600) AS n");
    let (url, port) = (server.url(), server.port());
    a_place_is_free_only_when_its_query_has_ended(&url, port, sql, Watch::MariaDb).await;
}

#[tokio::test]
async fn k13_a_place_is_free_only_when_its_query_has_ended_in_postgres() {
    let server = Postgres::start().await.unwrap();
    let sql = (
        "SELECT 1 AS n FROM pg_sleep(0.2)",
        "SELECT 1 AS n FROM pg_sleep(600)",
    );
    let (url, port) = (server.url(), server.port());
    a_place_is_free_only_when_its_query_has_ended(&url, port, sql, Watch::Postgres).await;
}

/// What a process has begun that is cut off, and can stop nothing any more.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Begun {
    /// A query on a connection that only reads.
    Query,
    /// A statement of a transaction.
    Statement,
    /// A transaction in which nothing is asked.
    Silence,
}

/// The database was told how long each of these may take, and ends it by itself.
async fn what_is_cut_off_ends_by_itself(
    url: &str,
    port: u16,
    slow: &'static str,
    watch: Watch,
    begun: &[Begun],
) {
    let other = Database::connect(url, options(1, None)).unwrap();
    run(&other, "CREATE TABLE t (id INT PRIMARY KEY)").await;
    for begun in begun.iter().copied() {
        let (proxy, through) = behind_a_proxy(url, port).await;
        let mut options = options(1, Some(1));
        let limit = Duration::from_secs(5);
        (options.query_limit, options.statement_limit) = (limit, limit);
        let database = Database::connect(&through, options).unwrap();
        let insert = "INSERT INTO t VALUES (1)";
        let working = tokio::spawn(async move {
            // Again, should a busy machine have taken all the time to connect.
            loop {
                if begun == Begun::Query {
                    let _ = database.select(slow, &[]).await;
                } else if let Ok(mut tx) = database.begin().await {
                    tx.execute(insert, &[]).await.unwrap();
                    if begun == Begun::Statement {
                        let _ = tx.select(slow, &[]).await;
                    }
                    std::future::pending::<()>().await;
                }
            }
        });
        // A transaction is seen by the row that it keeps others from inserting.
        let is_there = async || match begun {
            Begun::Silence => {
                let open = "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE state = 'idle in transaction'";
                let open = other.select(open, &[]).await.unwrap();
                open[0]["n"].as_i64() == Some(1)
            }
            _ => watch.running(&other, slow).await == 1,
        };
        eventually("it is there", is_there).await;
        break_wire(&proxy, Direction::Both, Fault::Stall(Stall::default())).await;
        eventually("the database has ended it", async || !is_there().await).await;
        working.abort();
    }
}

#[tokio::test]
async fn k13_what_a_process_that_is_cut_off_has_begun_ends_by_itself_in_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let (url, port) = (server.url(), server.port());
    let slow = "SELECT SLEEP(600) AS n";
    what_is_cut_off_ends_by_itself(&url, port, slow, Watch::MariaDb, &[Begun::Query]).await;
}

#[tokio::test]
async fn k13_what_a_process_that_is_cut_off_has_begun_ends_by_itself_in_postgres() {
    let server = Postgres::start().await.unwrap();
    let (url, port) = (server.url(), server.port());
    let slow = "SELECT 1 AS n FROM pg_sleep(600)";
    let all = [Begun::Query, Begun::Statement, Begun::Silence];
    what_is_cut_off_ends_by_itself(&url, port, slow, Watch::Postgres, &all).await;
}

/// A statement that runs out of time is stopped too, and its transaction is over.
#[tokio::test]
async fn k13_a_statement_out_of_time_ends_with_its_transaction() {
    let (mariadb, postgres) = tokio::join!(MariaDb::start(), Postgres::start());
    let (mariadb, postgres) = (mariadb.unwrap(), postgres.unwrap());
    for (url, slow, watch) in [
        (mariadb.url(), "SELECT SLEEP(60)", Watch::MariaDb),
        (postgres.url(), "SELECT pg_sleep(60)::text", Watch::Postgres),
    ] {
        let mut options = options(1, None);
        options.statement_limit = Duration::from_millis(300);
        let database = Database::connect(&url, options).unwrap();
        let other = connect(&url);
        run(&database, "CREATE TABLE t (id INT PRIMARY KEY)").await;
        let mut tx = database.begin().await.unwrap();
        tx.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();
        let late = tx.select(slow, &[]).await;
        assert!(matches!(late, Err(SourceError::Timeout { .. })), "{late:?}");
        assert!(matches!(tx.commit().await, Err(SourceError::Ended)));
        eventually("it has ended", || async {
            watch.running(&other, slow).await == 0
        })
        .await;
        run(&database, "INSERT INTO t VALUES (2)").await;
        assert_eq!(number(&database, "SELECT id FROM t").await, 2);
    }
}

/// One connection, so that it is surely one that has prepared the query before.
async fn s12_values_stand_under_their_own_names(url: &str, changes: &[&str]) {
    for readers in [None, Some(1)] {
        let database = Database::connect(url, options(1, readers)).unwrap();
        run(
            &database,
            "CREATE TABLE t (id INTEGER PRIMARY KEY, a VARCHAR(9), b VARCHAR(9))",
        )
        .await;
        run(&database, "INSERT INTO t VALUES (1, 'a', 'b')").await;
        let ask = || async {
            let rows = database.select("SELECT * FROM t", &[]).await.unwrap();
            let mut tx = database.begin().await.unwrap();
            let within = tx.select("SELECT * FROM t", &[]).await.unwrap();
            tx.rollback().await.unwrap();
            assert_eq!(rows, within);
            rows.into_iter().next().unwrap()
        };
        for _ in 0..3 {
            assert_eq!(ask().await["b"], "b");
        }
        for change in changes {
            for part in change.split(';') {
                run(&database, part).await;
            }
            let row = ask().await;
            for (name, value) in row.iter() {
                let own = value.is_null() || name == "id" || value.as_str() == Some(name);
                assert!(own, "{change}: {row:?}");
            }
        }
        run(&database, "DROP TABLE t").await;
    }
}

#[tokio::test]
async fn s12_after_a_migration_values_stand_under_their_own_names() {
    let (mariadb, postgres) = tokio::join!(MariaDb::start(), Postgres::start());
    let (mariadb, postgres) = (mariadb.unwrap(), postgres.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}", folder.path().join("t.db").display());
    // Another order, a column more, columns fewer, another name.
    let rebuilt = "CREATE TABLE other (id INTEGER PRIMARY KEY, b VARCHAR(9), a VARCHAR(9));INSERT INTO other SELECT id, b, a FROM t;\
                   DROP TABLE t;ALTER TABLE other RENAME TO t";
    let changes = [
        rebuilt,
        "ALTER TABLE t ADD COLUMN c VARCHAR(9)",
        "ALTER TABLE t DROP COLUMN c",
        "ALTER TABLE t DROP COLUMN a",
        "UPDATE t SET b = 'd';ALTER TABLE t RENAME COLUMN b TO d",
    ];
    for url in [&sqlite, &mariadb.url(), &postgres.url()] {
        s12_values_stand_under_their_own_names(url, &changes).await;
    }
}

#[tokio::test]
async fn s12_the_last_id_is_that_of_the_statement_or_none() {
    let (database, _folder) = file(options(1, None));
    run(
        &database,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE)",
    )
    .await;
    run(
        &database,
        "CREATE TABLE w (name TEXT PRIMARY KEY) WITHOUT ROWID",
    )
    .await;
    let mut tx = database.begin().await.unwrap();
    let mut last = async |sql| tx.execute(sql, &[]).await.unwrap().last_insert_id;
    assert_eq!(last("INSERT INTO t VALUES (41, 'a')").await, Some(41));
    assert_eq!(last("INSERT INTO t (name) VALUES ('b')").await, Some(42));
    for sql in [
        "INSERT INTO t (name) VALUES ('a') ON CONFLICT DO NOTHING",
        "INSERT OR IGNORE INTO t (name) VALUES ('a')",
        "INSERT INTO w VALUES ('a')",
        "UPDATE t SET name = 'c' WHERE id = 41",
        "INSERT INTO t (name) SELECT 'z' WHERE 0",
    ] {
        assert_eq!(last(sql).await, None, "{sql}");
    }
    assert_eq!(last("INSERT INTO t (name) VALUES ('d')").await, Some(43));
}

#[tokio::test]
async fn s14_a_result_is_bounded_in_bytes_and_says_so() {
    let (database, _folder) = file(options(1, None));
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) SELECT i, zeroblob(?) AS raw FROM n";
    let kilo = [Param::Int(1 << 10)];
    let bounds = Bounds::new(1000, 10 << 10);
    let selected = database.select_within(bounds, sql, &kilo).await.unwrap();
    assert!(
        selected.truncated && selected.rows.len() == 4,
        "{}",
        selected.rows.len()
    );
    let mega = [Param::Int(1 << 20)];
    let error = database
        .select_within(bounds, sql, &mega)
        .await
        .unwrap_err();
    assert!(
        matches!(error, SourceError::RowTooLarge { bytes: 10_240 }),
        "{error}"
    );
    let all = database
        .select_within(Bounds::new(1000, 1 << 20), sql, &kilo)
        .await
        .unwrap();
    assert_eq!((all.rows.len(), all.truncated, all.seen), (100, false, 100));
    // A statement runs to its end, however little is kept.
    run(&database, "CREATE TABLE t (id INTEGER PRIMARY KEY)").await;
    let mut tx = database.begin().await.unwrap();
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO t SELECT i FROM n RETURNING id";
    let kept = tx
        .select_within(Bounds::new(3, 1 << 20), sql, &[])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        (kept.rows.len(), kept.truncated, kept.seen),
        (3, true, 5000)
    );
    assert_eq!(number(&database, "SELECT COUNT(*) FROM t").await, 5000);
}

/// What a new user does first: everything at its default, and a cache that is empty. All but the
/// limits of time: a machine that is busy with other things may take longer to open a connection,
/// or stand still for half a second, and it is the queue that is asked.
async fn a_healthy_database_drains_the_queue(url: &str) {
    let mut options = DatabaseOptions::default();
    options.acquire_timeout = Duration::from_secs(60);
    let database = Database::connect(url, options).unwrap();
    let patient = Ttl {
        hard_limit: Duration::from_secs(600),
        ..Ttl::default()
    };
    let mut guard = GuardOptions::default();
    guard.wait = Duration::from_secs(2);
    let cache = Cache::builder(database.clone()).guard(guard);
    let cache = cache.class("default", patient).build().await.unwrap();
    let view: View<i64> = cache.view("default").unwrap();
    // Before any load has ended they would be waited for ten times as long.
    view.get("first", || async { Ok(Some(7)) }).await.unwrap();
    let reads = (0..3000_i64).map(|n| {
        let (view, database) = (view.clone(), database.clone());
        tokio::spawn(async move {
            let load = move || async move {
                let rows = database.select("SELECT 7 AS n", &[]).await?;
                // So that all of them take longer than any may wait while none is admitted.
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(rows[0]["n"].as_i64())
            };
            view.get(format!("cold:{n}"), load)
                .await
                .map(|answer| answer.value)
        })
    });
    for read in reads.collect::<Vec<_>>() {
        assert_eq!(read.await.unwrap().unwrap(), Some(7));
    }
}

#[tokio::test]
async fn k9_three_thousand_cold_reads_are_answered_by_a_healthy_database() {
    let (mariadb, postgres) = tokio::join!(MariaDb::start(), Postgres::start());
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}", folder.path().join("t.db").display());
    let (mariadb, postgres) = (mariadb.unwrap(), postgres.unwrap());
    for url in [sqlite, mariadb.url(), postgres.url()] {
        a_healthy_database_drains_the_queue(&url).await;
    }
}
