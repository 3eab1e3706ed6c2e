//! C19: whatever kind of call it is, of however many steps: if the client's runtime does not run,
//! or has ended and there is no other, it ends in time and says so.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use redis::{AsyncCommands, RedisResult};
use steadfast::{CallOptions, Client, ClientBuilder, Error, ReadFrom, ScanQuery};
use steadfast_drill::process::{Cluster, Redis, Sentinel};

use crate::liveness::{block_on, runtime};
use crate::support::{cmd, eventually, ms, now, stand_still};

/// The age of a proof that is asked for.
const PROOF: Duration = Duration::from_millis(600);

/// Of a scan.
const PATIENCE: Duration = Duration::from_secs(1);

/// A client, and the address of a server that it knows, if it knows any.
struct Subject {
    client: Client,
    node: Option<String>,
}

/// A call, and of what kind it is.
type Named<'a> = (&'static str, BoxFuture<'a, Result<(), String>>);

fn named<'a, T>(
    kind: &'static str,
    call: impl Future<Output = Result<T, Error>> + Send + 'a,
) -> Named<'a> {
    let told = async {
        let result = call.await.map(drop);
        result.map_err(|error| format!("{}: {error}", error.label()))
    };
    (kind, Box::pin(told))
}

/// Calls of one or few steps.
fn short_calls(subject: &Subject) -> Vec<Named<'_>> {
    let Subject { client, node } = subject;
    let replicas = client.with(CallOptions::new().read_from(ReadFrom::Replicas));
    let sent = |kind, words| named(kind, async move { client.send(&cmd(words)).await });
    let mut all = vec![
        sent("a read", "GET {k}a"),
        sent("a write", "SET {k}a 1"),
        sent("a read of several keys", "MGET a b c d"),
        sent("one of all nodes", "DBSIZE"),
        sent("a script", "EVAL return{} 1 {k}a"),
        sent("a blocking call", "BLPOP nothing 0.01"),
        named("a read from replicas", async move {
            replicas.send(&cmd("GET {k}a")).await
        }),
    ];
    let through_redis_rs = async move {
        let got: RedisResult<Option<String>> = client.clone().get("a").await;
        got.map(drop).map_err(|error| format!("runtime: {error}"))
    };
    all.push(("one through redis-rs", Box::pin(through_redis_rs)));
    all.extend(node.as_ref().map(|node| {
        let asked = async move { client.node(node).send(&cmd("PING")).await };
        named("a call of a chosen node", asked)
    }));
    all
}

/// Calls of many steps.
fn long_calls(subject: &Subject) -> Vec<Named<'_>> {
    let client = &subject.client;
    let mut several = redis::pipe();
    several.cmd("GET").arg("a").cmd("SET").arg("b").arg(1);
    let mut atomic = redis::pipe();
    atomic.atomic().cmd("INCR").arg("{k}n");
    vec![
        named(
            "a pipeline",
            async move { client.send_pipeline(&several).await },
        ),
        named("a transaction", async move {
            client.send_pipeline(&atomic).await
        }),
        named("a session", async move {
            let session = client.session_for("k").await?;
            session.send(&cmd("WATCH k")).await
        }),
        named("a subscription", async move {
            client.pubsub().subscribe("news").await
        }),
        named("one to a channel of a shard", async move {
            client.pubsub_for("{k}").ssubscribe("{k}").await
        }),
        named("a scan", async move {
            let mut scan = client.scan_keys(ScanQuery::default()).patience(PATIENCE);
            scan.next().await.transpose()
        }),
        named("a stream", async move {
            let scan = client.scan_keys(ScanQuery::default()).patience(PATIENCE);
            let mut keys = pin!(scan.into_stream());
            keys.next().await.transpose()
        }),
    ]
}

fn calls(subject: &Subject) -> Vec<Named<'_>> {
    let mut all = short_calls(subject);
    all.extend(long_calls(subject));
    all
}

/// Every kind of call of each client ends soon, and says that its runtime does not run.
async fn each_says_so(subjects: &[Subject]) {
    let each = subjects.iter().flat_map(calls).map(async |(kind, call)| {
        let begun = now();
        let said = call.await.expect_err(kind);
        // A scan of a cluster names its slots besides.
        let kind_says_so = ["runtime: ", "uncovered: "].map(|kind| said.starts_with(kind));
        let says_so = kind_says_so.contains(&true) && said.contains("tokio runtime");
        assert!(says_so, "{kind}: {said}");
        assert!(now() - begun < ms(10_000), "{kind} takes long");
    });
    join_all(each).await;
}

async fn each_works(subjects: &[Subject]) {
    for subject in subjects {
        for kind in 0..calls(subject).len() {
            let (name, _) = calls(subject).swap_remove(kind);
            eventually(name, async || {
                let (_, call) = calls(subject).swap_remove(kind);
                call.await.is_ok()
            })
            .await;
        }
    }
}

#[test]
fn c19_a_call_of_any_kind_whose_runtime_does_not_run_or_has_ended_ends_in_time_and_says_so() {
    let alive = driven();
    let (cluster, redis, sentinel) = alive.block_on(async {
        let redis = Redis::start().await.unwrap();
        let sentinel = Sentinel::start(&redis, &[]).await.unwrap();
        (Cluster::shared().await.unwrap(), redis, sentinel)
    });
    let (first, second) = (runtime(), runtime());
    let built = |builder: ClientBuilder, node| Subject {
        client: first.block_on(async { builder.build().unwrap() }),
        node,
    };
    let subjects = || {
        let brief = |url: &str| Client::builder(url).unwrap().deadline(ms(500));
        let sentinels = format!("redis-sentinel://{}/main", sentinel.addr());
        let [server, member] = [redis.addr(), cluster.node(0).addr()].map(|at| at.to_string());
        [
            built(brief(&redis.url()), Some(server.clone())),
            built(brief(&redis.url()).connections(4), Some(server)),
            built(brief(&sentinels).primary_proof(PROOF), None),
            built(brief(&cluster.url()), Some(member)),
        ]
    };
    let connected = subjects();
    first.block_on(each_works(&connected));
    // These have not begun to look for their servers.
    let fresh = subjects();
    second.block_on(async {
        // By then the last proof is too old.
        tokio::time::sleep(2 * PROOF).await;
        // A cluster that was never found is down by then. That its runtime is silent is not known
        // until that has had time for an answer; nobody who may not wait is kept waiting for it.
        let refused = fresh[3].client.send(&cmd("GET k")).await;
        assert_eq!(refused.expect_err("nobody looks").label(), "down");
        tokio::time::sleep(ms(300)).await;
        tokio::join!(each_says_so(&connected), each_says_so(&fresh));
    });

    // They are of use again where they are driven, and where another runtime takes them over.
    first.block_on(each_works(&connected));
    let fresh = subjects();
    let mut heard = connected.each_ref().map(|one| one.client.pubsub());
    drop(first);
    block_on(async {
        tokio::join!(each_says_so(&connected), each_says_so(&fresh));
        for heard in &mut heard {
            assert_eq!(heard.next().await, None);
        }
    });
    second.block_on(async {
        tokio::join!(each_works(&connected), each_works(&fresh));
    });
}

/// A runtime that runs, and one thread of its own.
fn driven() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn c19_a_call_that_had_no_time_is_not_told_that_its_runtime_does_not_run() {
    let alive = driven();
    let redis = alive.block_on(Redis::start()).unwrap();
    for calls in ["MGET a b c d", "BLPOP nothing 0.001"] {
        for _ in 0..5 {
            let builder = Client::builder(&redis.url()).unwrap().connections(2);
            let client = alive.block_on(builder.connect()).unwrap();
            let hasty = client.with(CallOptions::new().deadline(Duration::from_micros(10)));
            let kind = block_on(hasty.send(&cmd(calls))).map_err(|error| error.label());
            assert_ne!(kind, Err("runtime"), "{calls}");
        }
    }
}

#[test]
fn t13_a_scan_goes_on_after_its_clients_runtime_was_busy() {
    let alive = driven();
    let (cluster, redis) = alive.block_on(async {
        let redis = Redis::start().await.unwrap();
        (Cluster::shared().await.unwrap(), redis)
    });
    let (home, caller) = (driven(), runtime());
    for url in [redis.url(), cluster.url()] {
        let keys: BTreeSet<_> = (0..200).map(|n| format!("busy:{n}")).collect();
        let client = home.block_on(async {
            let client = Client::builder(&url).unwrap().connect().await.unwrap();
            for key in &keys {
                client.send(&cmd(&format!("SET {key} 1"))).await.unwrap();
            }
            client
        });
        let few = ScanQuery {
            count: 10,
            ..ScanQuery::matching("busy:*")
        };
        // Its questions end before the runtime goes on.
        let hasty = CallOptions::new().deadline(ms(150));
        let scan = client.scan_keys(few).with(hasty).patience(ms(60_000));
        let mut seen = BTreeSet::new();
        caller.block_on(async {
            let mut scan = scan;
            let mut take = async || {
                let key = scan.next().await.transpose().unwrap();
                key.map(|key| seen.insert(String::from_utf8(key).unwrap()))
            };
            take().await;
            home.spawn(async { stand_still(ms(900)) });
            while take().await.is_some() {}
        });
        assert_eq!(seen, keys, "{url}");
    }
}
