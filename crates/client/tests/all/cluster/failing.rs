//! Nodes that fail, and those that take over from them.

use steadfast::EventKind;
use steadfast_drill::process::FailoverKind;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t5_a_shard_that_is_frozen_fails_and_delays_no_call_to_another_and_is_named() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let client = client_of(&cluster).await;
    let (own, others) = (keys_of(&cluster, 0, 1).await, keys_of(&cluster, 1, 5).await);
    client
        .send(&cmd(&format!("SET {} v", own[0])))
        .await
        .unwrap();
    cluster.node(0).freeze().unwrap();
    let key = own[0].clone();
    let asked = client.clone();
    let waits = tokio::spawn(async move { asked.send(&cmd(&format!("GET {key}"))).await });
    // While it is silent, while it is found out to be down, and after that.
    let (mut took, mut left) = (Vec::new(), 200);
    while left > 0 {
        let key = &others[took.len() % others.len()];
        let began = now();
        client.send(&cmd(&format!("SET {key} v"))).await.unwrap();
        took.push(now().duration_since(began));
        left -= usize::from(client.toward(&own[0]).state() == ConnectionState::Down);
        assert!(took.len() < 1_000_000, "it is never known to be down");
    }
    let slow = took.iter().filter(|took| **took > ms(200)).count();
    assert!(slow * 10 < took.len(), "{slow} of {}", took.len());
    assert_eq!(client.state(), ConnectionState::Partial);
    waits.await.unwrap().unwrap_err();
    let mut shortest = Duration::MAX;
    for _ in 0..10 {
        let began = now();
        let refused = client.send(&cmd(&format!("GET {}", own[0]))).await;
        refused.unwrap_err();
        shortest = shortest.min(now().duration_since(began));
    }
    assert!(
        shortest < ms(50),
        "its own are refused at once: {shortest:?}"
    );
    let error = client
        .send(&cmd(&format!("GET {}", own[0])))
        .await
        .unwrap_err();
    assert_eq!(error.certainty(), Certainty::NotSent);
    let node = cluster.node(0).addr().to_string();
    assert!(error.to_string().contains(&node), "{error}");
    assert!(error.to_string().contains("slots 0-"), "{error}");
    cluster.node(0).resume().unwrap();
    until("it serves again", || {
        client.toward(&own[0]).state() == ConnectionState::Ready
    })
    .await;
    client.send(&cmd(&format!("GET {}", own[0]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t23_a_planned_failover_under_load_fails_no_call_and_each_incr_counts_once() {
    // Under this load a busy machine may take a second for an answer: nobody is to be voted out, or
    // to count as silent.
    let builder = Cluster::builder().node_timeout(Duration::from_secs(15));
    let cluster = builder.start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.response_idle_timeout(ms(5_000));
    let client = builder.deadline(ms(10_000)).connect().await.unwrap();
    let load = Load::start(&client, 16, 60);
    // Each once: a node that is promoted again within four times its timeout counts old votes.
    for at in 0..3 {
        let replica = cluster.fail_over(at, FailoverKind::Planned).await;
        assert_eq!(replica.unwrap(), at + 3);
        cluster.well().await.unwrap();
    }
    let (errors, acknowledged) = load.end().await;
    assert!(
        errors.is_empty(),
        "{} failed: {:#?}",
        errors.len(),
        &errors[..errors.len().min(10)]
    );
    for (key, count) in acknowledged.iter() {
        assert_eq!(
            counted(&client, key).await,
            count.load(Ordering::Relaxed),
            "{key}"
        );
    }
}

/// To find and connect to the node that takes over takes longer than the grace, and nothing is
/// wrong with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t23_calls_wait_for_the_first_connection_to_a_node_that_takes_over_and_no_outage_is_told() {
    let builder = Cluster::builder().node_timeout(Duration::from_secs(15));
    let cluster = builder.each(has_a_name).start().await.unwrap();
    let builder = Client::builder(&cluster.url()).unwrap();
    let builder = builder.resolver(DistantNames).connect_timeout(ms(5_000));
    let client = builder.deadline(ms(30_000)).connect().await.unwrap();
    let load = Load::start(&client, 4, 60);
    let replica = cluster.fail_over(0, FailoverKind::Planned).await.unwrap();
    let key = &keys_of(&cluster, replica, 1).await[0];
    client.send(redis::cmd("INCR").arg(key)).await.unwrap();
    let (errors, _) = load.end().await;
    assert!(errors.is_empty(), "{} failed: {errors:#?}", errors.len());
    let mut history = client.history().into_iter();
    let down = history.find(|event| matches!(event.kind, EventKind::Down { .. }));
    assert!(down.is_none(), "{down:?}");
}

/// Many clients in one process, each of which asks for the same key again and again.
struct Many {
    clients: Vec<Client>,
    callers: JoinSet<()>,
    began: std::time::Instant,
}

impl Many {
    async fn start(cluster: &Cluster, count: usize, key: &str) -> Self {
        let clients = (0..count).map(|_| {
            let builder = Client::builder(&cluster.url()).unwrap();
            builder.deadline(ms(10_000)).build().unwrap()
        });
        let clients: Vec<Client> = clients.collect();
        let (mut callers, get) = (JoinSet::new(), cmd(&format!("GET {key}")));
        let connected = Arc::new(AtomicU64::new(0));
        for client in clients.clone() {
            let (get, key) = (get.clone(), key.to_owned());
            let connected = Arc::clone(&connected);
            callers.spawn(async move {
                // So many that begin at once keep a busy machine busy for longer than the grace.
                while client.send(&get).await.is_err() {
                    tokio::time::sleep(ms(50)).await;
                }
                let first = client.toward(&key).node();
                connected.fetch_add(1, Ordering::Relaxed);
                // Until another node serves it.
                while client.send(&get).await.is_err() || client.toward(&key).node() == first {
                    tokio::time::sleep(ms(50)).await;
                }
            });
        }
        until("all are connected", || {
            connected.load(Ordering::Relaxed) == count as u64
        })
        .await;
        Self {
            clients,
            callers,
            began: now(),
        }
    }

    /// T31, T4: all of them get there, and none asks the others more often than it may.
    async fn end(self) {
        self.callers.join_all().await;
        let seconds = now().duration_since(self.began).as_secs_f64();
        let discoveries = self.clients.iter().map(|client| {
            let status = client.status().cluster.unwrap();
            status.discoveries
        });
        let discoveries: Vec<u64> = discoveries.collect();
        let all = discoveries.iter().sum::<u64>() as f64 / self.clients.len() as f64;
        let most = discoveries.iter().max().copied().unwrap_or_default() as f64;
        assert!(all <= 8.0 + 3.0 * seconds, "{all} in {seconds} s");
        assert!(most <= 8.0 + 10.0 * seconds, "{most} in {seconds} s");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_t16_t31_a_primary_that_is_killed_is_followed_to_its_replica_by_any_number_of_clients() {
    let cluster = Cluster::start().await.unwrap();
    let client = client_of(&cluster).await;
    let (own, others) = (keys_of(&cluster, 0, 1).await, keys_of(&cluster, 1, 1).await);
    client
        .send(&cmd(&format!("SET {} v", own[0])))
        .await
        .unwrap();
    let patient = Client::builder(&cluster.url()).unwrap();
    let patient = patient.deadline(ms(60_000)).wait_for_primary(ms(60_000));
    let patient = patient.connect().await.unwrap();
    let many = Many::start(&cluster, 50, &own[0]).await;
    cluster.node(0).kill().await;
    let waits = {
        let words = format!("SET {} w", own[0]);
        tokio::spawn(async move { patient.send(&cmd(&words)).await })
    };
    let began = now();
    loop {
        client
            .send(&cmd(&format!("SET {} v", others[0])))
            .await
            .unwrap();
        if client
            .send(&cmd(&format!("SET {} w", own[0])))
            .await
            .is_ok()
        {
            break;
        }
        assert!(
            now().duration_since(began) < Duration::from_secs(60),
            "{:#?}",
            client.status()
        );
        tokio::time::sleep(ms(20)).await;
    }
    // T32: however often it is tried meanwhile.
    waits.await.unwrap().unwrap();
    many.end().await;
    until("every slot is served", || {
        client.state() == ConnectionState::Ready
    })
    .await;
}

#[tokio::test]
async fn t18_a_node_that_flapped_and_was_succeeded_flaps_no_more_and_its_outage_is_over() {
    let cluster = Cluster::start().await.unwrap();
    let client = client_of(&cluster).await;
    let own = keys_of(&cluster, 0, 1).await.remove(0);
    let set = cmd(&format!("SET {own} v"));
    for _ in 0..40 {
        let _ = client.send(&set).await;
        if client.status().flapping.is_some() {
            break;
        }
        let kill = ["CLIENT", "KILL", "TYPE", "normal"];
        cluster.node(0).command(&kill).await.unwrap();
        tokio::time::sleep(ms(100)).await;
    }
    assert!(client.status().flapping.is_some());
    cluster.node(0).kill().await;
    until("its replica serves", || {
        let told = client.history().into_iter();
        told.map(|event| event.kind.name())
            .any(|name| name == "retired")
    })
    .await;
    assert_eq!(client.status().flapping, None);
    let incidents = client.incidents();
    let over = incidents.iter().all(|one| one.recovery_ms.is_some());
    assert!(over, "{incidents:#?}");
    assert_eq!(client.close(ms(1_000)).await.unfinished, 0);
    assert_eq!(client.close(ms(1_000)).await.unfinished, 0);
    let closed = client.history().into_iter();
    let closed = closed.filter(|event| event.node.is_none() && event.kind.name() == "closed");
    assert_eq!(closed.count(), 1, "told once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_calls_and_pipelines_of_every_slot_wait_through_an_election_in_their_order() {
    // As servers are by default: while one slot has no primary, every node refuses.
    let builder = Cluster::builder().require_full_coverage(true);
    let cluster = builder.start().await.unwrap();
    let (own, others) = (keys_of(&cluster, 0, 1).await, keys_of(&cluster, 1, 1).await);
    let patient = Client::builder(&cluster.url()).unwrap();
    let patient = patient.deadline(ms(60_000)).wait_for_primary(ms(60_000));
    let patient = patient.connect().await.unwrap();
    for key in [&own[0], &others[0]] {
        patient.send(&cmd(&format!("SET {key} 0"))).await.unwrap();
    }
    cluster.node(0).kill().await;
    let mut calls = Vec::new();
    // Until well after the new primary serves.
    let (began, mut served) = (now(), None);
    while served.is_none_or(|served| now().duration_since(served) < ms(500)) {
        assert!(now().duration_since(began) < Duration::from_secs(50));
        let number = calls.len() / 2;
        for key in [&own[0], &others[0]] {
            let (client, words) = (patient.clone(), format!("SET {key} {number}"));
            let mut pipeline = redis::pipe();
            for key in [&own[0], &others[0]] {
                pipeline.set(key, number);
            }
            let mut call: BoxFuture<'_, _> = Box::pin(async move {
                match number % 3 {
                    // Over both shards, or over the one.
                    1 => client.send_pipeline(&pipeline).await.map(drop),
                    2 => {
                        let mut pipeline = redis::pipe();
                        pipeline.add_command(cmd(&words));
                        client.send_pipeline(&pipeline).await.map(drop)
                    }
                    _ => client.send(&cmd(&words)).await.map(drop),
                }
            });
            // It is submitted in this order, whichever thread serves it later.
            let polled = futures_util::poll!(&mut call);
            calls.push(tokio::spawn(async move {
                match polled {
                    std::task::Poll::Ready(result) => result,
                    std::task::Poll::Pending => call.await,
                }
            }));
        }
        if served.is_none() && calls[0].is_finished() {
            served = Some(now());
        }
        tokio::time::sleep(ms(20)).await;
    }
    let last = (calls.len() / 2 - 1) as u64;
    // By key: whether each of its calls was served.
    let mut served = [Vec::new(), Vec::new()];
    for (at, call) in calls.into_iter().enumerate() {
        let keys = match at / 2 % 3 {
            1 => vec![0, 1],
            _ => vec![at % 2],
        };
        let overtaken = match call.await.unwrap() {
            Ok(()) => Vec::new(),
            Err(error) => overtaken_in(&error, &keys),
        };
        for key in keys {
            served[key].push(!overtaken.contains(&key));
        }
    }
    for served in served {
        // A node may refuse commands and serve those behind them: those have overtaken them, and
        // they say so. That happens once, as it comes to serve.
        let changes = served.windows(2).filter(|both| both[0] != both[1]);
        assert!(
            changes.count() <= 2 && served.ends_with(&[true]),
            "{served:?}"
        );
    }
    assert_eq!(counted(&patient, &own[0]).await, last);
    assert_eq!(counted(&patient, &others[0]).await, last);
}

/// Which of its keys, by their numbers, a call was overtaken in: that it has not run for them is
/// certain, and nothing else befell it.
fn overtaken_in(error: &steadfast::Error, keys: &[usize]) -> Vec<usize> {
    let words = ErrorKind::Overtaken.to_string();
    match error.kind() {
        ErrorKind::Overtaken if error.certainty() != Certainty::Unknown => keys.to_vec(),
        ErrorKind::Partial {
            cause,
            not_run,
            unknown,
            ..
        } if unknown.is_empty() && cause.contains(&words) => {
            not_run.iter().map(|command| keys[*command]).collect()
        }
        _ => panic!("{error:?}"),
    }
}
