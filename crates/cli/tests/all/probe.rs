use std::time::Duration;

use steadfast_drill::process::{Cluster, Redis, Tls, Watched};
use steadfast_drill::waiting::eventually;
use tokio::time::{Instant, sleep};

use crate::program::{Ended, PATIENCE, finish, run, signal, steadfast};

async fn keys(redis: &Redis) -> i64 {
    redis::from_redis_value(redis.command(&["DBSIZE"]).await.unwrap()).unwrap()
}

/// A probe that cannot connect: status 69, and words that say why.
fn assert_says(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.status, Some(69), "{}", ended.all());
    let said = ended.stderr.to_lowercase();
    for word in words {
        assert!(
            said.contains(&word.to_lowercase()),
            "nothing of {word:?}: {}",
            ended.all()
        );
    }
    assert!(
        ended.stderr.lines().count() <= 4,
        "too many words: {}",
        ended.all()
    );
}

#[tokio::test]
async fn ctrl_c_ends_a_probe_that_waits_for_an_answer() {
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let probe = steadfast(&["probe", &url, "--deadline", "5000"])
        .spawn()
        .unwrap();
    let _connection = silent.accept().unwrap();
    signal(probe.id(), "INT");
    let ended = finish(probe).await;
    assert_eq!(ended.status, Some(130), "{}", ended.all());
}

#[tokio::test]
async fn a_server_that_is_well_gets_figures_and_keeps_no_key() {
    let redis = Redis::start().await.unwrap();
    let ended = run(&[
        "probe",
        &redis.url(),
        "--operations",
        "300",
        "--workers",
        "10",
    ])
    .await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    for word in [
        "300", "100.00 %", "mean", "median", "p95", "p99", "primary", "no TLS", "breaker",
        "closed", "deleted",
    ] {
        assert!(
            ended.stdout.contains(word),
            "nothing of {word:?}: {}",
            ended.all()
        );
    }
    assert_eq!(keys(&redis).await, 0);
}

#[tokio::test]
async fn ctrl_c_ends_a_probe_with_its_figures_and_without_its_keys() {
    let redis = Redis::start().await.unwrap();
    let url = redis.url();
    let probe = steadfast(&[
        "probe",
        &url,
        "--operations",
        "100000000",
        "--workers",
        "50",
    ])
    .spawn()
    .unwrap();
    eventually("the probe stores something", async || {
        keys(&redis).await > 0
    })
    .await;
    signal(probe.id(), "INT");
    let ended = finish(probe).await;
    assert_eq!(ended.status, Some(130), "{}", ended.all());
    assert!(
        ended.stdout.contains("p99") && ended.stdout.contains("interrupted"),
        "{}",
        ended.all()
    );
    assert_eq!(keys(&redis).await, 0);
}

#[tokio::test]
async fn a_server_that_is_absent_frozen_full_or_a_replica_is_told_apart() {
    let redis = Redis::builder()
        .config("maxclients", "10")
        .start()
        .await
        .unwrap();
    let replica = Redis::builder().replica_of(&redis).start().await.unwrap();
    replica.in_sync_with(&redis).await.unwrap();
    assert_says(
        &run(&["probe", &replica.url()]).await,
        &["replica", "primary"],
    );
    drop(replica);

    let mut others = Vec::new();
    for _ in 0..10 {
        others.push(tokio::net::TcpStream::connect(redis.addr()).await.unwrap());
    }
    assert_says(&run(&["probe", &redis.url()]).await, &["maxclients"]);
    drop(others);

    redis.freeze().unwrap();
    assert_says(
        &run(&["probe", &redis.url()]).await,
        &["frozen", "handshake"],
    );
    redis.resume().unwrap();

    redis.kill().await;
    assert_says(
        &run(&["probe", &redis.url()]).await,
        &["refused", &redis.port().to_string()],
    );
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_one_are_named_and_not_repeated() {
    let redis = Redis::builder().password("right").start().await.unwrap();
    let wrong = format!("redis://:hunter2@{}", redis.addr());
    let ended = run(&["probe", &wrong]).await;
    assert_says(&ended, &["WRONGPASS", "password"]);
    assert!(!ended.all().contains("hunter2"), "{}", ended.all());
    let none = format!("redis://{}", redis.addr());
    assert_says(&run(&["probe", &none]).await, &["NOAUTH", "password"]);
}

#[tokio::test]
async fn a_user_who_may_not_write_is_told_which_permission_is_missing() {
    let redis = Redis::builder()
        .acl("reader on >secret ~* +@read +@connection")
        .start()
        .await
        .unwrap();
    let url = format!("redis://reader:secret@{}", redis.addr());
    let ended = run(&["probe", &url, "--operations", "3"]).await;
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    assert!(ended.stdout.contains("NOPERM"), "{}", ended.all());
}

#[tokio::test]
async fn an_address_that_cannot_be_is_refused_before_anything_is_sent() {
    assert_says(
        &run(&["probe", "redis://no..such..name:6379"]).await,
        &["resolve", "no..such..name"],
    );
    let ended = run(&["probe", "redjs://:hunter2@127.0.0.1:6379"]).await;
    assert_eq!(ended.status, Some(2), "{}", ended.all());
    assert!(
        ended.stderr.contains("redjs") && !ended.stderr.contains("hunter2"),
        "{}",
        ended.all()
    );
}

#[tokio::test]
async fn tls_is_described_and_each_way_to_get_it_wrong_is_named() {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()])
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&cert, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    let tls = Tls {
        cert: cert.clone(),
        key,
        ca: cert.clone(),
        client_certificates: false,
    };
    let redis = Redis::builder().tls(tls).start().await.unwrap();
    let (url, ca) = (redis.url(), cert.to_str().unwrap());

    let ended = run(&["probe", &url, "--ca", ca, "--operations", "30"]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    assert!(ended.stdout.contains("TLSv1_3"), "{}", ended.all());

    assert_says(&run(&["probe", &url]).await, &["tls", "certificate"]);
    assert_says(
        &run(&[
            "probe",
            &url,
            "--ca",
            ca,
            "--server-name",
            "elsewhere.example",
        ])
        .await,
        &["tls", "name"],
    );
    assert_says(
        &run(&["probe", &url.replace("rediss", "redis")]).await,
        &["rediss://"],
    );
}

/// Probes until the words are said: sentinels learn some things by and by.
async fn probe_until(url: &str, words: &[&str]) -> Ended {
    let until = Instant::now() + PATIENCE;
    loop {
        let ended = run(&["probe", url, "--operations", "30"]).await;
        let missing = words.iter().find(|word| !ended.stdout.contains(**word));
        let Some(missing) = missing else { return ended };
        assert!(
            Instant::now() < until,
            "nothing of {missing:?}: {}",
            ended.all()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn t17_what_each_sentinel_says_is_printed_and_what_in_their_set_up_will_hurt() {
    let watched = Watched::start().await.unwrap();
    let [primary, replica] = [0, 1].map(|at| watched.data[at].addr().to_string());
    let well = probe_until(
        &watched.url(),
        &[
            &format!("3 of 3 name {primary} as the primary of main, epoch 0: a majority"),
            &format!("names {primary}, epoch 0, quorum 2"),
            &format!("{replica} in sync, "),
            "priority 100",
            "3 of 3 sentinels are on 127.0.0.1, and so is the primary",
            "min-replicas-to-write is 0",
            &format!("primary, at {primary}"),
        ],
    )
    .await;
    assert_eq!(well.status, Some(0), "{}", well.all());
    for word in [
        "no majority is left and nothing fails over",
        "with two replicas in sync, min-replicas-to-write 1 would prevent it",
    ] {
        assert_eq!(well.stdout.matches(word).count(), 1, "{}", well.all());
    }
    assert!(!well.stdout.contains("quorum is"), "{}", well.all());

    // Set up such that it cannot do its work.
    for sentinel in &watched.sentinels {
        let set = ["SENTINEL", "SET", "main", "quorum", "3"];
        sentinel.command(&set).await.unwrap();
    }
    let server = |at: usize, setting: &'static str, value: &'static str| {
        let server = &watched.data[at];
        async move {
            server
                .command(&["CONFIG", "SET", setting, value])
                .await
                .unwrap()
        }
    };
    server(0, "min-replicas-to-write", "1").await;
    server(1, "replica-priority", "0").await;
    let third = &watched.sentinels[2];
    third
        .command(&["SENTINEL", "REMOVE", "main"])
        .await
        .unwrap();
    let port = watched.data[1].port().to_string();
    let monitor = ["SENTINEL", "MONITOR", "main", "127.0.0.1", &port, "3"];
    third.command(&monitor).await.unwrap();
    let ill = probe_until(
        &watched.url(),
        &[
            "2 of 3 name",
            "the quorum is 3 of 3: if one sentinel fails",
            "replica-priority is 0 on every replica",
            &format!(
                "{} names {replica}, epoch 0: programs that ask only this one",
                third.addr()
            ),
        ],
    )
    .await;
    assert!(
        !ill.stdout.contains("min-replicas-to-write is 0"),
        "{}",
        ill.all()
    );
}

#[tokio::test]
async fn t17_a_probe_without_a_primary_says_of_each_sentinel_why() {
    let watched = Watched::start().await.unwrap();
    let url = format!("{}er", watched.url());
    let ended = run(&["probe", &url]).await;
    assert_says(&ended, &["no sentinel names a primary for `mainer`"]);
    assert!(
        !ended.stdout.contains("sentinels in all"),
        "{}",
        ended.all()
    );
    assert_eq!(
        ended
            .stdout
            .matches("it watches no primary named `mainer`")
            .count(),
        3,
        "{}",
        ended.all()
    );
}

#[tokio::test]
async fn s4_a_cluster_is_shown_node_by_node_with_what_will_hurt() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let set = ["CONFIG", "SET", "cluster-require-full-coverage", "yes"];
    cluster.node(1).command(&set).await.unwrap();
    let ended = run(&["probe", &cluster.url(), "--operations", "300"]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    let second = cluster.node(1).addr().to_string();
    for words in [
        "3 shards, all slots are owned",
        &format!("{second} primary, slots 5461-10921"),
        &format!("cluster-require-full-coverage is yes on {second}:"),
        "no replica of ",
        "3 of 3 primaries are on 127.0.0.1",
        "100.00 %",
        "deleted",
    ] {
        assert!(
            ended.stdout.contains(words),
            "nothing of {words:?}: {}",
            ended.all()
        );
    }
    for node in cluster.nodes() {
        assert_eq!(keys(&node).await, 0);
    }
}
