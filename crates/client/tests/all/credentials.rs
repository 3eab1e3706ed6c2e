//! C16: credentials that rotate while connections live.

use std::path::PathBuf;

use redis::Value;
use steadfast::credentials::{EnvironmentCredentials, FileCredentials};
use steadfast::{Client, ConnectionState};
use steadfast_drill::process::Redis;

use crate::support::{cmd, ms, seen, until, until_seen, until_state};

struct Rotating {
    redis: Redis,
    client: Client,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

/// A user whose password stands in a file.
async fn rotating() -> Rotating {
    let redis = Redis::builder()
        .acl("app on >first ~* +@all")
        .start()
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let client = Client::builder(&format!("redis://{}", redis.addr()))
        .unwrap()
        .credentials(FileCredentials::new(&file, Some("app")).look_every(ms(50)))
        .connect()
        .await
        .unwrap();
    Rotating {
        redis,
        client,
        file,
        _folder: folder,
    }
}

#[tokio::test]
async fn c16_a_password_that_changes_is_given_on_the_live_connection_in_order_with_its_traffic() {
    let Rotating {
        redis,
        client,
        file,
        _folder,
    } = rotating().await;
    let id = client.send(&cmd("CLIENT ID")).await.unwrap();
    let session = client.session().await.unwrap();
    let calling = tokio::spawn({
        let client = client.clone();
        async move {
            for _ in 0..300 {
                client.send(&cmd("INCR n")).await.unwrap();
                tokio::time::sleep(ms(1)).await;
            }
        }
    });
    redis
        .command(&["ACL", "SETUSER", "app", ">second", "<first"])
        .await
        .unwrap();
    std::fs::write(&file, "second\n").unwrap();
    until_seen(&client, "reauthenticated").await;
    calling.await.unwrap();
    assert_eq!(
        client.send(&cmd("CLIENT ID")).await.unwrap(),
        id,
        "it is the same connection"
    );
    session.send(&cmd("PING")).await.unwrap();
    assert_eq!(seen(&client, "lost") + seen(&client, "replaced"), 0);
    // And the next one uses it too.
    client.reconnect();
    until("it has reconnected", || client.status().reconnects == 1).await;
}

#[tokio::test]
async fn c16_a_refused_password_replaces_the_connection_once_it_is_right_and_disturbs_nobody() {
    let Rotating {
        redis,
        client,
        file,
        _folder,
    } = rotating().await;
    std::fs::write(&file, "too early\n").unwrap();
    until_seen(&client, "credentials_failed").await;
    // The connection still works while its replacement is refused.
    for _ in 0..50 {
        client.send(&cmd("INCR n")).await.unwrap();
    }
    until_seen(&client, "connect_failed").await;
    assert_eq!(client.state(), ConnectionState::Ready);
    redis
        .command(&["ACL", "SETUSER", "app", ">too early"])
        .await
        .unwrap();
    until_seen(&client, "replaced").await;
    assert_eq!(client.send(&cmd("INCR n")).await.unwrap(), Value::Int(51));
    assert_eq!(seen(&client, "down") + seen(&client, "lost"), 0);
}

#[tokio::test]
async fn c16_a_file_that_vanishes_is_told_and_the_connection_goes_on() {
    let Rotating {
        redis: _redis,
        client,
        file,
        _folder,
    } = rotating().await;
    std::fs::remove_file(&file).unwrap();
    until_seen(&client, "credentials_failed").await;
    client.send(&cmd("PING")).await.unwrap();
    assert_eq!(client.state(), ConnectionState::Ready);
    // It goes on looking.
    until("it looks again and again", || {
        seen(&client, "credentials_failed") > 3
    })
    .await;
    let history = format!("{:?} {:?} {:?}", client.history(), client, client.status());
    assert!(!history.contains("first"), "{history}");
}

#[tokio::test]
async fn c16_a_user_that_loses_its_rights_comes_back_with_new_ones() {
    let Rotating {
        redis,
        client,
        file,
        _folder,
    } = rotating().await;
    // Deleting a user ends its connections.
    redis.command(&["ACL", "DELUSER", "app"]).await.unwrap();
    until_state(&client, ConnectionState::Down).await;
    let error = client.status().last_error.unwrap();
    assert!(error.contains("WRONGPASS"), "{error}");
    redis
        .command(&["ACL", "SETUSER", "app", "on", ">second", "~*", "+@all"])
        .await
        .unwrap();
    std::fs::write(&file, "second").unwrap();
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("PING")).await.unwrap();
}

#[tokio::test]
async fn c16_the_file_may_name_the_user_and_the_environment_may_hold_both() {
    let Rotating { redis, file, .. } = rotating().await;
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "app:first").unwrap();
    let from_file = FileCredentials::new(&file, None);
    let url = format!("redis://{}", redis.addr());
    let client = Client::builder(&url)
        .unwrap()
        .credentials(from_file)
        .connect()
        .await
        .unwrap();
    let who = client.send(&cmd("ACL WHOAMI")).await.unwrap();
    assert_eq!(who, Value::BulkString(b"app".to_vec()));
    // A variable that every process has, for want of a safe way to set one.
    let path = std::env::var("PATH").unwrap();
    redis
        .command(&["ACL", "SETUSER", "env", "on", &format!(">{path}"), "+@all"])
        .await
        .unwrap();
    redis
        .command(&[
            "ACL",
            "SETUSER",
            "default",
            "resetpass",
            &format!(">{path}"),
        ])
        .await
        .unwrap();
    Client::builder(&url)
        .unwrap()
        .credentials(EnvironmentCredentials::new(None, "PATH"))
        .connect()
        .await
        .unwrap();
}
