//! Shows a session, a connection of one's own: WATCH a key, read it, and change it in a MULTI that
//! is done only if nobody else has changed the key meanwhile. Two tasks move money out of one
//! account, and no coin is lost.
//!
//!     REDIS_URL=redis://127.0.0.1:6379 cargo run -p steadfast --example session

use std::error::Error;

use redis::{AsyncCommands, RedisResult};
use steadfast::{Client, Session};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let mut redis = Client::builder(&url)?.connect().await?;
    let key = format!("example:session:{}", std::process::id());
    let () = redis.set(&key, 100).await?;

    // WATCH is the connection's, so each task needs a session of its own; the client would refuse
    // it.
    let (mut ada, mut bob) = (redis.session().await?, redis.session().await?);
    let (by_ada, by_bob) = tokio::try_join!(
        withdraw_often(&mut ada, &key),
        withdraw_often(&mut bob, &key)
    )?;
    let left: i64 = redis.get(&key).await?;
    println!("withdrawn: {}, left: {left}", by_ada + by_bob);
    let () = redis.del(&key).await?;
    Ok(())
}

async fn withdraw_often(session: &mut Session, key: &str) -> RedisResult<i64> {
    let mut withdrawn = 0;
    for _ in 0..10 {
        withdrawn += withdraw(session, key, 7).await?;
    }
    Ok(withdrawn)
}

/// Takes `coins` if there are so many; returns how many it took.
async fn withdraw(session: &mut Session, key: &str, coins: i64) -> RedisResult<i64> {
    loop {
        let () = redis::cmd("WATCH").arg(key).query_async(session).await?;
        let there: i64 = session.get(key).await?;
        if there < coins {
            let () = redis::cmd("UNWATCH").query_async(session).await?;
            return Ok(0);
        }
        let mut change = redis::pipe();
        change.atomic().set(key, there - coins).ignore();
        // None: somebody else was faster, nothing was done, so look again.
        let done: Option<()> = change.query_async(session).await?;
        if done.is_some() {
            return Ok(coins);
        }
    }
}
