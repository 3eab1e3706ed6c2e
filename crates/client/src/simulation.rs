//! The client against a server in memory, under virtual time.
//!
//! Real servers show what really happens, and only what happens often. Here an hour takes a second,
//! and each seed is another history of cut connections, half replies, garbage, silence and commands
//! that are run long after they were given up. The whole client runs: handshake, driver,
//! supervisor, breaker, fences; only the sockets are not real. The same seed gives the same
//! history, so what a seed has found it finds again: `STEADFAST_SIMULATED_SEED=n` runs that one
//! alone, `STEADFAST_SIMULATED_SEEDS=n` so many.

mod caller;
mod world;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, maybe_done};
use redis::Cmd;
use tokio::task::JoinSet;

use self::caller::{Caller, Made, every_word_was_true};
use self::world::{Fault, Mode, Odds, World};
use crate::clock;
use crate::error::{Certainty, ErrorKind};
use crate::link::ConnectionState;
use crate::{BreakerConfig, Client, ClientBuilder};

const DEADLINE: Duration = Duration::from_secs(1);
/// Timers are of whole milliseconds.
const NOISE: Duration = Duration::from_millis(3);
const VALUES: u32 = 50;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    match number("STEADFAST_SIMULATED_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STEADFAST_SIMULATED_SEEDS").unwrap_or(usual),
    }
}

/// A runtime of its own for each history, so that nothing of one is left for the next.
fn in_virtual_time<T>(history: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(history)
}

fn client_of(world: &World, seed: u64) -> Client {
    client_with(world, seed, |builder| builder)
}

fn client_with(
    world: &World,
    seed: u64,
    set: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Client {
    for n in 0..VALUES {
        world.put(&format!("v:{n}"), &format!("value {n}"));
    }
    let world = world.clone();
    let builder = Client::builder("redis://simulated")
        .expect("a good url")
        .deadline(DEADLINE)
        .seed(seed);
    set(builder)
        .build_over(|_| Arc::new(world))
        .expect("good settings")
}

fn cmd(words: &str) -> Cmd {
    let mut cmd = Cmd::new();
    for word in words.split(' ') {
        cmd.arg(word);
    }
    cmd
}

/// A history: callers, and a world in which things go wrong for a while. Returns what can be
/// compared with another run of it.
async fn history(seed: u64, odds: Odds, modes: &[Mode]) -> (Vec<Made>, World, u64) {
    let world = World::new(seed, odds);
    let client = client_of(&world, seed);
    let mut callers = JoinSet::new();
    for number in 0..6 {
        let caller = Caller::new(&client, number, seed);
        callers.spawn(caller.call_for(ms(6_000)));
    }
    let mut rng = fastrand::Rng::with_seed(!seed);
    let until = clock::now() + ms(4_500);
    while clock::now() < until {
        tokio::time::sleep(ms(rng.u64(100..1_200))).await;
        if let Some(mode) = rng.choice(modes) {
            world.turn(*mode);
            tokio::time::sleep(ms(rng.u64(10..900))).await;
            world.turn(Mode::Well);
        }
    }
    world.set_odds(Odds::default());
    let mut callers = callers.join_all().await;
    callers.sort_by_key(|caller| caller.number);
    it_serves_again(&client, &world, &mut callers).await;
    let mut hash = DefaultHasher::new();
    let mut made = Vec::new();
    for caller in callers {
        caller.set.hash(&mut hash);
        for call in caller.made {
            format!("{} {:?} {:?}", call.words, call.took, call.result).hash(&mut hash);
            made.push(call);
        }
    }
    // What stands still somewhere has gone on by then.
    tokio::time::sleep(ms(30_000)).await;
    let status = client.status();
    (status.attempts, status.reconnects).hash(&mut hash);
    (made, world, hash.finish())
}

/// Checks that nothing is left of a trouble that is over, and that what was acknowledged stands.
async fn it_serves_again(client: &Client, world: &World, callers: &mut [Caller]) {
    let begun = clock::now();
    while client.state() != ConnectionState::Ready || client.status().breaker != "closed" {
        let _ = client.send(&cmd("PING")).await;
        tokio::time::sleep(ms(5)).await;
        let waited = clock::now() - begun;
        assert!(
            waited < ms(15_000),
            "not in service: {:?}",
            client.history()
        );
    }
    let status = client.status();
    assert_eq!(status.stuck_resets, 0, "{:?}", client.history());
    assert_eq!(status.in_flight, 0, "a place was leaked");
    for caller in &mut *callers {
        caller.set += 1;
        let words = format!("SET k:{} {}", caller.number, caller.set);
        client.send(&cmd(&words)).await.expect("it serves");
        caller.acknowledged = caller.set;
    }
    // Whatever was given up and not killed has been run by now.
    tokio::time::sleep(ms(30_000)).await;
    for caller in callers {
        let value = world.value(&format!("k:{}", caller.number));
        let last = caller.set.to_string().into_bytes();
        assert_eq!(
            value,
            Some(last),
            "an old write of k:{} came last",
            caller.number
        );
    }
}

const EVERYTHING: Odds = Odds {
    cut_before: 4,
    cut_after: 4,
    half_reply: 3,
    garbage: 2,
    slow: 10,
    stall: 2,
};

#[test]
fn c1_c2_c3_c8_c12_c18_whatever_goes_wrong_every_call_ends_in_time_and_is_told_the_truth() {
    let modes = [
        Mode::Frozen,
        Mode::Gone,
        Mode::Void,
        Mode::Loading,
        Mode::Busy,
    ];
    let mut faults = BTreeSet::new();
    let (mut calls, mut failed) = (0, 0);
    let all = seeds(40);
    let few = all.clone().count() < 40;
    for seed in all {
        let (made, world, _) = in_virtual_time(history(seed, EVERYTHING, &modes));
        every_word_was_true(&made, &world);
        faults.extend(world.faults().into_keys());
        calls += made.len();
        let errors = made
            .iter()
            .filter(|call| matches!(call.result, Some(Err(_))));
        failed += errors.count();
    }
    assert!(faults.len() == 6 || few, "only {faults:?} were tried");
    // Most of those that fail are refused at once, by a server that is known to be down.
    assert!(failed * 4 < calls * 3, "{failed} of {calls} failed");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let modes = [Mode::Frozen, Mode::Gone, Mode::Busy];
    for seed in seeds(3) {
        let run = || in_virtual_time(history(seed, EVERYTHING, &modes)).2;
        assert_eq!(run(), run(), "seed {seed}");
    }
}

/// Reads and last-wins writes, of which none may fail.
async fn nothing_is_noticed(client: &Client, time: Duration) {
    let until = clock::now() + time;
    let mut callers = JoinSet::new();
    for number in 0..8u64 {
        let client = client.clone();
        callers.spawn(async move {
            while clock::now() < until {
                for words in [format!("SET k:{number} x"), "GET v:1".to_owned()] {
                    let done = client.send(&cmd(&words)).await;
                    assert!(done.is_ok(), "{words}: {done:?}");
                }
                tokio::time::sleep(ms(7 + number)).await;
            }
        });
    }
    callers.join_all().await;
}

#[test]
fn c5_a_connection_that_is_cut_is_not_noticed_by_reads_and_last_wins_writes() {
    for seed in seeds(4) {
        in_virtual_time(async {
            let world = World::new(seed, Odds::default());
            let client = client_of(&world, seed);
            let cutting = async {
                for n in 0..20 {
                    tokio::time::sleep(ms(300 + seed + n)).await;
                    world.cut_all();
                }
            };
            tokio::join!(nothing_is_noticed(&client, ms(7_000)), cutting);
            assert_eq!(client.status().reconnects, 20);
        });
    }
}

#[test]
fn c7_a_connection_that_falls_silent_is_replaced_within_the_deadline_of_its_calls() {
    for seed in seeds(2) {
        in_virtual_time(async {
            let world = World::new(seed, Odds::default());
            let client = client_of(&world, seed);
            let stalling = async {
                for round in 1..=4 {
                    tokio::time::sleep(ms(6_000)).await;
                    let stall = 1000;
                    world.set_odds(Odds {
                        stall,
                        ..Odds::default()
                    });
                    // Until one has met it: the standby connection is spared.
                    while world.faults().get(&Fault::Stall) != Some(&round) {
                        tokio::time::sleep(ms(1)).await;
                    }
                    world.set_odds(Odds::default());
                    tokio::time::sleep(ms(1_500)).await;
                }
            };
            tokio::join!(nothing_is_noticed(&client, ms(26_000)), stalling);
            assert_eq!(client.state(), ConnectionState::Ready);
            assert_eq!(client.status().reconnects, 4, "{:?}", client.history());
        });
    }
}

#[test]
fn c7_a_frozen_server_is_known_to_be_down_within_300_ms_where_round_trips_are_short_and_600_elsewhere()
 {
    let slow = Odds {
        slow: 1000,
        ..Odds::default()
    };
    for (odds, pause, within) in [(Odds::default(), 250, 300), (slow, 450, 600)] {
        for seed in seeds(4) {
            in_virtual_time(async {
                let world = World::new(seed, Odds::default());
                let client = client_of(&world, seed);
                client.send(&cmd("PING")).await.expect("it serves");
                let ask = async || {
                    world.set_odds(odds);
                    for _ in 0..60 {
                        client.send(&cmd("GET v:1")).await.expect("it serves");
                    }
                    world.set_odds(Odds::default());
                };
                ask().await;
                let freeze = async |time| {
                    world.turn(Mode::Frozen);
                    tokio::time::sleep(ms(time)).await;
                    world.turn(Mode::Well);
                };
                let get = cmd("GET v:1");
                // A pause is no alarm.
                let (read, ()) = tokio::join!(client.send(&get), freeze(pause));
                read.expect("it was a pause");
                assert_eq!(client.history().len(), 1, "{:?}", client.history());
                ask().await;
                let asked = async {
                    let begun = clock::now();
                    let error = client.send(&get).await.expect_err("it is frozen");
                    assert!(matches!(error.kind(), ErrorKind::Down { .. }), "{error}");
                    clock::now() - begun
                };
                let (took, ()) = tokio::join!(asked, freeze(2_000));
                assert!(took <= ms(within), "seed {seed}: {took:?} of {within} ms");
            });
        }
    }
}

#[test]
fn c13_calls_of_one_moment_keep_their_order_while_the_ramp_after_an_outage_spreads_them() {
    for seed in seeds(6) {
        in_virtual_time(async {
            let world = World::new(seed, Odds::default());
            let client = client_of(&world, seed);
            client.send(&cmd("PING")).await.expect("it serves");
            world.turn(Mode::Busy);
            while client.status().breaker == "closed" {
                let _ = client.send(&cmd("GET v:1")).await;
            }
            world.turn(Mode::Well);
            while client.status().breaker != "closed" {
                let _ = client.send(&cmd("GET v:1")).await;
                tokio::time::sleep(ms(1)).await;
            }
            let mut callers = JoinSet::new();
            let until = clock::now() + ms(1_500);
            for number in 0..8 {
                let (client, world) = (client.clone(), world.clone());
                let mut rng = fastrand::Rng::with_seed(seed ^ number << 8);
                callers.spawn(async move {
                    while clock::now() < until {
                        let at = rng.u32(..);
                        let sets = (0..3).map(|n| cmd(&format!("SET o:{number} {at}-{n}")));
                        let sets: Vec<_> = sets.collect();
                        let mut calls = Vec::new();
                        for set in &sets {
                            let mut call = Box::pin(maybe_done(client.send(set)));
                            let _ = futures_util::poll!(&mut call);
                            calls.push(call);
                            // Timers are of whole milliseconds, and clocks are not: the turn of the
                            // one that waits is over before it wakes, and the next comes when it
                            // need not wait at all.
                            tokio::time::advance(Duration::from_micros(rng.u64(0..300))).await;
                        }
                        join_all(&mut calls).await;
                        for call in &mut calls {
                            let result = call.as_mut().take_output().expect("it has ended");
                            result.expect("it serves");
                        }
                        let last = world.value(&format!("o:{number}")).expect("it was set");
                        assert_eq!(String::from_utf8_lossy(&last), format!("{at}-2"));
                        tokio::time::sleep(Duration::from_micros(rng.u64(1..9_000))).await;
                    }
                });
            }
            callers.join_all().await;
        });
    }
}

#[test]
fn c9_the_turns_of_a_ramp_that_was_cut_short_hold_up_nobody() {
    in_virtual_time(async {
        let world = World::new(1, Odds::default());
        let client = client_with(&world, 1, |builder| {
            builder.breaker(BreakerConfig {
                ramp: ms(500),
                ..BreakerConfig::default()
            })
        });
        client.send(&cmd("PING")).await.expect("it serves");
        let until = async |breaker: fn(&str) -> bool| {
            while !breaker(client.status().breaker) {
                let _ = client.send(&cmd("GET v:1")).await;
                tokio::time::sleep(ms(1)).await;
            }
        };
        world.turn(Mode::Busy);
        until(|state| state == "open").await;
        world.turn(Mode::Well);
        until(|state| state == "closed").await;
        // The last of these has its turn when the ramp is nearly over.
        let mut crowd = JoinSet::new();
        for _ in 0..3_000 {
            let client = client.clone();
            crowd.spawn(async move { client.send(&cmd("GET v:1")).await.map(drop) });
        }
        tokio::time::sleep(ms(20)).await;
        let cut = clock::now();
        world.turn(Mode::Busy);
        while client.status().breaker == "closed" {
            tokio::time::sleep(ms(1)).await;
        }
        assert!(clock::now() - cut < ms(50), "{:?}", clock::now() - cut);
        world.turn(Mode::Well);
        loop {
            let asked = clock::now();
            let answer = client.send(&cmd("GET v:1")).await;
            assert!(clock::now() - asked < ms(50), "{:?}", clock::now() - asked);
            if answer.is_ok() {
                break;
            }
            tokio::time::sleep(ms(1)).await;
        }
        assert!(clock::now() - cut < ms(480), "the old ramp is not over");
        // Those of the crowd that were not served were told so as soon as the breaker was open
        // again.
        let (mut served, mut refused) = (0, 0);
        while let Some(ended) = crowd.join_next().await {
            match ended.expect("no call panics") {
                Ok(()) => served += 1,
                Err(error) => {
                    assert_ne!(error.certainty(), Certainty::Unknown, "{error}");
                    refused += 1;
                }
            }
        }
        assert!(served > 10 && refused > 2_000, "{served} {refused}");
    });
}

#[test]
fn c18_a_write_that_may_have_run_does_not_go_with_a_connection_that_has_no_fence() {
    in_virtual_time(async {
        let world = World::new(1, Odds::default());
        let client = client_of(&world, 1);
        client.send(&cmd("PING")).await.expect("it serves");
        let cut_after = 1000;
        world.set_odds(Odds {
            cut_after,
            ..Odds::default()
        });
        let set = cmd("SET k 1");
        let setting = client.send(&set);
        let meanwhile = async {
            while world.ran("SET k 1") == 0 {
                tokio::task::yield_now().await;
            }
            world.set_odds(Odds::default());
            world.turn(Mode::Unfenced);
        };
        let (done, ()) = tokio::join!(setting, meanwhile);
        let error = done.expect_err("it may have run, and there is no fence");
        assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
        assert_eq!(world.ran("SET k 1"), 1);
        assert_eq!(client.state(), ConnectionState::Ready);
    });
}

#[test]
fn c18_nor_does_one_that_was_refused_in_between_and_comes_after_a_pause() {
    for seed in 0..8 {
        in_virtual_time(async {
            let world = World::new(seed, Odds::default());
            let client = client_of(&world, seed);
            client.send(&cmd("PING")).await.expect("it serves");
            let cut_after = 1000;
            world.set_odds(Odds {
                cut_after,
                ..Odds::default()
            });
            let (set, get) = (cmd("SET k 1"), cmd("GET v:1"));
            let mut setting = Box::pin(client.send(&set));
            assert!(futures_util::poll!(&mut setting).is_pending());
            // One that is lost and not polled: for a moment the next connection waits for it.
            let mut unpolled = Box::pin(client.send(&get));
            assert!(futures_util::poll!(&mut unpolled).is_pending());
            let meanwhile = async {
                while world.ran("SET k 1") == 0 {
                    tokio::task::yield_now().await;
                }
                world.set_odds(Odds::default());
                // The attempt after the last that was cut.
                let cut = |world: &World| world.faults()[&Fault::CutAfter];
                while client.status().attempts <= u64::from(cut(&world)) {
                    tokio::time::sleep(ms(1)).await;
                }
                world.turn(Mode::Busy);
                while client.status().reconnects == 0 {
                    tokio::time::sleep(ms(1)).await;
                }
                world.turn(Mode::Unfenced);
                world.cut_all();
            };
            let (done, ()) = tokio::join!(setting, meanwhile);
            let error = done.expect_err("it may have run, and there is no fence");
            assert_eq!(error.certainty(), Certainty::Unknown, "{error}");
            assert_eq!(world.ran("SET k 1"), 1, "seed {seed}");
        });
    }
}

#[test]
fn c6_a_server_that_is_gone_costs_its_callers_no_time() {
    in_virtual_time(async {
        let world = World::new(1, Odds::default());
        let client = client_of(&world, 1);
        client.send(&cmd("PING")).await.expect("it serves");
        world.turn(Mode::Gone);
        tokio::time::sleep(ms(300)).await;
        let begun = clock::now();
        for _ in 0..1_000 {
            let error = client.send(&cmd("GET v:1")).await.expect_err("it is gone");
            assert!(matches!(error.kind(), ErrorKind::Down { .. }), "{error}");
        }
        assert_eq!(clock::now(), begun, "not a moment was waited");
        // An hour later it is still trying, and as soon as there is a server, it serves.
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert!(client.status().attempts > 10_000);
        world.turn(Mode::Well);
        tokio::time::sleep(ms(300)).await;
        client.send(&cmd("GET v:1")).await.expect("it serves");
        assert_eq!(client.incidents().len(), 1);
    });
}
