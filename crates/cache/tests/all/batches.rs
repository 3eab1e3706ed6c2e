use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use steadfast_cache::{Answer, Cache, CacheError, Source, Target};

use crate::site::{Loader, Site, eventually, get};

async fn tagged(
    cache: &Cache<String>,
    key: &str,
    tags: &[&str],
    loader: &Loader,
) -> Answer<String> {
    let loader = loader.clone();
    cache
        .read(key, "user")
        .tags(tags)
        .get(move || loader.counting())
        .await
        .unwrap()
}

#[tokio::test]
async fn k11_a_tag_invalidates_all_that_carry_it_in_every_tier_and_nothing_else() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    tagged(&first, "a", &["red"], &loader).await;
    tagged(&first, "b", &["red", "blue"], &loader).await;
    tagged(&first, "c", &["blue"], &loader).await;
    assert!(
        first
            .invalidate(&[Target::tag("red")])
            .await
            .unwrap()
            .applied
    );
    // The second process has nothing in memory: it sees what Redis holds.
    for cache in [&first, &second] {
        for (key, tags, expected) in [
            ("a", vec!["red"], "4"),
            ("b", vec!["red", "blue"], "5"),
            ("c", vec!["blue"], "3"),
        ] {
            assert_eq!(
                tagged(cache, key, &tags, &loader).await.value.as_deref(),
                Some(expected),
                "{key}"
            );
        }
    }
    assert_eq!(loader.loads(), 5);
}

#[tokio::test]
async fn k11_a_tag_token_that_redis_lost_is_a_miss() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    tagged(&first, "a", &["red"], &loader).await;
    assert_eq!(
        tagged(&second, "a", &["red"], &loader).await.source,
        Source::Redis
    );
    site.redis.command(&["DEL", "test:t:red"]).await.unwrap();
    let third = site.cache().await;
    assert_eq!(
        tagged(&third, "a", &["red"], &loader).await.source,
        Source::Database
    );
}

#[tokio::test]
async fn k11_a_tag_that_the_reader_does_not_name_counts_too() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    tagged(&first, "a", &["red"], &loader).await;
    assert!(
        first
            .invalidate(&[Target::tag("red")])
            .await
            .unwrap()
            .applied
    );
    assert_eq!(
        get(&second, "a", "user", &loader).await.unwrap().source,
        Source::Database
    );
}

type Loads = Arc<AtomicU64>;

async fn get_many(
    cache: &Cache<String>,
    keys: &[&str],
    loads: &Loads,
) -> Vec<Result<Answer<String>, CacheError>> {
    let loads = loads.clone();
    let load = move |keys: Vec<Vec<u8>>| async move {
        loads.fetch_add(1, Ordering::SeqCst);
        let there = keys.into_iter().filter(|key| key != b"absent");
        Ok::<_, std::io::Error>(
            there
                .map(|key| (key.clone(), String::from_utf8(key).unwrap()))
                .collect::<HashMap<_, _>>(),
        )
    };
    cache.get_many(keys, "user", load).await
}

#[tokio::test]
async fn k11_a_batch_loads_what_is_missing_in_one_query_and_keeps_the_order() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loads = Loads::default();
    get_many(&first, &["b"], &loads).await;
    let answers = get_many(&first, &["a", "b", "absent", "c", "a"], &loads).await;
    let values: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_ref().unwrap().value.as_deref())
        .collect();
    assert_eq!(values, [Some("a"), Some("b"), None, Some("c"), Some("a")]);
    let sources: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_ref().unwrap().source)
        .collect();
    use Source::{Database, Memory, Redis};
    assert_eq!(sources, [Database, Memory, Database, Database, Database]);
    assert_eq!(loads.load(Ordering::SeqCst), 2);

    eventually("Redis is filled", || async {
        first.status().counts.fills >= 4
    })
    .await;
    let answers = get_many(&second, &["a", "b", "absent", "c"], &loads).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.as_ref().unwrap().source == Redis)
    );
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn k11_a_batch_whose_load_fails_fails_for_the_missing_only() {
    let site = Site::start().await;
    let cache = site.cache().await;
    get_many(&cache, &["held"], &Loads::default()).await;
    let failing = |_| async { Err::<HashMap<Vec<u8>, String>, _>(std::io::Error::other("no")) };
    let answers = cache.get_many(&["held", "cold"], "user", failing).await;
    assert!(matches!(
        answers.as_slice(),
        [Ok(_), Err(CacheError::Load(_))]
    ));
    assert_eq!(cache.status().flights, 0);
}

#[tokio::test]
async fn k11_warming_fills_both_tiers() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let pairs = || async {
        Ok::<_, std::io::Error>(
            (0..200)
                .map(|n| (format!("item:{n}"), n.to_string()))
                .collect::<Vec<_>>(),
        )
    };
    let warmed = first.warm("user", &["items"], pairs).await.unwrap();
    assert_eq!(
        (warmed.loaded, warmed.memory, warmed.redis),
        (200, 200, 200)
    );
    let loader = Loader::default();
    assert_eq!(
        get(&first, "item:7", "user", &loader).await.unwrap().source,
        Source::Memory
    );
    let answer = get(&second, "item:7", "user", &loader).await.unwrap();
    assert_eq!(
        (answer.source, answer.value.as_deref()),
        (Source::Redis, Some("7"))
    );
    assert!(
        first
            .invalidate(&[Target::tag("items")])
            .await
            .unwrap()
            .applied
    );
    assert_eq!(
        get(&first, "item:7", "user", &loader).await.unwrap().source,
        Source::Database
    );
}

#[tokio::test]
async fn k6_warming_stores_nothing_that_was_invalidated_meanwhile() {
    let site = Site::start().await;
    let (cache, other) = (site.cache().await, site.cache().await);
    let invalidating = {
        let other = other.clone();
        move || async move {
            let old = vec![("changed", "old".to_owned()), ("kept", "same".to_owned())];
            assert!(
                other
                    .invalidate(&[Target::key("changed")])
                    .await
                    .unwrap()
                    .applied
            );
            Ok::<_, std::io::Error>(old)
        }
    };
    let warmed = cache.warm("user", &[], invalidating).await.unwrap();
    assert_eq!((warmed.loaded, warmed.redis), (2, 0));
    let loader = Loader::default();
    let third = site.cache().await;
    assert_eq!(
        get(&third, "changed", "user", &loader)
            .await
            .unwrap()
            .source,
        Source::Database
    );
    eventually("the announcement is heard", || async {
        get(&cache, "changed", "user", &loader)
            .await
            .unwrap()
            .value
            .as_deref()
            != Some("old")
    })
    .await;
}
