//! C20: no request takes its neighbours down with it twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redis::Value;
use steadfast::{CallOptions, Certainty, Client, ConnectionState, ErrorKind, EventKind};
use steadfast_drill::process::Redis;
use steadfast_drill::scripted::{Script, Server};
use tokio::task::JoinSet;

use crate::support::{cmd, ms, pair_with, stand_still, until, until_state};

/// Reads that go on beside the poison and after it, of which none fails.
async fn beside<T>(client: &Client, work: impl Future<Output = T>) -> T {
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let mut readers = JoinSet::new();
    for _ in 0..8 {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        let reads: Arc<AtomicUsize> = Arc::clone(&reads);
        readers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                client.send(&cmd("GET k")).await.expect("a neighbour reads");
                reads.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(ms(1)).await;
            }
        });
    }
    let read = |more: usize| {
        let enough = reads.load(Ordering::Relaxed) + more;
        let reads = &reads;
        async move { until("it is read", || reads.load(Ordering::Relaxed) >= enough).await }
    };
    read(8).await;
    let result = work.await;
    read(16).await;
    stop.store(true, Ordering::Relaxed);
    readers.join_all().await;
    result
}

async fn client_of(redis: &Redis) -> Client {
    let builder = Client::builder(&redis.url()).unwrap();
    // An allowance for interruptions that a busy machine does not use up.
    let builder = builder.deadline(ms(20_000)).reconnect_grace(ms(20_000));
    builder.connect().await.unwrap()
}

#[tokio::test]
async fn c20_a_value_that_the_server_answers_by_hanging_up_is_not_sent_on_and_on() {
    let redis = Redis::builder()
        .config("proto-max-bulk-len", "1mb")
        .start()
        .await
        .unwrap();
    let client = client_of(&redis).await;
    let poison = redis::cmd("SET")
        .arg("k")
        .arg(vec![b'x'; 3 << 20])
        .to_owned();
    let work = async {
        let mut errors = Vec::new();
        for _ in 0..4 {
            errors.push(client.send(&poison).await.expect_err("it is refused"));
        }
        errors
    };
    let errors = beside(&client, work).await;
    for error in &errors {
        // The server's own words, however the writing ended.
        assert!(error.to_string().contains("Protocol error"), "{error}");
    }
    until("it serves", || client.status().breaker == "closed").await;
    let reconnects = client.status().reconnects;
    assert!(reconnects <= 8, "{reconnects}: {:?}", client.history());
}

#[tokio::test]
async fn c20_the_last_words_of_a_server_are_read_though_writing_fails_first() {
    let redis = Redis::builder()
        .config("proto-max-bulk-len", "1mb")
        .start()
        .await
        .unwrap();
    let client = client_of(&redis).await;
    let set = redis::cmd("SET")
        .arg("k")
        .arg(vec![b'x'; 32 << 20])
        .to_owned();
    let mut call = Box::pin(client.send(&set));
    assert!(futures_util::poll!(&mut call).is_pending());
    // It is being written; before the client's runtime goes on, the server has answered and closed.
    tokio::task::yield_now().await;
    stand_still(ms(200));
    let error = call.await.expect_err("it is refused");
    assert!(error.to_string().contains("Protocol error"), "{error}");
    assert!(matches!(error.kind(), ErrorKind::Server(_)), "{error}");
}

#[tokio::test]
async fn c20_a_read_whose_answer_ends_the_connection_is_repeated_once_and_alone() {
    let redis = Redis::builder()
        .config("client-output-buffer-limit", "normal 1mb 1mb 0")
        .start()
        .await
        .unwrap();
    let client = client_of(&redis).await;
    let large = "x".repeat(4 << 20);
    redis.command(&["SET", "large", &large]).await.unwrap();
    redis.command(&["SET", "k", "v"]).await.unwrap();
    let work = async { client.send(&cmd("LRANGE large 0 -1")).await };
    // Of another type: an answer as any other.
    work.await.unwrap_err();
    let get = cmd("GET large");
    let result = beside(&client, client.send(&get)).await;
    let error = result.expect_err("the server closes the connection");
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error}");
    let status = client.status();
    // Answers before its own may be lost with it, and then the connection seems to have ended at
    // another.
    assert!(status.reconnects <= 3, "{:?}", client.history());
    assert_eq!(status.breaker, "closed", "{:?}", client.history());
}

#[tokio::test]
async fn c20_the_neighbours_of_a_request_that_is_repeated_are_not_in_flight_with_it() {
    // Each connection ends at its first request, whatever that is.
    let deadly = || Script::new().handshake().read(2).close();
    let well = Script::new().handshake().echo(9);
    let server = Server::start_each(vec![
        deadly(),
        Script::new().handshake().read(1).close(),
        well,
    ])
    .await
    .unwrap();
    let builder = Client::builder(&server.url()).unwrap();
    let client = builder.repeat_without_fence(true).connect().await.unwrap();
    let (poison, get) = (cmd("GET poison"), cmd("GET k"));
    let (a, b) = tokio::join!(client.send(&poison), client.send(&get));
    let error = a.expect_err("two connections have ended at it");
    assert_eq!(error.certainty(), Certainty::Unknown);
    b.expect("it was not in the second");
    assert_eq!(client.status().reconnects, 2, "{:?}", client.history());
}

#[tokio::test]
async fn c20_whoever_was_under_way_as_two_connections_ended_goes_by_itself_and_ends_no_other() {
    // Each connection ends at another request; the last ends at one that was at the head of none
    // before.
    let server = Server::start_each(vec![
        Script::new().handshake().read(20).close(),
        Script::new().handshake().echo(1).read(19).close(),
        Script::new().handshake().echo(2).read(1).close(),
        Script::new().handshake().echo(99),
    ])
    .await
    .unwrap();
    let builder = Client::builder(&server.url()).unwrap();
    let client = builder
        .deadline(ms(20_000))
        .reconnect_grace(ms(20_000))
        .connect()
        .await
        .unwrap();
    let gets: Vec<_> = (0..20).map(|n| cmd(&format!("GET {n}"))).collect();
    let calls = gets.iter().map(|get| client.send(get));
    let answers = futures_util::future::join_all(calls).await;
    for (n, answer) in answers.into_iter().enumerate() {
        if n == 3 {
            let error = answer.expect_err("a third connection has ended at it");
            assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
            continue;
        }
        let own = Value::BulkString(n.to_string().into_bytes());
        assert_eq!(answer.expect("it is answered"), own);
    }
    assert_eq!(client.status().reconnects, 3, "{:?}", client.history());
    assert_eq!(client.status().breaker, "closed");
}

/// A server that hangs up on a value that is larger than what its buffers and ours take, a patient
/// client, and such a value.
async fn poison() -> (Redis, Client, redis::Cmd) {
    let redis = Redis::builder()
        .config("proto-max-bulk-len", "1mb")
        .start()
        .await
        .unwrap();
    let builder = Client::builder(&redis.url()).unwrap();
    let client = builder
        .deadline(ms(30_000))
        .reconnect_grace(ms(30_000))
        .connect()
        .await
        .unwrap();
    let poison = redis::cmd("SET")
        .arg("k")
        .arg(vec![b'x'; 12 << 20])
        .to_owned();
    (redis, client, poison)
}

#[tokio::test]
async fn c20_what_others_did_to_its_connections_is_not_held_against_a_request_that_was_not_written()
{
    let (_redis, client, poison) = poison().await;
    let incr = cmd("INCR n");
    let poisoning = futures_util::future::join_all((0..5).map(|_| client.send(&poison)));
    let (poisoned, n) = tokio::join!(poisoning, client.send(&incr));
    for error in poisoned {
        let error = error.expect_err("it is refused").to_string();
        assert!(error.contains("Protocol error"), "{error}");
    }
    assert_eq!(n.expect("it had no attempt but the last"), Value::Int(1));
    let reconnects = client.status().reconnects;
    assert!(reconnects >= 5, "{reconnects}: {:?}", client.history());
}

#[tokio::test]
async fn c20_whoever_asks_for_one_attempt_gets_one_though_others_ended_its_connection() {
    let (_redis, client, poison) = poison().await;
    let incr = cmd("INCR n");
    let once = client.with(CallOptions::new().attempts(1));
    let (poisoned, answer) = tokio::join!(client.send(&poison), once.send(&incr));
    poisoned.expect_err("it is refused");
    let error = answer.expect_err("its attempt is over");
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error}");
    assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
}

#[tokio::test]
async fn c20_heartbeats_are_not_counted_among_unknown_outcomes() {
    let (redis, client) = pair_with(|b| b.heartbeat(ms(20))).await;
    for _ in 0..3 {
        redis.freeze().unwrap();
        // One is under way, for which nobody waits.
        until_state(&client, ConnectionState::Down).await;
        redis.kill().await;
        redis.restart().await.unwrap();
        until_state(&client, ConnectionState::Ready).await;
    }
    let history = client.history();
    let ended: Vec<_> = history
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::Lost {
                unknown, not_sent, ..
            } => Some((unknown, not_sent)),
            EventKind::Replaced { unknown, .. } => Some((unknown, 0)),
            _ => None,
        })
        .collect();
    assert_eq!(ended, [(0, 0); 3], "{history:?}");
}
