//! Commands, sessions and subscribers, each where it belongs.

use steadfast::{PubSub, PubSubEvent};

use super::*;

#[tokio::test]
async fn t12_commands_without_keys_have_their_place() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    for n in 0..100 {
        client
            .send(&cmd(&format!("SET spread:{n} {n}")))
            .await
            .unwrap();
    }
    assert_eq!(client.send(&cmd("DBSIZE")).await.unwrap(), Value::Int(100));
    let Value::Array(keys) = client.send(&cmd("KEYS spread:*")).await.unwrap() else {
        panic!("a list is asked for")
    };
    assert_eq!(keys.len(), 100);
    let script = redis::Script::new("return redis.call('GET', KEYS[1])");
    let mut connection = client.clone();
    for n in 0..100 {
        let key = format!("spread:{n}");
        let value: i64 = script.key(key).invoke_async(&mut connection).await.unwrap();
        assert_eq!(value, n, "by its hash, on whichever node");
    }
    client.send(&cmd("PING")).await.unwrap();
    for (refused, instead) in [
        ("SCAN 0", "client.scan_keys("),
        ("CONFIG GET maxmemory", "client.node("),
        ("CLIENT LIST", "client.node("),
    ] {
        let error = client.send(&cmd(refused)).await.unwrap_err();
        assert_eq!(error.certainty(), Certainty::NotSent, "{refused}: {error}");
        assert!(error.to_string().contains(instead), "{refused}: {error}");
    }
    assert!(client.health(ms(5_000)).await.healthy);
    client.send(&cmd("FLUSHALL")).await.unwrap();
    assert_eq!(client.send(&cmd("DBSIZE")).await.unwrap(), Value::Int(0));
}

/// Takes its time to find an address, once it is told to.
#[derive(Clone, Debug, Default)]
struct SlowNames(Arc<AtomicBool>);

impl Resolve for SlowNames {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
        let found = SocketAddr::new(host.parse().unwrap(), port);
        Box::pin(async move {
            if self.0.load(Ordering::Relaxed) {
                tokio::time::sleep(ms(500)).await;
            }
            Ok(vec![found])
        })
    }
}

#[tokio::test]
async fn t12_what_concerns_all_primaries_reaches_one_that_only_a_redirect_has_named() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let slow = SlowNames::default();
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.deadline(ms(20_000)).resolver(slow.clone());
    let builder = builder.reconnect_grace(ms(10_000));
    let client = builder.connect().await.unwrap();
    let key = keys_of(&cluster, 0, 1).await.remove(0);
    client.send(&cmd(&format!("SET {key} v"))).await.unwrap();
    let added = cluster.add_node().await.unwrap();
    cluster.migrate(slot(&key), 0, added).await.unwrap();
    // Nobody says who it is before it is asked for.
    slow.0.store(true, Ordering::Relaxed);
    let reads = {
        let (client, get) = (client.clone(), cmd(&format!("GET {key}")));
        tokio::spawn(async move { client.send(&get).await })
    };
    let is_named = || {
        let nodes = client.status().cluster.unwrap().nodes;
        nodes.iter().all(|node| node.id.is_some())
    };
    while is_named() && !reads.is_finished() {
        tokio::task::yield_now().await;
    }
    client.send(&cmd("FLUSHALL")).await.unwrap();
    let left = cluster.node(added).command(&["DBSIZE"]).await.unwrap();
    assert_eq!(left, Value::Int(0));
    reads.await.unwrap().unwrap();
}

#[tokio::test]
async fn t10_a_session_belongs_to_the_node_of_its_key() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let error = client.session().await.map(drop).unwrap_err();
    assert!(error.to_string().contains("session_for"), "{error}");
    for at in 0..3 {
        let key = &keys_of(&cluster, at, 1).await[0];
        let own = client.session_for(key).await.unwrap();
        own.send(&cmd(&format!("WATCH {key}"))).await.unwrap();
        let mut both = redis::pipe();
        both.atomic().set(key, at).get(key);
        own.send_pipeline(&both).await.unwrap();
    }
}

#[tokio::test]
async fn t14_a_blocking_call_whose_slot_moves_waits_on_at_the_new_owner() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let key = keys_of(&cluster, 0, 1).await.remove(0);
    let (waits, list) = (client.clone(), key.clone());
    let popped = tokio::spawn(async move { waits.send(&cmd(&format!("BLPOP {list} 60"))).await });
    eventually("the call waits", async || {
        let info = cluster.node(0).info("clients").await.unwrap();
        info.contains("blocked_clients:1")
    })
    .await;
    cluster.migrate(slot(&key), 0, 1).await.unwrap();
    client.send(&cmd(&format!("RPUSH {key} v"))).await.unwrap();
    let popped = popped.await.unwrap().unwrap();
    assert!(matches!(popped, Value::Array(pair) if pair.len() == 2));
}

#[tokio::test]
async fn t14_a_blocking_call_that_begins_while_its_slot_migrates_is_served_by_the_importing_node() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let key = keys_of(&cluster, 0, 1).await.remove(0);
    let slots = [slot(&key)];
    client.send(&cmd(&format!("RPUSH {key} v"))).await.unwrap();
    cluster.begin_migration(&slots, 0, 1).await.unwrap();
    cluster.move_keys(&slots, 0, 1, 100).await.unwrap();
    let popped = client.send(&cmd(&format!("BLPOP {key} 60"))).await;
    let pair = [&*key, "v"].map(|text| Value::BulkString(text.into()));
    assert_eq!(popped.unwrap(), Value::Array(pair.into()));
    cluster.end_migration(&slots, 0, 1).await.unwrap();
}

#[tokio::test]
async fn t15_a_sharded_subscriber_follows_its_slot_and_a_plain_one_any_member() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let channel = keys_of(&cluster, 0, 1).await.remove(0);
    let mut sharded = client.pubsub_for(&channel);
    sharded.ssubscribe(channel.as_str()).await.unwrap();
    let mut plain = client.pubsub();
    plain.subscribe("news").await.unwrap();
    let refused = plain.ssubscribe(channel.as_str()).await.unwrap_err();
    assert!(refused.to_string().contains("pubsub_for"), "{refused}");
    let publish = |payload: &'static str| {
        let (client, channel) = (client.clone(), channel.clone());
        async move {
            let words = format!("SPUBLISH {channel} {payload}");
            client.send(&cmd(&words)).await.unwrap();
            client
                .send(&cmd(&format!("PUBLISH news {payload}")))
                .await
                .unwrap();
        }
    };
    publish("before").await;
    heard(&mut sharded, "before").await;
    heard(&mut plain, "before").await;
    cluster.migrate(slot(&channel), 0, 1).await.unwrap();
    let mut lost = false;
    loop {
        match sharded.next().await.expect("the client lives") {
            PubSubEvent::Lost { .. } => lost = true,
            PubSubEvent::Resumed { gap: Some(_) } if lost => break,
            other => panic!("{other:?}"),
        }
    }
    publish("after").await;
    heard(&mut sharded, "after").await;
    heard(&mut plain, "after").await;
}

#[tokio::test]
async fn t15_a_subscriber_outlives_the_last_client_and_still_finds_a_node() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let channel = keys_of(&cluster, 0, 1).await.remove(0);
    let mut sharded = client.pubsub_for(&channel);
    sharded.ssubscribe(channel.as_str()).await.unwrap();
    let mut plain = client.pubsub();
    plain.subscribe("news").await.unwrap();
    drop(client);
    cluster.migrate(slot(&channel), 0, 1).await.unwrap();
    for node in cluster.nodes() {
        node.command(&["CLIENT", "KILL", "TYPE", "pubsub"])
            .await
            .unwrap();
    }
    let publishes = async {
        loop {
            for (command, channel) in [("SPUBLISH", channel.as_str()), ("PUBLISH", "news")] {
                let publish = [command, channel, "after"];
                cluster.node(1).command(&publish).await.unwrap();
            }
            tokio::time::sleep(ms(50)).await;
        }
    };
    let hear = async {
        for subscriber in [&mut sharded, &mut plain] {
            let mut lost = false;
            loop {
                match subscriber.next().await.expect("it goes on") {
                    PubSubEvent::Lost { .. } => lost = true,
                    PubSubEvent::Message { .. } if lost => break,
                    _ => {}
                }
            }
        }
    };
    tokio::select! {
        () = publishes => {}
        () = hear => {}
        () = tokio::time::sleep(Duration::from_secs(60)) => panic!("nobody finds a node for them"),
    }
    plain.subscribe("more").await.unwrap();
}

/// Waits for a message, and lets nothing else pass but that the subscriptions stand.
async fn heard(subscriber: &mut PubSub, wanted: &str) {
    loop {
        match subscriber.next().await.expect("the client lives") {
            PubSubEvent::Message { payload, .. } => {
                assert_eq!(payload, wanted.as_bytes());
                return;
            }
            PubSubEvent::Resumed { gap: None } => {}
            other => panic!("{other:?}"),
        }
    }
}
