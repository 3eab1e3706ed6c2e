//! T5, T7, T8, T9, C2: what a pipeline over several nodes does to others, and to itself, while one
//! of its slots moves.

use std::collections::HashSet;
use std::pin::pin;

use futures_util::FutureExt;
use steadfast::redis::{self, Value};
use steadfast::{CallOptions, Certainty, Client, ErrorKind};
use steadfast_drill::process::Cluster;
use tokio::task::JoinSet;

use crate::support::{cmd, eventually, key_of, ms, slot};

/// Two keys of a slot that moves from the first node to the second: one has gone, one has not.
struct Apart<'a> {
    cluster: &'a Cluster,
    slots: [u16; 1],
    gone: String,
    here: String,
}

impl<'a> Apart<'a> {
    async fn of(cluster: &'a Cluster, client: &Client, name: &str) -> Self {
        Self::at(cluster, client, &key_of(cluster, 0, name).await).await
    }

    /// The same, in the slot of this key.
    async fn at(cluster: &'a Cluster, client: &Client, key: &str) -> Self {
        let slots = [slot(key)];
        let [one, two] = ["a", "b"].map(|name| format!("{{{key}}}{name}"));
        for key in [&one, &two] {
            client.send(&cmd(&format!("SET {key} 0"))).await.unwrap();
        }
        cluster.begin_migration(&slots, 0, 1).await.unwrap();
        cluster.move_keys(&slots, 0, 1, 1).await.unwrap();
        let (gone, here) = match cluster.node(0).command(&["GET", &one]).await {
            Ok(_) => (two, one),
            Err(_) => (one, two),
        };
        Self {
            cluster,
            slots,
            gone,
            here,
        }
    }

    /// How often the first node has said that keys are apart.
    async fn refusals(&self) -> u64 {
        let stats = self.cluster.node(0).info("errorstats").await.unwrap();
        let count = stats.lines().find_map(|line| {
            let count = line.trim().strip_prefix("errorstat_TRYAGAIN:count=")?;
            count.parse().ok()
        });
        count.unwrap_or(0)
    }

    /// Waits until it has said so some more times.
    async fn is_refused(&self) {
        let before = self.refusals().await;
        eventually("it is tried again", async || {
            self.refusals().await > before + 3
        })
        .await;
    }

    async fn move_rest(&self) {
        let (cluster, slots) = (self.cluster, &self.slots);
        cluster.move_keys(slots, 0, 1, 10).await.unwrap();
    }

    async fn end(&self) {
        self.move_rest().await;
        let (cluster, slots) = (self.cluster, &self.slots);
        cluster.end_migration(slots, 0, 1).await.unwrap();
    }
}

fn text(text: &str) -> Value {
    Value::BulkString(text.into())
}

#[tokio::test]
async fn t5_t7_t8_t9_c2_pipelines_keep_to_their_turns_and_take_those_of_no_others() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = Client::builder(&cluster.url()).unwrap();
    let client = client
        .deadline(ms(60_000))
        .response_idle_timeout(ms(50_000))
        .unresponsive_timeout(ms(50_000))
        .wait_for_primary(ms(60_000));
    let client = client.connect().await.unwrap();
    t5_what_is_answered_keeps_nobody_waiting(&cluster, &client).await;
    for ends in [false, true] {
        t7_t8_a_read_of_several_keys_waits_until_they_are_together(&cluster, &client, ends).await;
    }
    for reads in [false, true] {
        t8_t9_what_is_behind_a_command_that_waits_for_its_keys_waits(&cluster, &client, reads)
            .await;
    }
    t9_what_has_not_run_takes_nobody_s_turn(&cluster, &client).await;
    t9_a_call_that_was_refused_takes_nobody_s_turn(&cluster, &client).await;
    t8_t9_a_pipeline_loses_its_turn_for_those_keys_only_that_were_served_since(&cluster, &client)
        .await;
    t31_parts_of_a_pipeline_take_one_place_at_their_node(&cluster).await;
    t31_parts_of_a_command_take_one_place_at_their_node(&cluster).await;
    c2_what_was_never_written_is_not_sent(&cluster, &client).await;
    t8_what_waits_for_very_many_slots_goes_on_in_each_at_little_cost(&cluster, &client).await;
}

async fn t5_what_is_answered_keeps_nobody_waiting(cluster: &Cluster, client: &Client) {
    let (a, b) = (key_of(cluster, 0, "a").await, key_of(cluster, 0, "b").await);
    let other = key_of(cluster, 0, "other").await;
    let slow = key_of(cluster, 1, "slow").await;
    for key in [&a, &slow] {
        client.send(&cmd(&format!("SET {key} text"))).await.unwrap();
    }
    let pause = ["CLIENT", "PAUSE", "100000", "WRITE"];
    cluster.node(1).command(&pause).await.unwrap();
    let mut pipe = redis::pipe();
    pipe.incr(&a, 1).set(&b, 1).set(&slow, 1);
    let mut pipe = pin!(client.send_pipeline(&pipe));
    assert!(futures_util::poll!(&mut pipe).is_pending());
    let hasty = client.with(CallOptions::new().deadline(ms(15_000)));
    let others = async {
        eventually("the first node has answered", async || {
            cluster.node(0).command(&["GET", &b]).await.unwrap() == text("1")
        })
        .await;
        // What is asked of it later is answered later: by then its answer is here.
        for _ in 0..3 {
            hasty.send(&cmd(&format!("GET {other}"))).await.unwrap();
        }
        let got = hasty.send(&cmd(&format!("GET {b}"))).await;
        assert_eq!(got.unwrap(), text("1"));
        // Nor does what is served, where its slot moves meanwhile.
        cluster.migrate(slot(&b), 0, 2).await.unwrap();
        let longer = hasty.send(&cmd(&format!("APPEND {b} 2"))).await;
        assert_eq!(longer.unwrap(), Value::Int(2));
    };
    tokio::select! {
        answers = &mut pipe => panic!("a node of it stands still: {answers:?}"),
        () = others => {}
    }
    cluster
        .node(1)
        .command(&["CLIENT", "UNPAUSE"])
        .await
        .unwrap();
    let answers = pipe.await.unwrap();
    assert!(matches!(answers[0], Value::ServerError(_)), "{answers:?}");
    assert_eq!(answers[1..], [Value::Okay, Value::Okay]);
}

async fn t7_t8_a_read_of_several_keys_waits_until_they_are_together(
    cluster: &Cluster,
    client: &Client,
    ends: bool,
) {
    let keys = Apart::of(cluster, client, &format!("read:{ends}")).await;
    let mut pipe = redis::pipe();
    pipe.mget(&[&keys.gone, &keys.here]);
    let mut call = pin!(client.send_pipeline(&pipe));
    tokio::select! {
        answers = &mut call => panic!("its keys are apart: {answers:?}"),
        () = keys.is_refused() => {}
    }
    match ends {
        true => keys.end().await,
        false => keys.move_rest().await,
    }
    let both = Value::Array(vec![text("0"), text("0")]);
    assert_eq!(call.await.unwrap(), [both], "{ends}");
    if !ends {
        keys.end().await;
    }
}

async fn t8_t9_what_is_behind_a_command_that_waits_for_its_keys_waits(
    cluster: &Cluster,
    client: &Client,
    reads: bool,
) {
    let keys = Apart::of(cluster, client, &format!("behind:{reads}")).await;
    let (gone, here) = (&keys.gone, &keys.here);
    let mut pipe = redis::pipe();
    let first = match reads {
        true => {
            pipe.mget(&[gone, here]);
            Value::Array(vec![text("0"), text("0")])
        }
        false => {
            pipe.mset(&[(gone, 5), (here, 5)]);
            Value::Okay
        }
    };
    pipe.append(gone, 1);
    let mut call = pin!(client.send_pipeline(&pipe));
    tokio::select! {
        answers = &mut call => panic!("its keys are apart: {answers:?}"),
        () = keys.is_refused() => {}
    }
    // What comes after it stays behind the command that waits.
    let behind = cmd(&format!("APPEND {gone} 2"));
    let mut behind = pin!(client.send(&behind));
    tokio::select! {
        answers = &mut call => panic!("its keys are apart: {answers:?}"),
        answer = &mut behind => panic!("it has overtaken the pipeline: {answer:?}"),
        () = keys.is_refused() => {}
    }
    let end = keys.end();
    let (answers, behind, ()) = tokio::join!(call, behind, end);
    assert_eq!(answers.unwrap(), [first, Value::Int(2)]);
    assert_eq!(behind.unwrap(), Value::Int(3));
}

async fn t9_what_has_not_run_takes_nobody_s_turn(cluster: &Cluster, client: &Client) {
    let keys = Apart::of(cluster, client, "turn").await;
    let (gone, here) = (&keys.gone, &keys.here);
    let first = cmd(&format!("MSET {gone} 1 {here} 1"));
    let mut first = pin!(client.send(&first));
    assert!(futures_util::poll!(&mut first).is_pending());
    let hasty = client.with(CallOptions::new().deadline(ms(1_000)));
    let mut pipe = redis::pipe();
    pipe.mset(&[(gone, 2), (here, 2)]);
    let mut second = pin!(hasty.send_pipeline(&pipe));
    assert!(futures_util::poll!(&mut second).is_pending());
    let error = tokio::select! {
        answer = &mut first => panic!("its keys are apart: {answer:?}"),
        answers = &mut second => answers.unwrap_err(),
    };
    assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
    let (first, ()) = tokio::join!(first, keys.end());
    assert_eq!(first.unwrap(), Value::Okay);
    let get = client.send(&cmd(&format!("GET {gone}"))).await;
    assert_eq!(get.unwrap(), text("1"));
}

async fn t31_parts_of_a_pipeline_take_one_place_at_their_node(cluster: &Cluster) {
    let builder = Client::builder(&cluster.url()).unwrap();
    let narrow = builder.deadline(ms(60_000)).in_flight(2);
    let client = narrow.connect().await.unwrap();
    let free = key_of(cluster, 1, "free").await;
    // While slots are on their way, nodes do not agree on who owns what.
    let mut keys = Vec::new();
    for number in 0..5 {
        keys.push(key_of(cluster, 0, &format!("place:{number}")).await);
    }
    let mut slots = Vec::new();
    for key in &keys {
        slots.push(Apart::at(cluster, &client, key).await);
    }
    let (mut first, mut second) = (redis::pipe(), redis::pipe());
    for Apart { gone, here, .. } in &slots {
        first.mset(&[(gone, 1), (here, 1)]);
        second.append(gone, 2);
    }
    second.set(&free, 3);
    let mut first = pin!(client.send_pipeline(&first));
    let mut second = pin!(client.send_pipeline(&second));
    tokio::select! {
        biased;
        answers = &mut first => panic!("its keys are apart: {answers:?}"),
        answers = &mut second => panic!("it has overtaken the first: {answers:?}"),
        () = eventually("what waits for nobody is served", async || {
            cluster.node(1).command(&["GET", &free]).await.unwrap() == text("3")
        }) => {}
    }
    // Nobody looks meanwhile, so all slots are free in one moment.
    for slot in &slots {
        slot.end().await;
    }
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.unwrap(), [const { Value::Okay }; 5]);
    let lengths = [const { Value::Int(2) }; 5];
    assert_eq!(second.unwrap(), [&lengths[..], &[Value::Okay]].concat());
}

async fn t31_parts_of_a_command_take_one_place_at_their_node(cluster: &Cluster) {
    let narrow = Client::builder(&cluster.url()).unwrap().in_flight(1);
    let narrow = narrow.deadline(ms(60_000));
    let narrow = narrow.response_idle_timeout(ms(50_000));
    let client = narrow.unresponsive_timeout(ms(50_000));
    let client = client.connect().await.unwrap();
    let mine = key_of(cluster, 1, "mine").await;
    let keys = Apart::of(cluster, &client, "wide").await;
    client.send(&cmd(&format!("SET {mine} 1"))).await.unwrap();
    // The request to the second node is not answered before the ASK of the first has led there.
    let pause = ["CLIENT", "PAUSE", "1000", "ALL"];
    cluster.node(1).command(&pause).await.unwrap();
    let get = cmd(&format!("MGET {mine} {}", keys.gone));
    let got = client.send(&get).await;
    assert_eq!(got.unwrap(), Value::Array(vec![text("1"), text("0")]));
    keys.end().await;
}

/// What writes is refused for now by the node, once it has seen whether the keys are there.
async fn t9_a_call_that_was_refused_takes_nobody_s_turn(cluster: &Cluster, client: &Client) {
    let keys = Apart::of(cluster, client, "refused").await;
    let (gone, here) = (&keys.gone, &keys.here);
    let needs_replicas = async |count: &str| {
        let set = ["CONFIG", "SET", "min-replicas-to-write", count];
        cluster.node(0).command(&set).await.unwrap();
    };
    needs_replicas("1").await;
    let first = cmd(&format!("MSET {gone} 1 {here} 1"));
    let mut first = pin!(client.send(&first));
    assert!(futures_util::poll!(&mut first).is_pending());
    let refused = cmd(&format!("APPEND {here} 2"));
    let error = tokio::select! {
        biased;
        answer = &mut first => panic!("its keys are apart: {answer:?}"),
        answer = client.send(&refused) => answer.unwrap_err(),
    };
    assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
    let code = |error: &steadfast::Error| match error.kind() {
        ErrorKind::Server(said) => said.code().to_owned(),
        _ => String::new(),
    };
    assert_eq!(code(&error), "NOREPLICAS", "{error}");
    needs_replicas("0").await;
    let (first, ()) = tokio::join!(first, keys.end());
    assert_eq!(first.unwrap(), Value::Okay);
    let get = client.send(&cmd(&format!("GET {here}"))).await;
    assert_eq!(get.unwrap(), text("1"));
}

async fn t8_t9_a_pipeline_loses_its_turn_for_those_keys_only_that_were_served_since(
    cluster: &Cluster,
    client: &Client,
) {
    let keys = Apart::of(cluster, client, "lost").await;
    let (gone, here) = (&keys.gone, &keys.here);
    // Two of the same slot that are apart from each other, and from those.
    let others = ["c", "d"].map(|name| format!("{}{name}", &here[..here.len() - 1]));
    let mut pipe = redis::pipe();
    pipe.mset(&[(gone, 1), (here, 1)]);
    pipe.mset(&[(&others[0], 2), (&others[1], 2)]);
    let mut piped = pin!(client.send_pipeline(&pipe));
    assert!(futures_util::poll!(&mut piped).is_pending());
    // Sent before the first answer comes, and served: its key is here.
    let later = cmd(&format!("APPEND {here} 3"));
    let served = tokio::select! {
        biased;
        answers = &mut piped => panic!("its keys are apart: {answers:?}"),
        answer = client.send(&later) => answer,
    };
    assert_eq!(served.unwrap(), Value::Int(2));
    let (piped, ()) = tokio::join!(piped, keys.end());
    let error = piped.unwrap_err();
    let ErrorKind::Partial {
        done: 1, not_run, ..
    } = error.kind()
    else {
        panic!("{error}");
    };
    assert_eq!(not_run[..], [0], "{error}");
    for (key, value) in [(here, "03"), (&others[0], "2"), (&others[1], "2")] {
        let get = client.send(&cmd(&format!("GET {key}"))).await;
        assert_eq!(get.unwrap(), text(value), "{key}");
    }
}

/// The node of the last slots is away.
async fn t8_what_waits_for_very_many_slots_goes_on_in_each_at_little_cost(
    cluster: &Cluster,
    client: &Client,
) {
    const SLOTS: usize = 1_000;
    let mut taken = HashSet::new();
    let names = (0..).map(|number| format!("many:{number}"));
    let is_there = |name: &String| slot(name) > 11_000 && taken.insert(slot(name));
    let keys: Vec<String> = names.filter(is_there).take(SLOTS).collect();
    // Each keeps its slot for a moment longer than the one before.
    let mut before = JoinSet::new();
    for (number, key) in keys.iter().enumerate() {
        let deadline = ms(2_000 + number as u64);
        let (client, incr) = (client.clone(), cmd(&format!("INCR {key}")));
        before.spawn(async move {
            let client = client.with(CallOptions::new().deadline(deadline));
            client.send(&incr).await
        });
    }
    tokio::time::sleep(ms(1_000)).await;
    let mut pipe = redis::pipe();
    for key in (0..10).flat_map(|_| &keys) {
        pipe.incr(key, 1);
    }
    let mut piped = pin!(client.send_pipeline(&pipe));
    let ended = async {
        while let Some(ended) = before.join_next().await {
            ended.unwrap().unwrap_err();
        }
    };
    tokio::select! {
        answers = &mut piped => panic!("a node of it is away: {answers:?}"),
        () = ended => {}
    }
    cluster.node(2).restart().await.unwrap();
    let answers = tokio::time::timeout(ms(40_000), piped).await;
    let answers = answers.expect("it costs little").unwrap();
    let last = (9 * SLOTS..10 * SLOTS).map(|_| Value::Int(10));
    assert_eq!(answers[9 * SLOTS..], last.collect::<Vec<_>>());
}

async fn c2_what_was_never_written_is_not_sent(cluster: &Cluster, client: &Client) {
    let key = key_of(cluster, 2, "away").await;
    cluster.node(2).kill().await;
    let hasty = client.with(CallOptions::new().deadline(ms(1_000)));
    let mut pipe = redis::pipe();
    pipe.set(&key, 1);
    // The first may be lost with the node.
    eventually("it is told so", async || {
        let ended = hasty.send_pipeline(&pipe).boxed().await;
        let error = ended.unwrap_err();
        let waited = matches!(error.kind(), ErrorKind::Timeout { .. });
        waited && error.certainty() == Certainty::NotSent
    })
    .await;
}
