//! What several tests need.

use std::time::{Duration, Instant};

use steadfast::{Client, ClientBuilder, ConnectionState};
use steadfast_drill::process::Redis;

/// A server of the test's own, and a client of it that is connected.
pub(crate) async fn pair() -> (Redis, Client) {
    pair_with(|builder| builder).await
}

pub(crate) async fn pair_with(set: impl FnOnce(ClientBuilder) -> ClientBuilder) -> (Redis, Client) {
    let redis = Redis::start().await.unwrap();
    let builder = Client::builder(&redis.url()).unwrap();
    let client = set(builder).connect().await.unwrap();
    (redis, client)
}

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Waits until `done`; panics after a generous while.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = now();
    while !done() {
        assert!(
            now().duration_since(begun) < Duration::from_secs(20),
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn until_state(client: &Client, state: ConnectionState) {
    until(&format!("{state:?}"), || client.status().state == state).await;
}

pub(crate) fn cmd(words: &str) -> redis::Cmd {
    let mut cmd = redis::Cmd::new();
    for word in words.split_whitespace() {
        cmd.arg(word);
    }
    cmd
}
