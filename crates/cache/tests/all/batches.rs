use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use steadfast_cache::{
    Answer, Cache, CacheError, Repository, Source, SourceError, StaleReason, Target, Ttl, Tx,
};
use tokio::time::Instant;

use crate::site::{
    Loader, Site, all_is_applied, eventually, execute, get, invalidate_everywhere, plain, sqlite,
    text,
};

async fn tagged(cache: &Cache, key: &str, tags: &[&str], loader: &Loader) -> Answer<String> {
    let loader = loader.clone();
    text(cache, "user")
        .read(key)
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
    invalidate_everywhere(&first, &[Target::tag("red")]).await;
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
    invalidate_everywhere(&first, &[Target::tag("red")]).await;
    assert_eq!(
        get(&second, "a", "user", &loader).await.unwrap().source,
        Source::Database
    );
}

/// Puts a tagged value into Redis through one process, and has another take it without naming the
/// tag.
async fn taken_without_its_tag(site: &Site) -> (Cache, Cache, Loader) {
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    tagged(&first, "a", &["red"], &loader).await;
    eventually("Redis is filled", || async {
        first.status().counts.fills == 1
    })
    .await;
    for source in [Source::Redis, Source::Memory] {
        let answer = get(&second, "a", "user", &loader).await.unwrap();
        assert_eq!(
            (answer.value.as_deref(), answer.source),
            (Some("1"), source)
        );
    }
    (first, second, loader)
}

#[tokio::test]
async fn k11_a_tag_that_the_reader_does_not_name_governs_what_it_has_in_memory() {
    let site = Site::start().await;
    let (first, second, loader) = taken_without_its_tag(&site).await;
    invalidate_everywhere(&first, &[Target::tag("red")]).await;
    eventually("the announcement is heard", || async {
        get(&second, "a", "user", &loader)
            .await
            .unwrap()
            .value
            .as_deref()
            == Some("2")
    })
    .await;
}

#[tokio::test]
async fn k11_after_its_own_invalidation_of_an_unnamed_tag_a_process_reads_nothing_older() {
    let site = Site::start().await;
    let (_first, second, loader) = taken_without_its_tag(&site).await;
    invalidate_everywhere(&second, &[Target::tag("red")]).await;
    let answer = get(&second, "a", "user", &loader).await.unwrap();
    assert_eq!(answer.value.as_deref(), Some("2"));
}

/// Redis still has the value, its tag and the tag's token: only this process knows that they are
/// overtaken.
#[tokio::test]
async fn k11_a_value_is_not_taken_from_redis_while_the_invalidation_of_an_unnamed_tag_waits() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    tagged(&first, "a", &["red"], &loader).await;
    eventually("Redis is filled", || async {
        first.status().counts.fills == 1
    })
    .await;
    site.take_no_writes(true).await;
    let invalidated = second.invalidate(&[Target::tag("red")]).await.unwrap();
    assert!(!invalidated.applied);
    let answer = get(&second, "a", "user", &loader).await.unwrap();
    assert_eq!(answer.value.as_deref(), Some("2"));
    site.take_no_writes(false).await;
}

#[tokio::test]
async fn k11_a_reader_who_names_a_tag_takes_no_value_without_it() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    get(&first, "a", "user", &loader).await.unwrap();
    eventually("Redis is filled", || async {
        first.status().counts.fills == 1
    })
    .await;
    for cache in [&first, &second] {
        let answer = tagged(cache, "a", &["red"], &loader).await;
        assert_ne!(answer.value.as_deref(), Some("1"));
    }
    invalidate_everywhere(&second, &[Target::tag("red")]).await;
    let answer = get(&second, "a", "user", &loader).await.unwrap();
    assert_eq!(answer.source, Source::Database);
}

/// Each of them finds what the other has loaded, once it carries the tags of both.
#[tokio::test]
async fn k11_readers_who_name_different_tags_load_once_each_and_strip_nobodys() {
    let site = Site::start().await;
    let alone = plain(&site.database).build().await.unwrap();
    for (redis, batch) in [(false, false), (false, true), (true, false), (true, true)] {
        // With Redis each tag has a reader in a process of its own.
        let caches = match redis {
            true => [site.cache().await, site.cache().await],
            false => [alone.clone(), alone.clone()],
        };
        let (key, loader) = (format!("{redis} {batch}"), Loader::default());
        for n in 0..10 {
            let (cache, tag) = [(&caches[0], "red"), (&caches[1], "blue")][n % 2];
            let loader = loader.clone();
            if batch {
                let load = move |keys: Vec<String>| async move {
                    let value = loader.counting().await?.unwrap();
                    Ok(keys.into_iter().map(move |key| (key, value.clone())))
                };
                let view = text(cache, "user");
                let answers = view
                    .read_many(std::slice::from_ref(&key))
                    .tag(tag)
                    .get(load)
                    .await;
                assert!(answers[0].is_ok());
            } else {
                tagged(cache, &key, &[tag], &loader).await;
            }
            cache.finish_loads(Duration::from_secs(60)).await;
        }
        assert!(loader.loads() <= 3, "{key}: {} loads", loader.loads());
        for tag in ["red", "blue"] {
            let before = loader.loads();
            invalidate_everywhere(&caches[1], &[Target::tag(tag)]).await;
            get(&caches[1], &key, "user", &loader).await.unwrap();
            assert_eq!(loader.loads(), before + 1, "{key}: {tag} governs it");
            tagged(&caches[1], &key, &["red", "blue"], &loader).await;
            caches[1].finish_loads(Duration::from_secs(60)).await;
        }
    }
}

#[tokio::test]
async fn k11_what_was_invalidated_hands_its_tags_to_nobody() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let loader = Loader::default();
    tagged(&cache, "a", &["red"], &loader).await;
    cache.invalidate(&[Target::tag("red")]).await.unwrap();
    tagged(&cache, "a", &["blue"], &loader).await;
    cache.invalidate(&[Target::tag("red")]).await.unwrap();
    let answer = get(&cache, "a", "user", &loader).await.unwrap();
    assert_eq!(answer.source, Source::Memory);
}

#[tokio::test]
async fn k11_warming_and_putting_keep_the_tags_of_what_they_replace() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let (view, loader) = (text(&cache, "user"), Loader::default());
    // Also what another view has stored, of another version.
    for version in [0, 1] {
        for key in ["warmed", "put"] {
            let (view, loader) = (view.clone().version(version), loader.clone());
            let read = view.read(key).tag("red");
            read.get(move || loader.counting()).await.unwrap();
        }
        let warm = || async { Ok([("warmed", "new".to_owned())]) };
        assert_eq!(view.warm(warm).await.unwrap().memory, 1);
        assert!(view.put("put", "new".to_owned()).await.memory);
        cache.invalidate(&[Target::tag("red")]).await.unwrap();
        for key in ["warmed", "put"] {
            let answer = get(&cache, key, "user", &loader).await.unwrap();
            assert_eq!(answer.source, Source::Database, "{key}, {version}");
        }
    }
}

/// One of its keys takes long to load: what memory had of the other has aged meanwhile.
#[tokio::test]
async fn k11_a_batch_judges_and_dates_what_it_held_when_it_answers() {
    let (database, _folder) = sqlite().await;
    let ttl = Ttl {
        fresh: Duration::from_millis(300),
        jitter: 0.0,
        early_refresh: 0.0,
        soft_limit: Duration::from_secs(10),
        hard_limit: Duration::from_secs(30),
        ..Ttl::default()
    };
    let strict = Ttl {
        stale: Duration::ZERO,
        ..ttl
    };
    let classes = plain(&database).class("short", ttl);
    let cache = classes.class("short strict", strict).build().await.unwrap();
    for (class, stale) in [("short", Some(StaleReason::Slow)), ("short strict", None)] {
        let view = text(&cache, class).prefix(class);
        let began = Instant::now();
        assert!(view.put("held", "x".to_owned()).await.memory);
        let load = |keys: Vec<&'static str>| async move {
            tokio::time::sleep(Duration::from_millis(600)).await;
            Ok(keys.into_iter().map(|key| (key, "slow".to_owned())))
        };
        let answers = view.get_many(&["held", "slow"], load).await;
        let held = answers[0].as_ref().unwrap();
        if held.source == Source::Memory {
            assert!(held.age >= Duration::from_millis(600), "{held:?}");
            assert!(held.age <= began.elapsed(), "{held:?}");
            assert_eq!(held.stale, stale, "{class}");
        }
    }
}

#[tokio::test]
async fn k1_putting_and_warming_count_nothing_for_which_memory_has_no_room() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).memory_bytes(0).build().await.unwrap();
    let view = text(&cache, "user");
    assert!(!view.put("a", "x".to_owned()).await.memory);
    let warm = || async { Ok([("b", "x".to_owned())]) };
    let warmed = view.warm(warm).await.unwrap();
    assert_eq!((warmed.loaded, warmed.memory), (1, 0));
    assert_eq!(cache.status().memory_entries, 0);
}

/// Keeps nothing.
struct Nowhere;

impl Repository<String> for Nowhere {
    type Error = SourceError;

    async fn read(&self, _: Vec<u8>) -> Result<Option<String>, SourceError> {
        Ok(None)
    }

    async fn write(&self, _: &mut Tx, _: &[u8], _: &String) -> Result<(), SourceError> {
        Ok(())
    }
}

#[tokio::test]
async fn k11_keys_and_tags_of_any_length_govern_every_tier_and_are_carried_short() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let (key, tag) = ("k".repeat(70_000), "t".repeat(70_000));
    let by_key = |key: &[u8]| [[b"of ".as_slice(), key].concat()];
    let loader = Loader::default();
    let read = async |cache: &Cache| {
        let loader = loader.clone();
        let view = text(cache, "user").prefix("p:").tags_by(by_key);
        let read = view.read(&key).tag(&tag);
        read.get(move || loader.counting()).await.unwrap().source
    };
    let there = text(&second, "user").prefix("p:").tags_by(by_key);
    let targets = [
        Target::key(format!("p:{key}")),
        Target::tag(&tag),
        Target::tag(format!("of {key}")),
        Target::Key(format!("p:{key}").into_bytes().into()),
        there.target(&key),
    ];
    for way in 0..targets.len() + 3 {
        let filled = first.status().counts.fills + 1;
        assert_eq!(read(&first).await, Source::Database, "{way}");
        eventually("Redis has it", || async {
            first.status().counts.fills == filled
        })
        .await;
        assert_eq!(read(&first).await, Source::Memory);
        assert_eq!(read(&second).await, Source::Redis);
        match way.checked_sub(targets.len()) {
            None => drop(second.invalidate(&targets[way..=way]).await.unwrap()),
            Some(0) => drop(there.expire(&key).await.unwrap()),
            Some(1) => {
                let new = "new".to_owned();
                there.put_to(&Nowhere, &key, &new).await.unwrap();
            }
            Some(_) => {
                let (statements, invalidation) =
                    second.invalidation(&[there.target(&key)]).await.unwrap();
                execute(&site.database, statements).await;
                invalidation.apply().await;
            }
        }
        all_is_applied(&second).await;
        eventually("the other process has forgotten it", || async {
            let held = text(&first, "user").peek(format!("p:{key}")).await;
            held.is_none()
        })
        .await;
    }
    let keys = site.redis.command(&["KEYS", "*"]).await.unwrap();
    let keys: Vec<String> = redis::from_redis_value(keys).unwrap();
    assert!(keys.iter().all(|key| key.len() < 1000));
    assert_eq!(first.status().counts.damaged, 0);
}

#[tokio::test]
async fn k11_each_key_of_a_batch_carries_its_own_tags() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loads = Loads::default();
    let read = |cache: &Cache| {
        let (cache, loads) = (cache.clone(), loads.clone());
        async move {
            let load = move |keys: Vec<&'static str>| async move {
                loads.fetch_add(keys.len() as u64, Ordering::SeqCst);
                let value = |key: &'static str| (key, key.to_owned());
                Ok(keys.into_iter().map(value).collect::<HashMap<_, _>>())
            };
            let answers = text(&cache, "user")
                .read_many(&["a", "b"])
                .tag("letters")
                .tags_of(|key| [format!("of {key}")])
                .get(load)
                .await;
            let source = |answer: Result<Answer<String>, CacheError>| answer.unwrap().source;
            answers.into_iter().map(source).collect::<Vec<_>>()
        }
    };
    use Source::{Database, Memory, Redis};
    assert_eq!(read(&first).await, [Database, Database]);
    eventually("Redis is filled", || async {
        first.status().counts.fills == 2
    })
    .await;
    assert_eq!(read(&second).await, [Redis, Redis]);
    invalidate_everywhere(&second, &[Target::tag("of b")]).await;
    assert_eq!(read(&second).await, [Memory, Database]);
    invalidate_everywhere(&second, &[Target::tag("letters")]).await;
    assert_eq!(read(&second).await, [Database, Database]);
}

#[tokio::test]
async fn k11_a_batch_has_a_default_for_what_cannot_be_loaded() {
    let site = Site::start().await;
    let cache = site.cache().await;
    get_many(&cache, &["held"], &Loads::default()).await;
    let failing = |_| async { Err::<Vec<(&'static str, String)>, _>("no".into()) };
    let answers = text(&cache, "user")
        .read_many(&["held", "cold"])
        .or("nobody".to_owned())
        .get(failing)
        .await;
    let sources: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.unwrap().source)
        .collect();
    assert_eq!(sources, [Source::Memory, Source::Default]);
}

type Loads = Arc<AtomicU64>;

async fn get_many(
    cache: &Cache,
    keys: &[&'static str],
    loads: &Loads,
) -> Vec<Result<Answer<String>, CacheError>> {
    let loads = loads.clone();
    let load = move |keys: Vec<&'static str>| async move {
        loads.fetch_add(1, Ordering::SeqCst);
        let there = keys.into_iter().filter(|key| *key != "absent");
        Ok(there
            .map(|key| (key, key.to_owned()))
            .collect::<HashMap<_, _>>())
    };
    text(cache, "user").get_many(keys, load).await
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
    let failing = |_| async { Err::<Vec<(&'static str, String)>, _>("no".into()) };
    let answers = text(&cache, "user")
        .get_many(&["held", "cold"], failing)
        .await;
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
        Ok((0..200)
            .map(|n| (format!("item:{n}"), n.to_string()))
            .collect::<Vec<_>>())
    };
    let warmed = text(&first, "user").tag("items").warm(pairs).await.unwrap();
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
    invalidate_everywhere(&first, &[Target::tag("items")]).await;
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
            invalidate_everywhere(&other, &[Target::key("changed")]).await;
            Ok(old)
        }
    };
    let warmed = text(&cache, "user").warm(invalidating).await.unwrap();
    assert_eq!((warmed.loaded, warmed.redis), (2, 1));
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

/// However much is written meanwhile, what is warmed is refused only where it was overtaken itself:
/// by its key, by a tag, or with everything.
#[tokio::test]
async fn k6_warming_is_refused_only_what_was_invalidated_itself() {
    let site = Site::start().await;
    let (cache, other) = (site.cache().await, site.cache().await);
    let view = text(&cache, "user").tags_by(|key: &[u8]| {
        // The second letter is the tag.
        [key.get(1..2).unwrap_or_default().to_vec()]
    });
    let warm = async |invalidated: Vec<Target>| {
        let other = other.clone();
        let load = move || async move {
            let pairs = (0..100).map(|n| (format!("{n:02}"), n.to_string()));
            for target in invalidated {
                invalidate_everywhere(&other, &[target]).await;
            }
            Ok(pairs.collect::<Vec<_>>())
        };
        view.warm(load).await.unwrap().redis
    };
    assert_eq!(warm(vec![]).await, 100);
    let others = || (0..20).map(|n| Target::key(format!("another {n}")));
    assert_eq!(warm(others().collect()).await, 100);
    let own = [Target::key("42"), Target::tag("7"), Target::tag("none")];
    assert_eq!(warm(others().chain(own).collect()).await, 89);
    assert_eq!(warm(vec![Target::All]).await, 0);
    assert_eq!(warm(vec![]).await, 100, "what is past is past");
    // A log that was lost, or that does not reach back, tells nothing.
    let logs = ["DEL", "test:recent:0", "test:recent:1"];
    site.redis.command(&logs).await.unwrap();
    assert_eq!(
        warm(vec![Target::key("x")]).await,
        100,
        "it begins with the season"
    );
    let lost = {
        let (view, other, redis) = (view.clone(), other.clone(), site.client().await);
        let load = move || async move {
            invalidate_everywhere(&other, &[Target::key("42")]).await;
            redis.send(redis::cmd(logs[0]).arg(&logs[1..])).await?;
            invalidate_everywhere(&other, &[Target::key("43")]).await;
            Ok((40..50)
                .map(|n| (format!("{n}"), n.to_string()))
                .collect::<Vec<_>>())
        };
        view.warm(load).await.unwrap().redis
    };
    assert_eq!(lost, 0);
    // Nor does one that somebody has left as it was who applies invalidations without keeping it.
    let unlogged = {
        let (view, other, redis) = (view.clone(), other.clone(), site.client().await);
        let load = move || async move {
            invalidate_everywhere(&other, &[Target::key("43")]).await;
            redis.send(redis::cmd("INCR").arg("test:watermark")).await?;
            let mut tx = other.database().begin().await?;
            let told = "UPDATE steadfast_outbox_state SET watermark = watermark + 1 WHERE namespace = 'test'";
            tx.execute(told, &[]).await?;
            tx.commit().await?;
            Ok((40..50)
                .map(|n| (format!("{n}"), n.to_string()))
                .collect::<Vec<_>>())
        };
        view.warm(load).await.unwrap().redis
    };
    assert_eq!(unlogged, 0);
    // More names than one log holds are in the other; more than both hold are not known any more.
    let flooded = async |names: usize| {
        let other = other.clone();
        let load = move || async move {
            let many = (0..names).map(|n| Target::key(format!("many {n}")));
            invalidate_everywhere(&other, &[Target::key("42")]).await;
            invalidate_everywhere(&other, &many.collect::<Vec<_>>()).await;
            let pairs = (40..50).map(|n| (format!("{n}"), n.to_string()));
            Ok(pairs.collect::<Vec<_>>())
        };
        view.warm(load).await.unwrap().redis
    };
    // The second time the log has been changed. On a busy machine Redis may be late, and then
    // nothing is stored.
    for time in 1..=2 {
        let mut stored = 0;
        for _ in 0..4 {
            stored = flooded(3000).await;
            if stored > 0 {
                break;
            }
        }
        assert_eq!(stored, 9, "time {time}");
    }
    assert_eq!(flooded(9000).await, 0);
    for log in &logs[1..] {
        let size = site.redis.command(&["HLEN", log]).await.unwrap();
        assert!(matches!(size, redis::Value::Int(..=4099)), "{size:?}");
    }
}
