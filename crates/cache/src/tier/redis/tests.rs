//! What an answer is worth that another server gives than the one that was asked; and what Redis
//! cannot know of a value that is put.
#![allow(clippy::unwrap_used)]

use futures_util::FutureExt;
use steadfast_drill::process::Cluster;
use steadfast_drill::waiting::until;

use super::*;
use crate::clock::clock;
use crate::freshness::Ttl;
use crate::parts::Cache;
use crate::sql::{Database, DatabaseOptions};

fn wanted() -> Wanted<'static> {
    Wanted {
        key: b"a",
        tags: &[],
        class: 0,
        asked: clock(),
    }
}

async fn cache_of(folder: &tempfile::TempDir, redis: &str) -> Cache {
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = Database::connect(&url, DatabaseOptions::default()).unwrap();
    let client = Client::builder(redis).unwrap();
    let client = client.deadline(Duration::from_secs(10)).connect().await;
    let cache = Cache::builder(database)
        .namespace("test")
        .redis(client.unwrap())
        .redis_limit(Duration::from_secs(10))
        .class("user", Ttl::default());
    cache.build().await.unwrap()
}

/// As when a replica has just been elected that lags: the question is redirected to it, while it is
/// under way, by the one that was believed in.
#[tokio::test]
async fn k8_what_another_server_answers_than_was_believed_in_is_not_believed() {
    let cluster = Cluster::shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_of(&folder, &cluster.url()).await;
    let redis = cache.inner.redis.clone().unwrap();
    let slot = redis.slot().unwrap();
    let epoch_view = redis.epoch_view(&mut redis.allowance()).await.unwrap();
    let look = async || {
        let (wanted, epoch_view) = (wanted(), epoch_view.clone());
        let carries = |_: &[&[u8]]| true;
        let mut allowance = redis.allowance();
        let looked = redis.look_once(&wanted, epoch_view, &mut allowance, &carries);
        looked.await
    };
    assert!(matches!(look().await, Ok(Lookup::Miss(_))));
    let from = cluster.owner(slot).await.unwrap();
    cluster.migrate(slot, from, (from + 1) % 3).await.unwrap();
    let looked = look().await;
    assert!(
        matches!(looked, Err(RedisFailure::Replaced)),
        "{:?}",
        looked.map(|_| ())
    );
    // Whoever looks as readers do finds out what to believe of the new one, and asks that.
    let (mut allowance, carries) = (redis.allowance(), |_: &[&[u8]]| true);
    let wanted = wanted();
    let looked = redis.look(&wanted, &mut allowance, &carries).await;
    assert!(matches!(looked, Ok(Lookup::Miss(_))));
}

/// Another process has everything invalidated between a reader's look and its lease, and this was
/// the last read for a long time.
#[tokio::test]
async fn k16_a_last_reader_that_finds_another_epoch_leaves_no_doubt_behind() {
    let server = steadfast_drill::process::Redis::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_of(&folder, &server.url()).await;
    let redis = cache.inner.redis.clone().unwrap();
    let (mut allowance, carries) = (redis.allowance(), |_: &[&[u8]]| true);
    let looked = redis.look(&wanted(), &mut allowance, &carries).await;
    let Ok(Lookup::Miss(missed)) = looked else {
        panic!("nothing is there");
    };
    let another = redis.new_epoch();
    let begin = ["SET", "test:epoch", &another];
    server.command(&begin).await.unwrap();
    let life = Duration::from_secs(10);
    let lease = redis.take_lease(b"a", &[], &missed.seen, life, false, &mut allowance);
    assert!(lease.await.is_err(), "it is of the epoch that was");
    until("the new one is believed in", || {
        redis
            .epoch_guard
            .epoch()
            .is_some_and(|epoch| *epoch == *another)
    })
    .await;
}

/// Redis knows what is invalidated after it was asked, and this process what it heard of before.
#[tokio::test]
async fn k6_what_is_invalidated_before_redis_is_asked_is_not_put() {
    let server = steadfast_drill::process::Redis::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_of(&folder, &server.url()).await;
    let users = cache.view::<String>("user").unwrap().tag("red");
    let generations = &cache.inner.generations;
    let invalidations: [&dyn Fn(); 3] = [
        &|| generations.bump_key(b"user:7"),
        &|| generations.bump_tag(b"red"),
        &|| generations.clear(),
    ];
    for invalidate in invalidations {
        let mut put = Box::pin(users.put(7, "Ada".to_owned()));
        assert!((&mut put).now_or_never().is_none(), "Redis is asked");
        invalidate();
        assert!(!put.await.redis);
        cache.inner.memory.remove(b"user:7");
        assert!(users.peek(7).await.is_none());
        assert!(users.put(7, "Ada".to_owned()).await.redis);
        let removed = cache.inner.redis.as_ref().unwrap().remove(b"user:7");
        removed.await.unwrap();
    }
}
