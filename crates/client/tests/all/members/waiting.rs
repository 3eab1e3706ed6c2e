//! Calls that wait for a node, or for a slot that moves.

use futures_util::stream::FuturesOrdered;
use steadfast::{Certainty, ErrorKind};

use super::*;

#[tokio::test]
async fn t9_calls_wait_in_their_order_for_a_node_that_comes_back_at_another_address() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.deadline(ms(30_000)).reconnect_grace(ms(20_000));
    let client = builder.connect().await.unwrap();
    let key = key_of(&cluster, 0).await;
    let push = |value: usize| {
        let (client, words) = (client.clone(), format!("RPUSH {key} {value}"));
        async move { client.send(&cmd(&words)).await }
    };
    push(0).await.unwrap();
    cluster.node(0).kill().await;
    until("it is lost", || {
        client.toward(&key).state() != ConnectionState::Ready
    })
    .await;
    // Some wait before the node is known to be elsewhere, and some come after that, without a
    // pause.
    let mut moving = pin!(async {
        cluster.change_addresses(&[0]).await.unwrap();
        tokio::time::sleep(ms(500)).await;
    });
    let mut calls = FuturesOrdered::new();
    let mut value = 0;
    while futures_util::poll!(moving.as_mut()).is_pending() {
        value += 1;
        calls.push_back(push(value));
        // Submitted in this order.
        if let Ok(Some(answer)) = tokio::time::timeout(ms(2), calls.next()).await {
            answer.unwrap();
        }
    }
    while let Some(answer) = calls.next().await {
        answer.unwrap();
    }
    let Value::Array(list) = client
        .send(&cmd(&format!("LRANGE {key} 0 -1")))
        .await
        .unwrap()
    else {
        panic!("a list is asked for")
    };
    let wanted = (1..=value).map(|n| Value::BulkString(n.to_string().into_bytes()));
    assert_eq!(list, wanted.collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t9_t6_what_was_submitted_first_runs_first_while_its_slot_moves() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(20_000)).connect().await.unwrap();
    let keys: Vec<String> = (0..8).map(|n| format!("list:{n}")).collect();
    let slots: Vec<u16> = keys.iter().map(|key| slot(key)).collect();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (keys.iter().cloned())
        .map(|key| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut next = 0_usize;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // Polled in this order, so submitted in this order.
                    let calls = (next..next + 8).map(|value| {
                        let (client, key) = (&client, &key);
                        async move {
                            if value % 8 == 5 {
                                let mut pipe = redis::pipe();
                                pipe.rpush(key, value).rpush("{other}", value);
                                return client.send_pipeline(&pipe).await.map(drop);
                            }
                            let words = format!("RPUSH {key} {value}");
                            client.send(&cmd(&words)).await.map(drop)
                        }
                    });
                    for answer in join_all(calls).await {
                        if let Err(error) = answer {
                            let kind = error.kind();
                            assert!(matches!(kind, ErrorKind::Overtaken), "{error}");
                        }
                    }
                    next += 8;
                }
                next
            })
        })
        .collect();
    let moving = cluster.keep_moving(&slots, 1_000, tokio::time::sleep(ms(4_000)));
    let moved = moving.await.unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    assert!(moved > 0);
    for key in keys {
        let whole = redis::cmd("LRANGE").arg(&key).arg(0).arg(-1).to_owned();
        let Value::Array(list) = client.send(&whole).await.unwrap() else {
            panic!("a list is asked for")
        };
        let number = |value: &Value| match value {
            Value::BulkString(text) => String::from_utf8_lossy(text).parse::<u64>().unwrap(),
            other => panic!("{other:?}"),
        };
        let pairs = list
            .windows(2)
            .map(|pair| (number(&pair[0]), number(&pair[1])));
        let inverted: Vec<_> = pairs.filter(|(first, second)| first >= second).collect();
        assert!(inverted.is_empty(), "{key}: {inverted:?}");
    }
}

#[tokio::test]
async fn t5_t6_t10_a_slot_that_moves_or_has_no_owner_holds_a_call_up_as_long_as_it_may() {
    let builder = Cluster::builder().replicas(0).each(|redis| {
        // A command that nobody here knows, whose first key is its second argument.
        redis.config("rename-command", "BITOP XBITOP")
    });
    let cluster = builder.start().await.unwrap();
    let client = client_at(&cluster.url()).await;
    let key = key_of(&cluster, 0).await;
    let (one, other) = (format!("{{{key}}}1"), format!("{{{key}}}2"));
    let slots = [slot(&key)];
    for key in [&one, &other] {
        client.send(&cmd(&format!("SET {key} v"))).await.unwrap();
    }

    // The server knows another argument for its key than we do, and that one leads elsewhere.
    let guessed = cluster.owner(slot("NOT")).await.unwrap();
    let known = key_of(&cluster, (guessed + 1) % 3).await;
    let not = format!("XBITOP NOT {{{known}}}1 {{{known}}}2");
    for _ in 0..10 {
        assert_eq!(client.send(&cmd(&not)).await.unwrap(), Value::Int(0));
    }

    // Of two keys one has migrated: for longer than any number of attempts takes.
    cluster.begin_migration(&slots, 0, 1).await.unwrap();
    cluster.move_keys(&slots, 0, 1, 1).await.unwrap();
    let piped = {
        let (client, one, other) = (client.clone(), one.clone(), other.clone());
        tokio::spawn(async move {
            let mut pipe = redis::pipe();
            pipe.mget(&[&one, &other]).del(&[&one, &other]);
            client.send_pipeline(&pipe).await
        })
    };
    tokio::time::sleep(ms(400)).await;
    assert!(!piped.is_finished());
    let script = {
        let (client, one, other) = (client.clone(), one.clone(), other.clone());
        tokio::spawn(async move {
            let script = "return redis.call('EXISTS', KEYS[1], KEYS[2])";
            let mut eval = redis::cmd("EVAL");
            eval.arg(script).arg(2).arg(&one).arg(&other);
            client.send(&eval).await
        })
    };
    tokio::time::sleep(ms(400)).await;
    cluster.move_keys(&slots, 0, 1, 100).await.unwrap();
    cluster.end_migration(&slots, 0, 1).await.unwrap();
    let _ = piped.await.unwrap().unwrap();
    let _ = script.await.unwrap().unwrap();

    // Two nodes that each send to the other: five redirects, and no more.
    let key = key_of(&cluster, 2).await;
    let number = slot(&key).to_string();
    let away = [
        "CLUSTER",
        "SETSLOT",
        &number,
        "MIGRATING",
        cluster.node(0).id(),
    ]
    .map(str::to_owned);
    let away: Vec<&str> = away.iter().map(String::as_str).collect();
    cluster.node(2).command(&away).await.unwrap();
    let redirects = || client.status().cluster.unwrap().redirects;
    let before = redirects();
    let error = client.send(&cmd(&format!("GET {key}"))).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
    assert_eq!(redirects() - before, 5, "{error}");
    let stay = ["CLUSTER", "SETSLOT", &number, "STABLE"];
    cluster.node(2).command(&stay).await.unwrap();

    // A slot without an owner is refused at once, after the first has waited.
    for node in cluster.nodes() {
        node.command(&["CLUSTER", "DELSLOTS", &number])
            .await
            .unwrap();
    }
    let client = client_at(&cluster.url()).await;
    client.send(&cmd(&format!("GET {key}"))).await.unwrap_err();
    let mut shortest = Duration::MAX;
    for _ in 0..5 {
        let begun = now();
        let error = client.send(&cmd(&format!("GET {key}"))).await.unwrap_err();
        shortest = shortest.min(now().duration_since(begun));
        assert!(error.to_string().contains("slot"), "{error}");
    }
    assert!(shortest < ms(200), "each has waited: {shortest:?}");
}
