//! Shows a read of many keys: what is held is answered, and all that is missing is loaded by one
//! query.
//!
//!     REDIS_URL=redis://127.0.0.1:6379 cargo run -p steadfast-cache --example batch

use std::error::Error;

use serde::{Deserialize, Serialize};
use steadfast::Client;
use steadfast_cache::{Cache, Database, DatabaseOptions, Ttl, View};

#[derive(Clone, Serialize, Deserialize)]
struct User {
    id: i64,
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let database = Database::connect("sqlite::memory:", DatabaseOptions::default())?;
    let cache = Cache::builder(database.clone())
        .redis(Client::builder(&url)?.connect().await?)
        .namespace(format!("example:{}", std::process::id()))
        .class("user", Ttl::default())
        .build()
        .await?;
    let users: View<User> = cache.view("user")?;
    create(&database).await?;

    show(&users, &database, &[1, 2]).await?;
    show(&users, &database, &[2, 3, 1, 9]).await?;
    show(&users, &database, &[9, 3]).await?; // that there is no user 9 is remembered too
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn show(users: &View<User>, database: &Database, ids: &[i64]) -> Result<(), Box<dyn Error>> {
    let database = database.clone();
    let load = |missing: Vec<i64>| async move {
        println!("  one query for {missing:?}");
        let sql = "SELECT id, name FROM users WHERE id IN (SELECT value FROM json_each(?))";
        let found: Vec<User> = database.select_as(sql, &[missing.into()]).await?;
        Ok(found.into_iter().map(|user| (user.id, user)))
    };
    let answers = users.get_many(ids, load).await;
    for (id, answer) in ids.iter().zip(answers) {
        let answer = answer?;
        let name = answer.value.map_or("nobody".to_owned(), |user| user.name);
        println!("{id}: {name}, by {}", answer.source.as_str());
    }
    Ok(())
}

async fn create(database: &Database) -> Result<(), Box<dyn Error>> {
    let mut tx = database.begin().await?;
    tx.execute(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)",
        &[],
    )
    .await?;
    tx.execute(
        "INSERT INTO users (name) VALUES ('Ada'), ('Grace'), ('Edsger')",
        &[],
    )
    .await?;
    Ok(tx.commit().await?)
}
