//! The faults of a Redis process, on a real one.

use redis::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use steadfast_drill::process::{ProcessError, Redis};

fn text(value: &str) -> Value {
    Value::BulkString(value.as_bytes().to_vec())
}

#[tokio::test]
async fn d1_a_killed_redis_refuses_connections_and_comes_back_empty_on_its_port() {
    let redis = Redis::start().await.unwrap();
    let (addr, pid) = (redis.addr(), redis.pid());
    redis.command(&["SET", "k", "v"]).await.unwrap();

    redis.kill().await;
    assert_eq!(redis.pid(), None);
    assert_eq!(
        TcpStream::connect(addr).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );

    redis.restart().await.unwrap();
    assert_eq!(redis.addr(), addr);
    assert_ne!(redis.pid(), pid);
    assert_eq!(redis.command(&["GET", "k"]).await.unwrap(), Value::Nil);
    assert!(TcpStream::connect(addr).is_ok());
}

#[tokio::test]
async fn d1_a_frozen_redis_stands_still_when_that_is_said_and_goes_on_when_it_is_woken() {
    let redis = Redis::start().await.unwrap();
    for turn in 0..100 {
        redis.freeze().unwrap();
        assert!(!redis.is_awake(), "turn {turn}");
        redis.resume().unwrap();
        assert!(redis.is_awake(), "turn {turn}");
    }
    assert!(redis.command(&["PING"]).await.is_ok());
}

/// As one that saves to a slow disk.
#[tokio::test]
async fn d1_a_command_that_takes_a_redis_its_time_is_waited_for() {
    let redis = Redis::start().await.unwrap();
    let slow = "local t = redis.call('TIME'); local till = t[1] * 1000 + t[2] / 1000 + 900; \
                repeat t = redis.call('TIME') until t[1] * 1000 + t[2] / 1000 > till; return 7";
    assert_eq!(
        redis.command(&["EVAL", slow, "0"]).await.unwrap(),
        Value::Int(7)
    );
}

#[tokio::test]
async fn d1_a_frozen_redis_accepts_connections_and_answers_none() {
    let redis = Redis::start().await.unwrap();
    redis.freeze().unwrap();
    let mut stream = TcpStream::connect(redis.addr()).unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut reply = [0; 7];
    assert_eq!(
        stream.read(&mut reply).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );

    redis.resume().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
}

#[tokio::test]
async fn d1_a_redis_that_saves_keeps_its_data_through_a_crash() {
    let redis = Redis::builder().save(true).start().await.unwrap();
    redis.command(&["SET", "k", "v"]).await.unwrap();
    redis.restart().await.unwrap();
    assert_eq!(redis.command(&["GET", "k"]).await.unwrap(), text("v"));
}

#[tokio::test]
async fn d1_an_old_snapshot_is_served_after_a_restart_from_it() {
    for save in [false, true] {
        let redis = Redis::builder().save(save).start().await.unwrap();
        assert!(matches!(
            redis.restart_from_snapshot().await,
            Err(ProcessError::NoSnapshot { .. })
        ));
        redis.command(&["SET", "k", "old"]).await.unwrap();
        redis.save_snapshot().await.unwrap();
        redis.command(&["SET", "k", "new"]).await.unwrap();
        redis.restart_from_snapshot().await.unwrap();
        assert_eq!(
            redis.command(&["GET", "k"]).await.unwrap(),
            text("old"),
            "save: {save}"
        );
    }
}

#[tokio::test]
async fn d1_a_replica_refuses_writes_until_it_is_promoted() {
    let primary = Redis::builder().password("p w").start().await.unwrap();
    let replica = Redis::builder().replica_of(&primary).start().await.unwrap();
    primary.command(&["SET", "k", "v"]).await.unwrap();
    replica.in_sync_with(&primary).await.unwrap();
    let refused = replica
        .command(&["SET", "k", "w"])
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.to_lowercase().contains("read only"), "{refused}");

    primary.kill().await;
    replica.promote().await.unwrap();
    assert_eq!(replica.command(&["GET", "k"]).await.unwrap(), text("v"));
    replica.command(&["SET", "k", "w"]).await.unwrap();
}

#[tokio::test]
async fn d1_a_full_redis_turns_clients_away() {
    let redis = Redis::builder()
        .config("maxclients", "1")
        .start()
        .await
        .unwrap();
    let mut first = TcpStream::connect(redis.addr()).unwrap();
    first.write_all(b"PING\r\n").unwrap();
    first.read_exact(&mut [0; 7]).unwrap();
    let mut second = TcpStream::connect(redis.addr()).unwrap();
    let mut answer = String::new();
    second.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "-ERR max number of clients reached\r\n");
}

#[tokio::test]
async fn d1_a_redis_out_of_memory_refuses_writes() {
    let redis = Redis::builder()
        .config("maxmemory", "1")
        .start()
        .await
        .unwrap();
    let refused = redis
        .command(&["SET", "k", "v"])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("OOM") || refused.contains("maxmemory"),
        "{refused}"
    );
    redis.command(&["GET", "k"]).await.unwrap();
}

#[tokio::test]
async fn d1_passwords_and_users_are_as_the_builder_says_and_can_be_taken_away() {
    let redis = Redis::builder()
        .password("se/cret")
        .acl("ada on >pw ~* +@read")
        .start()
        .await
        .unwrap();
    let login = |user: &str, password: &str| {
        let url = format!("redis://{user}:{password}@{}", redis.addr());
        redis::Client::open(url).unwrap().get_connection().map(drop)
    };
    redis::Client::open(redis.url())
        .unwrap()
        .get_connection()
        .unwrap();
    login("ada", "pw").unwrap();
    assert!(login("ada", "other").is_err());

    redis.command_blocking(&["ACL", "DELUSER", "ada"]).unwrap();
    redis
        .command_blocking(&["CONFIG", "SET", "requirepass", "other"])
        .unwrap();
    assert!(login("ada", "pw").is_err());
    assert!(
        redis::Client::open(redis.url())
            .unwrap()
            .get_connection()
            .is_err()
    );
    login("default", "other").unwrap();
}

#[tokio::test]
async fn d1_a_redis_with_a_slow_disk_answers_loading() {
    // Of an append-only file the server answers nobody until it has read a thousand commands; of a
    // snapshot, after so many bytes.
    let redis = Redis::builder()
        .config("key-load-delay", "20000")
        .config("loading-process-events-interval-bytes", "1024")
        .config("rdbcompression", "no")
        .start()
        .await
        .unwrap();
    for n in 0..100 {
        redis
            .command(&["SET", &format!("k{n}"), &"v".repeat(100)])
            .await
            .unwrap();
    }
    redis.save_snapshot().await.unwrap();
    redis.kill().await;
    let redis = std::sync::Arc::new(redis);
    let loading = redis.clone();
    let loaded = tokio::spawn(async move { loading.restart_from_snapshot().await });
    let mut answer = None;
    while answer.is_none() && !loaded.is_finished() {
        answer = first_answer(redis.addr()).await;
    }
    assert_eq!(answer.as_ref(), Some(b"-LOADIN"));
    loaded.await.unwrap().unwrap();
}

/// What a server answers to a PING first, if anything and soon.
async fn first_answer(addr: std::net::SocketAddr) -> Option<[u8; 7]> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(addr).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer)
    };
    let soon = std::time::Duration::from_secs(2);
    tokio::time::timeout(soon, asked).await.ok().flatten()
}

#[tokio::test]
async fn d6_a_redis_that_cannot_start_says_why_in_one_line() {
    let taken = Redis::start().await.unwrap();
    let error = Redis::builder()
        .port(taken.port())
        .start()
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "port {} of 127.0.0.1 is taken; choose another, or none to have a free one found",
            taken.port()
        )
    );

    let error = Redis::builder()
        .config("no-such-setting", "1")
        .start()
        .await
        .unwrap_err();
    assert!(matches!(error, ProcessError::Ended { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);

    let error = Redis::builder()
        .program("/no/such/redis-server")
        .start()
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("/no/such/redis-server"),
        "{error}"
    );
}
