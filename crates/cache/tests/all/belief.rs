//! What nobody knows is not taken for good: whether Redis, SQL or an announcement is what it seems.

use std::time::Duration;

use steadfast_cache::{Database, DatabaseOptions, Source, Target, Tx};
use steadfast_drill::process::{MariaDb, Redis};
use tokio::time::Instant;

use crate::rollback::roll_back;
use crate::site::{
    Loader, Site, create_table, eventually, get, outbox_is_empty, plain, read_item, select_item,
    set_item, sqlite, text, write_everywhere, write_item,
};

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
