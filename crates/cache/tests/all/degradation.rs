use std::time::Duration;

use steadfast::Client;
use steadfast_cache::{
    CacheError, ClassGuard, Database, DatabaseOptions, GuardOptions, LoadError, Source,
    SourceError, StaleReason, Ttl,
};
use steadfast_drill::fault::Direction;
use steadfast_drill::proxy::Proxy;

use crate::site::{
    Loader, Site, all_is_applied, eventually, get, plain, read_item, slow_down, sqlite, text,
    write_everywhere, write_item,
};

#[tokio::test]
async fn k2_a_redis_that_is_killed_fails_no_read() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let loader = Loader::default();
    get(&cache, "held", "user", &loader).await.unwrap();
    site.redis.kill().await;
    // From memory, or loaded again if the channel is already known to be lost.
    let held = get(&cache, "held", "user", &loader).await.unwrap().value;
    assert!(matches!(held.as_deref(), Some("1" | "2")), "{held:?}");
    assert_eq!(
        get(&cache, "cold", "user", &loader).await.unwrap().source,
        Source::Database
    );
    assert_eq!(
        get(&cache, "cold strict", "strict", &loader)
            .await
            .unwrap()
            .source,
        Source::Database
    );
}

#[tokio::test]
async fn k2_a_redis_that_is_frozen_adds_no_more_than_its_limit() {
    let site = Site::start().await;
    let limit = Duration::from_millis(100);
    let cache = site
        .builder()
        .await
        .redis_limit(limit)
        .build()
        .await
        .unwrap();
    let loader = Loader::default();
    get(&cache, "warm up", "user", &loader).await.unwrap();
    site.redis.freeze().unwrap();
    for n in 0..10 {
        let began = tokio::time::Instant::now();
        let answer = get(&cache, &format!("cold {n}"), "user", &loader)
            .await
            .unwrap();
        assert_eq!(answer.source, Source::Database);
        // A look, and the waiting of the machine that runs this.
        assert!(
            began.elapsed() < limit * 2 + Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
    }
    site.redis.resume().unwrap();
    eventually("Redis is used again", || async {
        let fresh = site.cache().await;
        get(&fresh, "cold 1", "user", &loader).await.unwrap();
        get(&cache, "back again", "user", &loader).await.unwrap();
        get(&fresh, "back again", "user", &loader)
            .await
            .unwrap()
            .source
            == Source::Redis
    })
    .await;
}

/// A reader looks at Redis itself, in vain, and then waits for a load that was begun meanwhile and
/// that looks at Redis too.
#[tokio::test]
async fn k2_nobody_pays_for_a_frozen_redis_twice() {
    let site = Site::start().await;
    let patient = Client::builder(&site.redis.url())
        .unwrap()
        .response_idle_timeout(Duration::from_secs(60));
    let limit = Duration::from_secs(4);
    let cache = plain(&site.database)
        .redis(patient.connect().await.unwrap())
        .redis_limit(limit)
        .build()
        .await
        .unwrap();
    let loader = Loader::default();
    get(&cache, "warm up", "user", &loader).await.unwrap();
    site.redis.freeze().unwrap();
    let almost = limit - Duration::from_millis(500);
    let later = async {
        tokio::time::sleep(almost).await;
        get(&cache, "cold", "user", &loader).await.unwrap()
    };
    // A batch that begins the load of a key is no other than a single read.
    let batch = async {
        tokio::time::sleep(almost).await;
        let load = |keys: Vec<&'static str>| async {
            let value = |key| (key, "of the batch".to_owned());
            Ok(keys.into_iter().map(value).collect::<Vec<_>>())
        };
        let mut answers = text(&cache, "user").get_many(&["many"], load).await;
        answers.remove(0).unwrap()
    };
    let began = tokio::time::Instant::now();
    let first = async |key| {
        let answer = get(&cache, key, "user", &loader).await.unwrap();
        (answer.value, began.elapsed())
    };
    let (single, of_batch, later, batch) = tokio::join!(first("cold"), first("many"), later, batch);
    for ((first, took), later) in [(single, later), (of_batch, batch)] {
        assert_eq!(first, later.value, "one load");
        assert!(took < limit * 2 - Duration::from_secs(1), "{took:?}");
    }
}

/// Its look was refused at once, and has cost it next to nothing: the load that it waits for may
/// ask a Redis that is not slow for as long as any.
#[tokio::test]
async fn k2_a_look_that_was_refused_hurries_nobody() {
    let site = Site::start().await;
    let proxy = Proxy::start(site.redis.addr()).await.unwrap();
    let client = Client::builder(&format!("redis://{}", proxy.addr()))
        .unwrap()
        .response_idle_timeout(Duration::from_secs(60));
    let cache = plain(&site.database)
        .redis(client.connect().await.unwrap())
        .redis_limit(Duration::from_secs(12))
        .build()
        .await
        .unwrap();
    let loader = Loader::default();
    get(&cache, "warm up", "user", &loader).await.unwrap();
    eventually("the first value is stored", || async {
        cache.status().counts.fills == 1
    })
    .await;
    slow_down(&proxy, Direction::Downstream, Duration::from_millis(1500)).await;
    let may = async |rule| {
        let set = ["ACL", "SETUSER", "default", rule];
        site.redis.command(&set).await.unwrap();
    };
    may("-mget").await;
    let first = get(&cache, "cold", "user", &loader);
    let later = async {
        eventually("the look was refused", || async {
            let stats = site.redis.info("commandstats").await.unwrap();
            let of_mget = stats.lines().find(|line| line.starts_with("cmdstat_mget:"));
            of_mget.is_some_and(|line| !line.contains("rejected_calls=0"))
        })
        .await;
        may("+mget").await;
        get(&cache, "cold", "user", &loader).await.unwrap()
    };
    let (first, later) = tokio::join!(first, later);
    assert_eq!(first.unwrap().value, later.value, "one load");
    proxy.clear().await;
    eventually("the value is stored", || async {
        cache.status().counts.fills == 2
    })
    .await;
    assert_eq!(cache.status().counts.redis_slow, 0);
}

/// No read can be answered by Redis in the time that one may spend there. Invalidations are applied
/// all the same, Redis is believed, and memory is proven: what no reader waits for has a limit of
/// its own.
#[tokio::test]
async fn k2_a_limit_below_the_round_trip_suspends_nothing() {
    let site = Site::start().await;
    let proxy = Proxy::start(site.redis.addr()).await.unwrap();
    let client = Client::builder(&format!("redis://{}", proxy.addr())).unwrap();
    let cache = plain(&site.database)
        .redis(client.connect().await.unwrap())
        .redis_limit(Duration::from_millis(30))
        .build()
        .await
        .unwrap();
    slow_down(&proxy, Direction::Downstream, Duration::from_millis(60)).await;
    let other = site.cache().await;
    write_item(&other, 7, 1).await;
    eventually("the other has it from Redis or memory", || async {
        read_item(&other, 7).await.as_deref() == Some("1")
    })
    .await;
    write_item(&cache, 7, 2).await;
    eventually("it is applied, and heard of", || async {
        read_item(&other, 7).await.as_deref() == Some("2")
    })
    .await;
    all_is_applied(&cache).await;
    eventually("all is well", || async {
        let status = cache.status();
        let redis = status.redis.unwrap();
        status.memory_proven && redis.trusted && redis.suspended.is_none()
    })
    .await;
    assert_eq!(read_item(&cache, 7).await.as_deref(), Some("2"));
}

/// Each question is answered within the limit, all of them together would not be: the second is not
/// asked, and the read goes on without it.
#[tokio::test]
async fn k2_the_limit_is_one_for_all_questions_of_a_read() {
    let site = Site::start().await;
    let proxy = Proxy::start(site.redis.addr()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    // Slow as it will be, the connection is the one to be used.
    let patient = Client::builder(&url)
        .unwrap()
        .response_idle_timeout(Duration::from_secs(30));
    let client = patient.connect().await.unwrap();
    let cache = plain(&site.database)
        .redis(client.clone())
        .redis_limit(Duration::from_millis(5800))
        .build()
        .await
        .unwrap();
    let loader = Loader::default();
    get(&cache, "warm up", "user", &loader).await.unwrap();
    eventually("the first value is stored", || async {
        cache.status().counts.fills == 1
    })
    .await;
    slow_down(&proxy, Direction::Downstream, Duration::from_secs(3)).await;
    let scripts = site.scripts().await;
    let answer = get(&cache, "cold", "user", &loader).await.unwrap();
    assert_eq!(answer.source, Source::Database);
    assert_eq!(cache.status().counts.redis_slow, 1);
    // The lease was not asked for, nor given back: once Redis is quick again, only the next read
    // does so.
    proxy.clear().await;
    eventually("Redis is quick again", || async {
        let asked = tokio::time::Instant::now();
        let pong: Result<String, _> = redis::cmd("PING").query_async(&mut client.clone()).await;
        pong.is_ok() && asked.elapsed() < Duration::from_millis(750)
    })
    .await;
    get(&cache, "later", "user", &loader).await.unwrap();
    eventually("the later value is stored", || async {
        cache.status().counts.fills == 2
    })
    .await;
    assert_eq!(site.scripts().await, scripts + 2);
}

/// On SQLite all who write share one lock. Redis answers, but later than applying an invalidation
/// may take: had the relay the lock meanwhile, the writers would wait for it with all connections
/// of the pool in their hands, and the loads of the readers behind them.
#[tokio::test]
async fn k2_beside_a_slow_redis_writes_hold_up_no_read() {
    let site = Site::start().await;
    let proxy = Proxy::start(site.redis.addr()).await.unwrap();
    let client = Client::builder(&format!("redis://{}", proxy.addr()))
        .unwrap()
        .response_idle_timeout(Duration::from_secs(60))
        .connect()
        .await
        .unwrap();
    let mut options = DatabaseOptions::default();
    options.acquire_timeout = Duration::from_secs(10);
    options.max_connections = 3;
    let database = Database::connect(&site.database_url(), options).unwrap();
    let cache = plain(&database)
        .redis(client)
        .redis_limit(Duration::from_secs(2))
        .build()
        .await
        .unwrap();
    write_everywhere(&cache, 0, 1).await;
    slow_down(&proxy, Direction::Downstream, Duration::from_secs(4)).await;
    let writes = futures_util::future::join_all((1..=8).map(async |id| {
        for version in 1..=3 {
            write_item(&cache, id, version).await;
        }
    }));
    let reads = futures_util::future::join_all((100..120).map(async |id| {
        assert_eq!(read_item(&cache, id).await, None);
    }));
    tokio::join!(writes, reads);
    proxy.clear().await;
    all_is_applied(&cache).await;
}

#[tokio::test]
async fn k3_a_lease_that_was_refused_is_not_given_back() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let loader = Loader::default();
    get(&cache, "warm up", "user", &loader).await.unwrap();
    eventually("the first value is stored", || async {
        cache.status().counts.fills == 1
    })
    .await;
    let scripts = site.scripts().await;
    let may = async |rule| {
        let set = ["ACL", "SETUSER", "default", rule];
        site.redis.command(&set).await.unwrap();
    };
    may("-eval").await;
    let answer = get(&cache, "cold", "user", &loader).await.unwrap();
    assert_eq!(answer.source, Source::Database);
    may("+eval").await;
    get(&cache, "later", "user", &loader).await.unwrap();
    eventually("the later value is stored", || async {
        cache.status().counts.fills == 2
    })
    .await;
    // One was refused; the later read took its lease and filled.
    assert_eq!(site.scripts().await, scripts + 1 + 2);
}

#[tokio::test]
async fn k2_a_cache_starts_without_redis_and_uses_it_once_it_is_there() {
    let site = Site::start().await;
    site.redis.kill().await;
    let client = Client::builder(&site.redis.url()).unwrap().build().unwrap();
    let cache = plain(&site.database).redis(client).build().await.unwrap();
    let loader = Loader::default();
    assert_eq!(
        get(&cache, "a", "user", &loader).await.unwrap().source,
        Source::Database
    );
    site.redis.restart().await.unwrap();
    let mut n = 0;
    eventually("Redis is filled", || {
        n += 1;
        let (cache, loader, site) = (&cache, &loader, &site);
        async move {
            let key = format!("later {n}");
            get(cache, &key, "user", loader).await.unwrap();
            let other = site.cache().await;
            get(&other, &key, "user", loader).await.unwrap().source == Source::Redis
        }
    })
    .await;
}

/// This runtime has one thread, which both the readers and the load that they wait for need.
#[tokio::test]
async fn k4_a_reader_that_asks_again_at_once_lets_the_load_end() {
    let (database, _folder) = sqlite().await;
    let guard = GuardOptions::new(1, 1000.0);
    let cache = plain(&database).guard(guard).build().await.unwrap();
    let (view, loader) = (text(&cache, "brief"), Loader::default());
    get(&cache, "held", "brief", &loader).await.unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    let busy = tokio::spawn({
        let cache = cache.clone();
        let load = || async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(Some("late".to_owned()))
        };
        async move { text(&cache, "user").get("busy", load).await }
    });
    while cache.status().guard.running == 0 {
        tokio::task::yield_now().await;
    }
    let (begun, mut stale) = (tokio::time::Instant::now(), 0);
    while !busy.is_finished() {
        let one = get(&cache, "held", "brief", &loader).await;
        let many = view
            .get_many(&["held"], |_: Vec<&str>| async { Ok([]) })
            .await;
        let seen = view.peek("held").await;
        stale += usize::from(one.unwrap().stale.is_some());
        assert!(many[0].is_ok());
        assert!(seen.is_none_or(|seen| seen.stale.is_none()));
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{stale} stale answers"
        );
    }
    assert!(stale > 0);
}

#[tokio::test]
async fn k9_past_the_guard_stale_is_served_or_the_call_refused_with_when_to_ask_again() {
    let (database, _folder) = sqlite().await;
    let mut guard = GuardOptions::new(1, 1000.0);
    guard.wait = Duration::from_millis(50);
    let cache = plain(&database).guard(guard).build().await.unwrap();
    get(&cache, "held", "brief", &Loader::default())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;

    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let busy = tokio::spawn({
        let cache = cache.clone();
        let load = move || async move {
            released.await.unwrap();
            Ok(Some("late".to_owned()))
        };
        async move { text(&cache, "user").get("busy", load).await }
    });
    while cache.status().guard.running == 0 {
        tokio::task::yield_now().await;
    }
    let stale = get(&cache, "held", "brief", &Loader::default())
        .await
        .unwrap();
    assert_eq!(
        (stale.source, stale.stale),
        (Source::Memory, Some(StaleReason::Overloaded))
    );
    match get(&cache, "cold", "user", &Loader::default()).await {
        Err(error @ CacheError::Overloaded { .. }) => {
            assert!(error.retry_after().unwrap() > Duration::ZERO)
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(cache.status().counts.overloaded, 1);
    release.send(()).unwrap();
    assert!(busy.await.unwrap().is_ok());
    assert_eq!(
        get(&cache, "cold", "user", &Loader::default())
            .await
            .unwrap()
            .source,
        Source::Database
    );
}

#[tokio::test]
async fn k9_a_class_with_bounds_of_its_own_leaves_room_for_the_others() {
    let (database, _folder) = sqlite().await;
    let mut guard = GuardOptions::new(8, 1000.0);
    guard.wait = Duration::from_millis(50);
    let cache = plain(&database)
        .guard(guard)
        .class("report", steadfast_cache::Ttl::default())
        .class_guard("report", ClassGuard::new(8, 1000.0))
        .class_guard("report", ClassGuard::new(1, 1000.0)) // the last holds
        .build()
        .await
        .unwrap();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let busy = tokio::spawn({
        let cache = cache.clone();
        let load = move || async move {
            released.await.unwrap();
            Ok(Some("late".to_owned()))
        };
        async move { text(&cache, "report").get("busy", load).await }
    });
    while cache.status().guard.running == 0 {
        tokio::task::yield_now().await;
    }
    let second = get(&cache, "second", "report", &Loader::default()).await;
    let error = second.unwrap_err();
    let named = "the class \"report\" is at its own bound of 1 load at once";
    assert!(error.to_string().starts_with(named), "{error}");
    assert!(error.retry_after().is_some());
    let other = get(&cache, "other", "user", &Loader::default()).await;
    assert_eq!(other.unwrap().source, Source::Database);
    release.send(()).unwrap();
    assert!(busy.await.unwrap().is_ok());
    let second = get(&cache, "second", "report", &Loader::default()).await;
    assert_eq!(second.unwrap().source, Source::Database);
}

/// As with a service, or a database that sqlx does not know.
#[tokio::test]
async fn k9_a_class_that_does_not_reach_what_it_asks_is_spared_and_no_other_pays_for_it() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let refused = || LoadError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
    for (class, error) in [
        ("user", refused as fn() -> LoadError),
        ("strict", || LoadError::unavailable("503")),
    ] {
        let view = text(&cache, class);
        let mut failed = 0;
        for n in 0.. {
            match view.get(n, move || async move { Err(error()) }).await {
                Err(CacheError::Load(_)) => failed += 1,
                Err(CacheError::Unavailable { .. }) => break,
                other => panic!("{other:?}"),
            }
            assert!(n < 1000, "it is asked again and again");
        }
        assert!(failed >= 5, "{failed}");
        let other = text(&cache, "brief");
        assert!(other.get(class, || async { Ok(None) }).await.is_ok());
        assert!(!cache.status().guard.open);
    }
}

/// More than have a turn of the runtime at once: those that had to wait for theirs take what the
/// first has loaded meanwhile.
#[tokio::test]
async fn k3_who_waits_for_its_turn_finds_in_memory_what_was_loaded_meanwhile() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let (view, loader) = (text(&cache, "user"), Loader::default());
    for reads_long in [false, true] {
        let key = format!("{reads_long}");
        let reads = (0..1000).map(|_| {
            let (view, key, loader) = (&view, key.as_str(), loader.clone());
            async move {
                let load = move || loader.counting();
                let answer = match reads_long {
                    true => view.read(key).get(load).await,
                    false => view.get(key, load).await,
                };
                answer.unwrap()
            }
        });
        let before = loader.loads();
        let answers = futures_util::future::join_all(reads).await;
        assert_eq!(loader.loads() - before, 1);
        let from_memory = |answer: &&steadfast_cache::Answer<_>| answer.source == Source::Memory;
        assert!(answers.iter().filter(from_memory).count() > 500);
    }
}

/// A reader had its glance, and then to wait for its turn for longer than a value is fresh.
#[tokio::test]
async fn k1_who_has_waited_for_its_turn_judges_memory_by_the_time_that_it_is_then() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let (view, loader) = (text(&cache, "brief"), Loader::default());
    let counting = || {
        let loader = loader.clone();
        move || loader.counting()
    };
    while tokio::task::coop::has_budget_remaining() {
        assert!(futures_util::poll!(Box::pin(tokio::task::coop::consume_budget())).is_ready());
    }
    let mut late = Box::pin(view.get("a", counting()));
    assert!(futures_util::poll!(&mut late).is_pending());
    assert_eq!(loader.loads(), 0);
    tokio::task::yield_now().await;
    view.get("a", counting()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let answer = late.await.unwrap();
    let is_told_stale = answer.stale.is_some() && answer.age >= Duration::from_millis(200);
    let is_new = answer.value.as_deref() == Some("2");
    assert!(is_told_stale || is_new, "{answer:?}");
}

/// A query that takes too long does not say that the database is away.
#[tokio::test]
async fn k15_slow_queries_of_one_class_refuse_no_other() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let view = text(&cache, "user");
    let limit = Duration::from_secs(5);
    for n in 0.. {
        let slow = move || async move { Err(SourceError::Timeout { limit }.into()) };
        match view.get(n, slow).await.unwrap_err() {
            CacheError::Load(_) => assert!(n < 1000, "its class is asked again and again"),
            CacheError::Unavailable { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(!cache.status().guard.open);
    let other = text(&cache, "strict");
    assert!(other.get("log-in", || async { Ok(None) }).await.is_ok());
}

#[tokio::test]
async fn k2_a_frozen_redis_takes_no_more_than_half_of_the_time_of_a_read() {
    let site = Site::start().await;
    let brisk = Ttl {
        soft_limit: Duration::ZERO,
        hard_limit: Duration::from_secs(8),
        ..Ttl::default()
    };
    let builder = site.builder().await.class("brisk", brisk);
    let builder = builder.redis_limit(Duration::from_secs(60));
    let cache = builder.build().await.unwrap();
    get(&cache, "warm up", "brisk", &Loader::default())
        .await
        .unwrap();
    cache.finish_loads(Duration::from_secs(20)).await;
    site.redis.freeze().unwrap();
    let one = get(&cache, "cold", "brisk", &Loader::default()).await;
    let view = text(&cache, "brisk");
    let load = |keys: Vec<&'static str>| async move {
        let pairs = keys.into_iter().map(|key| (key, "x".to_owned()));
        Ok(pairs.collect::<Vec<_>>())
    };
    let many = view.get_many(&["cold too"], load).await.remove(0);
    site.redis.resume().unwrap();
    for read in [one, many] {
        assert_eq!(read.unwrap().source, Source::Database);
    }
}

/// Its task lives in the runtime of whoever waited first.
#[test]
fn k9_who_waits_for_admission_is_let_in_though_another_runtime_has_ended() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    };
    let (kept, first) = (runtime(), runtime());
    let (cache, _folder) = kept.block_on(async {
        let (database, folder) = sqlite().await;
        // One in three seconds.
        let mut guard = GuardOptions::new(4, 1.0 / 3.0);
        guard.wait = Duration::from_secs(3600);
        let long = Ttl {
            hard_limit: Duration::from_secs(3600),
            ..Ttl::default()
        };
        let builder = plain(&database).class("long", long).guard(guard);
        (builder.build().await.unwrap(), folder)
    });
    let read = |key: &'static str| {
        let view = text(&cache, "long");
        async move { view.get(key, || async { Ok(None) }).await }
    };
    first.block_on(read("a")).unwrap();
    drop(first.spawn(read("b")));
    let waiting = |many| {
        let waits = || async { cache.status().guard.waiting == many };
        kept.block_on(eventually("it waits", waits));
    };
    waiting(1);
    // One that waits already when that runtime ends, and one that comes after.
    let second = kept.spawn(read("c"));
    waiting(2);
    drop(first);
    let third = kept.spawn(read("d"));
    for read in [second, third] {
        let ended = async { tokio::time::timeout(Duration::from_secs(60), read).await };
        let read = kept.block_on(ended).expect("it is let in");
        read.unwrap().unwrap();
    }
}

#[tokio::test]
async fn k9_a_caller_who_goes_away_takes_no_probe_of_its_class_with_it() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let view = text(&cache, "strict");
    let refused = loop {
        let load = || async { Err::<Option<String>, _>(LoadError::unavailable("503")) };
        if let Err(CacheError::Unavailable { retry_after }) =
            view.read("a").get_uncached(load).await
        {
            break retry_after;
        }
    };
    tokio::time::sleep(refused).await;
    // More than there are probes.
    let mut given_up = 0;
    while given_up < 20 {
        let pending = || std::future::pending::<Result<Option<String>, LoadError>>();
        let read = view.read("b").get_uncached(pending);
        match tokio::time::timeout(Duration::from_millis(10), read).await {
            Err(_) => given_up += 1,
            Ok(refused) => panic!("a probe is lost after {given_up}: {refused:?}"),
        }
    }
    let read = view.get("c", || async { Ok(None) }).await;
    assert!(read.is_ok(), "{read:?}");
}
