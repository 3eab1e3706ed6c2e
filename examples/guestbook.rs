//! A program written for redis-rs's `ConnectionManager`, with only the type swapped: the one alias
//! below, and how it is made. Everything under `// the application` is as it was: commands,
//! pipelines, transactions, scripts.
//!
//!     cargo run -p steadfast-examples --bin guestbook [redis://127.0.0.1:6379]

use redis::{AsyncCommands, RedisResult, Script};

/// Was `redis::aio::ConnectionManager`.
type Redis = steadfast::Client;

/// Was `ConnectionManager::new(redis::Client::open(url)?).await`.
async fn connect(url: &str) -> Result<Redis, Box<dyn std::error::Error>> {
    Ok(Redis::builder(url)?.connect().await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
    let mut redis = connect(&url).await?;
    let visit = sign(&mut redis, "ada", "Hello from the analytical engine").await?;
    println!("entry {visit}");
    for (name, text) in latest(&mut redis, 3).await? {
        println!("{name}: {text}");
    }
    println!("most faithful: {:?}", faithful(&mut redis).await?);
    forget(&mut redis).await
}

// the application

/// Counts the entry, keeps it and the order of its writing, in one transaction.
async fn sign(redis: &mut Redis, name: &str, text: &str) -> RedisResult<u64> {
    let (visit, ..): (u64, (), (), ()) = redis::pipe()
        .atomic()
        .incr("guestbook:visits", 1)
        .hset("guestbook:texts", name, text)
        .lpush("guestbook:order", name)
        .zincr("guestbook:faithful", name, 1)
        .query_async(redis)
        .await?;
    Ok(visit)
}

/// The last `n` who signed, each with what they wrote last.
async fn latest(redis: &mut Redis, n: isize) -> RedisResult<Vec<(String, String)>> {
    let names: Vec<String> = redis.lrange("guestbook:order", 0, n - 1).await?;
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        let text: Option<String> = redis.hget("guestbook:texts", &name).await?;
        entries.push((name, text.unwrap_or_default()));
    }
    Ok(entries)
}

/// Who signed most often, by a script.
async fn faithful(redis: &mut Redis) -> RedisResult<Option<String>> {
    let top = Script::new("return redis.call('ZREVRANGE', KEYS[1], 0, 0)[1]");
    top.key("guestbook:faithful").invoke_async(redis).await
}

async fn forget(redis: &mut Redis) -> Result<(), Box<dyn std::error::Error>> {
    let keys = [
        "guestbook:visits",
        "guestbook:texts",
        "guestbook:order",
        "guestbook:faithful",
    ];
    let _: u64 = redis.del(&keys).await?;
    Ok(())
}
