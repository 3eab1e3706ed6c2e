//! C16: credentials that rotate while connections live.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::BoxFuture;
use redis::Value;
use steadfast::credentials::{
    Credentials, CredentialsError, CredentialsProvider, EnvironmentCredentials, FileCredentials,
};
use steadfast::{Client, ConnectionState, PubSubEvent};
use steadfast_drill::process::Redis;

use crate::support::{cmd, ms, seen, until, until_down_for, until_seen, until_state};

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
async fn c16_a_password_that_changes_is_given_by_a_connection_that_takes_over_in_order() {
    let Rotating {
        redis,
        client,
        file,
        _folder,
    } = rotating().await;
    let session = client.session().await.unwrap();
    let calling = tokio::spawn({
        let client = client.clone();
        async move {
            let mut pace = tokio::time::interval(ms(1));
            for n in 1..=1000 {
                pace.tick().await;
                let value = client.send(&cmd("INCR n")).await.unwrap();
                assert_eq!(value, Value::Int(n));
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
    session.send(&cmd("PING")).await.unwrap();
    assert_eq!((seen(&client, "lost"), seen(&client, "replaced")), (0, 1));
    // And the next one uses it too.
    client.reconnect();
    until("it has reconnected", || client.status().reconnects == 2).await;
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
async fn c16_a_password_that_comes_late_fails_calls_clearly_and_quickly_until_it_is_there() {
    let Rotating {
        redis,
        client,
        file,
        _folder,
    } = rotating().await;
    let calling = tokio::spawn({
        let client = client.clone();
        async move {
            let mut pace = tokio::time::interval(ms(1));
            let (mut failed, mut why, mut in_a_row) = (0, String::new(), 0);
            // Until it has failed for a while, and then worked for a while.
            while failed == 0 || in_a_row < 500 {
                pace.tick().await;
                let begun = tokio::time::Instant::now();
                match client.send(&cmd("GET n")).await {
                    Ok(_) => in_a_row += 1,
                    Err(error) => {
                        (failed, in_a_row) = (failed + 1, 0);
                        why = error.to_string();
                    }
                }
                let took = begun.elapsed();
                assert!(took < ms(5000), "a call took {took:?}");
            }
            (failed, why)
        }
    });
    // As one rotates by force: the old password is gone, and so are those who came with it.
    redis
        .command(&["ACL", "SETUSER", "app", "resetpass", ">second"])
        .await
        .unwrap();
    redis
        .command(&["CLIENT", "KILL", "USER", "app"])
        .await
        .unwrap();
    until_state(&client, ConnectionState::Down).await;
    tokio::time::sleep(ms(500)).await;
    std::fs::write(&file, "second\n").unwrap();
    let (failed, why) = tokio::time::timeout(ms(30_000), calling)
        .await
        .unwrap()
        .unwrap();
    assert!(failed > 0 && why.contains("WRONGPASS"), "{failed}: {why}");
    assert_eq!(client.status().stuck_resets, 0);
}

#[tokio::test]
async fn c16_a_file_that_vanishes_is_told_once_and_the_connection_goes_on() {
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
    // It goes on looking, and tells of another trouble.
    std::fs::write(&file, "").unwrap();
    until("it looks again", || seen(&client, "credentials_failed") > 1).await;
    tokio::time::sleep(ms(200)).await;
    assert_eq!(seen(&client, "credentials_failed"), 2, "each is told once");
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
    until_down_for(&client, "WRONGPASS").await;
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

/// Of the connections that bear this name: their ids, and the users they are of.
async fn connections(redis: &Redis, name: &str) -> Vec<(String, String)> {
    let list = redis.command(&["CLIENT", "LIST"]).await.unwrap();
    let Value::BulkString(list) = list else {
        panic!("a list")
    };
    let list = String::from_utf8_lossy(&list).into_owned();
    let field = |line: &str, field: &str| {
        let found = line.split(' ').find_map(|word| word.strip_prefix(field));
        found.unwrap_or_default().to_owned()
    };
    list.lines()
        .filter(|line| field(line, "name=") == name)
        .map(|line| (field(line, "id="), field(line, "user=")))
        .collect()
}

/// A client that signs in as `app` by a file that it looks at again and again.
async fn by_file(redis: &Redis, folder: &tempfile::TempDir) -> (Client, PathBuf) {
    let file = folder.path().join("credentials");
    std::fs::write(&file, "app:first").unwrap();
    let client = Client::builder(&format!("redis://{}", redis.addr()))
        .unwrap()
        .name("rotating")
        .credentials(FileCredentials::new(&file, None).look_every(ms(50)))
        .connect()
        .await
        .unwrap();
    (client, file)
}

#[tokio::test]
async fn c16_subscriptions_sessions_and_blocking_connections_take_new_credentials_as_they_live() {
    let redis = Redis::builder()
        .acl("app on >first ~* &* +@all")
        .start()
        .await
        .unwrap();
    redis
        .command(&[
            "ACL", "SETUSER", "next", "on", ">second", "~*", "&*", "+@all",
        ])
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (client, file) = by_file(&redis, &folder).await;
    let session = client.session().await.unwrap();
    // Within a transaction they wait for its end.
    session.send(&cmd("MULTI")).await.unwrap();
    client.send(&cmd("BLPOP queue 0.01")).await.unwrap();
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    let before = connections(&redis, "rotating").await;
    assert_eq!(before.len(), 4, "{before:?}");
    std::fs::write(&file, "next:second").unwrap();
    until_seen(&client, "reauthenticated").await;
    session.send(&cmd("PING")).await.unwrap();
    let done = session.send(&cmd("EXEC")).await.unwrap();
    let pong = Value::SimpleString("PONG".into());
    assert_eq!(done, Value::Array(vec![pong]), "nothing came between");
    let begun = crate::support::now();
    let now = loop {
        let now = connections(&redis, "rotating").await;
        if now.iter().all(|(_, user)| user == "next") {
            break now;
        }
        assert!(crate::support::now() - begun < ms(20_000), "{now:?}");
        tokio::time::sleep(ms(10)).await;
    };
    // The shared one was replaced; it is the first.
    let ids = |list: &[(String, String)]| list.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(
        ids(&before)[1..],
        ids(&now)[..3],
        "the others are the same connections"
    );
    client
        .send(cmd("PUBLISH news").arg("still here"))
        .await
        .unwrap();
    assert!(matches!(
        pubsub.next().await,
        Some(PubSubEvent::Resumed { .. })
    ));
    let Some(PubSubEvent::Message { payload, .. }) = pubsub.next().await else {
        panic!("it was not lost");
    };
    assert_eq!(payload, b"still here");
}

#[tokio::test]
async fn c16_a_subscriber_that_speaks_resp2_comes_back_with_new_credentials() {
    // A server without HELLO speaks RESP2, in which a subscribed connection takes no AUTH.
    let rights = ["~*", "&*", "+@all"];
    let redis = Redis::builder()
        .config("rename-command", "HELLO \"\"")
        .acl(format!("app on >first {}", rights.join(" ")))
        .start()
        .await
        .unwrap();
    redis
        .command(&[&["ACL", "SETUSER", "next", "on", ">second"][..], &rights].concat())
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (client, file) = by_file(&redis, &folder).await;
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    let mut next = async || {
        let event = tokio::time::timeout(ms(20_000), pubsub.next()).await;
        event.expect("it hears").expect("it is not closed")
    };
    assert!(matches!(next().await, PubSubEvent::Resumed { gap: None }));
    std::fs::write(&file, "next:second").unwrap();
    let lost = next().await;
    assert!(
        matches!(&lost, PubSubEvent::Lost { cause } if cause.contains("RESP2")),
        "{lost:?}"
    );
    let resumed = next().await;
    assert!(
        matches!(resumed, PubSubEvent::Resumed { gap: Some(_) }),
        "{resumed:?}"
    );
    // The old user may go now: nobody came with it any more.
    let gone = async {
        while connections(&redis, "rotating")
            .await
            .iter()
            .any(|(_, user)| user == "app")
        {
            tokio::time::sleep(ms(10)).await;
        }
    };
    tokio::time::timeout(ms(20_000), gone)
        .await
        .expect("all have changed");
    redis.command(&["ACL", "DELUSER", "app"]).await.unwrap();
    client
        .send(cmd("PUBLISH news").arg("still here"))
        .await
        .unwrap();
    let message = next().await;
    assert!(
        matches!(&message, PubSubEvent::Message { payload, .. } if payload == b"still here"),
        "{message:?}"
    );
}

#[tokio::test]
async fn c16_a_session_that_came_with_newer_credentials_than_the_client_keeps_them() {
    let redis = Redis::builder()
        .acl("app on >first ~* +@all")
        .start()
        .await
        .unwrap();
    redis
        .command(&["ACL", "SETUSER", "next", "on", ">second", "~*", "+@all"])
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    std::fs::write(&file, "app:first").unwrap();
    let client = Client::builder(&format!("redis://{}", redis.addr()))
        .unwrap()
        .credentials(FileCredentials::new(&file, None).look_every(ms(600_000)))
        .connect()
        .await
        .unwrap();
    std::fs::write(&file, "next:second").unwrap();
    let session = client.session().await.unwrap();
    for _ in 0..20 {
        let who = session.send(&cmd("ACL WHOAMI")).await.unwrap();
        assert_eq!(who, Value::BulkString(b"next".to_vec()));
        tokio::time::sleep(ms(10)).await;
    }
}

/// Gives the password once, and then keeps its thread for a while each time it is asked.
#[derive(Debug, Default)]
struct Keeping(AtomicU32);

impl CredentialsProvider for Keeping {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        let asked = self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if asked == 1 {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a provider that blocks its thread"
                )]
                std::thread::sleep(ms(2500));
            }
            Ok(Credentials::new("", "secret"))
        })
    }

    fn renew_in(&self) -> Option<std::time::Duration> {
        match self.0.load(Ordering::Relaxed) {
            3.. => panic!("a provider's own mistake"),
            _ => Some(ms(50)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn c16_a_provider_that_keeps_its_thread_while_the_client_serves_is_told_and_asked_again() {
    let redis = Redis::builder().password("secret").start().await.unwrap();
    let client = Client::builder(&format!("redis://{}", redis.addr()))
        .unwrap()
        .credentials(Keeping::default())
        .connect_timeout(ms(100))
        .connect()
        .await
        .unwrap();
    until_seen(&client, "credentials_failed").await;
    let history = serde_json::to_string(&client.history()).unwrap();
    assert!(history.contains("keeps its thread"), "{history}");
    client.send(&cmd("PING")).await.unwrap();
    assert_eq!(client.status().stuck_resets, 1, "it is counted");
    // It answers in the end, and from then on panics; the connection goes on.
    tokio::time::sleep(ms(2000)).await;
    client.send(&cmd("PING")).await.unwrap();
    let stuck = client.status().stuck_resets;
    assert_eq!(
        stuck,
        1,
        "however often it was told: {:?}",
        client.history()
    );
    assert_eq!(client.status().reconnects, 0, "{:?}", client.history());
}
