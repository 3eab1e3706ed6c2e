//! Shows the swap from redis-rs's `ConnectionManager`: the alias and one line that connects. The
//! rest is code for redis-rs, left as it was, and what an error can now be asked: whether the
//! command may have run.
//!
//!     REDIS_URL=redis://127.0.0.1:6379 cargo run -p steadfast --example swap

use std::error::Error;

use redis::{AsyncCommands, RedisResult};
use steadfast::Certainty;

// Was `use redis::aio::ConnectionManager;`.
use steadfast::Client as ConnectionManager;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    // Was `ConnectionManager::new(redis::Client::open(url)?).await?`.
    let mut redis = ConnectionManager::builder(&url)?.connect().await?;

    let key = format!("example:swap:{}", std::process::id());
    for _ in 0..4 {
        let allowed = is_allowed(&mut redis, &key, 3).await?;
        println!("allowed: {allowed}");
    }

    // A counter is not text to append a field to: the server refuses it, and so it has not run.
    let refused: RedisResult<u64> = redis.hincr(&key, "field", 1).await;
    match refused {
        Ok(_) => println!("counted"),
        Err(error) => match steadfast::certainty(&error) {
            Certainty::NotSent | Certainty::Rejected => println!("nothing was done: {error}"),
            _ => println!("it may have been done: {error}"),
        },
    }
    let () = redis.del(&key).await?;
    Ok(())
}

/// Allows `limit` calls in a minute; as it was written for redis-rs.
async fn is_allowed(redis: &mut ConnectionManager, key: &str, limit: u64) -> RedisResult<bool> {
    let (calls, _): (u64, bool) = redis::pipe()
        .atomic()
        .incr(key, 1)
        .expire(key, 60)
        .query_async(redis)
        .await?;
    Ok(calls <= limit)
}
