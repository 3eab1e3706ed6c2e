//! T1, T16 to T21, T23, T25, T32: a primary that moves, by real sentinels.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use steadfast::credentials::{Credentials, CredentialsError, CredentialsProvider};
use steadfast::{
    CallOptions, Certainty, Client, ConnectionState, ErrorKind, EventKind, FailoverHistory,
    PubSubEvent,
};
use steadfast_drill::process::{Port, Redis, Sentinel, Watched};

use crate::support::{cmd, ms, until, until_down_for, until_state};

async fn client_of(watched: &Watched) -> Client {
    let builder = Client::builder(&watched.url()).unwrap();
    builder.deadline(ms(5_000)).connect().await.unwrap()
}

fn primary(client: &Client) -> u16 {
    let status = client.status().sentinel.expect("sentinels are asked");
    let primary = status.primary.unwrap_or_default();
    primary.rsplit(':').next().unwrap().parse().unwrap_or(0)
}

/// From the events, the failovers that were told.
fn failovers(client: &Client) -> Vec<(String, String, FailoverHistory)> {
    let events = client.history().into_iter();
    let told = events.filter_map(|event| match event.kind {
        EventKind::FailedOver {
            from, to, history, ..
        } => Some((from, to, history)),
        _ => None,
    });
    told.collect()
}

#[tokio::test]
async fn t17_t23_a_planned_failover_under_load_costs_no_read_and_no_last_wins_write() {
    let watched = Watched::start().await.unwrap();
    let client = client_of(&watched).await;
    assert_eq!(primary(&client), watched.data[0].port());
    until("a majority confirms it", || {
        let status = client.status().sentinel.expect("sentinels are asked");
        (status.votes, status.voters) == (3, 3)
    })
    .await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..4 {
        let (client, stop) = (client.clone(), std::sync::Arc::clone(&stop));
        callers.spawn(async move {
            let mut calls = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (set, get) = (format!("SET k{caller} {calls}"), format!("GET k{caller}"));
                client.send(&cmd(&set)).await.expect("the last one wins");
                client.send(&cmd(&get)).await.expect("it reads");
                calls += 1;
                tokio::time::sleep(ms(1)).await;
            }
            calls
        });
    }
    tokio::time::sleep(ms(100)).await;
    watched.fail_over().await.unwrap();
    until("it serves from the new one", || {
        primary(&client) == watched.data[1].port()
            && client.status().state == ConnectionState::Ready
    })
    .await;
    client.send(&cmd("SET after it")).await.unwrap();
    let role = watched.data[1].command(&["GET", "after"]).await.unwrap();
    assert_eq!(role, redis::Value::BulkString(b"it".to_vec()));
    let at = |server: usize| client.node(&watched.data[server].addr().to_string());
    at(1).send(&cmd("CONFIG GET port")).await.unwrap();
    let error = at(0).send(&cmd("PING")).await.unwrap_err();
    assert!(error.to_string().contains(at(1).address()), "{error}");
    let mut keys = client.scan_keys(steadfast::ScanQuery::matching("after"));
    assert_eq!(keys.next().await.unwrap().unwrap(), b"after");
    assert!(keys.next().await.is_none());
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(callers.join_all().await.iter().all(|calls| *calls > 10));
    until("it is told", || !failovers(&client).is_empty()).await;
    let told = failovers(&client);
    let [(from, to, history)] = &told[..] else {
        panic!("one failover is told: {told:?}")
    };
    assert_eq!(*from, watched.data[0].addr().to_string());
    assert_eq!(*to, watched.data[1].addr().to_string());
    assert!(
        matches!(history, FailoverHistory::Same { .. }),
        "{history:?}"
    );
}

#[tokio::test]
async fn t20_a_failover_tells_which_acknowledged_writes_have_survived_and_how_many_may_be_lost() {
    let watched = Watched::start().await.unwrap();
    let client = Client::builder(&watched.url())
        .unwrap()
        .deadline(ms(5_000))
        .heartbeat(ms(50))
        .connect()
        .await
        .unwrap();
    for _ in 0..10 {
        client.send(&cmd("INCR n")).await.unwrap();
    }
    until("the replica is seen", || {
        let status = client.status().sentinel.expect("sentinels are asked");
        let port = watched.data[1].port().to_string();
        let seen = |one: &steadfast::ReplicaStatus| one.address.ends_with(&port);
        status.replicas.iter().any(seen)
    })
    .await;
    // A mark is set after the last of them, and the replica has it.
    tokio::time::sleep(ms(300)).await;
    watched.data[1]
        .in_sync_with(&watched.data[0])
        .await
        .unwrap();
    // From here on the replica hears nothing any more.
    for words in [
        "ACL SETUSER default -psync -sync",
        "CLIENT KILL TYPE replica",
    ] {
        let words: Vec<_> = words.split(' ').collect();
        watched.data[0].command(&words).await.unwrap();
    }
    for _ in 0..7 {
        client.send(&cmd("INCR n")).await.unwrap();
        // A message is kept by nobody, and so not lost with the primary.
        client.send(&cmd("PUBLISH channel m")).await.unwrap();
    }
    watched.data[0].kill().await;
    until("it is told", || !failovers(&client).is_empty()).await;
    let (_, to, history) = failovers(&client).remove(0);
    assert_eq!(to, watched.data[1].addr().to_string());
    let FailoverHistory::Same {
        certain_ms_ago,
        at_risk,
    } = history
    else {
        panic!("{history:?}")
    };
    assert!(certain_ms_ago.is_some_and(|ago| ago > 0.0));
    assert_eq!(at_risk, 7);
    let n = client.send(&cmd("GET n")).await.unwrap();
    assert_eq!(n, redis::Value::BulkString(b"10".to_vec()), "they are lost");
}

#[tokio::test]
async fn t16_t17_t32_a_primary_that_is_killed_is_replaced_and_calls_wait_for_the_next_if_asked_to()
{
    let watched = Watched::start().await.unwrap();
    let client = client_of(&watched).await;
    let patient = Client::builder(&watched.url())
        .unwrap()
        .deadline(Duration::from_secs(90))
        .wait_for_primary(Duration::from_secs(90))
        .connect()
        .await
        .unwrap();
    let killed = watched.data[0].kill();
    let lost = until_state(&client, ConnectionState::Down);
    tokio::join!(killed, lost);
    let error = client.send(&cmd("GET k")).await.expect_err("it is down");
    assert_eq!(error.certainty(), Certainty::NotSent);
    // It waits through the election, and succeeds.
    patient.send(&cmd("INCR n")).await.unwrap();
    assert_eq!(primary(&patient), watched.data[1].port());
    assert_eq!(patient.status().reconnects, 1, "{:?}", patient.history());
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("INCR n")).await.unwrap();
    let n = watched.data[1].command(&["GET", "n"]).await.unwrap();
    assert_eq!(n, redis::Value::BulkString(b"2".to_vec()));
    // The old one comes back, and takes itself for a primary until it is told otherwise.
    watched.data[0].restart().await.unwrap();
    for _ in 0..100 {
        client.send(&cmd("INCR n")).await.unwrap();
        patient.send(&cmd("INCR n")).await.unwrap();
        tokio::time::sleep(ms(5)).await;
    }
    let n = watched.data[1].command(&["GET", "n"]).await.unwrap();
    assert_eq!(n, redis::Value::BulkString(b"202".to_vec()));
}

#[tokio::test]
async fn t18_nothing_of_a_frozen_primary_counts_when_it_wakes_after_the_promotion() {
    let watched = Watched::start().await.unwrap();
    let client = client_of(&watched).await;
    client.send(&cmd("SET k old")).await.unwrap();
    watched.data[1]
        .in_sync_with(&watched.data[0])
        .await
        .unwrap();
    let mut blocked = {
        let client = client.clone();
        let pop = async move { client.send(&cmd("BLPOP list 60")).await };
        tokio::spawn(pop)
    };
    let mut subscriber = client.pubsub();
    subscriber.subscribe("c").await.unwrap();
    // Whose attempts to connect would wait for the frozen one much longer than an election takes.
    let stubborn = Client::builder(&watched.url())
        .unwrap()
        .connect_timeout(Duration::from_secs(600))
        .watchdog_timeout(Duration::from_secs(6_000))
        .connect()
        .await
        .unwrap();
    watched.data[0].freeze().unwrap();
    stubborn.reconnect();
    let in_flight = {
        let options = CallOptions::new().deadline(Duration::from_secs(180));
        let client = client.with(options);
        tokio::spawn(async move { client.send(&cmd("INCR n")).await })
    };
    until("the sentinels name the other", || {
        primary(&client) == watched.data[1].port()
    })
    .await;
    until_state(&client, ConnectionState::Ready).await;
    let ended = in_flight
        .await
        .unwrap()
        .expect_err("its answer never counts");
    assert_eq!(ended.certainty(), Certainty::Unknown, "{ended}");
    until_state(&stubborn, ConnectionState::Ready).await;
    assert_eq!(primary(&stubborn), watched.data[1].port());
    watched.data[0].resume().unwrap();
    client.send(&cmd("SET k new")).await.unwrap();
    for _ in 0..50 {
        let read = client.send(&cmd("GET k")).await.unwrap();
        assert_eq!(read, redis::Value::BulkString(b"new".to_vec()));
        tokio::time::sleep(ms(2)).await;
    }
    // A blocking call and a subscriber are where the primary is.
    if !blocked.is_finished() {
        client.send(&cmd("LPUSH list v")).await.unwrap();
    }
    let ended = tokio::time::timeout(Duration::from_secs(20), &mut blocked).await;
    let ended = ended.expect("it does not wait for the deposed").unwrap();
    if let Err(error) = ended {
        assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
    }
    let heard = async {
        loop {
            client.send(&cmd("PUBLISH c m")).await.unwrap();
            let next = tokio::time::timeout(ms(200), subscriber.next()).await;
            if let Ok(Some(PubSubEvent::Message { payload, .. })) = next {
                break payload;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), heard)
        .await
        .expect("the subscriber hears the new primary");
}

#[tokio::test]
async fn t17_sentinels_that_are_all_away_disturb_nobody_while_the_primary_serves() {
    let watched = Watched::start().await.unwrap();
    let client = client_of(&watched).await;
    for sentinel in &watched.sentinels {
        sentinel.kill().await;
    }
    until("it is known that they are away", || {
        let status = client.status().sentinel.expect("sentinels are asked");
        status.sentinels.iter().all(|one| one.error.is_some())
    })
    .await;
    for _ in 0..100 {
        client.send(&cmd("INCR n")).await.unwrap();
    }
    // Nor a lost connection.
    client.reconnect();
    client.send(&cmd("INCR n")).await.unwrap();
    // One that begins now finds nobody to ask, and says so of each.
    let late = Client::builder(&watched.url()).unwrap().build().unwrap();
    let address = watched.sentinels[2].addr().to_string();
    until_down_for(&late, &address).await;
    // They come back, with another in office.
    for sentinel in &watched.sentinels {
        sentinel.relaunch().await.unwrap();
    }
    until("they are heard again", || {
        let status = client.status().sentinel.expect("sentinels are asked");
        status.sentinels.iter().all(|one| one.error.is_none())
    })
    .await;
    until_state(&late, ConnectionState::Ready).await;
    watched.fail_over().await.unwrap();
    for client in [&client, &late] {
        until("it follows", || primary(client) == watched.data[1].port()).await;
    }
}

#[tokio::test]
async fn t17_whoever_names_no_primary_is_told_by_name() {
    let watched = Watched::start().await.unwrap();
    let url = watched.url().replace("/main", "/other");
    let builder = Client::builder(&url).unwrap().deadline(ms(500));
    let error = builder.connect().await.expect_err("nobody watches it");
    let said = error.to_string();
    assert!(
        said.contains("no sentinel names a primary for `other`"),
        "{said}"
    );
    let each = watched.sentinels.iter();
    for address in each.map(|one| one.addr().to_string()) {
        let want = format!("{address}: it watches no primary named `other`");
        assert!(said.contains(&want), "{said}");
    }
    // A data server is no sentinel.
    let url = format!("redis-sentinel://{}/main", watched.data[0].addr());
    let builder = Client::builder(&url).unwrap().deadline(ms(500));
    let error = builder.connect().await.expect_err("it is no sentinel");
    assert!(error.to_string().contains("not a sentinel"), "{error}");
}

#[tokio::test]
async fn t17_sentinels_have_credentials_of_their_own() {
    let data = Redis::builder().password("d4ta").start().await.unwrap();
    let lines = ["requirepass s3ntinel", "sentinel auth-pass main d4ta"];
    let sentinel = Sentinel::start(&data, &lines).await.unwrap();
    let at = sentinel.addr();
    for wrong in ["", "?sentinel_password=d4ta"] {
        let url = format!("redis-sentinel://:d4ta@{at}/main{wrong}");
        let builder = Client::builder(&url).unwrap().deadline(ms(500));
        let said = builder.connect().await.expect_err(wrong).to_string();
        assert!(
            said.contains("a sentinel has credentials of its own"),
            "{said}"
        );
        assert!(!said.contains("d4ta"), "{said}");
    }
    let url = format!("redis-sentinel://:d4ta@{at}/main?sentinel_password=s3ntinel");
    let client = Client::builder(&url).unwrap().connect().await.unwrap();
    client.send(&cmd("SET k v")).await.unwrap();

    // From a provider, which is asked again at each connection: the first answer was wrong.
    let url = format!("redis-sentinel://:d4ta@{at}/main");
    let client = Client::builder(&url)
        .unwrap()
        .sentinel_credentials_from(Renewed::default())
        .build()
        .unwrap();
    until("the second answer is given", || {
        client.state() == ConnectionState::Ready
    })
    .await;
}

/// Gives a password that is wrong, and then the right one.
#[derive(Debug, Default)]
struct Renewed(AtomicU64);

impl CredentialsProvider for Renewed {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        let asked = self.0.fetch_add(1, Ordering::Relaxed);
        let password = if asked == 0 { "old" } else { "s3ntinel" };
        Box::pin(std::future::ready(Ok(Credentials::new("", password))))
    }

    fn renew_in(&self) -> Option<Duration> {
        None
    }
}

#[tokio::test]
async fn t20_what_the_user_may_not_ask_is_told_and_asked_no_more_at_each_heartbeat() {
    let watched = Watched::start().await.unwrap();
    let user = "ACL SETUSER app on >secret ~* &* +@all";
    let user: Vec<_> = user.split(' ').collect();
    for server in &watched.data {
        server.command(&user).await.unwrap();
    }
    let url = watched.url().replace("://", "://app:secret@");
    let builder = Client::builder(&url).unwrap().heartbeat(ms(10));
    let client = builder.connect().await.unwrap();
    let replicas = || client.status().sentinel.unwrap().replicas;
    until("it is allowed, and the primary tells", || {
        replicas().iter().any(|one| one.lag_bytes.is_some())
    })
    .await;
    let not_allowed = || client.status().sentinel.unwrap().not_allowed;
    let refuse = ["ACL", "SETUSER", "app", "-role"];
    watched.data[0].command(&refuse).await.unwrap();
    until("the refusal is told", || not_allowed() == ["ROLE"]).await;
    // Some fifty heartbeats.
    tokio::time::sleep(ms(500)).await;
    let stats = watched.data[0].info("commandstats").await.unwrap();
    let role = stats.lines().find(|line| line.starts_with("cmdstat_role:"));
    let role = role.expect("it was asked once");
    let refused = role.split("rejected_calls=").nth(1).unwrap();
    let refused: u32 = refused.split(',').next().unwrap().parse().unwrap();
    assert!(refused < 5, "{role}");
    // Replicas are known all the same, by the sentinels' word; no lag that was told long ago.
    let [replica] = &client.status().sentinel.unwrap().replicas[..] else {
        panic!("{:?}", client.status());
    };
    assert_eq!((replica.in_sync, replica.lag_bytes), (true, None));
}

#[tokio::test]
async fn t19_without_a_majority_no_write_is_sent_where_a_proof_is_asked_for() {
    let watched = Watched::start().await.unwrap();
    let client = Client::builder(&watched.url())
        .unwrap()
        .deadline(ms(2_000))
        .primary_proof(Duration::from_secs(1))
        .connect()
        .await
        .unwrap();
    until("a majority confirms it", || {
        let status = client.status().sentinel.expect("sentinels are asked");
        status.votes >= 2
    })
    .await;
    client.send(&cmd("INCR n")).await.expect("it is proven");
    watched.sentinels[0].freeze().unwrap();
    tokio::time::sleep(ms(1_500)).await;
    client
        .send(&cmd("INCR n"))
        .await
        .expect("two are a majority");
    watched.sentinels[1].kill().await;
    let refused = async {
        loop {
            match client.send(&cmd("INCR n")).await {
                Ok(_) => tokio::time::sleep(ms(20)).await,
                Err(error) => break error,
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(20), refused).await;
    let error = error.expect("the proof grows old");
    assert!(
        matches!(error.kind(), ErrorKind::Unproven { .. }),
        "{error}"
    );
    assert_eq!(error.certainty(), Certainty::NotSent);
    client.send(&cmd("GET n")).await.expect("it only reads");
    // Nor on any other connection.
    let acknowledged = CallOptions::new().acknowledged_by(1, ms(100));
    let blocking = CallOptions::new().deadline(ms(500));
    for (options, words) in [(acknowledged, "INCR n"), (blocking, "BLPOP list 1")] {
        let sent = client.with(options).send(&cmd(words)).await;
        let error = sent.expect_err(words);
        assert!(
            matches!(error.kind(), ErrorKind::Unproven { .. }),
            "{error}"
        );
    }
    let session = client.session().await.unwrap();
    let error = session.send(&cmd("INCR n")).await.expect_err("it writes");
    assert!(
        matches!(error.kind(), ErrorKind::Unproven { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn t21_a_write_that_too_few_replicas_acknowledge_is_no_success_and_is_not_made_again() {
    let watched = Watched::start().await.unwrap();
    let client = Client::builder(&watched.url())
        .unwrap()
        .deadline(ms(5_000))
        .connect()
        .await
        .unwrap();
    let options = |replicas| CallOptions::new().acknowledged_by(replicas, ms(300));
    let generous = Duration::from_secs(20);
    let waiting = CallOptions::new().deadline(generous);
    let waiting = client.with(waiting.acknowledged_by(1, generous));
    waiting.send(&cmd("INCR n")).await.expect("one has it");
    // It has it now, whatever becomes of the primary.
    let n = watched.data[1].command(&["GET", "n"]).await.unwrap();
    assert_eq!(n, redis::Value::BulkString(b"1".to_vec()));
    // A replica that is no more is missing, and one that was never there.
    watched.data[1].freeze().unwrap();
    let mut scoped = client.with(options(1));
    for (scoped, wanted) in [(&scoped, 1), (&client.with(options(2)), 2)] {
        let error = scoped
            .send(&cmd("INCR n"))
            .await
            .expect_err("nobody has it");
        let ErrorKind::NotReplicated {
            acked: 0,
            wanted: w,
        } = error.kind()
        else {
            panic!("{error}")
        };
        assert_eq!((*w, error.certainty()), (wanted, Certainty::Unknown));
    }
    // What only reads waits for nobody, and a transaction waits as a whole.
    scoped.send(&cmd("GET n")).await.expect("it only reads");
    let mut transaction = redis::pipe();
    transaction
        .atomic()
        .cmd("INCR")
        .arg("n")
        .cmd("GET")
        .arg("n");
    let made: redis::RedisResult<(i64, i64)> = transaction.query_async(&mut scoped).await;
    let error = made.expect_err("nobody has it");
    assert_eq!(steadfast::certainty(&error), Certainty::Unknown);
    watched.data[1].resume().unwrap();
    // Each was made once.
    let n = client.send(&cmd("GET n")).await.unwrap();
    assert_eq!(n, redis::Value::BulkString(b"4".to_vec()));
    acknowledged_writes_are_there_after_two_failovers(&watched, &client).await;
}

/// What was acknowledged by the one replica is there after two failovers in a row.
async fn acknowledged_writes_are_there_after_two_failovers(watched: &Watched, client: &Client) {
    let by_one = client.with(CallOptions::new().acknowledged_by(1, ms(300)));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let writes = async {
        let mut kept = Vec::new();
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let set = cmd(&format!("SET a:{number} v"));
            if by_one.send(&set).await.is_ok() {
                kept.push(format!("a:{number}"));
            }
            tokio::time::sleep(ms(2)).await;
        }
        kept
    };
    let twice = async {
        for at in [1, 0] {
            fail_over_once_it_can(watched).await;
            until("it follows", || primary(client) == watched.data[at].port()).await;
        }
        tokio::time::sleep(ms(200)).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (kept, ()) = tokio::join!(writes, twice);
    assert!(kept.len() > 5, "{}", kept.len());
    let mut exists = redis::cmd("EXISTS");
    kept.iter().for_each(|name| {
        exists.arg(name);
    });
    // A busy machine may take longer for that than a short interruption lasts.
    until("the last primary serves", || {
        client.state() == ConnectionState::Ready
    })
    .await;
    let there = client.send(&exists).await.unwrap();
    assert_eq!(there, redis::Value::Int(kept.len() as i64));
}

/// As soon as the sentinel knows a replica that is fit, and no failover is under way.
async fn fail_over_once_it_can(watched: &Watched) {
    let limit = crate::support::now() + Duration::from_secs(90);
    while let Err(error) = watched.fail_over().await {
        assert!(crate::support::now() < limit, "{error}");
        tokio::time::sleep(ms(20)).await;
    }
}

#[tokio::test]
async fn t1_a_sentinel_that_is_asked_for_data_says_what_to_write_instead() {
    let data = Redis::start().await.unwrap();
    let sentinel = Sentinel::start(&data, &[]).await.unwrap();
    let at = sentinel.addr();
    let builder = Client::builder(&format!("redis://{at}")).unwrap();
    let error = builder.deadline(ms(500)).connect().await;
    let said = error.expect_err("it has no data").to_string();
    let want = format!("{at} is a sentinel and has no data: write redis-sentinel://{at}/NAME");
    assert!(said.contains(&want), "{said}");
}

#[tokio::test]
async fn t25_announced_addresses_are_translated_alike_for_the_primary_and_for_sentinels() {
    // All of them announce a network that cannot be reached from here, each with its own port.
    let lines = ["sentinel announce-ip 203.0.113.7"];
    let data = Redis::start().await.unwrap();
    let first = Sentinel::start(&data, &lines).await.unwrap();
    let second = Sentinel::start(&data, &lines).await.unwrap();
    let here = |host: &str, port: u16| match host {
        "203.0.113.7" => ("127.0.0.1".into(), port),
        _ => (host.to_owned(), port),
    };
    let client = Client::builder(&format!("redis-sentinel://{}/main", first.addr()))
        .unwrap()
        .translate_addresses(here)
        .connect()
        .await
        .unwrap();
    client.send(&cmd("SET k v")).await.unwrap();
    let second = second.addr().to_string();
    until("the other sentinel is asked as well", || {
        client.reconnect();
        let status = client.status().sentinel.expect("sentinels are asked");
        let other = status.sentinels.iter().find(|one| one.address == second);
        other.is_some_and(|one| one.answered_ms_ago.is_some())
    })
    .await;
}

#[tokio::test]
async fn t25_behind_announced_ips_the_certificate_has_to_carry_the_name_of_the_url() {
    let authority = crate::tls::Authority::new();
    let (data, folder) = authority.server("localhost", 2999, false).await;
    let ports = [Port::free().unwrap(), Port::free().unwrap()];
    let file = |name: &str| folder.path().join(name).display().to_string();
    let mut sentinels = Vec::new();
    for port in &ports {
        let port = port.number();
        let lines = [
            format!("tls-port {port}"),
            format!("tls-cert-file {}", file("server.pem")),
            format!("tls-key-file {}", file("server.key")),
            format!("tls-ca-cert-file {}", file("ca.pem")),
            "tls-auth-clients no".into(),
            "tls-replication yes".into(),
            "sentinel announce-ip 127.0.0.1".into(),
            format!("sentinel announce-port {port}"),
        ];
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        sentinels.push(Sentinel::start(&data, &lines).await.unwrap());
    }
    let url = |host: &str| format!("rediss-sentinel://{host}:{}/main", ports[0].number());
    let builder = |host: &str| {
        let builder = Client::builder(&url(host)).unwrap();
        builder.tls(authority.trusted()).deadline(ms(5_000))
    };
    // The primary and the other sentinel are announced by their IP address, which no certificate
    // carries: the name of the URL is expected of them.
    let client = builder("localhost").connect().await.unwrap();
    assert_eq!(
        client.status().sentinel.unwrap().primary,
        Some(data.addr().to_string())
    );
    client.send(&cmd("SET k v")).await.unwrap();
    assert!(client.status().tls.is_some());
    let second = format!("127.0.0.1:{}", ports[1].number());
    until("the other sentinel is asked as well", || {
        let status = client.status().sentinel.unwrap();
        let other = status
            .sentinels
            .into_iter()
            .find(|one| one.address == second);
        other.is_some_and(|one| one.answered_ms_ago.is_some() && one.error.is_none())
    })
    .await;
    // Where the URL names no name either, the address is what is expected, and that is said.
    let client = builder("127.0.0.1").build().unwrap();
    until_down_for(&client, "certificate is for another name").await;
    let said = client.status().last_error.unwrap();
    assert!(said.contains("127.0.0.1"), "{said}");
    let named = authority.trusted().server_name("localhost");
    let client = builder("127.0.0.1").tls(named).connect().await.unwrap();
    client.send(&cmd("SET k v")).await.unwrap();
}

#[tokio::test]
async fn t25_names_are_announced_where_an_operator_wants_them_and_are_resolved() {
    let data = Redis::start().await.unwrap();
    let lines = [
        "sentinel resolve-hostnames yes",
        "sentinel announce-hostnames yes",
        "sentinel announce-ip localhost",
    ];
    let first = Sentinel::start(&data, &lines).await.unwrap();
    let second = Sentinel::start(&data, &lines).await.unwrap();
    for sentinel in [&first, &second] {
        let monitor = format!("SENTINEL MONITOR main localhost {} 2", data.port());
        for words in ["SENTINEL REMOVE main", &monitor] {
            let words: Vec<_> = words.split(' ').collect();
            sentinel.command(&words).await.unwrap();
        }
    }
    let url = format!("redis-sentinel://localhost:{}/main", first.port());
    let client = Client::builder(&url).unwrap().connect().await.unwrap();
    client.send(&cmd("SET k v")).await.unwrap();
    let status = || client.status().sentinel.unwrap();
    assert_eq!(status().primary, Some(format!("localhost:{}", data.port())));
    let other = format!("localhost:{}", second.port());
    until("the other sentinel is asked by its name", || {
        client.reconnect();
        let all = status().sentinels;
        let other = all.iter().find(|one| one.address == other);
        other.is_some_and(|one| one.answered_ms_ago.is_some())
    })
    .await;
}
