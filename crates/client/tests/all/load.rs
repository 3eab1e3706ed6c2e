//! C1, C3, C5, C6, C11, C12 under load: what callers feel while the server is killed, frozen or
//! swallowed by the network.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Value;
use steadfast::{BreakerConfig, BreakerMode, Certainty, Client, ConnectionState, Error, ErrorKind};
use steadfast_drill::fault::{Stall, Toxic};
use steadfast_drill::process::Redis;
use tokio::task::JoinSet;

use crate::support::{cmd, ms, now, pair, pair_with, proxied, soaking, until_state};

/// Every half second, for 10 s.
const ROUNDS: usize = 20;

struct Outcome {
    key: usize,
    began: Instant,
    took: Duration,
    result: Result<Value, Error>,
}

/// An open loop: so many calls a second, whatever became of those before.
async fn load(
    client: &Client,
    a_second: usize,
    stop: Arc<AtomicBool>,
    command: impl Fn(usize) -> redis::Cmd,
) -> Vec<Outcome> {
    const TICK: Duration = Duration::from_millis(5);
    let mut calls = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    let mut key = 0;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        for _ in 0..a_second / 200 {
            let (client, command) = (client.clone(), command(key));
            calls.spawn(async move {
                let began = now();
                let result = client.send(&command).await;
                let took = now().duration_since(began);
                Outcome {
                    key,
                    began,
                    took,
                    result,
                }
            });
            key += 1;
        }
    }
    let mut outcomes = calls.join_all().await;
    outcomes.sort_unstable_by_key(|outcome| outcome.key);
    outcomes
}

fn start_load(
    client: &Client,
    command: impl Fn(usize) -> redis::Cmd + Send + 'static,
) -> (Arc<AtomicBool>, tokio::task::JoinHandle<Vec<Outcome>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (client, stopping) = (client.clone(), Arc::clone(&stop));
    let running = tokio::spawn(async move { load(&client, 2000, stopping, command).await });
    (stop, running)
}

async fn kill_every_half_second(redis: &Redis, times: usize) {
    for _ in 0..times {
        tokio::time::sleep(ms(500)).await;
        redis
            .command(&["CLIENT", "KILL", "TYPE", "normal"])
            .await
            .unwrap();
    }
}

/// As far as a look each millisecond can tell.
async fn most_in_flight(client: Client, stop: Arc<AtomicBool>) -> usize {
    let mut most = 0;
    while !stop.load(Ordering::Relaxed) {
        most = most.max(client.status().in_flight);
        tokio::time::sleep(ms(1)).await;
    }
    most
}

/// Of a machine that is busy with other tests no call shall be too slow: what is looked for is what
/// becomes of connections.
async fn patient_pair() -> (Redis, Client) {
    pair_with(|b| {
        b.deadline(ms(10_000))
            .response_idle_timeout(ms(5000))
            .connect_timeout(ms(5000))
            .reconnect_grace(ms(2000))
            .breaker(BreakerConfig {
                slow_call: None,
                ..BreakerConfig::default()
            })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c5_two_thousand_reads_a_second_notice_nothing_of_killed_connections() {
    let (redis, client) = patient_pair().await;
    let (stop, running) = start_load(&client, |n| cmd(&format!("GET key:{}", n % 100)));
    kill_every_half_second(&redis, ROUNDS).await;
    stop.store(true, Ordering::Relaxed);
    let outcomes = running.await.unwrap();
    assert!(outcomes.len() > ROUNDS * 500, "{}", outcomes.len());
    for outcome in &outcomes {
        if let Err(error) = &outcome.result {
            panic!("{error} after {:?}", outcome.took);
        }
    }
    assert!(client.status().reconnects as usize >= ROUNDS - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c3_two_thousand_increments_a_second_are_applied_once_each_while_connections_are_killed() {
    let (redis, client) = patient_pair().await;
    let (stop, running) = start_load(&client, |n| cmd(&format!("INCR once:{n}")));
    let watching = tokio::spawn(most_in_flight(client.clone(), Arc::clone(&stop)));
    kill_every_half_second(&redis, ROUNDS).await;
    stop.store(true, Ordering::Relaxed);
    let outcomes = running.await.unwrap();
    let in_flight = watching.await.unwrap();
    let (mut done, mut unknown) = (0, 0);
    for chunk in outcomes.chunks(500) {
        let mut keys = cmd("MGET");
        for outcome in chunk {
            keys.arg(format!("once:{}", outcome.key));
        }
        let values: Vec<Option<i64>> = keys.query_async(&mut client.clone()).await.unwrap();
        for (outcome, value) in chunk.iter().zip(values) {
            match &outcome.result {
                Ok(_) => {
                    assert_eq!(value, Some(1), "once:{} was reported done", outcome.key);
                    done += 1;
                }
                Err(error) => {
                    assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
                    assert!(value.is_none_or(|value| value == 1), "{value:?}");
                    unknown += 1;
                }
            }
        }
    }
    // Only what is in flight can be lost with a connection; the double, for what comes between two
    // looks.
    let most = ROUNDS * (2 * in_flight + 50);
    assert!(
        unknown <= most && done > 5 * unknown,
        "{done} done, {unknown} unknown, {in_flight} in flight at most"
    );
}

/// No call over its deadline; once it is known to be down, refusals are immediate; afterwards it
/// serves.
fn judge(outcomes: &[Outcome], down: Instant, back: Instant) {
    let deadline = ms(1000);
    let longest = outcomes.iter().map(|outcome| outcome.took).max().unwrap();
    assert!(longest < deadline + ms(500), "a call took {longest:?}");
    let mut refused: Vec<Duration> = outcomes
        .iter()
        .filter(|outcome| outcome.began > down && outcome.began < back)
        .filter_map(|outcome| {
            let error = outcome.result.as_ref().err()?;
            assert_eq!(error.certainty(), Certainty::NotSent, "{error}");
            matches!(error.kind(), ErrorKind::Down { .. }).then_some(outcome.took)
        })
        .collect();
    refused.sort_unstable();
    assert!(refused.len() > 1000, "{} refused", refused.len());
    let median = refused[refused.len() / 2];
    assert!(median < ms(1), "half of the refusals took over {median:?}");
    let last: Vec<_> = outcomes[outcomes.len() - 200..].iter().collect();
    for outcome in last {
        if let Err(error) = &outcome.result {
            panic!("after it came back: {error}");
        }
    }
}

/// Resident memory of this process, in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn outage_under_load(
    client: &Client,
    length: Duration,
    begin: impl AsyncFnOnce(),
    end: impl AsyncFnOnce(),
) {
    let (stop, running) = start_load(client, |n| cmd(&format!("GET key:{}", n % 100)));
    tokio::time::sleep(ms(500)).await;
    begin().await;
    until_state(client, ConnectionState::Down).await;
    let (down, before) = (now(), memory());
    tokio::time::sleep(length).await;
    let (back, after) = (now(), memory());
    // Nothing gathers: only what was in flight when it began may still be there.
    let waiting = client.status().in_flight;
    assert!(waiting < 4000, "{waiting} calls have gathered");
    end().await;
    until_state(client, ConnectionState::Ready).await;
    tokio::time::sleep(ms(500)).await;
    stop.store(true, Ordering::Relaxed);
    let outcomes = running.await.unwrap();
    judge(&outcomes, down, back);
    // Only where this test has the process to itself. The outcomes themselves are kept, some 250
    // bytes each.
    if std::env::var_os("NEXTEST").is_some() {
        assert!(after < before + 40_000, "{before} KiB, then {after} KiB");
    }
    assert_eq!(client.status().in_flight, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c6_a_killed_server_under_load_costs_no_call_its_deadline() {
    let (redis, client) = pair().await;
    let begin = async || redis.kill().await;
    let end = async || redis.restart().await.unwrap();
    outage_under_load(&client, ms(5000), begin, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c6_a_frozen_server_under_load_costs_no_call_more_than_its_deadline() {
    let (redis, client) = pair().await;
    let begin = async || redis.freeze().unwrap();
    let end = async || redis.resume().unwrap();
    outage_under_load(&client, ms(3000), begin, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c6_a_cut_network_under_load_costs_no_call_more_than_its_deadline() {
    let (_redis, proxy, client) = proxied(|b| b).await;
    let begin = async || {
        proxy.add(Toxic::new(Stall {}).both()).await.unwrap();
    };
    let end = async || proxy.clear().await;
    outage_under_load(&client, ms(5000), begin, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_ten_thousand_callers_half_of_them_cancelled_get_their_own_replies() {
    let (_redis, client) =
        pair_with(|b| b.deadline(ms(20_000)).response_idle_timeout(ms(10_000))).await;
    client.set_breaker_mode(BreakerMode::Disabled);
    for n in 0..1000 {
        client
            .send(&cmd(&format!("SET key:{n} value:{n}")))
            .await
            .unwrap();
    }
    let until = now() + ms(if soaking() { 30_000 } else { 10_000 });
    let mut callers = JoinSet::new();
    for seed in 0..10_000u64 {
        let client = client.clone();
        callers.spawn(async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut answered, mut cancelled) = (0u64, 0u64);
            while now() < until {
                let n = rng.u32(0..1000);
                let get = cmd(&format!("GET key:{n}"));
                let call = client.send(&get);
                let limit = if rng.bool() {
                    ms(rng.u64(0..40))
                } else {
                    ms(60_000)
                };
                match tokio::time::timeout(limit, call).await {
                    Ok(Ok(value)) => {
                        let mine = Value::BulkString(format!("value:{n}").into_bytes());
                        assert_eq!(value, mine);
                        answered += 1;
                    }
                    // More callers than places.
                    Ok(Err(error)) => {
                        let full = matches!(error.kind(), ErrorKind::Overloaded { .. });
                        assert!(full, "{error}");
                        tokio::time::sleep(ms(rng.u64(1..20))).await;
                    }
                    Err(_) => cancelled += 1,
                }
            }
            (answered, cancelled)
        });
    }
    let (mut answered, mut cancelled) = (0, 0);
    for (a, c) in callers.join_all().await {
        answered += a;
        cancelled += c;
    }
    assert!(
        answered > 10_000 && cancelled > 1000,
        "{answered} {cancelled}"
    );
    crate::support::until("no place is leaked", || client.status().in_flight == 0).await;
    client.send(&cmd("GET key:1")).await.unwrap();
}
