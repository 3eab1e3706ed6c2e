use std::sync::Arc;
use std::time::Duration;

use steadfast_cache::{Database, Param, Repository, SourceError, Target, Tx, WriteError};

use crate::site::{Site, eventually, read_item, select_item, set_item, write_item};

#[tokio::test]
async fn k7_a_write_is_seen_by_its_process_at_once_and_by_another_through_redis() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    for version in 1..20i64 {
        let written = first
            .write(async |tx: &mut Tx| set_item(tx, 7, version).await)
            .invalidates([Target::key("item:7")])
            .commit()
            .await
            .unwrap();
        assert!(written.applied);
        assert_eq!(read_item(&first, 7).await, Some(version.to_string()));
    }
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
    assert!(write(2).await.applied);
    site.redis.restart_from_snapshot().await.unwrap();
    let second = site.cache().await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("2"));
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
    assert!(first.status().counts.epochs + second.status().counts.epochs >= 2);
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
    let mut tx = site.database.begin().await.unwrap();
    let sql = "INSERT INTO steadfast_outbox (namespace, kind, target, created_at) VALUES ('test', 'key', 'x', 0)";
    tx.execute(sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
    let holder = site.database.begin().await.unwrap();
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

/// A Redis that waits for replicas it does not have answers reads and carries messages, but takes no invalidation.
#[tokio::test]
async fn k8_neither_redis_nor_memory_is_believed_while_an_invalidation_waits() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let third = site.cache().await;
    assert!(write_item(&first, 7, 1).await);
    for cache in [&first, &second] {
        assert_eq!(read_item(cache, 7).await.as_deref(), Some("1"));
    }
    site.redis
        .command(&["CONFIG", "SET", "min-replicas-to-write", "1"])
        .await
        .unwrap();
    assert!(!write_item(&first, 7, 2).await);
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
    for cache in [&second, &third] {
        eventually("the other process sees it", || async {
            read_item(cache, 7).await.as_deref() == Some("2")
        })
        .await;
    }
    site.redis
        .command(&["CONFIG", "SET", "min-replicas-to-write", "0"])
        .await
        .unwrap();
    eventually("all is well again", || async {
        let status = second.status();
        status.memory_proven && status.redis.is_some_and(|redis| redis.suspended.is_none())
    })
    .await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("2"));
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
        assert!(
            first
                .put_to(&*versions, [7], &version.to_owned())
                .await
                .unwrap()
                .applied
        );
        let answer = first.get_from(&versions, [7], "user").await.unwrap();
        assert_eq!(answer.value.as_deref(), Some(version));
    }
    let answer = second.get_from(&versions, [7], "user").await.unwrap();
    assert_eq!(answer.value.as_deref(), Some("3"));
}
