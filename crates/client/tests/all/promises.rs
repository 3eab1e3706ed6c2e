//! C1, C2, C4, C12, C13, C14, C15: what every call and every client can rely on.

use std::time::Duration;

use redis::AsyncCommands;
use steadfast::{CallOptions, Certainty, Client, ConnectionState, Effect, ErrorKind};
use steadfast_drill::process::Redis;

use crate::support::{cmd, now, pair, pair_with, until, until_state};

#[tokio::test]
async fn c1_no_call_outlives_its_deadline_however_the_server_behaves() {
    let (redis, client) = pair_with(|b| b.deadline(Duration::from_millis(400))).await;
    redis.freeze().unwrap();
    let begun = now();
    let error = client.send(&cmd("GET k")).await.unwrap_err();
    let took = now().duration_since(begun);
    assert!(took < Duration::from_millis(1400), "{took:?}");
    assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "{error}");
    redis.resume().unwrap();
}

#[tokio::test]
async fn c1_a_deadline_of_one_call_overrides_that_of_the_client() {
    let (redis, client) = pair().await;
    redis.freeze().unwrap();
    let begun = now();
    let hasty = client.with(CallOptions::new().deadline(Duration::from_millis(50)));
    hasty.send(&cmd("GET k")).await.unwrap_err();
    assert!(now().duration_since(begun) < Duration::from_millis(700));
    redis.resume().unwrap();
}

#[tokio::test]
async fn c2_a_command_refused_before_it_ran_is_rejected_and_says_so_through_redis_rs_too() {
    let (_redis, mut client) = pair().await;
    let () = client.set("s", "text").await.unwrap();
    let error = client.send(&cmd("LPUSH s x")).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::Rejected);
    let error = client.lpush::<_, _, i64>("s", "x").await.unwrap_err();
    assert_eq!(error.code(), Some("WRONGTYPE"));
    assert_eq!(steadfast::certainty(&error), Certainty::Rejected);
}

#[tokio::test]
async fn c2_a_script_that_failed_half_way_is_unknown_and_keeps_its_code() {
    let (_redis, mut client) = pair().await;
    let script = "redis.call('SET', KEYS[1], 1); return redis.error_reply('MYERR half way')";
    let eval = cmd("EVAL").arg(script).arg(1).arg("k").to_owned();
    let error = client.send(&eval).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::Unknown);
    let error = eval.query_async::<()>(&mut client).await.unwrap_err();
    assert_eq!(error.code(), Some("MYERR"));
    assert_eq!(steadfast::certainty(&error), Certainty::Unknown);
}

#[tokio::test]
async fn c2_what_was_written_and_not_answered_is_unknown_and_what_was_not_is_not_sent() {
    let (redis, mut client) = pair_with(|b| b.deadline(Duration::from_millis(300))).await;
    redis.freeze().unwrap();
    let error = client.incr::<_, _, i64>("n", 1).await.unwrap_err();
    assert_eq!(steadfast::certainty(&error), Certainty::Unknown);
    redis.resume().unwrap();
    redis.kill().await;
    until_state(&client, ConnectionState::Down).await;
    let error = client.incr::<_, _, i64>("n", 1).await.unwrap_err();
    assert_eq!(steadfast::certainty(&error), Certainty::NotSent);
}

#[tokio::test]
async fn c2_a_missing_permission_is_rejected() {
    let redis = Redis::builder()
        .acl("reader on >secret ~* +@read +@connection")
        .start()
        .await
        .unwrap();
    let url = format!("redis://reader:secret@{}", redis.addr());
    let client = Client::builder(&url).unwrap().connect().await.unwrap();
    let error = client.send(&cmd("SET k v")).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::Rejected);
    assert!(error.to_string().contains("NOPERM"), "{error}");
}

#[tokio::test]
async fn c12_a_dropped_call_never_hands_its_reply_to_another_nor_leaks_its_place() {
    let (_redis, client) = pair().await;
    let mut setup = client.clone();
    for n in 0..100 {
        let () = setup
            .set(format!("key:{n}"), format!("value:{n}"))
            .await
            .unwrap();
    }
    let callers = (0..64u64).map(|caller| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(caller);
            let mut answered = 0;
            for _ in 0..200 {
                let n = rng.u32(0..100);
                let limit = Duration::from_micros(rng.u64(0..400));
                let call = client.get::<_, String>(format!("key:{n}"));
                if let Ok(value) = tokio::time::timeout(limit, call).await {
                    assert_eq!(value.unwrap(), format!("value:{n}"));
                    answered += 1;
                }
            }
            answered
        })
    });
    let mut answered = 0;
    for caller in callers.collect::<Vec<_>>() {
        answered += caller.await.unwrap();
    }
    assert!(answered > 0);
    until("no place is leaked", || client.status().in_flight == 0).await;
    assert_eq!(
        client.clone().get::<_, String>("key:7").await.unwrap(),
        "value:7"
    );
}

#[tokio::test]
async fn c13_blocking_commands_do_not_hold_up_the_others() {
    let (_redis, client) = pair().await;
    let blocked = tokio::spawn({
        let mut client = client.clone();
        async move {
            client
                .blpop::<_, Option<(String, i64)>>("queue", 10.0)
                .await
        }
    });
    let mut other = client.clone();
    for n in 0..50 {
        let () = other.set("k", n).await.unwrap();
    }
    let () = other.rpush("queue", 7).await.unwrap();
    assert_eq!(
        blocked.await.unwrap().unwrap(),
        Some(("queue".to_owned(), 7))
    );
    let error = client.send(&cmd("BLPOP queue 0")).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::NeedsDeadline { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn c13_a_blocking_call_that_was_given_up_pops_nothing_afterwards() {
    let (_redis, client) = pair().await;
    let mut other = client.clone();
    let blocked = client.with(CallOptions::new().deadline(Duration::from_millis(100)));
    blocked.send(&cmd("BLPOP queue 30")).await.unwrap_err();
    // The abandoned connection is killed before the next command of the shared one; the first
    // command may race its announcement.
    let begun = now();
    loop {
        let list: String = redis::cmd("CLIENT")
            .arg("LIST")
            .query_async(&mut other)
            .await
            .unwrap();
        if !list.contains("cmd=blpop") {
            break;
        }
        assert!(
            now().duration_since(begun) < Duration::from_secs(10),
            "{list}"
        );
    }
    let () = other.rpush("queue", 7).await.unwrap();
    assert_eq!(other.llen::<_, i64>("queue").await.unwrap(), 1);
}

#[tokio::test]
async fn c13_commands_that_change_the_connection_are_refused_and_a_session_takes_them() {
    let (_redis, client) = pair().await;
    for words in [
        "WATCH k",
        "MULTI",
        "SELECT 1",
        "SUBSCRIBE c",
        "CLIENT REPLY OFF",
        "RESET",
        "MONITOR",
    ] {
        let error = client.send(&cmd(words)).await.unwrap_err();
        assert_eq!(error.certainty(), Certainty::NotSent, "{words}");
        assert!(
            matches!(error.kind(), ErrorKind::Refused { .. }),
            "{words}: {error}"
        );
    }
    let session = client.session().await.unwrap();
    session.send(&cmd("WATCH k")).await.unwrap();
    client.send(&cmd("SET k other")).await.unwrap();
    session.send(&cmd("MULTI")).await.unwrap();
    session.send(&cmd("SET k mine")).await.unwrap();
    assert_eq!(session.send(&cmd("EXEC")).await.unwrap(), redis::Value::Nil);
}

#[tokio::test]
async fn c13_commands_keep_the_order_in_which_they_were_submitted() {
    let (_redis, client) = pair().await;
    for round in 0..50 {
        let sets = (0..64).map(|n| {
            let client = client.clone();
            async move { client.send(&cmd(&format!("SET k {round}:{n}"))).await }
        });
        for done in futures_util::future::join_all(sets).await {
            done.unwrap();
        }
        let value: String = client.clone().get("k").await.unwrap();
        assert_eq!(value, format!("{round}:63"));
    }
}

#[tokio::test]
async fn c14_starting_needs_no_redis_and_the_client_finds_it_when_it_comes() {
    let redis = Redis::start().await.unwrap();
    redis.kill().await;
    let client = Client::builder(&redis.url()).unwrap().build().unwrap();
    assert!(client.available().is_none());
    until_state(&client, ConnectionState::Down).await;
    let health = client.health(Duration::from_secs(1)).await;
    assert!(
        !health.healthy && health.message.contains("down"),
        "{health:?}"
    );
    redis.restart().await.unwrap();
    until_state(&client, ConnectionState::Ready).await;
    assert!(client.available().is_some());
    let health = client.health(Duration::from_secs(1)).await;
    assert!(health.healthy, "{health:?}");
    assert_eq!(health.role.as_deref(), Some("master"));
    assert!(health.memory_bytes.unwrap() > 0 && health.clients.unwrap() > 0);
    let names: Vec<_> = client
        .history()
        .iter()
        .map(|event| event.kind.name())
        .collect();
    assert!(
        names.contains(&"connect_failed")
            && names.contains(&"down")
            && names.contains(&"connected"),
        "{names:?}"
    );
}

#[tokio::test]
async fn c14_connect_waits_for_the_first_connection_and_says_why_there_is_none() {
    let redis = Redis::start().await.unwrap();
    redis.kill().await;
    let error = Client::builder(&redis.url())
        .unwrap()
        .deadline(Duration::from_millis(300))
        .connect()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn c15_close_drains_what_is_in_flight_and_refuses_what_is_new() {
    let redis = Redis::builder()
        .config("enable-debug-command", "yes")
        .start()
        .await
        .unwrap();
    let client = Client::builder(&redis.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("DEBUG SLEEP 0.2")).await }
    });
    until("it is in flight", || client.status().in_flight > 0).await;
    let closing = tokio::spawn({
        let client = client.clone();
        async move { client.close(Duration::from_secs(5)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    // It still drains, and takes nothing new.
    let error = client.send(&cmd("GET k")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed), "{error}");
    assert_eq!(closing.await.unwrap().unfinished, 0);
    slow.await.unwrap().unwrap();
    let error = client.send(&cmd("GET k")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed), "{error}");
    assert_eq!(client.state(), ConnectionState::Closed);
    drop(redis);
}

#[tokio::test]
async fn c15_what_close_could_not_finish_is_counted_and_told_to_its_caller() {
    let (redis, client) = pair_with(|b| b.deadline(Duration::from_secs(20))).await;
    redis.freeze().unwrap();
    let stuck = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("INCR n")).await }
    });
    until("it is in flight", || client.status().in_flight > 0).await;
    let closed = client.close(Duration::from_millis(100)).await;
    assert_eq!(closed.unfinished, 1);
    let error = stuck.await.unwrap().unwrap_err();
    assert_eq!(error.certainty(), Certainty::Unknown);
    redis.resume().unwrap();
}

#[tokio::test]
async fn c4_a_caller_may_say_what_its_script_does() {
    let (_redis, client) = pair().await;
    let reading = client.with(CallOptions::new().effect(Effect::Read));
    let value = reading
        .send(
            cmd("EVAL")
                .arg("return redis.call('GET', KEYS[1])")
                .arg(1)
                .arg("k"),
        )
        .await
        .unwrap();
    assert_eq!(value, redis::Value::Nil);
}

#[tokio::test]
async fn what_waits_in_a_connection_never_shows_in_debug() {
    let (redis, client) = pair().await;
    let session = client.session().await.unwrap();
    redis.freeze().unwrap();
    let secret = cmd("AUTH default marked-secret");
    let pending = session.send(&secret);
    let shown = futures_util::future::join(
        async { tokio::time::timeout(Duration::from_millis(20), pending).await },
        async { format!("{session:?} {client:?}") },
    )
    .await
    .1;
    redis.resume().unwrap();
    let decimal = format!("{:?}", b"marked-secret").replace(['[', ']'], "");
    assert!(
        !shown.contains("marked-secret") && !shown.contains(&decimal),
        "{shown}"
    );
}

#[tokio::test]
async fn c1_a_deadline_that_never_comes_is_one() {
    let (_redis, client) = pair().await;
    let patient = client.with(CallOptions::new().deadline(Duration::MAX));
    patient.send(&cmd("PING")).await.unwrap();
}
