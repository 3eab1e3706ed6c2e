//! How often a call asks for memory, counted: unlike times, counts are the same on every machine.
//!
//! A test binary of its own, because the counter is the process's allocator. Caller, driver and
//! supervisor share one thread here, so what is counted is all that the client does for a call.
#![allow(clippy::unwrap_used)]

use std::future::Future;

use allocation_counter::AllocationInfo;
use redis::aio::ConnectionLike;
use steadfast::{BreakerMode, Client};
use steadfast_drill::process::Redis;
use tokio::runtime::Runtime;

const CALLS: u64 = 1_000;
/// The length of a large value.
const LARGE: u64 = 256 << 10;
/// Memory in which no copy of a large value has room.
const LITTLE: u64 = LARGE / 4;
/// What may be asked for now and then, whatever the number of calls: a buffer that grows, a timer's
/// wheel.
const NOW_AND_THEN: u64 = 20;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn connected(runtime: &Runtime) -> (Redis, Client) {
    runtime.block_on(async {
        let redis = Redis::start().await.unwrap();
        let client = Client::builder(&redis.url())
            .unwrap()
            .connect()
            .await
            .unwrap();
        client
            .send(redis::cmd("SET").arg("key").arg([b'x'; 64].as_slice()))
            .await
            .unwrap();
        (redis, client)
    })
}

/// Allocations of `CALLS` calls, after as many to warm up.
fn allocations<F: Future>(runtime: &Runtime, mut call: impl FnMut() -> F) -> u64 {
    let mut calls = || {
        runtime.block_on(async {
            for _ in 0..CALLS {
                call().await;
            }
        });
    };
    calls();
    allocation_counter::measure(calls).count_total
}

/// Sends it so often, one after the other, and returns what that took.
fn measured(runtime: &Runtime, client: &Client, cmd: &redis::Cmd, calls: u64) -> AllocationInfo {
    allocation_counter::measure(|| {
        runtime.block_on(async {
            for _ in 0..calls {
                std::hint::black_box(client.send(cmd).await.unwrap());
            }
        });
    })
}

#[track_caller]
fn assert_per_call(counted: u64, most: u64) {
    assert!(
        counted <= most * CALLS + NOW_AND_THEN,
        "{counted} allocations in {CALLS} calls; {most} a call are what it should take"
    );
}

#[test]
fn a_get_allocates_its_value_and_nothing_else() {
    let runtime = runtime();
    let (_redis, client) = connected(&runtime);
    let mut get = redis::cmd("GET");
    get.arg("key");
    let counted = allocations(&runtime, || async { client.send(&get).await.unwrap() });
    assert_per_call(counted, 1);
    assert!(counted >= CALLS, "the counter counts: {counted}");
}

#[test]
fn a_set_allocates_nothing() {
    let runtime = runtime();
    let (_redis, client) = connected(&runtime);
    let mut set = redis::cmd("SET");
    set.arg("key").arg([b'x'; 64].as_slice());
    let counted = allocations(&runtime, || async { client.send(&set).await.unwrap() });
    assert_per_call(counted, 0);
}

/// A copy of a large value needs memory of its own, as long as the value. The first call shows
/// every buffer that it passes through, those that are kept afterwards too; the next, what is not
/// kept.
#[test]
fn a_large_set_is_copied_once_and_into_memory_that_serves_again() {
    let runtime = runtime();
    let (_redis, client) = connected(&runtime);
    let mut set = redis::cmd("SET");
    set.arg("large").arg(vec![b'x'; LARGE as usize]);
    let first = measured(&runtime, &client, &set, 1).bytes_total;
    assert!((LARGE..LARGE + LITTLE).contains(&first), "{first} bytes");
    // Queue, driver and connection hand their buffers round.
    measured(&runtime, &client, &set, 10);
    let next = measured(&runtime, &client, &set, 100);
    assert!(next.count_total < NOW_AND_THEN, "{next:?}");
    assert!(next.bytes_total < LITTLE, "{next:?}");
}

#[test]
fn a_large_get_is_read_into_the_memory_that_its_caller_is_given() {
    let runtime = runtime();
    let (_redis, client) = connected(&runtime);
    let mut set = redis::cmd("SET");
    set.arg("large").arg(vec![b'x'; LARGE as usize]);
    runtime.block_on(client.send(&set)).unwrap();
    let mut get = redis::cmd("GET");
    get.arg("large");
    let first = measured(&runtime, &client, &get, 1).bytes_total;
    assert!((LARGE..LARGE + LITTLE).contains(&first), "{first} bytes");
    let next = measured(&runtime, &client, &get, 100);
    assert!(next.count_total < 100 + NOW_AND_THEN, "{next:?}");
    assert!(next.bytes_total < 100 * LARGE + LITTLE, "{next:?}");
}

#[test]
fn the_traits_of_redis_rs_cost_one_allocation_more() {
    let runtime = runtime();
    let (_redis, client) = connected(&runtime);
    let mut set = redis::cmd("SET");
    set.arg("key").arg([b'x'; 64].as_slice());
    let counted = allocations(&runtime, || {
        let (mut client, set) = (client.clone(), &set);
        async move { client.req_packed_command(set).await.unwrap() }
    });
    assert_per_call(counted, 1);
}

#[test]
fn a_call_refused_by_the_open_breaker_allocates_at_most_its_error() {
    let runtime = runtime();
    let (_redis, client) = connected(&runtime);
    client.set_breaker_mode(BreakerMode::ForcedOpen);
    let mut get = redis::cmd("GET");
    get.arg("key");
    let counted = allocations(&runtime, || async { client.send(&get).await.unwrap_err() });
    assert_per_call(counted, 1);
}
