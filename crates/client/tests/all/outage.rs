//! C3, C5, C6, C7, C8, C9, C18: what happens when the server goes away, or seems to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::AsyncCommands;
use steadfast::{CallOptions, Certainty, Client, ConnectionState, ErrorKind};
use steadfast_drill::process::Redis;

use crate::support::{cmd, now, pair, pair_with, rounds, until, until_down_for, until_state};

async fn kill_clients(redis: &Redis) {
    redis
        .command(&["CLIENT", "KILL", "TYPE", "normal"])
        .await
        .unwrap();
}

#[tokio::test]
async fn c3_an_increment_is_never_applied_twice_and_every_failure_says_unknown() {
    let (redis, client) = pair().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut sent = Vec::new();
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("once:{caller}:{n}");
                    let result = client.send(redis::cmd("INCR").arg(&key)).await;
                    sent.push((key, result));
                    n += 1;
                    tokio::time::sleep(Duration::from_millis(4)).await;
                }
                sent
            })
        })
        .collect();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        kill_clients(&redis).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut ok, mut unknown) = (0, 0);
    let mut reader = client.clone();
    for caller in callers {
        for (key, result) in caller.await.unwrap() {
            let value: Option<i64> = reader.get(&key).await.unwrap();
            match result {
                Ok(_) => {
                    assert_eq!(value, Some(1), "{key} was reported done");
                    ok += 1;
                }
                Err(error) => {
                    assert_eq!(error.certainty(), Certainty::Unknown, "{key}: {error}");
                    assert!(value.is_none_or(|value| value == 1), "{key} is {value:?}");
                    unknown += 1;
                }
            }
        }
    }
    assert!(ok > 500, "{ok} done, {unknown} unknown");
}

#[tokio::test]
async fn c5_readers_do_not_notice_that_their_connection_is_killed_again_and_again() {
    let (redis, client) = pair().await;
    client.send(&cmd("SET k v")).await.unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (client, calls, stop) = (client.clone(), Arc::clone(&calls), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.send(&cmd("GET k")).await.unwrap();
                    client.send(&cmd("SET k v")).await.unwrap();
                    calls.fetch_add(2, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        })
        .collect();
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        kill_clients(&redis).await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(calls.load(Ordering::Relaxed) > 1000);
    until("the last one is replaced, too", || {
        client.status().reconnects >= 6
    })
    .await;
}

#[tokio::test]
async fn c5_calls_that_arrive_while_it_reconnects_wait_for_it() {
    let (redis, client) = pair_with(|b| {
        b.reconnect_grace(Duration::from_secs(5))
            .deadline(Duration::from_secs(8))
    })
    .await;
    redis.kill().await;
    until_state(&client, ConnectionState::Connecting).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("INCR n")).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    redis.restart().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), redis::Value::Int(1));
}

#[tokio::test]
async fn c5_flapping_cannot_spend_the_allowance_for_ever() {
    let (redis, client) = pair_with(|b| b.reconnect_grace(Duration::from_millis(2000))).await;
    // The first outage spends it; the next begins before 5 s of health.
    redis.kill().await;
    until_state(&client, ConnectionState::Down).await;
    redis.restart().await.unwrap();
    until_state(&client, ConnectionState::Ready).await;
    redis.kill().await;
    until_state(&client, ConnectionState::Down).await;
    let downs: Vec<_> = client
        .history()
        .into_iter()
        .filter(|event| matches!(event.kind.name(), "lost" | "down"))
        .map(|event| (event.kind.name(), event.at_ms))
        .collect();
    let (_, lost) = downs[2];
    let (_, down) = downs[3];
    assert!(
        down - lost < 1500,
        "the second outage waited again: {downs:?}"
    );
}

#[tokio::test]
async fn c6_a_call_to_a_server_that_is_down_is_refused_at_once_and_says_since_when() {
    let (redis, client) = pair().await;
    redis.kill().await;
    until_state(&client, ConnectionState::Down).await;
    let begun = now();
    for _ in 0..1000 {
        let error = client.send(&cmd("GET k")).await.unwrap_err();
        let ErrorKind::Down {
            down_for,
            retry_after,
            ..
        } = error.kind()
        else {
            panic!("{error}");
        };
        assert!(*down_for < Duration::from_secs(60) && *retry_after < Duration::from_secs(2));
        assert_eq!(error.certainty(), Certainty::NotSent);
    }
    let took = now().duration_since(begun);
    assert!(
        took < Duration::from_millis(500),
        "1000 refusals took {took:?}"
    );
}

#[tokio::test]
async fn c7_an_unresponsive_peer_that_lives_is_replaced_by_a_standby() {
    let (redis, client) = pair().await;
    // Paused clients are accepted and shaken hands with, but their commands are not answered.
    let mut calls = Vec::new();
    redis.freeze().unwrap();
    for _ in 0..4 {
        let client = client.clone();
        calls.push(tokio::spawn(
            // Reads would end as soon as it counts as down.
            async move { client.send(&cmd("INCR n")).await },
        ));
    }
    until("it is overdue", || {
        client
            .history()
            .iter()
            .any(|event| event.kind.name() == "unresponsive")
    })
    .await;
    redis.resume().unwrap();
    until("it answers again", || {
        client
            .history()
            .iter()
            .any(|event| matches!(event.kind.name(), "recovered" | "replaced"))
    })
    .await;
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn c7_a_frozen_server_is_down_and_its_connection_is_kept_in_case_it_wakes() {
    let (redis, client) = pair().await;
    redis.freeze().unwrap();
    // The heartbeat notices it without any call.
    until_state(&client, ConnectionState::Down).await;
    let begun = now();
    let patient = client.with(CallOptions::new().deadline(Duration::from_secs(10)));
    patient.send(&cmd("GET k")).await.unwrap_err();
    assert!(
        now().duration_since(begun) < Duration::from_secs(5),
        "it waited"
    );
    redis.resume().unwrap();
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("GET k")).await.unwrap();
}

#[tokio::test]
async fn c8_the_supervisor_comes_back_from_every_kind_of_loss_without_being_asked() {
    let (redis, client) = pair().await;
    for _ in 0..3 {
        redis.kill().await;
        until_state(&client, ConnectionState::Down).await;
        redis.restart().await.unwrap();
        until_state(&client, ConnectionState::Ready).await;
        client.send(&cmd("SET k v")).await.unwrap();
    }
    assert_eq!(client.status().reconnects, 3);
    assert_eq!(client.status().stuck_resets, 0);
}

#[tokio::test]
async fn c8_a_replica_is_not_put_into_service_where_a_primary_is_wanted() {
    let primary = Redis::start().await.unwrap();
    let replica = Redis::builder().replica_of(&primary).start().await.unwrap();
    let client = Client::builder(&replica.url()).unwrap().build().unwrap();
    until_down_for(&client, "replica").await;
    replica.promote().await.unwrap();
    until_state(&client, ConnectionState::Ready).await;
}

#[tokio::test]
async fn c8_a_refused_password_is_named_and_does_not_wedge_the_client() {
    let redis = Redis::builder().password("right").start().await.unwrap();
    let client = Client::builder(&format!("redis://:wrong@{}", redis.addr()))
        .unwrap()
        .build()
        .unwrap();
    until_down_for(&client, "WRONGPASS").await;
    redis
        .command(&["CONFIG", "SET", "requirepass", "wrong"])
        .await
        .unwrap();
    until_state(&client, ConnectionState::Ready).await;
}

#[tokio::test]
async fn c9_calls_pass_at_once_after_the_supervisors_own_probe_has_closed_the_breaker() {
    let (redis, client) = pair().await;
    redis.freeze().unwrap();
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(&cmd("INCR n")).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap_err();
    }
    until("the breaker opens", || client.status().breaker == "open").await;
    redis.resume().unwrap();
    until("the breaker closes", || client.status().breaker == "closed").await;
    client.send(&cmd("GET k")).await.unwrap();
}

#[tokio::test]
async fn c18_bytes_left_in_a_frozen_server_are_never_applied_after_a_later_write() {
    for round in 0..rounds() {
        let (redis, client) = pair_with(|b| b.deadline(Duration::from_millis(400))).await;
        redis.freeze().unwrap();
        // More than the server reads at once, and the old write behind it.
        let filler = "x".repeat(64 << 10);
        let filling = client.clone();
        let old = tokio::spawn(async move {
            let fill = redis::cmd("SET").arg("filler").arg(&filler).to_owned();
            let write = cmd("SET k 1");
            let (a, b) = tokio::join!(filling.send(&fill), filling.send(&write));
            a.unwrap_err();
            b.unwrap_err();
        });
        old.await.unwrap();
        client.reconnect();
        redis.resume().unwrap();
        until_state(&client, ConnectionState::Ready).await;
        let begun = now();
        while client.send(&cmd("SET k 2")).await.is_err() {
            assert!(now().duration_since(begun) < Duration::from_secs(10));
        }
        for _ in 0..20 {
            let value: String = client.clone().get("k").await.unwrap();
            assert_eq!(value, "2", "round {round}");
        }
    }
}

/// A refusal takes no wait. Were it to cost its task no turn either, a caller who asks again at
/// once would keep the one thread of this runtime from the task that has to connect.
#[tokio::test]
async fn c7_a_caller_who_asks_again_at_once_keeps_nobody_from_connecting() {
    let (redis, client) = pair().await;
    redis.kill().await;
    until_state(&client, ConnectionState::Down).await;
    let mut pipeline = redis::pipe();
    pipeline.get("k").get("l");
    let begun = now();
    let mut refused = 0;
    let asks = async {
        while client.send(&cmd("GET k")).await.is_err()
            || client.send_pipeline(&pipeline).await.is_err()
            || client.clone().get::<_, Option<u8>>("k").await.is_err()
            || client.session().await.is_err()
        {
            assert!(
                now().duration_since(begun) < Duration::from_secs(20),
                "{refused} refusals"
            );
            refused += 1;
        }
    };
    // Asked first while it is away: a client that is left in peace may be connected again before
    // this task goes on.
    let ((), restarted) = tokio::join!(asks, redis.restart());
    restarted.unwrap();
    assert!(refused > 0);
}

#[tokio::test]
async fn c14_an_outage_leaves_a_record_of_what_it_cost() {
    let (redis, client) = pair().await;
    redis.kill().await;
    until_state(&client, ConnectionState::Down).await;
    for _ in 0..7 {
        client.send(&cmd("GET k")).await.unwrap_err();
    }
    redis.restart().await.unwrap();
    until_state(&client, ConnectionState::Ready).await;
    let incidents = client.incidents();
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    assert_eq!(incidents[0].refused, 7);
    assert!(incidents[0].failed_attempts > 0 && incidents[0].recovery_ms.is_some());
}
