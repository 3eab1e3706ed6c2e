//! Shows a drill of an application of one's own from its Rust tests, with `steadfast-drill` as a
//! dev-dependency: start a Redis, stand between it and the application, break one or the other, and
//! assert what a user gets. In a test, `main` is a `#[tokio::test]`.
//!
//!     cargo run -p steadfast-drill --example own_tests

use std::error::Error;
use std::time::Duration;

use steadfast_drill::fault::{Latency, Toxic};
use steadfast_drill::process::Redis;
use steadfast_drill::proxy::Proxy;
use tokio::time::{Instant, timeout};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let redis = Redis::start().await?; // a private redis-server on a free port; it ends with this value
    let proxy = Proxy::start(redis.addr()).await?;
    let url = format!("redis://{}", proxy.addr());
    redis.command(&["SET", "price", "3"]).await?;
    user_gets("3", &url, "healthy").await;

    let slow = proxy.add(Toxic::new(Latency::of_millis(10_000))).await?;
    user_gets("list price", &url, "slow").await;
    proxy.remove(slow).await;

    redis.freeze()?;
    user_gets("list price", &url, "frozen").await;
    redis.kill().await;
    user_gets("list price", &url, "killed").await;

    redis.restart().await?; // on the same port, and empty
    redis.command(&["SET", "price", "4"]).await?;
    user_gets("4", &url, "restarted").await;
    Ok(())
}

/// Asserts what a user gets, and that it comes within what is bearable, whatever Redis does.
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn user_gets(expected: &str, url: &str, when: &str) {
    let asked = Instant::now();
    let shown = todays_price(url).await;
    assert_eq!(shown, expected, "{when}");
    let waited = asked.elapsed();
    assert!(waited < Duration::from_secs(5), "{when}: {waited:?}");
    println!("{when}: {shown}");
}

/// The application: today's price from Redis, or else the list price.
async fn todays_price(url: &str) -> String {
    let read = async {
        let client = redis::Client::open(url)?;
        let mut redis = client.get_multiplexed_async_connection().await?;
        redis::cmd("GET").arg("price").query_async(&mut redis).await
    };
    let read: Option<redis::RedisResult<String>> = timeout(Duration::from_secs(1), read).await.ok();
    read.and_then(Result::ok)
        .unwrap_or_else(|| "list price".to_owned())
}
