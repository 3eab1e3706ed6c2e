//! T1 to T16, T23 to T26: a cluster of several primaries.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use steadfast::redis::{self, Value};
use steadfast::{
    CallOptions, Certainty, Client, ConnectionState, ErrorKind, EventKind, PubSub, PubSubEvent,
    Resolve,
};
use steadfast_drill::process::{Cluster, FailoverKind, Redis, RedisBuilder};
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

#[tokio::test]
async fn t1_what_is_behind_a_url_has_to_be_what_it_names() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let plain = Redis::start().await.unwrap();
    let node = cluster.node(0).addr();
    let asked = |url: String| async move {
        let builder = Client::builder(&url).unwrap().deadline(ms(3_000));
        builder.connect().await.map(drop).unwrap_err().to_string()
    };
    let error = asked(format!("redis://{node}")).await;
    assert!(
        error.contains(&format!("redis-cluster://{node}")),
        "{error}"
    );
    let error = asked(format!("redis-cluster://{}", plain.addr())).await;
    assert!(
        error.contains(&format!("redis://{}", plain.addr())),
        "{error}"
    );
    let client = client_of(&cluster).await;
    client.send(&cmd("SET k v")).await.unwrap();
    assert_eq!(client.state(), ConnectionState::Ready);
    let status = client.status().cluster.expect("it is one");
    assert_eq!(status.nodes.len(), 3, "{status:?}");
    assert_eq!(status.uncovered, "");
}

#[tokio::test]
async fn t4_every_key_goes_to_its_owner_and_a_slot_that_has_moved_costs_one_redirect() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    for n in 0..300 {
        client
            .send(&cmd(&format!("SET key:{n} {n}")))
            .await
            .unwrap();
    }
    let redirects = || client.status().cluster.unwrap().redirects;
    assert_eq!(redirects(), 0, "every slot is known");
    let key = &keys_of(&cluster, 0, 1).await[0];
    let toward = client.toward(key);
    let address = |at: usize| Some(cluster.node(at).addr().to_string());
    assert!(client.is_cluster());
    assert_eq!(toward.node(), address(0));
    let before = toward.server();
    cluster.migrate(slot(key), 0, 1).await.unwrap();
    for _ in 0..20 {
        let value = client.send(&cmd(&format!("GET {key}"))).await.unwrap();
        assert!(matches!(value, Value::BulkString(_)));
    }
    assert_eq!(toward.node(), address(1));
    assert!(before.is_some() && toward.server() != before);
    assert!(
        redirects() <= 1,
        "a redirect, or discovery, patches the slot"
    );
}

#[tokio::test]
async fn t6_a_key_that_has_migrated_ahead_of_its_slot_is_asked_for_and_nothing_runs_twice() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let key = &keys_of(&cluster, 0, 1).await[0];
    let slots = [slot(key)];
    client.send(&cmd(&format!("INCR {key}"))).await.unwrap();
    cluster.begin_migration(&slots, 0, 1).await.unwrap();
    // What is refused until its time is up has not run, and says so.
    let mut apart = redis::pipe();
    apart.add_command(cmd(&format!("MSET {key} 7 {{{key}}} 7")));
    let hasty = client.with(CallOptions::new().deadline(ms(300)));
    let error = hasty.send_pipeline(&apart).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
    assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "{error}");
    cluster.move_keys(&slots, 0, 1, 100).await.unwrap();
    let value = client.send(&cmd(&format!("INCR {key}"))).await.unwrap();
    assert_eq!(value, Value::Int(2), "behind ASKING, by the importing node");
    let script = redis::cmd("EVAL")
        .arg("return redis.call('INCR', KEYS[1])")
        .arg(1)
        .arg(key)
        .to_owned();
    assert_eq!(client.send(&script).await.unwrap(), Value::Int(3));
    let mut both = redis::pipe();
    both.atomic().incr(key, 1).incr(key, 1);
    let replies = client.send_pipeline(&both).await.unwrap();
    let exec = Value::Array(vec![Value::Int(4), Value::Int(5)]);
    assert_eq!(replies.last(), Some(&exec));
    // Whoever may not ask for it is told so, and not sent to and fro.
    let may_ask = async |rule: &'static str| {
        let importing = cluster.node(1);
        let set = ["ACL", "SETUSER", "default", rule];
        importing.command(&set).await.unwrap();
    };
    may_ask("-asking").await;
    let before = client.status().cluster.unwrap().redirects;
    let incr = client.send(&cmd(&format!("INCR {key}"))).await;
    let transaction = client.send_pipeline(&both).await;
    let after = client.status().cluster.unwrap().redirects;
    may_ask("+asking").await;
    for error in [incr.unwrap_err(), transaction.unwrap_err()] {
        assert!(error.to_string().contains("'asking'"), "{error}");
        assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
    }
    assert_eq!(after - before, 2, "each was redirected once");
    cluster.end_migration(&slots, 0, 1).await.unwrap();
    let value = client.send(&cmd(&format!("INCR {key}"))).await.unwrap();
    assert_eq!(value, Value::Int(6));
    let status = client.status();
    assert_eq!(status.breaker, "closed");
    scripts_that_write_redirects(&cluster).await;
    deadlines_that_are_too_short(&cluster).await;
}

/// T10: a script may write the words of a redirect, after it has counted. It is believed once, no
/// route changes by it, and its caller is not told that nothing has run.
async fn scripts_that_write_redirects(cluster: &Cluster) {
    let client = client_of(cluster).await;
    let key = &keys_of(cluster, 0, 1).await[0];
    let (own, other) = (cluster.node(0).addr(), cluster.node(2).addr());
    let own_address = Some(own.to_string());
    for (word, to, times) in [("MOVED", own, 1), ("MOVED", other, 1), ("ASK", other, 1)] {
        client.send(&cmd(&format!("SET {key} 0"))).await.unwrap();
        let words = format!("{word} {} {to}", slot(key));
        let script = "redis.call('INCR', KEYS[1]) return redis.error_reply(ARGV[1])";
        let mut eval = redis::cmd("EVAL");
        eval.arg(script).arg(1).arg(key).arg(&words);
        let error = client.send(&eval).await.unwrap_err();
        assert_eq!(error.certainty(), Certainty::Unknown, "{words}: {error}");
        assert_eq!(counted(&client, key).await, times, "{words}: {error}");
        assert_eq!(client.toward(key).node(), own_address, "{words}");
        // In a pipeline too, whose other commands go where they belong.
        let mut both = redis::pipe();
        both.add_command(cmd(&format!("SET {key} 0")));
        both.add_command(eval);
        let answers = client.send_pipeline(&both).await.unwrap();
        // What it wrote, or what the node to which that led says.
        let Value::ServerError(said) = &answers[1] else {
            panic!("{words}: {answers:?}");
        };
        assert!(["MOVED", "ASK"].contains(&said.code()), "{words}: {said:?}");
        assert_eq!(counted(&client, key).await, times, "{words}: {answers:?}");
        assert_eq!(client.toward(key).node(), own_address, "{words}");
    }
}

/// T4: a caller who gives its calls less time than they take learns nothing of the cluster, and is
/// no reason to ask who serves.
async fn deadlines_that_are_too_short(cluster: &Cluster) {
    let client = client_of(cluster).await;
    let key = &keys_of(cluster, 0, 1).await[0];
    let get = cmd(&format!("GET {key}"));
    client.send(&get).await.unwrap();
    let discoveries = || client.status().cluster.unwrap().discoveries;
    let before = discoveries();
    let hasty = client.with(CallOptions::new().deadline(Duration::from_micros(1)));
    let begun = now();
    let mut late = 0;
    while now().duration_since(begun) < ms(1_700) {
        // An answer may come before anybody has looked at the clock.
        late += usize::from(hasty.send(&get).await.is_err());
        tokio::time::sleep(ms(5)).await;
    }
    assert!(late > 0);
    // One may be due anyway, and a busy machine may be doubted.
    let made = discoveries() - before;
    assert!(made <= 2, "{made} discoveries");
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t7_slots_that_move_to_and_fro_under_load_fail_no_call_and_each_incr_counts_once() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(5_000)).connect().await.unwrap();
    let load = Load::start(&client, 64, 300);
    let slots: Vec<u16> = (0..300).map(|n| slot(&format!("count:{n}"))).collect();
    let before = client.status().cluster.unwrap().discoveries;
    let began = now();
    let moving = cluster.keep_moving(&slots, 1_000, tokio::time::sleep(ms(10_000)));
    let moved = moving.await.unwrap();
    let took = now().duration_since(began);
    let status = client.status().cluster.unwrap();
    let (errors, acknowledged) = load.end().await;
    assert!(
        errors.is_empty(),
        "{} failed: {:#?}",
        errors.len(),
        &errors[..errors.len().min(10)]
    );
    assert!(moved > 20 && status.redirects > 0, "{moved}: {status:?}");
    let most = 10.0 * took.as_secs_f64() + 1.0;
    assert!((status.discoveries - before) as f64 <= most, "{status:?}");
    for (key, count) in acknowledged.iter() {
        assert_eq!(
            counted(&client, key).await,
            count.load(Ordering::Relaxed),
            "{key}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t5_a_shard_that_is_frozen_fails_and_delays_no_call_to_another_and_is_named() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let (own, others) = (keys_of(&cluster, 0, 1).await, keys_of(&cluster, 1, 5).await);
    client
        .send(&cmd(&format!("SET {} v", own[0])))
        .await
        .unwrap();
    cluster.node(0).freeze().unwrap();
    let key = own[0].clone();
    let asked = client.clone();
    let waits = tokio::spawn(async move { asked.send(&cmd(&format!("GET {key}"))).await });
    // While it is silent, while it is found out to be down, and after that.
    let (mut took, mut left) = (Vec::new(), 200);
    while left > 0 {
        let key = &others[took.len() % others.len()];
        let began = now();
        client.send(&cmd(&format!("SET {key} v"))).await.unwrap();
        took.push(now().duration_since(began));
        left -= usize::from(client.toward(&own[0]).state() == ConnectionState::Down);
        assert!(took.len() < 1_000_000, "it is never known to be down");
    }
    let slow = took.iter().filter(|took| **took > ms(200)).count();
    assert!(slow * 10 < took.len(), "{slow} of {}", took.len());
    assert_eq!(client.state(), ConnectionState::Partial);
    waits.await.unwrap().unwrap_err();
    let mut shortest = Duration::MAX;
    for _ in 0..10 {
        let began = now();
        let refused = client.send(&cmd(&format!("GET {}", own[0]))).await;
        refused.unwrap_err();
        shortest = shortest.min(now().duration_since(began));
    }
    assert!(
        shortest < ms(50),
        "its own are refused at once: {shortest:?}"
    );
    let error = client
        .send(&cmd(&format!("GET {}", own[0])))
        .await
        .unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotSent);
    let node = cluster.node(0).addr().to_string();
    assert!(error.to_string().contains(&node), "{error}");
    assert!(error.to_string().contains("slots 0-"), "{error}");
    cluster.node(0).resume().unwrap();
    until("it serves again", || {
        client.toward(&own[0]).state() == ConnectionState::Ready
    })
    .await;
    client.send(&cmd(&format!("GET {}", own[0]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t23_a_planned_failover_under_load_fails_no_call_and_each_incr_counts_once() {
    // Under this load a busy machine may take a second for an answer: nobody is to be voted out, or
    // to count as silent.
    let builder = Cluster::builder().node_timeout(Duration::from_secs(15));
    let cluster = builder.start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.response_idle_timeout(ms(5_000));
    let client = builder.deadline(ms(10_000)).connect().await.unwrap();
    let load = Load::start(&client, 16, 60);
    // Each once: a node that is promoted again within four times its timeout counts old votes.
    for at in 0..3 {
        let replica = cluster.fail_over(at, FailoverKind::Planned).await;
        assert_eq!(replica.unwrap(), at + 3);
        cluster.well().await.unwrap();
    }
    let (errors, acknowledged) = load.end().await;
    assert!(
        errors.is_empty(),
        "{} failed: {:#?}",
        errors.len(),
        &errors[..errors.len().min(10)]
    );
    for (key, count) in acknowledged.iter() {
        assert_eq!(
            counted(&client, key).await,
            count.load(Ordering::Relaxed),
            "{key}"
        );
    }
}

/// To find and connect to the node that takes over takes longer than the grace, and nothing is
/// wrong with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t23_calls_wait_for_the_first_connection_to_a_node_that_takes_over_and_no_outage_is_told() {
    let builder = Cluster::builder().node_timeout(Duration::from_secs(15));
    let cluster = builder.each(has_a_name).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.resolver(DistantNames).connect_timeout(ms(5_000));
    let client = builder.deadline(ms(30_000)).connect().await.unwrap();
    let load = Load::start(&client, 4, 60);
    let replica = cluster.fail_over(0, FailoverKind::Planned).await.unwrap();
    let key = &keys_of(&cluster, replica, 1).await[0];
    client.send(redis::cmd("INCR").arg(key)).await.unwrap();
    let (errors, _) = load.end().await;
    assert!(errors.is_empty(), "{} failed: {errors:#?}", errors.len());
    let mut history = client.history().into_iter();
    let down = history.find(|event| matches!(event.kind, EventKind::Down { .. }));
    assert!(down.is_none(), "{down:?}");
}

/// Many clients in one process, each of which asks for the same key again and again.
struct Many {
    clients: Vec<Client>,
    callers: JoinSet<()>,
    began: std::time::Instant,
}

impl Many {
    async fn start(cluster: &Cluster, count: usize, key: &str) -> Self {
        let clients = (0..count).map(|_| {
            let builder = Client::builder(&cluster.url()).unwrap();
            builder.deadline(ms(10_000)).build().unwrap()
        });
        let clients: Vec<Client> = clients.collect();
        let (mut callers, get) = (JoinSet::new(), cmd(&format!("GET {key}")));
        let connected = Arc::new(AtomicU64::new(0));
        for client in clients.clone() {
            let (get, key) = (get.clone(), key.to_owned());
            let connected = Arc::clone(&connected);
            callers.spawn(async move {
                // So many that begin at once keep a busy machine busy for longer than the grace.
                while client.send(&get).await.is_err() {
                    tokio::time::sleep(ms(50)).await;
                }
                let first = client.toward(&key).node();
                connected.fetch_add(1, Ordering::Relaxed);
                // Until another node serves it.
                while client.send(&get).await.is_err() || client.toward(&key).node() == first {
                    tokio::time::sleep(ms(50)).await;
                }
            });
        }
        until("all are connected", || {
            connected.load(Ordering::Relaxed) == count as u64
        })
        .await;
        Self {
            clients,
            callers,
            began: now(),
        }
    }

    /// T31, T4: all of them get there, and none asks the others more often than it may.
    async fn end(self) {
        self.callers.join_all().await;
        let seconds = now().duration_since(self.began).as_secs_f64();
        let discoveries = self.clients.iter().map(|client| {
            let status = client.status().cluster.unwrap();
            status.discoveries
        });
        let discoveries: Vec<u64> = discoveries.collect();
        let all = discoveries.iter().sum::<u64>() as f64 / self.clients.len() as f64;
        let most = discoveries.iter().max().copied().unwrap_or_default() as f64;
        assert!(all <= 8.0 + 3.0 * seconds, "{all} in {seconds} s");
        assert!(most <= 8.0 + 10.0 * seconds, "{most} in {seconds} s");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_t16_t31_a_primary_that_is_killed_is_followed_to_its_replica_by_any_number_of_clients() {
    let cluster = Cluster::start().await.unwrap();
    let client = client_of(&cluster).await;
    let (own, others) = (keys_of(&cluster, 0, 1).await, keys_of(&cluster, 1, 1).await);
    client
        .send(&cmd(&format!("SET {} v", own[0])))
        .await
        .unwrap();
    let patient = Client::builder(&cluster.url()).unwrap();
    let patient = patient.deadline(ms(60_000)).wait_for_primary(ms(60_000));
    let patient = patient.connect().await.unwrap();
    let many = Many::start(&cluster, 50, &own[0]).await;
    cluster.node(0).kill().await;
    let waits = {
        let words = format!("SET {} w", own[0]);
        tokio::spawn(async move { patient.send(&cmd(&words)).await })
    };
    let began = now();
    loop {
        client
            .send(&cmd(&format!("SET {} v", others[0])))
            .await
            .unwrap();
        if client
            .send(&cmd(&format!("SET {} w", own[0])))
            .await
            .is_ok()
        {
            break;
        }
        assert!(
            now().duration_since(began) < Duration::from_secs(60),
            "{:#?}",
            client.status()
        );
        tokio::time::sleep(ms(20)).await;
    }
    // T32: however often it is tried meanwhile.
    waits.await.unwrap().unwrap();
    many.end().await;
    until("every slot is served", || {
        client.state() == ConnectionState::Ready
    })
    .await;
}

#[tokio::test]
async fn t18_a_node_that_flapped_and_was_succeeded_flaps_no_more_and_its_outage_is_over() {
    let cluster = Cluster::start().await.unwrap();
    let client = client_of(&cluster).await;
    let own = keys_of(&cluster, 0, 1).await.remove(0);
    let set = cmd(&format!("SET {own} v"));
    for _ in 0..40 {
        let _ = client.send(&set).await;
        if client.status().flapping.is_some() {
            break;
        }
        let kill = ["CLIENT", "KILL", "TYPE", "normal"];
        cluster.node(0).command(&kill).await.unwrap();
        tokio::time::sleep(ms(100)).await;
    }
    assert!(client.status().flapping.is_some());
    cluster.node(0).kill().await;
    until("its replica serves", || {
        let told = client.history().into_iter();
        told.map(|event| event.kind.name())
            .any(|name| name == "retired")
    })
    .await;
    assert_eq!(client.status().flapping, None);
    let incidents = client.incidents();
    let over = incidents.iter().all(|one| one.recovery_ms.is_some());
    assert!(over, "{incidents:#?}");
    assert_eq!(client.close(ms(1_000)).await.unfinished, 0);
    assert_eq!(client.close(ms(1_000)).await.unfinished, 0);
    let closed = client.history().into_iter();
    let closed = closed.filter(|event| event.node.is_none() && event.kind.name() == "closed");
    assert_eq!(closed.count(), 1, "told once");
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

#[tokio::test]
async fn t5_the_first_connections_are_made_side_by_side_and_who_is_late_is_named() {
    let builder = Cluster::builder().primaries(8).replicas(0);
    let cluster = builder.each(has_a_name).start().await.unwrap();
    let builder = || {
        Client::builder(&cluster.url())
            .unwrap()
            .resolver(DistantNames)
    };
    let builder = || builder().connect_timeout(ms(4_000));
    let connected = builder().deadline(ms(6_000)).connect().await;
    assert_eq!(connected.unwrap().state(), ConnectionState::Ready);
    // Known, and not yet connected.
    let frozen = cluster.node(0);
    frozen.freeze().unwrap();
    let error = builder().deadline(ms(5_000)).connect().await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("7 of 8 primaries are connected"), "{error}");
    assert!(
        error.contains(&format!(":{}", frozen.addr().port())),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_calls_and_pipelines_of_every_slot_wait_through_an_election_in_their_order() {
    // As servers are by default: while one slot has no primary, every node refuses.
    let builder = Cluster::builder().require_full_coverage(true);
    let cluster = builder.start().await.unwrap();
    let (own, others) = (keys_of(&cluster, 0, 1).await, keys_of(&cluster, 1, 1).await);
    let patient = Client::builder(&cluster.url()).unwrap();
    let patient = patient.deadline(ms(60_000)).wait_for_primary(ms(60_000));
    let patient = patient.connect().await.unwrap();
    for key in [&own[0], &others[0]] {
        patient.send(&cmd(&format!("SET {key} 0"))).await.unwrap();
    }
    cluster.node(0).kill().await;
    let mut calls = Vec::new();
    // Until well after the new primary serves.
    let (began, mut served) = (now(), None);
    while served.is_none_or(|served| now().duration_since(served) < ms(500)) {
        assert!(now().duration_since(began) < Duration::from_secs(50));
        let number = calls.len() / 2;
        for key in [&own[0], &others[0]] {
            let (client, words) = (patient.clone(), format!("SET {key} {number}"));
            let mut pipeline = redis::pipe();
            for key in [&own[0], &others[0]] {
                pipeline.set(key, number);
            }
            let mut call: BoxFuture<'_, _> = Box::pin(async move {
                match number % 3 {
                    // Over both shards, or over the one.
                    1 => client.send_pipeline(&pipeline).await.map(drop),
                    2 => {
                        let mut pipeline = redis::pipe();
                        pipeline.add_command(cmd(&words));
                        client.send_pipeline(&pipeline).await.map(drop)
                    }
                    _ => client.send(&cmd(&words)).await.map(drop),
                }
            });
            // It is submitted in this order, whichever thread serves it later.
            let polled = futures_util::poll!(&mut call);
            calls.push(tokio::spawn(async move {
                match polled {
                    std::task::Poll::Ready(result) => result,
                    std::task::Poll::Pending => call.await,
                }
            }));
        }
        if served.is_none() && calls[0].is_finished() {
            served = Some(now());
        }
        tokio::time::sleep(ms(20)).await;
    }
    let last = (calls.len() / 2 - 1) as u64;
    // By key: whether each of its calls was served.
    let mut served = [Vec::new(), Vec::new()];
    for (at, call) in calls.into_iter().enumerate() {
        let keys = match at / 2 % 3 {
            1 => vec![0, 1],
            _ => vec![at % 2],
        };
        let overtaken = match call.await.unwrap() {
            Ok(()) => Vec::new(),
            Err(error) => overtaken_in(&error, &keys),
        };
        for key in keys {
            served[key].push(!overtaken.contains(&key));
        }
    }
    for served in served {
        // A node may refuse commands and serve those behind them: those have overtaken them, and
        // they say so. That happens once, as it comes to serve.
        let changes = served.windows(2).filter(|both| both[0] != both[1]);
        assert!(
            changes.count() <= 2 && served.ends_with(&[true]),
            "{served:?}"
        );
    }
    assert_eq!(counted(&patient, &own[0]).await, last);
    assert_eq!(counted(&patient, &others[0]).await, last);
}

/// Which of its keys, by their numbers, a call was overtaken in: that it has not run for them is
/// certain, and nothing else befell it.
fn overtaken_in(error: &steadfast::Error, keys: &[usize]) -> Vec<usize> {
    let words = ErrorKind::Overtaken.to_string();
    match error.kind() {
        ErrorKind::Overtaken if error.certainty() != Certainty::Unknown => keys.to_vec(),
        ErrorKind::Partial {
            cause,
            not_run,
            unknown,
            ..
        } if unknown.is_empty() && cause.contains(&words) => {
            not_run.iter().map(|command| keys[*command]).collect()
        }
        _ => panic!("{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_t8_calls_wait_in_their_order_for_a_first_view_and_pipelines_for_a_node_not_known_yet()
{
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    // However long a busy machine takes to find them.
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.reconnect_grace(ms(5_000));
    let client = builder.deadline(ms(10_000)).build().unwrap();
    let pushes = (0..40).map(|n| {
        let client = &client;
        async move {
            if n % 3 == 1 {
                let mut pipeline = redis::pipe();
                pipeline.rpush("list", n).set("elsewhere", n);
                return client.send_pipeline(&pipeline).await.map(drop);
            }
            let push = cmd(&format!("RPUSH list {n}"));
            client.send(&push).await.map(drop)
        }
    });
    for pushed in futures_util::future::join_all(pushes).await {
        pushed.unwrap();
    }
    let list = client.send(&cmd("LRANGE list 0 -1")).await.unwrap();
    let text = |n: usize| Value::BulkString(n.to_string().into_bytes());
    assert_eq!(list, Value::Array((0..40).map(text).collect()));

    // A node of which the client has not heard yet.
    let key = keys_of(&cluster, 0, 1).await.remove(0);
    client.send(&cmd(&format!("SET {key} 1"))).await.unwrap();
    let added = cluster.add_node().await.unwrap();
    let slots = [slot(&key)];
    cluster.begin_migration(&slots, 0, added).await.unwrap();
    cluster.move_keys(&slots, 0, added, 100).await.unwrap();
    let mut pipeline = redis::pipe();
    pipeline.incr(&key, 1).get("list2").incr(&key, 1);
    let replies = client.send_pipeline(&pipeline).await.unwrap();
    assert_eq!(replies, [Value::Int(2), Value::Nil, Value::Int(3)]);
    cluster.end_migration(&slots, 0, added).await.unwrap();
    t8_t9_in_half_a_first_view_only_what_has_no_owner_waits_and_keeps_its_place(&cluster).await;
}

async fn t8_t9_in_half_a_first_view_only_what_has_no_owner_waits_and_keeps_its_place(
    cluster: &Cluster,
) {
    let [unowned, known] = [0, 1].map(|at| keys_of(cluster, at, 1));
    let (unowned, known) = (unowned.await.remove(0), known.await.remove(0));
    let number = slot(&unowned).to_string();
    for node in cluster.nodes() {
        let serves = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
        node.command(&serves).await.unwrap();
    }
    // Its owner, who comes first, tells the others that it is theirs else.
    let owners = async || {
        let mut owners = 0;
        for node in cluster.nodes() {
            let forgotten = node.command(&["CLUSTER", "DELSLOTS", &number]).await;
            owners += usize::from(forgotten.is_ok());
        }
        owners
    };
    eventually("nobody owns it", async || owners().await == 0).await;
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.reconnect_grace(ms(30_000));
    let client = builder.deadline(ms(60_000)).connect().await.unwrap();
    client.send(&cmd(&format!("SET {known} 0"))).await.unwrap();
    let (mut pipeline, push) = (redis::pipe(), cmd(&format!("RPUSH {unowned} 2")));
    pipeline.rpush(&unowned, 1).ping().incr(&known, 1);
    let owned_later = async {
        eventually("what has an owner is served", async || {
            let get = client.send(&cmd(&format!("GET {known}"))).await;
            get.unwrap() == Value::BulkString(b"1".to_vec())
        })
        .await;
        let adds = ["CLUSTER", "ADDSLOTS", &number];
        cluster.node(0).command(&adds).await.unwrap();
    };
    let calls = (client.send_pipeline(&pipeline), client.send(&push));
    let (first, second, ()) = tokio::join!(biased; calls.0, calls.1, owned_later);
    let pong = Value::SimpleString("PONG".to_owned());
    assert_eq!(first.unwrap(), [Value::Int(1), pong, Value::Int(1)]);
    assert_eq!(second.unwrap(), Value::Int(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t8_t11_pipelines_and_commands_over_all_slots_are_joined_in_order_while_slots_move() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let slots = |name: &'static str| (0..40).map(move |n| slot(&format!("{name}:{n}")));
    let slots: Vec<u16> = slots("piped").chain(slots("wide")).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    let stalls = Arc::new(Stalls::watch());
    for caller in 0..4u64 {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        let stalls = Arc::clone(&stalls);
        callers.spawn(async move {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                let mut pipeline = redis::pipe();
                for n in 0..40 {
                    let key = format!("piped:{n}");
                    pipeline.hincr(&key, caller, 1).hget(&key, caller);
                }
                let replies = match client.send_pipeline(&pipeline).await {
                    Ok(replies) => replies,
                    // Some of its commands have run, so its counts differ from now on.
                    Err(error) if stalls.explain(&error) => return rounds,
                    Err(error) => panic!("{error}"),
                };
                assert_eq!(replies.len(), 80);
                for pair in replies.chunks(2) {
                    let text = Value::BulkString(rounds.to_string().into_bytes());
                    assert_eq!(pair, [Value::Int(rounds), text], "{rounds}");
                }
            }
            rounds
        });
    }
    let mut wide = JoinSet::new();
    for caller in 0..4u64 {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        let stalls = Arc::clone(&stalls);
        wide.spawn(async move { read_and_write_wide(client, caller, &stop, &stalls).await });
    }
    let moving = cluster.keep_moving(&slots, 1_000, tokio::time::sleep(ms(5_000)));
    let moved = moving.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let rounds: i64 = callers.join_all().await.into_iter().sum();
    let wide: i64 = wide.join_all().await.into_iter().sum();
    assert!(moved > 0 && rounds > 0 && wide > 0);
}

/// Writes a key of each slot that moves by one MSET, reads them by one MGET and deletes half of
/// them by one DEL: a part that is redirected is followed, and what it answers is joined at the
/// place of its keys. Returns how often.
async fn read_and_write_wide(
    client: Client,
    caller: u64,
    stop: &AtomicBool,
    stalls: &Stalls,
) -> i64 {
    let client = client.with(steadfast::CallOptions::new().divide_mset(true));
    let keys: Vec<String> = (0..40).map(|n| format!("{{wide:{n}}}:{caller}")).collect();
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let (mut mset, mut mget, mut del) =
            (redis::cmd("MSET"), redis::cmd("MGET"), redis::cmd("DEL"));
        for (n, key) in keys.iter().enumerate() {
            mset.arg(key).arg(format!("{rounds}:{n}"));
        }
        mget.arg(&keys);
        del.arg(&keys[..20]);
        let text = |n: usize| Value::BulkString(format!("{rounds}:{n}").into_bytes());
        let there = Value::Array((0..40).map(text).collect());
        let half = (0..40).map(|n| if n < 20 { Value::Nil } else { text(n) });
        let wanted = [
            (&mset, Value::Okay),
            (&mget, there),
            (&del, Value::Int(20)),
            (&mget, Value::Array(half.collect())),
        ];
        for (cmd, wanted) in wanted {
            match client.send(cmd).await {
                Ok(value) => assert_eq!(value, wanted, "round {rounds}"),
                Err(error) if stalls.explains_part_of(&error) => return rounds,
                Err(error) => panic!("{error}"),
            }
        }
        rounds += 1;
    }
    rounds
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
