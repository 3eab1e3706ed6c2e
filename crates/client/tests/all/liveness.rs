//! C19: a call ends within its deadline whatever becomes of the task that serves it.

use std::future::Future;
use std::pin::pin;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake};
use std::thread::Thread;

use redis::Value;
use steadfast::{
    Backoff, CallOptions, Certainty, Client, ConnectionState, Error, ErrorKind, PubSubEvent, Retry,
    ScanQuery, Stop,
};
use steadfast_drill::process::{Cluster, Redis, Sentinel};
use tokio::process::Command;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::support::{cmd, ms, now, pair, seen, stand_still, until};

pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A server, in a runtime that outlives those of the test.
fn server() -> (Runtime, Redis) {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let redis = runtime.block_on(Redis::start()).unwrap();
    (runtime, redis)
}

async fn connect(redis: &Redis) -> Client {
    let builder = Client::builder(&redis.url()).unwrap().name("c19");
    // An allowance for interruptions that a busy machine does not use up.
    let builder = builder.deadline(ms(8_000)).reconnect_grace(ms(3_000));
    builder.connect().await.unwrap()
}

fn connections(redis: &Redis) -> usize {
    let list = redis.command_blocking(&["CLIENT", "LIST"]).unwrap();
    let Value::BulkString(list) = list else {
        panic!("{list:?}");
    };
    String::from_utf8(list).unwrap().matches("name=c19").count()
}

#[test]
fn c19_a_client_outlives_its_runtime_and_goes_on_in_that_of_its_caller() {
    let (_alive, redis) = server();
    let first = runtime();
    let client = first.block_on(connect(&redis));
    first.block_on(client.send(&cmd("SET k v"))).unwrap();
    let session = first.block_on(client.session()).unwrap();
    // One that is answered by nobody when its runtime ends, and one that is asked of again.
    redis.freeze().unwrap();
    let mut incr = Box::pin({
        let client = client.clone();
        async move { client.send(&cmd("INCR n")).await }
    });
    first.block_on(async {
        assert!(futures_util::poll!(&mut incr).is_pending());
        tokio::time::sleep(ms(20)).await;
    });
    drop(first);
    redis.resume().unwrap();
    assert_ne!(client.state(), ConnectionState::Ready);
    let second = runtime();
    second.block_on(async {
        let error = incr.await.expect_err("nobody knows");
        assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
        assert!(error.to_string().contains("runtime"), "{error}");
        // Several at once start its tasks once.
        let get = cmd("GET k");
        let calls = (0..20).map(|_| client.send(&get));
        for result in futures_util::future::join_all(calls).await {
            assert_eq!(result.unwrap(), Value::BulkString(b"v".to_vec()));
        }
        assert_eq!(client.state(), ConnectionState::Ready);
        client.send(&cmd("BLPOP nothing 0.05")).await.unwrap();
        client.session().await.unwrap().send(&get).await.unwrap();
        let lost = session.send(&get).await.expect_err("it is lost");
        assert!(matches!(lost.kind(), ErrorKind::Lost { .. }), "{lost}");
    });
    // The shared one, and one for what blocks.
    second.block_on(async {
        until("the other connections end", || connections(&redis) <= 2).await;
    });
    let _ = second.block_on(client.close(ms(500)));
}

#[test]
fn c19_whoever_only_asks_whether_redis_is_available_hears_it_in_another_runtime_too() {
    let (_alive, redis) = server();
    let first = runtime();
    let client = first.block_on(connect(&redis));
    let mut pubsub = first.block_on(async {
        let mut pubsub = client.pubsub();
        pubsub.subscribe("news").await.unwrap();
        let resumed = pubsub.next().await;
        assert_eq!(resumed, Some(PubSubEvent::Resumed { gap: None }));
        pubsub
    });
    drop(first);
    assert!(client.available().is_none());
    let second = runtime();
    second.block_on(async {
        until("it is available", || client.available().is_some()).await;
        // A subscriber tells the loss, and goes on as well.
        let lost = pubsub.next().await;
        let is_lost = matches!(lost, Some(PubSubEvent::Lost { .. }));
        assert!(is_lost, "{lost:?}");
        let resumed = pubsub.next().await;
        let is_resumed = matches!(resumed, Some(PubSubEvent::Resumed { gap: Some(_) }));
        assert!(is_resumed, "{resumed:?}");
        client.send(&cmd("PUBLISH news x")).await.unwrap();
        let heard = pubsub.next().await;
        let is_message = matches!(heard, Some(PubSubEvent::Message { .. }));
        assert!(is_message, "{heard:?}");
    });
    // One that waits in a runtime as another ends.
    let third = runtime();
    third.block_on(async {
        let control = pubsub.control();
        std::thread::scope(|threads| threads.spawn(move || drop(second)).join()).unwrap();
        control.subscribe("more").await.unwrap();
        let lost = pubsub.next().await;
        let is_lost = matches!(lost, Some(PubSubEvent::Lost { .. }));
        assert!(is_lost, "{lost:?}");
        drop(pubsub);
        let error = control.subscribe("late").await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Closed), "{error}");
    });
}

#[test]
fn c19_t15_a_subscriber_whose_runtime_nobody_drives_is_told_so_and_when_it_is_driven_again() {
    let (alive, redis) = server();
    let is_lost = |heard: Option<PubSubEvent>| match heard {
        Some(PubSubEvent::Lost { cause }) => assert!(cause.contains("tokio runtime"), "{cause}"),
        other => panic!("{other:?}"),
    };
    for of_tokio in [true, false] {
        let first = runtime();
        let client = first.block_on(connect(&redis));
        let mut news = first.block_on(async {
            let mut news = client.pubsub();
            news.subscribe("news").await.unwrap();
            let resumed = news.next().await;
            assert_eq!(resumed, Some(PubSubEvent::Resumed { gap: None }));
            news
        });
        let begun = now();
        let waits = async {
            is_lost(news.next().await);
            assert!(now() - begun < ms(20_000), "it takes long");
            // That is told once: nothing more is known until somebody drives it.
            assert!(futures_util::poll!(pin!(news.next())).is_pending());
        };
        match of_tokio {
            true => alive.block_on(waits),
            false => block_on(waits),
        }
        let publish = ["PUBLISH", "news", "late"];
        redis.command_blocking(&publish).unwrap();
        first.block_on(async {
            let late = news.next().await;
            let is_late =
                matches!(&late, Some(PubSubEvent::Message { payload, .. }) if payload == b"late");
            assert!(is_late, "{late:?}");
            let resumed = news.next().await;
            let Some(PubSubEvent::Resumed { gap: Some(gap) }) = resumed else {
                panic!("{resumed:?}");
            };
            assert!(gap >= ms(1_000), "{gap:?}");
        });
        // A connection that has ended meanwhile is not told of twice.
        let waits = async { is_lost(news.next().await) };
        alive.block_on(waits);
        let kill = ["CLIENT", "KILL", "TYPE", "pubsub"];
        redis.command_blocking(&kill).unwrap();
        first.block_on(async {
            let resumed = news.next().await;
            let is_resumed = matches!(resumed, Some(PubSubEvent::Resumed { gap: Some(_) }));
            assert!(is_resumed, "{resumed:?}");
        });
    }
}

#[test]
fn c19_a_call_waiting_in_another_runtime_survives_the_end_of_the_clients() {
    let (alive, redis) = server();
    let first = runtime();
    let client = first.block_on(connect(&redis));
    redis.command_blocking(&["SET", "k", "v"]).unwrap();
    redis.freeze().unwrap();
    let reading = alive.spawn({
        let client = client.clone();
        let patient = client.with(CallOptions::new().deadline(ms(10_000)));
        async move { patient.send(&cmd("GET k")).await }
    });
    // It is written.
    first.block_on(async {
        until("the call is under way", || client.status().in_flight > 0).await;
        tokio::time::sleep(ms(20)).await;
    });
    drop(first);
    redis.resume().unwrap();
    let value = alive.block_on(reading).unwrap().unwrap();
    assert_eq!(value, Value::BulkString(b"v".to_vec()));
}

#[test]
fn c19_a_call_whose_runtime_nobody_drives_ends_in_time_and_says_so() {
    let (_alive, redis) = server();
    let first = runtime();
    let client = first.block_on(connect(&redis));
    let second = runtime();
    let hasty = client.with(CallOptions::new().deadline(ms(300)));
    let begun = now();
    let error = second
        .block_on(hasty.send(&cmd("INCR n")))
        .expect_err("nobody sends it");
    assert!(now() - begun < ms(3_000));
    assert!(matches!(error.kind(), ErrorKind::Runtime { .. }), "{error}");
    assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
    let session = first.block_on(client.session()).unwrap();
    let hasty = session.with(CallOptions::new().deadline(ms(300)));
    let error = second
        .block_on(hasty.send(&cmd("INCR n")))
        .expect_err("nobody sends it");
    assert!(matches!(error.kind(), ErrorKind::Runtime { .. }), "{error}");
    // Nor does anybody dial for another, subscribe, or go through the keys.
    let brisk = first.block_on(async {
        let builder = Client::builder(&redis.url()).unwrap();
        let brisk = builder.deadline(ms(300)).connect().await.unwrap();
        brisk.send(&cmd("SET k v")).await.unwrap();
        brisk
    });
    let says_so = |error: Error| {
        assert!(matches!(error.kind(), ErrorKind::Runtime { .. }), "{error}");
    };
    let begun = now();
    let blocking = second.block_on(brisk.send(&cmd("BLPOP nothing 0.05")));
    says_so(blocking.expect_err("nobody dials"));
    says_so(second.block_on(brisk.session()).expect_err("nobody dials"));
    let pubsub = brisk.pubsub();
    let subscribed = second.block_on(pubsub.subscribe("channel"));
    says_so(subscribed.expect_err("nobody subscribes"));
    let mut scan = brisk.scan_keys(ScanQuery::default()).patience(ms(500));
    let key = second.block_on(scan.next()).expect("not the end");
    says_so(key.expect_err("nobody asks"));
    assert!(now() - begun < ms(10_000), "each in its time");
    drop(pubsub);
    // It is of use again where it is driven.
    let n = first.block_on(client.send(&cmd("GET n"))).unwrap();
    assert_eq!(n, Value::Nil);
    // Outside of any runtime, once its own has ended.
    drop((session, hasty));
    drop(first);
    let error = block_on(client.send(&cmd("GET n"))).expect_err("nobody serves it");
    assert!(matches!(error.kind(), ErrorKind::Runtime { .. }), "{error}");
}

/// An executor that is not tokio.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut work = pin!(work);
    loop {
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn c19_a_client_serves_callers_on_an_executor_that_is_not_tokio() {
    let (alive, redis) = server();
    let (client, hasty) = alive.block_on(async {
        let hasty = Client::builder(&redis.url()).unwrap().deadline(ms(1_000));
        (connect(&redis).await, hasty.connect().await.unwrap())
    });
    block_on(async {
        client.send(&cmd("SET k v")).await.unwrap();
        client.send(&cmd("BLPOP nothing 0.05")).await.unwrap();
        let session = client.session().await.unwrap();
        session.send(&cmd("GET k")).await.unwrap();
        // Repeats, and pauses between them.
        for _ in 0..3 {
            redis
                .command_blocking(&["CLIENT", "KILL", "TYPE", "normal"])
                .unwrap();
            client.send(&cmd("GET k")).await.unwrap();
        }
        let patience = Retry::new(Backoff::fixed(ms(1)), Stop::after_attempts(2));
        patience.run(async || Err::<(), _>("no")).await.unwrap_err();
        let replica = ["REPLICAOF", "127.0.0.1", "1"];
        redis.command_blocking(&replica).unwrap();
        let client = hasty;
        client.send(&cmd("SET k v")).await.unwrap_err();
        assert!(client.health(ms(300)).await.latency_ms.is_none());
        let mut pubsub = client.pubsub();
        pubsub.subscribe("channel").await.unwrap_err();
        assert!(client.close(ms(300)).await.unfinished < 9);
        assert!(pubsub.next().await.is_none());
    });
}

#[tokio::test]
async fn c19_answers_that_came_while_the_runtime_stood_still_are_handed_out_and_judge_nobody() {
    let (redis, client) = pair().await;
    for _ in 0..50 {
        client.send(&cmd("SET k v")).await.unwrap();
    }
    let mut pubsub = client.pubsub();
    pubsub.subscribe("channel").await.unwrap();
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(&cmd("INCR n")).await })
        })
        .collect();
    while client.status().in_flight == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    // Longer than they are given, and until all that was sent has been answered.
    let n = || redis.command_blocking(&["GET", "n"]).unwrap();
    let (begun, mut before) = (now(), Value::Nil);
    while now() - begun < ms(1_500) || n() != before {
        before = n();
        stand_still(ms(300));
    }
    // Some have come to the driver only after that; they are not sent, and say so.
    let (mut done, mut unknown) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => done += 1,
            Err(error) => unknown += usize::from(error.certainty() != Certainty::NotSent),
        }
    }
    assert_eq!((unknown, done > 0), (0, true));
    let n = client.send(&cmd("GET n")).await.unwrap();
    assert_eq!(n, Value::BulkString(done.to_string().into_bytes()));
    assert_eq!(client.status().breaker, "closed");
    // What the process lost is no latency.
    let hasty = client.with(CallOptions::new().deadline(ms(400)));
    for _ in 0..20 {
        hasty.send(&cmd("GET k")).await.unwrap();
    }
    assert_eq!(client.history().len(), 1, "{:?}", client.history());
    assert_eq!(seen(&client, "unresponsive"), 0);
    // The subscriber's connection lives, too.
    client.send(&cmd("PUBLISH channel x")).await.unwrap();
    let first = pubsub.next().await;
    let second = pubsub.next().await;
    let lost = [&first, &second]
        .iter()
        .any(|event| matches!(event, Some(steadfast::PubSubEvent::Lost { .. })));
    assert!(!lost, "{first:?} {second:?}");
}

#[tokio::test]
async fn c19_calls_that_waited_to_be_taken_while_the_runtime_stood_still_judge_nobody() {
    let (redis, client) = pair().await;
    for _ in 0..50 {
        client.send(&cmd("SET k v")).await.unwrap();
    }
    // However late the server answers after that.
    redis.freeze().unwrap();
    let get = cmd("GET k");
    let mut calls: Vec<_> = (0..32).map(|_| Box::pin(client.send(&get))).collect();
    for call in &mut calls {
        assert!(futures_util::poll!(call).is_pending());
    }
    stand_still(ms(2_500));
    for result in futures_util::future::join_all(calls).await {
        let error = result.expect_err("it is out of time");
        assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "{error}");
    }
    assert_eq!(client.status().breaker, "closed", "{:?}", client.history());
    redis.resume().unwrap();
}

/// In a process of its own, which is stopped: reads of many callers, one after the other, and a
/// subscriber. Its answers are in Redis.
async fn to_be_stopped(url: &str) {
    let client = Client::builder(url).unwrap().connect().await.unwrap();
    let mut pubsub = client.pubsub();
    pubsub.subscribe("channel").await.unwrap();
    pubsub.next().await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..32 {
        let (client, ended) = (client.clone(), Arc::clone(&ended));
        readers.spawn(async move {
            let mut refused = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                // One that has waited for its turn while the process stood still is out of time,
                // and was not sent.
                match client.send(&cmd("GET k")).await {
                    Err(error) if !matches!(error.kind(), ErrorKind::Timeout { .. }) => {
                        refused.push(error.to_string());
                    }
                    _ => {}
                }
                tokio::time::sleep(ms(1)).await;
            }
            refused
        });
    }
    client.send(&cmd("SET ready 1")).await.unwrap();
    while !matches!(
        client.send(&cmd("GET over")).await,
        Ok(Value::BulkString(_))
    ) {
        tokio::time::sleep(ms(5)).await;
    }
    ended.store(true, Ordering::Relaxed);
    let mut told = readers.join_all().await.concat();
    client.send(&cmd("PUBLISH channel x")).await.unwrap();
    let event = pubsub.next().await;
    if !matches!(event, Some(PubSubEvent::Message { .. })) {
        told.push(format!("{event:?}"));
    }
    if client.status().reconnects > 0 {
        told.push(format!("{:?}", client.history()));
    }
    let report = redis::cmd("SET")
        .arg("report")
        .arg(told.join("; "))
        .to_owned();
    client.send(&report).await.unwrap();
}

const STOPPED: &str = "STEADFAST_TEST_STOPPED";

#[tokio::test]
async fn c19_a_process_that_was_stopped_refuses_nothing_and_keeps_its_connections() {
    if let Ok(url) = std::env::var(STOPPED) {
        return to_be_stopped(&url).await;
    }
    let redis = Redis::start().await.unwrap();
    let name = "liveness::c19_a_process_that_was_stopped_refuses_nothing_and_keeps_its_connections";
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(STOPPED, redis.url())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let id = process.id().unwrap().to_string();
    let signal = async |signal: &str| {
        let kill = Command::new("kill")
            .args([signal, id.as_str()])
            .status()
            .await;
        assert!(kill.unwrap().success());
    };
    let has = |key: &'static str| {
        let redis = &redis;
        move || redis.command_blocking(&["EXISTS", key]).unwrap() == Value::Int(1)
    };
    until("it reads", has("ready")).await;
    for _ in 0..2 {
        tokio::time::sleep(ms(200)).await;
        signal("-STOP").await;
        tokio::time::sleep(ms(2_500)).await;
        signal("-CONT").await;
    }
    tokio::time::sleep(ms(200)).await;
    redis.command(&["SET", "over", "1"]).await.unwrap();
    until("it tells", has("report")).await;
    let report = redis.command(&["GET", "report"]).await.unwrap();
    assert_eq!(report, Value::BulkString(Vec::new()));
    assert!(process.wait().await.unwrap().success());
}

#[test]
fn c19_a_client_of_a_cluster_goes_on_in_another_runtime_and_asks_for_newer_views_there() {
    let alive = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let builder = Cluster::builder().primaries(2).replicas(0);
    let cluster = alive.block_on(builder.start()).unwrap();
    let first = runtime();
    let client = first.block_on(async {
        let builder = Client::builder(&cluster.url()).unwrap();
        let client = builder.deadline(ms(8_000)).connect().await.unwrap();
        client.send(&cmd("SET {k}a 1")).await.unwrap();
        client
    });
    drop(first);
    let second = runtime();
    let slot = steadfast_core::slot::Slot::of_key(b"k").number();
    second.block_on(async {
        assert_eq!(
            client.send(&cmd("GET {k}a")).await.unwrap(),
            Value::BulkString(b"1".to_vec())
        );
        let known = || client.status().cluster.unwrap();
        let before = known().discoveries;
        let from = cluster.owner(slot).await.unwrap();
        cluster.migrate(slot, from, 1 - from).await.unwrap();
        assert_eq!(client.send(&cmd("INCR {k}a")).await.unwrap(), Value::Int(2));
        until("nodes are asked again", || known().discoveries > before).await;
        let to = cluster.node(1 - from).addr().to_string();
        until("they have told who owns the slot", || {
            let owns = |node: &&steadfast::NodeStatus| node.owns(slot);
            known()
                .nodes
                .iter()
                .find(owns)
                .and_then(|node| node.address.clone())
                == Some(to.clone())
        })
        .await;
        let pubsub = client.pubsub();
        pubsub.subscribe("news").await.unwrap();
    });
}

#[test]
fn c19_a_client_of_sentinels_goes_on_in_another_runtime_and_asks_them_there() {
    let (alive, redis) = server();
    let sentinel = alive.block_on(Sentinel::start(&redis, &[])).unwrap();
    let first = runtime();
    let url = format!("redis-sentinel://{}/main", sentinel.addr());
    let client = first.block_on(async {
        let builder = Client::builder(&url).unwrap().heartbeat(ms(100));
        // They are asked every second.
        let builder = builder.primary_proof(ms(1_500)).deadline(ms(8_000));
        let client = builder.connect().await.unwrap();
        client.send(&cmd("GET k")).await.unwrap();
        client
    });
    drop(first);
    let replica = alive
        .block_on(Redis::builder().replica_of(&redis).start())
        .unwrap();
    let second = runtime();
    second.block_on(async {
        client.send(&cmd("GET k")).await.unwrap();
        let begun = now();
        let known = || client.status().sentinel.unwrap();
        until("the sentinel is asked again", || {
            let since = (now() - begun).as_secs_f64() * 1e3;
            let answered = known()
                .sentinels
                .first()
                .and_then(|one| one.answered_ms_ago);
            answered.is_some_and(|ago| ago < since)
        })
        .await;
        until("the primary tells of its replica", || {
            let of = |one: &steadfast::ReplicaStatus| {
                one.address == replica.addr().to_string() && one.lag_bytes.is_some()
            };
            known().replicas.iter().any(of)
        })
        .await;
        client.send(&cmd("SET k v")).await.unwrap();
    });
}
