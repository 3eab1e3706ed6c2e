//! Every read compared with what SQL held.
//!
//! Several real processes read and write the same items through their caches, while Redis is
//! killed, frozen, cut off from one of them, restored from an old snapshot, replaced by a lagging
//! replica, and made to forget keys, while processes die between a commit and its relay, and while
//! SQL is locked, rolled back (also while no process runs), or the last to come back after a power
//! cut. On a cluster the primary of the cache's shard is killed or frozen until its replica is
//! elected, and the cache's slot moves to another shard. Some transactions are long. Items are read
//! alone, in batches, by many readers at the same moment in a process that holds nothing in memory,
//! so that they ask Redis together, and by readers who do not name the tags that an item carries;
//! half of them are invalidated by a tag. In runs of their own slow loads are joined while a
//! process is cut off, values are loaded again by readers who name no tags, and read as another
//! type by a class that allows less. Each process writes down what it did and when; afterwards each
//! read is held against the contract in `docs/design/consistency.md`. A contract that nothing can
//! break proves nothing, so each rule of the cache is also broken on purpose, and the checker must
//! notice.
//!
//! `STEADFAST_SOAK_SECONDS` makes the runs longer, `STEADFAST_SEED` repeats a run.

mod clustered;
mod faults;
mod judge;
mod worker;

use std::path::Path;
use std::time::Duration;

use steadfast_cache::{Database, DatabaseOptions};
use steadfast_drill::process::{MariaDb, Postgres};

use faults::{Fault, Stage};
use judge::{History, Verdict};
use worker::{Break, Order};

/// Everything that can happen to Redis and to a process.
const ALL: &[Fault] = &[
    Fault::Restart,
    Fault::Freeze,
    Fault::CutOffOne,
    Fault::RestoreSnapshot,
    Fault::Failover,
    Fault::Evict,
    Fault::DieAfterCommit,
];

/// What can happen to SQL, and to all at once; in a long run, also to Redis in between.
const OF_SQL: &[Fault] = &[
    Fault::HoldLock,
    Fault::RollBackSql,
    Fault::RollBackUnseen,
    Fault::PowerCut,
    Fault::RollBackSql,
    Fault::DieAfterCommit,
    Fault::HoldTurn,
    Fault::RestoreSnapshot,
    Fault::Restart,
];

/// For readers who join slow loads, name no tags, or share a key with another type: what happens
/// takes longer than a slow load.
const FOR_READERS: &[Fault] = &[Fault::CutOffLong, Fault::RestoreSnapshot, Fault::CutOffLong];

/// What can happen to the shard of a cluster in which the cache lies.
const OF_CLUSTER: &[Fault] = &[
    Fault::ShardKilled,
    Fault::SlotMoved,
    Fault::ShardFrozen,
    Fault::DieAfterCommit,
    Fault::SlotMoved,
];

const WORKERS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k8_no_read_breaks_the_contract_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let mut shared = 0;
    // On a busy machine Redis is away, or not believed, nearly all the time.
    for round in 0..3 {
        let folder = folder.path().join(round.to_string());
        std::fs::create_dir(&folder).unwrap();
        let url = format!("sqlite://{}", folder.join("x.db").display());
        let verdict = run(&url, soak(), ALL, None, &folder).await;
        verdict.assert_kept();
        shared += verdict.shared;
        if shared > 0 {
            break;
        }
    }
    assert!(shared > 0, "nobody has asked Redis together");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k8_no_read_breaks_the_contract_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    run(&server.url(), soak(), ALL, None, folder.path())
        .await
        .assert_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k8_no_read_breaks_the_contract_on_postgres() {
    let server = Postgres::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    run(&server.url(), soak(), ALL, None, folder.path())
        .await
        .assert_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_no_read_breaks_the_contract_whatever_becomes_of_sql_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let verdict = run(&url, soak(), OF_SQL, None, folder.path()).await;
    verdict.assert_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_no_read_breaks_the_contract_whatever_becomes_of_sql_on_mariadb() {
    let server = MariaDb::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    run(&server.url(), soak(), OF_SQL, None, folder.path())
        .await
        .assert_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_no_read_breaks_the_contract_whatever_becomes_of_sql_on_postgres() {
    let server = Postgres::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    run(&server.url(), soak(), OF_SQL, None, folder.path())
        .await
        .assert_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_no_read_breaks_the_contract_however_odd_its_neighbours_are() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let verdict = run(&url, soak(), FOR_READERS, None, folder.path()).await;
    verdict.assert_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k8_t26_no_read_breaks_the_contract_while_the_caches_shard_fails_over_and_its_slot_moves() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    // Twice as long: each election takes three seconds or more, in which little is written.
    let verdict = run(&url, soak() * 2, OF_CLUSTER, None, folder.path()).await;
    assert!(verdict.faults.contains("SlotMoved"), "{}", verdict.faults);
    verdict.assert_kept();
}

/// Breaks a rule under the faults against which it is there; the checker must see it.
async fn must_be_caught(rule: Break, faults: &[Fault]) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let verdict = run(&url, LONG_ENOUGH, faults, Some(rule), folder.path()).await;
    assert!(
        !verdict.violations.is_empty(),
        "{rule:?} was not noticed in {} reads",
        verdict.reads
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k7_the_checker_notices_that_the_outbox_is_off() {
    must_be_caught(
        Break::Outbox,
        &[Fault::Freeze, Fault::CutOffOne, Fault::DieAfterCommit],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k6_the_checker_notices_that_leases_are_not_checked() {
    must_be_caught(Break::Lease, &[Fault::CutOffOne]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k8_the_checker_notices_that_the_watermark_is_ignored() {
    // Who was there all the time has the right values in memory; it is a process that starts
    // afterwards which believes the old ones.
    must_be_caught(
        Break::Watermark,
        &[Fault::RestoreSnapshot, Fault::DieAfterCommit],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k3_the_checker_notices_that_flights_are_not_detached() {
    must_be_caught(Break::Flight, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k6_the_checker_notices_that_stripes_are_not_bumped() {
    must_be_caught(Break::Stripe, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_the_checker_notices_that_tags_of_a_value_from_redis_are_dropped() {
    must_be_caught(Break::Tags, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_the_checker_notices_that_sql_is_not_awaited() {
    must_be_caught(Break::AwaitSql, &[Fault::PowerCut]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_the_checker_notices_that_a_rollback_of_sql_is_ignored() {
    let faults = [Fault::RollBackUnseen, Fault::RollBackSql];
    must_be_caught(Break::Rollback, &faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k8_the_checker_notices_that_nobody_minds_what_waits() {
    must_be_caught(Break::Lag, &[Fault::HoldTurn]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k16_the_checker_notices_that_old_loads_are_joined_in_an_outage() {
    must_be_caught(Break::FlightAge, &[Fault::CutOffLong]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k11_the_checker_notices_that_what_is_loaded_again_loses_its_tags() {
    must_be_caught(Break::Stripped, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k4_the_checker_notices_that_another_classs_times_are_taken_over() {
    must_be_caught(Break::Class, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k3_the_checker_notices_that_types_have_caches_of_their_own() {
    must_be_caught(Break::TwoCaches, &[Fault::CutOffLong]).await;
}

/// The other half of this file: what the processes above run. Started on its own it only shows that
/// it cannot be given nonsense.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_the_history() {
    match std::env::var(worker::ORDER) {
        Ok(order) => worker::work(Order::parse(&order).unwrap()).await,
        Err(_) => assert!(Order::parse("nonsense").is_none()),
    }
}

/// A broken rule is noticed within a few seconds as a rule, and then the run ends. The longest
/// outage takes eight, and a load in it five; it has to come to the right process at the right
/// moment, of which a minute has not always one.
const LONG_ENOUGH: Duration = Duration::from_secs(150);

/// Ten seconds, unless a soak is asked for.
fn soak() -> Duration {
    let seconds = std::env::var("STEADFAST_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

fn seed() -> u64 {
    std::env::var("STEADFAST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2026)
}

/// Whether a violation shows in two readings. Processes go on writing while the files are read one
/// after the other, so one reading may lack what explains a line.
async fn is_caught(folder: &Path) -> bool {
    let first = judge::judge(&History::read(folder)).violations;
    if first.is_empty() {
        return false;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = judge::judge(&History::read(folder)).violations;
    first.iter().any(|violation| second.contains(violation))
}

/// Runs the processes and the faults. With a broken rule it ends as soon as a violation is found.
async fn run(
    url: &str,
    span: Duration,
    faults: &[Fault],
    rule: Option<Break>,
    folder: &Path,
) -> Verdict {
    let database = Database::connect(url, DatabaseOptions::default()).unwrap();
    worker::create_items(&database).await;
    let mut stage = Stage::set(WORKERS, faults, url, rule, folder, seed()).await;
    let began = tokio::time::Instant::now();
    // Writers fall silent before the end, so that what a reader then still gets wrong it would get
    // wrong for ever.
    let quiet = judge::BOUND + Duration::from_secs(1);
    stage.begin(span + quiet, span);
    stage.until_it_can_break().await;
    while began.elapsed() < span {
        stage.next_fault().await;
        if rule.is_some() && is_caught(folder).await {
            break;
        }
    }
    stage.heal().await;
    if rule.is_none() {
        stage
            .wait_for_the_end(quiet + Duration::from_secs(20))
            .await;
    }
    drop(stage);
    let verdict = judge::judge(&History::read(folder));
    println!(
        "seed {}: {} reads, {} keys asked for together, {} commits, {} refused; faults: {}",
        seed(),
        verdict.reads,
        verdict.shared,
        verdict.commits,
        verdict.refused,
        verdict.faults
    );
    verdict
}
