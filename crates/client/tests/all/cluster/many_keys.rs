//! Commands whose keys belong to several slots.

use super::*;

#[tokio::test]
async fn t11_keys_of_several_slots_are_refused_before_anything_is_sent_and_the_slots_are_named() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let error = client.send(&cmd("RENAME a b")).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotSent);
    let slots = (slot("a"), slot("b"));
    assert!(
        matches!(error.kind(), ErrorKind::CrossSlot { slots: named, .. } if *named == slots),
        "{error}"
    );
    let mut apart = redis::pipe();
    apart.atomic().set("a", 1).set("b", 1);
    let error = client.send_pipeline(&apart).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
    client.send(&cmd("RENAME {a}1 {a}2")).await.unwrap_err();
}

#[tokio::test]
async fn t11_t31_commands_of_many_keys_are_split_and_joined_in_order_and_512_at_once_are_not_refused()
 {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let keys: Vec<String> = (0..100).map(|n| format!("many:{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        client
            .send(redis::cmd("SET").arg(key).arg(n))
            .await
            .unwrap();
    }
    let mut mget = redis::cmd("MGET");
    mget.arg(&keys);
    mget.arg("none").arg(&keys[3]);
    let Value::Array(values) = client.send(&mget).await.unwrap() else {
        panic!("a list is asked for")
    };
    let text = |n: usize| Value::BulkString(n.to_string().into_bytes());
    let wanted = (0..100).map(text).chain([Value::Nil, text(3)]);
    assert_eq!(values, wanted.collect::<Vec<_>>());
    none_of_many_wide_reads_is_refused(&cluster, &keys).await;
    for (name, count) in [("EXISTS", 100), ("TOUCH", 100), ("DEL", 50), ("UNLINK", 50)] {
        let mut cmd = redis::cmd(name);
        let half = match name {
            "DEL" => &keys[..50],
            "UNLINK" => &keys[50..],
            _ => &keys[..],
        };
        cmd.arg(half);
        assert_eq!(
            client.send(&cmd).await.unwrap(),
            Value::Int(count),
            "{name}"
        );
    }
    let mut mset = redis::cmd("MSET");
    mset.arg("a").arg(1).arg("b").arg(2);
    let error = client.send(&mset).await.unwrap_err();
    assert_eq!(
        error.certainty(),
        Certainty::NotSent,
        "atomic on one server: {error}"
    );
    let apart = client.with(steadfast::CallOptions::new().divide_mset(true));
    assert_eq!(apart.send(&mset).await.unwrap(), Value::Okay);
    let mut piped = redis::pipe();
    piped.add_command(mset).cmd("MGET").arg("a").arg("b");
    let replies = apart.send_pipeline(&piped).await.unwrap();
    assert_eq!(replies, [Value::Okay, Value::Array(vec![text(1), text(2)])]);
}

/// On the bounds that there are by default. An MGET of 100 keys is some 33 commands for each node,
/// which count as one: one by one, 512 callers would have twice as many under way as may be.
async fn none_of_many_wide_reads_is_refused(cluster: &Cluster, keys: &[String]) {
    let builder = Client::builder(&cluster.url()).unwrap();
    // A server that gets no turn of a busy machine for half a second is not down.
    let builder = builder.response_idle_timeout(ms(30_000));
    let client = builder.deadline(ms(60_000)).connect().await.unwrap();
    let mut callers = JoinSet::new();
    for _ in 0..512 {
        let (client, keys) = (client.clone(), keys.to_vec());
        callers.spawn(async move { client.send(redis::cmd("MGET").arg(&keys)).await });
    }
    let text = |n: usize| Value::BulkString(n.to_string().into_bytes());
    let wanted = Value::Array((0..100).map(text).collect());
    for answer in callers.join_all().await {
        assert_eq!(answer.expect("none is refused"), wanted);
    }
}

#[tokio::test]
async fn t11_if_parts_fail_the_error_lists_keys_by_certainty() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let (lost, well) = (keys_of(&cluster, 0, 1).await, keys_of(&cluster, 1, 1).await);
    client
        .send(&cmd(&format!("SET {} v", well[0])))
        .await
        .unwrap();
    client
        .send(&cmd(&format!("SET {} v", lost[0])))
        .await
        .unwrap();
    cluster.node(0).kill().await;
    until("it is down", || {
        client.toward(&lost[0]).state() == ConnectionState::Down
    })
    .await;
    let both = cmd(&format!("DEL {} {}", well[0], lost[0]));
    let error = client.send(&both).await.unwrap_err();
    assert_eq!(
        error.certainty(),
        Certainty::Unknown,
        "half applied: {error}"
    );
    let ErrorKind::Partial {
        done,
        not_run,
        unknown,
        ..
    } = error.kind()
    else {
        panic!("{error}")
    };
    assert_eq!((*done, &not_run[..], &unknown[..]), (1, &[1][..], &[][..]));
    let error = client
        .send(&cmd(&format!("MGET {} {}", well[0], lost[0])))
        .await
        .unwrap_err();
    assert_eq!(
        error.certainty(),
        Certainty::NotSent,
        "nothing was changed: {error}"
    );
}
