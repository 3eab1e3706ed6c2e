//! What one process does: read and write items through its cache, and write down what happened.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use steadfast::Client;
use steadfast_cache::{
    Cache, Database, DatabaseOptions, GuardOptions, Param, Sabotage, SourceError, Target, Ttl, Tx,
};

use super::judge::Line;
use crate::site::{create_table, select_item};

/// The environment variable that holds the order.
pub(crate) const ORDER: &str = "STEADFAST_HISTORY_ORDER";

pub(crate) const ITEMS: i64 = 8;

/// What a process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) redis: String,
    pub(crate) database: String,
    pub(crate) log: PathBuf,
    pub(crate) seed: u64,
    pub(crate) run_ms: u64,
    pub(crate) write_ms: u64,
    /// Ends itself between a commit and its relay, this long after it began.
    pub(crate) die_after_ms: Option<u64>,
    pub(crate) rule: Option<Break>,
}

/// A rule to be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Break {
    Outbox,
    Lease,
    Watermark,
    Flight,
    Stripe,
}

impl Order {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

pub(crate) async fn create_items(database: &Database) {
    create_table(database).await;
    let mut tx = database.begin().await.unwrap();
    for id in 0..ITEMS {
        tx.execute(
            &format!("INSERT INTO items (id, version) VALUES ({id}, 0)"),
            &[],
        )
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
}

#[derive(Clone)]
struct Process {
    cache: Cache<String>,
    log: Arc<File>,
    end: u64,
    write_end: u64,
    die_at: Option<u64>,
}

pub(crate) async fn work(order: Order) {
    let now = now();
    let process = Process {
        cache: build(&order).await,
        log: Arc::new(
            File::options()
                .create(true)
                .append(true)
                .open(&order.log)
                .unwrap(),
        ),
        end: now + order.run_ms * 1000,
        write_end: now + order.write_ms * 1000,
        die_at: order.die_after_ms.map(|ms| now + ms * 1000),
    };
    let mut tasks = Vec::new();
    for n in 0..6u64 {
        let rng = fastrand::Rng::with_seed(order.seed * 100 + n);
        let process = process.clone();
        tasks.push(if n < 4 {
            tokio::spawn(process.reads(rng))
        } else {
            tokio::spawn(process.writes(rng))
        });
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn build(order: &Order) -> Cache<String> {
    let database = Database::connect(&order.database, DatabaseOptions::default()).unwrap();
    let client = Client::builder(&order.redis).unwrap().build().unwrap();
    let ttl = Ttl {
        fresh: Duration::from_secs(120),
        soft_limit: Duration::from_millis(500),
        ..Ttl::default()
    };
    let mut sabotage = Sabotage::default();
    match order.rule {
        Some(Break::Outbox) => sabotage.outbox_off = true,
        Some(Break::Lease) => sabotage.lease_unchecked = true,
        Some(Break::Watermark) => sabotage.watermark_ignored = true,
        Some(Break::Flight) => sabotage.flight_not_detached = true,
        Some(Break::Stripe) => sabotage.stripe_not_bumped = true,
        None => {}
    }
    Cache::builder(database)
        .redis(client)
        .namespace("history")
        .guard(GuardOptions::new(16, 5000.0))
        .class("user", ttl)
        .class(
            "strict",
            Ttl {
                stale: Duration::ZERO,
                ..ttl
            },
        )
        .seed(order.seed)
        .sabotage(sabotage)
        .build()
        .await
        .unwrap()
}

impl Process {
    fn note(&self, line: &Line) {
        (&*self.log).write_all(line.write().as_bytes()).unwrap();
    }

    async fn reads(self, mut rng: fastrand::Rng) {
        while now() < self.end {
            let item = rng.i64(0..ITEMS);
            self.read(item, rng.bool(), slow(&mut rng)).await;
            tokio::time::sleep(Duration::from_micros(rng.u64(500..8000))).await;
        }
    }

    /// Half the items belong to each class; a load may dawdle between asking SQL and handing over what it got.
    async fn read(&self, item: i64, twice: bool, dawdle: Duration) {
        let class = if item % 2 == 0 { "user" } else { "strict" };
        for _ in 0..=u8::from(twice) {
            let database = self.cache.database().clone();
            let load = move || async move {
                let found = select_item(&database, item).await;
                tokio::time::sleep(dawdle).await;
                found
            };
            let from = now();
            let answer = self.cache.get(format!("item:{item}"), class, load).await;
            self.note(&match answer {
                Ok(answer) => Line::Read {
                    item,
                    version: answer
                        .value
                        .and_then(|text| text.parse().ok())
                        .unwrap_or(-1),
                    from,
                    to: now(),
                    stale: answer.stale.is_some(),
                    strict: class == "strict",
                },
                Err(_) => Line::Refused,
            });
        }
    }

    async fn writes(self, mut rng: fastrand::Rng) {
        while now() < self.write_end {
            let item = active(&mut rng);
            let dies = self.die_at.is_some_and(|at| now() > at);
            match self.write(item, dies).await {
                Ok(()) => self.read(item, false, slow(&mut rng)).await,
                Err(error) => tracing::debug!(%error, "a write failed"),
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(10..80))).await;
        }
    }

    async fn write(&self, item: i64, dies: bool) -> Result<(), SourceError> {
        let mut tx = self.cache.database().begin().await?;
        let version = raise(&mut tx, item).await?;
        let invalidation = self
            .cache
            .invalidate_in(&mut tx, &[Target::key(format!("item:{item}"))])
            .await?;
        self.note(&Line::Begun {
            item,
            version,
            at: now(),
        });
        tx.commit().await?;
        if dies {
            self.note(&Line::Committed {
                item,
                version,
                at: now(),
            });
            std::process::abort();
        }
        invalidation.apply().await;
        self.note(&Line::Committed {
            item,
            version,
            at: now(),
        });
        Ok(())
    }
}

async fn raise(tx: &mut Tx, item: i64) -> Result<i64, SourceError> {
    let (update, select) = match tx {
        Tx::Postgres(_) => (
            "UPDATE items SET version = version + 1 WHERE id = $1",
            "SELECT version FROM items WHERE id = $1",
        ),
        _ => (
            "UPDATE items SET version = version + 1 WHERE id = ?",
            "SELECT version FROM items WHERE id = ?",
        ),
    };
    tx.execute(update, &[Param::Int(item)]).await?;
    let rows = tx.select(select, &[Param::Int(item)]).await?;
    Ok(rows[0]["version"].as_i64().unwrap())
}

/// An item to be written. Each is written for three seconds of eight and then left alone, in turn, so that a value which is wrong
/// stays so for long enough to be noticed.
fn active(rng: &mut fastrand::Rng) -> i64 {
    let second = (now() / 1_000_000) as i64;
    (second + rng.i64(0..3)) % ITEMS
}

fn slow(rng: &mut fastrand::Rng) -> Duration {
    if rng.bool() {
        Duration::from_millis(rng.u64(5..100))
    } else {
        Duration::ZERO
    }
}

/// Microseconds by a clock that all processes share.
#[expect(
    clippy::disallowed_methods,
    reason = "times of several processes are compared"
)]
fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_micros() as u64
}
