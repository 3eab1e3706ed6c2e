//! C16: nothing that the client itself says on a connection may come between callers and their
//! replies.

use std::net::SocketAddr;

use redis::Value;
use steadfast::credentials::FileCredentials;
use steadfast::{Client, ConnectionState, PubSubEvent};
use steadfast_drill::process::Redis;
use steadfast_drill::scripted::{Script, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{cmd, ms, now, seen, until, until_down_for, until_seen};

/// A relay that makes a server one of those that swallow the error of a refused AUTH while other
/// replies are pending: a `-WRONGPASS` that is not the first of what the server wrote together is
/// dropped.
async fn swallowing(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(relay(client, server));
        }
    });
    addr
}

async fn relay(client: TcpStream, server: SocketAddr) {
    let server = TcpStream::connect(server).await.unwrap();
    server.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut chunk = vec![0; 1 << 20];
    while let Ok(n @ 1..) = from_server.read(&mut chunk).await {
        chunk.truncate(n);
        let mut from = 1;
        let refused = b"-WRONGPASS";
        while let Some(at) = chunk[from.min(chunk.len())..]
            .windows(refused.len())
            .position(|window| window == refused)
        {
            let at = from + at;
            let end = chunk[at..].iter().position(|byte| *byte == b'\n').unwrap();
            chunk.drain(at..=at + end);
            from = at;
        }
        if to_client.write_all(&chunk).await.is_err() {
            break;
        }
        chunk.resize(1 << 20, 0);
    }
    up.abort();
}

/// Asks for values that name their keys until the time is over; returns how many answers belonged
/// to somebody else, and how many there were.
async fn strangers(client: &Client, time: std::time::Duration) -> (usize, usize) {
    let mut callers = tokio::task::JoinSet::new();
    let until = now() + time;
    for caller in 0..32 {
        let client = client.clone();
        callers.spawn(async move {
            let (mut wrong, mut all) = (0, 0);
            while now() < until {
                let value = client.send(&cmd(&format!("GET v:{caller}"))).await;
                let own = Value::BulkString(caller.to_string().into_bytes());
                wrong += usize::from(matches!(&value, Ok(value) if *value != own));
                all += 1;
            }
            (wrong, all)
        });
    }
    let counts = callers.join_all().await;
    counts
        .into_iter()
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

struct Scene {
    redis: Redis,
    client: Client,
    file: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

async fn scene() -> Scene {
    let redis = Redis::builder()
        .acl("app on >first ~* &* +@all")
        .start()
        .await
        .unwrap();
    for caller in 0..32 {
        let (key, value) = (format!("v:{caller}"), caller.to_string());
        redis.command(&["SET", &key, &value]).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let relay = swallowing(redis.addr()).await;
    let client = Client::builder(&format!("redis://{relay}"))
        .unwrap()
        .credentials(FileCredentials::new(&file, Some("app")).look_every(ms(10)))
        .connect()
        .await
        .unwrap();
    Scene {
        redis,
        client,
        file,
        _folder: folder,
    }
}

#[tokio::test]
async fn c16_wrong_passwords_in_a_file_give_no_caller_the_value_of_another() {
    let Scene {
        redis,
        client,
        file,
        _folder,
    } = scene().await;
    for wrong in ["wrong", "wronger"] {
        std::fs::write(&file, wrong).unwrap();
        let (strangers, all) = strangers(&client, ms(150)).await;
        assert_eq!(strangers, 0, "of {all}");
    }
    until_seen(&client, "credentials_failed").await;
    assert_eq!(client.state(), ConnectionState::Ready);
    // And the right one is taken up, by a connection of its own.
    redis
        .command(&["ACL", "SETUSER", "app", ">second", "<first"])
        .await
        .unwrap();
    std::fs::write(&file, "second").unwrap();
    until_seen(&client, "reauthenticated").await;
    assert_eq!(strangers(&client, ms(50)).await.0, 0);
    assert_eq!(seen(&client, "lost") + seen(&client, "down"), 0);
}

#[tokio::test]
async fn c16_a_file_that_is_empty_for_a_while_is_told_once_and_is_no_empty_password() {
    let Scene {
        redis: _redis,
        client,
        file,
        _folder,
    } = scene().await;
    std::fs::write(&file, "").unwrap();
    let (strangers, all) = strangers(&client, ms(200)).await;
    assert_eq!(strangers, 0, "of {all}");
    until_seen(&client, "credentials_failed").await;
    // It is looked at again and again, and told once.
    tokio::time::sleep(ms(100)).await;
    let history = serde_json::to_string(&client.history()).unwrap();
    assert!(history.contains("is empty"), "{history}");
    assert_eq!(seen(&client, "credentials_failed"), 1, "{history}");
    assert_eq!(seen(&client, "connect_failed"), 0, "{history}");
    std::fs::write(&file, "first").unwrap();
    client.send(&cmd("PING")).await.unwrap();
}

/// A relay that hears no answer to an AUTH that travels by itself: the first line that comes after
/// one is dropped.
async fn deaf_to_auth(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
                let mut drops = false;
                loop {
                    tokio::select! {
                        Ok(n @ 1..) = client.read(&mut up) => {
                            drops |= up[..n].starts_with(b"*3\r\n$4\r\nAUTH\r\n");
                            server.write_all(&up[..n]).await.unwrap();
                        }
                        Ok(n @ 1..) = server.read(&mut down) => {
                            let mut answer = &down[..n];
                            if std::mem::take(&mut drops) {
                                let line = answer.iter().position(|byte| *byte == b'\n').unwrap();
                                answer = &answer[line + 1..];
                            }
                            let _ = client.write_all(answer).await;
                        }
                        else => return,
                    }
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn c16_a_session_or_subscriber_whose_new_credentials_get_no_answer_ends_and_believes_nothing()
{
    let redis = Redis::builder()
        .acl("app on >first ~* &* +@all")
        .start()
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first").unwrap();
    let client = Client::builder(&format!("redis://{}", deaf_to_auth(redis.addr()).await))
        .unwrap()
        .credentials(FileCredentials::new(&file, Some("app")).look_every(ms(10)))
        .connect()
        .await
        .unwrap();
    let session = client.session().await.unwrap();
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    let resumed = pubsub.next().await;
    assert!(matches!(resumed, Some(PubSubEvent::Resumed { gap: None })));
    redis
        .command(&["ACL", "SETUSER", "app", ">second"])
        .await
        .unwrap();
    std::fs::write(&file, "second").unwrap();
    let begun = now();
    while session.is_open() {
        if let Ok(value) = session.send(&cmd("ECHO mine")).await {
            assert_eq!(value, Value::BulkString(b"mine".to_vec()));
        }
        assert!(now() - begun < ms(20_000), "the session goes on");
    }
    let lost = tokio::time::timeout(ms(20_000), pubsub.next()).await;
    let Some(PubSubEvent::Lost { cause }) = lost.unwrap() else {
        panic!("it is lost");
    };
    assert!(cause.contains("out of step"), "{cause}");
    let resumed = tokio::time::timeout(ms(20_000), pubsub.next()).await;
    assert!(matches!(resumed, Ok(Some(PubSubEvent::Resumed { .. }))));
}

#[tokio::test]
async fn c16_a_heartbeat_that_is_answered_by_anything_but_a_pong_ends_the_connection() {
    for (answer, goes_on) in [
        ("+PONG\r\n", true),
        ("-NOPERM no\r\n", true),
        ("+OK\r\n", false),
    ] {
        let script = Script::new().handshake().read(1).send("+OK\r\n");
        let script = script.read(1).send(answer).read(1);
        let server = Server::start(script).await.unwrap();
        let client = Client::builder(&server.url())
            .unwrap()
            .heartbeat(ms(100))
            .response_idle_timeout(ms(100))
            .connect()
            .await
            .unwrap();
        client.send(&cmd("SET k v")).await.unwrap();
        // The next heartbeat, which nobody answers; or the loss.
        until("it is heard", || {
            seen(&client, "unresponsive") + seen(&client, "lost") > 0
        })
        .await;
        assert_eq!(seen(&client, "lost") == 0, goes_on, "{answer}");
    }
}

#[tokio::test]
async fn c8_a_peer_that_says_ok_to_everything_is_not_put_into_service() {
    let script = Script::new().send("+OK\r\n".repeat(20)).read(100);
    let server = Server::start(script).await.unwrap();
    let client = Client::builder(&server.url()).unwrap().build().unwrap();
    until_down_for(&client, "not a redis server").await;
}

#[tokio::test]
async fn c8_a_server_that_says_why_and_closes_is_quoted() {
    for (says, want) in [
        (
            "-DENIED Redis is running in protected mode because\r\n",
            "protected mode",
        ),
        (
            "-LOADING Redis is loading the dataset in memory\r\n",
            "loading its data",
        ),
    ] {
        for script in [
            Script::new().send(says).close(),
            Script::new().read(1).send(says).reset(),
        ] {
            let server = Server::start(script).await.unwrap();
            let client = Client::builder(&server.url()).unwrap().build().unwrap();
            until_down_for(&client, want).await;
        }
    }
}
