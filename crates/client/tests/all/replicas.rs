//! T24: reads from replicas, on request.

use std::time::{Duration, Instant};

use steadfast::redis::{Cmd, Value};
use steadfast::{CallOptions, Client, ClientBuilder, ErrorKind, Limits, ReadFrom};
use steadfast_core::slot::Slot;
use steadfast_drill::process::{Cluster, Redis};

use crate::support::{cmd, ms, now};

const MAX_LAG: Duration = Duration::from_millis(2_000);

fn builder(cluster: &Cluster) -> ClientBuilder {
    let builder = Client::builder(&cluster.url()).unwrap();
    builder.deadline(ms(10_000)).max_lag(MAX_LAG)
}

async fn reading(cluster: &Cluster) -> Client {
    let builder = builder(cluster).read_from(ReadFrom::Replicas);
    builder.connect().await.unwrap()
}

/// How often a server has been asked this.
async fn asked(server: &Redis, command: &str) -> String {
    let stats = server.info("commandstats").await.unwrap();
    let name = format!("cmdstat_{command}:");
    let line = stats.lines().find_map(|line| line.strip_prefix(&*name));
    let calls = line.and_then(|line| line.split(',').next());
    calls.unwrap_or("calls=0").to_owned()
}

fn served(client: &Client) -> u64 {
    client.status().cluster.unwrap().replica_reads
}

/// Reads until a replica has served it.
async fn until_served(client: &Client, key: &str) {
    until_read(client, key, CallOptions::new()).await;
}

async fn until_read(client: &Client, key: &str, options: CallOptions) {
    let before = served(client);
    let began = now();
    let get = cmd(&format!("GET {key}"));
    while served(client) == before {
        client.with(options.clone()).send(&get).await.unwrap();
        let waited = now().duration_since(began);
        assert!(
            waited < Duration::from_secs(60),
            "{:#?}",
            client.status().cluster
        );
        tokio::time::sleep(ms(5)).await;
    }
}

fn text(value: &str) -> Value {
    Value::BulkString(value.into())
}

#[tokio::test]
async fn t24_replicas_are_read_from_on_request_while_they_are_young_enough_and_cost_no_read() {
    // Nobody is to be held for failed.
    let unhurried = Cluster::builder().primaries(2);
    let unhurried = unhurried.node_timeout(Duration::from_secs(15));
    let cluster = unhurried.start().await.unwrap();
    let slot = |key: &str| Slot::of_key(key.as_bytes()).number();
    let keys = (0..).map(|n| format!("key:{n}"));
    let layout = cluster.layout().await.unwrap();
    let first = cluster.node(0).id().to_owned();
    let of_first = |key: &String| layout.owner(slot(key)) == Some(&*first);
    let mut keys = keys.filter(of_first);
    let (key, moving) = (keys.next().unwrap(), keys.next().unwrap());
    let (primary, replica) = (cluster.node(0), cluster.node(2));
    let set = |value: &str| cmd(&format!("SET {key} {value}"));
    let get = cmd(&format!("GET {key}"));

    // Not without being asked to.
    let plain = builder(&cluster).connect().await.unwrap();
    plain.send(&set("first")).await.unwrap();
    for _ in 0..50 {
        assert_eq!(plain.send(&get).await.unwrap(), text("first"));
    }
    assert_eq!(asked(&replica, "get").await, "calls=0");

    // Per call, and per client.
    let options = CallOptions::new().read_from(ReadFrom::Replicas);
    until_read(&plain, &key, options).await;
    let client = reading(&cluster).await;
    until_served(&client, &key).await;
    replica.save_snapshot().await.unwrap();
    plain.send(&set("second")).await.unwrap();
    let overwritten = now();
    let status = client.status().cluster.unwrap();
    let at = replica.addr().to_string();
    let of_replica = status
        .nodes
        .iter()
        .find(|node| node.address.as_deref() == Some(&*at));
    let of_replica = of_replica.unwrap();
    assert!(of_replica.lag_ms.is_some(), "{of_replica:?}");
    assert_eq!(of_replica.follows, Some(primary.addr().to_string()));

    // What it has written itself it reads again.
    for n in 0..200 {
        client.send(&set(&n.to_string())).await.unwrap();
        assert_eq!(client.send(&get).await.unwrap(), text(&n.to_string()));
    }

    // What is not there by the word of a replica may have gone ahead of its slot.
    plain.send(&cmd(&format!("SET {moving} v"))).await.unwrap();
    until_served(&client, &moving).await;
    let slots = [slot(&moving)];
    cluster.begin_migration(&slots, 0, 1).await.unwrap();
    cluster.move_keys(&slots, 0, 1, 100).await.unwrap();
    let read = cmd(&format!("GET {moving}"));
    for _ in 0..50 {
        assert_eq!(client.send(&read).await.unwrap(), text("v"));
        tokio::time::sleep(ms(5)).await;
    }
    cluster.end_migration(&slots, 0, 1).await.unwrap();

    too_large_to_be_asked_for_everywhere(&cluster, &key).await;

    // One that does not get what is written any more is not read from when it is too old.
    until_served(&client, &key).await;
    let other = reading(&cluster).await;
    let session = other.session_for(&key).await.unwrap();
    let third = reading(&cluster).await;
    let node = third.node(&primary.addr().to_string());
    until_served(&third, &key).await;
    until_served(&other, &key).await;
    replica
        .command(&["CONFIG", "SET", "masterauth", "wrong"])
        .await
        .unwrap();
    replica
        .command(&["CLIENT", "KILL", "TYPE", "master"])
        .await
        .unwrap();
    // By whichever way it has written.
    session.send(&set("session")).await.unwrap();
    assert_eq!(other.send(&get).await.unwrap(), text("session"));
    node.send(&set("node")).await.unwrap();
    assert_eq!(third.send(&get).await.unwrap(), text("node"));
    plain.send(&set("later")).await.unwrap();
    let written = now();
    loop {
        let old = now().duration_since(written) > MAX_LAG;
        let read = client.send(&get).await.unwrap();
        assert!(!old || read == text("later"), "{read:?}");
        if old {
            break;
        }
        tokio::time::sleep(ms(10)).await;
    }

    // Nor is one that is silent, and no read waits for it.
    let secret = primary
        .command(&["CONFIG", "GET", "masterauth"])
        .await
        .unwrap();
    let Value::Array(pair) = secret else {
        panic!("{secret:?}")
    };
    let [_, Value::BulkString(secret)] = &pair[..] else {
        panic!("{pair:?}")
    };
    let secret = str::from_utf8(secret).unwrap();
    replica
        .command(&["CONFIG", "SET", "masterauth", secret])
        .await
        .unwrap();
    not_from_a_snapshot(&cluster, &get, overwritten, secret).await;
    until_served(&client, &key).await;
    replica.freeze().unwrap();
    for _ in 0..200 {
        assert_eq!(client.send(&get).await.unwrap(), text("later"));
        tokio::time::sleep(ms(2)).await;
    }
    replica.resume().unwrap();
    until_served(&client, &key).await;
    replica.kill().await;
    for _ in 0..50 {
        assert_eq!(client.send(&get).await.unwrap(), text("later"));
    }
}

/// What ended the connection to a replica is asked of the primary once more at most, and what was
/// too large to be taken from a replica is not asked of the primary.
async fn too_large_to_be_asked_for_everywhere(cluster: &Cluster, key: &str) {
    let (primary, replica) = (cluster.node(0), cluster.node(2));
    let large = format!("{{{key}}}large");
    let value = "x".repeat(4 << 20);
    primary.command(&["SET", &large, &value]).await.unwrap();
    let client = reading(cluster).await;
    until_served(&client, &large).await;
    let gets = async || {
        let mut gets = [0_u64; 2];
        for (server, gets) in [&replica, &primary].into_iter().zip(&mut gets) {
            let calls = asked(server, "get").await;
            *gets = calls.strip_prefix("calls=").unwrap().parse().unwrap();
        }
        gets
    };
    let get = cmd(&format!("GET {large}"));

    let limits = Limits {
        bulk_bytes: 1 << 20,
        ..Limits::default()
    };
    let small = builder(cluster).read_from(ReadFrom::Replicas);
    let small = small.reply_limits(limits).connect().await.unwrap();
    until_served(&small, key).await;
    let before = gets().await;
    let error = small.send(&get).await.unwrap_err();
    let too_large = matches!(error.kind(), ErrorKind::ReplyTooLarge { .. });
    assert!(too_large, "{error}");
    let after = gets().await;
    assert_eq!(after[1], before[1], "the primary was not asked: {after:?}");

    let bound = |limit: &'static str| async move {
        for server in [cluster.node(0), cluster.node(2)] {
            let set = ["CONFIG", "SET", "client-output-buffer-limit", limit];
            server.command(&set).await.unwrap();
        }
    };
    bound("normal 1mb 1mb 0").await;
    let mut fewest = u64::MAX;
    // What else is under way as a connection ends may be taken for the cause.
    for _ in 0..5 {
        until_served(&client, key).await;
        let before = gets().await;
        client.send(&get).await.unwrap_err();
        let after = gets().await;
        let times: u64 = after.iter().sum::<u64>() - before.iter().sum::<u64>();
        if after[0] > before[0] {
            fewest = fewest.min(times);
        }
        if fewest <= 2 {
            break;
        }
    }
    assert_eq!(fewest, 2, "of the replica once, and once of the primary");
    bound("normal 0 0 0").await;
}

/// How old a replica may be that is started anew with older data.
const LONG_LAG: Duration = Duration::from_secs(8);

/// Nothing is read from a replica that was started anew with older data, from the moment when it
/// answers again.
async fn not_from_a_snapshot(cluster: &Cluster, get: &Cmd, overwritten: Instant, secret: &str) {
    let (primary, replica) = (cluster.node(0), cluster.node(2));
    let builder = builder(cluster).read_from(ReadFrom::Replicas);
    let client = builder.max_lag(LONG_LAG).connect().await.unwrap();
    let begun = now();
    let before = served(&client);
    while served(&client) == before || now().duration_since(overwritten) < LONG_LAG {
        client.send(get).await.unwrap();
        assert!(now().duration_since(begun) < Duration::from_secs(60));
        tokio::time::sleep(ms(5)).await;
    }
    // Not to be brought up to date.
    let peer = |password: &str| format!("ACL SETUSER steadfast-peer resetpass >{password}");
    for words in [&*peer("another"), "CLIENT KILL TYPE replica"] {
        let words: Vec<&str> = words.split(' ').collect();
        primary.command(&words).await.unwrap();
    }
    replica.restart_from_snapshot().await.unwrap();
    let restarted = now();
    while now().duration_since(restarted) < LONG_LAG / 4 {
        assert_eq!(client.send(get).await.unwrap(), text("later"));
        tokio::time::sleep(ms(1)).await;
    }
    let peer = peer(secret);
    let words: Vec<&str> = peer.split(' ').collect();
    primary.command(&words).await.unwrap();
}

#[test]
fn t24_replicas_of_one_server_are_not_read_from_in_silence() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let builder = Client::builder("redis://127.0.0.1:1").unwrap();
    let error = builder.read_from(ReadFrom::Replicas).build().unwrap_err();
    assert!(error.to_string().contains("redis-cluster"), "{error}");
    let builder = Client::builder("redis-cluster://127.0.0.1:1").unwrap();
    let error = builder.max_lag(ms(1)).build().unwrap_err();
    assert!(error.to_string().contains("max_lag"), "{error}");
}
