//! T2 to T31 of a cluster: who its nodes are, by which names, and what they allow to be asked.

mod finding;
mod leaving;
mod providers;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use steadfast::redis::{self, Value};
use steadfast::{Client, ConnectionState, PubSubEvent, Resolve};
use steadfast_drill::process::Cluster;
use steadfast_drill::scripted::{Script, Server};

use crate::support::{cmd, eventually, ms, now, slot, until};

async fn client_at(url: &str) -> Client {
    let builder = Client::builder(url).unwrap();
    builder.deadline(ms(10_000)).connect().await.unwrap()
}

/// A key whose slot belongs to the node at this position.
async fn key_of(cluster: &Cluster, at: usize) -> String {
    let layout = cluster.layout().await.unwrap();
    let id = cluster.node(at).id().to_owned();
    let mut keys = (0..).map(|n| format!("key:{n}"));
    let found = keys.find(|key| layout.owner(slot(key)) == Some(id.as_str()));
    found.unwrap()
}

/// Every node serves, and a slot that moves is followed.
async fn serves(cluster: &Cluster, client: &Client) {
    for at in 0..3 {
        let key = key_of(cluster, at).await;
        client.send(&cmd(&format!("SET {key} 1"))).await.unwrap();
    }
    let key = key_of(cluster, 0).await;
    let slots = [slot(&key)];
    cluster.begin_migration(&slots, 0, 1).await.unwrap();
    cluster.move_keys(&slots, 0, 1, 100).await.unwrap();
    let value = client.send(&cmd(&format!("INCR {key}"))).await.unwrap();
    assert_eq!(value, Value::Int(2), "by the importing node");
    cluster.end_migration(&slots, 0, 1).await.unwrap();
    let value = client.send(&cmd(&format!("INCR {key}"))).await.unwrap();
    assert_eq!(value, Value::Int(3));
    cluster.migrate(slots[0], 1, 0).await.unwrap();
    let status = client.status().cluster.unwrap();
    assert_eq!(status.nodes.len(), 3, "each is known once: {status:?}");
    assert_eq!(status.uncovered, "");
}

/// A cluster of one server.
async fn alone() -> Cluster {
    let builder = Cluster::builder().primaries(1).replicas(0).each(|redis| {
        redis
            .acl("app on >pw ~* &* +@all")
            .acl("next on >pw ~* &* +@all")
    });
    builder.require_full_coverage(true).start().await.unwrap()
}
