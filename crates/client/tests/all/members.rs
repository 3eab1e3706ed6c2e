//! T2 to T31 of a cluster: who its nodes are, by which names, and what they allow to be asked.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesOrdered;
use steadfast::credentials::{Credentials, CredentialsError, CredentialsProvider, FileCredentials};
use steadfast::redis::{self, Value};
use steadfast::{
    Certainty, Client, ConnectionState, ErrorKind, EventKind, PubSub, PubSubEvent, Resolve,
};
use steadfast_drill::process::{Cluster, FailoverKind, Redis};
use steadfast_drill::scripted::{Script, Server};

use crate::support::{Faulty, KeptAwake, Then, cmd, eventually, ms, now, slot, until};

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

#[tokio::test]
async fn t3_one_question_that_is_allowed_is_enough_and_what_is_not_allowed_is_told() {
    let users = [
        ("info", "-cluster|info", &["CLUSTER INFO"][..]),
        (
            "nodes",
            "-cluster +cluster|nodes",
            &["CLUSTER INFO", "CLUSTER MYID", "CLUSTER SHARDS"],
        ),
        (
            "shards",
            "-cluster +cluster|shards",
            &["CLUSTER INFO", "CLUSTER MYID", "CLUSTER NODES"],
        ),
        (
            "slots",
            "-cluster +cluster|slots",
            &[
                "CLUSTER INFO",
                "CLUSTER MYID",
                "CLUSTER NODES",
                "CLUSTER SHARDS",
            ],
        ),
        ("nothing", "-cluster", &[]),
    ];
    let acl = |name: &str, rule: &str| format!("{name} on >pw ~* &* +@all {rule}");
    let builder = Cluster::builder().replicas(0).each(|redis| {
        let rules = users.iter();
        rules.fold(redis, |redis, (name, rule, _)| redis.acl(acl(name, rule)))
    });
    let cluster = builder.start().await.unwrap();
    let url = |user: &str| cluster.url().replace("://", &format!("://{user}:pw@"));
    for (user, _, not_allowed) in &users[..4] {
        let client = client_at(&url(user)).await;
        serves(&cluster, &client).await;
        let status = client.status().cluster.unwrap();
        assert_eq!(status.not_allowed, *not_allowed, "{user}");
    }
    let builder = Client::builder(&url("nothing")).unwrap();
    let refused = builder.deadline(ms(2_000)).connect().await.unwrap_err();
    let said = refused.to_string();
    assert!(said.contains("CLUSTER NODES, CLUSTER SHARDS"), "{said}");
}

#[tokio::test]
async fn t25_nodes_are_known_by_whichever_endpoint_they_prefer_to_be_dialled_at() {
    let builder = Cluster::builder().replicas(0).each(|redis| {
        redis
            .config("cluster-announce-hostname", "localhost")
            .config("cluster-preferred-endpoint-type", "hostname")
    });
    let cluster = builder.start().await.unwrap();
    let hosts = |client: &Client| -> Vec<String> {
        let nodes = client.status().cluster.unwrap().nodes.into_iter();
        let addresses = nodes.filter_map(|node| node.address);
        let host = |at: String| at.rsplit_once(':').map(|(host, _)| host.to_owned());
        addresses.filter_map(host).collect()
    };
    let by_name = client_at(&cluster.url()).await;
    serves(&cluster, &by_name).await;
    assert_eq!(hosts(&by_name), ["localhost"; 3]);
    // An empty host: wherever the answer came from.
    for (kind, host) in [("unknown-endpoint", "127.0.0.1"), ("ip", "127.0.0.1")] {
        for node in cluster.nodes() {
            let set = ["CONFIG", "SET", "cluster-preferred-endpoint-type", kind];
            node.command(&set).await.unwrap();
        }
        let client = client_at(&cluster.url()).await;
        serves(&cluster, &client).await;
        assert_eq!(hosts(&client), [host; 3], "{kind}");
        // One that knows them by their names goes on.
        serves(&cluster, &by_name).await;
    }
    // One that has no name is `?` to redirects, for ever or until somebody tells who it is.
    for node in cluster.nodes() {
        let set = [
            "CONFIG",
            "SET",
            "cluster-preferred-endpoint-type",
            "hostname",
        ];
        node.command(&set).await.unwrap();
    }
    let nameless = ["CONFIG", "SET", "cluster-announce-hostname", ""];
    cluster.node(1).command(&nameless).await.unwrap();
    eventually("all know that", async || {
        let asked = ["CLUSTER", "SLOTS"];
        let told = cluster.node(0).command(&asked).await.unwrap();
        format!("{told:?}").contains("\"?\"") || format!("{told:?}").contains("'?'")
    })
    .await;
    serves(&cluster, &client_at(&cluster.url()).await).await;
    serves(&cluster, &by_name).await;
}

/// A name with several addresses.
#[derive(Debug)]
struct SeedAddresses(Mutex<Vec<SocketAddr>>);

impl Resolve for SeedAddresses {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        let found = match host.parse() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => self.0.lock().unwrap().clone(),
        };
        Box::pin(async move { Ok(found) })
    }
}

#[derive(Clone, Debug)]
struct SeedName(Arc<SeedAddresses>);

impl Resolve for SeedName {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        self.0.resolve(host, port)
    }
}

#[tokio::test]
async fn t2_every_address_of_a_seed_is_asked_and_all_nodes_may_change_theirs_at_once() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let plain = Redis::start().await.unwrap();
    // The first accepts connections, and is no node of a cluster.
    let addresses = vec![plain.addr(), cluster.node(1).addr()];
    let name = SeedName(Arc::new(SeedAddresses(Mutex::new(addresses))));
    let builder = Client::builder("redis-cluster://seed.example:1").unwrap();
    let builder = builder.deadline(ms(10_000)).resolver(name.clone());
    let client = builder.connect().await.unwrap();
    let key = key_of(&cluster, 0).await;
    client.send(&cmd(&format!("SET {key} v"))).await.unwrap();
    cluster.change_addresses(&[0, 1, 2]).await.unwrap();
    *name.0.0.lock().unwrap() = vec![plain.addr(), cluster.node(2).addr()];
    let set = cmd(&format!("SET {key} w"));
    eventually("the slot is served", async || {
        client.send(&set).await.is_ok()
    })
    .await;
    until("all are known where they are", || {
        let nodes = client.status().cluster.unwrap().nodes;
        let at: Vec<_> = nodes.into_iter().filter_map(|node| node.address).collect();
        cluster
            .addresses()
            .iter()
            .all(|address| at.contains(address))
    })
    .await;
}

/// Servers that accept connections and never say a word.
async fn silent(count: usize) -> Vec<Server> {
    let mut silent = Vec::new();
    for _ in 0..count {
        silent.push(Server::start(Script::new()).await.unwrap());
    }
    silent
}

fn url_of(addresses: impl Iterator<Item = SocketAddr>) -> String {
    let hosts: Vec<_> = addresses.map(|at| at.to_string()).collect();
    format!("redis-cluster://{}", hosts.join(","))
}

#[tokio::test]
async fn t2_t4_a_round_of_questions_ends_though_very_many_nodes_are_silent_and_all_are_asked() {
    let silent = silent(60).await;
    let url = url_of(silent.iter().map(Server::addr));
    let builder = Client::builder(&url).unwrap().connect_timeout(ms(100));
    let client = builder.build().unwrap();
    let asked = || silent.iter().filter(|one| one.connections() > 0).count();
    let (mut rounds, mut first) = (0, 0);
    until("the next round begins", || {
        rounds = client.status().cluster.unwrap().discoveries;
        first = asked();
        rounds > 1
    })
    .await;
    assert!(first < silent.len(), "all were asked in one round");
    until("each is asked in some round", || asked() == silent.len()).await;
}

#[tokio::test]
async fn t2_nodes_that_are_silent_keep_others_from_being_asked_for_a_moment_only() {
    let cluster = Cluster::shared().await.unwrap();
    let silent = silent(5).await;
    let addresses = silent.iter().map(Server::addr);
    let url = url_of(addresses.chain([cluster.node(0).addr()]));
    let long = ms(20_000);
    let connects = (0..6).map(|seed| {
        let builder = Client::builder(&url).unwrap().seed(seed);
        let builder = builder.connect_timeout(long).deadline(long);
        let builder = builder.watchdog_timeout(5 * long);
        async move { builder.connect().await.unwrap() }
    });
    let begun = now();
    futures_util::future::join_all(connects).await;
    let took = now() - begun;
    assert!(took < long / 2, "{took:?}");
}

#[tokio::test]
async fn t3_t26_a_seed_that_leads_to_another_cluster_takes_nothing_over_while_this_one_answers() {
    let (ours, other) = (
        Cluster::builder().replicas(0),
        Cluster::builder().primaries(1).replicas(0),
    );
    let (ours, other) = (ours.start().await.unwrap(), other.start().await.unwrap());
    let name = SeedName(Arc::new(SeedAddresses(Mutex::new(vec![
        ours.node(1).addr(),
    ]))));
    let builder = Client::builder("redis-cluster://seed.example:1").unwrap();
    let builder = builder.deadline(ms(10_000)).resolver(name.clone());
    let client = builder.connect().await.unwrap();
    let key = key_of(&ours, 0).await;
    let set = cmd(&format!("SET {key} v"));
    client.send(&set).await.unwrap();
    *name.0.0.lock().unwrap() = vec![other.node(0).addr()];
    let discoveries = || client.status().cluster.unwrap().discoveries;
    let before = discoveries();
    while discoveries() < before + 6 {
        // Which is a reason to look who is there.
        let nobody = client.node("127.0.0.1:1").send(&cmd("PING")).await;
        nobody.unwrap_err();
        tokio::time::sleep(ms(20)).await;
    }
    let nodes = client.status().cluster.unwrap().nodes;
    assert_eq!(nodes.len(), 3, "{nodes:#?}");
    client.send(&set).await.unwrap();
    let size = |cluster: &Cluster| {
        let node = cluster.node(0);
        async move { node.command(&["DBSIZE"]).await.unwrap() }
    };
    assert_eq!(size(&other).await, Value::Int(0));
    let told = |wanted: bool| {
        let history = client.history().into_iter();
        let told = history.filter(|event| match &event.kind {
            EventKind::OtherCluster { id, believed, .. } => {
                id == other.node(0).id() && *believed == wanted
            }
            _ => false,
        });
        told.count()
    };
    assert_eq!(
        [told(false), told(true)],
        [1, 0],
        "once, however often it is met"
    );
    // If nobody of this one is there any more, it was made anew.
    for node in ours.nodes() {
        node.kill().await;
    }
    let begun = now();
    while client.send(&set).await.is_err() {
        assert!(now().duration_since(begun) < Duration::from_secs(30));
        tokio::time::sleep(ms(20)).await;
    }
    assert_eq!(size(&other).await, Value::Int(1));
    assert_eq!([told(false), told(true)], [1, 1]);
}

#[tokio::test]
async fn t9_calls_wait_in_their_order_for_a_node_that_comes_back_at_another_address() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.deadline(ms(30_000)).reconnect_grace(ms(20_000));
    let client = builder.connect().await.unwrap();
    let key = key_of(&cluster, 0).await;
    let push = |value: usize| {
        let (client, words) = (client.clone(), format!("RPUSH {key} {value}"));
        async move { client.send(&cmd(&words)).await }
    };
    push(0).await.unwrap();
    cluster.node(0).kill().await;
    until("it is lost", || {
        client.toward(&key).state() != ConnectionState::Ready
    })
    .await;
    // Some wait before the node is known to be elsewhere, and some come after that, without a
    // pause.
    let mut moving = pin!(async {
        cluster.change_addresses(&[0]).await.unwrap();
        tokio::time::sleep(ms(500)).await;
    });
    let mut calls = FuturesOrdered::new();
    let mut value = 0;
    while futures_util::poll!(moving.as_mut()).is_pending() {
        value += 1;
        calls.push_back(push(value));
        // Submitted in this order.
        if let Ok(Some(answer)) = tokio::time::timeout(ms(2), calls.next()).await {
            answer.unwrap();
        }
    }
    while let Some(answer) = calls.next().await {
        answer.unwrap();
    }
    let Value::Array(list) = client
        .send(&cmd(&format!("LRANGE {key} 0 -1")))
        .await
        .unwrap()
    else {
        panic!("a list is asked for")
    };
    let wanted = (1..=value).map(|n| Value::BulkString(n.to_string().into_bytes()));
    assert_eq!(list, wanted.collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t9_t6_what_was_submitted_first_runs_first_while_its_slot_moves() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(20_000)).connect().await.unwrap();
    let keys: Vec<String> = (0..8).map(|n| format!("list:{n}")).collect();
    let slots: Vec<u16> = keys.iter().map(|key| slot(key)).collect();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (keys.iter().cloned())
        .map(|key| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut next = 0_usize;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // Polled in this order, so submitted in this order.
                    let calls = (next..next + 8).map(|value| {
                        let (client, key) = (&client, &key);
                        async move {
                            if value % 8 == 5 {
                                let mut pipe = redis::pipe();
                                pipe.rpush(key, value).rpush("{other}", value);
                                return client.send_pipeline(&pipe).await.map(drop);
                            }
                            let words = format!("RPUSH {key} {value}");
                            client.send(&cmd(&words)).await.map(drop)
                        }
                    });
                    for answer in join_all(calls).await {
                        if let Err(error) = answer {
                            let kind = error.kind();
                            assert!(matches!(kind, ErrorKind::Overtaken), "{error}");
                        }
                    }
                    next += 8;
                }
                next
            })
        })
        .collect();
    let moving = cluster.keep_moving(&slots, 1_000, tokio::time::sleep(ms(4_000)));
    let moved = moving.await.unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    assert!(moved > 0);
    for key in keys {
        let whole = redis::cmd("LRANGE").arg(&key).arg(0).arg(-1).to_owned();
        let Value::Array(list) = client.send(&whole).await.unwrap() else {
            panic!("a list is asked for")
        };
        let number = |value: &Value| match value {
            Value::BulkString(text) => String::from_utf8_lossy(text).parse::<u64>().unwrap(),
            other => panic!("{other:?}"),
        };
        let pairs = list
            .windows(2)
            .map(|pair| (number(&pair[0]), number(&pair[1])));
        let inverted: Vec<_> = pairs.filter(|(first, second)| first >= second).collect();
        assert!(inverted.is_empty(), "{key}: {inverted:?}");
    }
}

#[tokio::test]
async fn t5_t6_t10_a_slot_that_moves_or_has_no_owner_holds_a_call_up_as_long_as_it_may() {
    let builder = Cluster::builder().replicas(0).each(|redis| {
        // A command that nobody here knows, whose first key is its second argument.
        redis.config("rename-command", "BITOP XBITOP")
    });
    let cluster = builder.start().await.unwrap();
    let client = client_at(&cluster.url()).await;
    let key = key_of(&cluster, 0).await;
    let (one, other) = (format!("{{{key}}}1"), format!("{{{key}}}2"));
    let slots = [slot(&key)];
    for key in [&one, &other] {
        client.send(&cmd(&format!("SET {key} v"))).await.unwrap();
    }

    // The server knows another argument for its key than we do, and that one leads elsewhere.
    let guessed = cluster.owner(slot("NOT")).await.unwrap();
    let known = key_of(&cluster, (guessed + 1) % 3).await;
    let not = format!("XBITOP NOT {{{known}}}1 {{{known}}}2");
    for _ in 0..10 {
        assert_eq!(client.send(&cmd(&not)).await.unwrap(), Value::Int(0));
    }

    // Of two keys one has migrated: for longer than any number of attempts takes.
    cluster.begin_migration(&slots, 0, 1).await.unwrap();
    cluster.move_keys(&slots, 0, 1, 1).await.unwrap();
    let piped = {
        let (client, one, other) = (client.clone(), one.clone(), other.clone());
        tokio::spawn(async move {
            let mut pipe = redis::pipe();
            pipe.mget(&[&one, &other]).del(&[&one, &other]);
            client.send_pipeline(&pipe).await
        })
    };
    tokio::time::sleep(ms(400)).await;
    assert!(!piped.is_finished());
    let script = {
        let (client, one, other) = (client.clone(), one.clone(), other.clone());
        tokio::spawn(async move {
            let script = "return redis.call('EXISTS', KEYS[1], KEYS[2])";
            let mut eval = redis::cmd("EVAL");
            eval.arg(script).arg(2).arg(&one).arg(&other);
            client.send(&eval).await
        })
    };
    tokio::time::sleep(ms(400)).await;
    cluster.move_keys(&slots, 0, 1, 100).await.unwrap();
    cluster.end_migration(&slots, 0, 1).await.unwrap();
    let _ = piped.await.unwrap().unwrap();
    let _ = script.await.unwrap().unwrap();

    // Two nodes that each send to the other: five redirects, and no more.
    let key = key_of(&cluster, 2).await;
    let number = slot(&key).to_string();
    let away = [
        "CLUSTER",
        "SETSLOT",
        &number,
        "MIGRATING",
        cluster.node(0).id(),
    ]
    .map(str::to_owned);
    let away: Vec<&str> = away.iter().map(String::as_str).collect();
    cluster.node(2).command(&away).await.unwrap();
    let redirects = || client.status().cluster.unwrap().redirects;
    let before = redirects();
    let error = client.send(&cmd(&format!("GET {key}"))).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
    assert_eq!(redirects() - before, 5, "{error}");
    let stay = ["CLUSTER", "SETSLOT", &number, "STABLE"];
    cluster.node(2).command(&stay).await.unwrap();

    // A slot without an owner is refused at once, after the first has waited.
    for node in cluster.nodes() {
        node.command(&["CLUSTER", "DELSLOTS", &number])
            .await
            .unwrap();
    }
    let client = client_at(&cluster.url()).await;
    client.send(&cmd(&format!("GET {key}"))).await.unwrap_err();
    let mut shortest = Duration::MAX;
    for _ in 0..5 {
        let begun = now();
        let error = client.send(&cmd(&format!("GET {key}"))).await.unwrap_err();
        shortest = shortest.min(now().duration_since(begun));
        assert!(error.to_string().contains("slot"), "{error}");
    }
    assert!(shortest < ms(200), "each has waited: {shortest:?}");
}

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

/// A cluster of one server.
async fn alone() -> Cluster {
    let builder = Cluster::builder().primaries(1).replicas(0).each(|redis| {
        redis
            .acl("app on >pw ~* &* +@all")
            .acl("next on >pw ~* &* +@all")
    });
    builder.require_full_coverage(true).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn c8_t18_what_others_wrote_may_hang_panic_or_keep_its_thread_and_a_view_comes_all_the_same()
{
    let _awake = KeptAwake::here();
    let cluster = alone().await;
    let at = cluster.node(0).addr();
    let seed = || Client::builder("redis-cluster://app:pw@the-name").unwrap();
    let finds = async |then: Then, of: &'static str| {
        let faulty = Faulty::new(then, at);
        let fault = faulty.clone();
        let builder = seed().connect_timeout(ms(200));
        let client = match of {
            "provider" => builder.resolver(Leads(at)).credentials(faulty),
            "resolver" => builder.resolver(faulty),
            _ => builder
                .resolver(Leads(at))
                .translate_addresses(move |host, port| faulty.translate(host, port)),
        };
        let client = client.build().unwrap();
        let counted = then == Then::Block || then == Then::Panic && of != "translation";
        if counted {
            until(&format!("{then:?} {of} is counted"), || {
                client.status().stuck_resets > 0
            })
            .await;
        }
        // What keeps its thread keeps its place, too: nobody is asked there until it has ended.
        fault.end();
        until("there is a view", || {
            client.state() == ConnectionState::Ready
        })
        .await;
        // Within 200 ms a busy machine, of which some threads are kept, may connect to nobody.
        eventually("it serves", async || {
            client.send(&cmd("GET k")).await.is_ok()
        })
        .await;
        (client, counted, (then, of))
    };
    let parts = ["provider", "resolver", "translation"];
    let cases = [Then::Hang, Then::Panic, Then::Block];
    let cases = cases
        .into_iter()
        .flat_map(|then| parts.map(|of| finds(then, of)));
    // What keeps its thread is counted last: nothing else was by then.
    for (client, counted, of) in join_all(cases).await {
        let resets = client.status().stuck_resets;
        assert_eq!(resets > 0, counted, "{of:?}: {resets}");
    }
    gives_nothing_more(&cluster).await;
}

/// Gives credentials until it is told to give no more.
#[derive(Clone, Debug, Default)]
struct RunsDry(Arc<AtomicBool>);

impl CredentialsProvider for RunsDry {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(async {
            match self.0.load(Ordering::Relaxed) {
                false => Ok(Credentials::new("app", "pw")),
                true => Err(CredentialsError::new("it has none")),
            }
        })
    }

    fn renew_in(&self) -> Option<Duration> {
        None
    }
}

/// Nodes are asked who serves by what the provider gave last.
async fn gives_nothing_more(cluster: &Cluster) {
    let provider = RunsDry::default();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.credentials(provider.clone()).build().unwrap();
    until("it is there", || client.state() == ConnectionState::Ready).await;
    client.send(&cmd("GET k")).await.unwrap();
    let asked = || client.status().cluster.unwrap().discoveries;
    let (before, since) = (asked(), now());
    provider.0.store(true, Ordering::Relaxed);
    let kill = ["CLIENT", "KILL", "USER", "app"];
    cluster.node(0).command(&kill).await.unwrap();
    until("it tells again who serves", || {
        let passed = now().duration_since(since).as_secs_f64() * 1_000.0;
        let heard = client.status().cluster.unwrap().heard_ms_ago;
        asked() > before && heard.is_some_and(|ago| ago < passed)
    })
    .await;
}

#[derive(Debug)]
struct NeverAnswers;

impl CredentialsProvider for NeverAnswers {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(std::future::pending())
    }

    fn renew_in(&self) -> Option<Duration> {
        None
    }
}

/// The last error of a discovery.
async fn until_found_out(client: &Client, words: &str) {
    until(words, || {
        let error = client.status().cluster.unwrap().error;
        error.is_some_and(|error| error.contains(words))
    })
    .await;
}

#[tokio::test]
async fn c16_t18_a_slow_provider_is_named_and_a_node_that_answers_auth_by_anything_but_ok_is_none()
{
    let odd = Server::start(Script::new().send("+QUEUED\r\n"))
        .await
        .unwrap();
    let url = format!("redis-cluster://app:pw@{}", odd.addr());
    let client = Client::builder(&url).unwrap().build().unwrap();
    until_found_out(&client, "answers AUTH by what is no answer").await;
    let builder = Client::builder(&url).unwrap().credentials(NeverAnswers);
    let client = builder.connect_timeout(ms(50)).build().unwrap();
    until_found_out(&client, "credentials took longer than 50ms").await;
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

#[tokio::test]
async fn c16_subscribers_in_a_cluster_take_new_credentials_as_they_live() {
    let cluster = alone().await;
    let node = cluster.node(0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    std::fs::write(&file, "app:pw").unwrap();
    let url = format!("redis-cluster://{}", node.addr());
    let mut all = Vec::new();
    // One that calls too, and one that does nothing but listen.
    for calls in [true, false] {
        let builder = Client::builder(&url).unwrap().name("rotating");
        let provider = FileCredentials::new(&file, None).look_every(ms(50));
        let client = builder.credentials(provider).build().unwrap();
        until("there is a view", || {
            client.state() == ConnectionState::Ready
        })
        .await;
        if calls {
            client.send(&cmd("SET k v")).await.unwrap();
        }
        let mut pubsub = client.pubsub();
        pubsub.subscribe("news").await.unwrap();
        let resumed = pubsub.next().await;
        assert!(
            matches!(resumed, Some(PubSubEvent::Resumed { .. })),
            "{resumed:?}"
        );
        all.push((client, pubsub));
    }
    let users = || {
        let list = node.command_blocking(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        let list: String = redis::from_redis_value(list.unwrap()).unwrap();
        list.matches(" user=next ").count()
    };
    std::fs::write(&file, "next:pw").unwrap();
    until("both have given the new ones", || users() == 2).await;
    node.command(&["PUBLISH", "news", "x"]).await.unwrap();
    for (_client, pubsub) in &mut all {
        let event = pubsub.next().await;
        assert!(
            matches!(event, Some(PubSubEvent::Message { .. })),
            "{event:?}"
        );
    }
}

/// Where every name leads.
#[derive(Debug)]
struct Leads(SocketAddr);

impl Resolve for Leads {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        let own = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
        Box::pin(std::future::ready(Ok(vec![own.unwrap_or(self.0)])))
    }
}
