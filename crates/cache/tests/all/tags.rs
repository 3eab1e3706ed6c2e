//! Whose tags a value carries, and who is reached by them.

use std::collections::HashMap;
use std::time::Duration;

use steadfast_cache::{
    Answer, BuildError, Cache, CacheError, Key, KeyName, Source, Target, Ttl, View,
};

use crate::site::{
    Loader, Site, eventually, filled, get, invalidate_everywhere, plain, sqlite, text,
};
use crate::views::{User, ada};

#[tokio::test]
async fn k11_the_tags_of_a_view_are_forgotten_at_no_call_site() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let orders = |cache: &Cache| {
        let region = |key: &[u8]| [key.split(|byte| *byte == b'/').next().unwrap().to_vec()];
        text(cache, "user")
            .prefix("order:")
            .tag("orders")
            .tags_by(region)
    };
    let (here, there) = (orders(&first), orders(&second));
    let value = || async { Ok(Some("order".to_owned())) };
    let source = |answer: Result<Answer<String>, CacheError>| answer.unwrap().source;
    let pairs = || async { Ok(vec![("eu/3", "warm".to_owned())]) };
    assert_eq!(here.warm(pairs).await.unwrap().redis, 1);
    here.get("eu/1", value).await.unwrap();
    let many = |keys: Vec<&'static str>| async {
        Ok(keys
            .into_iter()
            .map(|key| (key, "order".to_owned()))
            .collect::<HashMap<_, _>>())
    };
    here.get_many(&["eu/2", "us/1"], many).await;
    filled(&first, 4).await;
    for key in ["eu/1", "eu/2", "eu/3", "us/1"] {
        assert_eq!(source(there.get(key, value).await), Source::Redis, "{key}");
        assert_eq!(source(there.get(key, value).await), Source::Memory, "{key}");
    }
    second.invalidate(&[Target::tag("eu")]).await.unwrap();
    for key in ["eu/1", "eu/2", "eu/3"] {
        assert_eq!(
            source(there.get(key, value).await),
            Source::Database,
            "{key}"
        );
    }
    assert_eq!(source(there.get("us/1", value).await), Source::Memory);
    second.invalidate(&[Target::tag("orders")]).await.unwrap();
    assert_eq!(source(there.get("us/1", value).await), Source::Database);
}

/// An order, of a region.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Order(&'static str, u64);

impl Key for Order {
    fn name(&self) -> KeyName<'_> {
        KeyName::written(format_args!("{}/{}", self.0, self.1))
    }

    fn tags(&self) -> Vec<Vec<u8>> {
        vec![self.0.into()]
    }
}

#[tokio::test]
async fn k11_the_tags_of_a_key_are_carried_however_it_is_read() {
    let (database, _folder) = sqlite().await;
    let cache = plain(&database).build().await.unwrap();
    let orders: View<String> = cache.view("user").unwrap();
    let (eu, us) = (Order("eu", 1), Order("us", 1));
    let value = || async { Ok(Some("order".to_owned())) };
    let pairs = || async { Ok([(eu, "order".to_owned()), (us, "order".to_owned())]) };
    let many = |keys: Vec<Order>| async {
        Ok(keys
            .into_iter()
            .map(|key| (key, "order".to_owned()))
            .collect::<Vec<_>>())
    };
    for way in 0..5 {
        match way {
            0 => drop((orders.get(eu, value).await, orders.get(us, value).await)),
            1 => drop((orders.refresh(eu, value).await, orders.get(us, value).await)),
            2 => drop((
                orders.put(eu, "order".to_owned()).await,
                orders.get(us, value).await,
            )),
            3 => drop(orders.get_many(&[eu, us], many).await),
            _ => drop(orders.warm(pairs).await.unwrap()),
        }
        assert!(orders.peek(eu).await.is_some() && orders.peek(us).await.is_some());
        cache.invalidate(&[Target::tag("eu")]).await.unwrap();
        assert!(orders.peek(eu).await.is_none(), "{way}");
        assert!(orders.peek(us).await.is_some(), "{way}");
    }
    // What another view has stored by the bare bytes is not taken.
    let bare: View<String> = cache.view("user").unwrap();
    bare.get("eu/1", value).await.unwrap();
    assert!(orders.peek(eu).await.is_none());
}

#[tokio::test]
async fn k11_the_tags_of_a_class_are_carried_by_whatever_is_read_with_it() {
    let site = Site::start().await;
    let built = async || {
        let tagged = site.builder().await.class_tags("user", ["people", "all"]);
        tagged.class_tags("user", [b"more"]).build().await.unwrap()
    };
    let (first, second) = (built().await, built().await);
    let views = |cache: &Cache| {
        let users: View<User> = cache.view("user").unwrap();
        let users = users.tag("users");
        (users, text(cache, "user"), text(cache, "strict"))
    };
    let (users, names, others) = views(&first);
    let (users_there, names_there, others_there) = views(&second);
    let value = || async { Ok(Some("text".to_owned())) };
    for tag in ["people", "all", "more", "users"] {
        eventually(
            "the one has filled Redis, and the other reads from it",
            || async {
                users
                    .refresh(7, || async { Ok(Some(ada())) })
                    .await
                    .unwrap();
                names.refresh("name", value).await.unwrap();
                others.refresh("other", value).await.unwrap();
                let (user, name) = tokio::join!(users_there.peek(7), names_there.peek("name"));
                user.is_some() && name.is_some() && others_there.peek("other").await.is_some()
            },
        )
        .await;
        second.invalidate(&[Target::tag(tag)]).await.unwrap();
        assert!(users_there.peek(7).await.is_none(), "{tag}");
        let name = names_there.peek("name").await;
        assert_eq!(name.is_some(), tag == "users", "{tag}");
        assert!(others_there.peek("other").await.is_some(), "{tag}");
        eventually("the first hears of it", || async {
            users.peek(7).await.is_none()
        })
        .await;
    }
}

#[tokio::test]
async fn k11_tags_of_a_class_that_there_is_not_are_refused_by_name() {
    let (database, _folder) = sqlite().await;
    let tagged = plain(&database).class_tags("usr", ["people"]);
    let refused = tagged.build().await.unwrap_err();
    let class = "usr".to_owned();
    assert_eq!(refused, BuildError::TagsWithoutClass { class });
}

/// 13: tags belong to the value, not to whoever happens to load it again.
#[tokio::test]
async fn k11_a_refresh_behind_a_reader_that_names_no_tag_keeps_the_tags() {
    let (database, _folder) = sqlite().await;
    let hot = Ttl {
        fresh: Duration::from_secs(500),
        jitter: 0.0,
        early_refresh: 1000.0,
        ..Ttl::default()
    };
    let cache = plain(&database).class("hot", hot).build().await.unwrap();
    let (view, loader) = (text(&cache, "hot"), Loader::default());
    let slow = loader.clone();
    let load = move || async move {
        // So dear that it is refreshed at once.
        tokio::time::sleep(Duration::from_millis(500)).await;
        slow.counting().await
    };
    view.read("a").tag("red").get(load).await.unwrap();
    eventually("refreshed early", || async {
        get(&cache, "a", "hot", &loader).await.unwrap();
        loader.loads() >= 2 && cache.status().flights == 0
    })
    .await;
    let before = get(&cache, "a", "hot", &loader).await.unwrap().value;
    cache.invalidate(&[Target::tag("red")]).await.unwrap();
    let after = get(&cache, "a", "hot", &loader).await.unwrap();
    assert_eq!(after.source, Source::Database, "{before:?}");
}

#[tokio::test]
async fn k11_a_stale_value_found_in_redis_hands_its_tags_to_what_takes_its_place() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let loader = Loader::default();
    let load = loader.clone();
    text(&first, "brief")
        .read("a")
        .tag("red")
        .get(move || load.counting())
        .await
        .unwrap();
    filled(&first, 1).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let answer = get(&second, "a", "brief", &loader).await.unwrap();
    assert_eq!(
        (answer.value.as_deref(), answer.source),
        (Some("2"), Source::Database)
    );
    second.invalidate(&[Target::tag("red")]).await.unwrap();
    let answer = get(&second, "a", "brief", &loader).await.unwrap();
    assert_eq!(answer.value.as_deref(), Some("3"));
}

/// They are known to Redis only, which another process has filled. What is warmed may name a key
/// twice.
#[tokio::test]
async fn k11_warming_and_putting_keep_the_tags_of_what_they_replace_in_redis() {
    let site = Site::start().await;
    let (first, second) = (site.cache().await, site.cache().await);
    let (here, there) = (text(&first, "user").tag("red"), text(&second, "user"));
    for key in ["warmed", "put"] {
        let old = || async { Ok(Some("old".to_owned())) };
        here.get(key, old).await.unwrap();
    }
    first.finish_loads(Duration::from_secs(60)).await;
    let pairs = ["older", "new"].map(|value| ("warmed", value.to_owned()));
    let warmed = there.warm(|| async { Ok(pairs) }).await.unwrap();
    assert_eq!((warmed.memory, warmed.redis), (1, 1));
    let put = there.put("put", "new".to_owned()).await;
    assert!(put.memory && put.redis, "{put:?}");
    let third = site.cache().await;
    let caches = [&second, &third];
    for cache in caches {
        for key in ["warmed", "put"] {
            let held = text(cache, "user").peek(key).await.unwrap();
            assert_eq!(held.value.as_deref(), Some("new"), "{key}");
        }
    }
    invalidate_everywhere(&first, &[Target::tag("red")]).await;
    for cache in caches {
        for key in ["warmed", "put"] {
            eventually("every process forgets it", || async {
                text(cache, "user").peek(key).await.is_none()
            })
            .await;
        }
    }
}
