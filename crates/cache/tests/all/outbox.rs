use std::sync::Arc;
use std::time::Duration;

use steadfast_cache::{
    Database, DatabaseOptions, Param, Repository, Source, SourceError, Target, Tx, WriteError,
};

use steadfast_drill::fault::{Direction, Fault, LimitData, Toxic};
use steadfast_drill::proxy::Proxy;
use steadfast_drill::waiting::until;
use tokio::task::JoinSet;

use crate::site::{
    Site, all_is_applied, eventually, plain, read_item, select_item, set_item, text,
    write_everywhere, write_item,
};

#[tokio::test]
async fn k7_a_write_is_seen_by_its_process_at_once_and_by_another_through_redis() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    for version in 1..20i64 {
        write_item(&first, 7, version).await;
        assert_eq!(read_item(&first, 7).await, Some(version.to_string()));
    }
    all_is_applied(&first).await;
    assert_eq!(read_item(&second, 7).await, Some("19".to_owned()));
}

#[tokio::test]
async fn k7_a_write_that_fails_invalidates_nothing_and_changes_nothing() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let failed = cache
        .write(async |tx: &mut Tx| {
            set_item(tx, 7, 1).await?;
            tx.execute("nonsense", &[]).await
        })
        .invalidates([Target::key("item:7")])
        .commit()
        .await;
    assert!(
        matches!(failed, Err(WriteError::Work(SourceError::Sql(_)))),
        "{failed:?}"
    );
    assert_eq!(read_item(&cache, 7).await, None);
    let rows = site
        .database
        .select("SELECT * FROM steadfast_outbox", &[])
        .await
        .unwrap();
    assert!(rows.is_empty());
}

#[tokio::test]
async fn k7_a_write_while_redis_is_down_is_delivered_when_it_is_back() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let write = |version| {
        let first = &first;
        async move {
            let work = async |tx: &mut Tx| set_item(tx, 7, version).await;
            first
                .write(work)
                .invalidates([Target::key("item:7")])
                .commit()
                .await
                .unwrap()
                .applied
        }
    };
    write(1).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("1"));
    site.redis.freeze().unwrap();
    assert!(!write(2).await);
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
    assert!(first.status().outbox_pending > 0);
    site.redis.resume().unwrap();
    eventually("the outbox is drained", || async {
        site.database
            .select("SELECT * FROM steadfast_outbox", &[])
            .await
            .unwrap()
            .is_empty()
    })
    .await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("2"));
    eventually("nothing is pending", || async {
        first.status().outbox_pending == 0
    })
    .await;
}

#[tokio::test]
async fn k7_what_a_dead_process_left_behind_is_delivered_by_another() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let mut tx = site.database.begin().await.unwrap();
    set_item(&mut tx, 7, 1).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("1"));
    // What a process writes that dies before its relay.
    let mut tx = site.database.begin().await.unwrap();
    set_item(&mut tx, 7, 2).await.unwrap();
    let sql = "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES ('test', 'key', ?, 0)";
    tx.execute(sql, &[Param::Bytes(b"item:7".to_vec())])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    eventually("another process applies it", || async {
        site.database
            .select("SELECT * FROM steadfast_outbox", &[])
            .await
            .unwrap()
            .is_empty()
    })
    .await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("2"));
}

#[tokio::test]
async fn k8_a_redis_restored_from_an_old_snapshot_is_not_believed() {
    let site = Site::start().await;
    let first = site.cache().await;
    let write = |version| {
        let first = &first;
        async move {
            let work = async |tx: &mut Tx| set_item(tx, 7, version).await;
            first
                .write(work)
                .invalidates([Target::key("item:7")])
                .commit()
                .await
                .unwrap()
        }
    };
    write(1).await;
    all_is_applied(&first).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("1"));
    eventually("Redis has it", || async {
        let epoch = first.status().redis.unwrap().epoch.unwrap_or_default();
        let found = site
            .redis
            .command(&["EXISTS", &format!("test:v:{epoch}:{{item:7}}")])
            .await
            .unwrap();
        found == redis::Value::Int(1)
    })
    .await;
    site.redis.save_snapshot().await.unwrap();
    write(2).await;
    all_is_applied(&first).await;
    site.redis.restart_from_snapshot().await.unwrap();
    let second = site.cache().await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("2"));
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
    assert!(first.status().counts.epochs + second.status().counts.epochs >= 1);
}

#[tokio::test]
async fn k8_a_redis_that_is_current_stays_warm_when_it_is_connected_to_again() {
    let site = Site::start().await;
    let first = site.cache().await;
    let loader = crate::site::Loader::default();
    crate::site::get(&first, "a", "user", &loader)
        .await
        .unwrap();
    let epoch = first.status().redis.unwrap().epoch;
    site.redis
        .command(&["CLIENT", "KILL", "TYPE", "normal"])
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = site.cache().await;
    assert_eq!(
        crate::site::get(&second, "a", "user", &loader)
            .await
            .unwrap()
            .source,
        steadfast_cache::Source::Redis
    );
    assert_eq!(second.status().redis.unwrap().epoch, epoch);
}

#[tokio::test]
async fn k8_an_invalidation_that_nobody_applies_suspends_redis() {
    let site = Site::start().await;
    let first = site.cache().await;
    let loader = crate::site::Loader::default();
    crate::site::get(&first, "a", "user", &loader)
        .await
        .unwrap();
    // The state row is held, so that nobody can relay; on SQLite that needs a writer who stays.
    let sql = "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES ('test', 'key', 'x', 0)";
    let holder = held_before_it_is_delivered(&site, sql).await;
    eventually("Redis is suspended", || async {
        first.status().redis.unwrap().suspended.is_some()
    })
    .await;
    holder.rollback().await.unwrap();
    eventually("Redis is read again", || async {
        first.status().redis.unwrap().suspended.is_none()
    })
    .await;
}

/// Commits an invalidation, and holds what is needed to deliver it.
async fn held_before_it_is_delivered(site: &Site, insert: &str) -> Tx {
    loop {
        let mut tx = site.database.begin().await.unwrap();
        tx.execute(insert, &[]).await.unwrap();
        tx.commit().await.unwrap();
        let mut holder = site.database.begin().await.unwrap();
        let waiting = "SELECT id FROM steadfast_outbox";
        if !holder.select(waiting, &[]).await.unwrap().is_empty() {
            return holder;
        }
        holder.rollback().await.unwrap(); // it was delivered in between
    }
}

#[tokio::test]
async fn k8_neither_redis_nor_memory_is_believed_while_an_invalidation_waits() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let third = site.cache().await;
    write_everywhere(&first, 7, 1).await;
    for cache in [&first, &second] {
        assert_eq!(read_item(cache, 7).await.as_deref(), Some("1"));
    }
    site.take_no_writes(true).await;
    assert!(!write_item(&first, 7, 2).await);
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
    for cache in [&second, &third] {
        eventually("the other process sees it", || async {
            read_item(cache, 7).await.as_deref() == Some("2")
        })
        .await;
    }
    site.take_no_writes(false).await;
    eventually("all is well again", || async {
        let status = second.status();
        status.memory_proven && status.redis.is_some_and(|redis| redis.suspended.is_none())
    })
    .await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("2"));
}

/// Whoever would deliver waits for a lock; that must not keep anybody from noticing.
#[tokio::test]
async fn k8_an_invalidation_is_seen_to_wait_while_the_delivering_is_locked_out() {
    let site = Site::start().await;
    let mut patient = DatabaseOptions::default();
    patient.query_limit = Duration::from_secs(120);
    let database = Database::connect(&site.database_url(), patient).unwrap();
    let cache = crate::site::plain(&database)
        .redis(site.client().await)
        .build()
        .await
        .unwrap();
    let sql = "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) \
               VALUES ('test', 'key', 'x', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))";
    let holder = held_before_it_is_delivered(&site, sql).await;
    eventually("Redis is suspended", || async {
        cache.status().redis.unwrap().suspended.is_some()
    })
    .await;
    assert!(!cache.status().memory_proven);
    holder.rollback().await.unwrap();
    eventually("Redis is read again", || async {
        cache.status().redis.unwrap().suspended.is_none()
    })
    .await;
}

#[tokio::test]
async fn k7_a_state_row_that_is_lost_is_made_again_and_nothing_waits_for_ever() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    write_everywhere(&first, 7, 1).await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("1"));
    let mut tx = site.database.begin().await.unwrap();
    tx.execute("DELETE FROM steadfast_outbox_state", &[])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    write_item(&first, 7, 2).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
    eventually("it is delivered", || async {
        let rows = "SELECT id FROM steadfast_outbox";
        let delivered = site.database.select(rows, &[]).await.unwrap().is_empty();
        delivered && read_item(&second, 7).await.as_deref() == Some("2")
    })
    .await;
}

/// What has to be done is in the outbox; what must not be read meanwhile is in memory, and that has
/// a bound.
#[tokio::test]
async fn k7_past_the_bound_on_what_is_pending_redis_is_passed_by_for_every_key() {
    let site = Site::start().await;
    let builder = site.builder().await.pending_names(10);
    let cache = builder
        .outbox_lag_max(Duration::from_secs(600))
        .build()
        .await
        .unwrap();
    let other = site.cache().await;
    let loader = crate::site::Loader::default();
    for key in ["x", "y", "z"] {
        crate::site::get(&other, key, "user", &loader)
            .await
            .unwrap();
    }
    eventually("Redis is filled", || async {
        other.status().counts.fills == 3
    })
    .await;
    site.take_no_writes(true).await;
    let names = |from, to| -> Vec<_> { (from..to).map(|n| Target::key(format!("k{n}"))).collect() };
    let source = async |key| {
        let answer = crate::site::get(&cache, key, "user", &loader).await;
        answer.unwrap().source
    };
    cache.invalidate(&names(0, 10)).await.unwrap();
    assert_eq!(source("x").await, Source::Redis);
    cache.invalidate(&names(10, 500)).await.unwrap();
    assert!(cache.status().outbox_pending <= 11);
    assert_eq!(source("y").await, Source::Database);
    site.take_no_writes(false).await;
    eventually("all is applied", || async {
        cache.status().outbox_pending == 0
    })
    .await;
    assert_eq!(source("z").await, Source::Redis);
}

#[tokio::test]
async fn k7_an_outbox_that_is_full_is_replaced_by_one_row_that_invalidates_everything() {
    let site = Site::start().await;
    let full = || async { site.builder().await.outbox_rows(50).build().await.unwrap() };
    let (first, second) = (full().await, full().await);
    for id in 0..3 {
        write_everywhere(&first, id, 1).await;
        assert_eq!(read_item(&second, id).await.as_deref(), Some("1"));
    }
    site.take_no_writes(true).await;
    let work = async |tx: &mut Tx| set_item(tx, 1, 2).await;
    let filler = (0..200).map(|n| Target::key(format!("filler:{n}")));
    let written = first
        .write(work)
        .invalidates([Target::key("item:1")])
        .invalidates(filler)
        .commit()
        .await;
    assert!(!written.unwrap().applied);
    eventually("one row is left", || async {
        let rows = site
            .database
            .select("SELECT kind FROM steadfast_outbox", &[])
            .await
            .unwrap();
        rows.len() == 1 && rows[0]["kind"] == "all"
    })
    .await;
    assert_eq!(read_item(&first, 1).await.as_deref(), Some("2"));
    site.take_no_writes(false).await;
    eventually("the other process sees it", || async {
        read_item(&second, 1).await.as_deref() == Some("2")
    })
    .await;
    let third = site.cache().await;
    assert_eq!(read_item(&third, 1).await.as_deref(), Some("2"));
}

/// An outage of Redis is when rows pile up, and when loads hold whatever connections they may.
#[tokio::test]
async fn k7_the_outbox_keeps_its_bound_while_loads_hold_every_connection_that_reads() {
    let site = Site::start().await;
    let mut options = DatabaseOptions::default();
    options.read_only_connections = Some(1);
    options.acquire_timeout = Duration::from_millis(200);
    let database = Database::connect(&site.database_url(), options).unwrap();
    let builder = plain(&database).redis(site.client().await).outbox_rows(50);
    let cache = builder.build().await.unwrap();
    site.take_no_writes(true).await;
    let endless =
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n";
    let held = database.clone();
    let holding = tokio::spawn(async move { while held.select(endless, &[]).await.is_err() {} });
    eventually("the reading connection is held", || async {
        database.select("SELECT 1", &[]).await.is_err()
    })
    .await;
    let filler = (0..200).map(|n| Target::key(format!("filler:{n}")));
    let work = async |tx: &mut Tx| set_item(tx, 1, 1).await;
    let written = cache.write(work).invalidates(filler).commit().await;
    assert!(!written.unwrap().applied);
    eventually("one row is left", || async {
        let rows = site
            .database
            .select("SELECT kind FROM steadfast_outbox", &[])
            .await;
        rows.is_ok_and(|rows| rows.len() == 1)
    })
    .await;
    assert!(
        database.select("SELECT 1", &[]).await.is_err(),
        "still held"
    );
    holding.abort();
}

/// A database whose clock was set back by an hour after the row was written: by that clock the row
/// has not been written yet.
#[tokio::test]
async fn k8_a_clock_that_is_set_back_an_hour_hides_no_waiting_invalidation() {
    let site = Site::start().await;
    let cache = site.cache().await;
    site.take_no_writes(true).await;
    let mut tx = site.database.begin().await.unwrap();
    let sql = "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) \
               VALUES ('test', 'key', 'x', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) + 3600000)";
    tx.execute(sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
    eventually("Redis is suspended", || async {
        cache.status().redis.unwrap().suspended.is_some()
    })
    .await;
    site.take_no_writes(false).await;
    eventually("Redis is read again", || async {
        cache.status().redis.unwrap().suspended.is_none()
    })
    .await;
}

struct Versions(Database);

impl Repository<String> for Versions {
    type Error = SourceError;

    async fn read(&self, key: Vec<u8>) -> Result<Option<String>, SourceError> {
        select_item(&self.0, i64::from(key[0])).await
    }

    async fn write(&self, tx: &mut Tx, key: &[u8], version: &String) -> Result<(), SourceError> {
        set_item(tx, i64::from(key[0]), version.parse().unwrap()).await
    }
}

#[tokio::test]
async fn k7_a_repository_of_the_callers_own_reads_and_writes_under_the_same_rules() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let versions = Arc::new(Versions(site.database.clone()));
    for version in ["1", "2", "3"] {
        text(&first, "user")
            .put_to(&*versions, [7], &version.to_owned())
            .await
            .unwrap();
        let answer = text(&first, "user").get_from(&versions, [7]).await.unwrap();
        assert_eq!(answer.value.as_deref(), Some(version));
    }
    all_is_applied(&first).await;
    let answer = text(&second, "user")
        .get_from(&versions, [7])
        .await
        .unwrap();
    assert_eq!(answer.value.as_deref(), Some("3"));
}

/// A link that breaks whenever much is sent over it: what is too large a unit is not repeated for
/// ever.
#[tokio::test]
async fn k7_a_batch_that_cannot_be_delivered_is_halved_until_it_can() {
    let site = Site::start().await;
    let proxy = Proxy::start(site.redis.addr()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let client = steadfast::Client::builder(&url).unwrap().connect().await;
    let client = client.unwrap();
    let cache = plain(&site.database).redis(client.clone());
    let cache = cache.build().await.unwrap();
    write_item(&cache, 7, 1).await;
    // Each row takes more than a thousand bytes: some fifty of the 256 that are taken at a time.
    let short = LimitData { bytes: 64 << 10 };
    let toxic = Toxic {
        name: "short".into(),
        direction: Direction::Upstream,
        toxicity: 1.0,
        fault: Fault::LimitData(short),
    };
    proxy.add(toxic).await.unwrap();
    let long = |n| Target::key(format!("{n:0>250}"));
    let targets: Vec<_> = (0..300).map(long).collect();
    cache.invalidate(&targets).await.unwrap();
    until("the outbox is drained", || {
        cache.status().outbox_pending == 0
    })
    .await;
    assert!(client.status().reconnects > 0, "the whole was too large");
}

/// Writers that leave the file hardly alone: SQLite lets nobody stand in line, and whoever has
/// waited for long asks the least often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_a_relay_gets_its_turn_among_many_writers_of_sqlite() {
    let site = Site::start().await;
    let cache = site.cache().await;
    write_item(&cache, 7, 1).await;
    let mut options = DatabaseOptions::default();
    options.max_connections = 8;
    let crowd = Database::connect(&site.database_url(), options).unwrap();
    let mut writers = JoinSet::new();
    for item in 10..18 {
        let crowd = crowd.clone();
        writers.spawn(async move {
            let mut rng = fastrand::Rng::with_seed(item as u64);
            loop {
                // Whoever of them has waited in vain goes on.
                let Ok(mut tx) = crowd.begin().await else {
                    continue;
                };
                set_item(&mut tx, item, 1).await.unwrap();
                tokio::time::sleep(Duration::from_millis(rng.u64(5..40))).await;
                tx.commit().await.unwrap();
                tokio::time::sleep(Duration::from_millis(rng.u64(1..20))).await;
            }
        });
    }
    // Of those that a write waits for 500 ms in vain, a busy machine may account for a few.
    let mut applied = 0;
    for version in 2..22 {
        applied += u8::from(write_item(&cache, 7, version).await);
        until("it is delivered", || cache.status().outbox_pending == 0).await;
    }
    assert!(applied >= 18, "{applied} of 20");
}
