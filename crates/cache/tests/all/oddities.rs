use std::time::Duration;

use bytes::Bytes;
use steadfast_cache::{
    BuildError, Cache, ClassGuard, Database, DatabaseOptions, InvalidSetting, Source, Ttl, View,
};

use crate::site::{Loader, Site, eventually, get, plain, sqlite, text};

async fn of_bytes(site: &Site) -> View<Bytes> {
    let cache = Cache::builder(site.database.clone())
        .redis(site.client().await)
        .namespace("test")
        .redis_limit(std::time::Duration::from_millis(500))
        .class("user", Ttl::default())
        .build()
        .await
        .unwrap();
    cache.view_of_bytes("user").unwrap().prefix("")
}

async fn value_key(cache: &Cache, key: &str) -> String {
    format!(
        "test:v:{}:{{{key}}}",
        cache.status().redis.unwrap().epoch.unwrap()
    )
}

#[tokio::test]
async fn k12_values_of_any_length_and_keys_of_any_bytes_come_back_as_they_were() {
    let site = Site::start().await;
    let (first, second) = (of_bytes(&site).await, of_bytes(&site).await);
    let mut rng = fastrand::Rng::with_seed(12);
    let noise: Vec<u8> = (0..1 << 20).map(|_| rng.u8(..)).collect();
    let values = [
        Bytes::new(),
        Bytes::from_static(b"\0"),
        Bytes::from(vec![b'x'; 1 << 20]),
        Bytes::from(noise),
    ];
    let keys: [&[u8]; 6] = [
        b"",
        b"with spaces",
        b"with\r\nnewlines",
        b"with\0NUL",
        b"\xff\xfe not UTF-8",
        b"with {braces} }{",
    ];
    for key in keys {
        for (n, value) in values.iter().enumerate() {
            let key = [key, n.to_string().as_bytes()].concat();
            let given = value.clone();
            first
                .get(&key, move || async { Ok(Some(given)) })
                .await
                .unwrap();
            let never = || async { Err::<Option<Bytes>, _>("must come from Redis".into()) };
            let answer = second.get(&key, never).await.unwrap();
            assert_eq!(
                (answer.source, answer.value.as_ref()),
                (Source::Redis, Some(value))
            );
        }
    }
}

#[tokio::test]
async fn k12_a_value_above_the_limit_is_answered_and_kept_nowhere() {
    let site = Site::start().await;
    let cache = site.builder().await.value_max(100).build().await.unwrap();
    let large = || async { Ok(Some("x".repeat(101))) };
    for _ in 0..2 {
        let answer = text(&cache, "user").get("a", large).await.unwrap();
        assert_eq!(
            (answer.source, answer.value.map(|value| value.len())),
            (Source::Database, Some(101))
        );
    }
    assert_eq!(cache.status().counts.oversized, 2);
}

#[tokio::test]
async fn k12_a_value_that_cannot_be_put_leaves_no_older_one_in_its_place() {
    let site = Site::start().await;
    let cache = site.builder().await.value_max(100).build().await.unwrap();
    let view = text(&cache, "user").lifetime_by(|value| match value.as_str() {
        "ends" => Duration::ZERO,
        _ => Duration::from_secs(60),
    });
    for (value, oversized) in [("x".repeat(101), 1), ("ends".to_owned(), 1)] {
        let old = view.put("a", "old".to_owned()).await;
        assert!(old.memory && old.redis, "{old:?}");
        let put = view.put("a", value).await;
        assert!(!put.memory && !put.redis, "{put:?}");
        let held = text(&site.cache().await, "user").peek("a").await;
        assert!(held.is_none() && view.peek("a").await.is_none(), "{held:?}");
        assert_eq!(cache.status().counts.oversized, oversized);
    }
}

#[tokio::test]
async fn k12_a_refresh_that_cannot_be_kept_leaves_no_older_one_in_its_place() {
    let site = Site::start().await;
    let cache = site.builder().await.value_max(100).build().await.unwrap();
    let view = text(&cache, "user").lifetime_by(|value| match value.as_str() {
        "ends" => Duration::ZERO,
        _ => Duration::from_secs(60),
    });
    for value in ["x".repeat(101), "ends".to_owned()] {
        let old = view.put("a", "old".to_owned()).await;
        assert!(old.memory && old.redis, "{old:?}");
        let new = value.clone();
        let refreshed = view.refresh("a", || async { Ok(Some(new)) }).await;
        assert_eq!(refreshed.unwrap().value, Some(value));
        let held = text(&site.cache().await, "user").peek("a").await;
        assert!(held.is_none() && view.peek("a").await.is_none(), "{held:?}");
    }
}

#[tokio::test]
async fn k12_a_corrupt_foreign_or_future_value_is_a_counted_miss() {
    let site = Site::start().await;
    let first = site.cache().await;
    let loader = Loader::default();
    let (again, filled) = (loader.clone(), first.clone());
    let load = || async move {
        get(&filled, "good", "user", &again).await.unwrap();
    };
    load().await;
    eventually("Redis is filled", || async {
        first.status().counts.fills == 1
    })
    .await;
    let name = value_key(&first, "good").await;
    // What is there, with one bit of the payload turned; a future version; nothing like it; another
    // type; one that never expires.
    let spoil: [(&str, &[&str]); 5] = [
        (
            "corrupt",
            &[
                "EVAL",
                "local v = redis.call('GET', KEYS[1]); redis.call('SET', KEYS[2], v:sub(1, -2) .. '!', 'PX', 9000)",
                "2",
            ],
        ),
        (
            "future",
            &[
                "EVAL",
                "local v = redis.call('GET', KEYS[1]); redis.call('SET', KEYS[2], '\\7' .. v:sub(2), 'PX', 9000)",
                "2",
            ],
        ),
        (
            "foreign",
            &[
                "EVAL",
                "redis.call('SET', KEYS[2], 'by hand', 'PX', 9000)",
                "2",
            ],
        ),
        ("list", &["EVAL", "redis.call('LPUSH', KEYS[2], 'x')", "2"]),
        (
            "eternal",
            &[
                "EVAL",
                "redis.call('SET', KEYS[2], redis.call('GET', KEYS[1]))",
                "2",
            ],
        ),
    ];
    for (key, command) in spoil {
        let target = value_key(&first, key).await;
        let command: Vec<&str> = command
            .iter()
            .copied()
            .chain([name.as_str(), target.as_str()])
            .collect();
        site.redis.command(&command).await.unwrap();
        let loads = loader.loads();
        assert_eq!(
            get(&first, key, "user", &loader).await.unwrap().source,
            Source::Database,
            "{key}"
        );
        assert_eq!(loader.loads(), loads + 1);
        let second = site.cache().await;
        eventually("it is replaced by a good one", || async {
            get(&second, key, "user", &loader).await.unwrap().source != Source::Database
        })
        .await;
    }
    assert!(
        first.status().counts.damaged >= 4,
        "{:?}",
        first.status().counts
    );
}

#[tokio::test]
async fn k12_a_value_that_its_type_cannot_hold_is_a_counted_miss() {
    let site = Site::start().await;
    let wide = site.cache().await;
    let numbers = wide.view::<Vec<u64>>("user").unwrap();
    numbers
        .get("a", || async { Ok(Some(vec![1, 1000])) })
        .await
        .unwrap();
    eventually("Redis is filled", || async {
        wide.status().counts.fills == 1
    })
    .await;
    let cache = Cache::builder(site.database.clone())
        .redis(site.client().await)
        .namespace("test")
        .class("user", Ttl::default())
        .build()
        .await
        .unwrap();
    let numbers = cache.view::<Vec<u8>>("user").unwrap();
    let answer = numbers
        .get("a", || async { Ok(Some(vec![1, 2])) })
        .await
        .unwrap();
    assert_eq!(
        (answer.source, answer.value),
        (Source::Database, Some(vec![1, 2]))
    );
    assert_eq!(cache.status().counts.damaged, 1);
}

/// Redis judges expiry by its own clock. One that is set back makes values look as if they had more
/// time left than they were given, which is not believed.
#[tokio::test]
async fn k4_a_value_with_more_time_left_than_it_was_given_is_not_believed() {
    let site = Site::start().await;
    let first = site.cache().await;
    let loader = Loader::default();
    get(&first, "a", "user", &loader).await.unwrap();
    eventually("Redis is filled", || async {
        first.status().counts.fills == 1
    })
    .await;
    let key = value_key(&first, "a").await;
    site.redis
        .command(&["PEXPIRE", &key, "90000000"])
        .await
        .unwrap();
    let second = site.cache().await;
    assert_eq!(
        get(&second, "a", "user", &loader).await.unwrap().source,
        Source::Database
    );
}

#[tokio::test]
async fn settings_that_mean_nothing_are_refused_by_name() {
    let (database, _folder) = sqlite().await;
    let nan = Ttl {
        jitter: f64::NAN,
        ..Ttl::default()
    };
    let error = plain(&database)
        .class("bad", nan)
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("bad") && error.contains("jitter"), "{error}");
    let error = plain(&database)
        .class("user", Ttl::default())
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("twice"), "{error}");
    let error = plain(&database)
        .namespace("{a}")
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("namespace"), "{error}");
    // Each by itself, whichever others have the same bound.
    let error = plain(&database)
        .lease_wait(std::time::Duration::MAX)
        .build()
        .await
        .unwrap_err();
    let refused = InvalidSetting::new("lease_wait", "must be at most 1 day");
    assert_eq!(error, BuildError::Setting(refused));
    let error = plain(&database)
        .outbox_lag_max(std::time::Duration::ZERO)
        .build()
        .await
        .unwrap_err();
    let refused = InvalidSetting::new("outbox_lag_max", "must be above zero");
    assert_eq!(error, BuildError::Setting(refused));
    let error = plain(&database)
        .pending_names(0)
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(error, "setting `pending_names` must be above zero");
    for setting in ["max_connections", "read_only_connections"] {
        let mut options = DatabaseOptions::default();
        match setting {
            "max_connections" => options.max_connections = 0,
            _ => options.read_only_connections = Some(0),
        }
        let error = Database::connect("sqlite::memory:", options).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("setting `{setting}` must be at least 1")
        );
    }
    let error = plain(&database)
        .class_guard("reprot", ClassGuard::new(1, 1.0))
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("reprot"), "{error}");
    let error = plain(&database)
        .class_guard("user", ClassGuard::new(0, 1.0))
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "class_guard of \"user\": setting `concurrency` must be at least 1"
    );
    let error = Cache::builder(database)
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("class"), "{error}");
}

#[tokio::test]
async fn k12_what_json_cannot_hold_is_answered_as_it_is_and_kept_nowhere() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let (one, two) = (
        first.view::<Option<f64>>("user").unwrap(),
        second.view::<Option<f64>>("user").unwrap(),
    );
    let fine = one.get("fine", || async { Ok(Some(Some(1.5))) }).await;
    assert_eq!(fine.unwrap().value, Some(Some(1.5)));
    for _ in 0..2 {
        for view in [&one, &two] {
            let load = || async { Ok(Some(Some(f64::NAN))) };
            let answer = view.get("odd", load).await.unwrap();
            assert_eq!(answer.source, Source::Database);
            assert!(answer.value.unwrap().unwrap().is_nan());
        }
    }
    let many = |keys: Vec<&'static str>| async {
        Ok(keys
            .into_iter()
            .map(|key| (key, Some(f64::INFINITY)))
            .collect::<Vec<_>>())
    };
    let answers = one.get_many(&["odd", "odder"], many).await;
    for answer in answers {
        assert_eq!(answer.unwrap().value, Some(Some(f64::INFINITY)));
    }
    let load = || async { Ok([("warm", Some(2.5)), ("odd", Some(f64::NAN))]) };
    let warmed = one.warm(load).await.unwrap();
    assert_eq!((warmed.loaded, warmed.memory, warmed.redis), (2, 1, 1));
    let (one, two) = (first.status().counts, second.status().counts);
    assert_eq!((one.unencodable, two.unencodable, two.damaged), (5, 2, 0));
}
