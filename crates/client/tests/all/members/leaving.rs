//! Nodes that are no members any more, or no primaries.

use steadfast::PubSub;
use steadfast_drill::process::FailoverKind;

use super::*;

#[tokio::test]
async fn t26_a_stranger_is_not_served_by_and_a_call_that_waits_ends_with_its_client() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let (first, second) = (cluster.node(0).addr().port(), cluster.node(1).addr().port());
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder
        .deadline(ms(60_000))
        .wait_for_primary(ms(60_000))
        .translate_addresses(move |host, port| {
            // As if another server had been given the address of the first.
            let port = if port == first { second } else { port };
            (host.into(), port)
        });
    let client = builder.build().unwrap();
    let key = key_of(&cluster, 1).await;
    client.send(&cmd(&format!("SET {key} v"))).await.unwrap();
    let strange = key_of(&cluster, 0).await;
    let waits = {
        let client = client.clone();
        tokio::spawn(async move { client.send(&cmd(&format!("GET {strange}"))).await })
    };
    until("it is told who is there", || {
        let nodes = client.status().cluster.unwrap().nodes.into_iter();
        let mut errors = nodes.filter_map(|node| node.last_error);
        errors.any(|error| error.contains("another node of the cluster"))
    })
    .await;
    assert!(!waits.is_finished());
    let _ = client.close(ms(100)).await;
    let ended = tokio::time::timeout(ms(20_000), waits).await;
    ended
        .expect("it ends with its client")
        .unwrap()
        .unwrap_err();
}

#[tokio::test]
async fn t12_t15_t16_t32_a_node_that_is_demoted_or_removed_is_left() {
    let cluster = Cluster::start().await.unwrap();
    let client = client_at(&cluster.url()).await;
    for n in 0..100 {
        client
            .send(&cmd(&format!("SET spread:{n} {n}")))
            .await
            .unwrap();
    }
    // No key counts twice while a replica takes over.
    let failing_over = cluster.fail_over(0, FailoverKind::Planned);
    let mut failing_over = std::pin::pin!(failing_over);
    loop {
        if let Ok(size) = client.send(&cmd("DBSIZE")).await {
            assert_eq!(size, Value::Int(100));
        }
        let over = tokio::time::timeout(ms(5), failing_over.as_mut()).await;
        if over.is_ok() {
            break;
        }
    }
    assert_eq!(client.send(&cmd("DBSIZE")).await.unwrap(), Value::Int(100));
    let old = cluster.node(0).addr().to_string();
    let state = || {
        let nodes = client.status().cluster.unwrap().nodes.into_iter();
        let mut of_old = nodes.filter(|node| node.address.as_deref() == Some(&old));
        of_old.next().and_then(|node| node.state)
    };
    // The view that told of the failover may have known it as a primary still: it is asked itself.
    let begun = now();
    for n in 0..100 {
        client
            .send(&cmd(&format!("SET spread:{n} {n}")))
            .await
            .unwrap();
    }
    until("the demoted node is left", || state().is_none()).await;
    assert!(
        now().duration_since(begun) < ms(15_000),
        "by the next view only"
    );
    let key = key_of(&cluster, 1).await;
    cluster.migrate(slot(&key), 1, 2).await.unwrap();
    client.send(&cmd(&format!("GET {key}"))).await.unwrap();

    // T32: a call waits for its primary through as many looks around as that takes.
    let patient = Client::builder(&cluster.url()).unwrap();
    let patient = patient.deadline(ms(60_000)).wait_for_primary(ms(60_000));
    let patient = patient.connect().await.unwrap();
    let own = key_of(&cluster, 3).await;
    let kills_before = kills(&cluster, 3).await;
    cluster.node(3).freeze().unwrap();
    let short = patient.with(steadfast::CallOptions::new().deadline(ms(100)));
    short.send(&cmd(&format!("GET {own}"))).await.unwrap_err();
    until("the silent one is known to be down", || {
        patient.toward(&own).state() == ConnectionState::Down
    })
    .await;
    let mut pipeline = redis::pipe();
    let other = key_of(&cluster, 1).await;
    pipeline.set(&other, 1).incr(&own, 1).incr(&other, 1);
    let replies = patient.send_pipeline(&pipeline).await.unwrap();
    assert_eq!(replies, [Value::Okay, Value::Int(1), Value::Int(2)]);
    patient.send(&cmd(&format!("SET {own} v"))).await.unwrap();
    cluster.node(3).resume().unwrap();
    cluster.well().await.unwrap();
    // T22: what was abandoned there is killed there, though nothing else leads to it any more.
    let begun = now();
    while kills(&cluster, 3).await == kills_before {
        assert!(now().duration_since(begun) < Duration::from_secs(60));
        tokio::time::sleep(ms(20)).await;
    }

    // A plain subscriber leaves a node that is forgotten, though that lives on.
    let added = cluster.add_node().await.unwrap();
    let client = client_at(&cluster.url()).await;
    let mut there: Option<PubSub> = None;
    for _ in 0..50 {
        let subscriber = client.pubsub();
        subscriber.subscribe("news").await.unwrap();
        if heard_by(&cluster, added).await {
            there = Some(subscriber);
            break;
        }
    }
    let mut there = there.expect("one of them is at the node that was added");
    let id = cluster.node(added).id().to_owned();
    for (at, node) in cluster.nodes().iter().enumerate() {
        if at != added {
            node.command(&["CLUSTER", "FORGET", &id]).await.unwrap();
        }
    }
    // Whoever meets a redirect looks around.
    let (number, to) = (slot(&key).to_string(), cluster.node(1).id().to_owned());
    for at in [1, 2] {
        let set = ["CLUSTER", "SETSLOT", &number, "NODE", &to];
        cluster.node(at).command(&set).await.unwrap();
    }
    client.send(&cmd(&format!("GET {key}"))).await.unwrap();
    let mut lost = false;
    loop {
        let event = tokio::time::timeout(ms(60_000), there.next()).await;
        match event.expect("it leaves").expect("the client lives") {
            PubSubEvent::Lost { .. } => lost = true,
            PubSubEvent::Resumed { .. } if lost => break,
            _ => {}
        }
    }
    client.send(&cmd("PUBLISH news after")).await.unwrap();
    loop {
        if let Some(PubSubEvent::Message { payload, .. }) = there.next().await {
            assert_eq!(payload, b"after");
            break;
        }
    }
}

/// The times that this node was told to kill a connection.
async fn kills(cluster: &Cluster, at: usize) -> String {
    let stats = cluster.node(at).info("commandstats").await.unwrap();
    let mut lines = stats.lines();
    let kills = lines.find_map(|line| line.strip_prefix("cmdstat_client|kill:"));
    let calls = kills.and_then(|kills| kills.split(',').next());
    calls.unwrap_or_default().to_owned()
}

/// Whether somebody has subscribed to the news on this node.
async fn heard_by(cluster: &Cluster, at: usize) -> bool {
    let asked = ["PUBSUB", "NUMSUB", "news"];
    match cluster.node(at).command(&asked).await.unwrap() {
        Value::Array(counts) => counts.get(1) == Some(&Value::Int(1)),
        _ => false,
    }
}

/// The next event of a kind.
async fn next_of(
    pubsub: &mut PubSub,
    what: &str,
    is: impl Fn(&PubSubEvent) -> bool,
) -> PubSubEvent {
    let next = async {
        loop {
            let event = pubsub.next().await.unwrap();
            if is(&event) {
                return event;
            }
        }
    };
    let next = tokio::time::timeout(ms(30_000), next).await;
    next.unwrap_or_else(|_| panic!("{what}"))
}

#[tokio::test]
async fn t18_a_subscriber_leaves_a_node_that_says_that_it_is_cut_off_and_is_told() {
    let cluster = alone().await;
    let node = cluster.node(0);
    let builder = Client::builder(&cluster.url()).unwrap().heartbeat(ms(50));
    let client = builder.deadline(ms(10_000)).connect().await.unwrap();
    let mut pubsub = client.pubsub();
    pubsub.subscribe("news").await.unwrap();
    let list = ["CLIENT", "LIST", "TYPE", "pubsub"];
    until("it is asked whether its cluster serves", || {
        let list = node.command_blocking(&list).unwrap();
        let list: String = redis::from_redis_value(list).unwrap();
        list.contains("cmd=cluster|info")
    })
    .await;
    node.command(&["CLUSTER", "DELSLOTS", "7"]).await.unwrap();
    let lost = next_of(&mut pubsub, "it is told", |event| {
        matches!(event, PubSubEvent::Lost { .. })
    });
    let lost = lost.await;
    assert!(
        format!("{lost:?}").contains("cluster_state:fail"),
        "{lost:?}"
    );
    // There is no other, and it is as good as any: what is published there is heard.
    next_of(&mut pubsub, "it is back", |event| {
        matches!(event, PubSubEvent::Resumed { .. })
    })
    .await;
    for _ in 0..3 {
        tokio::time::sleep(ms(100)).await;
        node.command(&["PUBLISH", "news", "x"]).await.unwrap();
        let event = pubsub.next().await.unwrap();
        assert!(matches!(event, PubSubEvent::Message { .. }), "{event:?}");
    }
}
