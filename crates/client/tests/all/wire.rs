//! C2, C7, C8 on a broken wire, and with peers that speak what no server speaks.

use std::time::Duration;

use redis::Value;
use steadfast::{CallOptions, Certainty, Client, ConnectionState};
use steadfast_drill::fault::{LimitData, ResetPeer, RespDelay, RespSilence, Stall, Timeout, Toxic};
use steadfast_drill::process::Redis;
use steadfast_drill::proxy::Proxy;
use steadfast_drill::scripted::{Script, Server};

use crate::support::{
    Name, cmd, ms, now, pair, pair_with, proxied, seen, until, until_down_for, until_seen,
    until_state,
};

fn black_hole() -> Toxic {
    Toxic::new(Timeout {
        timeout: Duration::ZERO,
    })
}

#[tokio::test]
async fn c7_a_blackholed_peer_is_replaced() {
    for (way, toxic) in [
        ("to the server", black_hole().upstream()),
        ("from the server", black_hole()),
        ("both", black_hole().both()),
    ] {
        let redis = Redis::start().await.unwrap();
        let proxy = Proxy::start(redis.addr()).await.unwrap();
        let name = Name::at(proxy.addr());
        let client = Client::builder("redis://the-name:6379")
            .unwrap()
            .resolver(name.clone())
            .deadline(ms(3000))
            .connect()
            .await
            .unwrap();
        proxy.add(toxic).await.unwrap();
        name.moves_to(redis.addr());
        let begun = now();
        // A read and a last-wins write in flight do not notice, one that accumulates is told.
        let (set, get, incr) = (cmd("SET k v"), cmd("GET k"), cmd("INCR n"));
        let (a, b, c) = tokio::join!(client.send(&set), client.send(&get), client.send(&incr));
        assert_eq!(a.unwrap(), Value::Okay, "{way}");
        b.unwrap();
        assert_eq!(c.unwrap_err().certainty(), Certainty::Unknown, "{way}");
        assert!(now().duration_since(begun) < ms(2500), "{way}");
        assert_eq!(seen(&client, "down"), 0, "{way}: {:?}", client.history());
        assert_eq!(seen(&client, "replaced"), 1, "{way}");
    }
}

#[tokio::test]
async fn c7_an_idle_connection_that_goes_dead_is_noticed_by_its_heartbeat() {
    for protocol in ["", "?protocol=resp3"] {
        let redis = Redis::start().await.unwrap();
        let proxy = Proxy::start(redis.addr()).await.unwrap();
        let client = Client::builder(&format!("redis://{}/{protocol}", proxy.addr()))
            .unwrap()
            .heartbeat(ms(100))
            .connect()
            .await
            .unwrap();
        // It stays, idle, for many heartbeats.
        tokio::time::sleep(ms(700)).await;
        assert_eq!(client.history().len(), 1, "{:?}", client.history());
        proxy.add(black_hole().both()).await.unwrap();
        until_state(&client, ConnectionState::Down).await;
        proxy.clear().await;
        until_state(&client, ConnectionState::Ready).await;
    }
}

#[tokio::test]
async fn c7_the_answers_of_a_stalled_network_are_taken_when_it_is_mended() {
    let (_redis, proxy, client) = proxied(|b| b.deadline(ms(10_000))).await;
    // No standby connection gets through its handshake: one that did would replace the connection,
    // and rightly.
    let no_handshake = RespSilence {
        commands: vec!["HELLO".into()],
        percentage: 100.0,
    };
    proxy.add(Toxic::new(no_handshake)).await.unwrap();
    let stall = proxy.add(Toxic::new(Stall {}).both()).await.unwrap();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("INCR n")).await }
    });
    until_state(&client, ConnectionState::Down).await;
    proxy.remove(stall).await;
    // It was neither lost nor sent again.
    assert_eq!(call.await.unwrap().unwrap(), Value::Int(1));
    until_state(&client, ConnectionState::Ready).await;
    assert_eq!(seen(&client, "down"), 1, "{:?}", client.history());
    let status = client.status();
    assert_eq!(status.reconnects, 0, "it woke: {:?}", client.history());
    assert!(status.mean_recovery_ms.is_some());
}

#[tokio::test]
async fn c7_a_frozen_connection_is_given_up_after_a_while_and_down_is_told_once() {
    let (redis, client) = pair_with(|b| b.unresponsive_timeout(ms(1500))).await;
    redis.freeze().unwrap();
    until_seen(&client, "replaced").await;
    tokio::time::sleep(ms(600)).await;
    assert_eq!(client.state(), ConnectionState::Down);
    assert_eq!(seen(&client, "down"), 1, "{:?}", client.history());
    let begun = now();
    let patient = client.with(CallOptions::new().deadline(ms(10_000)));
    patient.send(&cmd("GET k")).await.unwrap_err();
    assert!(now().duration_since(begun) < ms(5000), "it waited again");
    redis.resume().unwrap();
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("GET k")).await.unwrap();
}

#[tokio::test]
async fn c7_a_slow_script_with_a_deadline_of_its_own_gets_its_answer() {
    let (_redis, client) = pair().await;
    let patient = client.with(CallOptions::new().deadline(ms(10_000)));
    let slow = "local t = redis.call('TIME'); local till = t[1] * 1000 + t[2] / 1000 + 1500; \
                repeat t = redis.call('TIME') until t[1] * 1000 + t[2] / 1000 > till; \
                return redis.call('INCR', 'ran')";
    let eval = cmd("EVAL").arg(slow).arg(0).to_owned();
    assert_eq!(patient.send(&eval).await.unwrap(), Value::Int(1));
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("GET ran")).await.unwrap();
}

#[tokio::test]
async fn c9_slow_calls_open_the_breaker_unless_they_were_given_longer() {
    for (limit, opens) in [(ms(3000), true), (ms(20_000), false)] {
        let (_redis, proxy, client) =
            proxied(|b| b.response_idle_timeout(ms(5000)).deadline(ms(3000))).await;
        let delay = RespDelay {
            commands: vec!["GET".into()],
            percentage: 100.0,
            delay: ms(600),
        };
        proxy.add(Toxic::new(delay)).await.unwrap();
        let calls = (0..30).map(|_| {
            let calls = client.with(CallOptions::new().deadline(limit));
            async move { calls.send(&cmd("GET k")).await }
        });
        for result in futures_util::future::join_all(calls).await {
            result.unwrap();
        }
        // The driver passes on what was slow every 100 ms, when something is answered.
        let begun = now();
        while seen(&client, "breaker") == 0 && now().duration_since(begun) < ms(500) {
            let _ = client.send(&cmd("ECHO x")).await;
            tokio::time::sleep(ms(5)).await;
        }
        let opened = seen(&client, "breaker") > 0;
        assert_eq!(opened, opens, "{limit:?}: {:?}", client.history());
    }
}

#[tokio::test]
async fn c3_an_increment_that_ran_unanswered_is_not_made_again_and_a_read_beside_it_is() {
    let (redis, proxy, client) = proxied(|b| b.deadline(ms(3000))).await;
    for round in 1..=5 {
        let silence = RespSilence {
            commands: vec!["INCR".into(), "GET".into()],
            percentage: 100.0,
        };
        proxy.add(Toxic::new(silence)).await.unwrap();
        let spawn = |words: &'static str| {
            let client = client.clone();
            tokio::spawn(async move { client.send(&cmd(words)).await })
        };
        let (incr, get) = (spawn("INCR n"), spawn("GET n"));
        let ran = Value::BulkString(round.to_string().into_bytes());
        until("it has run", || {
            redis.command_blocking(&["GET", "n"]).unwrap() == ran
        })
        .await;
        redis
            .command(&["CLIENT", "KILL", "TYPE", "normal"])
            .await
            .unwrap();
        let error = incr.await.unwrap().unwrap_err();
        assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
        proxy.clear().await;
        get.await.unwrap().unwrap();
        let now = client.send(&cmd("GET n")).await.unwrap();
        assert_eq!(now, ran, "it was applied twice");
    }
}

#[tokio::test]
async fn c3_a_value_that_a_transaction_took_and_reset_is_not_taken_for_the_one_after() {
    let (redis, proxy, client) = proxied(|b| b.deadline(ms(3000))).await;
    client.send(&cmd("SET c 57")).await.unwrap();
    let silence = RespSilence {
        commands: vec!["EXEC".into()],
        percentage: 100.0,
    };
    proxy.add(Toxic::new(silence)).await.unwrap();
    let taking = tokio::spawn({
        let client = client.clone();
        async move {
            let mut pipeline = redis::pipe();
            pipeline.atomic().get("c").set("c", 0);
            client.send_pipeline(&pipeline).await
        }
    });
    let reset = Value::BulkString(b"0".to_vec());
    until("it has run", || {
        redis.command_blocking(&["GET", "c"]).unwrap() == reset
    })
    .await;
    redis
        .command(&["CLIENT", "KILL", "TYPE", "normal"])
        .await
        .unwrap();
    proxy.clear().await;
    let error = taking
        .await
        .unwrap()
        .expect_err("57 is lost, and it says so");
    assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
}

#[tokio::test]
async fn c7_a_peer_that_accepts_and_never_answers_is_down_and_then_replaced() {
    let silent = Server::start(Script::new()).await.unwrap();
    let redis = Redis::start().await.unwrap();
    let name = Name::at(silent.addr());
    let client = Client::builder("redis://the-name:6379")
        .unwrap()
        .connect_timeout(ms(200))
        .resolver(name.clone())
        .build()
        .unwrap();
    until_down_for(&client, "handshake took longer").await;
    name.moves_to(redis.addr());
    until_state(&client, ConnectionState::Ready).await;
}

#[tokio::test]
async fn c8_a_connection_that_is_cut_or_reset_in_the_middle_is_replaced_and_nobody_gets_half_a_reply()
 {
    let (redis, proxy, client) = proxied(|b| b.deadline(ms(3000))).await;
    let long = "v".repeat(100_000);
    client.send(cmd("SET k").arg(&long)).await.unwrap();
    for bytes in [1u64, 7, 100, 50_000] {
        let cut = Toxic::new(LimitData { bytes });
        let id = proxy.add(cut).await.unwrap();
        let reading = tokio::spawn({
            let client = client.clone();
            async move { client.send(&cmd("GET k")).await }
        });
        until("it was cut", || {
            seen(&client, "lost") > 0 || seen(&client, "connect_failed") > 0
        })
        .await;
        proxy.remove(id).await;
        if let Ok(value) = reading.await.unwrap() {
            assert_eq!(value, Value::BulkString(long.clone().into_bytes()));
        }
        until_state(&client, ConnectionState::Ready).await;
    }
    let reset = Toxic::new(ResetPeer {
        timeout: Duration::ZERO,
    });
    let id = proxy.add(reset).await.unwrap();
    until_state(&client, ConnectionState::Down).await;
    proxy.remove(id).await;
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("PING")).await.unwrap();
    drop(redis);
}

#[tokio::test]
async fn c8_garbage_ends_the_connection_and_never_the_client() {
    let broken: Vec<(&str, Script)> = vec![
        ("garbage", Script::garbage(7)),
        ("more garbage", Script::garbage(8)),
        (
            "half a reply",
            Script::new()
                .handshake()
                .read(1)
                .send("$10\r\nhalf")
                .close(),
        ),
        ("a huge length", Script::huge_length(u64::MAX)),
        (
            "a huge array",
            Script::new()
                .handshake()
                .read(1)
                .send("*2147483647\r\n:1\r\n")
                .close(),
        ),
        ("deep nesting", Script::deep_nesting(100_000)),
        (
            "an answer to nothing",
            Script::new().handshake().read(1).send("+OK\r\n+OK\r\n"),
        ),
        (
            "garbage for a greeting",
            Script::new().send("HTTP/1.1 400 Bad Request\r\n\r\n"),
        ),
        ("closed at once", Script::new().close()),
        ("reset at once", Script::new().reset()),
    ];
    let redis = Redis::start().await.unwrap();
    for (what, script) in broken {
        let server = Server::start(script).await.unwrap();
        let name = Name::at(server.addr());
        let client = Client::builder("redis://the-name:6379")
            .unwrap()
            .resolver(name.clone())
            .deadline(ms(300))
            .build()
            .unwrap();
        let get = cmd("GET k");
        if let Ok(value) = client.send(&get).await {
            // Only what is a whole reply may be taken for one.
            assert_eq!((what, value), ("an answer to nothing", Value::Okay));
        }
        name.moves_to(redis.addr());
        until(what, || {
            client.status().state == ConnectionState::Ready
                && client.status().server_version.as_deref() == Some("7.0.15")
                || {
                    client.reconnect();
                    false
                }
        })
        .await;
        let begun = now();
        while client.send(&get).await.is_err() {
            assert!(now().duration_since(begun) < ms(10_000), "{what}");
        }
    }
}

#[tokio::test]
async fn c8_push_messages_without_end_leave_the_deadlines_standing() {
    let server = Server::start(Script::endless_pushes()).await.unwrap();
    let client = Client::builder(&format!("{}?protocol=resp3", server.url()))
        .unwrap()
        .deadline(ms(300))
        .connect()
        .await
        .unwrap();
    let begun = now();
    client.send(&cmd("GET k")).await.unwrap_err();
    assert!(now().duration_since(begun) < ms(2000));
}

#[tokio::test]
async fn c2_a_read_whose_answer_is_lost_is_repeated_and_a_later_refusal_does_not_hide_an_unknown() {
    let (redis, proxy, client) = proxied(|b| b.deadline(ms(3000))).await;
    let silence = RespSilence {
        commands: vec!["GET".into(), "SET".into()],
        percentage: 100.0,
    };
    proxy.add(Toxic::new(silence)).await.unwrap();
    let spawn = |words: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.send(&cmd(words)).await })
    };
    let (set, get) = (spawn("SET k v"), spawn("GET k"));
    until("the write has run", || {
        redis.command_blocking(&["GET", "k"]).unwrap() == Value::BulkString(b"v".to_vec())
    })
    .await;
    // The server goes for good: the write may have had an effect, although its repeat was refused.
    redis.kill().await;
    until_state(&client, ConnectionState::Down).await;
    for call in [set, get] {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
    }
}
