//! Shows a password that rotates while the client lives: it stands in a file, as Kubernetes and
//! Vault agents write it, and no call fails when it changes. The program makes a user for that on
//! the server, and takes it away again; it needs the right to.
//!
//!     REDIS_URL=redis://127.0.0.1:6379 cargo run -p steadfast --example credentials

use std::error::Error;
use std::time::Duration;

use steadfast::credentials::FileCredentials;
use steadfast::{Client, EventItem, EventKind};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let mut admin = Client::builder(&url)?.connect().await?;
    let user = format!("example-{}", std::process::id());
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("password");

    set_password(&mut admin, &user, "first").await?;
    std::fs::write(&file, "first\n")?;
    // The file is read at each handshake, and again every 5 s by default.
    let credentials =
        FileCredentials::new(&file, Some(&user)).look_every(Duration::from_millis(50));
    let mut redis = Client::builder(&url)?
        .credentials(credentials)
        .connect()
        .await?;
    let mut events = redis.events();
    println!("the user: {}", who(&mut redis).await? == user);

    // What an agent does: the server knows the new password first, then the file says it.
    set_password(&mut admin, &user, "second").await?;
    std::fs::write(&file, "second\n")?;
    while let Some(EventItem::Event(event)) = events.next().await {
        println!("event: {}", event.kind.name());
        if matches!(event.kind, EventKind::Reauthenticated) {
            break;
        }
    }
    println!("still the user: {}", who(&mut redis).await? == user);
    let mut forget = redis::cmd("ACL");
    forget.arg("DELUSER").arg(&user);
    Ok(forget.exec_async(&mut admin).await?)
}

/// Adds a password; the one before is taken away once everybody has the new one.
async fn set_password(admin: &mut Client, user: &str, password: &str) -> redis::RedisResult<()> {
    let mut cmd = redis::cmd("ACL");
    cmd.arg(&["SETUSER", user, "on", "~*", "+@all"]);
    cmd.arg(format!(">{password}")).query_async(admin).await
}

async fn who(redis: &mut Client) -> redis::RedisResult<String> {
    redis::cmd("ACL").arg("WHOAMI").query_async(redis).await
}
