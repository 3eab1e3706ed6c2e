//! SQL that was rolled back, where what would tell is gone: the processes that knew it before, what
//! Redis held, or an outbox in which nothing waits.

use std::ops::RangeInclusive;
use std::time::Duration;

use steadfast_cache::{Cache, Database, Source};
use steadfast_drill::fault::Direction;
use steadfast_drill::process::{MariaDb, Postgres, Redis};
use steadfast_drill::proxy::Proxy;

use crate::site::{
    Loader, Site, connect, create_table, eventually, get, outbox_is_empty, plain, read_item,
    select_item, set_item, slow_down, sqlite, text, write_everywhere, write_item,
};

/// The next regular look comes after any of these tests.
const FAR_OFF: Duration = Duration::from_secs(3600);

/// Takes the database back to this watermark, with nothing in the outbox. What the item is then
/// tells it from all that was ever cached.
pub(crate) async fn roll_back(database: &Database, version: i64, watermark: i64) {
    let mut tx = database.begin().await.unwrap();
    set_item(&mut tx, 7, version).await.unwrap();
    for sql in [
        format!(
            "UPDATE steadfast_outbox_state SET watermark = {watermark} WHERE namespace = 'test'"
        ),
        "DELETE FROM steadfast_outbox".to_owned(),
    ] {
        tx.execute(&sql, &[]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// The invalidation of a process that died before its relay.
async fn leave_waiting(database: &Database, target: &str) {
    let mut tx = database.begin().await.unwrap();
    let left = format!(
        "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES ('test', 'key', '{target}', 0)"
    );
    tx.execute(&left, &[]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn over(database: &Database, redis: &Redis) -> Cache {
    let client = steadfast::Client::builder(&redis.url()).unwrap();
    let client = client.connect_timeout(Duration::from_secs(5));
    let builder = plain(database).redis(client.connect().await.unwrap());
    builder.build().await.unwrap()
}

async fn reads_at_last(cache: &Cache, version: &str) {
    eventually("what SQL holds now is seen", || async {
        read_item(cache, 7).await.as_deref() == Some(version)
    })
    .await;
}

/// Writes these versions of the item, so that Redis gets ahead of what SQL will be, and reads it.
async fn write_versions(cache: &Cache, versions: RangeInclusive<i64>) {
    let last = versions.end().to_string();
    for version in versions {
        write_everywhere(cache, 7, version).await;
    }
    reads_at_last(cache, &last).await;
}

/// Waits until the first that was read is in Redis.
async fn is_filled(cache: &Cache) {
    eventually("Redis has it", || async {
        cache.status().counts.fills == 1
    })
    .await;
}

/// Loses the tables, with what waited there, and what it counted.
async fn drop_the_tables(database: &Database) {
    for table in ["steadfast_outbox", "steadfast_outbox_state"] {
        eventually("they are dropped", || async {
            let mut tx = database.begin().await.unwrap();
            let drop = format!("DROP TABLE IF EXISTS {table}");
            // Those who look at both at that moment may be in the way.
            tx.execute(&drop, &[]).await.is_ok() && tx.commit().await.is_ok()
        })
        .await;
    }
}

/// Everything dies at once, and SQL comes back older than it was; Redis as it was, or older too.
/// Something waits in the outbox, or is written before anybody has looked. In the end the tables
/// are gone.
async fn nobody_outlives_a_rollback(database: Database) {
    create_table(&database).await;
    let redis = Redis::start().await.unwrap();
    let mut version = 0;
    for redis_is_older in [false, true] {
        let first = over(&database, &redis).await;
        write_versions(&first, version + 1..=version + 4).await;
        version += 4;
        is_filled(&first).await;
        let reached = first.status().redis.unwrap().watermark;
        if redis_is_older {
            redis.save_snapshot().await.unwrap();
            write_everywhere(&first, 8, version).await;
        }
        drop(first);
        version += 100;
        roll_back(&database, version, reached as i64 - 3).await;
        leave_waiting(&database, "item:9").await;
        if redis_is_older {
            redis.restart_from_snapshot().await.unwrap();
        }
        let second = over(&database, &redis).await;
        reads_at_last(&second, &version.to_string()).await;
    }
    let third = over(&database, &redis).await;
    reads_at_last(&third, &version.to_string()).await;
    let mut tx = database.begin().await.unwrap();
    set_item(&mut tx, 7, version + 1).await.unwrap(); // its invalidation goes with the table
    tx.commit().await.unwrap();
    drop_the_tables(&database).await;
    reads_at_last(&third, &(version + 1).to_string()).await;
}

#[tokio::test]
async fn k16_a_rollback_that_nobody_outlived_shows_though_something_waits_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    nobody_outlives_a_rollback(connect(&url)).await;
}

#[tokio::test]
async fn k16_a_rollback_that_nobody_outlived_shows_though_something_waits_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    nobody_outlives_a_rollback(connect(&server.url())).await;
}

#[tokio::test]
async fn k16_a_rollback_that_nobody_outlived_shows_though_something_waits_on_postgres() {
    let server = Postgres::start().await.unwrap();
    nobody_outlives_a_rollback(connect(&server.url())).await;
}

/// Nobody outlives it, and the next regular look is far off: only one that begins when it is known
/// how far Redis is can tell.
#[tokio::test]
async fn k16_what_redis_holds_is_not_fresh_before_sql_was_asked_whether_it_fell() {
    let site = Site::start().await;
    let first = site.cache().await;
    write_versions(&first, 1..=4).await;
    is_filled(&first).await;
    let reached = first.status().redis.unwrap().watermark;
    drop(first);
    roll_back(&site.database, 100, reached as i64 - 3).await;
    let second = site.builder().await.outbox_poll(FAR_OFF);
    let second = second.build().await.unwrap();
    eventually("what SQL holds now is seen", || async {
        let database = second.database().clone();
        let load = move || async move { Ok(select_item(&database, 7).await?) };
        let answer = text(&second, "user").get("item:7", load).await.unwrap();
        let old = answer.value.as_deref() != Some("100");
        assert!(!old || answer.stale.is_some(), "{answer:?}");
        !old && second.status().redis.unwrap().proven
    })
    .await;
}

/// A cache that has seen SQL to be ahead of what it will be, and whose next regular look is far
/// off: a write, and its delivery, shows that SQL has fallen.
async fn looks_rarely(site: &Site) -> Cache {
    let cache = site.builder().await.outbox_poll(FAR_OFF);
    let cache = cache.build().await.unwrap();
    write_versions(&cache, 1..=4).await;
    is_filled(&cache).await;
    cache
}

async fn is_read_at_last(cache: &Cache) {
    eventually("Redis is read again", || async {
        cache.status().redis.unwrap().trusted
    })
    .await;
}

async fn run(database: &Database, sql: &str) {
    let mut tx = database.begin().await.unwrap();
    tx.execute(sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn k16_a_rollback_that_a_delivery_notices_is_seen_to_at_once() {
    let site = Site::start().await;
    let cache = looks_rarely(&site).await;
    roll_back(&site.database, 100, 1).await;
    write_everywhere(&cache, 8, 1).await;
    reads_at_last(&cache, "100").await;
    is_read_at_last(&cache).await;
}

/// SQL comes to be where the first rollback took it, as from the same backup: nothing tells of the
/// second but that the order to invalidate everything is gone.
#[tokio::test]
async fn k16_a_second_rollback_that_takes_the_order_of_the_first_with_it_is_seen_to_at_once() {
    let site = Site::start().await;
    let cache = looks_rarely(&site).await;
    let lose = "CREATE TRIGGER lose AFTER UPDATE OF kind ON steadfast_outbox WHEN NEW.kind = 'all' \
                AND (SELECT version FROM items WHERE id = 7) = 100 BEGIN \
                DELETE FROM steadfast_outbox; UPDATE items SET version = 200 WHERE id = 7; END";
    run(&site.database, lose).await;
    roll_back(&site.database, 100, 1).await;
    write_everywhere(&cache, 8, 1).await;
    reads_at_last(&cache, "200").await;
    is_read_at_last(&cache).await;
}

#[tokio::test]
async fn k16_an_order_to_invalidate_everything_that_failed_is_given_again_however_rarely_one_looks()
{
    let site = Site::start().await;
    let cache = looks_rarely(&site).await;
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE OF kind ON steadfast_outbox \
                  BEGIN SELECT RAISE(ABORT, 'no order is taken'); END";
    run(&site.database, refuse).await;
    roll_back(&site.database, 100, 1).await;
    write_item(&cache, 8, 1).await;
    eventually("it cannot be given", || async {
        let trouble = cache.status().outbox_trouble;
        trouble.is_some_and(|trouble| trouble.contains("no order is taken"))
    })
    .await;
    run(&site.database, "DROP TRIGGER refuse").await;
    reads_at_last(&cache, "100").await;
    is_read_at_last(&cache).await;
}

/// What SQL has lost while a relay was under way, beside the rows that it delivers.
#[derive(Clone, Copy, PartialEq)]
enum Lost {
    /// Some of what it had counted.
    Count,
    /// Nothing else: its watermark is what it was.
    Nothing,
    /// That a relay is under way, which can finish no more.
    Turn,
}

/// On SQLite nothing is locked while a relay waits for Redis.
async fn a_rollback_under_a_relay_shows(lost: Lost) {
    let site = Site::start().await;
    let cache = site.cache().await;
    write_versions(&cache, 1..=3).await;
    let client = site.client().await;
    let other = plain(&site.database).redis(client);
    let other = other.build().await.unwrap();
    reads_at_last(&other, "3").await;
    let reached = cache.status().redis.unwrap().watermark;
    site.redis.freeze().unwrap();
    let targets = [steadfast_cache::Target::key("item:9")];
    cache.invalidate(&targets).await.unwrap();
    let taken = "SELECT namespace FROM steadfast_outbox_relay WHERE namespace = 'test'";
    eventually("it is under way", || async {
        let rows = site.database.select(taken, &[]).await;
        rows.is_ok_and(|rows| rows.len() == 1)
    })
    .await;
    match lost {
        Lost::Count => roll_back(&site.database, 100, 1).await,
        Lost::Nothing => roll_back(&site.database, 100, reached as i64).await,
        Lost::Turn => {
            // Before it can be lost Redis must have applied what is under way.
            let mut tx = site.database.begin().await.unwrap();
            site.redis.resume().unwrap();
            eventually("it is applied", || async {
                watermark(&site.redis).await == reached + 1
            })
            .await;
            set_item(&mut tx, 7, 100).await.unwrap();
            for table in ["steadfast_outbox", "steadfast_outbox_relay"] {
                let sql = format!("DELETE FROM {table}");
                tx.execute(&sql, &[]).await.unwrap();
            }
            tx.commit().await.unwrap();
        }
    }
    site.redis.resume().unwrap();
    for cache in [&cache, &other] {
        reads_at_last(cache, "100").await;
    }
}

#[tokio::test]
async fn k16_a_relay_that_was_under_way_does_not_cover_up_a_rollback() {
    a_rollback_under_a_relay_shows(Lost::Count).await;
}

#[tokio::test]
async fn k16_a_relay_whose_rows_are_gone_does_not_cover_up_that_they_were_lost() {
    a_rollback_under_a_relay_shows(Lost::Nothing).await;
}

#[tokio::test]
async fn k16_a_rollback_of_what_was_delivered_and_never_counted_shows() {
    a_rollback_under_a_relay_shows(Lost::Turn).await;
}

/// Before what was to invalidate everything could be delivered, it was lost by another rollback.
#[tokio::test]
async fn k16_a_database_that_is_rolled_back_twice_takes_everything_with_it() {
    let site = Site::start().await;
    let cache = site.cache().await;
    write_versions(&cache, 1..=3).await;
    let epoch = || cache.status().redis.unwrap().epoch;
    let before = epoch();
    site.take_no_writes(true).await;
    roll_back(&site.database, 100, 1).await;
    let order = "SELECT id FROM steadfast_outbox WHERE kind = 'all'";
    eventually("all is to be invalidated", || async {
        let rows = site.database.select(order, &[]).await;
        rows.is_ok_and(|rows| rows.len() == 1)
    })
    .await;
    roll_back(&site.database, 200, 1).await;
    site.take_no_writes(false).await;
    eventually("nothing is left of what Redis held", || async {
        epoch().is_some_and(|epoch| Some(epoch) != before)
    })
    .await;
    reads_at_last(&cache, "200").await;
}

/// A relay died after Redis had applied a batch and before SQL was told: Redis is ahead, and that
/// is no rollback.
#[tokio::test]
async fn k16_a_relay_that_died_before_its_commit_costs_what_it_delivered_and_no_more() {
    let (database, _folder) = sqlite().await;
    let redis = Redis::start().await.unwrap();
    leave_the_tables(&database, &redis).await;
    leave_waiting(&database, "item:8").await;
    let first = over(&database, &redis).await;
    eventually("it is delivered", || outbox_is_empty(&database)).await;
    let loader = Loader::default();
    get(&first, "a", "user", &loader).await.unwrap();
    is_filled(&first).await;
    let epoch = first.status().redis.unwrap().epoch;
    drop(first);
    // A look that is under way would see what comes as a rollback.
    eventually("the first is gone", || nobody_asks(&redis)).await;
    // As it was before the commit: the same row, and one that came later.
    let mut tx = database.begin().await.unwrap();
    for sql in [
        "INSERT INTO steadfast_outbox (id, namespace, kind, target, created_at) VALUES (1, 'test', 'key', 'item:8', 0)",
        "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES ('test', 'key', 'item:9', 0)",
        "UPDATE steadfast_outbox_state SET watermark = 0 WHERE namespace = 'test'",
    ] {
        tx.execute(sql, &[]).await.unwrap();
    }
    tx.commit().await.unwrap();
    let second = over(&database, &redis).await;
    eventually("it is delivered again", || outbox_is_empty(&database)).await;
    let answer = get(&second, "a", "user", &loader).await.unwrap();
    assert_eq!((answer.source, loader.loads()), (Source::Redis, 1));
    assert_eq!(second.status().redis.unwrap().epoch, epoch);
}

/// Whether no process has a connection to Redis any more.
async fn nobody_asks(redis: &Redis) -> bool {
    let clients = redis.command(&["CLIENT", "LIST"]).await.unwrap();
    let clients: String = redis::from_redis_value(clients).unwrap();
    clients.lines().all(|line| line.contains("cmd=client|list"))
}

async fn leave_the_tables(database: &Database, redis: &Redis) {
    drop(over(database, redis).await);
}

async fn watermark(redis: &Redis) -> u64 {
    let at = redis.command(&["GET", "test:watermark"]).await.unwrap();
    redis::from_redis_value(at).unwrap()
}

/// Several processes try to deliver while Redis stands still. When it wakes it does all that they
/// have asked of it, also what they have given up, and that is no rollback.
#[tokio::test]
async fn k16_a_redis_that_stood_still_is_not_taken_for_a_database_that_was_rolled_back() {
    let (database, _folder) = sqlite().await;
    let redis = Redis::start().await.unwrap();
    let caches = [over(&database, &redis).await, over(&database, &redis).await];
    write_versions(&caches[0], 1..=3).await;
    let epoch = || caches[0].status().redis.unwrap().epoch;
    let before = epoch();
    for key in ["item:7", "item:8", "item:9"] {
        redis.freeze().unwrap();
        for cache in &caches {
            let targets = [steadfast_cache::Target::key(key)];
            cache.invalidate(&targets).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        redis.resume().unwrap();
        eventually("it is delivered", || outbox_is_empty(&database)).await;
    }
    write_everywhere(&caches[1], 9, 1).await;
    assert_eq!(epoch(), before);
}

/// A process that is slow has given up a delivery. Another has done it, and has told SQL, when it
/// comes to Redis after all.
#[tokio::test]
async fn k16_a_delivery_that_comes_late_is_not_taken_for_a_database_that_was_rolled_back() {
    let (database, _folder) = sqlite().await;
    let redis = Redis::start().await.unwrap();
    let near = over(&database, &redis).await;
    let proxy = Proxy::start(redis.addr()).await.unwrap();
    let client = steadfast::Client::builder(&format!("redis://{}", proxy.addr())).unwrap();
    let far = plain(&database).redis(client.connect().await.unwrap());
    let far = far.redis_limit(Duration::from_millis(100));
    let far = far.build().await.unwrap();
    for cache in [&near, &far] {
        write_versions(cache, 1..=2).await;
    }
    let epoch = || near.status().redis.unwrap().epoch;
    let (before, reached) = (epoch(), watermark(&redis).await);
    slow_down(&proxy, Direction::Upstream, Duration::from_secs(2)).await;
    let targets = [steadfast_cache::Target::key("item:9")];
    let mut came_late = false;
    // Where the machine is busy, the near one may be the first to deliver, and then the only one.
    for invalidated in 1..=10 {
        far.invalidate(&targets).await.unwrap();
        eventually("the near one delivers it", || outbox_is_empty(&database)).await;
        let until = tokio::time::Instant::now() + Duration::from_secs(4);
        while !came_late && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
            came_late = watermark(&redis).await > reached + invalidated;
        }
        if came_late {
            break;
        }
    }
    assert!(came_late, "the far one's comes too");
    // Looks hold it against SQL, and so does the next delivery.
    tokio::time::sleep(Duration::from_millis(600)).await;
    write_everywhere(&near, 9, 1).await;
    assert_eq!(epoch(), before);
}
