//! Loads within loads, and whose fault it is when one is late.

use std::sync::Arc;
use std::time::Duration;

use steadfast_cache::{CacheError, GuardOptions, LoadError, Source, StaleReason, Ttl};

use crate::site::{Loader, Site, get, plain, sqlite, text};

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
    assert!(error.contains("reads \"a\" itself"), "{error}");
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
    for n in 0..20 {
        let never = || std::future::pending::<Result<Option<String>, LoadError>>();
        let error = view.get(n, never).await.unwrap_err();
        refused |= matches!(error, CacheError::Unavailable { .. });
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
        hard_limit: Duration::from_millis(1000),
        ..Ttl::default()
    };
    let cache = site
        .builder()
        .await
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
