//! Shows TLS to a server whose certificate is from an authority of one's own, and how the client
//! says that it does not trust one.
//!
//!     REDIS_URL=rediss://127.0.0.1:6379 REDIS_CA=ca.pem cargo run -p steadfast --example tls
//!
//! Without `REDIS_CA` the roots of the system are trusted.

use std::error::Error;

use redis::AsyncCommands;
use steadfast::{Client, Tls};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "rediss://127.0.0.1:6379".to_owned());
    let mut tls = Tls::new().only_tls13();
    if let Ok(ca) = std::env::var("REDIS_CA") {
        // `client_certificate` shows a certificate of ours, `server_name` expects another name than
        // the URL's host.
        tls = tls.ca_file(ca)?;
    }
    let mut redis = match Client::builder(&url)?.tls(tls).connect().await {
        Ok(redis) => redis,
        Err(error) => {
            println!("no connection: {error}");
            return Ok(());
        }
    };
    let pong: String = redis.ping().await?;
    let spoken = redis.status().tls;
    println!("{pong} over {}", spoken.as_deref().unwrap_or("plain TCP"));
    Ok(())
}
