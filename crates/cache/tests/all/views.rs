//! One cache, many types.

use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use steadfast_cache::{
    BuildError, Cache, CacheError, Lifetime, Source, StaleReason, Target, Ttl, View,
};

use crate::site::{Loader, Site, eventually, execute, filled, get, plain, set_item, sqlite, text};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct User {
    name: String,
}

pub(crate) fn ada() -> User {
    User { name: "Ada".into() }
}

#[tokio::test]
async fn k1_many_types_share_one_cache_one_memory_and_one_channel() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let users: View<User> = cache.view("user").unwrap();
    let numbers: View<Vec<u64>> = cache.view("strict").unwrap().prefix("numbers:");
    for source in [Source::Database, Source::Memory] {
        let user = users.get(7, || async { Ok(Some(ada())) }).await.unwrap();
        assert_eq!((user.value, user.source), (Some(ada()), source));
        let some = numbers
            .get(7, || async { Ok(Some(vec![1])) })
            .await
            .unwrap();
        assert_eq!((some.value, some.source), (Some(vec![1]), source));
    }
    assert_eq!(cache.status().memory_entries, 2);
    // The processes' channel, the database's, and this process's own; a cache for each type would
    // have one of its own more.
    eventually("three channels are listened to", || async {
        let channels = site.redis.command(&["PUBSUB", "CHANNELS", "test:*"]).await;
        matches!(channels.unwrap(), redis::Value::Array(channels) if channels.len() == 3)
    })
    .await;
}

#[tokio::test]
async fn k10_a_view_sees_what_another_view_writes_at_once_also_without_redis() {
    let site = Site::start().await;
    let cache = site.cache().await;
    let (texts, strict) = (text(&cache, "user"), text(&cache, "strict"));
    site.redis.kill().await;
    for version in 1..10i64 {
        let value = version.to_string();
        let work = async |tx: &mut _| set_item(tx, 7, version).await;
        let target = texts.target("item:7");
        cache
            .write(work)
            .invalidates([target])
            .commit()
            .await
            .unwrap();
        for view in [&texts, &strict] {
            let value = value.clone();
            let read = view.get("item:7", || async { Ok(Some(value)) }).await;
            assert_eq!(read.unwrap().value, Some(version.to_string()));
        }
    }
}

#[tokio::test]
async fn k1_a_key_that_two_types_share_is_a_miss_for_the_other_and_never_another_value() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let users: View<User> = cache.view("user").unwrap().prefix("");
    let texts = text(&cache, "user");
    for _ in 0..2 {
        let user = users.get("a", || async { Ok(Some(ada())) }).await.unwrap();
        assert_eq!((user.value, user.source), (Some(ada()), Source::Database));
        let other = texts
            .get("a", || async { Ok(Some("a".into())) })
            .await
            .unwrap();
        assert_eq!(
            (other.value.as_deref(), other.source),
            (Some("a"), Source::Database)
        );
    }
}

/// Two programs with different versions of a type run side by side while a new one is rolled out.
#[tokio::test]
async fn k12_a_value_of_another_version_of_its_type_is_a_miss_and_not_damaged() {
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct NewUser {
        name: String,
        born: u16,
    }
    let new = NewUser {
        name: "Ada".into(),
        born: 1815,
    };
    let site = Site::start().await;
    let (before, after) = (site.cache().await, site.cache().await);
    let users: View<User> = before.view("user").unwrap();
    let new_users: View<NewUser> = after.view("user").unwrap().version(1);
    users.get(7, || async { Ok(Some(ada())) }).await.unwrap();
    filled(&before, 1).await;
    let given = new.clone();
    let answer = new_users
        .get(7, || async { Ok(Some(given)) })
        .await
        .unwrap();
    assert_eq!((answer.value, answer.source), (Some(new), Source::Database));
    filled(&after, 1).await;
    let again = site.cache().await;
    let users: View<User> = again.view("user").unwrap();
    let answer = users.get(7, || async { Ok(Some(ada())) }).await.unwrap();
    assert_eq!(answer.source, Source::Database);
    for cache in [&before, &after, &again] {
        assert_eq!(cache.status().counts.damaged, 0);
    }
}

/// A value that has its own key written while it is copied out of memory.
#[derive(Serialize, Deserialize)]
struct Restless(u32);

static WHILE_COPIED: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

impl Clone for Restless {
    fn clone(&self) -> Self {
        let then = WHILE_COPIED.lock().unwrap().take();
        then.into_iter().for_each(|then| then());
        Self(self.0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k10_no_writer_waits_while_a_value_is_copied_out_of_memory() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let view: View<Restless> = cache.view("user").unwrap();
    view.get(7, || async { Ok(Some(Restless(1))) })
        .await
        .unwrap();
    let (writer, runtime) = (view.clone(), tokio::runtime::Handle::current());
    let write = move || {
        let (done, written) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let load = || async { Ok(Some(Restless(2))) };
            let loaded = runtime.block_on(writer.refresh(7, load)).unwrap();
            done.send(loaded.source).unwrap();
        });
        let source = written.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(source, Source::Database);
    };
    *WHILE_COPIED.lock().unwrap() = Some(Box::new(write));
    let hit = view.get(7, || async { unreachable!() }).await.unwrap();
    assert_eq!((hit.value.unwrap().0, hit.source), (1, Source::Memory));
    assert!(WHILE_COPIED.lock().unwrap().is_none(), "it was copied");
    let hit = view.get(7, || async { unreachable!() }).await.unwrap();
    assert_eq!((hit.value.unwrap().0, hit.source), (2, Source::Memory));
}

/// `users.get("session:7")` would answer with a session.
#[tokio::test]
async fn k1_a_class_whose_keys_could_be_those_of_another_is_refused_by_name() {
    let (database, _folder) = sqlite().await;
    let named = |class: &'static str| plain(&database).class(class, Ttl::default());
    let within = BuildError::ClassWithinClass {
        class: "user:session".to_owned(),
        within: "user".to_owned(),
    };
    assert_eq!(named("user:session").build().await.unwrap_err(), within);
    let cache = named("user-session").build().await.unwrap();
    let added = |class: &str| cache.change_classes([(class.into(), Ttl::default())]);
    assert_eq!(added("user:session").unwrap_err(), within);
    assert!(added("users:session").is_ok());
    assert!(matches!(
        added("users").unwrap_err(),
        BuildError::ClassWithinClass { class, .. } if class == "users:session"
    ));
}

#[tokio::test]
async fn k11_what_is_expired_is_forgotten_by_every_process_and_loaded_anew() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let [here, there] = [&first, &second].map(|cache| text(cache, "user"));
    let value = |text: &'static str| move || async move { Ok(Some(text.to_owned())) };
    here.get(7, value("old")).await.unwrap();
    here.get(8, value("other")).await.unwrap();
    filled(&first, 2).await;
    for source in [Source::Redis, Source::Memory] {
        let held = there.get(7, value("never")).await.unwrap();
        assert_eq!((held.value.as_deref(), held.source), (Some("old"), source));
    }
    here.expire(7).await.unwrap();
    // Here at once, there when it has heard of it; Redis has it no longer.
    let anew = here.get(7, value("new")).await.unwrap();
    assert_eq!(
        (anew.value.as_deref(), anew.source),
        (Some("new"), Source::Database)
    );
    eventually("the other has heard", || async {
        let read = there.get(7, value("new")).await.unwrap();
        read.value.as_deref() == Some("new")
    })
    .await;
    let other = here.get(8, value("never")).await.unwrap();
    assert_eq!(other.source, Source::Memory);

    // What is expired while Redis is away is forgotten for good too.
    site.redis.kill().await;
    there.expire(7).await.unwrap();
    let newest = there.get(7, value("newest")).await.unwrap();
    assert_eq!(
        (newest.value.as_deref(), newest.source),
        (Some("newest"), Source::Database)
    );
    site.redis.restart().await.unwrap();
    eventually("the first has heard", || async {
        let read = here.get(7, value("newest")).await.unwrap();
        read.value.as_deref() == Some("newest")
    })
    .await;
}

#[tokio::test]
async fn k1_each_view_has_keys_of_its_own_in_every_tier() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let value = |text: &'static str| move || async move { Ok(Some(text.to_owned())) };
    for (cache, sources) in [
        (&first, [Source::Database, Source::Memory]),
        (&second, [Source::Redis, Source::Memory]),
    ] {
        for source in sources {
            for class in ["user", "strict"] {
                let view: View<String> = cache.view(class).unwrap();
                let answer = view.get(7, value(class)).await.unwrap();
                let found = (answer.value.as_deref(), answer.source);
                assert_eq!(found, (Some(class), source));
            }
        }
        filled(&first, 2).await;
    }
    let names: View<String> = first.view("user").unwrap();
    assert_eq!(names.target(7), Target::key("user:7"));
    assert_eq!(names.clone().prefix("").target(7), Target::key("7"));
    assert_eq!(names.prefix("name/").target(7), Target::key("name/7"));
}

/// The same fields, so that the one would be read as the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Person {
    id: u64,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Team {
    id: u64,
    name: String,
}

#[tokio::test]
async fn k12_a_value_of_another_type_is_missing_to_every_process_and_never_read_as_ones_own() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let (id, name) = (7, "Ada".to_owned());
    let person = Person { id, name };
    let (id, name) = (7, "Blue".to_owned());
    let team = Team { id, name };
    let (people, teams): (View<Person>, [View<Team>; 2]) = (
        first.view("user").unwrap(),
        [&first, &second].map(|cache| cache.view("user").unwrap()),
    );
    for view in &teams {
        let filled_before = first.status().counts.fills;
        let given = person.clone();
        people
            .refresh(7, || async { Ok(Some(given)) })
            .await
            .unwrap();
        filled(&first, filled_before + 1).await;
        let given = team.clone();
        let answer = view.get(7, || async { Ok(Some(given)) }).await.unwrap();
        assert_eq!(
            (answer.value, answer.source),
            (Some(team.clone()), Source::Database)
        );
        for cache in [&first, &second] {
            assert_eq!(cache.finish_loads(Duration::from_secs(60)).await, 0);
        }
    }
    for cache in [&first, &second] {
        assert_eq!(cache.status().counts.damaged, 0);
    }
}

/// What a value says of its own end holds for all that may be done with it; `brief` is fresh for
/// 200 ms and stale for an hour.
#[tokio::test]
async fn k4_a_value_chooses_its_own_life_fresh_and_stale_shorter_or_longer_than_its_class() {
    const SHORT: Duration = Duration::from_millis(50);
    let hour = Duration::from_secs(3600);
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let choosing = |cache: &Cache, class: &str| {
        text(cache, class).lifetime_by(move |value| match value.as_str() {
            "ends" => SHORT.into(),
            "goes stale" => Lifetime {
                fresh: SHORT,
                stale: hour,
            },
            _ => Lifetime {
                fresh: hour,
                stale: hour,
            },
        })
    };
    let value = |text: &'static str| move || async move { Ok(Some(text.to_owned())) };
    let away = || async { Err("the database is away")? };
    for class in ["brief", "strict"] {
        let (here, there) = (choosing(&first, class), choosing(&second, class));
        let key = |text: &str| format!("{class}/{text}");
        for (text, fresh) in [("ends", SHORT), ("goes stale", SHORT), ("lasts", hour)] {
            let fills = first.status().counts.fills;
            let answer = here.get(key(text), value(text)).await.unwrap();
            assert_eq!(answer.fresh_for, fresh);
            filled(&first, fills + 1).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        for view in [&here, &there] {
            let ended = view.get(key("ends"), away).await;
            assert!(matches!(ended, Err(CacheError::Load(_))), "{ended:?}");
            let stale = view.get(key("goes stale"), away).await;
            match class {
                "brief" => assert_eq!(stale.unwrap().stale, Some(StaleReason::Failed)),
                _ => assert!(stale.is_err(), "the class never serves stale"),
            }
            let lasting = view.get(key("lasts"), away).await.unwrap();
            assert_eq!(
                (lasting.value.as_deref(), lasting.stale),
                (Some("lasts"), None)
            );
        }
        // To those who let no value choose, the class says what is fresh.
        let plain = text(&site.cache().await, class).peek(key("lasts")).await;
        assert_eq!(plain.is_some(), class == "strict");
    }
}

/// 17: a class never serves as fresh what is older than its own time, whoever loaded it.
#[tokio::test]
async fn k16_what_a_class_of_longer_times_has_loaded_is_not_fresh_to_a_stricter_one() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let value = |text: &'static str| move || async move { Ok(Some(text.to_owned())) };
    text(&first, "user").get("a", value("old")).await.unwrap();
    filled(&first, 1).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    // `brief` is fresh for 200 ms. The first has it in memory, the second finds it in Redis.
    let briefs = [&first, &second].map(|cache| text(cache, "brief"));
    for brief in &briefs {
        assert!(brief.peek("a").await.is_none());
    }
    for brief in &briefs {
        let answer = brief.get("a", value("new")).await.unwrap();
        assert_ne!((answer.value.as_deref(), answer.stale), (Some("old"), None));
    }
}

#[tokio::test]
async fn k16_a_life_that_a_value_chose_is_none_to_a_view_of_its_class_that_lets_none_choose() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let value = || async { Ok(Some("lasts".to_owned())) };
    let plain_view = text(&cache, "brief");
    let choosing = text(&cache, "brief").lifetime_by(|_| Duration::from_secs(3600));
    choosing.get("a", value).await.unwrap();
    // `brief` is fresh for 200 ms.
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(plain_view.peek("a").await.is_none());
    let another = text(&cache, "brief").lifetime_by(|_| Duration::from_secs(1));
    for view in [&choosing, &another] {
        let held = view.peek("a").await.unwrap();
        assert_eq!((held.source, held.stale), (Source::Memory, None));
    }
}

/// 12: judged when it is served, not when it was found.
#[tokio::test]
async fn k16_what_expires_or_is_invalidated_while_a_load_is_waited_for_is_not_served_as_stale() {
    let (database, _folder) = sqlite().await;
    let ttl = Ttl {
        fresh: Duration::from_millis(20),
        stale: Duration::from_millis(300),
        jitter: 0.0,
        soft_limit: Duration::from_millis(600),
        ..Ttl::default()
    };
    let cache = plain(&database).class("short", ttl).build().await.unwrap();
    let view = text(&cache, "short");
    for (key, by) in [
        ("aged", None),
        ("key", Some(Target::key("key"))),
        ("tag", Some(Target::tag("red"))),
        ("all", Some(Target::All)),
    ] {
        view.read(key)
            .tag("red")
            .get(|| async { Ok(Some("old".to_owned())) })
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        let (fail, failed) = tokio::sync::oneshot::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel::<()>();
        let waiting = tokio::spawn({
            let view = view.clone();
            async move {
                let load = move || async move {
                    begin.send(()).unwrap();
                    failed.await.unwrap();
                    Err::<Option<String>, _>("no".into())
                };
                view.get(key, load).await
            }
        });
        begun.await.unwrap();
        match by {
            Some(target) => drop(cache.invalidate(&[target]).await.unwrap()),
            None => tokio::time::sleep(Duration::from_millis(330)).await,
        }
        fail.send(()).unwrap();
        let answer = waiting.await.unwrap();
        assert!(
            matches!(answer, Err(CacheError::Load(_))),
            "{key}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn k7_an_invalidation_can_be_written_by_any_driver() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    get(&second, "a", "user", &loader).await.unwrap();
    let (statements, invalidation) = first.invalidation(&[Target::key("a")]).await.unwrap();
    execute(&site.database, statements).await;
    // It waits for Redis for a moment; a busy machine may take longer.
    invalidation.apply().await;
    eventually("the other process has heard", || async {
        get(&second, "a", "user", &loader)
            .await
            .unwrap()
            .value
            .as_deref()
            == Some("2")
    })
    .await;
    eventually("one is confirmed in time", || async {
        let (statements, invalidation) = first.invalidation(&[Target::key("a")]).await.unwrap();
        execute(&site.database, statements).await;
        invalidation.apply().await
    })
    .await;
}

#[tokio::test]
async fn k12_a_number_with_a_point_comes_back_from_redis_to_its_last_digit() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let mut random = fastrand::Rng::with_seed(12);
    let numbers: Vec<f64> = (0..1000).map(|_| random.f64() * 100.0).collect();
    let (loaded, never) = (numbers.clone(), || async {
        Err::<Option<Vec<f64>>, _>("no".into())
    });
    let view = |cache: &Cache| -> View<Vec<f64>> { cache.view("user").unwrap() };
    let load = move || async move { Ok(Some(loaded)) };
    view(&first).get("a", load).await.unwrap();
    filled(&first, 1).await;
    let found = view(&second).get("a", never).await.unwrap();
    assert_eq!(found.source, Source::Redis);
    assert_eq!(found.value.unwrap(), numbers);
}

#[tokio::test]
async fn k12_what_is_nested_too_deep_to_be_read_is_answered_and_not_kept() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let deep = (0..200).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
    for cache in [&first, &second] {
        let view: View<serde_json::Value> = cache.view("user").unwrap();
        let given = deep.clone();
        let read = view.get("a", move || async move { Ok(Some(given)) }).await;
        assert_eq!(read.unwrap().value.as_ref(), Some(&deep));
        cache.finish_loads(Duration::from_secs(20)).await;
        let counts = cache.status().counts;
        assert_eq!((counts.unencodable, counts.damaged), (1, 0));
    }
}
