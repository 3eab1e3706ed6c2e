//! A shop written for redis-rs's `ConnectionManager`, with redis-rs's default features, as it is
//! after the swap. What changed is marked; the rest is as it was: commands, pipelines,
//! transactions, a script, streams, a scan, and a number too big for an integer.

use std::collections::HashMap;

use redis::streams::StreamReadReply;
use redis::{AsyncCommands, AsyncIter, RedisResult, Script, Value};

// Was `use redis::aio::ConnectionManager;`.
use steadfast::Client as ConnectionManager;

#[derive(Clone)]
struct Shop {
    redis: ConnectionManager,
}

impl Shop {
    async fn open(url: &str) -> Result<Self, Box<dyn std::error::Error>> {
        // Was `redis::Client::open(url)?.get_connection_manager().await?`.
        let redis = ConnectionManager::builder(url)?.connect().await?;
        Ok(Self { redis })
    }

    async fn add(&mut self, name: &str, pieces: u32, price: &str) -> RedisResult<()> {
        redis::pipe()
            .atomic()
            .hset(format!("shop:goods:{name}"), "pieces", pieces)
            .hset(format!("shop:goods:{name}"), "price", price)
            .sadd("shop:goods", name)
            .xadd("shop:log", "*", &[("added", name)])
            .exec_async(&mut self.redis)
            .await
    }

    /// Takes from the stock what is there; answers how many pieces.
    async fn sell(&mut self, name: &str, pieces: u32) -> RedisResult<u32> {
        let take = Script::new(
            "local there = tonumber(redis.call('HGET', KEYS[1], 'pieces')) or 0
             local sold = math.min(there, tonumber(ARGV[1]))
             redis.call('HINCRBY', KEYS[1], 'pieces', -sold)
             return sold",
        );
        take.key(format!("shop:goods:{name}"))
            .arg(pieces)
            .invoke_async(&mut self.redis)
            .await
    }

    async fn stock(&mut self) -> RedisResult<Vec<(String, f64)>> {
        let mut names: Vec<String> = {
            let mut found: AsyncIter<'_, String> = self.redis.sscan("shop:goods").await?;
            let mut names = Vec::new();
            while let Some(name) = found.next_item().await {
                names.push(name?);
            }
            names
        };
        names.sort();
        let mut stock = Vec::with_capacity(names.len());
        for name in names {
            let goods: HashMap<String, f64> =
                self.redis.hgetall(format!("shop:goods:{name}")).await?;
            stock.push((name, goods.get("pieces").copied().unwrap_or_default()));
        }
        Ok(stock)
    }

    async fn log(&mut self) -> RedisResult<usize> {
        let reply: Option<StreamReadReply> = self.redis.xread(&["shop:log"], &["0"]).await?;
        Ok(reply.map_or(0, |reply| {
            reply.keys.iter().map(|stream| stream.ids.len()).sum()
        }))
    }

    /// Redis answers such a number by RESP3 only; with its default features redis-rs makes a
    /// `BigInt` of it.
    async fn grains_on_the_chessboard(&mut self) -> RedisResult<String> {
        let count = Script::new("redis.setresp(3) return { big_number = ARGV[1] }");
        match count
            .arg("18446744073709551615")
            .invoke_async(&mut self.redis)
            .await?
        {
            Value::BigNumber(grains) => Ok(grains.to_string()),
            other => Ok(format!("no number at all: {other:?}")),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .ok_or("usage: swap redis://HOST:PORT")?;
    let mut shop = Shop::open(&format!("{url}?protocol=resp3")).await?;
    shop.add("lamp", 3, "19.50").await?;
    shop.add("rug", 1, "250.00").await?;
    let mut second = shop.clone();
    let (lamps, rugs) = tokio::join!(shop.sell("lamp", 2), second.sell("rug", 5));
    println!("sold {} lamps and {} rug", lamps?, rugs?);
    for (name, pieces) in shop.stock().await? {
        println!("{pieces} × {name}");
    }
    println!("{} lines in the log", shop.log().await?);
    println!("{} grains", shop.grains_on_the_chessboard().await?);
    Ok(())
}
