//! T13: all keys, while servers and slots come and go.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use steadfast::redis::{self, Value};
use steadfast::{Client, ErrorKind, KeyScan, ScanQuery};
use steadfast_core::slot::Slot;
use steadfast_drill::process::{Cluster, FailoverKind, Redis};

use crate::support::{ms, pair_with};

/// A query whose steps are small.
fn few(pattern: &str) -> ScanQuery {
    ScanQuery {
        count: 10,
        ..ScanQuery::matching(pattern)
    }
}

async fn fill(client: &Client, keys: &BTreeSet<String>) {
    let mut sets = redis::pipe();
    for key in keys {
        sets.set(key, 1);
    }
    let replies = client.send_pipeline(&sets).await.unwrap();
    assert!(replies.iter().all(|reply| *reply == Value::Okay));
}

/// Takes so many keys, or all that are left.
async fn take(scan: &mut KeyScan, most: usize, into: &mut BTreeSet<String>) {
    for _ in 0..most {
        let Some(key) = scan.next().await else { return };
        into.insert(String::from_utf8(key.unwrap()).unwrap());
    }
}

fn names(prefix: &str, count: usize) -> BTreeSet<String> {
    (0..count).map(|n| format!("{prefix}:{n}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t13_every_key_comes_though_slots_move_and_a_replica_takes_over_meanwhile() {
    let cluster = Cluster::shared().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(10_000)).connect().await.unwrap();
    let keys = names("scanned", 1_500);
    fill(&client, &keys).await;
    let slots: Vec<u16> = (keys.iter().step_by(50))
        .map(|key| Slot::of_key(key.as_bytes()).number())
        .collect();
    let mut seen = BTreeSet::new();
    let scanned = async {
        let mut scan = client.scan_keys(few("scanned:*")).patience(ms(60_000));
        take(&mut scan, usize::MAX, &mut seen).await;
    };
    // Not so fast that no slot stays where it is for a sweep: then the scan would rightly give up.
    let moved = cluster.keep_moving(&slots, 40, scanned).await.unwrap();
    assert!(
        moved > 0 && seen == keys,
        "{} of {}",
        seen.len(),
        keys.len()
    );

    let mut seen = BTreeSet::new();
    let mut scan = client.scan_keys(few("scanned:*")).patience(ms(60_000));
    take(&mut scan, 300, &mut seen).await;
    let replica = cluster.fail_over(0, FailoverKind::Planned).await;
    assert_eq!(replica.unwrap(), 3);
    take(&mut scan, usize::MAX, &mut seen).await;
    assert!(seen == keys, "{} of {}", seen.len(), keys.len());
}

#[tokio::test]
async fn t13_only_what_is_asked_for_comes_and_a_hash_tag_asks_one_shard() {
    let cluster = Cluster::shared().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(10_000)).connect().await.unwrap();
    let mut keys = names("kind", 60);
    fill(&client, &keys).await;
    fill(&client, &names("other", 60)).await;
    client
        .send(redis::cmd("HSET").arg("kind:hash").arg("f").arg(1))
        .await
        .unwrap();
    let of_type = |kind: &str| ScanQuery {
        kind: Some(kind.to_owned()),
        ..few("kind:*")
    };
    let mut seen = BTreeSet::new();
    take(
        &mut client.scan_keys(of_type("string")),
        usize::MAX,
        &mut seen,
    )
    .await;
    assert_eq!(seen, keys);
    let hashes = client.scan_keys(of_type("hash")).into_stream();
    let hashes: Vec<Vec<u8>> = hashes.try_collect().await.unwrap();
    assert_eq!(hashes, [b"kind:hash".to_vec()]);

    keys = names("{one}", 60);
    fill(&client, &keys).await;
    let scans = || async {
        let mut asked = Vec::new();
        for at in 0..3 {
            let stats = cluster.node(at).info("commandstats").await.unwrap();
            let of_scan = stats.lines().find(|line| line.starts_with("cmdstat_scan:"));
            asked.push(of_scan.map(str::to_owned));
        }
        asked
    };
    let before = scans().await;
    let mut seen = BTreeSet::new();
    take(&mut client.scan_keys(few("{one}:*")), usize::MAX, &mut seen).await;
    assert_eq!(seen, keys);
    let after = scans().await;
    let asked = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert_eq!(asked, 1, "{before:?}, then {after:?}");
    let refused = ScanQuery {
        kind: Some(String::new()),
        ..few("{one}:*")
    };
    let nothing = client.scan_keys(refused).next().await;
    assert!(nothing.is_none_or(|key| key.is_err()));
}

#[tokio::test]
async fn t13_a_scan_that_cannot_cover_all_slots_says_which_instead_of_leaving_keys_out() {
    let cluster = Cluster::shared().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(1_000)).connect().await.unwrap();
    let keys = names("covered", 300);
    fill(&client, &keys).await;
    // Its replica too, so that nobody takes over.
    for at in [3, 0] {
        cluster.node(at).freeze().unwrap();
    }
    let mut scan = client.scan_keys(few("covered:*")).patience(ms(500));
    let error = loop {
        match scan.next().await.expect("it does not end in silence") {
            Ok(key) => assert!(keys.contains(str::from_utf8(&key).unwrap())),
            Err(error) => break error,
        }
    };
    let ErrorKind::Uncovered { slots, cause } = error.kind() else {
        panic!("{error}")
    };
    assert_eq!(&**slots, "0-5460", "{error}");
    let node = cluster.node(0).addr().to_string();
    let names_it = |cause: &str| cause.contains(&node);
    assert!(cause.as_deref().is_some_and(names_it), "{error}");
    assert!(scan.next().await.is_none());
    for at in [3, 0] {
        cluster.node(at).resume().unwrap();
    }
    let mut seen = BTreeSet::new();
    let mut scan = client.scan_keys(few("covered:*")).patience(ms(60_000));
    take(&mut scan, usize::MAX, &mut seen).await;
    assert_eq!(seen, keys);
}

#[tokio::test]
async fn t13_a_cursor_is_not_taken_to_a_server_that_was_restarted() {
    let server = Redis::builder().save(true).start().await.unwrap();
    let builder = Client::builder(&server.url()).unwrap();
    let client = builder.deadline(ms(10_000)).connect().await.unwrap();
    let keys = names("kept", 1_000);
    fill(&client, &keys).await;
    server.save_snapshot().await.unwrap();
    let mut seen = BTreeSet::new();
    let mut scan = client.scan_keys(few("kept:*")).patience(ms(60_000));
    take(&mut scan, 400, &mut seen).await;
    server.restart_from_snapshot().await.unwrap();
    take(&mut scan, usize::MAX, &mut seen).await;
    assert!(seen == keys, "{} of {}", seen.len(), keys.len());
}

#[tokio::test]
async fn t13_a_scan_works_where_there_is_one_server() {
    let (_server, client) = pair_with(|builder| builder.deadline(ms(10_000))).await;
    let keys = names("single", 300);
    fill(&client, &keys).await;
    let mut seen = BTreeSet::new();
    let scan = client.scan_keys(few("single:*"));
    assert!(!format!("{scan:?}").contains("single"), "{scan:?}");
    let all: Vec<Vec<u8>> = scan.into_stream().try_collect().await.unwrap();
    seen.extend(all.into_iter().map(|key| String::from_utf8(key).unwrap()));
    assert_eq!(seen, keys);
}
