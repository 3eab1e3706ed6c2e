//! On each database: what a session that is stuck, or whose process is gone, costs the others.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use steadfast_drill::fault::{Direction, Fault, Stall, Toxic};
use steadfast_drill::process::{MariaDb, Postgres};
use steadfast_drill::proxy::Proxy;

use super::*;
use crate::sql::DatabaseOptions;

/// Longer than any of these tests holds a lock.
const HOLD: Duration = Duration::from_secs(60);

fn database(url: &str) -> Database {
    Database::connect(url, DatabaseOptions::default()).unwrap()
}

/// An outbox with one row in it.
async fn outbox(database: &Database) -> Outbox {
    let outbox = Outbox::new(database, "test", HOLD, 1);
    outbox.prepare().await.unwrap();
    let mut tx = database.begin().await.unwrap();
    tx.insert("test", &[Target::key("a")]).await.unwrap();
    tx.commit().await.unwrap();
    outbox
}

/// The database ends the waiting where there is a lock: a limit of this process alone would leave a
/// session behind that waits for ever.
async fn a_relay_that_delivers_is_waited_for_but_not_for_long(url: &str) {
    let database = database(url);
    let outbox = outbox(&database).await;
    let holder = outbox.take_batch(10).await.unwrap();
    for _ in 0..2 {
        let refused = outbox.take_batch(10).await.unwrap_err();
        let by_the_database = matches!(refused, SourceError::Sql(sqlx::Error::Database(_)));
        let by_the_lease = matches!(refused, SourceError::Timeout { .. });
        assert_eq!(by_the_database, !url.starts_with("sqlite"), "{refused}");
        assert_eq!(by_the_lease, url.starts_with("sqlite"), "{refused}");
        let glance = outbox.glance().await.unwrap().unwrap();
        assert_eq!(glance.waiting.len(), 1, "looking waits for no lock");
    }
    assert_eq!(outbox.finish(holder, 1).await.unwrap(), 1);
}

#[tokio::test]
async fn k13_a_relay_that_delivers_is_waited_for_on_sqlite_but_not_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    a_relay_that_delivers_is_waited_for_but_not_for_long(&url).await;
}

/// A relay that waits for another's lease only reads: with the lock that SQLite has for all that
/// write, each look would hold up the application's writes, and be held up by them.
#[tokio::test]
async fn k14_on_sqlite_a_relay_waits_for_anothers_lease_without_the_lock_of_writers() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = database(&url);
    let outbox = outbox(&database).await;
    let held = outbox.take_batch(10).await.unwrap();
    let writer = database.begin().await.unwrap();
    let refused = outbox.take_batch(10).await.unwrap_err();
    assert!(
        matches!(refused, SourceError::Timeout { .. }),
        "it waited for the writer: {refused}"
    );
    writer.rollback().await.unwrap();
    assert_eq!(outbox.finish(held, 1).await.unwrap(), 1);
}

/// SQLite has one lock for all that write. What the relay takes from the outbox it carries to
/// Redis, which may be slow.
#[tokio::test]
async fn k14_on_sqlite_no_write_waits_for_a_relay_that_waits_for_redis() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = database(&url);
    let outbox = outbox(&database).await;
    let carried = outbox.take_batch(10).await.unwrap();
    assert_eq!(carried.targets, [Target::key("a")]);
    let mut tx = database.begin().await.expect("a write waits for the relay");
    tx.insert("test", &[Target::key("b")]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(outbox.finish(carried, 1).await.unwrap(), 1);
    let left = outbox.take_batch(10).await.unwrap();
    assert_eq!(left.targets, [Target::key("b")]);
    // One that could not be delivered stands in nobody's way, and is there still.
    outbox.leave(left).await.unwrap();
    let again = outbox.take_batch(10).await.unwrap();
    assert_eq!(again.targets, [Target::key("b")]);
}

#[tokio::test]
async fn k13_on_sqlite_a_relay_that_has_fallen_silent_loses_its_turn_and_cannot_finish() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = database(&url);
    let near = outbox(&database).await;
    let far = Outbox::new(&database, "test", Duration::from_millis(1500), 1);
    let silent = far.take_batch(10).await.unwrap();
    let taken = async {
        loop {
            if let Ok(batch) = near.take_batch(10).await {
                break batch;
            }
        }
    };
    let taken = tokio::time::timeout(Duration::from_secs(60), taken).await;
    let taken = taken.expect("its turn never ends");
    let late = far.finish(silent, 3).await.unwrap_err();
    assert!(matches!(late, SourceError::Ended), "{late}");
    near.finish(taken, 7).await.unwrap();
    assert_eq!(near.glance().await.unwrap().unwrap().watermark, 7);
}

#[tokio::test]
async fn k13_on_sqlite_a_clock_that_is_set_back_stretches_nobodys_turn() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = database(&url);
    let outbox = outbox(&database).await;
    let dead = outbox.take_batch(10).await.unwrap();
    drop(dead);
    outbox.take_batch(10).await.unwrap_err();
    let mut tx = database.begin().await.unwrap();
    let an_hour =
        "UPDATE steadfast_outbox_relay SET since = since + 3600000, until = until + 3600000";
    tx.execute(an_hour, &[]).await.unwrap();
    tx.commit().await.unwrap();
    outbox.take_batch(10).await.unwrap();
}

/// A process that is cut off in the midst of delivering: its session stays open, and keeps the
/// state row locked until the database ends it.
async fn a_relay_that_is_cut_off_stands_in_nobodys_way(url: &str, port: u16) {
    a_relay_that_delivers_is_waited_for_but_not_for_long(url).await;
    let proxy = Proxy::start(([127, 0, 0, 1], port).into()).await.unwrap();
    let through = url.replace(&format!(":{port}"), &format!(":{}", proxy.addr().port()));
    assert_ne!(through, url);
    let near = outbox(&database(url)).await;
    let soon = Duration::from_secs(1);
    let far = Outbox::new(&database(&through), "test", soon, 2);
    let batch = far.take_batch(10).await.unwrap();
    let cut = Toxic {
        name: "cut".into(),
        direction: Direction::Both,
        toxicity: 1.0,
        fault: Fault::Stall(Stall::default()),
    };
    proxy.add(cut).await.unwrap();
    let taken = async {
        loop {
            if let Ok(batch) = near.take_batch(10).await {
                break batch;
            }
        }
    };
    let taken = tokio::time::timeout(Duration::from_secs(15), taken).await;
    near.finish(taken.expect("the lock is never given up"), 7)
        .await
        .unwrap();
    assert_eq!(near.glance().await.unwrap().unwrap().watermark, 7);
    drop(batch);
}

#[tokio::test]
async fn k7_k13_neither_a_relay_that_is_cut_off_nor_an_open_transaction_stands_in_the_way_on_postgres()
 {
    let server = Postgres::start().await.unwrap();
    a_full_outbox_shrinks_beside_a_transaction_that_is_open(&server.url()).await;
    a_relay_that_is_cut_off_stands_in_nobodys_way(&server.url(), server.port()).await;
}

#[tokio::test]
async fn k7_k13_neither_a_relay_that_is_cut_off_nor_an_open_transaction_stands_in_the_way_on_mariadb()
 {
    let server = MariaDb::start().await.unwrap();
    a_full_outbox_shrinks_beside_a_transaction_that_is_open(&server.url()).await;
    a_relay_that_is_cut_off_stands_in_nobodys_way(&server.url(), server.port()).await;
}

#[tokio::test]
async fn k7_a_collapsed_outbox_is_as_old_as_its_oldest_row() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = database(&url);
    let outbox = outbox(&database).await;
    let mut tx = database.begin().await.unwrap();
    let long_ago = "UPDATE steadfast_outbox SET created_at = created_at - 60000";
    tx.execute(long_ago, &[]).await.unwrap();
    tx.insert("test", &[Target::key("b")]).await.unwrap();
    tx.commit().await.unwrap();
    collapse(&outbox).await.unwrap();
    let glance = outbox.glance().await.unwrap().unwrap();
    assert_eq!(glance.waiting.len(), 1);
    assert!(glance.waiting[0].age_ms >= 60_000, "{glance:?}");
    let batch = outbox.take_batch(10).await.unwrap();
    assert_eq!(batch.targets, [Target::All]);
}

async fn collapse(outbox: &Outbox) -> Result<(), SourceError> {
    let newest = outbox.begin_collapse().await?;
    while outbox.collapse(newest, Duration::ZERO).await? {}
    Ok(())
}

/// What a transaction has inserted, and not committed, stands between the rows that may go.
async fn a_full_outbox_shrinks_beside_a_transaction_that_is_open(url: &str) {
    let database = database(url);
    let outbox = outbox(&database).await;
    let insert = async |key: &str| {
        let mut tx = database.begin().await.unwrap();
        tx.insert("test", &[Target::key(key)]).await.unwrap();
        tx
    };
    let open = insert("open").await;
    for key in ["b", "c"] {
        insert(key).await.commit().await.unwrap();
    }
    collapse(&outbox).await.unwrap();
    assert!(!outbox.holds_more_than(1).await.unwrap());
    open.commit().await.unwrap();
    let batch = outbox.take_batch(10).await.unwrap();
    assert_eq!(batch.targets, [Target::All, Target::key("open")]);
    outbox.finish(batch, 3).await.unwrap();
}

/// A table may have grown so long that a limit of time ends any statement about all of it. What
/// stands for that limit is a row that refuses to be deleted.
#[tokio::test]
async fn k7_a_full_outbox_shrinks_piece_by_piece_though_a_later_piece_fails() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = database(&url);
    let outbox = outbox(&database).await;
    let mut tx = database.begin().await.unwrap();
    let rows: Vec<_> = (0..2_999).map(|n| Target::key(n.to_string())).collect();
    tx.insert("test", &rows).await.unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE DELETE ON steadfast_outbox WHEN OLD.id = 2500 \
                  BEGIN SELECT RAISE(ABORT, 'not this one'); END";
    tx.execute(refuse, &[]).await.unwrap();
    tx.commit().await.unwrap();

    // One piece for each look that has no more time for it.
    let newest = outbox.begin_collapse().await.unwrap();
    assert!(outbox.collapse(newest, Duration::ZERO).await.unwrap());
    assert!(outbox.holds_more_than(1_999).await.unwrap());
    assert!(!outbox.holds_more_than(2_000).await.unwrap());
    assert!(collapse(&outbox).await.is_err());
    assert!(!outbox.holds_more_than(1_000).await.unwrap());

    let mut tx = database.begin().await.unwrap();
    tx.execute("DROP TRIGGER refuse", &[]).await.unwrap();
    tx.commit().await.unwrap();
    collapse(&outbox).await.unwrap();
    let batch = outbox.take_batch(10).await.unwrap();
    assert_eq!(batch.targets, [Target::All]);
}

#[tokio::test]
async fn k7_a_batch_is_bounded_in_rows_and_in_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = database(&url);
    let outbox = outbox(&database).await;
    let long = |n: u8| Target::from_row("key", vec![n; 40_000]);
    let mut tx = database.begin().await.unwrap();
    let rows = [long(1), long(2), Target::key("b"), Target::key("c")];
    tx.insert("test", &rows).await.unwrap();
    tx.commit().await.unwrap();
    let mut seen = Vec::new();
    for (most, complete) in [(10, false), (1, false), (10, true)] {
        let batch = outbox.take_batch(most).await.unwrap();
        assert_eq!(batch.complete, complete);
        seen.push(batch.targets.len());
        outbox.finish(batch, 1).await.unwrap();
    }
    assert_eq!(seen, [2, 1, 2]);
}

/// While SQL is known to have been rolled back nothing else is delivered. One row is touched, so
/// that the order takes no longer the more there are.
#[tokio::test]
async fn k16_the_order_to_forget_everything_comes_before_all_that_waits_and_touches_one_row() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = database(&url);
    let outbox = outbox(&database).await;
    let later = Target::key("b");
    for _ in 0..2 {
        let mut tx = database.begin().await.unwrap();
        tx.insert("test", std::slice::from_ref(&later))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        outbox.order_all().await.unwrap();
    }
    let batch = outbox.take_batch(10).await.unwrap();
    assert_eq!(batch.targets, [Target::All, later.clone(), later]);
    outbox.finish(batch, 3).await.unwrap();
    outbox.order_all().await.unwrap();
    let batch = outbox.take_batch(10).await.unwrap();
    assert_eq!(batch.targets, [Target::All], "nothing waited");
}

/// Where nothing is locked meanwhile, the state may be another's by the time of the commit.
#[tokio::test]
async fn k16_on_sqlite_a_relay_cannot_finish_at_another_watermark_than_it_began_at() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = database(&url);
    let outbox = outbox(&database).await;
    let carried = outbox.take_batch(10).await.unwrap();
    outbox.finish(carried, 9).await.unwrap();
    let mut tx = database.begin().await.unwrap();
    tx.insert("test", &[Target::key("b")]).await.unwrap();
    tx.commit().await.unwrap();
    let carried = outbox.take_batch(10).await.unwrap();
    let mut tx = database.begin().await.unwrap();
    let back = "UPDATE steadfast_outbox_state SET watermark = 3 WHERE namespace = 'test'";
    tx.execute(back, &[]).await.unwrap();
    tx.commit().await.unwrap();
    let late = outbox.finish(carried, 10).await.unwrap_err();
    assert!(matches!(late, SourceError::Ended), "{late}");
    let glance = outbox.glance().await.unwrap().unwrap();
    assert_eq!((glance.watermark, glance.waiting.len()), (3, 1));
}
