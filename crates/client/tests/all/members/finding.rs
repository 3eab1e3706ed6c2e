//! How nodes are found, and asked who serves which slot.

use std::sync::Mutex;

use steadfast::EventKind;
use steadfast_drill::process::Redis;

use super::*;

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
