//! Shows invalidation by tag: one change makes all values invalid that carry the tag, whatever
//! their keys, and no other. The tags follow from the key, whose type says them once.
//!
//!     REDIS_URL=redis://127.0.0.1:6379 cargo run -p steadfast-cache --example tags

use std::error::Error;

use steadfast::Client;
use steadfast_cache::{Cache, Database, DatabaseOptions, Key, KeyName, Target, Ttl, Tx, View};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let database = Database::connect("sqlite::memory:", DatabaseOptions::default())?;
    let cache = Cache::builder(database.clone())
        .redis(Client::builder(&url)?.connect().await?)
        .namespace(format!("example:{}", std::process::id()))
        .class("price", Ttl::default())
        .build()
        .await?;
    let prices: View<u64> = cache.view("price")?;
    create(&database).await?;

    let shop = Shop { database, prices };
    for (shelf, number) in [("books", 1), ("books", 2), ("toys", 1), ("books", 1)] {
        shop.show(Product { shelf, number }).await?;
    }
    let sale = async |tx: &mut Tx| {
        let sql = "UPDATE products SET price = price / 2 WHERE name LIKE 'books/%'";
        tx.execute(sql, &[]).await
    };
    cache
        .write(sale)
        .invalidates([Target::tag("books")])
        .commit()
        .await?;
    for (shelf, number) in [("books", 1), ("books", 2), ("toys", 1)] {
        shop.show(Product { shelf, number }).await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Product {
    shelf: &'static str,
    number: u32,
}

impl Key for Product {
    fn name(&self) -> KeyName<'_> {
        KeyName::written(format_args!("{}/{}", self.shelf, self.number))
    }

    /// The price of "books/1" carries the tag "books".
    fn tags(&self) -> Vec<Vec<u8>> {
        vec![self.shelf.into()]
    }
}

struct Shop {
    database: Database,
    prices: View<u64>,
}

impl Shop {
    #[expect(clippy::print_stdout, reason = "an example shows what it does")]
    async fn show(&self, product: Product) -> Result<(), Box<dyn Error>> {
        let database = self.database.clone();
        let name = format!("{}/{}", product.shelf, product.number);
        let asked = name.clone();
        let load = move || async move {
            let sql = "SELECT price FROM products WHERE name = ?";
            let rows = database.select(sql, &[asked.into()]).await?;
            Ok(rows.first().and_then(|row| row["price"].as_u64()))
        };
        let answer = self.prices.get(product, load).await?;
        let price = answer.value.unwrap_or_default();
        println!("{name} costs {price}, by {}", answer.source.as_str());
        Ok(())
    }
}

async fn create(database: &Database) -> Result<(), Box<dyn Error>> {
    let mut tx = database.begin().await?;
    tx.execute(
        "CREATE TABLE products (name TEXT PRIMARY KEY, price INTEGER)",
        &[],
    )
    .await?;
    tx.execute(
        "INSERT INTO products VALUES ('books/1', 20), ('books/2', 30), ('toys/1', 10)",
        &[],
    )
    .await?;
    Ok(tx.commit().await?)
}
