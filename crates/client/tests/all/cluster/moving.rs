//! Slots that move, and the redirects that tell of it.

use super::*;

#[tokio::test]
async fn t4_every_key_goes_to_its_owner_and_a_slot_that_has_moved_costs_one_redirect() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    for n in 0..300 {
        client
            .send(&cmd(&format!("SET key:{n} {n}")))
            .await
            .unwrap();
    }
    let redirects = || client.status().cluster.unwrap().redirects;
    assert_eq!(redirects(), 0, "every slot is known");
    let key = &keys_of(&cluster, 0, 1).await[0];
    let toward = client.toward(key);
    let address = |at: usize| Some(cluster.node(at).addr().to_string());
    assert!(client.is_cluster());
    assert_eq!(toward.node(), address(0));
    let before = toward.server();
    cluster.migrate(slot(key), 0, 1).await.unwrap();
    for _ in 0..20 {
        let value = client.send(&cmd(&format!("GET {key}"))).await.unwrap();
        assert!(matches!(value, Value::BulkString(_)));
    }
    assert_eq!(toward.node(), address(1));
    assert!(before.is_some() && toward.server() != before);
    assert!(
        redirects() <= 1,
        "a redirect, or discovery, patches the slot"
    );
}

#[tokio::test]
async fn t6_a_key_that_has_migrated_ahead_of_its_slot_is_asked_for_and_nothing_runs_twice() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let key = &keys_of(&cluster, 0, 1).await[0];
    let slots = [slot(key)];
    client.send(&cmd(&format!("INCR {key}"))).await.unwrap();
    cluster.begin_migration(&slots, 0, 1).await.unwrap();
    // What is refused until its time is up has not run, and says so.
    let mut apart = redis::pipe();
    apart.add_command(cmd(&format!("MSET {key} 7 {{{key}}} 7")));
    let hasty = client.with(CallOptions::new().deadline(ms(300)));
    let error = hasty.send_pipeline(&apart).await.unwrap_err();
    assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
    assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "{error}");
    cluster.move_keys(&slots, 0, 1, 100).await.unwrap();
    let value = client.send(&cmd(&format!("INCR {key}"))).await.unwrap();
    assert_eq!(value, Value::Int(2), "behind ASKING, by the importing node");
    let script = redis::cmd("EVAL")
        .arg("return redis.call('INCR', KEYS[1])")
        .arg(1)
        .arg(key)
        .to_owned();
    assert_eq!(client.send(&script).await.unwrap(), Value::Int(3));
    let mut both = redis::pipe();
    both.atomic().incr(key, 1).incr(key, 1);
    let replies = client.send_pipeline(&both).await.unwrap();
    let exec = Value::Array(vec![Value::Int(4), Value::Int(5)]);
    assert_eq!(replies.last(), Some(&exec));
    // Whoever may not ask for it is told so, and not sent to and fro.
    let may_ask = async |rule: &'static str| {
        let importing = cluster.node(1);
        let set = ["ACL", "SETUSER", "default", rule];
        importing.command(&set).await.unwrap();
    };
    may_ask("-asking").await;
    let before = client.status().cluster.unwrap().redirects;
    let incr = client.send(&cmd(&format!("INCR {key}"))).await;
    let transaction = client.send_pipeline(&both).await;
    let after = client.status().cluster.unwrap().redirects;
    may_ask("+asking").await;
    for error in [incr.unwrap_err(), transaction.unwrap_err()] {
        assert!(error.to_string().contains("'asking'"), "{error}");
        assert_eq!(error.certainty(), Certainty::Rejected, "{error}");
    }
    assert_eq!(after - before, 2, "each was redirected once");
    cluster.end_migration(&slots, 0, 1).await.unwrap();
    let value = client.send(&cmd(&format!("INCR {key}"))).await.unwrap();
    assert_eq!(value, Value::Int(6));
    let status = client.status();
    assert_eq!(status.breaker, "closed");
    scripts_that_write_redirects(&cluster).await;
    deadlines_that_are_too_short(&cluster).await;
}

/// T10: a script may write the words of a redirect, after it has counted. It is believed once, no
/// route changes by it, and its caller is not told that nothing has run.
async fn scripts_that_write_redirects(cluster: &Cluster) {
    let client = client_of(cluster).await;
    let key = &keys_of(cluster, 0, 1).await[0];
    let (own, other) = (cluster.node(0).addr(), cluster.node(2).addr());
    let own_address = Some(own.to_string());
    for (word, to, times) in [("MOVED", own, 1), ("MOVED", other, 1), ("ASK", other, 1)] {
        client.send(&cmd(&format!("SET {key} 0"))).await.unwrap();
        let words = format!("{word} {} {to}", slot(key));
        let script = "redis.call('INCR', KEYS[1]) return redis.error_reply(ARGV[1])";
        let mut eval = redis::cmd("EVAL");
        eval.arg(script).arg(1).arg(key).arg(&words);
        let error = client.send(&eval).await.unwrap_err();
        assert_eq!(error.certainty(), Certainty::Unknown, "{words}: {error}");
        assert_eq!(counted(&client, key).await, times, "{words}: {error}");
        assert_eq!(client.toward(key).node(), own_address, "{words}");
        // In a pipeline too, whose other commands go where they belong.
        let mut both = redis::pipe();
        both.add_command(cmd(&format!("SET {key} 0")));
        both.add_command(eval);
        let answers = client.send_pipeline(&both).await.unwrap();
        // What it wrote, or what the node to which that led says.
        let Value::ServerError(said) = &answers[1] else {
            panic!("{words}: {answers:?}");
        };
        assert!(["MOVED", "ASK"].contains(&said.code()), "{words}: {said:?}");
        assert_eq!(counted(&client, key).await, times, "{words}: {answers:?}");
        assert_eq!(client.toward(key).node(), own_address, "{words}");
    }
}

/// T4: a caller who gives its calls less time than they take learns nothing of the cluster, and is
/// no reason to ask who serves.
async fn deadlines_that_are_too_short(cluster: &Cluster) {
    let client = client_of(cluster).await;
    let key = &keys_of(cluster, 0, 1).await[0];
    let get = cmd(&format!("GET {key}"));
    client.send(&get).await.unwrap();
    let discoveries = || client.status().cluster.unwrap().discoveries;
    let before = discoveries();
    let hasty = client.with(CallOptions::new().deadline(Duration::from_micros(1)));
    let begun = now();
    let mut late = 0;
    while now().duration_since(begun) < ms(1_700) {
        // An answer may come before anybody has looked at the clock.
        late += usize::from(hasty.send(&get).await.is_err());
        tokio::time::sleep(ms(5)).await;
    }
    assert!(late > 0);
    // One may be due anyway, and a busy machine may be doubted.
    let made = discoveries() - before;
    assert!(made <= 2, "{made} discoveries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t7_slots_that_move_to_and_fro_under_load_fail_no_call_and_each_incr_counts_once() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.deadline(ms(5_000)).connect().await.unwrap();
    let load = Load::start(&client, 64, 300);
    let slots: Vec<u16> = (0..300).map(|n| slot(&format!("count:{n}"))).collect();
    let before = client.status().cluster.unwrap().discoveries;
    let began = now();
    let moving = cluster.keep_moving(&slots, 1_000, tokio::time::sleep(ms(10_000)));
    let moved = moving.await.unwrap();
    let took = now().duration_since(began);
    let status = client.status().cluster.unwrap();
    let (errors, acknowledged) = load.end().await;
    assert!(
        errors.is_empty(),
        "{} failed: {:#?}",
        errors.len(),
        &errors[..errors.len().min(10)]
    );
    assert!(moved > 20 && status.redirects > 0, "{moved}: {status:?}");
    let most = 10.0 * took.as_secs_f64() + 1.0;
    assert!((status.discoveries - before) as f64 <= most, "{status:?}");
    for (key, count) in acknowledged.iter() {
        assert_eq!(
            counted(&client, key).await,
            count.load(Ordering::Relaxed),
            "{key}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t8_t11_pipelines_and_commands_over_all_slots_are_joined_in_order_while_slots_move() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let slots = |name: &'static str| (0..40).map(move |n| slot(&format!("{name}:{n}")));
    let slots: Vec<u16> = slots("piped").chain(slots("wide")).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    let stalls = Arc::new(Stalls::watch());
    for caller in 0..4u64 {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        let stalls = Arc::clone(&stalls);
        callers.spawn(async move {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                let mut pipeline = redis::pipe();
                for n in 0..40 {
                    let key = format!("piped:{n}");
                    pipeline.hincr(&key, caller, 1).hget(&key, caller);
                }
                let replies = match client.send_pipeline(&pipeline).await {
                    Ok(replies) => replies,
                    // Some of its commands have run, so its counts differ from now on.
                    Err(error) if stalls.explain(&error) => return rounds,
                    Err(error) => panic!("{error}"),
                };
                assert_eq!(replies.len(), 80);
                for pair in replies.chunks(2) {
                    let text = Value::BulkString(rounds.to_string().into_bytes());
                    assert_eq!(pair, [Value::Int(rounds), text], "{rounds}");
                }
            }
            rounds
        });
    }
    let mut wide = JoinSet::new();
    for caller in 0..4u64 {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        let stalls = Arc::clone(&stalls);
        wide.spawn(async move { read_and_write_wide(client, caller, &stop, &stalls).await });
    }
    let moving = cluster.keep_moving(&slots, 1_000, tokio::time::sleep(ms(5_000)));
    let moved = moving.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let rounds: i64 = callers.join_all().await.into_iter().sum();
    let wide: i64 = wide.join_all().await.into_iter().sum();
    assert!(moved > 0 && rounds > 0 && wide > 0);
}

/// Writes a key of each slot that moves by one MSET, reads them by one MGET and deletes half of
/// them by one DEL: a part that is redirected is followed, and what it answers is joined at the
/// place of its keys. Returns how often.
async fn read_and_write_wide(
    client: Client,
    caller: u64,
    stop: &AtomicBool,
    stalls: &Stalls,
) -> i64 {
    let client = client.with(steadfast::CallOptions::new().divide_mset(true));
    let keys: Vec<String> = (0..40).map(|n| format!("{{wide:{n}}}:{caller}")).collect();
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let (mut mset, mut mget, mut del) =
            (redis::cmd("MSET"), redis::cmd("MGET"), redis::cmd("DEL"));
        for (n, key) in keys.iter().enumerate() {
            mset.arg(key).arg(format!("{rounds}:{n}"));
        }
        mget.arg(&keys);
        del.arg(&keys[..20]);
        let text = |n: usize| Value::BulkString(format!("{rounds}:{n}").into_bytes());
        let there = Value::Array((0..40).map(text).collect());
        let half = (0..40).map(|n| if n < 20 { Value::Nil } else { text(n) });
        let wanted = [
            (&mset, Value::Okay),
            (&mget, there),
            (&del, Value::Int(20)),
            (&mget, Value::Array(half.collect())),
        ];
        for (cmd, wanted) in wanted {
            match client.send(cmd).await {
                Ok(value) => assert_eq!(value, wanted, "round {rounds}"),
                Err(error) if stalls.explains_part_of(&error) => return rounds,
                Err(error) => panic!("{error}"),
            }
        }
        rounds += 1;
    }
    rounds
}
