//! C7: what a silence means, and what it does not.

use redis::Value;
use steadfast::{CallOptions, Client, ConnectionState, ErrorKind};
use steadfast_drill::fault::{Bandwidth, Latency, RespSilence, Toxic};
use steadfast_drill::process::Redis;
use steadfast_drill::proxy::Proxy;
use steadfast_drill::scripted::{Script, Server};
use tokio::task::JoinSet;

use crate::support::{cmd, ms, now, pair, pair_with, proxied, seen, until, until_state};

#[tokio::test]
async fn c7_a_large_value_is_written_over_a_slow_link() {
    let redis = Redis::start().await.unwrap();
    let proxy = Proxy::start(redis.addr()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let client = Client::builder(&url).unwrap().connect().await.unwrap();
    proxy
        .add(Toxic::new(Bandwidth { rate: 10_000 }).upstream())
        .await
        .unwrap();
    let patient = client.with(CallOptions::new().deadline(ms(30_000)));
    let set = redis::cmd("SET")
        .arg("k")
        .arg(vec![b'x'; 8 << 20])
        .to_owned();
    assert_eq!(patient.send(&set).await.unwrap(), Value::Okay);
    let length = redis.command(&["STRLEN", "k"]).await.unwrap();
    assert_eq!(length, Value::Int(8 << 20));
    assert_eq!(client.status().reconnects, 0, "{:?}", client.history());
}

#[tokio::test]
async fn c7_a_large_value_is_written_over_a_slow_link_where_client_list_is_forbidden() {
    let user = "app on >secret ~* &* +@all -client|list";
    let redis = Redis::builder().acl(user).start().await.unwrap();
    let proxy = Proxy::start(redis.addr()).await.unwrap();
    let url = format!("redis://app:secret@{}", proxy.addr());
    let hasty = Client::builder(&url).unwrap().connect().await.unwrap();
    let builder = Client::builder(&url).unwrap().deadline(ms(30_000));
    let patient = builder.connect().await.unwrap();
    proxy
        .add(Toxic::new(Bandwidth { rate: 10_000 }).upstream())
        .await
        .unwrap();
    let set = |key: &str| {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(vec![b'x'; 16 << 20]);
        set
    };
    let options = CallOptions::new().deadline(ms(30_000));
    let (of_call, of_client) = (set("of call"), set("of client"));
    let given_longer = hasty.with(options);
    let (of_call, of_client) = tokio::join!(given_longer.send(&of_call), patient.send(&of_client));
    assert_eq!(of_call.unwrap(), Value::Okay, "{:?}", hasty.history());
    assert_eq!(of_client.unwrap(), Value::Okay, "{:?}", patient.history());
}

#[tokio::test]
async fn c7_round_trips_that_grow_long_are_got_used_to() {
    let (_redis, proxy, client) = proxied(|b| b).await;
    for _ in 0..50 {
        client.send(&cmd("GET k")).await.unwrap();
    }
    // Longer than a silence may be where they are short, shorter than one may be elsewhere.
    let far = |latency| Latency {
        latency: ms(latency),
        jitter: ms(0),
    };
    proxy.add(Toxic::new(far(160)).upstream()).await.unwrap();
    proxy.add(Toxic::new(far(160))).await.unwrap();
    let begun = now();
    let mut answered = 0;
    while answered < 3 {
        match client.send(&cmd("GET k")).await {
            Ok(_) => answered += 1,
            Err(_) => tokio::time::sleep(ms(20)).await,
        }
        assert!(now() - begun < ms(20_000), "{answered} answered");
    }
}

#[tokio::test]
async fn c7_bytes_that_a_full_socket_takes_are_a_sign_of_life_where_the_server_tells_nothing() {
    let set = redis::cmd("SET")
        .arg("k")
        .arg(vec![b'x'; 24 << 20])
        .to_owned();
    let bytes = set.get_packed_command().len();
    // More than buffers hold is taken bit by bit, the rest at once; CLIENT LIST is answered by
    // nothing of use.
    let slowly = (0..16).fold(Script::new().handshake().echo(1), |script, _| {
        script.read_bytes(1 << 20).pause(ms(50))
    });
    let server = slowly.read_bytes(bytes - (16 << 20)).send("+OK\r\n");
    let server = Server::start(server).await.unwrap();
    let builder = Client::builder(&server.url()).unwrap();
    let client = builder.deadline(ms(30_000)).connect().await.unwrap();
    client.send(&cmd("GET k")).await.unwrap();
    assert_eq!(client.send(&set).await.unwrap(), Value::Okay);
    assert_eq!(client.status().reconnects, 0, "{:?}", client.history());
}

#[tokio::test]
async fn c7_writes_that_are_paused_get_their_answers_and_reads_beside_them_too() {
    let (redis, client) = pair().await;
    redis
        .command(&["CLIENT", "PAUSE", "1500", "WRITE"])
        .await
        .unwrap();
    let patient = client.with(CallOptions::new().deadline(ms(10_000)));
    let incr = cmd("INCR n");
    let mut call = Box::pin(patient.send(&incr));
    assert!(futures_util::poll!(&mut call).is_pending());
    let reads = async {
        for _ in 0..60 {
            client.send(&cmd("GET k")).await.unwrap();
            tokio::time::sleep(ms(10)).await;
        }
    };
    let (n, ()) = tokio::join!(call, reads);
    assert_eq!(n.unwrap(), Value::Int(1));
    let status = client.status();
    assert!(status.reconnects <= 1, "{:?}", client.history());
    assert_eq!(seen(&client, "down"), 0, "{:?}", client.history());
    // What has stepped aside is gone, and nothing is left of it.
    until("nothing is in flight", || client.status().in_flight == 0).await;
    assert_eq!(client.send(&incr).await.unwrap(), Value::Int(2));
}

/// A module whose command is answered by a thread of its own, compiled for the server.
async fn slow_module(folder: &std::path::Path) -> std::path::PathBuf {
    let module = folder.join("slow.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/module/slow.rs");
    let compiled =
        tokio::process::Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
            .args(["--edition", "2024", "--crate-type", "cdylib", source, "-o"])
            .arg(&module)
            .status();
    assert!(compiled.await.unwrap().success());
    module
}

#[tokio::test]
async fn c7_a_command_that_a_module_answers_from_a_thread_is_waited_for_and_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let module = slow_module(folder.path()).await;
    let redis = Redis::builder()
        .config("loadmodule", module.to_str().unwrap())
        .start()
        .await
        .unwrap();
    let builder = Client::builder(&redis.url()).unwrap();
    let client = builder.connect().await.unwrap();
    for _ in 0..50 {
        client.send(&cmd("SET k v")).await.unwrap();
    }
    let patient = client.with(CallOptions::new().deadline(ms(20_000)));
    let slow = cmd("SLOW.ANSWER 2000");
    let mut call = Box::pin(patient.send(&slow));
    assert!(futures_util::poll!(&mut call).is_pending());
    let reads = async {
        for _ in 0..60 {
            client.send(&cmd("GET k")).await.unwrap();
            tokio::time::sleep(ms(10)).await;
        }
    };
    let (answer, ()) = tokio::join!(call, reads);
    assert_eq!(answer.unwrap(), Value::Int(7), "{:?}", client.history());
    assert!(client.status().reconnects <= 1, "{:?}", client.history());
    assert_eq!(seen(&client, "down"), 0, "{:?}", client.history());
}

#[tokio::test]
async fn c7_however_many_writes_are_paused_a_few_connections_wait_for_them() {
    let (redis, client) = pair_with(|b| b.name("c7")).await;
    let patient = client.with(CallOptions::new().deadline(ms(20_000)));
    redis
        .command(&["CLIENT", "PAUSE", "3500", "WRITE"])
        .await
        .unwrap();
    let mut writing = JoinSet::new();
    let begun = now();
    let mut most = 0;
    while now() - begun < ms(3_300) {
        let patient = patient.clone();
        writing.spawn(async move { patient.send(&cmd("INCR n")).await });
        tokio::time::sleep(ms(20)).await;
        let list = redis.command(&["CLIENT", "LIST"]).await.unwrap();
        let Value::BulkString(list) = list else {
            panic!("{list:?}");
        };
        most = most.max(String::from_utf8(list).unwrap().matches("name=c7").count());
    }
    // In service, standing by, and at most four that have stepped aside.
    assert!((2..=6).contains(&most), "{most} connections");
    let writes = writing.len() as i64;
    for n in writing.join_all().await {
        n.unwrap();
    }
    let n = client.send(&cmd("GET n")).await.unwrap();
    assert_eq!(n, Value::BulkString(writes.to_string().into_bytes()));
}

#[tokio::test]
async fn c7_a_call_that_was_given_longer_outlives_a_pause_of_the_whole_server() {
    let (redis, client) = pair().await;
    let patient = client.with(CallOptions::new().deadline(ms(10_000)));
    redis
        .command(&["CLIENT", "PAUSE", "900", "ALL"])
        .await
        .unwrap();
    assert_eq!(patient.send(&cmd("INCR n")).await.unwrap(), Value::Int(1));
    until_state(&client, ConnectionState::Ready).await;
    assert_eq!(client.status().reconnects, 0, "{:?}", client.history());
}

#[tokio::test]
async fn c7_c8_a_call_that_was_given_longer_outlives_the_age_of_its_connection_and_a_pause() {
    let (redis, client) = pair_with(|b| b.max_age(ms(400)).name("aged")).await;
    let patient = client.with(CallOptions::new().deadline(ms(20_000)));
    for n in 1..=5i64 {
        // Between a tenth and a quarter of a second before the connection is too old.
        let before = client.status().reconnects;
        until("it was replaced", || client.status().reconnects > before).await;
        tokio::time::sleep(ms(220 + 20 * n as u64)).await;
        let pause = ["CLIENT", "PAUSE", "900", "WRITE"];
        redis.command(&pause).await.unwrap();
        let written = patient.send(&cmd("INCR n")).await;
        assert_eq!(written.unwrap(), Value::Int(n), "{:?}", client.history());
    }
    assert_eq!(seen(&client, "down"), 0, "{:?}", client.history());
}

#[tokio::test]
async fn c7_c8_a_reply_that_drips_holds_up_nobody_on_a_connection_that_is_too_old() {
    let drips = Script::new().handshake().read(1).send("$1000000\r\n");
    let drips = (0..400).fold(drips, |script, _| script.pause(ms(50)).send("x"));
    let well = Script::new().handshake().echo(9);
    let scripts = vec![drips, well.clone(), well.clone(), well.clone(), well];
    let server = Server::start_each(scripts).await.unwrap();
    let builder = Client::builder(&server.url()).unwrap();
    let builder = builder.deadline(ms(12_000)).max_age(ms(400));
    let client = builder.connect().await.unwrap();
    let hasty = client.with(CallOptions::new().deadline(ms(200)));
    hasty.send(&cmd("GET large")).await.unwrap_err();
    // 20 s of it are to come.
    let value = client.send(&cmd("GET k")).await;
    let value = value.unwrap_or_else(|error| panic!("{error}: {:?}", client.history()));
    assert_eq!(value, Value::BulkString(b"k".to_vec()));
}

#[tokio::test]
async fn c9_a_tenth_of_a_second_after_a_server_is_back_no_call_is_delayed() {
    let (redis, client) = pair().await;
    for _ in 0..50 {
        client.send(&cmd("SET k v")).await.unwrap();
    }
    redis.freeze().unwrap();
    let calls = (0..40).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.send(&cmd("INCR n")).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap_err();
    }
    redis.resume().unwrap();
    until_state(&client, ConnectionState::Ready).await;
    until("the breaker closes", || client.status().breaker == "closed").await;
    tokio::time::sleep(ms(100)).await;
    // All at once, which a ramp would spread.
    let get = cmd("GET k");
    let mut calls: Vec<_> = (0..2_000).map(|_| Box::pin(client.send(&get))).collect();
    for call in &mut calls {
        assert!(futures_util::poll!(call).is_pending());
    }
    assert_eq!(
        client.status().in_flight,
        2_000,
        "some wait for their turns"
    );
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
}

#[tokio::test]
async fn c7_reads_under_way_end_as_soon_as_a_frozen_server_is_taken_for_down() {
    let (redis, client) = pair().await;
    for _ in 0..50 {
        client.send(&cmd("SET k v")).await.unwrap();
    }
    redis.freeze().unwrap();
    let begun = now();
    let error = client.send(&cmd("GET k")).await.expect_err("it is frozen");
    // Not a timeout: its caller can still fall back on something else.
    assert!(matches!(error.kind(), ErrorKind::Down { .. }), "{error}");
    assert!(now() - begun < ms(900), "{:?}", now() - begun);
    let error = client.send(&cmd("GET k")).await.expect_err("it is frozen");
    assert!(matches!(error.kind(), ErrorKind::Down { .. }), "{error}");
    redis.resume().unwrap();
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("GET k")).await.unwrap();
}

#[tokio::test]
async fn c7_a_pause_of_the_server_is_no_false_alarm() {
    let redis = Redis::builder()
        .config("enable-debug-command", "yes")
        .start()
        .await
        .unwrap();
    // Four times as long as usual, all of it: what the default is, the simulation shows.
    let builder = Client::builder(&redis.url()).unwrap();
    let builder = builder.response_idle_timeout(ms(2_000)).deadline(ms(4_000));
    let client = builder.connect().await.unwrap();
    for _ in 0..50 {
        client.send(&cmd("SET k v")).await.unwrap();
    }
    for _ in 0..2 {
        let (sleep, get) = (cmd("DEBUG SLEEP 0.8"), cmd("GET k"));
        let (sleep, get) = tokio::join!(client.send(&sleep), client.send(&get));
        sleep.unwrap();
        get.unwrap();
    }
    assert_eq!(client.history().len(), 1, "{:?}", client.history());
}

#[tokio::test]
async fn c7_a_reply_that_nobody_waits_for_holds_up_nobody() {
    let slowly =
        |b: steadfast::ClientBuilder| b.response_idle_timeout(ms(1_500)).deadline(ms(8_000));
    let (redis, proxy, client) = proxied(slowly).await;
    let large = "x".repeat(24 << 20);
    redis.command(&["SET", "large", &large]).await.unwrap();
    proxy
        .add(Toxic::new(Bandwidth { rate: 2_000 }))
        .await
        .unwrap();
    let hasty = client.with(CallOptions::new().deadline(ms(200)));
    hasty.send(&cmd("GET large")).await.unwrap_err();
    // 12 s of it are to come.
    let set = client.send(&cmd("GET k")).await;
    assert_eq!(set.unwrap(), Value::Nil, "{:?}", client.history());
    assert_eq!(client.status().reconnects, 1);
}

#[tokio::test]
async fn c7_a_reply_that_drips_for_ever_holds_up_nobody() {
    let drips = Script::new().handshake().read(1).send("$1000000\r\n");
    let drips = (0..400).fold(drips, |script, _| script.pause(ms(50)).send("x"));
    let well = Script::new().handshake().echo(9);
    let server = Server::start_each(vec![drips, well]).await.unwrap();
    let builder = Client::builder(&server.url()).unwrap();
    let client = builder.deadline(ms(9_000)).connect().await.unwrap();
    let hasty = client.with(CallOptions::new().deadline(ms(200)));
    hasty.send(&cmd("GET large")).await.unwrap_err();
    // 20 s of it are to come.
    let value = client.send(&cmd("GET k")).await.unwrap();
    assert_eq!(value, Value::BulkString(b"k".to_vec()));
}

#[tokio::test]
async fn c7_pushes_without_end_do_not_keep_a_connection_alive() {
    let pushes = Script::endless_pushes();
    let well = Script::new().handshake().echo(9);
    let server = Server::start_each(vec![pushes, well]).await.unwrap();
    let client = Client::builder(&format!("{}?protocol=resp3", server.url()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let hasty = client.with(CallOptions::new().deadline(ms(200)));
    hasty.send(&cmd("GET k")).await.unwrap_err();
    let value = client.send(&cmd("GET k")).await.unwrap();
    assert_eq!(value, Value::BulkString(b"k".to_vec()));
}

#[tokio::test]
async fn c12_a_call_that_was_dropped_before_it_was_written_is_never_sent() {
    let (redis, client) = pair_with(|b| b.reconnect_grace(ms(8_000)).deadline(ms(9_000))).await;
    redis.kill().await;
    until_state(&client, ConnectionState::Connecting).await;
    let incr = cmd("INCR n");
    for _ in 0..10 {
        let mut call = Box::pin(client.send(&incr));
        assert!(futures_util::poll!(&mut call).is_pending());
    }
    let mut get = Box::pin({
        let client = client.clone();
        async move { client.send(&cmd("GET n")).await }
    });
    assert!(futures_util::poll!(&mut get).is_pending());
    tokio::time::sleep(ms(5)).await;
    redis.restart().await.unwrap();
    assert_eq!(get.await.unwrap(), Value::Nil);
}

#[tokio::test]
async fn c13_a_session_that_was_lost_says_that_and_not_that_the_server_is_down() {
    let (redis, client) = pair().await;
    let session = client.session().await.unwrap();
    redis
        .command(&["CLIENT", "KILL", "TYPE", "normal"])
        .await
        .unwrap();
    let begun = now();
    let error = loop {
        match session.send(&cmd("PING")).await {
            Ok(_) => tokio::time::sleep(ms(1)).await,
            Err(error) => break error,
        }
        assert!(now() - begun < ms(10_000));
    };
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error}");
    let error = session.send(&cmd("PING")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error}");
    assert!(!error.to_string().contains("down"), "{error}");
}

#[tokio::test]
async fn c1_a_blocking_call_whose_time_is_up_while_it_connects_has_timed_out() {
    let (_redis, proxy, client) = proxied(|b| b).await;
    let silence = RespSilence {
        commands: vec!["HELLO".into()],
        percentage: 100.0,
    };
    proxy.add(Toxic::new(silence)).await.unwrap();
    let hasty = client.with(CallOptions::new().deadline(ms(200)));
    let error = hasty.send(&cmd("BLPOP list 9")).await.unwrap_err();
    let ErrorKind::Timeout { deadline } = error.kind() else {
        panic!("{error}");
    };
    assert_eq!(*deadline, ms(200));
    assert!(redis::RedisError::from(error).is_timeout());
}
