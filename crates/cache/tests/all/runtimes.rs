//! Runtimes that end, are not driven, or are none.

use std::time::Duration;

use steadfast_cache::{CacheError, Database, DatabaseOptions, Source, Target, Ttl, Tx};

use crate::site::{
    Loader, Site, all_is_applied, eventually, get, outbox_is_empty, plain, read_item, set_item,
    sqlite, text, write_and_die, write_everywhere, write_item,
};

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Servers that outlive the runtimes of the caches, and the runtime in which they live.
fn site_of_another_runtime() -> (tokio::runtime::Runtime, Site) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let alive = builder.worker_threads(1).enable_all().build().unwrap();
    let site = alive.block_on(Site::start());
    (alive, site)
}

#[test]
fn k14_a_cache_whose_runtime_has_ended_goes_on_in_that_of_its_next_caller() {
    let (alive, site) = site_of_another_runtime();
    let first = runtime();
    let cache = first.block_on(async {
        let cache = site.cache().await;
        write_item(&cache, 7, 1).await;
        all_is_applied(&cache).await;
        cache
    });
    drop(first);
    // Nobody is there to carry what a process leaves behind, and the status says so.
    let trouble = cache.status().tasks_trouble.expect("its tasks are gone");
    assert!(trouble.contains("carries invalidations"), "{trouble}");
    alive.block_on(write_and_die(&site.database, 7, 2));
    let second = runtime();
    second.block_on(async {
        write_item(&cache, 8, 1).await;
        eventually("all is delivered", || outbox_is_empty(&site.database)).await;
        all_is_applied(&cache).await;
        assert_eq!(cache.status().tasks_trouble, None);
        assert_eq!(cache.status().outbox_pending, 0);
        let read = || async { read_item(&cache, 7).await.as_deref() == Some("2") };
        eventually("the new value is read", read).await;
        let proven = || async { cache.status().memory_proven };
        eventually("the channel is listened to", proven).await;
    });
    drop(cache);
    drop(second);
    drop(site);
}

/// Nobody can tell whether it will be driven again; past the hard limit of its class it is done
/// without.
#[test]
fn k9_a_load_in_a_runtime_that_nobody_drives_is_not_waited_for_for_ever() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let alive = builder.worker_threads(1).enable_all().build().unwrap();
    let brisk = Ttl {
        hard_limit: Duration::from_secs(1),
        ..Ttl::default()
    };
    let (cache, _folder) = alive.block_on(async {
        let (database, folder) = sqlite().await;
        let cache = plain(&database).class("brisk", brisk).build().await;
        (cache.unwrap(), folder)
    });
    let parked = runtime();
    parked.block_on(async {
        let load = || std::future::pending();
        let view = text(&cache, "brisk");
        let read = tokio::time::timeout(Duration::from_millis(10), view.get("a", load));
        assert!(read.await.is_err());
    });
    let load = || async { Ok(Some("new".to_owned())) };
    let read = || alive.block_on(text(&cache, "brisk").get("a", load));
    let _joined = read();
    assert_eq!(read().unwrap().value.as_deref(), Some("new"));
    drop(parked);
    assert_eq!(read().unwrap().value.as_deref(), Some("new"));
}

#[test]
fn k14_who_waits_for_a_load_whose_runtime_ends_is_told_so_and_can_ask_again() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let alive = builder.worker_threads(1).enable_all().build().unwrap();
    let (cache, _folder) = alive.block_on(async {
        let (database, folder) = sqlite().await;
        (plain(&database).build().await.unwrap(), folder)
    });
    let other = runtime();
    other.block_on(async {
        let load = || std::future::pending();
        let view = text(&cache, "user");
        let read = tokio::time::timeout(Duration::from_millis(50), view.get("a", load));
        assert!(read.await.is_err());
    });
    let mut joined = Box::pin(async {
        let load = || async { Ok(Some("new".to_owned())) };
        text(&cache, "user").get("a", load).await
    });
    alive.block_on(async {
        let waits = tokio::time::timeout(Duration::from_millis(50), &mut joined);
        assert!(waits.await.is_err());
    });
    drop(other);
    let error = alive.block_on(joined).unwrap_err();
    assert!(matches!(error, CacheError::Abandoned), "{error}");
    assert!(error.to_string().contains("the runtime in which it ran"));
    let read = alive.block_on(get(&cache, "a", "user", &Loader::default()));
    assert_eq!(read.unwrap().source, Source::Database);
}

/// Whoever comes from another executor is told what to do, and what is known of it, and no more.
#[test]
fn k14_a_cache_asked_outside_of_a_runtime_says_so_and_answers_what_is_in_memory() {
    fn says_so<E: std::fmt::Display>(error: E) {
        let words = error.to_string();
        assert!(words.contains("outside of a tokio runtime"), "{words}");
    }
    let (alive, site) = site_of_another_runtime();
    let (cache, numbers) = alive.block_on(async {
        let cache = site.cache().await;
        write_item(&cache, 7, 1).await;
        let numbers = text(&cache, "strict");
        numbers.put("held".to_owned(), "1".to_owned()).await;
        (cache, numbers)
    });
    let loading = || async { Ok(Some("2".to_owned())) };
    futures_util::FutureExt::now_or_never(async {
        let held = numbers.get("held".to_owned(), loading).await.unwrap();
        assert_eq!(
            (held.value.as_deref(), held.source),
            (Some("1"), Source::Memory)
        );
        says_so(numbers.get("other".to_owned(), loading).await.unwrap_err());
        says_so(
            numbers
                .refresh("held".to_owned(), loading)
                .await
                .unwrap_err(),
        );
        let read = numbers.read("other".to_owned());
        says_so(read.get_uncached(loading).await.unwrap_err());
        let none = |_| async { Ok(Vec::<(String, String)>::new()) };
        let mut many = numbers.get_many(&["other".to_owned()], none).await;
        says_so(many.remove(0).unwrap_err());
        let warm = || async { Ok([("held".to_owned(), "2".to_owned())]) };
        says_so(numbers.warm(warm).await.unwrap_err());
        assert!(numbers.peek("other".to_owned()).await.is_none());
        let put = numbers.put("put".to_owned(), "3".to_owned()).await;
        assert!(put.memory && !put.redis);
        assert!(numbers.peek("put".to_owned()).await.is_some());
        let write = async |tx: &mut Tx| set_item(tx, 7, 2).await;
        says_so(
            cache
                .write(write)
                .invalidates_nothing()
                .commit()
                .await
                .unwrap_err(),
        );
        says_so(cache.invalidate(&[Target::key("held")]).await.unwrap_err());
        assert!(
            numbers.peek("held".to_owned()).await.is_none(),
            "in any case"
        );
        says_so(site.database.select("SELECT 1", &[]).await.unwrap_err());
        says_so(
            site.database
                .ping(Duration::from_secs(1))
                .await
                .unwrap_err(),
        );
        assert_eq!(cache.finish_loads(Duration::from_secs(1)).await, 0);
    })
    .expect("nothing is waited for");
    let memory = |options| Database::connect("sqlite::memory:", options);
    says_so(memory(DatabaseOptions::default()).unwrap_err());
    let built = futures_util::FutureExt::now_or_never(plain(&site.database).build());
    let error = built.expect("at once").unwrap_err().to_string();
    assert!(error.contains("call build() inside one"), "{error}");
    // Within one it is as good as before.
    alive.block_on(async {
        assert_eq!(read_item(&cache, 7).await.as_deref(), Some("1"));
    });
    drop(site);
}

/// Nobody watches while a cache has no runtime, so what it believed of Redis before counts no more.
#[test]
fn k16_a_redis_that_was_taken_back_while_a_cache_had_no_runtime_is_not_believed() {
    let (alive, site) = site_of_another_runtime();
    let (first, other) = (runtime(), runtime());
    let writer = other.block_on(async {
        let writer = site.cache().await;
        write_everywhere(&writer, 7, 1).await;
        assert_eq!(read_item(&writer, 7).await.as_deref(), Some("1"));
        eventually("Redis has it", || async {
            writer.status().counts.fills == 1
        })
        .await;
        writer
    });
    let cache = first.block_on(async {
        let cache = site.cache().await;
        assert_eq!(read_item(&cache, 8).await, None);
        eventually("it believes in Redis", || async {
            cache.status().redis.unwrap().proven
        })
        .await;
        cache
    });
    drop(first);
    other.block_on(async {
        site.redis.save_snapshot().await.unwrap();
        write_everywhere(&writer, 7, 2).await;
    });
    drop(writer);
    drop(other);
    alive.block_on(async { site.redis.restart_from_snapshot().await.unwrap() });
    let second = runtime();
    let read = second.block_on(read_item(&cache, 7));
    assert_eq!(read.as_deref(), Some("2"));
    drop(cache);
    drop(second);
    drop(site);
}
