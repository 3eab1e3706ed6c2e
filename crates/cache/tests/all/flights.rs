use std::sync::Arc;
use std::time::Duration;

use steadfast_cache::{Cache, CacheError, Source, Target, Ttl};

use steadfast_drill::fault::Direction;
use steadfast_drill::proxy::Proxy;

use crate::site::{Loader, Site, eventually, get, plain, slow_down, sqlite, text};

async fn ask_all(caches: &[&Cache], callers: usize, loader: &Loader) {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let mut tasks = Vec::new();
    for n in 0..callers {
        let (cache, loader, gate) = (
            caches[n % caches.len()].clone(),
            loader.clone(),
            gate.clone(),
        );
        tasks.push(tokio::spawn(async move {
            let _started = gate.acquire().await.unwrap();
            let load = move || async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                loader.counting().await
            };
            text(&cache, "user").get("cold", load).await.unwrap().value
        }));
    }
    gate.add_permits(callers);
    for task in tasks {
        assert!(task.await.unwrap().is_some());
    }
}

#[tokio::test]
async fn k3_a_thousand_callers_of_a_cold_key_cause_one_load() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let loader = Loader::default();
    ask_all(&[&cache], 1000, &loader).await;
    assert_eq!(loader.loads(), 1);
}

#[tokio::test]
async fn k3_two_processes_cause_one_load_while_redis_is_up() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    ask_all(&[&first, &second], 1000, &loader).await;
    assert_eq!(loader.loads(), 1);
}

#[tokio::test]
async fn k3_two_processes_cause_two_loads_at_most_while_redis_is_down() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    site.redis.kill().await;
    let loader = Loader::default();
    ask_all(&[&first, &second], 1000, &loader).await;
    assert!(loader.loads() <= 2, "{}", loader.loads());
}

#[tokio::test]
async fn k3_a_caller_that_goes_away_cancels_nobody() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let first = {
        let cache = cache.clone();
        tokio::spawn(async move {
            let load = move || async move {
                released.await.unwrap();
                Ok(Some("first".to_owned()))
            };
            text(&cache, "user").get("a", load).await
        })
    };
    while cache.status().flights == 0 {
        tokio::task::yield_now().await;
    }
    let second = tokio::spawn({
        let cache = cache.clone();
        async move { get(&cache, "a", "user", &Loader::default()).await }
    });
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    release.send(()).unwrap();
    assert_eq!(
        second.await.unwrap().unwrap().value.as_deref(),
        Some("first")
    );
}

/// The first reader of a key looks at Redis in its own task; nobody waits for a task that may not
/// be polled any more.
#[tokio::test]
async fn k3_a_reader_that_is_no_longer_polled_holds_up_nobody() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let loader = Loader::default();
    for round in 0..20 {
        let key = format!("cold:{round}");
        let mut asleep = Box::pin(get(&cache, &key, "user", &loader));
        // As far as it comes without waiting: its question is on its way.
        assert!(futures_util::poll!(asleep.as_mut()).is_pending());
        let others = (0..5).map(|_| get(&cache, &key, "user", &loader));
        let others = futures_util::future::join_all(others);
        let others = tokio::time::timeout(Duration::from_secs(20), others);
        for answer in others.await.expect("they wait for it") {
            answer.unwrap();
        }
        let before = loader.loads();
        assert!(before <= round + 1, "{before} loads of {} keys", round + 1);
        match round % 2 {
            0 => drop(asleep),
            _ => drop(asleep.await.unwrap()),
        }
        assert_eq!(loader.loads(), before, "it loaded what the others had");
    }
    assert_eq!(cache.status().flights, 0);
}

#[tokio::test]
async fn k3_nobody_joins_a_load_that_is_older_than_his_own_write() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let (begin, begun) = tokio::sync::oneshot::channel::<()>();
    let old = tokio::spawn({
        let cache = cache.clone();
        let load = move || async move {
            begin.send(()).unwrap();
            released.await.unwrap();
            Ok(Some("old".to_owned()))
        };
        async move { text(&cache, "user").get("a", load).await.unwrap() }
    });
    // The database has been asked: what it says is older than the invalidation.
    begun.await.unwrap();
    cache.invalidate(&[Target::key("a")]).await.unwrap();
    let new = text(&cache, "user")
        .get("a", || async { Ok(Some("new".to_owned())) })
        .await
        .unwrap();
    assert_eq!(new.value.as_deref(), Some("new"));
    release.send(()).unwrap();
    assert_eq!(old.await.unwrap().value.as_deref(), Some("old"));
    let after = get(&cache, "a", "user", &Loader::default()).await.unwrap();
    assert_ne!(after.value.as_deref(), Some("old"));
}

#[tokio::test]
async fn k3_a_holder_that_died_delays_a_load_by_no_more_than_the_wait() {
    let site = Site::start().await;
    let ttl = Ttl {
        hard_limit: Duration::from_secs(60),
        ..Ttl::default()
    };
    let builder = site
        .builder()
        .await
        .class("long", ttl)
        .lease_wait(Duration::from_millis(200));
    let cache = builder.build().await.unwrap();
    get(&cache, "other", "long", &Loader::default())
        .await
        .unwrap();
    let epoch = cache.status().redis.unwrap().epoch.unwrap();
    let lease = format!("test:l:{epoch}:{{a}}");
    site.redis
        .command(&["SET", &lease, "of a process that died", "PX", "60000"])
        .await
        .unwrap();
    let loader = Loader::default();
    let asked = get(&cache, "a", "long", &loader);
    let asked = tokio::time::timeout(Duration::from_secs(20), asked);
    assert_eq!(asked.await.unwrap().unwrap().source, Source::Database);
}

/// While a hot value is refreshed early and another process does the same, the value expires: who
/// comes then gets none that is too old.
#[tokio::test]
async fn k4_an_early_refresh_that_gives_way_hands_nobody_an_expired_value() {
    let site = Site::start().await;
    let proxy = Proxy::start(site.redis.addr()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let client = steadfast::Client::builder(&url).unwrap().connect().await;
    let hot = Ttl {
        fresh: Duration::from_millis(500),
        stale: Duration::ZERO,
        jitter: 0.0,
        early_refresh: 1000.0,
        ..Ttl::default()
    };
    let cache = plain(&site.database)
        .redis(client.unwrap())
        .redis_limit(Duration::from_secs(5))
        .class("hot", hot)
        .build()
        .await
        .unwrap();
    let loader = Loader::default();
    let read = || async {
        let loader = loader.clone();
        let load = move || async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            loader.counting().await
        };
        text(&cache, "hot").get("a", load).await.unwrap()
    };
    read().await;
    eventually("Redis is filled", || async {
        cache.status().counts.fills == 1
    })
    .await;
    let epoch = cache.status().redis.unwrap().epoch.unwrap();
    let (value, lease) = (
        format!("test:v:{epoch}:{{a}}"),
        format!("test:l:{epoch}:{{a}}"),
    );
    site.redis.command(&["DEL", &value]).await.unwrap();
    let held = ["SET", &lease, "another's", "PX", "60000"];
    site.redis.command(&held).await.unwrap();
    slow_down(&proxy, Direction::Downstream, Duration::from_millis(600)).await;
    for _ in 0..60 {
        let answer = read().await;
        let first = answer.value.as_deref() == Some("1");
        // The leader judges and the caller tells the age at two moments, which are close; the
        // refresh takes 1200 ms.
        let limit = hot.fresh + Duration::from_millis(400);
        assert!(!first || answer.age < limit, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whatever ends a load without a value gives its lease back at once, though it would stand for
/// another minute.
#[tokio::test]
async fn k3_a_load_that_fails_leaves_no_lease_in_the_way() {
    let site = Site::start().await;
    let long = Ttl {
        hard_limit: Duration::from_secs(60),
        ..Ttl::default()
    };
    let cache = Cache::builder(site.database.clone())
        .redis(site.client().await)
        .namespace("test")
        .redis_limit(Duration::from_millis(500))
        .class("long", long)
        .build()
        .await
        .unwrap();
    let strict_text = cache.view::<Fragile>("long").unwrap();
    let ended = async |key: &str, outcome: Result<Fragile, &'static str>| {
        let load = move || async move {
            match outcome {
                Err("panic") => panic!("oh no"),
                outcome => Ok(Some(outcome?)),
            }
        };
        let answer = strict_text.get(key, load).await;
        eventually("no lease is left", || async {
            let leases = site.redis.command(&["KEYS", "test:l:*"]).await.unwrap();
            leases == redis::Value::Array(Vec::new())
        })
        .await;
        answer.map(|answer| answer.source)
    };
    use CacheError::{Load, LoadPanicked};
    assert!(matches!(ended("a", Err("no")).await, Err(Load(_))));
    assert!(matches!(
        ended("b", Err("panic")).await,
        Err(LoadPanicked { .. })
    ));
    for (key, told) in [("c", "cannot be written"), ("d", "panics when written")] {
        let answered = ended(key, Ok(Fragile(told.into()))).await;
        assert_eq!(answered.unwrap(), Source::Database);
    }
    let too_large = Fragile("x".repeat(2 << 20));
    assert_eq!(ended("e", Ok(too_large)).await.unwrap(), Source::Database);
    assert_eq!(cache.status().flights, 0);
    assert_eq!(cache.status().counts.unencodable, 2);
}

/// A text that can be made not to be written.
#[derive(Clone, Debug, serde::Deserialize)]
struct Fragile(String);

impl serde::Serialize for Fragile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_str() {
            "cannot be written" => Err(serde::ser::Error::custom("no")),
            "panics when written" => panic!("oh no"),
            text => serializer.serialize_str(text),
        }
    }
}

/// Waiting for the holder of a lease is the load's time, not Redis's, so no round trip is too long
/// for one load in the fleet.
#[tokio::test]
async fn k3_a_fleet_far_from_redis_loads_a_slow_query_once() {
    let site = Site::start().await;
    let loader = Loader::default();
    let (mut reads, mut proxies) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let proxy = Proxy::start(site.redis.addr()).await.unwrap();
        let url = format!("redis://{}", proxy.addr());
        let client = steadfast::Client::builder(&url).unwrap().connect().await;
        let long = Ttl {
            hard_limit: Duration::from_secs(120),
            ..Ttl::default()
        };
        let builder = plain(&site.database)
            .redis(client.unwrap())
            .redis_limit(Duration::from_secs(2))
            .lease_wait(Duration::from_secs(60));
        let cache = builder.class("long", long).build().await.unwrap();
        slow_down(&proxy, Direction::Downstream, Duration::from_millis(100)).await;
        let loader = loader.clone();
        reads.push(tokio::spawn(async move {
            let load = move || async move {
                tokio::time::sleep(Duration::from_secs(6)).await;
                loader.counting().await
            };
            let answer = text(&cache, "long").get("slow", load).await;
            (answer.unwrap().value, cache)
        }));
        proxies.push(proxy);
    }
    let mut caches = Vec::new();
    for read in reads {
        let (value, cache) = read.await.unwrap();
        assert_eq!(value.as_deref(), Some("1"));
        caches.push(cache);
    }
    assert_eq!(loader.loads(), 1);
}

/// A load answers its readers before it stores its value, so a program that ends at once after a
/// read would leave Redis with a lease and without a value.
#[tokio::test]
async fn k3_when_its_loads_are_finished_a_process_leaves_values_and_no_leases_in_redis() {
    let site = Site::start().await;
    let proxy = Proxy::start(site.redis.addr()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let client = steadfast::Client::builder(&url).unwrap().connect().await;
    let limit = Duration::from_secs(10);
    let builder = plain(&site.database)
        .redis(client.unwrap())
        .redis_limit(limit);
    let cache = builder.build().await.unwrap();
    slow_down(&proxy, Direction::Upstream, Duration::from_millis(100)).await;
    let loader = Loader::default();
    for key in ["a", "b", "c"] {
        get(&cache, key, "user", &loader).await.unwrap();
    }
    assert!(cache.finish_loads(Duration::ZERO).await > 0);
    assert_eq!(cache.finish_loads(limit).await, 0);
    let near = site.cache().await;
    for key in ["a", "b", "c"] {
        let answer = get(&near, key, "user", &loader).await.unwrap();
        assert_eq!(answer.source, Source::Redis);
    }

    // A load that another begins, and does not wait for, is a part of it, however late it begins.
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let (view, parts) = (text(&cache, "user"), text(&cache, "user"));
    let whole = move || async move {
        let _ = gone.await;
        let part = || async move {
            let _ = released.await;
            Ok(Some("part".to_owned()))
        };
        let begun = futures_util::poll!(std::pin::pin!(parts.get("part", part)));
        Ok(begun.is_pending().then(|| "whole".to_owned()))
    };
    let read = tokio::spawn(async move { view.get("whole", whole).await });
    eventually("the load is under way", || async {
        cache.status().guard.running == 1
    })
    .await;
    let mut finishing = std::pin::pin!(cache.finish_loads(limit));
    assert!(futures_util::poll!(&mut finishing).is_pending());
    go.send(()).unwrap();
    let answer = read.await.unwrap().unwrap();
    assert_eq!(answer.value.as_deref(), Some("whole"));
    eventually("what it brought is in Redis", || async {
        text(&near, "user").peek("whole").await.is_some()
    })
    .await;
    let early = tokio::time::timeout(Duration::from_millis(300), &mut finishing).await;
    assert!(early.is_err(), "its part is under way");
    release.send(()).unwrap();
    assert_eq!(finishing.await, 0);
    assert!(text(&near, "user").peek("part").await.is_some());
}

/// A reader looks at Redis itself. Should it give up before Redis has answered, the value is loaded
/// all the same, for those that come after it.
#[tokio::test]
async fn k3_a_reader_that_gives_up_before_redis_has_answered_leaves_a_load_behind() {
    let site = Site::start().await;
    let proxy = Proxy::start(site.redis.addr()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let client = steadfast::Client::builder(&url).unwrap().connect().await;
    let builder = plain(&site.database).redis(client.unwrap());
    let builder = builder.redis_limit(Duration::from_secs(10));
    let cache = builder.build().await.unwrap();
    slow_down(&proxy, Direction::Downstream, Duration::from_millis(200)).await;
    let loader = Loader::default();
    let read = get(&cache, "impatient", "user", &loader);
    let given_up = tokio::time::timeout(Duration::from_millis(20), read).await;
    assert!(given_up.is_err());
    eventually("a load", async || loader.loads() == 1).await;
}

/// The age of what comes from Redis is that of the value, however late its reader looks at it.
#[tokio::test]
async fn k10_an_answer_of_redis_that_nobody_looked_at_for_a_while_is_as_old_as_it_is() {
    let site = Site::start().await;
    let loader = Loader::default();
    let cache = site.cache().await;
    get(&cache, "parked", "user", &loader).await.unwrap();
    cache.finish_loads(Duration::from_secs(10)).await;
    let other = site.cache().await;
    let mut read = Box::pin(get(&other, "parked", "user", &loader));
    let begun = futures_util::poll!(&mut read);
    assert!(begun.is_pending());
    let parked = Duration::from_millis(700);
    tokio::time::sleep(parked).await;
    let answer = read.await.unwrap();
    assert_eq!(answer.source, Source::Redis);
    assert!(answer.age >= parked, "{:?}", answer.age);
}
