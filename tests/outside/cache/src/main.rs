//! A program that knows only `steadfast-cache` with PostgreSQL: no redis-rs, no sqlx of its own,
//! and no Redis either.

use serde::{Deserialize, Serialize};
use steadfast_cache::sqlx;
use steadfast_cache::{Cache, Database, DatabaseOptions, Pool, Target, Tx, View};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Planet {
    name: String,
    moons: i32,
}

async fn load(pool: sqlx::PgPool, id: i32) -> Result<Option<Planet>, sqlx::Error> {
    let row: Option<(String, i32)> =
        sqlx::query_as("SELECT name, moons FROM planets WHERE id = $1")
            .bind(id)
            .fetch_optional(&pool)
            .await?;
    Ok(row.map(|(name, moons)| Planet { name, moons }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .ok_or("usage: cache postgres://USER@HOST/NAME")?;
    for other in ["mysql://host/name", "sqlite://file"] {
        if let Err(error) = Database::connect(other, DatabaseOptions::default()) {
            println!("{error}");
        }
    }
    let database = Database::connect(&url, DatabaseOptions::default())?;
    let Pool::Postgres(pool) = database.pool().clone() else {
        return Err("not PostgreSQL".into());
    };
    sqlx::raw_sql("CREATE TABLE planets (id INT PRIMARY KEY, name TEXT NOT NULL, moons INT NOT NULL); INSERT INTO planets VALUES (4, 'Mars', 1)")
        .execute(&pool)
        .await?;

    let cache = Cache::builder(database)
        .namespace("planets")
        .class("planet", Default::default())
        .build()
        .await?;
    let planets: View<Planet> = cache.view("planet")?.tag("planets");
    let show = async |planets: &View<Planet>| {
        let pool = pool.clone();
        let answer = planets
            .get(4, || async { Ok(load(pool, 4).await?) })
            .await?;
        println!("{:?} from {}", answer.value, answer.source.as_str());
        Ok::<_, steadfast_cache::CacheError>(())
    };
    show(&planets).await?;
    show(&planets).await?;

    let found_another = async |tx: &mut Tx| {
        tx.execute("UPDATE planets SET moons = moons + 1 WHERE id = 4", &[])
            .await
    };
    cache
        .write(found_another)
        .invalidates([Target::key("planet:4")])
        .commit()
        .await?;
    show(&planets).await?;
    Ok(())
}
