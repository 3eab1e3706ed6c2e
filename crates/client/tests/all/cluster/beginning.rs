//! The first view, and the first connections.

use steadfast_drill::process::Redis;

use super::*;

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
