use std::time::Duration;

use steadfast_cache::{CacheError, LoadError, Source, StaleReason, Ttl};

use crate::site::{Loader, Site, eventually, get, plain, sqlite, text};

#[tokio::test]
async fn k1_an_answer_says_where_it_came_from() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();

    let answer = get(&first, "a", "user", &loader).await.unwrap();
    assert_eq!(
        (answer.value.as_deref(), answer.source, answer.stale),
        (Some("1"), Source::Database, None)
    );
    let answer = get(&first, "a", "user", &loader).await.unwrap();
    assert_eq!(
        (answer.value.as_deref(), answer.source, answer.stale),
        (Some("1"), Source::Memory, None)
    );
    let answer = get(&second, "a", "user", &loader).await.unwrap();
    assert_eq!(
        (answer.value.as_deref(), answer.source, answer.stale),
        (Some("1"), Source::Redis, None)
    );
    assert_eq!(loader.loads(), 1);
    let counts = first.status().counts;
    assert_eq!((counts.database, counts.memory, counts.loads), (1, 1, 1));
    assert!(counts.redis_answers > 0, "{counts:?}");
    assert_eq!(counts.redis_errors, 0, "{counts:?}");
}

#[tokio::test]
async fn k1_age_is_counted_from_the_load_in_every_tier() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    get(&first, "a", "user", &loader).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let memory = get(&first, "a", "user", &loader).await.unwrap();
    let redis = get(&second, "a", "user", &loader).await.unwrap();
    assert_eq!(
        (memory.source, redis.source),
        (Source::Memory, Source::Redis)
    );
    for age in [memory.age, redis.age] {
        assert!(
            age >= Duration::from_millis(250) && age < Duration::from_secs(20),
            "{age:?}"
        );
    }
}

#[tokio::test]
async fn k1_a_stale_answer_says_so_and_why() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    get(&cache, "a", "brief", &Loader::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    let failing = || async { Err::<Option<String>, _>("no".into()) };
    let answer = text(&cache, "brief").get("a", failing).await.unwrap();
    assert_eq!(
        (answer.value.as_deref(), answer.source, answer.stale),
        (Some("1"), Source::Memory, Some(StaleReason::Failed))
    );
}

#[tokio::test]
async fn k4_absence_is_cached_and_an_error_is_not() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let failing = || async { Err::<Option<String>, _>("no".into()) };
    assert!(matches!(
        text(&cache, "user").get("a", failing).await,
        Err(CacheError::Load(_))
    ));
    let absent = || async { Ok(None) };
    assert_eq!(
        text(&cache, "user").get("a", absent).await.unwrap().source,
        Source::Database
    );
    let loader = Loader::default();
    let answer = get(&cache, "a", "user", &loader).await.unwrap();
    assert_eq!(
        (answer.value, answer.source, loader.loads()),
        (None, Source::Memory, 0)
    );
}

#[tokio::test]
async fn k4_a_class_that_may_not_be_stale_fails_rather() {
    let (database, _folder) = sqlite().await;
    let ttl = Ttl {
        fresh: Duration::from_millis(50),
        stale: Duration::ZERO,
        ..Ttl::default()
    };
    let cache = plain(&database)
        .class("session", ttl)
        .build()
        .await
        .unwrap();
    get(&cache, "a", "session", &Loader::default())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let failing = || async { Err::<Option<String>, _>("no".into()) };
    assert!(matches!(
        text(&cache, "session").get("a", failing).await,
        Err(CacheError::Load(_))
    ));
}

#[tokio::test]
async fn k4_a_hot_value_is_loaded_again_before_it_expires() {
    let (database, _folder) = sqlite().await;
    let ttl = Ttl {
        fresh: Duration::from_secs(500),
        jitter: 0.0,
        early_refresh: 1000.0,
        ..Ttl::default()
    };
    let cache = plain(&database).class("hot", ttl).build().await.unwrap();
    let loader = Loader::default();
    // The load takes 500 ms: at so large a beta the whole of its time is near the end.
    let slow = loader.clone();
    let load = move || async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        slow.counting().await
    };
    text(&cache, "hot").get("a", load).await.unwrap();
    eventually("refreshed early", || async {
        let answer = get(&cache, "a", "hot", &loader).await.unwrap();
        assert_eq!((answer.source, answer.stale), (Source::Memory, None));
        loader.loads() >= 2
    })
    .await;
}

#[tokio::test]
async fn k5_past_the_soft_limit_stale_is_served_and_the_load_goes_on() {
    let (database, _folder) = sqlite().await;
    let ttl = Ttl {
        fresh: Duration::from_millis(50),
        jitter: 0.0,
        soft_limit: Duration::from_millis(50),
        ..Ttl::default()
    };
    let cache = plain(&database).class("soft", ttl).build().await.unwrap();
    let loader = Loader::default();
    get(&cache, "a", "soft", &loader).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let answer = text(&cache, "soft")
        .get("a", move || async move {
            released.await.unwrap();
            Ok(Some("new".to_owned()))
        })
        .await
        .unwrap();
    assert_eq!(
        (answer.value.as_deref(), answer.stale),
        (Some("1"), Some(StaleReason::Slow))
    );
    release.send(()).unwrap();
    eventually("the load behind it arrives", || async {
        get(&cache, "a", "soft", &loader)
            .await
            .unwrap()
            .value
            .as_deref()
            != Some("1")
    })
    .await;
}

#[tokio::test]
async fn k5_past_the_hard_limit_the_load_is_given_up() {
    let (database, _folder) = sqlite().await;
    let ttl = Ttl {
        soft_limit: Duration::ZERO,
        hard_limit: Duration::from_millis(100),
        ..Ttl::default()
    };
    let cache = plain(&database).class("hard", ttl).build().await.unwrap();
    let never = || std::future::pending::<Result<Option<String>, LoadError>>();
    assert!(matches!(
        text(&cache, "hard").get("a", never).await,
        Err(CacheError::LoadTimeout { .. })
    ));
    assert_eq!(
        get(&cache, "a", "hard", &Loader::default())
            .await
            .unwrap()
            .source,
        Source::Database
    );
    assert_eq!(cache.status().guard.running, 0);
}

#[tokio::test]
async fn a_panicking_loader_is_an_error_and_nothing_more() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let panics = || async { if true { panic!("oh no") } else { Ok(None) } };
    match text(&cache, "user").get("a", panics).await {
        Err(CacheError::LoadPanicked { message }) => assert_eq!(message, "oh no"),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        get(&cache, "a", "user", &Loader::default())
            .await
            .unwrap()
            .source,
        Source::Database
    );
    assert_eq!(
        (cache.status().guard.running, cache.status().flights),
        (0, 0)
    );
}

#[tokio::test]
async fn a_lifetime_that_panics_is_as_a_load_that_does_and_is_not_tried_for_ever() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let view = text(&cache, "user").lifetime_by(|_| -> Duration { panic!("oh no") });
    let loader = Loader::default();
    let load = || {
        let loader = loader.clone();
        move || loader.counting()
    };
    match view.get("a", load()).await {
        Err(CacheError::LoadPanicked { message }) => assert_eq!(message, "oh no"),
        other => panic!("{other:?}"),
    }
    let of_batch = loader.clone();
    let load_many = move |keys: Vec<&'static str>| async move {
        let value = of_batch.counting().await?.unwrap();
        Ok(keys.into_iter().map(move |key| (key, value.clone())))
    };
    for answer in view.get_many(&["b", "c"], load_many).await {
        assert!(matches!(answer, Err(CacheError::LoadPanicked { .. })));
    }
    let mut refused = false;
    for _ in 0..100 {
        let error = view.get("a", load()).await.unwrap_err();
        refused |= matches!(error, CacheError::Unavailable { .. });
    }
    assert!(refused, "{} loads", loader.loads());
}

#[tokio::test]
async fn an_unknown_class_is_named() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let error = cache.view::<String>("nonesuch").unwrap_err();
    assert!(error.to_string().contains("nonesuch"), "{error}");
    assert!(cache.view_of_bytes("nonesuch").is_err());
}

#[tokio::test]
async fn a_default_is_served_when_all_else_fails_and_is_not_stored() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let failing = || async { Err::<Option<String>, _>("no".into()) };
    let answer = text(&cache, "user")
        .read("a")
        .or("nobody".to_owned())
        .get(failing)
        .await
        .unwrap();
    assert_eq!(
        (answer.value.as_deref(), answer.source, answer.stale),
        (Some("nobody"), Source::Default, Some(StaleReason::Failed))
    );
    assert_eq!(
        get(&cache, "a", "user", &Loader::default())
            .await
            .unwrap()
            .source,
        Source::Database
    );
}

#[tokio::test]
async fn k4_classes_can_be_changed_while_the_cache_is_in_use() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let loader = Loader::default();
    get(&cache, "a", "brief", &loader).await.unwrap();
    assert!(cache.view::<String>("new").is_err());
    let long = Ttl {
        fresh: Duration::from_secs(600),
        jitter: 0.0,
        ..Ttl::default()
    };
    let senseless = Ttl {
        jitter: f64::NAN,
        ..long
    };
    let refused = cache.change_classes([("brief".into(), long), ("new".into(), senseless)]);
    assert!(refused.unwrap_err().to_string().contains("\"new\""));
    assert!(cache.view::<String>("new").is_err(), "nothing was changed");
    let brief = text(&cache, "brief");

    cache
        .change_classes([("brief".into(), long), ("new".into(), long)])
        .unwrap();
    get(&cache, "n", "new", &loader).await.unwrap();
    // A view made before sees the change.
    let again = loader.clone();
    brief.get("b", move || again.counting()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    for (key, class, source) in [
        ("a", "brief", Source::Database), // what is held keeps the times it was loaded with
        ("b", "brief", Source::Memory),
        ("n", "new", Source::Memory),
    ] {
        let answer = get(&cache, key, class, &loader).await.unwrap();
        assert_eq!(answer.source, source, "{key}");
    }
    get(&cache, "s", "strict", &loader).await.unwrap(); // not named, and there as before
}

#[tokio::test]
async fn k4_classes_changed_from_two_threads_are_all_kept() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let names = |side: &'static str| (0..300).map(move |n| format!("{side} {n}"));
    std::thread::scope(|scope| {
        for side in ["left", "right"] {
            let cache = &cache;
            scope.spawn(move || {
                for name in names(side) {
                    let class = (name.into_boxed_str(), Ttl::default());
                    cache.change_classes([class]).unwrap();
                }
            });
        }
    });
    for class in names("left").chain(names("right")) {
        let absent = || async { Ok(None) };
        let answer = text(&cache, &class).get("a", absent).await;
        assert!(answer.is_ok(), "{class}: {answer:?}");
    }
}

#[tokio::test]
async fn k11_a_tag_outlives_the_values_of_a_class_that_was_given_more_time() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let fresh = Duration::from_secs(48 * 3600);
    let long = Ttl {
        fresh,
        ..Ttl::default()
    };
    cache.change_classes([("user".into(), long)]).unwrap();
    let loader = Loader::default();
    let load = move || loader.counting();
    let view = text(&cache, "user");
    let answer = view.read("a").tag("red").get(load).await.unwrap();
    assert_eq!(answer.source, Source::Database);
    let left = site.redis.command(&["PTTL", "test:t:red"]).await.unwrap();
    match left {
        redis::Value::Int(left) => assert!(left as u128 > fresh.as_millis(), "{left}"),
        other => panic!("{other:?}"),
    }
}
