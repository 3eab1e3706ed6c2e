//! A cache on a cluster: all of its namespace in one slot, on one shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use steadfast::{CallOptions, Client, ReadFrom};
use steadfast_cache::{Cache, Database, Source, Target};
use steadfast_core::slot::Slot;
use steadfast_drill::fault::{Direction, Fault, RespError, Toxic};
use steadfast_drill::process::{Cluster, FailoverKind};
use steadfast_drill::proxy::Proxy;
use tokio::time::{Instant, sleep};

use crate::site::{
    Loader, all_is_applied, eventually, get, invalidate_everywhere, plain, read_item, select_item,
    sqlite, text, write_everywhere, write_item,
};

/// The slot of all that the cache of the namespace `test` keeps.
fn slot() -> u16 {
    Slot::of_key(b"{test}").number()
}

async fn client_of(cluster: &Cluster) -> Client {
    let builder = Client::builder(&cluster.url()).unwrap();
    let patient = builder.deadline(Duration::from_secs(10));
    patient.connect().await.unwrap()
}

async fn cache_on(cluster: &Cluster, database: &Database) -> Cache {
    let builder = plain(database).redis(client_of(cluster).await);
    builder.build().await.unwrap()
}

async fn is_well(cache: &Cache) -> bool {
    let status = cache.status();
    status.memory_proven && status.redis.is_some_and(|redis| redis.trusted)
}

/// Its value comes from Redis to a process that has never seen the key.
async fn is_shared(first: &Cache, second: &Cache, key: &str) -> bool {
    get(first, key, "user", &Loader::default()).await.unwrap();
    let read = get(second, key, "user", &Loader::default()).await;
    read.unwrap().source == Source::Redis || {
        first.invalidate(&[Target::key(key)]).await.unwrap();
        false
    }
}

#[tokio::test]
async fn k6_on_a_cluster_a_cache_lives_in_one_slot_and_its_processes_hear_each_other() {
    let cluster = Cluster::shared().await.unwrap();
    let (database, _folder) = sqlite().await;
    let first = cache_on(&cluster, &database).await;
    let second = cache_on(&cluster, &database).await;
    assert_eq!(first.status().redis.unwrap().slot, Some(slot()));
    eventually("both are well", || async {
        is_well(&first).await && is_well(&second).await
    })
    .await;
    eventually("they share what Redis holds", || {
        is_shared(&first, &second, "a")
    })
    .await;
    for version in 1..4 {
        write_everywhere(&first, 7, version).await;
        let expected = Some(version.to_string());
        eventually("the other hears of the write", || async {
            read_item(&second, 7).await == expected
        })
        .await;
    }
    let loader = Loader::default();
    let tagged = async |cache: &Cache| {
        let (view, loader) = (text(cache, "user"), loader.clone());
        let read = view.read("tagged").tag("red");
        read.get(move || loader.counting()).await.unwrap().value
    };
    let before = tagged(&second).await;
    for target in [Target::tag("red"), Target::All] {
        invalidate_everywhere(&first, &[target]).await;
        eventually("the other hears of it", || async {
            tagged(&second).await != before
        })
        .await;
    }
    let keys: Vec<_> = (0..40).map(|n| format!("many {n}")).collect();
    let load = |keys: Vec<String>| async {
        Ok(keys
            .into_iter()
            .map(|key| (key.clone(), key))
            .collect::<Vec<_>>())
    };
    for answer in text(&first, "user").get_many(&keys, load).await {
        assert!(answer.unwrap().value.is_some());
    }
    // Nothing of it lies anywhere else.
    let owner = cluster.owner(slot()).await.unwrap();
    for at in 0..3 {
        let size = cluster.node(at).command(&["DBSIZE"]).await.unwrap();
        assert_eq!(at == owner, size != redis::Value::Int(0), "{at}: {size:?}");
    }

    // Another database that was given the same namespace finds them, and goes without.
    let (other, _folder) = sqlite().await;
    let third = cache_on(&cluster, &other).await;
    eventually("its status says so", || async {
        let suspended = third.status().redis.unwrap().suspended;
        suspended.is_some_and(|why| why.contains("another database"))
    })
    .await;
    assert!(!write_item(&third, 7, 51).await, "it was applied to Redis");
    assert_eq!(read_item(&third, 7).await.as_deref(), Some("51"));
    assert!(is_well(&first).await);
}

/// A replica may be behind what this process has heard: by its word a tag that was invalidated has
/// its old token, and the watermark is what it was.
#[tokio::test]
async fn k11_a_cache_reads_from_the_primary_whatever_its_client_reads_from() {
    let cluster = Cluster::shared().await.unwrap();
    let (database, _folder) = sqlite().await;
    let first = cache_on(&cluster, &database).await;
    eventually("it is well", || is_well(&first)).await;
    let loader = Loader::default();
    let keys: Vec<_> = (0..30).map(|n| format!("tagged {n}")).collect();
    for key in &keys {
        let (view, loader) = (text(&first, "user"), loader.clone());
        let read = view.read(key.as_str()).tag("red");
        read.get(move || loader.counting()).await.unwrap();
    }
    first.finish_loads(Duration::from_secs(60)).await;
    let plain_client = client_of(&cluster).await;
    let set = redis::cmd("SET").arg("{test}probe").arg("v").to_owned();
    plain_client.send(&set).await.unwrap();
    let reading = Client::builder(&cluster.url())
        .unwrap()
        .deadline(Duration::from_secs(10))
        .read_from(ReadFrom::Replicas)
        .max_lag(Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    let builder = plain(&database).redis(reading.clone());
    let second = builder.build().await.unwrap();
    eventually("the other is well too", || is_well(&second)).await;
    let served = || reading.status().cluster.unwrap().replica_reads;
    let probed = async |options: CallOptions| {
        let (before, get) = (served(), redis::cmd("GET").arg("{test}probe").to_owned());
        reading.with(options).send(&get).await.unwrap();
        served() > before
    };
    let a_replica_serves = || probed(CallOptions::new());
    eventually("a replica serves the slot", a_replica_serves).await;
    let before = served();
    for key in &keys {
        let answer = get(&second, key, "user", &loader).await.unwrap();
        assert_eq!(answer.source, Source::Redis, "{key}");
    }
    sleep(Duration::from_millis(300)).await; // a beat, and a look at the outbox
    assert_eq!(served(), before, "the cache was answered by a replica");
    eventually("a replica serves the slot", a_replica_serves).await;
}

/// A question that is refused for a while is asked again; its answer would be of the value that is
/// there by then.
#[tokio::test]
async fn k10_on_a_cluster_a_value_never_has_the_age_of_the_one_that_took_its_place() {
    let one = Cluster::builder().primaries(1).replicas(0);
    let cluster = one.start().await.unwrap();
    let (database, _folder) = sqlite().await;
    let first = cache_on(&cluster, &database).await;
    eventually("it is well", || is_well(&first)).await;
    let loader = Loader::default();
    get(&first, "a", "user", &loader).await.unwrap();
    first.finish_loads(Duration::from_secs(60)).await;
    let proxy = Proxy::start(cluster.node(0).addr()).await.unwrap();
    let port = proxy.addr().port().to_string();
    let announce = ["CONFIG", "SET", "cluster-announce-port", &port];
    cluster.node(0).command(&announce).await.unwrap();
    let url = format!("redis-cluster://{}", proxy.addr());
    let client = Client::builder(&url).unwrap();
    let builder = plain(&database).redis_limit(Duration::from_secs(10));
    let client = client.deadline(Duration::from_secs(10)).connect().await;
    let second = builder.redis(client.unwrap()).build().await.unwrap();
    eventually("the other is well too", || is_well(&second)).await;
    let refused = Fault::RespError(RespError::loading().commands(&["PTTL"]));
    let toxic = Toxic {
        name: "loading".into(),
        direction: Direction::Both,
        toxicity: 1.0,
        fault: refused,
    };
    proxy.add(toxic).await.unwrap();
    let old = Duration::from_millis(1500);
    sleep(old).await;
    let read = get(&second, "a", "user", &loader);
    let replaced = async {
        sleep(Duration::from_millis(300)).await;
        let again = loader.clone();
        let view = text(&first, "user");
        let anew = view.refresh("a", move || again.counting());
        assert_eq!(anew.await.unwrap().value.as_deref(), Some("2"));
        first.finish_loads(Duration::from_secs(60)).await;
        proxy.clear().await;
    };
    let (read, ()) = tokio::join!(read, replaced);
    let read = read.unwrap();
    assert_eq!(read.source, Source::Redis);
    let is_old = read.value.as_deref() == Some("1");
    assert!(!is_old || read.age >= old, "{read:?}");
}

#[tokio::test]
async fn k14_a_shard_that_is_down_is_felt_by_the_caches_on_it_alone() {
    let cluster = Cluster::shared().await.unwrap();
    let (database, _folder) = sqlite().await;
    let first = cache_on(&cluster, &database).await;
    let second = cache_on(&cluster, &database).await;
    let well = || async { is_well(&first).await && is_well(&second).await };
    eventually("both are well", well).await;
    let owner = cluster.owner(slot()).await.unwrap();
    let another = (owner + 1) % 3;
    cluster.node(another).kill().await;
    eventually("another shard is known to be away", || async {
        let client = client_of_no_more(&cluster).await;
        client.state() != steadfast::ConnectionState::Ready
    })
    .await;
    eventually("they share what Redis holds", || {
        is_shared(&first, &second, "a")
    })
    .await;
    eventually("both are well", well).await;
    cluster.node(owner).freeze().unwrap();
    let loader = Loader::default();
    for n in 0..5 {
        let key = format!("cold {n}");
        let answer = get(&first, &key, "user", &loader).await.unwrap();
        assert_eq!(answer.source, Source::Database);
    }
    cluster.node(owner).resume().unwrap();
    eventually("both are well again", well).await;
}

/// A client that does not wait for all nodes.
async fn client_of_no_more(cluster: &Cluster) -> Client {
    let client = Client::builder(&cluster.url()).unwrap().build().unwrap();
    let asked = (0..12).map(|n| {
        let client = client.clone();
        async move { client.send(redis::cmd("GET").arg(n)).await.is_ok() }
    });
    futures_util::future::join_all(asked).await;
    client
}

/// The shard's replica heard nothing of the last invalidation, and takes over.
#[tokio::test]
async fn k8_a_lagging_replica_that_took_over_the_caches_slot_is_not_believed() {
    let cluster = Cluster::start().await.unwrap();
    let (database, _folder) = sqlite().await;
    let first = cache_on(&cluster, &database).await;
    write_everywhere(&first, 7, 1).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("1"));
    let owner = cluster.owner(slot()).await.unwrap();
    let replica = cluster.replicas_of(owner).await.unwrap()[0];
    eventually("both have it", || async {
        let size = async |at| cluster.node(at).command(&["DBSIZE"]).await.unwrap();
        first.status().counts.fills == 1 && size(owner).await == size(replica).await
    })
    .await;
    // From here on the replica hears nothing any more.
    for words in [
        "ACL SETUSER steadfast-peer -psync -sync",
        "CLIENT KILL TYPE replica",
    ] {
        let words: Vec<_> = words.split(' ').collect();
        cluster.node(owner).command(&words).await.unwrap();
    }
    write_everywhere(&first, 7, 2).await;
    cluster.node(owner).kill().await;
    // No read fails meanwhile, and none is behind its own write.
    let until = Instant::now() + Duration::from_secs(60);
    let takeover = cluster.promote(replica, FailoverKind::Takeover);
    let reads = async {
        loop {
            assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
            let there = is_well(&first).await && first.status().counts.epochs > 0;
            if there || Instant::now() > until {
                return there;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (taken, begun) = tokio::join!(takeover, reads);
    taken.unwrap();
    assert!(begun, "what the replica held was given up");
    let second = cache_on(&cluster, &database).await;
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("2"));
    write_item(&second, 7, 3).await;
    all_is_applied(&second).await;
    eventually("the other hears of it", || async {
        read_item(&first, 7).await.as_deref() == Some("3")
    })
    .await;
}

/// An answer that is not marked shows what was committed so long before.
const BOUND: Duration = Duration::from_secs(3);

#[tokio::test]
async fn k8_while_the_caches_slot_moves_to_and_fro_no_read_fails_and_none_is_wrong() {
    let cluster = Cluster::shared().await.unwrap();
    let (database, _folder) = sqlite().await;
    let first = cache_on(&cluster, &database).await;
    let second = cache_on(&cluster, &database).await;
    eventually("both are well", || async {
        is_well(&first).await && is_well(&second).await
    })
    .await;
    let (done, commits) = (AtomicBool::new(false), Arc::new(Mutex::new(vec![])));
    let moves = async {
        let home = cluster.owner(slot()).await.unwrap();
        let away = (home + 1) % 3;
        for n in 0..6 {
            let (from, to) = if n % 2 == 0 {
                (home, away)
            } else {
                (away, home)
            };
            let slots = [slot()];
            cluster.begin_migration(&slots, from, to).await.unwrap();
            while cluster.move_keys(&slots, from, to, 3).await.unwrap() > 0 {
                sleep(Duration::from_millis(30)).await;
            }
            cluster.end_migration(&slots, from, to).await.unwrap();
            cluster.agree().await.unwrap();
            sleep(Duration::from_millis(200)).await;
        }
        done.store(true, Ordering::SeqCst);
    };
    let writes = async {
        let mut version = 0;
        while !done.load(Ordering::SeqCst) {
            version += 1;
            write_item(&first, 7, version).await;
            commits.lock().push((Instant::now(), version));
            let own: i64 = read_item(&first, 7).await.unwrap().parse().unwrap();
            assert_eq!(own, version, "its own write");
            for n in 0..10 {
                let key = format!("other {n}");
                get(&first, &key, "user", &Loader::default()).await.unwrap();
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let reads = async {
        while !done.load(Ordering::SeqCst) {
            let before = Instant::now() - BOUND;
            let known = commits.lock().clone();
            let floor = known.iter().rev().find(|(at, _)| *at < before);
            let database = database.clone();
            let load = move || async move { Ok(select_item(&database, 7).await?) };
            let read = text(&second, "user").get("item:7", load).await.unwrap();
            let version: i64 = read.value.map_or(0, |value| value.parse().unwrap());
            let fresh = read.stale.is_none();
            assert!(!fresh || version >= floor.map_or(0, |(_, floor)| *floor));
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::join!(moves, writes, reads);
    eventually("they share what Redis holds", || {
        is_shared(&first, &second, "z")
    })
    .await;
    eventually("nothing is left to be applied", || async {
        first.status().outbox_pending == 0 && is_well(&second).await
    })
    .await;
}
