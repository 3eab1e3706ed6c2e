//! C5, C13: order across losses, several connections, blocking commands and sessions.

use std::collections::HashSet;

use redis::Value;
use steadfast::{CallOptions, Certainty, Client, ErrorKind};
use steadfast_drill::fault::{RespSilence, Toxic};

use crate::support::{cmd, ms, now, pair, pair_with, proxied, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_what_is_sent_again_after_a_loss_keeps_its_place_before_what_came_later() {
    for round in 0..10 {
        let (redis, proxy, client) = proxied(|b| b.deadline(ms(5000))).await;
        let silence = RespSilence {
            commands: vec!["SET".into()],
            percentage: 100.0,
        };
        let id = proxy.add(Toxic::new(silence)).await.unwrap();
        // Polled by one task in this order, so submitted in it.
        let early = tokio::spawn({
            let client = client.clone();
            async move {
                let sets = (0..500).map(|n| {
                    let client = client.clone();
                    async move { client.send(&cmd(&format!("SET k {n}"))).await }
                });
                futures_util::future::join_all(sets).await
            }
        });
        until("they have run", || {
            redis.command_blocking(&["GET", "k"]).unwrap() == Value::BulkString(b"499".to_vec())
        })
        .await;
        proxy.remove(id).await;
        let late = tokio::spawn({
            let client = client.clone();
            async move { client.send(&cmd("SET k last")).await }
        });
        redis
            .command(&["CLIENT", "KILL", "TYPE", "normal"])
            .await
            .unwrap();
        for result in early.await.unwrap() {
            result.unwrap();
        }
        late.await.unwrap().unwrap();
        let value = client.send(&cmd("GET k")).await.unwrap();
        assert_eq!(value, Value::BulkString(b"last".to_vec()), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_with_several_connections_a_key_keeps_its_order_and_its_connection() {
    let (redis, client) = pair_with(|b| b.connections(4).name("lanes")).await;
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let client = client.clone();
            tokio::spawn(async move {
                for round in 0..20 {
                    let sets = (0..50).map(|n| {
                        let client = client.clone();
                        async move {
                            client
                                .send(&cmd(&format!("SET key:{caller} {round}:{n}")))
                                .await
                        }
                    });
                    for result in futures_util::future::join_all(sets).await {
                        result.unwrap();
                    }
                    let value = client
                        .send(&cmd(&format!("GET key:{caller}")))
                        .await
                        .unwrap();
                    assert_eq!(value, Value::BulkString(format!("{round}:49").into_bytes()));
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let list = redis.command(&["CLIENT", "LIST"]).await.unwrap();
    let Value::BulkString(list) = list else {
        panic!("a list");
    };
    let used: HashSet<String> = String::from_utf8_lossy(&list)
        .lines()
        .filter(|line| line.contains("name=lanes") && line.contains("cmd=get"))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    assert!(used.len() >= 3, "only {used:?} served");
    redis
        .command(&["CLIENT", "KILL", "TYPE", "normal"])
        .await
        .unwrap();
    for n in 0..40 {
        client.send(&cmd(&format!("GET key:{n}"))).await.unwrap();
    }
}

/// Submitted in this order, since one task polls them in it.
async fn in_order(client: &Client, commands: Vec<redis::Cmd>) {
    let calls = commands
        .into_iter()
        .map(|cmd| async move { client.send(&cmd).await });
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_with_several_connections_commands_of_several_keys_keep_the_order_of_each_key() {
    let (_redis, client) = pair_with(|b| b.connections(4).deadline(ms(10_000))).await;
    let keys: Vec<_> = (0..8).map(|n| format!("k{n}")).collect();
    let mset = |value: &str| {
        cmd(&keys.iter().fold("MSET".into(), |all: String, key| {
            format!("{all} {key} {value}")
        }))
    };
    let value = |key: &str| {
        let get = cmd(&format!("GET {key}"));
        let client = client.clone();
        async move { client.send(&get).await.unwrap() }
    };
    let is = |text: &str| Value::BulkString(text.as_bytes().to_vec());
    for round in 0..150 {
        let (key, other) = (&keys[round % 8], &keys[(round + 3) % 8]);
        // The other connections have something to do, so that the first could be ahead of them.
        let mut busy: Vec<_> = keys
            .iter()
            .map(|key| cmd(&format!("APPEND busy:{key} x")))
            .collect();
        busy.extend([
            mset("all"),
            cmd(&format!("SET {key} one")),
            cmd(&format!("SET {other} one")),
        ]);
        in_order(&client, busy).await;
        assert_eq!(value(key).await, is("one"), "round {round}: SET came last");
        assert_eq!(
            value(other).await,
            is("one"),
            "round {round}: SET came last"
        );
        in_order(&client, vec![cmd(&format!("SET {key} one")), mset("all")]).await;
        assert_eq!(value(key).await, is("all"), "round {round}: MSET came last");
        in_order(
            &client,
            vec![
                cmd(&format!("SET {key} two")),
                cmd("FLUSHALL"),
                cmd(&format!("SET {other} one")),
            ],
        )
        .await;
        assert_eq!(
            value(key).await,
            Value::Nil,
            "round {round}: FLUSHALL came later"
        );
        assert_eq!(
            value(other).await,
            is("one"),
            "round {round}: SET came last"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_a_command_of_several_keys_that_is_dropped_or_never_polled_again_holds_up_nobody_for_ever()
 {
    let (_redis, client) = pair_with(|b| b.connections(4).deadline(ms(400))).await;
    let mset = cmd("MSET a 1 b 2 c 3 d 4 e 5");
    for _ in 0..20 {
        let mut call = Box::pin(client.send(&mset));
        let _ = futures_util::poll!(&mut call);
        drop(call);
        in_order(
            &client,
            vec![
                cmd("SET a 1"),
                cmd("SET b 1"),
                cmd("SET c 1"),
                cmd("SET d 1"),
            ],
        )
        .await;
    }
    let mut asleep = Box::pin(client.send(&mset));
    let _ = futures_util::poll!(&mut asleep);
    let patient = client.with(CallOptions::new().deadline(ms(5000)));
    for key in ["a", "b", "c", "d"] {
        patient.send(&cmd(&format!("SET {key} 1"))).await.unwrap();
    }
    drop(asleep);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_a_blocking_call_that_was_given_up_or_dropped_pops_nothing_of_what_is_pushed_next() {
    let (_redis, client) = pair().await;
    for round in 0..60 {
        let list = format!("queue:{round}");
        if round % 2 == 0 {
            let hasty = client.with(CallOptions::new().deadline(ms(10)));
            hasty
                .send(&cmd(&format!("BLPOP {list} 30")))
                .await
                .unwrap_err();
        } else {
            let pop = cmd(&format!("BLPOP {list} 30"));
            let _ = tokio::time::timeout(ms(10), client.send(&pop)).await;
        }
        // The very next command finds it gone.
        client.send(&cmd(&format!("RPUSH {list} 7"))).await.unwrap();
        let left = client.send(&cmd(&format!("LLEN {list}"))).await.unwrap();
        assert_eq!(left, Value::Int(1), "round {round}");
    }
}

#[tokio::test]
async fn c13_of_calls_dropped_as_their_answers_come_a_move_keeps_its_element_and_a_pop_loses_it() {
    let (redis, proxy, client) = proxied(|b| b).await;
    let ask = |words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        redis.command_blocking(&words).unwrap()
    };
    let silence = RespSilence {
        commands: ["BLMOVE", "LMOVE", "BLPOP", "LPOP"].map(Into::into).into(),
        percentage: 100.0,
    };
    proxy.add(Toxic::new(silence)).await.unwrap();
    // Each is dropped when the server has answered it, and its caller has not got the answer.
    for take in [
        "BLMOVE jobs mine LEFT RIGHT 9",
        "LMOVE jobs mine LEFT RIGHT",
        "BLPOP jobs 9",
        "LPOP jobs",
    ] {
        ask("RPUSH jobs 7");
        let call = tokio::spawn({
            let client = client.clone();
            async move { client.send(&cmd(take)).await }
        });
        until("the element is taken", || ask("LLEN jobs") == Value::Int(0)).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        let kept = i64::from(take.contains("MOVE"));
        assert_eq!(ask("LREM mine 1 7"), Value::Int(kept), "{take}");
        assert_eq!(ask("DBSIZE"), Value::Int(0), "{take}");
    }
}

#[tokio::test]
async fn c13_a_blocking_read_whose_connection_is_killed_is_made_again_and_a_pop_is_not() {
    let (redis, client) = pair().await;
    let spawn = |words: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.send(&cmd(words)).await })
    };
    let blocked = || {
        let list = redis.command_blocking(&["CLIENT", "LIST"]).unwrap();
        match list {
            Value::BulkString(text) => String::from_utf8_lossy(&text).matches("flags=b").count(),
            _ => 0,
        }
    };
    let read = spawn("XREAD BLOCK 8000 STREAMS log 0");
    // What came between would be skipped by a repeat, and nobody told.
    let from_now = spawn("XREAD BLOCK 8000 STREAMS log $");
    let pop = spawn("BLPOP queue 8");
    until("all block", || blocked() == 3).await;
    redis
        .command(&["CLIENT", "KILL", "TYPE", "normal"])
        .await
        .unwrap();
    for lost in [pop, from_now] {
        let error = lost.await.unwrap().unwrap_err();
        assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
    }
    until("the read blocks again", || blocked() == 1).await;
    client.send(&cmd("XADD log * k v")).await.unwrap();
    assert_ne!(read.await.unwrap().unwrap(), Value::Nil);
}

#[tokio::test]
async fn c13_blocking_calls_beyond_their_connections_are_refused_and_their_places_come_back() {
    let (_redis, client) = pair_with(|b| b.blocking_connections(2)).await;
    let pop = cmd("BLPOP queue 1");
    let (a, b, c) = tokio::join!(client.send(&pop), client.send(&pop), client.send(&pop));
    let refused = [a, b, c]
        .into_iter()
        .filter_map(Result::err)
        .collect::<Vec<_>>();
    assert_eq!(refused.len(), 1);
    assert!(matches!(refused[0].kind(), ErrorKind::Overloaded { .. }));
    let told = refused[0].to_string();
    assert!(told.contains("raise blocking_connections"), "{told}");
    for _ in 0..3 {
        let _ = tokio::time::timeout(ms(20), client.send(&pop)).await;
    }
    let hasty = cmd("BLPOP queue 0.05");
    assert_eq!(client.send(&hasty).await.unwrap(), Value::Nil);
}

#[tokio::test]
async fn c13_a_blocking_call_while_the_server_is_down_is_refused_at_once_and_in_an_interruption_waits()
 {
    let (redis, client) = pair_with(|b| b.reconnect_grace(ms(1000))).await;
    redis.kill().await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("BLPOP queue 0.1")).await }
    });
    tokio::time::sleep(ms(100)).await;
    redis.restart().await.unwrap();
    match waiting.await.unwrap() {
        Ok(value) => assert_eq!(value, Value::Nil),
        Err(error) => assert!(matches!(error.kind(), ErrorKind::Down { .. }), "{error}"),
    }
    redis.kill().await;
    crate::support::until_state(&client, steadfast::ConnectionState::Down).await;
    let begun = now();
    for _ in 0..50 {
        let error = client.send(&cmd("BLPOP queue 10")).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Down { .. }), "{error}");
        let error = client.session().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Down { .. }), "{error}");
    }
    assert!(now().duration_since(begun) < ms(1000));
}

#[tokio::test]
async fn c13_a_session_refuses_what_no_session_can_do() {
    let (_redis, client) = pair().await;
    let session = client.session().await.unwrap();
    for words in [
        "SUBSCRIBE c",
        "MONITOR",
        "CLIENT REPLY OFF",
        "RESET",
        "QUIT",
    ] {
        let error = session.send(&cmd(words)).await.unwrap_err();
        assert_eq!(error.certainty(), Certainty::NotSent, "{words}");
    }
    session.send(&cmd("SELECT 3")).await.unwrap();
    session.send(&cmd("SET k v")).await.unwrap();
    assert_eq!(client.send(&cmd("GET k")).await.unwrap(), Value::Nil);
}
