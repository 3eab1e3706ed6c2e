//! Loads within loads, and whose fault it is when one is late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use steadfast_cache::{CacheError, GuardOptions, LoadError, Source, StaleReason, Ttl};

use crate::site::{Loader, Site, eventually, get, plain, sqlite, text};

#[tokio::test]
async fn k15_loads_that_read_through_the_cache_go_by_their_own_permits() {
    let (database, _folder) = sqlite().await;
    let mut guard = GuardOptions::new(8, 5000.0);
    guard.wait = Duration::from_millis(200);
    let cache = plain(&database).guard(guard).build().await.unwrap();
    let gate = Arc::new(tokio::sync::Barrier::new(8));
    // Eight pages hold all the places, and each needs a part of its own and one that all share.
    let pages = (0..8).map(|n| {
        let (view, gate) = (text(&cache, "user"), gate.clone());
        tokio::spawn(async move {
            let parts = view.clone();
            let page = move || async move {
                gate.wait().await;
                let part = |name: String| parts.get(name.clone(), || async { Ok(Some(name)) });
                let own = part(format!("own {n}")).await?.value;
                let shared = part("shared".into()).await?.value;
                let many = |keys: Vec<String>| async {
                    Ok(keys
                        .into_iter()
                        .map(|key| (key, "x".to_owned()))
                        .collect::<Vec<_>>())
                };
                let listed = parts
                    .get_many(&[format!("listed {n}")], many)
                    .await
                    .remove(0)?;
                Ok(Some(format!("{own:?} {shared:?} {:?}", listed.value)))
            };
            view.get(format!("page {n}"), page).await
        })
    });
    for page in pages.collect::<Vec<_>>() {
        page.await.unwrap().unwrap();
    }
    assert_eq!(cache.status().guard.running, 0);
}

#[tokio::test]
async fn k15_a_load_that_reads_its_own_key_is_told_so_at_once() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let (view, inner) = (text(&cache, "user"), text(&cache, "user"));
    let own = move || async move {
        let middle = inner.clone();
        let through = move || async move {
            let again = inner
                .get("a", || async { Ok(Some("again".to_owned())) })
                .await;
            Ok::<_, LoadError>(again?.value)
        };
        Ok(middle.get("b", through).await?.value)
    };
    let asked = tokio::time::timeout(Duration::from_secs(4), view.get("a", own)).await;
    let error = asked.expect("at once").unwrap_err().to_string();
    assert!(error.contains("a -> b -> a"), "{error}");
    let inner = view.clone();
    let own = move || async move {
        let again = inner
            .get("c", || async { Ok(Some("again".to_owned())) })
            .await;
        Ok::<_, LoadError>(again?.value)
    };
    let error = view.get("c", own).await.unwrap_err().to_string();
    assert!(error.contains("reads \"c\" itself"), "{error}");
}

/// A class in which nothing is late for a minute.
fn patient() -> Ttl {
    Ttl {
        soft_limit: Duration::ZERO,
        hard_limit: Duration::from_secs(60),
        ..Ttl::default()
    }
}

/// Waits no longer than a circle, or a queue in which everybody waits for everybody, would.
async fn at_once<T>(work: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(Duration::from_secs(20), work).await;
    ended.expect("at once")
}

#[tokio::test]
async fn k15_loads_that_wait_for_each_other_are_told_of_the_circle_at_once() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database)
        .class("patient", patient())
        .build()
        .await
        .unwrap();
    // Each is begun by a caller of its own, so that none is nested in another, and reads the next
    // when all have begun.
    for many in [false, true] {
        let gate = Arc::new(tokio::sync::Barrier::new(3));
        let loads = ["a", "b", "c"].into_iter().zip(["b", "c", "a"]);
        let calls = loads.map(|(key, next)| {
            let (view, gate) = (text(&cache, "patient"), gate.clone());
            let (key, next) = (format!("{key}{many}"), format!("{next}{many}"));
            tokio::spawn(async move {
                let parts = view.clone();
                let load = move || async move {
                    gate.wait().await;
                    let never = |_: Vec<String>| async { Ok(Vec::<(String, String)>::new()) };
                    if many {
                        let both = [format!("beside {next}"), next];
                        let answers = parts.get_many(&both, never).await;
                        return Ok(answers.into_iter().last().unwrap()?.value);
                    }
                    let read = parts.get(next, || async { Ok(None) }).await;
                    Ok(read?.value)
                };
                view.get(key, load).await
            })
        });
        for call in calls.collect::<Vec<_>>() {
            let error = at_once(call).await.unwrap().unwrap_err().to_string();
            let named = ["a", "b", "c"].map(|key| format!("{key}{many}"));
            let circle = named.iter().all(|key| error.contains(key.as_str()));
            assert!(circle && error.contains("wait for each other"), "{error}");
        }
    }
    assert_eq!(cache.status().guard.running, 0);
    let after = at_once(text(&cache, "patient").get("afalse", || async { Ok(None) })).await;
    assert!(after.is_ok());
}

#[tokio::test]
async fn k15_two_loads_that_share_a_third_are_no_circle() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database)
        .class("patient", patient())
        .build()
        .await
        .unwrap();
    let gate = Arc::new(tokio::sync::Barrier::new(2));
    let pages = ["a", "b"].map(|key| {
        let (view, gate) = (text(&cache, "patient"), gate.clone());
        tokio::spawn(async move {
            let parts = view.clone();
            let load = move || async move {
                gate.wait().await;
                let inner = parts.clone();
                let shared = move || async move {
                    let deeper = inner.get("deeper", || async { Ok(Some("x".to_owned())) });
                    Ok(deeper.await?.value)
                };
                let (shared, deeper) = tokio::join!(
                    parts.get("shared", shared),
                    parts.get("deeper", || async { Ok(Some("x".to_owned())) })
                );
                deeper?;
                Ok(shared?.value)
            };
            view.get(key, load).await
        })
    });
    for page in pages {
        let answer = at_once(page).await.unwrap().unwrap();
        assert_eq!(answer.value.as_deref(), Some("x"));
    }
}

#[tokio::test]
async fn k15_what_a_load_joins_in_the_queue_goes_by_its_own_permit() {
    let (database, _folder) = sqlite().await;
    let mut guard = GuardOptions::new(1, 5000.0);
    guard.wait = Duration::from_secs(60);
    let builder = plain(&database).class("patient", patient()).guard(guard);
    let cache = builder.build().await.unwrap();
    for many in [false, true] {
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (view, parts) = (text(&cache, "patient"), text(&cache, "patient"));
        let (page, part) = (format!("page {many}"), format!("part {many}"));
        let wanted = part.clone();
        // It holds the only place, and reads a part that another has begun to load, and that waits
        // for the place.
        let page = tokio::spawn(async move {
            let load = move || async move {
                begun.await?;
                let part = parts.get(wanted, || async { Ok(Some("another's".to_owned())) });
                Ok(part.await?.value)
            };
            view.get(page, load).await
        });
        eventually("the page is being loaded", || async {
            cache.status().guard.running == 1
        })
        .await;
        let view = text(&cache, "patient");
        let outside = tokio::spawn(async move {
            if many {
                let load = |keys: Vec<String>| async {
                    Ok(keys
                        .into_iter()
                        .map(|key| (key, "part".to_owned()))
                        .collect::<Vec<_>>())
                };
                let keys = [part, "beside".to_owned()];
                return view.get_many(&keys, load).await.remove(0);
            }
            view.get(part, || async { Ok(Some("part".to_owned())) })
                .await
        });
        eventually("the part waits", || async {
            cache.status().guard.waiting == 1
        })
        .await;
        begin.send(()).unwrap();
        let answer = at_once(page).await.unwrap().unwrap();
        assert_eq!(answer.value.as_deref(), Some("part"));
        at_once(outside).await.unwrap().unwrap();
    }
    assert_eq!(cache.status().guard.running, 0);
}

#[tokio::test]
async fn k15_loads_nested_in_one_are_a_few_at_once_at_each_level() {
    let (database, _folder) = sqlite().await;
    let mut guard = GuardOptions::new(1, 5000.0);
    guard.nested = 3;
    let builder = plain(&database).class("patient", patient()).guard(guard);
    let cache = builder.build().await.unwrap();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let view = text(&cache, "patient");
    let parts = view.clone();
    let counted = (now.clone(), most.clone());
    let page = move || async move {
        let reads = (0..30).map(|n| {
            let (parts, (now, most)) = (parts.clone(), counted.clone());
            async move {
                let inner = parts.clone();
                let load = move || async move {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let leaf = |m| inner.get(format!("leaf {n} {m}"), || async { Ok(None) });
                    let leaves = tokio::join!(leaf(0), leaf(1), leaf(2), leaf(3), leaf(4));
                    leaves.4?;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(Some("part".to_owned()))
                };
                parts.get(format!("part {n}"), load).await
            }
        });
        for read in futures_util::future::join_all(reads).await {
            read?;
        }
        Ok(Some("page".to_owned()))
    };
    at_once(view.get("page", page)).await.unwrap();
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn k13_waiting_for_admission_leaves_time_for_the_load() {
    let (database, _folder) = sqlite().await;
    let ttl = Ttl {
        soft_limit: Duration::ZERO,
        hard_limit: Duration::from_secs(8),
        ..Ttl::default()
    };
    let mut guard = GuardOptions::new(1, 5000.0);
    guard.wait = Duration::from_secs(60);
    let builder = plain(&database).class("patient", patient());
    let cache = builder.class("brisk", ttl).guard(guard).build().await;
    let cache = cache.unwrap();
    let slow = || async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(Some("slow".to_owned()))
    };
    let brisk = text(&cache, "brisk");
    brisk.get("before", slow).await.unwrap();
    let other = text(&cache, "patient");
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let holder = tokio::spawn(async move {
        let long = || async {
            released.await?;
            Ok(Some("long".to_owned()))
        };
        other.get("holds the place", long).await
    });
    eventually("the place is taken", || async {
        cache.status().guard.running == 1
    })
    .await;
    let began = Arc::new(AtomicUsize::new(0));
    let counted = began.clone();
    let load = move || async move {
        counted.fetch_add(1, Ordering::SeqCst);
        slow().await
    };
    // With less left than its load takes, it would be begun in vain, and then held against its
    // class.
    let asked = tokio::time::Instant::now();
    let error = brisk.get("after", load).await.unwrap_err();
    assert!(matches!(error, CacheError::Overloaded { .. }), "{error}");
    assert!(asked.elapsed() < ttl.hard_limit, "it waited to the end");
    assert_eq!(began.load(Ordering::SeqCst), 0);
    release.send(()).unwrap();
    holder.await.unwrap().unwrap();
}

/// As a class that is held back by its own breaker, and whose try is refused by the guard: that is
/// no try.
#[tokio::test]
async fn k9_a_class_whose_try_the_guard_refuses_may_try_again() {
    let (database, _folder) = sqlite().await;
    let hasty = Ttl {
        soft_limit: Duration::ZERO,
        hard_limit: Duration::from_millis(200),
        ..Ttl::default()
    };
    let mut guard = GuardOptions::new(1, 5000.0);
    guard.wait = Duration::from_millis(10);
    let builder = plain(&database).class("patient", patient());
    let cache = builder.class("hasty", hasty).guard(guard).build().await;
    let cache = cache.unwrap();
    let view = text(&cache, "hasty");
    for n in 0..20 {
        let never = || std::future::pending::<Result<Option<String>, LoadError>>();
        let ended = view.get(n, never).await;
        if matches!(ended, Err(CacheError::Unavailable { .. })) {
            break;
        }
    }
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let other = text(&cache, "patient");
    let holder = tokio::spawn(async move {
        let load = || async {
            released.await?;
            Ok(Some("x".to_owned()))
        };
        other.get("holds the place", load).await
    });
    eventually("the class tries and the guard refuses", || async {
        let tried = view.get("tried", || async { Ok(Some("x".to_owned())) });
        matches!(tried.await, Err(CacheError::Overloaded { .. }))
    })
    .await;
    release.send(()).unwrap();
    holder.await.unwrap().unwrap();
    eventually("the class is let in", || async {
        let tried = view.get("tried", || async { Ok(Some("x".to_owned())) });
        tried.await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn k15_a_class_whose_loads_are_late_is_refused_alone() {
    let (database, _folder) = sqlite().await;
    let hasty = Ttl {
        soft_limit: Duration::ZERO,
        hard_limit: Duration::from_millis(20),
        ..Ttl::default()
    };
    let cache = plain(&database)
        .class("hasty", hasty)
        .build()
        .await
        .unwrap();
    let view = text(&cache, "hasty");
    let mut refused = false;
    for n in 0..200 {
        let never = || std::future::pending::<Result<Option<String>, LoadError>>();
        let error = view.get(n, never).await.unwrap_err();
        refused = matches!(error, CacheError::Unavailable { .. });
        if refused {
            break;
        }
    }
    assert!(refused, "the class is left alone");
    assert!(!cache.status().guard.open, "the database is not");
    let other = get(&cache, "a", "user", &Loader::default()).await.unwrap();
    assert_eq!(other.source, Source::Database);
}

#[tokio::test]
async fn k13_waiting_for_another_process_leaves_time_for_the_load() {
    let site = Site::start().await;
    let brisk = Ttl {
        soft_limit: Duration::ZERO,
        hard_limit: Duration::from_secs(6),
        ..Ttl::default()
    };
    let cache = site
        .builder()
        .await
        .lease_wait(Duration::from_secs(6))
        .class("brisk", brisk)
        .build()
        .await
        .unwrap();
    get(&cache, "other", "brisk", &Loader::default())
        .await
        .unwrap();
    let epoch = cache.status().redis.unwrap().epoch.unwrap();
    let lease = format!("test:l:{epoch}:{{a}}");
    let held = ["SET", &lease, "of a process that died", "PX", "60000"];
    site.redis.command(&held).await.unwrap();
    let load = || async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(Some("there".to_owned()))
    };
    let answer = text(&cache, "brisk").get("a", load).await.unwrap();
    assert_eq!(answer.source, Source::Database);
}

#[tokio::test]
async fn k9_after_a_failed_load_a_stale_value_is_served_without_another() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let view = text(&cache, "brief");
    get(&cache, "a", "brief", &Loader::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    for _ in 0..50 {
        let failing = || async { Err::<Option<String>, _>("no".into()) };
        let answer = view.get("a", failing).await.unwrap();
        assert_eq!(answer.stale, Some(StaleReason::Failed));
    }
    let failed = cache.status().counts.loads_failed;
    assert!(failed <= 3, "{failed} loads failed");
}

#[tokio::test]
async fn k9_how_long_is_the_classs_to_say_and_where_the_value_is_held_does_not_matter() {
    let site = Site::start().await;
    let brief = |retry_after| Ttl {
        fresh: Duration::from_millis(100),
        soft_limit: Duration::from_secs(2),
        jitter: 0.0,
        early_refresh: 0.0,
        retry_after: Duration::from_secs(retry_after),
        ..Ttl::default()
    };
    let first = site.builder().await.class("calm", brief(600));
    let first = first.build().await.unwrap();
    for key in ["a", "b"] {
        get(&first, key, "calm", &Loader::default()).await.unwrap();
    }
    eventually("Redis has them", || async {
        first.status().counts.fills == 2
    })
    .await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    // In memory, and in Redis only: there is no room in memory.
    for bytes in [1 << 20, 1] {
        let builder = site.builder().await.memory_bytes(bytes);
        let builder = builder.class("calm", brief(600));
        let cache = builder.class("hasty", brief(0)).build().await.unwrap();
        for (class, most) in [("calm", 1), ("hasty", 10)] {
            let before = cache.status().counts.loads_failed;
            let key = if class == "calm" { "a" } else { "b" };
            for _ in 0..10 {
                let failing = || async { Err::<Option<String>, _>("no".into()) };
                let answer = text(&cache, class).get(key, failing).await.unwrap();
                assert_eq!(answer.stale, Some(StaleReason::Failed));
            }
            let failed = cache.status().counts.loads_failed - before;
            assert_eq!(failed, most, "{class}, {bytes} bytes of memory");
        }
    }
}

#[tokio::test]
async fn k9_a_key_with_nothing_to_serve_that_fails_again_and_again_is_tried_seldom() {
    let site = Site::start().await;
    let calm = Ttl {
        retry_after: Duration::from_secs(600),
        ..Ttl::default()
    };
    let with_redis = site.builder().await.class("calm", calm);
    let with_redis = with_redis.build().await.unwrap();
    let alone = plain(&site.database).class("calm", calm);
    let alone = alone.build().await.unwrap();
    for cache in [&with_redis, &alone] {
        let view = text(cache, "calm");
        for many in [false, true] {
            let before = cache.status().counts.loads_failed;
            let read = async || {
                if many {
                    let failing = |_| async { Err::<Vec<(&str, String)>, _>("no".into()) };
                    return view.get_many(&["many"], failing).await.remove(0);
                }
                let failing = || async { Err::<Option<String>, _>("no".into()) };
                view.get("one", failing).await
            };
            for n in 0..92 {
                let error = read().await.unwrap_err();
                assert!(n > 2 || matches!(error, CacheError::Load(_)), "{error}");
            }
            // Three, and one more each time that twice as much time has passed.
            let failed = cache.status().counts.loads_failed - before;
            assert!((3..20).contains(&failed), "{failed} loads failed");
        }
        // Another key is another matter.
        get(cache, "other", "calm", &Loader::default())
            .await
            .unwrap();
    }
    // What another process has loaded is there for everybody.
    let other = site.builder().await.class("calm", calm);
    let other = other.build().await.unwrap();
    get(&other, "one", "calm", &Loader::default())
        .await
        .unwrap();
    eventually("Redis has it", || async {
        other.status().counts.fills == 1
    })
    .await;
    let failing = || async { Err::<Option<String>, _>("no".into()) };
    let answer = text(&with_redis, "calm").get("one", failing).await.unwrap();
    assert_eq!(answer.source, Source::Redis);
    // One success, and all is forgotten.
    eventually("it is tried again", || async {
        let loader = Loader::default();
        get(&alone, "one", "calm", &loader).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn k15_a_load_past_the_cache_and_a_warming_lend_their_permit_to_what_they_read() {
    let (database, _folder) = sqlite().await;
    let one = GuardOptions::new(1, 5000.0);
    let cache = plain(&database).guard(one).class("patient", patient());
    let cache = cache.build().await.unwrap();
    let view = text(&cache, "patient");
    let part = |name: &'static str| {
        let parts = view.clone();
        async move {
            let read = parts.get(name, || async { Ok(Some("x".to_owned())) }).await;
            Ok::<_, LoadError>(read?.value)
        }
    };
    let page = part("part");
    let uncached = view.read("page").get_uncached(move || page);
    let uncached = at_once(uncached).await.unwrap();
    assert_eq!(uncached.value.as_deref(), Some("x"));
    let other = part("other part");
    let warm = || async move { Ok([("k", other.await?.unwrap())]) };
    assert_eq!(at_once(view.warm(warm)).await.unwrap().loaded, 1);
    assert_eq!(cache.status().guard.running, 0);
}

#[tokio::test]
async fn k15_a_load_past_the_cache_within_another_is_a_part_of_it() {
    let (database, _folder) = sqlite().await;
    let one = GuardOptions::new(1, 5000.0);
    let cache = plain(&database).guard(one).class("patient", patient());
    let cache = cache.build().await.unwrap();
    let view = text(&cache, "patient");
    let parts = view.clone();
    let load = move || async move {
        let again = parts.clone();
        let own = move || async move {
            let read = again.get("a", || async { Ok(None) }).await;
            Ok::<_, LoadError>(read?.value)
        };
        Ok(parts.read("beside").get_uncached(own).await?.value)
    };
    let error = at_once(view.get("a", load)).await.unwrap_err().to_string();
    assert!(error.contains("reads \"a\" itself"), "{error}");
}
