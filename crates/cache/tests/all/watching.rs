//! What watches goes on watching, and what nobody knows is not taken for good.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use steadfast_cache::{
    Cache, CacheError, Database, DatabaseOptions, Pool, Source, Target, Ttl, Tx,
};
use steadfast_drill::process::{MariaDb, Postgres, Redis};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::rollback::roll_back;
use crate::site::{
    Listener, Loader, Site, all_is_applied, connect, create_table, eventually, get, patient, plain,
    read_item, select_item, set_item, sqlite, text, write_everywhere, write_item,
};

/// What a process writes that dies before its relay.
async fn write_and_die(database: &Database, id: i64, version: i64) {
    let mut tx = database.begin().await.unwrap();
    set_item(&mut tx, id, version).await.unwrap();
    let sql = format!(
        "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES ('test', 'key', '{}', {})",
        format_args!("item:{id}"),
        "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
    );
    tx.execute(&sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn outbox_is_empty(database: &Database) -> bool {
    let rows = database
        .select("SELECT id FROM steadfast_outbox", &[])
        .await;
    rows.is_ok_and(|rows| rows.is_empty())
}

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

/// Redis was restored from an old snapshot, and SQL, which alone knows, is away: the ordinary cold
/// start after a power cut.
#[tokio::test]
async fn k16_until_sql_was_seen_what_redis_holds_is_stale() {
    let site = Site::start().await;
    let first = site.cache().await;
    write_everywhere(&first, 7, 1).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("1"));
    eventually("Redis has it", || async {
        first.status().counts.fills == 1
    })
    .await;
    site.redis.save_snapshot().await.unwrap();
    write_everywhere(&first, 7, 2).await;
    drop(first);
    site.redis.restart_from_snapshot().await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("not yet");
    let url = format!("sqlite://{}", missing.join("x.db").display());
    let away = Database::connect(&url, DatabaseOptions::default()).unwrap();
    let cold = plain(&away).redis(site.client().await);
    let cold = cold.build().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await; // older than what may be fresh on its own word
    let read = |class: &'static str| {
        let (cold, away) = (cold.clone(), away.clone());
        async move {
            let load = move || async move { Ok(select_item(&away, 7).await?) };
            text(&cold, class).get("item:7".to_owned(), load).await
        }
    };
    assert!(!cold.status().redis.unwrap().proven);
    let answer = read("user").await.unwrap();
    assert_eq!(answer.value.as_deref(), Some("1"));
    assert!(answer.stale.is_some(), "{answer:?}");
    let again = read("user").await.unwrap();
    assert!(
        again.stale.is_some(),
        "nor is it fresh in memory: {again:?}"
    );
    let strict = read("strict").await;
    assert!(strict.is_err(), "{strict:?}");

    // SQL is there again, empty and anew, but it has spoken.
    std::fs::create_dir(&missing).unwrap();
    eventually("SQL was seen", || async {
        let status = cold.status();
        status.memory_proven && status.redis.is_some_and(|redis| redis.proven)
    })
    .await;
}

#[tokio::test]
async fn k16_a_database_that_was_rolled_back_takes_everything_with_it() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    for version in 1..=3 {
        write_everywhere(&first, 7, version).await;
    }
    for cache in [&first, &second] {
        assert_eq!(read_item(cache, 7).await.as_deref(), Some("3"));
    }
    roll_back(&site.database, 100, 1).await;
    for cache in [&first, &second] {
        eventually("what SQL holds now is seen", || async {
            read_item(cache, 7).await.as_deref() == Some("100")
        })
        .await;
    }
    eventually("all is well again", || async {
        let status = second.status();
        status.memory_proven && status.redis.is_some_and(|redis| redis.trusted)
    })
    .await;
    write_everywhere(&first, 7, 101).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("101"));

    // Nobody was there to see it fall: Redis is ahead of a SQL in which nothing waits.
    drop((first, second));
    roll_back(&site.database, 200, 1).await;
    let third = site.cache().await;
    eventually("what SQL holds now is seen", || async {
        read_item(&third, 7).await.as_deref() == Some("200")
    })
    .await;
}

/// Redis answers reads, but takes no epoch just then.
#[tokio::test]
async fn k16_what_cannot_be_found_out_about_redis_is_asked_again_though_nobody_reads() {
    let site = Site::start().await;
    let cache = site.cache().await;
    eventually("it uses Redis", || async {
        cache.status().redis.unwrap().trusted
    })
    .await;
    site.redis.command(&["DEL", "test:epoch"]).await.unwrap();
    site.take_no_writes(true).await;
    let loader = Loader::default();
    let answer = get(&cache, "a", "user", &loader).await.unwrap();
    assert_eq!(answer.source, Source::Database);
    assert!(!cache.status().redis.unwrap().trusted);
    site.take_no_writes(false).await;
    eventually("it uses Redis again", || async {
        cache.status().redis.unwrap().trusted
    })
    .await;
}

/// Nothing is connected to anew, so only what Redis says of itself can tell.
#[tokio::test]
async fn k16_a_redis_that_is_emptied_or_taken_back_is_noticed_though_nobody_reads() {
    let site = Site::start().await;
    let cache = site.cache().await;
    write_everywhere(&cache, 7, 1).await;
    for change in [
        &["SET", "test:watermark", "0"][..],
        &["SET", "test:watermark", "9007199254740993"],
        &["SET", "test:watermark", "many"],
        &["DEL", "test:watermark"],
        &["FLUSHALL"],
    ] {
        let well = || async {
            let status = cache.status();
            let redis = status.redis.unwrap();
            (status.memory_proven && redis.trusted).then_some(redis.epoch)
        };
        eventually("all is well", || async { well().await.is_some() }).await;
        let before = cache.status().redis.unwrap().epoch;
        site.redis.command(change).await.unwrap();
        eventually("a new epoch is begun, and all is well again", || async {
            well().await.is_some_and(|epoch| epoch != before)
        })
        .await;
    }
}

/// Else no invalidation could be applied to it any more.
#[tokio::test]
async fn k16_a_watermark_past_which_redis_could_not_count_is_none() {
    let site = Site::start().await;
    let cache = site.cache().await;
    write_everywhere(&cache, 7, 1).await;
    let last = ["SET", "test:watermark", "9007199254740991"];
    site.redis.command(&last).await.unwrap();
    write_everywhere(&cache, 7, 2).await;
    assert_eq!(read_item(&cache, 7).await.as_deref(), Some("2"));
}

/// As a copy of the configuration brings it about. A copy of the database would have the same
/// number, and is not told apart.
#[tokio::test]
async fn k16_of_two_databases_with_one_namespace_only_the_first_uses_redis() {
    let site = Site::start().await;
    let first = site.cache().await;
    write_everywhere(&first, 7, 1).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("1"));
    eventually("Redis has it", || async {
        first.status().counts.fills == 1
    })
    .await;
    let epoch = || first.status().redis.unwrap().epoch;
    let before = epoch();
    let (database, _folder) = sqlite().await;
    let mut tx = database.begin().await.unwrap();
    set_item(&mut tx, 7, 50).await.unwrap();
    tx.commit().await.unwrap();
    let second = plain(&database).redis(site.client().await);
    let second = second.build().await.unwrap();
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("50"));
    eventually("its status says so", || async {
        let suspended = second.status().redis.unwrap().suspended;
        suspended.is_some_and(|why| why.contains("another database"))
    })
    .await;
    assert!(!write_item(&second, 7, 51).await, "it was applied to Redis");
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("51"));
    // The first goes on as if nothing were.
    write_everywhere(&first, 7, 2).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
    assert_eq!((epoch(), first.status().counts.epochs), (before, 0));
    assert!(!second.status().redis.unwrap().trusted);
    // Once the first is gone the second takes its place.
    drop(first);
    eventually("it uses Redis", || async {
        second.status().redis.unwrap().trusted && second.status().outbox_pending == 0
    })
    .await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("51"));
    let third = plain(&database).redis(site.client().await);
    let third = third.build().await.unwrap();
    eventually("they share Redis", || async {
        get(&second, "a", "user", &Loader::default()).await.unwrap();
        let read = get(&third, "a", "user", &Loader::default()).await;
        read.unwrap().source == Source::Redis || {
            third.invalidate(&[Target::key("a")]).await.unwrap();
            false
        }
    })
    .await;
}

/// Else one of another database that comes just then would take its place. A process that cannot be
/// found after a second uses Redis all the same, so only a start that took less says anything.
#[tokio::test]
async fn k16_a_process_can_be_found_by_those_of_another_database_before_it_uses_redis() {
    let site = Site::start().await;
    let started = async |n: u32| {
        let namespace = format!("test{n}");
        let (builder, began) = (site.builder().await, Instant::now());
        let cache = builder.namespace(namespace.clone()).build().await.unwrap();
        eventually("it uses Redis", || async {
            cache.status().redis.unwrap().epoch.is_some()
        })
        .await;
        let of = ["PUBSUB", "CHANNELS", &format!("{namespace}:inv:of:*")];
        let found = site.redis.command(&of).await.unwrap();
        let is_found = matches!(&found, redis::Value::Array(channels) if channels.len() == 1);
        let took = began.elapsed();
        assert!(
            is_found || took > Duration::from_millis(900),
            "{found:?} in {took:?}"
        );
        is_found
    };
    let (mut n, mut found) = (0, 0);
    while found < 3 {
        n += 1;
        assert!(n <= 20, "the machine is too slow: {found} of {n}");
        found += u32::from(started(n).await);
    }
}

/// A database whose namespace is another's goes without Redis for good, and nothing drains its
/// outbox.
#[tokio::test]
async fn k7_the_outbox_of_a_database_that_goes_without_redis_keeps_its_bound() {
    let site = Site::start().await;
    let first = site.cache().await;
    write_everywhere(&first, 7, 1).await;
    let (database, _folder) = sqlite().await;
    let second = plain(&database).redis(site.client().await).outbox_rows(50);
    let second = second.build().await.unwrap();
    eventually("it goes without Redis", || async {
        let suspended = second.status().redis.unwrap().suspended;
        suspended.is_some_and(|why| why.contains("another database"))
    })
    .await;
    let filler: Vec<_> = (0..200).map(|n| Target::key(format!("k{n}"))).collect();
    second.invalidate(&filler).await.unwrap();
    let kinds = async || {
        let kinds = "SELECT kind FROM steadfast_outbox";
        database.select(kinds, &[]).await.unwrap()
    };
    eventually("one row is left", || async {
        let rows = kinds().await;
        rows.len() == 1 && rows[0]["kind"] == "all"
    })
    .await;
    assert!(!write_item(&second, 7, 51).await, "it was applied to Redis");
    drop(first);
    eventually("all is applied", || async {
        second.status().outbox_pending == 0 && kinds().await.is_empty()
    })
    .await;
    // Though nobody has read since.
    eventually("it uses Redis", || async {
        second.status().redis.unwrap().trusted
    })
    .await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("51"));
}

/// Anybody who may publish can claim anything.
#[tokio::test]
async fn k16_a_forged_announcement_poisons_nobody() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    write_everywhere(&first, 7, 1).await;
    for forged in [
        "18446744073709551615 0 ",
        "9007199254740000 0 ",
        "5000 4999 ",
    ] {
        let publish = ["PUBLISH", "test:inv", forged];
        site.redis.command(&publish).await.unwrap();
    }
    // Time for a few looks at SQL: who took the claims for SQL's own would find that it fell, and
    // invalidate everything.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let third = site.cache().await;
    let loader = Loader::default();
    for (n, cache) in [&first, &second, &third].into_iter().enumerate() {
        eventually("memory is proven and Redis is read", || async {
            let status = cache.status();
            status.memory_proven && status.redis.is_some_and(|redis| redis.trusted)
        })
        .await;
        let expected = if n == 0 {
            Source::Database
        } else {
            Source::Redis
        };
        assert_eq!(
            get(cache, "a", "user", &loader).await.unwrap().source,
            expected
        );
        eventually("it is in Redis", || async {
            first.status().counts.fills == 1
        })
        .await;
    }
    write_everywhere(&second, 7, 2).await;
    eventually("the others hear of it", || async {
        read_item(&first, 7).await.as_deref() == Some("2")
            && read_item(&third, 7).await.as_deref() == Some("2")
    })
    .await;
    let at = site
        .redis
        .command(&["GET", "test:watermark"])
        .await
        .unwrap();
    let at: u64 = redis::from_redis_value(at).unwrap();
    assert_eq!(at, 2);
}

/// Nobody can say whether the claim is true, and Redis behind: what it holds is marked.
#[tokio::test]
async fn k16_what_the_channel_claims_while_sql_is_away_makes_redis_stale() {
    let server = MariaDb::start().await.unwrap();
    let mut options = DatabaseOptions::default();
    options.acquire_timeout = Duration::from_secs(2);
    let database = Database::connect(&server.url(), options).unwrap();
    create_table(&database).await;
    let redis = Redis::start().await.unwrap();
    let cache = async || {
        let client = steadfast::Client::builder(&redis.url()).unwrap();
        let builder = plain(&database).redis(client.connect().await.unwrap());
        builder
            .redis_limit(Duration::from_secs(10))
            .build()
            .await
            .unwrap()
    };
    let (first, second) = (cache().await, cache().await);
    write_everywhere(&first, 7, 1).await;
    eventually("both believe Redis", || async {
        [&first, &second].iter().all(|cache| {
            let redis = cache.status().redis.unwrap();
            redis.trusted && redis.proven && redis.watermark == 1
        })
    })
    .await;
    for key in ["a", "b"] {
        get(&first, key, "user", &Loader::default()).await.unwrap();
    }
    eventually("Redis has them", || async {
        first.status().counts.fills == 2
    })
    .await;
    server.kill().await;
    let failing = || async { Err::<Option<String>, _>("no".into()) };
    let answer = text(&second, "user").get("a", failing).await.unwrap();
    assert_eq!((answer.source, answer.stale), (Source::Redis, None));
    let forged = ["PUBLISH", "test:inv", "5000 4999 "];
    redis.command(&forged).await.unwrap();
    eventually("it is not taken for fresh", || async {
        // Past the moment in which its own word counts.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let answer = text(&second, "user").get("b", failing).await;
        answer.is_ok_and(|answer| answer.stale.is_some())
    })
    .await;
}

#[tokio::test]
async fn k11_all_is_invalidated_also_in_a_redis_that_is_full() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    for cache in [&first, &second] {
        get(cache, "a", "user", &loader).await.unwrap();
    }
    let full = |bytes| ["CONFIG", "SET", "maxmemory", bytes];
    site.redis.command(&full("1")).await.unwrap();
    assert!(site.redis.command(&["SET", "x", "y"]).await.is_err());
    first.invalidate(&[Target::All]).await.unwrap();
    eventually("it is applied", || async {
        outbox_is_empty(&site.database).await
    })
    .await;
    site.redis.command(&full("0")).await.unwrap();
    assert_eq!(
        get(&first, "a", "user", &loader).await.unwrap().source,
        Source::Database
    );
}

#[tokio::test]
async fn k16_tables_that_were_dropped_are_made_again_and_what_they_held_is_made_good() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    write_everywhere(&first, 7, 1).await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("1"));
    let mut tx = site.database.begin().await.unwrap();
    for table in ["steadfast_outbox", "steadfast_outbox_state"] {
        let drop = format!("DROP TABLE {table}");
        tx.execute(&drop, &[]).await.unwrap();
    }
    set_item(&mut tx, 7, 2).await.unwrap(); // its invalidation went with the table
    tx.commit().await.unwrap();
    eventually("everything is invalidated", || async {
        read_item(&second, 7).await.as_deref() == Some("2")
    })
    .await;
    eventually("a write is delivered", || async {
        let work = async |tx: &mut Tx| set_item(tx, 7, 3).await;
        let write = first.write(work).invalidates([Target::key("item:7")]);
        write.commit().await.is_ok_and(|written| written.applied)
    })
    .await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("3"));
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

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Servers that outlive the runtimes of the caches, and the runtime in which they live.
fn site_of_another_runtime() -> (tokio::runtime::Runtime, Site) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let alive = builder.worker_threads(1).enable_all().build().unwrap();
    let site = alive.block_on(Site::start());
    (alive, site)
}

#[test]
fn k14_a_cache_whose_runtime_has_ended_goes_on_in_that_of_its_next_caller() {
    let (alive, site) = site_of_another_runtime();
    let first = runtime();
    let cache = first.block_on(async {
        let cache = site.cache().await;
        write_item(&cache, 7, 1).await;
        all_is_applied(&cache).await;
        cache
    });
    drop(first);
    // Nobody is there to carry what a process leaves behind, and the status says so.
    let trouble = cache.status().tasks_trouble.expect("its tasks are gone");
    assert!(trouble.contains("carries invalidations"), "{trouble}");
    alive.block_on(write_and_die(&site.database, 7, 2));
    let second = runtime();
    second.block_on(async {
        write_item(&cache, 8, 1).await;
        eventually("all is delivered", || outbox_is_empty(&site.database)).await;
        all_is_applied(&cache).await;
        assert_eq!(cache.status().tasks_trouble, None);
        assert_eq!(cache.status().outbox_pending, 0);
        let read = || async { read_item(&cache, 7).await.as_deref() == Some("2") };
        eventually("the new value is read", read).await;
        let proven = || async { cache.status().memory_proven };
        eventually("the channel is listened to", proven).await;
    });
    drop(cache);
    drop(second);
    drop(site);
}

/// Nobody can tell whether it will be driven again; past the hard limit of its class it is done
/// without.
#[test]
fn k9_a_load_in_a_runtime_that_nobody_drives_is_not_waited_for_for_ever() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let alive = builder.worker_threads(1).enable_all().build().unwrap();
    let brisk = Ttl {
        hard_limit: Duration::from_secs(1),
        ..Ttl::default()
    };
    let (cache, _folder) = alive.block_on(async {
        let (database, folder) = sqlite().await;
        let cache = plain(&database).class("brisk", brisk).build().await;
        (cache.unwrap(), folder)
    });
    let parked = runtime();
    parked.block_on(async {
        let load = || std::future::pending();
        let view = text(&cache, "brisk");
        let read = tokio::time::timeout(Duration::from_millis(10), view.get("a", load));
        assert!(read.await.is_err());
    });
    let load = || async { Ok(Some("new".to_owned())) };
    let read = || alive.block_on(text(&cache, "brisk").get("a", load));
    let _joined = read();
    assert_eq!(read().unwrap().value.as_deref(), Some("new"));
    drop(parked);
    assert_eq!(read().unwrap().value.as_deref(), Some("new"));
}

#[test]
fn k14_who_waits_for_a_load_whose_runtime_ends_is_told_so_and_can_ask_again() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let alive = builder.worker_threads(1).enable_all().build().unwrap();
    let (cache, _folder) = alive.block_on(async {
        let (database, folder) = sqlite().await;
        (plain(&database).build().await.unwrap(), folder)
    });
    let other = runtime();
    other.block_on(async {
        let load = || std::future::pending();
        let view = text(&cache, "user");
        let read = tokio::time::timeout(Duration::from_millis(50), view.get("a", load));
        assert!(read.await.is_err());
    });
    let mut joined = Box::pin(async {
        let load = || async { Ok(Some("new".to_owned())) };
        text(&cache, "user").get("a", load).await
    });
    alive.block_on(async {
        let waits = tokio::time::timeout(Duration::from_millis(50), &mut joined);
        assert!(waits.await.is_err());
    });
    drop(other);
    let error = alive.block_on(joined).unwrap_err();
    assert!(matches!(error, CacheError::Abandoned), "{error}");
    assert!(error.to_string().contains("the runtime in which it ran"));
    let read = alive.block_on(get(&cache, "a", "user", &Loader::default()));
    assert_eq!(read.unwrap().source, Source::Database);
}

/// Whoever comes from another executor is told what to do, and what is known of it, and no more.
#[test]
fn k14_a_cache_asked_outside_of_a_runtime_says_so_and_answers_what_is_in_memory() {
    fn says_so<E: std::fmt::Display>(error: E) {
        let words = error.to_string();
        assert!(words.contains("outside of a tokio runtime"), "{words}");
    }
    let (alive, site) = site_of_another_runtime();
    let (cache, numbers) = alive.block_on(async {
        let cache = site.cache().await;
        write_item(&cache, 7, 1).await;
        let numbers = text(&cache, "strict");
        numbers.put("held".to_owned(), "1".to_owned()).await;
        (cache, numbers)
    });
    let loading = || async { Ok(Some("2".to_owned())) };
    futures_util::FutureExt::now_or_never(async {
        let held = numbers.get("held".to_owned(), loading).await.unwrap();
        assert_eq!(
            (held.value.as_deref(), held.source),
            (Some("1"), Source::Memory)
        );
        says_so(numbers.get("other".to_owned(), loading).await.unwrap_err());
        says_so(
            numbers
                .refresh("held".to_owned(), loading)
                .await
                .unwrap_err(),
        );
        let read = numbers.read("other".to_owned());
        says_so(read.get_uncached(loading).await.unwrap_err());
        let none = |_| async { Ok(Vec::<(String, String)>::new()) };
        let mut many = numbers.get_many(&["other".to_owned()], none).await;
        says_so(many.remove(0).unwrap_err());
        let warm = || async { Ok([("held".to_owned(), "2".to_owned())]) };
        says_so(numbers.warm(warm).await.unwrap_err());
        assert!(numbers.peek("other".to_owned()).await.is_none());
        let put = numbers.put("put".to_owned(), "3".to_owned()).await;
        assert!(put.memory && !put.redis);
        assert!(numbers.peek("put".to_owned()).await.is_some());
        let write = async |tx: &mut Tx| set_item(tx, 7, 2).await;
        says_so(
            cache
                .write(write)
                .invalidates_nothing()
                .commit()
                .await
                .unwrap_err(),
        );
        says_so(cache.invalidate(&[Target::key("held")]).await.unwrap_err());
        assert!(
            numbers.peek("held".to_owned()).await.is_none(),
            "in any case"
        );
        says_so(site.database.select("SELECT 1", &[]).await.unwrap_err());
        says_so(
            site.database
                .ping(Duration::from_secs(1))
                .await
                .unwrap_err(),
        );
        assert_eq!(cache.finish_loads(Duration::from_secs(1)).await, 0);
    })
    .expect("nothing is waited for");
    let memory = |options| Database::connect("sqlite::memory:", options);
    says_so(memory(DatabaseOptions::default()).unwrap_err());
    let built = futures_util::FutureExt::now_or_never(plain(&site.database).build());
    let error = built.expect("at once").unwrap_err().to_string();
    assert!(error.contains("call build() inside one"), "{error}");
    // Within one it is as good as before.
    alive.block_on(async {
        assert_eq!(read_item(&cache, 7).await.as_deref(), Some("1"));
    });
    drop(site);
}

/// Nobody watches while a cache has no runtime, so what it believed of Redis before counts no more.
#[test]
fn k16_a_redis_that_was_taken_back_while_a_cache_had_no_runtime_is_not_believed() {
    let (alive, site) = site_of_another_runtime();
    let (first, other) = (runtime(), runtime());
    let writer = other.block_on(async {
        let writer = site.cache().await;
        write_everywhere(&writer, 7, 1).await;
        assert_eq!(read_item(&writer, 7).await.as_deref(), Some("1"));
        eventually("Redis has it", || async {
            writer.status().counts.fills == 1
        })
        .await;
        writer
    });
    let cache = first.block_on(async {
        let cache = site.cache().await;
        assert_eq!(read_item(&cache, 8).await, None);
        eventually("it believes in Redis", || async {
            cache.status().redis.unwrap().proven
        })
        .await;
        cache
    });
    drop(first);
    other.block_on(async {
        site.redis.save_snapshot().await.unwrap();
        write_everywhere(&writer, 7, 2).await;
    });
    drop(writer);
    drop(other);
    alive.block_on(async { site.redis.restart_from_snapshot().await.unwrap() });
    let second = runtime();
    let read = second.block_on(read_item(&cache, 7));
    assert_eq!(read.as_deref(), Some("2"));
    drop(cache);
    drop(second);
    drop(site);
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
