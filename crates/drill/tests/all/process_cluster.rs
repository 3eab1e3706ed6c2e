//! What is done to a cluster, on a real one.

use std::time::Duration;

use redis::Value;
use steadfast_core::slot::Slot;
use steadfast_drill::process::{Cluster, FailoverKind, Redis, Tls};
use steadfast_drill::waiting::eventually;

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    }
}

fn slot(key: &str) -> u16 {
    Slot::of_key(key.as_bytes()).number()
}

/// Sets a key at whoever owns it.
async fn set(cluster: &Cluster, key: &str, value: &str) {
    let owner = cluster.owner(slot(key)).await.unwrap();
    let node = cluster.node(owner);
    node.command(&["SET", key, value]).await.unwrap();
}

async fn get(cluster: &Cluster, key: &str) -> String {
    let owner = cluster.owner(slot(key)).await.unwrap();
    text(&cluster.node(owner).command(&["GET", key]).await.unwrap())
}

/// What a server answers to a question that it does not serve.
async fn refusal(redis: &Redis, args: &[&str]) -> String {
    redis.command(args).await.unwrap_err().to_string()
}

#[tokio::test]
async fn d1_a_cluster_fails_over_grows_shrinks_and_is_healed_to_what_it_was() {
    let cluster = Cluster::start().await.unwrap();
    let first = cluster.layout().await.unwrap();
    assert_eq!(first.nodes.len(), 6);
    assert_eq!(first.owner(0), Some(cluster.node(0).id()));
    assert_eq!(first.owner(16_383), Some(cluster.node(2).id()));
    assert!((0..16_384).all(|slot| first.owner(slot).is_some()));
    assert_eq!(cluster.replicas_of(1).await.unwrap(), [4]);
    assert_eq!(cluster.url().matches(',').count(), 5, "{}", cluster.url());
    set(&cluster, "{a}1", "v").await;

    // Planned, and no write is lost.
    let owner = cluster.owner(slot("{a}1")).await.unwrap();
    let heir = cluster
        .fail_over(owner, FailoverKind::Planned)
        .await
        .unwrap();
    assert_eq!(heir, owner + 3);
    assert_eq!(cluster.owner(slot("{a}1")).await.unwrap(), heir);
    assert_eq!(get(&cluster, "{a}1").await, "v");

    // A primary that stands still is passed over, and has nothing to say when it wakes.
    cluster.node(heir).freeze().unwrap();
    assert!(!cluster.node(heir).is_awake());
    cluster
        .promote(owner, FailoverKind::Takeover)
        .await
        .unwrap();
    cluster.node(heir).resume().unwrap();
    cluster.well().await.unwrap();
    assert_eq!(cluster.owner(slot("{a}1")).await.unwrap(), owner);

    // One that is killed is succeeded without being told.
    cluster.node(owner).kill().await;
    eventually("its replica owns the slot", async || {
        cluster.owner(slot("{a}1")).await.ok() == Some(heir)
    })
    .await;

    cluster.heal_to(&first).await.unwrap();
    assert_eq!(cluster.layout().await.unwrap(), first);
    assert_eq!(get(&cluster, "{a}1").await, "nil");
}

#[tokio::test]
async fn d1_nodes_come_and_go_and_change_their_addresses() {
    let builder = Cluster::builder()
        .replicas(0)
        .each(|redis| redis.save(true));
    let cluster = builder.start().await.unwrap();
    let first = cluster.layout().await.unwrap();
    for n in 0..60 {
        set(&cluster, &format!("k{n}"), &n.to_string()).await;
    }
    keys_that_are_at_both_nodes_go_if_they_are_alike(&cluster).await;
    let added = cluster.add_node().await.unwrap();
    assert_eq!(added, 3);
    let slots: Vec<u16> = (0..20).map(|n| slot(&format!("k{n}"))).collect();
    for from in 0..3 {
        let layout = cluster.layout().await.unwrap();
        let owned = |slot: &u16| layout.owner(*slot) == Some(cluster.node(from).id());
        let own: Vec<u16> = slots.iter().copied().filter(owned).collect();
        cluster.migrate_all(&own, from, added).await.unwrap();
        cluster.agree().await.unwrap();
    }
    assert_eq!(cluster.owner(slots[0]).await.unwrap(), added);

    let before = cluster.addresses();
    cluster.change_addresses(&[0, 1, 2, 3]).await.unwrap();
    cluster.well().await.unwrap();
    let after = cluster.addresses();
    assert!(before.iter().all(|address| !after.contains(address)));

    // Emptied, it is not asked for anything any more, and nothing is lost.
    cluster.remove(0).await.unwrap();
    assert_eq!(cluster.nodes().len(), 3);
    for n in 0..60 {
        assert_eq!(get(&cluster, &format!("k{n}")).await, n.to_string());
    }
    let error = cluster.heal_to(&first).await.unwrap_err().to_string();
    assert!(error.contains("not a member"), "{error}");
}

/// A move that ended half way has left a key of the first node at the second too.
async fn keys_that_are_at_both_nodes_go_if_they_are_alike(cluster: &Cluster) {
    let layout = cluster.layout().await.unwrap();
    let is_there = |key: &String| layout.owner(slot(key)) == Some(cluster.node(0).id());
    let key = &(0..60).map(|n| format!("k{n}")).find(is_there).unwrap();
    let value = get(cluster, key).await;
    let copied = async |from: usize, to: usize| {
        let (source, port) = (cluster.node(from), cluster.node(to).port().to_string());
        cluster
            .begin_migration(&[slot(key)], from, to)
            .await
            .unwrap();
        let to = [
            "MIGRATE",
            "127.0.0.1",
            &port,
            "",
            "0",
            "5000",
            "COPY",
            "KEYS",
            key,
        ];
        assert_eq!(source.command(&to).await.unwrap(), Value::Okay);
    };
    let moved = async |from, to| cluster.move_keys(&[slot(key)], from, to, usize::MAX).await;
    let end = async |from, to| {
        cluster.end_migration(&[slot(key)], from, to).await.unwrap();
        cluster.agree().await.unwrap();
    };
    copied(0, 1).await;
    assert_eq!(moved(0, 1).await.unwrap(), 1);
    end(0, 1).await;
    assert_eq!(get(cluster, key).await, value);

    // One that has been written since at either is not replaced, whichever value is the right one.
    copied(1, 0).await;
    cluster
        .node(1)
        .command(&["SET", key, "other"])
        .await
        .unwrap();
    let error = moved(1, 0).await.unwrap_err().to_string();
    assert!(error.contains("two values"), "{error}");
    let kept = cluster.node(1).command(&["GET", key]).await.unwrap();
    assert_eq!(text(&kept), "other");
    cluster.node(1).command(&["DEL", key]).await.unwrap();
    assert_eq!(moved(1, 0).await.unwrap(), 0);
    end(1, 0).await;
    assert_eq!(get(cluster, key).await, value);
}

#[tokio::test]
async fn d1_slots_move_back_and_forth_with_their_keys_by_tls_and_passwords() {
    let folder = tempfile::tempdir().unwrap();
    let tls = certificate(folder.path());
    let builder = Cluster::builder().replicas(0).primaries(2);
    let cluster = builder.password("p w").tls(tls).start().await.unwrap();
    let first = cluster.layout().await.unwrap();
    assert!(
        cluster
            .url()
            .starts_with("rediss-cluster://:p%20w@127.0.0.1:")
    );
    for n in 0..20 {
        set(&cluster, &format!("{{{n}}}a"), "1").await;
        set(&cluster, &format!("{{{n}}}b"), "2").await;
    }

    // Half way: what has gone is asked of the other, what belongs together is not together.
    let (half, key) = (slot("{0}"), "{0}a");
    let from = cluster.owner(half).await.unwrap();
    let to = 1 - from;
    cluster.begin_migration(&[half], from, to).await.unwrap();
    assert_eq!(cluster.move_keys(&[half], from, to, 1).await.unwrap(), 1);
    let node = cluster.node(from);
    let both = refusal(&node, &["MGET", "{0}a", "{0}b"]).await;
    assert!(
        both.contains("TRYAGAIN") || both.contains("TryAgain"),
        "{both}"
    );
    cluster
        .move_keys(&[half], from, to, usize::MAX)
        .await
        .unwrap();
    let gone = refusal(&node, &["GET", key]).await;
    assert!(gone.to_uppercase().contains("ASK"), "{gone}");
    cluster.end_migration(&[half], from, to).await.unwrap();
    let moved = refusal(&node, &["GET", key]).await;
    assert!(moved.to_uppercase().contains("MOVED"), "{moved}");
    assert_eq!(get(&cluster, key).await, "1");
    cluster.migrate(half, to, from).await.unwrap();

    let slots: Vec<u16> = (0..20).map(|n| slot(&format!("{{{n}}}"))).collect();
    let enough = tokio::time::sleep(Duration::from_secs(1));
    let moved = cluster.keep_moving(&slots, 100, enough).await.unwrap();
    assert!(moved > 0);
    assert_eq!(cluster.layout().await.unwrap(), first);
    for n in 0..20 {
        assert_eq!(get(&cluster, &format!("{{{n}}}b")).await, "2");
    }

    // What was left half way is healed.
    cluster.begin_migration(&[half], from, to).await.unwrap();
    cluster.heal_to(&first).await.unwrap();
    assert_eq!(get(&cluster, key).await, "nil");
}

/// An authority and a certificate of it for servers that also are each other's clients.
fn certificate(folder: &std::path::Path) -> Tls {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
    let mut own = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    // By default both have one name, and OpenSSL takes that for a certificate signed by itself.
    let name = (rcgen::DnType::CommonName, "a node");
    own.distinguished_name.push(name.0, name.1);
    let own_key = rcgen::KeyPair::generate().unwrap();
    let signed = own.signed_by(&own_key, &issuer).unwrap();
    let write = |name: &str, pem: String| {
        let path = folder.join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    Tls {
        cert: write("cert.pem", signed.pem()),
        key: write("key.pem", own_key.serialize_pem()),
        ca: write("ca.pem", issuer.as_ref().pem()),
        client_certificates: false,
    }
}

#[tokio::test]
async fn d1_a_shared_cluster_goes_healed_from_hand_to_hand() {
    let builder = || Cluster::builder().primaries(2).replicas(0);
    let shared = builder().shared("hand-to-hand").await.unwrap();
    let first = shared.first().clone();
    let pids = |cluster: &Cluster| -> Vec<_> {
        let nodes = cluster.nodes();
        nodes.iter().map(|node| node.pid().unwrap()).collect()
    };
    let (before, addresses) = (pids(&shared), shared.addresses());
    // While it is in use, others have another.
    let other = builder().shared("hand-to-hand").await.unwrap();
    assert!(pids(&other).iter().all(|pid| !before.contains(pid)));
    drop(other);

    set(&shared, "{a}", "v").await;
    shared
        .migrate(slot("{a}"), shared.owner(slot("{a}")).await.unwrap(), 0)
        .await
        .ok();
    shared.add_node().await.unwrap();
    shared.node(1).kill().await;
    shared.node(0).freeze().unwrap();
    drop(shared);

    let shared = builder().shared("hand-to-hand").await.unwrap();
    assert_eq!(shared.addresses(), addresses);
    assert_eq!(*shared.first(), first);
    assert_eq!(shared.layout().await.unwrap(), first);
    assert_eq!(get(&shared, "{a}").await, "nil");
    let after = pids(&shared);
    assert_eq!(after[0], before[0]);
    assert_ne!(after[1], before[1]);
}
