//! Shows a subscriber that outlives its connection, and is told what it may have missed. The
//! program cuts that connection itself, by its name.
//!
//!     REDIS_URL=redis://127.0.0.1:6379 cargo run -p steadfast --example pubsub

use std::error::Error;

use redis::AsyncCommands;
use steadfast::{Client, PubSubEvent};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let name = format!("example-pubsub-{}", std::process::id());
    let channel = format!("example:news:{}", std::process::id());
    let mut redis = Client::builder(&url)?.connect().await?;
    let subscriber = Client::builder(&url)?.name(&name).connect().await?;
    let mut news = subscriber.pubsub();
    news.subscribe(channel.as_str()).await?;

    while let Some(event) = news.next().await {
        match event {
            PubSubEvent::Resumed { gap: None } => {
                println!("subscribed");
                let () = redis.publish(&channel, "before").await?;
            }
            PubSubEvent::Message { payload, .. } => {
                println!("heard: {}", String::from_utf8_lossy(&payload));
                if payload == b"after" {
                    break;
                }
                cut(&mut redis, &name).await?;
            }
            // From here on messages may be missed: what is derived from them is no longer to be
            // trusted.
            PubSubEvent::Lost { cause } => println!("lost: {cause}"),
            // Read anew what the messages of so long would have told.
            PubSubEvent::Resumed { gap: Some(gap) } => {
                println!("resumed, deaf for {gap:?}");
                let () = redis.publish(&channel, "after").await?;
            }
            PubSubEvent::Dropped { messages } => println!("too slow for {messages} messages"),
            _ => {}
        }
    }
    Ok(())
}

/// Ends the subscriber's connection on the server, as a failing network would.
async fn cut(redis: &mut Client, name: &str) -> Result<(), Box<dyn Error>> {
    let mut list = redis::cmd("CLIENT");
    list.arg("LIST").arg("TYPE").arg("pubsub");
    let list: String = list.query_async(redis).await?;
    let own = format!(" name={name} ");
    let line = list.lines().find(|line| line.contains(&own));
    let id = line.and_then(|line| line.strip_prefix("id=")?.split(' ').next());
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("ID").arg(id.ok_or("not connected")?);
    Ok(kill.exec_async(redis).await?)
}
