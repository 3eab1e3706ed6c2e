//! Shows a cluster: commands of any keys, a scan of all of them, one node asked by its address,
//! reads from replicas, and who serves what.
//!
//!     REDIS_URL=redis-cluster://127.0.0.1:7000 cargo run -p steadfast --example cluster

use std::collections::BTreeSet;
use std::error::Error;

use redis::AsyncCommands;
use steadfast::{CallOptions, Client, ReadFrom, ScanQuery};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url =
        std::env::var("REDIS_URL").unwrap_or_else(|_| "redis-cluster://127.0.0.1:7000".to_owned());
    let mut redis = Client::builder(&url)?.connect().await?;

    // Each to the node that owns its slot; the pipeline is divided and joined.
    let carts: Vec<String> = (0..20).map(|n| format!("example:cart:{n}")).collect();
    let mut fill = redis::pipe();
    for cart in &carts {
        fill.set_ex(cart, "apples", 60).ignore();
    }
    let () = fill.query_async(&mut redis).await?;
    let values: Vec<Option<String>> = redis.mget(&carts).await?;
    println!("carts: {}", values.iter().flatten().count());

    // A key may come twice, and none is left out in silence.
    let mut scan = redis.scan_keys(ScanQuery::matching("example:cart:*"));
    let mut found = BTreeSet::new();
    while let Some(key) = scan.next().await {
        found.insert(String::from_utf8_lossy(&key?).into_owned());
    }
    println!("found: {}", found.len());

    // What a replica may answer may be a second old; without one it is the primary that does.
    let options = CallOptions::new().read_from(ReadFrom::Replicas);
    let cart: Option<String> = redis.with(options).get(&carts[0]).await?;
    println!("cart 0: {}", cart.unwrap_or_default());

    let cluster = redis.status().cluster.ok_or("no cluster")?;
    for node in cluster.nodes.iter().filter(|node| node.primary) {
        let Some(address) = &node.address else {
            continue;
        };
        // What concerns a server is asked of that server.
        let mut node_alone = redis.node(address);
        let keys: u64 = redis::cmd("DBSIZE").query_async(&mut node_alone).await?;
        println!("node with slots {}: has keys: {}", node.slots, keys > 0);
    }
    for cart in &carts {
        let () = redis.del(cart).await?;
    }
    Ok(())
}
