//! The work of a probe: every worker goes round SET, GET, DEL with a key of its own for each round.
//! A key that may still be there is remembered until its deletion was answered, so that cleaning up
//! needs no scan of a server that is not ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::{Cmd, Value};
use steadfast::{Client, Error};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::tally::Tally;

/// How much to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Commands in all; rounded up to whole rounds of three.
    pub(super) operations: u64,
    pub(super) workers: u64,
}

/// The outcome of one operation.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) tally: Tally,
    pub(super) took: Duration,
    pub(super) interrupted: bool,
    /// Keys whose deletion nobody confirmed; they expire by themselves.
    pub(super) left: usize,
}

/// After this a key is gone even if the probe was killed.
pub(super) const EXPIRY: Duration = Duration::from_secs(60);
const VALUE_BYTES: usize = 64;

/// Does the work, or as much of it as comes before `stop`; then deletes what is left.
pub(super) async fn run(client: &Client, plan: Plan, stop: impl Future<Output = ()>) -> Outcome {
    let began = Instant::now();
    let rounds = plan.operations.div_ceil(3);
    let next = Arc::new(AtomicU64::new(0));
    let (halt, halted) = watch::channel(false);
    let prefix = format!(
        "steadfast:probe:{}:{}",
        std::process::id(),
        name_of_its_own()
    );

    let mut workers = JoinSet::new();
    for _ in 0..plan.workers.min(rounds) {
        let worker = Worker {
            client: client.clone(),
            prefix: prefix.clone(),
            next: Arc::clone(&next),
            rounds,
            tally: Tally::new(),
            left: Vec::new(),
        };
        workers.spawn(worker.run(halted.clone()));
    }
    let mut outcome = Outcome {
        tally: Tally::new(),
        took: Duration::ZERO,
        interrupted: false,
        left: 0,
    };
    let mut left = Vec::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop, if !outcome.interrupted => {
                outcome.interrupted = true;
                let _ = halt.send(true);
            }
            done = workers.join_next() => match done {
                None => break,
                Some(Ok((tally, keys))) => {
                    outcome.tally.merge(&tally);
                    left.extend(keys);
                }
                Some(Err(panic)) => outcome.tally.failed(&panic.to_string()),
            },
        }
    }
    outcome.took = began.elapsed();
    outcome.left = delete(client, left).await;
    outcome
}

struct Worker {
    client: Client,
    prefix: String,
    next: Arc<AtomicU64>,
    rounds: u64,
    tally: Tally,
    left: Vec<String>,
}

impl Worker {
    async fn run(mut self, halted: watch::Receiver<bool>) -> (Tally, Vec<String>) {
        while !*halted.borrow() {
            let round = self.next.fetch_add(1, Ordering::Relaxed);
            if round >= self.rounds {
                break;
            }
            self.round(round).await;
        }
        (self.tally, self.left)
    }

    async fn round(&mut self, round: u64) {
        let key = format!("{}:{round}", self.prefix);
        let value = format!("{round:0>VALUE_BYTES$}");
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(&value).arg("EX").arg(EXPIRY.as_secs());
        let stored = self.timed(&set, |_| true).await;
        let right = |answer: &Value| !stored || *answer == Value::BulkString(value.into_bytes());
        self.timed(redis::cmd("GET").arg(&key), right).await;
        if !self.timed(redis::cmd("DEL").arg(&key), |_| true).await {
            self.left.push(key);
        }
    }

    /// Sends and accounts for one command; says whether it was answered as it should be.
    async fn timed(&mut self, command: &Cmd, is_right: impl FnOnce(&Value) -> bool) -> bool {
        let began = Instant::now();
        match self.client.send(command).await {
            Ok(answer) if is_right(&answer) => {
                self.tally.answered(began.elapsed());
                return true;
            }
            Ok(_) => self
                .tally
                .failed("a value came back that was not the one stored"),
            Err(error) => self.tally.failed(&words(&error)),
        }
        false
    }
}

/// Tries once to delete all that may be left; returns how many keys it could not delete.
async fn delete(client: &Client, keys: Vec<String>) -> usize {
    let mut left = 0;
    for some in keys.chunks(500) {
        if client.send(redis::cmd("DEL").arg(some)).await.is_err() {
            left += some.len();
        }
    }
    left
}

/// The kind of a failure; of an error reply also its code, of which a server has a handful.
fn words(error: &Error) -> String {
    match error.kind() {
        steadfast::ErrorKind::Server(reply) => format!("{} (the server's answer)", reply.code()),
        _ => error.label().replace('_', " "),
    }
}

/// Returns a part of key names that differs between two probes of one server.
#[expect(
    clippy::disallowed_methods,
    reason = "a name, by which nothing is decided"
)]
fn name_of_its_own() -> u64 {
    fastrand::u64(..)
}
