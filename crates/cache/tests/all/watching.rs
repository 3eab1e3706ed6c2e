//! What watches goes on watching, whatever is slow, locked or taken away.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use steadfast_cache::{Cache, Database, DatabaseOptions, Pool, Ttl};
use steadfast_drill::process::{MariaDb, Postgres, Redis};
use tokio::net::TcpListener;

use crate::runtimes::runtime;
use crate::site::{
    Listener, Site, connect, create_table, eventually, outbox_is_empty, patient, plain, read_item,
    select_item, set_item, text, write_and_die, write_everywhere, write_item,
};

#[tokio::test]
async fn k14_a_waiting_invalidation_is_seen_and_delivered_while_loads_hold_every_connection() {
    let site = Site::start().await;
    let mut options = patient();
    options.max_connections = 2;
    let database = Database::connect(&site.database_url(), options).unwrap();
    let cache = plain(&database).redis(site.client().await);
    let cache = cache.build().await.unwrap();
    write_item(&cache, 7, 1).await;
    assert_eq!(read_item(&cache, 7).await.as_deref(), Some("1"));
    let Pool::Sqlite(pool) = database.pool() else {
        unreachable!()
    };
    let held = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    write_and_die(&site.database, 7, 2).await;
    let other = site.database.clone();
    let read = || async {
        let other = other.clone();
        let load = move || async move { Ok(select_item(&other, 7).await?) };
        text(&cache, "strict")
            .get("item:7".to_owned(), load)
            .await
            .unwrap()
            .value
    };
    eventually("the new value is seen", || async {
        read().await.as_deref() == Some("2")
    })
    .await;
    eventually("it is delivered", || outbox_is_empty(&site.database)).await;
    drop(held);
}

/// Everything at its default: ten loads hold ten connections for a minute, and a process dies
/// between its commit and its relay.
async fn ten_loads_hide_no_invalidation(url: &str, slow: &'static str) {
    let redis = Redis::start().await.unwrap();
    let database = Database::connect(url, DatabaseOptions::default()).unwrap();
    create_table(&database).await;
    let client = steadfast::Client::builder(&redis.url()).unwrap();
    let long = Ttl {
        hard_limit: Duration::from_secs(120),
        ..Ttl::default()
    };
    let builder = plain(&database).redis(client.connect().await.unwrap());
    let cache = builder.class("long", long).build().await.unwrap();
    write_item(&cache, 7, 1).await;
    let read = async || {
        let database = database.clone();
        let load = move || async move { Ok(select_item(&database, 7).await?) };
        text(&cache, "strict").get("item:7", load).await
    };
    assert_eq!(read().await.unwrap().value.as_deref(), Some("1"));
    for n in 0..10 {
        let (view, database) = (text(&cache, "long"), database.clone());
        tokio::spawn(async move {
            let load = move || async move {
                database.select(slow, &[]).await?;
                Ok(None)
            };
            view.get(n, load).await
        });
    }
    eventually("they hold every place", || async {
        cache.status().guard.running == 10
    })
    .await;
    let other = connect(url);
    let mut tx = other.begin().await.unwrap();
    set_item(&mut tx, 7, 2).await.unwrap();
    let left = "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES ('test', 'key', 'item:7', 0)";
    tx.execute(left, &[]).await.unwrap();
    tx.commit().await.unwrap();
    // It may not be possible to load the new value now, but the old one is fresh no longer.
    let is_old = async || {
        let read = read().await;
        read.is_ok_and(|answer| answer.value.as_deref() == Some("1"))
    };
    eventually("the old value is not served", || async { !is_old().await }).await;
    assert!(outbox_is_empty(&other).await || cache.status().redis.unwrap().suspended.is_some());
    assert_eq!(cache.status().guard.running, 10);
}

#[tokio::test]
async fn k14_ten_loads_on_mariadb_hide_no_invalidation() {
    let server = MariaDb::start().await.unwrap();
    ten_loads_hide_no_invalidation(&server.url(), "SELECT SLEEP(60) AS n").await;
}

#[tokio::test]
async fn k14_ten_loads_on_postgres_hide_no_invalidation() {
    let server = Postgres::start().await.unwrap();
    ten_loads_hide_no_invalidation(&server.url(), "SELECT 1 AS n FROM pg_sleep(60)").await;
}

#[tokio::test]
async fn k14_a_role_that_lacks_a_right_is_told_of() {
    let server = Postgres::start().await.unwrap();
    let owner = connect(&server.url());
    create_table(&owner).await;
    let redis = Redis::start().await.unwrap();
    let client = || async {
        let builder = steadfast::Client::builder(&redis.url()).unwrap();
        builder.connect().await.unwrap()
    };
    drop(plain(&owner).redis(client().await).build().await.unwrap());
    let mut tx = owner.begin().await.unwrap();
    for sql in [
        "CREATE ROLE app LOGIN",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO app",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app",
        "REVOKE DELETE ON steadfast_outbox FROM app",
        "CREATE ROLE blind LOGIN",
        "GRANT INSERT ON steadfast_outbox TO blind",
    ] {
        tx.execute(sql, &[]).await.unwrap();
    }
    tx.commit().await.unwrap();
    let app = |role: &str| {
        let url = server.url().replace("postgres@", &format!("{role}@"));
        connect(&url)
    };
    let cache = plain(&app("app")).redis(client().await);
    let cache = cache.build().await.unwrap();
    assert!(cache.status().outbox_trouble.is_none());
    write_item(&cache, 7, 1).await;
    let blind = plain(&app("blind")).redis(client().await);
    let blind = blind.build().await.unwrap();
    for (cache, what) in [(&cache, "drained"), (&blind, "looked at")] {
        eventually("the status says what is missing", || async {
            let trouble = cache.status().outbox_trouble.unwrap_or_default();
            trouble.contains(what) && trouble.contains("permission denied")
        })
        .await;
    }
    let mut tx = owner.begin().await.unwrap();
    let grant = "GRANT DELETE ON steadfast_outbox TO app";
    tx.execute(grant, &[]).await.unwrap();
    tx.commit().await.unwrap();
    eventually("it is delivered, and no trouble is left", || async {
        outbox_is_empty(&owner).await && cache.status().outbox_trouble.is_none()
    })
    .await;
}

#[tokio::test]
async fn k14_a_cache_is_built_while_its_database_hangs() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hanging = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            open.push(socket);
        }
    });
    let redis = Redis::start().await.unwrap();
    let client = steadfast::Client::builder(&redis.url()).unwrap();
    let client = client.connect().await.unwrap();
    let mut options = DatabaseOptions::default();
    options.acquire_timeout = Duration::from_secs(120);
    options.query_limit = Duration::from_secs(120);
    let url = format!("postgres://nobody@127.0.0.1:{port}/x");
    let database = Database::connect(&url, options).unwrap();
    let built = tokio::time::timeout(
        Duration::from_secs(30),
        plain(&database).redis(client).build(),
    );
    assert!(built.await.unwrap().is_ok());
    hanging.abort();
}

/// A migration holds the table of the outbox for longer than a look may take. Nobody but the
/// database knows of a look that is given up here, and it waits as long as it is let.
async fn looks_do_not_pile_up(url: &str, lock: &'static str, waiting: &str) {
    let redis = Redis::start().await.unwrap();
    let mut options = patient();
    options.query_limit = Duration::from_secs(1);
    let database = Database::connect(url, options).unwrap();
    create_table(&database).await;
    let client = steadfast::Client::builder(&redis.url()).unwrap();
    let client = client.connect().await.unwrap();
    let cache = plain(&database).redis(client).build().await.unwrap();
    write_everywhere(&cache, 7, 1).await;
    let other = connect(url);
    let migration = hold(&other, lock).await;
    let trouble = || async { cache.status().outbox_trouble.is_some() };
    eventually("the watch says so", trouble).await;
    let mut most = 0;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let waiting = other.select(waiting, &[]).await.unwrap();
        most = most.max(waiting[0]["n"].as_i64().unwrap());
    }
    assert!(most <= 4, "{most} sessions wait for the table");
    drop(migration);
    eventually("no trouble is left", || async {
        cache.status().outbox_trouble.is_none()
    })
    .await;
}

/// A connection of its own that holds a lock until it is dropped.
async fn hold(database: &Database, lock: &'static str) -> Box<dyn std::any::Any> {
    use sqlx::Executor;
    match database.pool() {
        Pool::Postgres(pool) => {
            let mut connection = pool.acquire().await.unwrap().detach();
            connection.execute(lock).await.unwrap();
            Box::new(connection)
        }
        Pool::MySql(pool) => {
            let mut connection = pool.acquire().await.unwrap().detach();
            connection.execute(lock).await.unwrap();
            Box::new(connection)
        }
        _ => unreachable!("it locks no table"),
    }
}

#[tokio::test]
async fn k14_looks_at_a_table_that_a_migration_holds_do_not_pile_up_in_postgres() {
    let server = Postgres::start().await.unwrap();
    let lock = "BEGIN; LOCK TABLE steadfast_outbox IN ACCESS EXCLUSIVE MODE";
    let waiting = "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    looks_do_not_pile_up(&server.url(), lock, waiting).await;
}

#[tokio::test]
async fn k14_looks_at_a_table_that_a_migration_holds_do_not_pile_up_in_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let lock = "LOCK TABLES steadfast_outbox WRITE";
    let waiting = "SELECT COUNT(*) AS n FROM information_schema.processlist \
                   WHERE state LIKE '%metadata lock%'";
    looks_do_not_pile_up(&server.url(), lock, waiting).await;
}

/// In a session that does not commit by itself a first query begins a transaction, and all that
/// follow see what it saw.
#[tokio::test]
async fn k6_a_mariadb_that_does_not_commit_by_itself_shows_what_is_there_now() {
    let server = MariaDb::start().await.unwrap();
    let owner = connect(&server.url());
    create_table(&owner).await;
    let mut tx = owner.begin().await.unwrap();
    tx.execute("SET GLOBAL autocommit = 0", &[]).await.unwrap();
    tx.commit().await.unwrap();
    let redis = Redis::start().await.unwrap();
    let client = steadfast::Client::builder(&redis.url()).unwrap();
    let client = client.connect().await.unwrap();
    let database = connect(&server.url());
    let cache = plain(&database).redis(client).build().await.unwrap();
    write_item(&cache, 7, 1).await;
    assert_eq!(read_item(&cache, 7).await.as_deref(), Some("1"));
    let mut tx = owner.begin().await.unwrap();
    set_item(&mut tx, 7, 2).await.unwrap();
    let left = "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) \
                VALUES ('test', 'key', 'item:7', 0)";
    tx.execute(left, &[]).await.unwrap();
    tx.commit().await.unwrap();
    eventually(
        "the watch sees what others write, and so do loads",
        || async { read_item(&cache, 7).await.as_deref() == Some("2") },
    )
    .await;
}

/// A layer of a subscriber that shows how the cache is, whenever something is amiss.
#[test]
fn k14_whoever_asks_for_the_status_at_each_warning_holds_nothing_up() {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let watched = Arc::new(OnceLock::<Cache>::new());
        let count = Arc::default();
        let of = Arc::clone(&watched);
        let listener = Listener {
            words: "the database was rolled back",
            count: Arc::clone(&count),
            act: move || drop(of.get().map(Cache::status)),
        };
        let _told = tracing::subscriber::set_default(listener);
        runtime().block_on(async {
            let site = Site::start().await;
            let cache = site.cache().await;
            write_everywhere(&cache, 7, 3).await;
            let _ = watched.set(cache.clone());
            let mut tx = site.database.begin().await.unwrap();
            let back = "UPDATE steadfast_outbox_state SET watermark = 0 WHERE namespace = 'test'";
            tx.execute(back, &[]).await.unwrap();
            tx.commit().await.unwrap();
            let heard = || async { count.load(Ordering::SeqCst) > 0 };
            eventually("it is told", heard).await;
            // The breaker of a class, and trouble with the outbox.
            let view = text(&cache, "strict");
            for _ in 0..20 {
                let load = || async { Err(steadfast_cache::LoadError::unavailable("503")) };
                let _ = view.read("a").get_uncached(load).await;
            }
            site.take_no_writes(true).await;
            write_item(&cache, 8, 1).await;
            let trouble = || async { cache.status().outbox_trouble.is_some() };
            eventually("there is trouble", trouble).await;
        });
        let _ = tell.send(());
    });
    let ended = told.recv_timeout(Duration::from_secs(120));
    ended.expect("nothing hangs");
}

#[tokio::test]
async fn k7_trouble_with_the_outbox_is_not_over_because_redis_has_gone() {
    let site = Site::start().await;
    let cache = site.cache().await;
    site.take_no_writes(true).await;
    write_item(&cache, 7, 1).await;
    let trouble = || async { cache.status().outbox_trouble.is_some() };
    eventually("there is trouble", trouble).await;
    let count = Arc::default();
    let listener = Listener {
        words: "can be drained again",
        count: Arc::clone(&count),
        act: || (),
    };
    let _told = tracing::subscriber::set_default(listener);
    site.redis.kill().await;
    // Several rounds.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(trouble().await);
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn k14_a_right_that_was_taken_away_is_told_once_and_as_what_it_is() {
    let server = Postgres::start().await.unwrap();
    let owner = connect(&server.url());
    create_table(&owner).await;
    let redis = Redis::start().await.unwrap();
    let client = || async {
        let builder = steadfast::Client::builder(&redis.url()).unwrap();
        builder.connect().await.unwrap()
    };
    drop(plain(&owner).redis(client().await).build().await.unwrap());
    let mut tx = owner.begin().await.unwrap();
    for sql in [
        "CREATE ROLE app LOGIN",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO app",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app",
    ] {
        tx.execute(sql, &[]).await.unwrap();
    }
    tx.commit().await.unwrap();
    let app = connect(&server.url().replace("postgres@", "app@"));
    let cache = plain(&app).redis(client().await).build().await.unwrap();
    write_everywhere(&cache, 7, 1).await;
    let refused = "permission denied";
    let count = Arc::default();
    let listener = Listener {
        words: refused,
        count: Arc::clone(&count),
        act: || (),
    };
    let _told = tracing::subscriber::set_default(listener);
    let mut tx = owner.begin().await.unwrap();
    let revoke = "REVOKE SELECT ON steadfast_outbox FROM app";
    tx.execute(revoke, &[]).await.unwrap();
    tx.commit().await.unwrap();
    eventually("the status says what is missing", || async {
        let trouble = cache.status().outbox_trouble.unwrap_or_default();
        trouble.contains(refused)
    })
    .await;
    // Ten looks and more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let told = count.load(Ordering::SeqCst);
    assert!(told <= 2, "{told} lines");
}
