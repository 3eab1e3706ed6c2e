//! A worker that knows only `steadfast`: no redis-rs of its own, none of the client's default
//! features, a runtime of one thread. It takes jobs from a list, and outlives a Redis that goes
//! away.

use std::time::Duration;

use steadfast::redis::{self, AsyncCommands, RedisResult};
use steadfast::{Backoff, CallOptions, Certainty, Client, Effect, Retry, Stop};

async fn next_job(redis: &mut Client) -> RedisResult<Option<(String, String)>> {
    // On a connection of its own, without being told to: it blocks.
    redis.blpop("jobs", 1.0).await
}

/// Whoever counts twice pays twice, so this is repeated only where it is sure not to have happened.
async fn count(redis: &mut Client) -> RedisResult<u64> {
    match redis.incr("done", 1).await {
        Err(error) if steadfast::certainty(&error) == Certainty::NotSent => {
            redis.incr("done", 1).await
        }
        other => other,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .ok_or("usage: client redis://HOST:PORT")?;
    if let Err(error) = Client::builder("rediss://127.0.0.1") {
        println!("{error}");
    }
    let mut redis = Client::builder(&url)?.name("worker").build()?;
    let patience = Retry::new(
        Backoff::fixed(Duration::from_millis(20)),
        Stop::after_delay(Duration::from_secs(10)),
    );
    patience
        .run(async || redis.clone().ping::<String>().await)
        .await?;

    while let Some((_, job)) = next_job(&mut redis).await? {
        // A script is repeated only if its author says that it may be.
        let once = CallOptions::new().effect(Effect::LastWins);
        let length: usize = redis::cmd("EVAL")
            .arg("redis.call('SET', 'last', ARGV[1]) return #ARGV[1]")
            .arg(0)
            .arg(&job)
            .query_async(&mut redis.with(once))
            .await?;
        println!("{job}: {length} bytes, job {}", count(&mut redis).await?);
    }
    let left = redis.close(Duration::from_secs(1)).await;
    println!("{} calls left unfinished", left.unfinished);
    Ok(())
}
