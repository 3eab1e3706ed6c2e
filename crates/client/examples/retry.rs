//! Shows `Retry` around an async function of one's own: pauses, ends and predicates are composed,
//! and a budget keeps the repeats of all callers from multiplying the load. Here it waits for the
//! result of a job that a worker is about to store.
//!
//!     REDIS_URL=redis://127.0.0.1:6379 cargo run -p steadfast --example retry

use std::error::Error;
use std::time::Duration;

use redis::{AsyncCommands, RedisError};
use steadfast::{Backoff, Budget, BudgetConfig, Client, Retry, RetryError, Stop};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let mut redis = Client::builder(&url)?.connect().await?;
    let key = format!("example:job:{}", std::process::id());

    // One for the whole application: at most a tenth as many repeats as calls, and a few more.
    let budget = Budget::new(
        BudgetConfig::default(),
        tokio::time::Instant::now().into_std(),
    )?;
    let (step, most) = (Duration::from_millis(5), Duration::from_millis(50));
    let wait = Backoff::exponential(step, most) + Backoff::random(Duration::ZERO, step);
    let stop = Stop::after_attempts(6).or(Stop::after_delay(Duration::from_secs(2)));
    let retry = Retry::new(wait, stop)
        .if_result(|result: &Option<String>| result.is_none())
        .if_error(|error: &RedisError| error.is_timeout() || error.is_io_error())
        .before_pause(|pause| println!("attempt {}: not yet", pause.attempts))
        .budget(&budget);

    let mut looks = 0;
    let found = retry.run(async || {
        looks += 1;
        if looks == 3 {
            let () = redis.set(&key, "42").await?; // the worker's part
        }
        redis.get(&key).await
    });
    println!("result: {:?}", found.await?);

    let missing = retry.run(async || redis.get("example:job:none").await);
    match missing.await {
        Err(RetryError::Refused { attempts, why, .. }) => {
            println!("gave up at attempt {attempts}: {why}")
        }
        other => println!("unexpected: {other:?}"),
    }
    let () = redis.del(&key).await?;
    Ok(())
}
