//! C18: what was left in an abandoned connection is never applied after a later write.

use std::time::Duration;

use futures_util::FutureExt;
use redis::AsyncCommands;
use steadfast::{CallOptions, Certainty, Client, ConnectionState, Fencing};
use steadfast_drill::fault::{Hold, RespError, RespSilence, Toxic};
use steadfast_drill::process::Redis;
use steadfast_drill::proxy::Proxy;

use crate::support::{
    Name, cmd, ms, now, pair, pair_with, proxied, rounds, seen, until, until_seen, until_state,
};

async fn send_until_ok(client: &Client, words: &str) {
    let begun = now();
    while client.send(&cmd(words)).await.is_err() {
        assert!(
            now().duration_since(begun) < Duration::from_secs(10),
            "{words}"
        );
    }
}

/// More than a server reads at once, and behind it an old write; given up by its caller.
async fn leave_behind(client: &Client, write: &str) {
    let client = client.with(CallOptions::new().deadline(ms(100)));
    let filler = "x".repeat(64 << 10);
    let fill = cmd("SET").arg("filler").arg(&filler).to_owned();
    let write = cmd(write);
    let (a, b) = tokio::join!(client.send(&fill), client.send(&write));
    a.unwrap_err();
    assert_eq!(b.unwrap_err().certainty(), Certainty::Unknown);
}

#[tokio::test]
async fn c18_bytes_held_back_on_the_wire_reach_nobody_after_a_later_write() {
    let redis = Redis::start().await.unwrap();
    for round in 0..rounds() {
        let proxy = Proxy::start(redis.addr()).await.unwrap();
        let name = Name::at(proxy.addr());
        let client = Client::builder("redis://the-name:6379")
            .unwrap()
            .resolver(name.clone())
            .connect()
            .await
            .unwrap();
        proxy.add(Toxic::new(Hold {}).upstream()).await.unwrap();
        leave_behind(&client, "SET k 1").await;
        // The next connection takes another way; what was sent before is still under way.
        name.moves_to(redis.addr());
        client.reconnect();
        send_until_ok(&client, "SET k 2").await;
        proxy.clear().await;
        until("what was held has arrived, or been refused", || {
            proxy.counters().open == 0
        })
        .await;
        let value: String = client.clone().get("k").await.unwrap();
        assert_eq!(value, "2", "round {round}");
    }
}

#[tokio::test]
async fn c18_a_session_kills_what_the_shared_connection_left_behind_before_it_writes() {
    let (redis, client) = pair_with(|b| b.unresponsive_timeout(ms(700))).await;
    let session = client.session().await.unwrap();
    session.send(&cmd("PING")).await.unwrap();
    redis.freeze().unwrap();
    leave_behind(&client, "SET k 1").await;
    until_seen(&client, "replaced").await;
    redis.resume().unwrap();
    session.send(&cmd("SET k 2")).await.unwrap();
    for _ in 0..20 {
        assert_eq!(
            session.send(&cmd("GET k")).await.unwrap(),
            redis::Value::BulkString(b"2".to_vec())
        );
    }
}

#[tokio::test]
async fn c18_a_transaction_under_way_when_another_connection_is_abandoned_does_nothing() {
    let (redis, client) = pair_with(|b| b.unresponsive_timeout(ms(700))).await;
    let session = client.session().await.unwrap();
    session.send(&cmd("MULTI")).await.unwrap();
    session.send(&cmd("SET k 2")).await.unwrap();
    redis.freeze().unwrap();
    leave_behind(&client, "SET k 1").await;
    until_seen(&client, "replaced").await;
    redis.resume().unwrap();
    let error = session.send(&cmd("EXEC")).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
    until_state(&client, ConnectionState::Ready).await;
    let value: Option<String> = client.clone().get("k").await.unwrap();
    assert_ne!(value.as_deref(), Some("2"));
}

#[tokio::test]
async fn c18_what_a_session_left_behind_is_killed_before_the_next_command_of_the_client() {
    let (redis, client) = pair_with(|b| b.connections(2)).await;
    for round in 0..5 {
        let session = client.session().await.unwrap();
        session.send(&cmd("PING")).await.unwrap();
        redis
            .command(&["CLIENT", "PAUSE", "60000", "WRITE"])
            .await
            .unwrap();
        let hasty = session.with(CallOptions::new().deadline(ms(50)));
        hasty.send(&cmd("SET k old")).await.unwrap_err();
        drop((session, hasty));
        let writing = tokio::spawn({
            let client = client.clone();
            async move { client.send(&cmd("SET k new")).await }
        });
        until("the old one is gone", || {
            seen(&client, "fenced") >= 2 * (round + 1)
        })
        .await;
        redis.command(&["CLIENT", "UNPAUSE"]).await.unwrap();
        writing.await.unwrap().unwrap();
        for _ in 0..10 {
            let value: String = client.clone().get("k").await.unwrap();
            assert_eq!(value, "new", "round {round}");
        }
    }
}

#[tokio::test]
async fn c18_without_the_right_to_kill_a_write_of_unknown_outcome_is_repeated_only_if_allowed() {
    let redis = Redis::builder()
        .acl("app on >secret ~* +@all -client|kill")
        .start()
        .await
        .unwrap();
    for allowed in [false, true] {
        let proxy = Proxy::builder()
            .resp(true)
            .start(redis.addr())
            .await
            .unwrap();
        let client = Client::builder(&format!("redis://app:secret@{}", proxy.addr()))
            .unwrap()
            .repeat_without_fence(allowed)
            .connect()
            .await
            .unwrap();
        assert_eq!(client.status().fencing, Fencing::Refused);
        assert_eq!(seen(&client, "fence_refused"), 1);
        // The write is run, and its answer is lost with the connection.
        let silence = RespSilence {
            commands: vec!["SET".into()],
            percentage: 100.0,
        };
        proxy.add(Toxic::new(silence)).await.unwrap();
        let writing = tokio::spawn({
            let client = client.clone();
            async move { client.send(&cmd(&format!("SET k {allowed}"))).await }
        });
        let mut control = Client::builder(&redis.url())
            .unwrap()
            .connect()
            .await
            .unwrap();
        loop {
            let value: Option<String> = control.get("k").await.unwrap();
            if value == Some(allowed.to_string()) {
                break;
            }
        }
        redis
            .command(&["CLIENT", "KILL", "USER", "app"])
            .await
            .unwrap();
        until("it has reconnected", || client.status().reconnects == 1).await;
        proxy.clear().await;
        match writing.await.unwrap() {
            Ok(_) => assert!(allowed, "it was repeated"),
            Err(error) => {
                assert!(!allowed, "{error}");
                assert_eq!(error.certainty(), Certainty::Unknown);
            }
        }
    }
}

#[tokio::test]
async fn c18_a_right_that_comes_back_is_trusted_from_the_next_connection_on_which_kills_what_is_left()
 {
    let redis = Redis::builder()
        .acl("app on >secret ~* &* +@all")
        .start()
        .await
        .unwrap();
    let client = Client::builder(&format!("redis://app:secret@{}", redis.addr()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let right = async |rule| {
        let words = ["ACL", "SETUSER", "app", rule];
        redis.command(&words).await.unwrap();
    };
    let abandon = async || {
        let session = client.session().await.unwrap();
        let hasty = session.with(CallOptions::new().deadline(ms(50)));
        hasty.send(&cmd("BLPOP queue 10")).await.unwrap_err();
    };
    right("-client|kill").await;
    abandon().await;
    until_seen(&client, "fence_refused").await;
    right("+client|kill").await;
    abandon().await;
    until_seen(&client, "fenced").await;
    assert_eq!(client.status().fencing, Fencing::Refused, "one is loose");
    client.reconnect();
    until("the other has been killed too", || {
        seen(&client, "fenced") == 2
    })
    .await;
    assert_eq!(client.status().fencing, Fencing::Works);
    assert_eq!(seen(&client, "fence_refused"), 1);
}

#[tokio::test]
async fn c18_a_session_whose_exec_was_given_up_still_kills_what_was_left_behind() {
    let (redis, client) = pair_with(|b| b.unresponsive_timeout(ms(700))).await;
    let session = client.session().await.unwrap();
    session.send(&cmd("MULTI")).await.unwrap();
    session.send(&cmd("INCR n")).await.unwrap();
    // It is sent, and nobody waits for its answer.
    let exec = cmd("EXEC");
    assert!(session.send(&exec).now_or_never().is_none());
    session.send(&cmd("PING")).await.unwrap();
    redis.freeze().unwrap();
    leave_behind(&client, "SET k 1").await;
    until_seen(&client, "replaced").await;
    redis.resume().unwrap();
    session.send(&cmd("SET k 2")).await.unwrap();
    for _ in 0..20 {
        let value = session.send(&cmd("GET k")).await.unwrap();
        assert_eq!(value, redis::Value::BulkString(b"2".to_vec()));
    }
    // And the next transaction is one again.
    session.send(&cmd("MULTI")).await.unwrap();
    session.send(&cmd("INCR n")).await.unwrap();
    let done = session.send(&cmd("EXEC")).await.unwrap();
    assert_eq!(done, redis::Value::Array(vec![redis::Value::Int(2)]));
}

#[tokio::test]
async fn c18_a_session_whose_exec_was_not_answered_in_time_is_over() {
    let (redis, client) = pair().await;
    let session = client.session().await.unwrap();
    session.send(&cmd("MULTI")).await.unwrap();
    session.send(&cmd("INCR n")).await.unwrap();
    redis.freeze().unwrap();
    let hasty = session.with(CallOptions::new().deadline(ms(50)));
    let error = hasty.send(&cmd("EXEC")).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
    redis.resume().unwrap();
    until("nobody knows whether a transaction is open", || {
        !session.is_open()
    })
    .await;
    session.send(&cmd("INCR n")).await.unwrap_err();
}

#[tokio::test]
async fn c18_a_server_that_cannot_kill_now_is_asked_again_and_has_refused_nothing() {
    let (_redis, proxy, client) = proxied(|b| b).await;
    let session = client.session().await.unwrap();
    let loading = RespError::loading().commands(&["CLIENT"]);
    let id = proxy.add(Toxic::new(loading)).await.unwrap();
    let hasty = session.with(CallOptions::new().deadline(ms(50)));
    hasty.send(&cmd("BLPOP queue 10")).await.unwrap_err();
    drop((session, hasty));
    // It is asked, and answers that it cannot, again and again.
    for _ in 0..20 {
        client.send(&cmd("PING")).await.unwrap();
        tokio::time::sleep(ms(10)).await;
    }
    assert_eq!(client.status().fencing, Fencing::Works);
    assert_eq!(seen(&client, "fenced") + seen(&client, "fence_refused"), 0);
    proxy.remove(id).await;
    until_seen(&client, "fenced").await;
}

#[tokio::test]
async fn c18_over_a_unix_socket_a_restart_has_no_other_application_disconnected() {
    let redis = Redis::start().await.unwrap();
    let socket = redis.folder().join("control.sock");
    let folder = tempfile::tempdir().unwrap();
    let way = folder.path().join("way");
    std::os::unix::fs::symlink(&socket, &way).unwrap();
    let url = format!("unix://{}", way.display());
    let client = Client::builder(&url).unwrap().connect().await.unwrap();
    assert_eq!(client.status().fencing, Fencing::Works);
    redis.freeze().unwrap();
    leave_behind(&client, "SET k 1").await;
    // It comes back when ids were given anew, and others have those of the abandoned connections.
    std::fs::remove_file(&way).unwrap();
    redis.kill().await;
    redis.restart().await.unwrap();
    let mut others = Vec::new();
    for _ in 0..20 {
        let other = redis::Client::open(format!("unix://{}", socket.display())).unwrap();
        others.push(other.get_multiplexed_async_connection().await.unwrap());
    }
    std::os::unix::fs::symlink(&socket, &way).unwrap();
    until_state(&client, ConnectionState::Ready).await;
    send_until_ok(&client, "SET k 2").await;
    for mut other in others {
        let value: String = other.get("k").await.expect("it was not killed");
        assert_eq!(value, "2");
    }
    assert_eq!(seen(&client, "fenced"), 0, "there was nobody to kill");
}

#[tokio::test]
async fn c18_over_a_unix_socket_nobody_is_killed_where_the_run_id_cannot_be_known() {
    let redis = Redis::builder()
        .acl("app on >secret ~* +@all -info")
        .start()
        .await
        .unwrap();
    let socket = redis.folder().join("control.sock");
    let url = format!("unix://{}?user=app&pass=secret", socket.display());
    let client = Client::builder(&url).unwrap().connect().await.unwrap();
    assert_eq!(client.status().fencing, Fencing::Refused);
    let history = serde_json::to_string(&client.history()).unwrap();
    assert!(history.contains("allow INFO to this user"), "{history}");
}
