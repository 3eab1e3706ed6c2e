//! Values that are looked at, put or loaded anew out of turn.

use std::time::Duration;

use steadfast_cache::{Source, Target};

use crate::site::{Loader, Site, all_is_applied, eventually, filled, get, plain, text};

#[tokio::test]
async fn k1_peeking_loads_nothing_and_finds_what_memory_and_redis_have() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    assert!(text(&first, "user").peek("a").await.is_none());
    get(&first, "a", "user", &Loader::default()).await.unwrap();
    filled(&first, 1).await;
    let view = text(&second, "user");
    for source in [Source::Redis, Source::Memory] {
        let found = view.peek("a").await.unwrap();
        assert_eq!((found.value.as_deref(), found.source), (Some("1"), source));
    }
    view.expire("a").await.unwrap();
    assert!(view.peek("a").await.is_none());
    assert_eq!(second.status().counts.loads, 0);
    site.redis.kill().await;
    assert!(view.peek("b").await.is_none());
}

#[tokio::test]
async fn k1_refresh_and_put_replace_what_is_held_and_an_uncached_read_touches_nothing() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let view = text(&first, "user");
    let value = |text: &'static str| move || async move { Ok(Some(text.to_owned())) };
    view.get("a", value("old")).await.unwrap();
    let uncached = view.read("a").get_uncached(value("else")).await.unwrap();
    assert_eq!(
        (uncached.value.as_deref(), uncached.source),
        (Some("else"), Source::Database)
    );
    let held = view.get("a", value("never")).await.unwrap();
    assert_eq!(
        (held.value.as_deref(), held.source),
        (Some("old"), Source::Memory)
    );
    filled(&first, 1).await;
    let fresh = view.refresh("a", value("new")).await.unwrap();
    assert_eq!(
        (fresh.value.as_deref(), fresh.source),
        (Some("new"), Source::Database)
    );
    filled(&first, 2).await;
    let other = text(&second, "user")
        .get("a", value("never"))
        .await
        .unwrap();
    assert_eq!(
        (other.value.as_deref(), other.source),
        (Some("new"), Source::Redis)
    );
}

/// The database is not asked, so its being away neither stands in the way nor is forgotten.
#[tokio::test]
async fn k9_what_is_put_needs_no_database_and_says_nothing_of_it() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let view = text(&first, "user");
    let down = || async { Err(sqlx::Error::WorkerCrashed)? };
    for n in 0.. {
        if view
            .get(n, down)
            .await
            .is_err_and(|error| error.retry_after().is_some())
        {
            break;
        }
        assert!(n < 1000, "the breaker never opens");
    }
    let before = first.status();
    assert!(before.guard.open);
    for n in 0..50 {
        let put = view.put(format!("a{n}"), "put".to_owned()).await;
        assert!(put.memory && put.redis, "{put:?}");
    }
    let after = first.status();
    assert!(after.guard.open, "a put says nothing of the database");
    assert_eq!(after.counts.loads, before.counts.loads);
    for (cache, source) in [(&first, Source::Memory), (&second, Source::Redis)] {
        let held = text(cache, "user").peek("a7").await.unwrap();
        assert_eq!((held.value.as_deref(), held.source), (Some("put"), source));
    }

    site.redis.kill().await;
    let put = view.put("a7", "again".to_owned()).await;
    assert!(put.memory && !put.redis, "{put:?}");
    let held = view.get("a7", down).await.unwrap();
    assert_eq!(held.value.as_deref(), Some("again"));
}

#[tokio::test]
async fn k6_who_loads_while_a_value_is_put_stores_nothing_over_it() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    // Here and elsewhere: the one that loads is the one that puts, or another.
    for (key, other) in [("own", &first), ("other", &second)] {
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel::<()>();
        let loading = tokio::spawn({
            let view = text(other, "user");
            async move {
                let load = move || async move {
                    begin.send(()).unwrap();
                    gone.await.unwrap();
                    Ok(Some("old".to_owned()))
                };
                view.get(key, load).await.unwrap()
            }
        });
        begun.await.unwrap();
        let put = text(&first, "user").put(key, "new".to_owned()).await;
        assert!(put.memory && put.redis, "{put:?}");
        go.send(()).unwrap();
        assert_eq!(loading.await.unwrap().value.as_deref(), Some("old"));
        eventually("the load has tried to store its own", || async {
            let waited = other.finish_loads(Duration::from_secs(60)).await;
            waited == 0
        })
        .await;
        let third = site.cache().await;
        for (cache, source) in [(&first, Source::Memory), (&third, Source::Redis)] {
            let held = text(cache, "user").peek(key).await.unwrap();
            assert_eq!((held.value.as_deref(), held.source), (Some("new"), source));
        }
    }
}

#[tokio::test]
async fn k6_who_loads_while_a_value_is_refreshed_stores_nothing_over_it() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let alone = plain(&site.database).build().await.unwrap();
    // Without Redis; here and elsewhere: the one that loads is the one that refreshes, or another,
    // whose lease is taken from it.
    for (key, refreshes, other) in [
        ("alone", &alone, &alone),
        ("own", &first, &first),
        ("other", &first, &second),
    ] {
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel::<()>();
        let loading = tokio::spawn({
            let view = text(other, "user");
            async move {
                let load = move || async move {
                    begin.send(()).unwrap();
                    gone.await.unwrap();
                    Ok(Some("old".to_owned()))
                };
                view.get(key, load).await.unwrap()
            }
        });
        begun.await.unwrap();
        let view = text(refreshes, "user");
        let load = || async { Ok(Some("new".to_owned())) };
        let fresh = view.refresh(key, load).await.unwrap();
        assert_eq!(fresh.value.as_deref(), Some("new"));
        go.send(()).unwrap();
        assert_eq!(loading.await.unwrap().value.as_deref(), Some("old"));
        for cache in [refreshes, other] {
            eventually("all loads have ended", || async {
                cache.finish_loads(Duration::from_secs(60)).await == 0
            })
            .await;
        }
        let held = view.peek(key).await.unwrap();
        assert_eq!(
            (held.value.as_deref(), held.source),
            (Some("new"), Source::Memory),
            "{key}"
        );
        if key != "alone" {
            let held = text(&site.cache().await, "user").peek(key).await.unwrap();
            assert_eq!(held.value.as_deref(), Some("new"), "{key}");
        }
    }
}

#[tokio::test]
async fn k6_an_invalidation_overtakes_what_is_put_and_what_was_put_carries_the_views_tags() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let views = [&first, &second].map(|cache| text(cache, "user").tag("red"));
    assert!(views[0].put("a", "put".to_owned()).await.redis);
    assert!(views[1].peek("a").await.is_some());
    second.invalidate(&[Target::tag("red")]).await.unwrap();
    assert!(views[1].peek("a").await.is_none());
    eventually("the first hears of it", || async {
        views[0].peek("a").await.is_none()
    })
    .await;
    // Redis has yet to hear of an invalidation of our own: what is put then does not stay there.
    site.take_no_writes(true).await;
    views[0].expire("a").await.unwrap();
    let put = views[0].put("a", "put".to_owned()).await;
    assert!(put.memory && !put.redis, "{put:?}");
    site.take_no_writes(false).await;
    let put = views[0].put("a", "again".to_owned()).await;
    all_is_applied(&first).await;
    let there = text(&site.cache().await, "user").peek("a").await;
    assert_eq!(there.is_some(), put.redis, "{put:?}");
}
