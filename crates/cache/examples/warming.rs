//! Shows warming: what everybody is going to ask for is loaded by one query, into memory and Redis,
//! before the first caller comes.
//!
//!     REDIS_URL=redis://127.0.0.1:6379 cargo run -p steadfast-cache --example warming

use std::error::Error;
use std::time::Duration;

use steadfast::Client;
use steadfast_cache::{Cache, Database, DatabaseOptions, LoadError, Ttl, View};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let redis = Client::builder(&url)?.connect().await?;
    let database = Database::connect("sqlite::memory:", DatabaseOptions::default())?;
    create(&database).await?;

    let hour = Ttl {
        fresh: Duration::from_secs(3600),
        ..Ttl::default()
    };
    let cache = || {
        Cache::builder(database.clone())
            .redis(redis.clone())
            .namespace(format!("example:{}", std::process::id()))
            .class("word", hour)
            .redis_limit(Duration::from_secs(1))
            .build()
    };
    let words: View<u64> = cache().await?.view("word")?;
    let warmed = words.warm(|| counts(&database)).await?;
    println!(
        "warmed: {} of {} in memory, {} in Redis",
        warmed.memory, warmed.loaded, warmed.redis
    );
    println!("the: {}", by(&words, "the").await?);

    // Another process, or this one after a restart: its memory is empty.
    let words: View<u64> = cache().await?.view("word")?;
    println!("the: {}", by(&words, "the").await?);
    println!("aardvark: {}", by(&words, "aardvark").await?);
    Ok(())
}

async fn by(words: &View<u64>, word: &'static str) -> Result<&'static str, Box<dyn Error>> {
    // A word that is none of the most common is loaded when somebody asks for it.
    let answer = words.get(word, || async { Ok(Some(1)) }).await?;
    Ok(answer.source.as_str())
}

/// The hundred most common.
async fn counts(database: &Database) -> Result<Vec<(String, u64)>, LoadError> {
    let sql = "SELECT word, count FROM words ORDER BY count DESC LIMIT 100";
    let rows = database.select(sql, &[]).await?;
    let pair = |row: steadfast_cache::Row| {
        Some((row["word"].as_str()?.to_owned(), row["count"].as_u64()?))
    };
    Ok(rows.into_iter().filter_map(pair).collect())
}

async fn create(database: &Database) -> Result<(), Box<dyn Error>> {
    let mut tx = database.begin().await?;
    tx.execute(
        "CREATE TABLE words (word TEXT PRIMARY KEY, count INTEGER)",
        &[],
    )
    .await?;
    tx.execute(
        "INSERT INTO words VALUES ('the', 900), ('of', 700), ('and', 600)",
        &[],
    )
    .await?;
    Ok(tx.commit().await?)
}
