//! C1, C9, C10, C11: bounds on what waits, what is repeated and what is refused.

use std::time::Duration;

use redis::Value;
use steadfast::{
    Backoff, Bound, BreakerConfig, BreakerMode, BudgetConfig, CallOptions, Certainty, Client,
    ConnectionState, ErrorKind, RetryPolicy, Stop,
};
use steadfast_drill::fault::{RespDelay, RespError, Toxic};
use steadfast_drill::scripted::{Script, Server};

use crate::support::{cmd, ms, now, pair, pair_with, proxied, seen, until, until_state};

fn bound(error: &steadfast::Error) -> Option<Bound> {
    match error.kind() {
        ErrorKind::Overloaded { bound, .. } => Some(*bound),
        _ => None,
    }
}

#[tokio::test]
async fn c11_past_the_bound_on_calls_in_flight_a_call_is_refused_at_once() {
    let (redis, client) = pair_with(|b| b.in_flight(10).deadline(ms(5000))).await;
    redis.freeze().unwrap();
    let calls: Vec<_> = (0..30)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let begun = now();
                let result = client.send(&cmd("GET k")).await;
                (now().duration_since(begun), result)
            })
        })
        .collect();
    until("ten wait", || client.status().in_flight == 10).await;
    redis.resume().unwrap();
    let (mut served, mut refused) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            (_, Ok(_)) => served += 1,
            (took, Err(error)) => {
                assert_eq!(bound(&error), Some(Bound::InFlight), "{error}");
                assert_eq!(error.certainty(), Certainty::NotSent);
                assert!(took < ms(500), "{took:?}");
                refused += 1;
            }
        }
    }
    assert_eq!((served, refused), (10, 20));
}

#[tokio::test]
async fn c11_past_the_bound_on_bytes_a_call_is_refused_and_later_ones_pass() {
    let (redis, client) = pair_with(|b| b.buffered_bytes(1 << 20).deadline(ms(5000))).await;
    redis.freeze().unwrap();
    let large = vec![7u8; 2 << 20];
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (client, large) = (client.clone(), large.clone());
            tokio::spawn(async move { client.send(cmd("SET k").arg(large)).await })
        })
        .collect();
    until("some are refused", || {
        calls.iter().any(|call| call.is_finished())
    })
    .await;
    redis.resume().unwrap();
    let mut refused = 0;
    for call in calls {
        if let Err(error) = call.await.unwrap() {
            assert_eq!(bound(&error), Some(Bound::Bytes), "{error}");
            refused += 1;
        }
    }
    assert!((1..10).contains(&refused), "{refused}");
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("PING")).await.unwrap();
}

#[tokio::test]
async fn c11_a_call_that_cannot_make_its_deadline_is_refused_and_the_refusal_does_not_latch() {
    let (_redis, proxy, client) = proxied(|b| {
        b.response_idle_timeout(ms(10_000)).breaker(BreakerConfig {
            slow_call: None,
            ..BreakerConfig::default()
        })
    })
    .await;
    let delay = RespDelay {
        commands: vec!["GET".into()],
        percentage: 100.0,
        delay: ms(300),
    };
    let id = proxy.add(Toxic::new(delay)).await.unwrap();
    let learning = (0..20).map(|_| async { client.send(&cmd("GET k")).await });
    futures_util::future::join_all(learning).await;
    let hasty = client.with(CallOptions::new().deadline(ms(50)).attempts(1));
    let mut refused = 0;
    for _ in 0..50 {
        let begun = now();
        let error = hasty.send(&cmd("GET k")).await.unwrap_err();
        // One that is refused only when its time is up has been let in.
        let at_once = now().duration_since(begun) < ms(40);
        refused += usize::from(at_once && bound(&error) == Some(Bound::Deadline));
    }
    assert!(refused > 30, "{refused} of 50");
    proxy.remove(id).await;
    let begun = now();
    while hasty.send(&cmd("GET k")).await.is_err() {
        tokio::time::sleep(ms(1)).await;
        assert!(now().duration_since(begun) < ms(5000), "it has latched");
    }
}

#[tokio::test]
async fn c11_what_blocking_calls_take_teaches_nothing_about_the_others() {
    let (_redis, client) = pair().await;
    let blocked = client.send(&cmd("BLPOP queue 1.5")).await.unwrap();
    assert_eq!(blocked, Value::Nil);
    for _ in 0..100 {
        client.send(&cmd("GET k")).await.unwrap();
    }
    assert_eq!(client.status().breaker, "closed");
}

#[tokio::test]
async fn c10_an_outage_does_not_multiply_the_load() {
    let (_redis, proxy, client) = proxied(|b| {
        b.retry(RetryPolicy::new(
            Backoff::fixed(ms(1)),
            Stop::after_attempts(10),
        ))
        .budget(BudgetConfig {
            ratio: 0.1,
            per_second: 10.0,
            cap: 20.0,
        })
    })
    .await;
    client.set_breaker_mode(BreakerMode::Disabled);
    // A server that refuses everything for the moment: each call would be made ten times.
    let trying = RespError::new("TRYAGAIN not now").commands(&["GET"]);
    proxy.add(Toxic::new(trying)).await.unwrap();
    let sent_before = proxy.counters().bytes_up;
    let get = cmd("GET k");
    let one = get.get_packed_command().len() as u64;
    let begun = now();
    for _ in 0..500 {
        let error = client.send(&get).await.unwrap_err();
        assert_eq!(error.certainty(), Certainty::Rejected);
    }
    let seconds = now().duration_since(begun).as_secs() + 2;
    let sent = (proxy.counters().bytes_up - sent_before) / one;
    assert!(
        (500..=500 + 20 + 10 * seconds + 5).contains(&sent),
        "500 calls became {sent}"
    );
}

/// A primary, as it says, that refuses what blocks in these words.
async fn refusing(words: &str) -> Server {
    let script = (0..200).fold(Script::new(), |script, _| {
        script.handshake().read(1).send(words)
    });
    Server::start(script).await.unwrap()
}

#[tokio::test]
async fn c10_blocking_calls_that_are_refused_again_and_again_draw_on_the_budget_and_end() {
    let readonly = "-READONLY You can't write against a read only replica.\r\n";
    let busy = "-BUSY Redis is busy running a script.\r\n";
    for (words, free) in [(readonly, 1), (busy, 0)] {
        let server = refusing(words).await;
        let asked = || {
            let commands = server.commands();
            let pops = commands.iter().filter(|words| words[0] == b"BLPOP");
            pops.count()
        };
        let retry = |attempts| {
            let builder = Client::builder(&server.url()).unwrap();
            let stop = Stop::after_attempts(attempts);
            builder
                .deadline(ms(30_000))
                .retry(RetryPolicy::new(Backoff::fixed(ms(1)), stop))
                .budget(BudgetConfig {
                    ratio: 0.0,
                    per_second: 0.0,
                    cap: 6.0,
                })
        };
        // By the policy's end, by the caller's, and by that of the budget.
        let client = retry(3).connect().await.unwrap();
        let pop = cmd("BLPOP queue 20");
        let error = client.send(&pop).await.unwrap_err();
        assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
        assert_eq!(asked(), 3, "{words}");
        let once = client.with(CallOptions::new().attempts(1));
        once.send(&pop).await.unwrap_err();
        assert_eq!(asked(), 4, "{words}");
        let client = retry(1_000).connect().await.unwrap();
        client.send(&pop).await.unwrap_err();
        assert_eq!(asked(), 4 + 1 + free + 6, "{words}");
    }
}

#[tokio::test]
async fn c9_loading_counts_as_a_failure_and_a_type_error_does_not() {
    let (_redis, proxy, client) = proxied(|b| b).await;
    client.send(&cmd("SET s text")).await.unwrap();
    for _ in 0..50 {
        client.send(&cmd("LPUSH s x")).await.unwrap_err();
    }
    assert_eq!(client.status().breaker, "closed");
    let loading = RespError::loading().commands(&["GET"]);
    let id = proxy.add(Toxic::new(loading)).await.unwrap();
    for _ in 0..20 {
        client.send(&cmd("GET k")).await.unwrap_err();
    }
    assert_ne!(client.status().breaker, "closed");
    let begun = now();
    let mut refused = 0;
    while refused == 0 {
        let error = client.send(&cmd("GET k")).await.unwrap_err();
        if matches!(error.kind(), ErrorKind::BreakerOpen { .. }) {
            assert!(error.retry_after().unwrap() <= Duration::from_secs(5));
            refused += 1;
        }
        assert!(now().duration_since(begun) < ms(10_000));
    }
    proxy.remove(id).await;
    while client.send(&cmd("GET k")).await.is_err() {
        tokio::time::sleep(ms(5)).await;
        assert!(now().duration_since(begun) < ms(20_000));
    }
    // Its way back is told like its way out: open, half open, closed.
    while client.status().breaker != "closed" {
        let _ = client.send(&cmd("GET k")).await;
        tokio::time::sleep(ms(1)).await;
        assert!(now().duration_since(begun) < ms(20_000));
    }
    let changes: Vec<String> = client
        .history()
        .iter()
        .filter(|event| event.kind.name() == "breaker")
        .map(|event| {
            serde_json::to_value(event).unwrap()["to"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(changes.first().map(String::as_str), Some("open"));
    assert!(changes.contains(&"half_open".to_owned()), "{changes:?}");
    assert_eq!(changes.last().map(String::as_str), Some("closed"));
}

#[tokio::test]
async fn c9_probes_that_are_dropped_or_lost_give_their_places_back() {
    let (redis, proxy, client) =
        proxied(|b| b.response_idle_timeout(ms(20_000)).heartbeat(ms(20_000))).await;
    let loading = RespError::loading().commands(&["GET"]);
    let id = proxy.add(Toxic::new(loading)).await.unwrap();
    for _ in 0..20 {
        client.send(&cmd("GET k")).await.unwrap_err();
    }
    proxy.remove(id).await;
    let silent = RespDelay {
        commands: vec!["GET".into()],
        percentage: 100.0,
        delay: ms(30_000),
    };
    let id = proxy.add(Toxic::new(silent)).await.unwrap();
    // Every place for a probe is taken by a caller that goes away.
    let begun = now();
    while now().duration_since(begun) < ms(1500) {
        let _ = tokio::time::timeout(ms(2), client.send(&cmd("GET k"))).await;
    }
    proxy.remove(id).await;
    // Another kind of end: the connection is lost while a probe is out.
    redis
        .command(&["CLIENT", "KILL", "TYPE", "normal"])
        .await
        .unwrap();
    let begun = now();
    while client.send(&cmd("GET k")).await.is_err() {
        tokio::time::sleep(ms(5)).await;
        assert!(
            now().duration_since(begun) < ms(10_000),
            "no probe is let through"
        );
    }
}

#[tokio::test]
async fn c9_the_breaker_obeys_the_hand_and_says_so() {
    let (_redis, client) = pair().await;
    client.set_breaker_mode(BreakerMode::ForcedOpen);
    let error = client.send(&cmd("PING")).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::BreakerOpen { .. }),
        "{error}"
    );
    assert_eq!(client.status().breaker, "open");
    client.set_breaker_mode(BreakerMode::Automatic);
    client.send(&cmd("PING")).await.unwrap();
    client.set_breaker_mode(BreakerMode::Disabled);
    client.send(&cmd("PING")).await.unwrap();
    assert!(seen(&client, "breaker") >= 2);
}

#[tokio::test]
async fn c1_a_call_that_waits_out_an_interruption_has_its_own_deadline() {
    let (redis, client) = pair_with(|b| b.reconnect_grace(ms(60_000)).deadline(ms(30_000))).await;
    redis.kill().await;
    until_state(&client, ConnectionState::Connecting).await;
    let deadlines = [300u64, 50, 150, 100, 20];
    let calls = deadlines.map(|deadline| {
        let hasty = client.with(CallOptions::new().deadline(ms(deadline)));
        async move {
            let begun = now();
            let error = hasty.send(&cmd("INCR n")).await.unwrap_err();
            (deadline, now().duration_since(begun), error)
        }
    });
    for (deadline, took, error) in futures_util::future::join_all(calls).await {
        assert!(
            took >= ms(deadline) && took < ms(deadline + 500),
            "{took:?}"
        );
        assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
        assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "{error}");
    }
    assert_eq!(client.status().in_flight, 0);
}

#[tokio::test]
async fn c1_a_blocking_call_is_under_its_deadline_while_it_still_connects() {
    let redis = steadfast_drill::process::Redis::start().await.unwrap();
    let client = steadfast::Client::builder(&redis.url())
        .unwrap()
        .connect_timeout(ms(3000))
        .connect()
        .await
        .unwrap();
    redis.freeze().unwrap();
    let hasty = client.with(CallOptions::new().deadline(ms(200)));
    let begun = now();
    let error = hasty.send(&cmd("BLPOP queue 10")).await.unwrap_err();
    assert!(now().duration_since(begun) < ms(1500), "{error}");
    assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
    let begun = now();
    let error = client.session().await.unwrap_err();
    assert!(now().duration_since(begun) < ms(2500), "{error}");
}

#[tokio::test]
async fn c9_a_pipeline_of_which_nothing_was_done_is_no_success() {
    // By failures in a row alone: a success between them would be seen.
    let breaker = BreakerConfig {
        failure_rate: 1.0,
        slow_call: None,
        ..BreakerConfig::default()
    };
    let (_redis, proxy, client) = proxied(|b| b.breaker(breaker).heartbeat(ms(20_000))).await;
    let loading = RespError::loading().commands(&["GET"]);
    proxy.add(Toxic::new(loading)).await.unwrap();
    for commands in [1, 3] {
        client.set_breaker_mode(BreakerMode::Automatic);
        let mut pipe = redis::pipe();
        for _ in 0..commands {
            pipe.cmd("GET").arg("k");
        }
        let begun = now();
        while client.status().breaker == "closed" {
            let error = client.send_pipeline(&pipe).await.unwrap_err();
            assert_ne!(error.certainty(), Certainty::Unknown, "{error}");
            assert!(now().duration_since(begun) < ms(10_000), "it does not open");
        }
        client.set_breaker_mode(BreakerMode::ForcedClosed);
    }
}

#[tokio::test]
async fn c9_a_few_failures_among_many_successes_open_nothing() {
    let (_redis, proxy, client) = proxied(|b| b).await;
    let loading = RespError::loading().commands(&["HGET"]);
    proxy.add(Toxic::new(loading)).await.unwrap();
    let once = client.with(CallOptions::new().attempts(1));
    for _ in 0..40 {
        once.send(&cmd("HGET h f")).await.unwrap_err();
        for _ in 0..5 {
            client.send(&cmd("PING")).await.unwrap();
        }
    }
    assert_eq!(seen(&client, "breaker"), 0, "{:?}", client.history());
}
