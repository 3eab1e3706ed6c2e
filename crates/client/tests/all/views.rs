//! T3, T25: which answer about a cluster is believed, and which certificate.

use std::time::Duration;

use steadfast::Client;
use steadfast_drill::process::Cluster;

use crate::support::{cmd, eventually, ms, slot, until_down_for};
use crate::tls::Authority;

/// A key whose slot belongs to the node at this position.
async fn key_of(cluster: &Cluster, at: usize) -> String {
    let layout = cluster.layout().await.unwrap();
    let id = cluster.node(at).id().to_owned();
    let mut keys = (0..).map(|n| format!("key:{n}"));
    let found = keys.find(|key| layout.owner(slot(key)) == Some(id.as_str()));
    found.unwrap()
}

#[tokio::test]
async fn t3_a_node_that_was_frozen_and_answers_with_an_old_view_takes_no_slot_back() {
    // Nobody is voted out, and nobody stops because it does not see the others.
    let builder = Cluster::builder().replicas(0);
    let builder = builder.node_timeout(Duration::from_secs(600));
    let cluster = builder.start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.deadline(ms(20_000)).connect_timeout(ms(1_000));
    let client = builder.connect().await.unwrap();
    let key = key_of(&cluster, 0).await;
    let get = cmd(&format!("GET {key}"));
    client.send(&get).await.unwrap();
    let stale = cluster.node(2);
    stale.freeze().unwrap();
    cluster.migrate(slot(&key), 0, 1).await.unwrap();
    client.send(&get).await.unwrap();
    let owner = Some(cluster.node(1).addr().to_string());
    assert_eq!(client.toward(&key).node(), owner);

    // It has nobody to learn from, and is the only one that answers.
    for at in [0, 1] {
        cluster.node(at).freeze().unwrap();
    }
    stale.resume().unwrap();
    let told = stale.command(&["CLUSTER", "NODES"]).await.unwrap();
    let told = format!("{told:?}");
    // If nobody is heard, the status says so.
    let heard = || {
        let status = client.status().cluster.unwrap();
        (status.discoveries, status.error)
    };
    let before = heard().0;
    while heard().0 < before + 4 {
        // Which is a reason to look who is there.
        let nobody = client.node("127.0.0.1:1").send(&cmd("PING")).await;
        nobody.unwrap_err();
        tokio::time::sleep(ms(20)).await;
    }
    assert_eq!(heard().1, None);
    let still = stale.command(&["CLUSTER", "NODES"]).await.unwrap();
    let own = |told: &str| told.matches(cluster.node(1).id()).count();
    assert_eq!(own(&told), own(&format!("{still:?}")));
    assert_eq!(client.toward(&key).node(), owner, "by an older epoch");
    for at in [0, 1] {
        cluster.node(at).resume().unwrap();
    }
    cluster.well().await.unwrap();
    let redirects = || client.status().cluster.unwrap().redirects;
    let before = redirects();
    eventually("it is served", async || client.send(&get).await.is_ok()).await;
    assert_eq!(redirects(), before, "at its owner, without a detour");
}

#[tokio::test]
async fn t25_nodes_that_announce_names_are_verified_by_these_whichever_way_they_are_dialled() {
    let authority = Authority::new();
    let (tls, _folder) = authority.certificates("localhost");
    let builder = Cluster::builder().primaries(2).replicas(0).tls(tls);
    let cluster = builder.start().await.unwrap();
    // No certificate names the address.
    let by_address = cluster.url();
    let by_name = by_address.replace("127.0.0.1", "localhost");
    let client = |url: &str| {
        let builder = Client::builder(url).unwrap().tls(authority.trusted());
        builder.deadline(ms(20_000))
    };
    let set = async |hostname: &str, preferred: &str| {
        for node in cluster.nodes() {
            for (name, value) in [
                ("cluster-announce-hostname", hostname),
                ("cluster-preferred-endpoint-type", preferred),
            ] {
                let set = ["CONFIG", "SET", name, value];
                node.command(&set).await.unwrap();
            }
        }
        eventually("all have heard of that", async || {
            let node = cluster.node(0);
            let told = node.command(&["CLUSTER", "NODES"]).await.unwrap();
            let told = format!("{told:?}");
            told.matches("localhost").count() == 2 * usize::from(!hostname.is_empty())
        })
        .await;
    };
    for (hostname, preferred, url) in [
        // The name of the seed is the only one there is.
        ("", "ip", &by_name),
        ("localhost", "ip", &by_name),
        ("localhost", "hostname", &by_name),
    ] {
        set(hostname, preferred).await;
        let client = client(url).connect().await.unwrap();
        let key = key_of(&cluster, 0).await;
        for at in [0, 1] {
            let key = key_of(&cluster, at).await;
            client.send(&cmd(&format!("SET {key} v"))).await.unwrap();
        }
        // MOVED names it as it likes to be called.
        cluster.migrate(slot(&key), 0, 1).await.unwrap();
        client.send(&cmd(&format!("GET {key}"))).await.unwrap();
        cluster.migrate(slot(&key), 1, 0).await.unwrap();
        let status = client.status().cluster.unwrap();
        assert_eq!(status.nodes.len(), 2, "{preferred}: {status:?}");
    }
    // An address is no name, as long as nobody says which it has.
    set("", "ip").await;
    let refused = client(&by_address).connect_timeout(ms(1_000));
    let refused = refused.build().unwrap();
    until_down_for(&refused, "for another name").await;
}
