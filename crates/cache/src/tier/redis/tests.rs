//! What an answer is worth that another server gives than the one that was asked.
#![allow(clippy::unwrap_used)]

use steadfast_drill::process::Cluster;

use super::*;
use crate::freshness::Ttl;
use crate::parts::Cache;
use crate::sql::{Database, DatabaseOptions};

/// As when a replica has just been elected that lags: the question is redirected to it, while it is
/// under way, by the one that was believed in.
#[tokio::test]
async fn k8_what_another_server_answers_than_was_believed_in_is_not_believed() {
    let cluster = Cluster::shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let database = Database::connect(&url, DatabaseOptions::default()).unwrap();
    let client = Client::builder(&cluster.url()).unwrap();
    let client = client.deadline(Duration::from_secs(10)).connect().await;
    let cache = Cache::builder(database)
        .namespace("moved")
        .redis(client.unwrap())
        .redis_limit(Duration::from_secs(10))
        .class("user", Ttl::default())
        .build()
        .await
        .unwrap();
    let redis = cache.inner.redis.clone().unwrap();
    let slot = redis.slot().unwrap();
    let epoch_view = redis.epoch_view(&mut redis.allowance()).await.unwrap();
    let look = async || {
        let (epoch_view, carries) = (epoch_view.clone(), |_: &[&[u8]]| true);
        let mut allowance = redis.allowance();
        let looked = redis.look_once(b"a", &[], epoch_view, &mut allowance, &carries);
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
    let looked = redis.look(b"a", &[], &mut allowance, &carries).await;
    assert!(matches!(looked, Ok(Lookup::Miss(_))));
}
