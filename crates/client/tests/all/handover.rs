//! T8, T22: what becomes of a call that may still run at a node which its slot has left.

use steadfast::redis::{self, Value};
use steadfast::{CallOptions, Certainty, Client, Effect};
use steadfast_drill::process::Cluster;

use crate::support::{cmd, eventually, key_of, ms, slot};

/// A node that owns a slot takes it from the other, which does not hear of it from a person.
async fn take_over(cluster: &Cluster, number: &str, from: usize, to: usize) {
    let (from, to) = (cluster.node(from), cluster.node(to));
    for words in [["IMPORTING", from.id()], ["NODE", to.id()]] {
        let set = ["CLUSTER", "SETSLOT", number, words[0], words[1]];
        to.command(&set).await.unwrap();
    }
    cluster.agree().await.unwrap();
}

#[tokio::test]
async fn t8_t22_what_may_run_at_a_node_still_is_not_repeated_there_when_its_successor_sends_it_back()
 {
    let builder = Cluster::builder().primaries(2).replicas(0).each(|redis| {
        // Nobody has what was abandoned killed.
        redis.acl("app on >pw ~* &* +@all -client|kill")
    });
    let cluster = builder.start().await.unwrap();
    let url = cluster.url().replace("://", "://app:pw@");
    for piped in [false, true] {
        let client = Client::builder(&url).unwrap().deadline(ms(60_000));
        let client = client
            .response_idle_timeout(ms(50_000))
            .unresponsive_timeout(ms(50_000));
        let client = client.connect().await.unwrap();
        let (old, new) = (cluster.node(0), cluster.node(1));
        let key = key_of(&cluster, 0, "key").await;
        let number = slot(&key).to_string();
        client.send(&cmd(&format!("SET {key} 0"))).await.unwrap();

        old.command(&["CLIENT", "PAUSE", "100000", "WRITE"])
            .await
            .unwrap();
        let call = {
            let (client, key) = (client.clone(), key.clone());
            tokio::spawn(async move {
                if !piped {
                    return client.send(&cmd(&format!("SET {key} 1"))).await.map(drop);
                }
                let mut pipeline = redis::pipe();
                pipeline.set(&key, 1);
                client.send_pipeline(&pipeline).await.map(drop)
            })
        };
        eventually("it is held back", async || {
            let info = old.info("clients").await.unwrap();
            info.contains("blocked_clients:1")
        })
        .await;
        take_over(&cluster, &number, 0, 1).await;
        // And sends back whoever asks for what it does not have.
        let away = ["CLUSTER", "SETSLOT", &number, "MIGRATING", old.id()];
        new.command(&away).await.unwrap();
        let home = ["CLUSTER", "SETSLOT", &number, "IMPORTING", new.id()];
        old.command(&home).await.unwrap();
        let address = Some(new.addr().to_string());
        eventually("the client knows who has it", async || {
            // Which is a reason to look who is there.
            let nobody = client.node("127.0.0.1:1").send(&cmd("PING")).await;
            nobody.unwrap_err();
            client.toward(&key).node() == address
        })
        .await;
        assert!(!call.is_finished());
        old.command(&["CLIENT", "KILL", "USER", "app"])
            .await
            .unwrap();
        old.command(&["CLIENT", "UNPAUSE"]).await.unwrap();
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.certainty(), Certainty::Unknown, "{piped}: {error}");
        for node in [&old, &new] {
            let stable = ["CLUSTER", "SETSLOT", &number, "STABLE"];
            node.command(&stable).await.unwrap();
        }
        let value = client.send(&cmd(&format!("GET {key}"))).await.unwrap();
        assert_eq!(value, Value::Nil, "{piped}");
    }
}

#[tokio::test]
async fn c20_t8_a_pipeline_that_ends_connections_goes_by_itself_at_the_next_node_and_ends_one_there()
 {
    let builder = Cluster::builder().primaries(2).replicas(0).each(|redis| {
        let redis = redis.acl("app on >pw ~* &* +@all");
        redis.config("client-output-buffer-limit", "normal 1mb 1mb 0")
    });
    let cluster = builder.start().await.unwrap();
    let url = cluster.url().replace("://", "://app:pw@");
    let client = Client::builder(&url).unwrap().deadline(ms(60_000));
    let client = client
        .response_idle_timeout(ms(50_000))
        .unresponsive_timeout(ms(50_000));
    let client = client.connect().await.unwrap();
    let (old, new) = (cluster.node(0), cluster.node(1));
    let key = key_of(&cluster, 0, "key").await;
    let number = slot(&key).to_string();
    client.send(&cmd(&format!("SET {key} 0"))).await.unwrap();

    old.command(&["CLIENT", "PAUSE", "100000", "WRITE"])
        .await
        .unwrap();
    let call = {
        // What it answers is too much, and it changes nothing: it is repeated.
        let reads = client.with(CallOptions::new().effect(Effect::Read));
        let mut pipeline = redis::pipe();
        pipeline.cmd("GETEX").arg(&key).arg("PERSIST");
        tokio::spawn(async move { reads.send_pipeline(&pipeline).await })
    };
    eventually("it is held back", async || {
        let info = old.info("clients").await.unwrap();
        info.contains("blocked_clients:1")
    })
    .await;
    take_over(&cluster, &number, 0, 1).await;
    let large = "x".repeat(4 << 20);
    new.command(&["SET", &key, &large]).await.unwrap();
    let address = Some(new.addr().to_string());
    eventually("the client knows who has it", async || {
        // Which is a reason to look who is there.
        let nobody = client.node("127.0.0.1:1").send(&cmd("PING")).await;
        nobody.unwrap_err();
        client.toward(&key).node() == address
    })
    .await;
    old.command(&["CLIENT", "KILL", "USER", "app"])
        .await
        .unwrap();
    old.command(&["CLIENT", "UNPAUSE"]).await.unwrap();
    call.await.unwrap().unwrap_err();
    eventually("it serves again", async || {
        client.send(&cmd(&format!("EXISTS {key}"))).await.is_ok()
    })
    .await;
    let nodes = client.status().cluster.unwrap().nodes;
    let ended = nodes.iter().filter(|node| node.address == address);
    let ended: u64 = ended.map(|node| node.reconnects).sum();
    assert_eq!(ended, 1, "{:?}", client.history());
}
