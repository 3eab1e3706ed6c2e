//! T1 to T16, T23 to T26: a cluster of several primaries.

mod beginning;
mod failing;
mod many_keys;
mod moving;
mod places;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use steadfast::redis::{self, Value};
use steadfast::{CallOptions, Certainty, Client, ConnectionState, ErrorKind, Resolve};
use steadfast_drill::process::{Cluster, RedisBuilder};
use tokio::task::JoinSet;

use crate::support::{cmd, eventually, ms, now, slot, until};

/// A client with more patience than a busy machine takes away.
async fn client_of(cluster: &Cluster) -> Client {
    let builder = Client::builder(&cluster.url()).unwrap();
    builder.deadline(ms(10_000)).connect().await.unwrap()
}

/// Keys whose slots belong to the node at this position.
async fn keys_of(cluster: &Cluster, at: usize, count: usize) -> Vec<String> {
    let layout = cluster.layout().await.unwrap();
    let id = cluster.node(at).id().to_owned();
    let keys = (0..).map(|n| format!("key:{n}"));
    keys.filter(|key| layout.owner(slot(key)) == Some(id.as_str()))
        .take(count)
        .collect()
}

/// Notices when this machine stands still, which it cannot do without the servers: a slot that
/// changes hands is waited for a second at most, and who comes too late then is told so.
struct Stalls {
    longest: Arc<AtomicU64>,
    watch: tokio::task::JoinHandle<()>,
}

impl Stalls {
    fn watch() -> Self {
        let longest = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&longest);
        let watch = tokio::spawn(async move {
            loop {
                let began = now();
                tokio::time::sleep(ms(10)).await;
                let took = now().duration_since(began).as_millis() as u64;
                seen.fetch_max(took, Ordering::Relaxed);
            }
        });
        Self { longest, watch }
    }

    /// Whether this is the price of a machine that stood still.
    fn explain(&self, error: &steadfast::Error) -> bool {
        let stalled = self.longest.load(Ordering::Relaxed) > 300;
        stalled && matches!(error.kind(), ErrorKind::Overtaken)
    }

    /// The same of a command of which other parts were served.
    fn explains_part_of(&self, error: &steadfast::Error) -> bool {
        let stalled = self.longest.load(Ordering::Relaxed) > 300;
        let overtaken = ErrorKind::Overtaken.to_string();
        self.explain(error) || stalled && error.to_string().contains(&overtaken)
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Callers that count, each key by INCR, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    stalls: Stalls,
    callers: JoinSet<Vec<(String, steadfast::Error)>>,
    acknowledged: Arc<HashMap<String, AtomicU64>>,
}

impl Load {
    fn start(client: &Client, callers: usize, keys: usize) -> Self {
        let names: Vec<String> = (0..keys).map(|n| format!("count:{n}")).collect();
        let counts = names.iter().map(|key| (key.clone(), AtomicU64::new(0)));
        let acknowledged: Arc<HashMap<_, _>> = Arc::new(counts.collect());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let (names, acknowledged) = (names.clone(), Arc::clone(&acknowledged));
            tasks.spawn(async move {
                let mut errors = Vec::new();
                let mut at = caller * 7;
                while !stop.load(Ordering::Relaxed) {
                    at += 1;
                    let key = &names[at % names.len()];
                    match client.send(redis::cmd("INCR").arg(key)).await {
                        Ok(_) => drop(acknowledged[key].fetch_add(1, Ordering::Relaxed)),
                        Err(error) => errors.push((key.clone(), error)),
                    }
                }
                errors
            });
        }
        Self {
            stop,
            stalls: Stalls::watch(),
            callers: tasks,
            acknowledged,
        }
    }

    async fn end(self) -> (Vec<String>, Arc<HashMap<String, AtomicU64>>) {
        self.stop.store(true, Ordering::Relaxed);
        let errors = self.callers.join_all().await.into_iter().flatten();
        let errors = errors.filter(|(_, error)| !self.stalls.explain(error));
        let told = errors.map(|(key, error)| format!("{key}: {error}"));
        (told.collect(), self.acknowledged)
    }
}

async fn counted(client: &Client, key: &str) -> u64 {
    match client.send(redis::cmd("GET").arg(key)).await.unwrap() {
        Value::BulkString(text) => String::from_utf8(text).unwrap().parse().unwrap(),
        _ => 0,
    }
}

/// A node that is reached by its name.
fn has_a_name(redis: RedisBuilder) -> RedisBuilder {
    redis
        .config("cluster-announce-hostname", "localhost")
        .config("cluster-preferred-endpoint-type", "hostname")
}

/// Takes its time to look a name up.
#[derive(Debug)]
struct DistantNames;

impl Resolve for DistantNames {
    fn resolve(&self, _: &str, port: u16) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            tokio::time::sleep(ms(800)).await;
            Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
        })
    }
}
