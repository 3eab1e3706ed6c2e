//! C8, C14, C15: whatever ends an attempt to connect, another follows; what others wrote cannot
//! hold it up; closing ends it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::Value;
use steadfast::credentials::{Credentials, CredentialsError, CredentialsProvider};
use steadfast::{Client, ConnectionState, ErrorKind, EventItem, Resolve};
use steadfast_drill::process::Redis;
use steadfast_drill::scripted::{Script, Server};

use crate::support::{
    Name, Then, cmd, misbehave, ms, now, pair, pair_with, seen, until, until_down_for, until_seen,
    until_state,
};

#[tokio::test]
async fn c8_a_full_server_is_named_and_served_from_as_soon_as_there_is_a_place() {
    let redis = Redis::builder()
        .config("maxclients", "5")
        .start()
        .await
        .unwrap();
    let mut taken = Vec::new();
    while let Ok(client) = Client::builder(&redis.url())
        .unwrap()
        .deadline(ms(300))
        .connect()
        .await
    {
        taken.push(client);
    }
    let client = Client::builder(&redis.url()).unwrap().build().unwrap();
    until_down_for(&client, "maxclients").await;
    taken.clear();
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("PING")).await.unwrap();
}

#[tokio::test]
async fn c8_a_server_that_loads_its_data_is_not_put_into_service() {
    let redis = Redis::builder()
        .config("enable-debug-command", "yes")
        .config("key-load-delay", "2000")
        .config("loading-process-events-interval-bytes", "1024")
        .start()
        .await
        .unwrap();
    redis
        .command(&["DEBUG", "POPULATE", "600", "key", "200"])
        .await
        .unwrap();
    let client = Client::builder(&redis.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    redis.save_snapshot().await.unwrap();
    redis.restart_from_snapshot().await.unwrap();
    until("it was found loading", || {
        let history = serde_json::to_string(&client.history()).unwrap();
        history.contains("loading its data")
    })
    .await;
    until_state(&client, ConnectionState::Ready).await;
    let size = client.send(&cmd("DBSIZE")).await.unwrap();
    assert_eq!(
        size,
        Value::Int(600),
        "it was served from before it was whole"
    );
}

#[tokio::test]
async fn c8_a_name_that_changes_its_address_is_followed() {
    let (first, second) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let name = Name::at(first.addr());
    let client = Client::builder("redis://the-name:6379")
        .unwrap()
        .resolver(name.clone())
        .connect()
        .await
        .unwrap();
    client.send(&cmd("SET where first")).await.unwrap();
    name.moves_to(second.addr());
    first.kill().await;
    until("it is at its new address", || {
        client.status().reconnects == 1
    })
    .await;
    client.send(&cmd("SET where second")).await.unwrap();
    let there = second.command(&["GET", "where"]).await.unwrap();
    assert_eq!(there, Value::BulkString(b"second".to_vec()));
}

/// How long a thread is kept.
const BLOCKED: Duration = Duration::from_secs(4);

/// Answers once; then it hangs, fails, panics, or keeps its thread.
#[derive(Debug)]
struct Once {
    addr: SocketAddr,
    asked: Arc<AtomicU32>,
    then: Then,
}

impl Resolve for Once {
    fn resolve(&self, _: &str, _: u16) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
        if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
            return Box::pin(std::future::ready(Ok(vec![self.addr])));
        }
        let then = self.then;
        Box::pin(async move { Err(misbehave(then, BLOCKED).await) })
    }
}

#[tokio::test]
async fn c8_a_resolver_that_hangs_or_fails_is_helped_out_by_the_last_good_addresses() {
    for then in [Then::Hang, Then::Fail] {
        let redis = Redis::start().await.unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let client = Client::builder("redis://the-name:6379")
            .unwrap()
            .resolver(Once {
                addr: redis.addr(),
                asked: Arc::clone(&asked),
                then,
            })
            .connect_timeout(ms(100))
            .connect()
            .await
            .unwrap();
        client.reconnect();
        until("it has reconnected", || client.status().reconnects == 1).await;
        assert!(asked.load(Ordering::Relaxed) >= 2, "it was asked anew");
        client.send(&cmd("PING")).await.unwrap();
    }
}

#[derive(Debug)]
struct Provider {
    asked: AtomicU32,
    bad: u32,
    then: Then,
}

impl CredentialsProvider for Provider {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        if self.asked.fetch_add(1, Ordering::Relaxed) >= self.bad {
            return Box::pin(std::future::ready(Ok(Credentials::new("", "secret"))));
        }
        let then = self.then;
        Box::pin(async move {
            let error = misbehave(then, BLOCKED).await.to_string();
            Err(CredentialsError::new(error))
        })
    }

    fn renew_in(&self) -> Option<Duration> {
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn c8_a_provider_that_hangs_panics_or_blocks_its_thread_cannot_wedge_the_client() {
    for then in [Then::Hang, Then::Fail, Then::Panic, Then::Block] {
        let redis = Redis::builder().password("secret").start().await.unwrap();
        let client = Client::builder(&format!("redis://{}", redis.addr()))
            .unwrap()
            .credentials(Provider {
                asked: AtomicU32::new(0),
                bad: 2,
                then,
            })
            .connect_timeout(ms(50))
            .watchdog_timeout(ms(1500))
            .reconnect_grace(ms(60_000))
            .build()
            .unwrap();
        // Whatever is done to the supervisor, a call that waits for it has its deadline.
        let begun = now();
        let hasty = client.with(steadfast::CallOptions::new().deadline(ms(40)));
        let _ = hasty.send(&cmd("PING")).await;
        assert!(now().duration_since(begun) < ms(1400), "{then:?}");
        until_state(&client, ConnectionState::Ready).await;
        client.send(&cmd("PING")).await.unwrap();
        let stuck = client.status().stuck_resets;
        match then {
            Then::Panic => assert_eq!(stuck, 2, "each panic is counted"),
            Then::Block => assert!(stuck >= 1 && seen(&client, "stuck_reset") >= 1),
            Then::Hang | Then::Fail => assert_eq!(stuck, 0, "{then:?}"),
        }
    }
}

#[tokio::test]
async fn c8_a_connection_at_its_maximum_age_is_replaced_without_anyone_noticing() {
    let (_redis, client) = pair_with(|b| b.max_age(ms(250))).await;
    let begun = now();
    let mut n = 0i64;
    while now().duration_since(begun) < ms(1500) {
        let calls = (0..20).map(|_| client.send_owned(cmd("INCR n")));
        for result in futures_util::future::join_all(calls).await {
            result.unwrap();
            n += 1;
        }
    }
    assert_eq!(
        client.send(&cmd("GET n")).await.unwrap(),
        Value::BulkString(n.to_string().into_bytes())
    );
    assert!(client.status().reconnects >= 3, "{:?}", client.status());
    assert_eq!(seen(&client, "lost") + seen(&client, "down"), 0);
}

/// An increment is not repeated: so it shows every loss.
trait SendOwned {
    fn send_owned(&self, cmd: redis::Cmd) -> impl Future<Output = Result<Value, steadfast::Error>>;
}

impl SendOwned for Client {
    async fn send_owned(&self, cmd: redis::Cmd) -> Result<Value, steadfast::Error> {
        self.send(&cmd).await
    }
}

#[tokio::test]
async fn c8_a_reset_by_hand_connects_anew_once() {
    let (_redis, client) = pair().await;
    let before = client.send(&cmd("CLIENT ID")).await.unwrap();
    client.reconnect();
    client.reconnect();
    until("it has reconnected", || client.status().reconnects == 1).await;
    let after = client.send(&cmd("CLIENT ID")).await.unwrap();
    assert_ne!(before, after);
    tokio::time::sleep(ms(100)).await;
    assert_eq!(client.status().reconnects, 1, "{:?}", client.history());
}

#[tokio::test]
async fn c8_a_primary_that_becomes_a_replica_is_left_and_taken_again_when_it_is_one_once_more() {
    let (redis, client) = pair().await;
    redis
        .command(&["REPLICAOF", "127.0.0.1", "1"])
        .await
        .unwrap();
    let error = client.send(&cmd("SET k v")).await.unwrap_err();
    assert_ne!(error.certainty(), steadfast::Certainty::Unknown, "{error}");
    until_state(&client, ConnectionState::Down).await;
    redis.command(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("SET k v")).await.unwrap();
    assert_eq!(client.status().reconnects, 1, "{:?}", client.history());
}

#[tokio::test]
async fn c8_where_any_role_will_do_a_refused_write_costs_no_connection() {
    let primary = Redis::start().await.unwrap();
    let replica = Redis::builder().replica_of(&primary).start().await.unwrap();
    let client = Client::builder(&replica.url())
        .unwrap()
        .role(steadfast::Role::Any)
        .connect()
        .await
        .unwrap();
    for _ in 0..10 {
        let error = client.send(&cmd("SET k v")).await.unwrap_err();
        assert_eq!(error.certainty(), steadfast::Certainty::Rejected, "{error}");
        client.send(&cmd("GET k")).await.unwrap();
    }
    assert_eq!(client.status().reconnects, 0);
    assert_eq!(client.status().breaker, "closed");
}

#[tokio::test]
async fn c8_debug_sleep_is_survived_without_a_reconnection_that_is_not_needed() {
    let redis = Redis::builder()
        .config("enable-debug-command", "yes")
        .start()
        .await
        .unwrap();
    let client = Client::builder(&redis.url())
        .unwrap()
        .deadline(ms(5000))
        .connect()
        .await
        .unwrap();
    let sleeping = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("DEBUG SLEEP 1.2")).await }
    });
    until_seen(&client, "unresponsive").await;
    assert_eq!(sleeping.await.unwrap().unwrap(), Value::Okay);
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("INCR n")).await.unwrap();
}

#[tokio::test]
async fn c3_a_transaction_that_was_refused_while_loading_is_made_again() {
    // The commands are refused one by one, and EXEC with them: nothing has run.
    let refused = "+OK\r\n-LOADING it does\r\n-LOADING it does\r\n-EXECABORT for that\r\n";
    let done = "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n:2\r\n";
    let script = Script::new()
        .handshake()
        .read(4)
        .send(refused)
        .read(4)
        .send(done);
    let server = Server::start(script).await.unwrap();
    let client = Client::builder(&server.url())
        .unwrap()
        .heartbeat(ms(60_000))
        .connect()
        .await
        .unwrap();
    let mut transaction = redis::pipe();
    transaction.atomic().incr("n", 1).incr("n", 1);
    let replies = client.send_pipeline(&transaction).await.unwrap();
    assert_eq!(replies[3], Value::Array(vec![Value::Int(1), Value::Int(2)]));
    let sent = server.commands();
    let execs = sent.iter().filter(|command| command[0] == b"EXEC").count();
    assert_eq!(execs, 2);
}

#[tokio::test]
async fn c14_a_listener_that_is_too_slow_is_told_how_much_it_missed() {
    let (_redis, client) = pair().await;
    let mut events = client.events();
    for _ in 0..300 {
        client.set_breaker_mode(steadfast::BreakerMode::ForcedOpen);
        client.set_breaker_mode(steadfast::BreakerMode::Automatic);
    }
    let Some(EventItem::Gap(missed)) = events.next().await else {
        panic!("it missed some");
    };
    assert!(missed > 0);
    let Some(EventItem::Event(first)) = events.next().await else {
        panic!("then it goes on");
    };
    let last = client.history().last().unwrap().seq;
    assert!(first.seq > missed && first.seq <= last);
}

#[tokio::test]
async fn c15_closing_while_it_dials_ends_at_once_and_dials_no_more() {
    let (redis, client) = pair().await;
    redis.kill().await;
    until_state(&client, ConnectionState::Down).await;
    let begun = now();
    assert_eq!(client.close(ms(5000)).await.unfinished, 0);
    assert!(now().duration_since(begun) < ms(2000));
    let attempts = client.status().attempts;
    redis.restart().await.unwrap();
    tokio::time::sleep(ms(400)).await;
    assert_eq!(client.status().attempts, attempts);
    assert_eq!(client.state(), ConnectionState::Closed);
    let error = client.send(&cmd("PING")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed), "{error}");
    assert_eq!(seen(&client, "closed"), 1);
    assert_eq!(client.close(ms(10)).await.unfinished, 0, "closing twice");
}

#[tokio::test]
async fn c15_closing_tells_calls_that_wait_for_a_connection_and_blocking_ones() {
    let (redis, client) = pair_with(|b| b.reconnect_grace(ms(60_000)).deadline(ms(60_000))).await;
    let popping = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("BLPOP queue 30")).await }
    });
    until("it blocks", || {
        let list = redis.command_blocking(&["CLIENT", "LIST"]).unwrap();
        matches!(list, Value::BulkString(text) if String::from_utf8_lossy(&text).contains("cmd=blpop"))
    })
    .await;
    let closed = client.close(ms(100)).await;
    assert_eq!(closed.unfinished, 1);
    let error = popping.await.unwrap().unwrap_err();
    assert_eq!(error.certainty(), steadfast::Certainty::Unknown, "{error}");
    let error = client.send(&cmd("BLPOP queue 1")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed), "{error}");

    let client = Client::builder(&redis.url())
        .unwrap()
        .reconnect_grace(ms(60_000))
        .deadline(ms(60_000))
        .connect()
        .await
        .unwrap();
    redis.kill().await;
    until_state(&client, ConnectionState::Connecting).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.send(&cmd("INCR n")).await }
    });
    until("it waits", || client.status().in_flight > 0).await;
    assert_eq!(client.close(ms(50)).await.unfinished, 1);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.certainty(), steadfast::Certainty::NotSent, "{error}");
}

#[tokio::test]
async fn c8_a_replica_is_known_without_hello_by_whatever_the_acl_allows() {
    let primary = Redis::start().await.unwrap();
    for (forbidden, known) in [
        ("+role", true),
        ("-role", true),
        ("-info", true),
        ("-role -info", false),
    ] {
        let replica = Redis::builder()
            .config("rename-command", "HELLO \"\"")
            .acl(format!("app on >secret ~* +@all {forbidden}"))
            .replica_of(&primary)
            .start()
            .await
            .unwrap();
        let client = Client::builder(&format!("redis://app:secret@{}", replica.addr()))
            .unwrap()
            .build()
            .unwrap();
        if known {
            until_down_for(&client, "replica").await;
            replica.promote().await.unwrap();
        }
        until_state(&client, ConnectionState::Ready).await;
        client.send(&cmd("PING")).await.unwrap();
    }
}

#[tokio::test]
async fn c8_a_pipeline_of_reads_and_writes_shows_that_a_primary_became_a_replica() {
    let (redis, client) = pair().await;
    redis
        .command(&["REPLICAOF", "127.0.0.1", "1"])
        .await
        .unwrap();
    let mut pipe = redis::pipe();
    pipe.get("a").set("b", 1);
    let replies = client.send_pipeline(&pipe).await.unwrap();
    assert!(matches!(&replies[..], [Value::Nil, Value::ServerError(_)]));
    until_state(&client, ConnectionState::Down).await;
    redis.command(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    until_state(&client, ConnectionState::Ready).await;
    client.send_pipeline(&pipe).await.unwrap();
}

#[tokio::test]
async fn c2_a_call_that_meets_the_end_of_its_connection_unwritten_was_not_sent_and_is_made_again() {
    let (_redis, client) = pair().await;
    for n in 1..=20 {
        let before = client.status().reconnects;
        client.reconnect();
        // On one thread the supervisor comes next, with its order; then the driver, which finds it
        // together with this call.
        let done = client.send(&cmd("INCR n")).await.unwrap();
        assert_eq!(done, Value::Int(n));
        until("it has reconnected", || client.status().reconnects > before).await;
    }
}

/// A name that stands for several addresses.
#[derive(Debug)]
struct Several(Vec<SocketAddr>);

impl Resolve for Several {
    fn resolve(&self, _host: &str, _port: u16) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
        Box::pin(std::future::ready(Ok(self.0.clone())))
    }
}

#[tokio::test]
async fn c8_of_several_addresses_the_one_that_is_fit_for_service_wins_whatever_comes_first() {
    let primary = Redis::start().await.unwrap();
    let replica = Redis::builder().replica_of(&primary).start().await.unwrap();
    let frozen = Redis::start().await.unwrap();
    frozen.freeze().unwrap();
    let web = Script::new()
        .send("HTTP/1.1 400 Bad Request\r\n\r\n")
        .close();
    let web = Server::start(web).await.unwrap();
    let silent = Server::start(Script::new()).await.unwrap();
    let all = [frozen.addr(), replica.addr(), web.addr(), silent.addr()];
    for first in 0..all.len() {
        let mut addresses = all.to_vec();
        addresses.rotate_left(first);
        addresses.push(primary.addr());
        let client = Client::builder("redis://the-name:6379")
            .unwrap()
            .resolver(Several(addresses))
            .deadline(ms(10_000))
            .connect()
            .await
            .unwrap();
        client.send(&cmd("SET k v")).await.unwrap();
        assert_eq!(client.status().attempts, 1, "{:?}", client.history());
    }
    // If none of them serves, the one that says most is quoted.
    let client = Client::builder("redis://the-name:6379")
        .unwrap()
        .resolver(Several(all.to_vec()))
        .build()
        .unwrap();
    until_down_for(&client, "is a replica").await;
    frozen.resume().unwrap();
}
