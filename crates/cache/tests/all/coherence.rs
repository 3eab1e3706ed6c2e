use std::time::Duration;

use steadfast::Client;
use steadfast_cache::{Cache, Source, Target};
use steadfast_drill::fault::{Direction, Fault, Stall, Toxic};
use steadfast_drill::proxy::Proxy;

use crate::site::{Loader, Site, eventually, get, plain, read_item, sqlite, text, write_item};

async fn through(site: &Site, proxy: &Proxy) -> Cache {
    let client = Client::builder(&format!("redis://{}", proxy.addr()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    plain(&site.database).redis(client).build().await.unwrap()
}

fn cut() -> Toxic {
    Toxic {
        name: "cut".into(),
        direction: Direction::Both,
        toxicity: 1.0,
        fault: Fault::Stall(Stall::default()),
    }
}

#[tokio::test]
async fn k10_what_another_process_writes_leaves_this_ones_memory() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    for version in 1..10i64 {
        write_item(&first, 7, version).await;
        let expected = Some(version.to_string());
        eventually("the other process sees the write", || async {
            read_item(&second, 7).await == expected
        })
        .await;
        let answer = text(&second, "user")
            .get("item:7", || async { Ok(None) })
            .await
            .unwrap();
        assert_eq!(answer.value, expected);
    }
}

#[tokio::test]
async fn k10_memory_is_not_fresh_from_the_moment_the_channel_is_not_proven() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let loader = Loader::default();
    for class in ["user", "strict"] {
        get(&cache, class, class, &loader).await.unwrap();
        assert_eq!(
            get(&cache, class, class, &loader).await.unwrap().source,
            Source::Memory
        );
    }
    site.redis.freeze().unwrap();
    eventually("memory is not proven", || async {
        !cache.status().memory_proven
    })
    .await;
    let failing = || async { Err::<Option<String>, _>("no".into()) };
    let stale = text(&cache, "user").get("user", failing).await.unwrap();
    assert!(stale.stale.is_some());
    assert!(text(&cache, "strict").get("strict", failing).await.is_err());
    let answer = get(&cache, "strict", "strict", &loader).await.unwrap();
    assert_eq!(answer.source, Source::Database);
    site.redis.resume().unwrap();
    eventually("memory is proven again", || async {
        cache.status().memory_proven
    })
    .await;
}

#[tokio::test]
async fn k10_an_interruption_in_which_nothing_was_missed_leaves_memory_warm() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let loader = Loader::default();
    get(&cache, "a", "user", &loader).await.unwrap();
    let listeners = || async {
        let list = site
            .redis
            .command(&["CLIENT", "LIST", "TYPE", "pubsub"])
            .await
            .unwrap();
        let list: String = redis::FromRedisValue::from_redis_value(list).unwrap();
        list.split(' ').next().unwrap_or_default().to_owned()
    };
    let before = listeners().await;
    assert!(before.starts_with("id="), "{before}");
    site.redis
        .command(&["CLIENT", "KILL", "TYPE", "pubsub"])
        .await
        .unwrap();
    eventually("it listens again", || async {
        let now = listeners().await;
        now.starts_with("id=") && now != before
    })
    .await;
    eventually("memory is proven again", || async {
        cache.status().memory_proven
    })
    .await;
    assert_eq!(
        get(&cache, "a", "user", &loader).await.unwrap().source,
        Source::Memory
    );
    assert_eq!(loader.loads(), 1);
}

#[tokio::test]
async fn k10_a_process_that_was_cut_off_alone_does_not_believe_its_memory() {
    let site = Site::start().await;
    let proxy = Proxy::start(site.redis.addr()).await.unwrap();
    let (first, second) = (site.cache().await, through(&site, &proxy).await);
    write_item(&first, 7, 1).await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("1"));
    let toxic = proxy.add(cut()).await.unwrap();
    write_item(&first, 7, 2).await;
    // Nothing can tell the second process for as long as its last proof lasts; then it must ask
    // SQL.
    eventually("the cut is noticed", || async {
        !second.status().memory_proven
    })
    .await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("2"));
    write_item(&first, 7, 3).await;
    proxy.remove(toxic).await;
    eventually("the channel is back", || async {
        second.status().memory_proven
    })
    .await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("3"));
}

#[tokio::test]
async fn k10_all_is_forgotten_everywhere_when_all_is_invalidated() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    for cache in [&first, &second] {
        get(cache, "a", "user", &loader).await.unwrap();
    }
    first.invalidate(&[Target::All]).await.unwrap();
    assert_eq!(
        get(&first, "a", "user", &loader).await.unwrap().source,
        Source::Database
    );
    eventually(
        "the other process loads again or takes the new value",
        || async {
            get(&second, "a", "user", &loader)
                .await
                .unwrap()
                .value
                .as_deref()
                == Some("2")
        },
    )
    .await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(loader.loads(), 2);
}

/// Built and given up while Redis is away: what waits for the subscriptions has nobody to tell any
/// more.
#[tokio::test]
async fn k10_a_cache_that_is_gone_leaves_no_task_behind() {
    let alive = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let (database, _folder) = sqlite().await;
    let nobody = Client::builder("redis://127.0.0.1:1").unwrap();
    let client = nobody.build().unwrap();
    let cache = plain(&database)
        .redis(client.clone())
        .build()
        .await
        .unwrap();
    get(&cache, "a", "user", &Loader::default()).await.unwrap();
    assert!(alive() > 0);
    drop(cache);
    let _ = client.close(Duration::ZERO).await;
    database.close().await;
    eventually("all tasks have ended", || async { alive() == 0 }).await;
}

/// Redis ends the connections of who listens where it no longer may, and refuses the subscriptions
/// of the next.
#[tokio::test]
async fn k10_channels_that_were_forbidden_for_a_while_are_heard_again() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let may = async |rule| {
        let set = ["ACL", "SETUSER", "default", rule];
        site.redis.command(&set).await.unwrap();
    };
    let subscribers = async || {
        let mut all = Vec::new();
        for pattern in ["test:inv", "test:inv:*"] {
            let channels = site.redis.command(&["PUBSUB", "CHANNELS", pattern]).await;
            let channels: Vec<String> = redis::from_redis_value(channels.unwrap()).unwrap();
            all.extend(channels);
        }
        all.sort();
        all
    };
    let well = || async {
        let proven = [&first, &second].map(|cache| cache.status().memory_proven);
        // The one of all, two of their own, and the one on which both are found.
        proven == [true; 2] && subscribers().await.len() == 4
    };
    eventually("both listen", well).await;
    let before = subscribers().await;
    may("resetchannels").await;
    eventually("nobody listens, and nobody's memory is proven", || async {
        let proven = [&first, &second].map(|cache| cache.status().memory_proven);
        proven == [false; 2] && subscribers().await.is_empty()
    })
    .await;
    may("allchannels").await;
    eventually("both listen again", well).await;
    assert_eq!(subscribers().await, before);
    write_item(&first, 7, 1).await;
    eventually("the other hears of a write", || async {
        read_item(&second, 7).await.as_deref() == Some("1")
    })
    .await;
}
