//! T12: one server, chosen by its address.

use steadfast::redis::{self, AsyncCommands, Value};
use steadfast::{Certainty, Client, ErrorKind};
use steadfast_drill::process::Cluster;

use crate::support::{cmd, ms, pair};

/// The port that a server says it listens on.
async fn port_of(node: &steadfast::NodeClient) -> String {
    let said: Vec<String> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("port")
        .query_async(&mut node.clone())
        .await
        .unwrap();
    said[1].clone()
}

#[tokio::test]
async fn t12_each_node_of_a_cluster_is_asked_by_its_address() {
    let cluster = Cluster::shared().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    // Connected to by another name than they announce.
    let builder = builder.translate_addresses(|_announced, port| ("localhost".into(), port));
    let client = builder.deadline(ms(10_000)).connect().await.unwrap();
    client.send(&cmd("SET {one}:k v")).await.unwrap();
    for at in 0..6 {
        let port = cluster.node(at).port();
        for host in ["127.0.0.1", "localhost"] {
            let node = client.node(&format!("{host}:{port}"));
            assert_eq!(port_of(&node).await, port.to_string(), "{}", node.address());
        }
    }
    let slot = steadfast_core::slot::Slot::of_key(b"{one}:k").number();
    let owner = cluster.owner(slot).await.unwrap();
    for at in 0..6 {
        let mut node = client.node(&cluster.node(at).addr().to_string());
        let read: redis::RedisResult<String> = node.get("{one}:k").await;
        match at % 3 == owner % 3 {
            true if at == owner => assert_eq!(read.unwrap(), "v"),
            // As old as its data are.
            true => assert!(read.is_ok() || read.unwrap_err().code().is_none()),
            false => assert_eq!(read.unwrap_err().code(), Some("MOVED")),
        }
    }
    let error = client.node("127.0.0.1:1").send(&cmd("PING")).await;
    let error = error.unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotSent);
    assert!(
        matches!(error.kind(), ErrorKind::UnknownNode { .. }),
        "{error}"
    );
    let known = format!("localhost:{}", cluster.node(5).port());
    assert!(error.to_string().contains(&known), "{error}");
    let mut both = redis::pipe();
    both.cmd("DBSIZE").cmd("PING");
    let node = client.node(&cluster.node(owner).addr().to_string());
    let replies = node.send_pipeline(&both).await.unwrap();
    assert_eq!(replies[0], Value::Int(1));
    assert!(client.close(ms(1_000)).await.unfinished == 0);
    let error = node.send(&cmd("PING")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed), "{error}");
}

#[tokio::test]
async fn t12_the_one_server_is_known_by_its_address_and_no_other_is() {
    let (server, client) = pair().await;
    let node = client.node(&server.addr().to_string());
    assert_eq!(port_of(&node).await, server.port().to_string());
    let error = client.node("127.0.0.1:1").send(&cmd("PING")).await;
    let error = error.unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotSent);
    assert!(error.to_string().contains(node.address()), "{error}");
}
