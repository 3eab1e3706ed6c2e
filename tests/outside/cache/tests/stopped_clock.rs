//! A test of a program's own that stops tokio's clock, to see what expires.

use std::time::Duration;

use steadfast_cache::{Cache, Database, DatabaseOptions, Ttl, View};
use tokio::time::{advance, pause};

/// Stopped after the cache was built and the value stored, so that nothing could be known of it
/// then. (The database is not needed, so there is none.)
#[tokio::test]
async fn k4_a_value_in_memory_expires_by_a_clock_that_is_stopped_and_moved() {
    let nowhere = "postgres://nobody@127.0.0.1:1/nothing";
    let database = Database::connect(nowhere, DatabaseOptions::default()).unwrap();
    let minute = Ttl {
        fresh: Duration::from_secs(60),
        jitter: 0.0,
        ..Ttl::default()
    };
    let cache = Cache::builder(database)
        .class("user", minute)
        .build()
        .await
        .unwrap();
    let users: View<String> = cache.view("user").unwrap();
    let load = || async { Ok(Some("Ada".to_owned())) };
    users.get(7, load).await.unwrap();
    assert_eq!(users.peek(7).await.unwrap().value.as_deref(), Some("Ada"));

    pause();
    advance(Duration::from_secs(58)).await;
    let age = users.peek(7).await.unwrap().age;
    assert!(age >= Duration::from_secs(58), "{age:?}");
    advance(Duration::from_secs(2)).await;
    assert_eq!(users.peek(7).await, None);
}
